"""How long a request's body may be before anybody reads it: reading JSON holds the event loop, and all else waits.

A megabyte of strict JSON is read within some ten milliseconds; what only Fastjson knows (see `fastjson`: references,
objects as keys) is finished by Python and takes up to twenty times as long, so it may be a quarter as long. So may
settings, which Python reads letter by letter.
Messages are not JSON and have limits of their own. What brokers tell a name server may be long: it carries every topic.
"""

from __future__ import annotations

from typing import Final

import msgspec

from aerobee.errors import MalformedRequest
from aerobee.protocol.codes import RequestCode

JSON_BYTES_MAX: Final = 1024 * 1024
TOLERANT_BYTES_MAX: Final = 256 * 1024

_UNLIMITED: Final = frozenset(
    {
        RequestCode.SEND_MESSAGE,
        RequestCode.SEND_MESSAGE_V2,
        RequestCode.SEND_BATCH_MESSAGE,
        RequestCode.SEND_REPLY_MESSAGE,
        RequestCode.SEND_REPLY_MESSAGE_V2,
        RequestCode.REGISTER_BROKER,
    }
)
_TEXT: Final = frozenset({RequestCode.UPDATE_BROKER_CONFIG, RequestCode.UPDATE_NAMESRV_CONFIG})


def check_body(code: int, body: bytes) -> None:
    """Raises MalformedRequest when a request of this code is longer than may be read at once."""
    if len(body) <= TOLERANT_BYTES_MAX or code in _UNLIMITED:
        return
    limit = TOLERANT_BYTES_MAX if code in _TEXT else JSON_BYTES_MAX
    if len(body) > limit:
        raise MalformedRequest(f"the body has {len(body)} bytes, the limit is {limit}: send it in parts")
    if not _is_strict(body):
        raise MalformedRequest(
            f"the body has {len(body)} bytes and is no strict JSON; the limit for such is {TOLERANT_BYTES_MAX}"
        )


def _is_strict(body: bytes) -> bool:
    if b"$ref" in body:
        return False
    try:
        body.decode()
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return False
    return True
