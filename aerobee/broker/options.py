"""The broker's settings: one row each, under Apache RocketMQ's property names.

Nothing that names a path, an address, an identity or a layout on disk can be changed over the wire; see `remote`.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Final

from aerobee import options_ignored
from aerobee.net.addresses import MAIN, check_listeners, is_address, named_addresses, split_list
from aerobee.options import Options, setting

LOOPBACK: Final = "127.0.0.1"
FAST_PORT_OFFSET: Final = 2
QUEUE_UNIT_BYTES: Final = 20
"""Clients with the VIP channel switched on dial `listenPort - 2` for sends; a second listener serves it."""

_NO_REPLICATION: Final = "there is no replication, every broker is a master of its own"
_DELAY_UNITS_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DELAY_LEVELS: Final = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h"
_HOURS: Final = re.compile(r"\d{1,2}(;\d{1,2})*")


def _host_name() -> str:
    return socket.gethostname() or "DEFAULT_BROKER"


def _home_store() -> str:
    return str(Path.home() / "store")


class BrokerOptions(Options):
    """A checked set of broker settings; `BrokerOptions.load` reads file, environment and flags."""

    ENVIRONMENT = "AEROBEE_BROKER_"
    IGNORED = options_ignored.BROKER
    REFUSED = options_ignored.BROKER_REFUSED

    # Who it is.
    broker_name = setting(
        "", "Name of this broker; masters and slaves of one set share it.", factory=_host_name, remote=False
    )
    broker_cluster_name = setting("DefaultCluster", "Cluster the broker belongs to.", remote=False)
    broker_id = setting(0, "0 for a master.", low=0, high=0, remote=False, why=_NO_REPLICATION)
    broker_role = setting(
        "ASYNC_MASTER",
        "Role in its set; replication is not served, a synchronous master would wait for nobody.",
        choices=("ASYNC_MASTER",),
        remote=False,
        why=_NO_REPLICATION,
    )
    region_id = setting("DefaultRegion", "Region written into messages for tracing.", live=True)

    # Where it is.
    bind_address = setting(LOOPBACK, "Address to listen on; 0.0.0.0 for all.", remote=False)
    listen_port = setting(10911, "Port that clients dial; 0 takes a free one.", low=0, high=65535, remote=False)
    fast_port = setting(
        -1,
        "Second port for the same service; -1 means listenPort - 2, 0 takes a free one.",
        low=-1,
        high=65535,
        remote=False,
    )
    broker_ip1 = setting(
        "",
        "Address that clients are told to dial; empty: the one listened on. With `bindAddress=0.0.0.0` that is the one "
        "that leads to a name server on another machine, else one that leads out of this machine.",
        name="brokerIP1",
        remote=False,
    )
    broker_ip2 = setting("", "Address for replication, as Apache's files name it.", name="brokerIP2", remote=False)
    listeners = setting(
        "",
        "Further places to listen, `NAME://HOST:PORT` separated by `;`; each also serves the port two below.",
        remote=False,
    )
    advertised_listeners = setting(
        "",
        "What clients of a listener are told to dial instead, `NAME://HOST:PORT` separated by `;`; the listener of "
        "listenPort is called `main`.",
        remote=False,
    )
    namesrv_addr = setting(
        "",
        "Name servers, separated by `;`. Empty: the broker registers nowhere.",
        remote=False,
        variable="NAMESRV_ADDR",
    )
    connections_max = setting(0, "Most client connections; 0: as many as the process may open files.", low=0)
    server_channel_max_idle_time_seconds = setting(
        120, "Seconds without a byte after which a connection is closed.", low=1
    )
    register_name_server_period = setting(
        30_000, "Milliseconds between registrations.", low=1000, high=60_000, live=True
    )
    name_server_wait_seconds = setting(
        10,
        "Seconds after which a broker without a message that has reached no name server gives up; 0: never.",
        low=0,
    )
    register_broker_timeout_mills = setting(24_000, "Milliseconds a registration may take.", low=100, live=True)

    # Where it stores.
    store_path_root_dir = setting("", "Directory of the store.", factory=_home_store, remote=False)
    store_path_commit_log = setting(
        "",
        "Directory of the commit log, which is always `commitlog` in the store: accepted when it says so. To have the "
        "log on another disk, make that a symbolic link or mount the disk there.",
        remote=False,
    )
    mapped_file_size_commit_log = setting(
        1 << 30, "Bytes of a commit log file.", low=1 << 16, high=1 << 31, remote=False
    )
    mapped_file_size_consume_queue = setting(
        6_000_000,
        "Bytes of a consume queue file, in units of 20.",
        low=2000,
        high=1 << 31,
        remote=False,
    )
    mapper_file_size_batch_consume_queue = setting(
        13_800_000,
        "Bytes of a batch queue file, in units of 46.",
        low=460,
        high=1 << 31,
        remote=False,
    )
    enable_compaction = setting(
        True, "Serve topics with cleanup.policy=COMPACTION; false: they are as any other.", remote=False
    )
    compaction_mapped_file_size = setting(
        100 << 20, "Bytes of a compaction log file.", low=1 << 12, high=1 << 31, remote=False
    )
    compaction_cq_mapped_file_size = setting(
        10 << 20, "Bytes of the file with its 46-byte units.", low=460, high=1 << 28, remote=False
    )
    compaction_schedule_internal = setting(
        900_000, "Milliseconds between compactions.", low=100, high=1 << 31, remote=False
    )
    max_offset_map_size = setting(
        100 << 20,
        "Bytes for the keys of the queue being compacted; those that find no room are compared the next time.",
        low=1 << 12,
        high=1 << 31,
        remote=False,
    )
    max_hash_slot_num = setting(5_000_000, "Hash slots of an index file.", low=100, remote=False)
    max_index_num = setting(20_000_000, "Entries of an index file.", low=100, remote=False)
    message_index_enable = setting(True, "Index messages by key, so that they can be queried.", remote=False)
    flush_disk_type = setting(
        "ASYNC_FLUSH",
        "SYNC_FLUSH acknowledges a message when it is on the disk. With ASYNC_FLUSH a power cut may take what was not "
        "flushed yet (see flushIntervalCommitLog); a killed process loses nothing with either.",
        choices=("ASYNC_FLUSH", "SYNC_FLUSH"),
        remote=False,
    )
    flush_interval_commit_log = setting(500, "Milliseconds between flushes of the commit log.", low=1, high=60_000)
    flush_interval_consume_queue = setting(1000, "Milliseconds between flushes of the queues.", low=1, high=60_000)
    sync_flush_timeout = setting(
        5000, "Milliseconds a sender waits for a flush before it is told FLUSH_DISK_TIMEOUT.", low=100
    )
    file_reserved_time = setting(72, "Hours a commit log file is kept.", low=0, live=True)
    delete_when = setting("04", "Hours of the day at which expired files are deleted, separated by `;`.", live=True)
    disk_max_used_space_ratio = setting(
        75, "Percent of the disk above which expired files go at any hour.", low=10, high=95, live=True
    )
    disk_space_clean_forcibly_ratio = setting(
        85,
        "Percent above which files go before their time, if cleanFileForciblyEnable.",
        low=10,
        high=99,
        live=True,
    )
    disk_space_warning_level_ratio = setting(90, "Percent above which sends are refused.", low=10, high=100, live=True)
    clean_file_forcibly_enable = setting(
        False,
        "Delete files before their time when the disk fills up, consumed or not. Apache's default is true.",
        live=True,
    )
    delete_unconsumed_enable = setting(
        False, "Delete files that are over their time, consumed or not, as Apache RocketMQ does.", live=True
    )
    clean_resource_interval = setting(
        10_000, "Milliseconds between looks at disk space and expired files.", low=100, high=600_000
    )

    # What it serves.
    broker_permission = setting(6, "2 writes, 4 reads, 6 both.", low=0, high=7, live=True)
    auto_create_topic_enable = setting(True, "Create a topic when somebody sends to it.", live=True)
    auto_create_subscription_group = setting(True, "Create a consumer group when somebody uses it.", live=True)
    cluster_topic_enable = setting(True, "The topic named as the cluster can be read and written.")
    broker_topic_enable = setting(True, "The topic named as the broker can be read and written.")
    trace_topic_enable = setting(False, "Create the trace topic.")
    msg_trace_topic_name = setting("RMQ_SYS_TRACE_TOPIC", "Name of the trace topic.")
    default_topic_queue_nums = setting(
        8, "Queues of TBW102: the most that an automatically created topic gets.", low=1, high=1024
    )
    max_message_size = setting(4 << 20, "Bytes of the largest body.", low=1024, high=15 << 20, live=True)
    long_polling_enable = setting(True, "Pulls wait for messages.", live=True)
    short_polling_time_mills = setting(1000, "Milliseconds a pull waits when long polling is off.", low=0, live=True)
    lite_pull_message_enable = setting(True, "Serve LITE_PULL_MESSAGE.", live=True)
    enable_property_filter = setting(False, "Serve SQL92 filters.", live=True)
    filter_support_retry = setting(
        False,
        "A retry topic subscribed to with SQL92 gives each message by the expression of the topic it comes from.",
        live=True,
    )
    notify_consumer_ids_changed_enable = setting(True, "Tell consumers when their group changes.", live=True)
    reject_transaction_message = setting(False, "Refuse transactional messages.", live=True)
    reject_pull_consumer_enable = setting(False, "Ignore pull consumers in heartbeats.", live=True)
    trace_on = setting(True, "Ask clients to trace.", live=True)
    validate_system_topic_when_update_topic = setting(True, "System topics cannot be changed by tools.", live=True)
    enable_topic_message_type_check = setting(
        False, "Refuse messages that are not of their topic's message.type.", live=True
    )
    enable_mixed_message_type = setting(False, "Topics of message type MIXED may be made.", live=True)
    channel_expired_timeout = setting(
        120_000, "Milliseconds without a heartbeat after which a client is forgotten.", low=1000, live=True
    )
    max_msgs_num_batch = setting(64, "Most messages a query by key returns.", low=1, high=1000, live=True)
    default_query_max_num = setting(
        32, "Messages a query by key returns when nothing else is asked.", low=1, high=1000, live=True
    )
    store_reply_message_enable = setting(True, "Store replies of request-reply.", live=True)
    use_server_side_reset_offset = setting(True, "Reset offsets on the broker instead of asking clients.", live=True)
    max_transfer_bytes_on_message_in_memory = setting(262_144, "Bytes of a pull's reply.", low=1024, high=8 << 20)
    max_transfer_count_on_message_in_memory = setting(32, "Messages of a pull's reply.", low=1, high=4096)

    # Mechanisms.
    message_delay_level = setting(_DELAY_LEVELS, "Delay levels, 1 to n.", remote=False)
    transaction_time_out = setting(
        6000, "Milliseconds before an unfinished transaction is first asked about.", low=100, live=True
    )
    transaction_check_max = setting(15, "Times a transaction is asked about before it is set aside.", low=1, live=True)
    transaction_check_interval = setting(30_000, "Milliseconds between rounds of questions.", low=50, live=True)
    transaction_op_msg_max_size = setting(
        4096, "Bytes of a message that notes which transactions are ended.", low=32, high=1 << 20, live=True
    )
    flush_consumer_offset_interval = setting(
        5000, "Milliseconds between writes of consumerOffset.json.", low=100, high=60_000
    )
    pop_from_retry_probability = setting(
        20, "Of 100 pops, how many look into the retry topic first.", low=0, high=100, live=True
    )
    pop_from_retry_probability_for_priority = setting(0, "The same for pops by priority.", low=0, high=100, live=True)
    priority_order_asc = setting(True, "The last queue has the highest priority; false: the first.", live=True)
    use_separate_retry_queue = setting(
        False,
        "Popped messages come again in the queue of their number, the retry topic has as many queues as the topic.",
        live=True,
    )
    enable_retry_topic_v2 = setting(
        False, "Popped messages come again in `%RETRY%group+topic` instead of `%RETRY%group_topic`.", live=True
    )
    retrieve_message_from_pop_retry_topic_v1 = setting(
        True, "Pops read the other form of the retry topic too, if it is there.", live=True
    )
    pop_response_return_actual_retry_topic = setting(
        False, "Popped messages that come again name their retry topic, not the topic asked for.", live=True
    )
    pop_polling_size = setting(1024, "Pops that may wait for one queue of a group.", low=0, live=True)
    max_pop_polling_size = setting(100_000, "Pops and notifications that may wait in all.", low=0, live=True)
    pop_long_polling_force_notify_interval = setting(
        800, "Every so many messages of a queue wake notifications that wait for others too; 0: none.", low=0, live=True
    )
    use_message_filter_for_notification = setting(
        True, "Notifications say only what their filter lets through.", live=True
    )
    max_message_filter_num_for_notification = setting(
        64,
        "A notification looks at the tags of fewer messages than this; of so many some will match.",
        low=0,
        live=True,
    )
    init_pop_offset_by_check_msg_in_mem = setting(
        True, "A new group that wants to pop from the end starts at the beginning while that is in memory.", live=True
    )
    enable_pop_message_threshold = setting(
        False, "Give nothing from a queue of which a group holds more than popInflightMessageThreshold.", live=True
    )
    pop_inflight_message_threshold = setting(
        10_000, "Unacknowledged messages of one queue and group; see enablePopMessageThreshold.", low=0, live=True
    )
    default_message_request_mode = setting(
        "PULL", "How clients without rebalance of their own consume: PULL or POP.", choices=("PULL", "POP"), live=True
    )
    default_pop_share_queue_num = setting(
        -1, "Members of a popping group that share a member's queues; -1: all share all.", low=-1, live=True
    )
    server_load_balancer_enable = setting(True, "Assign queues to the members that ask for it.", live=True)
    timer_wheel_enable = setting(True, "Serve messages that are to be delivered at an exact time.", remote=False)
    timer_precision_ms = setting(
        1000,
        "Milliseconds of a slot, how exact a time can be: 100, 200, 500 or 1000.",
        low=100,
        high=1000,
        remote=False,
    )
    timer_max_delay_sec = setting(
        259_200, "Most seconds a message may be delayed to an exact time.", low=1, remote=False
    )
    timer_roll_window_slot = setting(
        172_800, "Slots ahead; what is due later is stored anew on the way.", low=2, remote=False
    )
    timer_congest_num_each_slot = setting(
        2**31 - 1,
        "Messages of a slot from which on sends are refused, more of them the fuller it is.",
        low=1,
        live=True,
    )
    timer_flush_interval_ms = setting(1000, "Milliseconds between syncs of the timer's files.", low=100, high=60_000)
    mapped_file_size_timer_log = setting(
        100 << 20, "Bytes of a timer log file.", low=1 << 12, high=1 << 31, remote=False
    )
    recall_message_enable = setting(False, "A message that waits for its time can be recalled.", live=True)
    enable_lmq = setting(
        False,
        "Light queues: topics and groups called %LMQ%… are always there, offsets are kept in lmqConsumerOffset.json.",
    )
    enable_multi_dispatch = setting(
        False, "With enableLmq: a message is also in the light queues that its INNER_MULTI_DISPATCH names."
    )
    enable_lmq_quota = setting(False, "With enableLmq: no more than maxLmqConsumeQueueNum light queues.", live=True)
    max_lmq_consume_queue_num = setting(20_000, "Light queues there may be; see enableLmqQuota.", low=0, live=True)
    flush_delay_offset_interval = setting(
        10_000, "Milliseconds between writes of delayOffset.json.", low=100, high=60_000
    )

    def check(self) -> list[str]:
        """Rules between settings."""
        problems = []
        if self.mapped_file_size_consume_queue % 20:
            problems.append("mappedFileSizeConsumeQueue must be a multiple of 20")
        if self.mapper_file_size_batch_consume_queue % 46:
            problems.append("mapperFileSizeBatchConsumeQueue must be a multiple of 46")
        if not self.broker_name:
            problems.append("brokerName must not be empty")
        if not self.broker_cluster_name:
            problems.append("brokerClusterName must not be empty")
        if not self.store_path_root_dir:
            problems.append("storePathRootDir must not be empty; it names the directory of the store")
        path = self.store_path_commit_log
        if path and os.path.realpath(path) != os.path.realpath(self.log_dir):
            problems.append(
                f"storePathCommitLog={path} cannot be honoured: the log is in {self.log_dir}. Make that a symbolic "
                f"link to {path}, or mount the disk there"
            )
        if not _HOURS.fullmatch(self.delete_when) or any(int(hour) > 23 for hour in self.delete_when.split(";")):
            problems.append(f"deleteWhen must be hours of the day separated by ';', not {self.delete_when!r}")
        if self.listen_port and self.fast_port == self.listen_port:
            problems.append("fastPort must differ from listenPort")
        if self.fast_port < 0:
            problems += _check_second_port("listenPort", self.listen_port)
        if not self.bind_address:
            problems.append("bindAddress must not be empty; 0.0.0.0 stands for all addresses")
        wrong = check_listeners(self.listeners)
        problems += wrong
        for name, address in named_addresses(self.listeners).items() if not wrong else ():
            problems += _check_second_port(f"listeners: the port of {name!r}", int(address.rpartition(":")[2]))
        try:
            unknown = named_addresses(self.advertised_listeners).keys() - {MAIN}
            if not wrong and (unknown := unknown - named_addresses(self.listeners).keys()):
                problems.append(f"advertisedListeners names {min(unknown)!r}, which listeners does not have")
        except ValueError as error:
            problems.append(f"advertisedListeners {error}")
        for address in self.name_servers:
            if not is_address(address):
                problems.append(f"namesrvAddr must be host:port, several joined by ';', not {address!r}")
        try:
            self.delay_levels_ms()
        except ValueError as error:
            problems.append(f"messageDelayLevel {error}")
        return problems

    def delay_levels_ms(self) -> list[int]:
        """Milliseconds of each delay level; level n is at n - 1. ValueError says which word is wrong."""
        levels = []
        for word in self.message_delay_level.split():
            number, unit = word[:-1], word[-1:]
            if unit not in _DELAY_UNITS_MS or not number.isdigit():
                raise ValueError(f"must be numbers with s, m, h or d, not {word!r}")
            levels.append(int(number) * _DELAY_UNITS_MS[unit])
        if not levels:
            raise ValueError("must name at least one level")
        return levels

    @property
    def store_dir(self) -> Path:
        """Directory of the store."""
        return Path(self.store_path_root_dir)

    @property
    def log_dir(self) -> Path:
        """Directory of the commit log, maybe on another disk."""
        return self.store_dir / "commitlog"

    @property
    def queue_file_units(self) -> int:
        """Entries that a consume queue's file holds."""
        return self.mapped_file_size_consume_queue // QUEUE_UNIT_BYTES

    @property
    def sync_flush(self) -> bool:
        """Messages are acknowledged when they are on the disk."""
        return self.flush_disk_type == "SYNC_FLUSH"

    @property
    def name_servers(self) -> list[str]:
        """Addresses of the name servers."""
        return split_list(self.namesrv_addr)


def _check_second_port(what: str, port: int) -> list[str]:
    if port == 0 or port > FAST_PORT_OFFSET:
        return []
    return [f"{what} must be above {FAST_PORT_OFFSET}, the second port is below: {port}"]
