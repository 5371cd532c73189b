"""Everything aerobee raises on purpose.

AerobeeError
├── ProtocolError          the peer sent bytes that are no RocketMQ command: close that connection
├── MalformedRequest       a command whose header or body lacks something or makes no sense: answered, not closed
├── ConnectError           nobody answers at an address
├── RequestTimeout         no answer in time
├── StoreError             the disk, or what lies on it
│   ├── StoreLocked        another process holds the store
│   ├── DiskFull           no room: writes are refused, reads go on, recovers by itself
│   └── DiskFailed         an I/O error: writes are refused until a restart
└── ServerError            a response code other than SUCCESS; one class a code, found by `error_for`
"""

from __future__ import annotations

from typing import ClassVar


class AerobeeError(Exception):
    """Root of the tree."""


class ProtocolError(AerobeeError):
    """The peer sent bytes that are no RocketMQ command; `reason` is one sentence."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class MalformedRequest(AerobeeError):
    """A command that can't be served as it is: a field is missing or makes no sense. The connection survives."""


class ConnectError(AerobeeError):
    """Nobody answers at an address."""


class RequestTimeout(AerobeeError):
    """No answer in time; whether the request was served is unknown."""


class StoreError(AerobeeError):
    """The disk, or what lies on it."""


class StoreLocked(StoreError):
    """Another process holds the store."""


class DiskFull(StoreError):
    """No room on the disk: writes are refused, reads go on; recovers by itself."""


class DiskFailed(StoreError):
    """An I/O error of the disk: writes are refused until a restart."""


class ServerError(AerobeeError):
    """A response code other than SUCCESS. Raised by clients for what they got, by handlers for what they answer."""

    code: int = 1
    by_code: ClassVar[dict[int, type[ServerError]]] = {}

    def __init__(self, remark: str = "", code: int | None = None) -> None:
        super().__init__(remark)
        self.remark = remark
        if code is not None:
            self.code = code

    def __init_subclass__(cls) -> None:
        ServerError.by_code[cls.code] = cls

    def __str__(self) -> str:
        return f"{type(self).__name__} ({int(self.code)}): {self.remark}"


def error_for(code: int, remark: str | None) -> ServerError:
    """The exception of a response code; plain ServerError for a code without a class of its own."""
    return ServerError.by_code.get(code, ServerError)(remark or "", code)


class SystemError_(ServerError):
    code = 1


class SystemBusy(ServerError):
    code = 2


class RequestCodeNotSupported(ServerError):
    code = 3


class MessageIllegal(ServerError):
    code = 13


class ServiceNotAvailable(ServerError):
    code = 14


class NoPermission(ServerError):
    code = 16


class TopicNotExist(ServerError):
    code = 17


class QueryNotFound(ServerError):
    code = 22


class SubscriptionParseFailed(ServerError):
    code = 23


class SubscriptionNotExist(ServerError):
    code = 24


class SubscriptionNotLatest(ServerError):
    code = 25


class SubscriptionGroupNotExist(ServerError):
    code = 26


class InvalidParameter(ServerError):
    code = 29


class ConsumerNotOnline(ServerError):
    code = 206


class ConsumeMessageTimeout(ServerError):
    code = 207


class BroadcastConsumption(ServerError):
    code = 213
