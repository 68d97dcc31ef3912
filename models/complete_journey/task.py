"""The `complete-journey` task: the models of `sigir-ecom-task1` on real grocery baskets, mapped into its schema.

Files and details are as in `sigir_ecom.next_item.task`.
"""

from pathlib import Path

from buzzer.datasets import complete_journey as dataset
from buzzer.datasets.complete_journey import mapping
from buzzer.datasets.contract import Progress
from buzzer.errors import UsageError
from buzzer.models.api.context import Data
from buzzer.models.dataset_task import DataSource
from buzzer.models.sigir_ecom.next_item.task import Recommendation

NOTES = (
    "real data: 84.51 Complete Journey (2017), a household's week as session, mapped into the SIGIR eCom schema",
    f"time split: weeks from {mapping.TEST_WEEK} on are the test; a bought item counts as a view",
)


class CompleteJourney(Recommendation):
    """See configs/tasks/complete-journey.yaml; --scale is the share of households."""

    data_source = DataSource(f"complete_journey-v{mapping.VERSION}", dataset.generate, dataset.check)

    def prepare(self, source: Path | None, cache: Path, scale: float, seed: int, progress: Progress) -> Data:
        """Map the installed package's tables into the schema, in the cache. Raises UsageError for a folder of files."""
        if source is not None:
            raise UsageError("complete-journey reads its data from an installed package", "leave --data out")
        files = self.data_source.files(None, cache, scale, seed, progress)
        return Data(files.folder, files.fingerprint, "official", dict(files.rows), min(scale, 1.0), NOTES)


TASK = CompleteJourney()
