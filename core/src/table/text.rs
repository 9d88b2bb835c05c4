//! Which texts of a configuration may become part of a message. Control refuses others with file, line and field; a
//! proxy refuses a snapshot that holds one, since one space in a path is enough to write a broken request line.

use crate::http::{Refusal, authority, check_target};

/// Why a text must not become part of a message. Reads as the end of a sentence: `"/a b" contains ' '`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadText {
    /// Nothing is there.
    #[error("is empty")]
    Empty,
    /// A byte that must not stand here.
    #[error("contains {:?}", char::from(*.0))]
    Byte(u8),
    /// A byte of a character outside of ASCII.
    #[error("contains a character that is not ASCII")]
    NotAscii,
    /// The next hop would refuse it with this reason.
    #[error("is no request target: {0}")]
    Target(Refusal),
    /// Neither `host` nor `host:port`.
    #[error("is neither HOST nor HOST:PORT")]
    Authority,
    /// A scheme begins with a letter (RFC 3986 section 3.1).
    #[error("is no scheme")]
    Scheme,
    /// A path begins with a slash.
    #[error("does not begin with a slash")]
    NotRooted,
    /// The proxy writes these fields itself: a second one would let two parsers disagree about the message.
    #[error("is a field of the connection or of the framing, which is the proxy's own")]
    Framing,
    /// A request without Host reaches no server.
    #[error("cannot be removed")]
    Host,
}

/// Fields that a proxy writes itself on each hop (RFC 9110 section 7.6.1, RFC 9112 section 6).
const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// `rewrite.uri`: the bytes of a request target. A `?` begins a query, as in Envoy; a fragment, a backslash, a bad escape
/// is what the next hop would refuse. It need not begin with a slash: the proxy adds it.
pub fn rewrite_uri(text: &str) -> Result<(), BadText> {
    printable(text)?;
    check_target(text.as_bytes()).map_err(BadText::Target)
}

/// `rewrite.uriRegexRewrite.rewrite`: as [`rewrite_uri`], but for escapes, which a group may complete.
pub fn rewrite_replacement(text: &str) -> Result<(), BadText> {
    printable(text)?;
    match text.bytes().find(|&b| matches!(b, b'#' | b'\\')) {
        Some(bad) => Err(BadText::Byte(bad)),
        None => Ok(()),
    }
}

/// `redirect.uri`: a path that may have a query and a fragment (RFC 9110 section 10.2.2).
pub fn redirect_uri(text: &str) -> Result<(), BadText> {
    printable(text)?;
    match text.as_bytes() {
        [b'/', ..] if text.contains('\\') => Err(BadText::Byte(b'\\')),
        [b'/', ..] => Ok(()),
        _ => Err(BadText::NotRooted),
    }
}

/// `rewrite.authority`, `redirect.authority`, a `host` that is set: what our own codec takes as Host.
pub fn authority_text(text: &str) -> Result<(), BadText> {
    if text.is_empty() {
        return Err(BadText::Empty);
    }
    printable(text)?;
    authority::split(text.as_bytes()).map(drop).ok_or(BadText::Authority)
}

/// `redirect.scheme` (RFC 3986 section 3.1).
pub fn scheme(text: &str) -> Result<(), BadText> {
    match text.as_bytes() {
        [first, rest @ ..] if first.is_ascii_alphabetic() => {
            let bad = rest.iter().find(|b| !(b.is_ascii_alphanumeric() || b"+-.".contains(b)));
            bad.map_or(Ok(()), |&b| Err(BadText::Byte(b)))
        }
        [] => Err(BadText::Empty),
        _ => Err(BadText::Scheme),
    }
}

/// The name of a field, in lower case (RFC 9110 section 5.1).
pub fn field_name(name: &str) -> Result<(), BadText> {
    let token = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b);
    match name.bytes().find(|&b| !token(b)) {
        _ if name.is_empty() => Err(BadText::Empty),
        Some(128..) => Err(BadText::NotAscii),
        Some(bad) => Err(BadText::Byte(bad)),
        None => Ok(()),
    }
}

/// The name of a field that an edit writes: none of those that the proxy writes itself. To remove one is harmless, it has
/// no effect.
pub fn written_field_name(name: &str) -> Result<(), BadText> {
    field_name(name)?;
    // `content_length` is the same field for a server that maps `-` to `_`.
    let dashed = || name.bytes().map(|b| if b == b'_' { b'-' } else { b });
    let own = FRAMING.iter().any(|field| field.bytes().eq(dashed()));
    if own { Err(BadText::Framing) } else { Ok(()) }
}

/// The value of a field: one line (RFC 9110 section 5.5).
pub fn field_value(value: &str) -> Result<(), BadText> {
    let allowed = |b: u8| b == b'\t' || (b >= 0x20 && b != 0x7f);
    value.bytes().find(|&b| !allowed(b)).map_or(Ok(()), |b| Err(BadText::Byte(b)))
}

fn printable(text: &str) -> Result<(), BadText> {
    match text.bytes().find(|b| !(0x21..0x7f).contains(b)) {
        Some(128..) => Err(BadText::NotAscii),
        Some(bad) => Err(BadText::Byte(bad)),
        None => Ok(()),
    }
}
