"""Clusters for the conformance tests: Apache's and ours, side by side in one private network."""

from __future__ import annotations

from collections.abc import Iterator

import apache
import network
import ours
import pytest
from official import Client
from room import Room


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what needs Java on machines without it; says why."""
    needing_java = [
        item for item in items if item.path.parent == apache.JAVA.parent and item.get_closest_marker("apache")
    ]
    if not needing_java:
        return
    reason = network.unavailable() or apache.unavailable()
    if reason:
        for item in needing_java:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="package")
def private_network() -> Iterator[None]:
    """Every test of this directory, and whatever it starts, lives in one network that has loopback only."""
    with network.private_network():
        yield


@pytest.fixture(scope="package")
def apache_cluster(private_network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[apache.Cluster]:
    """Apache RocketMQ 5.5.0: name server 127.0.0.1:9876, broker 127.0.0.1:10911."""
    cluster = apache.start(tmp_path_factory.mktemp("apache"))
    yield cluster
    cluster.discard()


@pytest.fixture(scope="package")
def aerobee_cluster(private_network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[apache.Cluster]:
    """Ours: name server 127.0.0.1:19876, broker 127.0.0.1:20911."""
    cluster = ours.start(tmp_path_factory.mktemp("aerobee"))
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
def room(client: Client, cluster: apache.Cluster, request: pytest.FixtureRequest) -> Iterator[Room]:
    name = request.node.originalname.removeprefix("test_")
    variant = request.node.callspec.id.replace(cluster.kind, "").strip("-")
    tries = getattr(request.node, "execution_count", 1)  # a test that is run again has nothing of the run before
    opened = Room(client, cluster, "_".join(filter(None, [name, variant, str(tries) if tries > 1 else ""])))
    yield opened
    opened.close()
