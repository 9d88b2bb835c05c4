//! Whether a connection of which nobody says what it speaks begins like HTTP.

use super::http2::begins_preface;

/// Longest method that is looked for, in bytes: `VERSION-CONTROL` has 15.
const METHOD_BYTES_MAX: usize = 32;

/// Whether these first bytes are a beginning of HTTP/1.x or of the preface of HTTP/2, or may become one.
///
/// A request line is a method in capitals (every registered one is), a space, and at its end a version. What does not look so is
/// another protocol, however much of it resembles: `USER anonymous` and `PING` end without a version, and `SSH-2.0-` has a digit
/// where a method has none. Bytes that could still be either are HTTP for now: the rest of the line decides.
#[must_use]
pub fn may_be_http(bytes: &[u8]) -> bool {
    if begins_preface(bytes) {
        return true;
    }
    // One empty line before the first request is allowed (RFC 9112 section 2.2).
    let bytes = match bytes {
        [] | [b'\r'] => return true,
        [b'\r', b'\n', rest @ ..] => rest,
        _ => bytes,
    };
    let method_len = bytes.iter().take_while(|&&b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_')).count();
    match bytes.get(method_len) {
        None => return method_len <= METHOD_BYTES_MAX,
        Some(b' ') if (1..=METHOD_BYTES_MAX).contains(&method_len) => {}
        Some(_) => return false,
    }
    let rest = &bytes[method_len..];
    let Some(end) = memchr::memchr(b'\n', rest) else { return !rest.iter().any(is_control) };
    let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
    let version = line.len().checked_sub(b" HTTP/1.1".len()).map(|at| &line[at..]);
    matches!(version, Some([b' ', b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']))
}

/// The end of a line may be cut in two.
fn is_control(byte: &u8) -> bool {
    byte.is_ascii_control() && *byte != b'\r'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::may_be_http;
    use crate::http::{Bounds, Fields, request};

    #[test]
    fn protocols_are_told_apart_by_their_first_bytes() {
        for http in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"G",
            b"GET",
            b"GET /a b",
            b"\r\nM-SEARCH * HTTP/1.1\r\nhost: a\r\n\r\n",
            b"GET / HTTP/1.1\nbare",
            b"GET  / HTTP/9.9\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04",
            b"PRI ",
            b"",
        ] {
            assert!(may_be_http(http), "{}", http.escape_ascii());
        }
        for other in [
            &b"\x16\x03\x01\x02\0\x01"[..],
            b"*1\r\n$4\r\nPING\r\n",
            b"PING\r\n",
            b"USER anonymous\r\n",
            b"GET key\r\n",
            b"get / HTTP/1.1\r\n",
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"\0\0\0\x17\x04\xd2\x16\x2f",
            b"GET /\0",
            b"\n",
            b"EHLO there\r\nMAIL FROM:<a@b>\r\n",
            &[b'A'; 33],
        ] {
            assert!(!may_be_http(other), "{}", other.escape_ascii());
        }
    }

    proptest! {
        /// A request of ours never becomes bytes on its way, however it is cut.
        #[test]
        fn no_beginning_of_a_request_is_another_protocol(
            method in "[A-Z]{1,15}", path in "/[!-~]{0,30}", minor in 0..2_u8, cut in any::<usize>()
        ) {
            let text = format!("{method} {path} HTTP/1.{minor}\r\nhost: a\r\n\r\n");
            prop_assert!(may_be_http(&text.as_bytes()[..cut % (text.len() + 1)]));
        }

        #[test]
        fn what_parses_is_http(bytes in "[A-Za-z/ :.\r\n0-9]{0,60}") {
            let capitals = bytes.split(' ').next().is_some_and(|method| method.bytes().all(|b| b.is_ascii_uppercase()));
            let parsed = request::parse(bytes.as_bytes(), &mut Fields::new(), Bounds::FIRST_HOP);
            prop_assert!(!(capitals && matches!(parsed, Ok(Some(_)))) || may_be_http(bytes.as_bytes()));
        }
    }
}
