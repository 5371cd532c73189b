"""The one place where an error becomes a response."""

from __future__ import annotations

import logging

from aerobee.errors import AerobeeError, ServerError
from aerobee.protocol.codes import ResponseCode
from aerobee.protocol.command import RemotingCommand

_log = logging.getLogger("aerobee.protocol.reply")


def error_reply(request: RemotingCommand, error: BaseException) -> RemotingCommand:
    """The response that tells a peer why its request failed; one that is not ours is logged."""
    if isinstance(error, ServerError):
        return request.reply(error.code, remark=error.remark)
    if isinstance(error, AerobeeError):
        code = getattr(error, "code", ResponseCode.SYSTEM_ERROR)
        return request.reply(code, remark=str(error))
    _log.error("request %d failed", request.code, exc_info=error)
    return request.reply(ResponseCode.SYSTEM_ERROR, remark=f"{type(error).__name__}: {error}")
