//! What a hop says about the message that it forwards: X-Forwarded-*, Forwarded (RFC 7239), X-Request-Id, Max-Forwards.
//! (Via is the serializer's: it concerns responses, too.)
//!
//! A peer is trusted or not. What a trusted one says is kept and added to. What another says about where a request came
//! from is replaced by what we see ourselves, or removed where we know nothing better: services behind us must be able to
//! believe these fields. X-Forwarded-For alone is kept from anyone, with the peer appended: whoever reads it counts
//! trusted hops from its end ([`client_address`]).
//!
//! Values come out of parsed spans, which hold no control characters, so that no line can be injected.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};

use super::fields::Fields;
use super::head::Version;
use super::kind::{FieldKind as K, KindSet, trim};
use super::request::RequestHead;
use super::serialize::{HeaderEdits, Via, joined_field};
use crate::limits::REQUEST_ID_BYTES_MAX;

/// Bytes of a request id that we make: a UUID in text (RFC 9562 section 4).
pub const REQUEST_ID_BYTES: usize = 36;

/// The hop that a request came over, as this proxy sees it.
#[derive(Clone, Copy, Debug)]
pub struct Hop {
    /// The address of the peer; an IPv4 address that is mapped to IPv6 is written as IPv4.
    pub peer: IpAddr,
    /// Whether the request came over TLS.
    pub is_https: bool,
    /// The port of the listener.
    pub port: u16,
    /// Whether the peer is believed in what its forwarding fields say.
    pub is_trusted: bool,
    /// The id of a request that brings none which is kept; see [`kept_request_id`]. `None`: ids are disabled, and what is
    /// received is left alone (Istio `proxyHeaders.requestId.disabled`, Envoy `generate_request_id`).
    pub new_request_id: Option<[u8; REQUEST_ID_BYTES]>,
    /// Whether the upstream gets another Host than the client has sent.
    pub is_host_rewritten: bool,
    /// What Via says of it.
    pub via: Via,
}

/// Kinds that an untrusted peer may not set and for which we have no value of our own.
const FOR_TRUSTED: KindSet = KindSet::of(&[K::XForwardedClientCert, K::XForwardedOther, K::XEnvoy]);

/// Appends the lines that this hop writes into a request to `out`, and returns the kinds of received fields that they
/// replace: leave those out. Lines that the edits remove or set are not written, as the edits of a route come later than
/// these (Envoy's order).
///
/// - X-Forwarded-For: one line, the peer at its end.
/// - X-Forwarded-Proto: ours, unless a trusted peer has sent one.
/// - X-Forwarded-Host: ours where Host is rewritten or an untrusted peer has sent one.
/// - X-Forwarded-Port: ours where an untrusted peer has sent one.
/// - Forwarded: only where one was received; our element is appended to a trusted list and replaces any other.
/// - X-Request-Id: the received one where it is kept, else the new one.
/// - Max-Forwards of TRACE and OPTIONS: one less. Answer a request with 0 instead of forwarding it.
pub fn request_lines<E: HeaderEdits>(
    out: &mut Vec<u8>,
    buf: &[u8],
    head: &RequestHead,
    fields: &Fields,
    hop: &Hop,
    edits: &E,
) -> KindSet {
    let mut lines = Lines { out, drop: KindSet::EMPTY, edits };
    let peer = AddressText::of(hop.peer);
    let host = head.authority_full.of(buf);
    let replaces = |kind| !hop.is_trusted || !fields.has(kind);

    if lines.writes(K::XForwardedFor, b"x-forwarded-for") {
        joined_field(lines.out, buf, fields, K::XForwardedFor, b"x-forwarded-for", peer.as_bytes());
    }
    if replaces(K::XForwardedProto) && lines.writes(K::XForwardedProto, b"x-forwarded-proto") {
        let line: &[u8] = if hop.is_https { b"x-forwarded-proto: https\r\n" } else { b"x-forwarded-proto: http\r\n" };
        lines.out.extend_from_slice(line);
    }
    if (fields.has(K::XForwardedHost) || hop.is_host_rewritten)
        && replaces(K::XForwardedHost)
        && lines.writes(K::XForwardedHost, b"x-forwarded-host")
    {
        lines.push(b"x-forwarded-host: ", host);
    }
    if fields.has(K::XForwardedPort)
        && replaces(K::XForwardedPort)
        && lines.writes(K::XForwardedPort, b"x-forwarded-port")
    {
        lines.push(b"x-forwarded-port: ", itoa::Buffer::new().format(hop.port).as_bytes());
    }
    if fields.has(K::Forwarded) && lines.writes(K::Forwarded, b"forwarded") {
        forwarded(lines.out, buf, fields, hop, &peer, host);
    }
    if let Some(id) = &hop.new_request_id
        && kept_request_id(buf, fields, hop.is_trusted).is_none()
        && lines.writes(K::XRequestId, b"x-request-id")
    {
        lines.push(b"x-request-id: ", id);
    }
    if let Some(hops) = head.max_forwards
        && lines.writes(K::MaxForwards, b"max-forwards")
    {
        lines.push(b"max-forwards: ", itoa::Buffer::new().format(hops.saturating_sub(1)).as_bytes());
    }
    if hop.is_trusted { lines.drop } else { lines.drop.union(FOR_TRUSTED) }
}

/// What becomes of X-Forwarded-Client-Cert. Ours is an element in the form of Envoy (`By=..;Hash=..;Subject="..";URI=..;DNS=..`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificate<'a> {
    /// There is none: who vouches for a client is the proxy that has seen its certificate, not the application (Envoy's
    /// `SANITIZE`).
    Removed,
    /// The received elements (Envoy's `FORWARD_ONLY`).
    Received,
    /// The received elements, then ours (`APPEND_FORWARD`).
    Appended(&'a [u8]),
    /// Ours only (`SANITIZE_SET`).
    Set(&'a [u8]),
}

/// Appends the X-Forwarded-Client-Cert line of a request. Returns the kinds of received fields to leave out, beside those of
/// [`request_lines`].
pub fn client_certificate_line<E: HeaderEdits>(
    out: &mut Vec<u8>,
    buf: &[u8],
    fields: &Fields,
    certificate: ClientCertificate<'_>,
    edits: &E,
) -> KindSet {
    let mut lines = Lines { out, drop: KindSet::EMPTY, edits };
    let name = b"x-forwarded-client-cert";
    if !lines.writes(K::XForwardedClientCert, name) {
        return lines.drop;
    }
    let received = || fields.values_of(buf, K::XForwardedClientCert).filter(|value| !value.is_empty());
    match certificate {
        ClientCertificate::Removed => {}
        ClientCertificate::Received => {
            // Written anew, since it is not for trusted peers only.
            for value in received() {
                lines.push(b"x-forwarded-client-cert: ", value);
            }
        }
        ClientCertificate::Appended(element) if received().all(closes_its_quotes) => {
            joined_field(lines.out, buf, fields, K::XForwardedClientCert, name, element);
        }
        // Where a list with an open quotation was received, which would swallow our element, ours is all there is.
        ClientCertificate::Appended(element) | ClientCertificate::Set(element) => {
            lines.push(b"x-forwarded-client-cert: ", element);
        }
    }
    lines.drop
}

/// The lines as they are written.
struct Lines<'a, E> {
    out: &'a mut Vec<u8>,
    drop: KindSet,
    edits: &'a E,
}

impl<E: HeaderEdits> Lines<'_, E> {
    /// Notes that the received fields of this kind are replaced; whether a line is to be written in their place.
    fn writes(&mut self, kind: K, name: &[u8]) -> bool {
        self.drop = self.drop.with(kind);
        self.edits.is_empty() || !self.edits.removes(name)
    }

    fn push(&mut self, name: &[u8], value: &[u8]) {
        self.out.extend_from_slice(name);
        self.out.extend_from_slice(value);
        self.out.extend_from_slice(b"\r\n");
    }
}

/// One Forwarded line with an element of ours (RFC 7239 section 4). An IPv6 address and a host with a port are no tokens and
/// are quoted; neither can hold what ends a quoted string.
fn forwarded(out: &mut Vec<u8>, buf: &[u8], fields: &Fields, hop: &Hop, peer: &AddressText, host: &[u8]) {
    out.extend_from_slice(b"forwarded: ");
    // A list with an open quotation would swallow our element.
    if hop.is_trusted && fields.values_of(buf, K::Forwarded).all(closes_its_quotes) {
        for value in fields.values_of(buf, K::Forwarded).filter(|value| !value.is_empty()) {
            out.extend_from_slice(value);
            out.extend_from_slice(b", ");
        }
    }
    match hop.peer.to_canonical() {
        IpAddr::V4(_) => {
            out.extend_from_slice(b"for=");
            out.extend_from_slice(peer.as_bytes());
        }
        IpAddr::V6(_) => {
            out.extend_from_slice(b"for=\"[");
            out.extend_from_slice(peer.as_bytes());
            out.extend_from_slice(b"]\"");
        }
    }
    if !host.is_empty() {
        out.extend_from_slice(b";host=\"");
        out.extend_from_slice(host);
        out.push(b'"');
    }
    out.extend_from_slice(if hop.is_https { b";proto=https\r\n" } else { b";proto=http\r\n" });
}

/// Whether each quoted string in the value ends (RFC 9110 section 5.6.4).
fn closes_its_quotes(value: &[u8]) -> bool {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for &b in value {
        match b {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_quoted,
            b'"' => is_quoted = !is_quoted,
            _ => {}
        }
    }
    !is_quoted
}

/// An address as text, without a port.
struct AddressText {
    bytes: [u8; Self::BYTES_MAX],
    len: usize,
}

impl AddressText {
    /// `ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255`, the longest that there is.
    const BYTES_MAX: usize = 45;

    fn of(address: IpAddr) -> Self {
        let mut text = Self { bytes: [0; Self::BYTES_MAX], len: 0 };
        match address.to_canonical() {
            // The formatting machinery takes longer than everything else in these lines together, and a call for each of seven
            // parts longer than the digits.
            IpAddr::V4(address) => {
                let [first, rest @ ..] = address.octets();
                text.push_number(first);
                for octet in rest {
                    text.push(b'.');
                    text.push_number(octet);
                }
            }
            IpAddr::V6(address) => {
                let mut rest = &mut text.bytes[..];
                // Cannot fail: see the bound.
                let _ = write!(rest, "{address}");
                text.len = Self::BYTES_MAX - rest.len();
            }
        }
        text
    }

    fn push_number(&mut self, number: u8) {
        if number >= 100 {
            self.push(b'0' + number / 100);
        }
        if number >= 10 {
            self.push(b'0' + number / 10 % 10);
        }
        self.push(b'0' + number % 10);
    }

    fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The received X-Request-Id, where it is kept: from a trusted peer, one line, at most [`REQUEST_ID_BYTES_MAX`] bytes, all of
/// them visible and none that a log line or a list would have to quote.
#[must_use]
pub fn kept_request_id<'b>(buf: &'b [u8], fields: &Fields, is_trusted: bool) -> Option<&'b [u8]> {
    if !is_trusted || fields.is_repeated(K::XRequestId) {
        return None;
    }
    let is_plain = |b: &u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b',');
    let id = fields.first_value(buf, K::XRequestId)?;
    (!id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.iter().all(is_plain)).then_some(id)
}

/// Whether a request is one of the scheme https, as rules and redirects see it: by its target or `:scheme`, by the TLS that it
/// came over, or since a trusted hop says so in X-Forwarded-Proto (Envoy's order, which has `:scheme` from there).
#[must_use]
pub fn is_https(buf: &[u8], head: &RequestHead, fields: &Fields, came_over_tls: bool, is_trusted: bool) -> bool {
    let forwarded =
        || fields.first_value(buf, K::XForwardedProto).is_some_and(|proto| proto.eq_ignore_ascii_case(b"https"));
    head.https || came_over_tls || is_trusted && !fields.is_repeated(K::XForwardedProto) && forwarded()
}

/// A random UUID in text (version 4, RFC 9562 section 5.4), from 16 random bytes.
#[must_use]
pub fn new_request_id(mut random: [u8; 16]) -> [u8; REQUEST_ID_BYTES] {
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    let mut digits = [0_u8; 32];
    for (digits, bytes) in digits.as_chunks_mut().0.iter_mut().zip(random.as_chunks().0) {
        *digits = hex(u32::from_be_bytes(*bytes));
    }
    let mut text = [b'-'; REQUEST_ID_BYTES];
    for (at, part) in [(0, 0..8), (9, 8..12), (14, 12..16), (19, 16..20), (24, 20..32)] {
        text[at..at + part.len()].copy_from_slice(&digits[part]);
    }
    text
}

/// All eight digits of a number at once.
fn hex(number: u32) -> [u8; 8] {
    const EACH: u64 = 0x0101_0101_0101_0101;
    // Each half moves away from the other one, until each digit has a byte.
    let mut digits = u64::from(number);
    digits = (digits << 16 | digits) & 0x0000_ffff_0000_ffff;
    digits = (digits << 8 | digits) & 0x00ff_00ff_00ff_00ff;
    digits = (digits << 4 | digits) & 0x0f0f_0f0f_0f0f_0f0f;
    let is_letter = (digits + 6 * EACH) >> 4 & EACH;
    (digits + u64::from(b'0') * EACH + is_letter * u64::from(b'a' - b'0' - 10)).to_be_bytes()
}

/// The Via line of a message (RFC 9110 section 7.6.3). `version`: of its text.
#[must_use]
pub fn via_line(via: Via, version: Version) -> &'static [u8] {
    match (via, version) {
        (Via::Nothing, _) => b"",
        (Via::Http2, _) => b"via: 2 meshring\r\n",
        (Via::Http1, Version::Http10) => b"via: 1.0 meshring\r\n",
        (Via::Http1, Version::Http11) => b"via: 1.1 meshring\r\n",
    }
}

/// The client that a request came from, as far as it can be known: with `trusted_hops` proxies before this one that are
/// believed, the address that the first of them has appended, which is the `trusted_hops`-th from the end of the received
/// X-Forwarded-For (Envoy's `xff_num_trusted_hops` with `use_remote_address`). The peer's own address where there are fewer
/// addresses, or no address at that place.
#[must_use]
pub fn client_address(buf: &[u8], fields: &Fields, peer: IpAddr, trusted_hops: u8) -> IpAddr {
    let peer = peer.to_canonical();
    let Some(place) = usize::from(trusted_hops).checked_sub(1) else { return peer };
    let values = fields.iter().rev().filter(|field| field.kind == K::XForwardedFor).map(|field| field.value.of(buf));
    let mut addresses = values.flat_map(|value| value.rsplit(|&b| b == b',')).map(trim).filter(|text| !text.is_empty());
    addresses.nth(place).and_then(parse_address).unwrap_or(peer)
}

/// `address`, `address:port`, `[IPv6]` or `[IPv6]:port`; some load balancers append the port.
fn parse_address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    let with_port = || text.parse().ok().map(|address: SocketAddr| address.ip());
    text.parse().ok().or_else(with_port).or_else(bracketed).map(|address: IpAddr| address.to_canonical())
}
