"""The commands as a person starts them: real processes, real ports, real signals.

What these tests prove: one command leads to a cluster that takes and hands out messages; everything it started ends
with it, however it ends; a start that fails says why in one sentence and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aerobee import Message, Producer, PullConsumer, SendStatus
from aerobee.cli.up import down
from aerobee.net.remote import RemotePool
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.testing import Cluster
from aerobee.testing.eventually import eventually as eventually_async
from aerobee.testing.eventually import eventually_sync as eventually

AEROBEE = [sys.executable, "-m", "aerobee.cli"]
READY_S = 30


def run(*arguments: str, timeout_s: float = 60, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*AEROBEE, *arguments], capture_output=True, text=True, timeout=timeout_s, **kwargs)


def free_ports() -> int:
    """A base such that base, base + 1 and base + 3 are free."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            base = probe.getsockname()[1]
        if base < 1024 or base > 60000:
            continue
        try:
            for port in (base, base + 1, base + 3):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


class Up:
    """`aerobee up` in the foreground."""

    def __init__(self, data: Path, *arguments: str) -> None:
        self.data = data
        self.base = free_ports()
        self.process = subprocess.Popen(
            [*AEROBEE, "up", "--data", str(data), "--port-base", str(self.base), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.name_server = f"127.0.0.1:{self.base}"
        self.state = eventually(self._read_state, timeout_s=READY_S)

    def _read_state(self) -> dict[str, Any]:
        assert self.process.poll() is None, self.process.communicate()
        state: dict[str, Any] = json.loads((self.data / "up.json").read_text())
        return state

    def daemons(self) -> list[int]:
        return [self.state["name_server_pid"], self.state["broker_pid"]]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Sends the signal; returns exit code and what was said."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(*arguments: str, data: Path = tmp_path / "data") -> Up:
        started.append(Up(data, *arguments))
        return started[-1]

    yield start
    for cluster in started:
        if cluster.process.poll() is None:
            cluster.process.terminate()
            cluster.process.communicate(timeout=30)
        for pid in cluster.daemons():
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_the_first_message(up: Callable[..., Up]) -> None:
    """up, send, consume: a minute for a person, two commands for a script; the messages survive a restart."""
    cluster = up()
    sent = run("send", "hello", "wörld", "--topic", "greetings", "--tag", "t", "--key", "k", "-n", cluster.name_server)
    assert sent.returncode == 0, sent.stderr
    assert sent.stdout.count("SEND_OK") == 2
    got = run("consume", "--topic", "greetings", "--count", "2", "--wait", "20", "-n", cluster.name_server)
    assert got.returncode == 0, got.stderr
    assert {line.split("  ")[-1] for line in got.stdout.splitlines()} == {"hello", "wörld"}
    code, out, err = cluster.end()
    assert code == 0, err
    assert "boot success" in out
    again = up()
    got = run("consume", "-t", "greetings", "-g", "other", "--count", "2", "--wait", "20", "-n", again.name_server)
    assert len(got.stdout.splitlines()) == 2
    assert again.end()[0] == 0
    fresh = up("--fresh")
    got = run("consume", "-t", "greetings", "-g", "third", "--wait", "1", "-n", fresh.name_server)
    assert "greetings" in got.stderr and got.stderr.count("\n") == 1 and got.stdout == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_who_stops_consume_gets_nothing_again(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C, or a closed terminal: the group's progress is told first."""
    async with Cluster(directory=tmp_path) as cluster, Producer(cluster.name_servers) as producer:
        await cluster.create_topic("once", queues=1)
        await producer.send(Message("once", b"seen"))
        command = [*AEROBEE, "consume", "-t", "once", "-n", cluster.name_servers]
        consume = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        assert consume.stdout is not None
        async with asyncio.timeout(READY_S):
            assert (await consume.stdout.readline()).endswith(b"seen\n")
            consume.send_signal(number)
            assert await consume.wait() == 0
        await producer.send(Message("once", b"new"))
        again = await asyncio.to_thread(run, *command[len(AEROBEE) :], "--count", "1", "--wait", "20")
        assert again.stdout.split()[-1] == "new" and again.stdout.count("\n") == 1


async def test_each_line_of_standard_input_leaves_at_once(tmp_path: Path) -> None:
    """`tail -f log | aerobee send`: a line is stored while the next one is waited for, and once; Ctrl-C ends it."""
    async with Cluster(directory=tmp_path) as cluster, PullConsumer(cluster.name_servers, group="reader") as reader:
        await cluster.create_topic("lines", queues=1)
        (queue,) = await reader.queues("lines")

        async def bodies() -> list[bytes]:
            return [message.body for message in (await reader.pull(queue, 0)).messages]

        async def has(count: int) -> bool:
            return len(await bodies()) == count

        async def start() -> tuple[asyncio.subprocess.Process, asyncio.StreamWriter]:
            process = await asyncio.create_subprocess_exec(
                *(*AEROBEE, "send", "-t", "lines", "-n", cluster.name_servers),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            assert process.stdin is not None
            return process, process.stdin

        process, lines = await start()
        lines.write(b"a\r\nb")
        await eventually_async(lambda: has(1))
        said, _ = await process.communicate(b"c\n" + b"d" * 100_000)
        assert (process.returncode, said.count(b"SEND_OK")) == (0, 3), said
        assert await bodies() == [b"a", b"bc", b"d" * 100_000]

        process, lines = await start()
        lines.write(b"e\n")
        await eventually_async(lambda: has(4))
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 10) == 130


async def test_send_ends_quietly_when_nobody_reads_what_it_prints(tmp_path: Path) -> None:
    """`aerobee send --repeat 3000 x | head -1`."""
    async with Cluster(directory=tmp_path) as cluster:
        read, write = os.pipe()
        os.close(read)
        try:
            command = ("send", "x", "--repeat", "3000", "-n", cluster.name_servers)
            found = await asyncio.to_thread(
                subprocess.run, [*AEROBEE, *command], stdout=write, stderr=subprocess.PIPE, timeout=60, check=False
            )
        finally:
            os.close(write)
        assert (found.returncode, found.stderr) == (1, b"")


async def test_what_is_no_message_or_cannot_be_printed_is_said_and_the_rest_is_sent(tmp_path: Path) -> None:
    """`aerobee send` with an empty line in the middle; `aerobee send x > /dev/full`."""
    async with Cluster(directory=tmp_path) as cluster, PullConsumer(cluster.name_servers, group="reader") as reader:
        await cluster.create_topic("lines", queues=1)
        (queue,) = await reader.queues("lines")
        command = ("send", "-t", "lines", "-n", cluster.name_servers)
        found = await asyncio.to_thread(run, *command, input="a\n\nb\n")
        assert found.stdout.count("SEND_OK") == 2 and "2 sent to lines" in found.stdout
        assert (found.returncode, found.stderr) == (1, "aerobee: 1 of 3 not sent: the message has no body\n")
        assert [message.body for message in (await reader.pull(queue, 0)).messages] == [b"a", b"b"]
        full = os.open("/dev/full", os.O_WRONLY)
        try:
            for more in ("x", "--repeat=3000"):  # what is printed at the end, and before
                found = await asyncio.to_thread(
                    subprocess.run, [*AEROBEE, *command, "x", more], stdout=full, stderr=subprocess.PIPE, timeout=60,
                    text=True, check=False,
                )  # fmt: skip
                said = "aerobee: the output cannot be written: No space left on device\n"
                assert (found.returncode, found.stderr) == (1, said)
        finally:
            os.close(full)
        found = await asyncio.to_thread(run, "send", "-t", "no topic", "x", "y", "-n", cluster.name_servers)
        assert (found.returncode, found.stdout, found.stderr.count("\n")) == (1, "", 1), found.stderr


@pytest.mark.parametrize("option", ["--count", "--wait"])
def test_less_than_nothing_is_refused_and_not_waited_for(option: str) -> None:
    found = run("consume", "-t", "greetings", option, "-1", "-n", "127.0.0.1:1")
    assert found.returncode == 2 and option in found.stderr, found.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_all_three(up: Callable[..., Up], number: signal.Signals) -> None:
    cluster = up()
    code, _, err = cluster.end(number)
    assert (code, err) == (0, "")
    assert not any(alive(pid) for pid in cluster.daemons())
    assert not (cluster.data / "up.json").exists()


def test_a_daemon_stops_in_order_when_its_terminal_is_closed_unless_it_was_started_with_nohup() -> None:
    # Claim: as at Apache's, SIGHUP is a graceful stop; it may come from the shell and from the system, and the second
    # one does not cut the stop short.
    command = [*AEROBEE, "nameserver", "--listen-port", "0"]
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as closed, subprocess.Popen(
        ["nohup", *command], text=True, **pipes
    ) as kept:  # fmt: skip
        try:
            for process in (closed, kept):
                assert process.stdout is not None and "boot success" in process.stdout.readline()
                for _ in range(2):
                    process.send_signal(signal.SIGHUP)
            _, log = closed.communicate(timeout=30)
            assert (closed.returncode, "nameserver is stopping" in log) == (0, True), log
            ignored = re.search(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{kept.pid}/status").read_text(), re.MULTILINE)
            assert ignored and int(ignored[1], 16) >> signal.SIGHUP - 1 & 1
            kept.terminate()
            _, log = kept.communicate(timeout=30)
            assert kept.returncode == 0, log
        finally:
            closed.kill()
            kept.kill()


@pytest.mark.parametrize("victim", ["broker", "name_server"])
def test_when_one_dies_it_is_said_and_the_rest_stops(up: Callable[..., Up], victim: str) -> None:
    cluster = up()
    os.kill(cluster.state[f"{victim}_pid"], signal.SIGKILL)
    _, err = cluster.process.communicate(timeout=30)
    assert cluster.process.returncode == 1
    assert f"the {victim.replace('_', '')} was killed by signal 9, stopping the rest" in err
    assert not any(alive(pid) for pid in cluster.daemons())


def test_nothing_outlives_a_killed_up(up: Callable[..., Up]) -> None:
    cluster = up()
    cluster.process.kill()
    cluster.process.communicate()
    eventually(lambda: not any(alive(pid) for pid in cluster.daemons()), timeout_s=30)


def test_two_clusters_do_not_share_a_directory(up: Callable[..., Up]) -> None:
    cluster = up()
    second = run("up", "--data", str(cluster.data), "--port-base", str(free_ports()))
    assert second.returncode == 1
    assert f"a cluster runs in {cluster.data}" in second.stderr
    assert cluster.process.poll() is None


def test_in_the_background(tmp_path: Path) -> None:
    """`make up` and `make down`: returns when ready, is idempotent, stops completely."""
    data, base = tmp_path / "data", str(free_ports())
    started = run("up", "--background", "--data", str(data), "--port-base", base)
    try:
        assert started.returncode == 0, started.stderr
        assert started.stdout.count("boot success") == 2
        again = run("up", "--background", "--data", str(data), "--port-base", base)
        assert (again.returncode, again.stdout[:15]) == (0, "already running")
        assert run("send", "x", "-n", f"127.0.0.1:{base}").returncode == 0
        pids = [value for key, value in json.loads((data / "up.json").read_text()).items() if key.endswith("pid")]
    finally:
        stopped = run("down", "--data", str(data))
    assert stopped.returncode == 0, stopped.stderr
    assert not any(alive(pid) for pid in pids)
    assert run("down", "--data", str(data)).stdout.startswith("nothing is running")


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has got the id of one that was killed."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_what_a_killed_up_leaves_behind_misleads_nobody(tmp_path: Path, bystander: subprocess.Popen[bytes]) -> None:
    """While the next `up` starts, `up --background` waits until it is ready, and `down` stops it and nothing else."""
    data, base = tmp_path / "data", str(free_ports())
    data.mkdir()
    left = {"pid": bystander.pid, "name_server": f"127.0.0.1:{base}", "broker": "127.0.0.1:1"}
    for last in ("up", "down"):
        (data / "up.json").write_text(json.dumps(left))
        with subprocess.Popen(
            [*AEROBEE, "up", "--data", str(data), "--port-base", base], stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                eventually(lambda: is_held(data / "up.lock"), timeout_s=READY_S)
                if last == "up":
                    again = run("up", "--background", "--data", str(data), "--port-base", base)
                    assert (again.returncode, again.stdout[:15]) == (0, "already running")
                    assert run("send", "x", "-n", f"127.0.0.1:{base}").returncode == 0
            finally:
                stopped = run("down", "--data", str(data))
            assert (stopped.returncode, stopped.stdout) == (0, "stopped\n")
            assert process.wait(30) == 0
        assert bystander.poll() is None


@pytest.mark.parametrize(
    ("error", "code", "words"), [(ProcessLookupError, 0, ""), (PermissionError, 1, "another user")]
)
def test_down_of_a_process_that_cannot_be_told(
    error: type[OSError], code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """It has ended in this moment, or is not ours."""
    (tmp_path / "up.json").write_text('{"pid": 4194305}')  # more than a process id can be
    with (tmp_path / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def kill(pid: int, number: int) -> None:
            fcntl.flock(lock, fcntl.LOCK_UN)
            raise error

        monkeypatch.setattr(os, "kill", kill)
        assert down(tmp_path) == code
    assert words in capfd.readouterr().err


def is_held(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_bench_and_doctor(up: Callable[..., Up]) -> None:
    cluster = up()
    measured = run("bench", "--seconds", "0.3", "--size", "100", "-n", cluster.name_server)
    assert measured.returncode == 0, measured.stderr
    assert "sent" in measured.stdout and "consumed" in measured.stdout
    healthy = run("doctor", "-n", cluster.name_server, "--data", str(cluster.data))
    assert "fail" not in healthy.stdout, healthy.stdout
    assert f"name server {cluster.name_server} answers" in healthy.stdout
    assert f"broker-a answers at 127.0.0.1:{cluster.base + 3}" in healthy.stdout
    assert healthy.returncode == 0


async def test_clients_inside_and_outside_are_told_different_addresses(tmp_path: Path) -> None:
    """A name server and a broker with two listeners each: a client gets the broker's address for the listener it asked
    through, and doctor dials them all."""
    inside, outside = free_ports(), free_ports()
    async with Cluster(
        directory=tmp_path,
        name_server_settings={"listeners": f"outside://127.0.0.1:{outside}"},
        settings={
            "listeners": f"outside://127.0.0.2:{outside + 3}",
            "listenPort": inside + 3,
            "advertisedListeners": f"main://127.0.0.3:{inside + 3}",
            "bindAddress": "0.0.0.0",
        },
    ) as cluster:
        for asked, told in (
            (cluster.name_servers, f"127.0.0.3:{inside + 3}"),
            (f"127.0.0.1:{outside}", f"127.0.0.2:{outside + 3}"),
        ):
            async with Producer(asked, group="p") as producer:
                assert (await producer.send(Message("orders", b"x"))).status is SendStatus.SEND_OK
                assert producer.client.master("broker-a") == told
            found = await asyncio.to_thread(run, "doctor", "-n", asked)
            assert found.returncode == 0, found.stdout
            assert f"broker-a answers at {told}" in found.stdout
            assert found.stdout.count("answers at") == 2 and "warn  broker-a" not in found.stdout
            assert f"listener {'outside' if asked == cluster.name_servers else 'main'}, answers at" in found.stdout


# What goes wrong at a start: one sentence each, exit code not 0.


def one_sentence(found: subprocess.CompletedProcess[str], *words: str) -> None:
    said = [line for line in found.stderr.splitlines() if line.startswith(("aerobee", "mqbroker"))]
    assert found.returncode != 0
    assert len(said) == 1, found.stderr
    assert "Traceback" not in found.stderr
    for word in words:
        assert word in said[0], said[0]


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_a_taken_port(taken: int, tmp_path: Path) -> None:
    store = ("--store-path-root-dir", str(tmp_path / "store"))
    one_sentence(run("nameserver", "--listen-port", str(taken)), f"port {taken} on 127.0.0.1 is taken", "listenPort")
    one_sentence(run("broker", "--listen-port", str(taken), *store), f"port {taken} on 127.0.0.1 is taken")
    up = run("up", "--data", str(tmp_path / "data"), "--port-base", str(taken))
    assert up.returncode == 1 and f"port {taken}" in up.stderr and "--port-base" in up.stderr


def test_an_address_of_another_machine() -> None:
    one_sentence(run("nameserver", "--listen-port", "0", "--bind-address", "192.0.2.77"), "bindAddress")


def test_an_unwritable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    one_sentence(run("broker", "--listen-port", "0", "--store-path-root-dir", str(tmp_path / "file" / "store")), "file")
    up = run("up", "--data", str(tmp_path / "file"), "--port-base", str(free_ports()))
    assert up.returncode == 1 and str(tmp_path / "file") in up.stderr and "Traceback" not in up.stderr
    for command in (("up", "--background"), ("down",)):
        found = run(*command, "--data", str(tmp_path / "file"))
        assert (found.returncode, found.stderr.count("\n")) == (1, 1), found.stderr
        assert str(tmp_path / "file") in found.stderr


def test_a_store_that_another_process_holds(up: Callable[..., Up]) -> None:
    cluster = up()
    store = cluster.data / "broker" / "store"
    one_sentence(run("broker", "--listen-port", "0", "--store-path-root-dir", str(store)), str(store))


def test_an_unreachable_name_server(tmp_path: Path) -> None:
    """Commands fail at once; a broker that nobody needs yet gives up, one that holds messages goes on trying."""
    nobody = f"127.0.0.1:{free_ports()}"
    for command in (["send", "x"], ["consume", "--wait", "1"], ["bench", "--seconds", "0.1"]):
        failed = run(*command, "-n", nobody)
        one_sentence(failed, nobody)
        assert (failed.stdout, failed.stderr.count("\n")) == ("", 1), failed.stderr
    found = run("doctor", "-n", nobody)
    assert found.returncode == 1 and f"fail  name server {nobody} does not answer" in found.stdout
    new = ("--listen-port", "0", "--store-path-root-dir", str(tmp_path / "s"), "--name-server-wait-seconds", "1")
    one_sentence(run("broker", *new, "-n", f"{nobody};no.such.invalid:1"), nobody, "no.such.invalid", "namesrvAddr")
    one_sentence(run("broker", *new, "-n", "nowhere"), "namesrvAddr must be host:port")
    broker = subprocess.Popen([*AEROBEE, "broker", *new, "-n", nobody], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert broker.stdout is not None
        found_at = re.search(rb"listening on ([^ ,]+)", broker.stdout.readline())
        assert found_at is not None
        asyncio.run(send_straight(found_at[1].decode()))
        with pytest.raises(subprocess.TimeoutExpired):
            broker.wait(2)
    finally:
        broker.terminate()
        broker.communicate(timeout=30)
    assert broker.returncode == 0


async def send_straight(address: str) -> None:
    """A message to a broker that no name server knows."""
    pool = RemotePool()
    letters = dict(a="p", b="orders", c="TBW102", d="4", e="0", f="0", g="1", h="0", i="", j="0")
    command = RemotingCommand.request(RequestCode.SEND_MESSAGE_V2, body=b"x")
    command.ext_fields.update(letters)
    assert (await pool.invoke(address, command, 10)).code == ResponseCode.SUCCESS
    await pool.close()


def test_a_broker_starts_before_its_name_server(tmp_path: Path) -> None:
    base = free_ports()
    broker = subprocess.Popen(
        [*AEROBEE, "broker", "--listen-port", "0", "-n", f"127.0.0.1:{base}",
         "--store-path-root-dir", str(tmp_path / "s"), "--register-name-server-period", "1000",
         "--name-server-wait-seconds", "60"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    name_server = None
    try:
        assert broker.stdout is not None and "boot success" in broker.stdout.readline()
        name_server = subprocess.Popen(
            [*AEROBEE, "nameserver", "--listen-port", str(base)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        found = eventually(
            lambda: (found := run("doctor", "-n", f"127.0.0.1:{base}")).returncode == 0 and found,
            timeout_s=30,
            interval_s=0.3,
        )
        assert "answers at 127.0.0.1:" in found.stdout
    finally:
        for process in (broker, name_server):
            if process is not None:
                process.terminate()
                process.communicate(timeout=30)
    assert broker.returncode == 0


def test_settings_that_are_wrong(tmp_path: Path) -> None:
    file = tmp_path / "broker.conf"
    file.write_text("brokerNam=a\nlistenPort=0\n")
    found = run("broker", "-c", str(file))
    one_sentence(found, f"{file}:1: unknown key 'brokerNam'; the nearest known key is 'brokerName'")
    assert found.returncode == 2
    one_sentence(run("broker", "-c", str(tmp_path / "none.conf")), "none.conf", "No such file")
    one_sentence(run("broker", "--lisen-port", "1"), "'--lisen-port'; the nearest known argument is '--listen-port'")
    one_sentence(run("broker", "--bind-address", "no.such.invalid"), "no.such.invalid is neither an address")
    for name in ("..", "a" * 64):
        for daemon in ("broker", "nameserver"):
            store = ("--store-path-root-dir", str(tmp_path / "store")) if daemon == "broker" else ()
            found = run(daemon, "--listen-port", "0", "--bind-address", name, *store)
            one_sentence(found, "no host name", "bindAddress")
    file.write_text("storePathRootDir=/tmp/a\\u0000b\nlistenPort=0\n")
    one_sentence(run("broker", "-c", str(file)), "storePathRootDir", "zero byte")
    one_sentence(run("broker", "-n"), "-n needs a value")
    one_sentence(run("doctor", "-n", "foo"), "'foo' is not a name server address")
    found = run("doctor", "-n", "..:9876")
    assert (found.returncode, found.stderr) == (1, "")
    assert found.stdout.startswith("fail  name server ..:9876 does not answer")


def test_print_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "broker.conf"
    file.write_text("brokerName=b\nsendMessageThreadPoolNums=8\n")
    everything = run("broker", "-c", str(file), "-n", "a:1;b:2", "-p")
    assert everything.returncode == 0
    assert {"brokerName=b", "namesrvAddr=a:1;b:2", "listenPort=10911"} <= set(everything.stdout.splitlines())
    changed = run("broker", "-c", str(file), "-m")
    assert changed.stdout == "brokerName=b\n"
    assert "--listen-port" in run("broker", "-h").stdout


def test_the_figures_of_a_start(up: Callable[..., Up], tmp_path: Path) -> None:
    """First send served within a second of the start; an idle name server in 40 MiB, an idle broker in 60 MiB."""
    began = time.monotonic()
    cluster = up()
    took = time.monotonic() - began
    for name, limit in (("name_server", 40), ("broker", 60)):
        status = Path(f"/proc/{cluster.state[f'{name}_pid']}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        own_mib = sum(int(fields[part].split()[0]) for part in ("RssAnon", "RssShmem")) / 1024
        assert own_mib < limit, f"{name}: {own_mib:.1f} MiB"
    for ready in (cluster.data / "log").glob("*.log"):
        assert "Traceback" not in ready.read_text()
    assert took < 10
