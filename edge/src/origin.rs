//! Knows: which web pages may connect: the `Origin` header, and the patterns that it is held against.
//! Never: sockets, tokens.
//!
//! Both are read by the same strict grammar, so that nothing is compared that a browser would read
//! otherwise: no suffix, no user in front of an `@`, no path, no second header.

use axum::http::{HeaderMap, HeaderValue, header};

/// Scheme, host and port of a page.
#[derive(Debug, PartialEq, Eq)]
struct Origin<'a> {
    scheme: &'a str,
    host: &'a str,
    /// The scheme's own if none is written; `None` for a scheme that has none.
    port: Option<u16>,
}

impl<'a> Origin<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let is_scheme = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
        if scheme.is_empty() || !scheme.bytes().all(is_scheme) {
            return None;
        }
        let (host, port) = host_and_port(authority)?;
        Some(Self {
            scheme,
            host,
            port: port.or_else(|| default_port(scheme)),
        })
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme.to_ascii_lowercase().as_str() {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`.
fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let v6_end = authority.starts_with('[').then(|| authority.find(']'));
    let (host, port) = match v6_end {
        Some(end) => {
            let (host, rest) = authority.split_at(end? + 1);
            let port = rest.strip_prefix(':');
            if port.is_none() && !rest.is_empty() {
                return None;
            }
            (host, port)
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let is_v6 = v6_end.is_some() && {
        let inside = &host[1..host.len() - 1];
        inside.parse::<std::net::Ipv6Addr>().is_ok()
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if !is_v6 && !host.split('.').all(is_label) {
        return None;
    }
    let port = match port {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse().ok()?),
        Some(_) => return None,
        None => None,
    };
    Some((host, port))
}

/// `https://example.com`, or `https://*.example.com` for every host below it.
struct Pattern<'a> {
    below: bool,
    origin: Origin<'a>,
}

impl<'a> Pattern<'a> {
    /// `buffer` holds the text without its star.
    fn parse(text: &str, buffer: &'a mut String) -> Option<Self> {
        let below = text.contains("://*.");
        *buffer = text.replacen("://*.", "://", 1);
        let origin = Origin::parse(buffer)?;
        Some(Self { below, origin })
    }

    fn matches(&self, origin: &Origin<'_>) -> bool {
        let of = &self.origin;
        let same_host = if self.below {
            let split = origin.host.len().checked_sub(of.host.len());
            split
                .and_then(|at| origin.host.split_at_checked(at))
                .is_some_and(|(labels, rest)| {
                    // One label or more, each whole.
                    labels.len() > 1 && labels.ends_with('.') && rest.eq_ignore_ascii_case(of.host)
                })
        } else {
            origin.host.eq_ignore_ascii_case(of.host)
        };
        same_host && origin.port == of.port && origin.scheme.eq_ignore_ascii_case(of.scheme)
    }
}

/// True if a text can stand in `client.allowed_origins`: `*`, `https://example.com` or
/// `https://*.example.com`, with a port where it is not the scheme's own.
#[must_use]
pub fn is_pattern(text: &str) -> bool {
    text == "*" || Pattern::parse(text, &mut String::new()).is_some()
}

/// True if a page may connect: its host (with the port) is the one asked for, or `allowed` has it with
/// exact scheme and port. Without an `Origin` header it is no browser, and no cookie is read.
#[must_use]
pub fn origin_is_allowed(allowed: &[String], headers: &HeaderMap) -> bool {
    if !headers.contains_key(header::ORIGIN) {
        return true;
    }
    let Some(text) = only(headers, &header::ORIGIN) else {
        return false;
    };
    if allowed.iter().any(|pattern| pattern == "*") {
        return true;
    }
    let Some(origin) = Origin::parse(text) else {
        return false;
    };
    let own = only(headers, &header::HOST).and_then(host_and_port);
    let is_own = own.is_some_and(|(host, port)| {
        let port = port.or_else(|| default_port(origin.scheme));
        port == origin.port && host.eq_ignore_ascii_case(origin.host)
    });
    is_own
        || allowed.iter().any(|text| {
            let mut buffer = String::new();
            let pattern = Pattern::parse(text, &mut buffer);
            pattern.is_some_and(|pattern| pattern.matches(&origin))
        })
}

/// A header's value if it stands there once.
fn only<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let first: &HeaderValue = values.next()?;
    values.next().is_none().then(|| first.to_str().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(allowed: &[&str], origins: &[&str], host: &str) -> bool {
        let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        for origin in origins {
            headers.append(header::ORIGIN, origin.parse().unwrap());
        }
        origin_is_allowed(&allowed, &headers)
    }

    #[test]
    fn the_own_host_always_may_and_others_only_if_listed() {
        let some: &[&str] = &["https://app.example.com"];
        assert!(check(&[], &[], "h:8000"), "not a browser");
        for allowed in [&[][..], some] {
            assert!(check(allowed, &["http://h:8000"], "h:8000"));
            assert!(check(allowed, &["http://H:8000"], "h:8000"));
            assert!(check(allowed, &["https://h"], "h"));
            assert!(check(allowed, &["https://h"], "h:443"));
            assert!(check(allowed, &["http://[::1]:8000"], "[::1]:8000"));
            for origin in [
                "http://h",
                "http://h:80000",
                "http://h:8001",
                "null",
                "",
                "http://",
                "h:8000",
                "http://h:8000/",
                "http://h:8000@evil.com",
                "http://evil.com@h:8000",
                "http://h.evil.com:8000",
                "http://evil-h:8000",
                "http://h:8000.evil.com",
                "http://h:+8000",
            ] {
                assert!(!check(allowed, &[origin], "h:8000"), "{origin}");
            }
        }
        assert!(!check(&[], &["http://h", "http://h"], "h"), "said twice");
        assert!(check(&["*"], &["null"], "h"));
    }

    #[test]
    fn patterns() {
        // Pattern, origin, whether it may.
        let table = [
            ("https://app.example.com", "https://app.example.com", true),
            ("https://app.example.com", "https://APP.example.com", true),
            (
                "https://app.example.com",
                "https://app.example.com:443",
                true,
            ),
            (
                "https://app.example.com:443",
                "https://app.example.com",
                true,
            ),
            (
                "https://app.example.com",
                "https://app.example.com:444",
                false,
            ),
            ("https://app.example.com", "http://app.example.com", false),
            (
                "https://app.example.com",
                "https://app.example.com.evil.com",
                false,
            ),
            ("https://app.example.com", "https://xapp.example.com", false),
            ("https://*.example.com", "https://app.example.com", true),
            ("https://*.example.com", "https://A.B.Example.com", true),
            ("https://*.example.com", "https://example.com", false),
            ("https://*.example.com", "https://.example.com", false),
            ("https://*.example.com", "https://a..example.com", false),
            ("https://*.example.com", "https://evilexample.com", false),
            (
                "https://*.example.com",
                "https://example.com.evil.com",
                false,
            ),
            (
                "https://*.example.com",
                "https://a.example.com.evil.com",
                false,
            ),
            (
                "https://*.example.com",
                "https://evil.com/a.example.com",
                false,
            ),
            (
                "https://*.example.com",
                "https://evil.com?a.example.com",
                false,
            ),
            (
                "https://*.example.com",
                "https://evil.com#a.example.com",
                false,
            ),
            (
                "https://*.example.com",
                "https://evil.com\\a.example.com",
                false,
            ),
            (
                "https://*.example.com",
                "https://evil.com:1@a.example.com",
                false,
            ),
            ("https://*.example.com", "http://app.example.com", false),
            (
                "https://*.example.com",
                "https://app.example.com:8443",
                false,
            ),
            (
                "https://*.example.com:8443",
                "https://app.example.com:8443",
                true,
            ),
            ("https://*.example.com", "https://*.example.com", false),
            ("https://*.example.com", "null", false),
            ("capacitor://localhost", "capacitor://localhost", true),
            ("capacitor://localhost", "http://localhost", false),
        ];
        for (pattern, origin, may) in table {
            assert!(is_pattern(pattern), "{pattern}");
            assert_eq!(
                check(&[pattern], &[origin], "h"),
                may,
                "{pattern} and {origin}"
            );
        }
        for no_pattern in [
            "",
            "**",
            "example.com",
            "https://",
            "https://*",
            "https://*.",
            "https://*example.com",
            "https://a.*.com",
            "https://*.*.com",
            "https://example.com/",
            "https://example.com:",
            "https://example.com:*",
            "https://u@example.com",
            "null",
        ] {
            assert!(!is_pattern(no_pattern), "{no_pattern}");
        }
    }
}
