//! The field names that a proxy acts upon, found once per field with one probe of a table.

use super::words;

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
    K::XForwardedClientCert,
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

/// The names that are known, up to sixteen bytes.
const NAMES: [(&[u8], FieldKind); 25] = [
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
    (b"x-request-id", K::XRequestId),
    (b"authorization", K::Authorization),
    (b"content-length", K::ContentLength),
    (b"http2-settings", K::Http2Settings),
    (b"x-forwarded-for", K::XForwardedFor),
    (b"proxy-connection", K::ProxyConnection),
    (b"x-forwarded-host", K::XForwardedHost),
    (b"x-forwarded-port", K::XForwardedPort),
];

/// The longer ones.
const LONG_NAMES: [(&[u8], FieldKind); 3] = [
    (b"transfer-encoding", K::TransferEncoding),
    (b"x-forwarded-proto", K::XForwardedProto),
    (b"x-forwarded-client-cert", K::XForwardedClientCert),
];

/// A name of up to sixteen token characters as two little-endian words: each byte with 0x20 set, zeros after the last.
/// Two names have one key exactly if they differ in nothing but the case of letters, see [`same`] for why.
pub(super) type Key = [u64; 2];

/// The key of a name of up to sixteen bytes; what is beyond is left out.
const fn key(name: &[u8]) -> Key {
    let mut padded = [0; 16];
    let mut i = 0;
    while i < name.len() && i < padded.len() {
        padded[i] = name[i] | 0x20;
        i += 1;
    }
    words::pair(&padded)
}

/// A name that may be meant, for comparison.
#[derive(Clone, Copy)]
struct Candidate {
    key: Key,
    kind: FieldKind,
}

/// The place of a name among the candidates.
#[inline(always)]
const fn place(key: Key) -> usize {
    // Found by trying: a factor that leads no two of the names to one place.
    (key[0].wrapping_add(key[1]).wrapping_mul(0xf0e6_42f4_3328_ad09) >> 58) as usize
}

/// The [`NAMES`], each in its place; the other places hold the key of the empty name.
static CANDIDATES: [Candidate; 64] = {
    let mut candidates = [Candidate { key: [0, 0], kind: K::Other }; 64];
    let mut i = 0;
    while i < NAMES.len() {
        let (name, kind) = NAMES[i];
        assert!(name.len() <= 16, "too long for a key");
        let candidate = &mut candidates[place(key(name))];
        assert!(candidate.key[0] == 0, "two names in one place");
        *candidate = Candidate { key: key(name), kind };
        i += 1;
    }
    candidates
};

/// Classifies a field name, which must consist of token characters.
pub(super) fn classify(name: &[u8]) -> Class {
    if is_any_twin(name) { Class::Twin } else { Class::Kind(kind_of(name)) }
}

/// What a field name is. A twin is what it would be if nobody minded twins: [`FieldKind::Other`], or the rest of a family.
pub(super) fn kind_of(name: &[u8]) -> FieldKind {
    if name.len() <= 16 {
        return kind_of_key(key(name));
    }
    match LONG_NAMES.iter().find(|(lower, _)| same(name, lower)) {
        Some(&(_, kind)) => kind,
        None => kind_of_family(key(name)),
    }
}

/// What a name of up to sixteen bytes is, by its key.
#[inline(always)]
pub(super) fn kind_of_key(key: Key) -> FieldKind {
    let candidate = &CANDIDATES[place(key)];
    if candidate.key[0] == key[0] && candidate.key[1] == key[1] { candidate.kind } else { kind_of_family(key) }
}

/// The family of names that one with this key at its beginning belongs to, if any.
#[inline(always)]
fn kind_of_family(name: Key) -> FieldKind {
    const FORWARDED: Key = key(X_FORWARDED);
    const ENVOY: Key = key(X_ENVOY);
    if name[0] == FORWARDED[0] && name[1] as u32 == FORWARDED[1] as u32 {
        return K::XForwardedOther;
    }
    if name[0] == ENVOY[0] { K::XEnvoy } else { K::Other }
}

/// Whether a name is one of [`NO_TWINS`], or of a family, spelled with underscores.
pub(super) fn is_any_twin(name: &[u8]) -> bool {
    if !name.contains(&b'_') {
        return false;
    }
    let mut known = NAMES.iter().chain(&LONG_NAMES).filter(|(_, kind)| NO_TWINS.contains(*kind));
    let begins_like = |prefix: &[u8]| name.get(..prefix.len()).is_some_and(|start| is_twin(start, prefix));
    known.any(|(lower, _)| is_twin(name, lower)) || begins_like(X_FORWARDED) || begins_like(X_ENVOY)
}

/// Whether the name is the lower-case one with `_` in place of at least one `-`.
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

/// See [`classes`].
#[inline(always)]
fn classes_of_few(bytes: &[u8], class: impl Fn(u8) -> u8) -> u8 {
    let Some(&first) = bytes.first() else { return 0 };
    // What is copied over is no byte that is not there.
    let mut block = [first; 16];
    block[..bytes.len()].copy_from_slice(bytes);
    block.map(class).iter().fold(0, |all, &found| all | found)
}

/// The classes of all bytes, as bits. Without an early end and with a last piece that overlaps the one before, so that the
/// compiler makes vector instructions of it and no loop over what is left.
#[inline(always)]
pub(super) fn classes(bytes: &[u8], class: impl Fn(u8) -> u8) -> u8 {
    let Some(last) = bytes.last_chunk::<16>() else { return classes_of_few(bytes, class) };
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
