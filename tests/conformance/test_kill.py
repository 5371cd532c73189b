"""A broker is killed with what it has in hand, and started again, under the official client: Apache's and ours.

Where a mechanism has a room of its own, so has its kill: delays, order, pop, transactions, queries, stores.
"""

from __future__ import annotations

import pytest
import raw
from room import Room, eventually

pytestmark = pytest.mark.apache

COUNT = 60
FIRST_RETRY = 2
"""The queue of the delay level of first retries, ten seconds."""


def test_retries_and_offsets(room: Room) -> None:
    """Claim: what had failed before the kill comes again, once; what has been consumed does not, and who comes later
    goes on behind it."""

    def waiting() -> int:
        return raw.bounds(room.cluster.broker_address, "SCHEDULE_TOPIC_XXXX", FIRST_RETRY)[1]

    room.create(2)
    room.know_retries()
    before = waiting()
    room.consume(fail_times=1)
    room.produce(COUNT)
    eventually(lambda: waiting() == before + COUNT)
    room.cluster.kill_broker()
    room.cluster.start_broker()
    state = room.state(received=COUNT, timeout_s=40)
    assert (state["received"], state["distinct"], state["duplicates"]) == (COUNT, COUNT, 0)
    room.stop()
    room.produce(10, **{"from": COUNT})
    room.consume("two")
    state = room.state("two", received=10)
    assert (state["received"], state["distinct"], state["duplicates"]) == (10, 10, 0)
