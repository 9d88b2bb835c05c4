//! An HPACK encoder (RFC 7541) for fields that are known beforehand, which they are to the peer, too, from the second time on.

use meshring_core::http::http2::hpack::{
    FIELD_OVERHEAD, STATIC_LEN, Static, encode_integer, encode_string, find_static,
};

use crate::limits::HEADER_TABLE_BYTES;

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
        let size: usize = fields.iter().map(|(name, value)| name.len() + value.len() + FIELD_OVERHEAD).sum();
        // Indices of one byte reach the 64 newest entries.
        let fit = size <= HEADER_TABLE_BYTES && fields.len() <= 64;
        Self { fields: fields.iter().map(|(name, value)| encode(name.as_bytes(), value.as_bytes())).collect(), fit }
    }

    pub(super) fn len(&self) -> usize {
        self.fields.len()
    }
}

fn encode(name: &[u8], value: &[u8]) -> Encoded {
    let found = find_static(name, value);
    if let Some(Static::Field(index)) = found {
        return Encoded::Static(0x80 | index as u8);
    }
    let literal = |first: u8, prefix_bits: u32| {
        let mut out = Vec::new();
        match found {
            Some(Static::Field(index) | Static::Name(index)) => encode_integer(&mut out, first, prefix_bits, index),
            None => {
                out.push(first);
                encode_string(&mut out, name);
            }
        }
        encode_string(&mut out, value);
        out
    };
    Encoded::Literal { indexed: literal(0x40, 6), plain: literal(0, 4) }
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
                (_, Some(nth)) => out.push(0x80 | (STATIC_LEN as u8 + self.count - nth)),
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
