//! The rules about fields that requests and responses share: Connection, Content-Length, Transfer-Encoding, and what
//! exactly is wrong with a head that does not parse.

use super::error::Refusal;
use super::fields::Fields;
use super::kind::{Class, FieldKind, NEVER_NOMINATED, classify, is_token, is_value_byte, same, trim};
use super::lines::{self, Next};
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

/// Why the field lines that begin at `from` do not parse. Called only when they do not. Like [`lines::next`], it must not say
/// anything else when more has come.
#[cold]
pub(super) fn diagnose_fields(window: &[u8], from: usize) -> Refusal {
    let mut at = from;
    loop {
        match lines::next(&window[at..]) {
            Next::Field(line) => at += line.len,
            Next::Malformed => return diagnose_line(&window[at..], at == from),
            Next::End | Next::Unfinished => return Refusal::Malformed,
        }
    }
}

/// Why the line that the bytes begin with is no field.
fn diagnose_line(bytes: &[u8], is_first: bool) -> Refusal {
    match bytes.first() {
        Some(b' ' | b'\t') if is_first => return Refusal::SpaceBeforeFirstField,
        Some(b' ' | b'\t') => return Refusal::ObsFold,
        Some(b':') => return Refusal::EmptyFieldName,
        _ => {}
    }
    let name_len = lines::undecided_len(bytes);
    match bytes[name_len..] {
        [b':', ..] => match bytes[..name_len] {
            [ref name @ .., b' ' | b'\t'] if is_token(trim(name)) => Refusal::SpaceBeforeColon,
            ref name if is_token(name) => diagnose_value(&bytes[name_len + 1..]),
            _ => Refusal::BadFieldName,
        },
        [b'\r', b'\n', ..] => Refusal::NoColon,
        [b'\r', ..] => Refusal::BareCr,
        [b'\n', ..] => Refusal::BareLf,
        [0, ..] => Refusal::Nul,
        _ => Refusal::BadFieldName,
    }
}

/// The first byte that ends a value, and is not the CR of its line's end, says why.
fn diagnose_value(bytes: &[u8]) -> Refusal {
    match bytes.iter().find(|&&b| !is_value_byte(b)) {
        Some(0) => Refusal::Nul,
        Some(b'\r') => Refusal::BareCr,
        Some(b'\n') => Refusal::BareLf,
        Some(_) => Refusal::BadFieldValue,
        None => Refusal::Malformed,
    }
}
