//! Knows: what the service says of itself as a NATS micro service (ADR-32): who it is, what it can
//! be asked, what it did. Never: rooms, answers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use weir_nats::ambient::{now_ms, random};
use weir_nats::message::format_time_ms;

use super::{ANSWER_MAX_BYTES, Failure, QUEUE_GROUP, SUBJECT, answer, request};

/// The name under which it is looked up.
const NAME: &str = "weir-history";
/// Its one endpoint.
const ENDPOINT: &str = "history";

/// One instance of the service.
#[derive(Debug)]
pub(super) struct Instance {
    id: String,
    started: String,
    requests: AtomicU64,
    errors: AtomicU64,
    processing_ns: AtomicU64,
    last_error: Mutex<String>,
}

impl Instance {
    pub(super) fn new() -> Self {
        Self {
            id: data_encoding::HEXLOWER.encode(&random::<8>()),
            started: format_time_ms(now_ms()),
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            processing_ns: AtomicU64::new(0),
            last_error: Mutex::default(),
        }
    }

    /// A request was answered within `took`.
    pub(super) fn answered(&self, took: Duration, failure: Option<&Failure>) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.processing_ns.fetch_add(ns, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        if let Some(failure) = failure {
            self.errors.fetch_add(1, Ordering::Relaxed);
            let text = format!("{}: {}", failure.code, failure.message);
            *self
                .last_error
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = text;
        }
    }

    /// The answer to `$SRV.<verb>`, `$SRV.<verb>.<name>` or `$SRV.<verb>.<name>.<id>`, if it is for
    /// this instance.
    pub(super) fn describe(&self, subject: &str) -> Option<Value> {
        let mut tokens = subject.split('.').skip(1);
        let verb = tokens.next().unwrap_or_default();
        let is_me = tokens.next().is_none_or(|name| name == NAME)
            && tokens.next().is_none_or(|id| id == self.id);
        if !is_me {
            return None;
        }
        let mut said = json!({
            "type": format!("io.nats.micro.v1.{}_response", verb.to_lowercase()),
            "name": NAME,
            "id": self.id,
            "version": env!("CARGO_PKG_VERSION"),
            "metadata": {},
        });
        let mut endpoint = json!({
            "name": ENDPOINT,
            "subject": SUBJECT,
            "queue_group": QUEUE_GROUP,
        });
        match verb {
            "PING" => return Some(said),
            "INFO" => {
                let kib = ANSWER_MAX_BYTES >> 10;
                said["description"] = format!(
                    "Reads a room back, by offset or time, forward or backward, {kib} KiB a page, \
                     or recovers it with a verdict: history.<user>.<namespace>.<id>"
                )
                .into();
                endpoint["metadata"] = json!({
                    "request_schema": request::SCHEMA,
                    "response_schema": answer::SCHEMA,
                });
            }
            "STATS" => {
                let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
                let (requests, took) = (load(&self.requests), load(&self.processing_ns));
                said["started"] = self.started.clone().into();
                endpoint["num_requests"] = requests.into();
                endpoint["num_errors"] = load(&self.errors).into();
                endpoint["processing_time"] = took.into();
                endpoint["average_processing_time"] = (took / requests.max(1)).into();
                let error = self.last_error.lock();
                endpoint["last_error"] =
                    error.unwrap_or_else(PoisonError::into_inner).clone().into();
            }
            _ => return None,
        }
        said["endpoints"] = json!([endpoint]);
        Some(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_answered_by_name_and_id() {
        let instance = Instance::new();
        let id = &instance.id;
        for verb in ["PING", "INFO", "STATS"] {
            for subject in [
                format!("$SRV.{verb}"),
                format!("$SRV.{verb}.{NAME}"),
                format!("$SRV.{verb}.{NAME}.{id}"),
            ] {
                let said = instance.describe(&subject).unwrap();
                let kind = format!("io.nats.micro.v1.{}_response", verb.to_lowercase());
                assert_eq!((&said["type"], &said["id"]), (&json!(kind), &json!(id)));
                assert_eq!(said["endpoints"].is_array(), verb != "PING");
            }
        }
        assert!(instance.describe("$SRV.INFO.other").is_none());
        assert!(instance.describe("$SRV.INFO.weir-history.other").is_none());
        assert!(instance.describe("$SRV.OTHER").is_none());
    }

    #[test]
    fn schemas_are_json() {
        for schema in [request::SCHEMA, answer::SCHEMA] {
            let schema: Value = serde_json::from_str(schema).unwrap();
            assert!(schema["$schema"].is_string());
        }
    }

    #[test]
    fn what_it_did_is_counted() {
        let instance = Instance::new();
        instance.answered(Duration::from_millis(3), None);
        let failure = Failure::new(107, "no".into());
        instance.answered(Duration::from_millis(1), Some(&failure));
        let said = instance.describe("$SRV.STATS").unwrap();
        let endpoint = &said["endpoints"][0];
        assert_eq!(endpoint["num_requests"], 2);
        assert_eq!(endpoint["num_errors"], 1);
        assert_eq!(endpoint["last_error"], "107: no");
        assert_eq!(endpoint["processing_time"], 4_000_000);
        assert_eq!(endpoint["average_processing_time"], 2_000_000);
    }
}
