//! The Huffman code (RFC 7541 section 5.2 and appendix B).

use super::Error;

/// Symbols of the code: the bytes, and EOS.
const SYMBOLS: usize = 257;

const EOS: u16 = 256;

const BITS_MIN: usize = 5;
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

/// The code of all symbols.
struct Code {
    /// The first code of each length.
    first: [u32; BITS_MAX + 1],
    /// The end of each length's codes, at the top of 32 bits: what is below has a code of this length or a shorter one.
    end: [u64; BITS_MAX + 1],
    /// Where the symbols of each length begin in `sorted`.
    offset: [u32; BITS_MAX + 1],
    /// Symbols in the order of their codes.
    sorted: [u16; SYMBOLS],
    codes: [u32; SYMBOLS],
}

static CODE: Code = Code::new();

impl Code {
    const fn new() -> Self {
        let mut all = Self {
            first: [0; BITS_MAX + 1],
            end: [0; BITS_MAX + 1],
            offset: [0; BITS_MAX + 1],
            sorted: [0; SYMBOLS],
            codes: [0; SYMBOLS],
        };
        let (mut code, mut position, mut bits) = (0, 0, 1);
        while bits <= BITS_MAX {
            code <<= 1;
            all.first[bits] = code;
            all.offset[bits] = position as u32;
            let mut symbol = 0;
            while symbol < SYMBOLS {
                if BITS[symbol] as usize == bits {
                    all.sorted[position] = symbol as u16;
                    all.codes[symbol] = code;
                    code += 1;
                    position += 1;
                }
                symbol += 1;
            }
            all.end[bits] = (code as u64) << (32 - bits);
            bits += 1;
        }
        assert!(all.end[BITS_MAX] == 1 << 32, "the code is not complete");
        all
    }

    /// The symbol at the top of `window`, whose code has more than [`PAIR_BITS`].
    fn long(&self, window: u64) -> Result<Group, Error> {
        let top = window >> 32;
        let bits = (PAIR_BITS + 1..BITS_MAX).find(|&bits| top < self.end[bits]).unwrap_or(BITS_MAX);
        let nth = (top >> (32 - bits)) as u32 - self.first[bits];
        match self.sorted[(self.offset[bits] + nth) as usize] {
            EOS => Err(Error::HuffmanEos),
            symbol => Ok(Group { text: symbol.into(), text_bits: 8, bits: bits as u32 }),
        }
    }
}

/// Bits that one look-up takes into account: enough for two of the codes of six bits that most of a header's bytes have.
/// A bit less costs a fifth more time, two bits more save a fourteenth, and each doubles the table's 16 KiB.
const PAIR_BITS: usize = 12;

/// What the next bits begin with: one symbol or two, of at most [`PAIR_BITS`] together. 0 stands for a longer code.
#[derive(Clone, Copy)]
struct Pair(u32);

impl Pair {
    const fn new(symbols: [u16; 2], count: u32, bits: u32) -> Self {
        Self(symbols[0] as u32 | (symbols[1] as u32) << 8 | bits << 16 | (8 * count) << 24)
    }

    /// The symbols, the first one lowest.
    #[inline(always)]
    fn text(self) -> u64 {
        u64::from(self.0 & 0xffff)
    }

    /// Bits of the symbols' text: 8 or 16.
    #[inline(always)]
    fn text_bits(self) -> u32 {
        self.0 >> 24
    }

    /// Bits of their codes.
    #[inline(always)]
    fn bits(self) -> u32 {
        self.0 >> 16 & 0xf
    }
}

/// Some symbols that follow each other, and the bits of their codes.
struct Group {
    /// The first symbol lowest.
    text: u64,
    text_bits: u32,
    bits: u32,
}

impl Group {
    /// Up to four pairs, which fit into a word of text and into 48 bits. None if the first code is longer than those of
    /// pairs.
    #[inline(always)]
    fn at(mut window: u64) -> Self {
        let mut group = Self { text: 0, text_bits: 0, bits: 0 };
        for _ in 0..4 {
            let pair = PAIRS[(window >> (64 - PAIR_BITS)) as usize];
            if pair.0 == 0 {
                break;
            }
            group.text |= pair.text() << group.text_bits;
            group.text_bits += pair.text_bits();
            group.bits += pair.bits();
            window <<= pair.bits();
        }
        group
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.text_bits as usize / 8
    }
}

static PAIRS: [Pair; 1 << PAIR_BITS] = pairs();

const fn pairs() -> [Pair; 1 << PAIR_BITS] {
    const SIZE: usize = 1 << PAIR_BITS;
    // One symbol each, to begin with.
    let (mut symbols, mut lengths) = ([0_u16; SIZE], [0_u32; SIZE]);
    let code = Code::new();
    let mut symbol = 0;
    while symbol < SYMBOLS {
        let bits = BITS[symbol] as usize;
        if bits <= PAIR_BITS {
            let mut at = (code.codes[symbol] as usize) << (PAIR_BITS - bits);
            let end = at + (1 << (PAIR_BITS - bits));
            while at < end {
                (symbols[at], lengths[at]) = (symbol as u16, bits as u32);
                at += 1;
            }
        }
        symbol += 1;
    }
    let mut pairs = [Pair(0); SIZE];
    let mut at = 0;
    while at < SIZE {
        let bits = lengths[at];
        if bits > 0 {
            let next = at << bits & (SIZE - 1);
            pairs[at] = if lengths[next] > 0 && bits + lengths[next] <= PAIR_BITS as u32 {
                Pair::new([symbols[at], symbols[next]], 2, bits + lengths[next])
            } else {
                Pair::new([symbols[at], 0], 1, bits)
            };
        }
        at += 1;
    }
    pairs
}

/// What [`decode`] may write beyond the end of the text.
pub(super) const SLACK: usize = 8;

/// The longest text of so many octets.
pub(super) const fn decoded_len_max(encoded_len: usize) -> usize {
    encoded_len.saturating_mul(8) / BITS_MIN
}

/// Writes the text to the front of `out` and gives its length. A text that is longer than `out` less [`SLACK`] is checked
/// and measured, but not stored beyond that.
pub(super) fn decode(encoded: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    let (mut rest, mut len) = (encoded, 0);
    // The next bits, from the highest one on, and how many of them count. What follows those is right, too, or 0.
    let (mut window, mut bits) = (0_u64, 0_u32);
    while let Some(next) = rest.first_chunk() {
        window |= u64::from_be_bytes(*next) >> bits;
        rest = &rest[(63 - bits as usize) / 8..];
        bits |= 56;
        let mut group = Group::at(window);
        if group.bits == 0 {
            group = CODE.long(window)?;
        }
        store(out, len, group.text);
        len += group.len();
        window <<= group.bits;
        bits -= group.bits;
    }
    // The last bits: two words of them, with ones behind. Padding is ones, too, and no code of less than eight bits, nor one
    // that a pair has, is ones only. So all codes up to the end are found without looking where that is.
    let mut unread = bits + 8 * rest.len() as u32;
    let last = last_bytes(encoded, rest.len());
    let mut window = window | last >> bits;
    let mut next = last.checked_shl(64 - bits).unwrap_or(0) | u64::MAX >> bits;
    while unread > 0 {
        let mut group = Group::at(window);
        if group.bits == 0 {
            if unread < 8 && window.leading_ones() >= unread {
                return Ok(len);
            }
            let is_cut = unread < BITS_MAX as u32;
            group = CODE.long(window).map_err(|eos| if is_cut { Error::HuffmanPadding } else { eos })?;
        }
        unread = unread.checked_sub(group.bits).ok_or(Error::HuffmanPadding)?;
        store(out, len, group.text);
        len += group.len();
        window = window << group.bits | next >> (64 - group.bits);
        next = next << group.bits | ((1 << group.bits) - 1);
    }
    Ok(len)
}

#[inline(always)]
fn store(out: &mut [u8], at: usize, text: u64) {
    if let Some(place) = out.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *place = text.to_le_bytes();
    }
}

/// So many of the last bytes, less than eight, from the highest bit on, and ones behind them.
#[inline(always)]
fn last_bytes(bytes: &[u8], count: usize) -> u64 {
    let ones = u64::MAX >> (8 * count);
    if count == 0 {
        return ones;
    }
    let unused = 64 - 8 * count as u32;
    if let Some(last) = bytes.last_chunk() {
        return u64::from_be_bytes(*last) << unused | ones;
    }
    // Fewer than eight in all, so that they are all wanted: two words of them that may overlap.
    if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        return u64::from(u32::from_be_bytes(*first)) << 32 | u64::from(u32::from_be_bytes(*last)) << unused | ones;
    }
    bytes.iter().rev().fold(u64::MAX, |word, byte| word >> 8 | u64::from(*byte) << 56)
}

/// Octets of the text in the code.
pub(super) fn encoded_len(text: &[u8]) -> usize {
    let bits: usize = text.iter().map(|byte| usize::from(BITS[usize::from(*byte)])).sum();
    bits.div_ceil(8)
}

/// Appends the text in the code.
pub(super) fn encode(out: &mut Vec<u8>, text: &[u8]) {
    let (mut window, mut pending) = (0_u64, 0);
    for byte in text {
        let symbol = usize::from(*byte);
        window = window << BITS[symbol] | u64::from(CODE.codes[symbol]);
        pending += u32::from(BITS[symbol]);
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
