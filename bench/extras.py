"""What a load generator does not show: start, rest, many topics, rolling files, a backlog with readers."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import time
from pathlib import Path
from statistics import median

from bench import load
from bench.servers import KINDS, Server, apache, server
from bench.wire import Wire

Row = tuple[str, str, str, str, str]
"""What, Apache's figure, ours, the bound, "ok" or "missed" ("" where there is no bound)."""


MAX_OFFSET = 30
STARTS = 3
"""A start is measured so often, and the one in the middle counts."""


def verdict(holds: bool) -> str:
    return "ok" if holds else "missed"


def idle(directory: Path) -> list[Row]:
    """Start-up to the first send that is answered, then what an idle broker holds in memory after ten seconds."""
    start: dict[str, float] = {}
    memory: dict[str, float] = {}
    namesrv: dict[str, float] = {}
    for kind in KINDS:
        with server(kind, directory / kind) as one:
            start[kind] = one.start_ms
            time.sleep(10)
            memory[kind] = one.resident_mib()
            namesrv[kind] = Server(kind, "", directory, one.namesrv, one.namesrv, 0).resident_mib()
    mine, theirs = memory["aerobee"], memory["apache"]
    return [
        _row("start to first send, ms", start["apache"], start["aerobee"], "≤ 1000", start["aerobee"] <= 1000),
        _row("idle broker, MiB resident", theirs, mine, "≤ 60", mine <= 60),
        _row("idle name server, MiB resident", namesrv["apache"], namesrv["aerobee"], "≤ 40", namesrv["aerobee"] <= 40),
    ]


def connections(directory: Path, count: int = 10_000) -> list[Row]:
    """What a connection costs that has asked one thing and then says nothing: memory of the process's own."""
    cost: dict[str, float] = {}
    for kind in KINDS:
        with server(kind, directory / kind) as one:
            warm(one)
            before, wires = one.own_mib(), []
            try:
                for _ in range(count):
                    wires.append(Wire(one.address))
                    wires[-1].ask(MAX_OFFSET, {"topic": "Idle", "queueId": "0"})
                time.sleep(2)
                cost[kind] = 1024 * (one.own_mib() - before) / count
            finally:
                for wire in wires:
                    wire.close()
    name = f"{count:,} idle connections: KiB of its own each"
    held = verdict(cost["aerobee"] <= 20)
    return [(name, f"{cost['apache']:.1f}", f"{cost['aerobee']:.1f}", "≤ 20", held)]


def _row(what: str, theirs: float | None, mine: float, bound: str, holds: bool | None) -> Row:
    first = "" if theirs is None else f"{theirs:,.0f}"
    return what, first, f"{mine:,.0f}", bound, "" if holds is None else verdict(holds)


def many_topics(directory: Path, topics: int = 10_000, queues: int = 8) -> list[Row]:
    """A broker of ours with a message in every queue of many topics: start, memory, open files and maps."""
    name = "aerobee"
    bare: list[float] = []
    for _ in range(STARTS):
        with server(name, directory / "few") as one:
            bare.append(one.start_ms)
    place = directory / "many"
    config = place / "store" / "config"
    config.mkdir(parents=True)
    one_topic = {"readQueueNums": queues, "writeQueueNums": queues, "perm": 6, "topicFilterType": "SINGLE_TAG"}
    table = {f"Topic{n}": {"topicName": f"Topic{n}", **one_topic} for n in range(topics)}
    (config / "topics.json").write_text(json.dumps({"topicConfigTable": table, "dataVersion": {}}))
    with server(name, place, keep=True) as one:
        fill(one.address, topics, queues)
        clean_ms = time.monotonic()
        one.broker.stop(60)
        clean_ms = (time.monotonic() - clean_ms) * 1000
    starts: list[float] = []
    for _ in range(STARTS - 1):
        with server(name, place, keep=True) as one:
            starts.append(one.start_ms)
            one.broker.stop(60)
    with server(name, place) as one:
        starts.append(one.start_ms)
        own, resident = one.own_mib(), one.resident_mib()
        files = len(list(Path(f"/proc/{one.pid}/fd").iterdir()))
        maps = len(Path(f"/proc/{one.pid}/maps").read_text().splitlines())
        fill(one.address, topics, queues)  # every queue is opened again
        files_after = len(list(Path(f"/proc/{one.pid}/fd").iterdir()))
        maps_after = len(Path(f"/proc/{one.pid}/maps").read_text().splitlines())
        resident = max(resident, one.resident_mib())
    what = f"{topics:,} topics × {queues} queues"
    bare_ms, start_ms = median(bare), median(starts)
    bound = max(2 * bare_ms, bare_ms + 100)  # readiness is asked for every 50 ms
    return [
        _row(f"{what}: start to first send, ms", None, start_ms, f"≤ 2 × {bare_ms:.0f}", start_ms <= bound),
        _row(f"{what}: MiB resident after a send to each queue", None, resident, "≤ 300", resident <= 300),
        _row(f"{what}: MiB of its own after start", None, own, "", None),
        _row(f"{what}: open files after a send to each", None, max(files, files_after), "≤ 1024", files_after <= 1024),
        _row(f"{what}: maps after a send to each", None, max(maps, maps_after), "≤ 65530", maps_after <= 65530),
        _row(f"{what}: clean stop, ms", None, clean_ms, "", None),
    ]


def fill(address: str, topics: int, queues: int) -> None:
    """One message to every queue, 256 requests in flight."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as sock:
        frames = bytearray()
        waiting = 0
        reader = sock.makefile("rb")
        for number in range(topics * queues):
            topic, queue = f"Topic{number // queues}", number % queues
            fields = {"a": "fill", "b": topic, "c": "TBW102", "d": "8", "e": str(queue), "f": "0", "g": "0", "h": "0"}
            fields |= {"i": "", "j": "0", "k": "false", "m": "false"}
            request = {
                "code": 310,
                "language": "JAVA",
                "version": 513,
                "opaque": number,
                "flag": 0,
                "extFields": fields,
            }
            header = json.dumps(request).encode()
            frames += struct.pack(">II", 4 + len(header) + 10, len(header)) + header + b"0123456789"
            waiting += 1
            if waiting == 256 or number == topics * queues - 1:
                sock.sendall(frames)
                frames.clear()
                for _ in range(waiting):
                    size = struct.unpack(">I", reader.read(4))[0]
                    reply = reader.read(size)
                    header_size = struct.unpack(">I", reply[:4])[0] & 0xFFFFFF
                    if json.loads(reply[4 : 4 + header_size])["code"] != 0:
                        raise RuntimeError(f"a send to {topic} was refused: {reply[4 : 4 + header_size]!r}")
                waiting = 0


def rolls(directory: Path, seconds: int) -> list[Row]:
    """Sends at a steady pace while a commit log file of 64 MiB fills every three seconds: the slowest answers.

    The same with one file of 1 GiB tells what of it the machine does by itself.
    """
    found: dict[tuple[str, int], load.Figures] = {}
    for kind in KINDS:
        for mib in (64, 1024):
            with server(kind, directory / kind, {"mappedFileSizeCommitLog": mib * 1024 * 1024}) as one:
                warm(one)
                found[kind, mib] = load.paced(one.address, "Rolls", 4, 15_000, 1024, max(10, seconds), 8, one.pid)
    theirs, mine = found["apache", 64], found["aerobee", 64]
    theirs_one, mine_one = found["apache", 1024], found["aerobee", 1024]
    return [
        _row("rolling files at 15 k/s: p99.9, µs", theirs.p999_us, mine.p999_us, "≤ 10 000", mine.p999_us <= 10_000),
        _row("rolling files at 15 k/s: slowest, µs", theirs.max_us, mine.max_us, "", None),
        _row("rolling files at 15 k/s: p99, µs", theirs.p99_us, mine.p99_us, "", None),
        _row("the same within one file: p99.9, µs", theirs_one.p999_us, mine_one.p999_us, "", None),
        _row("the same within one file: slowest, µs", theirs_one.max_us, mine_one.max_us, "", None),
    ]


def backlog(directory: Path, seconds: int, messages: int = 1_000_000) -> list[Row]:
    """A million messages behind, then sends at a steady pace: alone, and beside four readers of the backlog."""
    rows: list[Row] = []
    found: dict[tuple[str, str], load.Figures] = {}
    for kind in KINDS:
        with server(kind, directory / kind) as one:
            warm(one)
            while stored(one, "Backlog") < messages:
                load.run(load.command("send", one.address, "Backlog", 4, 64, 1024, 3, 8, one.pid), batch=32)
            found[kind, "alone"] = load.paced(one.address, "Paced", 4, 10_000, 1024, seconds, 8, one.pid)
            words = load.command("pull", one.address, "Backlog", 4, 1, 1024, seconds + 4, 8, one.pid)
            # 1000 requests of 32 messages a second: catching up, not hammering.
            with subprocess.Popen(["env", "RATE=1000", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
                found[kind, "read"] = load.paced(one.address, "Paced", 4, 10_000, 1024, seconds, 8, one.pid)
    for case, what in (("alone", "sends at 10 k/s, million behind"), ("read", "the same, four readers of the backlog")):
        theirs, mine = found["apache", case], found["aerobee", case]
        rows.append(_row(f"{what}: p50, µs", theirs.p50_us, mine.p50_us, "", None))
        rows.append(_row(f"{what}: p99, µs", theirs.p99_us, mine.p99_us, "≤ Apache's", mine.p99_us <= theirs.p99_us))
    return rows


def stored(one: Server, topic: str) -> int:
    """Messages in the topic's eight queues."""
    total = 0
    for queue in range(8):
        header, _ = apache.call(one.address, 30, {"topic": topic, "queueId": str(queue)})
        total += int(header["extFields"]["offset"]) if header["code"] == 0 else 0
    return total


def warm(one: Server) -> None:
    """Sends and reads for a while uncounted: a JVM compiles what is hot. The same for both brokers."""
    seconds = 8 if one.kind == "apache" else 1
    numbers = (seconds, 8, one.pid)
    load.run(load.command("send", one.address, "Warm", 4, 64, 1024, *numbers))
    load.run(load.command("pull", one.address, "Warm", 4, 2, 1024, max(1, seconds // 2), 8, one.pid))
