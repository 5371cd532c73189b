"""Everything that can go wrong, one class each.

    AerobeeError                    all of ours
    ├── ProtocolError               bytes that are not the protocol; the connection is closed
    ├── MalformedRequest            a request with a missing or unreadable field; it is answered
    ├── StoreError                  the engine could not do it
    │   ├── DiskFull                no space: refused, recovers by itself
    │   ├── DiskFailed              a write or flush failed: nothing is written until a restart has recovered
    │   ├── StoreLocked             another process holds the store
    │   ├── StoreUnusable           the store cannot be opened as it is
    │   ├── BadRecord               this record can never be stored
    │   └── StoreClosed             used after it was closed
    ├── RequestTimeout              no answer in time (also a TimeoutError)
    ├── ConnectError                no connection, or it broke (also a ConnectionError)
    └── ServerError                 a server's refusal: code and remark; a class a response code, see `error_for`

Each knows the response code (`code`) with which a server of ours answers the request that met it.
"""

from __future__ import annotations

from typing import Any


class AerobeeError(Exception):
    """All errors of this library. `str(error)` is a sentence for people, `code` the response code that answers it."""

    code: int = 1

    @property
    def remark(self) -> str:
        """The sentence that goes into a response."""
        return str(self)


class ProtocolError(AerobeeError):
    """The peer sent bytes that are not the protocol. Nothing after them can be understood: close the connection."""

    @property
    def reason(self) -> str:
        """One sentence for the log."""
        return str(self)


class MalformedRequest(AerobeeError):
    """A request (or response) whose header or body misses a field or has one that cannot be read; the text names it."""

    code = 29


class StoreError(AerobeeError):
    """The store could not do what was asked; the text has the path and the operation."""

    code = 14


class DiskFull(StoreError):
    """No space left, less than configured, or too many open files. Reads go on; writes are accepted again after it."""


class DiskFailed(StoreError):
    """A write or flush failed. What the device holds is unknown: nothing is written until a restart has recovered."""


class StoreLocked(StoreError):
    """Another process holds this store."""


class StoreUnusable(StoreError):
    """The store cannot be opened as it is: other file sizes than configured, a directory that cannot be read."""


class BadRecord(StoreError):
    """This record can never be stored: topic or properties longer than the format allows, or all of it too large."""

    code = 13


class StoreClosed(StoreError):
    """The store was closed."""


class RequestTimeout(AerobeeError, TimeoutError):
    """No answer in time. The request may have been carried out all the same."""


class ConnectError(AerobeeError, ConnectionError):
    """No connection could be made, or it broke before the answer came."""


class ServerError(AerobeeError):
    """A server refused. `code` is its response code, `remark` what it said."""

    def __init__(self, code: int, remark: str | None = None) -> None:
        super().__init__(code, remark)
        self.code = int(code)
        self._remark = remark or ""

    @property
    def remark(self) -> str:
        """What the server said."""
        return self._remark

    def __str__(self) -> str:
        name = f"{type(self).__name__} ({self.code})"
        return f"{name}: {self._remark}" if self._remark else name

    def __reduce__(self) -> tuple[Any, ...]:
        return error_for, (self.code, self._remark)


class _Refusal(ServerError):
    """A response code's own class: made from the remark alone."""

    def __init__(self, remark: str | None = None) -> None:
        super().__init__(type(self).code, remark)


class RpcTimeOut(_Refusal):
    """A call between servers got no answer in time."""

    code = -1006


class RpcSendToChannelFailed(_Refusal):
    """A call between servers could not be sent."""

    code = -1004


class RpcAddrIsNull(_Refusal):
    """The address of the other server is not known."""

    code = -1002


class RpcUnknown(_Refusal):
    """A call between servers failed."""

    code = -1000


class ServerSystemError(_Refusal):
    """Something went wrong inside the server."""

    code = 1


class SystemBusy(_Refusal):
    """The server has more to do than it can; another one may have time."""

    code = 2


class RequestCodeNotSupported(_Refusal):
    """The server does not serve this request."""

    code = 3


class TransactionFailed(_Refusal):
    """The local transaction failed."""

    code = 4


class FlushDiskTimeout(_Refusal):
    """Stored, but the disk did not confirm in time."""

    code = 10


class SlaveNotAvailable(_Refusal):
    """Stored on the master; no replica in reach."""

    code = 11


class FlushSlaveTimeout(_Refusal):
    """Stored on the master; the replica did not confirm in time."""

    code = 12


class MessageIllegal(_Refusal):
    """Too large, bad properties, a delay too far ahead."""

    code = 13


class ServiceNotAvailable(_Refusal):
    """The store takes nothing now: disk full, failing, stopping, or a replica."""

    code = 14


class VersionNotSupported(_Refusal):
    """A version the server does not speak."""

    code = 15


class NoPermission(_Refusal):
    """Topic, queue, group or access rules forbid it."""

    code = 16


class TopicNotExist(_Refusal):
    """No such topic, and it is not created on first use."""

    code = 17


class TopicExistAlready(_Refusal):
    """The topic is there already."""

    code = 18


class PullNotFound(_Refusal):
    """Nothing new in the queue."""

    code = 19


class PullRetryImmediately(_Refusal):
    """All of it filtered out; ask again from the next offset."""

    code = 20


class PullOffsetMoved(_Refusal):
    """The offset is outside of what the queue holds."""

    code = 21


class QueryNotFound(_Refusal):
    """No offset, message or value of that name."""

    code = 22


class SubscriptionParseFailed(_Refusal):
    """The filter expression is not understood."""

    code = 23


class SubscriptionNotExist(_Refusal):
    """The broker does not know the group's subscription (yet)."""

    code = 24


class SubscriptionNotLatest(_Refusal):
    """The broker knows an older subscription of the group."""

    code = 25


class SubscriptionGroupNotExist(_Refusal):
    """No such consumer group, and it is not created on first use."""

    code = 26


class FilterDataNotExist(_Refusal):
    """The broker has no compiled filter for the group."""

    code = 27


class FilterDataNotLatest(_Refusal):
    """The broker has an older filter of the group."""

    code = 28


class InvalidParameter(_Refusal):
    """A field has a value that cannot be."""

    code = 29


class TransactionShouldCommit(_Refusal):
    """Legacy."""

    code = 200


class TransactionShouldRollback(_Refusal):
    """Legacy."""

    code = 201


class TransactionStateUnknow(_Refusal):
    """Legacy."""

    code = 202


class TransactionStateGroupWrong(_Refusal):
    """Legacy."""

    code = 203


class NoBuyerId(_Refusal):
    """Legacy."""

    code = 204


class NotInCurrentUnit(_Refusal):
    """Legacy."""

    code = 205


class ConsumerNotOnline(_Refusal):
    """No member of the group is connected."""

    code = 206


class ConsumeMsgTimeout(_Refusal):
    """The client did not answer the server in time."""

    code = 207


class NoMessage(_Refusal):
    """Nothing to acknowledge at that offset."""

    code = 208


class PollingFull(_Refusal):
    """Too many wait already."""

    code = 209


class PollingTimeout(_Refusal):
    """Waited in vain."""

    code = 210


class BrokerNotExist(_Refusal):
    """No such broker."""

    code = 211


class BrokerDispatchNotComplete(_Refusal):
    """The broker is still catching up with its own log."""

    code = 212


class BroadcastConsumption(_Refusal):
    """A broadcasting group keeps its progress at its members."""

    code = 213


class FlowControl(_Refusal):
    """Slow down."""

    code = 215


class NotLeaderForQueue(_Refusal):
    """The queue moved to another broker."""

    code = 501


class IllegalOperation(_Refusal):
    """Too late, or not at this state."""

    code = 604


class GoAway(_Refusal):
    """Reconnect, elsewhere if possible."""

    code = 1500


class ControllerFencedMasterEpoch(_Refusal):
    """A newer master was elected."""

    code = 2000


class ControllerFencedSyncStateSetEpoch(_Refusal):
    """The in-sync set changed meanwhile."""

    code = 2001


class ControllerInvalidMaster(_Refusal):
    """Not the master of that set."""

    code = 2002


class ControllerInvalidReplicas(_Refusal):
    """Not replicas of that set."""

    code = 2003


class ControllerMasterNotAvailable(_Refusal):
    """The set has no master."""

    code = 2004


class ControllerInvalidRequest(_Refusal):
    """The controller cannot do that."""

    code = 2005


class ControllerBrokerNotAlive(_Refusal):
    """That broker is not alive."""

    code = 2006


class ControllerNotLeader(_Refusal):
    """Ask the leading controller."""

    code = 2007


class ControllerBrokerMetadataNotExist(_Refusal):
    """The controller does not know that broker."""

    code = 2008


class ControllerInvalidCleanBrokerMetadata(_Refusal):
    """That broker cannot be forgotten."""

    code = 2009


class ControllerBrokerNeedToBeRegistered(_Refusal):
    """That broker has to register first."""

    code = 2010


class ControllerMasterStillExist(_Refusal):
    """The set has a master already."""

    code = 2011


class ControllerElectMasterFailed(_Refusal):
    """Nobody can be master."""

    code = 2012


class ControllerAlterSyncStateSetFailed(_Refusal):
    """The in-sync set could not be changed."""

    code = 2013


class ControllerBrokerIdInvalid(_Refusal):
    """That broker id cannot be used."""

    code = 2014


class ControllerJraftInternalError(_Refusal):
    """The controllers' log failed."""

    code = 2015


class ControllerBrokerLiveInfoNotExists(_Refusal):
    """Nothing is known of that broker's life."""

    code = 2016


class LmqQuotaExceeded(_Refusal):
    """No more light queues."""

    code = 2017


class LiteSubscriptionQuotaExceeded(_Refusal):
    """No more lite subscriptions."""

    code = 2018


class UserNotExist(_Refusal):
    """No such user."""

    code = 3001


class PolicyNotExist(_Refusal):
    """No such policy."""

    code = 3002


_BY_CODE: dict[int, type[_Refusal]] = {refusal.code: refusal for refusal in _Refusal.__subclasses__()}


def error_for(code: int, remark: str | None = None) -> ServerError:
    """The error that a response of this code is; a plain ServerError for codes nobody has named."""
    refusal = _BY_CODE.get(code)
    return refusal(remark) if refusal is not None else ServerError(code, remark)
