"""The harness of the soak test: one suite of many runs of the fake task, as in `buzzer run --resume`.

`python soak_harness.py OUT RUNS`; a process of its own, so that the test can kill it.
"""

import sys
from pathlib import Path

from conftest import fake_choice
from rich.console import Console

from buzzer.errors import BuzzerError
from buzzer.models.api.context import Data
from buzzer.suite.cli import run as run_verb
from buzzer.suite.cli.progress import ProgressDisplay
from buzzer.suite.records import record


def main(out: Path, runs: int) -> int:
    choice = fake_choice("soak", "1c300m5s", backends=["torch_eager"], repeat=runs)
    data = Data(Path(__file__).parent / "old_records", "fingerprint", "generated", {"rows": 10}, 1.0)
    options = {"out": out, "resume": True}
    try:
        with ProgressDisplay(Console(stderr=True, quiet=True)) as screen:
            run_verb.run_choice(choice, data, record.read_good(out), options, screen)
    except BuzzerError as error:
        print(error.message, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
