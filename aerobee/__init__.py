"""A message broker that speaks RocketMQ, and its client. These are the public names; each is loaded when it is used.

    from aerobee import Consumer, Message, Producer
    from aerobee import sync                          # the same without asyncio

A daemon imports this package too, so nothing here is imported before somebody asks for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aerobee import sync as sync
    from aerobee.client import Client as Client
    from aerobee.client import ConsumeFrom as ConsumeFrom
    from aerobee.client import Consumer as Consumer
    from aerobee.client import Message as Message
    from aerobee.client import MessageExt as MessageExt
    from aerobee.client import MessageModel as MessageModel
    from aerobee.client import MessageQueue as MessageQueue
    from aerobee.client import OffsetStore as OffsetStore
    from aerobee.client import Producer as Producer
    from aerobee.client import PullConsumer as PullConsumer
    from aerobee.client import PullResult as PullResult
    from aerobee.client import PullSession as PullSession
    from aerobee.client import PullStatus as PullStatus
    from aerobee.client import Retry as Retry
    from aerobee.client import SendResult as SendResult
    from aerobee.client import SendStatus as SendStatus
    from aerobee.client import Sql as Sql
    from aerobee.errors import AerobeeError as AerobeeError
    from aerobee.errors import ConnectError as ConnectError
    from aerobee.errors import RequestTimeout as RequestTimeout
    from aerobee.errors import ServerError as ServerError

_ERRORS = ("AerobeeError", "ConnectError", "RequestTimeout", "ServerError")

__all__ = [
    "AerobeeError",
    "Client",
    "ConnectError",
    "ConsumeFrom",
    "Consumer",
    "Message",
    "MessageExt",
    "MessageModel",
    "MessageQueue",
    "OffsetStore",
    "Producer",
    "PullConsumer",
    "PullResult",
    "PullSession",
    "PullStatus",
    "RequestTimeout",
    "Retry",
    "SendResult",
    "SendStatus",
    "ServerError",
    "Sql",
    "sync",
]


def __getattr__(name: str) -> Any:
    if name == "sync":
        return import_module("aerobee.sync")
    if name not in __all__:
        raise AttributeError(f"module 'aerobee' has no attribute {name!r}")
    value = getattr(import_module("aerobee.errors" if name in _ERRORS else "aerobee.client"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
