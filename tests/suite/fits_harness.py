"""The fit of the fake task, as in `buzzer run`: `python fits_harness.py CACHE` prints its outcome, or `found` for a cached one.

A process of its own, so that two of them can want the same fit.
"""

import sys
from pathlib import Path

from conftest import fake_selection

from buzzer.models.api.context import Data
from buzzer.suite.run import runner
from buzzer.suite.run.plan import fit_run

if __name__ == "__main__":
    data = Data(Path(), "f" * 64, "generated", {"rows": 10}, 1.0)
    made = runner.fit(fit_run(fake_selection()), data, Path(sys.argv[1]), lambda phase, elapsed: None)
    print(made.outcome if made else "found")
