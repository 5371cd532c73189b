"""The one place where an error becomes a response."""

from __future__ import annotations

import logging

from aerobee.errors import AerobeeError
from aerobee.log import Complaints
from aerobee.protocol.codes import ResponseCode
from aerobee.protocol.command import RemotingCommand

_complaints = Complaints(logging.getLogger("aerobee.protocol.reply"))


def error_reply(request: RemotingCommand, error: BaseException) -> RemotingCommand:
    """The response that tells a peer why its request failed. An error that nobody raised on purpose is logged."""
    if isinstance(error, AerobeeError):
        return request.reply(error.code, remark=error.remark)
    if isinstance(error, OSError):  # the machine's fault, and the error says which: a full disk, a missing right
        _complaints.warn(f"{request.code} {error.errno}", "request %d failed: %s", request.code, error)
        return request.reply(ResponseCode.SYSTEM_ERROR, remark=str(error))
    reason = f"{request.code} {type(error).__name__}"
    _complaints.warn(reason, "request %d failed, this is a bug", request.code, exc_info=error)
    return request.reply(ResponseCode.SYSTEM_ERROR, remark=f"{type(error).__name__}: {error}")
