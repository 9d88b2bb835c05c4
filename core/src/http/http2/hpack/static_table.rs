//! The static table (RFC 7541, appendix A), by index and by name.

/// Entries of the static table; the dynamic table's indices come after them.
pub const STATIC_LEN: usize = 61;

/// The entry with the index 1 comes first.
pub(super) const STATIC: [(&[u8], &[u8]); STATIC_LEN] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];

/// What the static table has for a field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Static {
    /// The index of an entry with this name and this value.
    Field(usize),
    /// The first index with this name. No entry has the value, too.
    Name(usize),
}

const SLOT_BITS: u32 = 7;

/// Chosen by trial, such that no two names share a slot.
const MULTIPLIER: u32 = 0xf0f7_7331;

/// For each slot the first index of its name, or 0.
const SLOTS: [u8; 1 << SLOT_BITS] = slots();

/// Length and three bytes tell all names apart.
const fn slot(name: &[u8]) -> usize {
    let len = name.len();
    let key = len as u32 | (name[0] as u32) << 8 | (name[len / 2] as u32) << 16 | (name[len - 1] as u32) << 24;
    (key.wrapping_mul(MULTIPLIER) >> (32 - SLOT_BITS)) as usize
}

const fn slots() -> [u8; 1 << SLOT_BITS] {
    let mut slots = [0; 1 << SLOT_BITS];
    let mut at = 0;
    while at < STATIC_LEN {
        // Entries of one name follow each other.
        if at == 0 || !equal(STATIC[at].0, STATIC[at - 1].0) {
            let slot = slot(STATIC[at].0);
            assert!(slots[slot] == 0, "two names in one slot");
            slots[slot] = at as u8 + 1;
        }
        at += 1;
    }
    slots
}

const fn equal(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

/// Looks a field up by its name in lower case and its value.
#[inline]
#[must_use]
pub fn find_static(name: &[u8], value: &[u8]) -> Option<Static> {
    if name.is_empty() {
        return None;
    }
    let first = usize::from(SLOTS[slot(name)]);
    let (found, mut entry_value) = *STATIC.get(first.checked_sub(1)?)?;
    if found != name {
        return None;
    }
    let mut index = first;
    loop {
        if entry_value == value {
            return Some(Static::Field(index));
        }
        // The next entry's position is this one's index. Few names have more than one.
        match STATIC.get(index) {
            Some((next, next_value)) if *next == name => (entry_value, index) = (next_value, index + 1),
            _ => return Some(Static::Name(first)),
        }
    }
}
