//! The chunked coding (RFC 9112 section 7.1), read strictly.

use std::ops::Range;

use super::error::ChunkError;
use super::kind::{Class, FieldKind, KindSet, classify, is_token, is_value_byte, trim};
use super::target::hex;
use crate::limits::{CHUNK_EXTENSION_BYTES_MAX, TRAILER_BYTES_MAX, TRAILER_FIELDS_MAX};

/// What one call of a decoder found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Everything that could be used was used: read more. What was not consumed is the beginning of a trailer line and
    /// must be given again, contiguous with what follows.
    NeedInput,
    /// Body bytes, as positions in the input that was given.
    Data(Range<usize>),
    /// A trailer field, as positions in the input that was given. Fields that must not come in trailers are left out.
    Trailer {
        /// The name as received.
        name: Range<usize>,
        /// The value without the white space around it.
        value: Range<usize>,
    },
    /// The body is over; what follows belongs to the next message.
    End,
}

/// One step: drop `consumed` bytes from the front of the input, act upon the event, and give the rest again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Bytes of the input that are done with, the bytes of the event included.
    pub consumed: usize,
    /// What was found.
    pub event: Event,
}

impl Step {
    pub(super) fn new(consumed: usize, event: Event) -> Self {
        Self { consumed, event }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    /// In the digits of a chunk size.
    #[default]
    Size,
    /// After the semicolon.
    Extension,
    /// The size line's LF is next.
    SizeLf,
    Data,
    /// The CR after the data is next.
    DataCr,
    DataLf,
    Trailer,
    Done,
}

/// Walks over a chunked body without copying it. Whatever the pieces in which the input comes, the events are the same,
/// except that data of one chunk may come in several.
#[derive(Clone, Debug, Default)]
pub struct ChunkedDecoder {
    state: State,
    /// Digits of the size so far.
    digits: u8,
    /// The size so far, then the bytes of the chunk that are still to come.
    left: u64,
    extension_bytes: usize,
    trailer_bytes: usize,
    trailer_fields: usize,
    /// Bytes of an unfinished trailer line in which there is no LF.
    scanned: usize,
}

impl ChunkedDecoder {
    /// Whether the body is over.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Reads on.
    ///
    /// # Errors
    /// The framing is broken: nobody knows where this message ends, so abort both sides.
    #[inline]
    pub fn decode(&mut self, input: &[u8]) -> Result<Step, ChunkError> {
        let mut pos = 0;
        while let Some(&b) = input.get(pos) {
            match self.state {
                State::Size => match self.whole_size(&input[pos..]) {
                    Some(len) => pos += len,
                    None => {
                        self.size(b)?;
                        pos += 1;
                    }
                },
                State::Extension => pos += self.extension(&input[pos..])?,
                State::SizeLf => {
                    if b != b'\n' {
                        return Err(if self.extension_bytes > 0 { ChunkError::Extension } else { ChunkError::Size });
                    }
                    pos += 1;
                    self.digits = 0;
                    self.state = if self.left == 0 { State::Trailer } else { State::Data };
                }
                State::Data => {
                    let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len() - pos);
                    self.left -= len as u64;
                    if self.left == 0 {
                        self.state = State::DataCr;
                    }
                    return Ok(Step::new(pos + len, Event::Data(pos..pos + len)));
                }
                State::DataCr if input[pos..].starts_with(b"\r\n") => {
                    pos += 2;
                    self.state = State::Size;
                }
                State::DataCr if b == b'\r' => {
                    pos += 1;
                    self.state = State::DataLf;
                }
                State::DataLf if b == b'\n' => {
                    pos += 1;
                    self.state = State::Size;
                }
                State::DataCr | State::DataLf => return Err(ChunkError::DataEnd),
                State::Trailer => match self.trailer(input, &mut pos)? {
                    Some(event) => return Ok(Step::new(pos, event)),
                    None => continue,
                },
                State::Done => break,
            }
        }
        let event = if self.is_done() { Event::End } else { Event::NeedInput };
        Ok(Step::new(pos, event))
    }

    /// Reads a size line that is there whole and has no extension, as nearly all are: how long it is.
    #[inline]
    fn whole_size(&mut self, rest: &[u8]) -> Option<usize> {
        if self.digits > 0 {
            return None;
        }
        let (mut size, mut digits) = (0, 0);
        for digit in rest.iter().take(SIZE_DIGITS_MAX.into()).map_while(|&b| hex(b)) {
            size = size << 4 | u64::from(digit);
            digits += 1;
        }
        if digits == 0 || !rest[digits..].starts_with(b"\r\n") {
            return None;
        }
        self.left = size;
        self.state = if size == 0 { State::Trailer } else { State::Data };
        Some(digits + 2)
    }

    #[inline]
    fn size(&mut self, b: u8) -> Result<(), ChunkError> {
        if let Some(digit) = hex(b) {
            if self.digits == SIZE_DIGITS_MAX {
                return Err(ChunkError::Size);
            }
            self.digits += 1;
            self.left = self.left << 4 | u64::from(digit);
            return Ok(());
        }
        self.state = match b {
            _ if self.digits == 0 => return Err(ChunkError::Size),
            b'\r' => State::SizeLf,
            b';' => {
                self.extension_bytes += 1;
                State::Extension
            }
            _ => return Err(ChunkError::Size),
        };
        Ok(())
    }

    /// Skips extension bytes and returns how many; they are stripped (RFC 9112 section 7.1.1).
    fn extension(&mut self, rest: &[u8]) -> Result<usize, ChunkError> {
        let end = rest.iter().position(|&b| !is_value_byte(b));
        self.extension_bytes += end.unwrap_or(rest.len());
        if self.extension_bytes > CHUNK_EXTENSION_BYTES_MAX {
            return Err(ChunkError::ExtensionTooLarge);
        }
        match end {
            None => Ok(rest.len()),
            Some(end) if rest[end] == b'\r' => {
                self.state = State::SizeLf;
                Ok(end + 1)
            }
            Some(_) => Err(ChunkError::Extension),
        }
    }

    /// Reads one trailer line. `None` after a field that is left out.
    fn trailer(&mut self, input: &[u8], pos: &mut usize) -> Result<Option<Event>, ChunkError> {
        let line = &input[*pos..];
        let scanned = self.scanned.min(line.len());
        let Some(offset) = memchr::memchr(b'\n', &line[scanned..]) else {
            if self.trailer_bytes + line.len() > TRAILER_BYTES_MAX {
                return Err(ChunkError::TrailerTooLarge);
            }
            self.scanned = line.len();
            return Ok(Some(Event::NeedInput));
        };
        let len = scanned + offset + 1;
        self.scanned = 0;
        self.trailer_bytes += len;
        if self.trailer_bytes > TRAILER_BYTES_MAX {
            return Err(ChunkError::TrailerTooLarge);
        }
        let line = line[..len].strip_suffix(b"\r\n").ok_or(ChunkError::Trailer)?;
        let start = *pos;
        *pos += len;
        if line.is_empty() {
            self.state = State::Done;
            return Ok(Some(Event::End));
        }
        self.trailer_fields += 1;
        if self.trailer_fields > TRAILER_FIELDS_MAX {
            return Err(ChunkError::TrailerTooLarge);
        }
        let colon = memchr::memchr(b':', line).ok_or(ChunkError::Trailer)?;
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        if !is_token(name) || !value.iter().all(|&b| is_value_byte(b)) {
            return Err(ChunkError::Trailer);
        }
        if is_forbidden_in_trailers(name) {
            return Ok(None);
        }
        let value_start = start + (value.as_ptr() as usize - line.as_ptr() as usize);
        Ok(Some(Event::Trailer { name: start..start + colon, value: value_start..value_start + value.len() }))
    }
}

/// Digits of a chunk's size, as many as a number of 64 bits has.
const SIZE_DIGITS_MAX: u8 = 16;

/// Kinds that may come in trailers although they are known by kind.
const HARMLESS: KindSet = KindSet::of(&[FieldKind::Server, FieldKind::UserAgent, FieldKind::Date]);

/// Those that are not known by kind.
const FORBIDDEN_OTHERS: [&[u8]; 23] = [
    b"accept-ranges",
    b"age",
    b"cache-control",
    b"content-encoding",
    b"content-location",
    b"content-range",
    b"expires",
    b"if-match",
    b"if-modified-since",
    b"if-none-match",
    b"if-range",
    b"if-unmodified-since",
    b"location",
    b"origin",
    b"pragma",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"range",
    b"retry-after",
    b"transfer-coding",
    b"vary",
    b"warning",
    b"www-authenticate",
];

/// The letters that they begin with, a bit each from `a` on.
const FORBIDDEN_LETTERS: u32 = {
    let (mut letters, mut i) = (0, 0);
    while i < FORBIDDEN_OTHERS.len() {
        letters |= 1 << (FORBIDDEN_OTHERS[i][0] - b'a');
        i += 1;
    }
    letters
};

/// Whether a name is one of [`FORBIDDEN_OTHERS`].
fn is_forbidden_other(name: &[u8]) -> bool {
    // Nearly all trailers are gRPC's, whose letter is none of these.
    let letter =
        name.first().map_or(0, |first| 1_u32.checked_shl(u32::from((first | 0x20).wrapping_sub(b'a'))).unwrap_or(0));
    letter & FORBIDDEN_LETTERS != 0 && FORBIDDEN_OTHERS.iter().any(|other| name.eq_ignore_ascii_case(other))
}

/// Whether a field must not come in a trailer section: framing, routing, authentication, request modifiers, response
/// control and content format (RFC 9110 section 6.5.1). A recipient that merges trailers into headers would let them
/// replace what was checked.
#[must_use]
pub fn is_forbidden_in_trailers(name: &[u8]) -> bool {
    match classify(name) {
        Class::Twin => true,
        Class::Kind(FieldKind::Other) => is_forbidden_other(name),
        Class::Kind(kind) => !HARMLESS.contains(kind),
    }
}
