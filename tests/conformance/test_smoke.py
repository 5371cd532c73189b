"""Both clusters start and know themselves."""

from __future__ import annotations

import apache
import pytest

pytestmark = pytest.mark.apache


def test_name_server_lists_its_broker(cluster: apache.Cluster) -> None:
    assert apache.registered(cluster.namesrv_address, cluster.broker_name, cluster.broker_address)
