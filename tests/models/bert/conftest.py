import pytest

from buzzer.datasets.contract import silent
from buzzer.models.api.context import Data
from buzzer.models.bert.intent import TASK


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Generated sentences, a fiftieth of CLINC150's number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("BUZZER_DATA", raising=False)
        return TASK.prepare(None, tmp_path_factory.mktemp("cache"), 0.02, 0, silent)
