"""Pulls that the engine leaves to policy, and the list of everything that can be wrong with one, in Apache's order."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final

from aerobee.broker import fast_path
from aerobee.broker.clients import BROADCASTING, PULL, PUSH
from aerobee.broker.filters import is_only_bars, is_tag_kind, tag_codes
from aerobee.broker.topics import PERM_READ, SEE_FAQ
from aerobee.errors import ServerError
from aerobee.net.connection import Connection
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.headers.pull import PullMessage, PullMessageReply

if TYPE_CHECKING:
    from aerobee.broker.server import Broker

COMMIT: Final = 1
SUSPEND: Final = 2
SUBSCRIPTION: Final = 4

BROKER_FORBIDDEN: Final = 1
GROUP_FORBIDDEN: Final = 2
TOPIC_FORBIDDEN: Final = 3
BROADCAST_FORBIDDEN: Final = 4
SUBSCRIPTION_FORBIDDEN: Final = 5
"""What `forbiddenType` tells a client about NO_PERMISSION."""


def pull(
    broker: Broker, connection: Connection, command: RemotingCommand
) -> RemotingCommand | Awaitable[RemotingCommand] | None:
    """PULL_MESSAGE, LITE_PULL_MESSAGE. None: the engine answers, now or when a message arrives."""
    header = command.header(PullMessage)
    refusal = _refuse(broker, connection, command, header)
    if refusal is not None:
        return refusal
    kind, expression = _filter(broker, header)
    if not is_tag_kind(kind) and not broker.options.enable_property_filter:
        raise ServerError(
            ResponseCode.SYSTEM_ERROR, f"The broker does not support consumer to filter message by {kind}"
        )
    members = broker.clients.consumers.get(header.consumer_group)
    member = members.members.get(connection.id) if members is not None else None
    queue = (header.topic, broker.options.broker_name, header.queue_id)
    wait_s = broker.order.wait_s(header.consumer_group, queue, member.client_id if member is not None else "")
    if wait_s > 0:
        return _wait_for_former_holder(broker, command, header, wait_s)

    pushes = members is not None and members.consume_type == PUSH
    offset = broker.offsets.take_reset(header.consumer_group, header.topic, header.queue_id, alone=pushes)
    if offset is not None:
        return _without_messages(broker, command, header, ResponseCode.PULL_OFFSET_MOVED, offset, "OFFSET_RESET")
    if is_tag_kind(kind):
        broker.store.pull(connection, command.to_tuple(), tag_codes(expression), park=True)
    else:
        sql = fast_path.filter_of(broker, header.consumer_group, header.topic, expression)
        broker.store.pull(connection, command.to_tuple(), None, park=True, sql=sql)
    return None


async def _wait_for_former_holder(
    broker: Broker, command: RemotingCommand, header: PullMessage, wait_s: float
) -> RemotingCommand:
    """Nothing yet: until it is clear who works on the queue (see `broker.order`). The client asks again then."""
    await broker.clock.sleep(min(wait_s, header.suspend_timeout_millis / 1000))
    fast_path.allow_group(broker, header.consumer_group)
    remark = "the queue's former holder may come back"
    return _without_messages(broker, command, header, ResponseCode.PULL_NOT_FOUND, header.queue_offset, remark)


def _without_messages(
    broker: Broker, command: RemotingCommand, header: PullMessage, code: int, next_begin_offset: int, remark: str
) -> RemotingCommand:
    """The client goes on at `next_begin_offset`."""
    low, high = broker.store.bounds(header.topic, header.queue_id)
    config, group = broker.topics.get(header.topic), broker.groups.get(header.consumer_group)
    return command.reply(
        code,
        PullMessageReply(
            suggest_which_broker_id=0,
            next_begin_offset=next_begin_offset,
            min_offset=low,
            max_offset=high,
            topic_sys_flag=config.topic_sys_flag if config is not None else 0,
            group_sys_flag=group.group_sys_flag if group is not None else 0,
        ),
        remark=remark,
    )


def _refuse(
    broker: Broker, connection: Connection, command: RemotingCommand, header: PullMessage
) -> RemotingCommand | None:
    def forbidden(kind: int, remark: str) -> RemotingCommand:
        reply = command.reply(ResponseCode.NO_PERMISSION, remark=remark)
        reply.ext_fields.update(
            forbiddenType=str(kind), suggestWhichBrokerId="0", nextBeginOffset="0", minOffset="0", maxOffset="0"
        )
        return reply

    options = broker.options
    if not options.broker_permission & PERM_READ:
        return forbidden(BROKER_FORBIDDEN, f"the broker[{broker.host}] pulling message is forbidden")
    if command.code == RequestCode.LITE_PULL_MESSAGE and not options.lite_pull_message_enable:
        return forbidden(BROKER_FORBIDDEN, f"the broker[{broker.host}] for lite pull consumer is forbidden")
    group = broker.groups.find(header.consumer_group)
    if group is None:
        raise ServerError(
            ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST,
            f"subscription group [{header.consumer_group}] does not exist, {SEE_FAQ}",
        )
    if not group.consume_enable:
        return forbidden(GROUP_FORBIDDEN, f"subscription group no permission, {header.consumer_group}")
    config = broker.topics.get(header.topic)
    if config is None:
        raise ServerError(
            ResponseCode.TOPIC_NOT_EXIST, f"topic[{header.topic}] not exist, apply first please! {SEE_FAQ}"
        )
    if not config.perm & PERM_READ:
        return forbidden(TOPIC_FORBIDDEN, f"the topic[{header.topic}] pulling message is forbidden")
    if not 0 <= header.queue_id < config.read_queue_nums:
        raise ServerError(
            ResponseCode.INVALID_PARAMETER,
            f"queueId[{header.queue_id}] is illegal, topic:[{header.topic}]"
            f" topicConfig.readQueueNums:[{config.read_queue_nums}] consumer:[{connection.peer}]",
        )
    if header.sys_flag & SUBSCRIPTION:
        return None
    members = broker.clients.consumers.get(header.consumer_group)
    if members is None or (options.reject_pull_consumer_enable and members.consume_type == PULL):
        raise ServerError(ResponseCode.SUBSCRIPTION_NOT_EXIST, f"the consumer's group info not exist{SEE_FAQ}")
    if not group.consume_broadcast_enable and members.message_model == BROADCASTING:
        return forbidden(
            BROADCAST_FORBIDDEN, f"the consumer group[{header.consumer_group}] can not consume by broadcast way"
        )
    if broker.groups.is_forbidden(header.consumer_group, header.topic):
        return forbidden(
            SUBSCRIPTION_FORBIDDEN,
            f"the consumer group[{header.consumer_group}] is forbidden for topic[{header.topic}]",
        )
    subscription = members.subscriptions.get(header.topic)
    if subscription is None:
        raise ServerError(ResponseCode.SUBSCRIPTION_NOT_EXIST, f"the consumer's subscription not exist{SEE_FAQ}")
    if subscription.sub_version < header.sub_version and header.expression_type != "TAG":
        raise ServerError(ResponseCode.SUBSCRIPTION_NOT_LATEST, "the consumer's subscription not latest")
    return None


def _filter(broker: Broker, header: PullMessage) -> tuple[str, str]:
    """(kind, expression): what the request brings, or what the group subscribed. Raises SUBSCRIPTION_PARSE_FAILED."""
    if not header.sys_flag & SUBSCRIPTION:
        subscription = broker.clients.subscription(header.consumer_group, header.topic)
        assert subscription is not None  # `_refuse` has looked
        if subscription.sub_version < header.sub_version:
            # The heartbeat with the newer subscription is still to come; Java's client may skip it for 30 s (it races
            # with its own timer after the start). Clients match tags themselves, so everything is a correct answer,
            # while what we know may leave out what they want now.
            return "TAG", "*"
        kind, expression = subscription.expression_type or "TAG", subscription.sub_string or "*"
        if not is_tag_kind(kind) and broker.store.check_sql(expression) is not None:
            raise ServerError(
                ResponseCode.FILTER_DATA_NOT_EXIST,
                "The broker's consumer filter data is not exist!Your expression may be wrong!",
            )
        return kind, expression
    kind, expression = header.expression_type or "TAG", header.subscription or ""
    remark = "parse the consumer's subscription failed"
    if is_tag_kind(kind):
        if is_only_bars(expression):
            raise ServerError(ResponseCode.SUBSCRIPTION_PARSE_FAILED, remark)
    elif (problem := broker.store.check_sql(expression)) is not None:
        raise ServerError(ResponseCode.SUBSCRIPTION_PARSE_FAILED, f"{remark}: {problem}")
    return kind, expression


HANDLERS = {RequestCode.PULL_MESSAGE: pull, RequestCode.LITE_PULL_MESSAGE: pull}
