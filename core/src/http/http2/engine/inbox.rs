//! What has come on a stream and nobody has read yet, as HTTP/1.1 text.

use super::super::super::body::{CHUNK_END, LAST_CHUNK, LAST_CHUNK_BEFORE_TRAILERS, chunk_header};
use super::super::super::head::BodyFraming;

/// Storage of this size is kept for whoever needs some next, in bytes: a head and a small message.
const KEPT_BYTES: usize = 1_024;

/// Storage in which nothing is: a stream has some only while something waits in it.
#[derive(Debug)]
pub(super) struct Spare {
    storages: Vec<Vec<u8>>,
    storages_max: usize,
}

impl Spare {
    pub(super) fn new(storages_max: usize) -> Self {
        Self { storages: Vec::new(), storages_max }
    }

    /// Storage for bytes that have none.
    fn lend(&mut self, bytes: &mut Vec<u8>) {
        if bytes.capacity() == 0 {
            *bytes = self.storages.pop().unwrap_or_default();
        }
    }

    /// Takes back the storage of bytes that nobody needs any more.
    fn take(&mut self, bytes: &mut Vec<u8>) {
        let mut bytes = std::mem::take(bytes);
        if (1..=KEPT_BYTES).contains(&bytes.capacity()) && self.storages.len() < self.storages_max {
            bytes.clear();
            self.storages.push(bytes);
        }
    }
}

/// What a head usually takes as text, in bytes.
const HEAD_BYTES: usize = 512;
/// Likewise trailers: gRPC's status, and an empty message.
const TRAILER_BYTES: usize = 64;

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
    data: Vec<u8>,
    text_read: u32,
    data_read: u32,
    /// Of the chunk that was begun: bytes of data, then of what ends it. All of a stream's bytes fit its window or a head.
    chunk_left: u32,
    chunk_end_left: u8,
    pub(super) coding: Coding,
    /// Lines of text.
    #[expect(
        clippy::box_collection,
        reason = "few streams have any while they wait, and a stream that waits is to be small"
    )]
    trailers: Option<Box<Vec<u8>>>,
    /// All has come.
    pub(super) is_ended: bool,
    /// A final head has come.
    pub(super) has_head: bool,
    is_last_chunk_written: bool,
}

impl Inbox {
    /// Bytes that it takes.
    pub(super) fn footprint(&self) -> usize {
        let trailers = self.trailers.as_ref().map_or(0, |trailers| trailers.capacity());
        self.text.capacity() + self.data.capacity() + trailers
    }

    fn unread_text(&self) -> &[u8] {
        &self.text[self.text_read as usize..]
    }

    fn unread_data(&self) -> &[u8] {
        &self.data[self.data_read as usize..]
    }

    /// Whether data waits in it.
    pub(super) fn has_data(&self) -> bool {
        !self.unread_data().is_empty()
    }

    /// Where a head is appended, whole or not at all.
    pub(super) fn head(&mut self, spare: &mut Spare) -> &mut Vec<u8> {
        spare.lend(&mut self.text);
        self.text.reserve(HEAD_BYTES);
        &mut self.text
    }

    /// Data that came in a frame. The caller has checked that it may come.
    pub(super) fn push(&mut self, data: &[u8], spare: &mut Spare) {
        if data.is_empty() {
            return;
        }
        spare.lend(&mut self.data);
        let read = self.data_read as usize;
        if read > self.data.len() / 2 {
            self.data.drain(..read);
            self.data_read = 0;
        }
        self.data.extend_from_slice(data);
    }

    /// The trailer lines, as text.
    pub(super) fn trailers_mut(&mut self) -> &mut Vec<u8> {
        self.trailers.get_or_insert_with(|| Box::new(Vec::with_capacity(TRAILER_BYTES)))
    }

    /// The trailer lines of a body whose text has no place for them.
    pub(super) fn trailers(&self) -> &[u8] {
        match &self.trailers {
            Some(trailers) if matches!(self.coding, Coding::Length(_)) && self.is_ended => trailers,
            _ => b"",
        }
    }

    /// Throws everything away, when nobody will read it any more: how many bytes of data were not read.
    pub(super) fn discard(&mut self, spare: &mut Spare) -> usize {
        let unread = self.unread_data().len();
        spare.take(&mut self.text);
        spare.take(&mut self.data);
        *self = Self { is_ended: self.is_ended, has_head: self.has_head, ..Self::default() };
        unread
    }

    /// What would make the message look whole before it is: a length that the frames may belie must never look so (RFC 9113
    /// section 8.1.1).
    fn is_withheld(&self) -> bool {
        !self.is_ended && self.coding == Coding::Length(0)
    }

    /// The next piece.
    pub(super) fn piece(&mut self, spare: &mut Spare) -> Piece<'_> {
        let has_data = !self.unread_data().is_empty();
        if !self.unread_text().is_empty() {
            if self.is_withheld() && !has_data {
                return Piece::Wait;
            }
            return Piece::Bytes(self.unread_text());
        }
        if self.coding == Coding::Chunked {
            return self.chunk(spare);
        }
        let len = self.unread_data().len() - usize::from(has_data && self.is_withheld());
        if len > 0 {
            return Piece::Bytes(&self.unread_data()[..len]);
        }
        if self.is_ended && self.has_head { Piece::End } else { Piece::Wait }
    }

    fn chunk(&mut self, spare: &mut Spare) -> Piece<'_> {
        if self.chunk_left > 0 {
            return Piece::Bytes(&self.unread_data()[..self.chunk_left as usize]);
        }
        let len = self.unread_data().len();
        let goes_on = len > 0 || self.is_ended && !self.is_last_chunk_written;
        // What is there behind a chunk goes with its end.
        if self.chunk_end_left > 0 && !(goes_on && usize::from(self.chunk_end_left) == CHUNK_END.len()) {
            return Piece::Bytes(&CHUNK_END[CHUNK_END.len() - usize::from(self.chunk_end_left)..]);
        }
        if len == 0 && !self.is_ended {
            return Piece::Wait;
        }
        if len == 0 && self.is_last_chunk_written {
            return Piece::End;
        }
        spare.lend(&mut self.text);
        if std::mem::take(&mut self.chunk_end_left) > 0 {
            self.text.extend_from_slice(CHUNK_END);
        }
        if len > 0 {
            // However many frames it came in.
            self.text.extend_from_slice(chunk_header(len as u64).as_bytes());
            (self.chunk_left, self.chunk_end_left) = (len as u32, CHUNK_END.len() as u8);
        } else {
            self.is_last_chunk_written = true;
            match self.trailers.take() {
                None => self.text.extend_from_slice(LAST_CHUNK),
                Some(mut trailers) => {
                    self.text.extend_from_slice(LAST_CHUNK_BEFORE_TRAILERS);
                    self.text.append(&mut trailers);
                    self.text.extend_from_slice(CHUNK_END);
                }
            }
        }
        Piece::Bytes(&self.text)
    }

    /// Takes so many bytes of the piece away: how many of them were data.
    pub(super) fn consume(&mut self, count: usize, spare: &mut Spare) -> usize {
        if !self.unread_text().is_empty() {
            self.text_read += count as u32;
            if self.unread_text().is_empty() {
                self.text_read = 0;
                spare.take(&mut self.text);
            }
            return 0;
        }
        if self.chunk_left == 0 && self.chunk_end_left > 0 {
            self.chunk_end_left -= count as u8;
            return 0;
        }
        self.chunk_left = self.chunk_left.saturating_sub(count as u32);
        self.data_read += count as u32;
        if self.unread_data().is_empty() {
            self.data_read = 0;
            spare.take(&mut self.data);
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads what is there, so many bytes of each piece at most.
    fn read(inbox: &mut Inbox, spare: &mut Spare, at_most: usize, text: &mut Vec<u8>) -> bool {
        loop {
            let count = match inbox.piece(spare) {
                Piece::Bytes(bytes) => {
                    let bytes = &bytes[..bytes.len().min(at_most)];
                    text.extend_from_slice(bytes);
                    bytes.len()
                }
                Piece::Wait => return false,
                Piece::End => return true,
            };
            inbox.consume(count, spare);
        }
    }

    #[test]
    fn chunks_are_whole_in_whatever_pieces_they_are_read_and_whenever_more_comes() {
        // How much is read, what is only looked at, or not even that, before more comes.
        for at_most in [1, 2, 3, 100] {
            for steps in 0..40 {
                for has_trailers in [false, true] {
                    let mut spare = Spare::new(2);
                    let mut inbox = Inbox { coding: Coding::Chunked, has_head: true, ..Inbox::default() };
                    let mut text = Vec::new();
                    inbox.push(b"abc", &mut spare);
                    for _ in 0..steps {
                        let Piece::Bytes(bytes) = inbox.piece(&mut spare) else { break };
                        let bytes = &bytes[..bytes.len().min(at_most)];
                        text.extend_from_slice(bytes);
                        let count = bytes.len();
                        inbox.consume(count, &mut spare);
                    }
                    // Somebody looks.
                    let _ = inbox.piece(&mut spare);
                    inbox.push(b"defgh", &mut spare);
                    let _ = inbox.piece(&mut spare);
                    if has_trailers {
                        inbox.trailers_mut().extend_from_slice(b"a: b\r\n");
                    }
                    inbox.is_ended = true;
                    assert!(read(&mut inbox, &mut spare, at_most, &mut text));
                    let trailers = if has_trailers { "a: b\r\n" } else { "" };
                    let chunks = ["3\r\nabc\r\n5\r\ndefgh\r\n0\r\n", "8\r\nabcdefgh\r\n0\r\n"];
                    let expected = chunks.map(|chunks| format!("{chunks}{trailers}\r\n"));
                    let text = String::from_utf8(text).expect("ASCII");
                    assert!(expected.contains(&text), "{at_most} bytes, {steps} steps: {text:?}");
                }
            }
        }
    }
}
