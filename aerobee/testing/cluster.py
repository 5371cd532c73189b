"""A real cluster for a test: name servers and brokers as processes of their own, ports chosen by the system, files in
a temporary directory, gone at the end.

    async with Cluster(brokers=2, name_servers=2) as cluster:
        async with Producer(cluster.name_servers, group="g") as producer:
            await producer.send(Message("t", b"x"))
        cluster.brokers[0].kill()           # kill -9
        await cluster.brokers[0].start()    # the same store, the same port

Every server keeps its log in its directory; `cluster.logs()` has their ends, and the pytest plugin shows them when a
test fails. Servers end with the process that started them, however it ends.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
import tempfile
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar, Final, Self

from aerobee.client.client import Client
from aerobee.errors import AerobeeError
from aerobee.protocol.codes import RequestCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.headers.topics import CreateTopic
from aerobee.testing.eventually import eventually

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0
LOG_TAIL_BYTES: Final = 4000


class Server:
    """One server process. `address` is known after the first start and stays the same through restarts."""

    def __init__(self, kind: str, name: str, directory: Path, settings: Mapping[str, object]) -> None:
        self.kind = kind
        self.name = name
        self.directory = directory
        self.address = ""
        self.settings = dict(settings)
        self.prefix: list[str] = []
        """Words in front of the command: `["taskset", "-c", "0"]`, `["nsenter", ...]`."""
        self.log = directory / "log"
        self.starts = 0
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Process id of the running (or last) process, 0 before the first start."""
        return self._process.pid if self._process is not None else 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> Self:
        """Starts the process and returns when it serves. Raises RuntimeError with its last words when it does not."""
        if self.running:
            return self
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / f"{self.kind}.properties"
        port = self.address.rpartition(":")[2] or 0
        settings = {"bindAddress": "127.0.0.1", "listenPort": port, **self.settings}
        config.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        self.starts += 1
        with self.log.open("ab") as log:
            log.write(f"--- start {self.starts}\n".encode())
            log.flush()
            self._process = await asyncio.create_subprocess_exec(
                *self.prefix, sys.executable, "-m", "aerobee.cli", self.kind, "-c", str(config), "--stop-at-eof",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log, cwd=self.directory,
                env=_environment(),
            )  # fmt: skip
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                line = (await self._process.stdout.readline()).decode()
        except TimeoutError:
            self.kill()
            raise RuntimeError(f"{self.name} not ready after {START_TIMEOUT_S:g} s:\n{self.tail()}") from None
        found = re.search(r"listening on ([^\s,]+)", line)
        if found is None:
            await self._process.wait()
            raise RuntimeError(f"{self.name} ended with {self._process.returncode}:\n{self.tail()}")
        self.address = found[1]
        return self

    def kill(self) -> None:
        """kill -9: nothing is flushed, said or tidied up."""
        if self.running:
            assert self._process is not None
            self._process.kill()

    async def killed(self) -> None:
        """`kill`, and returns when the process is gone."""
        self.kill()
        if self._process is not None:
            await self._process.wait()

    async def stop(self) -> int:
        """SIGTERM, and the exit code; kills when it takes too long."""
        if self._process is None:
            return 0
        if self.running:
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                return await self._process.wait()
        except TimeoutError:
            await self.killed()
            raise RuntimeError(f"{self.name} did not stop within {STOP_TIMEOUT_S:g} s:\n{self.tail()}") from None

    async def restart(self) -> Self:
        await self.stop()
        return await self.start()

    def freeze(self) -> None:
        """SIGSTOP: it is there and says nothing."""
        if self.running:
            os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        if self.running:
            os.kill(self.pid, signal.SIGCONT)

    def tail(self, size_bytes: int = LOG_TAIL_BYTES) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-size_bytes:] if self.log.exists() else ""


class Cluster:
    """Name servers and brokers; see the head of this file.

    `settings` go to every broker, in Apache's spelling: `{"flushDiskType": "SYNC_FLUSH"}`, `name_server_settings` to
    every name server. `directory` is kept; without one a temporary directory is made and removed.
    """

    live: ClassVar[weakref.WeakSet[Cluster]] = weakref.WeakSet()

    def __init__(
        self,
        *,
        brokers: int = 1,
        name_servers: int = 1,
        settings: Mapping[str, object] | None = None,
        name_server_settings: Mapping[str, object] | None = None,
        directory: Path | None = None,
        cluster_name: str = "DefaultCluster",
    ) -> None:
        self._temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="aerobee-cluster-"))
        self.name_server_list = [
            self._name_server(self.directory / f"nameserver-{i}", i, name_server_settings or {})
            for i in range(name_servers)
        ]
        self.brokers = [self._broker(i, cluster_name, settings or {}) for i in range(brokers)]

    @property
    def name_servers(self) -> str:
        """What clients are given: "host:port;host:port"."""
        return ";".join(server.address for server in self.name_server_list)

    @property
    def servers(self) -> list[Server]:
        return [*self.name_server_list, *self.brokers]

    async def start(self) -> Self:
        """Returns when every name server knows every broker."""
        Cluster.live.add(self)
        await asyncio.gather(*(server.start() for server in self.name_server_list))
        for broker in self.brokers:
            broker.settings["namesrvAddr"] = self.name_servers
        await asyncio.gather(*(broker.start() for broker in self.brokers))
        await self.registered()
        return self

    async def registered(self, timeout_s: float = 10.0) -> None:
        """Returns when every running name server knows every running broker."""
        names = [broker.name for broker in self.brokers if broker.running]
        for server in self.name_server_list:
            if not server.running:
                continue
            async with Client(server.address) as client:

                async def knows(client: Client, address: str) -> bool:
                    try:
                        reply = await client.invoke(
                            address, RemotingCommand.request(RequestCode.GET_BROKER_CLUSTER_INFO)
                        )
                    except AerobeeError:
                        return False
                    return all(f'"{name}"'.encode() in reply.body for name in names)

                await eventually(partial(knows, client, server.address), timeout_s)

    async def create_topic(self, topic: str, queues: int = 4, timeout_s: float = 10.0) -> None:
        """Makes a topic on every running broker; returns when every running name server tells of it."""
        running = {broker.name: broker for broker in self.brokers if broker.running}
        header = CreateTopic(
            topic=topic, default_topic="TBW102", read_queue_nums=queues, write_queue_nums=queues, perm=6,
            topic_filter_type="SINGLE_TAG", topic_sys_flag=0, order=False,
        )  # fmt: skip
        for server in self.name_server_list:
            if not server.running:
                continue
            async with Client(server.address) as client:
                for broker in running.values():
                    await client.invoke(
                        broker.address, RemotingCommand.request(RequestCode.UPDATE_AND_CREATE_TOPIC, header)
                    )

                async def is_known(client: Client) -> bool:
                    return set((await client.route(topic, fresh=True)).brokers) >= set(running)

                await eventually(partial(is_known, client), timeout_s)

    async def stop(self) -> None:
        for server in reversed(self.servers):
            server.thaw()
            if server.running:
                await server.stop()
        Cluster.live.discard(self)
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    async def __aenter__(self) -> Self:
        try:
            return await self.start()
        except BaseException:
            for server in self.servers:
                await server.killed()
            raise

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"=== {server.name} {server.address}\n{server.tail()}" for server in self.servers)

    def _name_server(self, directory: Path, index: int, settings: Mapping[str, object]) -> Server:
        own = {"kvConfigPath": directory / "kvConfig.json", **settings}
        return Server("nameserver", f"name server {index}", directory, own)

    def _broker(self, index: int, cluster_name: str, settings: Mapping[str, object]) -> Server:
        name = f"broker-{chr(ord('a') + index)}"
        directory = self.directory / name
        return Server(
            "broker", name, directory,
            {
                "brokerName": name,
                "brokerClusterName": cluster_name,
                "brokerIP1": "127.0.0.1",
                "storePathRootDir": directory / "store",
                "mappedFileSizeCommitLog": 16 * 1024 * 1024,
                "mappedFileSizeConsumeQueue": 600_000,
                "diskMaxUsedSpaceRatio": 95,
                "diskSpaceWarningLevelRatio": 99,
                **settings,
            },
        )  # fmt: skip


def _environment() -> dict[str, str]:
    """The test's own, but nothing in it configures a server; the server finds the same aerobee as the test."""
    kept = {key: value for key, value in os.environ.items() if key != "NAMESRV_ADDR" and not key.startswith("AEROBEE_")}
    here = str(Path(__file__).resolve().parents[2])
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, (here, kept.get("PYTHONPATH"))))}
