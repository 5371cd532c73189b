"""The Rust engine as Python sees it: bytes and integers across, one crossing for a batch of work."""

from typing_extensions import Buffer

CommandTuple = tuple[int, int, int, int, int, str | None, dict[str, str], bytes, int]
"""code, language (number), version, opaque, flag, remark, ext fields, body, encoding (0 JSON, 1 ROCKETMQ)."""

def encode_frame(
    code: int,
    language: int,
    version: int,
    opaque: int,
    flag: int,
    remark: str | None,
    ext_fields: dict[str, str] | None,
    body: Buffer | None,
    encoding: int,
) -> bytes:
    """One whole frame with its length in front. Ext values are strings; None values are left out."""

class Decoder:
    """Cuts a byte stream into commands, for those who have no store."""

    def __init__(self, frame_bytes_max: int = 16777216) -> None: ...
    def feed(self, data: Buffer) -> list[CommandTuple]:
        """Commands that `data` completes. Raises ProtocolError on garbage (close the connection then);
        commands in front of the garbage are lost with it. Keeps only what really arrived."""
    @property
    def kept_bytes(self) -> int:
        """Bytes of an unfinished frame that wait for the rest."""
