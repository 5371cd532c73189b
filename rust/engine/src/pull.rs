//! PULL_MESSAGE and LITE_PULL_MESSAGE: reading a queue by RocketMQ's rules, and the reply.
//!
//! Records are copied once, from the store's map into the reply. Left to others: waiting (`parked`), commits of offsets
//! and who may pull (`session`, policy).

use std::sync::Arc;

use crate::batch_queue::BatchEntry;
use crate::error::Error;
use crate::header::{parse_i64, Encoding, Fixed, Header, Writer, FLAG_RESPONSE};
use crate::record::{read_u32, read_u64, RecordView, PHYSICAL_OFFSET_AT, QUEUE_OFFSET_AT};
use crate::store::{Entry, Position, QueueRef, Store};
use crate::tables::{Filter, Settings, Tables, PERM_READ};

pub const PULL_MESSAGE: i32 = 11;
pub const LITE_PULL_MESSAGE: i32 = 361;

/// Bits of a pull's sysFlag.
pub const PULL_COMMIT: i64 = 1;
pub const PULL_SUSPEND: i64 = 2;
pub const PULL_SUBSCRIPTION: i64 = 4;
pub const PULL_CLASS_FILTER: i64 = 8;

pub const SUCCESS: i32 = 0;
pub const PULL_NOT_FOUND: i32 = 19;
pub const PULL_RETRY_IMMEDIATELY: i32 = 20;
pub const PULL_OFFSET_MOVED: i32 = 21;

/// A queue entry that points nowhere has this size.
const HOLE_BYTES: u32 = i32::MAX as u32;
/// Entries fetched at a time while looking for matches.
const LOOK_ENTRIES: usize = 128;

/// Entries that a read looks at because it asks for as many messages, unless a reply may have more: the most that Apache's clients
/// ask for. The engine does nothing else meanwhile (an SQL filter took 0.18 s for a million that did not match), and who asked goes
/// on where this ended.
const ASKED_ENTRIES_MAX: u32 = 1024;

/// So many records ahead of the one being copied the processor is asked for the next: those of a queue lie all over the
/// log, in memory that nobody has touched for long. Pulls in 32s of 1 kB on an Intel server, by pairs: with 1 ahead (and queue
/// files read through maps, 2 % of it) they cost 14 % less CPU than with none, with 3 another 4 %, with 6 another 4, with 12
/// nothing more.
const RECORDS_AHEAD: usize = 6;

/// How a read ended; the names travel in replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Found,
    NoMatchedMessage,
    MessageWasRemoving,
    OffsetFoundNull,
    OffsetOverflowBadly,
    OffsetOverflowOne,
    OffsetTooSmall,
    NoMatchedLogicQueue,
    NoMessageInQueue,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Status::Found => "FOUND",
            Status::NoMatchedMessage => "NO_MATCHED_MESSAGE",
            Status::MessageWasRemoving => "MESSAGE_WAS_REMOVING",
            Status::OffsetFoundNull => "OFFSET_FOUND_NULL",
            Status::OffsetOverflowBadly => "OFFSET_OVERFLOW_BADLY",
            Status::OffsetOverflowOne => "OFFSET_OVERFLOW_ONE",
            Status::OffsetTooSmall => "OFFSET_TOO_SMALL",
            Status::NoMatchedLogicQueue => "NO_MATCHED_LOGIC_QUEUE",
            Status::NoMessageInQueue => "NO_MESSAGE_IN_QUEUE",
        }
    }

    /// The response code of a pull that asked for `offset`.
    pub fn code(self, offset: i64) -> i32 {
        match self {
            Status::Found => SUCCESS,
            Status::NoMatchedMessage | Status::MessageWasRemoving => PULL_RETRY_IMMEDIATELY,
            Status::NoMatchedLogicQueue | Status::NoMessageInQueue if offset != 0 => PULL_OFFSET_MOVED,
            Status::NoMatchedLogicQueue | Status::NoMessageInQueue => PULL_NOT_FOUND,
            Status::OffsetFoundNull | Status::OffsetOverflowOne => PULL_NOT_FOUND,
            Status::OffsetOverflowBadly | Status::OffsetTooSmall => PULL_OFFSET_MOVED,
        }
    }
}

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub status: Status,
    pub next_offset: i64,
    pub min_offset: i64,
    pub max_offset: i64,
    pub count: u32,
    pub bytes: u64,
}

/// Bounds of one batch.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub count_max: u32,
    pub bytes_max: u64,
    /// The same for records more than `recent_bytes` before the log's end.
    pub old_count_max: u32,
    pub old_bytes_max: u64,
    pub recent_bytes: u64,
    pub filter_entries_max: u32,
}

impl Limits {
    /// What the settings allow, lowered to what was asked.
    pub fn of(settings: &Settings, count_max: u32, bytes_max: u64) -> Limits {
        Limits {
            count_max: settings.pull_count_max.min(count_max),
            bytes_max: settings.pull_bytes_max.min(bytes_max),
            old_count_max: settings.old_pull_count_max.min(count_max),
            old_bytes_max: settings.old_pull_bytes_max.min(bytes_max),
            recent_bytes: settings.recent_bytes,
            filter_entries_max: Limits::entries(settings, count_max),
        }
    }

    /// Entries that a read for so many messages looks at.
    pub fn entries(settings: &Settings, count_max: u32) -> u32 {
        settings.filter_entries_max.max(count_max.min(settings.pull_count_max.max(ASKED_ENTRIES_MAX)))
    }
}

/// A pull that has been understood.
#[derive(Clone, Debug)]
pub struct Pull {
    pub group: Arc<str>,
    pub topic: Arc<str>,
    pub queue_id: u32,
    pub offset: i64,
    pub count_max: u32,
    pub bytes_max: u64,
    pub filter: Filter,
    /// The filter is what the group's members subscribed to, not the request's own.
    pub by_group: bool,
    /// How long it may wait.
    pub hold_ms: Option<i64>,
    pub commit_offset: Option<i64>,
    pub opaque: i32,
    pub encoding: Encoding,
    pub topic_sys_flag: i32,
    pub group_sys_flag: i32,
}

/// The header fields of a pull.
struct Fields<'a> {
    group: &'a str,
    topic: &'a str,
    queue_id: i64,
    offset: i64,
    count_max: i64,
    bytes_max: Option<i64>,
    sys_flag: i64,
    commit_offset: i64,
    suspend_ms: i64,
    subscription: &'a str,
    sub_version: i64,
    expression_type: &'a str,
    /// Fields only policy understands.
    special: bool,
}

impl<'a> Fields<'a> {
    /// The field and value that is no number, if there is one.
    fn read(header: &'a Header, source: &'a [u8]) -> Result<Fields<'a>, (&'a str, &'a str)> {
        let mut fields = Fields {
            group: "",
            topic: "",
            queue_id: -1,
            offset: 0,
            count_max: 0,
            bytes_max: None,
            sys_flag: 0,
            commit_offset: 0,
            suspend_ms: 0,
            subscription: "",
            sub_version: 0,
            expression_type: "",
            special: false,
        };
        for (key, value) in header.fields(source) {
            let number = || parse_i64(value.as_bytes()).ok_or((key, value));
            match key {
                "consumerGroup" => fields.group = value,
                "topic" => fields.topic = value,
                "queueId" => fields.queue_id = number()?,
                "queueOffset" => fields.offset = number()?,
                "maxMsgNums" => fields.count_max = number()?,
                "maxMsgBytes" => fields.bytes_max = Some(number()?),
                "sysFlag" => fields.sys_flag = number()?,
                "commitOffset" => fields.commit_offset = number()?,
                "suspendTimeoutMillis" => fields.suspend_ms = number()?,
                "subscription" => fields.subscription = value,
                "subVersion" => fields.sub_version = number()?,
                "expressionType" => fields.expression_type = value,
                "liteTopic" => fields.special |= !value.is_empty(),
                "requestSource" => fields.special |= value != "-1",
                _ => {}
            }
        }
        Ok(fields)
    }

    fn into_pull(self, settings: &Settings, header: &Header, encoding: Encoding, filter: Filter) -> Option<Pull> {
        let hold_ms = (self.sys_flag & PULL_SUSPEND != 0).then(|| {
            if settings.long_polling {
                self.suspend_ms.clamp(0, HOLD_MS_MAX)
            } else {
                settings.short_polling_ms
            }
        });
        Some(Pull {
            group: Arc::from(""),
            topic: Arc::from(""),
            queue_id: u32::try_from(self.queue_id).ok()?,
            offset: self.offset,
            count_max: self.count_max.clamp(1, u32::MAX as i64) as u32,
            bytes_max: self.bytes_max.filter(|n| *n > 0).map_or(u64::MAX, |n| n as u64),
            filter,
            by_group: self.sys_flag & PULL_SUBSCRIPTION == 0,
            hold_ms,
            commit_offset: (self.sys_flag & PULL_COMMIT != 0).then_some(self.commit_offset),
            opaque: header.opaque,
            encoding,
            topic_sys_flag: 0,
            group_sys_flag: 0,
        })
    }
}

/// No pull waits longer than this, whatever it asks.
const HOLD_MS_MAX: i64 = 3_600_000;

impl Pull {
    /// A pull the tables allow. None: for policy.
    pub fn allowed(tables: &Tables, header: &Header, source: &[u8], encoding: Encoding) -> Option<Pull> {
        let settings = &tables.settings;
        let fields = Fields::read(header, source).ok()?;
        let topic = tables.topic(fields.topic)?;
        let group = tables.group_of(fields.group)?;
        if fields.special
            || header.is_oneway()
            || !topic.fast
            || !group.fast
            || !group.consume
            || settings.broker_perm & PERM_READ == 0
            || topic.perm & PERM_READ == 0
            || fields.queue_id < 0
            || fields.queue_id >= topic.read_queues as i64
            || fields.sys_flag & PULL_CLASS_FILTER != 0
            || (header.code == LITE_PULL_MESSAGE && !settings.lite_pull)
        {
            return None;
        }
        let filter = if fields.sys_flag & PULL_SUBSCRIPTION != 0 {
            if !matches!(fields.expression_type, "" | "TAG") {
                return None;
            }
            match Filter::tags(fields.subscription) {
                Filter::Tags(tags) if tags.is_empty() => return None,
                filter => filter,
            }
        } else {
            let subscription = group.topics.get(fields.topic)?.subscription.as_ref()?;
            if subscription.version < fields.sub_version {
                return None;
            }
            subscription.filter.clone()
        };
        // A row for all light queues has no name.
        let named = |row: &Arc<str>, name: &str| if row.is_empty() { Arc::from(name) } else { row.clone() };
        let (topic_name, group_name) = (named(&topic.name, fields.topic), named(&group.name, fields.group));
        let mut pull = fields.into_pull(settings, header, encoding, filter)?;
        pull.topic = topic_name;
        pull.group = group_name;
        pull.topic_sys_flag = topic.sys_flag;
        pull.group_sys_flag = group.sys_flag;
        Some(pull)
    }

    /// A pull policy has allowed, with the filter policy chose.
    ///
    /// # Errors
    /// A sentence that names the field that is no number, or no queue's.
    pub fn granted(
        tables: &Tables,
        header: &Header,
        source: &[u8],
        encoding: Encoding,
        filter: Filter,
    ) -> Result<Pull, String> {
        let unreadable =
            |field: &str, why: String| format!("field {field} of the PullMessage request cannot be read: {why}");
        let fields = Fields::read(header, source)
            .map_err(|(field, value)| unreadable(field, format!("'{value}' is no whole number")))?;
        let (topic, group, queue_id) = (fields.topic, fields.group, fields.queue_id);
        let mut pull = fields
            .into_pull(&tables.settings, header, encoding, filter)
            .ok_or_else(|| unreadable("queueId", format!("there can be no queue {queue_id}")))?;
        match tables.topics.get(topic) {
            Some(row) => {
                pull.topic = row.name.clone();
                pull.topic_sys_flag = row.sys_flag;
            }
            None => pull.topic = topic.into(),
        }
        match tables.groups.get(group) {
            Some(row) => {
                pull.group = row.name.clone();
                pull.group_sys_flag = row.sys_flag;
            }
            None => pull.group = group.into(),
        }
        Ok(pull)
    }
}

/// What the entry does not say: whether the record's properties match. One that cannot be read counts as matching, and is
/// missed when it is copied.
fn matches_record(store: &mut Store, filter: &Filter, tags_code: i64, position: Position, size: u32) -> bool {
    !filter.asks_record(tags_code)
        || store
            .with_record(position, size, |bytes| {
                RecordView::parse(bytes).is_some_and(|view| filter.matches(view.properties))
            })
            .unwrap_or(true)
}

/// Reads queues; keeps its buffers.
pub struct Reader {
    queue_file_units: i64,
    looked: Vec<Entry>,
    chosen: Vec<Entry>,
    /// Of a batch queue: how many messages each of the chosen has.
    counts: Vec<u16>,
    /// Of a compacted queue: the records, when they do not come from the log.
    copied: Vec<u8>,
    body: Vec<u8>,
}

impl Reader {
    pub fn new(queue_file_units: u64) -> Self {
        Reader {
            queue_file_units: queue_file_units.max(1) as i64,
            looked: Vec::new(),
            chosen: Vec::new(),
            counts: Vec::new(),
            copied: Vec::new(),
            body: Vec::new(),
        }
    }

    /// Chooses the entries of the next batch from `offset` on.
    fn choose(
        &mut self,
        store: &mut Store,
        queue: Option<QueueRef>,
        offset: i64,
        limits: &Limits,
        filter: &Filter,
        scan_from: i64,
    ) -> Result<Found, Error> {
        self.chosen.clear();
        self.counts.clear();
        self.copied.clear();
        let (min_offset, max_offset) = queue.map_or((0, 0), |queue| store.bounds(queue));
        let mut found =
            Found { status: Status::NoMatchedMessage, next_offset: offset, min_offset, max_offset, count: 0, bytes: 0 };
        let Some(queue) = queue.filter(|_| max_offset > 0) else {
            return Ok(Found { status: Status::NoMessageInQueue, next_offset: 0, ..found });
        };
        let compaction = store.compaction(queue);
        if offset < min_offset && compaction.is_none() {
            return Ok(Found { status: Status::OffsetTooSmall, next_offset: min_offset, ..found });
        }
        if offset == max_offset {
            return Ok(Found { status: Status::OffsetOverflowOne, ..found });
        }
        if offset > max_offset {
            return Ok(Found { status: Status::OffsetOverflowBadly, next_offset: max_offset, ..found });
        }
        let mut scan_from = scan_from.max(offset);
        if let Some(compaction) = compaction {
            found.min_offset = compaction.min().unwrap_or(min_offset);
            let read = compaction.read(scan_from, max_offset, limits, filter, &mut found, &mut self.copied);
            let ends = read.map_err(|e| Error::Unusable(format!("reading a compaction log failed: {e}")))?;
            self.say_where_in_the_log(store, queue, min_offset)?;
            if ends {
                if found.count > 0 {
                    found.status = Status::Found;
                }
                return Ok(found);
            }
            scan_from = found.next_offset.max(min_offset);
        }
        if store.is_batch(queue) {
            self.choose_batches(store, queue, scan_from, limits, filter, &mut found);
            return Ok(found);
        }
        let log_end = store.durable();
        let mut at = scan_from;
        let scan_end = at.saturating_add(limits.filter_entries_max as i64).min(max_offset);
        'look: while at < scan_end {
            let room = (scan_end - at) as usize;
            let count = match filter {
                Filter::All => room.min(limits.count_max as usize + 1),
                _ => room.min(LOOK_ENTRIES),
            };
            self.looked.clear();
            store.entries(queue, at, count, &mut self.looked)?;
            if self.looked.is_empty() {
                if self.chosen.is_empty() && at == offset {
                    // A file of the queue is missing: go on behind it.
                    let units = self.queue_file_units;
                    found.status = Status::OffsetFoundNull;
                    at = ((at / units + 1) * units).clamp(min_offset, max_offset);
                }
                break;
            }
            for entry in &self.looked {
                if entry.size == HOLE_BYTES
                    || !filter.admits(entry.tags_code)
                    || !matches_record(store, filter, entry.tags_code, entry.position, entry.size)
                {
                    at += 1;
                    continue;
                }
                if found.count > 0 {
                    let bytes = found.bytes + entry.size as u64;
                    let recent = log_end.saturating_sub(entry.position) <= limits.recent_bytes;
                    let (count_max, bytes_max) = if recent {
                        (limits.count_max, limits.bytes_max)
                    } else {
                        (limits.old_count_max, limits.old_bytes_max)
                    };
                    if found.count >= count_max || bytes > bytes_max {
                        break 'look;
                    }
                }
                self.chosen.push(*entry);
                found.count += 1;
                found.bytes += entry.size as u64;
                at += 1;
            }
        }
        found.next_offset = at;
        if found.count > 0 {
            found.status = Status::Found;
        }
        Ok(found)
    }

    /// The records of a compacted queue say where their copies are. Readers hand that in when they send a message back, or look for it by
    /// its id: they get the place in the log, as long as it is there.
    fn say_where_in_the_log(&mut self, store: &mut Store, queue: QueueRef, min_offset: i64) -> Result<(), Error> {
        let mut rest = &mut self.copied[..];
        while let (Some(size), Some(offset)) = (read_u32(rest, 0), read_u64(rest, QUEUE_OFFSET_AT)) {
            if rest.len() < size as usize {
                break;
            }
            let (record, behind) = rest.split_at_mut(size as usize);
            self.looked.clear();
            if offset as i64 >= min_offset {
                store.entries(queue, offset as i64, 1, &mut self.looked)?;
            }
            if let Some(entry) = self.looked.first().filter(|entry| entry.size == size) {
                record[PHYSICAL_OFFSET_AT..PHYSICAL_OFFSET_AT + 8].copy_from_slice(&entry.position.to_be_bytes());
            }
            rest = behind;
        }
        Ok(())
    }

    /// [`Reader::choose`] in a batch queue: whole batches, at least one, and a batch counts as the messages it has.
    fn choose_batches(
        &mut self,
        store: &mut Store,
        queue: QueueRef,
        from: i64,
        limits: &Limits,
        filter: &Filter,
        found: &mut Found,
    ) {
        let mut at = from;
        let scan_end = at.saturating_add(i64::from(limits.filter_entries_max)).min(found.max_offset);
        let mut looked = Vec::new();
        'look: while at < scan_end {
            looked.clear();
            store.batches(queue, at, LOOK_ENTRIES, &mut looked);
            if looked.is_empty() {
                break;
            }
            for batch in &looked {
                if batch.base >= scan_end {
                    break 'look;
                }
                if !filter.admits(batch.tags_code)
                    || !matches_record(store, filter, batch.tags_code, batch.position, batch.size)
                {
                    at = batch.end();
                    continue;
                }
                let full = found.count + u32::from(batch.count) > limits.count_max
                    || found.bytes + u64::from(batch.size) > limits.bytes_max;
                if found.count > 0 && full {
                    break 'look;
                }
                let BatchEntry { position, size, tags_code, count, .. } = *batch;
                self.chosen.push(Entry { position, size, tags_code });
                self.counts.push(count);
                found.count += u32::from(count);
                found.bytes += u64::from(size);
                at = batch.end();
            }
        }
        found.next_offset = at;
        if found.count > 0 {
            found.status = Status::Found;
        }
    }

    /// Appends the chosen records to `out`; what cannot be read is left out and the figures adjusted. Where the first such should
    /// have been.
    fn copy(&mut self, store: &mut Store, found: &mut Found, out: &mut Vec<u8>) -> Option<Position> {
        if !self.copied.is_empty() {
            out.extend_from_slice(&self.copied);
            return None;
        }
        let mut unread = None;
        let start = out.len();
        found.count = 0;
        for (number, entry) in self.chosen.iter().enumerate() {
            if let Some(ahead) = self.chosen.get(number + RECORDS_AHEAD) {
                store.prefetch_record(ahead.position, ahead.size);
            }
            if store.copy_record(entry.position, entry.size, out) {
                found.count += self.counts.get(number).map_or(1, |count| u32::from(*count));
            } else {
                unread = unread.or(Some(entry.position));
            }
        }
        found.bytes = (out.len() - start) as u64;
        if found.count == 0 && found.status == Status::Found {
            found.status = Status::MessageWasRemoving;
        }
        unread
    }

    /// Reads a batch and appends its records to `out`. `scan_from`: entries before it are known not to match.
    #[allow(clippy::too_many_arguments)]
    pub fn read(
        &mut self,
        store: &mut Store,
        queue: Option<QueueRef>,
        offset: i64,
        limits: &Limits,
        filter: &Filter,
        scan_from: i64,
        out: &mut Vec<u8>,
    ) -> Result<Found, Error> {
        let mut found = self.choose(store, queue, offset, limits, filter, scan_from)?;
        out.reserve(found.bytes as usize);
        if let (Some(queue), Some(position)) = (queue, self.copy(store, &mut found, out)) {
            store.say_no_record(queue, position);
        }
        Ok(found)
    }

    /// Reads for a pull and writes its reply to `out`, unless `wait` says the pull waits instead (then nothing is written).
    #[allow(clippy::too_many_arguments)]
    pub fn reply(
        &mut self,
        store: &mut Store,
        queue: Option<QueueRef>,
        pull: &Pull,
        settings: &Settings,
        scan_from: i64,
        wait: impl FnOnce(&Found) -> bool,
        out: &mut Vec<u8>,
    ) -> Result<Option<Found>, Error> {
        let limits = Limits::of(settings, pull.count_max, pull.bytes_max);
        let mut found = self.choose(store, queue, pull.offset, &limits, &pull.filter, scan_from)?;
        let frame = out.len();
        if found.count > 0 {
            // The header first, the records behind it from where they lie.
            out.reserve(found.bytes as usize + 512);
            let planned = found;
            let writer = begin_reply(out, pull, settings, &found);
            self.copy(store, &mut found, writer.out);
            if found.count == planned.count {
                writer.finish();
                return Ok(Some(found));
            }
            // A record could not be read: the header is not true any more.
            out.truncate(frame);
            found = planned;
        }
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        if let (Some(queue), Some(position)) = (queue, self.copy(store, &mut found, &mut body)) {
            store.say_no_record(queue, position);
        }
        let waits = wait(&found);
        if !waits {
            let writer = begin_reply(out, pull, settings, &found);
            writer.out.extend_from_slice(&body);
            writer.finish();
        }
        if body.capacity() <= 1 << 20 {
            self.body = body;
        }
        Ok((!waits).then_some(found))
    }
}

/// Tells a pull to ask again from where it did. That holds whatever its filter was: a client matches what comes with a reply by
/// what it wanted when it asked, so messages that match what it wants now must not come with it.
pub fn reply_again(store: &Store, queue: Option<QueueRef>, pull: &Pull, settings: &Settings, out: &mut Vec<u8>) {
    let (min_offset, max_offset) = queue.map_or((0, 0), |queue| store.bounds(queue));
    let status = if pull.offset < max_offset { Status::NoMatchedMessage } else { Status::OffsetOverflowOne };
    let found = Found { status, next_offset: pull.offset, min_offset, max_offset, count: 0, bytes: 0 };
    begin_reply(out, pull, settings, &found).finish();
}

fn begin_reply<'o>(out: &'o mut Vec<u8>, pull: &Pull, settings: &Settings, found: &Found) -> Writer<'o, 'static> {
    let fixed = Fixed {
        code: found.status.code(pull.offset),
        language: 0,
        version: settings.version,
        opaque: pull.opaque,
        flag: FLAG_RESPONSE,
        remark: Some(found.status.name()),
    };
    let mut writer = Writer::begin(out, pull.encoding, fixed);
    writer.number("suggestWhichBrokerId", 0);
    writer.number("nextBeginOffset", found.next_offset);
    writer.number("minOffset", found.min_offset);
    writer.number("maxOffset", found.max_offset);
    writer.number("topicSysFlag", pull.topic_sys_flag as i64);
    writer.number("groupSysFlag", pull.group_sys_flag as i64);
    writer.end_header();
    writer
}
