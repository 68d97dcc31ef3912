"""A pytest plugin that prints each failure when it occurs, so that the log of tests that were cut off tells what failed."""

from typing import Any

LONGEST = 3000  # characters of a traceback, from its end


class Failures:
    """Writes failures to the terminal of a session."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Print the report of a test that failed."""
        if report.failed:
            writer = self.config.get_terminal_writer()
            writer.line(f"\nfailed in {report.when}: {report.nodeid}\n{report.longreprtext[-LONGEST:]}")
            writer.flush()


def pytest_configure(config: Any) -> None:
    """Register the plugin, but not in xdist's workers, whose reports reach the session that started them."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Failures(config))
