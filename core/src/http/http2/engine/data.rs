//! Data of the other side (RFC 9113 section 6.1).

use super::super::code::{Code, ConnectionError, Fault};
use super::super::frame::{FrameHeader, flag};
use super::inbox::Coding;
use super::receive::Received;
use super::*;

/// Why a stream is to be reset; `None`: it has its end already.
type Judged = Result<(), Option<(Code, Malformed)>>;

impl<T: Wake + Default> Engine<T> {
    pub(super) fn data_frame(&mut self, header: FrameHeader, out: &mut Vec<u8>) -> Received<()> {
        let len = header.len as u32;
        self.receive_window = self.receive_window.checked_sub(len).ok_or(ConnectionError::new(
            Code::FLOW_CONTROL_ERROR,
            "more DATA than the window of the connection allows",
        ))?;
        let ends = header.has(flag::END_STREAM);
        if !header.has(flag::PADDED) {
            return self.begin_data(header.stream, (header.len, 0, 0), ends, out);
        }
        if header.len == 0 {
            return Err(ConnectionError::new(Code::FRAME_SIZE_ERROR, "a padded DATA frame without the length of it"));
        }
        self.reading = Reading::Padded { stream: header.stream, len: header.len, ends };
        Ok(())
    }

    /// The payload of a DATA frame is next: so many bytes of data, then of padding. `overhead`: bytes of flow control that nobody
    /// will read.
    pub(super) fn begin_data(
        &mut self,
        id: u32,
        (len, padding, overhead): (usize, usize, usize),
        ends: bool,
        out: &mut Vec<u8>,
    ) -> Received<()> {
        if len == 0 && !ends {
            self.useless()?;
        } else {
            self.useful();
        }
        let key = match self.streams.find(id) {
            None => {
                self.closed(id, "DATA on a stream that is closed")?;
                None
            }
            Some(key) => match self.judge_data(key, len, overhead, ends)? {
                Ok(()) if len > 0 && self.is_too_much(key) => {
                    self.let_go(key, out);
                    None
                }
                Ok(()) => Some(key),
                Err(Some((code, malformed))) => {
                    self.break_stream(key, code, malformed, out)?;
                    None
                }
                Err(None) => None,
            },
        };
        self.give_back(overhead as u32, out);
        if let Some(key) = key.filter(|_| overhead > 0) {
            self.renew(key, out);
        }
        self.reading = Reading::Data { key, len, padding, ends };
        if len + padding == 0 {
            self.data_part(key, (0, 0), ends, b"", out);
        }
        Ok(())
    }

    /// Whether more may not be kept for a request.
    fn is_too_much(&self, key: StreamKey) -> bool {
        let has_unread = || self.streams.get(key).is_some_and(|stream| stream.inbox.has_data());
        self.is_crowded && self.role == Role::Server && has_unread()
    }

    /// Ends a request for want of memory. What has come of it is for nobody.
    fn let_go(&mut self, key: StreamKey, out: &mut Vec<u8>) {
        let Some((stream, spare)) = self.streams.with_spare(key) else { return };
        let unread = stream.inbox.discard(spare) as u32;
        stream.count(&mut self.waiting_bytes);
        stream.waiter.wake();
        self.reset(key, Code::ENHANCE_YOUR_CALM, out);
        self.give_back(unread, out);
        self.events.push_back(Event::Crowded);
    }

    /// Whether data may come on a stream, and if not, why the stream is to be reset, unless it has its end already.
    pub(super) fn judge_data(&mut self, key: StreamKey, len: usize, overhead: usize, ends: bool) -> Received<Judged> {
        let Some(stream) = self.streams.get_mut(key) else { return Ok(Err(None)) };
        match stream.fault {
            Some(Fault::Reset(_)) => {
                return Err(ConnectionError::new(Code::STREAM_CLOSED, "DATA behind RST_STREAM"));
            }
            Some(_) => return Ok(Err(None)),
            None => {}
        }
        if stream.inbox.is_ended {
            return Ok(Err(Some((Code::STREAM_CLOSED, Malformed::BehindEnd))));
        }
        if !stream.inbox.has_head {
            return Ok(Err(Some((Code::PROTOCOL_ERROR, Malformed::DataBeforeHead))));
        }
        let Some(window) = stream.receive_window.checked_sub((len + overhead) as u32) else {
            return Ok(Err(Some((Code::FLOW_CONTROL_ERROR, Malformed::WindowExceeded))));
        };
        stream.receive_window = window;
        stream.credit += overhead as u32;
        let counted = announced(&mut stream.inbox.coding, len as u64, ends);
        Ok(counted.map_err(|malformed| Some((Code::PROTOCOL_ERROR, malformed))))
    }

    /// What has come of a payload: how many bytes.
    pub(super) fn data_part(
        &mut self,
        key: Option<StreamKey>,
        (len, padding): (usize, usize),
        ends: bool,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> usize {
        let count = len.min(bytes.len());
        let skipped = padding.min(bytes.len() - count);
        let stream = key.and_then(|key| self.streams.with_spare(key).map(|stream| (key, stream)));
        let is_last = count == len;
        match stream {
            Some((key, (stream, spare))) if stream.fault.is_none() => {
                let was_over = stream.is_over();
                stream.inbox.push(&bytes[..count], spare);
                // Padding tells nobody anything.
                let is_done = is_last && ends && !stream.inbox.is_ended;
                stream.inbox.is_ended |= is_last && ends;
                if count > 0 || is_done {
                    stream.count(&mut self.waiting_bytes);
                    stream.waiter.wake();
                }
                self.settle(was_over, key);
            }
            // Nobody reads it.
            _ => self.give_back(count as u32, out),
        }
        self.reading = if is_last && skipped == padding {
            Reading::Frame
        } else {
            Reading::Data { key, len: len - count, padding: padding - skipped, ends }
        };
        count + skipped
    }
}

/// Counts data against the length that was announced (RFC 9113 section 8.1.1).
fn announced(coding: &mut Coding, len: u64, ends: bool) -> Result<(), Malformed> {
    let wrong = Malformed::LengthMismatch;
    match coding {
        Coding::Length(left) => {
            *left = left.checked_sub(len).ok_or(wrong)?;
            if ends && *left > 0 { Err(wrong) } else { Ok(()) }
        }
        Coding::None if len > 0 => Err(Malformed::UnannouncedData),
        _ => Ok(()),
    }
}
