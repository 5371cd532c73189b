"""Who takes which queues: the same answer as Apache's AVG, for any number of members and queues."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aerobee.client.rebalance import allocate, allocate_average_by_circle
from aerobee.protocol.message import MessageQueue


def queues(count: int) -> list[MessageQueue]:
    return [MessageQueue("t", f"broker-{i % 3}", i // 3) for i in range(count)]


def test_the_example_of_the_docstring() -> None:
    eight = [MessageQueue("t", "b", i) for i in range(8)]
    shares = [[q.queue_id for q in allocate(member, eight, ["c", "a", "b"])] for member in "abc"]
    assert shares == [[0, 1, 2], [3, 4, 5], [6, 7]]


@given(st.integers(0, 40), st.integers(1, 12))
def test_every_queue_has_one_owner_and_shares_differ_by_one(queue_count: int, member_count: int) -> None:
    members = [f"10.0.0.{i}@{i * 7919 % 100}" for i in range(member_count)]
    shares = [allocate(member, reversed(queues(queue_count)), reversed(members)) for member in members]
    assert sorted(q for share in shares for q in share) == sorted(queues(queue_count))
    sizes = sorted(map(len, shares))
    assert sizes[-1] - sizes[0] <= 1


@given(st.integers(0, 40), st.integers(1, 12), st.data())
def test_it_is_apaches_formula(queue_count: int, member_count: int, data: st.DataObject) -> None:
    """AllocateMessageQueueAveragely over sizes: start = index * average (+ the rest behind the large ones)."""
    members = sorted(f"m{i}" for i in range(member_count))
    index = data.draw(st.integers(0, member_count - 1))
    rest = queue_count % member_count
    if queue_count <= member_count:
        average = 1
    else:
        average = queue_count // member_count + (1 if rest > 0 and index < rest else 0)
    start = index * average if rest > 0 and index < rest else index * average + rest
    ordered = sorted(queues(queue_count))
    expected = [ordered[start + i] for i in range(max(0, min(average, queue_count - start)))]
    assert allocate(members[index], queues(queue_count), members) == expected


def test_who_is_not_listed_gets_nothing() -> None:
    assert allocate("x", queues(4), ["a", "b"]) == []
    assert allocate("x", queues(4), ["a", "b"], allocate_average_by_circle) == []


def test_the_circle_deals_like_cards() -> None:
    five = [MessageQueue("t", "b", i) for i in range(5)]
    assert [q.queue_id for q in allocate("a", five, ["a", "b"], allocate_average_by_circle)] == [0, 2, 4]
