"""What this repository promises about itself: who may import whom, what is public, what nobody calls, what is not used.

Each message says what to do instead.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "aerobee"

LAYERS = [
    {"cli"},
    {"console", "admin", "testing"},
    {"broker", "nameserver"},
    {"client", "sync"},
    {"net"},
    {"protocol"},
    {"errors", "options", "options_ignored", "clock", "log"},
]
"""Top to bottom; a module imports from its own layer's part and from those below."""
SEPARATE = [{"broker", "nameserver"}]
"""Parts of one layer that do not know each other."""
ENGINE_USERS = ("aerobee.broker.store", "aerobee.net", "aerobee.protocol.command", "aerobee.protocol.fastjson")
"""Where bytes cross into Rust."""


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package, by dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(), str(path))
    return found


@cache
def modules_of_tests() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text(), str(path))
        for path in sorted((ROOT / "tests").rglob("*.py"))
    }


def imports(tree: ast.Module, name: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything of ours that is imported, for types only or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "aerobee")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{name}:{node.lineno}: write the whole name (from aerobee.x import y), one search finds it"
            )
            if node.module is not None and node.module.split(".")[0] == "aerobee":
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def typing_only(tree: ast.Module) -> set[int]:
    """Lines under `if TYPE_CHECKING:`."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and dotted(node.test).endswith("TYPE_CHECKING")
        for item in node.body
        for line in range(item.lineno, (item.end_lineno or item.lineno) + 1)
    }


def part(name: str) -> str:
    """`aerobee.broker.topics` → `broker`; the package itself → ``."""
    return [*name.split("."), ""][1]


def layer(of: str) -> int | None:
    return next((number for number, parts in enumerate(LAYERS) if of in parts), None)


def test_imports_go_downwards() -> None:
    wrong = []
    for name, tree in modules().items():
        if name == "aerobee":
            continue  # the public names: checked below
        assert layer(part(name)) is not None, f"{name}: say in LAYERS where it stands"
        for line, target in imports(tree, name):
            here, there = part(name), part(target)
            if there in ("", "_engine") or here == there or layer(there) is None:
                continue
            if layer(there) < layer(here):  # type: ignore[operator]
                wrong.append(
                    f"{name}:{line} imports {target}, which stands above it: pass it in as an argument instead"
                )
            elif any({here, there} <= parts for parts in SEPARATE):
                wrong.append(f"{name}:{line} imports {target}: what both need belongs into protocol, net or client")
    assert not wrong, "\n".join(wrong)


def test_only_four_places_call_the_engine() -> None:
    """Others may name its types, where only a type checker looks."""
    wrong = [
        f"{name}:{line}: use the face of it in broker/store.py (messages) or protocol (frames, JSON)"
        for name, tree in modules().items()
        for line, target in imports(tree, name)
        if target.split(".")[1] == "_engine"
        and line not in typing_only(tree)
        and not any(name == user or name.startswith(user + ".") for user in ENGINE_USERS)
    ]
    assert not wrong, "\n".join(wrong)


def test_protocol_is_values_only() -> None:
    """No disk, no event loop, no connection: everything in protocol can be tested with bytes."""
    banned = {"asyncio", "ssl", "pathlib", "tempfile", "selectors", "subprocess"}
    wrong = [
        f"{name}:{node.lineno}: {alias.name} has no place in protocol; do it in net, or pass the result in"
        for name, tree in modules().items()
        if part(name) == "protocol"
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if (node.module if isinstance(node, ast.ImportFrom) and node.module else alias.name).split(".")[0] in banned
    ]
    assert not wrong, "\n".join(wrong)


def test_public_names_exist_and_are_explained() -> None:
    import aerobee

    assert aerobee.__all__ == sorted(aerobee.__all__), "keep __all__ sorted"
    for name in aerobee.__all__:
        value = getattr(aerobee, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"aerobee.{name} is public: it needs a docstring"
            if inspect.isclass(value):
                for member, function in inspect.getmembers(value, inspect.isfunction):
                    if not member.startswith("_") and function.__module__.startswith("aerobee"):
                        assert inspect.getdoc(function), f"aerobee.{name}.{member} is public: it needs a docstring"


def test_every_module_says_what_it_is() -> None:
    silent = [name for name, tree in modules().items() if tree.body and not ast.get_docstring(tree)]
    assert not silent, f"begin with a docstring: what it is, what it promises, what it leaves to others: {silent}"


def test_no_dead_files() -> None:
    """Every module is imported by another, started by a command, or shipped for users."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    started = {entry.partition(":")[0] for entry in project["scripts"].values()} | {
        "aerobee",
        "aerobee.cli.__main__",
        "aerobee.cli.manual",
    }
    started |= {name for name in modules() if part(name) == "testing"}
    # The vocabulary is whole, whether somebody uses a word of it yet or not.
    started |= {
        name for name in modules() if name.startswith(("aerobee.protocol.headers.", "aerobee.protocol.bodies."))
    }
    used: set[str] = set()
    for name, tree in modules().items():
        for _, target in imports(tree, name):
            used |= {target, target.rpartition(".")[0]} - {name}
    packages = {name for name in modules() if (ROOT / name.replace(".", "/")).is_dir()}
    dead = sorted(set(modules()) - used - started - packages)
    assert not dead, f"nobody imports these, delete them: {dead}"


def test_every_document_can_be_reached() -> None:
    """Starting at README.md, every file in docs/ is linked to, and every link leads somewhere."""
    seen: set[Path] = set()
    queue = [ROOT / "README.md"]
    while queue:
        page = queue.pop()
        if page in seen:
            continue
        seen.add(page)
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" in link or link.startswith("mailto:"):
                continue
            target = (page.parent / link).resolve()
            assert target.exists(), f"{page.relative_to(ROOT)} links to {link}, which does not exist"
            if target.suffix == ".md":
                queue.append(target)
    lost = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md") if page.resolve() not in seen)
    assert not lost, f"nobody finds these pages, link to them or delete them: {lost}"


def test_make_up_says_how_to_go_on_with_the_ports_and_the_data_it_was_given() -> None:
    def said(*variables: str) -> str:
        found = subprocess.run(
            ["make", "-n", "up", *variables],
            cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        echo = found.stdout[found.stdout.rindex('echo "') :].replace("\\\n", "")
        return re.sub(r"  +", " | ", " ".join(shlex.split(echo)[1:]))

    first = "a first message: .venv/bin/aerobee send hello --topic greetings"
    assert said() == f" | stop it: make down | log files: data/log | {first}"
    assert said("PORT_BASE=20000", "DATA=/tmp/x") == (
        f" | stop it: make down DATA=/tmp/x | log files: /tmp/x/log | {first} -n 127.0.0.1:20000"
    )


def test_the_manual_says_what_the_code_says() -> None:
    from aerobee.cli.manual import PAGES

    for name, page in PAGES.items():
        assert (ROOT / "docs" / name).read_text() == page(), f"docs/{name} is not what the tables say: make docs"


BANNED = {
    "os.system": "subprocess.run with a list: nothing is ever passed to a shell",
    "os.popen": "subprocess.run with a list: nothing is ever passed to a shell",
    "eval": "ast.literal_eval, or a parser",
    "exec": "a function",
    "pickle.loads": "msgspec: pickle runs whatever it is given",
    "pickle.load": "msgspec: pickle runs whatever it is given",
    "yaml.load": "msgspec",
    "asyncio.get_event_loop": "asyncio.get_running_loop()",
    "datetime.datetime.now": "clock.now_ms()",
    "datetime.datetime.utcnow": "clock.now_ms()",
    "datetime.now": "clock.now_ms()",
    "datetime.utcnow": "clock.now_ms()",
    "sys.exit": "return the exit code (only `__main__` ends the process)",
    "tempfile.mktemp": "tempfile.mkstemp",
}
BANNED_IN = {
    ("broker", "nameserver", "net", "client", "protocol"): {
        "print": "a logger: logging.getLogger('aerobee.…')",
        "time.sleep": "await clock.sleep(…): the loop must never be blocked",
        "breakpoint": "nothing",
    },
    ("broker", "nameserver"): {
        "time.time": "clock.now_ms(): a test moves the clock by hand",
        "time.time_ns": "clock.now_ms(): a test moves the clock by hand",
        "time.monotonic": "clock.monotonic(): a test moves the clock by hand",
        "asyncio.sleep": "clock.sleep(…): a test moves the clock by hand; asyncio.sleep(0) is fine",
    },
}

EXEMPT = {
    ("aerobee.broker.data_version", "time.time_ns"): "tables are made by people and tests, without a broker",
    ("aerobee.broker.registration", "asyncio.sleep"): "network retries run in real time, whatever the clock says",
}
"""(module, call) → why it may."""


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "?"


def calls(tree: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, dotted(node.func)


def main_only(tree: ast.Module) -> set[int]:
    """Lines under `if __name__ == "__main__":`."""
    return {
        line
        for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Compare) and dotted(node.test.left) == "__name__"
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def is_yield(call: ast.Call) -> bool:
    """`sleep(0)`: lets others run, waits for nothing."""
    return len(call.args) == 1 and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0


def test_banned_calls() -> None:
    wrong = []
    for name, tree in modules().items():
        banned = dict(BANNED)
        for parts, more in BANNED_IN.items():
            if part(name) in parts:
                banned |= more
        if name.endswith("__main__"):
            del banned["sys.exit"]
        for call, what in calls(tree):
            if (name, what) in EXEMPT or call.lineno in main_only(tree):
                continue
            if what in banned and not (what.endswith(".sleep") and is_yield(call)):
                wrong.append(f"{name}:{call.lineno}: instead of {what} use {banned[what]}")
            if any(word.arg == "shell" for word in call.keywords):
                wrong.append(f"{name}:{call.lineno}: nothing is ever passed to a shell, give the arguments as a list")
    assert not wrong, "\n".join(wrong)


def test_tests_do_not_sleep() -> None:
    """A blink (0.1 s) may pass; whoever needs more says on the line what it waits for: `# sleeps: …`."""
    wrong = []
    for name, tree in modules_of_tests().items():
        if not Path(name).name.startswith(("test_", "conftest")):
            continue  # a helper may be what waits
        lines = (ROOT / name).read_text().splitlines()
        for call, what in calls(tree):
            if what in ("time.sleep", "asyncio.sleep", "sleep") and "# sleeps: " not in lines[call.lineno - 1]:
                seconds = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else 1e9
                if isinstance(seconds, int | float) and seconds <= 0.1:
                    continue
                wrong.append(f"{name}:{call.lineno}: `await eventually(lambda: …)` ends the moment it is true")
    assert not wrong, "\n".join(wrong)


def test_nothing_is_left_for_later() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError|unimplemented!|todo!\(")
    wrong = [
        f"{path}:{number}: do it, or write an issue: {line.strip()[:80]}"
        for path in tracked("*.py", "*.pyi", "*.rs", "*.java", "Makefile", "*.toml")
        if path != "tests/unit/test_repository.py"
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_skips_say_why_and_tests_are_not_expected_to_fail() -> None:
    wrong = []
    for name, tree in modules_of_tests().items():
        for call, what in calls(tree):
            if what.endswith(("pytest.skip", "mark.skipif", "mark.skip")) and not (call.args or call.keywords):
                wrong.append(f"{name}:{call.lineno}: say what is missing on this machine")
            if what.endswith("mark.xfail"):
                wrong.append(f"{name}:{call.lineno}: mend it, or write an issue")
    assert not wrong, "\n".join(wrong)


def test_code_knows_no_machine() -> None:
    """What is written here works elsewhere: no path of the machine it was written on."""
    pattern = re.compile(r"/(work|home/\w+)/(main|shared|src)\b|/tmp/(aerobee|apache|load)\b")
    wrong = [
        f"{path}:{number}: {line.strip()[:80]}"
        for path in tracked("*.py", "*.rs", "*.java", "*.md", "*.toml", "*.xml", "Makefile", ".ci/run")
        if path != "tests/unit/test_repository.py"
        for number, line in enumerate((ROOT / path).read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not wrong, "use tmp_path, Path(__file__) or an option:\n" + "\n".join(wrong)


def test_the_stub_names_what_the_engine_has() -> None:
    """`make lint` compares signatures too; this is the quick half."""
    engine = importlib.import_module("aerobee._engine")
    stub = ast.parse((PACKAGE / "_engine.pyi").read_text())
    classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}
    functions = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    built = {name for name in dir(engine) if not name.startswith("_")}
    types = {target.id for node in stub.body if isinstance(node, ast.Assign) for target in node.targets
             if isinstance(target, ast.Name)}  # fmt: skip
    assert built - types == set(classes) | functions, "write _engine.pyi anew, or `make build`"
    for name, node in classes.items():
        described = {
            target
            for item in node.body
            for target in (
                [item.name]
                if isinstance(item, ast.FunctionDef)
                else [item.target.id]
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                else []
            )
            if not target.startswith("_")
        }
        has = {member for member in vars(getattr(engine, name)) if not member.startswith("_")}
        assert has == described, f"{name}: write _engine.pyi anew, or `make build`"


def test_dependencies_have_a_range() -> None:
    """A lower bound that works and an upper one that keeps tomorrow's release from breaking today's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    everything = project["dependencies"] + [d for group in project["optional-dependencies"].values() for d in group]
    open_ended = [d for d in everything if not re.search(r">=[\d.]+,<[\d.]+(; .+)?$", d)]
    assert not open_ended, f"write name>=low,<high: {open_ended}"


def test_daemons_import_little(tmp_path: Path) -> None:
    """What a person needs (typer, rich) and what a test needs has no place in a daemon's memory."""
    for module in ("aerobee.cli.nameserver", "aerobee.cli.broker"):
        code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
        found = subprocess.run(
            [importlib.import_module("sys").executable, "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        heavy = {"typer", "rich", "click", "pytest", "hypothesis", "unittest", "tempfile", "difflib"} & set(
            found.stdout.split()
        )
        assert not heavy, f"{module} imports {sorted(heavy)}: import it where it is used"


@cache
def tracked(*patterns: str) -> list[str]:
    """Files under version control; in an unpacked archive, all files."""
    listed = subprocess.run(["git", "ls-files", "--", *patterns], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git working tree")
    return [line for line in listed.stdout.splitlines() if (ROOT / line).exists()]
