"""Clusters for the conformance tests: Apache's and ours, side by side in one private network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import apache
import golang
import network
import nodejs
import ours
import proxy
import pytest
from official import Client
from room import Room

# What a test needs, by its marker. Asked before any test runs, outside the private network: what is missing is built or
# fetched then.
NEEDS: dict[str, Callable[[], str | None]] = {
    "apache": lambda: network.unavailable() or apache.unavailable(),
    "go": golang.unavailable,
    "node": nodejs.unavailable,
    "grpc": proxy.unavailable,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what this machine cannot run, and says why (the summary at the end lists it)."""
    here = [item for item in items if item.path.parent == apache.JAVA.parent]
    for marker, unavailable in NEEDS.items():
        needing = [item for item in here if item.get_closest_marker(marker)]
        reason = unavailable() if needing else None
        for item in needing if reason else []:
            item.add_marker(pytest.mark.skip(reason=reason))


OPTIONS = {"recallMessageEnable": "true", "traceTopicEnable": "true"}
"""Of both clusters; everything else is as it comes, but for what keeps Apache's quiet."""


@pytest.fixture(scope="package")
def private_network() -> Iterator[None]:
    """Every test of this directory, and whatever it starts, lives in one network that has loopback only."""
    with network.private_network():
        yield


@pytest.fixture(scope="package")
def apache_cluster(private_network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[apache.Cluster]:
    """Apache RocketMQ 5.5.0: name server 127.0.0.1:9876, broker 127.0.0.1:10911."""
    cluster = apache.start(tmp_path_factory.mktemp("apache"), {**OPTIONS, **apache.NO_SPIN, **apache.PATIENT})
    yield cluster
    cluster.discard()


@pytest.fixture(scope="package")
def aerobee_cluster(private_network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[apache.Cluster]:
    """Ours: name server 127.0.0.1:19876, broker 127.0.0.1:20911."""
    cluster = ours.start(tmp_path_factory.mktemp("aerobee"), OPTIONS)
    yield cluster
    cluster.discard()


@pytest.fixture(scope="package", params=["apache", "aerobee"])
def cluster(request: pytest.FixtureRequest) -> apache.Cluster:
    """The same test against Apache's cluster and ours."""
    started: apache.Cluster = request.getfixturevalue(f"{request.param}_cluster")
    return started


@pytest.fixture(scope="package")
def client(private_network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The official Java client and mqadmin, one JVM for all tests."""
    started = Client(tmp_path_factory.mktemp("client"))
    yield started
    started.close()


@pytest.fixture
def other(private_network: None, tmp_path: Path) -> Iterator[Client]:
    """Official clients in a JVM of their own, which a test may kill."""
    started = Client(tmp_path / "other")
    yield started
    started.kill()


@pytest.fixture(scope="package")
def go_client(private_network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[golang.Client]:
    """The official Go client."""
    started = golang.Client(tmp_path_factory.mktemp("go"))
    yield started
    started.close()


@pytest.fixture
def room(client: Client, cluster: apache.Cluster, request: pytest.FixtureRequest) -> Iterator[Room]:
    name = request.node.originalname.removeprefix("test_")
    variant = request.node.callspec.id.replace(cluster.kind, "").strip("-")
    again = getattr(request.node, "execution_count", 1)  # a second try begins with a topic of its own
    parts = [name, variant, f"again{again}" if again > 1 else ""]
    opened = Room(client, cluster, "_".join(part for part in parts if part))
    yield opened
    opened.close()
