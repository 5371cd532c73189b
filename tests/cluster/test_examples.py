"""Every example of the README and the client's manual, run as it is written, each as a program of its own.

An example may go on for ever (a consumer's loop does): it passes when it has shown what is expected of it, or runs on
without a complaint after a while. Changed are only the name server's address and the group's name: each has a group of
its own, or they would take the messages from each other.
"""

from __future__ import annotations

import asyncio
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from aerobee.testing.plugin import MakeCluster

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/client.md")
AROUND = """
import asyncio, time
from aerobee import Consumer, Message, Producer, PullConsumer, Retry
from aerobee.client.offsets import *
yesterday_ms = int(time.time() * 1000) - 86_400_000
async def ready(body): print("handled", body); return True
class table:
    async def load(queue): return None
    async def save(offsets): print("saved", offsets)
"""
"""What the text around the examples has said before: imports of the page's head, and the application's own names."""

SHOWN = {
    "README.md 1": r"SEND_OK[\s\S]*b'42'",
    "docs/client.md 1": "SEND_OK",
    "docs/client.md 3": "handled b'",
}
"""What an example prints when it works; the others only have to run."""
STILL_RUNS_S = 4.0


def examples() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
        for number, block in enumerate(blocks, 1):
            yield f"{page} {number}", block


def program(name: str, block: str, name_servers: str) -> str:
    """A block with top-level `await` becomes the body of a coroutine; the rest stays as it is."""
    block = block.replace("127.0.0.1:9876", name_servers)
    own = re.sub(r"\W", "-", name)
    block = re.sub(r'group="(\w+)"', rf'group="\1-{own}"', block)
    try:
        compile(block, "example", "exec")
    except SyntaxError:
        block = f"async def example():\n{textwrap.indent(block, '    ')}\nasyncio.run(example())\n"
    return block


async def run(name: str, block: str, name_servers: str) -> str:
    """What is wrong with an example; empty when nothing is."""
    around = "" if block.startswith("import") else AROUND
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-u", "-X", "dev", "-W", "error", "-c", around + program(name, block, name_servers),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    said, wanted = "", SHOWN.get(name)
    try:
        async with asyncio.timeout(30 if wanted else STILL_RUNS_S):
            while not (wanted and re.search(wanted, said)):
                data = await process.stdout.read(4096)
                if not data:
                    break
                said += data.decode()
            else:
                return ""
        errors = (await process.stderr.read()).decode()
        return "" if await process.wait() == 0 and not wanted else f"{name}: {said}\n{errors}"
    except TimeoutError:
        if wanted:
            return f"{name} does not show {wanted!r}: {said}"
        process.kill()
        # A step of the event loop under a second is how busy this machine is, not what the example does.
        errors = re.sub(r"^Executing .* took 0\.\d+ seconds\n", "", (await process.stderr.read()).decode(), flags=re.M)
        return errors and f"{name}: {errors}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_the_examples_run(clusters: MakeCluster) -> None:
    cluster = await clusters()
    await cluster.create_topic("orders")
    found = dict(examples())
    assert len(found) >= 7
    skipped = {name for name, block in found.items() if "def test_" in block}  # a test: see test_testing.py
    problems = [
        await run(name, found[name], cluster.name_servers) for name in list(found)[:2]
    ]  # they send what others read
    problems += await asyncio.gather(
        *(run(name, block, cluster.name_servers) for name, block in list(found.items())[2:] if name not in skipped)
    )
    assert not any(problems), "\n".join(problem for problem in problems if problem)


def test_the_example_of_a_test_passes(pytester: pytest.Pytester) -> None:
    """The plugin in a project of somebody else, which has nothing but what the page says."""
    section = (ROOT / "docs/client.md").read_text().partition("## In tests\n")[2].partition("\n## ")[0]
    conftest, settings, block = re.findall(r"^```\w+\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    pytester.makeconftest(conftest)
    pytester.makepyprojecttoml(settings)
    pytester.makepyfile(block)
    pytester.runpytest_subprocess("-q", timeout=60).assert_outcomes(passed=1)
