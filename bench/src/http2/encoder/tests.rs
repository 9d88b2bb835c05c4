use meshring_core::http::http2::hpack::Decoder;

use super::*;

/// The fields of a block, and whether it has changed the table.
fn decode(decoder: &mut Decoder, block: &[u8]) -> (String, bool) {
    let mut lines = String::new();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let field = |name: &[u8], value: &[u8], _| lines += &format!("{}={} ", text(name), text(value));
    let listing = decoder.decode(block, &mut Vec::new(), usize::MAX, field).unwrap();
    (lines.trim_end().to_owned(), listing.table_changed)
}

#[test]
fn fields_are_one_byte_each_once_the_peer_knows_them() {
    let set = FieldSet::new(&[(":status", "200"), ("content-type", "text/plain"), ("x", "1"), ("grpc-status", "0")]);
    let (mut encoder, mut decoder) = (Encoder::new(&set), Decoder::new(HEADER_TABLE_BYTES));
    for (positions, fields, length) in [
        (0..2, ":status=200 content-type=text/plain", None),
        (0..3, ":status=200 content-type=text/plain x=1", None),
        (0..3, ":status=200 content-type=text/plain x=1", Some(3)),
        (3..4, "grpc-status=0", None),
        (1..4, "content-type=text/plain x=1 grpc-status=0", Some(3)),
    ] {
        let mut block = Vec::new();
        encoder.write(&set, positions, &mut block);
        assert_eq!(decode(&mut decoder, &block).0, fields);
        assert!(length.is_none_or(|length| length == block.len()), "{block:?}");
    }
    // A peer without a table is told once that none is used, and gets literals.
    encoder.set_table_size(0);
    for first in [Some(0x20), None] {
        let mut block = Vec::new();
        encoder.write(&set, 0..4, &mut block);
        assert_eq!(block.first() == Some(&0x20), first.is_some());
        assert_eq!(decode(&mut decoder, &block).0, ":status=200 content-type=text/plain x=1 grpc-status=0");
    }
}

#[test]
fn fields_too_large_for_a_table_are_never_added_to_it() {
    let long = "v".repeat(5_000);
    let set = FieldSet::new(&[("a", &long)]);
    let (mut encoder, mut decoder) = (Encoder::new(&set), Decoder::new(HEADER_TABLE_BYTES));
    for _ in 0..2 {
        let mut block = Vec::new();
        encoder.write(&set, 0..1, &mut block);
        assert!(!decode(&mut decoder, &block).1);
    }
}
