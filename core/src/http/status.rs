//! Reason phrases, and whole responses that the proxy makes itself.

use std::net::SocketAddr;

use super::head::BodyFraming;
use super::serialize::{field, status_line};

/// The interim response to `Expect: 100-continue`.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The reason phrase of a status (IANA's registry of status codes), `Unknown` for one that is not registered.
#[must_use]
pub fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        511 => "Network Authentication Required",
        _ => "Unknown",
    }
}

/// How to write a response of our own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Local<'a> {
    /// The connection closes after it: `connection: close`.
    pub close: bool,
    /// It answers HEAD: the length is announced, the body is not sent.
    pub head: bool,
    /// The value of the Date field.
    pub date: Option<&'a [u8]>,
    /// Ready lines (`name: value CR LF`) to append.
    pub extra: &'a [u8],
}

/// Appends a whole response. `content_type` may be empty: then there is no such field. Statuses that allow no body
/// (1xx, 204, 304) get none.
pub fn write_response(out: &mut Vec<u8>, status: u16, content_type: &str, body: &[u8], how: &Local<'_>) {
    let allows_body = status >= 200 && status != 204 && status != 304;
    out.reserve(256 + body.len() + how.extra.len());
    status_line(out, status, b"");
    if allows_body {
        let mut digits = itoa::Buffer::new();
        field(out, b"content-length", digits.format(body.len()).as_bytes());
        if !content_type.is_empty() && !body.is_empty() {
            field(out, b"content-type", content_type.as_bytes());
        }
    }
    if let Some(date) = how.date {
        field(out, b"date", date);
    }
    if how.close {
        out.extend_from_slice(b"connection: close\r\n");
    }
    out.extend_from_slice(how.extra);
    out.extend_from_slice(b"\r\n");
    if allows_body && !how.head {
        out.extend_from_slice(body);
    }
}

/// Appends the head that accepts a CONNECT: it has no framing, since the tunnel begins behind it (RFC 9110 section 9.3.6).
pub fn write_tunnel_head(out: &mut Vec<u8>, date: &[u8]) {
    status_line(out, 200, b"");
    field(out, b"date", date);
    out.extend_from_slice(b"\r\n");
}

/// Appends the head that asks for a tunnel to an address, as [`request_from_text`](super::http2::request_from_text) takes it.
pub fn write_connect(out: &mut Vec<u8>, address: SocketAddr) {
    out.extend_from_slice(format!("CONNECT {address} HTTP/1.1\r\nhost: {address}\r\n\r\n").as_bytes());
}

/// Appends a whole response in plain text. Not for answers to HEAD: see [`write_response`].
pub fn write_error_response(out: &mut Vec<u8>, status: u16, body: &[u8], close: bool, date: Option<&[u8]>) {
    write_response(out, status, "text/plain", body, &Local { close, date, ..Local::default() });
}

/// The framing of a response to a client of this version: HTTP/1.0 knows no chunked coding, so the body of unknown
/// length ends with the connection.
#[must_use]
pub fn framing_for(client: super::Version, framing: BodyFraming) -> BodyFraming {
    match (client, framing) {
        (super::Version::Http10, BodyFraming::Chunked) => BodyFraming::UntilClose,
        (super::Version::Http11, BodyFraming::UntilClose) => BodyFraming::Chunked,
        (_, framing) => framing,
    }
}
