//! Sessions: one `feed` for each received chunk, one `Turn` back.
//!
//! ```text
//! bytes ── frames ── send ─ staged ──┐                     ┌─ replies of this session
//!                ├── pull ─ read ────┼─ commit (1 write) ──┼─ replies of sessions whose parked pulls were woken
//!                └── all else        └─────────────────────┴─ commands for policy
//! ```
//! Promises: replies of sends leave only when the chunk's commit succeeded and, with synchronous flush, when the flush
//! passed them (`settle`); a failed commit turns all of them into errors. Nothing waits and nothing sleeps: time comes
//! in through `expire`. Memory is bounded by what peers really sent and by [`Settings::turn_bytes_max`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::clock::Clock;
use crate::error::Error;
use crate::frame::{front, Cutter, Fault, Flow, Frame, Front, ProtocolError};
use crate::header::{Encoding, Fixed, Header, Writer};
use crate::home::Home;
use crate::parked::{Parked, Waiting};
use crate::pull::{
    reply_again, Found, Limits, Pull, Reader, Status, LITE_PULL_MESSAGE, PULL_MESSAGE, PULL_NOT_FOUND,
    PULL_OFFSET_MOVED,
};
use crate::record::NewRecord;
use crate::send::{
    error_reply, message_id_front, push_message_id, Sender, Served, SEND_BATCH_MESSAGE, SEND_MESSAGE, SEND_MESSAGE_V2,
};
use crate::sql;
use crate::store::{Position, QueueRef, Staged, Store};
use crate::tables::{Filter, Led, Settings, Subscription, Tables};

const FLUSH_DISK_TIMEOUT: i32 = 10;
const MESSAGE_ILLEGAL: i32 = 13;
const SERVICE_NOT_AVAILABLE: i32 = 14;
const TOPIC_NOT_EXIST: i32 = 17;
const LMQ_QUOTA_EXCEEDED: i32 = 2017;
/// Compiled SQL filters kept; above this the collection starts anew.
const PROGRAMS_MAX: usize = 1024;
/// Bytes of their texts. A filter takes about 16 times its text: forty different ones of 2.5 MiB had taken 1.7 GB. A text longer than
/// all may be is compiled each time: who sends it so often pays as much to send it.
const PROGRAM_TEXTS_MAX: usize = 1 << 20;
/// What connections read one after the other have sent shares a write of at most about this. With four senders of batches, a
/// quarter of a megabyte in flight each, writes of 1 MiB cost a message 6 % less CPU than writes of a quarter.
const STAGED_BYTES_MAX: usize = 1024 * 1024;
/// So much of one connection is read in a turn before others have theirs: 0.6 ms of the loop, at 1.3 µs for 1.1 kB.
const READ_ON_BYTES_MAX: usize = 512 * 1024;
/// The waiting of a pull whose time is over, but whose peer does not read, goes on for so long.
const STALLED_AGAIN_MS: i64 = 1000;
/// Pulls wait for the first message of at most so many queues of topics that need not exist; more are answered at once.
const UNWRITTEN_QUEUES_MAX: usize = 200_000;

/// A command for policy: owned, since the chunk it came in is gone when policy sees it.
#[derive(Debug)]
pub struct Command {
    pub header: Header,
    pub source: Vec<u8>,
    pub body: Vec<u8>,
    pub encoding: Encoding,
}

/// An offset that came with a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetCommit {
    pub group: Arc<str>,
    pub topic: Arc<str>,
    pub queue_id: u32,
    pub offset: i64,
}

/// What came of one call.
#[derive(Debug, Default)]
pub struct Turn {
    /// Whole frames by session, in the order they are to be written. A session can come more than once.
    pub replies: Vec<(u64, Vec<u8>)>,
    pub commands: Vec<Command>,
    pub commits: Vec<OffsetCommit>,
    /// Watched queues that have news: topic, queue id. Each is watched no longer.
    pub arrivals: Vec<(Arc<str>, u32)>,
    /// The peer broke the protocol: write the replies, then close the connection.
    pub error: Option<ProtocolError>,
    /// The session has frames left, because the replies grew long: `feed` again with no data once they are written.
    pub more: bool,
    /// The session may have more to say at once, but others have their turn first.
    pub unread: bool,
    /// A send waits in the session because the disk is behind ([`Store::is_behind`]): feed it again, with nothing, when
    /// it is not any more.
    pub behind: bool,
}

/// SEND_MESSAGE, CONSUMER_SEND_MSG_BACK, END_TRANSACTION, SEND_MESSAGE_V2, SEND_BATCH_MESSAGE, SEND_REPLY_MESSAGE and
/// its V2.
const STORING: [i32; 7] = [SEND_MESSAGE, 36, 37, SEND_MESSAGE_V2, SEND_BATCH_MESSAGE, 324, 325];

/// Requests that store a message of the client's, here or by policy.
fn stores(header: &Header) -> bool {
    !header.is_response() && STORING.contains(&header.code)
}

impl Turn {
    fn is_empty(&self) -> bool {
        let nothing = self.replies.is_empty() && self.commands.is_empty() && self.commits.is_empty();
        nothing && self.arrivals.is_empty() && self.error.is_none() && !self.more && !self.behind && !self.unread
    }

    /// Nothing more of the session may be served in this turn.
    fn must_end(&self) -> bool {
        !self.commands.is_empty() || self.error.is_some() || self.more || self.behind
    }

    fn bytes(&self) -> usize {
        self.replies.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    fn reply(&mut self, session: u64, bytes: Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        match self.replies.last_mut() {
            Some((last, so_far)) if *last == session => so_far.extend_from_slice(&bytes),
            _ => self.replies.push((session, bytes)),
        }
    }
}

/// What was done, for statistics.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    pub sends: u64,
    pub pulls: u64,
    pub pulls_parked: u64,
    pub pulls_woken: u64,
    pub pulls_expired: u64,
    pub commands: u64,
    pub sends_refused: u64,
    pub faults: [u64; Fault::ALL.len()],
}

struct Session {
    peer: SocketAddr,
    cutter: Cutter,
}

/// Replies that wait for the flush.
struct Held {
    end: Position,
    session: u64,
    since_ms: i64,
    replies: Vec<u8>,
}

/// The engine: a store, the tables, and everybody who talks to it.
pub struct Engine {
    pub store: Store,
    tables: Tables,
    clock: Arc<dyn Clock>,
    sessions: HashMap<u64, Session>,
    last_session: u64,
    parked: Parked,
    reader: Reader,
    sender: Sender,
    header: Header,
    /// Replies of what is staged.
    send_replies: Vec<u8>,
    /// Who has staged something, and where the replies to it end.
    staged: Vec<(u64, usize)>,
    /// Replies to what has been written, for the next turn.
    answers: Vec<(u64, Vec<u8>)>,
    held: VecDeque<Held>,
    /// Queues with news whose waiting pulls did not fit into a turn.
    unwoken: Vec<QueueRef>,
    /// Queues that policy waits for a message in.
    watched: HashSet<QueueRef>,
    slots: Vec<u32>,
    programs: HashMap<Box<str>, Arc<sql::Filter>>,
    /// Bytes of their texts.
    program_texts: usize,
    /// Queues made because a pull waits for their first message, since it was last looked how many are without one.
    queues_made: usize,
    pub counters: Counters,
}

impl Engine {
    pub fn new(store: Store, clock: Arc<dyn Clock>, settings: Settings) -> Engine {
        let queue_file_units = store.queue_file_units();
        let mut tables = Tables { settings, ..Tables::default() };
        if store.has_light_queues() {
            tables.allow_light();
        }
        let sender = Sender::new(&tables, clock.now_ms());
        Engine {
            store,
            tables,
            clock,
            sessions: HashMap::new(),
            last_session: 0,
            parked: Parked::default(),
            reader: Reader::new(queue_file_units),
            sender,
            header: Header::default(),
            send_replies: Vec::new(),
            staged: Vec::new(),
            answers: Vec::new(),
            held: VecDeque::new(),
            unwoken: Vec::new(),
            watched: HashSet::new(),
            slots: Vec::new(),
            programs: HashMap::new(),
            program_texts: 0,
            queues_made: 0,
            counters: Counters::default(),
        }
    }

    // ---- what policy tells --------------------------------------------------------------------------------------

    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Changes settings.
    pub fn change(&mut self, change: impl FnOnce(&mut Settings)) {
        let host = self.tables.settings.store_host;
        change(&mut self.tables.settings);
        if self.tables.settings.store_host != host {
            self.store.set_store_host(self.tables.settings.store_host);
        }
        self.store.set_light_queues_max(self.tables.settings.light_queues_max);
        if let Some(ratio) = self.tables.settings.disk_used_ratio_max {
            self.store.set_disk_used_ratio_max(ratio);
        }
        self.sender.settings_changed(&self.tables);
    }

    /// Adds a topic or changes its row. Pulls that wait on it are answered at the next `expire` when it became less open.
    pub fn allow_topic(
        &mut self,
        topic: &str,
        perm: u32,
        read_queues: u32,
        write_queues: u32,
        sys_flag: i32,
        fast: bool,
    ) {
        let narrower = self
            .tables
            .topics
            .get(topic)
            .is_some_and(|row| row.perm & !perm != 0 || row.read_queues > read_queues || (row.fast && !fast));
        self.tables.allow_topic(topic, perm, read_queues, write_queues, sys_flag, fast);
        if narrower {
            self.parked.end(|pull| &*pull.topic == topic);
        }
    }

    /// Which sends of a known topic may be served: those without a sharding key (`plain`), those with one (`keyed`).
    pub fn allow_sends(&mut self, topic: &str, plain: bool, keyed: bool) {
        self.tables.allow_sends(topic, plain, keyed);
    }

    /// Which logical queues of a known topic, a static one, are led here: sends to them are served.
    pub fn lead(&mut self, topic: &str, led: Vec<Led>) {
        self.tables.lead(topic, led);
    }

    /// Says whether the topic's queues are batch queues; before its first message.
    pub fn batch_topic(&mut self, topic: &str, batch: bool) {
        self.store.set_batch_topic(topic, batch);
    }

    /// Says whether the topic's queues are compacted.
    pub fn compaction_topic(&mut self, topic: &str, compacted: bool) {
        self.store.set_compaction_topic(topic, compacted);
    }

    pub fn forget_topic(&mut self, topic: &str) {
        self.tables.topics.remove(topic);
        self.parked.end(|pull| &*pull.topic == topic);
    }

    /// Adds a group or changes its row. Pulls that wait are answered at the next `expire` when it became less open.
    pub fn allow_group(&mut self, group: &str, consume: bool, sys_flag: i32, fast: bool) {
        let narrower =
            self.tables.groups.get(group).is_some_and(|row| (row.consume && !consume) || (row.fast && !fast));
        self.tables.allow_group(group, consume, sys_flag, fast);
        if narrower {
            self.parked.end(|pull| &*pull.group == group);
        }
    }

    pub fn forget_group(&mut self, group: &str) {
        self.tables.groups.remove(group);
        self.parked.end(|pull| &*pull.group == group);
    }

    /// The group's members subscribed; pulls that bring no subscription use this one. Those that wait by another are told at
    /// the next `expire` to ask again, also for what the former filter had skipped.
    pub fn subscribe(&mut self, group: &str, topic: &str, version: i64, filter: Filter) {
        if self.tables.subscribe(group, topic, Subscription { version, filter }) {
            self.outdate(group, Some(topic));
        }
    }

    pub fn unsubscribe(&mut self, group: &str, topic: Option<&str>) {
        self.tables.unsubscribe(group, topic);
        self.outdate(group, topic);
    }

    fn outdate(&mut self, group: &str, topic: Option<&str>) {
        self.parked
            .outdate(|pull| pull.by_group && &*pull.group == group && topic.unwrap_or(&pull.topic) == &*pull.topic);
    }

    /// A compiled SQL filter; the same text is compiled once.
    pub fn program(&mut self, text: &str) -> Result<Filter, sql::SqlError> {
        if let Some(program) = self.programs.get(text) {
            return Ok(Filter::Sql(program.clone()));
        }
        let program = Arc::new(sql::Filter::compile(text)?);
        if text.len() <= PROGRAM_TEXTS_MAX {
            self.program_texts += text.len();
            if self.programs.len() >= PROGRAMS_MAX || self.program_texts > PROGRAM_TEXTS_MAX {
                self.programs.clear();
                self.program_texts = text.len();
            }
            self.programs.insert(text.into(), program.clone());
        }
        Ok(Filter::Sql(program))
    }

    /// Forgets the topic and its queues; records stay in the log until their file goes.
    pub fn delete_topic(&mut self, topic: &str) -> Result<(), Error> {
        self.forget_topic(topic);
        let store = &self.store;
        self.watched.retain(|queue| &*store.name(*queue).0 != topic);
        self.store.delete_topic(topic)
    }

    /// Deletes the topic if it has no message left and nobody waits for one; true if it is gone.
    pub fn delete_empty_topic(&mut self, topic: &str) -> Result<bool, Error> {
        for queue in self.store.queues_of(topic) {
            let (min, max) = self.store.bounds(queue);
            if min < max || self.parked.is_awaited(queue) || self.watched.contains(&queue) {
                return Ok(false);
            }
        }
        self.delete_topic(topic)?;
        Ok(true)
    }

    /// The next message of the queue is told in a turn's `arrivals`, once.
    pub fn watch(&mut self, topic: &str, queue_id: u32) {
        if let Ok(queue) = self.store.queue_named(topic, queue_id) {
            self.watched.insert(queue);
        }
    }

    // ---- sessions ----------------------------------------------------------------------------------------------

    /// A new connection's number; numbers are not used again.
    pub fn session(&mut self, peer: SocketAddr) -> u64 {
        self.last_session += 1;
        self.sessions.insert(self.last_session, Session { peer, cutter: Cutter::default() });
        self.last_session
    }

    /// Forgets a connection and its waiting pulls.
    pub fn close_session(&mut self, session: u64) {
        self.sessions.remove(&session);
        self.parked.close_session(session);
    }

    /// The peer does not read, or reads again: its waiting pulls wait on until it does, whatever comes for them, so that
    /// they hold no memory. Nobody but a peer that reads is told that its time is over.
    pub fn stall(&mut self, session: u64, stalled: bool) -> Turn {
        let mut turn = Turn::default();
        if !self.sessions.contains_key(&session) {
            return turn;
        }
        if stalled {
            self.parked.stall(session);
        } else {
            self.unwoken.extend(self.parked.go_on(session));
            self.end(&mut turn);
        }
        turn
    }

    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    pub fn parked(&self) -> usize {
        self.parked.len()
    }

    /// Send replies that wait for the flush, in turns.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// When `expire` has something to do.
    pub fn next_expiry_ms(&mut self) -> Option<i64> {
        if !self.unwoken.is_empty() {
            return Some(i64::MIN);
        }
        let flush = self.held.front().map(|held| held.since_ms + self.tables.settings.sync_flush_timeout_ms);
        [self.parked.next_deadline_ms(), flush].into_iter().flatten().min()
    }

    /// The disk is behind: what would store messages waits; see [`Store::is_behind`].
    pub fn is_behind(&mut self) -> bool {
        self.store.is_behind()
    }

    /// A chunk from a connection. Bytes of an unfinished frame are kept.
    pub fn feed(&mut self, session: u64, data: &[u8]) -> Turn {
        let mut turn = Turn::default();
        self.serve(session, data, &mut turn);
        self.end(&mut turn);
        turn
    }

    /// As `feed`, for one of several connections that have something to say at the same time: what it does but store
    /// messages is done, these may stay staged (None), so that one write takes everybody's. `commit` must follow soon.
    pub fn feed_together(&mut self, session: u64, data: &[u8]) -> Option<Turn> {
        let mut turn = Turn::default();
        self.serve(session, data, &mut turn);
        self.end_together(turn)
    }

    /// As `feed_together`, of a chunk that fills `buffer`, so there may be more: `read` fills it again, and again, and
    /// says with how many bytes. It ends with less than the buffer holds, with something that others must do first, or with
    /// [`READ_ON_BYTES_MAX`]. One write takes all of it.
    pub fn feed_on(
        &mut self,
        session: u64,
        buffer: &mut [u8],
        read: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Option<Turn> {
        let mut turn = Turn::default();
        let mut have = buffer.len();
        let mut room = READ_ON_BYTES_MAX;
        while have > 0 {
            self.serve(session, &buffer[..have], &mut turn);
            room = room.saturating_sub(have);
            turn.unread = room == 0;
            if have < buffer.len() || turn.unread || turn.must_end() {
                break;
            }
            have = read(buffer);
        }
        self.end_together(turn)
    }

    fn end_together(&mut self, mut turn: Turn) -> Option<Turn> {
        if turn.is_empty() && !self.staged.is_empty() && self.store.staged_bytes() < STAGED_BYTES_MAX {
            return None;
        }
        self.end(&mut turn);
        Some(turn)
    }

    /// Writes what `feed_together` has left, and answers it.
    pub fn commit(&mut self) -> Turn {
        let mut turn = Turn::default();
        self.end(&mut turn);
        turn
    }

    fn serve(&mut self, session: u64, data: &[u8], turn: &mut Turn) {
        let Some(row) = self.sessions.get_mut(&session) else { return };
        let peer = row.peer;
        let mut cutter = std::mem::take(&mut row.cutter);
        let mut header = std::mem::take(&mut self.header);
        let mut out = Vec::new();
        let frame_bytes_max = self.tables.settings.frame_bytes_max;
        let turn_bytes_max = self.tables.settings.turn_bytes_max.saturating_sub(turn.bytes());
        let fed = cutter.feed(data, frame_bytes_max, |frame| {
            header.read(frame.encoding, frame.header)?;
            if stores(&header) && self.store.is_behind() {
                return Ok(Flow::Wait);
            }
            self.take(session, peer, &mut header, &frame, &mut out, turn);
            Ok(if out.len() + self.send_replies.len() >= turn_bytes_max { Flow::Stop } else { Flow::Go })
        });
        self.header = header;
        match fed {
            Ok(flow) => {
                turn.more = flow == Flow::Stop && cutter.kept() > 0;
                turn.behind = flow == Flow::Wait;
            }
            Err(error) => {
                self.counters.faults[error.fault as usize] += 1;
                turn.error = Some(error);
            }
        }
        if let Some(row) = self.sessions.get_mut(&session) {
            row.cutter = cutter;
        }
        turn.reply(session, out);
    }

    /// One command.
    fn take(
        &mut self,
        session: u64,
        peer: SocketAddr,
        header: &mut Header,
        frame: &Frame<'_>,
        out: &mut Vec<u8>,
        turn: &mut Turn,
    ) {
        if self.tables.settings.fast && !header.is_response() {
            match header.code {
                SEND_MESSAGE | SEND_MESSAGE_V2 | SEND_BATCH_MESSAGE => {
                    let clock = self.clock.clone();
                    let served = self.sender.serve(
                        &mut self.store,
                        &mut self.tables,
                        &*clock,
                        peer,
                        header,
                        frame,
                        &mut self.send_replies,
                    );
                    match served {
                        Served::Yes => {
                            self.has_staged(session);
                            self.counters.sends += 1;
                            return;
                        }
                        Served::Refused(error) => {
                            // Part of a batch is staged when the disk begins to refuse in the middle of it.
                            self.has_staged(session);
                            self.counters.sends_refused += 1;
                            if !header.is_oneway() {
                                let (code, remark) = refusal(&error);
                                error_reply(out, frame.encoding, header.opaque, code, &remark, &self.tables);
                            }
                            return;
                        }
                        Served::No => {}
                    }
                }
                PULL_MESSAGE | LITE_PULL_MESSAGE => {
                    if let Some(pull) = Pull::allowed(&self.tables, header, frame.header, frame.encoding) {
                        self.serve_pull(session, pull, true, out, turn);
                        return;
                    }
                }
                _ => {}
            }
        }
        self.counters.commands += 1;
        turn.commands.push(Command {
            header: std::mem::take(header),
            source: frame.header.to_vec(),
            body: frame.body.to_vec(),
            encoding: frame.encoding,
        });
    }

    // ---- sends -------------------------------------------------------------------------------------------------

    fn has_staged(&mut self, session: u64) {
        let end = self.send_replies.len();
        match self.staged.last_mut() {
            Some((last, so_far)) if *last == session => *so_far = end,
            _ => self.staged.push((session, end)),
        }
    }

    /// Writes what is staged; the next turn has the replies, unless they wait for the flush. Whoever looks at the store
    /// or adds to it calls this first.
    pub fn write_staged(&mut self) {
        if self.staged.is_empty() {
            return;
        }
        let staged = std::mem::take(&mut self.staged);
        let room = Vec::with_capacity(self.send_replies.len().min(1 << 16));
        let replies = std::mem::replace(&mut self.send_replies, room);
        let committed = self.store.commit();
        let each: Vec<(u64, Vec<u8>)> = match staged[..] {
            [(session, _)] => vec![(session, replies)],
            _ => {
                let begins = std::iter::once(0).chain(staged.iter().map(|(_, end)| *end));
                staged
                    .iter()
                    .zip(begins)
                    .map(|((session, end), begin)| (*session, replies[begin..*end].to_vec()))
                    .collect()
            }
        };
        for (session, replies) in each {
            match &committed {
                _ if replies.is_empty() => {} // oneway
                Ok(commit) if self.store.durable() < commit.end => {
                    let since_ms = self.clock.now_ms();
                    self.held.push_back(Held { end: commit.end, session, since_ms, replies });
                }
                Ok(_) => self.answers.push((session, replies)),
                Err(error) => {
                    let refusals = self.refuse(&replies, error);
                    self.answers.push((session, refusals));
                }
            }
        }
        if let Ok(commit) = committed {
            self.unwoken.extend_from_slice(&commit.touched);
        }
        self.staged = staged;
        self.staged.clear();
    }

    /// The end of a turn: what is staged is written and answered, who waits for it is woken.
    fn end(&mut self, turn: &mut Turn) {
        self.write_staged();
        for (session, replies) in self.answers.drain(..) {
            if self.sessions.contains_key(&session) {
                turn.reply(session, replies);
            }
        }
        self.wake(turn);
    }

    /// Error replies instead of `replies`.
    fn refuse(&mut self, replies: &[u8], error: &Error) -> Vec<u8> {
        let (code, remark) = refusal(error);
        let mut out = Vec::new();
        for (header, frame) in written(replies) {
            self.counters.sends_refused += 1;
            error_reply(&mut out, frame.encoding, header.opaque, code, &remark, &self.tables);
        }
        out
    }

    /// Writes what policy itself stores. Nothing is stored on an error. The turn has the pulls it woke; with
    /// synchronous flush a record counts once `store.durable()` has reached its end.
    pub fn append(&mut self, records: &[NewRecord<'_>]) -> Result<(Vec<Staged>, Turn), Error> {
        self.write_staged();
        let mut receipts = Vec::with_capacity(records.len());
        for record in records {
            let queue = match self.tables.topics.get_mut(record.topic) {
                Some(topic) => crate::send::queue_of(&mut self.store, record.topic, &mut topic.queues, record.queue_id),
                None => self.store.queue_named(record.topic, record.queue_id),
            };
            match queue.and_then(|queue| self.store.stage(queue, record)) {
                Ok(staged) => receipts.push(staged),
                Err(error) => {
                    self.store.discard();
                    return Err(error);
                }
            }
        }
        let commit = self.store.commit()?;
        for (record, receipt) in records.iter().zip(&receipts) {
            if let Some(topic) = self.tables.topics.get_mut(record.topic) {
                topic.puts.add(self.store.messages_in(receipt.queue, record), receipt.size as u64);
            }
        }
        let mut turn = Turn::default();
        self.unwoken.extend_from_slice(&commit.touched);
        self.end(&mut turn);
        Ok((receipts, turn))
    }

    /// Stores messages that waited again where their properties say that they belong, each with more properties behind
    /// its own: in one write, those from the front of `moves` up to the first that is not that simple (see [`Home::of`])
    /// or that no store can hold. How many, and the end of the last.
    pub fn bring_home(&mut self, moves: &[(Position, &[u8])]) -> Result<(usize, Position, Turn), Error> {
        let mut waited = Vec::with_capacity(moves.len());
        for (position, _) in moves {
            let Some(data) = self.store.record(*position) else { break };
            waited.push(data);
        }
        let homes: Vec<Home> = waited.iter().zip(moves).map_while(|(data, (_, added))| Home::of(data, added)).collect();
        let records: Vec<NewRecord> = homes.iter().map(Home::record).collect();
        match self.append(&records) {
            Ok((receipts, turn)) => {
                let end = receipts.last().map_or(0, |last| last.position + last.size as Position);
                Ok((receipts.len(), end, turn))
            }
            Err(Error::BadRecord(_) | Error::TooManyLightQueues(_)) => Ok((0, 0, Turn::default())),
            Err(error) => Err(error),
        }
    }

    /// The offset message id of the record at `position`.
    pub fn message_id(&self, position: Position) -> String {
        let mut id = Vec::new();
        push_message_id(&mut id, &message_id_front(self.tables.settings.store_host), position);
        String::from_utf8(id).unwrap_or_default()
    }

    /// Call it when `store.notify_fd()` is readable: flushed messages become visible, replies that waited go out.
    pub fn settle(&mut self) -> Turn {
        let mut turn = Turn::default();
        let touched = self.store.settle();
        let durable = self.store.durable();
        while self.held.front().is_some_and(|held| held.end <= durable) {
            let Some(held) = self.held.pop_front() else { break };
            if self.sessions.contains_key(&held.session) {
                turn.reply(held.session, held.replies);
            }
        }
        if !self.held.is_empty() {
            if let Some(error @ (Error::DiskFailed(_) | Error::Closed)) = self.store.health() {
                while let Some(held) = self.held.pop_front() {
                    let replies = self.refuse(&held.replies, &error);
                    if self.sessions.contains_key(&held.session) {
                        turn.reply(held.session, replies);
                    }
                }
            }
        }
        self.unwoken.extend_from_slice(&touched);
        self.end(&mut turn);
        turn
    }

    // ---- pulls -------------------------------------------------------------------------------------------------

    /// A pull policy decided to serve (or to park, with `park`), read with `filter`.
    ///
    /// # Errors
    /// As [`Pull::granted`].
    pub fn pull(
        &mut self,
        session: u64,
        header: &Header,
        source: &[u8],
        encoding: Encoding,
        filter: Filter,
        park: bool,
    ) -> Result<Turn, String> {
        let pull = Pull::granted(&self.tables, header, source, encoding, filter)?;
        let mut turn = Turn::default();
        if !self.sessions.contains_key(&session) {
            // It ended while policy thought: a pull parked for it would wait for nobody.
            return Ok(turn);
        }
        let mut out = Vec::new();
        self.serve_pull(session, pull, park, &mut out, &mut turn);
        turn.reply(session, out);
        Ok(turn)
    }

    fn serve_pull(&mut self, session: u64, pull: Pull, park: bool, out: &mut Vec<u8>, turn: &mut Turn) {
        self.counters.pulls += 1;
        if let Some(offset) = pull.commit_offset {
            turn.commits.push(OffsetCommit {
                group: pull.group.clone(),
                topic: pull.topic.clone(),
                queue_id: pull.queue_id,
                offset,
            });
        }
        let hold_ms = pull.hold_ms.filter(|hold_ms| {
            park && *hold_ms > 0 && self.parked.of_session(session) < self.tables.settings.parked_max
        });
        let queue = self.queue(&pull, hold_ms.is_some());
        let hold_ms = hold_ms.filter(|_| queue.is_some());
        let replied = self.reader.reply(
            &mut self.store,
            queue,
            &pull,
            &self.tables.settings,
            pull.offset,
            |found| {
                hold_ms.is_some()
                    && found.status != Status::OffsetFoundNull
                    && found.status.code(pull.offset) == PULL_NOT_FOUND
            },
            out,
        );
        match replied {
            Ok(Some(found)) => self.count_gets(&pull, &found),
            Ok(None) => {
                let (Some(queue), Some(hold_ms)) = (queue, hold_ms) else { return };
                self.counters.pulls_parked += 1;
                let deadline_ms = self.clock.now_ms() + hold_ms;
                let scanned = pull.offset;
                self.parked.park(Waiting { session, queue, pull, scanned, deadline_ms, outdated: false });
            }
            Err(error) => {
                let (code, remark) = refusal(&error);
                error_reply(out, pull.encoding, pull.opaque, code, &remark, &self.tables);
            }
        }
    }

    /// The queue a pull reads; made when the pull may have to wait for its first message.
    fn queue(&mut self, pull: &Pull, make: bool) -> Option<QueueRef> {
        if let Some(topic) = self.tables.topics.get_mut(&*pull.topic) {
            if make && pull.queue_id < topic.read_queues {
                return crate::send::queue_of(&mut self.store, &pull.topic, &mut topic.queues, pull.queue_id).ok();
            }
            if let Some(Some(queue)) = topic.queues.get(pull.queue_id as usize) {
                return Some(*queue);
            }
        }
        match self.store.find_queue(&pull.topic, pull.queue_id) {
            None if make => {
                // Anything may be called a light queue: what is only waited for must not fill the memory.
                self.queues_made += 1;
                if self.queues_made > UNWRITTEN_QUEUES_MAX {
                    self.queues_made = self.store.unwritten_queues();
                    if self.queues_made > UNWRITTEN_QUEUES_MAX {
                        return None;
                    }
                }
                self.store.queue_named(&pull.topic, pull.queue_id).ok()
            }
            found => found,
        }
    }

    fn count_gets(&mut self, pull: &Pull, found: &Found) {
        if found.count > 0 {
            if let Some(group) = self.tables.groups.get_mut(&*pull.group) {
                group.topic(&pull.topic).gets.add(found.count as u64, found.bytes);
            }
        }
    }

    /// Answers waiting pulls of queues with news.
    fn wake(&mut self, turn: &mut Turn) {
        if self.unwoken.is_empty() {
            return;
        }
        if !self.watched.is_empty() {
            for queue in &self.unwoken {
                if self.watched.remove(queue) {
                    turn.arrivals.push(self.store.name(*queue));
                }
            }
        }
        if self.parked.is_empty() {
            self.unwoken.clear();
            return;
        }
        let queues = std::mem::take(&mut self.unwoken);
        let mut slots = std::mem::take(&mut self.slots);
        // A turn grows by what is woken, but not without bound: the rest is woken by the next call. So are further pulls
        // of a session that gets much, when it is known whether it reads.
        let session_bytes_max = self.tables.settings.turn_bytes_max;
        let bytes_max = 16 * session_bytes_max;
        let mut bytes = turn.bytes();
        let mut given: HashMap<u64, usize> = HashMap::new();
        for (at, queue) in queues.iter().enumerate() {
            if !self.parked.waits_on(*queue) {
                continue;
            }
            self.parked.on_queue(*queue, &mut slots);
            let mut put_off = false;
            for slot in &slots {
                if bytes > bytes_max {
                    self.unwoken.extend_from_slice(&queues[at..]);
                    self.slots = slots;
                    return;
                }
                if bytes <= session_bytes_max {
                    bytes += self.wake_one(*slot, *queue, turn);
                    continue;
                }
                if given.is_empty() {
                    for (session, replies) in &turn.replies {
                        *given.entry(*session).or_default() += replies.len();
                    }
                }
                let Some(session) = self.parked.session_of(*slot) else { continue };
                let so_far = given.entry(session).or_default();
                if *so_far > session_bytes_max {
                    put_off = true;
                    continue;
                }
                let woken = self.wake_one(*slot, *queue, turn);
                *so_far += woken;
                bytes += woken;
            }
            if put_off {
                self.unwoken.push(*queue);
            }
        }
        self.slots = slots;
    }

    /// Answers one waiting pull if there is something for it; how many bytes it got.
    fn wake_one(&mut self, slot: u32, queue: QueueRef, turn: &mut Turn) -> usize {
        loop {
            let Some(waiting) = self.parked.get_mut(slot).filter(|waiting| !waiting.outdated) else { return 0 };
            let mut out = Vec::new();
            let offset = waiting.pull.offset;
            let mut seen = None;
            let replied = self.reader.reply(
                &mut self.store,
                Some(queue),
                &waiting.pull,
                &self.tables.settings,
                waiting.scanned,
                |found| {
                    seen = Some(*found);
                    found.status != Status::Found && found.status.code(offset) != PULL_OFFSET_MOVED
                },
                &mut out,
            );
            match (replied, seen) {
                (Ok(Some(found)), _) => {
                    let Some(waiting) = self.parked.take(slot) else { return 0 };
                    self.counters.pulls_woken += 1;
                    self.count_gets(&waiting.pull, &found);
                    let bytes = out.len();
                    turn.reply(waiting.session, out);
                    return bytes;
                }
                (Ok(None), Some(found)) => {
                    let further = found.next_offset > waiting.scanned;
                    waiting.scanned = waiting.scanned.max(found.next_offset);
                    if !further || found.next_offset >= found.max_offset {
                        return 0;
                    }
                }
                // It cannot be read now: the pull goes on waiting, and is told at its deadline.
                _ => return 0,
            }
        }
    }

    /// Answers waiting pulls whose time is over at `now_ms` and sends whose flush takes too long.
    pub fn expire(&mut self, now_ms: i64) -> Turn {
        let mut turn = Turn::default();
        // Who ends all waiting by a time far ahead means everybody.
        let stalled_until_ms = (now_ms <= self.clock.now_ms()).then(|| now_ms + STALLED_AGAIN_MS);
        while let Some(waiting) = self.parked.take_expired(now_ms, stalled_until_ms) {
            self.counters.pulls_expired += 1;
            let pull = waiting.pull;
            let mut out = Vec::new();
            if !self.tables.topics.contains_key(&*pull.topic)
                && self.store.find_queue(&pull.topic, pull.queue_id).is_none()
            {
                let remark = format!("topic[{}] not exist, apply first please!", pull.topic);
                error_reply(&mut out, pull.encoding, pull.opaque, TOPIC_NOT_EXIST, &remark, &self.tables);
                turn.reply(waiting.session, out);
                continue;
            }
            let queue = self.queue(&pull, false);
            if waiting.outdated {
                reply_again(&self.store, queue, &pull, &self.tables.settings, &mut out);
                turn.reply(waiting.session, out);
                continue;
            }
            let replied = self.reader.reply(
                &mut self.store,
                queue,
                &pull,
                &self.tables.settings,
                waiting.scanned,
                |_| false,
                &mut out,
            );
            match replied {
                Ok(Some(found)) => self.count_gets(&pull, &found),
                Ok(None) => {}
                Err(error) => {
                    let (code, remark) = refusal(&error);
                    error_reply(&mut out, pull.encoding, pull.opaque, code, &remark, &self.tables);
                }
            }
            turn.reply(waiting.session, out);
        }
        // Whoever ends all waiting by a time far ahead does not mean the disk.
        let begun_ms = now_ms.min(self.clock.now_ms()) - self.tables.settings.sync_flush_timeout_ms;
        while self.held.front().is_some_and(|held| held.since_ms <= begun_ms) {
            let Some(held) = self.held.pop_front() else { break };
            if self.sessions.contains_key(&held.session) {
                turn.reply(held.session, with_code(&held.replies, FLUSH_DISK_TIMEOUT));
            }
        }
        self.end(&mut turn);
        turn
    }

    /// Reads a batch for policy; the records are appended to `out`.
    #[allow(clippy::too_many_arguments)]
    pub fn read(
        &mut self,
        topic: &str,
        queue_id: u32,
        offset: i64,
        count_max: u32,
        bytes_max: u64,
        filter: &Filter,
        out: &mut Vec<u8>,
    ) -> Result<Found, Error> {
        let limits = Limits {
            count_max,
            bytes_max,
            old_count_max: count_max,
            old_bytes_max: bytes_max,
            recent_bytes: u64::MAX,
            filter_entries_max: Limits::entries(&self.tables.settings, count_max),
        };
        let queue = self.store.find_queue(topic, queue_id);
        self.reader.read(&mut self.store, queue, offset, &limits, filter, offset, out)
    }
}

/// Response code and remark for a store that refuses.
fn refusal(error: &Error) -> (i32, String) {
    match error {
        Error::BadRecord(reason) => (MESSAGE_ILLEGAL, format!("the message is illegal: {reason}")),
        Error::TooManyLightQueues(reason) => {
            (LMQ_QUOTA_EXCEEDED, format!("[LMQ_CONSUME_QUEUE_NUM_EXCEEDED]lmq consume queue num exceeded: {reason}"))
        }
        error => (SERVICE_NOT_AVAILABLE, format!("service not available now: {error}")),
    }
}

/// The frames in a buffer we wrote.
fn written(mut replies: &[u8]) -> impl Iterator<Item = (Header, Frame<'_>)> {
    std::iter::from_fn(move || match front(replies, usize::MAX) {
        Ok(Front::Whole(frame, used)) => {
            replies = &replies[used..];
            let mut header = Header::default();
            header.read(frame.encoding, frame.header).ok()?;
            Some((header, frame))
        }
        _ => None,
    })
}

/// The same replies with another code.
fn with_code(replies: &[u8], code: i32) -> Vec<u8> {
    let mut out = Vec::with_capacity(replies.len() + 64);
    for (header, frame) in written(replies) {
        let fixed = Fixed {
            code,
            language: header.language,
            version: header.version,
            opaque: header.opaque,
            flag: header.flag,
            remark: header.remark(frame.header),
        };
        let mut writer = Writer::begin(&mut out, frame.encoding, fixed);
        for (key, value) in header.fields(frame.header) {
            writer.field(key, value);
        }
        writer.end_header();
        writer.out.extend_from_slice(frame.body);
        writer.finish();
    }
    out
}
