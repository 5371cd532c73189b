"""Every request a server answers, with each field of its header and its body spoiled in every way.

A spoiled request is answered (with an error, or with success where RocketMQ forgives), on a connection that lives on;
it stores nothing, holds the event loop for no longer than a blink, logs no bug, and nobody else notices.
"""

from __future__ import annotations

import gc
import logging
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
from aerobee.nameserver.server import NameServer
from aerobee.net.remote import RemotePool
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


STORES: Final = {
    # A send whose one fault is in a field that RocketMQ forgives is stored, and so is what a client gives back.
    RequestCode.SEND_MESSAGE, RequestCode.SEND_MESSAGE_V2, RequestCode.SEND_BATCH_MESSAGE,
    RequestCode.CONSUMER_SEND_MSG_BACK, RequestCode.SEND_REPLY_MESSAGE, RequestCode.SEND_REPLY_MESSAGE_V2,
    # Pops and acknowledgements are messages too, in a topic of the broker's own.
    RequestCode.POP_MESSAGE, RequestCode.ACK_MESSAGE, RequestCode.BATCH_ACK_MESSAGE,
    RequestCode.CHANGE_MESSAGE_INVISIBLETIME,
}  # fmt: skip


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
    address: str, row: Row, stored: Callable[[], int], healthy: Callable[[RemotePool], Any], lines: Lines
) -> None:
    """All cases of one code on one connection, one after the other, each answered."""
    pool, other = RemotePool(), RemotePool()
    faults: list[str] = []
    gc.collect()
    gc.freeze()  # what all the tests before have left behind is not looked through while a request is timed
    try:
        before = stored()
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
            if row.code not in STORES and stored() != before:
                faults.append(f"{what}: something was stored")
                before = stored()
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

    def stored() -> int:
        return sum(
            broker.store.bounds(topic, queue)[1]
            for topic, queues in broker.store.topics().items()
            for queue in queues
            if topic != "well"
        )

    sent = 0
    await walk(broker.address, row, stored, healthy, lines)


@pytest.mark.parametrize("row", served(NAME_SERVER_HANDLERS))
async def test_a_name_server_answers_what_is_spoiled(name_server: NameServer, lines: Lines, row: Row) -> None:
    # Claim: bad input costs its sender an error reply and nobody anything else.
    async def healthy(pool: RemotePool) -> None:
        reply = await pool.invoke(name_server.address, RemotingCommand.request(RequestCode.GET_BROKER_CLUSTER_INFO), 10)
        assert reply.code == 0 and reply.body

    await walk(name_server.address, row, lambda: 0, healthy, lines)


def test_every_row_a_server_answers_has_its_handler() -> None:
    # Claim: the walk above leaves out no code that is served.
    assert {row.code for row in ROWS.values()} >= set(BROKER_HANDLERS) | set(NAME_SERVER_HANDLERS)
