"""How settings load: defaults, a `.properties` file, the environment, flags; raw text first, then checked.

A daemon's settings are a class with one row a setting. The row is the only place that knows the name, the default,
the bounds, whether a change needs a restart, whether it may be changed over the wire, and the sentence that
explains it; flags, file, environment, the manual and `getBrokerConfig` are all made from it:

    class BrokerOptions(Options):
        ENVIRONMENT = "AEROBEE_BROKER_"
        IGNORED = options_ignored.BROKER
        REFUSED = options_ignored.BROKER_REFUSED

        listen_port = setting(10911, "Port that clients dial.", low=0, high=65535)
        broker_ip1 = setting("", "Address that clients are told to dial.", name="brokerIP1")
        enable_property_filter = setting(False, "Serve SQL92 filters.", live=True)

    options = BrokerOptions.load(file="broker.properties", environ=os.environ, flags={"listenPort": 10911})
    options.listen_port                       # typed, checked
    await options.change_and_keep({"enablePropertyFilter": "true"})

Promises: an object of such a class has been checked, wherever its values came from; a key that nobody knows is an
error that names the nearest known one; a key of Apache RocketMQ that has no meaning here is accepted and said once.
Left to others: the rows themselves (`broker/options.py`, `nameserver/options.py`) and printing (`cli`).
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Self, TypeVar, cast

from aerobee.errors import AerobeeError

T = TypeVar("T", bool, int, float, str)
Value = bool | int | float | str

ONLY_IN_FILE: Final = "can only be changed in the configuration file on the machine itself"
_A_PATH: Final = re.compile(r"^storePath|Path$|Home$|^abortFile$|BlackList$")
"""Keys of Apache's that say where something is or what may not be changed. Without effect here, and yet no success for
who tries them over the wire."""
JAVA_INT_MAX: Final = 2**31 - 1
PROBLEMS_MAX: Final = 10
"""Problems that a change over the wire is told of. The nearest key takes 15 ms to find: it is named for the first."""


class OptionsError(AerobeeError, ValueError):
    """One or more settings cannot be used. `problems` holds one sentence each, naming where the value came from."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, slots=True)
class Row:
    """One setting.

    `name` is Apache's key; `attribute` the Python name. `low` and `high` are inclusive. `live`: a change takes effect
    at once, otherwise at the next start. `remote`: may be changed over the wire; never for anything that names a
    path, a command, a class or a credential. `variable`: a further environment variable, weaker than the prefixed one.
    `why` explains the bounds where Apache RocketMQ has wider ones.
    """

    name: str
    attribute: str
    kind: type
    default: Value
    about: str
    factory: Callable[[], Value] | None = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    live: bool = False
    remote: bool = True
    variable: str = ""
    why: str = ""

    def value(self) -> Value:
        """The default, computed now if it depends on the machine."""
        return self.factory() if self.factory is not None else self.default

    def parse(self, text: str) -> Value:
        """Turns text into a checked value; ValueError says in a few words what was expected."""
        try:
            return self._parse(text.strip())
        except ValueError as error:
            raise ValueError(f"{error}{self.why and ': ' + self.why}") from None

    def _parse(self, text: str) -> Value:
        if self.kind is bool:
            if text.lower() not in ("true", "false"):
                raise ValueError(f"must be true or false, not {text!r}")
            return text.lower() == "true"
        if self.kind in (int, float):
            try:
                number: float = int(text) if self.kind is int else float(text)
            except ValueError:
                wanted = "a whole number" if self.kind is int else "a number"
                raise ValueError(f"must be {wanted}, not {text!r}") from None
            if self.low is not None and not number >= self.low:
                raise ValueError(f"must be at least {bound_text(self.low)}, not {text}")
            if self.high is not None and not number <= self.high:
                raise ValueError(f"must be at most {bound_text(self.high)}, not {text}")
            return number
        if self.choices and text not in self.choices:
            raise ValueError(f"must be one of {', '.join(self.choices)}, not {text!r}")
        return text


def bound_text(bound: float) -> str:
    """A bound with all its digits."""
    return str(bound) if isinstance(bound, int) else f"{bound:.15g}"


@dataclass(slots=True)
class _Declared:
    """What `setting` leaves in the class body until the class is made and the row gets its names."""

    name: str | None
    arguments: dict[str, Any] = field(default_factory=dict)


def setting(
    default: T,
    about: str,
    *,
    name: str | None = None,
    factory: Callable[[], T] | None = None,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    live: bool = False,
    remote: bool = True,
    variable: str = "",
    why: str = "",
) -> T:
    """Declares one row in the body of an `Options` class; the type is the default's.

    `name` is only needed where Apache's key is not the camel case of the attribute (`brokerIP1`). `factory` computes
    a default that depends on the machine (host name, home); `default` then only tells the type. Whatever names a path,
    a command, a class or a credential needs `remote=False`. Without `high` a whole number is at most a Java int.
    """
    if type(default) is int and high is None:
        high = JAVA_INT_MAX
    arguments = dict(
        kind=type(default), default=default, about=about, factory=factory, low=low, high=high, choices=choices,
        live=live, remote=remote, variable=variable, why=why,
    )  # fmt: skip
    return cast(T, _Declared(name, arguments))


@dataclass(frozen=True, slots=True)
class Change:
    """What `Options.change` did: names with their new values; `not_kept`: why the next start will not know of it."""

    live: dict[str, Value]
    at_restart: dict[str, Value]
    notes: list[str]
    not_kept: str = ""

    @property
    def values(self) -> dict[str, Value]:
        """All that is new."""
        return {**self.live, **self.at_restart}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A key of Apache RocketMQ for something that is not here: `harmless` values pass, any other is an error."""

    harmless: tuple[str, ...]
    reason: str


class Options:
    """Base of every daemon's settings; see the head of this file. Made by `load` or from keyword arguments."""

    ROWS: ClassVar[dict[str, Row]] = {}
    """Apache's key → row, in the order of declaration."""
    IGNORED: ClassVar[Mapping[str, str]] = {}
    """Keys of Apache RocketMQ that are accepted and have no effect here → why. A row of the same name wins."""
    REFUSED: ClassVar[Mapping[str, Refusal]] = {}
    """Keys that ask for a protection or a file layout that is not here; see `options_ignored`."""
    ENVIRONMENT: ClassVar[str] = ""
    """Prefix of the environment variables: `AEROBEE_BROKER_` makes `listenPort` `AEROBEE_BROKER_LISTEN_PORT`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        rows = dict(cls.ROWS)
        for attribute, declared in list(vars(cls).items()):
            if isinstance(declared, _Declared):
                name = declared.name or camel_case(attribute)
                rows[name] = Row(name=name, attribute=attribute, **declared.arguments)
                delattr(cls, attribute)
        cls.ROWS = rows

    def __init__(self, **values: Value) -> None:
        """Defaults, with `values` by attribute name (`listen_port=0`) on top; OptionsError if one is wrong."""
        self.notes: list[str] = []
        """Sentences for the log: each ignored key, once."""
        self.file: Path | None = None
        """The file the settings were loaded from; `save` writes there."""
        self._pending: dict[str, Value] = {}
        self._keeping = asyncio.Lock()
        by_attribute = {row.attribute: row for row in self.ROWS.values()}
        for row in self.ROWS.values():
            setattr(self, row.attribute, row.value())
        problems = []
        for attribute, value in values.items():
            row_ = by_attribute.get(attribute)
            if row_ is None:
                problems.append(f"unknown setting {attribute!r}{nearest(attribute, by_attribute)}")
                continue
            try:
                setattr(self, attribute, row_.parse(to_text(value)))
            except ValueError as error:
                problems.append(f"{attribute} {error}")
        if not problems:
            problems = self.check()
        if problems:
            raise OptionsError(problems)

    @classmethod
    def load(
        cls,
        *,
        file: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
        flags: Mapping[str, Value] | None = None,
    ) -> Self:
        """Loads and checks settings; later sources win: defaults, file, environment, flags.

        `flags` are keyed by Apache's names. Raises OptionsError with every problem found, not only the first.
        """
        raw: list[tuple[str, str, str]] = []  # key, text, where it came from
        problems: list[str] = []
        path = Path(file) if file is not None else None
        if path is not None:
            try:
                data = path.read_bytes()
            except OSError as error:
                raise OptionsError([f"cannot read {path}: {error.strerror}"]) from None
            for entry in parse_properties(decode_text(data), str(path)):
                raw.append((entry.key, entry.value, f"{path}:{entry.line}: "))
        if environ:
            variables = {cls.ENVIRONMENT + row.attribute.upper(): row.name for row in cls.ROWS.values()}
            for row in cls.ROWS.values():
                if row.variable and row.variable in environ:
                    raw.append((row.name, environ[row.variable], f"environment variable {row.variable}: "))
            for variable in sorted(environ):
                if cls.ENVIRONMENT and variable.startswith(cls.ENVIRONMENT):
                    if variable in variables:
                        raw.append((variables[variable], environ[variable], f"environment variable {variable}: "))
                    else:
                        problems.append(f"unknown environment variable {variable}{nearest(variable, variables)}")
        for key, value in (flags or {}).items():
            raw.append((key, to_text(value), ""))

        self = cls()
        self.file = path
        for key, text, origin in raw:
            row_ = cls.ROWS.get(key)
            if row_ is not None:
                try:
                    setattr(self, row_.attribute, row_.parse(text))
                except ValueError as error:
                    problems.append(f"{origin}{key} {error}")
                continue
            try:
                note = cls._pass_over(key, text)
            except ValueError as error:
                problems.append(f"{origin}{error}")
                continue
            if note and note not in self.notes:
                self.notes.append(note)
        if not problems:
            problems = self.check()
        if problems:
            raise OptionsError(problems)
        return self

    @classmethod
    def _pass_over(cls, key: str, text: str, *, hint: bool = True) -> str:
        """What to say about a key that has no row; ValueError if it is unknown or must not be ignored."""
        refusal = cls.REFUSED.get(key)
        if refusal is not None:
            if text.strip() not in refusal.harmless:
                raise ValueError(f"{key}={text.strip()} cannot be honoured: {refusal.reason}")
            return ""
        if key in cls.IGNORED:
            return f"{key} has no effect: {cls.IGNORED[key]}"
        near = nearest(key, [*cls.ROWS, *cls.IGNORED, *cls.REFUSED]) if hint else ""
        raise ValueError(f"unknown key {key!r}{near}")

    def check(self) -> list[str]:
        """Rules between settings; returns one sentence a problem. Subclasses override it."""
        return []

    def get(self, name: str) -> Value:
        """The value in force under Apache's key; KeyError if there is no such setting."""
        return cast(Value, getattr(self, self.ROWS[name].attribute))

    def items(self) -> dict[str, Value]:
        """Apache's key → value, as it will be after the next start."""
        return {name: self._pending.get(name, self.get(name)) for name in self.ROWS}

    def to_properties(self) -> str:
        """All settings as Apache's tools expect them from GET_BROKER_CONFIG: `key=value`, one a line."""
        return format_properties({name: to_text(value) for name, value in sorted(self.items().items())})

    def change(self, texts: Mapping[str, str], *, remote: bool = True) -> Change:
        """Changes settings of a running daemon, all or none.

        `texts` is keyed by Apache's names. Live settings change at once, others at the next start, if `save` keeps
        them. With `remote`, settings that may not be changed over the wire are refused. Raises OptionsError.
        """
        change = self._examine(texts, remote=remote)
        self._apply(change)
        return change

    async def change_and_keep(self, texts: Mapping[str, str], file: str | os.PathLike[str] | None = None) -> Change:
        """`change` over the wire, kept for the next start: in `file`, or else the one the settings were loaded from.

        Live settings change also when nothing can be kept; `Change.not_kept` says why then. OptionsError when others
        are among them: these would never count.
        """
        async with self._keeping:  # one rewrites what the other has written
            change = self._examine(texts, remote=True)
            if not change.values:
                return change
            not_kept = ""
            try:
                if await asyncio.to_thread(self.save, change.values, file) is None:
                    not_kept = "no file was given at the start (-c) to keep it in"
            except OSError as error:
                not_kept = f"{file or self.file} could not be written ({error.strerror})"
            if not_kept and change.at_restart:
                names = ", ".join(change.at_restart)
                raise OptionsError([f"{names} would count from the next start only, and {not_kept}"])
            change = replace(change, not_kept=not_kept)
            self._apply(change)
        return change

    def _examine(self, texts: Mapping[str, str], *, remote: bool) -> Change:
        """What `texts` would change; nothing is changed yet."""
        live: dict[str, Value] = {}
        later: dict[str, Value] = {}
        notes: list[str] = []
        problems: list[str] = []
        for count, (key, text) in enumerate(texts.items()):
            if len(problems) >= PROBLEMS_MAX:
                problems.append(f"and {len(texts) - count} more keys that nobody looked at")
                break
            row = self.ROWS.get(key)
            if row is None:
                try:
                    if remote and key in self.IGNORED and _A_PATH.search(key):
                        raise ValueError(f"{key} {ONLY_IN_FILE}")
                    notes.extend(note for note in [self._pass_over(key, text, hint=not problems)] if note)
                except ValueError as error:
                    problems.append(str(error))
                continue
            if remote and not row.remote:
                problems.append(f"{key} {ONLY_IN_FILE}")
                continue
            try:
                (live if row.live else later)[key] = row.parse(text)
            except ValueError as error:
                problems.append(f"{key} {error}")
        if not problems:
            before = {name: self.get(name) for name in (*live, *later)}
            self._set({**live, **later})
            problems = self.check()
            self._set(before)
        if problems:
            raise OptionsError(problems)
        return Change(live, later, notes)

    def _apply(self, change: Change) -> None:
        self._set(change.live)
        self._pending.update(change.at_restart)

    def _set(self, values: Mapping[str, Value]) -> None:
        for name, value in values.items():
            setattr(self, self.ROWS[name].attribute, value)

    def save(self, values: Mapping[str, Value], file: str | os.PathLike[str] | None = None) -> Path | None:
        """Writes these settings into the file they were loaded from (or `file`), keeping every other line as it is.

        Atomic replacement. Returns the path, or None when there is no file to write to. Raises OSError.
        """
        path = Path(file) if file is not None else self.file
        if path is None:
            return None
        text = decode_text(path.read_bytes()) if path.exists() else ""
        texts = {name: to_text(value) for name, value in values.items()}
        write_atomically(path, rewrite_properties(text, texts).encode())
        return path


def camel_case(attribute: str) -> str:
    """`listen_port` → `listenPort`."""
    head, *tail = attribute.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in tail)


def to_text(value: Value) -> str:
    """A value the way Java prints it: `true`, `10911`, `0.8`, `ASYNC_MASTER`."""
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


SLIP_CHARS_MAX: Final = 100
"""Of a longer key so much is compared: comparing a long one holds everybody up."""


def nearest(key: str, known: Iterable[str], what: str = "key") -> str:
    """`; the nearest known key is 'listenPort'`: the likeliest slip, however far it is."""
    import difflib  # only an error needs it

    by_folded = {name.lower(): name for name in known}
    near = difflib.get_close_matches(key.lower()[:SLIP_CHARS_MAX], by_folded, n=1, cutoff=0.0)
    return f"; the nearest known {what} is {by_folded[near[0]]!r}" if near else ""


# Java's .properties text.


@dataclass(frozen=True, slots=True)
class Entry:
    """One `key=value` of a `.properties` text and the (1-based) line it starts on."""

    key: str
    value: str
    line: int


_LINE_END = re.compile(r"\r\n|\r|\n")
_BLANK = " \t\f"
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


def decode_text(data: bytes) -> str:
    """UTF-8 if it is valid, otherwise Latin-1 as Java reads such files."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def parse_properties(text: str, origin: str = "properties") -> list[Entry]:
    """Reads Java's `.properties` syntax: `=`, `:` or blank after the key, `#` and `!` comments, escapes, continuation.

    Raises OptionsError on a broken `\\uXXXX`. Keys may repeat; the last one counts.
    """
    return [entry for _, entry in _logical_lines(text, origin) if entry is not None]


def properties_dict(text: str, origin: str = "properties") -> dict[str, str]:
    """`parse_properties` as a dictionary; the last of equal keys counts."""
    return {entry.key: entry.value for entry in parse_properties(text, origin)}


def _logical_lines(text: str, origin: str) -> list[tuple[list[str], Entry | None]]:
    """(natural lines, entry) for each logical line; comments and empty lines have no entry."""
    lines = _LINE_END.split(text)
    found: list[tuple[list[str], Entry | None]] = []
    index = 0
    while index < len(lines):
        start = index
        line = lines[index].lstrip(_BLANK)
        index += 1
        if not line or line[0] in "#!":
            found.append((lines[start:index], None))
            continue
        parts: list[str] = []
        while (len(line) - len(line.rstrip("\\"))) % 2 == 1:  # an odd number of backslashes continues the line
            parts.append(line[:-1])
            if index == len(lines):
                line = ""
                break
            line = lines[index].lstrip(_BLANK)
            index += 1
        key, value = _split("".join(parts) + line)
        try:
            found.append((lines[start:index], Entry(_unescape(key), _unescape(value), start + 1)))
        except ValueError as error:
            raise OptionsError([f"{origin}:{start + 1}: {error}"]) from None
    return found


def _split(line: str) -> tuple[str, str]:
    """Key and value of a logical line, both still escaped."""
    end = 0
    while end < len(line) and line[end] not in "=:" + _BLANK:
        end += 2 if line[end] == "\\" else 1
    rest = line[end:].lstrip(_BLANK)
    if rest[:1] in ("=", ":"):
        rest = rest[1:].lstrip(_BLANK)
    return line[:end], rest


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    parts: list[str] = []
    index = 0
    while index < len(text):
        char = text[index]
        index += 1
        if char == "\\" and index < len(text):
            char = text[index]
            index += 1
            if char == "u":
                digits = text[index : index + 4]
                if not re.fullmatch(r"[0-9A-Fa-f]{4}", digits):
                    raise ValueError(f"'\\u{digits}' is not a \\u escape with four hexadecimal digits")
                char = chr(int(digits, 16))
                index += 4
            else:
                char = _ESCAPES.get(char, char)
        elif char == "\\":
            break
        parts.append(char)
    # Two \u escapes may spell one character outside the basic plane.
    return "".join(parts).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def format_properties(values: Mapping[str, str]) -> str:
    """`key=value` lines that `java.util.Properties` reads back unchanged; plain text where Apache's is plain."""
    return "".join(f"{_escape(key, key=True)}={_escape(value)}\n" for key, value in values.items())


def _escape(text: str, *, key: bool = False) -> str:
    parts: list[str] = []
    for index, char in enumerate(text):
        if char == "\\" or (key and char in " =:#!") or (char == " " and index == 0):
            parts.append("\\" + char)
        elif char in "\t\n\r\f":
            parts.append({"\t": "\\t", "\n": "\\n", "\r": "\\r", "\f": "\\f"}[char])
        elif " " <= char <= "~":
            parts.append(char)
        else:
            units = char.encode("utf-16-be", "surrogatepass")
            parts.extend(f"\\u{units[at]:02X}{units[at + 1]:02X}" for at in range(0, len(units), 2))
    return "".join(parts)


def rewrite_properties(text: str, changes: Mapping[str, str]) -> str:
    """The text with these keys set: known keys in their place, new ones at the end, every other line as it is."""
    lines = _logical_lines(text, "properties")
    last = {entry.key: at for at, (_, entry) in enumerate(lines) if entry is not None}
    replaced = {last[key]: format_properties({key: changes[key]}).rstrip("\n") for key in changes if key in last}
    out: list[str] = []
    for at, (natural, _) in enumerate(lines):
        out.extend([replaced[at]] if at in replaced else natural)
    while out and not out[-1].strip():
        out.pop()
    added = format_properties({key: value for key, value in changes.items() if key not in last})
    return "".join(line + "\n" for line in out) + added


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces a file as a whole: after a crash the old or the new content is there, never a part. Raises OSError."""
    import tempfile  # pulls in hashlib and random, which a start does not need

    handle, name = tempfile.mkstemp(prefix=path.name + ".", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, path.stat().st_mode & 0o777 if path.exists() else 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
