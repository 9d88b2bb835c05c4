//! Bytes become frames (RFC 9113 section 4).

use super::super::code::{Code, ConnectionError};
use super::super::frame::{self, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FrameHeader, STREAM_MAX, flag, kind};
use super::*;
use crate::limits::{
    HTTP2_FRAMES_IN_A_ROW_MAX, HTTP2_HEADER_BLOCK_BYTES_MAX, HTTP2_HEADER_FRAMES_MAX, HTTP2_REQUESTS_IN_A_ROW_MAX,
    HTTP2_UNWRITTEN_BYTES_MAX,
};

/// What has come, or why it ends the connection.
pub(super) type Received<T> = Result<T, ConnectionError>;

impl<T: Wake + Default> Engine<T> {
    /// Takes bytes in, as far as `out` has room for what they ask for: how many. The rest is to be handed over again once
    /// `out` was written, or, if there are many frames, when others had their turn.
    ///
    /// # Errors
    /// The other side breaks the protocol: see [`fail`](Self::fail).
    pub fn receive(&mut self, bytes: &[u8], scratch: &mut Scratch, out: &mut Vec<u8>) -> Received<usize> {
        let (mut at, mut left) = (0, HTTP2_FRAMES_IN_A_ROW_MAX);
        while at < bytes.len() && out.len() < HTTP2_UNWRITTEN_BYTES_MAX && left > 0 {
            let opened = self.opened;
            at += self.step(&bytes[at..], scratch, out)?;
            left = left.saturating_sub(match self.reading {
                _ if self.opened > opened => HTTP2_FRAMES_IN_A_ROW_MAX / HTTP2_REQUESTS_IN_A_ROW_MAX,
                Reading::Frame => 1,
                _ => 0,
            });
        }
        Ok(at)
    }

    fn step(&mut self, bytes: &[u8], scratch: &mut Scratch, out: &mut Vec<u8>) -> Received<usize> {
        match self.reading {
            Reading::Preface(done) => {
                let rest = &PREFACE[done..];
                let len = rest.len().min(bytes.len());
                if bytes[..len] != rest[..len] {
                    return Err(ConnectionError::protocol("not the preface of HTTP/2"));
                }
                self.reading = if len == rest.len() { Reading::Frame } else { Reading::Preface(done + len) };
                Ok(len)
            }
            Reading::Frame => self.frame(bytes, scratch, out),
            Reading::Padded { stream, len, ends } => {
                let padding = usize::from(bytes[0]);
                let Some(data) = (len - 1).checked_sub(padding) else {
                    return Err(ConnectionError::protocol("padding that is longer than its DATA frame"));
                };
                self.begin_data(stream, (data, padding, padding + 1), ends, out)?;
                Ok(1)
            }
            Reading::Data { key, len, padding, ends } => Ok(self.data_part(key, (len, padding), ends, bytes, out)),
        }
    }

    /// A frame, if all of it has come.
    fn frame(&mut self, bytes: &[u8], scratch: &mut Scratch, out: &mut Vec<u8>) -> Received<usize> {
        if self.partial.is_empty()
            && let Some(first) = bytes.first_chunk()
        {
            let header = self.check(FrameHeader::read(first))?;
            if header.kind == kind::DATA {
                self.data_frame(header, out)?;
                return Ok(FRAME_HEADER_BYTES);
            }
            if let Some(payload) = bytes.get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + header.len) {
                self.whole(header, payload, scratch, out)?;
                return Ok(FRAME_HEADER_BYTES + header.len);
            }
        }
        let wanted = match self.partial.first_chunk() {
            None => FRAME_HEADER_BYTES,
            Some(first) => FRAME_HEADER_BYTES + FrameHeader::read(first).len,
        };
        let count = (wanted - self.partial.len()).min(bytes.len());
        self.partial.extend_from_slice(&bytes[..count]);
        if self.partial.len() < wanted {
            return Ok(count);
        }
        let Some(first) = self.partial.first_chunk() else { return Ok(count) };
        let header = FrameHeader::read(first);
        if wanted == FRAME_HEADER_BYTES {
            self.check(header)?;
        }
        if header.kind == kind::DATA {
            self.partial = Vec::new();
            self.data_frame(header, out)?;
        } else if self.partial.len() == FRAME_HEADER_BYTES + header.len {
            let frame = std::mem::take(&mut self.partial);
            self.whole(header, &frame[FRAME_HEADER_BYTES..], scratch, out)?;
        }
        Ok(count)
    }

    /// What can be said before the payload has come.
    fn check(&self, header: FrameHeader) -> Received<FrameHeader> {
        if !self.has_settings && (header.kind != kind::SETTINGS || header.has(flag::ACK)) {
            return Err(ConnectionError::protocol("the first frame is not SETTINGS"));
        }
        if header.len > FRAME_BYTES_MAX {
            return Err(ConnectionError::new(Code::FRAME_SIZE_ERROR, "a frame of more than 16384 bytes"));
        }
        let is_expected = match &self.block {
            Some(block) => header.kind == kind::CONTINUATION && header.stream == block.stream,
            None => header.kind != kind::CONTINUATION,
        };
        if !is_expected {
            return Err(ConnectionError::protocol(
                "CONTINUATION where there is nothing to continue, or something else where there is",
            ));
        }
        let needs_stream = match header.kind {
            kind::DATA | kind::HEADERS | kind::PRIORITY | kind::RST_STREAM | kind::CONTINUATION => Some(true),
            kind::SETTINGS | kind::PING | kind::GOAWAY => Some(false),
            _ => None,
        };
        if needs_stream.is_some_and(|needs| needs != (header.stream != 0)) {
            return Err(ConnectionError::protocol("a frame about a stream on the connection, or the reverse"));
        }
        Ok(header)
    }

    fn whole(&mut self, header: FrameHeader, payload: &[u8], scratch: &mut Scratch, out: &mut Vec<u8>) -> Received<()> {
        match header.kind {
            kind::HEADERS => {
                let (block, depends) = frame::strip(header, payload)?;
                if depends == Some(header.stream) {
                    return Err(ConnectionError::protocol("a stream that depends on itself"));
                }
                let ends = header.has(flag::END_STREAM);
                if header.has(flag::END_HEADERS) {
                    return self.block_of(header.stream, ends, block, scratch, out);
                }
                self.block = Some(Block { stream: header.stream, ends, frames: 1, bytes: block.to_vec() });
                Ok(())
            }
            kind::CONTINUATION => self.continuation(header, payload, scratch, out),
            kind::SETTINGS => self.settings(header, payload, out),
            kind::WINDOW_UPDATE => self.window_update(header, payload, out),
            kind::RST_STREAM => self.reset_by_peer(header, payload, out),
            kind::PING => self.pinged(header, payload, out),
            kind::GOAWAY => self.goaway(payload),
            kind::PUSH_PROMISE => Err(ConnectionError::protocol("PUSH_PROMISE, which nobody may send here")),
            kind::PRIORITY if header.len != 5 => {
                Err(ConnectionError::new(Code::FRAME_SIZE_ERROR, "a PRIORITY frame that is not of 5 bytes"))
            }
            kind::PRIORITY if frame::number(payload) & STREAM_MAX == header.stream => {
                Err(ConnectionError::protocol("a stream that depends on itself"))
            }
            // Priorities are ignored, and so is what is not known (RFC 9113 section 4.1).
            _ => self.useless(),
        }
    }

    /// A frame that is of no use: none is wrong, but there are only so many.
    pub(super) fn useless(&mut self) -> Received<()> {
        self.weigh(HTTP2_UPDATES_FOR_A_USELESS_FRAME)
    }

    /// A frame of no use that weighs as much as so many WINDOW_UPDATEs.
    pub(super) fn weigh(&mut self, updates: u32) -> Received<()> {
        self.useless_updates += updates;
        if self.useless_updates > HTTP2_USELESS_FRAMES_MAX * HTTP2_UPDATES_FOR_A_USELESS_FRAME {
            return Err(ConnectionError::new(Code::ENHANCE_YOUR_CALM, "too many frames that mean nothing"));
        }
        Ok(())
    }

    /// One that is.
    pub(super) fn useful(&mut self) {
        self.useless_updates = self.useless_updates.saturating_sub(2 * HTTP2_UPDATES_FOR_A_USELESS_FRAME);
    }

    fn continuation(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> Received<()> {
        let Some(block) = &mut self.block else { return Ok(()) };
        block.bytes.extend_from_slice(payload);
        block.frames += 1;
        if block.bytes.len() > HTTP2_HEADER_BLOCK_BYTES_MAX || block.frames > HTTP2_HEADER_FRAMES_MAX {
            return Err(ConnectionError::new(Code::ENHANCE_YOUR_CALM, "a header section without an end"));
        }
        if header.has(flag::END_HEADERS)
            && let Some(block) = self.block.take()
        {
            return self.block_of(block.stream, block.ends, &block.bytes, scratch, out);
        }
        Ok(())
    }
}
