//! Request heads (RFC 9112 sections 2, 3, 5 and 6).

use super::authority;
use super::error::Refusal;
use super::fields::{Fields, Section};
use super::head::{BodyFraming, Bounds, Method, Span, Version};
use super::kind::{FieldKind, KindSet, TOKEN, is_token};
use super::path::{self, PathNormalization};
use super::rules;
use super::target::{self, Target};
use super::words;
use crate::limits::{REQUEST_LINE_BYTES_MAX, TARGET_BYTES_MAX};

/// The form of a request target (RFC 9112 section 3.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetForm {
    /// `/path?query`.
    Origin,
    /// `http://host/path?query`.
    Absolute,
    /// `host:port`, with CONNECT.
    Authority,
    /// `*`, with OPTIONS.
    Asterisk,
}

/// A request head that passed every rule. Spans point into the buffer that was parsed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestHead {
    /// Bytes of the buffer that the head takes, an empty line before it included. The body begins here.
    pub len: usize,
    /// The method.
    pub method: Method,
    /// The method's name.
    pub method_name: Span,
    /// The target as received.
    pub target: Span,
    /// The form of the target.
    pub form: TargetForm,
    /// The target is in absolute form and begins with `https://`.
    pub https: bool,
    /// The path without query: `*` in asterisk form, empty in authority form. May be empty in absolute form, where it
    /// stands for `/`; [`RequestHead::path_of`] says so.
    pub path: Span,
    /// The query without its `?`; `Some` of an empty span for `/a?`.
    pub query: Option<Span>,
    /// Host and port as received: from the target where it names them (RFC 9112 section 3.2.2), else from Host.
    pub authority_full: Span,
    /// The host alone, in the case that was received; an IPv6 address with its brackets.
    pub authority: Span,
    /// The port, if one was given.
    pub port: Option<u16>,
    /// The client's version.
    pub version: Version,
    /// How the body ends; never [`BodyFraming::UntilClose`].
    pub framing: BodyFraming,
    /// Whether the client wants to send another request on this connection.
    pub keep_alive: bool,
    /// Whether the client waits for 100 before its body: HTTP/1.1 with a body only. Otherwise Expect is ignored and
    /// left out of what is forwarded (RFC 9110 section 10.1.1).
    pub expect_continue: bool,
    /// Whether the client accepts trailers (`TE: trailers`).
    pub te_trailers: bool,
    /// Max-Forwards of TRACE and OPTIONS, for which alone it means something (RFC 9110 section 7.6.2). 0: answer the
    /// request here. A number beyond 32 bits counts as the largest.
    pub max_forwards: Option<u32>,
    /// The protocol of an upgrade that the client asks for: one protocol, nominated by Connection, and not `h2c`.
    pub upgrade: Option<Span>,
}

/// The protocol that connections are upgraded to through a proxy (RFC 6455).
pub const WEBSOCKET: &[u8] = b"websocket";

impl RequestHead {
    /// A request of which no byte is there any more, head or body: what its response depends on.
    #[must_use]
    pub fn gone(method: Method, version: Version, keep_alive: bool) -> Self {
        let none = Span::default();
        Self {
            len: 0,
            method,
            method_name: none,
            target: none,
            form: TargetForm::Origin,
            https: false,
            path: none,
            query: None,
            authority_full: none,
            authority: none,
            port: None,
            version,
            framing: BodyFraming::None,
            keep_alive,
            expect_continue: false,
            te_trailers: false,
            max_forwards: None,
            upgrade: None,
        }
    }

    /// Whether this is the beginning of a WebSocket handshake (RFC 6455 section 4.1): a GET that announces no body, not even an
    /// empty one.
    #[inline]
    #[must_use]
    pub fn is_websocket(&self, buf: &[u8]) -> bool {
        self.upgrade.is_some_and(|protocol| protocol.of(buf).eq_ignore_ascii_case(WEBSOCKET))
            && self.method == Method::Get
            && self.framing == BodyFraming::None
    }

    /// The path, `/` where the target has none.
    #[inline]
    #[must_use]
    pub fn path_of<'b>(&self, buf: &'b [u8]) -> &'b [u8] {
        if self.path.is_empty() && self.form == TargetForm::Absolute { b"/" } else { self.path.of(buf) }
    }

    /// The path in the normal form of a level, see [`path::normalize`]: of targets that have a path. The asterisk form
    /// and the authority form are left as they are.
    ///
    /// # Errors
    /// See [`path::normalize`].
    #[inline]
    pub fn normalized_path<'a>(
        &self,
        buf: &'a [u8],
        level: PathNormalization,
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Refusal> {
        match self.form {
            TargetForm::Origin | TargetForm::Absolute => path::normalize(self.path_of(buf), level, scratch),
            TargetForm::Authority | TargetForm::Asterisk => Ok(self.path_of(buf)),
        }
    }

    /// Refuses a body whose announced length is above the limit, in bytes. A chunked body announces nothing: count it.
    pub fn limit_body(&self, bytes_max: u64) -> Result<(), Refusal> {
        match self.framing {
            BodyFraming::Length(length) if length > bytes_max => Err(Refusal::BodyTooLarge),
            _ => Ok(()),
        }
    }
}

/// Kinds that need more than a look at Host.
const SPECIAL: KindSet = KindSet::of(&[
    FieldKind::Connection,
    FieldKind::ContentLength,
    FieldKind::TransferEncoding,
    FieldKind::Te,
    FieldKind::Upgrade,
    FieldKind::Expect,
    FieldKind::MaxForwards,
]);

/// Kinds that say how the body ends.
const FRAMING: KindSet = KindSet::of(&[FieldKind::ContentLength, FieldKind::TransferEncoding]);

/// Parses the request head at the beginning of `buf`, which must keep within `bounds`.
///
/// `Ok(None)` means that more bytes are needed. `fields` holds the fields of the head after `Ok(Some(_))`, and nothing
/// meaningful otherwise.
///
/// # Errors
/// The first rule that the head breaks, as far as it has arrived. Nothing of it may be forwarded.
pub fn parse(buf: &[u8], fields: &mut Fields, bounds: Bounds) -> Result<Option<RequestHead>, Refusal> {
    let window = &buf[..buf.len().min(bounds.head_bytes)];
    let start = match window {
        [b'\r', b'\n', b'\r' | b'\n', ..] => return Err(Refusal::LeadingEmptyLines),
        [b'\r', b'\n', ..] => 2,
        [] | [b'\r'] => return Ok(None),
        [b'\n', ..] => return Err(Refusal::BareLf),
        [b'\r', ..] => return Err(Refusal::BareCr),
        _ => 0,
    };
    let Some((line, lines_start)) = request_line(window, start) else { return without_line(window, start, bounds) };
    let (len, has_twin) = match fields.read(window, lines_start, bounds.fields) {
        Section::Whole { end, has_twin } => (end, has_twin),
        Section::Unfinished => return partial(window, start, bounds),
        Section::TooManyFields => return Err(Refusal::TooManyFields),
        Section::Malformed => return Err(rules::diagnose_fields(window, lines_start)),
    };
    if has_twin {
        return Err(Refusal::UnderscoreTwin);
    }
    examine(window, len, line, fields).map(Some)
}

/// What a request line of [`REQUEST_LINE_BYTES_MAX`] bytes, and the LF behind it, leave to the method and the target.
const METHOD_AND_TARGET_BYTES_MAX: usize = REQUEST_LINE_BYTES_MAX + 1 - "  HTTP/1.1\r\n".len();

/// The request line taken apart.
struct Line {
    method_name: Span,
    target: Span,
    version: Version,
}

/// The request line that begins at `start`, and where the next line begins; `None` if it is not whole or not sound.
#[inline]
fn request_line(window: &[u8], start: usize) -> Option<(Line, usize)> {
    let rest = &window[start..];
    let method_len = method_len(rest);
    let [b' ', after_method @ ..] = &rest[method_len..] else { return None };
    let target_len = words::run(after_method, words::invisible);
    let [b' ', version @ ..] = &after_method[target_len..] else { return None };
    if method_len == 0 || target_len == 0 || method_len + target_len > METHOD_AND_TARGET_BYTES_MAX {
        return None;
    }
    let version = match version.first_chunk()? {
        b"HTTP/1.1\r\n" => Version::Http11,
        b"HTTP/1.0\r\n" => Version::Http10,
        _ => return None,
    };
    let method_end = start + method_len;
    let target_end = method_end + 1 + target_len;
    let line =
        Line { method_name: Span::new(start, method_end), target: Span::new(method_end + 1, target_end), version };
    Some((line, target_end + " HTTP/1.1\r\n".len()))
}

/// How many token characters come first.
#[inline]
fn method_len(rest: &[u8]) -> usize {
    // Nearly every method is shorter than a word.
    let len = rest.first_chunk().map_or(8, |word| words::first(words::unusual_in_name(u64::from_le_bytes(*word))));
    if rest.get(len) == Some(&b' ') { len } else { rest.iter().take_while(|&&b| TOKEN[usize::from(b)]).count() }
}

/// There is no sound request line: is there the beginning of one?
#[cold]
fn without_line(window: &[u8], start: usize, bounds: Bounds) -> Result<Option<RequestHead>, Refusal> {
    match line_fault(&window[start..]) {
        None => partial(window, start, bounds),
        // Whoever reads fewer bytes at a time has said so before.
        Some((_, known)) if known > REQUEST_LINE_BYTES_MAX + 1 => Err(Refusal::TargetTooLong),
        Some((refusal, _)) => Err(refusal),
    }
}

/// The rules about meaning, once the bytes are known to be well formed.
#[inline]
fn examine(window: &[u8], len: usize, line: Line, fields: &mut Fields) -> Result<RequestHead, Refusal> {
    if line.target.len() > TARGET_BYTES_MAX {
        return Err(Refusal::TargetTooLong);
    }
    let method = Method::named(line.method_name.of(window));
    let target = target::parse(window, line.target, method)?;
    let (authority_full, host_len, port) = authority(window, fields, &target, line.version)?;
    let host = Span::new(authority_full.start as usize, authority_full.start as usize + host_len);
    let is_http11 = line.version == Version::Http11;
    let mut head = RequestHead {
        len,
        method,
        method_name: line.method_name,
        target: line.target,
        form: target.form,
        https: target.https,
        path: target.path,
        query: target.query,
        authority_full,
        authority: host,
        port,
        version: line.version,
        framing: BodyFraming::None,
        keep_alive: is_http11,
        expect_continue: false,
        te_trailers: false,
        max_forwards: None,
        upgrade: None,
    };
    if fields.kinds().intersects(SPECIAL) {
        examine_special(window, &mut head, fields)?;
    }
    Ok(head)
}

fn examine_special(window: &[u8], head: &mut RequestHead, fields: &mut Fields) -> Result<(), Refusal> {
    let is_http11 = head.version == Version::Http11;
    if fields.kinds().intersects(FRAMING) {
        head.framing = framing(window, head, fields)?;
    }
    let options = rules::connection_options(window, fields)?;
    head.keep_alive = !options.close && (is_http11 || options.keep_alive);
    head.te_trailers = fields.has(FieldKind::Te) && rules::te_trailers(window, fields);
    if matches!(head.method, Method::Trace | Method::Options) {
        head.max_forwards = rules::max_forwards(window, fields)?;
    }
    if options.upgrade && is_http11 && !fields.is_repeated(FieldKind::Upgrade) {
        head.upgrade = fields
            .first(FieldKind::Upgrade)
            .map(|field| field.value)
            .filter(|value| is_upgrade_protocol(value.of(window)));
    }
    if fields.has(FieldKind::Expect) {
        if fields.values_of(window, FieldKind::Expect).any(|value| !value.eq_ignore_ascii_case(b"100-continue")) {
            return Err(Refusal::ExpectationUnsupported);
        }
        head.expect_continue = is_http11 && head.framing.has_body();
        if !head.expect_continue {
            fields.drop_kind(FieldKind::Expect);
        }
    }
    Ok(())
}

fn framing(window: &[u8], head: &RequestHead, fields: &Fields) -> Result<BodyFraming, Refusal> {
    let length = rules::content_length(window, fields)?;
    let framing = match (rules::is_chunked(window, fields)?, length) {
        (true, Some(_)) => return Err(Refusal::LengthWithEncoding),
        (true, None) if head.version == Version::Http10 => return Err(Refusal::EncodingOnHttp10),
        (true, None) => BodyFraming::Chunked,
        (false, Some(length)) => BodyFraming::Length(length),
        (false, None) => BodyFraming::None,
    };
    match head.method {
        Method::Connect if framing.has_body() => Err(Refusal::ConnectWithBody),
        Method::Connect => Ok(BodyFraming::None),
        _ => Ok(framing),
    }
}

/// Whether a connection can be upgraded to this, through us: to one protocol, a token with an optional `/version` (a list
/// would let the server choose behind us), and not to `h2c`.
pub(super) fn is_upgrade_protocol(protocol: &[u8]) -> bool {
    let is_one = match protocol.iter().position(|&b| b == b'/') {
        Some(slash) => is_token(&protocol[..slash]) && is_token(&protocol[slash + 1..]),
        None => is_token(protocol),
    };
    is_one && !protocol.eq_ignore_ascii_case(b"h2c")
}

/// The authority that is routed: the target's if it has one, else Host's. Host is checked in either case.
#[inline]
fn authority(
    window: &[u8],
    fields: &Fields,
    target: &Target,
    version: Version,
) -> Result<(Span, usize, Option<u16>), Refusal> {
    let Some(host) = fields.first(FieldKind::Host) else {
        // RFC 9112 section 3.2 asks for Host in HTTP/1.1 only; without it an HTTP/1.0 request cannot be routed either,
        // unless its target names the host.
        return match target.authority {
            Some(authority) if version == Version::Http10 => Ok(authority),
            _ => Err(Refusal::NoHost),
        };
    };
    if fields.is_repeated(FieldKind::Host) {
        return Err(Refusal::RepeatedHost);
    }
    if host.value.is_empty() {
        return Err(Refusal::NoHost);
    }
    if let Some(authority) = target.authority
        && authority.0.of(window) == host.value.of(window)
    {
        // It has been judged.
        return Ok(authority);
    }
    let (host_len, port) = authority::split(host.value.of(window)).ok_or(Refusal::BadAuthority)?;
    Ok(target.authority.unwrap_or((host.value, host_len, port)))
}

/// The head is not whole: is there any use in waiting for more?
#[cold]
fn partial(window: &[u8], start: usize, bounds: Bounds) -> Result<Option<RequestHead>, Refusal> {
    let rest = &window[start..];
    if rest.len() > REQUEST_LINE_BYTES_MAX && memchr::memchr(b'\n', rest).is_none() {
        return Err(Refusal::TargetTooLong);
    }
    if window.len() >= bounds.head_bytes {
        return Err(Refusal::HeadTooLarge);
    }
    Ok(None)
}

/// What is wrong with the request line that the bytes begin with, and after how many bytes that was certain; `None` if nothing
/// is so far. It must not depend on how much has come: where the rest of the line decides, that is waited for.
fn line_fault(line: &[u8]) -> Option<(Refusal, usize)> {
    let method_len = line.iter().take_while(|&&b| TOKEN[usize::from(b)]).count();
    if method_len == 0 || line.get(method_len) != Some(&b' ') {
        return fault_at(line, method_len, Refusal::BadRequestLine, Refusal::BadMethod);
    }
    let target_start = method_len + 1;
    let target_end = target_start + line[target_start..].iter().take_while(|b| b.is_ascii_graphic()).count();
    if target_end == target_start || line.get(target_end) != Some(&b' ') {
        let cut = if target_end == target_start { Refusal::BadRequestLine } else { Refusal::NoVersion };
        return fault_at(line, target_end, cut, Refusal::TargetNotAscii);
    }
    let version = &line[target_end + 1..];
    let is_meant = |(&b, &form): (&u8, &u8)| if form == b'd' { b.is_ascii_digit() } else { b == form };
    let meant = version.iter().zip(b"HTTP/d.d").take_while(|&pair| is_meant(pair)).count();
    // A blank behind it tells that the target has one.
    let more = version[meant..].iter().take_while(|b| b.is_ascii_graphic()).count();
    let whole = if meant == 8 && more == 0 { Refusal::VersionUnsupported } else { Refusal::BadVersion };
    fault_at(line, target_end + 1 + meant + more, whole, Refusal::BadVersion)
}

/// What the byte says that stands where its part of the line cannot go on: the end of the line, or one that is wrong.
fn fault_at(line: &[u8], at: usize, end: Refusal, wrong: Refusal) -> Option<(Refusal, usize)> {
    match line[at..] {
        [] | [b'\r'] => None,
        [b'\r', b'\n', ..] => Some((end, at + 2)),
        [b'\r', ..] => Some((Refusal::BareCr, at + 2)),
        [b'\n', ..] => Some((Refusal::BareLf, at + 1)),
        [0, ..] => Some((Refusal::Nul, at + 1)),
        [b' ' | b'\t', ..] => Some((Refusal::BadRequestLine, at + 1)),
        [_, ..] => Some((wrong, at + 1)),
    }
}
