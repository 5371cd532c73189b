"""kill -9 while messages are popped and acknowledged: nothing is lost, nothing that was acknowledged comes again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator

from aerobee.broker.pop_names import format_handle, topic_of_flag
from aerobee.broker.records import parse_records
from aerobee.errors import AerobeeError
from aerobee.net.remote import RemotePool
from aerobee.protocol.codes import RequestCode
from aerobee.protocol.command import RemotingCommand
from aerobee.testing import Cluster, eventually

INVISIBLE_MS = 3000
GROUP, TOPIC = "poppers", "popped"


class Poppers:
    """Pop and acknowledge through whatever happens, and remember what became of each message."""

    def __init__(self, address: str, order: bool) -> None:
        self.acknowledged: set[bytes] = set()
        """In time: these must not come again."""
        self.late: set[bytes] = set()
        """Acknowledged when their invisible time was nearly over: they may come again."""
        self.unanswered: set[bytes] = set()
        """The broker died over the acknowledgement: it may have counted it, or not."""
        self.again: list[bytes] = []
        self.failures = 0
        self._address = address
        self._order = order
        self._stopping = False

    async def __aenter__(self) -> Poppers:
        self._tasks = [asyncio.create_task(self._pop()) for _ in range(4)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _pop(self) -> None:
        pool = RemotePool()
        while not self._stopping:
            try:
                await self._pop_once(pool)
            except (AerobeeError, OSError):
                self.failures += 1
                await asyncio.sleep(0.02)
        await pool.close()

    async def _pop_once(self, pool: RemotePool) -> None:
        pop = RemotingCommand.request(RequestCode.POP_MESSAGE)
        pop.ext_fields = {
            "consumerGroup": GROUP,
            "topic": TOPIC,
            "queueId": "-1",
            "maxMsgNums": "8",
            "invisibleTime": str(INVISIBLE_MS),
            "pollTime": "500",
            "bornTime": "0",
            "initMode": "0",
            "order": "true" if self._order else "false",
        }
        asked = time.monotonic()
        reply = await pool.invoke(self._address, pop, 3)
        if reply.code != 0:
            return
        for body, ack in acks(reply):
            if body in self.acknowledged:
                self.again.append(body)
            await asyncio.sleep(random.uniform(0, 0.01))  # sleeps: the kill comes at any moment
            self.unanswered.add(body)
            code = (await pool.invoke(self._address, ack, 3)).code
            self.unanswered.discard(body)
            if code == 0:
                in_time = time.monotonic() - asked < INVISIBLE_MS / 2000
                (self.acknowledged if in_time else self.late).add(body)


def acks(reply: RemotingCommand) -> Iterator[tuple[bytes, RemotingCommand]]:
    header = reply.ext_fields
    starts = {part.rsplit(" ", 1)[0]: int(part.rsplit(" ", 1)[1]) for part in header["startOffsetInfo"].split(";")}
    for record in parse_records(reply.body):
        handle = record.properties.get("POP_CK") or format_handle(
            starts[f"0 {record.queue_id}"],
            int(header["popTime"]),
            int(header["invisibleTime"]),
            int(header["reviveQid"]),
            TOPIC,
            "broker-a",
            record.queue_id,
            record.queue_offset,
        )
        ack = RemotingCommand.request(RequestCode.ACK_MESSAGE)
        ack.ext_fields = {
            "consumerGroup": GROUP,
            "topic": topic_of_flag(handle.split(" ")[4], TOPIC, GROUP),
            "queueId": str(record.queue_id),
            "extraInfo": handle,
            "offset": str(record.queue_offset),
        }
        yield record.body, ack


async def popped_through_kills(cluster: Cluster, *, order: bool) -> None:
    await cluster.create_topic(TOPIC)
    broker = cluster.brokers[0]
    pool = RemotePool()
    sent = 0
    async with Poppers(broker.address, order) as poppers:
        for _ in range(5):
            for _ in range(100):
                send = RemotingCommand.request(RequestCode.SEND_MESSAGE_V2, body=b"%d" % sent)
                send.ext_fields = dict(a="p", b=TOPIC, c="TBW102", d="4", e=str(sent % 4), f="0", g="0", h="0", i="")
                send.ext_fields["j"] = "0"
                assert (await pool.invoke(broker.address, send, 3)).code == 0
                sent += 1
            await asyncio.sleep(random.uniform(0, 0.2))  # sleeps: the kill comes at any moment
            await broker.killed()
            await broker.start()
        everything = {b"%d" % number for number in range(sent)}
        await eventually(lambda: not everything - poppers.acknowledged - poppers.late - poppers.unanswered, 30)
    await pool.close()
    assert poppers.failures > 0, "nobody met a dead broker: the test proved nothing"
    assert poppers.again == [], "acknowledged, and yet it came again"


async def test_popped_through_kills(cluster: Cluster) -> None:
    """Claim: each message is given out until it is acknowledged, and none after its acknowledgement was answered."""
    await popped_through_kills(cluster, order=False)


async def test_popped_in_order_through_kills(cluster: Cluster) -> None:
    """The same claim for queues that are popped in order."""
    await popped_through_kills(cluster, order=True)
