//! What we send.

use super::super::super::kind::is_token;
use super::super::code::{Code, Fault};
use super::super::frame::{self, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FrameHeader, flag, kind};
use super::super::hpack;
use super::streams::Sending;
use super::*;
use crate::limits::HTTP2_DRIBBLE_BYTES;

impl<T: Wake + Default> Engine<T> {
    /// Opens a stream with a request. `encode` appends its fields with [`hpack::encode`]; `ends`: nothing follows. `method`: of the
    /// request as text.
    ///
    /// # Errors
    /// [`Fault::Unprocessed`]: nothing was sent.
    pub fn open(
        &mut self,
        waiter: T,
        method: Method,
        tunnel: Option<Box<Tunnel>>,
        ends: bool,
        out: &mut Vec<u8>,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<StreamKey, Fault> {
        if !self.is_open() || self.active >= self.wishes.max_concurrent_streams as usize {
            return Err(Fault::Unprocessed);
        }
        let id = self.next_id;
        self.next_id += 2;
        let key = self.streams.insert(id, waiter, i64::from(self.wishes.initial_window), HTTP2_STREAM_WINDOW_BYTES);
        if let Some(stream) = self.streams.get_mut(key) {
            stream.method = Some(method);
            stream.tunnel = tunnel;
            stream.sending = if ends { Sending::Ended } else { Sending::Body };
        }
        self.active += 1;
        self.write_section(id, ends, out, encode);
        self.useful();
        Ok(key)
    }

    /// Sends a head of a response, or trailers. `is_final`: it is no interim response.
    pub fn section(
        &mut self,
        key: StreamKey,
        is_final: bool,
        ends: bool,
        out: &mut Vec<u8>,
        encode: impl FnOnce(&mut Vec<u8>),
    ) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.sending == Sending::Ended || self.failed.is_some() {
            return;
        }
        let was_over = stream.is_over();
        if ends {
            stream.sending = Sending::Ended;
        } else if is_final {
            stream.sending = Sending::Body;
        }
        self.settle(was_over, key);
        self.write_section(key.id, ends, out, encode);
    }

    fn write_section(&mut self, id: u32, ends: bool, out: &mut Vec<u8>, encode: impl FnOnce(&mut Vec<u8>)) {
        let at = out.len();
        out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
        if std::mem::take(&mut self.wishes.must_tell_table) {
            hpack::encode_size_update(out, 0);
        }
        encode(out);
        let len = out.len() - at - FRAME_HEADER_BYTES;
        let ends = if ends { flag::END_STREAM } else { 0 };
        if len <= FRAME_BYTES_MAX {
            let header = FrameHeader { len, kind: kind::HEADERS, flags: ends | flag::END_HEADERS, stream: id };
            out[at..at + FRAME_HEADER_BYTES].copy_from_slice(&header.bytes());
            return;
        }
        let block = out.split_off(at + FRAME_HEADER_BYTES);
        out.truncate(at);
        let (mut kind, mut flags) = (kind::HEADERS, ends);
        let mut parts = block.chunks(FRAME_BYTES_MAX).peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                flags |= flag::END_HEADERS;
            }
            FrameHeader { len: part.len(), kind, flags, stream: id }.write(out);
            out.extend_from_slice(part);
            (kind, flags) = (kind::CONTINUATION, 0);
        }
    }

    /// How much data can be sent on a stream. One that has to wait for the connection is woken in its turn.
    pub fn room(&mut self, key: StreamKey, out: &[u8]) -> Room {
        let Some(stream) = self.streams.get_mut(key) else { return Room::Gone };
        if stream.sending == Sending::Ended || self.failed.is_some() {
            return Room::Gone;
        }
        stream.waits_with_head = false;
        let window = stream.send_window.min(self.send_window);
        let room = BUFFER_BYTES.saturating_sub(out.len() + FRAME_HEADER_BYTES);
        // Smaller pieces would cost more than they carry.
        if window > 0 && room >= ROOM_BYTES_MIN {
            let len = (window as usize).min(room).min(self.wishes.max_frame);
            return Room::Bytes(len);
        }
        if window <= 0 && self.has_ended {
            // Nobody will widen it.
            let was_over = stream.is_over();
            (stream.fault, stream.sending) = (Some(Fault::Lost), Sending::Ended);
            self.settle(was_over, key);
            return Room::Gone;
        }
        if stream.send_window > 0 && !stream.is_queued {
            stream.is_queued = true;
            self.streams.queue.push_back(key);
        }
        Room::Wait
    }

    /// How much the other side takes on a stream, in bytes, as far as it has said.
    #[must_use]
    pub fn window(&self, key: StreamKey) -> usize {
        let window = self.streams.get(key).map_or(0, |stream| stream.send_window.min(self.send_window));
        usize::try_from(window).unwrap_or(0)
    }

    /// Whether a head can be sent: as [`room`](Self::room), but windows do not matter.
    pub fn head_room(&mut self, key: StreamKey, out: &[u8]) -> bool {
        if out.len() < BUFFER_BYTES || self.failed.is_some() {
            return true;
        }
        if let Some(stream) = self.streams.get_mut(key) {
            stream.waits_with_head = true;
            if !std::mem::replace(&mut stream.is_queued, true) {
                self.streams.queue.push_back(key);
            }
        }
        false
    }

    /// Sends data, at most as much as [`room`](Self::room) has said. `ends`: it is the last. None needs no room.
    pub fn data(&mut self, key: StreamKey, data: &[u8], ends: bool, out: &mut Vec<u8>) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.sending == Sending::Ended || self.failed.is_some() {
            return;
        }
        debug_assert!(data.is_empty() || data.len() as i64 <= stream.send_window.min(self.send_window));
        let was_over = stream.is_over();
        stream.send_window -= data.len() as i64;
        self.send_window -= data.len() as i64;
        // What it has let through so is no use that would make up for its WINDOW_UPDATE (CVE-2019-9511).
        let is_dribble = !ends
            && (1..HTTP2_DRIBBLE_BYTES).contains(&data.len())
            && stream.send_window.min(self.send_window) == 0
            && self.role == Role::Server;
        if ends {
            stream.sending = Sending::Ended;
        }
        let flags = if ends { flag::END_STREAM } else { 0 };
        FrameHeader { len: data.len(), kind: kind::DATA, flags, stream: key.id }.write(out);
        out.extend_from_slice(data);
        self.settle(was_over, key);
        if is_dribble {
            return;
        }
        // Go refreshes both windows with each read, and its buffered readers read 4 KiB.
        self.updates_due = (self.updates_due + 2 + data.len() as u32 / UPDATED_BYTES).min(UPDATES_DUE_MAX);
        self.useful();
    }

    /// What was in `out` is on its way, or `out` was empty: lets some of those go on that wait for room.
    pub fn wake_queued(&mut self, count: usize) {
        let (has_window, mut woken) = (self.send_window > 0, 0);
        // Each at most once: who has to wait for the window goes back.
        for _ in 0..self.streams.queue.len() {
            if woken == count {
                return;
            }
            let Some(key) = self.streams.queue.pop_front() else { return };
            let Some(stream) = self.streams.get_mut(key) else { continue };
            // Heads need no window (RFC 9113 section 6.9).
            if has_window || stream.waits_with_head {
                stream.is_queued = false;
                stream.waiter.wake();
                woken += 1;
            } else {
                self.streams.queue.push_back(key);
            }
        }
    }

    /// Whether somebody waits for room on the connection.
    #[must_use]
    pub fn has_queued(&self) -> bool {
        !self.streams.queue.is_empty()
    }

    /// Ends a stream at once.
    pub fn reset(&mut self, key: StreamKey, code: Code, out: &mut Vec<u8>) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.is_over() || self.failed.is_some() {
            return;
        }
        stream.sending = Sending::Ended;
        stream.fault = Some(Fault::Given(code));
        self.settle(false, key);
        self.forget(key.id);
        frame::write_number(out, kind::RST_STREAM, key.id, code.0);
    }

    /// Nobody has the stream any more. One that is not done is reset.
    pub fn release(&mut self, key: StreamKey, out: &mut Vec<u8>) {
        let Some((stream, spare)) = self.streams.with_spare(key) else { return };
        let code = match (self.role, stream.sending) {
            // All is said: no more of the request is needed (RFC 9113 section 8.1).
            (Role::Server, Sending::Ended) => Code::NO_ERROR,
            (Role::Server, _) => Code::INTERNAL_ERROR,
            (Role::Client, _) => Code::CANCEL,
        };
        let unread = stream.inbox.discard(spare) as u32;
        self.reset(key, code, out);
        self.streams.remove(key, &mut self.waiting_bytes);
        self.give_back(unread, out);
    }

    /// Ends a connection that nobody needs any more.
    pub fn close(&mut self, out: &mut Vec<u8>) {
        if self.failed.is_none() {
            if self.leaving != Leaving::Final {
                frame::write_goaway(out, self.last_id, Code::NO_ERROR, "");
            }
            self.lose();
        }
    }
}

/// Appends a field whose name may have capital letters; what must be kept out of tables is (RFC 7541 section 7.1.3).
pub fn encode_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    debug_assert!(is_token(name));
    let mut lower = [0; LOWER_BYTES];
    match lower.get_mut(..name.len()) {
        Some(start) => {
            start.copy_from_slice(name);
            // All of it, whatever the name's length: that is a few instructions, and a loop over a name is many.
            lower.make_ascii_lowercase();
            let lower = &lower[..name.len()];
            hpack::encode(out, lower, value, !may_be_known(lower));
        }
        None if !name.iter().any(u8::is_ascii_uppercase) => hpack::encode(out, name, value, !may_be_known(name)),
        None => {
            let lower = name.to_ascii_lowercase();
            hpack::encode(out, &lower, value, !may_be_known(&lower));
        }
    }
}

/// So many bytes that we have sent may be acknowledged by one WINDOW_UPDATE.
const UPDATED_BYTES: u32 = 512;
/// As many as all streams of an upstream may owe us.
const UPDATES_DUE_MAX: u32 = 100_000;
/// Room that is worth a frame, in bytes.
const ROOM_BYTES_MIN: usize = 256;
/// Names of this length are made small without memory of their own.
const LOWER_BYTES: usize = 32;

/// Whether a field may go into a table of compression, of whoever comes next. What the other hop has sent as never to be indexed must
/// stay so (RFC 7541 section 7.1.3), which the text does not tell: so it is said of all but those that are no secret anywhere.
fn may_be_known(name: &[u8]) -> bool {
    matches!(
        name,
        b"accept"
            | b"accept-encoding"
            | b"accept-language"
            | b"cache-control"
            | b"content-encoding"
            | b"content-length"
            | b"content-type"
            | b"date"
            | b"forwarded"
            | b"grpc-accept-encoding"
            | b"grpc-encoding"
            | b"grpc-status"
            | b"grpc-timeout"
            | b"server"
            | b"te"
            | b"trailer"
            | b"user-agent"
            | b"vary"
            | b"via"
            | b"x-forwarded-for"
            | b"x-forwarded-host"
            | b"x-forwarded-port"
            | b"x-forwarded-proto"
            | b"x-request-id"
    )
}
