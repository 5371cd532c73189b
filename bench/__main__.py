"""`make bench`: every workload against Apache RocketMQ and against ours in one run, and whether the budgets hold.

    .venv/bin/python -m bench [--seconds 3] [--only PATTERN] [--quick] [--alone] [--no-extras] [--write]

`--write` puts the tables into bench/README.md. The exit code is 1 when a budget is missed. Stores go to
bench/results, which is removed again; about 10 GB are needed for a moment.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from bench import extras, load, mechanisms, pop, workloads
from bench.load import Figures, median
from bench.servers import KINDS, apache, server
from bench.workload import Workload

HERE = Path(__file__).parent
RESULTS = HERE / "results"
MARKS = ("<!-- figures begin -->", "<!-- figures end -->")


def main() -> int:
    global RESULTS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3, help="how long each of three runs is measured")
    parser.add_argument("--only", default="", help="names that match this regular expression")
    parser.add_argument("--no-extras", action="store_true", help="only the loads")
    parser.add_argument("--write", action="store_true", help="write the tables into bench/README.md")
    parser.add_argument("--quick", action="store_true", help="one run of a second each, to see that it works")
    parser.add_argument("--alone", action="store_true", help="aerobee without Apache RocketMQ and without budgets")
    parser.add_argument("--results", type=Path, help="where stores are put and removed (default: bench/results)")
    options = parser.parse_args()
    if options.quick:
        options.seconds = 1
    if options.results:
        RESULTS = options.results
    reason = None if options.alone else apache.unavailable()
    if reason:
        print(f"no comparison: {reason}", file=sys.stderr)
        return 2
    load.build()
    shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir(parents=True)
    try:
        text, held = measure(
            options.seconds,
            re.compile(options.only),
            extras_too=not options.no_extras and not options.alone,
            alone=options.alone,
            turns=1 if options.quick or options.alone else 3,
        )
    finally:
        shutil.rmtree(RESULTS, ignore_errors=True)
    print(text)
    if options.write:
        write(text)
    return 0 if held else 1


def measure(
    seconds: int, only: re.Pattern[str], *, extras_too: bool, alone: bool = False, turns: int = 3
) -> tuple[str, bool]:
    """Runs all that match; the tables, and whether every budget held."""
    chosen = [one for one in every_workload() if only.search(one.name)]
    figures: dict[tuple[str, str], Figures] = {}
    groups: list[dict[str, object]] = []
    for one in chosen:
        if dict(one.options) not in groups:
            groups.append(dict(one.options))
    for settings in groups:
        these = [each for each in chosen if dict(each.options) == settings]
        # Apache's stays up, since a JVM wants to be warm; ours starts anew for every run, so that the files of one
        # run do not burden the next.
        with server("apache", RESULTS / "apache", settings) if not alone else nullcontext() as theirs:
            if theirs is not None:
                say("apache: warm-up")
                extras.warm(theirs)
            for one in these:
                found: dict[str, list[Figures]] = {kind: [] for kind in KINDS}
                for turn in range(turns):
                    for kind in KINDS if turn % 2 == 0 else KINDS[::-1]:
                        if kind == "aerobee":
                            with theirs.aside() if theirs else nullcontext():
                                with server(kind, RESULTS / kind, settings) as mine:
                                    found[kind].append(one.run(mine, seconds))
                        elif theirs is not None:
                            theirs.quiet()
                            found[kind].append(one.run(theirs, seconds))
                for kind, runs in found.items():
                    figures[kind, one.name] = median(runs) if runs else Figures(0, 0, 0, 0, 0, 0, 0)
                    say(f"{kind}: {one.name}: {figures[kind, one.name].rate:,} msg/s")
                    if figures[kind, one.name].why_refused:
                        say(f"{kind}: {one.name}: refused: {figures[kind, one.name].why_refused}")
    if alone:
        plain = [f"{one.name}: {figures['aerobee', one.name]}" for one in chosen]
        return "\n".join(plain), all(figures["aerobee", one.name].rate > 0 for one in chosen)
    lines, held = loads_table(chosen, figures)
    if extras_too:
        parts: list[tuple[str, Callable[[], list[extras.Row]]]] = [
            ("idle", lambda: extras.idle(RESULTS)),
            ("connections", lambda: extras.connections(RESULTS)),
            ("topics", lambda: extras.many_topics(RESULTS)),
            ("rolls", lambda: extras.rolls(RESULTS, seconds)),
            ("backlog", lambda: extras.backlog(RESULTS, seconds)),
            ("pop", lambda: pop.rows(RESULTS, seconds)),
            ("mechanisms", lambda: mechanisms.rows(RESULTS, seconds)),
        ]
        rows: list[extras.Row] = []
        for name, part in parts:
            if only.search(name):
                say(name)
                rows += part()
        lines += ["", "| what | Apache | aerobee | bound | |", "|---|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        held = held and all(row[-1] != "missed" for row in rows)
    return "\n".join([*machine(seconds), "", *lines]), held


def every_workload() -> list[Workload]:
    """The workloads of the files in bench/workloads, in the design's order."""
    order = ["send_1k", "send_100b", "send_64x1", "send_1x1", "send_batch", "pull_32", "sync_4x64", "sync_1x1"]
    names = [module.name for module in pkgutil.iter_modules(workloads.__path__)]
    names.sort(key=lambda name: (order.index(name) if name in order else len(order), name))
    return [importlib.import_module(f"bench.workloads.{name}").WORKLOAD for name in names]


def loads_table(chosen: list[Workload], figures: dict[tuple[str, str], Figures]) -> tuple[list[str], bool]:
    """Markdown rows: each figure as Apache's → ours, the ratio, its bound and whether it holds."""
    lines = [
        "| load | messages a second | ratio | CPU a message, µs | ratio | p50, µs | ratio | p99, µs | ratio | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    all_hold = True
    for one in chosen:
        theirs, mine = figures["apache", one.name], figures["aerobee", one.name]
        budget = one.budget
        rate, rate_ok = ratio(mine.rate, theirs.rate, budget.rate, least=True)
        cpu, cpu_ok = ratio(mine.cpu_us, theirs.cpu_us, budget.cpu)
        p50, p50_ok = ratio(mine.p50_us, theirs.p50_us, budget.p50)
        p99, p99_ok = ratio(mine.p99_us, theirs.p99_us, budget.p99)
        holds = rate_ok and cpu_ok and p50_ok and p99_ok and mine.refused == 0
        all_hold = all_hold and holds
        refused = f", refused {theirs.refused:,} → {mine.refused:,}" if theirs.refused or mine.refused else ""
        cells = [
            one.name,
            f"{theirs.rate:,} → {mine.rate:,}{refused}",
            rate,
            f"{theirs.cpu_us:.2f} → {mine.cpu_us:.2f}",
            cpu,
            f"{theirs.p50_us:,} → {mine.p50_us:,}",
            p50,
            f"{theirs.p99_us:,} → {mine.p99_us:,}",
            p99,
            extras.verdict(holds),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines, all_hold


def ratio(mine: float, theirs: float, bound: float | None, *, least: bool = False) -> tuple[str, bool]:
    """The ratio with its bound in words, and whether it holds."""
    value = mine / theirs if theirs else 0.0
    if bound is None:
        return f"{value:.2f}", True
    holds = value >= bound if least else value <= bound
    sign = "≥" if least else "≤"
    return f"{'' if holds else '**'}{value:.2f}{'' if holds else '**'} ({sign} {bound:.2f})", holds


def machine(seconds: int) -> list[str]:
    """Where and when."""
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", text)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    java = subprocess.run(["java", "-version"], capture_output=True, text=True).stderr.splitlines()[0]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    return [
        f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} "
        f"{platform.release()}; {java}; Python {platform.python_version()}; "
        f"commit {commit.stdout.strip()}, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC, "
        f"medians of runs of {seconds} s in turn.",
    ]


def write(text: str) -> None:
    """Puts the tables between the marks in bench/README.md."""
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    readme.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
