//! One field line (RFC 9112 section 5): its name is found, checked and classified, and its value checked and trimmed, on
//! one way through the bytes.

use super::kind::{FieldKind, Key, TOKEN, is_any_twin, is_value_byte, kind_of, kind_of_key};
use super::words;

/// What stands at the beginning of the bytes.
pub(super) enum Next {
    /// A whole line that is a field.
    Field(Line),
    /// The empty line.
    End,
    /// The beginning of either, without anything wrong in it.
    Unfinished,
    /// Something else.
    Malformed,
}

/// A field line; positions count from its beginning.
pub(super) struct Line {
    pub(super) kind: FieldKind,
    /// Whether the name is one that nobody may spell so, see [`is_any_twin`].
    pub(super) is_twin: bool,
    /// Whether it is spelled `name: value CR LF` exactly.
    pub(super) is_tight: bool,
    /// The name's length; it begins the line.
    pub(super) name_len: usize,
    /// The value without the white space around it.
    pub(super) value_start: usize,
    pub(super) value_end: usize,
    /// The whole line's length, CR LF included.
    pub(super) len: usize,
}

/// Reads the field line, or the empty line, that the bytes begin with.
#[inline(always)]
pub(super) fn next(bytes: &[u8]) -> Next {
    let name = name(bytes);
    let Some((name_bytes, [b':', rest @ ..])) = bytes.split_at_checked(name.len).filter(|_| name.len > 0) else {
        return match bytes {
            [b'\r', b'\n', ..] => Next::End,
            [] | [b'\r'] => Next::Unfinished,
            _ if name.len == bytes.len() || is_undecided(bytes) => Next::Unfinished,
            _ => Next::Malformed,
        };
    };
    let value_len = value_len(rest);
    let (value, after) = rest.split_at(value_len);
    match after {
        [b'\r', b'\n', ..] => {}
        [] | [b'\r'] => return Next::Unfinished,
        _ => return Next::Malformed,
    }
    let (start, end, is_tight) = match value {
        [b' ', first, ..] if !is_blank(*first) && !value.last().is_some_and(|&b| is_blank(b)) => (1, value.len(), true),
        _ => trimmed(value),
    };
    let value_at = name_bytes.len() + 1;
    Next::Field(Line {
        kind: name.kind,
        is_twin: name.is_twin,
        is_tight,
        name_len: name_bytes.len(),
        value_start: value_at + start,
        value_end: value_at + end,
        len: value_at + value.len() + 2,
    })
}

/// Whether the bytes begin a line that is no field, but what is wrong with it depends on what comes: a colon, or the end.
#[cold]
fn is_undecided(bytes: &[u8]) -> bool {
    !matches!(bytes, [b' ' | b'\t' | b':', ..]) && matches!(bytes[undecided_len(bytes)..], [] | [b'\r'])
}

/// How many bytes come before the one that decides what is wrong with a line: a colon, the end, or one that a value could
/// not have either.
pub(super) fn undecided_len(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|&&b| b != b':' && is_value_byte(b)).count()
}

/// The token that a line begins with.
struct Name {
    len: usize,
    kind: FieldKind,
    is_twin: bool,
}

/// Most names have up to fifteen letters, digits and dashes: those are looked at once, for their end, for bytes that do not
/// belong there, and for what they mean. Twins have an underscore, and are not among them. An empty name and one that ends
/// with a byte of no token are left to the caller, who misses the colon.
#[inline(always)]
fn name(bytes: &[u8]) -> Name {
    let Some(block) = bytes.first_chunk() else { return unusual_name(bytes) };
    let [low, high] = words::pair(block);
    let found = words::unusual_in_name(low);
    let (len, key): (usize, Key) = if found != 0 {
        (words::first(found), [(low | words::CASE) & words::before(found), 0])
    } else {
        let found = words::unusual_in_name(high);
        if found == 0 {
            return unusual_name(bytes);
        }
        (8 + words::first(found), [low | words::CASE, (high | words::CASE) & words::before(found)])
    };
    let after = block[len & 15];
    if after != b':' && TOKEN[usize::from(after)] {
        return unusual_name(bytes);
    }
    Name { len, kind: kind_of_key(key), is_twin: false }
}

/// A name that is long, has other token characters, or is followed by fewer bytes than a look takes.
#[inline(never)]
fn unusual_name(bytes: &[u8]) -> Name {
    let usual = words::run(bytes, words::unusual_in_name);
    let more = bytes[usual..].iter().take_while(|&&b| TOKEN[usize::from(b)]).count();
    let name = &bytes[..usual + more];
    Name { len: name.len(), kind: kind_of(name), is_twin: more > 0 && is_any_twin(name) }
}

/// How many bytes of a value come first, white space included.
#[inline(always)]
fn value_len(bytes: &[u8]) -> usize {
    let len = words::run(bytes, words::controls);
    if bytes.get(len) == Some(&b'\t') { value_len_with_tabs(bytes, len) } else { len }
}

/// From a tab on, byte by byte: tabs are rare, and many of them must not cost a look at sixteen bytes each.
#[cold]
fn value_len_with_tabs(bytes: &[u8], tab: usize) -> usize {
    tab + bytes[tab..].iter().take_while(|&&b| is_value_byte(b)).count()
}

/// How long the status line's reason phrase is, which may have the bytes of a value.
#[inline]
pub(super) fn reason_len(bytes: &[u8]) -> usize {
    value_len(bytes)
}

/// Where a value begins and ends within the white space around it, and whether that is one space before it.
#[inline(never)]
fn trimmed(value: &[u8]) -> (usize, usize, bool) {
    let start = value.iter().take_while(|&&b| is_blank(b)).count();
    let end = value.len() - value[start..].iter().rev().take_while(|&&b| is_blank(b)).count();
    (start, end, &value[..start] == b" " && end == value.len())
}

/// Optional white space (RFC 9110 section 5.6.3).
#[inline(always)]
fn is_blank(b: u8) -> bool {
    b == b' ' || b == b'\t'
}
