"""`aerobee doctor`: does what a client would do, from where it stands, and explains what is in its way.

    name servers  → does each answer, do they agree on who is there
    brokers       → can the advertised address of each listener be dialled, does the right broker answer, at both ports
    each broker   → disk against its own limits, its clock against ours, whether it takes messages
    this machine  → room, open files, memory maps (for brokers that run here)

It only reads. Works with brokers of Apache RocketMQ too. Exit code 1 when something is wrong.
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from aerobee.cli.text import fail
from aerobee.client.client import parse_name_servers
from aerobee.errors import AerobeeError
from aerobee.net.addresses import is_loopback, named_addresses
from aerobee.net.remote import RemotePool
from aerobee.options import properties_dict
from aerobee.protocol.bodies.admin import KVTable
from aerobee.protocol.bodies.route import ClusterInfo
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand

DIAL_S = 3.0
UNREACHABLE = (AerobeeError, OSError)
"""What dialling raises."""
CLOCK_WARN_S = 5.0
"""Clocks further apart than this: delays and queries by time are visibly wrong. The measure is good to a second."""
EVERYWHERE = ("0.0.0.0:", "[::]:")
OPEN_FILES_LOW = 10_000
MAPS_LOW = 65_530
FREE_LOW_BYTES = 2 << 30
"""Two files of the commit log."""


@dataclass(slots=True)
class Report:
    """What was found, in the order it is shown."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    """(`ok`, `note`, `warn` or `fail`, sentence)."""

    def ok(self, sentence: str) -> None:
        self.lines.append(("ok", sentence))

    def note(self, sentence: str) -> None:
        self.lines.append(("note", sentence))

    def warn(self, sentence: str) -> None:
        self.lines.append(("warn", sentence))

    def fail(self, sentence: str) -> None:
        self.lines.append(("fail", sentence))

    @property
    def failed(self) -> bool:
        """Whether anything is broken; a warning is not."""
        return any(kind == "fail" for kind, _ in self.lines)


def doctor(name_servers: str, data: Path | None) -> int:
    """Examines and prints; returns the exit code."""
    try:
        report = asyncio.run(examine(name_servers, data))
    except ValueError as error:  # what is no address
        return fail(str(error))
    colours = {"ok": "32", "note": "36", "warn": "33", "fail": "31;1"}
    for kind, sentence in report.lines:
        mark = f"{kind:<4}"
        print(f"\033[{colours[kind]}m{mark}\033[0m  {sentence}" if sys.stdout.isatty() else f"{mark}  {sentence}")
    return 1 if report.failed else 0


async def examine(name_servers: str, data: Path | None = None) -> Report:
    """All checks; `data` is a directory on this machine whose room is looked at."""
    report = Report()
    pool = RemotePool()
    try:
        clusters = await _ask_name_servers(pool, parse_name_servers(name_servers), report)
        addresses: dict[str, dict[int, str]] = {}
        for cluster in clusters.values():
            for name, brokers in cluster.broker_addr_table.items():
                addresses.setdefault(name, {}).update(brokers.broker_addrs)
        if clusters and not addresses:
            report.fail("no broker is registered: start one with -n and the name server's address")
        remote = any(not is_loopback(address.rpartition(":")[0]) for address in clusters)
        for name, by_id in sorted(addresses.items()):
            if 0 not in by_id:
                report.warn(f"{name} has no master: its topics can be read but not written")
            for broker_id, address in sorted(by_id.items()):
                who = name if broker_id == 0 else f"{name} (slave {broker_id})"
                if remote and is_loopback(address.rpartition(":")[0]):
                    report.fail(
                        f"{who} tells clients to dial {address}: only clients on that machine reach it. Set brokerIP1 "
                        "(and bindAddress) to an address of that machine that your clients reach, and restart it; for "
                        "clients inside and outside, see listeners"
                    )
                await _ask_broker(pool, name, who, address, report)
    finally:
        await pool.close()
    _look_at_machine(report, data)
    return report


async def _ask_name_servers(pool: RemotePool, addresses: list[str], report: Report) -> dict[str, ClusterInfo]:
    """Dials each; returns what those that answer know, by address."""
    known: dict[str, ClusterInfo] = {}
    for address in addresses:
        began = time.perf_counter()
        try:
            reply = await pool.invoke(address, RemotingCommand.request(RequestCode.GET_BROKER_CLUSTER_INFO), DIAL_S)
            if reply.code != ResponseCode.SUCCESS:
                report.fail(f"name server {address} refuses: {reply.remark}")
                continue
            known[address] = ClusterInfo.from_json(reply.body or b"{}")
        except UNREACHABLE as error:
            report.fail(
                f"name server {address} does not answer ({error}). Is it started (mqnamesrv), is the port right, does "
                "it listen on that address (bindAddress), is a firewall in between?"
            )
            continue
        report.ok(f"name server {address} answers in {(time.perf_counter() - began) * 1000:.1f} ms")
    everyone = {name for cluster in known.values() for name in cluster.broker_addr_table}
    for address, cluster in known.items():
        for name in sorted(everyone - set(cluster.broker_addr_table)):
            report.warn(
                f"{name} is not registered at {address}: clients that ask there do not find it. List every name server "
                "in the broker's namesrvAddr"
            )
    return known


async def _ask_broker(pool: RemotePool, name: str, who: str, address: str, report: Report) -> None:
    config: dict[str, str] | None = None
    try:
        reply = await pool.invoke(address, RemotingCommand.request(RequestCode.GET_BROKER_CONFIG), DIAL_S)
        if reply.code == ResponseCode.SUCCESS:
            config = properties_dict((reply.body or b"").decode("utf-8", "replace"))
        else:
            report.note(f"{who} at {address} does not show its configuration: {reply.remark}")
    except UNREACHABLE as error:
        report.fail(
            f"{who} tells clients to dial {address}, and that fails from here ({error}). If the broker runs, set "
            "brokerIP1 to an address that clients reach (in containers and behind NAT: the outer one), bindAddress to "
            "one that includes it, and open the port"
        )
        return
    if config is None:
        report.ok(f"{who} answers at {address}")
        config = {}
    elif config.get("brokerName", name) != name:
        report.fail(
            f"at {address} answers {config['brokerName']}, not {who}: two brokers advertise the same address, or it "
            "belongs to another machine now. Correct brokerIP1 or listenPort"
        )
        return
    else:
        report.ok(f"{who} answers at {address}")
    if config.get("fastPort", "-1") in ("-1", str(int(address.rpartition(":")[2]) - 2)):  # else elsewhere on purpose
        await _dial_fast(address, who, report)
    for listener, other in _listeners(config).items():
        if other.startswith(EVERYWHERE) or other.endswith(":0"):
            report.note(
                f"{who}, listener {listener}, is not dialled: what its clients are told is not in the broker's "
                f"settings ({other}). Set advertisedListeners to have it looked at"
            )
        elif other != address:
            await _ask_listener(pool, name, f"{who}, listener {listener},", other, report)
    await _ask_runtime(pool, who, address, config, report)


def _listeners(config: dict[str, str]) -> dict[str, str]:
    """What the broker's further listeners advertise, as far as its configuration says."""
    return named_addresses(config.get("listeners", "")) | named_addresses(config.get("advertisedListeners", ""))


async def _ask_listener(pool: RemotePool, name: str, who: str, address: str, report: Report) -> None:
    """A listener that is for clients elsewhere need not be reachable from here: a warning at most."""
    try:
        reply = await pool.invoke(address, RemotingCommand.request(RequestCode.GET_BROKER_CONFIG), DIAL_S)
    except UNREACHABLE as error:
        report.warn(
            f"{who} advertises {address}, and that fails from here ({error}). If its clients stand where you do, "
            "correct listeners or advertisedListeners"
        )
        return
    found = properties_dict((reply.body or b"").decode("utf-8", "replace")).get("brokerName", name)
    if found != name:
        report.fail(f"{who} advertises {address}, where {found} answers: correct listeners or advertisedListeners")
        return
    report.ok(f"{who} answers at {address}")
    await _dial_fast(address, who, report)


async def _dial_fast(address: str, who: str, report: Report) -> None:
    """Clients with the VIP channel on send to the port two below."""
    host, _, port = address.rpartition(":")
    fast = int(port) - 2
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host.strip("[]"), fast), DIAL_S)
        writer.close()
    except (OSError, TimeoutError):
        report.warn(f"{who}: port {fast} cannot be dialled; clients with the VIP channel switched on send to it")


async def _ask_runtime(pool: RemotePool, who: str, address: str, config: dict[str, str], report: Report) -> None:
    try:
        asked_at = time.time()
        reply = await pool.invoke(address, RemotingCommand.request(RequestCode.GET_BROKER_RUNTIME_INFO), DIAL_S)
    except (AerobeeError, OSError) as error:
        report.warn(f"{who} does not tell its state ({error})")
        return
    if reply.code != ResponseCode.SUCCESS:
        report.note(f"{who} does not tell its state: {reply.remark}")
        return
    facts = KVTable.from_json(reply.body or b"{}").table
    here = _clock(facts)
    if here is not None and abs(here - asked_at) > CLOCK_WARN_S:
        report.warn(
            f"{who}: its clock is {abs(here - asked_at):.0f} s {'ahead of' if here > asked_at else 'behind'} "
            "this machine's; delays, retention and queries by time follow the broker's clock. Run NTP on both"
        )
    used = _float(facts.get("commitLogDiskRatio"))
    if used is not None and used >= 0:
        refuse = _float(config.get("diskSpaceWarningLevelRatio")) or 90.0
        clean = _float(config.get("diskMaxUsedSpaceRatio")) or 75.0
        percent = used * 100
        if percent >= refuse:
            report.fail(f"{who}: its disk is {percent:.0f} % full, above {refuse:.0f} % it refuses messages. Make room")
        elif percent >= clean:
            report.warn(f"{who}: its disk is {percent:.0f} % full; old files go early above {clean:.0f} %")
        else:
            report.ok(f"{who}: its disk is {percent:.0f} % full, messages are refused above {refuse:.0f} %")
    if config and not int(config.get("brokerPermission", "6")) & 2:
        report.warn(f"{who} takes no messages: brokerPermission is {config['brokerPermission']}")


def _look_at_machine(report: Report, data: Path | None) -> None:
    if data is not None:
        try:
            room = shutil.disk_usage(data)
        except OSError as error:
            report.fail(f"{data}: {error.strerror}")
        else:
            percent = room.used * 100 / room.total
            sentence = f"{data}: {room.free / 2**30:.1f} GiB free, {percent:.0f} % used"
            if room.free < FREE_LOW_BYTES:
                report.fail(f"{sentence}: too little for two more files of the commit log")
            else:
                report.ok(sentence)
            if not os.access(data, os.W_OK):
                report.fail(f"{data} cannot be written by this user")
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < OPEN_FILES_LOW:
        report.warn(
            f"this machine: a broker started from here may open {files} files; each connection and store file is one. "
            "Raise it (ulimit -Hn, LimitNOFILE=)"
        )
    else:
        report.ok(f"this machine: {'any number of' if files == resource.RLIM_INFINITY else files} open files a process")
    try:
        maps = int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return
    if maps < MAPS_LOW:
        report.warn(f"this machine: vm.max_map_count is {maps}; set it to {MAPS_LOW} or more (sysctl)")


def _clock(facts: dict[str, str]) -> float | None:
    """The broker's time in seconds, from when it started and for how long it runs; good to a second."""
    spans = re.findall(r"(\d+) (days|hours|minutes|seconds)", facts.get("runtime", ""))
    if len(spans) != 4 or not facts.get("bootTimestamp", "").isdigit():
        return None
    seconds = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
    return int(facts["bootTimestamp"]) / 1000 + sum(int(count) * seconds[unit] for count, unit in spans)


def _float(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
