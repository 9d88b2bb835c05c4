//! Response heads (RFC 9112 sections 4 to 6).

use super::error::{BadResponse, Refusal};
use super::fields::{Fields, Section};
use super::head::{BodyFraming, Bounds, Method, Span, Version};
use super::kind::FieldKind;
use super::{lines, rules};

/// A response head that passed every rule. Spans point into the buffer that was parsed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResponseHead {
    /// Bytes of the buffer that the head takes. The body begins here.
    pub len: usize,
    /// 100 to 599.
    pub status: u16,
    /// The reason phrase; may be empty.
    pub reason: Span,
    /// The server's version.
    pub version: Version,
    /// How the body ends, for the request that this responds to.
    pub framing: BodyFraming,
    /// The Content-Length of a response that has no body because it answers HEAD or is a 304: it tells the length of
    /// what a GET would bring, and is relayed.
    pub announced_length: Option<u64>,
    /// Whether the connection can carry another request once the body has ended.
    pub keep_alive: bool,
    /// How long the server keeps an idle connection, in seconds: the least `timeout` of its Keep-Alive fields (RFC 2068
    /// section 19.7.1.1). A pool that gives the connection up earlier does not meet its end.
    pub keep_alive_timeout_s: Option<u32>,
    /// The one protocol of a 101 of HTTP/1.1, nominated by Connection.
    pub upgrade: Option<Span>,
}

impl ResponseHead {
    /// 1xx other than 101: another head follows for the same request.
    #[inline]
    #[must_use]
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }

    /// 101: the connection changes its protocol after this head.
    #[inline]
    #[must_use]
    pub fn is_switching(&self) -> bool {
        self.status == 101
    }

    /// A 2xx to CONNECT: the connection is a tunnel after this head.
    #[inline]
    #[must_use]
    pub fn is_tunnel(&self, request: Method) -> bool {
        request == Method::Connect && (200..300).contains(&self.status)
    }
}

/// Parses the response head at the beginning of `buf`, which must keep within `bounds`, for a request with method
/// `request`.
///
/// `Ok(None)` means that more bytes are needed. `fields` holds the fields of the head after `Ok(Some(_))`, and nothing
/// meaningful otherwise.
///
/// # Errors
/// The first rule that the head breaks, as far as it has arrived: 502 for the client, and the connection is closed.
pub fn parse(
    buf: &[u8],
    fields: &mut Fields,
    request: Method,
    bounds: Bounds,
) -> Result<Option<ResponseHead>, BadResponse> {
    let window = &buf[..buf.len().min(bounds.head_bytes)];
    let Some((line, lines_start)) = status_line(window) else { return without_line(window, bounds) };
    let len = match fields.read(window, lines_start, bounds.fields) {
        // Whoever reads a response does not map names to variables.
        Section::Whole { end, has_twin: _ } => end,
        Section::Unfinished => return partial(window, bounds),
        Section::TooManyFields => return Err(BadResponse::TooManyFields),
        Section::Malformed => return Err(rules::diagnose_fields(window, lines_start).into()),
    };
    let StatusLine { version, status, reason } = line;
    if !(100..600).contains(&status) {
        return Err(BadResponse::Status);
    }
    let head = ResponseHead {
        len,
        status,
        reason,
        version,
        framing: BodyFraming::None,
        announced_length: None,
        keep_alive: false,
        keep_alive_timeout_s: None,
        upgrade: None,
    };
    Ok(Some(examine(window, head, fields, request)?))
}

/// The status line taken apart.
struct StatusLine {
    version: Version,
    /// Three digits.
    status: u16,
    reason: Span,
}

/// The status line, and where the next line begins; `None` if it is not whole or not sound. RFC 9112 section 2.2 lets empty
/// lines come before requests only.
#[inline]
fn status_line(window: &[u8]) -> Option<(StatusLine, usize)> {
    let (start, rest) = window.split_first_chunk::<12>()?;
    let (version, digits) = start.split_first_chunk::<9>()?;
    let version = match version {
        b"HTTP/1.1 " => Version::Http11,
        b"HTTP/1.0 " => Version::Http10,
        _ => return None,
    };
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let status = digits.iter().fold(0, |status, b| status * 10 + u16::from(b - b'0'));
    // The space after the status may be missing with the reason.
    let (reason_start, reason_len) = match rest {
        [b' ', reason @ ..] => (13, lines::reason_len(reason)),
        _ => (12, 0),
    };
    let reason_end = reason_start + reason_len;
    let [b'\r', b'\n', ..] = window[reason_end..] else { return None };
    Some((StatusLine { version, status, reason: Span::new(reason_start, reason_end) }, reason_end + 2))
}

/// There is no sound status line: is there the beginning of one? What is wrong with it must not depend on how much has come.
#[cold]
fn without_line(window: &[u8], bounds: Bounds) -> Result<Option<ResponseHead>, BadResponse> {
    if let [b'\r' | b'\n', ..] = window {
        return Err(BadResponse::StatusLine);
    }
    let begins_like = |form: &[u8]| {
        let is_meant = |(&b, &form): (&u8, &u8)| if form == b'd' { b.is_ascii_digit() } else { b == form };
        window.iter().zip(form).take_while(|&pair| is_meant(pair)).count()
    };
    let meant = begins_like(b"HTTP/1.1 ddd").max(begins_like(b"HTTP/1.0 ddd"));
    if meant < 9 && meant < window.len() {
        return Err(BadResponse::Version);
    }
    let end = match window[meant..] {
        [b' ', ref reason @ ..] if meant == 12 => 13 + lines::reason_len(reason),
        _ => meant,
    };
    match window[end..] {
        [] => partial(window, bounds),
        [b'\r'] if end >= 12 => partial(window, bounds),
        [b'\r', ..] if end >= 12 => Err(BadResponse::BareCr),
        [b'\n', ..] => Err(BadResponse::BareLf),
        [0, ..] => Err(BadResponse::Nul),
        _ => Err(BadResponse::StatusLine),
    }
}

/// Framing, persistence and upgrade (RFC 9112 sections 6.3 and 9.3).
#[inline]
fn examine(
    window: &[u8],
    mut head: ResponseHead,
    fields: &mut Fields,
    request: Method,
) -> Result<ResponseHead, Refusal> {
    let options = rules::connection_options(window, fields)?;
    head.keep_alive = !options.close && (head.version == Version::Http11 || options.keep_alive);
    if fields.has(FieldKind::KeepAlive) {
        head.keep_alive_timeout_s = rules::keep_alive_timeout_s(window, fields);
    }
    if head.is_tunnel(request) || head.status < 200 {
        // Content-Length and Transfer-Encoding mean nothing here (RFC 9110 section 9.3.6) and are not relayed.
        let is_http11 = head.version == Version::Http11;
        if head.is_switching() && is_http11 && options.upgrade && !fields.is_repeated(FieldKind::Upgrade) {
            head.upgrade = fields.first(FieldKind::Upgrade).map(|field| field.value);
        }
        return Ok(head);
    }
    let length = rules::content_length(window, fields)?;
    let is_chunked = rules::is_chunked(window, fields)?;
    if is_chunked && length.is_some() {
        return Err(Refusal::LengthWithEncoding);
    }
    if is_chunked && head.version == Version::Http10 {
        return Err(Refusal::EncodingOnHttp10);
    }
    if request == Method::Head || head.status == 304 {
        head.announced_length = length;
    } else if head.status != 204 {
        head.framing = match length {
            Some(length) => BodyFraming::Length(length),
            None if is_chunked => BodyFraming::Chunked,
            None => {
                head.keep_alive = false;
                BodyFraming::UntilClose
            }
        };
    }
    Ok(head)
}

/// The head is not whole: is there any use in waiting for more?
#[cold]
fn partial(window: &[u8], bounds: Bounds) -> Result<Option<ResponseHead>, BadResponse> {
    if window.len() >= bounds.head_bytes {
        return Err(BadResponse::HeadTooLarge);
    }
    Ok(None)
}
