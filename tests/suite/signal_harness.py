"""The fake task's timed runs, three of them, as in `buzzer run`: `python signal_harness.py OUT DO`.

A process of its own, so that the test can send it signals.
"""

import signal
import sys
from pathlib import Path

from conftest import fake_choice
from rich.console import Console

from buzzer.models.api.context import Data
from buzzer.suite.cli import run as run_verb
from buzzer.suite.cli.progress import ProgressDisplay

if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    choice = fake_choice(sys.argv[2], backends=["torch_eager"], repeat=3)
    data = Data(Path(__file__).parent / "old_records", "fingerprint", "generated", {"rows": 10}, 1.0)
    with ProgressDisplay(Console(stderr=True, quiet=True)) as screen:
        run_verb.run_choice(choice, data, [], {"out": sys.argv[1], "resume": False}, screen)
