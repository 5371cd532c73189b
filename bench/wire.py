"""Requests to a broker without a client: frames out, replies in, many at a time; and the CPU time of a process."""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

from aerobee._engine import Decoder, encode_frame

Request = tuple[int, dict[str, str], bytes]
"""Code, header fields, body."""


class Reply(NamedTuple):
    code: int
    remark: str | None
    fields: dict[str, str]
    body: bytes


class Wire:
    """One connection; its requests carry the version of Java's client 5.5.0."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), 30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._decoder = Decoder()
        self._waiting: list[Reply] = []
        self._opaque = 0

    def close(self) -> None:
        self._socket.close()

    def ask(self, code: int, fields: dict[str, str], body: bytes = b"") -> Reply:
        """One request and its reply."""
        return self.ask_all([(code, fields, body)])[0]

    def ask_all(self, requests: list[Request]) -> list[Reply]:
        """All requests at once, then their replies in the order of the requests."""
        frames = []
        for code, fields, body in requests:
            self._opaque += 1
            frames.append(encode_frame(code, 0, 513, self._opaque, 0, None, fields, body, 0))
        self._socket.sendall(b"".join(frames))
        first = self._opaque - len(requests) + 1
        replies: list[Reply | None] = [None] * len(requests)
        missing = len(requests)
        while missing:
            data = self._socket.recv(1 << 20)
            if not data:
                raise ConnectionError("the broker hung up")
            for code, _, _, opaque, flag, remark, fields, body, _ in self._decoder.feed(data):
                if not flag & 1:  # the broker's own request, a pushed reply: taken
                    self._socket.sendall(encode_frame(0, 0, 513, opaque, 1, None, {}, b"", 0))
                elif first <= opaque <= self._opaque:
                    replies[opaque - first] = Reply(code, remark, fields, body)
                    missing -= 1
        return [reply for reply in replies if reply is not None]

    def do_all(self, requests: list[Request]) -> list[Reply]:
        """`ask_all`; RuntimeError when one is refused."""
        replies = self.ask_all(requests)
        for reply in replies:
            if reply.code != 0:
                raise RuntimeError(f"refused with {reply.code}: {reply.remark}")
        return replies


def cpu_s(pid: int) -> float:
    """CPU seconds a process has used, user and system."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
