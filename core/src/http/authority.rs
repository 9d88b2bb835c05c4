//! The authority of a request: `host`, `host:port`, `[IPv6]`, `[IPv6]:port`. No user information.

use std::net::Ipv6Addr;

use super::kind::classes;
use crate::limits::HOST_BYTES_MAX;

/// The host's length in bytes (brackets of an IPv6 address included) and the port of an authority that is well formed.
///
/// Stricter than RFC 3986 section 3.2.2: no percent-encoding and no sub-delimiters in a name (they would be second
/// spellings of one host), a name is no longer than names are ([`HOST_BYTES_MAX`] and a dot at its end: what forwarding
/// fields repeat of it is bounded by that), and a colon is followed by a port from 1 to 65535.
#[inline]
#[must_use]
pub fn split(authority: &[u8]) -> Option<(usize, Option<u16>)> {
    if authority.first() == Some(&b'[') {
        return split_literal(authority);
    }
    // A port has five digits at most: no need to look for its colon from the front.
    let tail = authority.len().saturating_sub(6);
    let colon = authority[tail..].iter().rposition(|&b| b == b':').map(|offset| tail + offset);
    let (host, port) = match colon {
        Some(colon) => (&authority[..colon], Some(port(&authority[colon + 1..])?)),
        None => (authority, None),
    };
    if host.is_empty() || host.len() > HOST_BYTES_MAX + 1 || classes(host, |b| u8::from(!is_host_byte(b))) != 0 {
        return None;
    }
    Some((host.len(), port))
}

/// An authority that begins with a bracket.
fn split_literal(authority: &[u8]) -> Option<(usize, Option<u16>)> {
    let close = authority.iter().position(|&b| b == b']')?;
    std::str::from_utf8(&authority[1..close]).ok()?.parse::<Ipv6Addr>().ok()?;
    match &authority[close + 1..] {
        [] => Some((close + 1, None)),
        [b':', digits @ ..] => Some((close + 1, Some(port(digits)?))),
        _ => None,
    }
}

/// A port from 1 to 65535, in 1 to 5 digits.
fn port(digits: &[u8]) -> Option<u16> {
    if digits.is_empty() || digits.len() > 5 {
        return None;
    }
    let mut number = 0_u32;
    for b in digits {
        let digit = b.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number * 10 + u32::from(digit);
    }
    u16::try_from(number).ok().filter(|&port| port != 0)
}

/// Letters, digits and `-._~`.
#[inline(always)]
fn is_host_byte(b: u8) -> bool {
    ((b | 0x20).wrapping_sub(b'a') < 26)
        | (b.wrapping_sub(b'0') < 10)
        | (b == b'-')
        | (b == b'.')
        | (b == b'_')
        | (b == b'~')
}
