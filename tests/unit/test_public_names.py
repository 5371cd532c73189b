"""The public names: what type checkers see is what runs, and the plain face has all that the asyncio face has."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import aerobee
from aerobee import client, sync

ROOT = Path(__file__).resolve().parents[2]


def test_type_checkers_see_the_names_that_run() -> None:
    tree = ast.parse(Path(aerobee.__file__).read_text())
    seen = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert seen == set(aerobee.__all__)
    for name in aerobee.__all__:
        assert getattr(aerobee, name) is not None


def test_plain_calls_exist_for_everything() -> None:
    """Except for what only makes sense inside an event loop."""
    asyncio_only = {
        "Consumer": {"batches", "pause", "rebalance", "reset", "resume", "subscribe", "unsubscribe"},
        "PullConsumer": {"session"},
    }
    for name in ("Producer", "Consumer", "PullConsumer"):
        members = {
            member
            for member, value in inspect.getmembers(getattr(client, name), inspect.isfunction)
            if not member.startswith("_") and member not in asyncio_only.get(name, ())
        }
        inner = {"consume_once", "heartbeat_data", "requested", "routes_changed", "settle", "take", "topics"}
        missing = members - inner - set(dir(getattr(sync, name)))
        assert not missing, f"aerobee.sync.{name} lacks {missing}"
    manual = (ROOT / "docs" / "client.md").read_text().partition("## Without an event loop\n")[2].partition("\n## ")[0]
    left_out = set[str]().union(*asyncio_only.values()) - {"rebalance", "reset"}  # of the inside
    unsaid = {member for member in left_out if f"`{member}`" not in manual}
    assert not unsaid, f"the manual does not say that aerobee.sync lacks {unsaid}"


def test_a_users_program_passes_the_strict_checker(tmp_path: Path) -> None:
    """The types that `py.typed` promises, as a stranger's checker sees them, with none of our own settings."""
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", "--python-version=3.11",
         str(Path(__file__).with_name("typed_program.py"))],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=110,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
