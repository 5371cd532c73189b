"""Headers of topics: creating, changing, deleting, looking."""

from __future__ import annotations

from aerobee.protocol.headers import Header, Int32


class CreateTopic(Header, frozen=True):
    """UPDATE_AND_CREATE_TOPIC and UPDATE_AND_CREATE_STATIC_TOPIC. `attributes` is `+key=value,-key`."""

    topic: str
    read_queue_nums: Int32
    write_queue_nums: Int32
    perm: Int32
    default_topic: str = ""
    topic_filter_type: str = "SINGLE_TAG"
    topic_sys_flag: Int32 | None = None
    order: bool = False
    attributes: str | None = None
    force: bool = False


class DeleteTopic(Header, frozen=True):
    """DELETE_TOPIC_IN_BROKER."""

    topic: str


class GetAllTopicConfig(Header, frozen=True):
    """GET_ALL_TOPIC_CONFIG. Old tools send no fields at all and get everything at once."""

    topic_seq: Int32 | None = None
    data_version: str | None = None
    max_topic_num: Int32 | None = None


class GetAllTopicConfigReply(Header, frozen=True):
    """The answer to GetAllTopicConfig."""

    total_topic_num: Int32 | None = None


class GetTopicConfig(Header, frozen=True):
    """GET_TOPIC_CONFIG."""

    topic: str


class GetTopicStatsInfo(Header, frozen=True):
    """GET_TOPIC_STATS_INFO: first and last offset of each queue."""

    topic: str
