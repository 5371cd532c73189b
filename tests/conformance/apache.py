"""Apache RocketMQ 5.5.0 as processes of a test: the jars, a name server, a broker.

Run it by hand for a cluster in a network of its own, with a shell inside it:

    python tests/conformance/apache.py [store directory]

Jars come through Maven into `build/conformance/lib` (once; from then on nothing is fetched). All files of a process,
its logs and its `user.home` stay in the directory it is given. Processes die with the one that started them.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "conformance"
JAVA = Path(__file__).with_name("java")
VERSION = "5.5.0"
START_TIMEOUT_S = 90.0

# One compiler tier and the serial collector: a short test is all start-up, and two cores are shared with the test. A
# server with TLS makes itself certificates first, which is half of the time until it serves.
SMALL_JVM = (
    "-Xmx1g",
    "-Xms128m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Xlog:disable",
    "-Xlog:all=warning:stderr",
    "-Dtls.server.mode=disabled",
)
PROGRAM: Final = BUILD / "program.jar"
ARCHIVE: Final = BUILD / "classes.jsa"
"""The classes the first broker has loaded, as the JVM likes them: who comes later starts in two thirds of the time."""

SMALL_STORE = {
    "mappedFileSizeCommitLog": 16 * 1024 * 1024,
    "mappedFileSizeConsumeQueue": 6_000_000,
    "maxHashSlotNum": 100_000,
    "maxIndexNum": 400_000,
}


def unavailable() -> str | None:
    """Why Apache RocketMQ cannot run here, or None when it can."""
    missing = [name for name in ("java", "javac") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} missing: comparisons need a JDK, 17 or later"
    try:
        classpath()
    except RuntimeError as error:
        return str(error)
    return None


def classpath() -> str:
    """The class path of the official jars and of the program in `java/`, built when missing or out of date.

    Jars alone, always in the same order: that is what an archive of classes can be used with. The tools come before the
    broker: the first jar with settings for the log has it, and the broker's log is twenty files.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _jars_present():
            resolve(JAVA / "pom.xml", BUILD / "lib")
        sources = sorted((JAVA / "src").rglob("*.java"))
        if compile_program(sources, f"{BUILD / 'lib'}/*", PROGRAM):
            ARCHIVE.unlink(missing_ok=True)
    return ":".join(map(str, [PROGRAM, *sorted((BUILD / "lib").glob("*.jar"), reverse=True)]))


def _jars_present() -> bool:
    parts = ("broker", "namesrv", "tools", "client")
    return all((BUILD / "lib" / f"rocketmq-{part}-{VERSION}.jar").exists() for part in parts)


def resolve(pom: Path, to: Path) -> None:
    """Has Maven copy what a pom depends on, once for each state of the pom. Raises RuntimeError."""
    done = to / "done"
    if done.exists() and done.read_bytes() == pom.read_bytes():
        return
    if shutil.which("mvn") is None:
        raise RuntimeError("mvn missing: the official jars cannot be resolved")
    goal = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={to}"]
    for offline in (["-o"], []):
        copied = subprocess.run([*goal, *offline], capture_output=True, text=True)
        if copied.returncode == 0:
            done.write_bytes(pom.read_bytes())
            return
    raise RuntimeError(f"Maven could not resolve the official jars: {copied.stdout.strip()[-300:]}")


def compile_program(sources: list[Path], jars: str, program: Path) -> bool:
    """Makes a jar of the sources, if it is missing or older than one of them; whether it was."""
    if program.exists() and all(source.stat().st_mtime <= program.stat().st_mtime for source in sources):
        return False
    classes = program.with_name("classes")
    shutil.rmtree(classes, ignore_errors=True)
    classes.mkdir()
    started = time.time()
    command = ["javac", "-nowarn", "-proc:none", "-d", str(classes), "-cp", jars]
    done = subprocess.run([*command, *map(str, sources)], capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"the conformance program does not compile:\n{done.stderr}")
    with zipfile.ZipFile(program, "w") as jar:
        for file in sorted(classes.rglob("*.class")):
            jar.write(file, file.relative_to(classes))
    os.utime(program, (started, started))
    return True


def quick_start() -> tuple[str, ...]:
    """JVM options that use the archive of classes, once there is one."""
    return (f"-XX:SharedArchiveFile={ARCHIVE}",) if ARCHIVE.exists() else ()


def _make_archive(pid: int) -> None:
    """Has a broker that was started with RecordDynamicDumpInfo write down its classes; all works without, too."""
    made = ARCHIVE.with_suffix(f".{pid}")
    command = ["jcmd", str(pid), "VM.cds", "dynamic_dump", str(made)]
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
        made.rename(ARCHIVE)


def die_with_parent() -> None:
    """For `preexec_fn`: the kernel kills the child when its parent goes, however it goes."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Process:
    """A server process with its log; stopped, or killed, once."""

    def __init__(self, name: str, command: list[str], directory: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._temporary = temporary(directory, name)
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / f"{name}.log"
        with self.log.open("ab") as out:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={**os.environ, **(env or {})},
                preexec_fn=die_with_parent,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def ready(self, is_ready: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> None:
        """Waits until `is_ready()`; raises with the end of the log when the process ends or the time does."""
        deadline = time.monotonic() + timeout_s
        while True:
            if self.popen.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self.popen.returncode}:\n{self.tail()}")
            try:
                if is_ready():
                    return
            except OSError:
                pass
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self.name} not ready after {timeout_s:.0f} s:\n{self.tail()}")
            time.sleep(0.05)

    def tail(self, size: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-size:]

    def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM, and the exit code; kills after `timeout_s`."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self._temporary, ignore_errors=True)
        return self.popen.returncode

    def kill(self) -> None:
        """SIGKILL: no shutdown hook runs."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        shutil.rmtree(self._temporary, ignore_errors=True)


@dataclass
class Cluster:
    """A running name server and broker, whoever made them."""

    kind: str  # "apache" or "aerobee"
    namesrv_address: str
    broker_address: str
    broker_name: str
    cluster_name: str
    directory: Path
    namesrv: Process
    broker: Process
    restart_broker: Callable[[], Process] = field(repr=False)

    @property
    def store(self) -> Path:
        return self.directory / "store"

    def kill_broker(self) -> None:
        self.broker.kill()

    def stop_broker(self) -> int:
        return self.broker.stop()

    def start_broker(self) -> None:
        self.broker = self.restart_broker()

    def discard(self) -> None:
        """Ends both at once; a clean stop of Apache's broker takes 15 s."""
        self.broker.kill()
        self.namesrv.kill()


NO_SPIN: Final = {"transactionOpBatchInterval": 3_600_000, "transactionOpMsgMaxSize": 1}
"""For Apache's broker: it notes the end of a transaction at once.

By default it notes ends every three seconds, and from three seconds after the last one a thread of it spins for ever.
"""
PATIENT: Final = {"waitTimeMillsInSendQueue": 5_000}
"""Apache's broker answers that it is busy when a send has waited for a processor for 200 ms; that is the machine's."""


def start_namesrv(
    directory: Path, port: int = 9876, options: Mapping[str, object] | None = None, *, quick: bool = True
) -> Process:
    """Starts Apache's name server on 127.0.0.1:`port` and waits until it answers. `quick`: with `ARCHIVE`."""
    config = directory / "namesrv.properties"
    write_properties(
        config,
        {
            "listenPort": port,
            "bindAddress": "127.0.0.1",
            "kvConfigPath": directory / "kvConfig.json",
            **(options or {}),
        },
    )
    with _one_start_at_a_time():
        jvm = (*SMALL_JVM, *(quick_start() if quick else ()))
        command = _java(directory, "org.apache.rocketmq.namesrv.NamesrvStartup", "-c", str(config), jvm=jvm)
        process = Process("namesrv", command, directory, _env(directory))
        process.ready(lambda: call(f"127.0.0.1:{port}", 106)[0]["code"] == 0)
    return process


def start_broker(
    directory: Path,
    namesrv: str,
    port: int = 10911,
    options: Mapping[str, object] | None = None,
    *,
    jvm: tuple[str, ...] = SMALL_JVM,
    quick: bool = True,
    name: str = "broker-a",
    cluster: str = "DefaultCluster",
    ready: Callable[[], bool] | None = None,
) -> Process:
    """Starts Apache's broker on 127.0.0.1:`port`, store in `directory/store`; returns when its name server knows it.

    `ready` replaces that question, for brokers that advertise another address.
    """
    config = directory / "broker.properties"
    settings: dict[str, object] = {
        "brokerClusterName": cluster,
        "brokerName": name,
        "brokerId": 0,
        "brokerIP1": "127.0.0.1",
        "brokerIP2": "127.0.0.1",
        "bindAddress": "127.0.0.1",
        "listenPort": port,
        "haListenPort": port + 1,
        "namesrvAddr": namesrv,
        "storePathRootDir": directory / "store",
        "storePathCommitLog": directory / "store" / "commitlog",
        # Each look at its timer wheel takes Apache's broker a fifth of a second of processor time.
        "timerFlushIntervalMs": 30_000,
        # A thread of it spins for this long (10 s, when nothing is said) once it has started.
        "transactionMetricFlushInterval": 500,
        # A test machine's disk may be nearly full; nothing here is about that.
        "diskMaxUsedSpaceRatio": 90,
        **SMALL_STORE,
        **(options or {}),
    }
    write_properties(config, settings)
    with _one_start_at_a_time():
        first = quick and not ARCHIVE.exists()
        if quick:
            jvm = (*jvm, "-XX:+RecordDynamicDumpInfo") if first else (*jvm, *quick_start())
        command = _java(directory, "org.apache.rocketmq.broker.BrokerStartup", "-c", str(config), jvm=jvm)
        process = Process("broker", command, directory, _env(directory))
        process.ready(ready or (lambda: registered(namesrv, name, f"127.0.0.1:{port}")))
        if first:
            _make_archive(process.pid)
    return process


@contextmanager
def _one_start_at_a_time() -> Iterator[None]:
    """A start keeps a processor busy for seconds: many at once, of several test processes, would run into time-outs."""
    with (BUILD / "start-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def start(
    directory: Path, options: Mapping[str, object] | None = None, *, namesrv_port: int = 9876, port: int = 10911
) -> Cluster:
    """A name server and a broker of Apache's, ready for clients."""
    namesrv_address = f"127.0.0.1:{namesrv_port}"
    namesrv = start_namesrv(directory, namesrv_port)

    def broker() -> Process:
        return start_broker(directory, namesrv_address, port, options)

    return Cluster(
        "apache",
        namesrv_address,
        f"127.0.0.1:{port}",
        "broker-a",
        "DefaultCluster",
        directory,
        namesrv,
        broker(),
        broker,
    )


def registered(namesrv: str, broker_name: str, address: str, reached_at: str | None = None) -> bool:
    """Whether the name server lists the broker, and the broker answers (at `reached_at` if that is another place)."""
    header, body = call(namesrv, 106)
    if header["code"] != 0 or f'"{broker_name}"'.encode() not in body or address.encode() not in body:
        return False
    return bool(call(reached_at or address, 28)[0]["code"] == 0)


def call(
    address: str, code: int, ext: Mapping[str, str] | None = None, body: bytes = b"", timeout_s: float = 5.0
) -> tuple[dict[str, Any], bytes]:
    """One request over a connection of its own, JSON header; the reply's header and body."""
    with dial(address, timeout_s) as sock:
        sock.sendall(frame(code, ext, body))
        return read_frame(sock)


def dial(address: str, timeout_s: float = 5.0) -> socket.socket:
    """A connection to `host:port`; `timeout_s` bounds every read."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout_s)


def frame(
    code: int, ext: Mapping[str, str] | None = None, body: bytes = b"", *, opaque: int = 1, flag: int = 0
) -> bytes:
    """A command with a JSON header."""
    command: dict[str, Any] = {"code": code, "language": "JAVA", "version": 513, "opaque": opaque, "flag": flag}
    command |= {"extFields": dict(ext or {}), "serializeTypeCurrentRPC": "JSON"}
    header = json.dumps(command, separators=(",", ":")).encode()
    return struct.pack(">II", 4 + len(header) + len(body), len(header)) + header + body


def read_frame(sock: socket.socket) -> tuple[dict[str, Any], bytes]:
    """The next command on a connection: header and body."""
    size, header_size = struct.unpack(">II", _exactly(sock, 8))
    rest = _exactly(sock, size - 4)
    header_size &= 0xFFFFFF
    return json.loads(rest[:header_size]), rest[header_size:]


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise ConnectionError("connection closed inside a reply")
        data += chunk
    return bytes(data)


def _java(directory: Path, main: str, *args: str, jvm: tuple[str, ...]) -> list[str]:
    name = "broker" if main.endswith("BrokerStartup") else "namesrv"
    return ["java", *jvm, *java_home(directory, name), "-cp", classpath(), main, *args]


def java_home(directory: Path, name: str) -> tuple[str, ...]:
    """Where the JVM of this name leaves its files: in `directory`."""
    temporary(directory, name).mkdir(parents=True, exist_ok=True)
    return (f"-Duser.home={directory}", f"-Djava.io.tmpdir={temporary(directory, name)}")


def temporary(directory: Path, name: str) -> Path:
    """Where the JVM of this name puts what nobody needs when it has ended: a native library of ten megabytes."""
    return directory / f"tmp-{name}"


def _env(directory: Path) -> dict[str, str]:
    return {"ROCKETMQ_HOME": str(directory), "NAMESRV_ADDR": ""}


def write_properties(path: Path, settings: Mapping[str, object]) -> None:
    """Writes a .properties file, and its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))


def main() -> None:
    import tempfile

    from network import private_network

    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="apache-"))
    with private_network():
        cluster = start(directory)
        print(f"name server {cluster.namesrv_address}, broker {cluster.broker_address} (pid {cluster.broker.pid})")
        print(f"files in {directory}\nclass path {classpath()}\nThe shell that follows is inside their network.")
        subprocess.run([os.environ.get("SHELL", "bash")])
        cluster.discard()


if __name__ == "__main__":
    main()
