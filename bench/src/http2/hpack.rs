//! HPACK (RFC 7541): a decoder, and an encoder for fields that are known beforehand.
//!
//! Of our own, as the libraries do not fit a load generator: loona-hpack 0.4 builds its Huffman tables anew for each string,
//! httlib-hpack 0.1 panics on a truncated integer.

mod tables;

use std::collections::VecDeque;

use self::tables::{EOS, HUFFMAN, STATIC};
use crate::limits::HEADER_TABLE_BYTES;

/// Why a header block cannot be decoded; the connection is of no more use then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HpackError {
    #[error("the block ends within a field")]
    Truncated,
    #[error("an index that the tables do not have")]
    Index,
    #[error("an integer of more than 28 bits")]
    Integer,
    #[error("an invalid Huffman code")]
    Huffman,
    #[error("a table larger than the setting allows, or resized amid fields")]
    TableSize,
}

/// What an entry counts beyond its text (section 4.1).
const ENTRY_OVERHEAD: usize = 32;

struct Entry {
    /// Name, then value.
    text: Box<[u8]>,
    name_len: usize,
}

impl Entry {
    fn size(&self) -> usize {
        self.text.len() + ENTRY_OVERHEAD
    }
}

/// Decodes the header blocks of one direction of a connection.
pub(super) struct Decoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    size: usize,
    size_max: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    pub(super) const fn new() -> Self {
        Self { entries: VecDeque::new(), size: 0, size_max: HEADER_TABLE_BYTES, name: Vec::new(), value: Vec::new() }
    }

    /// Calls `field` with the name and the value of each field. Gives whether the block has changed the table: if not, and
    /// until another one does, the same bytes mean the same fields.
    pub(super) fn decode(&mut self, block: &[u8], mut field: impl FnMut(&[u8], &[u8])) -> Result<bool, HpackError> {
        let mut rest = block;
        let (mut changed, mut begun) = (false, false);
        while let Some(&first) = rest.first() {
            if first & 0x80 != 0 {
                let index = integer(&mut rest, 7)?;
                let (name, value) = self.entry(index)?;
                field(name, value);
            } else if first & 0xe0 == 0x20 {
                if begun {
                    return Err(HpackError::TableSize);
                }
                self.resize(integer(&mut rest, 5)?)?;
                changed = true;
                continue;
            } else {
                let indexed = first & 0x40 != 0;
                let index = integer(&mut rest, if indexed { 6 } else { 4 })?;
                let (mut name, mut value) = (std::mem::take(&mut self.name), std::mem::take(&mut self.value));
                name.clear();
                value.clear();
                match index {
                    0 => string(&mut rest, &mut name)?,
                    index => name.extend_from_slice(self.entry(index)?.0),
                }
                string(&mut rest, &mut value)?;
                field(&name, &value);
                if indexed {
                    self.insert(&name, &value);
                    changed = true;
                }
                (self.name, self.value) = (name, value);
            }
            begun = true;
        }
        Ok(changed)
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), HpackError> {
        let index = index.checked_sub(1).ok_or(HpackError::Index)?;
        if let Some(&field) = STATIC.get(index) {
            return Ok(field);
        }
        let entry = self.entries.get(index - STATIC.len()).ok_or(HpackError::Index)?;
        Ok(entry.text.split_at(entry.name_len))
    }

    fn insert(&mut self, name: &[u8], value: &[u8]) {
        let entry = Entry { text: [name, value].concat().into(), name_len: name.len() };
        self.evict(entry.size());
        // An entry larger than the whole table leaves it empty (section 4.4).
        if entry.size() <= self.size_max {
            self.size += entry.size();
            self.entries.push_front(entry);
        }
    }

    fn resize(&mut self, size_max: usize) -> Result<(), HpackError> {
        if size_max > HEADER_TABLE_BYTES {
            return Err(HpackError::TableSize);
        }
        self.size_max = size_max;
        self.evict(0);
        Ok(())
    }

    /// Makes room.
    fn evict(&mut self, wanted: usize) {
        while self.size + wanted > self.size_max {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.size -= oldest.size();
        }
    }
}

/// Takes an integer with a prefix of so many bits from the front (section 5.1).
fn integer(rest: &mut &[u8], prefix_bits: u32) -> Result<usize, HpackError> {
    let mask = (1_u32 << prefix_bits) - 1;
    let mut value = u32::from(byte(rest)?) & mask;
    if value == mask {
        // Four more bytes at most, as nothing in here is longer than 2^28.
        for shift in [0, 7, 14, 21] {
            let next = byte(rest)?;
            value += u32::from(next & 0x7f) << shift;
            if next & 0x80 == 0 {
                return Ok(value as usize);
            }
        }
        return Err(HpackError::Integer);
    }
    Ok(value as usize)
}

fn byte(rest: &mut &[u8]) -> Result<u8, HpackError> {
    let (&first, tail) = rest.split_first().ok_or(HpackError::Truncated)?;
    *rest = tail;
    Ok(first)
}

/// Takes a string from the front and appends it to `out` (section 5.2).
fn string(rest: &mut &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
    let is_huffman = rest.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer(rest, 7)?;
    let (text, tail) = rest.split_at_checked(length).ok_or(HpackError::Truncated)?;
    *rest = tail;
    if is_huffman {
        decode_huffman(text, out)
    } else {
        out.extend_from_slice(text);
        Ok(())
    }
}

fn decode_huffman(text: &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
    let mut text = text.iter();
    // The next bits, from the highest one on, and how many there are.
    let (mut window, mut bits) = (0_u64, 0);
    loop {
        while bits <= 56 {
            let Some(&byte) = text.next() else { break };
            window |= u64::from(byte) << (56 - bits);
            bits += 8;
        }
        // No code of less than eight bits consists of ones only: that is padding.
        if bits < 8 && window.leading_ones() == bits {
            return Ok(());
        }
        let (symbol, length) = HUFFMAN.symbol_at(window).ok_or(HpackError::Huffman)?;
        if length > bits || symbol == EOS {
            return Err(HpackError::Huffman);
        }
        out.push(symbol as u8);
        window <<= length;
        bits -= length;
    }
}

/// A field as it is written.
enum Encoded {
    /// In the static table.
    Static(u8),
    Literal {
        /// Begins with 01: the peer adds it to its table.
        indexed: Vec<u8>,
        /// Begins with 0000: it does not.
        plain: Vec<u8>,
    },
}

/// Fields that are sent again and again, encoded once for all connections.
pub(super) struct FieldSet {
    fields: Vec<Encoded>,
    /// Whether all of them find room in a peer's table.
    fit: bool,
}

impl FieldSet {
    pub(super) fn new(fields: &[(&str, &str)]) -> Self {
        let size: usize = fields.iter().map(|(name, value)| name.len() + value.len() + ENTRY_OVERHEAD).sum();
        // Indices of one byte reach the 64 newest entries.
        let fit = size <= HEADER_TABLE_BYTES && fields.len() <= 64;
        Self { fields: fields.iter().map(|(name, value)| encode(name.as_bytes(), value.as_bytes())).collect(), fit }
    }

    pub(super) fn len(&self) -> usize {
        self.fields.len()
    }
}

fn encode(name: &[u8], value: &[u8]) -> Encoded {
    let position = |wanted: (&[u8], Option<&[u8]>)| {
        STATIC.iter().position(|(name, value)| *name == wanted.0 && wanted.1.is_none_or(|wanted| *value == wanted))
    };
    if let Some(index) = position((name, Some(value))) {
        return Encoded::Static(0x80 | (index as u8 + 1));
    }
    let literal = |first: u8, prefix_bits: u32| {
        let mut out = Vec::new();
        match position((name, None)) {
            Some(index) => write_integer(first, prefix_bits, index + 1, &mut out),
            None => {
                out.push(first);
                write_string(name, &mut out);
            }
        }
        write_string(value, &mut out);
        out
    };
    Encoded::Literal { indexed: literal(0x40, 6), plain: literal(0, 4) }
}

fn write_integer(first: u8, prefix_bits: u32, value: usize, out: &mut Vec<u8>) {
    let mask = (1_usize << prefix_bits) - 1;
    if value < mask {
        return out.push(first | value as u8);
    }
    out.push(first | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// In the Huffman code, unless that is longer.
fn write_string(text: &[u8], out: &mut Vec<u8>) {
    let bits: u32 = text.iter().map(|byte| HUFFMAN.code_of(*byte).1).sum();
    let length = bits.div_ceil(8) as usize;
    if length >= text.len() {
        write_integer(0, 7, text.len(), out);
        return out.extend_from_slice(text);
    }
    write_integer(0x80, 7, length, out);
    let (mut window, mut pending) = (0_u64, 0);
    for byte in text {
        let (code, bits) = HUFFMAN.code_of(*byte);
        window = window << bits | u64::from(code);
        pending += bits;
        while pending >= 8 {
            pending -= 8;
            out.push((window >> pending) as u8);
        }
    }
    if pending > 0 {
        let padding = 8 - pending;
        out.push((window << padding) as u8 | ((1_u8 << padding) - 1));
    }
}

/// Writes the fields of one [`FieldSet`] in one direction of a connection: each as a literal first, and as one byte from
/// then on, as clients and servers do.
pub(super) struct Encoder {
    /// How many fields had been added to the peer's table when this one was.
    added: Vec<Option<u8>>,
    count: u8,
    /// Whether fields are added to the peer's table at all.
    indexing: bool,
    /// The next block says that the table is not used any more.
    announces_empty: bool,
}

impl Encoder {
    pub(super) fn new(set: &FieldSet) -> Self {
        Self { added: vec![None; set.len()], count: 0, indexing: set.fit, announces_empty: false }
    }

    /// The peer's setting of its table's size. A smaller one than the default is not used at all.
    pub(super) fn set_table_size(&mut self, size: u32) {
        if self.indexing && (size as usize) < HEADER_TABLE_BYTES {
            self.indexing = false;
            self.announces_empty = true;
        }
    }

    /// Appends a block with the fields at these positions of the set.
    pub(super) fn write(&mut self, set: &FieldSet, positions: std::ops::Range<usize>, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.announces_empty) {
            out.push(0x20);
        }
        for position in positions {
            match (&set.fields[position], self.added[position]) {
                (Encoded::Static(index), _) => out.push(*index),
                (Encoded::Literal { plain, .. }, _) if !self.indexing => out.extend_from_slice(plain),
                (_, Some(nth)) => out.push(0x80 | (STATIC.len() as u8 + self.count - nth)),
                (Encoded::Literal { indexed, .. }, None) => {
                    out.extend_from_slice(indexed);
                    self.added[position] = Some(self.count);
                    self.count += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
