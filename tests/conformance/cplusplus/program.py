"""The official C++ client, through the `rocketmq` package, which brings it along: one run of everything.

    python program.py NAME_SERVER TOPIC GROUP

Prints one JSON object: what each send was answered, and what a consumer, an ordered consumer and a pull consumer got.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable

from rocketmq.client import Message, Producer, PullConsumer, PushConsumer, RecvMessage

NAME_SERVER, TOPIC, GROUP = sys.argv[1:]
Got = list[dict[str, object]]


def message(body: str, tag: str = "TagA") -> Message:
    made = Message(TOPIC)
    made.set_body(body)
    made.set_tags(tag)
    made.set_keys(f"key-{body[:10]}")
    made.set_property("city", "Zürich")
    return made


def consumer(group: str, expression: str, into: Got, *, orderly: bool = False) -> PushConsumer:
    """Notes what comes; a body that begins with "fails" is given back once."""
    failed: set[str] = set()

    def take(received: RecvMessage) -> None:
        body = received.body.decode()
        into.append(
            {
                "body": body,
                "tag": received.tags.decode(),
                "key": received.keys.decode(),
                "city": received.get_property("city").decode(),
                "queue": received.queue_id,
                "offset": received.queue_offset,
                "tries": received.reconsume_times,
                "after_ms": round(time.time() * 1000) - received.born_timestamp,
            }
        )
        if body.startswith("fails") and body not in failed:
            failed.add(body)
            raise ValueError("this one is to come again")

    made = PushConsumer(group, orderly=orderly)
    made.set_namesrv_addr(NAME_SERVER)
    made.subscribe(TOPIC, take, expression)
    made.start()
    return made


def wait_for(true: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)


def main() -> None:
    """See the head of this file."""
    taken: Got = []
    ordered: Got = []
    consumers = [consumer(GROUP, "TagA || TagB", taken), consumer(f"{GROUP}_ordered", "Order", ordered, orderly=True)]
    producer = Producer(f"{GROUP}_producers")
    producer.set_namesrv_addr(NAME_SERVER)
    producer.start()

    sent = [producer.send_sync(message(f"sync{number}")) for number in range(4)]
    sent.append(producer.send_sync(message("big" + 10_000 * "x", "TagB")))
    sent.append(producer.send_sync(message("other", "TagC")))
    later = message("later")
    later.set_delay_time_level(1)
    sent.append(producer.send_sync(later))
    sent.append(producer.send_sync(message("fails")))
    in_order = [producer.send_orderly(message(f"order{number}", "Order"), 1) for number in range(10)]
    producer.send_oneway(message("oneway"))
    answered = threading.Event()
    results: list[object] = []
    producer.send_async(
        message("async"),
        lambda result: (results.append(int(result.status)), answered.set()),
        lambda error: (results.append(str(error)), answered.set()),
    )
    answered.wait(10)

    wait_for(lambda: len(taken) >= 10 and len(ordered) >= 10)
    pull = PullConsumer(f"{GROUP}_pull")
    pull.set_namesrv_addr(NAME_SERVER)
    pull.start()
    pulled = sum(1 for _ in pull.pull(TOPIC))
    pull.shutdown()
    for one in consumers:
        one.shutdown()
    producer.shutdown()
    print(
        json.dumps(
            {
                "sent": [int(result.status) for result in [*sent, *in_order]],
                "async": results,
                "taken": taken,
                "ordered": ordered,
                "pulled": pulled,
            }
        )
    )


main()
