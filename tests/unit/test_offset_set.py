"""The set of queue offsets against a plain one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aerobee.broker.offset_set import OffsetSet

# Around the borders of bytes and of chunks, where it could go wrong.
OFFSETS = st.one_of(st.integers(0, 40), st.integers(65_500, 65_600), st.integers(131_060, 131_090))
STEPS = st.lists(st.tuples(st.sampled_from(["add", "add run", "discard", "drop"]), OFFSETS), max_size=40)


@given(STEPS, OFFSETS, OFFSETS)
def test_it_is_a_set_that_forgets_from_below(steps: list[tuple[str, int]], begin: int, end: int) -> None:
    ours, plain, start = OffsetSet(), set[int](), 0
    for step, offset in steps:
        if step == "discard":
            ours.discard(offset)
            plain.discard(offset)
        elif step == "drop":
            start = max(start, offset)
            ours.drop_before(offset)
        else:
            for one in range(offset, offset + (1 if step == "add" else 30)):
                ours.add(one)
                plain.add(one)
        plain = {one for one in plain if one >= start}
        assert len(ours) == len(plain) and ours.start == start
    assert all(one in ours for one in plain) and (begin in ours) == (begin in plain)
    assert ours.next_missing(begin, end) == next((one for one in range(begin, end) if one not in plain), end)


def test_full_runs_are_passed_over() -> None:
    ours = OffsetSet()
    for offset in range(10, 200_000):
        ours.add(offset)
    assert ours.next_missing(10, 1 << 40) == 200_000 and ours.next_missing(10, 150_000) == 150_000
    assert ours.next_missing(9, 1 << 40) == 9
    ours.discard(65_536)
    assert ours.next_missing(10, 1 << 40) == 65_536
