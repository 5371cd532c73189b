"""`aerobee up` and `aerobee down`: a name server and a broker as processes of their own, data under one directory.

    DATA/up.lock        held (flock) for as long as the cluster runs; tells `down` and a second `up`
    DATA/up.json        process ids and addresses, from when it is ready on
    DATA/nameserver/    kvConfig.json, nameserver.properties
    DATA/broker/        the store, broker.properties
    DATA/log/           what the two have to say

Promises: when `up` says it is ready, a client can send. When one of the two ends, `up` says so, stops the other and
leaves with exit code 1. The two end with `up`, however it ends: each holds one end of a pipe as its standard input.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from aerobee.options import write_atomically

READY_S: Final = 60.0
"""How long a start may take: a large store is recovered before the broker is ready."""
REGISTERED_S: Final = 10.0
STOP_S: Final = 30.0
"""How long a graceful stop may take before the process is killed."""


class UpError(Exception):
    """The cluster cannot be started or stopped; the message is a sentence for people."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the cluster listens on loopback: RocketMQ's usual ports, or four in a row."""

    name_server: int
    broker: int

    @classmethod
    def of(cls, base: int | None) -> Ports:
        """Without a base 9876 and 10911 (with 10909), otherwise base and base + 3 (with base + 1)."""
        return cls(9876, 10911) if base is None else cls(base, base + 3)


class Daemon:
    """A child process, its log file and its ready line."""

    def __init__(self, name: str, arguments: list[str], log_file: Path) -> None:
        self.name = name
        self.log_file = log_file
        self.ready = ""
        self._log_start = log_file.stat().st_size if log_file.exists() else 0
        with log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "aerobee.cli", name, *arguments, "--stop-at-eof"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal reaches only `up`, which stops them in order
            )

    def wait_ready(self, until: float, interrupted: Callable[[], bool]) -> None:
        """Returns when the daemon has printed its line; UpError with its own words when it ends before."""
        assert self.process.stdout is not None
        lines: list[bytes] = []
        reader = threading.Thread(target=lambda: lines.append(self.process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
        reader.start()
        while reader.is_alive():
            reader.join(0.05)
            if interrupted():
                raise UpError("interrupted")
            if time.monotonic() > until:
                raise UpError(f"the {self.name} is not ready after {READY_S:.0f} s; see {self.log_file}")
        self.ready = lines[0].decode().strip()
        if not self.ready:
            self.process.wait()
            raise UpError(self.last_words() or f"the {self.name} ended at once; see {self.log_file}")

    def last_words(self) -> str:
        """What the daemon said since it was started, without its log lines."""
        with self.log_file.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read()[-20_000:].decode(errors="replace").splitlines()
        prefix = f"aerobee {self.name}: "
        return "\n".join(line for line in lines if line.startswith(prefix)) or "\n".join(lines[-3:])

    def stop(self) -> None:
        """Asks it to stop and waits; kills it if it does not."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                print(f"the {self.name} has not stopped within {STOP_S:.0f} s and is killed", file=sys.stderr)
                self.process.kill()
                self.process.wait()


def up(data: Path, *, fresh: bool, port_base: int | None, ready: IO[str] | None = None) -> int:
    """Runs the cluster until a signal; returns the exit code. `ready` gets the summary or error and is closed."""
    ports = Ports.of(port_base)
    interrupted = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # it is, under nohup
            signal.signal(number, lambda *_: interrupted.set())
    daemons: list[Daemon] = []
    try:
        with _claimed(data, fresh=fresh):
            try:
                for port in (ports.name_server, ports.broker, ports.broker - 2):
                    _check_free(port)
                log = data / "log"
                log.mkdir(exist_ok=True)
                name_server = _start("nameserver", _name_server_arguments(data, ports), log, daemons, interrupted)
                broker = _start("broker", _broker_arguments(data, ports), log, daemons, interrupted)
                _wait_registered(ports, interrupted)
                state = {
                    "pid": os.getpid(),
                    "name_server": f"127.0.0.1:{ports.name_server}",
                    "broker": f"127.0.0.1:{ports.broker}",
                    "name_server_pid": name_server.process.pid,
                    "broker_pid": broker.process.pid,
                }
                write_atomically(data / "up.json", json.dumps(state, indent=2).encode())
                _announce(f"{name_server.ready}\n{broker.ready}\n", ready)
                return _watch(daemons, interrupted)
            finally:
                for daemon in reversed(daemons):
                    daemon.stop()
                (data / "up.json").unlink(missing_ok=True)
    except UpError as error:
        if interrupted.is_set():
            return 0
        _announce(f"!{error}\n", ready, sys.stderr)
        return 1
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _announce(f"!cannot use{where or ' ' + str(data)}: {error.strerror}\n", ready, sys.stderr)
        return 1


def up_in_background(data: Path, *, fresh: bool, port_base: int | None) -> int:
    """Starts `up` detached from the terminal; returns when it is ready or has failed. Running already is fine."""
    try:
        running = None if fresh else _running(data)
    except (UpError, OSError) as error:
        return _refuse(data, error)
    if running is not None:
        wanted = f"127.0.0.1:{Ports.of(port_base).name_server}"
        if running.get("name_server") == wanted:
            print(f"already running: name server {running['name_server']}, broker {running['broker']}")
            return 0
        print(f"the cluster in {data} has its name server on {running['name_server']}; stop it first (aerobee down)")
        return 1
    arguments = ["up", "--data", str(data), *(["--fresh"] if fresh else [])]
    if port_base is not None:
        arguments += ["--port-base", str(port_base)]
    read, write = os.pipe()
    try:
        (data / "log").mkdir(parents=True, exist_ok=True)
        with (data / "log" / "up.log").open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", "aerobee.cli", *arguments, "--ready-fd", str(write)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(write,),
                start_new_session=True,
            )
    except OSError as error:
        return _refuse(data, error)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    if said.startswith("!") or not said:
        print(said[1:].strip() or f"the cluster did not start; see {data / 'log' / 'up.log'}", file=sys.stderr)
        return 1
    print(said, end="")
    return 0


def down(data: Path) -> int:
    """Stops what `up` runs in this directory, and waits for it; returns the exit code."""
    try:
        running = _running(data)
    except (UpError, OSError) as error:
        return _refuse(data, error)
    if running is None:
        print(f"nothing is running in {data}")
        return 0
    pid = int(running["pid"])
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has ended meanwhile
    except PermissionError:
        print(f"process {pid} belongs to another user, who has to stop it", file=sys.stderr)
        return 1
    until = time.monotonic() + 2 * STOP_S + 5
    while _is_held(data) or _exists(pid):
        if time.monotonic() > until:
            print(f"process {pid} has not stopped", file=sys.stderr)
            return 1
        time.sleep(0.02)
    print("stopped")
    return 0


def _exists(pid: int) -> bool:
    """Whether a process is there that has not ended yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def _claimed(data: Path, *, fresh: bool) -> Iterator[None]:
    """Holds the data directory; removes what was in it if asked to."""
    data.mkdir(parents=True, exist_ok=True)
    with (data / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UpError(f"a cluster runs in {data}; stop it (aerobee down --data {data}) or use --data") from None
        (data / "up.json").unlink(missing_ok=True)  # of an `up` that was killed: its process ids are others' by now
        if fresh:
            for part in ("nameserver", "broker", "log"):
                if (data / part).exists():
                    shutil.rmtree(data / part)
        for part in ("nameserver", "broker"):
            (data / part).mkdir(exist_ok=True)
        yield


def _running(data: Path) -> dict[str, str] | None:
    """What `up` wrote about the cluster that runs here, once it has started; None if none does.

    Raises UpError when it does not become ready, OSError.
    """
    until = time.monotonic() + 2 * READY_S + REGISTERED_S
    while _is_held(data):
        with contextlib.suppress(FileNotFoundError, ValueError):
            state: dict[str, str] = json.loads((data / "up.json").read_text())
            return state
        if time.monotonic() > until:
            raise UpError(f"a cluster is being started in {data}, and does not become ready")
        time.sleep(0.02)
    return None


def _is_held(data: Path) -> bool:
    """Whether an `up` has the directory. Raises OSError."""
    try:
        with (data / "up.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _refuse(data: Path, error: UpError | OSError) -> int:
    """Says why nothing can be done there; returns the exit code."""
    said = f"cannot use {error.filename or data}: {error.strerror}" if isinstance(error, OSError) else str(error)
    print(said, file=sys.stderr)
    return 1


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            reason = f"port {port} on 127.0.0.1 cannot be used ({error.strerror})"
            raise UpError(f"{reason}; choose others with --port-base (make up PORT_BASE=20000)") from None


def _name_server_arguments(data: Path, ports: Ports) -> list[str]:
    """Flags beat the file, so that its keys may be changed by hand; what belongs to `up` is always as `up` says."""
    home = data / "nameserver"
    file = home / "nameserver.properties"
    file.touch()
    return [
        *("-c", str(file)),
        *("--listen-port", str(ports.name_server)),
        *("--bind-address", "127.0.0.1"),
        *("--kv-config-path", str(home / "kvConfig.json")),
    ]


def _broker_arguments(data: Path, ports: Ports) -> list[str]:
    home = data / "broker"
    file = home / "broker.properties"
    if not file.exists():
        file.write_text("# Settings as in Apache RocketMQ's broker.conf, read at every start.\nbrokerName=broker-a\n")
    return [
        *("-c", str(file)),
        *("-n", f"127.0.0.1:{ports.name_server}"),
        *("--listen-port", str(ports.broker)),
        *("--bind-address", "127.0.0.1"),
        *("--store-path-root-dir", str(home / "store")),
    ]


def _start(name: str, arguments: list[str], log: Path, daemons: list[Daemon], interrupted: threading.Event) -> Daemon:
    daemon = Daemon(name, arguments, log / f"{name}.log")
    daemons.append(daemon)
    daemon.wait_ready(time.monotonic() + READY_S, interrupted.is_set)
    return daemon


def _wait_registered(ports: Ports, interrupted: threading.Event) -> None:
    """Returns when the name server knows the broker: only then clients find it."""
    import asyncio

    from aerobee.errors import AerobeeError
    from aerobee.net.remote import RemotePool
    from aerobee.protocol.codes import RequestCode
    from aerobee.protocol.command import RemotingCommand

    async def ask() -> bool:
        pool = RemotePool()
        try:
            request = RemotingCommand.request(RequestCode.GET_BROKER_CLUSTER_INFO)
            reply = await pool.invoke(f"127.0.0.1:{ports.name_server}", request, 3.0)
            return f":{ports.broker}".encode() in (reply.body or b"")
        except AerobeeError:
            return False
        finally:
            await pool.close()

    until = time.monotonic() + REGISTERED_S
    while not asyncio.run(ask()):
        if interrupted.wait(0.05):
            raise UpError("interrupted")
        if time.monotonic() > until:
            raise UpError(f"the broker has not reached the name server within {REGISTERED_S:.0f} s; see the log files")


def _watch(daemons: list[Daemon], interrupted: threading.Event) -> int:
    while not interrupted.wait(0.1):
        for daemon in daemons:
            code = daemon.process.poll()
            if code is not None:
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                print(f"the {daemon.name} {how}, stopping the rest; see {daemon.log_file}", file=sys.stderr)
                return 1
    return 0


def _announce(text: str, ready: IO[str] | None, stream: IO[str] | None = None) -> None:
    print(text.removeprefix("!"), end="", flush=True, file=stream or sys.stdout)
    if ready is not None and not ready.closed:
        with contextlib.suppress(BrokenPipeError):
            ready.write(text)
            ready.close()
