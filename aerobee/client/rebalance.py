"""Who of a group takes which queues: pure functions, no clock, no network.

Every member computes the same answer from the same two sorted lists, so no one has to coordinate. Java members do
the same with the same order (plain string order of client ids; topic, broker name, queue id for queues), and so
Java and Python members share a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from aerobee.protocol.message import MessageQueue

AllocateStrategy = Callable[[str, Sequence[MessageQueue], Sequence[str]], list[MessageQueue]]
"""(client id, queues sorted, client ids sorted) → the queues of that client."""


def queue_order(queue: MessageQueue) -> tuple[str, str, int]:
    """The sort key of a queue, the same in every client language."""
    return queue.topic, queue.broker_name, queue.queue_id


def allocate_average(client_id: str, queues: Sequence[MessageQueue], client_ids: Sequence[str]) -> list[MessageQueue]:
    """Apache's AVG: neighbouring queues in one hand; the first members take one more when it does not divide evenly.

    8 queues, 3 members: 0-2, 3-5, 6-7. More members than queues: the last ones get nothing.
    """
    if client_id not in client_ids:
        return []
    index = client_ids.index(client_id)
    share, extra = divmod(len(queues), len(client_ids))
    start = index * share + min(index, extra)
    return list(queues[start : start + share + (1 if index < extra else 0)])


def allocate_average_by_circle(
    client_id: str, queues: Sequence[MessageQueue], client_ids: Sequence[str]
) -> list[MessageQueue]:
    """Apache's AVG_BY_CIRCLE: dealt out like cards."""
    if client_id not in client_ids:
        return []
    return list(queues[client_ids.index(client_id) :: len(client_ids)])


STRATEGIES: dict[str, AllocateStrategy] = {"AVG": allocate_average, "AVG_BY_CIRCLE": allocate_average_by_circle}


def allocate(
    client_id: str,
    queues: Iterable[MessageQueue],
    client_ids: Iterable[str],
    strategy: AllocateStrategy = allocate_average,
) -> list[MessageQueue]:
    """`strategy` on sorted lists, whatever order they came in."""
    return strategy(client_id, sorted(queues, key=queue_order), sorted(client_ids))
