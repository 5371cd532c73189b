"""What clients say about themselves: heartbeats (V1 and V2), leaving, who else is in the group, order locks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from aerobee.broker.clients import PULL, Client
from aerobee.broker.filters import is_tag_kind
from aerobee.broker.topics import RETRY_PREFIX
from aerobee.errors import MalformedRequest, ServerError
from aerobee.log import Complaints
from aerobee.net.connection import Connection
from aerobee.options import JAVA_INT_MAX
from aerobee.protocol import fastjson
from aerobee.protocol.bodies.client import (
    CheckClientRequestBody,
    HeartbeatData,
    LockBatchRequestBody,
    UnlockBatchRequestBody,
)
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.fastjson import MessageQueue
from aerobee.protocol.headers.groups import GetConsumerListByGroup, UnregisterClient

if TYPE_CHECKING:
    from aerobee.broker.server import Broker

NAME_LENGTH_MAX: Final = 512
"""No topic, group, broker or client has a longer name."""

_complaints: Final = Complaints(logging.getLogger("aerobee.broker.groups"))


async def heart_beat(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """HEART_BEAT. Version 2 has a fingerprint of the subscriptions and leaves them out while they are the same.

    IS_SUB_CHANGE "true" has the client send them with its next heartbeat: also when it left out what nobody here knows
    (the broker was restarted, the connection is a new one).
    """
    data = HeartbeatData.from_json(command.body)
    fingerprint = data.heartbeat_fingerprint
    tell_again = not fingerprint

    def client() -> Client:
        return Client(data.client_id, connection, command.language, command.version)

    joined = []
    for consumer in data.consumer_data_set:
        if broker.options.reject_pull_consumer_enable and consumer.consume_type == PULL:
            continue
        settings = broker.groups.find(consumer.group_name)
        if settings is None:
            continue
        group = broker.clients.consumers.get(consumer.group_name)
        if fingerprint and group is not None and group.fingerprint and group.fingerprint != fingerprint:
            tell_again = True
        order = any(broker.topics.is_order(subscription.topic) for subscription in consumer.subscription_data_set)
        joined.append((consumer, settings.retry_queue_nums, order))
        without_sub = bool(fingerprint) and data.is_without_sub
        broker.clients.register_consumer(
            consumer.group_name,
            client(),
            consume_type=consumer.consume_type,
            message_model=consumer.message_model,
            consume_from_where=consumer.consume_from_where,
            subscriptions=None if without_sub else consumer.subscription_data_set,
            notify=settings.notify_consumer_ids_changed_enable,
        )
        group = broker.clients.consumers[consumer.group_name]
        group.fingerprint = fingerprint
        if without_sub and not group.members[connection.id].subscriptions:
            tell_again = True
    for producer in data.producer_data_set:
        broker.clients.register_producer(producer.group_name, client())
    # Behind what makes it a member: while the disk takes its time the client may already be leaving.
    for consumer, retry_queues, order in joined:
        topic, sys_flag = RETRY_PREFIX + consumer.group_name, 2 if consumer.unit_mode else 0
        try:
            await broker.topics.create_for_group(topic, retry_queues, order=order, sys_flag=sys_flag)
        except OSError as error:  # a full disk keeps nobody from reading; the topic is written later
            _complaints.warn("retry topic", "retry topic of group %s not written: %s", consumer.group_name, error)
    reply = command.reply()
    reply.ext_fields["IS_SUPPORT_HEART_BEAT_V2"] = "true"
    reply.ext_fields["IS_SUB_CHANGE"] = "true" if tell_again else "false"
    return reply


def unregister_client(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """UNREGISTER_CLIENT."""
    header = command.header(UnregisterClient)
    if header.producer_group is not None:
        broker.clients.unregister_producer(header.producer_group, connection)
    if header.consumer_group is not None:
        broker.clients.unregister_consumer(header.consumer_group, connection)
    return command.reply()


def get_consumer_list(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_CONSUMER_LIST_BY_GROUP: the ids by which members share the queues."""
    header = command.header(GetConsumerListByGroup)
    group = broker.clients.consumers.get(header.consumer_group)
    if group is None:
        raise ServerError(ResponseCode.SYSTEM_ERROR, f"no consumer for this group, {header.consumer_group}")
    return command.reply(body=fastjson.dumps({"consumerIdList": group.client_ids()}))


def check_client_config(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """CHECK_CLIENT_CONFIG: will this subscription be understood?"""
    subscription = CheckClientRequestBody.from_json(command.body).subscription_data if command.body else None
    if subscription is None or is_tag_kind(subscription.expression_type):
        return command.reply()
    if not broker.options.enable_property_filter:
        raise ServerError(
            ResponseCode.SYSTEM_ERROR,
            f"The broker does not support consumer to filter message by {subscription.expression_type}",
        )
    if subscription.expression_type == "SQL92":
        problem = broker.store.check_sql(subscription.sub_string)
    else:
        problem = f"there are no filters of type {subscription.expression_type}"
    if problem is not None:
        raise ServerError(ResponseCode.SUBSCRIPTION_PARSE_FAILED, problem)
    return command.reply()


def lock_batch(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """LOCK_BATCH_MQ: the queues that this client may consume in order from now on."""
    body = LockBatchRequestBody.from_json(command.body)
    if not 0 < len(body.consumer_group) <= NAME_LENGTH_MAX or not 0 < len(body.client_id) <= NAME_LENGTH_MAX:
        raise MalformedRequest("a lock needs the names of a group (consumerGroup) and of a client (clientId)")
    wanted = list(dict.fromkeys((queue.topic, queue.broker_name, queue.queue_id) for queue in body.mq_set))
    for topic, name, queue_id in wanted:
        if not 0 <= queue_id <= JAVA_INT_MAX or max(len(topic), len(name)) > NAME_LENGTH_MAX:
            raise MalformedRequest(f"there can be no queue {queue_id} of topic {topic[:NAME_LENGTH_MAX]}")
    locked = broker.order.lock(body.consumer_group, body.client_id, wanted)
    queues = [MessageQueue(topic=topic, broker_name=name, queue_id=queue_id) for topic, name, queue_id in locked]
    return command.reply(body=fastjson.dumps({"lockOKMQSet": queues}))


def unlock_batch(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """UNLOCK_BATCH_MQ."""
    body = UnlockBatchRequestBody.from_json(command.body)
    broker.order.unlock(
        body.consumer_group, body.client_id, [(queue.topic, queue.broker_name, queue.queue_id) for queue in body.mq_set]
    )
    return command.reply()


HANDLERS = {
    RequestCode.HEART_BEAT: heart_beat,
    RequestCode.UNREGISTER_CLIENT: unregister_client,
    RequestCode.GET_CONSUMER_LIST_BY_GROUP: get_consumer_list,
    RequestCode.CHECK_CLIENT_CONFIG: check_client_config,
    RequestCode.LOCK_BATCH_MQ: lock_batch,
    RequestCode.UNLOCK_BATCH_MQ: unlock_batch,
}
