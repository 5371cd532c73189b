"""What `mqnamesrv` and `mqbroker` share: command line, one sentence for a failed start, signals, graceful stop.

A daemon imports neither typer nor rich: its flags are made from the rows of its options (`--listen-port 10911`), read
by hand. It prints one line when it serves, and from then on only its log, to standard error. Exit codes: 0 stopped by
a signal, 1 could not start or failed, 2 the command line or a setting is wrong.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from aerobee import log
from aerobee.errors import AerobeeError
from aerobee.options import Options, OptionsError, Value, format_properties, nearest, to_text

_log = logging.getLogger("aerobee.cli")


class Server(Protocol):
    """What runs: started once, stopped once."""

    async def start(self) -> None: ...
    async def failed(self) -> str:
        """Returns, with a sentence, when there is no use in going on; as a rule never."""

    async def stop(self) -> None: ...


@dataclass(slots=True)
class CommandLine:
    """A daemon's command line, read but not checked."""

    file: str | None = None
    flags: dict[str, Value] = field(default_factory=dict)
    show: str = ""
    """`all` (-p), `changed` (-m), `help` (-h) or nothing."""
    level: str = "INFO"
    stop_at_eof: bool = False


class UsageError(ValueError):
    """The command line cannot be understood; the message is a sentence."""


def parse(arguments: list[str], rows: type[Options]) -> CommandLine:
    """Reads Apache's short flags and one long flag a setting, in kebab or Apache's spelling. Raises UsageError."""
    line = CommandLine()
    by_flag = {row.attribute.replace("_", "-"): name for name, row in rows.ROWS.items()} | {n: n for n in rows.ROWS}
    names = {"-c": "configFile", "-n": "namesrvAddr"}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if flag in ("-h", "--help"):
            line.show = "help"
        elif flag in ("-p", "--printConfigItem"):
            line.show = "all"
        elif flag in ("-m", "--printImportantConfig"):
            line.show = "changed"
        elif flag == "--stop-at-eof":
            line.stop_at_eof = True
        else:
            key = names.get(flag) or (flag.removeprefix("--") if flag.startswith("--") else "")
            if key not in ("configFile", "log-level") and key not in by_flag:
                known = ["--" + name for name in ("configFile", "log-level", "help", *by_flag)]
                near = nearest(flag, known, "argument") if flag.startswith("--") else ""
                raise UsageError(f"unknown argument {word!r}{near}; -h lists them all")
            if not equals:
                if not rest:
                    raise UsageError(f"{flag} needs a value")
                value = rest.pop(0)
            if key == "configFile":
                line.file = value
            elif key == "log-level":
                line.level = value.upper()
                if line.level not in log.LEVELS:
                    raise UsageError(f"--log-level must be one of {', '.join(log.LEVELS)}")
            else:
                line.flags[by_flag[key]] = value
    return line


def usage(program: str, what: str, rows: type[Options]) -> str:
    """The help text, from the rows."""
    lines = [
        f"usage: {program} [-c FILE] {'[-n ADDRESS[;ADDRESS...]] ' if 'namesrvAddr' in rows.ROWS else ''}"
        "[-p | -m] [--SETTING VALUE ...]",
        "",
        what,
        "",
        "  -c FILE             settings in Apache RocketMQ's .properties form",
    ]
    if "namesrvAddr" in rows.ROWS:
        lines.append("  -n ADDRESS          name servers, separated by semicolons")
    lines += [
        "  -p                  print all settings and leave",
        "  -m                  print the settings that differ from their defaults and leave",
        "  --log-level LEVEL   DEBUG, INFO, WARNING or ERROR",
        "",
        f"Settings, also from the environment as {rows.ENVIRONMENT}<SETTING>:",
        "",
    ]
    for row in rows.ROWS.values():
        default = to_text(row.value())
        lines.append(f"  --{row.attribute.replace('_', '-')} ({default or 'not set'})")
        lines.append(f"      {row.about}")
    return "\n".join(lines)


def run(
    program: str,
    what: str,
    rows: type[Options],
    make: Callable[[Options], Server],
    describe: Callable[[Server, Options], str],
    arguments: list[str],
) -> int:
    """The whole life of a daemon; returns its exit code. `describe` gives the ready line's text."""
    try:
        line = parse(arguments, rows)
        if line.show == "help":
            print(usage(program, what, rows))
            return 0
        options = rows.load(file=line.file, environ=os.environ, flags=line.flags)
        for name, value in options.items().items():
            if "\0" in to_text(value):
                raise OptionsError([f"{name} has a zero byte in it"])
    except UsageError as error:
        return _say(program, str(error), 2)
    except OptionsError as error:
        return _say(program, str(error), 2)
    if line.show:
        items = {name: to_text(value) for name, value in options.items().items()}
        if line.show == "changed":
            items = {name: text for name, text in items.items() if text != to_text(rows.ROWS[name].value())}
        print(format_properties(dict(sorted(items.items()))), end="")
        return 0

    log.to_stderr(line.level)
    for note in options.notes:
        _log.info("%s", note)
    _raise_open_files()
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(program, make, describe, options, stop_at_eof=line.stop_at_eof))
    except AerobeeError as error:
        return _say(program, str(error), 1)
    except OSError as error:
        return _say(program, explain(error), 1)


async def _serve(
    program: str,
    make: Callable[[Options], Server],
    describe: Callable[[Server, Options], str],
    options: Options,
    *,
    stop_at_eof: bool,
) -> int:
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def ask() -> None:
        if asked.is_set():  # asked twice: do not wait for anything
            os._exit(1)
        asked.set()

    def hang_up() -> None:
        """Its terminal was closed. Shell and system may both tell of it: the second time says nothing new."""
        asked.set()
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # it is, under nohup
        loop.add_signal_handler(signal.SIGHUP, hang_up)
    if stop_at_eof:  # whoever started us holds the other end, and closes it by ending in whatever way

        def at_eof() -> None:
            if not os.read(0, 4096):
                loop.remove_reader(0)
                asked.set()

        loop.add_reader(0, at_eof)

    gc.disable()  # a start makes what stays: with 10,000 topics looking at it again and again took 40 ms
    server = make(options)
    starting = asyncio.ensure_future(server.start())
    stopping = asyncio.ensure_future(asked.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
    try:
        await starting
    except asyncio.CancelledError:
        await server.stop()
        return 0
    except BaseException:
        stopping.cancel()
        await server.stop()
        raise
    finally:
        gc.enable()
    gc.freeze()  # what lives as long as the process is never looked at again; a start leaves no garbage
    print(f"{describe(server, options)}, pid {os.getpid()}, after {_age_ms()} ms", flush=True)
    failing = asyncio.ensure_future(server.failed())
    await asyncio.wait((stopping, failing), return_when=asyncio.FIRST_COMPLETED)
    _log.info("%s is stopping", program)
    await server.stop()
    if not stopping.done() and failing.done():
        stopping.cancel()
        return _say(program, failing.result(), 1)
    failing.cancel()
    return 0


def explain(error: OSError) -> str:
    """One sentence about why a socket or a file could not be had."""
    text = error.strerror or str(error)
    if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES) and not error.filename:
        found = re.search(r"\('(?P<host>[^']*)', (?P<port>\d+)", str(error))
        where = f"port {found['port']} on {found['host']}" if found else "the port"
        if error.errno == errno.EADDRINUSE:
            return f"{where} is taken by another process; stop that one or choose another listenPort"
        if error.errno == errno.EADDRNOTAVAIL:
            host = found["host"] if found else "bindAddress"
            return f"{host} is not an address of this machine; correct bindAddress"
        return f"{where} may not be used by this user; choose a listenPort above 1023"
    if error.filename:
        return f"cannot use {Path(os.fsdecode(error.filename))}: {text}"
    return text


def _age_ms() -> int:
    """Milliseconds since this process was started, interpreter and imports included; good to 10 ms."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return round((time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")) * 1000)


def _say(program: str, sentences: str, code: int) -> int:
    for sentence in sentences.splitlines():
        print(f"{program}: {sentence}", file=sys.stderr)
    return code


def _raise_open_files() -> None:
    """Takes as many open files as the system allows us: connections and store files share them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError) as error:
            _log.warning("the limit of open files stays at %d: %s", soft, error)
