"""What one message costs inside the engine: `Engine.feed` with chunks as the load generator sends them, no sockets.

    .venv/bin/python bench/engine_feed.py [--messages 300000]

CPU time of this process a message, the flusher's thread included; chunks of 64 sends, batches of 32, pulls of 32.
"""

import argparse
import shutil
import struct
import tempfile
import time
from collections.abc import Callable

from aerobee._engine import Engine, encode_frame

QUEUES = 8
PROPERTIES = "UNIQ_KEY\x017F00000100002A139A5B{opaque:012X}\x02WAIT\x01true\x02"


def send_frame(opaque: int, body: bytes, encoding: int) -> bytes:
    """A send as the Java client writes it."""
    fields = {
        "a": "load_g",
        "b": "load",
        "c": "TBW102",
        "d": "8",
        "e": str(opaque % QUEUES),
        "f": "0",
        "g": "1700000000000",
        "h": "0",
        "i": PROPERTIES.format(opaque=opaque),
        "j": "0",
        "k": "false",
        "m": "false",
        "n": "broker-a",
    }
    return encode_frame(310, 0, 453, opaque, 0, None, fields, body, encoding)


def batch_frame(opaque: int, body: bytes, encoding: int) -> bytes:
    """A batch of 32 as the Java client writes it."""
    inner = []
    for at in range(32):
        properties = PROPERTIES.format(opaque=opaque * 32 + at).encode()
        size = 22 + len(body) + len(properties)
        inner.append(struct.pack(">iiiii", size, 0, 0, 0, len(body)) + body)
        inner.append(struct.pack(">h", len(properties)) + properties)
    fields = {
        "a": "load_g", "b": "load", "c": "TBW102", "d": "8", "e": str(opaque % QUEUES), "f": "0", "g": "1700000000000",
        "h": "0", "i": "", "j": "0", "k": "false", "m": "true", "n": "broker-a",
    }  # fmt: skip
    return encode_frame(320, 0, 453, opaque, 0, None, fields, b"".join(inner), encoding)


def pull_frame(opaque: int, queue: int, offset: int, encoding: int) -> bytes:
    """A pull as the Java client writes it."""
    fields = {
        "consumerGroup": "load_c",
        "topic": "load",
        "queueId": str(queue),
        "queueOffset": str(offset),
        "maxMsgNums": "32",
        "sysFlag": "4",
        "commitOffset": "0",
        "suspendTimeoutMillis": "0",
        "subscription": "*",
        "subVersion": "0",
        "expressionType": "TAG",
    }
    return encode_frame(11, 0, 453, opaque, 0, None, fields, None, encoding)


def timed(name: str, messages: int, work: Callable[[], None]) -> None:
    """Runs `work` and prints its cost a message."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    cpu_us, wall_us = cpu / messages * 1e6, wall / messages * 1e6
    print(f"{name:<24} {cpu_us:6.2f} µs CPU {wall_us:6.2f} µs {1e3 / wall_us:7.0f} k/s")


def run(messages: int, body_bytes: int, encoding: int) -> None:
    """Sends, then pulls it all back."""
    root = tempfile.mkdtemp(prefix="engine_feed-")
    engine = Engine.open({"root": root})
    try:
        engine.allow_topic("load", 6, QUEUES, QUEUES, True)
        engine.allow_group("load_c", True, True)
        session = engine.session("127.0.0.1:1234")
        kind = f"{body_bytes} B, {['JSON', 'ROCKETMQ'][encoding]}"
        chunks = [b"".join(send_frame(at * 64 + n, bytes(body_bytes), encoding) for n in range(64)) for at in range(64)]

        def send() -> None:
            for at in range(messages // 64):
                assert len(engine.feed(session, chunks[at % 64]).replies) == 1

        batches = [batch_frame(at, bytes(body_bytes), encoding) for at in range(64)]

        def send_batches() -> None:
            for at in range(messages // 32):
                assert len(engine.feed(session, batches[at % 64]).replies) == 1

        def pull() -> None:
            each = messages // QUEUES
            for queue in range(QUEUES):
                for offset in range(0, each, 32):
                    assert engine.feed(session, pull_frame(1, queue, offset, encoding)).replies

        messages -= messages % (64 * 32)
        send()
        timed(f"send {kind}", messages, send)
        timed(f"batch {kind}", messages, send_batches)
        timed(f"pull {kind}", messages, pull)
    finally:
        engine.close()
        shutil.rmtree(root)


def main() -> None:
    """Every size in both encodings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=200_000)
    messages = parser.parse_args().messages
    for body_bytes in (100, 1024):
        for encoding in (0, 1):
            run(messages, body_bytes, encoding)


if __name__ == "__main__":
    main()
