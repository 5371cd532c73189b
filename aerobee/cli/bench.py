"""`aerobee bench`: a quick, bounded load from Python, to see that a cluster works and roughly how fast.

The figures are those of the Python client and the broker together; `bench/` measures the broker alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from functools import partial

from aerobee.cli.text import fail, milliseconds, percentile, rate, say, show_log
from aerobee.client.consumer import Consumer
from aerobee.client.producer import Producer
from aerobee.client.results import ConsumeFrom, SendResult
from aerobee.errors import AerobeeError
from aerobee.protocol.message import Message

CONSUME_S = 60.0
"""How long the consumer may take for what was sent."""


def bench(name_servers: str, topic: str, *, size: int, seconds: float, in_flight: int) -> int:
    """Sends for `seconds`, then consumes what was sent; prints both. Returns the exit code."""
    import uvloop

    show_log(logging.CRITICAL)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(name_servers, topic, size, seconds, in_flight))
    except (AerobeeError, ValueError) as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return 130


async def _run(name_servers: str, topic: str, size: int, seconds: float, in_flight: int) -> int:
    body = os.urandom((size + 1) // 2).hex().encode()[:size]
    tag = f"bench-{os.getpid()}-{time.time_ns()}"  # other runs' messages are not counted
    latencies: list[float] = []
    errors: list[BaseException] = []
    async with Producer(
        name_servers, group="aerobee-bench", in_flight_max=in_flight, compress_above_bytes=1 << 30
    ) as producer:
        await producer.send(Message(topic, body, tag="warm-up"))

        def landed(future: asyncio.Future[SendResult], sent_at: float) -> None:
            error = future.exception()
            if error is not None:
                errors.append(error)
            else:
                latencies.append(time.perf_counter() - sent_at)

        began = time.perf_counter()
        while (now := time.perf_counter()) < began + seconds and not errors:
            future = await producer.post(Message(topic, body, tag=tag))
            future.add_done_callback(partial(landed, sent_at=now))
        await producer.flush()
        await asyncio.sleep(0)
        took = time.perf_counter() - began
    if errors:
        return fail(f"{len(errors)} sends failed: {errors[0]}")
    latencies.sort()
    spread = ", ".join(f"p{share:g} {milliseconds(percentile(latencies, share / 100))}" for share in (50, 99, 99.9))
    say(f"sent      {len(latencies)} of {size} bytes in {took:.2f} s: {rate(len(latencies), took)}, {spread}")

    got = 0
    began = time.perf_counter()
    try:
        async with (
            asyncio.timeout(CONSUME_S),
            Consumer(
                name_servers,
                group=f"aerobee-bench-{os.getpid()}",
                subscriptions={topic: tag},
                start_from=ConsumeFrom.FIRST_OFFSET,
                queue_messages_max=10_000,
                queue_span_max=0,
            ) as consumer,
        ):
            async for _ in consumer:
                got += 1
                if got == len(latencies):
                    break
    except TimeoutError:
        return fail(f"only {got} of {len(latencies)} messages came back within {CONSUME_S:.0f} s")
    took = time.perf_counter() - began
    say(f"consumed  {got} in {took:.2f} s: {rate(got, took)}")
    return 0
