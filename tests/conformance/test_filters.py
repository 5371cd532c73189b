"""SQL92 filters: the engine's evaluator against Apache's own filter classes, and filters through both brokers."""

from __future__ import annotations

import json
import random
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import apache
import pytest
import raw
from official import Client, CommandFailed, Reply
from room import Room, eventually

from aerobee._engine import Engine, Record
from aerobee.broker.records import parse_record

pytestmark = pytest.mark.apache


# Texts that mean something to Java's conversions, and texts that nearly do.
VALUES = [
    *["0", "1", "-1", "+5", "5", "10", "9", "007", "2147483647", "2147483648", "-2147483649", "9223372036854775807"],
    *["-9223372036854775808", "9223372036854775808", "99999999999999999999", "1L", "1d", "2.5f", "1_000", "--1", "+"],
    *["1.5", "-0.0", "0.0", ".5", "5.", "1e3", "1E-3", "1e400", "4.9e-324", "1e", "e1", "0x10", "0x1p3", "0x1.8p1"],
    *["NaN", "-NaN", "nan", "Infinity", "-Infinity", "inf", " 3", "3 ", "\t4\n", "", " ", "１２", "٣", "१२३", "2²"],
    *["true", "TRUE", "false", "FALSE", "True", "yes", "null", "NULL"],
    *["a", "b", "ab", "abc", "cab", "aab", "A", "it's", "''", "a%b", "a_b", "日本", "日", "grün", "𝔸"],
]
NUMBERS = [
    *["0", "1", "5", "9", "10", "12", "3L", "7l", "2147483647", "2147483648", "9223372036854775807", "007", "0x1"],
    *["9223372036854775808", "1.5", "0.0", "0.5", ".5", "5.", "1e3", "1.e-3", "1E400", "1e-400", "8.0", "1d", "1.5f"],
    *["4.9e-324", "1.7976931348623157e308"],
]
NAMES = ["a", "b", "c", "d", "TAGS", "_x", "$y", "a1", "missing", "A"]


class Generator:
    """Expressions by Apache's grammar, and such as miss it by a little."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def properties(self) -> str:
        """Properties as a message carries them; mostly tidy."""
        chosen = self.random.sample(NAMES[:-2], self.random.randint(0, 6))
        pairs = [f"{name}\x01{self.random.choice(VALUES)}" for name in chosen]
        if self.random.random() < 0.1:
            pairs.append(self.random.choice(["a\x01twice", "\x01nameless", "bare", "", "b\x01", "c\x01x\x01y"]))
        self.random.shuffle(pairs)
        return "\x02".join(pairs) + self.random.choice(["", "\x02"])

    def expression(self) -> str:
        kind = self.random.random()
        text = self.condition(self.random.randint(0, 4)) if kind < 0.9 else self.soup()
        return self.spoil(text) if kind < 0.15 else text

    def condition(self, depth: int) -> str:
        roll = self.random.random()
        if depth > 0 and roll < 0.45:
            joint = self.word(self.random.choice(["AND", "OR"]))
            return self.join(self.condition(depth - 1), joint, self.condition(depth - 1))
        if depth > 0 and roll < 0.6:
            return f"({self.condition(depth - 1)})"
        if depth > 0 and roll < 0.7:
            return self.join(self.word("NOT"), self.condition(depth - 1))
        if roll < 0.75:
            return self.random.choice([self.name(), self.word("TRUE"), self.word("FALSE"), self.word("NULL")])
        return self.comparison(depth)

    def comparison(self, depth: int) -> str:
        left = self.operand(depth)
        negated = self.word("NOT") if self.random.random() < 0.4 else ""
        kind = self.random.randrange(5)
        if kind == 0:
            sign = self.random.choice(["=", "<>", ">", ">=", "<", "<="])
            return self.join(left, sign, self.operand(depth))
        if kind == 1:
            return self.join(left, self.word("IS"), negated, self.word("NULL"))
        if kind == 2:
            return self.join(
                left, negated, self.word("BETWEEN"), self.operand(depth), self.word("AND"), self.operand(depth)
            )
        if kind == 3:
            items = ",".join(self.text() for _ in range(self.random.choice([1, 1, 2, 3, 6])))
            return self.join(
                left if self.random.random() < 0.2 else self.name(), negated, self.word("IN"), f"({items})"
            )
        test = self.word(self.random.choice(["CONTAINS", "STARTSWITH", "ENDSWITH"]))
        return self.join(left, negated, test, self.text())

    def operand(self, depth: int) -> str:
        roll = self.random.random()
        if roll < 0.45:
            return self.name()
        if roll < 0.7:
            return self.number()
        if roll < 0.85:
            return self.text()
        if roll < 0.9:
            return self.word(self.random.choice(["TRUE", "FALSE", "NULL"]))
        if depth > 0:
            return f"({self.condition(depth - 1)})"
        return self.random.choice(["-", "+", "- -", "-+"]) + self.random.choice(
            [self.name(), self.number(), self.text()]
        )

    def name(self) -> str:
        return self.random.choice(NAMES)

    def number(self) -> str:
        sign = self.random.choice(["", "", "", "-", "+"])
        return sign + self.random.choice(NUMBERS)

    def text(self) -> str:
        return "'" + self.random.choice(VALUES).replace("'", "''") + "'"

    def word(self, word: str) -> str:
        return self.random.choice([word, word, word.lower(), word.title()])

    def join(self, *parts: str) -> str:
        """With blanks or comments between; now and then without."""
        gap = self.random.choice([" "] * 12 + ["  ", "\t", "\n", " /* b */ ", " -- l\n", " /**/ ", ""])
        return gap.join(part for part in parts if part)

    def soup(self) -> str:
        """Tokens in any order."""
        words = ["AND", "OR", "NOT", "IN", "IS", "NULL", "BETWEEN", "TRUE", "CONTAINS", "LIKE"]
        signs = ["=", "<>", ">", "<", ">=", "<=", "(", ")", ",", "+", "-", "--", "/*", "*/", "!", "#", ".", "''", "'"]
        return " ".join(
            self.random.choice([*words, *signs, self.name(), self.number(), self.text()])
            for _ in range(self.random.randint(0, 9))
        )

    def spoil(self, text: str) -> str:
        """One character less, more or other."""
        at = self.random.randint(0, len(text))
        extra = self.random.choice([*"()'=<>-+,.0aAE \\%*/é\u3000\0", "", " AND ", " NOT ", "''"])
        return text[:at] + extra + text[at + self.random.randint(0, 1) :]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine.open({"root": str(tmp_path), "log_file_bytes": 1 << 22, "index_enable": False})
    engine.allow_topic("T", 6, 1, 1, True)
    yield engine
    engine.close()


def ours(engine: Engine, count: int, expression: str) -> str | None:
    """What `Filter.java` answers: None, or a character a message."""
    if engine.check_sql(expression) is not None:
        return None
    matched = bytearray(b"0" * count)
    offset = 0
    while offset < count:
        batch = engine.read("T", 0, offset, count, 1 << 22, sql=expression)
        at = 0
        while at < len(batch.records):
            matched[struct.unpack_from(">q", batch.records, at + 20)[0]] = ord("1")
            at += int.from_bytes(batch.records[at : at + 4], "big")
        offset = batch.next_offset
    return matched.decode()


def differences(client: Client, engine: Engine, texts: list[str], expressions: list[str]) -> Iterator[str]:
    """Where Apache's verdicts and ours are not the same, each in a line."""
    first = engine.bounds("T", 0)[1]
    assert first == 0
    engine.append([Record("T", 0, b"x", text.encode()) for text in texts])
    theirs = client.do("filter", properties=texts, expressions=expressions)["verdicts"]
    for expression, verdict in zip(expressions, theirs, strict=True):
        own = ours(engine, len(texts), expression)
        if own == verdict:
            continue
        if own is None or verdict is None:
            what = "refused" if verdict is None else "accepted"
            yield f"{expression!r}: {what} by Apache, not so by us ({engine.check_sql(expression)})"
        else:
            at = next(index for index, (a, b) in enumerate(zip(own, verdict, strict=True)) if a != b)
            yield f"{expression!r} on {texts[at]!r}: Apache {verdict[at]}, we {own[at]}"


@pytest.mark.parametrize("seed", range(4))
def test_random_expressions_mean_the_same(client: Client, engine: Engine, seed: int) -> None:
    generator = Generator(seed)
    texts = [generator.properties() for _ in range(60)]
    expressions = [generator.expression() for _ in range(5000)]
    found = list(differences(client, engine, texts, expressions))
    assert not found, f"{len(found)} differ:\n" + "\n".join(found[:20])


Shape = Callable[[int], str]
DEEP: dict[str, Shape] = {
    "parentheses": lambda n: "(" * n + "a = '1'" + ")" * n,
    "not": lambda n: "NOT " * n + "a = '1'",
    "minus": lambda n: "a > " + "- " * n + "1",
    "mixed": lambda n: "(b = '2' OR NOT (" * (n // 2) + "a = '1'" + "))" * (n // 2),
    "chain of AND": lambda n: " AND ".join(["a = '1'"] * n),
    "chain of OR": lambda n: "b = '2' OR " * n + "a = '1'",
    "chain of =": lambda n: "(a = '1')" + " = TRUE" * n,
}


def test_deep_expressions_mean_the_same(client: Client, engine: Engine) -> None:
    expressions = [shape(depth) for shape in DEEP.values() for depth in (1, 2, 90, 200)]
    expressions += [DEEP["chain of AND"](2000), DEEP["chain of OR"](2000)]
    found = list(differences(client, engine, ["a\x011", "a\x012", "b\x012"], expressions))
    assert not found, "\n".join(line[:300] for line in found)


# Through the brokers.


@pytest.fixture
def filtering(room: Room) -> Iterator[Room]:
    """A room whose broker serves SQL92 filters; by itself none does."""
    room.change_settings(enablePropertyFilter="true")
    yield room
    room.change_settings(enablePropertyFilter="false")


def numbers(state: Reply) -> list[int]:
    return sorted(int(message["properties"]["seq"]) for message in state["messages"])


def test_consumers_get_what_matches(filtering: Room) -> None:
    room = filtering
    room.create(2)
    room.produce(60, tags=["TagA", "TagB", "TagC"], properties={"colour": "grün", "price": "2.5"})
    wanted = "(TAGS IN ('TagA', 'TagB') AND seq BETWEEN 10 AND 29 AND colour = 'grün' AND price > 2.0) OR missing = 'x'"
    expected = [number for number in range(10, 30) if number % 3 < 2]
    room.consume(sql=wanted, list=60)
    assert numbers(room.state(received=len(expected))) == expected
    pulled = room.do("litepull", group=f"{room.group}_2", sql=wanted, expect=len(expected), list=60, timeout_ms=20_000)
    assert numbers(pulled) == expected
    # A pull that waits is not woken by what does not match.
    room.produce(3, tags=["TagA"], properties={"colour": "rot", "price": "2.5"}, **{"from": 12})
    room.produce(1, tags=["TagA"], properties={"colour": "grün", "price": "10"}, **{"from": 15})
    assert numbers(room.state(received=len(expected) + 1)) == sorted([*expected, 15])


def test_a_rare_match_is_found(filtering: Room) -> None:
    room = filtering
    room.create(1)
    room.produce(3000, mode="batch", batch=100)
    room.consume(sql="seq = 2999 OR seq = 1500", list=5)
    assert numbers(room.state(received=2)) == [1500, 2999]
    eventually(lambda: room.operate("stats")["queues"]["0"]["consumed"] >= 2999, 25)


def test_an_expression_that_is_wrong_is_refused(filtering: Room) -> None:
    room = filtering
    room.create(1)
    with pytest.raises(CommandFailed, match="CODE: 23 ") as refused:
        room.consume(sql="a > 5 AND b >")
    if room.cluster.kind == "aerobee":
        assert "column 14" in str(refused.value)

    def checked(kind: str | None, text: str) -> int:
        subscription = {"topic": room.topic, "subString": text, "expressionType": kind, "subVersion": 1}
        body = {"clientId": "c", "group": room.group, "subscriptionData": subscription}
        header, _ = apache.call(room.cluster.broker_address, 46, body=json.dumps(body).encode())
        return int(header["code"])

    assert [checked("SQL92", text) for text in ("a = 1", "a = 1 #", "", "NOT", "a IN (1)")] == [0, 23, 23, 23, 23]
    assert [checked(kind, "whatever it says") for kind in ("TAG", "", None)] == [0, 0, 0]
    assert checked("GROOVY", "a = 1") == 23
    assert apache.call(room.cluster.broker_address, 46)[0]["code"] == 0, "nothing to check"

    def pulled(kind: str, text: str) -> int:
        fields = {"consumerGroup": room.group, "topic": room.topic, "queueId": "0", "queueOffset": "0"}
        fields |= {"sysFlag": "4", "subscription": text, "expressionType": kind, "subVersion": "0"}
        fields |= {"maxMsgNums": "32", "commitOffset": "0", "suspendTimeoutMillis": "0"}
        return int(apache.call(room.cluster.broker_address, 11, fields)[0]["code"])

    room.produce(1)
    assert [pulled("SQL92", text) for text in ("seq = 0", "seq = 1", "")] == [0, 20, 23]
    if room.cluster.kind == "aerobee":
        assert pulled("SQL92", "seq =") == 23
    room.change_settings(enablePropertyFilter="false")
    assert pulled("SQL92", "seq = 0") == 1
    assert checked("SQL92", "a = 1") == 1


def test_a_changed_subscription_counts_for_what_a_waiting_pull_had_skipped(filtering: Room) -> None:
    room, broker = filtering, filtering.cluster.broker_address
    room.create(1)
    groups = {room.group: ("a > 5", "a < 5"), f"{room.group}_2": ("R", "B")}
    with raw.Connection(broker, timeout_s=20) as member:

        def pull(group: str, offset: str) -> int:
            fields = {"consumerGroup": group, "topic": room.topic, "queueId": "0", "queueOffset": offset}
            fields |= {"sysFlag": "2", "subVersion": "1", "maxMsgNums": "32", "commitOffset": "0"}
            return member.send(11, fields | {"suspendTimeoutMillis": "15000"})

        def subscribe(version: int) -> None:
            for group, texts in groups.items():
                member.heartbeat("changing", consumer=group, version=version, **{room.topic: texts[version - 1]})

        for group in groups:
            room.call(200, body=json.dumps({"groupName": group}).encode())
        subscribe(1)
        waiting = {group: pull(group, "0") for group in groups}
        subscribe(1)  # answered after the pulls were taken, and no news
        for number in range(3):
            assert raw.send(broker, room.topic, b"x", {"a": "1", "TAGS": "B", "seq": str(number)})["code"] == 0
        subscribe(2)
        began = time.monotonic()
        for group, opaque in waiting.items():
            header, body = member.reply(opaque)
            assert time.monotonic() - began < 10, "Apache's looks every 5 seconds"
            if room.cluster.kind == "aerobee":
                # Not what now matches: a Java client drops of a reply what has no tag it wanted when it asked.
                assert (header["code"], header["extFields"]["nextBeginOffset"]) == (20, "0")
                header, body = member.reply(pull(group, "0"))
            assert [parse_record(data).properties["seq"] for data in raw.split(body)] == ["0", "1", "2"]


def test_retries_by_the_filter_of_their_topic(filtering: Room) -> None:
    """With `filterSupportRetry`, where a retry topic itself is subscribed to with SQL92; by default that decides."""
    room, broker = filtering, filtering.cluster.broker_address
    room.create(1)
    retries = f"%RETRY%{room.group}"
    with raw.Connection(broker) as member:
        member.heartbeat("filtering", consumer=room.group, **{room.topic: "a > 1 -- or so", retries: "a = 1"})
        for number, (topic, a) in enumerate(((room.topic, 1), (room.topic, 2), ("elsewhere", 1), (room.topic, "x"))):
            properties = {"RETRY_TOPIC": topic, "a": str(a), "seq": str(number)}
            assert raw.send(broker, retries, b"x", properties)["code"] == 0

        def pulled(**more: str) -> list[int]:
            fields = {"consumerGroup": room.group, "topic": retries, "queueId": "0", "queueOffset": "0"}
            fields |= {"sysFlag": "0", "subVersion": "0", "expressionType": "SQL92", "subscription": "a = 1"}
            fields |= {"maxMsgNums": "32", "commitOffset": "0", "suspendTimeoutMillis": "0", **more}
            header, body = member.call(11, fields)
            assert header["code"] in (0, 20), header
            return [int(parse_record(data).properties["seq"]) for data in raw.split(body)]

        def asked() -> list[list[int]]:
            return [pulled(), pulled(sysFlag="4"), pulled(sysFlag="4", expressionType="TAG", subscription="*")]

        assert asked() == [[0, 2], [0, 2], [0, 1, 2, 3]]
        room.change_settings(filterSupportRetry="true")
        try:
            assert asked() == [[1, 2], [1, 2], [0, 1, 2, 3]]
            # Its own topic's filter changes.
            member.heartbeat("filtering", consumer=room.group, version=2, **{room.topic: "a < 3", retries: "a = 1"})
            assert asked() == [[0, 1, 2], [0, 1, 2], [0, 1, 2, 3]]
        finally:
            room.change_settings(filterSupportRetry="false")
