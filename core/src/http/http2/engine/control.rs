//! What the other side says about the connection, or about a stream as a whole (RFC 9113 section 6).

use super::super::code::{Code, ConnectionError, Fault};
use super::super::frame::{self, FrameHeader, STREAM_MAX, WINDOW_MAX, flag, kind};
use super::receive::Received;
use super::streams::Sending;
use super::*;
use crate::limits::HTTP2_PREMATURE_RESETS_MAX;

impl<T: Wake + Default> Engine<T> {
    pub(super) fn settings(&mut self, header: FrameHeader, payload: &[u8], out: &mut Vec<u8>) -> Received<()> {
        if header.has(flag::ACK) {
            return match payload {
                [] => self.useless(),
                _ => Err(ConnectionError::new(Code::FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS with a payload")),
            };
        }
        if !payload.len().is_multiple_of(6) {
            return Err(ConnectionError::new(Code::FRAME_SIZE_ERROR, "SETTINGS whose length is no multiple of 6"));
        }
        let before = self.wishes.initial_window;
        self.wishes.update(payload, self.role == Role::Client)?;
        self.has_settings = true;
        let grown = i64::from(self.wishes.initial_window) - i64::from(before);
        if grown != 0 {
            for stream in self.streams.iter_mut() {
                stream.send_window += grown;
                if stream.send_window > i64::from(WINDOW_MAX) {
                    return Err(ConnectionError::new(Code::FLOW_CONTROL_ERROR, "SETTINGS that make a window overflow"));
                }
                stream.waiter.wake();
            }
        }
        FrameHeader { len: 0, kind: kind::SETTINGS, flags: flag::ACK, stream: 0 }.write(out);
        self.useless()
    }

    pub(super) fn window_update(&mut self, header: FrameHeader, payload: &[u8], out: &mut Vec<u8>) -> Received<()> {
        if payload.len() != 4 {
            return Err(ConnectionError::new(Code::FRAME_SIZE_ERROR, "a WINDOW_UPDATE frame that is not of 4 bytes"));
        }
        let increment = frame::number(payload) & WINDOW_MAX;
        if header.stream == 0 {
            if increment == 0 {
                return Err(ConnectionError::protocol("WINDOW_UPDATE by nothing"));
            }
            self.send_window += i64::from(increment);
            if self.send_window > i64::from(WINDOW_MAX) {
                let reason = "WINDOW_UPDATE that makes the window of the connection overflow";
                return Err(ConnectionError::new(Code::FLOW_CONTROL_ERROR, reason));
            }
            self.wake_queued(usize::MAX);
            return self.updated();
        }
        let Some(key) = self.streams.find(header.stream) else {
            if self.is_unopened(header.stream) {
                return Err(ConnectionError::protocol("WINDOW_UPDATE on a stream that nobody has opened"));
            }
            return self.updated();
        };
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        if stream.fault.is_some() {
            return self.updated();
        }
        if increment == 0 {
            return self.break_stream(key, Code::PROTOCOL_ERROR, Malformed::BadWindowUpdate, out);
        }
        stream.send_window += i64::from(increment);
        if stream.send_window > i64::from(WINDOW_MAX) {
            return self.break_stream(key, Code::FLOW_CONTROL_ERROR, Malformed::BadWindowUpdate, out);
        }
        if stream.send_window > 0 {
            stream.waiter.wake();
        }
        self.updated()
    }

    /// A WINDOW_UPDATE was taken in.
    pub(super) fn updated(&mut self) -> Received<()> {
        match self.updates_due.checked_sub(1) {
            Some(left) => self.updates_due = left,
            None => return self.weigh(1),
        }
        Ok(())
    }

    pub(super) fn reset_by_peer(&mut self, header: FrameHeader, payload: &[u8], out: &mut Vec<u8>) -> Received<()> {
        if payload.len() != 4 {
            return Err(ConnectionError::new(Code::FRAME_SIZE_ERROR, "a RST_STREAM frame that is not of 4 bytes"));
        }
        let Some(key) = self.streams.find(header.stream) else {
            if self.is_unopened(header.stream) {
                return Err(ConnectionError::protocol("RST_STREAM on a stream that nobody has opened"));
            }
            return self.useless();
        };
        let Some((stream, spare)) = self.streams.with_spare(key) else { return Ok(()) };
        if stream.fault.is_some() {
            return self.useless();
        }
        let (was_over, is_premature) = (
            stream.is_over(),
            // One that has waited long in vain is no attack: its server is slow.
            stream.sending == Sending::Head && self.age == stream.opened_at,
        );
        stream.sending = Sending::Ended;
        // A server that has said all may say that it needs no more of the request (RFC 9113 section 8.1): nothing is lost by that.
        let is_harmless = self.role == Role::Client && stream.inbox.is_ended;
        let mut unread = 0;
        if !is_harmless {
            stream.fault = Some(Fault::Reset(Code(frame::number(payload))));
            if self.role == Role::Server {
                unread = stream.inbox.discard(spare) as u32;
                // What is gone was not read: it must not look as if it had been all.
                stream.inbox.is_ended = false;
            }
        }
        stream.waiter.wake();
        self.settle(was_over, key);
        self.give_back(unread, out);
        if self.role == Role::Server && is_premature {
            self.premature_resets += 1;
            if self.premature_resets > HTTP2_PREMATURE_RESETS_MAX && self.premature_resets > self.opened / 2 {
                return Err(ConnectionError::new(
                    Code::ENHANCE_YOUR_CALM,
                    "too many requests that are taken back at once",
                ));
            }
        }
        Ok(())
    }

    pub(super) fn pinged(&mut self, header: FrameHeader, payload: &[u8], out: &mut Vec<u8>) -> Received<()> {
        let Ok(payload) = payload.try_into() else {
            return Err(ConnectionError::new(Code::FRAME_SIZE_ERROR, "a PING frame that is not of 8 bytes"));
        };
        if !header.has(flag::ACK) {
            frame::write_ping(out, flag::ACK, payload);
            return self.useless();
        }
        self.has_pong |= payload == ALIVE;
        if payload == LEAVING && self.leaving == Leaving::Announced {
            self.leaving = Leaving::Final;
            frame::write_goaway(out, self.last_id, Code::NO_ERROR, "");
        }
        self.useless()
    }

    pub(super) fn goaway(&mut self, payload: &[u8]) -> Received<()> {
        if payload.len() < 8 {
            return Err(ConnectionError::new(Code::FRAME_SIZE_ERROR, "a GOAWAY frame of less than 8 bytes"));
        }
        let last = frame::number(payload) & STREAM_MAX;
        if self.last_processed.is_some_and(|before| last > before) {
            return Err(ConnectionError::protocol("GOAWAY that takes back what an earlier one has said"));
        }
        self.last_processed = Some(last);
        if self.role == Role::Server {
            return self.useless();
        }
        for stream in self.streams.iter_mut().filter(|stream| stream.id > last) {
            if stream.fault.is_none() {
                self.active = self.active.saturating_sub(usize::from(!stream.is_over()));
                stream.fault = Some(Fault::Unprocessed);
                stream.sending = Sending::Ended;
            }
            stream.waiter.wake();
        }
        self.useless()
    }

    /// An error of the other side that ends a stream (RFC 9113 section 5.4.2).
    pub(super) fn break_stream(
        &mut self,
        key: StreamKey,
        code: Code,
        malformed: Malformed,
        out: &mut Vec<u8>,
    ) -> Received<()> {
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        let was_over = stream.is_over();
        stream.fault = Some(Fault::Broken(code, malformed));
        stream.sending = Sending::Ended;
        stream.waiter.wake();
        self.settle(was_over, key);
        self.events.push_back(Event::Malformed(malformed));
        self.reset_bad(key.id, code, out)
    }

    /// Resets a stream on account of the other side: an honest one makes hardly any such errors (CVE-2025-8671). A server's end the
    /// streams that they are about, not those of others.
    pub(super) fn reset_bad(&mut self, id: u32, code: Code, out: &mut Vec<u8>) -> Received<()> {
        frame::write_number(out, kind::RST_STREAM, id, code.0);
        self.forget(id);
        self.local_resets += 1;
        if self.role == Role::Server && self.local_resets > HTTP2_LOCAL_RESETS_MAX {
            return Err(ConnectionError::new(Code::ENHANCE_YOUR_CALM, "too many streams that had to be reset"));
        }
        Ok(())
    }

    /// Remembers that we have reset a stream: late frames of it are no error.
    pub(super) fn forget(&mut self, id: u32) {
        if self.role == Role::Client {
            return;
        }
        if self.resets.len() >= HTTP2_RESETS_REMEMBERED_MAX {
            self.resets.pop_front();
        }
        self.resets.push_back(id);
    }
}
