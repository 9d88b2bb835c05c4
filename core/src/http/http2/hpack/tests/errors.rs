//! What is a COMPRESSION_ERROR, and what only looks like one.

use super::*;

fn error(hex: &str) -> Option<Error> {
    fields(&mut Decoder::new(4096), &bytes(hex)).err()
}

#[test]
fn each_error_has_its_blocks() {
    for (hexes, expected) in [
        // An index, a literal's name, its value, or the rest of an integer is missing.
        (
            &["ff", "ffff", "ff80", "40", "0f", "00", "400161", "04", "10", "3f", "047f", "0001617f80"][..],
            Error::Truncated,
        ),
        (&["0001", "000261", "00016101", "0001610261", "0081", "047f00", "04ff8080808001"], Error::StringLength),
        // A sixth octet after the first, and more than 2^32 - 1.
        (&["ff808080808000", "ff8080808010", "ffffffffff7f", "7fffffffffff", "3f808080808000"], Error::Integer),
        (&["80", "8280"], Error::IndexZero),
        (&["be", "ff8001", "7e00", "7f0000", "0f2f00", "1f2f00", "ff8080808001", "400161026161bf"], Error::Index),
        // A `1` and eleven ones; a `1` and zeros; eight ones; a code of 28 or 30 bits and zeros; codes that go on beyond the end.
        (&["000161820fff", "0001618108", "00016181ff", "00016184ffffffc0"], Error::HuffmanPadding),
        (&["00016184fffffff0", "00016183fffffe", "0081fe00", "0001618800000000000000fe"], Error::HuffmanPadding),
        // EOS alone, after another code, and amid a long string.
        (&["00016184ffffffff", "0001618507ffffffff", "0001618cffffffff0000000000000000"], Error::HuffmanEos),
        (&["3fe21f", "203fe21f"], Error::SizeUpdateLimit),
        (&["8220", "4001610020", "822082"], Error::SizeUpdateOrder),
    ] {
        for hex in hexes {
            assert_eq!(error(hex), Some(expected), "{hex}");
        }
        assert!(!expected.to_string().is_empty());
    }
}

#[test]
fn a_lowered_limit_has_to_be_acknowledged_by_the_next_block() {
    let mut decoder = Decoder::new(4096);
    decoder.set_max_size(100);
    assert_eq!(fields(&mut decoder, &bytes("82")), Err(Error::SizeUpdateMissing));
    // To 101, to 100.
    for (hex, expected) in [("3f46", Err(Error::SizeUpdateLimit)), ("3f45", Ok(Vec::new()))] {
        let mut decoder = Decoder::new(4096);
        decoder.set_max_size(100);
        assert_eq!(fields(&mut decoder, &bytes(hex)), expected);
    }
    // A table that is small enough already stays as it is; one that may be larger now does, too.
    let mut decoder = Decoder::new(4096);
    assert_eq!(fields(&mut decoder, &bytes("3f4540016101 62")), Ok(vec!["a: b".to_owned()]));
    for max_size in [100, 1 << 30] {
        decoder.set_max_size(max_size);
        assert_eq!(fields(&mut decoder, &bytes("be")), Ok(vec!["a: b".to_owned()]));
        assert_eq!(decoder.table.size_max(), 100);
    }
}

#[test]
fn what_is_unusual_is_accepted() {
    let long = format!("017f8000 {}", "61".repeat(127));
    for (hex, expected) in [
        // No field at all.
        ("", &[][..]),
        ("20", &[]),
        ("203fe11f82", &[":method: GET"]),
        // Integers with more octets than they need.
        ("0f808080800000", &["accept-charset: "]),
        (&long, &[&format!(":authority: {}", "a".repeat(127))]),
        // Names and values that are empty, in the Huffman code, too.
        ("000000", &[": "]),
        ("008080", &[": "]),
        // Seven ones as padding, and none.
        ("00016183fe2eff", &["a: !B"]),
        ("00016181f8", &["a: &"]),
        // In the static table as a literal, and marked as sensitive.
        ("0203474554", &[":method: GET"]),
        ("1203474554", &[":method: GET !"]),
    ] {
        assert_eq!(fields(&mut Decoder::new(4096), &bytes(hex)).unwrap(), expected, "{hex}");
    }
}
