//! The rules about fields that requests and responses share: Connection, Content-Length, Transfer-Encoding, and what
//! exactly is wrong with a head that does not parse.

use super::error::Refusal;
use super::fields::Fields;
use super::kind::{Class, FieldKind, NEVER_NOMINATED, classify, is_token, is_value_byte, same, trim};
use crate::limits::CONNECTION_OPTIONS_MAX;

/// What the Connection fields of a head say.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ConnectionOptions {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
}

/// Reads all Connection fields and marks the fields that they nominate as hop-by-hop (RFC 9110 section 7.6.1).
#[inline]
pub(super) fn connection_options(buf: &[u8], fields: &mut Fields) -> Result<ConnectionOptions, Refusal> {
    let mut options = ConnectionOptions::default();
    if let Some(first) = fields.first(FieldKind::Connection) {
        // Nearly every Connection field is one of these two.
        if !fields.is_repeated(FieldKind::Connection) {
            let value = first.value.of(buf);
            if same(value, b"keep-alive") {
                options.keep_alive = true;
                return Ok(options);
            }
            if same(value, b"close") {
                options.close = true;
                return Ok(options);
            }
        }
        read_options(buf, fields, &mut options)?;
    }
    Ok(options)
}

fn read_options(buf: &[u8], fields: &mut Fields, options: &mut ConnectionOptions) -> Result<(), Refusal> {
    let mut count = 0;
    for i in 0..fields.len() {
        let field = fields.as_slice()[i];
        if field.kind != FieldKind::Connection {
            continue;
        }
        for option in field.value.of(buf).split(|&b| b == b',').map(trim) {
            count += 1;
            if count > CONNECTION_OPTIONS_MAX {
                return Err(Refusal::TooManyConnectionOptions);
            }
            if option.is_empty() {
                continue;
            }
            if !is_token(option) {
                return Err(Refusal::BadConnection);
            }
            if option.eq_ignore_ascii_case(b"close") {
                options.close = true;
                continue;
            }
            match classify(option) {
                Class::Kind(FieldKind::KeepAlive) => options.keep_alive = true,
                Class::Kind(FieldKind::Upgrade) => options.upgrade = true,
                Class::Kind(kind) if NEVER_NOMINATED.contains(kind) => return Err(Refusal::NominatedField),
                Class::Twin => return Err(Refusal::NominatedField),
                Class::Kind(_) => fields.drop_named(buf, option),
            }
        }
    }
    Ok(())
}

/// The one Content-Length, if there is any. Lists and repetitions are refused even if all values are equal: RFC 9112
/// section 6.3 allows either, and only one of the two cannot be misread behind us.
#[inline]
pub(super) fn content_length(buf: &[u8], fields: &Fields) -> Result<Option<u64>, Refusal> {
    let Some(value) = fields.first_value(buf, FieldKind::ContentLength) else { return Ok(None) };
    if fields.is_repeated(FieldKind::ContentLength) {
        return Err(Refusal::RepeatedLength);
    }
    length(value).map(Some).ok_or(Refusal::BadLength)
}

/// The value of a Content-Length: decimal digits, below 2^64.
#[inline]
pub(super) fn length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |length, b| {
        let digit = b.wrapping_sub(b'0');
        if digit > 9 { None } else { length.checked_mul(10)?.checked_add(u64::from(digit)) }
    })
}

/// The least `timeout=SECONDS` in the Keep-Alive fields. It is advice: what is not well formed says nothing.
#[cold]
pub(super) fn keep_alive_timeout_s(buf: &[u8], fields: &Fields) -> Option<u32> {
    let parameters = fields.values_of(buf, FieldKind::KeepAlive).flat_map(|value| value.split(|&b| b == b','));
    let timeouts = parameters.filter_map(|parameter| {
        let (name, value) = parameter.split_at(memchr::memchr(b'=', parameter)?);
        let digits = trim(&value[1..]);
        let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        (is_number && trim(name).eq_ignore_ascii_case(b"timeout")).then(|| saturating_number(digits))
    });
    timeouts.min()
}

/// Digits as a number; one beyond 32 bits counts as the largest.
fn saturating_number(digits: &[u8]) -> u32 {
    digits.iter().fold(0, |number: u32, b| number.saturating_mul(10).saturating_add(u32::from(b - b'0')))
}

/// Max-Forwards, if there is any; a number beyond 32 bits counts as the largest (RFC 9110 section 7.6.2).
pub(super) fn max_forwards(buf: &[u8], fields: &Fields) -> Result<Option<u32>, Refusal> {
    let Some(value) = fields.first_value(buf, FieldKind::MaxForwards) else { return Ok(None) };
    if fields.is_repeated(FieldKind::MaxForwards) || value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::BadMaxForwards);
    }
    Ok(Some(saturating_number(value)))
}

/// Whether the body is chunked; anything but exactly one `chunked` is refused.
#[inline]
pub(super) fn is_chunked(buf: &[u8], fields: &Fields) -> Result<bool, Refusal> {
    let Some(value) = fields.first_value(buf, FieldKind::TransferEncoding) else { return Ok(false) };
    if fields.is_repeated(FieldKind::TransferEncoding) {
        return Err(Refusal::BadEncoding);
    }
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(true);
    }
    // 501 is for codings that we could have understood; a list in which `chunked` is not last, or that is no list of
    // tokens, leaves the length of the message open and is a 400.
    let mut chunked_before = false;
    for coding in value.split(|&b| b == b',').map(trim) {
        if chunked_before || !is_token(coding) {
            return Err(Refusal::BadEncoding);
        }
        chunked_before = coding.eq_ignore_ascii_case(b"chunked");
    }
    Err(Refusal::EncodingUnsupported)
}

/// Whether a TE field lists `trailers`, the only member that may go on to the next hop.
pub(super) fn te_trailers(buf: &[u8], fields: &Fields) -> bool {
    fields
        .values_of(buf, FieldKind::Te)
        .flat_map(|value| value.split(|&b| b == b','))
        .any(|member| trim(member).eq_ignore_ascii_case(b"trailers"))
}

/// Why the field lines that begin at `from` do not parse. Called only when they do not.
#[cold]
pub(super) fn diagnose_fields(window: &[u8], from: usize) -> Refusal {
    let mut start = from;
    while start < window.len() {
        let end = memchr::memchr(b'\n', &window[start..]).map(|offset| start + offset);
        let line = &window[start..end.unwrap_or(window.len())];
        let body = match (end, line) {
            (None, line) => line,
            (Some(_), [body @ .., b'\r']) => body,
            (Some(_), _) => return Refusal::BareLf,
        };
        if body.is_empty() && end.is_some() {
            break;
        }
        if let Some(refusal) = diagnose_line(body, end.is_some(), start == from) {
            return refusal;
        }
        start = end.map_or(window.len(), |end| end + 1);
    }
    Refusal::Malformed
}

fn diagnose_line(line: &[u8], is_whole: bool, is_first: bool) -> Option<Refusal> {
    match line.first() {
        Some(b' ' | b'\t') if is_first => return Some(Refusal::SpaceBeforeFirstField),
        Some(b' ' | b'\t') => return Some(Refusal::ObsFold),
        Some(b':') => return Some(Refusal::EmptyFieldName),
        _ => {}
    }
    let colon = memchr::memchr(b':', line);
    let name = &line[..colon.unwrap_or(line.len())];
    match name {
        [trimmed @ .., b' ' | b'\t'] if colon.is_some() && is_token(trim(trimmed)) => {
            return Some(Refusal::SpaceBeforeColon);
        }
        name if name.contains(&0) => return Some(Refusal::Nul),
        name if colon.is_none() && is_whole => {
            return Some(if name.contains(&b'\r') { Refusal::BareCr } else { Refusal::NoColon });
        }
        // A CR at the end of an unfinished line may be the first half of its end.
        name if !is_token(name.strip_suffix(b"\r").unwrap_or(name)) => return Some(Refusal::BadFieldName),
        _ => {}
    }
    let value = colon.map_or(&line[line.len()..], |colon| &line[colon + 1..]);
    let value = if is_whole { value } else { value.strip_suffix(b"\r").unwrap_or(value) };
    value.iter().find(|&&b| !is_value_byte(b)).map(|&b| match b {
        0 => Refusal::Nul,
        b'\r' => Refusal::BareCr,
        _ => Refusal::BadFieldValue,
    })
}
