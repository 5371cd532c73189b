# ruff: noqa: RUF012 - msgspec gives each object its own copy of an empty default
"""Topics: their settings, their statistics, and a broker's registration."""

from __future__ import annotations

import struct
import zlib
from typing import Self

from msgspec import field

from aerobee.errors import MalformedRequest
from aerobee.protocol import fastjson
from aerobee.protocol.bodies import Body
from aerobee.protocol.bodies.route import TopicQueueMappingDetail, TopicQueueMappingInfo
from aerobee.protocol.fastjson import MessageQueue
from aerobee.protocol.headers import Int32


class DataVersion(Body):
    """How new a table is; compared for equality by those who keep a copy. `timestamp` in ms."""

    state_version: int = 0
    timestamp: int = 0
    counter: int = 0


class TopicConfig(Body):
    """A topic's settings. `perm`: bits 4 read, 2 write, 1 others may inherit.

    The fields are in the order of their names, so that a broker with ten thousand topics spells them quickly.
    """

    attributes: dict[str, str] = {}
    order: bool = False
    perm: Int32 = 6
    read_queue_nums: Int32 = 16
    topic_filter_type: str = "SINGLE_TAG"
    topic_name: str = ""
    topic_sys_flag: Int32 = 0
    write_queue_nums: Int32 = 16

    def to_text(self) -> str:
        """The form in compressed registrations: fields joined by blanks; `topic_sys_flag` and `order` are not in it."""
        attributes = fastjson.dumps(self.attributes).decode()
        return (
            f"{self.topic_name} {self.read_queue_nums} {self.write_queue_nums} {self.perm} "
            f"{self.topic_filter_type} {attributes}"
        )

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Reads that form. Raises MalformedRequest."""
        parts = text.split(" ", 5)
        try:
            name, read, write, perm, filter_type = parts[:5]
            config = cls(
                topic_name=name,
                read_queue_nums=int(read),
                write_queue_nums=int(write),
                perm=int(perm),
                topic_filter_type=filter_type,
            )
        except ValueError:
            raise MalformedRequest(f"not a topic's settings: {text[:100]!r}") from None
        if len(parts) == 6 and parts[5]:
            attributes = fastjson.loads(parts[5])
            if isinstance(attributes, dict):
                config.attributes = {str(key): str(value) for key, value in attributes.items()}
        return config


class TopicConfigSerializeWrapper(Body):
    """A broker's topics: the file `topics.json`, and GET_ALL_TOPIC_CONFIG's answer."""

    topic_config_table: dict[str, TopicConfig] = {}
    data_version: DataVersion = field(default_factory=DataVersion)


class TopicConfigAndMappingSerializeWrapper(TopicConfigSerializeWrapper):
    """The same with static topics."""

    topic_queue_mapping_info_map: dict[str, TopicQueueMappingInfo] = {}
    topic_queue_mapping_detail_map: dict[str, TopicQueueMappingDetail] = {}
    mapping_data_version: DataVersion = field(default_factory=DataVersion)


class TopicQueueMappingSerializeWrapper(Body):
    """The file `topicQueueMapping.json`."""

    topic_queue_mapping_info_map: dict[str, TopicQueueMappingDetail] = {}
    data_version: DataVersion = field(default_factory=DataVersion)


V5_0_0 = 413
"""First version whose compressed registrations end with static topics."""

_INFLATED_BYTES_MAX = 256 * 1024 * 1024
"""A registration that unpacks to more is refused: a million topics take a third of that."""


class RegisterBrokerBody(Body):
    """REGISTER_BROKER's body: everything a name server has to know about a broker."""

    topic_config_serialize_wrapper: TopicConfigAndMappingSerializeWrapper = field(
        default_factory=TopicConfigAndMappingSerializeWrapper
    )
    filter_server_list: list[str] = []

    def encode(self, *, compressed: bool = False) -> bytes:
        """JSON, or the packed form: counts, lengths (int32, big-endian) and texts, deflated."""
        if not compressed:
            return self.to_json()
        wrapper = self.topic_config_serialize_wrapper
        parts = [_sized(wrapper.data_version.to_json()), _INT.pack(len(wrapper.topic_config_table))]
        parts += [_sized(config.to_text().encode()) for config in wrapper.topic_config_table.values()]
        parts.append(_sized(fastjson.dumps(self.filter_server_list)))
        parts.append(_INT.pack(len(wrapper.topic_queue_mapping_info_map)))
        parts += [_sized(info.to_json()) for info in wrapper.topic_queue_mapping_info_map.values()]
        return zlib.compress(b"".join(parts), 9)

    @classmethod
    def decode(cls, data: bytes, *, compressed: bool = False, version: int = V5_0_0) -> Self:
        """Reads either form; `version` is that of the command it came with. Raises MalformedRequest."""
        if not compressed:
            return cls.from_json(data) if data else cls()
        inflater = zlib.decompressobj()
        try:
            unpacked = inflater.decompress(data, _INFLATED_BYTES_MAX)
        except zlib.error as error:
            raise MalformedRequest(f"RegisterBrokerBody: {error}") from None
        if not inflater.eof:
            raise MalformedRequest("RegisterBrokerBody: the compressed form is cut short or too large")
        reader = _Reader(unpacked)
        wrapper = TopicConfigAndMappingSerializeWrapper(data_version=DataVersion.from_json(reader.sized()))
        for _ in range(reader.count()):
            config = TopicConfig.from_text(reader.sized().decode("utf-8", "replace"))
            wrapper.topic_config_table[config.topic_name] = config
        servers = fastjson.loads(reader.sized())
        if version >= V5_0_0:
            for _ in range(reader.count()):
                info = TopicQueueMappingInfo.from_json(reader.sized())
                wrapper.topic_queue_mapping_info_map[info.topic] = info
        filter_servers = [str(server) for server in servers] if isinstance(servers, list) else []
        return cls(topic_config_serialize_wrapper=wrapper, filter_server_list=filter_servers)


_INT = struct.Struct(">i")


def _sized(data: bytes) -> bytes:
    return _INT.pack(len(data)) + data


class _Reader:
    """Takes counts and sized pieces off the front of bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def count(self) -> int:
        if self.at + 4 > len(self.data):
            raise MalformedRequest("RegisterBrokerBody: cut short")
        (number,) = _INT.unpack_from(self.data, self.at)
        self.at += 4
        assert isinstance(number, int)
        if not 0 <= number <= len(self.data):
            raise MalformedRequest("RegisterBrokerBody: a count that cannot be")
        return number

    def sized(self) -> bytes:
        size = self.count()
        if self.at + size > len(self.data):
            raise MalformedRequest("RegisterBrokerBody: cut short")
        self.at += size
        return self.data[self.at - size : self.at]


class CreateTopicListRequestBody(Body):
    """UPDATE_AND_CREATE_TOPIC_LIST's body."""

    topic_config_list: list[TopicConfig]


class TopicConfigAndQueueMapping(TopicConfig):
    """GET_TOPIC_CONFIG's answer."""

    mapping_detail: TopicQueueMappingDetail | None = None


class TopicOffset(Body):
    """Where a queue begins and ends. `last_update_timestamp`: when its last message was stored, ms."""

    min_offset: int = 0
    max_offset: int = 0
    last_update_timestamp: int = 0


class TopicStatsTable(Body):
    """GET_TOPIC_STATS_INFO's answer."""

    topic_put_tps: float = 0.0
    offset_table: dict[MessageQueue, TopicOffset] = {}
