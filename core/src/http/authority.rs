//! The authority of a request: `host`, `host:port`, `[IPv6]`, `[IPv6]:port`. No user information.

use std::net::Ipv6Addr;

/// The host's length in bytes (brackets of an IPv6 address included) and the port of an authority that is well formed.
///
/// Stricter than RFC 3986 section 3.2.2: no percent-encoding and no sub-delimiters in a name (they would be second
/// spellings of one host), and a colon is followed by a port from 1 to 65535.
#[inline]
#[must_use]
pub fn split(authority: &[u8]) -> Option<(usize, Option<u16>)> {
    let host_len = if authority.first() == Some(&b'[') {
        let close = authority.iter().position(|&b| b == b']')?;
        std::str::from_utf8(&authority[1..close]).ok()?.parse::<Ipv6Addr>().ok()?;
        close + 1
    } else {
        let end = authority.iter().position(|&b| !HOST[b as usize]).unwrap_or(authority.len());
        if end == 0 {
            return None;
        }
        end
    };
    match &authority[host_len..] {
        [] => Some((host_len, None)),
        [b':', digits @ ..] => Some((host_len, Some(port(digits)?))),
        _ => None,
    }
}

/// A port from 1 to 65535, in 1 to 5 digits.
fn port(digits: &[u8]) -> Option<u16> {
    if digits.is_empty() || digits.len() > 5 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0_u32, |n, &b| n * 10 + u32::from(b - b'0'));
    u16::try_from(number).ok().filter(|&port| port != 0)
}

/// Bytes of a host name.
const HOST: [bool; 256] = {
    let mut table = [false; 256];
    let mut i = 0;
    while i < 256 {
        let b = i as u8;
        table[i] = b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
        i += 1;
    }
    table
};
