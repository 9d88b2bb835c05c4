//! Eight bytes of a head at a time, in one machine word, without a loop over them and without unsafe code.
//!
//! Each function looks at the bytes of a little-endian word and sets the high bit of those that it finds. Sums stay below
//! 256 in each byte, so that no byte disturbs the next one and every bit of the result is exact, not only the lowest.

/// A word of eight equal bytes.
const fn all(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}

/// The high bit of each byte.
const HIGH: u64 = all(0x80);

/// What makes a lower-case letter of an upper-case one, in each byte.
pub(super) const CASE: u64 = all(0x20);

/// Control characters and DEL: what a field value cannot hold, and the tab.
#[inline(always)]
pub(super) const fn controls(word: u64) -> u64 {
    let low = word & !HIGH;
    // 0x20 and above carry into the high bit with 0x60, and 0x7f alone does with 1.
    (!(low + all(0x60)) | (low + all(0x01))) & !word & HIGH
}

/// Everything but visible ASCII: what a request target cannot hold.
#[inline(always)]
pub(super) const fn invisible(word: u64) -> u64 {
    let low = word & !HIGH;
    (!(low + all(0x5f)) | (low + all(0x01)) | word) & HIGH
}

/// Everything but letters, digits and `-`. The other token characters are found as well: names hardly ever have them.
#[inline(always)]
pub(super) const fn unusual_in_name(word: u64) -> u64 {
    let low = word & !HIGH;
    let lower = low | CASE;
    // Each pair of sums has one high bit between the first and the last byte of a range, and none or two elsewhere.
    let letter = (lower + all(0x80 - b'a')) ^ (lower + all(0x7f - b'z'));
    let digit = (low + all(0x80 - b'0')) ^ (low + all(0x7f - b'9'));
    let dash = !((low ^ all(b'-')) + all(0x7f));
    (!(letter | digit | dash) | word) & HIGH
}

/// The place of the first byte that was found; 8 if there is none.
#[inline(always)]
pub(super) const fn first(found: u64) -> usize {
    (found.trailing_zeros() / 8) as usize
}

/// All bits of the bytes before the first one that was found, of which there must be one.
#[inline(always)]
pub(super) const fn before(found: u64) -> u64 {
    // The lowest high bit, moved to the lowest bit of its byte, less one.
    ((found & found.wrapping_neg()) >> 7).wrapping_sub(1)
}

/// The two words of sixteen bytes.
#[inline(always)]
pub(super) const fn pair(block: &[u8; 16]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *block;
    [u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes([i, j, k, l, m, n, o, p])]
}

/// How many bytes come before the first that is found; all of them if none is.
#[inline(always)]
pub(super) fn run(bytes: &[u8], find: impl Fn(u64) -> u64) -> usize {
    let mut rest = bytes;
    while let Some((block, tail)) = rest.split_first_chunk() {
        let [low, high] = pair(block).map(&find);
        if low | high != 0 {
            let at = if low != 0 { first(low) } else { 8 + first(high) };
            return bytes.len() - rest.len() + at;
        }
        rest = tail;
    }
    bytes.len() - rest.len() + rest.iter().take_while(|&&b| find(u64::from(b) | PAD) == 0).count()
}

/// What stands behind a byte that is looked at alone: nobody's find.
const PAD: u64 = all(b'a') << 8;

#[cfg(test)]
mod tests {
    use super::super::kind::{TOKEN, is_value_byte};
    use super::*;

    /// The bytes of the word for which this holds, as their high bits.
    fn marked(word: u64, is_found: impl Fn(u8) -> bool) -> u64 {
        u64::from_le_bytes(word.to_le_bytes().map(|b| if is_found(b) { 0x80 } else { 0 }))
    }

    #[test]
    fn each_byte_is_judged_alone_at_each_place_and_beside_any_other() {
        for neighbour in 0..=255 {
            for byte in 0..=255 {
                for place in 0..8 {
                    let mut bytes = [neighbour; 8];
                    bytes[place] = byte;
                    let word = u64::from_le_bytes(bytes);
                    assert_eq!(controls(word), marked(word, |b| b < 0x20 || b == 0x7f), "{bytes:?}");
                    assert_eq!(invisible(word), marked(word, |b| !b.is_ascii_graphic()), "{bytes:?}");
                    let unusual = marked(word, |b| !b.is_ascii_alphanumeric() && b != b'-');
                    assert_eq!(unusual_in_name(word), unusual, "{bytes:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_found_in_a_name_or_a_value_may_stand_there() {
        for byte in 0..=255 {
            let word = u64::from_le_bytes([byte; 8]);
            assert!(unusual_in_name(word) != 0 || TOKEN[usize::from(byte)], "{byte:#x}");
            assert_eq!(controls(word) == 0 || byte == b'\t', is_value_byte(byte), "{byte:#x}");
        }
    }

    #[test]
    fn the_bytes_before_the_first_find_are_kept() {
        for place in 0..8 {
            let mut found = 0x80_u64 << (8 * place);
            assert_eq!((first(found), before(found)), (place, (1_u64 << (8 * place)) - 1));
            found |= 1 << 63;
            assert_eq!((first(found), before(found)), (place, (1_u64 << (8 * place)) - 1));
        }
        assert_eq!(first(0), 8);
    }

    #[test]
    fn a_run_ends_at_the_first_find_wherever_it_is() {
        for len in 0..50 {
            let mut bytes = vec![b'x'; len];
            assert_eq!(run(&bytes, controls), len);
            for at in (0..len).rev() {
                bytes[at] = b'\r';
                assert_eq!(run(&bytes, controls), at, "of {len}");
                bytes[at] = 0xff;
                assert_eq!(run(&bytes[..at], controls), at, "of {len}");
                bytes[at] = b'\n';
            }
        }
    }
}
