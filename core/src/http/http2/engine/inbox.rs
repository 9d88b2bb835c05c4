//! What has come on a stream and nobody has read yet, as HTTP/1.1 text.

use super::super::super::body::{CHUNK_END, LAST_CHUNK, LAST_CHUNK_BEFORE_TRAILERS, chunk_header};
use super::super::super::head::BodyFraming;

/// Storage of this size is kept for the next stream, in bytes: a head and a small message.
const KEPT_BYTES: usize = 1_024;

/// What a head usually takes as text, in bytes.
const HEAD_BYTES: usize = 512;

/// How the body is written as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum Coding {
    /// Nothing follows.
    #[default]
    None,
    /// As it is; so many bytes more are to come in frames.
    Length(u64),
    /// As it is: a tunnel.
    Raw,
    /// In chunks.
    Chunked,
}

impl Coding {
    pub(super) fn of(framing: BodyFraming) -> Self {
        match framing {
            BodyFraming::Chunked => Self::Chunked,
            BodyFraming::Length(length) => Self::Length(length),
            BodyFraming::UntilClose => Self::Raw,
            BodyFraming::None => Self::None,
        }
    }
}

/// The next piece of a stream's text.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Some of it.
    Bytes(&'a [u8]),
    /// More is to come.
    Wait,
    /// That was all.
    End,
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// Heads, or what stands before or behind the data of chunks.
    text: Vec<u8>,
    text_read: usize,
    data: Vec<u8>,
    data_read: usize,
    /// Of the chunk that was begun: bytes of data, then of what ends it.
    chunk_left: usize,
    chunk_end_left: usize,
    pub(super) coding: Coding,
    /// Lines of text.
    trailers: Vec<u8>,
    /// All has come.
    pub(super) is_ended: bool,
    /// A final head has come.
    pub(super) has_head: bool,
    is_last_chunk_written: bool,
}

impl Inbox {
    /// For the next stream.
    pub(super) fn reset(&mut self, keep_storage: bool) {
        let reuse = |bytes: &mut Vec<u8>| {
            let mut bytes = std::mem::take(bytes);
            bytes.clear();
            if keep_storage && bytes.capacity() <= KEPT_BYTES { bytes } else { Vec::new() }
        };
        *self = Self { text: reuse(&mut self.text), data: reuse(&mut self.data), ..Self::default() };
    }

    /// Bytes that it takes.
    pub(super) fn footprint(&self) -> usize {
        self.text.capacity() + self.data.capacity() + self.trailers.capacity()
    }

    /// Where a head is appended, whole or not at all.
    pub(super) fn head(&mut self) -> &mut Vec<u8> {
        if self.text_read == self.text.len() {
            self.text.clear();
            self.text_read = 0;
        }
        self.text.reserve(HEAD_BYTES);
        &mut self.text
    }

    /// Data that came in a frame. The caller has checked that it may come.
    pub(super) fn push(&mut self, data: &[u8]) {
        if self.data_read > self.data.len() / 2 {
            self.data.drain(..self.data_read);
            self.data_read = 0;
        }
        self.data.extend_from_slice(data);
    }

    /// The trailer lines, as text.
    pub(super) fn trailers_mut(&mut self) -> &mut Vec<u8> {
        &mut self.trailers
    }

    /// The trailer lines of a body whose text has no place for them.
    pub(super) fn trailers(&self) -> &[u8] {
        if matches!(self.coding, Coding::Length(_)) && self.is_ended { &self.trailers } else { b"" }
    }

    /// Throws everything away, when nobody will read it any more: how many bytes of data were not read.
    pub(super) fn discard(&mut self) -> usize {
        let unread = self.data.len() - self.data_read;
        *self = Self { is_ended: self.is_ended, has_head: self.has_head, ..Self::default() };
        unread
    }

    /// What would make the message look whole before it is: a length that the frames may belie must never look so (RFC 9113
    /// section 8.1.1).
    fn is_withheld(&self) -> bool {
        !self.is_ended && self.coding == Coding::Length(0)
    }

    /// The next piece.
    pub(super) fn piece(&mut self) -> Piece<'_> {
        let has_data = self.data_read < self.data.len();
        if self.text_read < self.text.len() {
            if self.is_withheld() && !has_data {
                return Piece::Wait;
            }
            return Piece::Bytes(&self.text[self.text_read..]);
        }
        if self.coding == Coding::Chunked {
            return self.chunk();
        }
        let end = self.data.len() - usize::from(has_data && self.is_withheld());
        if self.data_read < end {
            return Piece::Bytes(&self.data[self.data_read..end]);
        }
        if self.is_ended && self.has_head { Piece::End } else { Piece::Wait }
    }

    fn chunk(&mut self) -> Piece<'_> {
        if self.chunk_left > 0 {
            return Piece::Bytes(&self.data[self.data_read..self.data_read + self.chunk_left]);
        }
        if self.chunk_end_left > 0 {
            return Piece::Bytes(&CHUNK_END[CHUNK_END.len() - self.chunk_end_left..]);
        }
        let len = self.data.len() - self.data_read;
        if len == 0 && !self.is_ended {
            return Piece::Wait;
        }
        if len == 0 && self.is_last_chunk_written {
            return Piece::End;
        }
        self.text.clear();
        self.text_read = 0;
        if len > 0 {
            // However many frames it came in.
            self.text.extend_from_slice(chunk_header(len as u64).as_bytes());
            (self.chunk_left, self.chunk_end_left) = (len, CHUNK_END.len());
        } else {
            self.is_last_chunk_written = true;
            if self.trailers.is_empty() {
                self.text.extend_from_slice(LAST_CHUNK);
            } else {
                self.text.extend_from_slice(LAST_CHUNK_BEFORE_TRAILERS);
                self.text.append(&mut self.trailers);
                self.text.extend_from_slice(CHUNK_END);
            }
        }
        Piece::Bytes(&self.text)
    }

    /// Takes so many bytes of the piece away: how many of them were data.
    pub(super) fn consume(&mut self, count: usize) -> usize {
        if self.text_read < self.text.len() {
            self.text_read += count;
            return 0;
        }
        if self.chunk_left == 0 && self.chunk_end_left > 0 {
            self.chunk_end_left -= count;
            return 0;
        }
        self.chunk_left = self.chunk_left.saturating_sub(count);
        self.data_read += count;
        if self.data_read == self.data.len() {
            self.data_read = 0;
            self.data.clear();
            if self.data.capacity() > KEPT_BYTES {
                self.data = Vec::new();
            }
        }
        count
    }
}
