"""The official clients, each in one process that serves many commands: see java/.../Program.java and go/main.go."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import apache

Reply = dict[str, Any]


class CommandFailed(Exception):
    """The program answered with an error; the text names the Java exceptions."""


class Program:
    """Commands to a running program, a JSON object a line each way; safe to use from several threads."""

    def __init__(
        self, command: list[str], directory: Path, *, log: str = "client.log", env: Mapping[str, str] | None = None
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / log
        self._log_file = self.log.open("ab")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log_file,
            cwd=directory,  # some commands leave files where they are run
            env={**os.environ, **(env or {})},
            text=True,
            bufsize=1,
            preexec_fn=apache.die_with_parent,
        )
        self._ids = itertools.count(1)
        self._waiting: dict[int, Future[Reply]] = {}
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start(self, do: str, /, **arguments: object) -> Future[Reply]:
        """Sends a command; the future has its reply."""
        number = next(self._ids)
        future: Future[Reply] = Future()
        assert self._process.stdin is not None
        with self._lock:
            self._waiting[number] = future
            self._process.stdin.write(json.dumps({"id": number, "do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        return future

    def do(self, do: str, /, *, wait_s: float = 100.0, **arguments: object) -> Reply:
        """Sends a command and waits for its reply; raises `CommandFailed`."""
        return self.start(do, **arguments).result(wait_s)

    def stand_still(self) -> None:
        """SIGSTOP, as a machine that hangs for a while."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: its clients say nothing, their connections just end."""
        self._process.kill()
        self._process.wait()
        self._log_file.close()

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log_file.close()
        shutil.rmtree(apache.temporary(self.log.parent, self.log.name), ignore_errors=True)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                reply = json.loads(line)
            except ValueError:
                break
            future = self._waiting.pop(reply.pop("id"))
            if "error" in reply:
                future.set_exception(CommandFailed(reply["error"]))
            else:
                future.set_result(reply)
        tail = self.log.read_text(errors="replace")[-2000:]
        for future in self._waiting.values():
            future.set_exception(CommandFailed(f"the program ended: {tail}"))


class Client(Program):
    """The Java client and mqadmin."""

    def __init__(self, directory: Path, *, jvm: tuple[str, ...] = apache.SMALL_JVM, log: str = "client.log") -> None:
        classpath = apache.classpath()
        options = (*apache.java_home(directory, log), f"-Drocketmq.client.logRoot={directory / 'logs'}")
        command = ["java", *jvm, *apache.quick_start(), *options, "-cp", classpath, "aerobee.Program"]
        super().__init__(command, directory, log=log)

    def admin(self, *args: str) -> str:
        """What `mqadmin` prints for these arguments."""
        output: str = self.do("admin", args=list(args))["output"]
        return output
