"""The official C++ client against both brokers. It writes what no other does: enums as numbers."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from room import Room

PROGRAM = Path(__file__).parent / "cplusplus" / "program.py"

pytestmark = [
    pytest.mark.apache,
    pytest.mark.skipif(
        importlib.util.find_spec("rocketmq") is None,
        reason="the package `rocketmq` is missing, which has the C++ client for Linux on x86-64",
    ),
]


@pytest.mark.slow
def test_the_cplusplus_client(room: Room, tmp_path: Path) -> None:
    """Claim: it sends in all its ways and gets everything: by tags, in order, late, again after a failure, by pulling.

    (Not in batches: what it sends then is one empty message, which both brokers store.)"""
    room.create(2)
    command = [sys.executable, str(PROGRAM), room.cluster.namesrv_address, room.topic, room.group]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=90, cwd=tmp_path, env={"HOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout.splitlines()[-1])
    assert set(got["sent"]) == {0} and got["async"] == [0]
    taken = {(message["body"][:10], message["tries"]): message for message in got["taken"]}
    plain = ["sync0", "sync1", "sync2", "sync3", "big" + 7 * "x", "later", "fails", "oneway", "async"]
    assert sorted(taken) == sorted([*((body, 0) for body in plain), ("fails", 1)])
    assert len(got["taken"]) == len(taken), "nothing twice"
    assert len(taken["big" + 7 * "x", 0]["body"]) == 10_003
    for (body, _), message in taken.items():
        assert (message["key"], message["city"]) == (f"key-{body[:10]}", "Zürich")
        assert message["tag"] == ("TagB" if body.startswith("big") else "TagA")
    assert 1_000 <= taken["later", 0]["after_ms"] < 3_000
    assert 10_000 <= taken["fails", 1]["after_ms"] < 14_000
    assert [message["body"] for message in got["ordered"]] == [f"order{number}" for number in range(10)]
    assert len({message["queue"] for message in got["ordered"]}) == 1
    assert got["pulled"] == 20
