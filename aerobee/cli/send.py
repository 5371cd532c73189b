"""`aerobee send`: messages from the command line or standard input."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future, InvalidStateError
from typing import Final

from aerobee.cli.text import fail, say, show_log
from aerobee.client.producer import Producer
from aerobee.client.results import SendResult
from aerobee.errors import AerobeeError
from aerobee.protocol.message import Message, check_topic

CHUNK_BYTES: Final = 1 << 16


def send(
    name_servers: str, topic: str, bodies: list[str], *, tag: str, keys: list[str], repeat: int, quiet: bool
) -> int:
    """Sends each body `repeat` times; without bodies, the lines of standard input. Returns the exit code: 1 also when
    some could not be sent, like empty lines.

    Raises BrokenPipeError when nobody reads what it prints.
    """

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
            if not quiet and not broken:
                where = f"{result.queue.broker_name} queue {result.queue.queue_id} offset {result.queue_offset}"
                try:
                    say(f"{result.message_id}  {where}  {result.status.name}")
                except (AerobeeError, BrokenPipeError) as error:  # in a callback it would only be logged
                    broken.append(error)

        failed: list[asyncio.Future[SendResult]] = []
        refused: list[ValueError] = []
        broken: list[AerobeeError | BrokenPipeError] = []
        check_topic(topic)
        async with Producer(name_servers, group="aerobee-cli") as producer:
            async for body in _repeated(bodies, repeat) if bodies else _lines():
                try:
                    future = await producer.post(Message(topic, body, tag=tag, keys=keys))
                except ValueError as error:  # that one cannot be a message: the others are sent
                    refused.append(error)
                    continue
                future.add_done_callback(landed)
                if failed or broken:
                    break
            await producer.flush()
        await asyncio.sleep(0)  # the last callbacks
        if broken:
            raise broken[0]
        errors = [*(future.exception() for future in failed), *refused]
        if sent or not errors:
            say(f"{sent} sent to {topic} in {time.monotonic() - began:.2f} s")
        return fail(f"{len(errors)} of {len(errors) + sent} not sent: {errors[0]}") if errors else 0

    show_log(logging.CRITICAL)
    try:
        return asyncio.run(run())
    except (AerobeeError, ValueError) as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return 130


async def _repeated(bodies: list[str], repeat: int) -> AsyncIterator[bytes]:
    for body in bodies * repeat:
        yield body.encode()


async def _lines() -> AsyncIterator[bytes]:
    """The lines of standard input, each as soon as it has come. Raises AerobeeError when it cannot be read."""
    held = bytearray()
    while True:
        try:
            data = await asyncio.wrap_future(_read_stdin())
        except OSError as error:
            raise AerobeeError(f"standard input cannot be read: {error.strerror}") from None
        if not data:
            break
        held += data
        if b"\n" in data:
            *lines, held = held.split(b"\n")
            for line in lines:
                yield bytes(line.rstrip(b"\r"))
    if held:
        yield bytes(held.rstrip(b"\r"))


def _read_stdin() -> Future[bytes]:
    """What is there of standard input, at least a byte; empty at its end. In a thread, so that what is posted leaves
    meanwhile, and not one of the loop's own: Ctrl-C would wait for it."""
    found: Future[bytes] = Future()

    def read() -> None:
        with contextlib.suppress(InvalidStateError):  # nobody waits any more
            try:
                found.set_result(os.read(0, CHUNK_BYTES))
            except OSError as error:
                found.set_exception(error)

    threading.Thread(target=read, daemon=True).start()
    return found
