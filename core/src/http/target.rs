//! The request target: its form, its parts, and the bytes that no server reads in one way only.

use super::authority;
use super::error::Refusal;
use super::head::{Method, Span};
use super::kind::classes;
use super::request::TargetForm;

/// A target taken apart. Spans are positions in the request's buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) form: TargetForm,
    pub(super) https: bool,
    pub(super) path: Span,
    pub(super) query: Option<Span>,
    /// The whole authority, the length of its host, and its port.
    pub(super) authority: Option<(Span, usize, Option<u16>)>,
}

/// Takes the target apart (RFC 9112 section 3.2).
#[inline]
pub(super) fn parse(buf: &[u8], target: Span, method: Method) -> Result<Target, Refusal> {
    let bytes = target.of(buf);
    let (start, end) = (target.start as usize, target.end as usize);
    if method != Method::Connect && bytes.first() == Some(&b'/') {
        let (path, query) = path_and_query(buf, start, end)?;
        return Ok(Target { form: TargetForm::Origin, https: false, path, query, authority: None });
    }
    if method == Method::Connect {
        let parts = authority::split(bytes).filter(|(_, port)| port.is_some()).ok_or(Refusal::BadTarget)?;
        let authority = Some((target, parts.0, parts.1));
        return Ok(Target {
            form: TargetForm::Authority,
            https: false,
            path: Span::new(end, end),
            query: None,
            authority,
        });
    }
    if bytes == b"*" {
        if method != Method::Options {
            return Err(Refusal::AsteriskNotOptions);
        }
        return Ok(Target { form: TargetForm::Asterisk, https: false, path: target, query: None, authority: None });
    }
    absolute(buf, start, end)
}

fn absolute(buf: &[u8], start: usize, end: usize) -> Result<Target, Refusal> {
    let bytes = &buf[start..end];
    let has_scheme = |scheme: &[u8]| bytes.len() > scheme.len() && bytes[..scheme.len()].eq_ignore_ascii_case(scheme);
    let (https, scheme_len) = if has_scheme(b"http://") {
        (false, 7)
    } else if has_scheme(b"https://") {
        (true, 8)
    } else {
        // A fragment or a raw byte is named even where the form is wrong, too.
        path_and_query(buf, start, end)?;
        return Err(Refusal::BadTarget);
    };
    let after = start + scheme_len;
    let authority_end = buf[after..end].iter().position(|b| matches!(b, b'/' | b'?' | b'#' | b'\\'));
    let authority_end = authority_end.map_or(end, |offset| after + offset);
    let (path, query) = path_and_query(buf, authority_end, end)?;
    let (host_len, port) = authority::split(&buf[after..authority_end]).ok_or(Refusal::BadAuthority)?;
    let authority = Some((Span::new(after, authority_end), host_len, port));
    Ok(Target { form: TargetForm::Absolute, https, path, query, authority })
}

/// What a closer look at a target may find.
const ODD: u8 = 1;
const ESCAPE: u8 = 2;

/// Splits at the first `?` and checks both parts. The query may hold backslashes and `%00`, which browsers send and
/// nobody routes by; in the path they change what a server sees.
#[inline(always)]
fn path_and_query(buf: &[u8], start: usize, end: usize) -> Result<(Span, Option<Span>), Refusal> {
    let bytes = &buf[start..end];
    let found = classes(bytes, |b| {
        (u8::from(!is_visible(b) | (b == b'#') | (b == b'\\')) * ODD) | (u8::from(b == b'%') * ESCAPE)
    });
    let path_len = memchr::memchr(b'?', bytes).unwrap_or(bytes.len());
    let (path, query) = bytes.split_at(path_len);
    if found & ODD != 0 {
        examine_odd(path, query)?;
    }
    if found & ESCAPE != 0 {
        check_escapes(path)?;
    }
    let path = Span::new(start, start + path_len);
    let query = (!query.is_empty()).then(|| Span::new(start + path_len + 1, end));
    Ok((path, query))
}

/// Refuses bytes that must not stand in a path, or in a query, which begins with its `?`.
#[cold]
fn examine_odd(path: &[u8], query: &[u8]) -> Result<(), Refusal> {
    let is_refused = |b: &u8| !is_visible(*b) || *b == b'#';
    if path.iter().any(|b| is_refused(b) || *b == b'\\') {
        return Err(refused_byte(path));
    }
    // What is refused in the path is named before what is in the query.
    check_escapes(path)?;
    if query.iter().any(is_refused) { Err(refused_byte(query)) } else { Ok(()) }
}

/// Checks a configured path with its query, such as that of a rewrite, as strictly as one that is received. It need not
/// begin with a slash.
///
/// # Errors
/// What a request with it would be refused for.
pub fn check(path_and_query: &[u8]) -> Result<(), Refusal> {
    self::path_and_query(path_and_query, 0, path_and_query.len()).map(drop)
}

/// ASCII that is neither a space nor a control character.
#[inline(always)]
fn is_visible(b: u8) -> bool {
    b.wrapping_sub(0x21) < 0x7f - 0x21
}

#[cold]
fn refused_byte(part: &[u8]) -> Refusal {
    match part.iter().find(|&&b| matches!(b, b'#' | b'\\') || !is_visible(b)) {
        Some(b'#') => Refusal::TargetFragment,
        Some(b'\\') if part.first() != Some(&b'?') => Refusal::TargetBackslash,
        // Only reachable in a query, where the backslash itself is not what was refused.
        Some(b'\\') if part.contains(&b'#') => Refusal::TargetFragment,
        _ => Refusal::TargetNotAscii,
    }
}

/// Refuses `%` without two digits, `%00`, and encoded bytes that are overlong UTF-8: C0 and C1 always begin one, E0
/// does before 80-9F, F0 before 80-8F (RFC 3629 section 3), F8 and above begin what UTF-8 has never had.
fn check_escapes(path: &[u8]) -> Result<(), Refusal> {
    let mut before = None;
    let mut rest = path;
    while let Some(at) = memchr::memchr(b'%', rest) {
        let digits = rest.get(at + 1..at + 3).ok_or(Refusal::TargetBadEscape)?;
        let byte = hex(digits[0]).zip(hex(digits[1])).map(|(high, low)| high << 4 | low);
        let byte = byte.ok_or(Refusal::TargetBadEscape)?;
        if at > 0 {
            before = None;
        }
        match (before, byte) {
            (_, 0) => return Err(Refusal::TargetNul),
            (_, 0xc0 | 0xc1 | 0xf8..) | (Some(0xe0), 0x80..=0x9f) | (Some(0xf0), 0x80..=0x8f) => {
                return Err(Refusal::TargetOverlong);
            }
            _ => {}
        }
        before = Some(byte);
        rest = &rest[at + 3..];
    }
    Ok(())
}

/// The value of a hexadecimal digit.
#[inline]
pub(super) fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}
