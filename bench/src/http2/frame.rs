//! Frames (RFC 9113, section 4 and 6).

use super::{ConnectionError, WINDOW_BYTES_DEFAULT};

/// Types of frames.
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PUSH_PROMISE: u8 = 5;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub(crate) mod flag {
    pub(crate) const ACK: u8 = 0x1;
    pub(crate) const END_STREAM: u8 = 0x1;
    pub(crate) const END_HEADERS: u8 = 0x4;
    pub(crate) const PADDED: u8 = 0x8;
    pub(crate) const PRIORITY: u8 = 0x20;
}

/// Length of the head of each frame.
pub(crate) const FRAME_HEAD_BYTES: usize = 9;

/// Longest payload unless a side allows more, as the bench does not (SETTINGS_MAX_FRAME_SIZE).
pub(crate) const FRAME_BYTES_MAX: usize = 16_384;

/// A whole frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The payload of DATA or HEADERS without padding and priority.
    pub(crate) fn content(&self) -> Result<&'a [u8], ConnectionError> {
        let wrong = ConnectionError::FrameSize(self.payload.len());
        let mut content = self.payload;
        if self.has(flag::PADDED) {
            let (&padding, rest) = content.split_first().ok_or(wrong)?;
            content = rest.get(..rest.len().wrapping_sub(padding.into())).ok_or(wrong)?;
        }
        if self.kind == kind::HEADERS && self.has(flag::PRIORITY) {
            content = content.get(5..).ok_or(wrong)?;
        }
        Ok(content)
    }

    /// The payload's number at `offset`.
    pub(crate) fn number(&self, offset: usize) -> Result<u32, ConnectionError> {
        let bytes = self.payload.get(offset..offset + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_be_bytes).ok_or(ConnectionError::FrameSize(self.payload.len()))
    }
}

/// Finds frames in bytes that come in pieces of any size. Whole frames are not copied.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    /// The beginning of a frame.
    kept: Vec<u8>,
}

impl FrameReader {
    /// Whether no beginning of a frame is kept.
    #[cfg(test)]
    pub(crate) fn is_between(&self) -> bool {
        self.kept.is_empty()
    }

    /// Calls `on_frame` with each frame that is whole now.
    pub(crate) fn feed(
        &mut self,
        bytes: &[u8],
        mut on_frame: impl FnMut(Frame<'_>) -> Result<(), ConnectionError>,
    ) -> Result<(), ConnectionError> {
        if self.kept.is_empty() {
            let used = each_frame(bytes, &mut on_frame)?;
            self.kept.extend_from_slice(&bytes[used..]);
        } else {
            self.kept.extend_from_slice(bytes);
            let used = each_frame(&self.kept, &mut on_frame)?;
            self.kept.drain(..used);
        }
        Ok(())
    }
}

/// Gives how many bytes the whole frames have.
fn each_frame(
    bytes: &[u8],
    on_frame: &mut impl FnMut(Frame<'_>) -> Result<(), ConnectionError>,
) -> Result<usize, ConnectionError> {
    let mut rest = bytes;
    while let Some((head, tail)) = rest.split_first_chunk::<FRAME_HEAD_BYTES>() {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *head;
        let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(ConnectionError::FrameSize(length));
        }
        let Some((payload, after)) = tail.split_at_checked(length) else { break };
        let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
        on_frame(Frame { kind, flags, stream, payload })?;
        rest = after;
    }
    Ok(bytes.len() - rest.len())
}

/// Appends a frame; its payload is not longer than the peer allows.
pub(crate) fn write_frame(kind: u8, flags: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) {
    let start = begin_frame(kind, flags, stream, out);
    out.extend_from_slice(payload);
    end_frame(start, out);
}

/// Appends the head of a frame whose payload comes next; give the result to [`end_frame`] then.
pub(crate) fn begin_frame(kind: u8, flags: u8, stream: u32, out: &mut Vec<u8>) -> usize {
    let [s0, s1, s2, s3] = stream.to_be_bytes();
    out.extend_from_slice(&[0, 0, 0, kind, flags, s0, s1, s2, s3]);
    out.len()
}

/// Fills in the length.
pub(crate) fn end_frame(start: usize, out: &mut [u8]) {
    let length = (out.len() - start) as u32;
    out[start - FRAME_HEAD_BYTES..][..3].copy_from_slice(&length.to_be_bytes()[1..]);
}

pub(crate) fn write_window_update(stream: u32, bytes: u32, out: &mut Vec<u8>) {
    write_frame(kind::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes(), out);
}

pub(crate) fn write_reset(stream: u32, code: u32, out: &mut Vec<u8>) {
    write_frame(kind::RST_STREAM, 0, stream, &code.to_be_bytes(), out);
}

/// What the peer has set (section 6.5.2).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) header_table_size: u32,
    pub(crate) max_concurrent_streams: u32,
    pub(crate) initial_window_size: u32,
    pub(crate) max_frame_size: u32,
}

impl Settings {
    const HEADER_TABLE_SIZE: u16 = 1;
    pub(crate) const ENABLE_PUSH: u16 = 2;
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
    const MAX_FRAME_SIZE: u16 = 5;
    pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;

    pub(crate) const fn new() -> Self {
        Self {
            header_table_size: 4096,
            max_concurrent_streams: u32::MAX,
            initial_window_size: WINDOW_BYTES_DEFAULT,
            max_frame_size: FRAME_BYTES_MAX as u32,
        }
    }

    /// Takes a SETTINGS frame that is no acknowledgement; gives by how much the windows of open streams change.
    pub(crate) fn apply(&mut self, payload: &[u8]) -> Result<i64, ConnectionError> {
        let (settings, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(ConnectionError::FrameSize(payload.len()));
        }
        let window_before = self.initial_window_size;
        for [n0, n1, v0, v1, v2, v3] in settings {
            let value = u32::from_be_bytes([*v0, *v1, *v2, *v3]);
            match u16::from_be_bytes([*n0, *n1]) {
                Self::HEADER_TABLE_SIZE => self.header_table_size = value,
                Self::MAX_CONCURRENT_STREAMS => self.max_concurrent_streams = value,
                Self::INITIAL_WINDOW_SIZE if value > i32::MAX as u32 => return Err(ConnectionError::FlowControl),
                Self::INITIAL_WINDOW_SIZE => self.initial_window_size = value,
                Self::MAX_FRAME_SIZE if (FRAME_BYTES_MAX as u32..1 << 24).contains(&value) => {
                    self.max_frame_size = value;
                }
                Self::MAX_FRAME_SIZE => return Err(ConnectionError::Protocol("a maximum frame size out of bounds")),
                _ => {}
            }
        }
        Ok(i64::from(self.initial_window_size) - i64::from(window_before))
    }
}
