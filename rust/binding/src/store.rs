//! The broker's engine as Python sees it. Every method is a translation and one call through `enter`; what it means is
//! said in `_engine.pyi` and in `aerobee_engine`.
use std::io::Read;
use std::mem::ManuallyDrop;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::FromRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use aerobee_engine::clock::SystemClock;
use aerobee_engine::disk::RealDisk;
use aerobee_engine::error::Error;
use aerobee_engine::frame::Fault;
use aerobee_engine::header::{Encoding, Header};
use aerobee_engine::property;
use aerobee_engine::pull::Found;
use aerobee_engine::record::{NewRecord, RecordView};
use aerobee_engine::session;
use aerobee_engine::snapshot;
use aerobee_engine::sql;
use aerobee_engine::store::{self, DeletePolicy, FlushMode, StoreOptions};
use aerobee_engine::tables::{Filter, Led, Settings};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use crate::enter::{enter, log_lines, store_error, Bytes, BytesMut};
use crate::frames::command_tuple;

/// `host:port`, with an IPv6 host in brackets or bare.
fn address(text: &str) -> PyResult<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let parsed = text.rsplit_once(':').and_then(|(host, port)| {
        let host: IpAddr = match host {
            "" => Ipv4Addr::UNSPECIFIED.into(),
            "localhost" => Ipv4Addr::LOCALHOST.into(),
            host => host.trim_matches(['[', ']']).split('%').next()?.parse().ok()?,
        };
        Some(SocketAddr::new(host, port.parse().ok()?))
    });
    parsed.ok_or_else(|| PyValueError::new_err(format!("not an address (ip:port): {text}")))
}

/// What policy stores. All fields can be changed until it is appended.
#[pyclass(module = "aerobee._engine", get_all, set_all)]
pub struct Record {
    topic: String,
    queue_id: u32,
    body: Py<PyBytes>,
    properties: Py<PyBytes>,
    flag: i32,
    sys_flag: i32,
    born_timestamp: i64,
    born_host: String,
    reconsume_times: i32,
    prepared_offset: i64,
    tags_code: Option<i64>,
    multi_dispatch: bool,
}

#[pymethods]
impl Record {
    #[new]
    #[pyo3(signature = (topic, queue_id, body, properties, *, flag = 0, sys_flag = 0, born_timestamp = 0,
                        born_host = "127.0.0.1:0", reconsume_times = 0, prepared_offset = 0, tags_code = None,
                        multi_dispatch = true))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        topic: String,
        queue_id: u32,
        body: Py<PyBytes>,
        properties: Py<PyBytes>,
        flag: i32,
        sys_flag: i32,
        born_timestamp: i64,
        born_host: &str,
        reconsume_times: i32,
        prepared_offset: i64,
        tags_code: Option<i64>,
        multi_dispatch: bool,
    ) -> Self {
        Record {
            topic,
            queue_id,
            body,
            properties,
            flag,
            sys_flag,
            born_timestamp,
            born_host: born_host.to_owned(),
            reconsume_times,
            prepared_offset,
            tags_code,
            multi_dispatch,
        }
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        format!("Record(topic={:?}, queue_id={}, {} bytes)", self.topic, self.queue_id, self.body.as_bytes(py).len())
    }
}

/// Where a record went.
#[pyclass(module = "aerobee._engine", frozen, get_all)]
pub struct Receipt {
    queue_offset: i64,
    position: u64,
    size: u32,
    store_timestamp: i64,
    message_id: String,
}

#[pymethods]
impl Receipt {
    fn __repr__(&self) -> String {
        format!("Receipt(queue_offset={}, position={}, size={})", self.queue_offset, self.position, self.size)
    }
}

/// What a read found.
#[pyclass(module = "aerobee._engine", frozen, get_all)]
pub struct Batch {
    status: &'static str,
    next_offset: i64,
    min_offset: i64,
    max_offset: i64,
    count: u32,
    records: Py<PyBytes>,
}

#[pymethods]
impl Batch {
    fn __repr__(&self) -> String {
        format!("Batch(status={}, count={}, next_offset={})", self.status, self.count, self.next_offset)
    }
}

/// What came of one call.
#[pyclass(module = "aerobee._engine", frozen, get_all)]
pub struct Turn {
    replies: Py<PyList>,
    commands: Py<PyList>,
    commits: Py<PyList>,
    arrivals: Py<PyList>,
    error: Option<String>,
    more: bool,
    unread: bool,
    behind: bool,
}

impl Turn {
    fn of(py: Python<'_>, turn: session::Turn) -> PyResult<Turn> {
        let replies = PyList::empty(py);
        for (session, bytes) in &turn.replies {
            replies.append((*session, PyBytes::new(py, bytes)))?;
        }
        let commands = PyList::empty(py);
        for command in &turn.commands {
            commands.append(command_tuple(py, &command.header, &command.source, &command.body, command.encoding)?)?;
        }
        let commits = PyList::empty(py);
        for commit in &turn.commits {
            commits.append((&*commit.group, &*commit.topic, commit.queue_id, commit.offset))?;
        }
        let arrivals = PyList::empty(py);
        for (topic, queue_id) in &turn.arrivals {
            arrivals.append((&**topic, *queue_id))?;
        }
        Ok(Turn {
            replies: replies.unbind(),
            commands: commands.unbind(),
            commits: commits.unbind(),
            arrivals: arrivals.unbind(),
            error: turn.error.map(|error| error.reason),
            more: turn.more,
            unread: turn.unread,
            behind: turn.behind,
        })
    }
}

#[pymethods]
impl Turn {
    fn __repr__(&self, py: Python<'_>) -> String {
        let count = |list: &Py<PyList>| list.bind(py).len();
        format!(
            "Turn({} replies, {} commands, {} commits, error={:?}, more={}, unread={}, behind={})",
            count(&self.replies),
            count(&self.commands),
            count(&self.commits),
            self.error,
            self.more,
            self.unread,
            self.behind
        )
    }
}

/// The engine.
#[pyclass(module = "aerobee._engine", frozen)]
pub struct Engine {
    inner: Mutex<session::Engine>,
}

impl Engine {
    /// Through the door: the GIL is free, the engine is ours, and nothing is staged that the work would not see.
    fn enter<T: Send>(&self, py: Python<'_>, work: impl FnOnce(&mut session::Engine) -> T + Send) -> PyResult<T> {
        enter(py, || {
            let engine = &mut *self.lock();
            engine.write_staged();
            work(engine)
        })
    }

    fn lock(&self) -> MutexGuard<'_, session::Engine> {
        // A panic in an earlier call was reported there. Going on with half-done work could lose messages.
        self.inner.lock().expect("the engine stopped after an earlier panic")
    }

    fn enter_store<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut session::Engine) -> Result<T, aerobee_engine::error::Error> + Send,
    ) -> PyResult<T> {
        self.enter(py, work)?.map_err(|error| store_error(py, &error))
    }

    /// Says what the flusher has to say.
    fn log_notices(&self, py: Python<'_>) -> PyResult<()> {
        let notices = self.enter(py, |engine| engine.store.notices())?;
        log_lines(py, "warning", &notices)
    }

    fn batch(py: Python<'_>, found: &Found, records: &[u8]) -> Batch {
        Batch {
            status: found.status.name(),
            next_offset: found.next_offset,
            min_offset: found.min_offset,
            max_offset: found.max_offset,
            count: found.count,
            records: PyBytes::new(py, records).unbind(),
        }
    }
}

/// The filter of a list of tag hashes; None: all messages.
fn tags_filter(tags: Option<Vec<i64>>) -> Filter {
    match tags {
        None => Filter::All,
        Some(tags) => Filter::Tags(tags.into_iter().map(|tag| tag as i32).collect()),
    }
}

fn unknown_key(what: &str, key: &str) -> PyErr {
    PyTypeError::new_err(format!("unknown {what}: {key}"))
}

fn store_options(options: &Bound<'_, PyDict>) -> PyResult<StoreOptions> {
    let root: String = match options.get_item("root")? {
        Some(root) => root.str()?.extract()?,
        None => return Err(PyTypeError::new_err("options need a root (directory of the store)")),
    };
    let mut out = StoreOptions::new(root);
    for (key, value) in options.iter() {
        let key: String = key.extract()?;
        match key.as_str() {
            "root" => {}
            "sync_flush" => out.flush_mode = if value.extract()? { FlushMode::Sync } else { FlushMode::Async },
            "log_file_bytes" => out.log_file_bytes = value.extract()?,
            "queue_file_units" => out.queue_file_units = value.extract()?,
            "batch_file_units" => out.batch_file_units = value.extract()?,
            "batch_topics" => out.batch_topics = value.extract()?,
            "compaction_topics" => out.compaction_topics = value.extract()?,
            "compaction_log_file_bytes" => out.compaction_log_file_bytes = value.extract()?,
            "compaction_queue_file_bytes" => out.compaction_queue_file_bytes = value.extract()?,
            "compaction_map_bytes" => out.compaction_map_bytes = value.extract()?,
            "index_slots" => out.index_slots = value.extract()?,
            "index_entries" => out.index_entries = value.extract()?,
            "index_enable" => out.index_enable = value.extract()?,
            "store_host" => out.store_host = address(value.extract()?)?,
            "log_flush_interval_ms" => out.log_flush_interval_ms = value.extract()?,
            "log_flush_bytes_min" => out.log_flush_bytes_min = value.extract()?,
            "log_flush_forced_ms" => out.log_flush_forced_ms = value.extract()?,
            "queue_flush_interval_ms" => out.queue_flush_interval_ms = value.extract()?,
            "queue_flush_forced_ms" => out.queue_flush_forced_ms = value.extract()?,
            "disk_used_ratio_max" => out.disk_used_ratio_max = value.extract()?,
            "unflushed_bytes_max" => out.unflushed_bytes_max = value.extract()?,
            "checkpoint_bytes" => out.checkpoint_bytes = value.extract()?,
            "utc_offset_ms" => out.utc_offset_ms = value.extract()?,
            "delay_levels_ms" => out.delay_levels_ms = value.extract()?,
            "light_queues" => out.light_queues = value.extract()?,
            "background" => out.background = value.extract()?,
            _ => return Err(unknown_key("store option", &key)),
        }
    }
    Ok(out)
}

/// Applies one keyword of `allow`.
fn change_setting(settings: &mut Settings, key: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
    match key {
        "fast" => settings.fast = value.extract()?,
        "broker_perm" => settings.broker_perm = value.extract()?,
        "frame_bytes_max" => settings.frame_bytes_max = value.extract()?,
        "body_bytes_max" => settings.body_bytes_max = value.extract()?,
        "store_host" => settings.store_host = address(value.extract()?)?,
        "region" => settings.region = value.extract()?,
        "trace_on" => settings.trace_on = value.extract()?,
        "cluster" => settings.cluster = value.extract()?,
        "long_polling" => settings.long_polling = value.extract()?,
        "short_polling_ms" => settings.short_polling_ms = value.extract()?,
        "lite_pull" => settings.lite_pull = value.extract()?,
        "pull_bytes_max" => settings.pull_bytes_max = value.extract()?,
        "pull_count_max" => settings.pull_count_max = value.extract()?,
        "old_pull_bytes_max" => settings.old_pull_bytes_max = value.extract()?,
        "old_pull_count_max" => settings.old_pull_count_max = value.extract()?,
        "recent_bytes" => settings.recent_bytes = value.extract()?,
        "filter_entries_max" => settings.filter_entries_max = value.extract()?,
        "turn_bytes_max" => settings.turn_bytes_max = value.extract()?,
        "parked_max" => settings.parked_max = value.extract()?,
        "sync_flush_timeout_ms" => settings.sync_flush_timeout_ms = value.extract()?,
        "light_queues_max" => {
            settings.light_queues_max = value.extract::<Option<usize>>()?.unwrap_or(usize::MAX);
        }
        "disk_used_ratio_max" => settings.disk_used_ratio_max = Some(value.extract()?),
        "version" => settings.version = value.extract()?,
        _ => return Err(unknown_key("setting", key)),
    }
    Ok(())
}

/// What `look_ahead` has begun; for `Engine.open`, once.
#[pyclass]
pub struct Look(Option<snapshot::Look>);

#[pyfunction]
pub fn look_ahead(root: PathBuf, queue_file_units: u64) -> Look {
    Look(Some(snapshot::Look::begin(Arc::new(RealDisk), &root, queue_file_units)))
}

/// Command for policy, as `CommandTuple`: what comes in, so that `pull` can be answered.
type CommandIn<'py> = (i32, u8, i32, i32, i32, Option<String>, Bound<'py, PyDict>, Bound<'py, PyAny>, u8);

#[pymethods]
impl Engine {
    #[staticmethod]
    #[pyo3(signature = (options, look = None))]
    fn open(py: Python<'_>, options: &Bound<'_, PyDict>, look: Option<&Bound<'_, Look>>) -> PyResult<Engine> {
        let options = store_options(options)?;
        let look = look.and_then(|look| look.borrow_mut().0.take());
        let settings = Settings { store_host: options.store_host, ..Settings::default() };
        let progress = |level: store::Level, line: &str| {
            let lines = [line.to_owned()];
            let level = if level == store::Level::Warning { "warning" } else { "info" };
            // A line that cannot be logged is no reason not to open.
            let _ = Python::with_gil(|py| log_lines(py, level, &lines));
        };
        let opened = enter(py, || {
            let clock = Arc::new(SystemClock);
            let store = store::Store::open_looked_at(options, look, Arc::new(RealDisk), clock.clone(), &progress)?;
            Ok(session::Engine::new(store, clock, settings))
        })?;
        let engine = opened.map_err(|error| store_error(py, &error))?;
        Ok(Engine { inner: Mutex::new(engine) })
    }

    fn session(&self, py: Python<'_>, peer: &str) -> PyResult<u64> {
        let peer = address(peer)?;
        self.enter(py, |engine| engine.session(peer))
    }

    fn close_session(&self, py: Python<'_>, session: u64) -> PyResult<()> {
        self.enter(py, |engine| engine.close_session(session))
    }

    #[pyo3(signature = (session, data, together = false))]
    fn feed(&self, py: Python<'_>, session: u64, data: &Bound<'_, PyAny>, together: bool) -> PyResult<Option<Turn>> {
        let data = Bytes::of(data)?;
        let bytes = data.as_slice();
        let turn = enter(py, || match together {
            true => self.lock().feed_together(session, bytes),
            false => Some(self.lock().feed(session, bytes)),
        })?;
        turn.map(|turn| Turn::of(py, turn)).transpose()
    }

    fn feed_on(&self, py: Python<'_>, session: u64, buffer: &Bound<'_, PyAny>, fd: i32) -> PyResult<Option<Turn>> {
        let mut buffer = BytesMut::of(buffer)?;
        if fd < 0 {
            return Err(PyValueError::new_err(format!("{fd} is no file descriptor")));
        }
        let bytes = buffer.as_mut_slice();
        // SAFETY: whose socket it is waits for this call, so it is open; here it is not closed.
        let socket = ManuallyDrop::new(unsafe { TcpStream::from_raw_fd(fd) });
        // Nothing there yet, the end, an error: the transport reads next, and is told.
        let mut read = |room: &mut [u8]| (&*socket).read(room).unwrap_or(0);
        let turn = enter(py, || self.lock().feed_on(session, bytes, &mut read))?;
        turn.map(|turn| Turn::of(py, turn)).transpose()
    }

    fn commit(&self, py: Python<'_>) -> PyResult<Turn> {
        let turn = self.enter(py, session::Engine::commit)?;
        Turn::of(py, turn)
    }

    fn settle(&self, py: Python<'_>) -> PyResult<Turn> {
        let turn = self.enter(py, |engine| engine.settle())?;
        Turn::of(py, turn)
    }

    fn stall(&self, py: Python<'_>, session: u64, stalled: bool) -> PyResult<Turn> {
        let turn = self.enter(py, |engine| engine.stall(session, stalled))?;
        Turn::of(py, turn)
    }

    fn expire(&self, py: Python<'_>, now_ms: i64) -> PyResult<Turn> {
        let turn = self.enter(py, |engine| engine.expire(now_ms))?;
        Turn::of(py, turn)
    }

    fn next_expiry_ms(&self, py: Python<'_>) -> PyResult<Option<i64>> {
        self.log_notices(py)?;
        self.enter(py, |engine| engine.next_expiry_ms())
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<i32> {
        self.enter(py, |engine| engine.store.notify_fd())
    }

    fn watch(&self, py: Python<'_>, topic: &str, queue: u32) -> PyResult<()> {
        self.enter(py, |engine| engine.watch(topic, queue))
    }

    #[pyo3(signature = (**settings))]
    fn allow(&self, py: Python<'_>, settings: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
        let Some(settings) = settings else { return Ok(()) };
        let mut changed = self.enter(py, |engine| engine.tables().settings.clone())?;
        for (key, value) in settings.iter() {
            change_setting(&mut changed, key.extract()?, &value)?;
        }
        self.enter(py, |engine| engine.change(|settings| *settings = changed))
    }

    #[pyo3(signature = (topic, perm, read_queues, write_queues, fast, *, sys_flag = 0, plain = true, keyed = true,
                        led = Vec::new(), batch = false, compacted = false))]
    #[allow(clippy::too_many_arguments)]
    fn allow_topic(
        &self,
        py: Python<'_>,
        topic: &str,
        perm: u32,
        read_queues: u32,
        write_queues: u32,
        fast: bool,
        sys_flag: i32,
        plain: bool,
        keyed: bool,
        led: Vec<(u32, u32, i64, i64)>,
        batch: bool,
        compacted: bool,
    ) -> PyResult<()> {
        let row = |(logical_queue, queue, logical_start, start)| Led { logical_queue, queue, logical_start, start };
        self.enter(py, |engine| {
            engine.batch_topic(topic, batch);
            engine.compaction_topic(topic, compacted);
            engine.allow_topic(topic, perm, read_queues, write_queues, sys_flag, fast);
            engine.lead(topic, led.into_iter().map(row).collect());
            engine.allow_sends(topic, plain, keyed);
        })
    }

    fn compact(&self, py: Python<'_>, topic: &str, queue: u32, position: i64) -> PyResult<Option<(i64, u64, u64)>> {
        // The engine is not held meanwhile: everybody is served.
        let compactor = self.enter(py, |engine| engine.store.compactor())?;
        let done = enter(py, || compactor.compact(topic, queue, position))?;
        let done = done.map_err(|error| store_error(py, &error))?;
        Ok(done.map(|done| (done.position, done.before, done.after)))
    }

    fn forget_topic(&self, py: Python<'_>, topic: &str) -> PyResult<()> {
        self.enter(py, |engine| engine.forget_topic(topic))
    }

    #[pyo3(signature = (group, consume, fast, sys_flag = 0))]
    fn allow_group(&self, py: Python<'_>, group: &str, consume: bool, fast: bool, sys_flag: i32) -> PyResult<()> {
        self.enter(py, |engine| engine.allow_group(group, consume, sys_flag, fast))
    }

    fn forget_group(&self, py: Python<'_>, group: &str) -> PyResult<()> {
        self.enter(py, |engine| engine.forget_group(group))
    }

    #[pyo3(signature = (group, topic, version, kind, expression, tags = None))]
    #[allow(clippy::too_many_arguments)]
    fn subscribe(
        &self,
        py: Python<'_>,
        group: &str,
        topic: &str,
        version: i64,
        kind: &str,
        expression: &str,
        tags: Option<Vec<i64>>,
    ) -> PyResult<()> {
        let done = self.enter(py, |engine| {
            let filter = match (kind, tags) {
                ("TAG" | "", None) => Filter::tags(expression),
                ("TAG" | "", tags) => tags_filter(tags),
                _ => engine.program(expression)?,
            };
            engine.subscribe(group, topic, version, filter);
            Ok::<(), sql::SqlError>(())
        })?;
        done.map_err(|error| PyValueError::new_err(error.to_string()))
    }

    #[pyo3(signature = (group, topic = None))]
    fn unsubscribe(&self, py: Python<'_>, group: &str, topic: Option<&str>) -> PyResult<()> {
        self.enter(py, |engine| engine.unsubscribe(group, topic))
    }

    fn bring_home(&self, py: Python<'_>, moves: Vec<(i64, Bound<'_, PyBytes>)>) -> PyResult<(usize, u64, Turn)> {
        let wanted: Vec<(u64, &[u8])> = moves
            .iter()
            .map_while(|(position, added)| Some((u64::try_from(*position).ok()?, added.as_bytes())))
            .collect();
        let (count, end, turn) = self.enter_store(py, |engine| engine.bring_home(&wanted))?;
        Ok((count, end, Turn::of(py, turn)?))
    }

    fn append<'py>(&self, py: Python<'py>, records: Vec<PyRef<'py, Record>>) -> PyResult<(Vec<Receipt>, Turn)> {
        let mut wanted = Vec::with_capacity(records.len());
        for record in &records {
            let properties = record.properties.as_bytes(py);
            let mut known = property::scan(properties);
            if !record.multi_dispatch {
                known.flags &= !property::flag::MULTI_DISPATCH;
            }
            wanted.push(NewRecord {
                topic: &record.topic,
                queue_id: record.queue_id,
                flag: record.flag,
                sys_flag: record.sys_flag,
                born_timestamp: record.born_timestamp,
                born_host: address(&record.born_host)?,
                reconsume_times: record.reconsume_times,
                prepared_offset: record.prepared_offset,
                body: record.body.as_bytes(py),
                properties,
                tags_code: record.tags_code,
                known: Some(known),
            });
        }
        let (receipts, turn) = self.enter_store(py, |engine| {
            let (staged, turn) = engine.append(&wanted)?;
            let receipts: Vec<Receipt> = staged
                .iter()
                .map(|staged| Receipt {
                    queue_offset: staged.queue_offset,
                    position: staged.position,
                    size: staged.size,
                    store_timestamp: staged.store_timestamp,
                    message_id: engine.message_id(staged.position),
                })
                .collect();
            Ok((receipts, turn))
        })?;
        Ok((receipts, Turn::of(py, turn)?))
    }

    fn is_behind(&self, py: Python<'_>) -> PyResult<bool> {
        self.enter(py, |engine| engine.is_behind())
    }

    fn durable(&self, py: Python<'_>) -> PyResult<u64> {
        self.enter(py, |engine| engine.store.durable())
    }

    fn check_sql(&self, py: Python<'_>, expression: &str) -> PyResult<Option<String>> {
        self.enter(py, |engine| engine.program(expression).err().map(|error| error.to_string()))
    }

    #[pyo3(signature = (session, command, tags, park, sql = None))]
    fn pull(
        &self,
        py: Python<'_>,
        session: u64,
        command: CommandIn<'_>,
        tags: Option<Vec<i64>>,
        park: bool,
        sql: Option<&str>,
    ) -> PyResult<Turn> {
        let (code, _, _, opaque, flag, _, fields, _, encoding) = command;
        let encoding = Encoding::from_number(encoding).ok_or_else(|| PyValueError::new_err("encoding is 0 or 1"))?;
        let fields: Vec<(String, String)> =
            fields.iter().map(|(key, value)| Ok((key.extract()?, value.extract()?))).collect::<PyResult<_>>()?;
        let fields = fields.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let header = Header::assemble(code, opaque, flag, fields);
        let turn = self.enter(py, |engine| {
            let filter = match sql {
                None => tags_filter(tags),
                Some(text) => engine.program(text).map_err(|error| error.to_string())?,
            };
            engine.pull(session, &header, &[], encoding, filter, park)
        })?;
        Turn::of(py, turn.map_err(PyValueError::new_err)?)
    }

    #[pyo3(signature = (topic, queue, offset, count, bytes_max, tags = None, sql = None))]
    #[allow(clippy::too_many_arguments)]
    fn read(
        &self,
        py: Python<'_>,
        topic: &str,
        queue: u32,
        offset: i64,
        count: u32,
        bytes_max: u64,
        tags: Option<Vec<i64>>,
        sql: Option<&str>,
    ) -> PyResult<Batch> {
        let read = self.enter_store(py, |engine| {
            let filter = match sql {
                None => tags_filter(tags),
                Some(text) => match engine.program(text) {
                    Ok(program) => program,
                    Err(error) => return Ok(Err(error.to_string())),
                },
            };
            let mut records = Vec::new();
            let found = engine.read(topic, queue, offset, count, bytes_max, &filter, &mut records)?;
            Ok(Ok((found, records)))
        })?;
        let (found, records) = read.map_err(PyValueError::new_err)?;
        Ok(Engine::batch(py, &found, &records))
    }

    fn record<'py>(&self, py: Python<'py>, position: u64) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let record = self.enter(py, |engine| engine.store.record(position))?;
        Ok(record.map(|record| PyBytes::new(py, &record)))
    }

    fn entries<'py>(
        &self,
        py: Python<'py>,
        topic: &str,
        queue: u32,
        offset: i64,
        count: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let units = self.enter_store(py, |engine| {
            let mut entries = Vec::new();
            if let Some(queue) = engine.store.find_queue(topic, queue) {
                engine.store.entries(queue, offset, count, &mut entries)?;
            }
            let mut units = Vec::with_capacity(entries.len() * 20);
            for entry in &entries {
                // A hole stands for no message: its position 0 would be some other message's.
                let (position, size) = if entry.is_hole() { (u64::MAX, 0) } else { (entry.position, entry.size) };
                units.extend_from_slice(&position.to_be_bytes());
                units.extend_from_slice(&size.to_be_bytes());
                units.extend_from_slice(&entry.tags_code.to_be_bytes());
            }
            Ok(units)
        })?;
        Ok(PyBytes::new(py, &units))
    }

    fn bounds(&self, py: Python<'_>, topic: &str, queue: u32) -> PyResult<(i64, i64)> {
        self.enter(py, |engine| {
            engine.store.find_queue(topic, queue).map_or((0, 0), |queue| engine.store.bounds(queue))
        })
    }

    #[pyo3(signature = (topic, queue, ms, upper = false))]
    fn offset_by_time(&self, py: Python<'_>, topic: &str, queue: u32, ms: i64, upper: bool) -> PyResult<i64> {
        self.enter(py, |engine| match engine.store.find_queue(topic, queue) {
            Some(queue) => engine.store.offset_by_time(queue, ms, upper),
            None => 0,
        })
    }

    fn store_time(&self, py: Python<'_>, topic: &str, queue: u32, offset: i64) -> PyResult<i64> {
        self.enter(py, |engine| match engine.store.find_queue(topic, queue) {
            Some(queue) => engine.store.store_time(queue, offset),
            None => -1,
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn search_index<'py>(
        &self,
        py: Python<'py>,
        topic: &str,
        key: &str,
        kind: &str,
        limit: usize,
        begin_ms: i64,
        end_ms: i64,
    ) -> PyResult<(Bound<'py, PyList>, i64, u64)> {
        let (records, hits) = self.enter(py, |engine| {
            let mut hits = engine.store.search_index(topic, key, kind, limit, begin_ms, end_ms);
            hits.positions.sort_unstable();
            let mut records = Vec::new();
            for position in &hits.positions {
                let record = engine.store.record(*position);
                records.extend(record.filter(|record| has_key(record, topic, key, kind)));
            }
            (records, hits)
        })?;
        let list = PyList::new(py, records.iter().map(|record| PyBytes::new(py, record)))?;
        Ok((list, hits.last_update_timestamp, hits.last_update_position))
    }

    fn topics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let topics = self.enter(py, |engine| engine.store.topics())?;
        let out = PyDict::new(py);
        for (topic, queues) in topics {
            out.set_item(topic, queues)?;
        }
        Ok(out)
    }

    fn delete_topic(&self, py: Python<'_>, topic: &str) -> PyResult<()> {
        self.enter_store(py, |engine| engine.delete_topic(topic))
    }

    fn delete_empty_topic(&self, py: Python<'_>, topic: &str) -> PyResult<bool> {
        self.enter_store(py, |engine| engine.delete_empty_topic(topic))
    }

    #[pyo3(signature = (before_ms, *, consumed_position = None, files_max = 10))]
    fn clean<'py>(
        &self,
        py: Python<'py>,
        before_ms: i64,
        consumed_position: Option<u64>,
        files_max: usize,
    ) -> PyResult<Bound<'py, PyDict>> {
        let policy = DeletePolicy { before_ms, consumed_position: consumed_position.unwrap_or(u64::MAX), files_max };
        let expired = self.enter(py, |engine| engine.store.take_expired(policy))?;
        let deleted = enter(py, || expired.remove())?.map_err(|error| store_error(py, &error))?;
        self.log_notices(py)?;
        let out = PyDict::new(py);
        out.set_item("log_files", deleted.log_files)?;
        out.set_item("queue_files", deleted.queue_files)?;
        out.set_item("index_files", deleted.index_files)?;
        out.set_item("min_position", deleted.min_position)?;
        Ok(out)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (stats, sessions, parked, held) =
            self.enter(py, |engine| (engine.store.stats(), engine.sessions(), engine.parked(), engine.held()))?;
        let out = PyDict::new(py);
        out.set_item("min_position", stats.min_position)?;
        out.set_item("max_position", stats.max_position)?;
        out.set_item("flushed_position", stats.flushed_position)?;
        out.set_item("dispatched_position", stats.dispatched_position)?;
        out.set_item("log_files", stats.log_files)?;
        out.set_item("queues", stats.queues)?;
        out.set_item("queue_tail_bytes", stats.queue_tail_bytes)?;
        out.set_item("index_files", stats.index_files)?;
        out.set_item("records_appended", stats.records_appended)?;
        out.set_item("bytes_appended", stats.bytes_appended)?;
        out.set_item("commits", stats.commits)?;
        out.set_item("flushes", stats.flushes)?;
        out.set_item("flush_max_us", stats.flush_max_us)?;
        out.set_item("commit_max_us", stats.commit_max_us)?;
        out.set_item("disk_used_per_mille", (stats.disk_used_ratio * 1000.0) as i64)?;
        out.set_item("earliest_store_timestamp", stats.earliest_store_timestamp)?;
        out.set_item("open_files", stats.open_files)?;
        out.set_item("open_maps", stats.open_maps)?;
        out.set_item("sessions", sessions)?;
        out.set_item("pulls_waiting", parked)?;
        out.set_item("turns_unflushed", held)?;
        Ok(out)
    }

    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (counters, puts, gets) = self.enter(py, |engine| {
            let tables = engine.tables();
            let puts: Vec<_> =
                tables.topics.values().filter(|t| t.puts.count > 0).map(|t| (t.name.clone(), t.puts)).collect();
            let mut gets = Vec::new();
            for group in tables.groups.values() {
                for topic in group.topics.values().filter(|topic| topic.gets.count > 0) {
                    gets.push((group.name.clone(), topic.name.clone(), topic.gets));
                }
            }
            (engine.counters.clone(), puts, gets)
        })?;
        let out = PyDict::new(py);
        out.set_item("sends", counters.sends)?;
        out.set_item("sends_refused", counters.sends_refused)?;
        out.set_item("pulls", counters.pulls)?;
        out.set_item("pulls_parked", counters.pulls_parked)?;
        out.set_item("pulls_woken", counters.pulls_woken)?;
        out.set_item("pulls_expired", counters.pulls_expired)?;
        out.set_item("commands", counters.commands)?;
        let faults = PyDict::new(py);
        for fault in Fault::ALL {
            faults.set_item(fault.name(), counters.faults[fault as usize])?;
        }
        out.set_item("faults", faults)?;
        let by_topic = PyDict::new(py);
        for (topic, traffic) in puts {
            by_topic.set_item(&*topic, (traffic.count, traffic.bytes))?;
        }
        out.set_item("puts", by_topic)?;
        let by_group = PyDict::new(py);
        for (group, topic, traffic) in gets {
            by_group.set_item((&*group, &*topic), (traffic.count, traffic.bytes))?;
        }
        out.set_item("gets", by_group)?;
        Ok(out)
    }

    #[pyo3(signature = (lasting = false))]
    fn health(&self, py: Python<'_>, lasting: bool) -> PyResult<Option<String>> {
        self.enter(py, |engine| {
            let refuses = engine.store.health();
            let lasts = |error: &Error| matches!(error, Error::DiskFailed(_) | Error::Closed);
            refuses.filter(|error| !lasting || lasts(error)).map(|error| error.to_string())
        })
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.enter_store(py, |engine| engine.store.flush())
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.enter_store(py, |engine| engine.store.close())?;
        self.log_notices(py)
    }
}

/// Whether the record is one of those asked for; the index only knows hashes.
fn has_key(record: &[u8], topic: &str, key: &str, kind: &str) -> bool {
    let Some(view) = RecordView::parse(record) else { return false };
    let known = property::scan(view.properties);
    let key = key.as_bytes();
    view.topic == topic.as_bytes()
        && match kind {
            "T" => known.tags.of(view.properties) == key,
            _ => {
                known.uniq_key.of(view.properties) == key
                    || known.keys.of(view.properties).split(|byte| *byte == b' ').any(|one| one == key)
            }
        }
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Engine>()?;
    m.add_class::<Turn>()?;
    m.add_class::<Record>()?;
    m.add_class::<Receipt>()?;
    m.add_class::<Batch>()?;
    m.add_function(wrap_pyfunction!(look_ahead, m)?)?;
    // What a command looks like is said in the stub; a tuple needs no class.
    m.add("CommandTuple", m.py().get_type::<PyTuple>())?;
    Ok(())
}
