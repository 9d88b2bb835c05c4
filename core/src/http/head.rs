//! What requests and responses have in common: spans, methods, versions, framing, and the scanner for heads that
//! arrive in pieces.

use crate::limits::{
    HEAD_BYTES_MAX, HEAD_FIELDS_MAX, NEXT_HOP_HEAD_BYTES_MAX, NEXT_HOP_HEAD_FIELDS_MAX, REQUEST_LINE_BYTES_MAX,
};

/// How large a head may be. Each hop of a mesh adds fields of its own, so that a head which comes from another sidecar
/// may be larger than one that comes from an application: what the first hop has accepted, the next one accepts too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Bytes of the head with its first line; at most [`NEXT_HOP_HEAD_BYTES_MAX`].
    pub head_bytes: usize,
    /// Fields; at most [`NEXT_HOP_HEAD_FIELDS_MAX`].
    pub fields: usize,
}

impl Bounds {
    /// For what comes from an application: a request on an outbound listener, a response on an inbound one.
    pub const FIRST_HOP: Self = Self { head_bytes: HEAD_BYTES_MAX, fields: HEAD_FIELDS_MAX };
    /// For what comes from another sidecar: a request on an inbound listener, a response on an outbound one.
    pub const NEXT_HOP: Self = Self { head_bytes: NEXT_HOP_HEAD_BYTES_MAX, fields: NEXT_HOP_HEAD_FIELDS_MAX };
}

const _: () = assert!(NEXT_HOP_HEAD_BYTES_MAX <= u16::MAX as usize, "a span holds 16-bit positions");

/// A range of bytes in the buffer that a head was parsed from. Two 16-bit positions, since a head has at most
/// [`NEXT_HOP_HEAD_BYTES_MAX`] bytes; it stays valid when the buffer moves, as long as its contents stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Span {
    /// Position of the first byte.
    pub start: u16,
    /// Position after the last byte.
    pub end: u16,
}

impl Span {
    /// A span; both positions are at most [`NEXT_HOP_HEAD_BYTES_MAX`].
    #[inline]
    #[must_use]
    pub(super) fn new(start: usize, end: usize) -> Self {
        debug_assert!(start <= end && end <= NEXT_HOP_HEAD_BYTES_MAX, "span {start}..{end}");
        Self { start: start as u16, end: end as u16 }
    }

    /// The bytes, out of the buffer that was parsed.
    #[inline]
    #[must_use]
    pub fn of(self, buf: &[u8]) -> &[u8] {
        &buf[self.start as usize..self.end as usize]
    }

    /// How many bytes.
    #[inline]
    #[must_use]
    pub fn len(self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether there is no byte.
    #[inline]
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// A request method (RFC 9110 section 9); names are case-sensitive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(missing_docs)] // Each variant is the method of that name.
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
    /// Any other token; [`crate::http::RequestHead::method_name`] has it.
    Other,
}

impl Method {
    /// The method with this name.
    #[inline]
    #[must_use]
    pub fn named(name: &[u8]) -> Self {
        match name {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"DELETE" => Self::Delete,
            b"CONNECT" => Self::Connect,
            b"OPTIONS" => Self::Options,
            b"TRACE" => Self::Trace,
            b"PATCH" => Self::Patch,
            _ => Self::Other,
        }
    }

    /// Whether a client asks for no change of state (RFC 9110 section 9.2.1).
    #[must_use]
    pub fn is_safe(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Options | Self::Trace)
    }

    /// Whether the request may be sent twice (RFC 9110 section 9.2.2).
    #[must_use]
    pub fn is_idempotent(self) -> bool {
        self.is_safe() || matches!(self, Self::Put | Self::Delete)
    }
}

/// The version in a request or status line; no other is accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// How the end of a body is found (RFC 9112 section 6.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyFraming {
    /// There is no body and none was announced.
    None,
    /// Content-Length, in bytes; may be 0.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// The body ends when the server closes. Responses only.
    UntilClose,
}

impl BodyFraming {
    /// Whether any body byte can follow the head.
    #[must_use]
    pub fn has_body(self) -> bool {
        !matches!(self, Self::None | Self::Length(0))
    }
}

/// Keeps heads that arrive in small pieces linear in cost: parsing starts over from the first byte each time, so it
/// must not be tried on every byte that comes.
///
/// The first attempt on fresh bytes is always made, since nearly every head arrives whole. After it, only new bytes
/// are looked at, for the end of the head, a bare LF, or a bound that is passed.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadScanner {
    /// Bytes that were already looked at.
    scanned: usize,
    /// Whether the first line was seen to end.
    line_ended: bool,
}

impl HeadScanner {
    /// Whether parsing within these bounds can say more than before. `buf` is all the unconsumed bytes, which begin with
    /// the head.
    #[inline]
    pub fn ready(&mut self, buf: &[u8], bounds: Bounds) -> bool {
        if self.scanned == 0 {
            self.scanned = buf.len();
            return !buf.is_empty();
        }
        self.ready_again(buf, bounds)
    }

    fn ready_again(&mut self, buf: &[u8], bounds: Bounds) -> bool {
        let from = self.scanned.min(buf.len());
        self.scanned = buf.len();
        for offset in memchr::memchr_iter(b'\n', &buf[from..]) {
            let i = from + offset;
            let ends_head = i >= 2 && buf[i - 2] == b'\n';
            if ends_head || i == 0 || buf[i - 1] != b'\r' {
                return true;
            }
        }
        if buf.len() >= bounds.head_bytes {
            return true;
        }
        if !self.line_ended && buf.len() > REQUEST_LINE_BYTES_MAX {
            // An empty line may precede the first one.
            self.line_ended = memchr::memchr(b'\n', &buf[2..]).is_some();
            return !self.line_ended;
        }
        false
    }

    /// Forgets everything: call it when a head was parsed and its bytes are consumed.
    #[inline]
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}
