//! The tables of HPACK (RFC 7541, appendices A and B).

/// The static table; its first entry has the index 1.
pub(super) const STATIC: [(&[u8], &[u8]); 61] = [
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

/// Symbols of the Huffman code: the bytes, and EOS.
const SYMBOLS: usize = 257;

/// The symbol that ends a string; only its first bits may occur, as padding.
pub(super) const EOS: u16 = 256;

/// Bits of the longest code.
const BITS_MAX: usize = 30;

/// Bits of each symbol's code. The code is canonical: codes of one length follow each other in the order of their symbols.
#[rustfmt::skip]
const BITS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// The Huffman code, laid out for both directions.
pub(super) struct Huffman {
    /// The first code of each length.
    first: [u32; BITS_MAX + 1],
    /// How many codes there are of each length.
    count: [u32; BITS_MAX + 1],
    /// Where the symbols of each length begin in `sorted`.
    offset: [u32; BITS_MAX + 1],
    /// Symbols in the order of their codes.
    sorted: [u16; SYMBOLS],
    codes: [u32; SYMBOLS],
}

pub(super) static HUFFMAN: Huffman = Huffman::new();

impl Huffman {
    const fn new() -> Self {
        let mut huffman = Self {
            first: [0; BITS_MAX + 1],
            count: [0; BITS_MAX + 1],
            offset: [0; BITS_MAX + 1],
            sorted: [0; SYMBOLS],
            codes: [0; SYMBOLS],
        };
        let (mut code, mut position, mut bits) = (0, 0, 1);
        while bits <= BITS_MAX {
            code <<= 1;
            huffman.first[bits] = code;
            huffman.offset[bits] = position as u32;
            let mut symbol = 0;
            while symbol < SYMBOLS {
                if BITS[symbol] as usize == bits {
                    huffman.sorted[position] = symbol as u16;
                    huffman.codes[symbol] = code;
                    huffman.count[bits] += 1;
                    code += 1;
                    position += 1;
                }
                symbol += 1;
            }
            bits += 1;
        }
        huffman
    }

    /// The symbol at the highest bits of `window`, and the bits of its code.
    pub(super) fn symbol_at(&self, window: u64) -> Option<(u16, u32)> {
        (5..=BITS_MAX).find_map(|bits| {
            let code = (window >> (64 - bits)) as u32;
            // Shorter codes are smaller, so `code` is not below the first one of this length.
            let nth = code.checked_sub(self.first[bits])?;
            (nth < self.count[bits]).then(|| (self.sorted[(self.offset[bits] + nth) as usize], bits as u32))
        })
    }

    /// The code of a byte and its bits.
    pub(super) const fn code_of(&self, byte: u8) -> (u32, u32) {
        (self.codes[byte as usize], BITS[byte as usize] as u32)
    }
}
