"""The broker itself for tools: state, settings, statistics, cleaning, and questions passed on to clients."""

from __future__ import annotations

import asyncio
import logging
import platform
import shutil
from typing import TYPE_CHECKING, Final

from aerobee.broker import retention
from aerobee.errors import AerobeeError, RequestTimeout, ServerError
from aerobee.net.connection import Connection
from aerobee.options import OptionsError, properties_dict
from aerobee.protocol import fastjson
from aerobee.protocol.bodies.admin import BrokerStatsData, BrokerStatsItem, HARuntimeInfo, KVTable
from aerobee.protocol.bodies.client import GetConsumerStatusBody
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.fastjson import MessageQueue
from aerobee.protocol.headers.admin import (
    ConsumeMessageDirectly,
    GetBrokerConfigReply,
    GetConsumerRunningInfo,
    GetConsumerStatus,
    ViewBrokerStatsData,
)
from aerobee.protocol.message import parse_offset_message_id

if TYPE_CHECKING:
    from aerobee.broker.clients import Client
    from aerobee.broker.server import Broker

_log = logging.getLogger("aerobee.broker.admin")

VERSION_TEXT: Final = "V5_5_0"
CALL_CLIENT_TIMEOUT_S: Final = 10.0
ASK_MEMBERS_TIMEOUT_S: Final = 3.0
"""For all members together: tools wait five seconds, and those who answer are not to be lost for one who does not."""
VERSION_3_1_8: Final = 62
"""Consumers from here on answer questions."""


# State.


def runtime_info(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_BROKER_RUNTIME_INFO: about eighty figures as text, under Apache's names."""
    return command.reply(body=KVTable(table=_runtime(broker)).to_json())


def _runtime(broker: Broker) -> dict[str, str]:
    options, stats = broker.options, broker.store.stats()
    now_ms = broker.clock.now_ms()
    usage = shutil.disk_usage(options.log_dir)
    ratio = str(retention.used(options.log_dir))
    table = {
        "bootTimestamp": str(broker.started_ms),
        "runtime": _duration(now_ms - broker.started_ms),
        "brokerActive": "true",
        "brokerVersion": "513",
        "brokerVersionDesc": VERSION_TEXT,
        "commitLogDiskRatio": ratio,
        f"commitLogDiskRatio_{options.log_dir}": ratio,
        "consumeQueueDiskRatio": str(retention.used(options.store_dir)),
        "commitLogMinOffset": str(stats["min_position"]),
        "commitLogMaxOffset": str(stats["max_position"]),
        "commitLogDirCapacity": f"Total : {_size(usage.total)}, Free : {_size(usage.free)}.",
        "remainHowManyDataToFlush": _size(max(0, stats["max_position"] - stats["flushed_position"])),
        "remainTransientStoreBufferNumbs": "2147483647",
        "dispatchBehindBytes": "0",
        "dispatchMaxBuffer": "0",
        "pageCacheLockTimeMills": "0",
        "startAcceptSendRequestTimeStamp": "0",
        "earliestMessageTimeStamp": str(stats["earliest_store_timestamp"]),
        "putMessageEntireTimeMax": str(stats["commit_max_us"] // 1000),
        "getMessageEntireTimeMax": "0",
        "putMessageFailedTimes": str(broker.store.counters()["sends_refused"]),
        "putMessageDistributeTime": "",
        "putLatency99": "0.00",
        "putLatency999": "0.00",
        "timerReadBehind": "0",
        "timerOffsetBehind": "0",
        "timerCongestNum": "0",
        "timerEnqueueTps": "0.0",
        "timerDequeueTps": "0.0",
        "EndTransactionQueueSize": "0",
        "EndTransactionThreadPoolQueueCapacity": "100000",
        "consumerGroupsMismatched": str(sum(bool(group.mismatch) for group in broker.clients.consumers.values())),
        "storeHealth": broker.store.health() or "",
        "pythonVersion": platform.python_version(),
        "connections": str(broker.listeners.connections),
    }
    for what, count in broker.counters.items():
        table[f"connections {what}"] = str(count)
    for pool, capacity in (("send", 10000), ("pull", 100000), ("litePull", 100000), ("query", 20000), ("ack", 100000)):
        # There are no thread pools; tools print these, and zero is the truth: nothing waits in a queue.
        table[f"{pool}ThreadPoolQueueSize"] = "0"
        table[f"{pool}ThreadPoolQueueCapacity"] = str(capacity)
        table[f"{pool}ThreadPoolQueueHeadWaitTimeMills"] = "0"
    for level, (done, end) in broker.delay.behind().items():
        table[f"scheduleMessageOffset_{level}"] = f"{done},{end}"
    table.update(broker.timer.runtime())
    table.update(broker.transactions.runtime())
    table.update(broker.stats.runtime())
    return table


def _duration(ms: int) -> str:
    """`[ 1 days, 2 hours, 3 minutes, 4 seconds ]`."""
    seconds = ms // 1000
    days, hours, minutes = seconds // 86400, seconds % 86400 // 3600, seconds % 3600 // 60
    return f"[ {days} days, {hours} hours, {minutes} minutes, {seconds % 60} seconds ]"


def _size(number: int) -> str:
    """`4.2 GiB`."""
    if number < 1024:
        return f"{number} B"
    value = float(number)
    for unit in "KMGTPE":
        value /= 1024
        if value < 1024 or unit == "E":
            break
    return f"{value:.1f} {unit}iB"


def ha_status(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_BROKER_HA_STATUS: a master without slaves."""
    stats = broker.store.stats()
    body = HARuntimeInfo(master=True, master_commit_log_max_offset=stats["max_position"])
    return command.reply(body=body.to_json())


# Settings.


def get_config(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_BROKER_CONFIG: every setting as `key=value` lines."""
    version = fastjson.dumps(broker.config_version.to_json()).decode()
    return command.reply(header=GetBrokerConfigReply(version=version), body=broker.options.to_properties().encode())


async def update_config(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """UPDATE_BROKER_CONFIG: all of it or nothing; never a path, a command or an identity."""
    try:
        changes = properties_dict(command.body.decode("utf-8", "replace"), "request")
        result = await broker.options.change_and_keep(changes)
    except OptionsError as error:
        _log.warning("%s was refused a change of settings: %s", connection.peer, error)
        raise ServerError(ResponseCode.NO_PERMISSION, f"Can not update config: {error}") from None
    _log.warning("%s changed settings: now %s, at the next start %s", connection.peer, result.live, result.at_restart)
    broker.config_version.advance()
    broker.options_changed({*result.live, *result.at_restart})
    notes = [f"{name} takes effect at the next start" for name in result.at_restart] + result.notes
    if result.not_kept:
        notes.insert(0, f"changed until the next start only: {result.not_kept}")
        _log.warning("%s", notes[0])
    return command.reply(remark="; ".join(notes) or None)


# Statistics.


def view_stats(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """VIEW_BROKER_STATS_DATA."""
    header = command.header(ViewBrokerStatsData)
    found = broker.stats.view(header.stats_name, header.stats_key)
    if found is None:
        raise ServerError(ResponseCode.SYSTEM_ERROR, f"The stats <{header.stats_name}> <{header.stats_key}> not exist")
    minute, hour, day = (
        BrokerStatsItem(sum=found[w][0], tps=found[w][1], avgpt=0.0) for w in ("minute", "hour", "day")
    )
    return command.reply(body=BrokerStatsData(stats_minute=minute, stats_hour=hour, stats_day=day).to_json())


# Cleaning.


async def clean_queues(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """CLEAN_EXPIRED_CONSUMEQUEUE, DELETE_EXPIRED_COMMITLOG: what is over its time goes now, whatever the hour."""
    _log.warning("%s asks to clean the store", connection.peer)
    await retention.clean(broker, now=True)
    return command.reply()


def clean_unused_topics(broker: Broker, connection: Connection, command: RemotingCommand) -> RemotingCommand:
    """CLEAN_UNUSED_TOPIC: queues of topics that do not exist any more."""
    for topic in broker.store.topics():
        if broker.topics.get(topic) is None and not broker.topics.is_system(topic):
            _log.warning(
                "%s asked to clean: the queues of topic %s, which does not exist, are deleted", connection.peer, topic
            )
            broker.store.delete_topic(topic)
    return command.reply()


# Questions passed on.


async def consumer_running_info(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """GET_CONSUMER_RUNNING_INFO: the member answers."""
    header = command.header(GetConsumerRunningInfo)
    return await _call_consumer(broker, command, header.consumer_group, header.client_id, command.body)


async def consume_directly(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """CONSUME_MESSAGE_DIRECTLY: one member consumes one message of the log now."""
    header = command.header(ConsumeMessageDirectly)
    try:
        record = broker.store.record(parse_offset_message_id(header.msg_id or "")[1])
    except ValueError:
        record = None
    if record is None:
        raise ServerError(ResponseCode.SYSTEM_ERROR, f"can not find message by the id, {header.msg_id}")
    fields = command.ext_fields
    fields["brokerName"] = broker.options.broker_name
    topic = broker.topics.get(header.topic or "")
    if topic is not None:
        fields["topicSysFlag"] = str(topic.topic_sys_flag)
    group = broker.groups.get(header.consumer_group)
    if group is not None:
        fields["groupSysFlag"] = str(group.group_sys_flag)
    return await _call_consumer(broker, command, header.consumer_group, header.client_id or "", record)


async def _call_consumer(
    broker: Broker, command: RemotingCommand, group: str, client_id: str, body: bytes
) -> RemotingCommand:
    members = broker.clients.consumers.get(group)
    member = members.find(client_id) if members is not None else None
    if member is None:
        raise ServerError(ResponseCode.SYSTEM_ERROR, f"The Consumer <{group}> <{client_id}> not online")
    if member.version < VERSION_3_1_8:
        raise ServerError(
            ResponseCode.SYSTEM_ERROR,
            f"The Consumer <{client_id}> Version <{member.version}> too low to finish,"
            " please upgrade it to V3_1_8_SNAPSHOT",
        )
    request = RemotingCommand.request(command.code, body=body)
    request.ext_fields.update(command.ext_fields)
    try:
        answer = await member.connection.invoke(request, CALL_CLIENT_TIMEOUT_S)
    except RequestTimeout as error:
        raise ServerError(
            ResponseCode.CONSUME_MSG_TIMEOUT, f"consumer <{group}> <{client_id}> Timeout: {error}"
        ) from None
    except AerobeeError as error:
        raise ServerError(
            ResponseCode.SYSTEM_ERROR, f"invoke consumer <{group}> <{client_id}> Exception: {error}"
        ) from None
    reply = command.reply(answer.code, body=answer.body, remark=answer.remark)
    reply.ext_fields.update(answer.ext_fields)
    return reply


async def consumer_status(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """INVOKE_BROKER_TO_GET_CONSUMER_STATUS: the offsets that members hold in memory."""
    header = command.header(GetConsumerStatus)
    members = broker.clients.consumers.get(header.group)
    if members is None or not members.members:
        raise ServerError(ResponseCode.SYSTEM_ERROR, f"No Any Consumer online in the consumer group: [{header.group}]")
    asked = [
        member
        for member in members.members.values()
        if not header.client_addr or member.client_id == header.client_addr
    ]

    async def ask(member: Client) -> dict[MessageQueue, int] | None:
        request = RemotingCommand.request(RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT, header)
        try:
            answer = await member.connection.invoke(request, ASK_MEMBERS_TIMEOUT_S)
            if answer.code != ResponseCode.SUCCESS or not answer.body:
                return None
            return GetConsumerStatusBody.from_json(answer.body).message_queue_table
        except AerobeeError as error:
            _log.warning("client %s does not say which offsets it holds: %s", member.client_id, error)
            return None

    answers = await asyncio.gather(*map(ask, asked))
    table = {member.client_id: answer for member, answer in zip(asked, answers, strict=True) if answer is not None}
    return command.reply(body=GetConsumerStatusBody(consumer_table=table).to_json())


HANDLERS = {
    RequestCode.GET_BROKER_RUNTIME_INFO: runtime_info,
    RequestCode.GET_BROKER_HA_STATUS: ha_status,
    RequestCode.GET_BROKER_CONFIG: get_config,
    RequestCode.UPDATE_BROKER_CONFIG: update_config,
    RequestCode.VIEW_BROKER_STATS_DATA: view_stats,
    RequestCode.CLEAN_EXPIRED_CONSUMEQUEUE: clean_queues,
    RequestCode.DELETE_EXPIRED_COMMITLOG: clean_queues,
    RequestCode.CLEAN_UNUSED_TOPIC: clean_unused_topics,
    RequestCode.GET_CONSUMER_RUNNING_INFO: consumer_running_info,
    RequestCode.CONSUME_MESSAGE_DIRECTLY: consume_directly,
    RequestCode.INVOKE_BROKER_TO_GET_CONSUMER_STATUS: consumer_status,
}
