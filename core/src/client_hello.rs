//! What a connection's first bytes say: TLS or not, and for which server name (RFC 8446 section 4.1.2, RFC 6066 section 3).
//!
//! A server that ends TLS for several names must choose its certificate and its rules for clients before the handshake
//! begins. The handshake itself reads the same bytes again, and is the one that judges them.

use crate::limits::{HOST_BYTES_MAX, TLS_HANDSHAKE_BYTES_MAX};

/// Type of a handshake record: the first byte of every TLS connection, and of no HTTP one.
pub const HANDSHAKE_RECORD: u8 = 22;
const RECORD_HEADER_BYTES: usize = 5;
/// Most that one record may carry in the clear (RFC 8446 section 5.1).
const FRAGMENT_BYTES_MAX: usize = 1 << 14;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const NAME_TYPE_HOST: u8 = 0;
const EXTENSION_PROTOCOLS: u16 = 16;

/// What a whole ClientHello says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientHello {
    /// The server name in lower case, if there is one.
    pub server_name: Option<String>,
    /// Whether it offers a protocol that only sidecars offer each other (`istio`, `istio-http/1.1`, ...; RFC 7301): the connection
    /// is for this proxy, not for the application behind it.
    pub is_mesh: bool,
}

/// Bytes that begin no TLS connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHello {
    /// Another protocol.
    #[error("the first bytes are no TLS handshake")]
    NotTls,
    /// Its parts do not fit into each other.
    #[error("the ClientHello is malformed")]
    Malformed,
    /// A handshake that begins with another message, or something else before its first message is whole.
    #[error("something else came in the place of a ClientHello")]
    Unexpected,
    /// A record beyond what the protocol allows.
    #[error("a record of the ClientHello is larger than the protocol allows")]
    RecordTooLong,
    /// Beyond [`TLS_HANDSHAKE_BYTES_MAX`].
    #[error("the ClientHello is longer than {TLS_HANDSHAKE_BYTES_MAX} bytes")]
    TooLong,
    /// A server name that is no host name.
    #[error("the server name in the ClientHello is no host name")]
    ServerName,
}

impl BadHello {
    /// The alert to send (RFC 8446 sections 4, 5.1 and 6.2).
    #[must_use]
    pub fn alert(self) -> u8 {
        match self {
            Self::Unexpected => 10,
            Self::RecordTooLong => 22,
            Self::NotTls | Self::Malformed | Self::TooLong | Self::ServerName => 50,
        }
    }
}

/// Whether [`parse`] would find more than it has found in fewer bytes: false only where all that is there are whole records and
/// the beginning of one more.
#[must_use]
pub fn is_worth_reading(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    loop {
        let Some(header) = rest.first_chunk::<RECORD_HEADER_BYTES>() else {
            // The first byte says already that it is something else.
            return rest.is_empty() || rest[0] != HANDSHAKE_RECORD || rest.get(1).is_some_and(|&major| major != 3);
        };
        let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if header[0] != HANDSHAKE_RECORD || header[1] != 3 || len == 0 || len > FRAGMENT_BYTES_MAX {
            return true;
        }
        match rest.get(RECORD_HEADER_BYTES + len..) {
            Some(next) => rest = next,
            // The message's own header is checked with the record.
            None => return false,
        }
    }
}

/// Reads what has come so far. `None`: more is needed.
pub fn parse(bytes: &[u8]) -> Result<Option<ClientHello>, BadHello> {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        match rest.first() {
            Some(&HANDSHAKE_RECORD) => {}
            // Nothing but more of the same record type may come before the message is whole.
            Some(_) if message.is_empty() => return Err(BadHello::NotTls),
            Some(_) => return Err(BadHello::Unexpected),
            None => return Ok(None),
        }
        if rest.get(1).is_some_and(|&major| major != 3) {
            return Err(BadHello::NotTls);
        }
        let Some(header) = rest.first_chunk::<RECORD_HEADER_BYTES>() else { return Ok(None) };
        let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if len > FRAGMENT_BYTES_MAX {
            return Err(BadHello::RecordTooLong);
        }
        if len == 0 {
            return Err(BadHello::Malformed);
        }
        let available = &rest[RECORD_HEADER_BYTES..];
        message.extend_from_slice(&available[..available.len().min(len)]);
        if let Some(&[kind, a, b, c]) = message.first_chunk::<4>() {
            let message_len = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if kind != CLIENT_HELLO {
                return Err(BadHello::Unexpected);
            }
            if message_len > TLS_HANDSHAKE_BYTES_MAX {
                return Err(BadHello::TooLong);
            }
            if let Some(body) = message[4..].get(..message_len) {
                return hello(body).map(Some);
            }
        }
        match available.get(len..) {
            Some(next) => rest = next,
            None => return Ok(None),
        }
    }
}

/// Takes fields off the front.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], BadHello> {
        let (field, rest) = self.0.split_at_checked(len).ok_or(BadHello::Malformed)?;
        self.0 = rest;
        Ok(field)
    }

    fn u8(&mut self) -> Result<u8, BadHello> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, BadHello> {
        let field = self.take(2)?;
        Ok(u16::from_be_bytes([field[0], field[1]]))
    }

    /// A vector with a length of one byte.
    fn vector8(&mut self) -> Result<Cursor<'a>, BadHello> {
        let len = self.u8()?;
        self.take(len.into()).map(Cursor)
    }

    /// A vector with a length of two bytes.
    fn vector16(&mut self) -> Result<Cursor<'a>, BadHello> {
        let len = self.u16()?;
        self.take(len.into()).map(Cursor)
    }
}

fn hello(body: &[u8]) -> Result<ClientHello, BadHello> {
    let mut fields = Cursor(body);
    // legacy_version, random.
    fields.take(2 + 32)?;
    // legacy_session_id, cipher_suites, legacy_compression_methods.
    fields.vector8()?;
    fields.vector16()?;
    fields.vector8()?;
    let mut hello = ClientHello::default();
    if fields.0.is_empty() {
        return Ok(hello);
    }
    let mut extensions = fields.vector16()?;
    if !fields.0.is_empty() {
        return Err(BadHello::Malformed);
    }
    let mut seen = false;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vector16()?;
        if kind == EXTENSION_SERVER_NAME {
            // RFC 8446 section 4.2: one extension of each type.
            if std::mem::replace(&mut seen, true) {
                return Err(BadHello::Malformed);
            }
            hello.server_name = server_name(data)?;
        } else if kind == EXTENSION_PROTOCOLS {
            hello.is_mesh |= has_mesh_protocol(data)?;
        }
    }
    Ok(hello)
}

fn has_mesh_protocol(mut data: Cursor<'_>) -> Result<bool, BadHello> {
    let mut names = data.vector16()?;
    let mut found = false;
    while !names.0.is_empty() {
        let name = names.vector8()?.0;
        found |= name == b"istio" || name.starts_with(b"istio-");
    }
    Ok(found)
}

fn server_name(mut data: Cursor<'_>) -> Result<Option<String>, BadHello> {
    let mut names = data.vector16()?;
    if !data.0.is_empty() {
        return Err(BadHello::Malformed);
    }
    let mut found = None;
    while !names.0.is_empty() {
        let kind = names.u8()?;
        let name = names.vector16()?.0;
        if kind == NAME_TYPE_HOST {
            // RFC 6066 section 3: not more than one name of a type.
            if found.is_some() {
                return Err(BadHello::Malformed);
            }
            found = Some(host(name)?);
        }
    }
    Ok(found)
}

fn host(name: &[u8]) -> Result<String, BadHello> {
    let sound = |&b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    // RFC 6066 section 3 wants no trailing dot; some clients send one.
    let name = name.strip_suffix(b".").unwrap_or(name);
    match std::str::from_utf8(name) {
        Ok(text) if !name.is_empty() && name.len() <= HOST_BYTES_MAX && name.iter().all(sound) => {
            Ok(text.to_ascii_lowercase())
        }
        _ => Err(BadHello::ServerName),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vector16(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
    }

    fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &vector16(data)].concat()
    }

    fn sni(names: &[(u8, &[u8])]) -> Vec<u8> {
        let list: Vec<u8> = names.iter().flat_map(|(kind, name)| [&[*kind][..], &vector16(name)].concat()).collect();
        extension(0, &vector16(&list))
    }

    fn message(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([2, 1, 1, 0, 2, 0x13, 1, 1, 0]);
        body.extend(vector16(extensions));
        let len = (body.len() as u32).to_be_bytes();
        [&[CLIENT_HELLO][..], &len[1..], &body].concat()
    }

    fn records(message: &[u8], piece: usize) -> Vec<u8> {
        message.chunks(piece).flat_map(|part| [&[22, 3, 1][..], &vector16(part)].concat()).collect()
    }

    fn named(name: &str) -> Result<Option<ClientHello>, BadHello> {
        Ok(Some(ClientHello { server_name: Some(name.into()), is_mesh: false }))
    }

    proptest! {
        #[test]
        fn the_name_is_found_however_it_is_cut(piece in 1_usize..300, cut in 0_usize..400) {
            let extensions = [extension(10, &[0, 2, 0, 29]), sni(&[(0, b"Reviews.example.COM")])].concat();
            let wire = records(&message(&extensions), piece);
            prop_assert_eq!(parse(&wire), named("reviews.example.com"));
            prop_assert!(is_worth_reading(&wire));
            for cut in 1..wire.len() {
                // Whatever is not worth reading has nothing new in it.
                prop_assert!(is_worth_reading(&wire[..cut]) || parse(&wire[..cut]) == Ok(None));
            }
            if cut < wire.len() {
                let so_far = parse(&wire[..cut]);
                prop_assert!(matches!(so_far, Ok(None)), "{so_far:?}");
            }
            let followed = [&wire[..], b"\x14\x03\x03\0\x01\x01"].concat();
            prop_assert_eq!(parse(&followed), named("reviews.example.com"));
        }

        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in any::<usize>(), byte in any::<u8>()) {
            let _ = parse(&bytes);
            let mut wire = records(&message(&sni(&[(0, b"a.b")])), 1000);
            let at = at % wire.len();
            wire[at] = byte;
            let _ = parse(&wire);
            let _ = parse(&records(&message(&bytes), 40));
        }
    }

    #[test]
    fn what_is_no_hello_is_told_apart() {
        let whole = |extensions: &[u8]| parse(&records(&message(extensions), 1000));
        for wrong in [&b"G"[..], b"\x16\x02", b"\x16\x03\x01\0\0", b"\x16\x03\x01\xff\xff"] {
            assert!(is_worth_reading(wrong), "{wrong:?}");
        }
        assert!(!is_worth_reading(b"\x16\x03\x01\0\x10\x01"));
        assert_eq!(parse(b""), Ok(None));
        assert_eq!(parse(b"GET / HTTP/1.1\r\n"), Err(BadHello::NotTls));
        assert_eq!(parse(b"\x16\x02\x00"), Err(BadHello::NotTls));
        assert_eq!(parse(b"\x16\x03\x01\0\0"), Err(BadHello::Malformed));
        assert_eq!(parse(b"\x16\x03\x01\0\x04\x02\0\0\0"), Err(BadHello::Unexpected));
        assert_eq!(parse(b"\x16\x03\x01\0\x02\x01\0\x15\x03\x03\0\x02\x02\0"), Err(BadHello::Unexpected));
        assert_eq!(parse(b"\x16\x03\x01\x40\0\x01"), Ok(None));
        assert_eq!(parse(b"\x16\x03\x01\x40\x01\x01"), Err(BadHello::RecordTooLong));
        assert_eq!(parse(b"\x16\x03\x01\0\x04\x01\xff\0\0"), Err(BadHello::TooLong));
        assert_eq!(parse(b"\x16\x03\x01\xff\xff"), Err(BadHello::RecordTooLong));
        assert_eq!(whole(b""), Ok(Some(ClientHello::default())));
        let offers = |names: &[&[u8]]| {
            let list: Vec<u8> = names.iter().flat_map(|name| [&[name.len() as u8][..], name].concat()).collect();
            whole(&extension(16, &vector16(&list))).map(|hello| hello.unwrap().is_mesh)
        };
        assert_eq!(offers(&[b"h2", b"http/1.1", b"istiod", b""]), Ok(false));
        assert_eq!(offers(&[b"istio"]), Ok(true));
        assert_eq!(offers(&[b"istio-peer-exchange", b"h2"]), Ok(true));
        assert_eq!(whole(&extension(16, b"\0\x03\x05is")), Err(BadHello::Malformed));
        assert_eq!(whole(&sni(&[(1, b"x"), (0, b"a.b.")])), named("a.b"));
        assert_eq!(whole(&sni(&[(0, b"a.b"), (0, b"c.d")])), Err(BadHello::Malformed));
        assert_eq!(whole(&[sni(&[(0, b"a")]), sni(&[(0, b"b")])].concat()), Err(BadHello::Malformed));
        for name in [&b"a\0.b"[..], b"", b".", b"a b", b"a/b", &[b'a'; 300]] {
            assert_eq!(whole(&sni(&[(0, name)])), Err(BadHello::ServerName), "{name:?}");
        }
    }
}
