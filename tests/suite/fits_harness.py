"""Makes the fit of the fake task, as `buzzer run` does: `python fits_harness.py CACHE` prints its outcome, or `cached`.

It is a separate program, so that two processes can need the same fit.
"""

import sys
from pathlib import Path

from conftest import fake_selection

from buzzer.models.api.context import Data
from buzzer.suite.run import runner
from buzzer.suite.run.plan import fit_run

if __name__ == "__main__":
    data = Data(Path(), "f" * 64, "generated", {"rows": 10}, 1.0)
    fit = runner.fit(fit_run(fake_selection()), data, Path(sys.argv[1]), lambda phase, elapsed, part: None)
    print(fit.outcome if fit else "cached")
