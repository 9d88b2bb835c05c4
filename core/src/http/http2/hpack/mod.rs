//! HPACK (RFC 7541): header blocks of HTTP/2 to fields, and back. Bytes in, fields out: no I/O, and no allocation once
//! the buffers have grown.
//!
//! - [`Decoder`] keeps the table of one direction of one connection;
//! - [`encode`], [`encode_status`] and [`encode_size_update`] write for the data path, without a table of our own;
//! - [`encode_integer`], [`encode_string`] and [`find_static`] are what an encoder that keeps a table is made of, as the
//!   load generator's does.

mod decode;
mod encode;
mod huffman;
mod static_table;
mod table;

pub use decode::{Decoder, Listing};
pub use encode::{encode, encode_integer, encode_size_update, encode_status, encode_string};
pub use static_table::{STATIC_LEN, Static, find_static};

use std::fmt;

/// Octets that each field and each entry of a table count beyond their text (RFC 7541 section 4.1, RFC 9113 section 6.5.2).
pub const FIELD_OVERHEAD: usize = 32;

/// Octets of a table before any SETTINGS_HEADER_TABLE_SIZE or size update says otherwise (RFC 9113 section 6.5.2).
pub const TABLE_SIZE_INITIAL: usize = 4096;

/// Why a header block cannot be decoded: a connection error, of type COMPRESSION_ERROR (RFC 9113 section 4.3) but for
/// [`ListSize`](Self::ListSize). The decoder is of no more use then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// Section 6: a representation without an octet that belongs to it.
    Truncated,
    /// Section 5.2.
    StringLength,
    /// Section 5.1: above 2^32 - 1, which is more than any setting can be, or in more than five octets after the first.
    Integer,
    /// Section 6.1.
    IndexZero,
    /// Section 2.3.3.
    Index,
    /// Section 5.2: the bits after the last whole code are more than seven, or not all ones.
    HuffmanPadding,
    /// Section 5.2.
    HuffmanEos,
    /// Section 6.3: above what SETTINGS_HEADER_TABLE_SIZE allows.
    SizeUpdateLimit,
    /// Section 4.2: after the first field of a block.
    SizeUpdateOrder,
    /// Section 4.2: the limit was lowered below the table's size, and the next block did not say so.
    SizeUpdateMissing,
    /// Its fields have more octets than [`Decoder::with_list_max`] allows (RFC 9113 section 10.5.1: whoever does not process a field block
    /// must close the connection).
    ListSize,
}

impl Error {
    /// What is wrong, in a few words.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Truncated => "the header block ends within a field",
            Self::StringLength => "a string goes on beyond the end of the header block",
            Self::Integer => "an integer is too large",
            Self::IndexZero => "a field has the index 0",
            Self::Index => "an index is beyond the tables",
            Self::HuffmanPadding => "a Huffman-coded string has wrong padding",
            Self::HuffmanEos => "a Huffman-coded string has EOS in it",
            Self::SizeUpdateLimit => "a table size update is above the limit",
            Self::SizeUpdateOrder => "a table size update does not come first",
            Self::SizeUpdateMissing => "a table size update is missing after the limit was lowered",
            Self::ListSize => "a header list is many times larger than SETTINGS_MAX_HEADER_LIST_SIZE",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests;
