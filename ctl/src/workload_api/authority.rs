//! Makes `:authority` acceptable. Clients on gRPC's C core (Python, C++, Ruby) and on Java put the path of the unix socket
//! there; that is no authority (RFC 3986, section 3.2), so the h2 crate resets their streams, and with them nobody could
//! use this API. It does not matter here who is addressed: the value becomes one letter.
//!
//! Only the frames' outlines and the outlines of HPACK (RFC 7541, section 6) are read, nothing is decoded. An entry of the
//! dynamic table that is shorter than the client thinks is evicted later than it thinks, which changes no index. What is not
//! understood goes on as it is, for h2 to judge.

use bytes::{Buf as _, BytesMut};

/// Length of the connection preface (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;
/// Length of a frame's header (RFC 9113, section 4.1).
const FRAME_HEADER_BYTES: usize = 9;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Longest header block that is taken, in bytes: what one frame of the default size holds.
const BLOCK_BYTES_MAX: usize = 16 * 1024;
/// Any valid authority that is not longer than another one.
const REPLACEMENT: [u8; 2] = [1, b'u'];

/// `:authority` in the static table (RFC 7541, appendix A).
const INDEX: usize = 1;
/// The same as a string, plain and Huffman coded: gRPC's C core does not use the index.
const NAMES: [&[u8]; 2] = [b"\x0a:authority", b"\x88\xb8\x3b\x53\x39\xec\x32\x7d\x7f"];

/// A header block above [`BLOCK_BYTES_MAX`], or one that is cut in a way that no client does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a header block is longer than {BLOCK_BYTES_MAX} bytes or out of order")]
pub(super) struct BadBlock;

/// Header block of a stream that has begun.
#[derive(Debug)]
struct Block {
    stream: [u8; 4],
    flags: u8,
    bytes: Vec<u8>,
}

/// What a client sends, with other authorities.
#[derive(Debug)]
pub(super) struct Rewriter {
    /// Not yet understood: less than a frame with a header block, or than a frame's header.
    input: BytesMut,
    /// Bytes that go through as they are.
    pass: usize,
    block: Option<Block>,
}

impl Rewriter {
    pub(super) fn new() -> Self {
        Self { input: BytesMut::new(), pass: PREFACE_BYTES, block: None }
    }

    /// Takes what was read; `output` gets what it stands for.
    pub(super) fn feed(&mut self, bytes: &[u8], output: &mut BytesMut) -> Result<(), BadBlock> {
        self.input.extend_from_slice(bytes);
        loop {
            let through = self.pass.min(self.input.len());
            output.extend_from_slice(&self.input[..through]);
            self.input.advance(through);
            self.pass -= through;
            let Some(header) = self.input.first_chunk::<FRAME_HEADER_BYTES>().filter(|_| self.pass == 0).copied()
            else {
                return Ok(());
            };
            let [a, b, c, kind, flags, ref stream @ ..] = header;
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if kind != HEADERS && kind != CONTINUATION {
                self.pass = FRAME_HEADER_BYTES + length;
                continue;
            }
            if length > BLOCK_BYTES_MAX {
                return Err(BadBlock);
            }
            if self.input.len() < FRAME_HEADER_BYTES + length {
                return Ok(());
            }
            let frame = self.input.split_to(FRAME_HEADER_BYTES + length);
            let payload = &frame[FRAME_HEADER_BYTES..];
            let block = match (kind, self.block.take()) {
                (HEADERS, None) => {
                    let bytes = fragment(payload, flags).ok_or(BadBlock)?.to_vec();
                    Block { stream: *stream, flags, bytes }
                }
                (CONTINUATION, Some(mut block)) if block.stream == *stream => {
                    block.bytes.extend_from_slice(payload);
                    block.flags |= flags & END_HEADERS;
                    block
                }
                _ => return Err(BadBlock),
            };
            if block.bytes.len() > BLOCK_BYTES_MAX {
                return Err(BadBlock);
            }
            if block.flags & END_HEADERS == 0 {
                self.block = Some(block);
                continue;
            }
            let bytes = rewritten(&block.bytes).unwrap_or(block.bytes);
            output.extend_from_slice(&(bytes.len() as u32).to_be_bytes()[1..]);
            output.extend_from_slice(&[HEADERS, block.flags & (END_STREAM | END_HEADERS)]);
            output.extend_from_slice(&block.stream);
            output.extend_from_slice(&bytes);
        }
    }
}

/// The part of a HEADERS frame that is the header block (RFC 9113, section 6.2).
fn fragment(mut payload: &[u8], flags: u8) -> Option<&[u8]> {
    let mut padding = 0;
    if flags & PADDED != 0 {
        let (length, rest) = payload.split_first()?;
        (padding, payload) = (usize::from(*length), rest);
    }
    if flags & PRIORITY != 0 {
        payload = payload.get(5..)?;
    }
    payload.get(..payload.len().checked_sub(padding)?)
}

/// A header block with another `:authority`; `None` where there is none, or where it is not understood.
fn rewritten(block: &[u8]) -> Option<Vec<u8>> {
    let (mut rest, mut found) = (block, None);
    while let Some(first) = rest.first() {
        match first {
            // Indexed field; size update.
            0x80.. => rest = integer(rest, 7)?.1,
            0x20..=0x3f => rest = integer(rest, 5)?.1,
            // Literal: with incremental indexing, without, never indexed.
            _ => {
                let (name, after) = integer(rest, if *first >= 0x40 { 6 } else { 4 })?;
                let value = if name == 0 { string(after)? } else { after };
                let authority = name == INDEX || name == 0 && NAMES.contains(&&after[..after.len() - value.len()]);
                rest = string(value)?;
                if authority && value.first().is_some_and(|length| length & 0x7f != 0) {
                    found = Some((block.len() - value.len(), block.len() - rest.len()));
                }
            }
        }
    }
    let (begin, end) = found?;
    Some([&block[..begin], &REPLACEMENT, &block[end..]].concat())
}

/// An integer with a prefix of so many bits, and what follows (RFC 7541, section 5.1).
fn integer(bytes: &[u8], prefix_bits: u32) -> Option<(usize, &[u8])> {
    let (first, mut rest) = bytes.split_first()?;
    let mask = (1_usize << prefix_bits) - 1;
    let mut value = usize::from(*first) & mask;
    if value == mask {
        // Four more bytes are 28 bits: far above any length here.
        for shift in [0, 7, 14, 21] {
            let (next, after) = rest.split_first()?;
            rest = after;
            value += usize::from(next & 0x7f) << shift;
            if next & 0x80 == 0 {
                return Some((value, rest));
            }
        }
        return None;
    }
    Some((value, rest))
}

/// What follows a string (RFC 7541, section 5.2), whether it is Huffman coded or not.
fn string(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = integer(bytes, 7)?;
    rest.get(length..)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    }

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    /// `:method: POST`, a literal `:authority`, a literal `a: bc` with a name of its own, an indexed field of the dynamic table.
    const BLOCK: &[u8] = b"\x83\x41\x07%2Fa%2F\x40\x01a\x02bc\xbe";
    const EXPECTED: &[u8] = b"\x83\x41\x01u\x40\x01a\x02bc\xbe";

    fn through(wire: &[u8], piece: usize) -> Result<Vec<u8>, BadBlock> {
        let (mut rewriter, mut output) = (Rewriter::new(), BytesMut::new());
        wire.chunks(piece).try_for_each(|piece| rewriter.feed(piece, &mut output))?;
        Ok(output.to_vec())
    }

    #[test]
    fn authorities_are_replaced_and_the_rest_is_left_as_it_is() {
        let settings = frame(4, 0, 0, b"");
        let data = frame(0, 1, 1, b"\x41\x03abc");
        let padded = [&[2, 0, 0, 0, 0, 9][..], BLOCK, &[0, 0]].concat();
        let (begin, end) = BLOCK.split_at(5);
        for headers in [
            frame(HEADERS, END_HEADERS | END_STREAM, 1, BLOCK),
            frame(HEADERS, END_HEADERS | END_STREAM | PADDED | PRIORITY, 1, &padded),
            [frame(HEADERS, END_STREAM, 1, begin), frame(CONTINUATION, END_HEADERS, 1, end)].concat(),
        ] {
            let wire = [PREFACE, &settings, &headers, &data].concat();
            let expected = [PREFACE, &settings, &frame(HEADERS, END_HEADERS | END_STREAM, 1, EXPECTED), &data].concat();
            for piece in [1, 2, 7, wire.len()] {
                assert_eq!(through(&wire, piece).unwrap(), expected, "in pieces of {piece}");
            }
        }
    }

    #[test]
    fn other_literals_and_what_is_not_understood_go_through() {
        for block in [&b"\x04\x07%2Fa%2F"[..], b"\x41\x00", b"\x41\x7f", b"\x41", b"\x41\xff\xff\xff\xff\xff\xff", b""]
        {
            assert_eq!(rewritten(block), None, "{block:?}");
            let wire = [PREFACE, &frame(HEADERS, END_HEADERS, 1, block)].concat();
            assert_eq!(through(&wire, 3).unwrap(), wire);
        }
        // As gRPC's C core writes it, and the same name Huffman coded.
        assert_eq!(rewritten(b"@\x0a:authority\x05tmp%2\x83").unwrap(), b"@\x0a:authority\x01u\x83");
        assert_eq!(
            rewritten(b"@\x88\xb8\x3b\x53\x39\xec\x32\x7d\x7f\x05tmp%2").unwrap(),
            b"@\x88\xb8\x3b\x53\x39\xec\x32\x7d\x7f\x01u"
        );
        // Never indexed, Huffman coded.
        assert_eq!(rewritten(b"\x11\x83abc\x82").unwrap(), b"\x11\x01u\x82");
    }

    #[test]
    fn memory_is_bounded() {
        let long = vec![0x82; BLOCK_BYTES_MAX];
        let wire = |parts: &[Vec<u8>]| [PREFACE, &parts.concat()].concat();
        through(&wire(&[frame(HEADERS, END_HEADERS, 1, &long)]), 1000).unwrap();
        let more = wire(&[frame(HEADERS, 0, 1, &long), frame(CONTINUATION, 0, 1, b"\x82")]);
        assert_eq!(through(&more, 1000), Err(BadBlock));
        assert_eq!(through(&[PREFACE, &[1, 0, 0, HEADERS, 0, 0, 0, 0, 1]].concat(), 1000), Err(BadBlock));
        for disorder in [
            [frame(HEADERS, 0, 1, b""), frame(HEADERS, 0, 3, b"")],
            [frame(HEADERS, 0, 1, b""), frame(CONTINUATION, 0, 3, b"")],
            [frame(CONTINUATION, 0, 1, b""), Vec::new()],
        ] {
            assert_eq!(through(&wire(&disorder), 1000), Err(BadBlock));
        }
    }

    proptest! {
        #[test]
        fn nothing_panics_and_pieces_do_not_matter(bytes in proptest::collection::vec(any::<u8>(), 0..200), piece in 1_usize..20) {
            let wire = [PREFACE, &bytes, &frame(HEADERS, END_HEADERS, 1, &bytes)].concat();
            let whole = through(&wire, wire.len());
            let pieces = through(&wire, piece);
            if let (Ok(whole), Ok(pieces)) = (&whole, &pieces) {
                prop_assert_eq!(whole, pieces);
            }
            prop_assert_eq!(whole.is_ok(), pieces.is_ok());
        }
    }
}
