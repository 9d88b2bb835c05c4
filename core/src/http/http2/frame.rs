//! Frames (RFC 9113 sections 4.1 and 6): their headers, what is in SETTINGS, and how ours are written.

use super::code::{Code, ConnectionError};

/// Bytes of a frame's header.
pub(super) const FRAME_HEADER_BYTES: usize = 9;
/// Largest payload that may be sent to one who has not allowed more, and the largest that we take, in bytes (RFC 9113 section
/// 6.5.2).
pub(super) const FRAME_BYTES_MAX: usize = 16_384;
/// The largest window (RFC 9113 section 6.9.1), in bytes.
pub(super) const WINDOW_MAX: u32 = 0x7fff_ffff;
/// The window before anybody has said anything, in bytes.
pub(super) const WINDOW_DEFAULT: u32 = 65_535;
/// The largest id of a stream.
pub(super) const STREAM_MAX: u32 = 0x7fff_ffff;

/// Types of frames that are known (RFC 9113 section 6).
pub(super) mod kind {
    pub(in super::super) const DATA: u8 = 0;
    pub(in super::super) const HEADERS: u8 = 1;
    pub(in super::super) const PRIORITY: u8 = 2;
    pub(in super::super) const RST_STREAM: u8 = 3;
    pub(in super::super) const SETTINGS: u8 = 4;
    pub(in super::super) const PUSH_PROMISE: u8 = 5;
    pub(in super::super) const PING: u8 = 6;
    pub(in super::super) const GOAWAY: u8 = 7;
    pub(in super::super) const WINDOW_UPDATE: u8 = 8;
    pub(in super::super) const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub(super) mod flag {
    pub(in super::super) const END_STREAM: u8 = 0x1;
    pub(in super::super) const ACK: u8 = 0x1;
    pub(in super::super) const END_HEADERS: u8 = 0x4;
    pub(in super::super) const PADDED: u8 = 0x8;
    pub(in super::super) const PRIORITY: u8 = 0x20;
}

/// Identifiers of settings (RFC 9113 section 6.5.2, RFC 8441 section 3).
pub(super) mod setting {
    pub(in super::super) const HEADER_TABLE_SIZE: u16 = 1;
    pub(in super::super) const ENABLE_PUSH: u16 = 2;
    pub(in super::super) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(in super::super) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(in super::super) const MAX_FRAME_SIZE: u16 = 5;
    pub(in super::super) const MAX_HEADER_LIST_SIZE: u16 = 6;
    pub(in super::super) const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// Bytes of the payload.
    pub(super) len: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    /// The reserved bit is left out.
    pub(super) stream: u32,
}

impl FrameHeader {
    pub(super) fn read(bytes: &[u8; FRAME_HEADER_BYTES]) -> Self {
        let [l1, l2, l3, kind, flags, s1, s2, s3, s4] = *bytes;
        Self {
            len: u32::from_be_bytes([0, l1, l2, l3]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([s1, s2, s3, s4]) & STREAM_MAX,
        }
    }

    pub(super) fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes());
    }

    pub(super) fn bytes(self) -> [u8; FRAME_HEADER_BYTES] {
        let [_, l1, l2, l3] = (self.len as u32).to_be_bytes();
        let [s1, s2, s3, s4] = self.stream.to_be_bytes();
        [l1, l2, l3, self.kind, self.flags, s1, s2, s3, s4]
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The first four bytes as a number; the caller has checked that they are there.
pub(super) fn number(payload: &[u8]) -> u32 {
    payload.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// Removes padding from the payload of a HEADERS frame, and its priority: what is left, and the stream that it depends on.
pub(super) fn strip(header: FrameHeader, payload: &[u8]) -> Result<(&[u8], Option<u32>), ConnectionError> {
    let too_short =
        ConnectionError::new(Code::FRAME_SIZE_ERROR, "a HEADERS frame that is too short for what it announces");
    let mut rest = payload;
    let mut padding = 0;
    if header.has(flag::PADDED) {
        let (&len, behind) = rest.split_first().ok_or(too_short)?;
        (padding, rest) = (usize::from(len), behind);
    }
    let mut depends = None;
    if header.has(flag::PRIORITY) {
        let (priority, behind) = rest.split_at_checked(5).ok_or(too_short)?;
        depends = Some(number(priority) & STREAM_MAX);
        rest = behind;
    }
    let len = rest.len().checked_sub(padding);
    let len = len.ok_or(ConnectionError::protocol("padding that is longer than its HEADERS frame"))?;
    Ok((&rest[..len], depends))
}

/// What the other side wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wishes {
    pub(super) max_concurrent_streams: u32,
    pub(super) initial_window: u32,
    pub(super) max_frame: usize,
    pub(super) takes_extended_connect: bool,
    /// It has lowered its table for field compression: the next block must say so (RFC 7541 section 4.2).
    pub(super) must_tell_table: bool,
}

impl Default for Wishes {
    fn default() -> Self {
        Self {
            // Unlimited until something else is said (RFC 9113 section 6.5.2); a hundred is what it should not be below.
            max_concurrent_streams: 100,
            initial_window: WINDOW_DEFAULT,
            max_frame: FRAME_BYTES_MAX,
            takes_extended_connect: false,
            must_tell_table: false,
        }
    }
}

impl Wishes {
    /// Takes the payload of a SETTINGS frame in, whose length is a multiple of six. `is_server`: whether the server has sent it.
    pub(super) fn update(&mut self, payload: &[u8], is_server: bool) -> Result<(), ConnectionError> {
        for entry in payload.chunks_exact(6) {
            let id = u16::from_be_bytes([entry[0], entry[1]]);
            let value = number(&entry[2..]);
            match id {
                // We keep no table; one that only grows needs no word.
                setting::HEADER_TABLE_SIZE => self.must_tell_table |= value < 4_096,
                setting::ENABLE_PUSH if value > 1 || is_server && value == 1 => {
                    return Err(ConnectionError::protocol("a value of SETTINGS_ENABLE_PUSH that is not allowed"));
                }
                setting::MAX_CONCURRENT_STREAMS => self.max_concurrent_streams = value,
                setting::INITIAL_WINDOW_SIZE if value > WINDOW_MAX => {
                    return Err(ConnectionError::new(
                        Code::FLOW_CONTROL_ERROR,
                        "a value of SETTINGS_INITIAL_WINDOW_SIZE above 2^31-1",
                    ));
                }
                setting::INITIAL_WINDOW_SIZE => self.initial_window = value,
                setting::MAX_FRAME_SIZE if !(16_384..=16_777_215).contains(&value) => {
                    return Err(ConnectionError::protocol("a value of SETTINGS_MAX_FRAME_SIZE that is not allowed"));
                }
                // Larger ones would only let one stream hold up the others for longer.
                setting::MAX_FRAME_SIZE => self.max_frame = FRAME_BYTES_MAX,
                setting::ENABLE_CONNECT_PROTOCOL if value > 1 || value == 0 && self.takes_extended_connect => {
                    return Err(ConnectionError::protocol(
                        "a value of SETTINGS_ENABLE_CONNECT_PROTOCOL that is not allowed",
                    ));
                }
                setting::ENABLE_CONNECT_PROTOCOL => self.takes_extended_connect = value == 1,
                // What it says about header lists is advice; unknown ones are to be ignored (RFC 9113 section 6.5.2).
                _ => {}
            }
        }
        Ok(())
    }
}

/// Appends a SETTINGS frame.
pub(super) fn write_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    FrameHeader { len: settings.len() * 6, kind: kind::SETTINGS, flags: 0, stream: 0 }.write(out);
    for (id, value) in settings {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Appends a frame whose payload is one number: RST_STREAM, WINDOW_UPDATE.
pub(super) fn write_number(out: &mut Vec<u8>, kind: u8, stream: u32, number: u32) {
    FrameHeader { len: 4, kind, flags: 0, stream }.write(out);
    out.extend_from_slice(&number.to_be_bytes());
}

/// Appends a PING frame, or the answer to one.
pub(super) fn write_ping(out: &mut Vec<u8>, flags: u8, payload: [u8; 8]) {
    FrameHeader { len: 8, kind: kind::PING, flags, stream: 0 }.write(out);
    out.extend_from_slice(&payload);
}

/// Appends a GOAWAY frame; `debug` is for people (RFC 9113 section 6.8).
pub(super) fn write_goaway(out: &mut Vec<u8>, last: u32, code: Code, debug: &str) {
    FrameHeader { len: 8 + debug.len(), kind: kind::GOAWAY, flags: 0, stream: 0 }.write(out);
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&code.0.to_be_bytes());
    out.extend_from_slice(debug.as_bytes());
}
