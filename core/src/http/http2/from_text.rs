//! What our writer wrote, taken apart for HTTP/2.

use super::super::head::{BodyFraming, Method};
use super::super::kind::{FieldKind, is_token, trim};
use super::super::lines::{self, Next};
use super::super::request::is_upgrade_protocol;
use super::super::rules;

/// A request head in text, taken apart for HTTP/2. The scheme is not in it.
#[derive(Clone, Copy, Debug)]
pub struct RequestText<'a> {
    /// Bytes of the text that the head takes.
    pub len: usize,
    /// `:method`; `CONNECT` where `protocol` says what for.
    pub method: &'a [u8],
    /// `:path`, with query; `None` of a CONNECT that is not extended.
    pub path: Option<&'a [u8]>,
    /// `:authority`.
    pub authority: &'a [u8],
    /// `:protocol`: the text asks for an upgrade, with GET and without a body, and becomes an extended CONNECT. Upgrades that
    /// come with anything else are ignored, as RFC 9110 section 7.8 lets a server do.
    pub protocol: Option<&'a [u8]>,
    /// How the body ends in text.
    pub framing: BodyFraming,
    lines: Found<'a>,
}

impl<'a> RequestText<'a> {
    /// What goes on: all but Host and what is about an HTTP/1.1 connection; `te` as `trailers` only. Names in any case.
    pub fn fields(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone {
        let is_tunnel = self.protocol.is_some();
        self.lines
            .iter()
            .filter(move |line| match line.kind {
                FieldKind::Host => false,
                FieldKind::ContentLength => !is_tunnel,
                FieldKind::Te => line.value.eq_ignore_ascii_case(b"trailers"),
                FieldKind::Other => !(is_tunnel && line.is_named(WEBSOCKET_KEY)),
                kind => !is_about_connection(kind),
            })
            .map(Line::pair)
    }

    /// Sec-WebSocket-Key: what the answer to an upgrade is made of (RFC 6455 section 4.2.2).
    #[must_use]
    pub fn websocket_key(&self) -> Option<&'a [u8]> {
        self.lines.iter().find(|line| line.is_named(WEBSOCKET_KEY)).map(|line| line.value)
    }
}

/// A response head in text, final or interim, taken apart for HTTP/2.
#[derive(Clone, Copy, Debug)]
pub struct ResponseText<'a> {
    /// Bytes of the text that the head takes.
    pub len: usize,
    /// `:status`: 200 for a 101.
    pub status: u16,
    /// How the body ends in text. [`BodyFraming::None`] of a tunnel.
    pub framing: BodyFraming,
    /// After this head the connection is a tunnel: a 101, or a 2xx to CONNECT.
    pub is_tunnel: bool,
    is_without_length: bool,
    is_upgraded: bool,
    lines: Found<'a>,
}

impl<'a> ResponseText<'a> {
    /// What goes on: all but what is about an HTTP/1.1 connection or, of a 101, its protocol. Names in any case.
    pub fn fields(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone {
        let (is_without_length, is_upgraded) = (self.is_without_length, self.is_upgraded);
        self.lines
            .iter()
            .filter(move |line| match line.kind {
                FieldKind::ContentLength => !is_without_length,
                FieldKind::Te => false,
                FieldKind::Other => !(is_upgraded && line.is_named(WEBSOCKET_ACCEPT)),
                kind => !is_about_connection(kind),
            })
            .map(Line::pair)
    }

    /// Sec-WebSocket-Accept: that a server has read the key it was sent (RFC 6455 section 4.2.2). Over HTTP/2 nobody asks for
    /// it, so that whoever has made the key checks it.
    #[must_use]
    pub fn websocket_accept(&self) -> Option<&'a [u8]> {
        self.lines.iter().find(|line| line.is_named(WEBSOCKET_ACCEPT)).map(|line| line.value)
    }

    /// Whether another head follows for the same request.
    #[must_use]
    pub fn is_interim(&self) -> bool {
        self.status < 200
    }
}

const WEBSOCKET_KEY: &[u8] = b"sec-websocket-key";
const WEBSOCKET_ACCEPT: &[u8] = b"sec-websocket-accept";

/// RFC 9113 section 8.2.2.
fn is_about_connection(kind: FieldKind) -> bool {
    matches!(
        kind,
        FieldKind::Connection
            | FieldKind::KeepAlive
            | FieldKind::ProxyConnection
            | FieldKind::TransferEncoding
            | FieldKind::Upgrade
            | FieldKind::Http2Settings
    )
}

/// What a target in absolute form is in origin form: [`request_to_text`](super::request_to_text) writes the former for `https`.
fn origin_form(target: &[u8]) -> &[u8] {
    let Some(rest) = target.strip_prefix(b"https://") else { return target };
    rest.iter().position(|&b| b == b'/').map_or(b"*", |at| &rest[at..])
}

/// Takes the request head at the beginning of `text` apart, as [`request_head`](crate::http::request_head) writes it.
/// `None`: it is not whole, or not one of ours.
#[must_use]
pub fn request_from_text(text: &[u8]) -> Option<RequestText<'_>> {
    let (line, section) = first_line(text)?;
    let mut parts = line.split(|&b| b == b' ');
    let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
    if !is_token(method) || !target.iter().all(u8::is_ascii_graphic) || version != b"HTTP/1.1" || parts.next().is_some()
    {
        return None;
    }
    let section = Section::read(section)?;
    let target = if method == b"CONNECT" { target } else { origin_form(target) };
    let head = RequestText {
        len: line.len() + 2 + section.len,
        method,
        path: Some(target),
        authority: section.host.filter(|_| !section.is_host_repeated)?,
        protocol: None,
        framing: section.framing.unwrap_or(BodyFraming::None),
        lines: section.lines,
    };
    match (method, target) {
        (b"CONNECT", _) => Some(RequestText { path: None, authority: target, framing: BodyFraming::None, ..head }),
        (b"GET", [b'/', ..]) if !head.framing.has_body() && section.protocol().is_some() => {
            Some(RequestText { method: b"CONNECT", protocol: section.protocol(), framing: BodyFraming::None, ..head })
        }
        (_, [b'/', ..]) | (b"OPTIONS", b"*") => Some(head),
        _ => None,
    }
}

/// Takes the response head at the beginning of `text` apart, as [`response_head`](crate::http::response_head) or
/// [`write_response`](crate::http::status::write_response) writes it. `method`: of the request that it answers, as text.
/// `None`: it is not whole, or not one of ours.
#[must_use]
pub fn response_from_text(text: &[u8], method: Method) -> Option<ResponseText<'_>> {
    let (line, section) = first_line(text)?;
    let (digits, reason) = line.strip_prefix(b"HTTP/1.1 ")?.split_first_chunk::<3>()?;
    if !digits.iter().all(u8::is_ascii_digit) || !matches!(reason, [] | [b' ', ..]) {
        return None;
    }
    let status = digits.iter().fold(0, |status, b| status * 10 + u16::from(b - b'0'));
    if !(100..600).contains(&status) {
        return None;
    }
    let section = Section::read(section)?;
    let is_upgraded = status == 101;
    let is_tunnel = is_upgraded || method == Method::Connect && (200..300).contains(&status);
    let is_without_length = is_tunnel || status < 200 || status == 204;
    let is_bodiless = is_without_length || status == 304 || method == Method::Head;
    Some(ResponseText {
        len: line.len() + 2 + section.len,
        status: if is_upgraded { 200 } else { status },
        framing: if is_bodiless { BodyFraming::None } else { section.framing.unwrap_or(BodyFraming::UntilClose) },
        is_tunnel,
        is_without_length,
        is_upgraded,
        lines: section.lines,
    })
}

/// The first line without its end, and what follows.
fn first_line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let line_feed = memchr::memchr(b'\n', text)?;
    let line = text[..line_feed].strip_suffix(b"\r")?;
    Some((line, &text[line_feed + 1..]))
}

/// One field line.
#[derive(Clone, Copy)]
struct Line<'a> {
    kind: FieldKind,
    name: &'a [u8],
    value: &'a [u8],
}

impl<'a> Line<'a> {
    fn is_named(&self, lower: &[u8]) -> bool {
        self.name.eq_ignore_ascii_case(lower)
    }

    fn pair(self) -> (&'a [u8], &'a [u8]) {
        (self.name, self.value)
    }
}

/// Lines of a section whose places are kept: most heads have fewer.
const PLACES_MAX: usize = 16;

/// Where the parts of a line lie in a section.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    kind: FieldKind,
    start: u16,
    name_end: u16,
    value_start: u16,
    value_end: u16,
}

impl Place {
    /// Of a line that begins at `at`. `None`: too far behind.
    fn of(at: usize, line: &lines::Line) -> Option<Self> {
        // The line's parts lie before its end.
        u16::try_from(at + line.len).ok()?;
        let position = |offset: usize| (at + offset) as u16;
        Some(Self {
            kind: line.kind,
            start: position(0),
            name_end: position(line.name_len),
            value_start: position(line.value_start),
            value_end: position(line.value_end),
        })
    }

    fn line<'a>(&self, text: &'a [u8]) -> Line<'a> {
        let part = |start: u16, end: u16| &text[usize::from(start)..usize::from(end)];
        Line { kind: self.kind, name: part(self.start, self.name_end), value: part(self.value_start, self.value_end) }
    }
}

/// The field lines of a section that was read. The first ones are found once, and not again when they are written.
#[derive(Clone, Copy, Debug)]
struct Found<'a> {
    text: &'a [u8],
    places: [Place; PLACES_MAX],
    count: usize,
    /// Bytes of those lines.
    placed: usize,
}

impl<'a> Found<'a> {
    fn iter(&self) -> impl Iterator<Item = Line<'a>> + Clone {
        let text = self.text;
        self.places[..self.count].iter().map(move |place| place.line(text)).chain(Lines(&text[self.placed..]))
    }
}

/// The field lines at the beginning of a text, up to what is none.
#[derive(Clone)]
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        if self.0.is_empty() {
            return None;
        }
        let Next::Field(line) = lines::next(self.0) else { return None };
        let (text, rest) = self.0.split_at(line.len);
        self.0 = rest;
        Some(line_of(&line, text))
    }
}

fn line_of<'a>(line: &lines::Line, text: &'a [u8]) -> Line<'a> {
    Line { kind: line.kind, name: &text[..line.name_len], value: &text[line.value_start..line.value_end] }
}

/// A whole header section, and what it says about the message.
struct Section<'a> {
    /// The field lines.
    lines: Found<'a>,
    /// Bytes of the section, the empty line included.
    len: usize,
    host: Option<&'a [u8]>,
    /// In a request that would be ambiguous, in a response it means nothing.
    is_host_repeated: bool,
    framing: Option<BodyFraming>,
    /// The last Upgrade; of requests we write it once.
    upgrade: Option<&'a [u8]>,
    /// Whether Connection has `upgrade`.
    is_upgrade: bool,
}

impl<'a> Section<'a> {
    /// `None` also where its framing is ambiguous: we never write that.
    fn read(text: &'a [u8]) -> Option<Self> {
        let lines = Found { text, places: [Place::default(); PLACES_MAX], count: 0, placed: 0 };
        let mut section = Self {
            lines,
            len: 0,
            host: None,
            is_host_repeated: false,
            framing: None,
            upgrade: None,
            is_upgrade: false,
        };
        let mut at = 0;
        loop {
            let rest = &text[at..];
            let found = match lines::next(rest) {
                Next::Field(found) => found,
                Next::End => break,
                Next::Unfinished | Next::Malformed => return None,
            };
            let value = || &rest[found.value_start..found.value_end];
            let lines = &mut section.lines;
            if lines.placed == at
                && let Some(slot) = lines.places.get_mut(lines.count)
                && let Some(place) = Place::of(at, &found)
            {
                *slot = place;
                lines.count += 1;
                lines.placed += found.len;
            }
            at += found.len;
            let framing = match found.kind {
                FieldKind::ContentLength => BodyFraming::Length(rules::length(value())?),
                FieldKind::TransferEncoding if value().eq_ignore_ascii_case(b"chunked") => BodyFraming::Chunked,
                FieldKind::TransferEncoding => return None,
                FieldKind::Host | FieldKind::Upgrade | FieldKind::Connection => {
                    section.note(line_of(&found, rest));
                    continue;
                }
                _ => continue,
            };
            if section.framing.replace(framing).is_some() {
                return None;
            }
        }
        section.lines.text = &text[..at];
        section.len = at + 2;
        Some(section)
    }

    fn note(&mut self, line: Line<'a>) {
        match line.kind {
            FieldKind::Host => self.is_host_repeated |= self.host.replace(line.value).is_some(),
            FieldKind::Upgrade => self.upgrade = Some(line.value),
            FieldKind::Connection => {
                let mut options = line.value.split(|&b| b == b',').map(trim);
                self.is_upgrade |= options.any(|option| option.eq_ignore_ascii_case(b"upgrade"));
            }
            _ => {}
        }
    }

    /// The protocol that an upgrade is asked for.
    fn protocol(&self) -> Option<&'a [u8]> {
        self.upgrade.filter(|protocol| self.is_upgrade && is_upgrade_protocol(protocol))
    }
}
