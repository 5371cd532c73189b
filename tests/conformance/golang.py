"""The official Go client: `go/`, built once into `build/conformance`, and a process of it that serves commands."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

import apache
from official import Program

SOURCE = Path(__file__).with_name("go")
BINARY = apache.BUILD / "go-client"


def unavailable() -> str | None:
    """Why the Go client cannot run here, or None when it can."""
    if shutil.which("go") is None:
        return "go missing: the official Go client needs Go, 1.21 or later"
    try:
        binary()
    except RuntimeError as error:
        return str(error)
    return None


def binary() -> Path:
    """The program in `go/`, built when missing or out of date; its modules come through the `go` command."""
    apache.BUILD.mkdir(parents=True, exist_ok=True)
    with (apache.BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        newest = max(path.stat().st_mtime for path in SOURCE.iterdir())
        if not BINARY.exists() or BINARY.stat().st_mtime < newest:
            _build()
    return BINARY


def _build() -> None:
    fetched = subprocess.run(["go", "mod", "download"], cwd=SOURCE, capture_output=True, text=True)
    if fetched.returncode:
        raise RuntimeError(f"go could not fetch the official client: {fetched.stderr.strip()[-300:]}")
    built = subprocess.run(
        ["go", "build", "-mod=readonly", "-o", str(BINARY), "."], cwd=SOURCE, capture_output=True, text=True
    )
    if built.returncode:
        raise AssertionError(f"the Go program does not compile:\n{built.stderr}")


class Client(Program):
    """The Go client; its commands are those of `go/main.go`."""

    def __init__(self, directory: Path) -> None:
        # It keeps the offsets of broadcasting groups in the home directory.
        env = {"HOME": str(directory), "ROCKETMQ_GO_LOG_LEVEL": "warn"}
        super().__init__([str(binary())], directory, log="go-client.log", env=env)
