"""What the engine may serve without asking: the broker's tables, translated row by row into the engine's.

A row is `fast` when the engine's few rules are all that matters for it. Everything else (a group with a reset to hand
out, a topic that clients may not send to) comes to the handlers. Called on every change of a table, so the engine is
never behind what policy knows.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

from aerobee.broker import message_types
from aerobee.broker.clients import BROADCASTING, PULL
from aerobee.broker.filters import is_tag_kind, of_retries
from aerobee.broker.options import BrokerOptions
from aerobee.broker.static_topics import led_queues
from aerobee.broker.topics import NOT_SENDABLE, RETRY_PREFIX, TopicTable, has_batch_queues, is_compacted

if TYPE_CHECKING:
    from aerobee.broker.server import Broker

_log = logging.getLogger("aerobee.broker.store")

BATCH_UNIT_BYTES: Final = 46
UNFLUSHED_BYTES_MAX: Final = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10
"""Log that the device has not taken yet, from which senders wait: less than the kernel allows before a write of its own
accord waits for the disk (15 of 100), which would hold up everybody."""
UNFLUSHED_BYTES_MAX_SYNC: Final = 32 << 20
"""With synchronous flush, log that is not flushed: a reply in memory waits for every message of it."""


def store_settings(options: BrokerOptions, topics: TopicTable) -> dict[str, object]:
    """What the engine needs to open the store."""
    settings: dict[str, object] = {
        "root": options.store_path_root_dir,
        "sync_flush": options.sync_flush,
        "log_file_bytes": options.mapped_file_size_commit_log,
        "queue_file_units": options.queue_file_units,
        "batch_file_units": options.mapper_file_size_batch_consume_queue // BATCH_UNIT_BYTES,
        "batch_topics": topics.with_batch_queues(),
        "compaction_topics": topics.compacted(),
        "compaction_log_file_bytes": options.compaction_mapped_file_size,
        "compaction_queue_file_bytes": options.compaction_cq_mapped_file_size,
        "compaction_map_bytes": options.max_offset_map_size,
        "index_slots": options.max_hash_slot_num,
        "index_entries": options.max_index_num,
        "index_enable": options.message_index_enable,
        "log_flush_interval_ms": options.flush_interval_commit_log,
        "queue_flush_interval_ms": options.flush_interval_consume_queue,
        "unflushed_bytes_max": UNFLUSHED_BYTES_MAX_SYNC if options.sync_flush else UNFLUSHED_BYTES_MAX,
        "disk_used_ratio_max": options.disk_space_warning_level_ratio / 100,
        "delay_levels_ms": options.delay_levels_ms(),
        "light_queues": options.enable_lmq and options.enable_multi_dispatch,
    }
    return settings


def announce(broker: Broker) -> None:
    """Tells the engine everything: settings, topics, groups. Call it when the advertised address is known."""
    allow_settings(broker)
    for topic in broker.topics.table:
        allow_topic(broker, topic)
    for group in broker.groups.table:
        allow_group(broker, group)


def allow_settings(broker: Broker) -> None:
    """The settings for all topics and groups; again after each change of a live option."""
    options = broker.options
    broker.store.allow(
        fast=True,
        broker_perm=options.broker_permission,
        body_bytes_max=options.max_message_size,
        store_host=broker.listeners.store_host,
        region=options.region_id,
        trace_on=options.trace_on,
        cluster=options.broker_cluster_name,
        long_polling=options.long_polling_enable,
        short_polling_ms=options.short_polling_time_mills,
        lite_pull=options.lite_pull_message_enable,
        pull_bytes_max=options.max_transfer_bytes_on_message_in_memory,
        pull_count_max=options.max_transfer_count_on_message_in_memory,
        sync_flush_timeout_ms=options.sync_flush_timeout,
        light_queues_max=options.max_lmq_consume_queue_num if options.enable_lmq_quota else None,
        disk_used_ratio_max=options.disk_space_warning_level_ratio / 100,
    )


def allow_topic(broker: Broker, topic: str) -> None:
    """A topic was made, changed or deleted."""
    if not broker.opened:
        return
    config = broker.topics.get(topic)
    if config is None:
        broker.store.engine.forget_topic(topic)
        return
    fast = topic not in NOT_SENDABLE and config.topic_filter_type == "SINGLE_TAG"
    mapping = broker.static_topics.get(topic)
    batches, compacted = has_batch_queues(config), is_compacted(config)
    kind = "MIXED"
    if broker.options.enable_topic_message_type_check and message_types.is_checked(config):
        kind = message_types.type_of_topic(config)
    # What comes to a retry topic may be a dead letter by now.
    by_engine = not batches and not compacted and not topic.startswith(RETRY_PREFIX)
    broker.store.engine.allow_topic(
        topic,
        config.perm,
        config.read_queue_nums,
        config.write_queue_nums,
        fast and mapping is None,
        sys_flag=config.topic_sys_flag,
        plain=by_engine and kind in ("NORMAL", "MIXED"),
        keyed=by_engine and kind in ("FIFO", "MIXED"),
        led=led_queues(mapping) if fast and mapping is not None else (),
        batch=batches,
        compacted=compacted and broker.options.enable_compaction,
    )


def allow_group(broker: Broker, group: str) -> None:
    """A group's settings, members, resets or heirs of locked queues changed."""
    if not broker.opened:
        return
    config = broker.groups.get(group)
    if config is None:
        broker.store.engine.forget_group(group)
        return
    members = broker.clients.consumers.get(group)
    fast = (
        group not in broker.groups.forbidden
        and not broker.offsets.has_reset(group)
        and not broker.order.has_heirs(group)
    )
    if members is not None:
        if members.message_model == BROADCASTING and not config.consume_broadcast_enable:
            fast = False
        if members.consume_type == PULL and broker.options.reject_pull_consumer_enable:
            fast = False
    broker.store.engine.allow_group(group, config.consume_enable, fast, sys_flag=config.group_sys_flag)


def subscribe(broker: Broker, group: str, topic: str) -> None:
    """A group's subscription to a topic changed."""
    allow_group(broker, group)
    _subscribe(broker, group, topic)
    if broker.options.filter_support_retry and not topic.startswith(RETRY_PREFIX):
        _subscribe(broker, group, RETRY_PREFIX + group)


def filter_of(broker: Broker, group: str, topic: str, expression: str) -> str:
    """The SQL92 by which the group's messages of a topic are chosen that is subscribed to with `expression`."""
    if not broker.options.filter_support_retry or not topic.startswith(RETRY_PREFIX):
        return expression
    members = broker.clients.consumers.get(group)
    return (
        of_retries(broker.store, (wanted for wanted in members.subscriptions.values() if wanted.topic != topic))
        if members
        else "TRUE"
    )


def _subscribe(broker: Broker, group: str, topic: str) -> None:
    subscription = broker.clients.subscription(group, topic)
    engine = broker.store.engine
    if subscription is None:
        engine.unsubscribe(group, topic)
        return
    kind, expression = subscription.expression_type or "TAG", subscription.sub_string or "*"
    if not is_tag_kind(kind) and not broker.options.enable_property_filter:
        engine.unsubscribe(group, topic)  # its pulls come to the handler, which says why they are refused
        return
    if is_tag_kind(kind):
        kind = "TAG"
    else:
        expression = filter_of(broker, group, topic, expression)
    try:
        engine.subscribe(group, topic, subscription.sub_version, kind, expression)
    except ValueError as error:
        _log.warning("group %s subscribes to %s with a filter that does not compile: %s", group, topic, error)
        engine.unsubscribe(group, topic)
