//! Error codes (RFC 9113 section 7), and what they end.

use std::fmt;

use thiserror::Error;

use super::Malformed;

/// An error code, known or not (RFC 9113 section 7).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u32);

#[allow(missing_docs)] // Each constant is the code of that name.
impl Code {
    pub const NO_ERROR: Self = Self(0x0);
    pub const PROTOCOL_ERROR: Self = Self(0x1);
    pub const INTERNAL_ERROR: Self = Self(0x2);
    pub const FLOW_CONTROL_ERROR: Self = Self(0x3);
    pub const SETTINGS_TIMEOUT: Self = Self(0x4);
    pub const STREAM_CLOSED: Self = Self(0x5);
    pub const FRAME_SIZE_ERROR: Self = Self(0x6);
    pub const REFUSED_STREAM: Self = Self(0x7);
    pub const CANCEL: Self = Self(0x8);
    pub const COMPRESSION_ERROR: Self = Self(0x9);
    pub const CONNECT_ERROR: Self = Self(0xa);
    pub const ENHANCE_YOUR_CALM: Self = Self(0xb);
    pub const INADEQUATE_SECURITY: Self = Self(0xc);
    pub const HTTP_1_1_REQUIRED: Self = Self(0xd);
}

const NAMES: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "code {:#x}", self.0),
        }
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An error of the other side that ends the connection (RFC 9113 section 5.4.1).
#[derive(Error, Clone, Copy, PartialEq, Eq, Debug)]
#[error("{code}: {reason}")]
pub struct ConnectionError {
    /// What GOAWAY says.
    pub code: Code,
    /// What was wrong.
    pub reason: &'static str,
}

impl ConnectionError {
    pub(super) const fn new(code: Code, reason: &'static str) -> Self {
        Self { code, reason }
    }

    pub(super) const fn protocol(reason: &'static str) -> Self {
        Self::new(Code::PROTOCOL_ERROR, reason)
    }
}

/// Why a stream goes no further.
#[derive(Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// RST_STREAM of the other side.
    #[error("reset by the other side: {0}")]
    Reset(Code),
    /// RST_STREAM of ours: the other side's message is wrong.
    #[error("reset for an error of the other side: {0}: {1}")]
    Broken(Code, Malformed),
    /// RST_STREAM of ours, for a reason of ours.
    #[error("reset by us: {0}")]
    Given(Code),
    /// The other side has certainly not processed it: GOAWAY names an earlier stream as the last one (RFC 9113 section 6.8), or it
    /// was never opened.
    #[error("not processed")]
    Unprocessed,
    /// The connection has ended, and nobody knows what has become of it.
    #[error("the connection was lost")]
    Lost,
}

impl Fault {
    /// Whether the request may be sent again, whatever its method is (RFC 9113 section 8.7).
    #[must_use]
    pub fn is_unprocessed(self) -> bool {
        matches!(self, Self::Unprocessed | Self::Reset(Code::REFUSED_STREAM))
    }
}
