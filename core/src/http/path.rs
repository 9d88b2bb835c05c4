//! One spelling for each path: what the router matches, what access rules judge and what the upstream sees is one string.
//!
//! [`normalize`] makes that string, at the level that Istio's `pathNormalization` asks for. [`without_parameters`] is what
//! rules are matched against: servers that know path parameters (`/admin;x`) serve `/admin`.

use super::error::Refusal;
use super::target::hex;
pub use crate::table::model::PathNormalization;

/// Brings a path (without its query) to the normal form of a level.
///
/// - `None`: as it is.
/// - `Base`: RFC 3986 section 6.2.2: escapes of unreserved characters are decoded, the digits of the others are upper case,
///   dot segments (`%2e` is a dot) are removed. A path that climbs above its root is refused, where the RFC would ignore
///   the excess, and so are parameters on a dot segment or on an empty one, which hide a path from rules.
/// - `MergeSlashes`: then slashes in a row become one.
/// - `DecodeAndMergeSlashes`: first, `%2F` and `%5C` become slashes.
///
/// Above `None` the result begins with `/`, holds no dot segment, is its own normal form, and is no longer than the path.
/// Escapes are decoded once: `%252e` stays. The result is `path` itself, without a copy, where there is no escape, no empty
/// segment and no segment that begins with a dot or a parameter; else it lies in `scratch`, which is cleared before.
///
/// # Errors
/// [`Refusal::PathEscapesRoot`], [`Refusal::PathParameters`]; for a path that no codec has accepted [`Refusal::BadTarget`] and
/// [`Refusal::TargetBadEscape`].
#[inline]
pub fn normalize<'a>(path: &'a [u8], level: PathNormalization, scratch: &'a mut Vec<u8>) -> Result<&'a [u8], Refusal> {
    if level == PathNormalization::None || is_plain(path) {
        return Ok(path);
    }
    rewrite(path, level, scratch)?;
    Ok(scratch)
}

/// Brings what a rewrite has made to the normal form of a level. It may hold a query behind its path: that part is left
/// alone, as every query is. An empty path is `/`.
///
/// # Errors
/// As [`normalize`].
pub fn normalize_rewritten<'a>(
    target: &'a [u8],
    level: PathNormalization,
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8], Refusal> {
    if target.is_empty() {
        return Ok(b"/");
    }
    let (path, query) = target.split_at(memchr::memchr(b'?', target).unwrap_or(target.len()));
    if normalize(path, level, scratch)? == path {
        return Ok(target);
    }
    // What differs lies in `scratch`.
    scratch.extend_from_slice(query);
    Ok(scratch)
}

/// Whether there is nothing to normalise, whatever the level.
#[inline]
fn is_plain(path: &[u8]) -> bool {
    // Pairs, and no early end: the compiler makes vector instructions of this.
    let rest = path.get(1..).unwrap_or_default();
    let begins_odd_segment = |(&before, &b)| (before == b'/') & ((b == b'/') | (b == b'.') | (b == b';'));
    let odd = path.iter().zip(rest).fold(false, |odd, pair| odd | (*pair.1 == b'%') | begins_odd_segment(pair));
    path.first() == Some(&b'/') && !odd
}

fn rewrite(path: &[u8], level: PathNormalization, out: &mut Vec<u8>) -> Result<(), Refusal> {
    if path.first() != Some(&b'/') {
        return Err(Refusal::BadTarget);
    }
    out.clear();
    out.reserve(path.len());
    decode_escapes(path, level >= PathNormalization::DecodeAndMergeSlashes, out)?;
    remove_dot_segments(out)?;
    if level >= PathNormalization::MergeSlashes {
        out.dedup_by(|b, before| *b == b'/' && *before == b'/');
    }
    Ok(())
}

/// Decodes escapes of unreserved characters and, if asked to, of slash and backslash; all others in upper case. One pass:
/// what is decoded is never looked at again, and no `%` comes out of it.
fn decode_escapes(path: &[u8], decodes_slashes: bool, out: &mut Vec<u8>) -> Result<(), Refusal> {
    let mut rest = path;
    while let Some(at) = memchr::memchr(b'%', rest) {
        out.extend_from_slice(&rest[..at]);
        let digits = rest.get(at + 1..at + 3).ok_or(Refusal::TargetBadEscape)?;
        let byte = hex(digits[0]).zip(hex(digits[1])).map(|(high, low)| high << 4 | low);
        match byte.ok_or(Refusal::TargetBadEscape)? {
            b'/' | b'\\' if decodes_slashes => out.push(b'/'),
            byte if is_unreserved(byte) => out.push(byte),
            _ => out.extend_from_slice(&[b'%', digits[0].to_ascii_uppercase(), digits[1].to_ascii_uppercase()]),
        }
        rest = &rest[at + 3..];
    }
    out.extend_from_slice(rest);
    Ok(())
}

/// RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986 section 5.2.4, in place, for a path that begins with a slash: what is written never passes what is read.
fn remove_dot_segments(path: &mut Vec<u8>) -> Result<(), Refusal> {
    let (mut read, mut written) = (0, 0);
    while read < path.len() {
        let start = read + 1;
        let end = memchr::memchr(b'/', &path[start..]).map_or(path.len(), |offset| start + offset);
        let is_last = end == path.len();
        match Segment::of(&path[start..end]) {
            Segment::DotWithParameters => return Err(Refusal::PathParameters),
            Segment::EmptyWithParameters if !is_last => return Err(Refusal::PathParameters),
            Segment::Name | Segment::EmptyWithParameters => {
                path.copy_within(read..end, written);
                written += end - read;
                read = end;
                continue;
            }
            Segment::Dot => {}
            Segment::DotDot => {
                written = memchr::memrchr(b'/', &path[..written]).ok_or(Refusal::PathEscapesRoot)?;
            }
        }
        if is_last {
            // `/a/.` and `/a/b/..` are `/a/`.
            path[written] = b'/';
            written += 1;
        }
        read = end;
    }
    path.truncate(written);
    Ok(())
}

/// What stands between two slashes, escapes of unreserved characters decoded.
enum Segment {
    Dot,
    DotDot,
    DotWithParameters,
    EmptyWithParameters,
    Name,
}

impl Segment {
    fn of(segment: &[u8]) -> Self {
        match segment {
            b"." => Self::Dot,
            b".." => Self::DotDot,
            [b';', ..] => Self::EmptyWithParameters,
            // An encoded semicolon, too: some servers decode first and cut then, and nobody names a file like that.
            [b'.', b';', ..] | [b'.', b'.', b';', ..] => Self::DotWithParameters,
            [b'.', b'%', b'3', b'B', ..] | [b'.', b'.', b'%', b'3', b'B', ..] => Self::DotWithParameters,
            _ => Self::Name,
        }
    }
}

/// The path with the parameters of each segment cut off, for rules: `/a;x/b;y=1` is `/a/b`. `path` itself, without a copy,
/// where there is no parameter; else it lies in `scratch`, which is cleared before.
///
/// Of a path that [`normalize`] made, the result is in normal form, too.
#[inline]
pub fn without_parameters<'a>(path: &'a [u8], scratch: &'a mut Vec<u8>) -> &'a [u8] {
    let Some(first) = memchr::memchr(b';', path) else { return path };
    scratch.clear();
    scratch.reserve(path.len());
    let (mut kept, mut cut) = path.split_at(first);
    loop {
        scratch.extend_from_slice(kept);
        let Some(slash) = memchr::memchr(b'/', cut) else { return scratch };
        let rest = &cut[slash..];
        (kept, cut) = rest.split_at(memchr::memchr(b';', rest).unwrap_or(rest.len()));
    }
}

/// The position in `path` up to which the first `matched` bytes of [`without_parameters`] reach: a rewrite of the matched
/// prefix replaces `path[..position]`. Parameters of the last matched segment go with it, since they belong to a name that
/// is replaced; `/a;x/b` with `/a` matched leaves `/b`.
#[must_use]
pub fn position_with_parameters(path: &[u8], matched: usize) -> usize {
    let (mut position, mut left) = (0, matched);
    loop {
        let rest = &path[position..];
        let kept = memchr::memchr(b';', rest).unwrap_or(rest.len());
        if left < kept {
            return position + left;
        }
        left -= kept;
        let cut = memchr::memchr(b'/', &rest[kept..]).unwrap_or(rest.len() - kept);
        position += kept + cut;
        if left == 0 || position == path.len() {
            return position;
        }
    }
}
