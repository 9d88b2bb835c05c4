//! The field names that a proxy acts upon, found once per field by length and bytes.

/// A field name that matters to the codec or the proxy. Everything else is [`FieldKind::Other`] and goes by its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
#[allow(missing_docs)] // Each variant is the field of that name.
pub enum FieldKind {
    #[default]
    Other,
    Host,
    Connection,
    ContentLength,
    TransferEncoding,
    Te,
    Trailer,
    Upgrade,
    Expect,
    KeepAlive,
    ProxyConnection,
    Date,
    Via,
    XForwardedFor,
    XForwardedProto,
    XForwardedHost,
    XForwardedPort,
    XForwardedClientCert,
    Forwarded,
    XRequestId,
    Authorization,
    Cookie,
    SetCookie,
    MaxForwards,
    Http2Settings,
    Server,
    ContentType,
    UserAgent,
    Traceparent,
}

/// How many kinds there are.
pub(super) const KINDS: usize = FieldKind::Traceparent as usize + 1;

/// A set of field kinds: one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KindSet(u32);

impl KindSet {
    /// The set with nothing in it.
    pub const EMPTY: Self = Self(0);

    /// The set of these kinds.
    #[must_use]
    pub const fn of(kinds: &[FieldKind]) -> Self {
        let mut set = Self::EMPTY;
        let mut i = 0;
        while i < kinds.len() {
            set = set.with(kinds[i]);
            i += 1;
        }
        set
    }

    /// This set and one kind more. [`FieldKind::Other`] adds nothing: it is no single name.
    #[must_use]
    pub const fn with(self, kind: FieldKind) -> Self {
        Self(self.0 | (1 << kind as u32) & !1)
    }

    /// Whether the kind is in the set.
    #[must_use]
    pub const fn contains(self, kind: FieldKind) -> bool {
        self.0 & (1 << kind as u32) != 0
    }

    /// Whether both sets have a kind in common.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether nothing is in the set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

use FieldKind as K;

/// Fields about this connection only: left out when a head is written for the next hop (RFC 9110 section 7.6.1).
/// Content-Length and Transfer-Encoding are among them since the writer derives them anew from the framing.
pub(super) const HOP_BY_HOP: KindSet = KindSet::of(&[
    K::Connection,
    K::KeepAlive,
    K::ProxyConnection,
    K::Upgrade,
    K::Te,
    K::TransferEncoding,
    K::ContentLength,
    K::Http2Settings,
]);

/// Fields that a Connection option must not remove: they decide about framing, routing or identity.
pub(super) const NEVER_NOMINATED: KindSet = KindSet::of(&[
    K::Host,
    K::ContentLength,
    K::TransferEncoding,
    K::Authorization,
    K::Cookie,
    K::Expect,
    K::Via,
    K::MaxForwards,
    K::XForwardedFor,
    K::XForwardedProto,
    K::XForwardedHost,
    K::XForwardedPort,
    K::XForwardedClientCert,
    K::Forwarded,
    K::XRequestId,
]);

/// Names that nobody may write with `_` for `-`, or a server behind us that maps both to one variable is fooled.
const NO_TWINS: KindSet = KindSet::of(&[
    K::ContentLength,
    K::TransferEncoding,
    K::KeepAlive,
    K::ProxyConnection,
    K::MaxForwards,
    K::Http2Settings,
    K::XForwardedFor,
    K::XForwardedProto,
    K::XForwardedHost,
    K::XForwardedPort,
    K::XForwardedClientCert,
]);

/// What a field name is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    /// One of the kinds, [`FieldKind::Other`] included.
    Kind(FieldKind),
    /// A spelling of one of [`NO_TWINS`] with underscores.
    Twin,
}

/// Compares a token with a lower-case name. ORing 0x20 is exact here: no two token characters except the two cases of
/// a letter meet in a letter, a digit or `-` that way.
#[inline(always)]
fn same<const N: usize>(name: &[u8], lower: &[u8; N]) -> bool {
    let Ok(name) = <&[u8; N]>::try_from(name) else { return false };
    let mut difference = 0;
    for i in 0..N {
        difference |= (name[i] | 0x20) ^ lower[i];
    }
    difference == 0
}

/// Classifies a field name, which must consist of token characters.
#[inline]
pub(super) fn classify(name: &[u8]) -> Class {
    macro_rules! candidates {
        ($($lower:literal => $kind:ident),+) => {{
            $(if same(name, $lower) { return Class::Kind(K::$kind); })+
            $(if NO_TWINS.contains(K::$kind) && name[0] | 0x20 == $lower[0] && is_twin(name, $lower) {
                return Class::Twin;
            })+
        }};
    }
    match name.len() {
        2 => candidates!(b"te" => Te),
        3 => candidates!(b"via" => Via),
        4 => candidates!(b"host" => Host, b"date" => Date),
        6 => candidates!(b"cookie" => Cookie, b"server" => Server, b"expect" => Expect),
        7 => candidates!(b"upgrade" => Upgrade, b"trailer" => Trailer),
        9 => candidates!(b"forwarded" => Forwarded),
        10 => candidates!(b"connection" => Connection, b"user-agent" => UserAgent, b"set-cookie" => SetCookie,
            b"keep-alive" => KeepAlive),
        11 => candidates!(b"traceparent" => Traceparent),
        12 => {
            candidates!(b"content-type" => ContentType, b"x-request-id" => XRequestId, b"max-forwards" => MaxForwards)
        }
        13 => candidates!(b"authorization" => Authorization),
        14 => candidates!(b"content-length" => ContentLength, b"http2-settings" => Http2Settings),
        15 => candidates!(b"x-forwarded-for" => XForwardedFor),
        16 => candidates!(b"x-forwarded-host" => XForwardedHost, b"x-forwarded-port" => XForwardedPort,
            b"proxy-connection" => ProxyConnection),
        17 => candidates!(b"transfer-encoding" => TransferEncoding, b"x-forwarded-proto" => XForwardedProto),
        23 => candidates!(b"x-forwarded-client-cert" => XForwardedClientCert),
        _ => {}
    }
    Class::Kind(K::Other)
}

/// Whether the name is the lower-case one with `_` in place of at least one `-`.
#[cold]
fn is_twin(name: &[u8], lower: &[u8]) -> bool {
    name.len() == lower.len()
        && name.iter().zip(lower).all(|(&n, &l)| n | 0x20 == l || (n == b'_' && l == b'-'))
        && name.contains(&b'_')
}

/// Token characters (RFC 9110 section 5.6.2).
pub(super) const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut i = 0;
    while i < 256 {
        let b = i as u8;
        table[i] = b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        i += 1;
    }
    table
};

/// Whether the bytes are a token: at least one token character and nothing else.
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&b| TOKEN[b as usize])
}

/// Whether the byte may stand in a field value (RFC 9110 section 5.5: visible, obs-text, space, tab).
pub(super) fn is_value_byte(b: u8) -> bool {
    b == b'\t' || (b >= 0x20 && b != 0x7f)
}

/// Without the optional white space (space, tab) around it.
pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}
