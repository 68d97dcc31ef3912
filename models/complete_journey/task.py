"""The `complete-journey` task: the first task's models on real grocery baskets, mapped into its schema."""

from functools import partial
from pathlib import Path

from buzzer.datasets import complete_journey as dataset
from buzzer.datasets.checked import generated
from buzzer.datasets.complete_journey import mapping
from buzzer.errors import UsageError
from buzzer.models.api.context import Data, Progress
from buzzer.models.sigir_ecom.next_item.task import Recommendation

NOTES = (
    "real data: 84.51 Complete Journey (2017), a household's week as session, mapped into the SIGIR eCom schema",
    f"time split: weeks from {mapping.TEST_WEEK} on are the test; what is bought counts as looked at",
)


class CompleteJourney(Recommendation):
    """See configs/tasks/complete-journey.yaml; --scale is the share of households."""

    def prepare(self, source: Path | None, cache: Path, scale: float, seed: int, progress: Progress) -> Data:
        if source is not None:
            raise UsageError("complete-journey takes its data from an installed package", "leave --data out")
        folder = cache / f"complete_journey-v{mapping.VERSION}-scale{scale:g}-seed{seed}"
        generate = partial(dataset.generate, scale=scale, seed=seed, progress=progress)
        files = generated(folder, generate, dataset.check, cache, progress)
        return Data(folder, files.fingerprint, "official", dict(files.rows), min(scale, 1.0), NOTES)


TASK = CompleteJourney()
