"""The engine through Python: what crosses, how errors arrive, and that nothing blocks the loop."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aerobee._engine import CommandTuple, Decoder, Engine, Record, Turn, encode_frame
from aerobee.errors import MessageIllegal, StoreError, StoreLocked


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine.open({"root": str(tmp_path), "log_file_bytes": 1 << 22, "index_slots": 1000, "index_entries": 4000})
    engine.allow_topic("T", 6, 4, 4, True)
    engine.allow_group("G", True, True)
    yield engine
    engine.close()


def send(body: bytes = b"x", opaque: int = 1, **changes: str) -> bytes:
    fields = {
        "a": "P",
        "b": "T",
        "e": "0",
        "f": "0",
        "g": "1234",
        "h": "0",
        "i": "UNIQ_KEY\x01U\x02",
        "j": "0",
        **changes,
    }
    return encode_frame(310, 0, 513, opaque, 0, None, fields, body, 0)


def pull(offset: int = 0, opaque: int = 2, **changes: str) -> bytes:
    fields = {
        "consumerGroup": "G",
        "topic": "T",
        "queueId": "0",
        "queueOffset": str(offset),
        "maxMsgNums": "32",
        "sysFlag": "4",
        "commitOffset": "0",
        "suspendTimeoutMillis": "60000",
        "subscription": "*",
        **changes,
    }
    return encode_frame(11, 0, 513, opaque, 0, None, fields, None, 0)


def answers(turn: Turn) -> list[tuple[int, CommandTuple]]:
    """Session and command of every reply."""
    return [(session, command) for session, data in turn.replies for command in Decoder().feed(data)]


def now_ms() -> int:
    return int(time.time() * 1000)


def test_a_message_goes_in_and_comes_out(engine: Engine) -> None:
    session = engine.session("10.0.0.1:5")
    [(_, sent)] = answers(engine.feed(session, memoryview(bytearray(send(b"hello")))))
    assert (sent[0], sent[3], sent[4], sent[6]["queueOffset"]) == (0, 1, 1, "0")
    [(to, pulled)] = answers(engine.feed(session, pull()))
    assert (to, pulled[0], pulled[5]) == (session, 0, "FOUND")
    batch = engine.read("T", 0, 0, 10, 1 << 20)
    assert (batch.status, batch.count, batch.next_offset, batch.records) == ("FOUND", 1, 1, pulled[7])
    assert engine.record(0) == batch.records
    assert engine.bounds("T", 0) == (0, 1) and engine.bounds("T", 9) == (0, 0)
    assert engine.topics() == {"T": [0]}
    assert engine.entries("T", 0, 0, 5) == bytes(8) + len(batch.records).to_bytes(4, "big") + bytes(8)
    assert abs(engine.store_time("T", 0, 0) - now_ms()) < 5000 and engine.store_time("T", 0, 7) == -1
    assert engine.offset_by_time("T", 0, 0) == 0
    counters = engine.counters()
    assert (counters["sends"], counters["pulls"]) == (1, 1)
    assert counters["puts"] == {"T": (1, len(batch.records))}
    assert counters["gets"] == {("G", "T"): (1, len(batch.records))}


def test_a_parked_pull_is_woken_from_another_session(engine: Engine) -> None:
    consumer, producer = engine.session("10.0.0.1:5"), engine.session("[::1]:6")
    assert engine.feed(consumer, pull(sysFlag="7", commitOffset="0")).commits == [("G", "T", 0, 0)]
    assert engine.next_expiry_ms() is not None and engine.stats()["pulls_waiting"] == 1
    turn = engine.feed(producer, send())
    assert [session for session, _ in answers(turn)] == [producer, consumer]
    engine.feed(consumer, pull(1, sysFlag="6"))
    [(_, ended)] = answers(engine.expire(now_ms() + 3_600_000))
    assert (ended[0], ended[5]) == (19, "OFFSET_OVERFLOW_ONE")


def test_what_is_not_allowed_comes_out_and_can_be_granted(engine: Engine) -> None:
    session = engine.session("10.0.0.1:5")
    engine.append(
        [Record("T", 0, b"red", b"TAGS\x01red\x02n\x011\x02"), Record("T", 0, b"blue", b"TAGS\x01blue\x02n\x012\x02")]
    )
    engine.allow(fast=False)
    turn = engine.feed(session, send() + pull())
    assert [command[0] for command in turn.commands] == [310, 11] and not turn.replies
    [(_, every)] = answers(engine.pull(session, turn.commands[1], None, True))
    [(_, one)] = answers(engine.pull(session, turn.commands[1], [hash_of("blue")], True))
    [(_, two)] = answers(engine.pull(session, turn.commands[1], None, True, "n = 1"))
    assert every[7] == two[7] + one[7] and len(one[7]) > 0
    with pytest.raises(ValueError, match="column"):
        engine.pull(session, turn.commands[1], None, True, "n =")
    with pytest.raises(ValueError, match="field"):
        engine.pull(session, (11, 0, 0, 1, 0, None, {"queueId": "x"}, b"", 0), None, True)


def hash_of(tag: str) -> int:
    code = 0
    for character in tag:
        code = (31 * code + ord(character)) & 0xFFFFFFFF
    return code - (1 << 32) if code >> 31 else code


def test_policy_appends_and_gets_receipts(engine: Engine) -> None:
    record = Record("policy", 3, b"body", b"KEYS\x01k1 k2\x02UNIQ_KEY\x01U1\x02", tags_code=77, born_host="[fe80::1]:9")
    record.queue_id = 2
    (receipt, other), turn = engine.append([record, Record("policy", 2, b"b", b"TAGS\x01t\x02")])
    assert (receipt.queue_offset, receipt.position, other.position, other.queue_offset) == (0, 0, receipt.size, 1)
    assert receipt.message_id == "7F00000100002A9F0000000000000000" and not turn.replies
    assert engine.durable() == other.position + other.size
    assert engine.entries("policy", 2, 0, 1)[12:] == (77).to_bytes(8, "big")
    for key in ("k1", "k2", "U1"):
        found, _, position = engine.search_index("policy", key, "K", 10, 0, now_ms() + 1000)
        assert [len(record) for record in found] == [receipt.size] and position == other.position, key
    assert engine.search_index("policy", "k", "K", 10, 0, now_ms())[0] == []
    engine.delete_topic("policy")
    assert engine.topics() == {}


def test_a_subscription_filters_pulls_that_bring_none(engine: Engine) -> None:
    session = engine.session("10.0.0.1:5")
    bare = pull(sysFlag="0", subVersion="5", expressionType="")
    assert len(engine.feed(session, bare).commands) == 1
    engine.append([Record("T", 0, b"1", b"TAGS\x01a\x02n\x011\x02"), Record("T", 0, b"2", b"TAGS\x01b\x02n\x012\x02")])
    for kind, expression, tags in [("TAG", "b", None), ("TAG", "", [hash_of("b")]), ("SQL92", "n > 1", None)]:
        engine.subscribe("G", "T", 5, kind, expression, tags)
        [(_, answer)] = answers(engine.feed(session, bare))
        assert b"b\x02n\x012" in answer[7] and b"a\x02n\x011" not in answer[7], (kind, expression)
    with pytest.raises(ValueError, match="column"):
        engine.subscribe("G", "T", 5, "SQL92", "n >")
    engine.unsubscribe("G")
    assert len(engine.feed(session, bare).commands) == 1
    assert engine.check_sql("n > 1") is None and "column" in str(engine.check_sql("n >"))


def test_a_filter_that_every_request_brings_is_compiled_once(engine: Engine) -> None:
    def seconds(text: str) -> float:
        began = time.perf_counter()
        assert engine.check_sql(text) is None
        engine.read("T", 0, 0, 1, 1, sql=text)
        return time.perf_counter() - began

    texts = [" OR ".join(f"id = '{n}-{number}'" for number in range(5000)) for n in range(3)]
    compiled = [seconds(text) for text in texts]
    known = [seconds(text) for text in texts]
    assert min(known) < min(compiled) / 3


def test_a_filter_looks_past_what_does_not_match(engine: Engine) -> None:
    engine.append([Record("T", 0, b"x", f"n\x01{n}".encode()) for n in range(500)])
    batch = engine.read("T", 0, 0, 32, 1 << 20, sql="n >= 498")
    assert (batch.count, batch.next_offset) == (2, 500)
    batch = engine.read("T", 0, 0, 32, 1 << 20, sql="n >= 0")
    assert (batch.count, batch.next_offset) == (32, 32)
    batch = engine.read("T", 0, 0, 32, 1 << 20, sql="n = 500")
    assert (batch.count, batch.next_offset, batch.status) == (0, 500, "NO_MATCHED_MESSAGE")


def test_tags_of_a_store_with_extension_files_are_read_from_the_records(engine: Engine) -> None:
    # What Apache's broker leaves with enableConsumeQueueExt=true: the entry has an address instead of the tag's hash.
    tags = ["a", "b", "", "a"]
    engine.append([Record("T", 0, b"x", f"TAGS\x01{tag}".encode(), tags_code=-(2**31) - 1 - 46) for tag in tags])
    assert [engine.read("T", 0, 0, 32, 1 << 20, tags=[ord(tag)]).count for tag in "abc"] == [2, 1, 0]


def test_failures_arrive_as_our_own_errors(tmp_path: Path, engine: Engine) -> None:
    with pytest.raises(StoreLocked):
        Engine.open({"root": str(tmp_path)})
    with pytest.raises(StoreError):
        Engine.open({"root": "/proc/nowhere"})
    with pytest.raises(TypeError, match="unknown store option: rot"):
        Engine.open({"root": str(tmp_path), "rot": 1})
    with pytest.raises(TypeError, match="unknown setting: fest"):
        engine.allow(fest=True)
    with pytest.raises(MessageIllegal):
        engine.append([Record("T", 0, b"x", bytes(40_000))])
    with pytest.raises(ValueError, match="not an address"):
        engine.session("nowhere")
    with pytest.raises(BufferError):
        engine.feed(1, memoryview(bytes(10))[::2])
    assert engine.append([Record("T", 0, b"x", b"")])[0][0].position == 0, "nothing of the refused was stored"


def test_garbage_is_named_and_counted(engine: Engine) -> None:
    session = engine.session("10.0.0.1:5")
    turn = engine.feed(session, send() + b"GET / HTTP/1.1\r\n\r\n")
    assert len(turn.replies) == 1 and turn.error is not None and turn.error.startswith("http: ")
    assert engine.counters()["faults"]["http"] == 1


def test_synchronous_flush_answers_when_the_file_descriptor_says_so(tmp_path: Path) -> None:
    import select

    engine = Engine.open({"root": str(tmp_path), "sync_flush": True, "log_file_bytes": 1 << 22, "index_enable": False})
    engine.allow_topic("T", 6, 4, 4, True)
    session = engine.session("10.0.0.1:5")
    waiting = 0
    for opaque in range(20):
        waiting += not engine.feed(session, send(opaque=opaque)).replies
    got: list[int] = []
    deadline = time.monotonic() + 10
    while len(got) < waiting and time.monotonic() < deadline:
        select.select([engine.fileno()], [], [], 1)
        got += [command[3] for _, command in answers(engine.settle())]
    assert len(got) == waiting and engine.bounds("T", 0) == (0, 20)
    engine.close()


def test_what_recovery_says_goes_to_the_broker_stores_logger(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine.open({"root": str(tmp_path), "log_file_bytes": 1 << 22})
    engine.append([Record("T", 0, b"x", b"")])
    engine.close()
    (tmp_path / "consumequeue" / "T" / "0" / "nonsense").write_bytes(b"?")
    (tmp_path / "abort").write_text("1")
    with caplog.at_level(logging.INFO):
        engine = Engine.open({"root": str(tmp_path)})
    engine.close()
    assert {record.name for record in caplog.records} <= {"aerobee.broker.store"}
    assert caplog.records


def test_threads_share_an_engine(engine: Engine) -> None:
    def work() -> None:
        session = engine.session("10.0.0.1:5")
        for opaque in range(300):
            assert len(engine.feed(session, send(opaque=opaque, e="-1")).replies) == 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(engine.bounds("T", queue)[1] for queue in range(4)) == 1200


def test_a_watched_queue_tells_once(engine: Engine) -> None:
    engine.watch("T", 1)
    session = engine.session("127.0.0.1:1")
    assert engine.feed(session, send(e="0")).arrivals == []
    assert engine.feed(session, send(e="1") + send(e="1")).arrivals == [("T", 1)]
    assert engine.feed(session, send(e="1")).arrivals == []
    engine.watch("T", 1)
    assert engine.append([Record("T", 1, b"x", b"")])[1].arrivals == [("T", 1)]
    engine.watch("T", 1)
    engine.delete_topic("T")
    assert engine.append([Record("T", 1, b"x", b"")])[1].arrivals == []


CUT = """
import os, sys
from aerobee._engine import Engine, Record
engine = Engine.open({"root": sys.argv[1], "log_file_bytes": 1 << 22, "index_slots": 1000, "index_entries": 4000})
first, last = [engine.append([Record("T", 0, b"x" * 50_000, b"")])[0][0] for _ in range(2)]
assert engine.record(last.position)
os.truncate(sys.argv[1] + "/commitlog/" + "0" * 20, 49_152)
assert engine.record(last.position) is None and engine.record(first.position) is None
assert engine.read("T", 0, 0, 32, 1 << 20, None).count == 0
print("alive")
"""


@pytest.mark.parametrize("faulthandler", [[], ["-X", "faulthandler"]])
def test_a_log_file_that_cannot_be_read_costs_its_messages_and_not_the_process(
    tmp_path: Path, faulthandler: list[str]
) -> None:
    command = [sys.executable, *faulthandler, "-c", CUT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")
