"""ali-ons, a client of the remoting protocol for Node: `node/`, its packages in `build/conformance`, and a process."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

import apache
from official import Program

SOURCE = Path(__file__).with_name("node")
INSTALLED = apache.BUILD / "node"


def unavailable() -> str | None:
    """Why the Node client cannot run here, or None when it can."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} missing: the Node client needs Node, 18 or later"
    apache.BUILD.mkdir(parents=True, exist_ok=True)
    with (apache.BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _install()


def _install() -> str | None:
    """What `package-lock.json` names, through npm; installed again when that has changed."""
    wanted = (SOURCE / "package-lock.json").read_bytes()
    done = INSTALLED / "node_modules" / "done"
    if done.exists() and done.read_bytes() == wanted:
        return None
    INSTALLED.mkdir(exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(SOURCE / name, INSTALLED)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    installed = subprocess.run(command, cwd=INSTALLED, capture_output=True, text=True)
    if installed.returncode:
        return f"npm could not install the Node client: {installed.stderr.strip()[-300:]}"
    done.write_bytes(wanted)
    return None


class Client(Program):
    """The Node client, for one cluster; its commands are those of `node/main.js`."""

    def __init__(self, directory: Path) -> None:
        env = {"NODE_PATH": str(INSTALLED / "node_modules")}
        super().__init__(["node", str(SOURCE / "main.js")], directory, log="node-client.log", env=env)
