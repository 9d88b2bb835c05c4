//! Fields to representations. No state is kept, so that no table has to be kept in step, and nothing secret can be guessed
//! from what compresses well (RFC 7541 section 7.1).

use super::huffman;
use super::static_table::{Static, find_static};

/// First bits of the representations (section 6).
const INDEXED: u8 = 0x80;
const WITHOUT_INDEXING: u8 = 0x00;
const NEVER_INDEXED: u8 = 0x10;
const SIZE_UPDATE: u8 = 0x20;

/// First bit of a string in the Huffman code (section 5.2).
const HUFFMAN: u8 = 0x80;

/// Where the static table has `:status`, and its name.
const STATUS_INDEX: usize = 8;

/// Appends a field: as an index if the static table has it, otherwise as a literal that no table is to take in, without
/// the Huffman code. `name` is in lower case. What is `sensitive` is a literal that no further hop may index either
/// (section 6.2.3).
#[inline]
pub fn encode(out: &mut Vec<u8>, name: &[u8], value: &[u8], sensitive: bool) {
    debug_assert!(!name.iter().any(u8::is_ascii_uppercase), "a field name in upper case");
    let representation = if sensitive { NEVER_INDEXED } else { WITHOUT_INDEXING };
    match find_static(name, value) {
        Some(Static::Field(index)) if !sensitive => return encode_integer(out, INDEXED, 7, index),
        Some(Static::Field(index) | Static::Name(index)) => encode_integer(out, representation, 4, index),
        None => {
            out.push(representation);
            encode_raw(out, name);
        }
    }
    encode_raw(out, value);
}

/// Appends `:status`.
#[inline]
pub fn encode_status(out: &mut Vec<u8>, status: u16) {
    let index = match status {
        200 => 8,
        204 => 9,
        206 => 10,
        304 => 11,
        400 => 12,
        404 => 13,
        500 => 14,
        _ => {
            encode_integer(out, WITHOUT_INDEXING, 4, STATUS_INDEX);
            return encode_raw(out, itoa::Buffer::new().format(status).as_bytes());
        }
    };
    out.push(INDEXED | index);
}

/// Appends a size update (section 6.3), which has to stand at the beginning of a block. Once the peer has lowered its
/// SETTINGS_HEADER_TABLE_SIZE below the 4,096 octets that it began with, the next block has to begin with one (section
/// 4.2): that to 0 is always right for who keeps no table.
pub fn encode_size_update(out: &mut Vec<u8>, size: usize) {
    encode_integer(out, SIZE_UPDATE, 5, size);
}

/// Appends an integer whose first octet has other bits, `first`, above its prefix of so many bits, 1 to 7 (section 5.1).
#[inline]
pub fn encode_integer(out: &mut Vec<u8>, first: u8, prefix_bits: u32, value: usize) {
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

/// Appends a string as it is.
#[inline]
fn encode_raw(out: &mut Vec<u8>, text: &[u8]) {
    encode_integer(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

/// Appends a string in the Huffman code, unless that is longer.
pub fn encode_string(out: &mut Vec<u8>, text: &[u8]) {
    let len = huffman::encoded_len(text);
    if len >= text.len() {
        return encode_raw(out, text);
    }
    encode_integer(out, HUFFMAN, 7, len);
    huffman::encode(out, text);
}
