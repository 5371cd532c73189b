"""The client: asyncio first (`Producer`, `Consumer`, `PullConsumer`), plain calls in `aerobee.client.sync`."""

from aerobee.client.client import Client
from aerobee.client.consumer import Consumer, Messages
from aerobee.client.producer import Producer
from aerobee.client.pull import OffsetStore, PullConsumer, PullSession
from aerobee.client.rebalance import allocate_average, allocate_average_by_circle
from aerobee.client.results import ConsumeFrom, MessageModel, PullResult, PullStatus, Retry, SendResult, SendStatus
from aerobee.protocol.filter import Sql
from aerobee.protocol.message import Message, MessageExt, MessageQueue

__all__ = [
    "Client",
    "ConsumeFrom",
    "Consumer",
    "Message",
    "MessageExt",
    "MessageModel",
    "MessageQueue",
    "Messages",
    "OffsetStore",
    "Producer",
    "PullConsumer",
    "PullResult",
    "PullSession",
    "PullStatus",
    "Retry",
    "SendResult",
    "SendStatus",
    "Sql",
    "allocate_average",
    "allocate_average_by_circle",
]
