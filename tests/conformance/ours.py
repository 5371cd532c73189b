"""Our name server and broker as processes of a test, with the same face as `apache`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import apache
from apache import SMALL_STORE, Cluster, Process, call, registered, write_properties


def start_namesrv(directory: Path, port: int = 19876, options: Mapping[str, object] | None = None) -> Process:
    """Starts our name server on 127.0.0.1:`port` and waits until it answers."""
    config = directory / "namesrv.properties"
    settings: dict[str, object] = {
        "listenPort": port,
        "bindAddress": "127.0.0.1",
        "kvConfigPath": directory / "kvConfig.json",
        **(options or {}),
    }
    write_properties(config, settings)
    process = Process("namesrv", [*_script("nameserver", "mqnamesrv"), "-c", str(config)], directory)
    process.ready(lambda: call(f"127.0.0.1:{port}", 106)[0]["code"] == 0)
    return process


def start_broker(
    directory: Path,
    namesrv: str,
    port: int = 20911,
    options: Mapping[str, object] | None = None,
    *,
    name: str = "broker-a",
    cluster: str = "DefaultCluster",
    ready: Callable[[], bool] | None = None,
) -> Process:
    """Starts our broker on 127.0.0.1:`port`, store in `directory/store`; returns when its name server knows it.

    `ready` replaces that question.
    """
    config = directory / "broker.properties"
    settings: dict[str, object] = {
        "brokerClusterName": cluster,
        "brokerName": name,
        "brokerId": 0,
        "brokerIP1": "127.0.0.1",
        "bindAddress": "127.0.0.1",
        "listenPort": port,
        "storePathRootDir": directory / "store",
        "storePathCommitLog": directory / "store" / "commitlog",
        "diskMaxUsedSpaceRatio": 90,
        **SMALL_STORE,
        **(options or {}),
    }
    write_properties(config, settings)
    process = Process("broker", [*_script("broker", "mqbroker"), "-c", str(config), "-n", namesrv], directory)
    process.ready(ready or (lambda: registered(namesrv, name, f"127.0.0.1:{port}")))
    return process


def start(
    directory: Path, options: Mapping[str, object] | None = None, *, namesrv_port: int = 19876, port: int = 20911
) -> Cluster:
    """A name server and a broker of ours, ready for clients."""
    namesrv_address, address = f"127.0.0.1:{namesrv_port}", f"127.0.0.1:{port}"
    namesrv = start_namesrv(directory, namesrv_port)

    def broker() -> Process:
        return start_broker(directory, namesrv_address, port, options)

    first = broker()
    return Cluster("aerobee", namesrv_address, address, "broker-a", "DefaultCluster", directory, namesrv, first, broker)


def _script(module: str, function: str) -> list[str]:
    """The console script as this interpreter would run it, installed or not."""
    code = (
        f"import sys; sys.argv[0] = {function!r}; from aerobee.cli.{module} import {function}; sys.exit({function}())"
    )
    return ["env", f"PYTHONPATH={apache.ROOT}", sys.executable, "-c", code]
