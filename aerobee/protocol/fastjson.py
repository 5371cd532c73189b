"""JSON as RocketMQ's Java speaks it (Fastjson), which is not always JSON.

What its writer does and strict readers refuse: numbers as keys (`{0:"10.0.0.1:10911"}`), objects as keys
(`{{"brokerName":"a","queueId":0,"topic":"t"}:{…}}`), references to what was already said (`{"$ref":"$.a[0]"}`). What
its reader also takes: bare and single-quoted names, trailing commas. `loads` reads all of it (the engine rewrites what
is not JSON, msgspec reads it), `dumps` writes the first two where Java does.

Object keys become `MessageQueue`, the only such key there is; other keys are text (a bare number too).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import structs

from aerobee._engine import loose_json, strict_json
from aerobee.errors import MalformedRequest

DEPTH_MAX: Final = 128
"""Deeper nesting is refused (by the engine as well): no real body has more than ten levels."""


class MessageQueue(msgspec.Struct, frozen=True, order=True, rename="camel", gc=False):
    """One queue of a topic on one broker set; it can be a key."""

    topic: str = ""
    broker_name: str = ""
    queue_id: int = 0


# Reading.


def loads(data: bytes | str) -> Any:
    """The value that `data` spells. Raises MalformedRequest."""
    if ("$ref" in data) if isinstance(data, str) else (b"$ref" in data):
        return _loads_tolerantly(data)
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _loads_tolerantly(data)


def _loads_tolerantly(data: bytes | str) -> Any:
    text = (data.encode("utf-8", "replace") if isinstance(data, str) else data).decode("utf-8", "replace")
    strict, queue_keys = strict_json(text)
    try:
        value = msgspec.json.decode(strict)
    except msgspec.DecodeError as error:  # a number that no reader can hold
        raise MalformedRequest(f"not JSON: {error}") from None
    if queue_keys:
        value = _with_queue_keys(value)
    return _References(value, len(text)).resolve(value, ()) if "$ref" in strict else value


def _with_queue_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {_queue_key(key): _with_queue_keys(item) for key, item in value.items()}
    return [_with_queue_keys(item) for item in value] if isinstance(value, list) else value


def _queue_key(key: str) -> str | MessageQueue:
    if not key.startswith("\0"):
        return key
    try:
        return msgspec.json.decode(key[1:], type=MessageQueue, strict=False)
    except msgspec.DecodeError:
        raise MalformedRequest("an object that is a key is not a message queue") from None


_STEP: Final = re.compile(r"\.([^.\[]+)|\[(\d+)\]|\['([^']*)'\]|\[\"([^\"]*)\"\]")


_STEP_CHARS: Final = 100
"""So many characters of a reference take about as long to read as one step of it."""
_INDEX_DIGITS_MAX: Final = 10
_TOO_MUCH: Final = "JSON whose references stand for far more than it says"


class _References:
    """Puts what a reference points at in its place: `$` the root, `@` itself, `..` its parent, `$.a.b[0]` a path.

    A reference to something that contains it would have no end and becomes null, as does one that points nowhere.
    References to references could grow without end from a small text, so what they stand for is bounded by its length,
    and so are the steps of their paths: a long one may be pointed at, and walked again, by many short ones.
    """

    def __init__(self, root: Any, text_chars: int) -> None:
        self.root = root
        self.left = 10_000 + text_chars // 4

    def resolve(self, value: Any, above: tuple[Any, ...]) -> Any:
        self._charge(1)
        if len(above) > 2 * DEPTH_MAX:
            raise MalformedRequest(_TOO_MUCH)
        if isinstance(value, dict):
            target = value.get("$ref")
            if isinstance(target, str) and len(value) == 1:
                found = self._find(target, above)
                inside = found is value or any(found is parent for parent in above)
                return None if inside else self.resolve(found, (*above, value))
            for key, item in value.items():
                value[key] = self.resolve(item, (*above, value))
        elif isinstance(value, list):
            value[:] = [self.resolve(item, (*above, value)) for item in value]
        return value

    def _charge(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise MalformedRequest(_TOO_MUCH)

    def _find(self, path: str, above: tuple[Any, ...]) -> Any:
        if path == "..":
            return above[-2] if len(above) > 1 else self.root
        if path == "@":
            return above[-1] if above else self.root
        if not path.startswith("$"):
            return None
        self._charge(len(path) // _STEP_CHARS)
        found, at = self.root, 1
        while at < len(path):
            self._charge(1)
            step = _STEP.match(path, at)
            if step is None:
                return None
            at = step.end()
            name, index, quoted, double_quoted = step.groups()
            if index is not None:
                if len(index) > _INDEX_DIGITS_MAX:
                    raise MalformedRequest("a reference names a place that no array has")
                # Only into arrays: a character of a text is a text again, and a path into it would never end.
                found = found[int(index)] if isinstance(found, list) and int(index) < len(found) else None
            else:
                found = found.get(name or quoted or double_quoted) if isinstance(found, dict) else None
            if found is None:
                return None
        return found


# Writing.


def dumps(value: Any, *, pretty: bool = False, bare_keys: bool = False) -> bytes:
    """Spells plain values and bodies. Fields of bodies are sorted by name and left out when None, as Java does.

    `bare_keys` writes numbers that are keys without quotes, as Java does for `Map<Integer, …>`; queues as keys are
    always objects. `pretty` is the form of Java's configuration files: a tab a level, no blank after the colon.
    """
    out: list[str] = []
    _write(value, out.append, bare_keys, "\n" if pretty else "")
    return "".join(out).encode("utf-8", "replace")


def dumps_table(table: dict[str, Any], *, pretty: bool = False, bare_keys: bool = False) -> bytes:
    """`dumps` for what may have many thousands of entries: the same text many times as fast, of fewer kinds of values.

    Keys are texts and whole numbers; bodies have their fields in the order of their names, none of them None. With
    `bare_keys` a text that is a whole number loses its quotes as well: only for tables that have no such key.
    """
    try:
        text = _ENCODE(table)
    except UnicodeEncodeError:  # half of a surrogate pair
        return dumps(table, pretty=pretty, bare_keys=bare_keys)
    return loose_json(text, pretty, bare_keys) if pretty or bare_keys else text


_ENCODE: Final = msgspec.json.Encoder().encode


def quote(text: str) -> str:
    """A string as JSON."""
    try:
        return _ENCODE(text).decode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return _ENCODE(text.encode("utf-8", "replace").decode()).decode()


@lru_cache(maxsize=4096)
def _queue_text(queue: MessageQueue) -> str:
    """An ordered consumer's locks name the same few queues again and again."""
    return f'{{"brokerName":{quote(queue.broker_name)},"queueId":{queue.queue_id},"topic":{quote(queue.topic)}}}'


def _write(value: Any, put: Any, bare: bool, indent: str) -> None:
    kind = type(value)
    if kind is str:
        put(quote(value))
    elif kind is int:
        put(str(value))
    elif kind is MessageQueue and not indent:
        put(_queue_text(value))
    elif value is True:
        put("true")
    elif value is False:
        put("false")
    elif value is None:
        put("null")
    elif isinstance(value, float):
        put(repr(value) if value == value and abs(value) != float("inf") else "null")
    elif isinstance(value, dict):
        _write_items(
            ((_key(key, bare), item) for key, item in value.items()), "{}", put, bare, indent,
        )  # fmt: skip
    elif isinstance(value, list | tuple | set | frozenset):
        _write_items((("", item) for item in value), "[]", put, bare, indent)
    elif isinstance(value, msgspec.Struct):
        _write_items(
            ((key, item) for key, name in field_keys(kind) if (item := getattr(value, name)) is not None),
            "{}", put, bare, indent,
        )  # fmt: skip
    elif isinstance(value, str):
        put(quote(str(value)))
    elif isinstance(value, int):
        put(str(int(value)))
    else:
        raise TypeError(f"{kind.__name__} cannot be JSON")


def _write_items(items: Any, brackets: str, put: Any, bare: bool, indent: str) -> None:
    inner = indent + "\t" if indent else ""
    put(brackets[0])
    first = True
    for key, item in items:
        put(inner if first else "," + inner)
        if key:
            put(key)
        _write(item, put, bare, inner)
        first = False
    put(brackets[1] if first else indent + brackets[1])


def _key(key: Any, bare: bool) -> str:
    if type(key) is str:
        return quote(key) + ":"
    if isinstance(key, MessageQueue):
        return _queue_text(key) + ":"
    if isinstance(key, int):
        return f"{int(key)}:" if bare else f'"{int(key)}":'
    return quote(str(key)) + ":"


_KEYS: dict[type, list[tuple[str, str]]] = {}


def field_keys(kind: type) -> list[tuple[str, str]]:
    """(`"wireName":`, attribute) of a struct's fields, sorted by wire name."""
    keys = _KEYS.get(kind)
    if keys is None:
        described = sorted((field.encode_name, field.name) for field in structs.fields(kind))
        keys = _KEYS[kind] = [(quote(wire) + ":", name) for wire, name in described]
    return keys
