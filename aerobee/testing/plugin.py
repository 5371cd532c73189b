"""pytest fixtures around `Cluster`: `pytest_plugins = ["aerobee.testing.plugin"]`.

* `cluster`: one name server, one broker, for one test.
* `clusters`: makes clusters of any shape; all are stopped after the test.

When a test fails, the ends of its clusters' logs are part of the report.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any

import pytest
import pytest_asyncio

from aerobee.testing.cluster import Cluster

MakeCluster = Callable[..., Awaitable[Cluster]]


@pytest_asyncio.fixture
async def clusters() -> AsyncIterator[MakeCluster]:
    """A function that starts a cluster; it takes the arguments of `Cluster`."""
    made: list[Cluster] = []

    async def make(**shape: Any) -> Cluster:
        cluster = Cluster(**shape)
        made.append(cluster)
        return await cluster.start()

    yield make
    for cluster in made:
        await cluster.stop()


@pytest_asyncio.fixture
async def cluster(clusters: MakeCluster) -> Cluster:
    """One name server and one broker."""
    return await clusters()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for live in list(Cluster.live):
            report.sections.append((f"logs of the cluster in {live.directory}", live.logs()))
    return report
