"""The official gRPC client, through Apache's proxy in front of either cluster."""

from __future__ import annotations

from pathlib import Path

import proxy
import pytest
from room import Room

pytestmark = [pytest.mark.apache, pytest.mark.grpc]


@pytest.mark.slow
def test_the_grpc_client_through_a_proxy(room: Room, tmp_path: Path) -> None:
    """Claim: it sends and gets messages of every type, by tag and SQL, in order, late or recalled, at the end of their
    transaction, and again after a failure; groups need not be made for it."""
    for kind in ("normal", "fifo", "delay", "transaction"):
        room.create(2, topic=f"{room.topic}_{kind}", attributes=f"+message.type={kind.upper()}")
    room.create_group(name=f"{room.topic}_fifo_group", consumeMessageOrderly=True)
    started = proxy.start(tmp_path / "proxy", room.cluster)
    try:
        got = proxy.run_client(tmp_path, room.topic)
    finally:
        started.kill()
    assert got["normal"] == sorted([*(f"m{number} 1" for number in range(10)), "m3 2"])
    assert got["sql"] == ["m2 key2 tag0", "m3 key3 tag1", "m4 key4 tag0"]
    for group in (0, 1):
        assert got[f"fifo{group}"] == [f"{group}-{10 + number}" for number in range(group, 20, 2)]
    assert got["fifo in normal"] == ["refused"]
    assert got["delay"] == ["delayed in time"]
    assert got["simple"] == sorted([*(f"s{number} 1" for number in range(5)), "s1 2"])
    assert got["committed"] == ["commit", "commit later"]
    assert got["checked"] == ["commit later", "rollback later"]
