//! HTTP/2 (RFC 9113, RFC 8441): the [`Engine`] of a connection, without I/O, [`hpack`], and heads as HTTP/1.1 text and back.
//!
//! Inside of the proxy a message is HTTP/1.1 text, judged by one strict codec. What comes over HTTP/2 becomes such text
//! here, refused first for what text could not show or what could end a line of it; everything else is left to
//! [`request::parse`](super::request::parse) and [`response::parse`](super::response::parse), so that no rule stands
//! twice. What our writer makes is taken apart again for the way out.

mod code;
mod engine;
mod fields;
mod frame;
mod from_text;
pub mod hpack;
mod to_text;

pub use code::{Code, ConnectionError, Fault};
pub use engine::{Engine, Event, Opening, Piece, Role, Room, Scratch, StreamKey, Tunnel, Wake, encode_field};
pub use from_text::{RequestText, ResponseText, request_from_text, response_from_text};
pub use to_text::{request_to_text, response_to_text, trailers_to_text};

use thiserror::Error;

use super::chunked::is_forbidden_in_trailers;
use super::error::Refusal;
use super::head::{BodyFraming, Method};
use super::kind::is_token;

/// What a client with prior knowledge sends first (RFC 9113 section 3.4). For [`request::parse`](super::request::parse) it
/// is a request in a version that is not supported from its first line on: ask [`begins_preface`] before.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Whether the bytes begin with the preface, or are a beginning of it that is not empty.
#[inline]
#[must_use]
pub fn begins_preface(unread: &[u8]) -> bool {
    !unread.is_empty() && unread.iter().zip(PREFACE).all(|(byte, expected)| byte == expected)
}

/// Pseudo fields of a request (RFC 9113 section 8.3.1, RFC 8441 section 4), without their colons.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pseudo<'a> {
    /// `:method`; empty if it is missing, which is no method.
    pub method: &'a [u8],
    /// `:scheme`.
    pub scheme: Option<&'a [u8]>,
    /// `:authority`.
    pub authority: Option<&'a [u8]>,
    /// `:path`, query included.
    pub path: Option<&'a [u8]>,
    /// `:protocol` of an extended CONNECT.
    pub protocol: Option<&'a [u8]>,
}

/// What a request over HTTP/2 has become as text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// The method of the text: GET of an extended CONNECT.
    pub method: Method,
    /// It was an extended CONNECT (RFC 8441).
    pub is_extended: bool,
    /// How the text goes on. [`BodyFraming::UntilClose`]: as a tunnel.
    pub framing: BodyFraming,
}

/// What a tunnel over HTTP/2 is called in HTTP/1.1, for the 101 that stands for its 200.
#[derive(Clone, Copy, Debug)]
pub struct Upgraded<'a> {
    /// The value of Upgrade: the request's `:protocol`.
    pub protocol: &'a [u8],
    /// The value of Sec-WebSocket-Accept, which HTTP/2 does without (RFC 8441 section 5).
    pub accept: Option<&'a [u8]>,
}

/// Why a request over HTTP/2 is not translated.
#[derive(Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// A stream error of type PROTOCOL_ERROR; nothing goes upstream.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Answered with a status, as in HTTP/1.1; nothing goes upstream.
    #[error(transparent)]
    Status(#[from] Refusal),
}

impl Refused {
    /// A stable short name for the access log.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Malformed(malformed) => malformed.code(),
            Self::Status(refusal) => refusal.code(),
        }
    }
}

/// A malformed message (RFC 9113 section 8.1.1).
#[derive(Error, Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Malformed {
    /// RFC 9113 section 8.2.
    #[error("a field name with an upper-case letter")]
    UppercaseName,
    /// RFC 9113 section 8.2.1.
    #[error("a field name that is empty or has a byte that is not a token character")]
    BadName,
    /// RFC 9113 section 8.3.
    #[error("a field name that begins with a colon after the pseudo fields, or in trailers")]
    PseudoField,
    /// RFC 9113 section 8.2.1, RFC 9110 section 5.5.
    #[error("a field value with a control character, or with white space at an end")]
    BadValue,
    /// RFC 9113 section 8.2.2.
    #[error("a field about an HTTP/1.1 connection")]
    ConnectionField,
    /// RFC 9113 section 8.2.2.
    #[error("TE in a response, or with anything but `trailers`")]
    Te,
    /// RFC 9113 section 8.3.1.
    #[error("a pseudo field is missing: every request has :method, :scheme and :path, and :authority or Host")]
    MissingPseudo,
    /// RFC 9110 section 9.1.
    #[error(":method is not a token")]
    BadMethod,
    /// RFC 9113 section 8.3.1.
    #[error(
        ":path is neither `/` and what follows nor, with OPTIONS, `*`, or it has white space or a control character"
    )]
    BadPath,
    /// RFC 9113 section 8.3.1.
    #[error(":authority is empty, or has white space or a control character")]
    BadAuthority,
    /// RFC 9113 section 8.3.1.
    #[error("Host names another host than :authority, or comes twice")]
    HostMismatch,
    /// RFC 9113 section 8.5, RFC 8441 section 4.
    #[error("CONNECT with :scheme or :path but without :protocol, or :protocol without CONNECT")]
    BadConnect,
    /// RFC 8441 section 4: the value of Upgrade in HTTP/1.1, and not `h2c`.
    #[error(":protocol is not the name of a protocol that HTTP/1.1 upgrades to")]
    BadProtocol,
    /// RFC 9110 section 8.6.
    #[error("Content-Length is not one number of decimal digits below 2^64")]
    BadLength,
    /// RFC 9113 section 8.1.1.
    #[error("Content-Length is not how much has come before END_STREAM")]
    LengthMismatch,
    /// RFC 9113 section 8.1.1: of a 204, for one.
    #[error("DATA where the message has none")]
    UnannouncedData,
    /// RFC 9113 section 8.1.
    #[error("DATA before the head of a message")]
    DataBeforeHead,
    /// RFC 9113 section 5.1.
    #[error("DATA or HEADERS behind END_STREAM")]
    BehindEnd,
    /// RFC 9113 section 6.9.
    #[error("more DATA than the window of the stream allows")]
    WindowExceeded,
    /// RFC 9113 sections 6.9 and 6.9.1.
    #[error("WINDOW_UPDATE by nothing, or one that makes the window of the stream overflow")]
    BadWindowUpdate,
    /// RFC 9113 section 8.1.
    #[error("trailers without END_STREAM")]
    TrailersGoOn,
    /// RFC 9113 section 8.5.
    #[error("a field section in a tunnel")]
    SectionInTunnel,
    /// RFC 9113 section 6.5.2.
    #[error("a field section of more than 64 KiB, or interim responses of more")]
    TooLarge,
    /// RFC 9113 sections 8.3.2 and 8.6.
    #[error("the status is outside 100 to 599, or 101")]
    BadStatus,
    /// RFC 9113 section 8.1.
    #[error("an interim response with END_STREAM")]
    InterimEnd,
}

impl Malformed {
    /// A stable short name for the access log and for statistics.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::UppercaseName => "http2.uppercase_name",
            Self::BadName => "http2.bad_name",
            Self::PseudoField => "http2.pseudo_field",
            Self::BadValue => "http2.bad_value",
            Self::ConnectionField => "http2.connection_field",
            Self::Te => "http2.te",
            Self::MissingPseudo => "http2.missing_pseudo",
            Self::BadMethod => "http2.bad_method",
            Self::BadPath => "http2.bad_path",
            Self::BadAuthority => "http2.bad_authority",
            Self::HostMismatch => "http2.host_mismatch",
            Self::BadConnect => "http2.bad_connect",
            Self::BadProtocol => "http2.bad_protocol",
            Self::BadLength => "http2.bad_length",
            Self::LengthMismatch => "http2.length_mismatch",
            Self::UnannouncedData => "http2.unannounced_data",
            Self::DataBeforeHead => "http2.data_before_head",
            Self::BehindEnd => "http2.behind_end",
            Self::WindowExceeded => "http2.window_exceeded",
            Self::BadWindowUpdate => "http2.bad_window_update",
            Self::TrailersGoOn => "http2.trailers_go_on",
            Self::SectionInTunnel => "http2.section_in_tunnel",
            Self::TooLarge => "http2.too_large",
            Self::BadStatus => "http2.bad_status",
            Self::InterimEnd => "http2.interim_end",
        }
    }

    /// Likewise, when an upstream sent it.
    #[must_use]
    pub fn upstream_code(self) -> &'static str {
        match self {
            Self::UppercaseName => "upstream_http2.uppercase_name",
            Self::BadName => "upstream_http2.bad_name",
            Self::PseudoField => "upstream_http2.pseudo_field",
            Self::BadValue => "upstream_http2.bad_value",
            Self::ConnectionField => "upstream_http2.connection_field",
            Self::Te => "upstream_http2.te",
            Self::MissingPseudo => "upstream_http2.missing_pseudo",
            Self::BadMethod => "upstream_http2.bad_method",
            Self::BadPath => "upstream_http2.bad_path",
            Self::BadAuthority => "upstream_http2.bad_authority",
            Self::HostMismatch => "upstream_http2.host_mismatch",
            Self::BadConnect => "upstream_http2.bad_connect",
            Self::BadProtocol => "upstream_http2.bad_protocol",
            Self::BadLength => "upstream_http2.bad_length",
            Self::LengthMismatch => "upstream_http2.length_mismatch",
            Self::UnannouncedData => "upstream_http2.unannounced_data",
            Self::DataBeforeHead => "upstream_http2.data_before_head",
            Self::BehindEnd => "upstream_http2.behind_end",
            Self::WindowExceeded => "upstream_http2.window_exceeded",
            Self::BadWindowUpdate => "upstream_http2.bad_window_update",
            Self::TrailersGoOn => "upstream_http2.trailers_go_on",
            Self::SectionInTunnel => "upstream_http2.section_in_tunnel",
            Self::TooLarge => "upstream_http2.too_large",
            Self::BadStatus => "upstream_http2.bad_status",
            Self::InterimEnd => "upstream_http2.interim_end",
        }
    }
}

/// Whether a trailer field may go on, by its name: a token that is not about framing, routing, authentication and the like
/// (RFC 9110 section 6.5.1).
#[must_use]
pub fn is_trailer(name: &[u8]) -> bool {
    is_token(name) && !is_forbidden_in_trailers(name)
}
