"""Fixtures for all tests come from the plugin that users get too.

Tests of `conformance` and `cluster` run other people's JVMs, kill processes and live by real clocks on whatever machine
CI has; such a test may fail for the machine's sake. It is run again at most twice, and the summary says of every rerun
what had failed: a test that often needs one is a bug. All other tests have one try.

How long an example takes is no claim of a property test, so Hypothesis sets no deadline on a busy machine.
"""

import hypothesis
import pytest

pytest_plugins = ["aerobee.testing.plugin", "pytester"]

hypothesis.settings.register_profile("aerobee", deadline=None)
hypothesis.settings.load_profile("aerobee")

REAL_PROCESSES = ("tests/conformance/", "tests/cluster/")
REASON_LINES = 12
REASON_COLUMNS = 400


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """See the head of this file."""
    for item in items:
        if item.nodeid.startswith(REAL_PROCESSES):
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Why tests that passed in the end had failed before: the lines pytest marks as the error, and where."""
    again = terminalreporter.getreports("rerun")
    if again:
        terminalreporter.section("failed before the next try")
    for report in again:
        lines = report.longreprtext.splitlines()
        said = [line for line in lines if line.startswith("E ")][:REASON_LINES] or lines[-REASON_LINES:]
        terminalreporter.write_line(f"{report.nodeid} ({report.when})")
        for line in [*said, *lines[-1:]]:
            terminalreporter.write_line(f"    {line[:REASON_COLUMNS]}")
