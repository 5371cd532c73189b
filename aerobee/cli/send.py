"""`aerobee send`: messages from the command line or standard input."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable

from aerobee.cli.text import fail
from aerobee.client.producer import Producer
from aerobee.client.results import SendResult
from aerobee.errors import AerobeeError
from aerobee.protocol.message import Message


def send(
    name_servers: str, topic: str, bodies: list[str], *, tag: str, keys: list[str], repeat: int, quiet: bool
) -> int:
    """Sends each body `repeat` times; without bodies, the lines of standard input. Returns the exit code."""
    given: Iterable[bytes] = (
        (body.encode() for body in bodies * repeat) if bodies else (line.rstrip(b"\r\n") for line in sys.stdin.buffer)
    )

    async def run() -> int:
        sent = 0
        began = time.monotonic()

        def landed(future: asyncio.Future[SendResult]) -> None:
            nonlocal sent
            if future.cancelled() or future.exception() is not None:
                failed.append(future)
                return
            sent += 1
            result = future.result()
            if not quiet:
                where = f"{result.queue.broker_name} queue {result.queue.queue_id} offset {result.queue_offset}"
                print(f"{result.message_id}  {where}  {result.status.name}")

        failed: list[asyncio.Future[SendResult]] = []
        async with Producer(name_servers, group="aerobee-cli") as producer:
            for body in given:
                future = await producer.post(Message(topic, body, tag=tag, keys=keys))
                future.add_done_callback(landed)
                if failed:
                    break
            await producer.flush()
        await asyncio.sleep(0)  # the last callbacks
        print(f"{sent} sent to {topic} in {time.monotonic() - began:.2f} s")
        for future in failed[:1]:
            error = future.exception()
            return fail(f"{len(failed)} of {len(failed) + sent} not sent: {error}")
        return 0

    try:
        return asyncio.run(run())
    except (AerobeeError, ValueError) as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return 130
