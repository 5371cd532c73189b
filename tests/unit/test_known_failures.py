"""The table of known failures in `tests/README.md` names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_known_failure_has_a_test_that_exists_or_says_not_yet() -> None:
    rows = (ROOT / "tests" / "README.md").read_text().partition("## Failures")[2].splitlines()
    shown = [row.split("|")[2] for row in rows if row.startswith("|")][2:]
    assert len(shown) >= 25
    sources = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "rust" / "engine").rglob("*.rs")]
    there = set(re.findall(r"\b(?:def|fn) (\w+)\(", "\n".join(path.read_text() for path in sources)))
    for cell in shown:
        names = re.findall(r"`(\w+)`", cell)
        assert names or "not yet" in cell, cell
        assert set(names) <= there, set(names) - there
