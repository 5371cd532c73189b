"""Message types of topics: what a topic's `message.type` lets be sent to it, where `enableTopicMessageTypeCheck` is on.

    TRANSACTION   TRAN_MSG=true                                    the first that applies is the message's type,
    DELAY         DELAY, TIMER_DELIVER_MS, TIMER_DELAY_SEC or _MS   so each has exactly one
    FIFO          __SHARDINGKEY
    PRIORITY      _SYS_MSG_PRIORITY_
    LITE          __LITE_TOPIC
    NORMAL        any other

A topic without the attribute is NORMAL, MIXED takes all, UNSPECIFIED none. Retry and dead-letter topics take what comes
back, and a message that another cluster handed on was checked there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aerobee.broker.topics import DLQ_PREFIX, RETRY_PREFIX
from aerobee.errors import ServerError
from aerobee.protocol.bodies.topics import TopicConfig
from aerobee.protocol.codes import ResponseCode

ATTRIBUTE: Final = "message.type"
TRANSFERRED: Final = "TRANSFER_FLAG"
_BY_PROPERTY: Final = {
    "DELAY": "DELAY",
    "TIMER_DELIVER_MS": "DELAY",
    "TIMER_DELAY_SEC": "DELAY",
    "TIMER_DELAY_MS": "DELAY",
    "__SHARDINGKEY": "FIFO",
    "_SYS_MSG_PRIORITY_": "PRIORITY",
    "__LITE_TOPIC": "LITE",
}


def type_of_message(properties: Mapping[str, str]) -> str:
    """What kind of message one with these properties is."""
    if properties.get("TRAN_MSG", "").lower() == "true":
        return "TRANSACTION"
    return next((kind for name, kind in _BY_PROPERTY.items() if name in properties), "NORMAL")


def type_of_topic(config: TopicConfig) -> str:
    """What kind of messages the topic is made for."""
    return config.attributes.get(ATTRIBUTE, "NORMAL")


def is_checked(config: TopicConfig) -> bool:
    """Not every message may be sent to this topic."""
    return type_of_topic(config) != "MIXED" and not config.topic_name.startswith((RETRY_PREFIX, DLQ_PREFIX))


def check(config: TopicConfig, properties: Mapping[str, str]) -> None:
    """ServerError MESSAGE_ILLEGAL when such a message does not belong into the topic."""
    if not is_checked(config) or TRANSFERRED in properties:
        return
    expected, actual = type_of_topic(config), type_of_message(properties)
    if actual != expected:
        raise ServerError(
            ResponseCode.MESSAGE_ILLEGAL,
            f"TopicMessageType validate failed, the expected type is {expected}, but actual type is {actual}",
        )
