"""kill -9 in the middle of retries, delays and transactions, with everything running. `sim` kills the same mechanisms
at chosen moments; here the kernel and the clients have their say. (Pop: test_pop_kill.py.)
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict

from aerobee import AerobeeError, ConsumeFrom, Consumer, Message, MessageExt, Producer, PullConsumer, PullStatus
from aerobee.broker.records import COMMIT, ROLLBACK, format_properties, parse_record
from aerobee.net.connection import Connection
from aerobee.net.remote import RemotePool
from aerobee.protocol import fastjson
from aerobee.protocol.codes import RequestCode
from aerobee.protocol.command import RemotingCommand
from aerobee.testing import Cluster, eventually
from aerobee.testing.plugin import MakeCluster

KILLS = 4
MOMENT_S = 0.8
"""Between two kills, at most: less than the delays here, so that each kill meets messages that wait."""


async def kill_now_and_then(cluster: Cluster) -> None:
    for _ in range(KILLS):
        await asyncio.sleep(random.uniform(0, MOMENT_S))  # sleeps: the kill comes at any moment
        await cluster.brokers[0].killed()
        await cluster.brokers[0].start()


async def delivered(cluster: Cluster, topic: str) -> list[MessageExt]:
    """Everything that the topic has now."""
    found: list[MessageExt] = []
    async with PullConsumer(cluster.name_servers, group="audit") as pull:
        for queue in await pull.queues(topic):
            offset = await pull.min_offset(queue)
            while (result := await pull.pull(queue, offset)).status is PullStatus.FOUND:
                found += result.messages
                offset = result.messages[-1].queue_offset + 1
    return found


async def test_retried_through_kills(clusters: MakeCluster) -> None:
    """Claim: what fails comes again, never early, until it is done or has no chance left; then it is a dead letter, and
    nothing else is. No message is lost between its topic, the delay, the retry topic and the dead letters."""
    cluster = await clusters(settings={"messageDelayLevel": "1s 1s 1s 1s 1s"})
    await cluster.create_topic("work")
    count, group = 150, "workers"
    tried: defaultdict[bytes, set[int]] = defaultdict(set)
    failed_at_ms: dict[tuple[bytes, int], float] = {}
    early: list[bytes] = []
    consumer = Consumer(
        cluster.name_servers, group=group, start_from=ConsumeFrom.FIRST_OFFSET, max_reconsume_times=2
    )  # fmt: skip

    @consumer.on("work")
    async def handle(message: MessageExt) -> None:
        body, times = message.body, message.reconsume_times
        tried[body].add(times)
        before = failed_at_ms.get((body, times - 1))
        if before is not None and message.store_timestamp < before + 995:
            early.append(body)
        if int(body) % 3 == 2 or (int(body) % 3 == 1 and not times):
            failed_at_ms.setdefault((body, times), time.time() * 1000)
            raise RuntimeError("not this time")

    async with Producer(cluster.name_servers, group="p") as producer, consumer:
        killing = asyncio.ensure_future(kill_now_and_then(cluster))
        for number in range(count):
            while True:
                try:
                    await producer.send(Message("work", b"%d" % number))
                    break
                except AerobeeError:
                    await asyncio.sleep(0.02)
            await asyncio.sleep(0.02)  # sleeps: they are spread over the kills
        await killing
        await cluster.registered()

        async def dead() -> Counter[int]:
            try:
                return Counter(int(message.body) % 3 for message in await delivered(cluster, f"%DLQ%{group}"))
            except AerobeeError:
                return Counter()

        async def all_ended() -> bool:
            ended = {
                int(body) for body, times in tried.items() if int(body) % 3 == 0 or (int(body) % 3 == 1 and 1 in times)
            }
            return len(ended) == 2 * count // 3 and (await dead())[2] >= count // 3

        await eventually(all_ended, 30)
    letters = await delivered(cluster, f"%DLQ%{group}")
    assert {int(message.body) for message in letters} == set(range(2, count, 3))
    assert all(tried[message.body] == {0, 1, 2} for message in letters), "each had its three chances"
    assert early == []


async def test_delayed_through_kills(clusters: MakeCluster) -> None:
    """Claim: every accepted message that waits, by level or by time, is delivered, and none early. One whose delivery
    the kill met may come twice: at most a batch for each kill."""
    cluster = await clusters(settings={"messageDelayLevel": "1s 2s"})
    await cluster.create_topic("later")
    due_ms: dict[bytes, float] = {}
    failures = 0
    stopping = asyncio.Event()

    async def send(producer: Producer, worker: int) -> None:
        nonlocal failures
        number = worker
        while not stopping.is_set():
            number += 8
            body, now_ms = b"%d" % number, time.time() * 1000
            level = number % 3
            wait_ms = 1000 * level or random.randrange(800, 2500)
            message = Message("later", body, delay_level=level, deliver_at_ms=0 if level else int(now_ms + wait_ms))
            try:
                await producer.send(message)
            except AerobeeError:
                failures += 1
                await asyncio.sleep(0.02)
                continue
            due_ms[body] = now_ms + wait_ms

    async with Producer(cluster.name_servers, group="p", timeout_ms=1000) as producer:
        tasks = [asyncio.ensure_future(send(producer, worker)) for worker in range(8)]
        await kill_now_and_then(cluster)
        stopping.set()
        await asyncio.gather(*tasks)
    await cluster.registered()

    async def all_came() -> bool:
        return due_ms.keys() <= {message.body for message in await delivered(cluster, "later")}

    await eventually(all_came, 30)
    found = await delivered(cluster, "later")
    assert failures > 0, "no send met a dead broker: the test proved nothing"
    assert len(due_ms) > 100
    early = [message for message in found if message.store_timestamp < due_ms.get(message.body, 0) - 1]
    assert early == []
    again = sum(times - 1 for times in Counter(message.body for message in found).values())
    assert again <= KILLS * 256, "more than a batch for each kill"


class Transactions:
    """A producer of group `t` that tries until it is answered. A message's number says how it ends."""

    ENDS = (COMMIT, ROLLBACK)

    def __init__(self, address: str) -> None:
        self.address = address
        self.accepted: list[int] = []
        self.ended: set[int] = set()
        self.asked: set[int] = set()
        self.failures = 0
        self.stopping = False
        self.pool = RemotePool(on_request=self._on_request)

    async def __aenter__(self) -> Transactions:
        self._tasks = [asyncio.ensure_future(self._work(worker)) for worker in range(8)]
        self._heart = asyncio.ensure_future(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stopping = True
        await asyncio.gather(*self._tasks)
        self._heart.cancel()
        await self.pool.close()

    async def work_is_over(self) -> None:
        """No new ones; those that are accepted are ended, or will be asked about."""
        self.stopping = True
        await asyncio.gather(*self._tasks)

    async def _beat(self) -> None:
        body = {"clientID": "t", "producerDataSet": [{"groupName": "t"}], "consumerDataSet": []}
        while True:
            try:
                await self._call(RequestCode.HEART_BEAT, fastjson.dumps(body))
            except AerobeeError:
                pass
            await asyncio.sleep(0.1)

    async def _work(self, worker: int) -> None:
        number = worker
        while not self.stopping:
            number += 8
            properties = format_properties({"TRAN_MSG": "true", "PGROUP": "t", "UNIQ_KEY": f"{number:032X}"}).decode()
            letters = dict(a="t", b="deals", c="TBW102", d="4", e=str(number % 4), f="4", h="0", i=properties, j="0")
            try:
                letters["g"] = str(int(time.time() * 1000))
                reply = await self._call(RequestCode.SEND_MESSAGE_V2, b"%d" % number, **letters)
            except AerobeeError:
                self.failures += 1
                continue
            if reply.code != 0:
                continue
            self.accepted.append(number)
            if number % 10 < 4:
                continue  # only when it is asked about
            fields = reply.ext_fields
            place = fields["queueOffset"], str(int(fields["msgId"][16:], 16))
            while True:
                try:
                    reply = await self._call(RequestCode.END_TRANSACTION, b"", **self._end(number, *place))
                    assert reply.code == 0, reply.remark
                    break
                except AerobeeError:
                    self.failures += 1
            self.ended.add(number)

    async def _call(self, code: int, body: bytes = b"", **fields: str) -> RemotingCommand:
        command = RemotingCommand.request(code, body=body)
        command.ext_fields = dict(fields)
        return await self.pool.invoke(self.address, command, 1)

    def _end(self, number: int, offset: str, position: str, *, asked: bool = False) -> dict[str, str]:
        return dict(
            producerGroup="t", tranStateTableOffset=offset, commitLogOffset=position,
            commitOrRollback=str(self.ENDS[number % 2]), fromTransactionCheck=str(asked).lower(),
        )  # fmt: skip

    def _on_request(self, connection: Connection, command: RemotingCommand) -> None:
        if command.code != RequestCode.CHECK_TRANSACTION_STATE:
            return
        number = int(parse_record(command.body).body)
        self.asked.add(number)
        fields = command.ext_fields
        answer = RemotingCommand.request(RequestCode.END_TRANSACTION, oneway=True)
        answer.ext_fields = self._end(number, fields["tranStateTableOffset"], fields["commitLogOffset"], asked=True)
        connection.send(answer)


async def test_transactions_through_kills(clusters: MakeCluster) -> None:
    """Claim: what is committed, at once or when asked about, is delivered once; what is rolled back never is; and each
    accepted half message is asked about until somebody has ended it."""
    cluster = await clusters(settings={"transactionTimeOut": 1000, "transactionCheckInterval": 1000})
    await cluster.create_topic("deals")
    async with Transactions(cluster.brokers[0].address) as transactions:
        await kill_now_and_then(cluster)
        await transactions.work_is_over()
        committed = {number for number in transactions.accepted if number % 2 == 0}

        async def all_came() -> bool:
            return committed <= {int(message.body) for message in await delivered(cluster, "deals")}

        await cluster.registered()
        await eventually(all_came, 30)
        silent = {number for number in transactions.accepted if number % 10 < 4}
        await eventually(lambda: silent <= transactions.asked, 30)
    found = Counter(int(message.body) for message in await delivered(cluster, "deals"))
    assert transactions.failures > 0, "nobody met a dead broker: the test proved nothing"
    assert len(silent) > 20 and len(transactions.ended) > 20
    assert not [number for number in found if number % 2], "rolled back, and yet it came"
    assert not [number for number, times in found.items() if times > 1], "committed once, delivered twice"
