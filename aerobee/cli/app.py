"""The commands for people, with typer; each lives in a file of its own and is imported when it is called."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="A message broker that speaks RocketMQ.",
)

NameServers = Annotated[
    str, typer.Option("--name-server", "-n", envvar="NAMESRV_ADDR", help="Name servers, separated by semicolons.")
]
Data = Annotated[Path, typer.Option(help="Where the cluster keeps everything: messages, settings, log files.")]
LOCAL = "127.0.0.1:9876"
HOME = Path("~/.aerobee")


@app.command()
def up(
    data: Data = HOME,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete what an earlier run has left there.")] = False,
    port_base: Annotated[
        int | None,
        typer.Option(min=1024, max=65000, help="Name server here, broker on +3 and +1; else 9876, 10911, 10909."),
    ] = None,
    background: Annotated[bool, typer.Option("--background", help="Return when ready; stop it with `down`.")] = False,
    ready_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Start a name server and a broker on loopback, watch them, stop them together."""
    from aerobee.cli import up as cluster

    place = data.expanduser().absolute()
    if background:
        raise typer.Exit(cluster.up_in_background(place, fresh=fresh, port_base=port_base))
    ready = os.fdopen(ready_fd, "w") if ready_fd is not None else None
    raise typer.Exit(cluster.up(place, fresh=fresh, port_base=port_base, ready=ready))


@app.command()
def down(data: Data = HOME) -> None:
    """Stop the cluster that `up --background` runs in a directory."""
    from aerobee.cli import up as cluster

    raise typer.Exit(cluster.down(data.expanduser().absolute()))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def nameserver() -> None:
    """Run a name server (mqnamesrv); `aerobee nameserver -h` lists its settings."""


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def broker() -> None:
    """Run a broker (mqbroker); `aerobee broker -h` lists its settings."""


@app.command()
def send(
    body: Annotated[list[str] | None, typer.Argument(help="Bodies; without any, the lines of standard input.")] = None,
    topic: Annotated[str, typer.Option("--topic", "-t", help="Where to.")] = "greetings",
    tag: Annotated[str, typer.Option(help="Tag of each message.")] = "",
    key: Annotated[list[str] | None, typer.Option(help="Key of each message; may be repeated.")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="How many times.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the sum.")] = False,
    name_server: NameServers = LOCAL,
) -> None:
    """Send messages and print where each went."""
    from aerobee.cli.send import send as run_send

    raise typer.Exit(run_send(name_server, topic, body or [], tag=tag, keys=key or [], repeat=repeat, quiet=quiet))


@app.command()
def consume(
    topic: Annotated[str, typer.Option("--topic", "-t", help="Where from.")] = "greetings",
    group: Annotated[str, typer.Option("--group", "-g", help="Whose progress the broker keeps.")] = "aerobee-cli",
    filter: Annotated[str, typer.Option(help="Tags to take: 'a || b', or '*'.")] = "*",
    count: Annotated[int, typer.Option(min=0, help="Leave after so many messages (0: never).")] = 0,
    wait: Annotated[float, typer.Option(min=0, help="Leave after so many seconds without a message (0: never).")] = 0.0,
    latest: Annotated[bool, typer.Option("--latest", help="A new group starts at the end.")] = False,
    name_server: NameServers = LOCAL,
) -> None:
    """Consume messages as a member of a group and print them."""
    from aerobee.cli.consume import consume as run_consume

    raise typer.Exit(run_consume(name_server, topic, group, filter=filter, count=count, wait_s=wait, latest=latest))


@app.command()
def bench(
    topic: Annotated[str, typer.Option("--topic", "-t", help="Created if it does not exist.")] = "aerobee-bench",
    size: Annotated[int, typer.Option(min=0, max=4_000_000, help="Bytes in a body.")] = 1024,
    seconds: Annotated[float, typer.Option(min=0.1, max=300.0, help="How long to send.")] = 5.0,
    in_flight: Annotated[int, typer.Option(min=1, max=10_000, help="Sends under way at the same time.")] = 256,
    name_server: NameServers = LOCAL,
) -> None:
    """Load a broker for a few seconds with the Python client: send, then consume, with latencies."""
    from aerobee.cli.bench import bench as run_bench

    raise typer.Exit(run_bench(name_server, topic, size=size, seconds=seconds, in_flight=in_flight))


@app.command()
def doctor(
    data: Annotated[Path | None, typer.Option(help="A store or data directory on this machine to look at.")] = None,
    name_server: NameServers = LOCAL,
) -> None:
    """Dial what a client would dial, look at disk, limits and clocks, and explain what is wrong."""
    from aerobee.cli.doctor import doctor as run_doctor

    raise typer.Exit(run_doctor(name_server, data.expanduser() if data else None))


def run() -> int:
    """Runs the command; returns the exit code."""
    from aerobee.cli.text import fail

    code = 0
    try:
        app(standalone_mode=True)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BrokenPipeError:  # `aerobee consume | head`
        code = 1
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:  # the interpreter would try again, and say so at length
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not code:
            code = 1 if isinstance(error, BrokenPipeError) else fail(f"the output cannot be written: {error.strerror}")
    return code
