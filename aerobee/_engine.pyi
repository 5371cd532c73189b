"""The Rust engine as Python sees it: bytes and integers across, one crossing for a batch of work.

Every method of Engine frees the GIL and never waits for the disk unless it says so. Store failures raise StoreError
(StoreLocked, DiskFull, DiskFailed) or MessageIllegal (a record no store can hold); a panic of the engine raises
RuntimeError, and the engine answers nothing after it.
"""

from collections.abc import Sequence
from typing import Any, Final, Self, final

from typing_extensions import Buffer

__all__ = [
    "Batch",
    "CommandTuple",
    "Decoder",
    "Engine",
    "Receipt",
    "Record",
    "Turn",
    "encode_frame",
    "look_ahead",
    "loose_json",
    "strict_json",
]

CommandTuple = tuple[int, int, int, int, int, str | None, dict[str, str], bytes, int]
"""code, language (number), version, opaque, flag, remark, ext fields, body, encoding (0 JSON, 1 ROCKETMQ)."""

def encode_frame(
    code: int,
    language: int,
    version: int,
    opaque: int,
    flag: int,
    remark: str | None,
    ext_fields: dict[str, str] | None,
    body: Buffer | None,
    encoding: int,
) -> bytes:
    """One whole frame with its length in front. Ext values are strings; None values are left out."""

def strict_json(text: str) -> tuple[str, bool]:
    """`text` as Fastjson spells it, as JSON that every reader takes; and whether objects were keys in it: such a key is
    "\\0" and the object's JSON. Raises MalformedRequest."""

def loose_json(json: bytes, pretty: bool, bare_keys: bool) -> bytes:
    """JSON as Java spells it. `pretty`: a line an entry, a tab a level. `bare_keys`: number keys lose their quotes."""

def look_ahead(root: str, queue_file_units: int) -> object:
    """Begins, in threads, to look at the files of a store with many queues that will be opened soon; for `open`."""

@final
class Decoder:
    """Cuts a byte stream into commands, for those who have no store."""

    def __new__(cls, frame_bytes_max: int = 16777216) -> Self: ...
    def feed(self, data: Buffer) -> list[CommandTuple]:
        """Commands that `data` completes. Raises ProtocolError on garbage (close it): those in front are lost too."""
    @property
    def kept_bytes(self) -> int:
        """Bytes of an unfinished frame that wait for the rest."""

@final
class Record:
    """What policy stores; `properties` as on the wire (name 0x01 value 0x02 …), hosts as ip:port, times in ms.
    `tags_code` None: the hash of TAGS; else what the queue entry carries instead (delayed messages: delivery time).
    `multi_dispatch` False: no entries in the light queues that INNER_MULTI_DISPATCH names."""

    topic: str
    queue_id: int
    body: bytes
    properties: bytes
    flag: int
    sys_flag: int
    born_timestamp: int
    born_host: str
    reconsume_times: int
    prepared_offset: int
    tags_code: int | None
    multi_dispatch: bool
    def __new__(
        cls,
        topic: str,
        queue_id: int,
        body: bytes,
        properties: bytes,
        *,
        flag: int = 0,
        sys_flag: int = 0,
        born_timestamp: int = 0,
        born_host: str = "127.0.0.1:0",
        reconsume_times: int = 0,
        prepared_offset: int = 0,
        tags_code: int | None = None,
        multi_dispatch: bool = True,
    ) -> Self: ...

@final
class Receipt:
    """Where a record went. It is acknowledged once `Engine.durable() >= position + size`."""

    queue_offset: Final[int]
    position: Final[int]
    size: Final[int]
    store_timestamp: Final[int]
    message_id: Final[str]

@final
class Batch:
    """What a read found. `status` is one of Apache's GetMessageStatus names, `records` raw records end to end."""

    status: Final[str]
    next_offset: Final[int]
    min_offset: Final[int]
    max_offset: Final[int]
    count: Final[int]
    records: Final[bytes]

@final
class Turn:
    """What came of one call. Deliver all of it, in this order."""

    replies: Final[list[tuple[int, bytes]]]
    """Whole frames by session; a session can come more than once, and may be closed by now."""
    commits: Final[list[tuple[str, str, int, int]]]
    """Offsets that came with pulls: group, topic, queue id, offset."""
    arrivals: Final[list[tuple[str, int]]]
    """Queues of `Engine.watch` that have news: topic, queue id."""
    commands: Final[list[CommandTuple]]
    """What the engine did not serve, in order; all of the session that was fed."""
    error: Final[str | None]
    """The peer broke the protocol: write the replies, then close the connection with this reason."""
    more: Final[bool]
    """The session has whole frames left because replies grew long: `feed(session, b"")` again once they are written."""
    unread: Final[bool]
    """The session may have more to say at once, but others have their turn first."""
    behind: Final[bool]
    """A message of the session's waits because the disk is behind: `feed(session, b"")` again when it is not."""

@final
class Engine:
    @staticmethod
    def open(options: dict[str, object], look: object = None) -> Engine:
        """Opens and recovers the store; blocks, so call it in a thread. `root` (directory), and optionally sync_flush
        (bool), log_file_bytes, queue_file_units, batch_file_units, batch_topics (those with batch queues),
        compaction_topics (those whose queues are compacted), compaction_log_file_bytes, compaction_queue_file_bytes,
        compaction_map_bytes (memory while compacting), index_slots, index_entries, index_enable, store_host (ip:port),
        log_flush_interval_ms, log_flush_bytes_min, log_flush_forced_ms, queue_flush_interval_ms, queue_flush_forced_ms,
        checkpoint_bytes, unflushed_bytes_max, disk_used_ratio_max, delay_levels_ms (list), light_queues (records get
        entries in the light queues they name), utc_offset_ms (for the names of index files), background (False: no
        flusher). Unknown keys raise TypeError. `look`: what `look_ahead` has returned."""
    def session(self, peer: str) -> int:
        """A number for a new connection from `peer` (ip:port, the born host of what it sends); never used again."""
    def close_session(self, session: int) -> None:
        """Forgets the connection, its unfinished frame and its waiting pulls."""
    def stall(self, session: int, stalled: bool) -> Turn:
        """The peer does not read: its waiting pulls wait on, whatever comes for them, until it does (False)."""
    def feed(self, session: int, data: Buffer, together: bool = False) -> Turn | None:
        """A received chunk. What the tables allow is served, the rest comes out as commands. Nothing happens for a
        session that is closed. `together`: other sessions may have something to say at the same time. None (only then):
        all it did was to store messages, and `commit` will write and answer them with the others'."""
    def feed_on(self, session: int, buffer: Buffer, fd: int) -> Turn | None:
        """As `feed` with `together`, of a chunk that fills its buffer: there may be more, so the engine reads on from
        the (non-blocking) socket `fd` into the same buffer, until there is no more, others must do something first, or
        512 KiB have come. All messages of it share one write."""
    def commit(self) -> Turn:
        """Writes what `feed` and `feed_on` have left, and answers it."""
    def settle(self) -> Turn:
        """Call it when `fileno()` is readable: flushed messages become visible, replies that waited go out."""
    def fileno(self) -> int:
        """Readable when the flush has moved on (synchronous flush, or the disk was behind)."""
    def expire(self, now_ms: int) -> Turn:
        """Answers waiting pulls whose time is over, and sends whose flush takes too long (FLUSH_DISK_TIMEOUT)."""
    def next_expiry_ms(self) -> int | None:
        """When `expire` has something to do (None: not now). Call it often: it logs what the flusher has to say."""
    def allow(self, **settings: Any) -> None:
        """Settings for all: fast (False: all comes out as commands), broker_perm, body_bytes_max, frame_bytes_max,
        store_host, region, trace_on, cluster, long_polling, short_polling_ms, lite_pull, version, pull_bytes_max,
        pull_count_max, old_pull_bytes_max, old_pull_count_max (both beyond recent_bytes), filter_entries_max,
        turn_bytes_max, parked_max (a session), sync_flush_timeout_ms, light_queues_max, disk_used_ratio_max."""
    def allow_topic(
        self,
        topic: str,
        perm: int,
        read_queues: int,
        write_queues: int,
        fast: bool,
        *,
        sys_flag: int = 0,
        plain: bool = True,
        keyed: bool = True,
        led: Sequence[tuple[int, int, int, int]] = ...,
        batch: bool = False,
        compacted: bool = False,
    ) -> None:
        """Adds a topic or changes its row. `fast` False: its sends and pulls come out as commands. When it became
        narrower, pulls that wait are answered at the next `expire`. `plain`, `keyed`: sends without, with a sharding
        key are served. `led`: queues of a static topic, not fast, whose sends are served all the same (logical queue,
        queue, logical offset at which its last stretch begins, the queue's). `batch`, `compacted`: its queues are."""
    def compact(self, topic: str, queue: int, position: int) -> tuple[int, int, int] | None:
        """Compacts the queue's full files if there are any with messages behind offset `position` (-1: all); takes as
        long as reading and writing them takes, so call it in a thread. The position for the next time, messages in
        these files before and after; None: nothing to do, or the store is closing. Raises DiskFull or DiskFailed."""
    def forget_topic(self, topic: str) -> None: ...
    def allow_group(self, group: str, consume: bool, fast: bool, sys_flag: int = 0) -> None:
        """Adds a consumer group or changes its row; as `allow_topic`."""
    def forget_group(self, group: str) -> None: ...
    def subscribe(
        self, group: str, topic: str, version: int, kind: str, expression: str, tags: list[int] | None = None
    ) -> None:
        """What the group's members subscribed, for pulls that bring no subscription. `kind` TAG (`tags`: hashes,
        None: from the expression) or SQL92 (ValueError when it does not compile)."""
    def unsubscribe(self, group: str, topic: str | None = None) -> None: ...
    def watch(self, topic: str, queue: int) -> None:
        """The next message that becomes visible in the queue is told in a turn's `arrivals`; once, then watch again."""
    def append(self, records: list[Record]) -> tuple[list[Receipt], Turn]:
        """Writes records in one write, all or none, and wakes the pulls that wait for them."""
    def bring_home(self, moves: list[tuple[int, bytes]]) -> tuple[int, int, Turn]:
        """Messages that waited, (position, property text to add), go where their REAL_TOPIC and REAL_QID say: in one
        write, those from the front up to the first that is not that simple. How many, and where the last one ends."""
    def is_behind(self) -> bool:
        """More is written and not flushed (unflushed_bytes_max), or held in memory for the disk, than there should be:
        requests that store messages wait. `fileno()` becomes readable when it is worth asking again."""
    def durable(self) -> int:
        """Positions up to here are acknowledged: written, or flushed with synchronous flush."""
    def check_sql(self, expression: str) -> str | None:
        """What is wrong with an SQL92 filter and where; None: nothing. It is compiled then and need not be again."""
    def pull(
        self, session: int, command: CommandTuple, tags: list[int] | None, park: bool, sql: str | None = None
    ) -> Turn:
        """Serves a pull that policy allowed, with this filter (`tags` None: all); `park`: it may wait. Its offset
        commit comes out in the turn. ValueError: a field is missing or no number."""
    def read(
        self,
        topic: str,
        queue: int,
        offset: int,
        count: int,
        bytes_max: int,
        tags: list[int] | None = None,
        sql: str | None = None,
    ) -> Batch:
        """At most `count` records and `bytes_max` bytes, at least one if there is one, by the rules of a pull."""
    def record(self, position: int) -> bytes | None: ...
    def entries(self, topic: str, queue: int, offset: int, count: int) -> bytes:
        """Queue entries of 20 bytes: position 8, size 4, tags code 8, big endian. A lost message's: -1, 0, 0."""
    def bounds(self, topic: str, queue: int) -> tuple[int, int]:
        """First visible offset and the next one to come; (0, 0) for an unknown queue."""
    def offset_by_time(self, topic: str, queue: int, ms: int, upper: bool = False) -> int:
        """First offset stored at or after `ms` (`upper`: the last one at or before); 0 for an unknown queue."""
    def store_time(self, topic: str, queue: int, offset: int) -> int:
        """When the message was stored, in ms; -1: there is none."""
    def search_index(
        self, topic: str, key: str, kind: str, limit: int, begin_ms: int, end_ms: int
    ) -> tuple[list[bytes], int, int]:
        """The newest records with this key (`kind` T: tag), oldest first; the index's last update: ms, position."""
    def topics(self) -> dict[str, list[int]]:
        """Topics that have queues in the store, with their queue ids."""
    def delete_topic(self, topic: str) -> None:
        """Forgets the topic and removes its queues; records stay in the log until their file goes."""
    def delete_empty_topic(self, topic: str) -> bool:
        """`delete_topic`, if no message of it is left and nobody waits for one; True if it is gone."""
    def clean(self, before_ms: int, *, consumed_position: int | None = None, files_max: int = 10) -> dict[str, int]:
        """Deletes log files that are older than `before_ms` and end at or before `consumed_position`, and what
        belongs to them: log_files, queue_files, index_files deleted, min_position left."""
    def stats(self) -> dict[str, int]:
        """Sizes and positions of the store; sessions, pulls_waiting, turns_unflushed (held for the flush)."""
    def counters(self) -> dict[str, Any]:
        """Since the start: sends, sends_refused, pulls, pulls_parked, pulls_woken, pulls_expired, commands (left to
        policy); faults {kind: n}; puts {topic: (n, bytes)}; gets {(group, topic): (n, bytes)}."""
    def health(self, lasting: bool = False) -> str | None:
        """Why writes are refused, in one sentence; None: they are not (`lasting`: not until a restart)."""
    def flush(self) -> None:
        """Flushes everything to the device; blocks."""
    def close(self) -> None:
        """Flushes, writes the checkpoint, gives the store free; blocks."""
