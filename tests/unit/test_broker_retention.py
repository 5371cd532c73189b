"""Files of the log go when their time is over and everybody has consumed them; never before, unless asked for."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aerobee.broker import retention
from aerobee.broker.options import BrokerOptions
from aerobee.broker.server import Broker
from aerobee.broker.store import Record
from aerobee.clock import ManualClock
from aerobee.errors import DiskFailed
from aerobee.testing.eventually import eventually

FILE_BYTES = 1 << 16
LATER_MS = 4 * 24 * 3_600_000
ALL_DAY = ";".join(f"{hour:02d}" for hour in range(24))


async def start(tmp_path: Path, **values: Any) -> Broker:
    settings = {
        "broker_name": "broker-a",
        "store_path_root_dir": str(tmp_path / "store"),
        "listen_port": 0,
        "fast_port": 0,
        "mapped_file_size_commit_log": FILE_BYTES,
        "mapped_file_size_consume_queue": 2000,
        "max_hash_slot_num": 1000,
        "max_index_num": 4000,
        # The disk of the machine that tests run on may be full: only time counts here.
        "disk_max_used_space_ratio": 95,
        "disk_space_warning_level_ratio": 100,
        "clean_resource_interval": 600_000,
        **values,
    }
    broker = Broker(BrokerOptions(**settings))
    await broker.start()
    return broker


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    started = await start(tmp_path)
    yield started
    await started.stop()


def fill(broker: Broker, topic: str = "orders", count: int = 400) -> None:
    """About seven files."""
    for _ in range(count):
        broker.store.append([Record(topic, 0, b"x" * 1000, b"")])
    broker.store.engine.flush()  # only what is on the disk can go


async def days_later(broker: Broker) -> dict[str, int]:
    broker.clock = ManualClock(int(time.time() * 1000) + LATER_MS)
    return await retention.clean(broker, now=True)


def held_back(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "but stay" in record.getMessage()]


# Claim: with `commitlog` a symbolic link the log is on another disk; it is found, written, and deleted from there, also
# when that disk fills up.
async def test_a_log_on_another_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = await start(tmp_path)
    fill(broker)
    await broker.stop()
    link, disk2 = tmp_path / "store" / "commitlog", tmp_path / "disk2"
    link.rename(disk2)
    link.symlink_to(disk2)
    broker = await start(tmp_path, store_path_commit_log=str(disk2))
    try:
        assert broker.store.bounds("orders", 0) == (0, 400)
        fill(broker)
        assert broker.store.bounds("orders", 0) == (0, 800) and link.is_symlink()
        files = len(list(disk2.iterdir()))
        assert files > 10

        def usage(path: str | Path) -> Any:
            used = 97 if Path(path) == link else 1
            return SimpleNamespace(used=used, free=100 - used)

        monkeypatch.setattr(shutil, "disk_usage", usage)
        hour = (time.localtime().tm_hour + 12) % 24
        broker.options.change({"deleteWhen": str(hour), "fileReservedTime": "0"})
        broker.clock = ManualClock(int(time.time() * 1000) + 60_000)
        report = await retention.clean(broker)
        assert report["log_files"] > 5 and len(list(disk2.iterdir())) < files - 5
    finally:
        await broker.stop()


async def test_light_queues_go_with_their_last_message_and_hold_nothing_back(tmp_path: Path) -> None:
    broker = await start(tmp_path, enable_lmq=True, enable_multi_dispatch=True)
    for name in ("old", "read", "new"):
        broker.store.append([Record("orders", 0, b"x", f"INNER_MULTI_DISPATCH\x01%LMQ%{name}\x02".encode())])
        broker.offsets.commit("%LMQ%g", f"%LMQ%{name}", 0, 0)
    fill(broker)
    broker.store.append([Record("orders", 0, b"x", b"INNER_MULTI_DISPATCH\x01%LMQ%new\x02")])
    broker.store.watch("%LMQ%read", 0)
    report = await days_later(broker)
    assert report["log_files"] >= 5
    assert set(broker.store.topics()) == {"orders", "%LMQ%read", "%LMQ%new"}
    assert broker.store.bounds("%LMQ%new", 0) == (1, 2) and broker.store.bounds("%LMQ%read", 0) == (1, 1)
    assert broker.offsets.topics_of("%LMQ%g") == ["%LMQ%new", "%LMQ%read"]
    await broker.stop()


async def test_nothing_goes_before_its_time(broker: Broker) -> None:
    fill(broker)
    assert not await retention.clean(broker, now=True)
    assert broker.store.bounds("orders", 0) == (0, 400)


async def test_what_nobody_subscribed_goes_when_its_time_is_over(broker: Broker) -> None:
    fill(broker)
    report = await days_later(broker)
    low, high = broker.store.bounds("orders", 0)
    assert report["log_files"] >= 5 and 300 < low < high == 400


async def test_disk_nearly_full_does_not_cost_a_group_what_it_has_not_consumed(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    # Claim: files over their time stay while a group has messages in them, and the log names the group.
    fill(broker)
    broker.offsets.commit("fast", "orders", 0, 400)
    broker.offsets.commit("slow", "orders", 0, 150)
    with caplog.at_level(logging.WARNING):
        await days_later(broker)
    low, _ = broker.store.bounds("orders", 0)
    assert 0 < low <= 150, "files that all have consumed are gone, the others are not"
    (line,) = held_back(caplog)
    assert "group slow has not consumed orders queue 0" in line

    caplog.clear()
    broker.offsets.commit("slow", "orders", 0, 400)
    await days_later(broker)
    assert broker.store.bounds("orders", 0)[0] > 300 and not held_back(caplog)


async def test_a_group_that_waits_at_a_lost_message_holds_only_what_follows(tmp_path: Path) -> None:
    broker = await start(tmp_path)
    fill(broker)
    broker.offsets.commit("slow", "orders", 0, 150)
    entry = broker.store.entries("orders", 0, 150, 1)
    await broker.stop()
    lost = int.from_bytes(entry[:8], "big")
    store = tmp_path / "store"
    log = store / "commitlog" / f"{lost // FILE_BYTES * FILE_BYTES:020d}"
    with log.open("r+b") as file:
        file.seek(lost % FILE_BYTES + 500)
        file.write(b"damaged")
    shutil.rmtree(store / "consumequeue")
    (store / "checkpoint").unlink()
    (store / "abort").touch()

    broker = await start(tmp_path)
    assert broker.store.entries("orders", 0, 150, 1) == (-1).to_bytes(8, "big", signed=True) + bytes(12)
    holder = await retention.furthest_behind(broker)
    assert holder is not None and holder[0] > lost and holder[1] == "group slow"
    assert (await days_later(broker))["log_files"]
    assert 0 < broker.store.bounds("orders", 0)[0] <= 150
    await broker.stop()


async def test_a_deleted_group_holds_nothing_back(broker: Broker) -> None:
    fill(broker)
    broker.offsets.commit("slow", "orders", 0, 1)
    assert not (await days_later(broker))["log_files"]
    broker.offsets.forget_group("slow")
    assert (await days_later(broker))["log_files"]


@pytest.mark.parametrize(
    ("setting", "used"), [("delete_unconsumed_enable", 0), ("clean_file_forcibly_enable", 99)], ids=["time", "disk"]
)
async def test_deletion_of_unconsumed_data_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, used: int
) -> None:
    broker = await start(tmp_path, **{setting: True})
    try:
        monkeypatch.setattr(
            "aerobee.broker.retention.shutil.disk_usage", lambda _: SimpleNamespace(used=used, free=100 - used)
        )
        fill(broker)
        broker.offsets.commit("slow", "orders", 0, 1)
        assert (await days_later(broker))["log_files"]
    finally:
        await broker.stop()


async def test_delayed_messages_and_open_transactions_hold_their_files(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    level_properties = b"DELAY\x0118\x02REAL_TOPIC\x01orders\x02REAL_QID\x010\x02"
    deliver_ms = int(time.time() * 1000) + 7_200_000
    broker.store.append([Record("SCHEDULE_TOPIC_XXXX", 17, b"later", level_properties, tags_code=deliver_ms)])
    fill(broker)
    assert not (await days_later(broker))["log_files"] and "delayed delivery" in held_back(caplog)[0]
    broker.delay.offsets[18] = 1
    assert (await days_later(broker))["log_files"]

    caplog.clear()
    broker.store.append([Record("RMQ_SYS_TRANS_HALF_TOPIC", 0, b"half", b"REAL_TOPIC\x01orders\x02REAL_QID\x010\x02")])
    fill(broker)
    await days_later(broker)
    assert "transactions" in held_back(caplog)[0]
    low = broker.store.stats()["min_position"]
    broker.offsets.commit("CID_RMQ_SYS_TRANS", "RMQ_SYS_TRANS_HALF_TOPIC", 0, 1)
    assert (await days_later(broker))["log_files"] and broker.store.stats()["min_position"] > low


async def test_what_stops_the_log_files_from_going_is_one_line_and_does_not_keep_the_timers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned: list[int] = []

    def fail(*_: Any, **__: Any) -> None:
        raise DiskFailed("removing commitlog/00000000000000000000 failed")

    broker = await start(tmp_path, clean_resource_interval=100, delete_when=ALL_DAY, file_reserved_time=0)
    fill(broker)
    monkeypatch.setattr(broker.store, "clean", fail)
    monkeypatch.setattr(broker.timer, "clean", lambda: cleaned.append(1))
    with caplog.at_level(logging.WARNING):
        await eventually(lambda: len(cleaned) > 2)
    await broker.stop()
    lines = [record for record in caplog.records if "could not clean the store" in record.getMessage()]
    assert lines and "removing commitlog/00000000000000000000 failed" in lines[0].getMessage()
    assert all(record.exc_info is None for record in lines), "a sentence for an operator, no traceback"
