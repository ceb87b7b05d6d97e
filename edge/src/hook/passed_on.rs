//! Knows: which headers of a client are kept for hooks, and which hook is told which. Never: what is in them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{HookAt, HookSettings};

/// Bytes of headers that one connection keeps for hooks; what is beyond is left out.
const KEPT_MAX_BYTES: usize = 16 << 10;

/// Headers that some hook wants.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    http: HashSet<HeaderName>,
    emulated: Arc<HashSet<HeaderName>>,
}

impl Wanted {
    pub(super) fn of(settings: &HookSettings) -> Self {
        let all = || settings.all();
        Self {
            http: all().flat_map(|at| at.http_headers.clone()).collect(),
            emulated: Arc::new(all().flat_map(|at| at.emulated_headers.clone()).collect()),
        }
    }

    /// What of a client's HTTP request is kept; `None` where nothing ever is.
    pub(super) fn of_request(&self, headers: &HeaderMap) -> Option<PassedOn> {
        if self.http.is_empty() && self.emulated.is_empty() {
            return None;
        }
        let mut kept = PassedOn::default();
        for name in &self.http {
            for value in headers.get_all(name) {
                kept.http.append(name, value.clone());
            }
        }
        kept.names = Arc::clone(&self.emulated);
        Some(kept)
    }
}

/// Headers of one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct PassedOn {
    /// Of its HTTP request, which the server has bounded.
    http: HeaderMap,
    /// Of its connect command: anybody can give any.
    emulated: HeaderMap,
    /// Which of those are kept.
    names: Arc<HashSet<HeaderName>>,
}

impl PassedOn {
    /// Keeps what a connect command gives.
    pub(crate) fn of_connect(&mut self, headers: &BTreeMap<String, String>) {
        let mut bytes = 0;
        for (name, value) in headers {
            let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>())
            else {
                continue;
            };
            bytes += name.as_str().len() + value.len();
            if self.names.contains(&name) && bytes <= KEPT_MAX_BYTES {
                self.emulated.insert(name, value);
            }
        }
    }

    /// What one hook is told. What came in the HTTP request wins.
    pub(super) fn select(&self, at: &HookAt) -> HeaderMap {
        let mut found = HeaderMap::new();
        for name in &at.http_headers {
            for value in self.http.get_all(name) {
                found.append(name, value.clone());
            }
        }
        for name in &at.emulated_headers {
            if let Some(value) = self.emulated.get(name)
                && !found.contains_key(name)
            {
                found.insert(name, value.clone());
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::hook::Transport;

    fn at(http: &[&'static str], emulated: &[&'static str]) -> HookAt {
        let names = |names: &[&'static str]| {
            let names = names.iter();
            names.map(|name| HeaderName::from_static(name)).collect()
        };
        HookAt {
            transport: Transport::Nats {
                subject: "hook.connect".into(),
            },
            timeout: Duration::from_secs(1),
            http_headers: names(http),
            emulated_headers: names(emulated),
            include_connection_meta: false,
        }
    }

    #[test]
    fn a_hook_is_told_what_it_is_configured_for_and_the_request_wins() {
        let connect = at(&["cookie", "authorization"], &["authorization"]);
        let refresh = at(&[], &["x-tab"]);
        let settings = HookSettings {
            connect: Some(connect.clone()),
            refresh: Some(refresh.clone()),
            ..HookSettings::default()
        };
        let wanted = Wanted::of(&settings);
        let mut request = HeaderMap::new();
        request.insert("cookie", HeaderValue::from_static("a=1"));
        request.insert("x-tab", HeaderValue::from_static("of the request"));
        let mut kept = wanted.of_request(&request).unwrap();
        let long = "x".repeat(KEPT_MAX_BYTES);
        let given = [
            ("Authorization", "Bearer b"),
            ("Cookie", "a=2"),
            ("bad name", "x"),
            ("x-tab", "1"),
            ("z", &long),
        ];
        let given = given.map(|(name, value)| (name.to_owned(), value.to_owned()));
        kept.of_connect(&BTreeMap::from(given));
        let told = kept.select(&connect);
        assert_eq!(told["cookie"], "a=1");
        assert_eq!(told["authorization"], "Bearer b");
        assert_eq!(told.len(), 2);
        let told = kept.select(&refresh);
        assert_eq!(told["x-tab"], "1");
        assert_eq!(told.len(), 1);
        request.insert("authorization", HeaderValue::from_static("Basic c"));
        let mut kept = wanted.of_request(&request).unwrap();
        kept.of_connect(&BTreeMap::from([(
            "Authorization".into(),
            "Bearer b".into(),
        )]));
        assert_eq!(kept.select(&connect)["authorization"], "Basic c");
        assert!(
            Wanted::of(&HookSettings::default())
                .of_request(&request)
                .is_none()
        );
    }
}
