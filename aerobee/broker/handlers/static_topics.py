"""Requests for static topics: logical queues and offsets become physical ones, answers become logical again.

Each request goes to whoever has the stretch: to our own handler, or to another broker with `lo=false`, which says that
the numbers in it are physical. The handlers of ordinary topics know nothing of it.
"""

from __future__ import annotations

import inspect
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from aerobee.broker.dispatch import Answer, Handler
from aerobee.broker.handlers.offsets import get_max_offset, update_consumer_offset
from aerobee.broker.handlers.pull import COMMIT, SUSPEND
from aerobee.broker.handlers.send import V2_CODES
from aerobee.broker.static_topics import Items, find, following, has_end, to_logical, to_physical
from aerobee.errors import AerobeeError, MalformedRequest, ServerError
from aerobee.net.connection import Connection
from aerobee.protocol.bodies.route import LogicQueueMappingItem, TopicQueueMappingDetail
from aerobee.protocol.bodies.topics import TopicConfig
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.headers.offsets import (
    GetEarliestMsgStoretime,
    GetMaxOffset,
    GetMaxOffsetReply,
    GetMinOffset,
    GetMinOffsetReply,
    QueryConsumerOffset,
    QueryConsumerOffsetReply,
    SearchOffset,
    SearchOffsetReply,
    UpdateConsumerOffset,
)
from aerobee.protocol.headers.pull import PullMessage, PullMessageReply
from aerobee.protocol.headers.topics import CreateTopic
from aerobee.protocol.reply import error_reply

if TYPE_CHECKING:
    from aerobee.broker.server import Broker

_log = logging.getLogger("aerobee.broker.topics")

LOGICAL: Final = "lo"
"""The field that says whether the numbers of a request are logical; only "false" counts."""
BROKER_NAME: Final = "bname"
JAVA_LONG_MAX: Final = (1 << 63) - 1


async def update_static_topic(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """UPDATE_AND_CREATE_STATIC_TOPIC: the topic and its mapping, on the disk when it is answered."""
    header = command.header(CreateTopic)
    detail = TopicQueueMappingDetail.from_json(command.body) if command.body else None
    if detail is None or detail.topic != header.topic:
        raise MalformedRequest(f"the body must be the mapping of topic {header.topic}")
    config = TopicConfig(
        topic_name=header.topic,
        read_queue_nums=header.read_queue_nums,
        write_queue_nums=header.write_queue_nums,
        perm=header.perm,
        topic_filter_type=header.topic_filter_type or "SINGLE_TAG",
        topic_sys_flag=header.topic_sys_flag or 0,
    )
    broker.topics.check(config)
    _log.info("%s maps static topic %s, epoch %d", connection.peer, header.topic, detail.epoch)
    # The mapping first: without it the queues would look like those of an ordinary topic.
    await broker.static_topics.put(detail, force=header.force)
    await broker.topics.update([config])
    await broker.topics.file.save()
    await broker.registration.told()
    return command.reply()


class _Mapped:
    """One request for a logical queue, at its leader; makes the physical requests."""

    def __init__(self, broker: Broker, connection: Connection, command: RemotingCommand, plain: Handler) -> None:
        self.broker = broker
        self.connection = connection
        self.command = command
        self._plain = plain
        v2 = command.code in V2_CODES
        self._topic_field, self._queue_field = ("b", "e") if v2 else ("topic", "queueId")

    @property
    def topic(self) -> str:
        return self.command.ext_fields.get(self._topic_field, "")

    def detail(self) -> TopicQueueMappingDetail | None:
        """The mapping that counts for this request, if there is one."""
        if self.command.ext_fields.get(LOGICAL, "").lower() == "false":
            return None
        return self.broker.static_topics.get(self.topic)

    def number(self) -> int:
        """The logical queue asked for. Raises MalformedRequest."""
        text = self.command.ext_fields.get(self._queue_field, "")
        try:
            return int(text)
        except ValueError:
            raise MalformedRequest(f"field {self._queue_field} must be a number, not {text!r}") from None

    def items(self, detail: TopicQueueMappingDetail, number: int, *, doing: str = "does not exit") -> Items:
        """The queue's stretches. ServerError NOT_LEADER_FOR_QUEUE: it is led elsewhere."""
        items = detail.hosted_queues.get(number)
        if not items or items[-1].bname != detail.bname:
            raise ServerError(
                ResponseCode.NOT_LEADER_FOR_QUEUE,
                f"{self.topic}-{number} {doing} in request process of current broker {detail.bname}",
            )
        return items

    async def ask(self, item: LogicQueueMappingItem, **changes: object) -> RemotingCommand:
        """What whoever has the stretch answers to this request, with its queue and these fields changed."""
        original = self.command
        fields = {name: str(value) for name, value in changes.items()}
        fields = {**original.ext_fields, self._queue_field: str(item.queue_id), **fields}
        request = RemotingCommand(
            original.code, original.language, original.version, original.opaque, 0, None, fields, original.body,
            original.encoding,
        )  # fmt: skip
        return await self.ask_as(item, request, self._plain)

    async def ask_as(self, item: LogicQueueMappingItem, request: RemotingCommand, plain: Handler) -> RemotingCommand:
        """What whoever has the stretch answers to another request, which `plain` serves here.

        Raises ServerError SYSTEM_ERROR when that broker does not answer.
        """
        request.ext_fields[LOGICAL] = "false"
        request.ext_fields[BROKER_NAME] = item.bname
        if item.bname == self.broker.options.broker_name:
            try:
                if request.code in (RequestCode.PULL_MESSAGE, RequestCode.LITE_PULL_MESSAGE):
                    return await self.broker.inner_pulls.pull(plain, request)
                answer = plain(self.broker, self.connection, request)
                reply = await answer if inspect.isawaitable(answer) else answer
            except AerobeeError as error:
                return error_reply(request, error)
            assert reply is not None, "only pulls are answered by the engine"
            return reply
        try:
            return await self.broker.neighbours.ask(item.bname, request)
        except (AerobeeError, OSError) as error:
            raise ServerError(ResponseCode.SYSTEM_ERROR, f"broker {item.bname} does not answer: {error}") from None

    def answer(self, reply: RemotingCommand, **fields: object) -> RemotingCommand:
        """Somebody's reply as ours, with these fields changed."""
        changed = {**reply.ext_fields, **{name: str(value) for name, value in fields.items()}}
        answer = self.command.reply(reply.code, body=reply.body, remark=reply.remark)
        answer.ext_fields = changed
        return answer


Translate = Callable[[_Mapped, TopicQueueMappingDetail], Awaitable[RemotingCommand]]


async def _send(request: _Mapped, detail: TopicQueueMappingDetail) -> RemotingCommand:
    number = request.number()
    if number < 0:
        led = [each for each, items in detail.hosted_queues.items() if items and items[-1].bname == detail.bname]
        number = random.choice(led) if led else number
    leader = request.items(detail, number)[-1]
    reply = await request.ask(leader)
    if "queueOffset" not in reply.ext_fields:
        return request.answer(reply)
    offset = to_logical(leader, int(reply.ext_fields["queueOffset"]))
    return request.answer(reply, queueId=number, queueOffset=offset)


async def _pull(request: _Mapped, detail: TopicQueueMappingDetail) -> RemotingCommand:
    header = request.command.header(PullMessage)
    items = request.items(detail, header.queue_id, doing="cannot find mapping item")
    if header.sys_flag & COMMIT and header.commit_offset >= 0:
        await _commit(request, items, header.consumer_group, header.commit_offset)
    item, leader = find(items, header.queue_offset), items[-1]
    if item is None:
        # Nothing has a logical offset yet.
        return _moved(request, items, leader, ResponseCode.PULL_NOT_FOUND, 0)
    offset = to_physical(item, header.queue_offset)
    count = header.max_msg_nums
    flags = header.sys_flag & ~COMMIT
    if item is not leader:
        flags &= ~SUSPEND  # nothing will come there any more
    if has_end(item):
        count = min(count, item.end_offset - offset)
        after = following(items, item)
        if count <= 0 and after is not None:
            return _moved(request, items, after, ResponseCode.PULL_RETRY_IMMEDIATELY, after.start_offset)
    reply = await request.ask(item, queueOffset=offset, maxMsgNums=max(1, count), sysFlag=flags)
    if "nextBeginOffset" not in reply.ext_fields or "forbiddenType" in reply.ext_fields:
        return request.answer(reply)
    told = reply.header(PullMessageReply)
    begin, low, high = told.next_begin_offset, told.min_offset, told.max_offset
    code = reply.code
    if code != ResponseCode.SUCCESS:
        if offset < low:
            begin = low
            code = ResponseCode.PULL_OFFSET_MOVED if item is items[0] else ResponseCode.PULL_RETRY_IMMEDIATELY
        elif offset >= high and item is not leader:
            after = following(items, item)
            if after is not None:
                return _moved(request, items, after, ResponseCode.PULL_RETRY_IMMEDIATELY, after.start_offset)
            code = ResponseCode.PULL_NOT_FOUND
        elif offset > high and item is items[0]:
            code = ResponseCode.PULL_NOT_FOUND
    answer = request.answer(reply, **_offsets(items, item, begin, low, high))
    answer.code = int(code)
    return answer


def _offsets(items: Items, item: LogicQueueMappingItem, begin: int, low: int, high: int) -> dict[str, int]:
    """The fields of a pull's answer, logical, for physical ones of this stretch."""
    leader = items[-1]
    end = to_logical(leader, leader.end_offset if has_end(leader) else leader.start_offset)
    return {
        "nextBeginOffset": to_logical(item, begin),
        "minOffset": to_logical(item, max(item.start_offset, low)),
        "maxOffset": max(to_logical(item, high), end),
        "offsetDelta": item.logic_offset - item.start_offset,
    }


def _moved(request: _Mapped, items: Items, item: LogicQueueMappingItem, code: int, begin: int) -> RemotingCommand:
    """Sends a pull on to `begin` of another stretch."""
    answer = request.command.reply(code, remark="the queue goes on elsewhere")
    told = _offsets(items, item, begin, item.start_offset, item.start_offset)
    answer.ext_fields = {"suggestWhichBrokerId": "0", **{name: str(value) for name, value in told.items()}}
    return answer


async def _commit(request: _Mapped, items: Items, group: str, offset: int) -> RemotingCommand:
    """The group continues at this logical offset: noted where the stretch is."""
    item = find(items, offset)
    if item is None:
        return request.command.reply()
    header = UpdateConsumerOffset(
        consumer_group=group, topic=request.topic, queue_id=item.queue_id, commit_offset=to_physical(item, offset)
    )
    command = RemotingCommand.request(RequestCode.UPDATE_CONSUMER_OFFSET, header)
    return await request.ask_as(item, command, update_consumer_offset)


async def _update(request: _Mapped, detail: TopicQueueMappingDetail) -> RemotingCommand:
    header = request.command.header(UpdateConsumerOffset)
    items = request.items(detail, header.queue_id)
    return request.answer(await _commit(request, items, header.consumer_group, header.commit_offset))


async def _query(request: _Mapped, detail: TopicQueueMappingDetail) -> RemotingCommand:
    header = request.command.header(QueryConsumerOffset)
    items = request.items(detail, header.queue_id)
    if len(items) == 1 and items[0].logic_offset == 0:
        return request.answer(await request.ask(items[0]))
    for item in reversed(items):
        if item.logic_offset < 0:
            continue
        reply = await request.ask(item, setZeroIfNotFound="false")
        if reply.code == ResponseCode.SUCCESS:
            offset = to_logical(item, reply.header(QueryConsumerOffsetReply).offset)
            return request.answer(reply, offset=offset)
        if reply.code != ResponseCode.QUERY_NOT_FOUND:
            return request.answer(reply)
    raise ServerError(ResponseCode.QUERY_NOT_FOUND, "Not found, maybe this group consumer boot first")


async def _search(request: _Mapped, detail: TopicQueueMappingDetail) -> RemotingCommand:
    """The first stretch that has a message of that time or later; behind the last message when none has."""
    items = request.items(detail, request.command.header(SearchOffset).queue_id)
    found = 0
    for item in items:
        if item.logic_offset < 0:
            continue
        reply = await request.ask(item)
        if reply.code != ResponseCode.SUCCESS:
            return request.answer(reply)
        offset = reply.header(SearchOffsetReply).offset
        end = await _end(request, item)
        found = to_logical(item, offset)
        if offset < end:
            break
    return request.command.reply(header=SearchOffsetReply(offset=found))


async def _end(request: _Mapped, item: LogicQueueMappingItem) -> int:
    """The physical offset behind the stretch's last message."""
    header = GetMaxOffset(topic=request.topic, queue_id=item.queue_id)
    reply = await request.ask_as(item, RemotingCommand.request(RequestCode.GET_MAX_OFFSET, header), get_max_offset)
    if reply.code != ResponseCode.SUCCESS:
        raise ServerError(reply.code, reply.remark)
    end = reply.header(GetMaxOffsetReply).offset
    return min(end, item.end_offset) if has_end(item) else end


async def _max(request: _Mapped, detail: TopicQueueMappingDetail) -> RemotingCommand:
    items = request.items(detail, request.command.header(GetMaxOffset).queue_id)
    item = find(items, JAVA_LONG_MAX)
    offset = to_logical(item, await _end(request, item)) if item is not None else 0
    return request.command.reply(header=GetMaxOffsetReply(offset=offset))


async def _min(request: _Mapped, detail: TopicQueueMappingDetail) -> RemotingCommand:
    items = request.items(detail, request.command.header(GetMinOffset).queue_id)
    reply = await request.ask(items[0])
    if reply.code != ResponseCode.SUCCESS:
        return request.answer(reply)
    offset = max(0, to_logical(items[0], reply.header(GetMinOffsetReply).offset))
    return request.answer(reply, offset=offset)


async def _earliest(request: _Mapped, detail: TopicQueueMappingDetail) -> RemotingCommand:
    items = request.items(detail, request.command.header(GetEarliestMsgStoretime).queue_id)
    return request.answer(await request.ask(items[0]))


async def forget_empty_stretches(broker: Broker) -> None:
    """Called every now and then; asks the other brokers what is left of the stretches they have."""

    async def bounds(topic: str, item: LogicQueueMappingItem) -> tuple[int, int] | None:
        if item.bname == broker.options.broker_name:
            return broker.store.bounds(topic, item.queue_id)
        found = []
        for code, header in (
            (RequestCode.GET_MIN_OFFSET, GetMinOffset(topic=topic, queue_id=item.queue_id)),
            (RequestCode.GET_MAX_OFFSET, GetMaxOffset(topic=topic, queue_id=item.queue_id)),
        ):
            request = RemotingCommand.request(code, header)
            request.ext_fields.update({LOGICAL: "false", BROKER_NAME: item.bname})
            try:
                reply = await broker.neighbours.ask(item.bname, request)
            except (AerobeeError, OSError):
                return None
            if reply.code != ResponseCode.SUCCESS:
                return None
            found.append(reply.header(GetMaxOffsetReply).offset)
        return found[0], found[1]

    await broker.static_topics.forget_empty(bounds)


TRANSLATED: Final[dict[int, Translate]] = {
    RequestCode.SEND_MESSAGE: _send,
    RequestCode.SEND_MESSAGE_V2: _send,
    RequestCode.SEND_BATCH_MESSAGE: _send,
    RequestCode.PULL_MESSAGE: _pull,
    RequestCode.LITE_PULL_MESSAGE: _pull,
    RequestCode.QUERY_CONSUMER_OFFSET: _query,
    RequestCode.UPDATE_CONSUMER_OFFSET: _update,
    RequestCode.SEARCH_OFFSET_BY_TIMESTAMP: _search,
    RequestCode.GET_MAX_OFFSET: _max,
    RequestCode.GET_MIN_OFFSET: _min,
    RequestCode.GET_EARLIEST_MSG_STORETIME: _earliest,
}
"""Requests that name a queue, and what becomes of each at a static topic."""


def with_static_topics(code: int, plain: Handler) -> Handler:
    """The handler of ordinary topics, and for static ones the translation in front of it."""
    translate = TRANSLATED.get(code)
    if translate is None:
        return plain

    def handler(broker: Broker, connection: Connection, command: RemotingCommand) -> Answer | Awaitable[Answer]:
        if broker.static_topics.table:
            request = _Mapped(broker, connection, command, plain)
            detail = request.detail()
            if detail is not None:
                return translate(request, detail)
        return plain(broker, connection, command)

    return handler


HANDLERS = {RequestCode.UPDATE_AND_CREATE_STATIC_TOPIC: update_static_topic}
