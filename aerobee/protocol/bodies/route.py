# ruff: noqa: RUF012 - msgspec gives each object its own copy of an empty default
"""Where topics live, and who is there."""

from __future__ import annotations

from aerobee.protocol.bodies import Body


class QueueData(Body):
    """The queues of a topic on one broker set. `perm`: bits 4 read, 2 write, 1 inherit."""

    broker_name: str = ""
    read_queue_nums: int = 0
    write_queue_nums: int = 0
    perm: int = 0
    topic_sys_flag: int = 0


class BrokerData(Body):
    """A broker set: its members' addresses by id, 0 the master."""

    cluster: str = ""
    broker_name: str = ""
    broker_addrs: dict[int, str] = {}
    zone_name: str | None = None
    enable_acting_master: bool = False


class LogicQueueMappingItem(Body):
    """A stretch of a static topic's queue on one broker."""

    gen: int = 0
    queue_id: int = 0
    bname: str = ""
    logic_offset: int = 0
    start_offset: int = 0
    end_offset: int = -1
    time_of_start: int = -1
    time_of_end: int = -1


class TopicQueueMappingInfo(Body):
    """Which of a static topic's queues a broker has: global id → local id."""

    topic: str = ""
    scope: str = "__global__"
    total_queues: int = 0
    bname: str = ""
    epoch: int = 0
    dirty: bool = False
    curr_id_map: dict[int, int] = {}


class TopicQueueMappingDetail(TopicQueueMappingInfo):
    """The same with each queue's history."""

    hosted_queues: dict[int, list[LogicQueueMappingItem]] = {}


class TopicRouteData(Body):
    """GET_ROUTEINFO_BY_TOPIC's answer. `order_topic_conf`: `broker:queues;…` of an ordered topic."""

    order_topic_conf: str | None = None
    queue_datas: list[QueueData] = []
    broker_datas: list[BrokerData] = []
    filter_server_table: dict[str, list[str]] = {}
    topic_queue_mapping_by_broker: dict[str, TopicQueueMappingInfo] | None = None


class ClusterInfo(Body):
    """GET_BROKER_CLUSTER_INFO's answer: broker sets by name, names by cluster."""

    broker_addr_table: dict[str, BrokerData] = {}
    cluster_addr_table: dict[str, list[str]] = {}


class TopicList(Body):
    """Names of topics. `broker_addr` comes with system topics only."""

    topic_list: list[str] = []
    broker_addr: str | None = None


class BrokerMemberGroup(Body):
    """The members of a broker set."""

    cluster: str = ""
    broker_name: str = ""
    broker_addrs: dict[int, str] = {}


class GetBrokerMemberGroupResponseBody(Body):
    """GET_BROKER_MEMBER_GROUP's answer."""

    broker_member_group: BrokerMemberGroup | None = None
