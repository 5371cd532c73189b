"""A name server and a broker in this process, for tests of the client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aerobee.broker.options import BrokerOptions
from aerobee.broker.server import Broker
from aerobee.nameserver.options import NameServerOptions
from aerobee.nameserver.server import NameServer


@asynccontextmanager
async def one_broker(tmp_path: Path) -> AsyncIterator[tuple[str, Broker]]:
    """The name server's address, and the broker; both stop behind it."""
    name_server = NameServer(NameServerOptions(listen_port=0, kv_config_path=str(tmp_path / "kv.json")))
    await name_server.start()
    broker = Broker(
        BrokerOptions(
            listen_port=0, namesrv_addr=name_server.address, store_path_root_dir=str(tmp_path / "store"),
            mapped_file_size_commit_log=1 << 20, max_hash_slot_num=1000, max_index_num=4000,
        )
    )  # fmt: skip
    await broker.start()
    try:
        yield name_server.address, broker
    finally:
        await broker.stop()
        await name_server.stop()
