//! What came over HTTP/2, as HTTP/1.1 text.

use super::super::error::Refusal;
use super::super::head::{BodyFraming, Method};
use super::super::kind::{FieldKind, is_token, kind_of};
use super::super::request::is_upgrade_protocol;
use super::super::rules;
use super::super::serialize::{field, status_line};
use super::{Malformed, Pseudo, Refused, Shape, Upgraded, is_trailer};
use crate::limits::{HEAD_FIELDS_MAX, NEXT_HOP_HEAD_FIELDS_MAX};

/// Appends a request as an HTTP/1.1 head, which [`request::parse`](crate::http::request::parse) has to judge: nothing in
/// `out` may be taken for granted but that it is one head and has the fields that came. `ended`: END_STREAM came with it.
/// `key`: random bytes for Sec-WebSocket-Key, used where an extended CONNECT for `websocket` brings none (RFC 8441
/// section 5).
///
/// - A body of unknown length is announced as chunked: the caller writes the chunks. An ended POST, PUT or PATCH gets
///   `content-length: 0`, which servers of HTTP/1.1 wait for (RFC 9110 section 8.6).
/// - An extended CONNECT becomes a GET that asks for an upgrade, without a body.
/// - With `https` the target is in absolute form, so that the scheme survives; it goes upstream in origin form, as any
///   other.
///
/// # Errors
/// Then nothing is appended.
pub fn request_to_text<'a>(
    out: &mut Vec<u8>,
    pseudo: &Pseudo<'_>,
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
    ended: bool,
    key: [u8; 16],
) -> Result<Shape, Refused> {
    let seen = survey(fields.clone(), ended)?;
    let line = Line::new(pseudo, &seen)?;
    line.write(out);
    let mut cookies_written = false;
    for (name, value) in fields.clone() {
        match kind_of(name) {
            FieldKind::Host => {}
            FieldKind::ContentLength if line.protocol.is_some() => {}
            FieldKind::Cookie if cookies_written => {}
            FieldKind::Cookie => {
                cookies_written = true;
                cookie(out, fields.clone());
            }
            _ => field(out, name, value),
        }
    }
    if let Some(protocol) = line.protocol {
        out.extend_from_slice(b"connection: upgrade\r\n");
        field(out, b"upgrade", protocol);
        if protocol.eq_ignore_ascii_case(b"websocket") && !seen.has_websocket_key {
            field(out, b"sec-websocket-key", &base64(key));
        }
    } else if seen.length.is_none() && line.path.is_some() {
        match (ended, line.method) {
            (false, _) => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            (true, b"POST" | b"PUT" | b"PATCH") => out.extend_from_slice(b"content-length: 0\r\n"),
            (true, _) => {}
        }
    }
    out.extend_from_slice(b"\r\n");
    let method = if line.protocol.is_some() { Method::Get } else { Method::named(line.method) };
    Ok(Shape { method, is_extended: line.protocol.is_some(), framing: line.framing(seen.length, ended) })
}

/// What the fields of a request say.
#[derive(Default)]
struct Survey<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    has_websocket_key: bool,
}

/// Checks the fields of a request, before anything is written.
fn survey<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])>, ended: bool) -> Result<Survey<'a>, Refused> {
    let mut seen = Survey::default();
    let (mut count, mut crumbs) = (0, 0);
    for (name, value) in fields {
        count += 1;
        match check(name, value)? {
            FieldKind::Host if seen.host.replace(value).is_some() => return Err(Malformed::HostMismatch.into()),
            FieldKind::ContentLength => length(&mut seen.length, value, ended)?,
            FieldKind::Te if !value.eq_ignore_ascii_case(b"trailers") => return Err(Malformed::Te.into()),
            FieldKind::Cookie => crumbs += 1,
            FieldKind::Other => seen.has_websocket_key |= name == b"sec-websocket-key",
            _ => {}
        }
    }
    // Crumbs (RFC 9113 section 8.2.3) become one field, but each has cost us a field. They come from applications only: our
    // sidecars send a cookie as they have it, in one.
    let count_max = if crumbs > 1 { HEAD_FIELDS_MAX } else { NEXT_HOP_HEAD_FIELDS_MAX };
    if count > count_max { Err(Refusal::TooManyFields.into()) } else { Ok(seen) }
}

/// Reads a Content-Length.
fn length(seen: &mut Option<u64>, value: &[u8], ended: bool) -> Result<(), Malformed> {
    let length = rules::length(value).ok_or(Malformed::BadLength)?;
    if seen.replace(length).is_some() {
        return Err(Malformed::BadLength);
    }
    if ended && length != 0 { Err(Malformed::LengthMismatch) } else { Ok(()) }
}

/// Checks what every field line of HTTP/2 must keep, lest it end a line of text or say something about a connection, and
/// tells what the field is.
fn check(name: &[u8], value: &[u8]) -> Result<FieldKind, Malformed> {
    if name.first() == Some(&b':') {
        return Err(Malformed::PseudoField);
    }
    if !is_token(name) {
        return Err(Malformed::BadName);
    }
    if name.iter().any(u8::is_ascii_uppercase) {
        return Err(Malformed::UppercaseName);
    }
    let is_blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    // Without a branch per byte.
    let has_control = value.iter().fold(false, |found, &b| found | (b < b' ') & (b != b'\t') | (b == 0x7f));
    if has_control || is_blank(value.first()) || is_blank(value.last()) {
        return Err(Malformed::BadValue);
    }
    match kind_of(name) {
        FieldKind::Connection
        | FieldKind::KeepAlive
        | FieldKind::ProxyConnection
        | FieldKind::TransferEncoding
        | FieldKind::Upgrade => Err(Malformed::ConnectionField),
        kind => Ok(kind),
    }
}

/// The pseudo fields of a request, once they are known to make sense together.
struct Line<'a> {
    method: &'a [u8],
    https: bool,
    authority: &'a [u8],
    /// `None` of a CONNECT that is not extended.
    path: Option<&'a [u8]>,
    /// Of an extended CONNECT.
    protocol: Option<&'a [u8]>,
}

impl<'a> Line<'a> {
    fn new(pseudo: &Pseudo<'a>, seen: &Survey<'a>) -> Result<Self, Refused> {
        let &Pseudo { method, scheme, authority, path, protocol } = pseudo;
        if method.is_empty() {
            return Err(Malformed::MissingPseudo.into());
        }
        if !is_token(method) {
            return Err(Malformed::BadMethod.into());
        }
        let is_connect = method == b"CONNECT";
        let is_plain_connect = is_connect && protocol.is_none();
        if protocol.is_some() && !is_connect || is_plain_connect && (scheme.is_some() || path.is_some()) {
            return Err(Malformed::BadConnect.into());
        }
        let host = seen.host.filter(|_| !is_plain_connect);
        let authority = authority.or(host).ok_or(Malformed::MissingPseudo)?;
        if authority.is_empty() || has_blank(authority) {
            return Err(Malformed::BadAuthority.into());
        }
        let https = scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"https"));
        if seen.host.is_some_and(|host| !is_same_host(host, authority, https)) {
            return Err(Malformed::HostMismatch.into());
        }
        if is_plain_connect {
            return Ok(Self { method, https, authority, path: None, protocol: None });
        }
        let (Some(scheme), Some(path)) = (scheme, path) else { return Err(Malformed::MissingPseudo.into()) };
        if has_blank(path) || !(path.first() == Some(&b'/') || path == b"*" && method == b"OPTIONS") {
            return Err(Malformed::BadPath.into());
        }
        if !https && !scheme.eq_ignore_ascii_case(b"http") {
            return Err(Refusal::SchemeUnsupported.into());
        }
        if let Some(protocol) = protocol {
            if !is_upgrade_protocol(protocol) {
                return Err(Malformed::BadProtocol.into());
            }
            if seen.length.is_some_and(|length| length != 0) {
                return Err(Refusal::ConnectWithBody.into());
            }
        }
        let method = if protocol.is_some() { b"GET" } else { method };
        Ok(Self { method, https, authority, path: Some(path), protocol })
    }

    /// How what follows the head is written.
    fn framing(&self, length: Option<u64>, ended: bool) -> BodyFraming {
        match length {
            _ if ended => BodyFraming::None,
            _ if self.protocol.is_some() || self.path.is_none() => BodyFraming::UntilClose,
            Some(length) => BodyFraming::Length(length),
            None => BodyFraming::Chunked,
        }
    }

    /// Writes the request line and Host.
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.method);
        out.push(b' ');
        match self.path {
            None => out.extend_from_slice(self.authority),
            Some(path) if self.https => {
                out.extend_from_slice(b"https://");
                out.extend_from_slice(self.authority);
                // RFC 9112 section 3.2.4: the absolute form of `*` has no path.
                out.extend_from_slice(if path == b"*" { b"" } else { path });
            }
            Some(path) => out.extend_from_slice(path),
        }
        out.extend_from_slice(b" HTTP/1.1\r\n");
        field(out, b"host", self.authority);
    }
}

/// What would end a part of the request line, or the line. Other bytes that do not belong there are named by the parser.
fn has_blank(part: &[u8]) -> bool {
    part.iter().any(|&b| b <= b' ' || b == 0x7f)
}

/// Whether Host says what `:authority` says. RFC 9113 section 8.3.1 asks for normalisation by the scheme: the case of
/// letters and the default port mean nothing.
fn is_same_host(host: &[u8], authority: &[u8], https: bool) -> bool {
    let port: &[u8] = if https { b":443" } else { b":80" };
    let without_port = |authority: &'_ [u8]| authority.len() - if authority.ends_with(port) { port.len() } else { 0 };
    host[..without_port(host)].eq_ignore_ascii_case(&authority[..without_port(authority)])
}

/// All crumbs of a cookie as one line (RFC 9113 section 8.2.3).
fn cookie<'a>(out: &mut Vec<u8>, fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
    out.extend_from_slice(b"cookie: ");
    let crumbs = fields.filter(|(name, value)| kind_of(name) == FieldKind::Cookie && !value.is_empty());
    for (i, (_, crumb)) in crumbs.enumerate() {
        if i > 0 {
            out.extend_from_slice(b"; ");
        }
        out.extend_from_slice(crumb);
    }
    out.extend_from_slice(b"\r\n");
}

/// Base64 (RFC 4648 section 4) of a key.
fn base64(key: [u8; 16]) -> [u8; 24] {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut padded = [0; 18];
    padded[..16].copy_from_slice(&key);
    let mut text = [b'='; 24];
    for (digits, bytes) in text.chunks_exact_mut(4).zip(padded.chunks_exact(3)) {
        let bits = bytes.iter().fold(0, |bits, &byte| bits << 8 | usize::from(byte));
        for (i, digit) in digits.iter_mut().enumerate() {
            *digit = ALPHABET[bits >> (18 - 6 * i) & 63];
        }
    }
    // 16 bytes are 22 digits.
    text[22..].fill(b'=');
    text
}

/// Appends a response that came over HTTP/2 as an HTTP/1.1 head, which [`response::parse`](crate::http::response::parse)
/// has to judge, and returns the framing that the head announces. `method`: of the request as text. `ended`: END_STREAM
/// came with it. `tunnel`: the request was an extended CONNECT, so that a 2xx becomes a 101.
///
/// A body without Content-Length is announced as chunked, ended or not: the caller writes the chunks and the last one.
///
/// # Errors
/// Then nothing is appended.
pub fn response_to_text<'a>(
    out: &mut Vec<u8>,
    status: u16,
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
    ended: bool,
    method: Method,
    tunnel: Option<Upgraded<'_>>,
) -> Result<BodyFraming, Malformed> {
    let is_success = (200..300).contains(&status);
    let upgraded = tunnel.filter(|_| is_success);
    let is_tunnel = upgraded.is_some() || is_success && method == Method::Connect;
    if !(100..600).contains(&status) || status == 101 {
        return Err(Malformed::BadStatus);
    }
    if status < 200 && ended {
        return Err(Malformed::InterimEnd);
    }
    // RFC 9110 section 8.6: there, a length means nothing.
    let is_without_length = is_tunnel || status < 200 || status == 204;
    let is_bodiless = is_without_length || status == 304 || method == Method::Head;
    let mut announced = None;
    for (name, value) in fields.clone() {
        match check(name, value)? {
            // RFC 9110 section 9.3.6: whatever it says.
            FieldKind::ContentLength if is_tunnel => {}
            FieldKind::ContentLength => length(&mut announced, value, ended && !is_bodiless)?,
            FieldKind::Te => return Err(Malformed::Te),
            _ => {}
        }
    }
    status_line(out, if upgraded.is_some() { 101 } else { status }, b"");
    let accept = upgraded.and_then(|upgraded| upgraded.accept);
    for (name, value) in fields {
        let is_left_out = is_without_length && kind_of(name) == FieldKind::ContentLength
            || accept.is_some() && name == b"sec-websocket-accept";
        if !is_left_out {
            field(out, name, value);
        }
    }
    if let Some(upgraded) = upgraded {
        out.extend_from_slice(b"connection: upgrade\r\n");
        field(out, b"upgrade", upgraded.protocol);
    }
    if let Some(accept) = accept {
        field(out, b"sec-websocket-accept", accept);
    }
    let framing = match announced {
        _ if is_bodiless => BodyFraming::None,
        Some(length) => BodyFraming::Length(length),
        None => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            BodyFraming::Chunked
        }
    };
    out.extend_from_slice(b"\r\n");
    Ok(framing)
}

/// Appends the lines of a trailer section, without the empty line at its end; fields that must not come there are left out,
/// see [`is_trailer`].
///
/// # Errors
/// Then nothing may be made of what is appended: the message is aborted.
pub fn trailers_to_text<'a>(
    out: &mut Vec<u8>,
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<(), Malformed> {
    for (name, value) in fields {
        check(name, value)?;
        if is_trailer(name) {
            field(out, name, value);
        }
    }
    Ok(())
}
