"""`aerobee consume`: what a member of a group gets, a line a message."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time

from aerobee.cli.text import fail, say, show_log
from aerobee.client.consumer import Consumer
from aerobee.client.results import ConsumeFrom
from aerobee.errors import AerobeeError
from aerobee.protocol.message import MessageExt


def consume(name_servers: str, topic: str, group: str, *, filter: str, count: int, wait_s: float, latest: bool) -> int:
    """Prints messages until interrupted, `count` have come or none came for `wait_s` seconds. Returns the exit code."""

    async def run() -> int:
        seen = 0
        quiet_since = time.monotonic()
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # it is, under nohup
                loop.add_signal_handler(number, stop.set)
        consumer = Consumer(
            name_servers,
            group=group,
            subscriptions={topic: filter},
            start_from=ConsumeFrom.LAST_OFFSET if latest else ConsumeFrom.FIRST_OFFSET,
        )
        await consumer.client.route(topic)  # an unreachable name server or an unknown topic is an error, not silence

        async def read() -> None:
            nonlocal seen, quiet_since
            async for message in consumer:
                say(line(message), flush=True)
                consumer.ack(message)
                seen += 1
                quiet_since = time.monotonic()
                if seen == count:
                    return

        async with consumer:
            show_log(logging.WARNING)
            reading = asyncio.create_task(read())
            stopping = asyncio.create_task(stop.wait())
            while not reading.done() and not stopping.done():
                rest_s = quiet_since + wait_s - time.monotonic() if wait_s > 0 else None
                if rest_s is not None and rest_s <= 0:
                    break
                await asyncio.wait((reading, stopping), timeout=rest_s, return_when=asyncio.FIRST_COMPLETED)
            for task in (reading, stopping):
                if not task.done():
                    task.cancel()
            await asyncio.gather(reading, stopping, return_exceptions=True)
            if not reading.cancelled():
                reading.result()  # an error ends the command
        print(f"{seen} consumed from {topic} by {group}", file=sys.stderr)
        return 0 if not count or seen >= count else 1

    show_log(logging.CRITICAL)
    try:
        return asyncio.run(run())
    except (AerobeeError, ValueError) as error:
        return fail(str(error))


def line(message: MessageExt) -> str:
    """Place, tag, keys and body of a message; bytes that are no text are escaped."""
    where = f"{message.broker_name} queue {message.queue_id} offset {message.queue_offset}"
    marks = " ".join(mark for mark in (message.tag or "", " ".join(message.keys)) if mark)
    body = message.body.decode("utf-8", "backslashreplace")
    again = f"  (attempt {message.reconsume_times + 1})" if message.reconsume_times else ""
    return f"{where}  {f'[{marks}]  ' if marks else ''}{body}{again}"
