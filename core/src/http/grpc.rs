//! What a proxy must know of gRPC over HTTP/2 (PROTOCOL-HTTP2.md of the gRPC project).

/// Whether the content type is that of gRPC: `application/grpc`, with a message format after `+` or parameters after `;` or
/// without. `application/grpc-web` is another protocol.
#[must_use]
pub fn is_grpc(content_type: &[u8]) -> bool {
    const TYPE: &[u8] = b"application/grpc";
    let Some((start, rest)) = content_type.split_at_checked(TYPE.len()) else { return false };
    start.eq_ignore_ascii_case(TYPE) && matches!(rest, [] | [b'+' | b';' | b' ' | b'\t', ..])
}

/// The `grpc-status` that a status of HTTP stands for where a response has none (the gRPC project's
/// http-grpc-status-mapping.md).
#[must_use]
pub fn status_of(http_status: u16) -> u8 {
    match http_status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// Most digits of a timeout.
const TIMEOUT_DIGITS_MAX: usize = 8;

/// The value of `grpc-timeout` in milliseconds: one to eight digits and a unit. A part of a millisecond counts as one, so
/// that nothing but 0 means at once. `None`: it is not well formed.
#[must_use]
pub fn grpc_timeout_ms(value: &[u8]) -> Option<u64> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > TIMEOUT_DIGITS_MAX || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |number, b| number * 10 + u64::from(b - b'0'));
    match unit {
        b'H' => Some(number * 3_600_000),
        b'M' => Some(number * 60_000),
        b'S' => Some(number * 1_000),
        b'm' => Some(number),
        b'u' => Some(number.div_ceil(1_000)),
        b'n' => Some(number.div_ceil(1_000_000)),
        _ => None,
    }
}

/// Appends a value of `grpc-timeout` in the finest unit, from milliseconds on, whose number has no more than eight digits. It
/// is never shorter than `ms`, unless that is longer than can be said: then it is the longest.
pub fn write_grpc_timeout(out: &mut Vec<u8>, ms: u64) {
    const NUMBER_MAX: u64 = 99_999_999;
    let units = [(b'm', 1), (b'S', 1_000), (b'M', 60_000), (b'H', 3_600_000)];
    let exact = units.into_iter().map(|(unit, unit_ms)| (ms.div_ceil(unit_ms), unit));
    let (number, unit) = exact.into_iter().find(|&(number, _)| number <= NUMBER_MAX).unwrap_or((NUMBER_MAX, b'H'));
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    out.push(unit);
}

/// Appends a text as the value of `grpc-message`: percent-encoded but for printable ASCII without `%`. White space at either
/// end is encoded as well, since a field value has none there.
pub fn percent_encode_message(out: &mut Vec<u8>, text: impl AsRef<[u8]>) {
    let text = text.as_ref();
    for (i, &b) in text.iter().enumerate() {
        let is_edge = i == 0 || i + 1 == text.len();
        if matches!(b, b' '..=b'~') && b != b'%' && !(is_edge && b == b' ') {
            out.push(b);
        } else {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            out.extend_from_slice(&[b'%', DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]);
        }
    }
}
