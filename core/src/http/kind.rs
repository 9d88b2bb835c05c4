//! The field names that a proxy acts upon, found once per field by length and bytes.

/// A field name that matters to the codec or the proxy. Everything else is [`FieldKind::Other`] and goes by its bytes.
/// Two kinds are families of names.
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
    /// `X-Forwarded-` and anything else.
    XForwardedOther,
    /// `X-Envoy-` and anything: what a proxy tells the services behind it, and nobody else may.
    XEnvoy,
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

    /// The set of the kinds whose bits are set; that of [`FieldKind::Other`] means nothing.
    pub(super) const fn from_bits(bits: u32) -> Self {
        Self(bits & !1)
    }

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

    /// What is in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
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
    K::XForwardedOther,
    K::XEnvoy,
    K::Forwarded,
    K::XRequestId,
]);

/// Names that nobody may write with `_` for `-`, or a server behind us that maps both to one variable is fooled. So are the
/// two families of names.
const NO_TWINS: KindSet = KindSet::of(&[
    K::ContentLength,
    K::TransferEncoding,
    K::KeepAlive,
    K::ProxyConnection,
    K::MaxForwards,
    K::Http2Settings,
]);

/// What a field name is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    /// One of the kinds, [`FieldKind::Other`] included.
    Kind(FieldKind),
    /// A spelling of one of [`NO_TWINS`], or of the prefix of a family, with underscores.
    Twin,
}

/// What the names of a family begin with.
const X_FORWARDED: &[u8; 12] = b"x-forwarded-";
const X_ENVOY: &[u8; 8] = b"x-envoy-";

/// Compares a token or a field value with a lower-case name. ORing 0x20 is exact here: no two bytes of a token or a value,
/// except the two cases of a letter, meet in a letter, a digit or `-` that way.
///
/// Pieces of eight, four or two bytes from both ends, which may overlap, rather than byte by byte.
#[inline(always)]
pub(super) fn same(name: &[u8], lower: &[u8]) -> bool {
    fn same_pieces<const N: usize>(name: Option<&[u8; N]>, lower: Option<&[u8; N]>) -> bool {
        name.map(|name| name.map(|b| b | 0x20)) == lower.copied()
    }
    fn same_ends<const N: usize>(name: &[u8], lower: &[u8]) -> bool {
        same_pieces::<N>(name.first_chunk(), lower.first_chunk())
            && same_pieces::<N>(name.last_chunk(), lower.last_chunk())
    }
    debug_assert!(lower.len() >= 2 && lower.len() <= 24);
    name.len() == lower.len()
        && match lower.len() {
            17.. => same_ends::<8>(name, lower) && same_ends::<8>(&name[8..], &lower[8..]),
            8.. => same_ends::<8>(name, lower),
            4.. => same_ends::<4>(name, lower),
            _ => same_ends::<2>(name, lower),
        }
}

/// The names that are known, but for those that begin with `x-`.
const NAMES: [(&[u8], FieldKind); 22] = [
    (b"te", K::Te),
    (b"via", K::Via),
    (b"host", K::Host),
    (b"date", K::Date),
    (b"cookie", K::Cookie),
    (b"server", K::Server),
    (b"expect", K::Expect),
    (b"upgrade", K::Upgrade),
    (b"trailer", K::Trailer),
    (b"forwarded", K::Forwarded),
    (b"connection", K::Connection),
    (b"user-agent", K::UserAgent),
    (b"set-cookie", K::SetCookie),
    (b"keep-alive", K::KeepAlive),
    (b"traceparent", K::Traceparent),
    (b"content-type", K::ContentType),
    (b"max-forwards", K::MaxForwards),
    (b"authorization", K::Authorization),
    (b"content-length", K::ContentLength),
    (b"http2-settings", K::Http2Settings),
    (b"proxy-connection", K::ProxyConnection),
    (b"transfer-encoding", K::TransferEncoding),
];

/// A name that may be meant, for comparison.
#[derive(Clone, Copy)]
struct Candidate {
    key: [u64; 2],
    len: u8,
    kind: FieldKind,
    /// Whether it is one of [`NO_TWINS`].
    has_twins: bool,
}

/// The place of a name among the candidates, by its length and its first letter in lower case.
#[inline(always)]
const fn place(len: usize, first: u8) -> usize {
    // 13 is the least factor that leads no two of the names to one place.
    (len * 13 + first as usize) % CANDIDATES.len()
}

/// The [`NAMES`], each in its place; the other places hold a length that no name has.
static CANDIDATES: [Candidate; 64] = {
    let mut candidates = [Candidate { key: [0, 0], len: 0, kind: K::Other, has_twins: false }; 64];
    let mut i = 0;
    while i < NAMES.len() {
        let (name, kind) = NAMES[i];
        let candidate = &mut candidates[(name.len() * 13 + name[0] as usize) % 64];
        assert!(candidate.len == 0, "two names in one place");
        *candidate = Candidate { key: key(name), len: name.len() as u8, kind, has_twins: NO_TWINS.contains(kind) };
        i += 1;
    }
    candidates
};

/// Two names of one length up to 16 have one key exactly if they are [`same`]. Of longer ones it leaves the middle out.
#[inline(always)]
const fn key(name: &[u8]) -> [u64; 2] {
    const CASE: u64 = u64::from_ne_bytes([0x20; 8]);
    if let (Some(first), Some(last)) = (name.first_chunk(), name.last_chunk()) {
        [u64::from_ne_bytes(*first) | CASE, u64::from_ne_bytes(*last) | CASE]
    } else if let (Some(first), Some(last)) = (name.first_chunk(), name.last_chunk()) {
        [u32::from_ne_bytes(*first) as u64 | CASE, u32::from_ne_bytes(*last) as u64 | CASE]
    } else if let (Some(first), Some(last)) = (name.first_chunk(), name.last_chunk()) {
        [u16::from_ne_bytes(*first) as u64 | CASE, u16::from_ne_bytes(*last) as u64 | CASE]
    } else {
        [1, 1]
    }
}

/// Classifies a field name, which must consist of token characters.
pub(super) fn classify(name: &[u8]) -> Class {
    let mut has_twin = false;
    let kind = kind_of(name, &mut has_twin);
    if has_twin { Class::Twin } else { Class::Kind(kind) }
}

/// What a field name is, as [`classify`] says it; a twin is [`FieldKind::Other`] and noted in `has_twin`.
#[inline(always)]
pub(super) fn kind_of(name: &[u8], has_twin: &mut bool) -> FieldKind {
    let Some(first) = name.first().map(|first| first | 0x20) else { return K::Other };
    if first == b'x' {
        return kind_of_x(name, has_twin);
    }
    let candidate = &CANDIDATES[place(name.len(), first)];
    if usize::from(candidate.len) != name.len() {
        return K::Other;
    }
    let key = key(name);
    let is_same = key[0] == candidate.key[0] && key[1] == candidate.key[1];
    // Names of more than sixteen bytes have a middle that is not in the key.
    if is_same && (name.len() <= 16 || same(name, b"transfer-encoding")) {
        return candidate.kind;
    }
    if candidate.has_twins {
        *has_twin |= NAMES.iter().any(|(lower, kind)| *kind == candidate.kind && is_twin(name, lower));
    }
    K::Other
}

/// What a name is that begins with `x`.
#[inline(never)]
fn kind_of_x(name: &[u8], has_twin: &mut bool) -> FieldKind {
    if let Some((prefix, suffix)) = name.split_first_chunk::<12>() {
        if same(prefix, X_FORWARDED) {
            return kind_of_x_forwarded(suffix, has_twin);
        }
        if suffix.is_empty() && same(prefix, b"x-request-id") {
            return K::XRequestId;
        }
    }
    if name.first_chunk::<8>().is_some_and(|prefix| same(prefix, X_ENVOY)) {
        return K::XEnvoy;
    }
    *has_twin |= name.contains(&b'_') && begins_with_twin(name);
    K::Other
}

/// What a name is, of which this stands behind `x-forwarded-`.
fn kind_of_x_forwarded(suffix: &[u8], has_twin: &mut bool) -> FieldKind {
    match suffix.len() {
        3 if same(suffix, b"for") => K::XForwardedFor,
        4 if same(suffix, b"host") => K::XForwardedHost,
        4 if same(suffix, b"port") => K::XForwardedPort,
        5 if same(suffix, b"proto") => K::XForwardedProto,
        11 if same(suffix, b"client-cert") => K::XForwardedClientCert,
        _ => {
            *has_twin |= is_twin(suffix, b"client-cert");
            K::XForwardedOther
        }
    }
}

/// Whether the name begins like one of a family, spelled with underscores.
#[cold]
fn begins_with_twin(name: &[u8]) -> bool {
    let begins_like = |prefix: &[u8]| name.get(..prefix.len()).is_some_and(|start| is_twin(start, prefix));
    begins_like(X_FORWARDED) || begins_like(X_ENVOY)
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

/// The classes of all bytes, as bits. Without an early end and with a last piece that overlaps the one before, so that the
/// compiler makes vector instructions of it and no loop over what is left.
#[inline(always)]
pub(super) fn classes(bytes: &[u8], class: impl Fn(u8) -> u8) -> u8 {
    let Some(last) = bytes.last_chunk::<16>() else { return bytes.iter().fold(0, |found, &b| found | class(b)) };
    let mut found = [0; 16];
    for piece in bytes.as_chunks::<16>().0 {
        for (found, &b) in found.iter_mut().zip(piece) {
            *found |= class(b);
        }
    }
    for (found, &b) in found.iter_mut().zip(last) {
        *found |= class(b);
    }
    found.iter().fold(0, |all, &found| all | found)
}
