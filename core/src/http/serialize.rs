//! Heads for the next hop, written from what was parsed.
//!
//! Fields that concern one hop only are left out (RFC 9110 section 7.6.1), the framing is announced anew, the version is
//! ours. What stays is copied in runs of whole lines wherever the lines are spelled `name: value CR LF`; any other
//! spelling is written in that form.

use super::fields::Fields;
use super::forwarding::via_line;
use super::head::{BodyFraming, Method, Version};
use super::kind::{FieldKind, KindSet};
use super::request::{RequestHead, TargetForm};
use super::response::ResponseHead;
use super::status;

/// Changes to the fields of a head, applied in Envoy's order: remove, set, add. Implemented by the proxy over the
/// routing table, so that nothing is allocated.
pub trait HeaderEdits {
    /// Whether there is no change at all.
    fn is_empty(&self) -> bool;
    /// Whether received fields of this name (as received, in any case) are left out: it is removed, or set to
    /// something else.
    fn removes(&self, name: &[u8]) -> bool;
    /// Writes the fields that are set and then those that are added, each as `name: value CR LF`.
    fn append(&self, out: &mut Vec<u8>);
}

/// No change.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEdits;

impl HeaderEdits for NoEdits {
    fn is_empty(&self) -> bool {
        true
    }

    fn removes(&self, _name: &[u8]) -> bool {
        false
    }

    fn append(&self, _out: &mut Vec<u8>) {}
}

impl<T: HeaderEdits + ?Sized> HeaderEdits for &T {
    fn is_empty(&self) -> bool {
        (**self).is_empty()
    }

    fn removes(&self, name: &[u8]) -> bool {
        (**self).removes(name)
    }

    fn append(&self, out: &mut Vec<u8>) {
        (**self).append(out);
    }
}

impl<T: HeaderEdits> HeaderEdits for Option<T> {
    fn is_empty(&self) -> bool {
        self.as_ref().is_none_or(HeaderEdits::is_empty)
    }

    fn removes(&self, name: &[u8]) -> bool {
        self.as_ref().is_some_and(|edits| edits.removes(name))
    }

    fn append(&self, out: &mut Vec<u8>) {
        if let Some(edits) = self {
            edits.append(out);
        }
    }
}

/// What the Connection field of the head that we write says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectionOption {
    /// Nothing: HTTP/1.1 persists without saying so.
    Implied,
    /// `keep-alive`, for an HTTP/1.0 client that asked for it.
    KeepAlive,
    /// `close`.
    Close,
    /// `upgrade`; the received Upgrade field goes with it.
    Upgrade,
}

/// What is said of how a message was received (RFC 9110 section 7.6.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Via {
    /// Nothing.
    Nothing,
    /// The version of its text.
    Http1,
    /// HTTP/2, from which the text was made.
    Http2,
}

/// How to write a request for the next hop.
#[derive(Clone, Copy, Debug)]
pub struct RequestOut<'a, E> {
    /// Replaces the path with these two pieces, concatenated: a rewritten prefix and the rest, or the normalised path and
    /// nothing. The query stays.
    pub path: Option<[&'a [u8]; 2]>,
    /// Replaces the query; empty for none.
    pub query: Option<&'a [u8]>,
    /// Replaces the authority in Host.
    pub authority: Option<&'a [u8]>,
    /// The framing of the body that will follow.
    pub framing: BodyFraming,
    /// What Connection says.
    pub connection: ConnectionOption,
    /// What is appended to Via, unless the edits remove or set it.
    pub via: Via,
    /// Kinds of received fields to leave out.
    pub drop: KindSet,
    /// Changes to the fields.
    pub edits: &'a E,
    /// Ready lines (`name: value CR LF`) to append after the edits.
    pub extra: &'a [u8],
}

impl<'a, E> RequestOut<'a, E> {
    /// As received, but for the edits.
    #[inline]
    #[must_use]
    pub fn new(head: &RequestHead, edits: &'a E) -> Self {
        Self {
            path: None,
            query: None,
            authority: None,
            framing: head.framing,
            connection: ConnectionOption::Implied,
            via: Via::Nothing,
            drop: KindSet::EMPTY,
            edits,
            extra: b"",
        }
    }
}

/// Room for the lines that are written beside the received ones, in bytes.
const OWN_LINES_BYTES: usize = 256;

/// Appends a request head to `out`. `buf` is the buffer that `head` and `fields` were parsed from.
pub fn request_head<E: HeaderEdits>(
    out: &mut Vec<u8>,
    buf: &[u8],
    head: &RequestHead,
    fields: &Fields,
    how: &RequestOut<'_, E>,
) {
    out.reserve(head.len + OWN_LINES_BYTES + how.extra.len());
    let is_line_kept = how.path.is_none()
        && how.query.is_none()
        && head.form != TargetForm::Absolute
        && head.version == Version::Http11;
    let writes_host = how.authority.is_some() || matches!(head.form, TargetForm::Absolute | TargetForm::Authority);
    let mut skip = fields.hop_mask() | fields.mask_of(how.drop) | edited(buf, fields, how.edits);
    let mut from = fields.lines_start();
    if is_line_kept && !writes_host {
        from = head.method_name.start as usize;
    } else if is_line_kept {
        out.extend_from_slice(&buf[head.method_name.start as usize..from]);
    } else {
        request_line(out, buf, head, how.path, how.query);
    }
    if writes_host {
        skip |= fields.mask_of(KindSet::of(&[FieldKind::Host]));
        field(out, b"host", how.authority.unwrap_or(head.authority_full.of(buf)));
    }
    copy_lines(out, buf, fields, from, skip);
    if head.te_trailers {
        out.extend_from_slice(b"te: trailers\r\n");
    }
    connection(out, how.connection, head.te_trailers);
    if how.connection == ConnectionOption::Upgrade {
        upgrade(out, buf, fields);
    }
    framing(out, how.framing);
    if how.via != Via::Nothing && !removes(how.edits, b"via") {
        out.extend_from_slice(via_line(how.via, head.version));
    }
    if !how.edits.is_empty() {
        how.edits.append(out);
    }
    out.extend_from_slice(how.extra);
    out.extend_from_slice(b"\r\n");
}

/// The request line where it is not the received one: absolute form becomes origin form, HTTP/1.0 becomes ours.
fn request_line(out: &mut Vec<u8>, buf: &[u8], head: &RequestHead, path: Option<[&[u8]; 2]>, query: Option<&[u8]>) {
    out.extend_from_slice(head.method_name.of(buf));
    out.push(b' ');
    match (head.form, path) {
        (TargetForm::Authority | TargetForm::Asterisk, _) => out.extend_from_slice(head.target.of(buf)),
        // RFC 9112 section 3.2.4: the last proxy turns this into the asterisk form.
        (TargetForm::Absolute, None)
            if head.method == Method::Options && head.path.is_empty() && head.query.is_none() =>
        {
            out.push(b'*');
        }
        (_, path) => {
            match path {
                Some([prefix, rest]) if prefix.len() + rest.len() > 0 => {
                    out.extend_from_slice(prefix);
                    out.extend_from_slice(rest);
                }
                Some(_) => out.push(b'/'),
                None => out.extend_from_slice(head.path_of(buf)),
            }
            let received = || head.query.map(|span| span.of(buf));
            let query = query.map_or_else(received, |query| (!query.is_empty()).then_some(query));
            if let Some(query) = query {
                out.push(b'?');
                out.extend_from_slice(query);
            }
        }
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// How to write a response for the client.
#[derive(Clone, Copy, Debug)]
pub struct ResponseOut<'a, E> {
    /// The framing of the body that will follow. [`BodyFraming::UntilClose`] implies `connection: close`.
    pub framing: BodyFraming,
    /// What Connection says.
    pub connection: ConnectionOption,
    /// What is appended to Via, unless the edits remove or set it.
    pub via: Via,
    /// Kinds of received fields to leave out.
    pub drop: KindSet,
    /// Changes to the fields.
    pub edits: &'a E,
    /// Ready lines (`name: value CR LF`) to append after the edits.
    pub extra: &'a [u8],
    /// The value of a Date field to add where the server sent none (RFC 9110 section 6.6.1).
    pub date: Option<&'a [u8]>,
}

impl<'a, E> ResponseOut<'a, E> {
    /// As received, but for the edits.
    #[inline]
    #[must_use]
    pub fn new(head: &ResponseHead, edits: &'a E) -> Self {
        Self {
            framing: head.framing,
            connection: ConnectionOption::Implied,
            via: Via::Nothing,
            drop: KindSet::EMPTY,
            edits,
            extra: b"",
            date: None,
        }
    }
}

/// Appends a response head to `out`. `buf` is the buffer that `head` and `fields` were parsed from.
pub fn response_head<E: HeaderEdits>(
    out: &mut Vec<u8>,
    buf: &[u8],
    head: &ResponseHead,
    fields: &Fields,
    how: &ResponseOut<'_, E>,
) {
    out.reserve(head.len + OWN_LINES_BYTES + how.extra.len());
    let skip = fields.hop_mask() | fields.mask_of(how.drop) | edited(buf, fields, how.edits);
    let mut from = fields.lines_start();
    if head.version == Version::Http11 && !head.reason.is_empty() {
        from = 0;
    } else {
        status_line(out, head.status, head.reason.of(buf));
    }
    copy_lines(out, buf, fields, from, skip);
    // A Date that Connection nominates is not relayed: the client gets one all the same.
    if let Some(date) = how.date
        && fields.mask_of(KindSet::of(&[FieldKind::Date])) & !skip == 0
        && !removes(how.edits, b"date")
    {
        field(out, b"date", date);
    }
    let option = match how.framing {
        BodyFraming::UntilClose => ConnectionOption::Close,
        _ => how.connection,
    };
    connection(out, option, false);
    if option == ConnectionOption::Upgrade {
        upgrade(out, buf, fields);
    }
    match (how.framing, head.announced_length) {
        (BodyFraming::None, Some(length)) => framing(out, BodyFraming::Length(length)),
        _ => framing(out, how.framing),
    }
    if how.via != Via::Nothing && !removes(how.edits, b"via") {
        out.extend_from_slice(via_line(how.via, head.version));
    }
    if !how.edits.is_empty() {
        how.edits.append(out);
    }
    out.extend_from_slice(how.extra);
    out.extend_from_slice(b"\r\n");
}

/// Appends a status line with the reason phrase given, or the usual one for an empty reason.
pub(super) fn status_line(out: &mut Vec<u8>, status: u16, reason: &[u8]) {
    let digits = [b'0' + (status / 100 % 10) as u8, b'0' + (status / 10 % 10) as u8, b'0' + (status % 10) as u8];
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(&digits);
    out.push(b' ');
    out.extend_from_slice(if reason.is_empty() { status::reason(status).as_bytes() } else { reason });
    out.extend_from_slice(b"\r\n");
}

/// Appends one field line. The caller vouches for the name and the value.
#[inline]
pub fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Appends one field line with all the received values of a kind and one of ours at the end: `x-forwarded-for: a, b, us`.
/// Leave the received ones out with `drop`.
pub fn joined_field(out: &mut Vec<u8>, buf: &[u8], fields: &Fields, kind: FieldKind, name: &[u8], appended: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    for value in fields.values_of(buf, kind).filter(|value| !value.is_empty()) {
        out.extend_from_slice(value);
        out.extend_from_slice(b", ");
    }
    out.extend_from_slice(appended);
    out.extend_from_slice(b"\r\n");
}

/// Whether the edits leave a field of this name out.
#[inline]
fn removes<E: HeaderEdits>(edits: &E, name: &[u8]) -> bool {
    !edits.is_empty() && edits.removes(name)
}

/// One bit for each field that the edits leave out.
#[inline]
fn edited<E: HeaderEdits>(buf: &[u8], fields: &Fields, edits: &E) -> u128 {
    if edits.is_empty() {
        return 0;
    }
    let removed = fields.iter().enumerate().filter(|(_, field)| edits.removes(field.name.of(buf)));
    removed.fold(0, |mask, (i, _)| mask | 1 << i)
}

/// Copies everything from `from` to the end of the field lines, except the fields in `skip`.
#[inline]
fn copy_lines(out: &mut Vec<u8>, buf: &[u8], fields: &Fields, from: usize, skip: u128) {
    let mut from = from;
    let loose = fields.loose_mask();
    let mut special = skip | loose;
    while special != 0 {
        let i = special.trailing_zeros() as usize;
        special &= special - 1;
        let received = &fields.as_slice()[i];
        out.extend_from_slice(&buf[from..received.name.start as usize]);
        from = fields.line_end(i);
        if skip & (1 << i) == 0 {
            field(out, received.name.of(buf), received.value.of(buf));
        }
    }
    out.extend_from_slice(&buf[from..fields.lines_end()]);
}

fn connection(out: &mut Vec<u8>, option: ConnectionOption, te: bool) {
    let line: &[u8] = match (option, te) {
        (ConnectionOption::Implied, false) => return,
        (ConnectionOption::Implied, true) => b"connection: te\r\n",
        (ConnectionOption::KeepAlive, false) => b"connection: keep-alive\r\n",
        (ConnectionOption::KeepAlive, true) => b"connection: keep-alive, te\r\n",
        (ConnectionOption::Close, false) => b"connection: close\r\n",
        (ConnectionOption::Close, true) => b"connection: close, te\r\n",
        (ConnectionOption::Upgrade, false) => b"connection: upgrade\r\n",
        (ConnectionOption::Upgrade, true) => b"connection: upgrade, te\r\n",
    };
    out.extend_from_slice(line);
}

fn upgrade(out: &mut Vec<u8>, buf: &[u8], fields: &Fields) {
    for value in fields.values_of(buf, FieldKind::Upgrade) {
        field(out, b"upgrade", value);
    }
}

#[inline]
fn framing(out: &mut Vec<u8>, framing: BodyFraming) {
    match framing {
        BodyFraming::None | BodyFraming::UntilClose => {}
        BodyFraming::Length(length) => {
            let mut digits = itoa::Buffer::new();
            field(out, b"content-length", digits.format(length).as_bytes());
        }
        BodyFraming::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
}
