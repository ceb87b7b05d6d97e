//! Knows: what may be asked of the history service, and what is wrong with a request that is not
//! that. Never: reads, answers.

use serde::Deserialize;
use weir_nats::Seq;

use super::Failure;
use crate::read::Ask;

/// Messages of one answer.
pub(super) const PAGE_MAX_MESSAGES: u32 = 1_000;
/// Messages of one answer where the request does not say.
const PAGE_MESSAGES: u32 = 100;
/// The protocol's code for a request that cannot be right.
pub(super) const BAD_REQUEST: u32 = 107;

/// A request's body as it is written. An empty one asks for the newest page.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Body {
    since: Option<Since>,
    since_time: Option<i64>,
    until_time: Option<i64>,
    limit: Option<i64>,
    reverse: bool,
    recover: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Since {
    offset: u64,
    epoch: String,
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Where the room stands, and no message.
    Position,
    /// A page of what is there, whatever the epoch.
    Page { ask: Ask, limit: u32 },
    /// What was missed since a position, and whether that is all.
    Recovery {
        /// `None` matches any.
        epoch: Option<String>,
        since: Seq,
        limit: u32,
    },
}

impl Request {
    /// Reads a body.
    ///
    /// # Errors
    /// A sentence for the asker.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Failure> {
        let bad = |text: String| Failure::new(BAD_REQUEST, text);
        let body: Body = if body.trim_ascii().is_empty() {
            Body::default()
        } else {
            serde_json::from_slice(body).map_err(|error| bad(error.to_string()))?
        };
        let limit = match body.limit {
            None => PAGE_MESSAGES,
            Some(-1) => PAGE_MAX_MESSAGES,
            Some(limit) if limit >= 0 => u32::try_from(limit)
                .unwrap_or(PAGE_MAX_MESSAGES)
                .min(PAGE_MAX_MESSAGES),
            Some(_) => {
                let text = format!("limit is 0 to {PAGE_MAX_MESSAGES}, or -1 for the most");
                return Err(bad(text));
            }
        };
        let is_by_time = body.since_time.is_some() || body.until_time.is_some();
        let since = body.since.as_ref();
        // No offset is larger; a client that says so is ahead of every log.
        let offset = since.map(|since| Seq::new(since.offset.min(Seq::MAX.get())));
        if body.recover {
            if body.reverse || is_by_time {
                let text = "recover goes forward from since: \
                            leave out reverse, since_time and until_time";
                return Err(bad(text.to_owned()));
            }
            let epoch = since.map(|since| since.epoch.clone());
            return Ok(Self::Recovery {
                epoch: epoch.filter(|epoch| !epoch.is_empty()),
                since: offset.unwrap_or_default(),
                limit: limit.max(1),
            });
        }
        if let (Some(from), Some(until)) = (body.since_time, body.until_time)
            && from >= until
        {
            let text = "since_time must be before until_time; both are milliseconds since 1970";
            return Err(bad(text.to_owned()));
        }
        if limit == 0 {
            return Ok(Self::Position);
        }
        let ask = Ask {
            since: offset,
            reverse: body.reverse,
            since_ms: body.since_time,
            until_ms: body.until_time,
        };
        Ok(Self::Page { ask, limit })
    }
}

/// The body as a JSON schema, for those who look the service up.
pub(super) const SCHEMA: &str = r#"{"$schema":"https://json-schema.org/draft/2020-12/schema","title":"history request","type":"object","additionalProperties":false,"properties":{"since":{"description":"a position: after it oldest first, or before it with reverse; never including it","type":"object","additionalProperties":false,"properties":{"offset":{"type":"integer","minimum":0},"epoch":{"description":"matters with recover only; empty matches any","type":"string"}}},"since_time":{"description":"only what was stored at this time or later, milliseconds since 1970","type":"integer"},"until_time":{"description":"only what was stored before this time, milliseconds since 1970","type":"integer"},"limit":{"description":"messages at most; -1 is the most, 0 asks for the position alone","type":"integer","minimum":-1,"default":100},"reverse":{"description":"newest first","type":"boolean","default":false},"recover":{"description":"everything after since, and the verdict: recovered","type":"boolean","default":false}}}"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<Request, String> {
        Request::parse(body.as_bytes()).map_err(|failure| {
            assert_eq!(failure.code, BAD_REQUEST);
            failure.message
        })
    }

    #[test]
    fn a_request_says_what_it_asks_for() {
        let page = |ask, limit| Ok(Request::Page { ask, limit });
        assert_eq!(parse(""), page(Ask::default(), 100));
        assert_eq!(parse(" {} "), page(Ask::default(), 100));
        assert_eq!(parse(r#"{"limit":-1}"#), page(Ask::default(), 1_000));
        assert_eq!(
            parse(r#"{"limit":99999999999}"#),
            page(Ask::default(), 1_000)
        );
        assert_eq!(
            parse(r#"{"limit":0,"reverse":true}"#),
            Ok(Request::Position)
        );
        let ask = Ask {
            since: Some(Seq::new(7)),
            reverse: true,
            since_ms: Some(1_732_440_000_000),
            until_ms: Some(1_732_440_000_001),
        };
        let body = r#"{"since":{"offset":7},"reverse":true,"since_time":1732440000000,
            "until_time":1732440000001,"limit":5}"#;
        assert_eq!(parse(body), page(ask, 5));
        let recovery = |epoch: Option<&str>, since, limit| {
            Ok(Request::Recovery {
                epoch: epoch.map(str::to_owned),
                since: Seq::new(since),
                limit,
            })
        };
        assert_eq!(parse(r#"{"recover":true}"#), recovery(None, 0, 100));
        let body = r#"{"recover":true,"since":{"offset":9,"epoch":"e"},"limit":0}"#;
        assert_eq!(parse(body), recovery(Some("e"), 9, 1));
        let body = r#"{"recover":true,"since":{"offset":9,"epoch":""}}"#;
        assert_eq!(parse(body), recovery(None, 9, 100));
    }

    #[test]
    fn what_is_wrong_is_said_with_what_there_is() {
        let wrong = |body| parse(body).unwrap_err();
        let text = wrong(r#"{"from":1}"#);
        for word in [
            "from",
            "since",
            "since_time",
            "until_time",
            "limit",
            "reverse",
            "recover",
        ] {
            assert!(text.contains(&format!("`{word}`")), "{text}");
        }
        assert!(wrong(r#"{"since":{"seq":1}}"#).contains("`offset`"));
        assert!(wrong(r#"{"limit":-2}"#).contains("1000"));
        assert!(wrong(r#"{"since_time":"2026-01-01T00:00:00Z"}"#).contains("i64"));
        assert!(wrong(r#"{"since_time":5,"until_time":5}"#).contains("before until_time"));
        assert!(wrong(r#"{"recover":true,"reverse":true}"#).contains("reverse"));
        assert!(wrong(r#"{"recover":true,"until_time":5}"#).contains("until_time"));
        assert!(!wrong("no json").is_empty());
    }

    #[test]
    fn the_schema_has_every_field() {
        let schema: serde_json::Value = serde_json::from_str(SCHEMA).unwrap();
        let fields = schema["properties"].as_object().unwrap();
        let mut names: Vec<&str> = fields.keys().map(String::as_str).collect();
        names.sort_unstable();
        let known = [
            "limit",
            "recover",
            "reverse",
            "since",
            "since_time",
            "until_time",
        ];
        assert_eq!(names, known);
        let all = r#"{"limit":1,"recover":false,"reverse":true,"since":{},"since_time":1,"until_time":2}"#;
        assert!(parse(all).is_ok());
    }
}
