"""Does timed runs of the fake task, as `buzzer run` does: `python signal_harness.py OUT DO RUNS`.

It is a separate program, so that a test can send it signals.
"""

import signal
import sys
from pathlib import Path

from conftest import fake_selection
from rich.console import Console

from buzzer.models.api.context import Data
from buzzer.suite.cli.signals import ProgressDisplay
from buzzer.suite.run import task_runs
from buzzer.suite.run.executor import Executor
from buzzer.suite.run.plan import task_by_task

if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    selection = fake_selection(sys.argv[2], backends=["torch_eager"], repeat=int(sys.argv[3]))
    data = Data(Path(__file__).parent / "old_records", "f" * 64, "generated", {"rows": 10}, 1.0)
    out = Path(sys.argv[1])
    with ProgressDisplay(Console(stderr=True, quiet=True)) as display:
        list(Executor(out, display).run(task_runs.steps(task_by_task([selection]), [data], out)))
