//! Knows: whose address a socket is counted for: the peer's, or what a trusted proxy says of it; and how much of
//! an address is one holder's. Never: what is limited.

use std::net::{IpAddr, Ipv6Addr};

use http::HeaderMap;
use ipnet::IpNet;

/// Bits of an IPv6 address that one holder has: all of a /64 are the same to limits.
const IPV6_PREFIX_BITS: u32 = 64;
/// The header in which proxies say whom they speak for.
const FORWARDED_FOR: &str = "x-forwarded-for";
/// Addresses of one request that are looked at; there are not as many proxies in a row.
const FORWARDED_MAX: usize = 32;

/// An address as limits count it. An IPv4 address that is written as an IPv6 one is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressKey(IpAddr);

impl From<IpAddr> for AddressKey {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => {
                let mask = u128::MAX << (128 - IPV6_PREFIX_BITS);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
            v4 => v4,
        })
    }
}

/// One of the networks of `http_server.trusted_proxies`: `10.0.0.0/8`, or one address.
#[must_use]
pub fn parse_network(text: &str) -> Option<IpNet> {
    let one = text.parse::<IpAddr>().ok().map(IpNet::from);
    one.or_else(|| text.parse().ok())
}

/// True if what this peer says of others is believed.
#[must_use]
pub fn is_trusted(trusted: &[IpNet], peer: IpAddr) -> bool {
    let peer = peer.to_canonical();
    trusted.iter().any(|network| network.contains(&peer))
}

/// Whose request it is that came from `peer`. What is behind the last trusted proxy is that proxy's word; all
/// before it, anybody may have written. An untrusted peer's headers are not looked at.
#[must_use]
pub fn of_request(trusted: &[IpNet], peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let mut address = peer;
    let lines: Vec<&[u8]> = headers
        .get_all(FORWARDED_FOR)
        .iter()
        .map(http::HeaderValue::as_bytes)
        .collect();
    let entries = lines
        .iter()
        .rev()
        .flat_map(|line| line.rsplit(|b| *b == b','));
    for entry in entries.take(FORWARDED_MAX) {
        if !is_trusted(trusted, address) {
            break;
        }
        // Not an address: nobody can be named behind the proxy that let it through.
        let Some(next) = std::str::from_utf8(entry).ok().and_then(parse_entry) else {
            break;
        };
        address = next;
    }
    address
}

/// `1.2.3.4`, `1.2.3.4:5`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:5`.
fn parse_entry(entry: &str) -> Option<IpAddr> {
    let entry = entry.trim();
    if let Ok(address) = entry.parse::<IpAddr>() {
        return Some(address);
    }
    if let Ok(address) = entry.parse::<std::net::SocketAddr>() {
        return Some(address.ip());
    }
    let inner = entry.strip_prefix('[')?.strip_suffix(']')?;
    inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_64_is_one_holder_and_a_mapped_address_is_the_address() {
        let key = |text| AddressKey::from(ip(text));
        assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff::9"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_eq!(key("::ffff:10.0.0.1"), key("10.0.0.1"));
        assert_ne!(key("10.0.0.1"), key("10.0.0.2"));
    }

    #[test]
    fn only_trusted_proxies_are_believed_and_only_the_last_word() {
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "2001:db8::7"]
            .into_iter()
            .map(|text| parse_network(text).unwrap())
            .collect();
        let of = |peer: &str, lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(FORWARDED_FOR, line.parse().unwrap());
            }
            of_request(&trusted, ip(peer), &headers).to_string()
        };
        // Anybody's header is anybody's word.
        assert_eq!(of("192.0.2.9", &["10.9.9.9"]), "192.0.2.9");
        assert_eq!(of("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(of("10.0.0.1", &["192.0.2.1"]), "192.0.2.1");
        // What the client wrote itself is left of what the proxy added.
        assert_eq!(of("10.0.0.1", &["203.0.113.5, 192.0.2.1"]), "192.0.2.1");
        assert_eq!(of("10.0.0.1", &["203.0.113.5", "192.0.2.1"]), "192.0.2.1");
        // Two proxies in a row.
        assert_eq!(
            of("10.0.0.1", &["203.0.113.5, 192.0.2.1, 10.0.0.2"]),
            "192.0.2.1"
        );
        assert_eq!(of("2001:db8::7", &["[2001:db8:5::1]:443"]), "2001:db8:5::1");
        assert_eq!(of("::ffff:10.0.0.1", &["192.0.2.1:81"]), "192.0.2.1");
        // Nonsense names nobody.
        for nonsense in ["unknown", "", "_hidden", "192.0.2.1, x", "[1.2.3.4]"] {
            assert_eq!(of("10.0.0.1", &[nonsense]), "10.0.0.1", "{nonsense}");
        }
        let many = ["10.0.0.3"; 1_000].join(",");
        assert_eq!(of("10.0.0.1", &[&format!("192.0.2.1,{many}")]), "10.0.0.3");
        assert!(parse_network("10.0.0.0/33").is_none());
        assert!(parse_network("proxy").is_none());
    }
}
