"""One command: a request or the response to it. A value; whoever sends it gives a request its `opaque`.

command = RemotingCommand.request(RequestCode.GET_MAX_OFFSET, GetMaxOffset(topic="orders", queue_id=0))
header = command.header(GetMaxOffset)
reply = command.reply(header=GetMaxOffsetReply(offset=42))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self, TypeVar

from aerobee import _engine
from aerobee.protocol.codes import ResponseCode
from aerobee.protocol.headers import Header

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from aerobee._engine import CommandTuple

FLAG_RESPONSE: Final = 1
FLAG_ONEWAY: Final = 2

LANGUAGE_JAVA: Final = 0
LANGUAGE_PYTHON: Final = 3
LANGUAGE_NAMES: Final = (
    "JAVA", "CPP", "DOTNET", "PYTHON", "DELPHI", "ERLANG", "RUBY", "OTHER", "HTTP", "GO", "PHP", "OMS", "RUST",
    "NODE_JS",
)  # fmt: skip
"""By number. A number beyond the end counts as OTHER."""

VERSION: Final = 513
"""What we call ourselves: the ordinal of RocketMQ V5_5_0, whose behaviour we follow."""

ENCODING_JSON: Final = 0
ENCODING_ROCKETMQ: Final = 1

REMARK_CHARS_MAX: Final = 2000
"""Remarks quote what was asked; what was asked may be long."""

H = TypeVar("H", bound=Header)


class RemotingCommand:
    """Code, opaque, flag, remark, ext fields and body. `language` and `encoding`: the numbers above."""

    __slots__ = ("body", "code", "encoding", "ext_fields", "flag", "language", "opaque", "remark", "version")

    def __init__(
        self,
        code: int,
        language: int = LANGUAGE_PYTHON,
        version: int = VERSION,
        opaque: int = 0,
        flag: int = 0,
        remark: str | None = None,
        ext_fields: dict[str, str] | None = None,
        body: bytes = b"",
        encoding: int = ENCODING_JSON,
    ) -> None:
        self.code = code
        self.language = language
        self.version = version
        self.opaque = opaque
        self.flag = flag
        self.remark = remark
        self.ext_fields: dict[str, str] = {} if ext_fields is None else ext_fields
        self.body = body
        self.encoding = encoding

    @classmethod
    def request(cls, code: int, header: Header | None = None, body: bytes = b"", *, oneway: bool = False) -> Self:
        """A request; its opaque is given by the connection that sends it."""
        fields = header.to_fields() if header is not None else {}
        return cls(int(code), ext_fields=fields, body=body, flag=FLAG_ONEWAY if oneway else 0)

    @classmethod
    def from_tuple(cls, command: CommandTuple) -> Self:
        """What the engine hands out."""
        return cls(*command)

    def to_tuple(self) -> CommandTuple:
        """What the engine takes."""
        return (
            self.code,
            self.language,
            self.version,
            self.opaque,
            self.flag,
            self.remark,
            self.ext_fields,
            self.body,
            self.encoding,
        )

    def encode(self) -> bytes:
        """The whole frame, length in front."""
        return _engine.encode_frame(
            self.code,
            self.language,
            self.version,
            self.opaque,
            self.flag,
            self.remark,
            self.ext_fields,
            self.body,
            self.encoding,
        )

    @property
    def is_response(self) -> bool:
        """Answers a request of ours with the same opaque."""
        return self.flag & FLAG_RESPONSE != 0

    @property
    def is_oneway(self) -> bool:
        """A request nobody waits for: never answer it."""
        return self.flag & FLAG_ONEWAY != 0

    @property
    def language_name(self) -> str:
        """JAVA, GO, PYTHON …"""
        return LANGUAGE_NAMES[self.language] if 0 <= self.language < len(LANGUAGE_NAMES) else "OTHER"

    def header(self, cls: type[H]) -> H:
        """The ext fields as their class. Raises MalformedRequest naming the field that is missing or unreadable."""
        return cls.from_fields(self.ext_fields)

    def reply(
        self,
        code: int = ResponseCode.SUCCESS,
        header: Header | None = None,
        body: bytes = b"",
        remark: str | None = None,
    ) -> RemotingCommand:
        """The response to this request: same opaque, same encoding.

        It says JAVA like the engine's own replies do: some clients know only the languages of their own time.
        """
        return RemotingCommand(
            int(code),
            language=LANGUAGE_JAVA,
            opaque=self.opaque,
            flag=FLAG_RESPONSE,
            remark=_shortened(remark),
            ext_fields=header.to_fields() if header is not None else {},
            body=body,
            encoding=self.encoding,
        )

    def __repr__(self) -> str:
        kind = "response" if self.is_response else "oneway" if self.is_oneway else "request"
        return (
            f"<{kind} {self.code} opaque={self.opaque} remark={self.remark!r} ext_fields={self.ext_fields!r}"
            f" body={len(self.body)} bytes>"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotingCommand) and self.to_tuple() == other.to_tuple()

    __hash__ = None  # type: ignore[assignment]


def _shortened(remark: str | None) -> str | None:
    """Begin and end of a remark that is too long: the end often says where to read more."""
    if remark is None or len(remark) <= REMARK_CHARS_MAX:
        return remark
    return remark[: REMARK_CHARS_MAX - 501] + "…" + remark[-500:]


class FrameDecoder:
    """Cuts a byte stream into commands. Raises ProtocolError on garbage; keeps no more than really arrived."""

    __slots__ = ("_decoder",)

    def __init__(self, frame_bytes_max: int = 16 * 1024 * 1024) -> None:
        self._decoder = _engine.Decoder(frame_bytes_max)

    def feed(self, data: Buffer) -> list[RemotingCommand]:
        """The commands that `data` completes."""
        return [RemotingCommand(*command) for command in self._decoder.feed(data)]

    @property
    def kept_bytes(self) -> int:
        """Bytes of an unfinished frame that wait for the rest."""
        return self._decoder.kept_bytes
