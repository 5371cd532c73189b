"""A broker as a process of its own on a disk that fills up, breaks, or cannot be written.

What these tests prove: what was acknowledged is there, what is not stored is refused with the reason, reading goes on,
an operator sees why, and the process neither dies nor has to be restarted when there is room again. They need file
systems of their own: a mount namespace, and for the broken disk root and a loop device.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aerobee import Message, Producer, PullConsumer, SendStatus, ServerError
from aerobee.net.remote import RemotePool
from aerobee.protocol.bodies.admin import KVTable
from aerobee.protocol.codes import RequestCode
from aerobee.protocol.command import RemotingCommand
from aerobee.testing import Cluster, eventually

ROOT = os.geteuid() == 0
MIB = 1 << 20
SMALL = {
    "mappedFileSizeCommitLog": MIB, "mappedFileSizeConsumeQueue": 20_000, "maxHashSlotNum": 1000, "maxIndexNum": 4000,
    "mappedFileSizeTimerLog": MIB, "timerRollWindowSlot": 1000, "timerMaxDelaySec": 900,
}  # fmt: skip


class Mount:
    """A mount namespace with a file system at `place`, kept by a process that sleeps."""

    def __init__(self, place: Path, script: str) -> None:
        place.mkdir(parents=True)
        self.place = place
        user = [] if ROOT else ["--user", "--map-root-user"]
        self._holder = subprocess.Popen(
            ["unshare", *user, "--mount", "sh", "-ec", f"{script}; echo ready; exec sleep infinity", "sh", str(place)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            pytest.skip(f"no file system of its own: {self._holder.communicate()[1]}")
        self.enter = ["nsenter", "--target", str(self._holder.pid), "--mount", "--wd=/"]
        if not ROOT:
            self.enter += ["--user", "--preserve-credentials"]

    def run(self, *command: str) -> str:
        return subprocess.run([*self.enter, *command], check=True, capture_output=True, text=True, timeout=30).stdout

    def end(self) -> None:
        self._holder.kill()
        self._holder.communicate()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Mount]:
    """24 MiB, 16 of them taken by a file `ballast`."""
    made = Mount(tmp_path / "disk", 'mount -t tmpfs -o size=24m tmpfs "$1"; head -c 16M /dev/zero > "$1/ballast"')
    yield made
    made.end()


@pytest.fixture
def breaking_disk(tmp_path: Path) -> Iterator[Mount]:
    """An ext4 of 64 MiB that the kernel makes read-only at the first error."""
    if not ROOT or shutil.which("mkfs.ext4") is None:
        pytest.skip("needs root and mkfs.ext4")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, timeout=60)
    made = Mount(tmp_path / "disk", f'mount -o loop,errors=remount-ro "{image}" "$1"')
    yield made
    made.end()


async def started(mount: Mount, directory: Path, **settings: object) -> Cluster:
    cluster = Cluster(directory=directory, settings={**SMALL, "storePathRootDir": mount.place / "store", **settings})
    cluster.brokers[0].prefix = mount.enter
    return cluster


async def health(cluster: Cluster) -> str:
    """What brokerStatus says about the store; empty: all is well."""
    pool = RemotePool()
    reply = await pool.invoke(
        cluster.brokers[0].address, RemotingCommand.request(RequestCode.GET_BROKER_RUNTIME_INFO), 5
    )
    await pool.close()
    return KVTable.from_json(reply.body).table["storeHealth"]


async def fill(producer: Producer, first: int = 0) -> tuple[list[bytes], ServerError]:
    """Sends until it is refused; what was acknowledged, and the refusal."""
    acknowledged: list[bytes] = []
    while True:
        body = b"%06d" % (first + len(acknowledged)) + os.urandom(30_000)
        try:
            result = await producer.send(Message("orders", body))
        except ServerError as error:
            return acknowledged, error
        assert result.status is SendStatus.SEND_OK
        acknowledged.append(body)


async def everything(cluster: Cluster) -> set[bytes]:
    """All bodies of the topic."""
    found: set[bytes] = set()
    async with PullConsumer(cluster.name_servers, group="audit") as consumer:
        for queue in await consumer.queues("orders"):
            offset = 0
            while offset < await consumer.max_offset(queue):
                result = await consumer.pull(queue, offset, max_messages=32, wait_ms=0)
                found |= {message.body for message in result.messages}
                offset = result.next_offset
    return found


async def test_a_full_disk(small_disk: Mount, tmp_path: Path) -> None:
    """ENOSPC: refused with the reason, served to readers, well again by itself; a kill in between takes nothing."""
    cluster = await started(small_disk, tmp_path / "cluster", diskSpaceWarningLevelRatio=100, diskMaxUsedSpaceRatio=95)
    async with cluster:
        async with Producer(cluster.name_servers, group="p", retry_times=0) as producer:
            acknowledged, error = await fill(producer)
            assert len(acknowledged) > 20
            assert "space" in error.remark.lower(), error
            assert "space" in (await health(cluster)).lower()
            assert await everything(cluster) == set(acknowledged)
            await cluster.brokers[0].killed()
            await cluster.brokers[0].start()
            await cluster.registered()
            assert await everything(cluster) == set(acknowledged)
            small_disk.run("rm", str(small_disk.place / "ballast"))

            async def takes_messages() -> bool:
                await producer.send(Message("orders", b"again"))
                return True

            await eventually(takes_messages, 30)
            assert await health(cluster) == ""
            more = await producer.send(Message("orders", b"more"))
            assert more.status is SendStatus.SEND_OK
            assert await everything(cluster) >= {*acknowledged, b"again", b"more"}
            groups = small_disk.place / "store" / "config" / "subscriptionGroup.json"
            await eventually(lambda: '"audit"' in small_disk.run("cat", str(groups)), 15)
        log = cluster.brokers[0].tail(100_000)
        assert "space" in log.lower() and "Traceback" not in log
        assert await cluster.brokers[0].stop() == 0


async def test_a_nearly_full_disk_is_refused_early(small_disk: Mount, tmp_path: Path) -> None:
    """Above the configured share nothing new is taken, while there is still room for everything that has to be kept."""
    cluster = await started(small_disk, tmp_path / "cluster", diskSpaceWarningLevelRatio=80)
    async with cluster, Producer(cluster.name_servers, group="p", retry_times=0) as producer:
        small_disk.run("truncate", "-s", "18M", str(small_disk.place / "more"))
        small_disk.run("fallocate", "-l", "4M", str(small_disk.place / "more"))
        await eventually(lambda: health(cluster), 10)
        acknowledged, error = await fill(producer)
        assert acknowledged == [] and "80.0 %" in error.remark and "is used" in error.remark, error
        small_disk.run("rm", str(small_disk.place / "more"))

        async def takes_messages() -> bool:
            return (await producer.send(Message("orders", b"x"))).status is SendStatus.SEND_OK

        await eventually(takes_messages, 10)


async def test_a_disk_that_turns_read_only(breaking_disk: Mount, tmp_path: Path) -> None:
    """EROFS in the middle: no SEND_OK for what is not on the disk, readers are served, the next start says why it
    fails."""
    cluster = await started(breaking_disk, tmp_path / "cluster", flushDiskType="SYNC_FLUSH")
    async with cluster:
        async with Producer(cluster.name_servers, group="p", retry_times=0) as producer:
            sent = [b"%d" % number for number in range(50)]
            for body in sent:
                await producer.send(Message("orders", body))
            break_disk(breaking_disk)
            _, error = await fill(producer)
            assert "read-only" in error.remark.lower(), error
            assert "read-only" in (await health(cluster)).lower()
            with pytest.raises(ServerError):
                await producer.send(Message("orders", b"again"))
            assert set(sent) <= await everything(cluster)
        assert cluster.brokers[0].running
        assert await cluster.brokers[0].stop() == 1
        assert "Traceback" not in cluster.brokers[0].tail(100_000)
        with pytest.raises(RuntimeError) as caught:
            await cluster.brokers[0].start()
        last = str(caught.value).rpartition("--- start")[2].splitlines()
        said = [line for line in last if line.startswith("aerobee broker: ")]
        assert len(said) == 1 and "read-only" in said[0].lower()
        repair_disk(breaking_disk, tmp_path / "image")
        await cluster.brokers[0].start()
        await cluster.registered()
        assert set(sent) <= await everything(cluster)


def break_disk(mount: Mount) -> None:
    """The kernel meets an error and makes the file system read-only, under a running broker."""
    device = mount.run("findmnt", "-no", "SOURCE", str(mount.place)).strip().removeprefix("/dev/")
    Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("a test")


def repair_disk(mount: Mount, image: Path) -> None:
    """What an operator does after a restart of the machine."""
    mount.run("umount", str(mount.place))
    subprocess.run(["e2fsck", "-fy", str(image)], check=False, timeout=60, capture_output=True)
    mount.run("mount", "-o", "loop", str(image), str(mount.place))
