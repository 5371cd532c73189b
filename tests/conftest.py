"""Fixtures for all tests come from the plugin that users get too.

Tests of `conformance` and `cluster` run other people's JVMs, kill processes and live by real clocks on whatever machine
CI has; such a test may fail for the machine's sake. It is run again at most twice, and the summary counts every rerun:
a test that often needs one is a bug. All other tests have one try.

How long an example takes is no claim of a property test, so Hypothesis sets no deadline on a busy machine.
"""

import hypothesis
import pytest

pytest_plugins = ["aerobee.testing.plugin", "pytester"]

hypothesis.settings.register_profile("aerobee", deadline=None)
hypothesis.settings.load_profile("aerobee")

REAL_PROCESSES = ("tests/conformance/", "tests/cluster/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """See the head of this file."""
    for item in items:
        if item.nodeid.startswith(REAL_PROCESSES):
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=1))
