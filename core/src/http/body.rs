//! Bodies of every framing, pulled out of the bytes that a connection delivers, and the chunked coding of what goes out.

use super::chunked::ChunkedDecoder;
pub use super::chunked::{Event, Step};
use super::error::ChunkError;
use super::head::BodyFraming;

/// Finds the end of a body. Nothing is copied: events are positions in the caller's input.
#[derive(Clone, Debug)]
pub enum BodyDecoder {
    /// The body is over, or there is none.
    Done,
    /// Content-Length: so many bytes are still to come.
    Length(u64),
    /// The chunked coding.
    Chunked(ChunkedDecoder),
    /// Until the server closes.
    UntilClose,
}

impl BodyDecoder {
    /// The decoder for a body that is framed like this.
    #[inline]
    #[must_use]
    pub fn new(framing: BodyFraming) -> Self {
        match framing {
            BodyFraming::None | BodyFraming::Length(0) => Self::Done,
            BodyFraming::Length(length) => Self::Length(length),
            BodyFraming::Chunked => Self::Chunked(ChunkedDecoder::default()),
            BodyFraming::UntilClose => Self::UntilClose,
        }
    }

    /// Whether the body is over.
    #[inline]
    #[must_use]
    pub fn is_done(&self) -> bool {
        match self {
            Self::Done => true,
            Self::Chunked(chunked) => chunked.is_done(),
            Self::Length(_) | Self::UntilClose => false,
        }
    }

    /// Bytes that are still to come, if that is known.
    #[inline]
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        match self {
            Self::Done => Some(0),
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }

    /// Reads on: call it with all unconsumed bytes until [`Event::NeedInput`] or [`Event::End`]. A body that is over
    /// consumes nothing and gives `End` again. Data that ends a Content-Length body is followed by `End` at the next
    /// call; [`BodyDecoder::is_done`] says so at once.
    ///
    /// # Errors
    /// The framing is broken: abort both sides.
    #[inline]
    pub fn decode(&mut self, input: &[u8]) -> Result<Step, ChunkError> {
        match self {
            Self::Done => Ok(Step::new(0, Event::End)),
            Self::Chunked(chunked) => chunked.decode(input),
            _ if input.is_empty() => Ok(Step::new(0, Event::NeedInput)),
            Self::UntilClose => Ok(Step::new(input.len(), Event::Data(0..input.len()))),
            Self::Length(left) => {
                let len = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                self.skip(len as u64);
                Ok(Step::new(len, Event::Data(0..len)))
            }
        }
    }

    /// Counts data bytes that were relayed without passing through [`BodyDecoder::decode`] (splice). Of a chunked body
    /// none may be.
    pub fn skip(&mut self, count: u64) {
        debug_assert!(!matches!(self, Self::Chunked(_)), "chunked data was skipped");
        if let Self::Length(left) = self {
            debug_assert!(count <= *left, "more was skipped than the body has");
            *left = left.saturating_sub(count);
            if *left == 0 {
                *self = Self::Done;
            }
        }
    }

    /// The peer has closed its side.
    ///
    /// # Errors
    /// [`ChunkError::Truncated`] if the body is not over: what was relayed of it must be aborted, never ended.
    pub fn end_of_stream(&mut self) -> Result<(), ChunkError> {
        match self {
            Self::UntilClose => {
                *self = Self::Done;
                Ok(())
            }
            other if other.is_done() => Ok(()),
            _ => Err(ChunkError::Truncated),
        }
    }
}

/// What follows the data of a chunk.
pub const CHUNK_END: &[u8] = b"\r\n";
/// The last chunk and an empty trailer section.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// The last chunk alone; trailer lines and an empty line follow.
pub const LAST_CHUNK_BEFORE_TRAILERS: &[u8] = b"0\r\n";

/// The size line of a chunk: up to 16 digits and CR LF.
#[derive(Clone, Copy, Debug)]
pub struct ChunkHeader {
    bytes: [u8; 18],
    start: u8,
}

impl ChunkHeader {
    /// The line.
    #[inline]
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[self.start as usize..]
    }
}

/// The size line of a chunk of `len` bytes. A chunk of 0 bytes would end the body: see [`LAST_CHUNK`].
#[inline]
#[must_use]
pub fn chunk_header(len: u64) -> ChunkHeader {
    let mut bytes = [0; 18];
    bytes[16] = b'\r';
    bytes[17] = b'\n';
    let mut start = 16;
    let mut rest = len;
    loop {
        start -= 1;
        bytes[start] = b"0123456789abcdef"[(rest & 15) as usize];
        rest >>= 4;
        if rest == 0 {
            break;
        }
    }
    ChunkHeader { bytes, start: start as u8 }
}

/// Writes one chunk. Nothing for no data, since an empty chunk would end the body.
pub fn encode_chunk(out: &mut Vec<u8>, data: &[u8]) {
    if !data.is_empty() {
        out.reserve(data.len() + 20);
        out.extend_from_slice(chunk_header(data.len() as u64).as_bytes());
        out.extend_from_slice(data);
        out.extend_from_slice(CHUNK_END);
    }
}
