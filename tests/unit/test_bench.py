"""`python -m bench` works: one tiny load against our own broker, in a network of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(shutil.which("cargo") is None, reason="cargo missing: the load generator cannot be built")
@pytest.mark.skipif(
    subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode != 0,
    reason="no permission to make a network namespace: the fixed ports may be taken",
)
def test_a_tiny_run_against_our_own_broker(tmp_path: Path) -> None:
    bench = [sys.executable, "-m", "bench", "--alone", "--quick", "--only", "1 KiB, 1×1$", "--results", f"{tmp_path}/r"]
    command = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *bench]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert "send 1 KiB, 1×1: Figures(rate=" in done.stdout
    assert "refused=0" in done.stdout
    assert not (tmp_path / "r").exists()
