"""The official client's own sends and pulls, answered by the engine as Apache's broker answered them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aerobee._engine import CommandTuple, Decoder, Engine, Record

RECORDINGS = sorted((Path(__file__).parents[1] / "wire/recordings").glob("*.jsonl"))
SEND_BATCH = 320
SENDS, PULLS = {10, 310, SEND_BATCH}, {11, 361}
COMES_OUT = {"DELAY", "TRAN_MSG"}


def decode(row: dict[str, Any]) -> CommandTuple:
    [command] = Decoder().feed(bytes.fromhex(row["hex"]))
    return command


def exchanges(codes: set[int], *, answered: bool = False) -> list[Any]:
    """Requests with these codes and what Apache answered (None: nothing, or after the recording's end)."""
    out = []
    for path in RECORDINGS:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        replies = {(row["link"], row["opaque"]): row for row in rows if row["reply"] and row["from"] == "server"}
        for row in rows:
            if row["code"] in codes and not row["reply"] and row["from"] == "client":
                reply = replies.get((row["link"], row["opaque"]))
                if answered and reply is None:
                    continue
                name = f"{path.stem}-{row['link']}-{row['opaque']}"
                out.append(pytest.param(bytes.fromhex(row["hex"]), reply and decode(reply), id=name))
    return out


def properties_of(text: bytes) -> dict[str, str]:
    pairs = [pair.split("\x01") for pair in text.decode().split("\x02") if pair]
    return {name: value for name, value in pairs}


def records(data: bytes) -> list[dict[str, Any]]:
    """The parts of version 1 records with IPv4 hosts."""
    out = []
    while data:
        size = int.from_bytes(data[:4], "big")
        record, data = data[:size], data[size:]
        body_end = 88 + int.from_bytes(record[84:88], "big")
        topic_end = body_end + 1 + record[body_end]
        out.append(
            {
                "queue_id": int.from_bytes(record[12:16], "big"),
                "flag": int.from_bytes(record[16:20], "big"),
                "queue_offset": int.from_bytes(record[20:28], "big"),
                "sys_flag": int.from_bytes(record[36:40], "big"),
                "born_timestamp": int.from_bytes(record[40:48], "big"),
                "reconsume_times": int.from_bytes(record[72:76], "big"),
                "body": record[88:body_end],
                "topic": record[body_end + 1 : topic_end].decode(),
                "properties": record[topic_end + 2 :],
            }
        )
    return out


def pulled_from_apache() -> dict[str, dict[str, Any]]:
    """Every record in the recordings by its unique key."""
    out = {}
    for path in RECORDINGS:
        for line in path.read_text().splitlines():
            command = decode(json.loads(line))
            if command[4] & 1 and command[5] == "FOUND":
                for record in records(command[7]):
                    unique = properties_of(record["properties"]).get("UNIQ_KEY")
                    if unique is not None:
                        out[unique] = record
    return out


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine.open({"root": str(tmp_path), "log_file_bytes": 1 << 22, "index_enable": False})
    yield engine
    engine.close()


@pytest.mark.parametrize(("frame", "apache"), exchanges(SENDS))
def test_a_send(engine: Engine, frame: bytes, apache: CommandTuple | None) -> None:
    [request] = Decoder().feed(frame)
    fields = request[6]
    topic, queue = fields.get("b") or fields["topic"], int(fields.get("e") or fields["queueId"])
    sent = properties_of((fields.get("i") or fields.get("properties") or "").encode())
    engine.allow_topic(topic, 6, 16, 16, True)
    turn = engine.feed(engine.session("127.0.0.1:9"), frame)
    if COMES_OUT & set(sent) or topic.startswith("%"):
        assert len(turn.commands) == 1 and not turn.replies
        return
    assert not turn.commands
    if request[4] & 2:
        assert apache is None and not turn.replies
    else:
        assert apache is not None
        [(_, data)] = turn.replies
        [ours] = Decoder().feed(data)
        # code, language, version, opaque, flag, remark; Apache answers binary sends in JSON, we in their own encoding
        assert ours[:6] == apache[:6] and ours[7] == apache[7] and ours[8] == request[8]
        assert ours[6].keys() == apache[6].keys()
        for same in ("queueId", "MSG_REGION", "TRACE_ON"):
            assert ours[6].get(same) == apache[6].get(same), same
        # A message without a unique id, as Node's client sends it, gets one from the broker.
        unique, theirs_unique = (reply[6].get("transactionId") for reply in (ours, apache))
        if "UNIQ_KEY" in sent or request[0] == SEND_BATCH:
            assert unique == theirs_unique
        else:
            assert len(unique) == len(theirs_unique)
        ids, theirs = ours[6]["msgId"].split(","), apache[6]["msgId"].split(",")
        assert [len(one) for one in ids] == [len(one) for one in theirs]
    known = pulled_from_apache()
    batch = engine.read(topic, queue, 0, 100, 1 << 22)
    assert batch.count > 0
    for record in records(batch.records):
        theirs_stored = known.get(properties_of(record["properties"]).get("UNIQ_KEY"))
        if theirs_stored is not None:
            for same in ("flag", "sys_flag", "born_timestamp", "reconsume_times", "body", "topic"):
                assert record[same] == theirs_stored[same], same
            assert properties_of(record["properties"]) == properties_of(theirs_stored["properties"])


@pytest.mark.parametrize(("frame", "apache"), exchanges(PULLS, answered=True))
def test_a_pull(engine: Engine, frame: bytes, apache: CommandTuple) -> None:
    [request] = Decoder().feed(frame)
    fields = request[6]
    topic, queue, offset = fields["topic"], int(fields["queueId"]), int(fields["queueOffset"])
    engine.allow_topic(topic, 6, 16, 16, True)
    engine.allow_group(fields["consumerGroup"], True, True, int(apache[6]["groupSysFlag"]))
    # What the scenario's consumers subscribed, unless the request says it itself.
    group = fields["consumerGroup"]
    tags = group == "recorded_group" or (group in ("GoGroup", "NodeGroup") and not topic.startswith("%"))
    expression = "TagA || TagB" if tags else "*"
    engine.subscribe(fields["consumerGroup"], topic, int(fields["subVersion"]), "TAG", expression)
    # The queue as it was then: as many messages in front, those Apache found, and as many behind.
    maximum = int(apache[6]["maxOffset"])
    found = {record["queue_offset"]: record for record in records(apache[7])}
    for at in range(maximum):
        record = found.get(at, {"body": b"another", "properties": b"TAGS\x01another\x02"})
        engine.append([Record(topic, queue, record["body"], record["properties"])])
    session = engine.session("127.0.0.1:9")
    turn = engine.feed(session, frame)
    assert not turn.commands
    if int(fields["sysFlag"]) & 1:
        assert turn.commits == [(fields["consumerGroup"], topic, queue, int(fields["commitOffset"]))]
    if not turn.replies:
        assert int(fields["sysFlag"]) & 2 and offset >= maximum, "it waits only when it may and must"
        turn = engine.expire(1 << 62)
    [(_, data)] = turn.replies
    [ours] = Decoder().feed(data)
    assert ours[:6] == apache[:6]
    assert ours[6] == apache[6]
    parts = [[(r["queue_offset"], r["body"], r["properties"]) for r in records(reply[7])] for reply in (ours, apache)]
    assert parts[0] == parts[1]
