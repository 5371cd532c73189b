"""Names and handles of popping: retry topics in their two forms, and the text that identifies a popped message.

%RETRY%group_topic     first form     flag 1
%RETRY%group+topic     second form    flag 2
anything else                         flag 0

0 1700000000000 60000 3 0 broker-a 1 17
│ │             │     │ │ │        │ └ offset of the message in its queue
│ │             │     │ │ │        └ its queue
│ │             │     │ │ └ broker name
│ │             │     │ └ flag of its topic
│ │             │     └ queue of the revive log; 999: popped in order
│ │             └ invisible time, ms
│ └ pop time, ms
└ offset where the check point begins
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aerobee.broker.topics import RETRY_PREFIX
from aerobee.errors import MalformedRequest
from aerobee.protocol.headers import TIME_MAX

ORDER_QUEUE: Final = 999
"""The revive queue of handles that were popped in order: nothing is in the revive log for them to find."""
HANDLE_FIELDS: Final = 8


def retry_topic(topic: str, group: str, *, second_form: bool) -> str:
    """Where unacknowledged messages of the topic come again for the group."""
    return f"{RETRY_PREFIX}{group}{'+' if second_form else '_'}{topic}"


def normal_topic(topic: str, group: str) -> str:
    """The topic that a pop retry topic belongs to; any other topic itself."""
    prefix = RETRY_PREFIX + group
    return topic[len(prefix) + 1 :] if topic.startswith((prefix + "_", prefix + "+")) else topic


def retry_flag(topic: str) -> str:
    """0, 1 or 2; see the head of this file."""
    if not topic.startswith(RETRY_PREFIX):
        return "0"
    return "2" if "+" in topic else "1"


def topic_of_flag(flag: str, topic: str, group: str) -> str:
    """The topic in which a message with this flag lies. Raises MalformedRequest."""
    if flag == "0":
        return topic
    if flag not in ("1", "2"):
        raise MalformedRequest(f"the retry flag must be 0, 1 or 2, not {flag!r}")
    return retry_topic(topic, group, second_form=flag == "2")


@dataclass(slots=True, frozen=True)
class Handle:
    """What a client sends back of a popped message, `extraInfo`."""

    start_offset: int
    pop_time: int
    invisible_time: int
    revive_queue: int
    flag: str
    broker_name: str

    @classmethod
    def parse(cls, text: str) -> Handle:
        """Raises MalformedRequest. The last fields are missing in handles of old clients, further ones are ignored."""
        fields = text.split(" ")
        try:
            start, pop_time, invisible_time, queue = (int(field) for field in fields[:4])
            if any(abs(number) > TIME_MAX for number in (start, pop_time, invisible_time)):
                raise ValueError("it would not stay a Java long")
            return cls(start, pop_time, invisible_time, queue, fields[4], fields[5])
        except (ValueError, IndexError):
            raise MalformedRequest(
                f"extraInfo must be {HANDLE_FIELDS} fields separated by blanks, not {text[:200]!r}"
            ) from None


def format_handle(
    start_offset: int,
    pop_time: int,
    invisible_time: int,
    revive_queue: int,
    topic: str,
    broker_name: str,
    queue_id: int,
    offset: int,
) -> str:
    """The handle of one message."""
    front = f"{start_offset} {pop_time} {invisible_time} {revive_queue}"
    return f"{front} {retry_flag(topic)} {broker_name} {queue_id} {offset}"
