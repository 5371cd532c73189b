"""Every request a server answers, with each field of its header and its body spoiled in every way.

A spoiled request is answered (with an error, or with success where RocketMQ forgives), on a connection that lives on;
it stores nothing and changes no table, unless RocketMQ forgives and whatever it names is a possible name; it holds the
event loop for no longer than a blink, logs no bug, and nobody else notices.
"""

from __future__ import annotations

import gc
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final, get_type_hints

import pytest

from aerobee.broker.handlers import HANDLERS as BROKER_HANDLERS
from aerobee.broker.options import BrokerOptions
from aerobee.broker.server import Broker
from aerobee.nameserver.dispatch import HANDLERS as NAME_SERVER_HANDLERS
from aerobee.nameserver.options import NameServerOptions
from aerobee.nameserver.routes import Registration, Rules
from aerobee.nameserver.server import NameServer
from aerobee.net.remote import RemotePool
from aerobee.protocol import fastjson
from aerobee.protocol.bodies.groups import SubscriptionGroupConfig
from aerobee.protocol.bodies.topics import TopicConfig
from aerobee.protocol.codes import ROWS, RequestCode, ResponseCode, Row
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.fastjson import field_keys

HELD_MS_MAX: Final = 100
"""No request holds the loop longer. Counted by the process's own CPU time: a busy machine must not decide."""

LONGER: Final = {RequestCode.REGISTER_BROKER: 200}
"""A broker tells of all its topics at once, in whatever spelling; name servers trust brokers that far."""

BY_THE_ENGINE: Final = {
    RequestCode.SEND_MESSAGE, RequestCode.SEND_MESSAGE_V2, RequestCode.SEND_BATCH_MESSAGE, RequestCode.PULL_MESSAGE,
    RequestCode.LITE_PULL_MESSAGE,
}  # fmt: skip

HEADER_VALUES: Final[dict[str, str]] = {
    "empty": "",
    "blank": " ",
    "negative": "-1",
    "2^31": str(1 << 31),
    "2^63": str(1 << 63),
    "-2^63": str(-(1 << 63)),
    "no number": "twelve",
    "fraction": "1.5",
    "a path": "../../etc/passwd",
    "controls": "a\x00\x01\x02\n\r\u2028\U0001f41d",
    "long": "x" * 300_000,
}

BODIES: Final[dict[str, bytes]] = {
    "none": b"",
    "blank": b"  ",
    "garbage": bytes(range(256)) * 8,
    "null": b"null",
    "number": b"12",
    "text": b'"text"',
    "list": b"[]",
    "list of lists": b"[[[]],[1],[null]]",
    "object": b"{}",
    "unfinished": b'{"topic":"a","mqSet":[{"topic"',
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "deep and tolerant": b"{a:" * 50_000 + b"1" + b"}" * 50_000,
    "1 MB tolerant": b"{" + b",".join(b"k%d:'%d'" % (i, i) for i in range(70_000)) + b"}",
    "references": b'{"a":[1,2,3],"b":[' + b",".join([b'{"$ref":"$.a"}'] * 20_000) + b"]}",
    "long number": b'{"queueId":' + b"9" * 100_000 + b"}",
    "duplicate names": b"{" + b'"topic":"x",' * 20_000 + b'"topic":"y"}',
}

WRONG_TYPES: Final = (
    '"text"',
    "12",
    "-1",
    "9223372036854775808",
    "1.5",
    "true",
    "null",
    "[]",
    "{}",
    "[[1]]",
    '{"a":[1]}',
)
"""Each is put for every name that a body's classes know."""


def _names() -> list[str]:
    """Wire names of all bodies' fields."""
    from aerobee.protocol import bodies

    names: set[str] = set()
    pending = list(bodies.Body.__subclasses__())
    while pending:
        kind = pending.pop()
        names.update(key[1:-2] for key, _ in field_keys(kind))
        pending += kind.__subclasses__()
    return sorted(names)


def spoiled_bodies() -> Iterator[tuple[str, bytes]]:
    """Bodies that no request can mean."""
    yield from BODIES.items()
    names = _names()
    for value in WRONG_TYPES:
        object_ = "{" + ",".join(f'"{name}":{value}' for name in names) + "}"
        yield f"every field is {value}", object_.encode()
        yield f"a list of what has {value} in every field", f"[{object_}]".encode()


def good_fields(row: Row) -> dict[str, str]:
    """A header that could be meant: every field has a value of its kind."""
    if row.header is None:
        return {}
    hints = get_type_hints(row.header)
    fields = {}
    for key, name in field_keys(row.header):
        wire, kind = key[1:-2], str(hints[name])
        fields[wire] = "false" if "bool" in kind else "0" if "int" in kind else GOOD_TEXT.get(wire, "spoiled")
    return fields


GOOD_TEXT: Final = {
    "topic": "healthy",
    "b": "healthy",
    "subscription": "*",
    "i": "",
    "properties": "",
    "expressionType": "TAG",
    "brokerAddr": "10.0.0.2:10911",
}


def cases(row: Row) -> Iterator[tuple[str, dict[str, str], bytes]]:
    """What is wrong, header fields, body."""
    good = good_fields(row)
    yield "no fields", {}, b""
    yield "no body", good, b""
    for field in good:
        yield f"{field} missing", {name: value for name, value in good.items() if name != field}, b"{}"
        for what, value in HEADER_VALUES.items():
            yield f"{field} {what}", {**good, field: value}, b"{}"
    for what, value in HEADER_VALUES.items():
        yield f"every field {what}", dict.fromkeys(good, value if len(value) < 1000 else value[:20_000]), b"{}"
    for what, body in spoiled_bodies():
        yield f"body: {what}", good, body


CHANGES: Final[dict[int, set[str]]] = {
    # A send whose one fault is in a field that RocketMQ forgives is stored, and so is what a client gives back.
    RequestCode.SEND_MESSAGE: {"messages"},
    RequestCode.SEND_MESSAGE_V2: {"messages"},
    RequestCode.SEND_BATCH_MESSAGE: {"messages"},
    RequestCode.CONSUMER_SEND_MSG_BACK: {"messages", "topics", "groups"},
    RequestCode.SEND_REPLY_MESSAGE: {"messages"},
    RequestCode.SEND_REPLY_MESSAGE_V2: {"messages"},
    # Acknowledgements are messages too, in a topic of the broker's own. A group that reads, or is asked for, is made.
    RequestCode.ACK_MESSAGE: {"messages"},
    RequestCode.BATCH_ACK_MESSAGE: {"messages"},
    RequestCode.CHANGE_MESSAGE_INVISIBLETIME: {"messages"},
    RequestCode.POP_MESSAGE: {"messages", "groups"},
    RequestCode.PEEK_MESSAGE: {"groups"},
    RequestCode.NOTIFICATION: {"groups"},
    RequestCode.POLLING_INFO: {"groups"},
    RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG: {"groups"},
    RequestCode.PULL_MESSAGE: {"groups"},
    RequestCode.LITE_PULL_MESSAGE: {"groups"},
    # What is asked for is done: the field that is spoiled makes a name or a number that can be.
    RequestCode.UPDATE_AND_CREATE_TOPIC: {"topics"},
    RequestCode.DELETE_TOPIC_IN_BROKER: {"topics", "offsets"},
    RequestCode.DELETE_SUBSCRIPTIONGROUP: {"groups", "offsets"},
    RequestCode.UPDATE_AND_GET_GROUP_FORBIDDEN: {"forbidden"},
    RequestCode.UPDATE_CONSUMER_OFFSET: {"offsets"},
    RequestCode.INVOKE_BROKER_TO_RESET_OFFSET: {"offsets"},
    RequestCode.CLONE_GROUP_OFFSET: {"offsets"},
    RequestCode.REGISTER_BROKER: {"brokers", "clusters", "queues"},
    RequestCode.UNREGISTER_BROKER: {"brokers", "clusters", "queues"},
    RequestCode.WIPE_WRITE_PERM_OF_BROKER: {"queues"},
    RequestCode.ADD_WRITE_PERM_OF_BROKER: {"queues"},
    RequestCode.DELETE_TOPIC_IN_NAMESRV: {"queues"},
    RequestCode.PUT_KV_CONFIG: {"values"},
    RequestCode.DELETE_KV_CONFIG: {"values"},
}
"""What one of these cases may change."""

WITHOUT_SUCCESS: Final = {"messages", "groups"}
"""They may, though the answer is an error: nobody is there to take the reply, there is no such queue to read."""

Tables = dict[str, dict[tuple[str | int, ...], Any]]
"""What a server keeps, by what it is: names and numbers of queues → the rest."""


def changed(before: Tables, after: Tables, row: Row, code: int, possible: re.Pattern[str]) -> Iterator[str]:
    """What a spoiled request that was answered with `code` should have left as it was."""
    for name, table in after.items():
        there = {key: value for key, value in table.items() if before[name].get(key) != value}
        gone = before[name].keys() - table.keys()
        if not there and not gone:
            continue
        if name not in CHANGES.get(row.code, ()) or (code != ResponseCode.SUCCESS and name not in WITHOUT_SUCCESS):
            yield f"answered {code}, and of the {name} {there or gone!s:.200} is another"
        for key in there:
            if not all(part >= 0 if isinstance(part, int) else possible.fullmatch(part) for part in key):
                yield f"answered {code}, and of the {name} there is {key!s:.200}"


class Lines(logging.Handler):
    """Keeps what the log says that it never should."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info or record.levelno >= logging.ERROR or "this is a bug" in text or "internal error" in text:
            self.bad.append(logging.Formatter().format(record))


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    from aerobee import log

    monkeypatch.setattr(log, "REPEAT_S", 0.0)
    kept = Lines()
    for name in ("aerobee", "asyncio"):
        logging.getLogger(name).addHandler(kept)
    yield kept
    for name in ("aerobee", "asyncio"):
        logging.getLogger(name).removeHandler(kept)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    made = Broker(
        BrokerOptions(
            broker_name="a",
            store_path_root_dir=str(tmp_path / "store"),
            listen_port=0,
            mapped_file_size_commit_log=8 << 20,
            mapped_file_size_consume_queue=20_000,
            max_hash_slot_num=1000,
            max_index_num=4000,
        )
    )
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def name_server(tmp_path: Path) -> AsyncIterator[NameServer]:
    made = NameServer(NameServerOptions(listen_port=0, kv_config_path=str(tmp_path / "kvConfig.json")))
    await made.start()
    yield made
    await made.stop()


def served(handlers: Any) -> list[Any]:
    rows = [
        row
        for row in ROWS.values()
        if row.code in handlers or (handlers is BROKER_HANDLERS and row.code in BY_THE_ENGINE)
    ]
    return [pytest.param(row, id=row.name) for row in rows]


async def walk(
    address: str,
    row: Row,
    kept: Callable[[], Tables],
    possible: re.Pattern[str],
    healthy: Callable[[RemotePool], Any],
    lines: Lines,
) -> None:
    """All cases of one code on one connection, one after the other, each answered."""
    pool, other = RemotePool(), RemotePool()
    faults: list[str] = []
    gc.collect()
    gc.freeze()  # what all the tests before have left behind is not looked through while a request is timed
    try:
        before = kept()
        for count, (what, fields, body) in enumerate(cases(row)):
            command = RemotingCommand.request(row.code, body=body)
            command.ext_fields.update(fields)
            began = time.process_time()
            try:
                reply = await pool.invoke(address, command, 20)
            except Exception as error:
                faults.append(f"{what}: no answer: {error!r}")
                continue
            held_ms = (time.process_time() - began) * 1000
            if reply.code not in (ResponseCode.SUCCESS, ResponseCode.PULL_NOT_FOUND) and not (reply.remark or ""):
                faults.append(f"{what}: answered {reply.code} without a reason")
            if len(reply.remark or "") > 4096:
                faults.append(f"{what}: a remark of {len(reply.remark or '')} characters")
            if held_ms > LONGER.get(row.code, HELD_MS_MAX):
                faults.append(f"{what}: {held_ms:.0f} ms")
            if lines.bad:
                faults.append(f"{what}: in the log: {lines.bad.pop(0)}")
                lines.bad.clear()
            after = kept()
            faults += [f"{what}: {fault}" for fault in changed(before, after, row, reply.code, possible)]
            before = after
            if count % 40 == 0:
                await healthy(other)
        await healthy(other)
    finally:
        gc.unfreeze()
        await pool.close()
        await other.close()
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults[:30])


@pytest.mark.parametrize("row", served(BROKER_HANDLERS))
async def test_a_broker_answers_what_is_spoiled(broker: Broker, lines: Lines, row: Row) -> None:
    # Claim: bad input costs its sender an error reply and nobody anything else.
    async def healthy(pool: RemotePool) -> None:
        send = RemotingCommand.request(RequestCode.SEND_MESSAGE_V2, body=b"fine")
        letters = dict(a="p", b="well", c="TBW102", d="4", e="0", f="0", g="1", h="0", i="", j="0")
        send.ext_fields.update(letters)
        nonlocal sent
        reply = await pool.invoke(broker.address, send, 10)
        assert reply.code == 0 and reply.ext_fields["queueOffset"] == str(sent)
        sent += 1

    def kept() -> Tables:
        return {
            "messages": {
                (topic, queue): broker.store.bounds(topic, queue)[1]
                for topic, queues in broker.store.topics().items()
                for queue in queues
                if topic != "well"
            },
            "topics": {(name,): config.to_json() for name, config in broker.topics.table.items() if name != "well"},
            "groups": {(name,): config.to_json() for name, config in broker.groups.table.items()},
            "forbidden": {
                (group, topic): bits
                for group, topics in broker.groups.forbidden.items()
                for topic, bits in topics.items()
            },
            "offsets": {
                (*key.split("@"), queue): offset
                for key, queues in broker.offsets.table.items()
                for queue, offset in queues.items()
                if "@CID_" not in key  # the broker's own
            },
            "request modes": {("modes",): broker.request_modes.to_json()},
            "static topics": {("mappings",): fastjson.dumps(broker.static_topics.to_dict())},
        }

    sent = 0
    await broker.topics.update([TopicConfig(topic_name="healthy", read_queue_nums=4, write_queue_nums=4)])
    await broker.groups.update([SubscriptionGroupConfig(group_name="spoiled")])
    broker.offsets.commit("spoiled", "healthy", 0, 7)
    await walk(broker.address, row, kept, re.compile(r"[%|a-zA-Z0-9_-]{1,255}"), healthy, lines)


ASKS_FOR_NOTHING: Final[list[tuple[RequestCode, dict[str, str], bytes]]] = [
    (RequestCode.UPDATE_AND_CREATE_TOPIC_LIST, {}, b"{}"),
    (RequestCode.UPDATE_AND_CREATE_TOPIC_LIST, {}, b'{"topicConfigList":null}'),
    (RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST, {}, b"{}"),
    (RequestCode.UNLOCK_BATCH_MQ, {}, b"{}"),
    (RequestCode.QUERY_ASSIGNMENT, {}, b"{}"),
    (RequestCode.QUERY_ASSIGNMENT, {}, b'{"topic":"healthy"}'),
    (RequestCode.QUERY_SUBSCRIPTION_BY_CONSUMER, {"group": "g"}, b""),
    (RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, {"topic": "", "queueId": "0", "timestamp": "0"}, b""),
    (
        RequestCode.UPDATE_AND_CREATE_TOPIC,
        {
            "topic": "healthy", "readQueueNums": "1", "writeQueueNums": "1", "perm": "6", "order": "false",
            "topicFilterType": "SINGLE_TAG", "attributes": " ",
        },
        b"",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("code", "fields", "body"), ASKS_FOR_NOTHING, ids=lambda part: getattr(part, "name", ""))
async def test_what_asks_for_nothing_is_no_success(
    broker: Broker, code: RequestCode, fields: dict[str, str], body: bytes
) -> None:
    # Claim: a request without what it is about is told so, as by Apache's broker, not that it is done.
    pool = RemotePool()
    command = RemotingCommand.request(code, body=body)
    command.ext_fields.update(fields)
    reply = await pool.invoke(broker.address, command, 10)
    assert reply.code in (ResponseCode.INVALID_PARAMETER, ResponseCode.SYSTEM_ERROR) and reply.remark
    await pool.close()


@pytest.mark.parametrize("row", served(NAME_SERVER_HANDLERS))
async def test_a_name_server_answers_what_is_spoiled(name_server: NameServer, lines: Lines, row: Row) -> None:
    # Claim: bad input costs its sender an error reply and nobody anything else.
    async def healthy(pool: RemotePool) -> None:
        reply = await pool.invoke(name_server.address, RemotingCommand.request(RequestCode.GET_BROKER_CLUSTER_INFO), 10)
        assert reply.code == 0 and reply.body

    routes, file = name_server._parts.routes, Path(name_server.options.kv_config_path)

    def kept() -> Tables:
        return {
            "brokers": {
                (name, address): number
                for name, data in routes.brokers.items()
                for number, address in data.broker_addrs.items()
            },
            "clusters": {(cluster, name): True for cluster, names in routes.clusters.items() for name in names},
            "queues": {
                (topic, name): queues.to_json()
                for topic, sets in routes.topics.items()
                for name, queues in sets.items()
            },
            "values": {("values",): file.read_bytes() if file.exists() else b""},
        }

    topics = {name: TopicConfig(topic_name=name) for name in ("healthy", "orders")}
    said = Registration("spoiled", "spoiled", 0, "10.0.0.1:10911", timeout_ms=1 << 40, topics=topics)
    routes.register(said, 0, int(time.time() * 1000), Rules())
    await walk(name_server.address, row, kept, re.compile(r"(?=.*\S)[^\x00-\x1f\u2028]{1,255}"), healthy, lines)


def test_every_row_a_server_answers_has_its_handler() -> None:
    # Claim: the walk above leaves out no code that is served.
    assert {row.code for row in ROWS.values()} >= set(BROKER_HANDLERS) | set(NAME_SERVER_HANDLERS)
