//! What the engine may serve without asking: settings, topics, groups and their subscriptions, filled in by policy.
//!
//! The engine holds no opinion of its own: a topic, group or subscription that is not here, or not `fast`, makes the
//! command come out for policy. Statistics of what was served are counted in the rows they concern.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::light_queue;
use crate::property::{self, flag, Known};
use crate::sql;
use crate::store::QueueRef;

/// Permission bits of topics and brokers.
pub const PERM_READ: u32 = 4;
pub const PERM_WRITE: u32 = 2;

/// Settings for all topics and groups. Sizes in bytes, times in milliseconds; defaults are Apache's.
#[derive(Debug, Clone)]
pub struct Settings {
    /// False: every command comes out for policy.
    pub fast: bool,
    pub broker_perm: u32,
    pub frame_bytes_max: usize,
    pub body_bytes_max: usize,
    /// The address in offset message ids; the store writes its own into records.
    pub store_host: SocketAddr,
    pub region: String,
    pub trace_on: bool,
    pub cluster: String,
    /// False: a pull that may wait is held for `short_polling_ms` whatever it asks.
    pub long_polling: bool,
    pub short_polling_ms: i64,
    pub lite_pull: bool,
    /// A batch of recent records.
    pub pull_bytes_max: u64,
    pub pull_count_max: u32,
    /// A batch of records that lie more than `recent_bytes` before the log's end.
    pub old_pull_bytes_max: u64,
    pub old_pull_count_max: u32,
    pub recent_bytes: u64,
    /// Queue entries one pull looks at in search of a match.
    pub filter_entries_max: u32,
    /// Once a turn's replies are this long, the frames behind wait for the next call ([`crate::session::Turn::more`]).
    pub turn_bytes_max: usize,
    /// Pulls one session may have parked.
    pub parked_max: usize,
    /// A synchronous flush that takes longer is answered with FLUSH_DISK_TIMEOUT.
    pub sync_flush_timeout_ms: i64,
    /// More light queues than this do not come into being.
    pub light_queues_max: usize,
    /// Share of the disk in use from which the store refuses writes; None: the one it was opened with.
    pub disk_used_ratio_max: Option<f64>,
    /// Version in the headers of replies.
    pub version: i32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            fast: true,
            broker_perm: PERM_READ | PERM_WRITE,
            frame_bytes_max: crate::frame::FRAME_BYTES_MAX,
            body_bytes_max: 4 * 1024 * 1024,
            store_host: SocketAddr::from((Ipv4Addr::LOCALHOST, 10911)),
            region: "DefaultRegion".into(),
            trace_on: true,
            cluster: "DefaultCluster".into(),
            long_polling: true,
            short_polling_ms: 1000,
            lite_pull: true,
            pull_bytes_max: 256 * 1024,
            pull_count_max: 32,
            old_pull_bytes_max: 64 * 1024,
            old_pull_count_max: 8,
            recent_bytes: u64::MAX,
            filter_entries_max: 800,
            turn_bytes_max: 4 * 1024 * 1024,
            parked_max: 100_000,
            sync_flush_timeout_ms: 5000,
            light_queues_max: usize::MAX,
            disk_used_ratio_max: None,
            version: 513,
        }
    }
}

/// Messages and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub count: u64,
    pub bytes: u64,
}

impl Traffic {
    #[inline]
    pub fn add(&mut self, count: u64, bytes: u64) {
        self.count += count;
        self.bytes += bytes;
    }
}

/// A topic policy has told about.
#[derive(Debug, Clone)]
pub struct Topic {
    pub name: Arc<str>,
    pub perm: u32,
    pub read_queues: u32,
    pub write_queues: u32,
    pub sys_flag: i32,
    pub fast: bool,
    /// Sends without (`plain`) and with a sharding key (`keyed`) may be served; both unless policy says otherwise.
    pub plain: bool,
    pub keyed: bool,
    /// Of a static topic: the logical queues that are led here. Sends to these are served although it is not `fast`.
    pub led: Vec<Led>,
    /// Handles of queues already used, by queue id; the store alone knows those with very large ones.
    pub queues: Vec<Option<QueueRef>>,
    pub puts: Traffic,
}

/// A logical queue of a static topic whose last stretch is here, where messages are sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Led {
    pub logical_queue: u32,
    pub queue: u32,
    /// The stretch begins at this logical offset, which is offset `start` of its queue.
    pub logical_start: i64,
    pub start: i64,
}

impl Topic {
    /// The topic's row allows a send with these properties.
    #[inline]
    pub fn admits(&self, known: &Known) -> bool {
        if known.any(flag::SHARDING_KEY) {
            self.keyed
        } else {
            self.plain
        }
    }
}

/// Which messages a pull wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    All,
    /// Java hashes of the tags; the exact match is the client's.
    Tags(Arc<[i32]>),
    Sql(Arc<sql::Filter>),
}

impl Filter {
    /// By the queue entry alone: whether it may match. What only the record can tell passes; see `asks_record`.
    #[inline]
    pub fn admits(&self, tags_code: i64) -> bool {
        match self {
            Filter::Tags(codes) => codes.contains(&(tags_code as i32)) || is_extension_address(tags_code),
            _ => true,
        }
    }

    /// Only the record can tell.
    #[inline]
    pub fn asks_record(&self, tags_code: i64) -> bool {
        match self {
            Filter::All => false,
            Filter::Tags(_) => is_extension_address(tags_code),
            Filter::Sql(_) => true,
        }
    }

    /// By the record's properties.
    pub fn matches(&self, properties: &[u8]) -> bool {
        match self {
            Filter::All => true,
            Filter::Tags(codes) => codes.contains(&property::find(properties, b"TAGS").map_or(0, property::java_hash)),
            Filter::Sql(program) => program.matches(properties),
        }
    }

    /// A tag expression: `*`, empty, or tags with `||` between them.
    pub fn tags(expression: &str) -> Filter {
        if expression.is_empty() || expression == "*" {
            return Filter::All;
        }
        let tags = expression.split("||").map(str::trim).filter(|tag| !tag.is_empty());
        Filter::Tags(tags.map(|tag| property::java_hash(tag.as_bytes())).collect())
    }
}

/// Apache's broker with `enableConsumeQueueExt=true` keeps the tag's hash in another file and says in the entry where.
#[inline]
fn is_extension_address(tags_code: i64) -> bool {
    tags_code < i32::MIN as i64
}

/// What a group's members said in their heartbeats about one topic.
#[derive(Debug, Clone)]
pub struct Subscription {
    pub version: i64,
    pub filter: Filter,
}

/// One group on one topic.
#[derive(Debug, Clone)]
pub struct GroupTopic {
    pub name: Arc<str>,
    pub subscription: Option<Subscription>,
    pub gets: Traffic,
}

/// A consumer group policy has told about.
#[derive(Debug, Clone)]
pub struct Group {
    pub name: Arc<str>,
    pub consume: bool,
    pub fast: bool,
    pub sys_flag: i32,
    pub topics: HashMap<Arc<str>, GroupTopic>,
}

impl Group {
    pub fn topic(&mut self, topic: &str) -> &mut GroupTopic {
        if !self.topics.contains_key(topic) {
            let name: Arc<str> = topic.into();
            self.topics.insert(name.clone(), GroupTopic { name, subscription: None, gets: Traffic::default() });
        }
        self.topics.get_mut(topic).expect("just made")
    }
}

/// Everything policy has allowed.
#[derive(Debug, Default)]
pub struct Tables {
    pub settings: Settings,
    pub topics: HashMap<Arc<str>, Topic>,
    pub groups: HashMap<Arc<str>, Group>,
    /// Whatever is called like a light queue is a topic and a group of these rows, unless it has one of its own.
    pub light: Option<(Topic, Group)>,
}

impl Tables {
    /// The topic's row.
    #[inline]
    pub fn topic(&self, name: &str) -> Option<&Topic> {
        self.topics.get(name).or_else(|| self.light(name).map(|(topic, _)| topic))
    }

    /// The group's row.
    #[inline]
    pub fn group_of(&self, name: &str) -> Option<&Group> {
        self.groups.get(name).or_else(|| self.light(name).map(|(_, group)| group))
    }

    #[cold]
    fn light(&self, name: &str) -> Option<&(Topic, Group)> {
        self.light.as_ref().filter(|_| light_queue::is_light(name))
    }

    /// Pulls from light queues, and of groups called like one, need not be asked about.
    pub fn allow_light(&mut self) {
        let topic = Topic {
            name: "".into(),
            perm: PERM_READ | PERM_WRITE,
            read_queues: 1,
            write_queues: 1,
            sys_flag: 0,
            fast: true,
            plain: true,
            keyed: true,
            led: Vec::new(),
            queues: Vec::new(),
            puts: Traffic::default(),
        };
        let group = Group { name: "".into(), consume: true, fast: true, sys_flag: 0, topics: HashMap::new() };
        self.light = Some((topic, group));
    }

    /// Adds the topic or changes its row; counters stay.
    pub fn allow_topic(
        &mut self,
        name: &str,
        perm: u32,
        read_queues: u32,
        write_queues: u32,
        sys_flag: i32,
        fast: bool,
    ) {
        match self.topics.get_mut(name) {
            Some(topic) => {
                topic.perm = perm;
                topic.read_queues = read_queues;
                topic.write_queues = write_queues;
                topic.sys_flag = sys_flag;
                topic.fast = fast;
            }
            None => {
                let name: Arc<str> = name.into();
                let topic = Topic {
                    name: name.clone(),
                    perm,
                    read_queues,
                    write_queues,
                    sys_flag,
                    fast,
                    plain: true,
                    keyed: true,
                    led: Vec::new(),
                    queues: Vec::new(),
                    puts: Traffic::default(),
                };
                self.topics.insert(name, topic);
            }
        }
    }

    /// Which sends of a known topic may be served; see [`Topic::plain`].
    pub fn allow_sends(&mut self, name: &str, plain: bool, keyed: bool) {
        if let Some(topic) = self.topics.get_mut(name) {
            (topic.plain, topic.keyed) = (plain, keyed);
        }
    }

    /// Which logical queues of a known topic are led here; see [`Topic::led`].
    pub fn lead(&mut self, name: &str, led: Vec<Led>) {
        if let Some(topic) = self.topics.get_mut(name) {
            topic.led = led;
        }
    }

    fn group(&mut self, name: &str) -> &mut Group {
        if !self.groups.contains_key(name) {
            let name: Arc<str> = name.into();
            let group = Group { name: name.clone(), consume: true, fast: false, sys_flag: 0, topics: HashMap::new() };
            self.groups.insert(name, group);
        }
        self.groups.get_mut(name).expect("just made")
    }

    /// Adds the group or changes its row; counters and subscriptions stay.
    pub fn allow_group(&mut self, name: &str, consume: bool, sys_flag: i32, fast: bool) {
        let group = self.group(name);
        group.consume = consume;
        group.sys_flag = sys_flag;
        group.fast = fast;
    }

    /// Returns whether there was another filter.
    pub fn subscribe(&mut self, group: &str, topic: &str, subscription: Subscription) -> bool {
        let subscribed = &mut self.group(group).topic(topic).subscription;
        let changes = subscribed.as_ref().is_some_and(|former| former.filter != subscription.filter);
        *subscribed = Some(subscription);
        changes
    }

    pub fn unsubscribe(&mut self, group: &str, topic: Option<&str>) {
        let Some(group) = self.groups.get_mut(group) else { return };
        for (name, row) in &mut group.topics {
            if topic.is_none() || topic == Some(name) {
                row.subscription = None;
            }
        }
    }
}
