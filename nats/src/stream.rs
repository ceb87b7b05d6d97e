//! Knows: how a log's stream, the KV bucket `weir` and the probe stream are declared. Never: when
//! another generation is needed (the guard's).

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, Republish, StorageType};
use async_nats::jetstream::{self, Context, kv};

use crate::partition::{PARTITIONS, slot_of};
use crate::position::Seq;

/// The bucket of placements, keys and knowledge.
pub const KV_BUCKET: &str = "weir";
/// A stream of one message a subject, through which `/ready` proves the delivery path.
pub const PROBE_STREAM: &str = "WEIR_PROBE";
/// `<prefix>.<edge>`: what the probe stream stores.
pub const PROBE_SUBJECT: &str = "weir.probe";
/// `<prefix>.<edge>`: where a stored probe comes back.
pub const PROBED_SUBJECT: &str = "weir.probed";

/// How messages are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// On disk.
    File,
    /// In memory: gone with the server.
    Memory,
}

/// A log: retention, storage and replicas for many rooms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Lower-case name; its streams are `<NAME>_<slot>`.
    pub name: String,
    /// Streams that share its 64 partitions.
    pub slots: u16,
    /// How long a message stays; zero is for ever.
    pub max_age: Duration,
    /// Bytes a stream keeps; -1 is no limit.
    pub max_bytes: i64,
    /// Messages a stream keeps; -1 is no limit.
    pub max_messages: i64,
    /// On disk or in memory.
    pub storage: Storage,
    /// Copies in a cluster: 1, 3 or 5.
    pub replicas: u8,
    /// How long a message's id is remembered.
    pub duplicate_window: Duration,
}

impl LogConfig {
    /// The name of a slot's stream in its `generation`; 0 is the first.
    #[must_use]
    pub fn stream_name(&self, slot: u16, generation: u32) -> String {
        let log = self.name.to_uppercase();
        match generation {
            0 => format!("{log}_{slot}"),
            _ => format!("{log}_{slot}_{generation}"),
        }
    }

    /// The generation that a stream's name says, if it is one of this slot.
    #[must_use]
    pub fn generation_of(&self, slot: u16, stream: &str) -> Option<u32> {
        let rest = stream.strip_prefix(&self.stream_name(slot, 0))?;
        match rest.strip_prefix('_') {
            Some(number) => number.parse().ok(),
            None => rest.is_empty().then_some(0),
        }
    }

    /// The subjects that a slot's stream captures.
    #[must_use]
    pub fn subjects(&self, slot: u16) -> Vec<String> {
        if self.slots == 1 {
            return vec![format!("log.{}.*.*.*", self.name)];
        }
        let mine = (0..PARTITIONS).filter(|p| slot_of(&self.name, *p, self.slots) == slot);
        mine.map(|partition| format!("log.{}.{partition}.*.*", self.name))
            .collect()
    }

    /// The whole declaration of a stream. `from` is the first sequence it will give.
    #[must_use]
    pub fn declaration(&self, slot: u16, stream: &str, from: Seq) -> Config {
        Config {
            name: stream.to_owned(),
            description: Some("rooms of Weir; written by its edges only".to_owned()),
            subjects: self.subjects(slot),
            max_age: self.max_age,
            max_bytes: self.max_bytes,
            max_messages: self.max_messages,
            max_messages_per_subject: -1,
            storage: match self.storage {
                Storage::File => StorageType::File,
                Storage::Memory => StorageType::Memory,
            },
            num_replicas: usize::from(self.replicas),
            discard: DiscardPolicy::Old,
            duplicate_window: self.duplicate_window,
            republish: Some(Republish {
                source: "log.*.*.*.*".to_owned(),
                destination: "room.{{wildcard(3)}}.{{wildcard(4)}}".to_owned(),
                headers_only: false,
            }),
            allow_direct: true,
            allow_atomic_publish: true,
            // A client's header could otherwise erase the stream or expire a message.
            allow_rollup: false,
            allow_message_ttl: false,
            // Erasure needs both; only Weir's own user may call those APIs.
            deny_delete: false,
            deny_purge: false,
            first_sequence: (from.get() > 1).then_some(from.get()),
            ..Config::default()
        }
    }
}

/// A declaration that NATS refused.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot declare {what} in JetStream: {reason}")]
pub struct DeclareError {
    /// The stream or bucket.
    pub what: String,
    /// What the server said.
    pub reason: String,
}

impl DeclareError {
    fn new(what: &str, reason: impl std::fmt::Display) -> Self {
        Self {
            what: what.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// A JetStream context with the time-outs that Weir uses.
#[must_use]
pub fn context(client: async_nats::Client) -> Context {
    let mut context = jetstream::new(client);
    context.set_timeout(Duration::from_secs(3));
    context
}

/// Declares the KV bucket `weir`.
///
/// # Errors
/// When JetStream is not there or refuses it.
pub async fn declare_bucket(js: &Context, replicas: u8) -> Result<kv::Store, DeclareError> {
    if let Ok(store) = js.get_key_value(KV_BUCKET).await {
        return Ok(store);
    }
    let config = kv::Config {
        bucket: KV_BUCKET.to_owned(),
        description: "placements, epochs and keys of Weir".to_owned(),
        history: 1,
        num_replicas: usize::from(replicas),
        ..kv::Config::default()
    };
    js.create_key_value(config)
        .await
        .map_err(|error| DeclareError::new("the KV bucket `weir`", error))
}

/// Declares the probe stream.
///
/// # Errors
/// When JetStream is not there or refuses it.
pub async fn declare_probe(js: &Context) -> Result<(), DeclareError> {
    let config = Config {
        name: PROBE_STREAM.to_owned(),
        subjects: vec![format!("{PROBE_SUBJECT}.*")],
        max_messages_per_subject: 1,
        max_age: Duration::from_secs(3_600),
        storage: StorageType::Memory,
        republish: Some(Republish {
            source: format!("{PROBE_SUBJECT}.*"),
            destination: format!("{PROBED_SUBJECT}.{{{{wildcard(1)}}}}"),
            headers_only: false,
        }),
        ..Config::default()
    };
    js.create_or_update_stream(config)
        .await
        .map(|_| ())
        .map_err(|error| DeclareError::new("the stream WEIR_PROBE", error))
}

/// Creates a log's stream, or brings the settings of an existing one in line with `config`.
///
/// # Errors
/// When JetStream refuses: another stream has the subjects, or a setting cannot be changed in place
/// (storage).
pub async fn declare_log(js: &Context, config: Config) -> Result<(), DeclareError> {
    let what = format!("the stream {}", config.name);
    let Ok(existing) = js.get_stream(&config.name).await else {
        let created = js.create_stream(config).await;
        return created
            .map(|_| ())
            .map_err(|error| DeclareError::new(&what, error));
    };
    let has = &existing.cached_info().config;
    if has.storage != config.storage {
        return Err(DeclareError::new(
            &what,
            "its storage (file or memory) cannot be changed in place; name another log",
        ));
    }
    let same = has.subjects == config.subjects
        && has.max_age == config.max_age
        && has.max_bytes == config.max_bytes
        && has.max_messages == config.max_messages
        && has.num_replicas == config.num_replicas
        && has.duplicate_window == config.duplicate_window
        && has.allow_direct == config.allow_direct
        && has.allow_atomic_publish == config.allow_atomic_publish
        && has.allow_rollup == config.allow_rollup
        && has.republish.as_ref().map(|r| &r.destination)
            == config.republish.as_ref().map(|r| &r.destination);
    if same {
        return Ok(());
    }
    tracing::warn!(stream = %config.name, "stream settings differ from the configuration; updating");
    // The first sequence can only be set at creation; the server wants it unchanged.
    let config = Config {
        first_sequence: has.first_sequence,
        ..config
    };
    js.update_stream(config)
        .await
        .map(|_| ())
        .map_err(|error| DeclareError::new(&what, error))
}
