"""Pages of the manual that are made from tables in the code: `make docs` writes them, a test compares them.

python -m aerobee.cli.manual docs/
"""

from __future__ import annotations

import sys
from pathlib import Path

from aerobee.broker.handlers import HANDLERS as broker_handlers
from aerobee.broker.options import BrokerOptions
from aerobee.nameserver.dispatch import HANDLERS as nameserver_handlers
from aerobee.nameserver.options import NameServerOptions
from aerobee.options import Options, Row, bound_text, to_text
from aerobee.protocol.codes import ROWS, RequestCode

CLIENT = (
    RequestCode.NOTIFY_CONSUMER_IDS_CHANGED,
    RequestCode.GET_CONSUMER_RUNNING_INFO,
    RequestCode.CONSUME_MESSAGE_DIRECTLY,
    RequestCode.RESET_CONSUMER_CLIENT_OFFSET,
    RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT,
)
"""What the Python client answers when a broker asks."""

GENERATED = "<!-- Written by `make docs` from the tables in the code; change those. -->\n"


def settings() -> str:
    """docs/settings.md."""
    out = [
        GENERATED,
        "# Settings",
        "",
        "Keys, files and meaning are those of Apache RocketMQ. Later sources win: the default, the file given with",
        "`-c`, the environment, a flag (`--listen-port 10911`). An unknown key is an error that names the nearest one.",
        "",
        "- *live*: a change over the wire (`mqadmin updateBrokerConfig`) works at once. It is kept for the next start",
        "  in the file given with `-c` (the name server: or in `configStorePath`); the reply says when there is none.",
        "- *restart*: a change over the wire is kept in that file and counts from the next start; it is refused when",
        "  there is none.",
        "- *file*: the setting names a path, an address or an identity and can only be changed on the machine itself.",
        "",
    ]
    for title, options in (("Broker", BrokerOptions), ("Name server", NameServerOptions)):
        out += [f"## {title}", "", f"Environment: `{options.ENVIRONMENT}LISTEN_PORT` and so on.", ""]
        out += _table(options)
        out += ["", f"### Accepted without effect ({title.lower()})", ""]
        out += _ignored(options)
        out += ["", f"### Refused unless harmless ({title.lower()})", ""]
        for key, refusal in sorted(options.REFUSED.items()):
            accepted = ", ".join(f"`{value}`" for value in refusal.harmless if value) or "empty"
            out.append(f"- `{key}`: {refusal.reason}; accepted: {accepted}")
        out.append("")
    return "\n".join(out)


def _table(options: type[Options]) -> list[str]:
    lines = ["| key | default | allowed | change | |", "|---|---|---|---|---|"]
    for row in options.ROWS.values():
        default = (
            "*of the machine*" if row.factory is not None else f"`{to_text(row.default)}`" if row.default != "" else ""
        )
        change = "live" if row.live and row.remote else "restart" if row.remote else "file"
        lines.append(f"| `{row.name}` | {default} | {_allowed(row)} | {change} | {row.about} |".replace("  ", " "))
    return lines


def _allowed(row: Row) -> str:
    if row.kind is bool:
        return "true, false"
    if row.choices:
        return ", ".join(row.choices)
    if row.low is not None and row.high is not None:
        return f"{bound_text(row.low)} to {bound_text(row.high)}"
    if row.low is not None:
        return f"from {bound_text(row.low)}"
    if row.high is not None:
        return f"to {bound_text(row.high)}"
    return "a number" if row.kind in (int, float) else "text"


def _ignored(options: type[Options]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for key, reason in options.IGNORED.items():
        if key not in options.ROWS and key not in options.REFUSED:
            by_reason.setdefault(reason, []).append(key)
    return [
        f"- {reason}: {' '.join(f'`{key}`' for key in sorted(keys, key=str.lower))}"
        for reason, keys in by_reason.items()
    ]


def requests() -> str:
    """docs/requests.md."""
    out = [
        GENERATED,
        "# Requests",
        "",
        "Every request code that a server or the client of RocketMQ 5.5 answers, and who answers it here; `-`: the",
        "answer is REQUEST_CODE_NOT_SUPPORTED. Left out are its codes that nobody there answers any more.",
        "",
        "| code | name | Apache's servers | aerobee |",
        "|---|---|---|---|",
    ]
    answerers = (("name server", nameserver_handlers), ("broker", broker_handlers), ("client", CLIENT))
    for number, row in sorted(ROWS.items()):
        if not row.servers:
            continue  # a number that nobody answers any more
        ours = [name for name, handlers in answerers if number in handlers]
        theirs = ", ".join(server.value for server in row.servers)
        out.append(f"| {number} | {row.name} | {theirs} | {', '.join(ours) or '-'} |")
    return "\n".join(out) + "\n"


PAGES = {"settings.md": settings, "requests.md": requests}


def main(directory: Path) -> int:
    """Writes the pages; returns the exit code."""
    for name, page in PAGES.items():
        (directory / name).write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
