//! HTTP/2 (RFC 9113), as much of it as a load generator and its backend need: bytes in, events and bytes out, no sockets.

pub(crate) mod client;
mod encoder;
pub(crate) mod frame;
mod headers;
pub(crate) mod server;

use meshring_core::http::http2::hpack;

use self::frame::{Settings, flag, kind, write_frame, write_window_update};
use crate::limits::{CONNECTION_WINDOW_BYTES, HEADERS_MAX, STREAM_WINDOW_BYTES};

/// What a client's connection begins with (section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The window of a connection, and of a stream without the setting (section 6.9.2).
const WINDOW_BYTES_DEFAULT: u32 = 65_535;

/// Octets of a list of fields that we take, each counting 32 beyond its text (section 6.5.2).
const HEADER_LIST_BYTES_MAX: usize = HEADERS_MAX * 1024;

/// Codes of RST_STREAM and GOAWAY (section 7).
mod code {
    pub(super) const PROTOCOL_ERROR: u32 = 1;
    pub(super) const REFUSED_STREAM: u32 = 7;
    pub(super) const CANCEL: u32 = 8;
}

/// What ends a connection: the peer does not speak HTTP/2 as we know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("a frame of {0} bytes, which is too long or too short for its type")]
    FrameSize(usize),
    #[error("a header block that cannot be decoded: {0}")]
    Hpack(#[from] hpack::Error),
    #[error("more data than the window allows, or a window of 2^31 bytes")]
    FlowControl,
    #[error("{0}")]
    Protocol(&'static str),
}

/// Appends what a side says first: its settings, and the window of the connection.
fn write_greeting(more_settings: &[(u16, u32)], out: &mut Vec<u8>) {
    let common = [
        (Settings::INITIAL_WINDOW_SIZE, STREAM_WINDOW_BYTES),
        (Settings::MAX_HEADER_LIST_SIZE, HEADER_LIST_BYTES_MAX as u32),
    ];
    let settings: Vec<u8> = more_settings
        .iter()
        .chain(&common)
        .flat_map(|(name, value)| name.to_be_bytes().into_iter().chain(value.to_be_bytes()))
        .collect();
    write_frame(kind::SETTINGS, 0, 0, &settings, out);
    write_window_update(0, CONNECTION_WINDOW_BYTES - WINDOW_BYTES_DEFAULT, out);
}

/// Bytes of DATA that were taken and not yet given back to the peer's window.
#[derive(Debug, Clone, Copy, Default)]
struct Unreturned(u32);

impl Unreturned {
    /// Counts bytes; gives them back once they are half of the window, so that the peer never waits for us.
    fn take(&mut self, bytes: usize, window: u32, stream: u32, out: &mut Vec<u8>) {
        self.0 = self.0.saturating_add(bytes as u32);
        if self.0 >= window / 2 {
            write_window_update(stream, self.0, out);
            self.0 = 0;
        }
    }
}

/// Bytes that the peer lets us send.
#[derive(Debug, Clone, Copy)]
struct SendWindow(i64);

impl SendWindow {
    fn new(bytes: u32) -> Self {
        Self(bytes.into())
    }

    /// By a WINDOW_UPDATE, or by a changed setting, which may leave it negative (section 6.9.2).
    fn add(&mut self, bytes: i64) -> Result<(), ConnectionError> {
        self.0 += bytes;
        if self.0 > i64::from(i32::MAX) { Err(ConnectionError::FlowControl) } else { Ok(()) }
    }

    fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }
}

/// Appends as much of a body as the windows let through; gives how much. Its last frame ends the stream if `ends` says so.
fn write_data(
    stream: u32,
    body: &[u8],
    ends: bool,
    windows: [&mut SendWindow; 2],
    frame_bytes_max: u32,
    out: &mut Vec<u8>,
) -> usize {
    let [of_stream, of_connection] = windows;
    let count = body.len().min(of_stream.bytes()).min(of_connection.bytes());
    let mut rest = body.len();
    for piece in body[..count].chunks(frame_bytes_max as usize) {
        rest -= piece.len();
        let flags = if ends && rest == 0 { flag::END_STREAM } else { 0 };
        write_frame(kind::DATA, flags, stream, piece, out);
    }
    of_stream.0 -= count as i64;
    of_connection.0 -= count as i64;
    count
}

#[cfg(test)]
mod tests;
