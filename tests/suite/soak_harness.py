"""The harness of the soak test. It does many runs of the fake task, as `buzzer run --resume` does: `python soak_harness.py OUT RUNS`.

It is a separate program, so that the test can kill it.
"""

import sys
from pathlib import Path

from conftest import fake_selection
from rich.console import Console

from buzzer.errors import BuzzerError
from buzzer.models.api.context import Data
from buzzer.suite.cli.signals import ProgressDisplay
from buzzer.suite.run import task_runs
from buzzer.suite.run.executor import Executor
from buzzer.suite.run.plan import task_by_task


def main(out: Path, runs: int) -> int:
    selection = fake_selection("soak", "1c300m5s", backends=["torch_eager"], repeat=runs)
    data = Data(Path(__file__).parent / "old_records", "f" * 64, "generated", {"rows": 10}, 1.0)
    try:
        with ProgressDisplay(Console(stderr=True, quiet=True)) as display:
            executor = Executor(out, display, resume=True)
            list(executor.run(task_runs.steps(task_by_task([selection]), [data], out)))
    except BuzzerError as error:
        print(error.message, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
