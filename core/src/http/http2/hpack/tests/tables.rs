//! The dynamic table's sizes, evictions and memory, and the limit of lists.

use super::*;

type List = Vec<(Vec<u8>, Vec<u8>)>;

/// A literal that is added to the table.
fn added(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.push(0x40);
    encode_string(out, name);
    encode_string(out, value);
}

/// As one that has the name of the newest entry.
fn added_again(out: &mut Vec<u8>, value: &[u8]) {
    encode_integer(out, 0x40, 6, STATIC_LEN + 1);
    encode_string(out, value);
}

fn decode(decoder: &mut Decoder, block: &[u8], list_limit: usize) -> (Listing, List) {
    let (mut work, mut list) = (Vec::new(), Vec::new());
    let listing = decoder.decode(block, &mut work, list_limit, |name, value, _| list.push((name.into(), value.into())));
    // Scratch has its bound, too.
    assert!(
        work.len() <= list_limit.max(decoder.table.size_max()).saturating_mul(2).saturating_add(5000),
        "{}",
        work.len()
    );
    (listing.unwrap(), list)
}

#[test]
fn entries_leave_from_the_oldest_on() {
    let mut decoder = Decoder::new(120);
    let mut block = Vec::new();
    for (name, value) in [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")] {
        added(&mut block, name.as_bytes(), value.as_bytes());
    }
    decode(&mut decoder, &block, 4096);
    assert_eq!((decoder.table.len(), decoder.table.size()), (3, 102));
    assert_eq!(fields(&mut decoder, &[0xbe, 0xbf, 0xc0]).unwrap(), ["d: 4", "c: 3", "b: 2"]);
    assert_eq!(fields(&mut decoder, &[0xc1]), Err(Error::Index));
}

#[test]
fn an_entry_may_have_the_name_of_one_that_leaves_for_it() {
    let mut decoder = Decoder::new(100);
    let mut block = Vec::new();
    added(&mut block, b"name", b"");
    for round in 0..200 {
        let value = format!("{round}").repeat(20);
        added_again(&mut block, value.as_bytes());
    }
    let (_, list) = decode(&mut decoder, &block, usize::MAX);
    assert_eq!(list.len(), 201);
    for (round, (name, value)) in list.iter().skip(1).enumerate() {
        assert_eq!((&name[..], &value[..]), (&b"name"[..], format!("{round}").repeat(20).as_bytes()));
    }
    assert_eq!((decoder.table.len(), decoder.table.size()), (1, 32 + 4 + 60));
}

#[test]
fn a_larger_entry_than_the_table_empties_it() {
    for length in [64, 65, 200] {
        let mut decoder = Decoder::new(100);
        let mut block = Vec::new();
        added(&mut block, b"a", b"1");
        added(&mut block, b"name", &b"v".repeat(length));
        let (listing, list) = decode(&mut decoder, &block, 4096);
        assert_eq!((list.len(), listing.size), (2, 34 + 36 + length));
        assert_eq!(decoder.table.len(), usize::from(length == 64));
    }
}

#[test]
fn a_table_of_size_0_takes_nothing_and_allocates_nothing() {
    let mut decoder = Decoder::new(0);
    let mut block = Vec::new();
    added(&mut block, b"name", b"value");
    added(&mut block, b"", b"");
    let (listing, list) = decode(&mut decoder, &block, 4096);
    assert_eq!((list.len(), listing.too_large, listing.table_changed), (2, false, true));
    assert_eq!((decoder.table.len(), decoder.table.allocated()), (0, 0));
    assert_eq!(fields(&mut decoder, &[0xbe]), Err(Error::Index));
    assert_eq!(fields(&mut Decoder::new(0), &[0x21]), Err(Error::SizeUpdateLimit));
}

#[test]
fn a_size_update_evicts_and_lets_in_again() {
    let mut decoder = Decoder::new(4096);
    let mut block = Vec::new();
    for value in [b"1", b"2", b"3"] {
        added(&mut block, b"a", value);
    }
    decode(&mut decoder, &block, 4096);
    let mut update = Vec::new();
    encode_size_update(&mut update, 70);
    encode_size_update(&mut update, 4096);
    update.extend_from_slice(&[0xbe, 0xbf]);
    assert_eq!(fields(&mut decoder, &update).unwrap(), ["a: 3", "a: 2"]);
    let mut empty = Vec::new();
    encode_size_update(&mut empty, 0);
    assert_eq!(empty, [0x20]);
    let (listing, _) = decode(&mut decoder, &empty, 4096);
    assert!(listing.table_changed && decoder.table.len() == 0 && decoder.table.size_max() == 0);
    assert!(!decode(&mut decoder, &[0x82], 4096).0.table_changed);
}

#[test]
fn a_table_above_the_default_is_that_once_the_peer_says_so() {
    let mut decoder = Decoder::new(65_536);
    assert_eq!(decoder.table.size_max(), TABLE_SIZE_INITIAL);
    let mut block = Vec::new();
    encode_size_update(&mut block, 65_536);
    added(&mut block, b"name", &b"v".repeat(60_000));
    block.push(0xbe);
    let (listing, list) = decode(&mut decoder, &block, 1 << 20);
    assert_eq!((listing.size, list.len()), (2 * 60_036, 2));
    assert_eq!(list[0], list[1]);
}

/// Entries of all lengths, whose names are now their own, now those of others: the table's content is that of a plain
/// list, and its memory stays within twice its size.
#[test]
fn text_is_moved_without_harm_and_memory_is_bounded() {
    let mut decoder = Decoder::new(4096);
    let mut expected = List::new();
    let mut state = 1_u32;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    for round in 0..5000 {
        let value = vec![b'!' + random(90) as u8; random(if round % 50 == 0 { 4000 } else { 100 })];
        let mut block = Vec::new();
        let name = if !expected.is_empty() && random(3) > 0 {
            let position = random(expected.len());
            encode_integer(&mut block, 0x40, 6, STATIC_LEN + 1 + position);
            encode_string(&mut block, &value);
            expected[position].0.clone()
        } else {
            let name = format!("{round}").repeat(random(20)).into_bytes();
            added(&mut block, &name, &value);
            name
        };
        expected.insert(0, (name, value));
        let mut size = 0;
        let fitting = |(name, value): &&(Vec<u8>, Vec<u8>)| {
            size += name.len() + value.len() + FIELD_OVERHEAD;
            size <= 4096
        };
        expected.truncate(expected.iter().take_while(fitting).count());
        decode(&mut decoder, &block, 65_536);
        assert_eq!(decoder.table.len(), expected.len());
        for (position, (name, value)) in expected.iter().enumerate() {
            assert_eq!(decoder.table.field(position), Some((&name[..], &value[..])));
        }
        assert!(decoder.table.allocated() <= 8192, "{}", decoder.table.allocated());
    }
}

#[test]
fn a_decoder_allocates_with_its_first_entry_and_for_what_it_has() {
    let mut decoder = Decoder::new(4096);
    assert_eq!(decoder.table.allocated(), 0);
    decode(&mut decoder, &bytes("8286 8401 0161"), 4096);
    assert_eq!(decoder.table.allocated(), 0);
    let mut block = Vec::new();
    added(&mut block, b"user-agent", b"grpc-go/1.60.0");
    decode(&mut decoder, &block, 4096);
    assert!((1..=256).contains(&decoder.table.allocated()));
}

#[test]
fn fields_beyond_the_limit_of_a_list_are_decoded_only() {
    let mut block = Vec::new();
    for (name, value) in [("a", "1"), ("b", &*"2".repeat(50)), ("c", "3")] {
        added(&mut block, name.as_bytes(), value.as_bytes());
    }
    for (limit, handed_out) in [(0, 0), (33, 0), (34, 1), (116, 1), (117, 2), (150, 2), (151, 3)] {
        let mut decoder = Decoder::new(4096);
        let (listing, list) = decode(&mut decoder, &block, limit);
        assert_eq!((list.len(), listing.too_large), (handed_out, handed_out < 3), "{limit}");
        assert_eq!(listing.size, 34 + 83 + 34);
        assert_eq!(decoder.table.len(), 3);
        // The next block is understood.
        assert_eq!(fields(&mut decoder, &[0xbe, 0xc0]).unwrap(), ["c: 3", "a: 1"]);
    }
}

/// An HPACK bomb: one octet of the block stands for a field of almost 4 KiB, and three for an entry of that.
#[test]
fn a_bomb_is_measured_and_not_handed_out() {
    let mut block = Vec::new();
    added(&mut block, &b"n".repeat(4000), b"v");
    block.resize(block.len() + 16_000, 0xbe);
    for _ in 0..16_000 {
        added_again(&mut block, b"v");
    }
    let mut decoder = Decoder::new(4096);
    let (listing, list) = decode(&mut decoder, &block, 65_536);
    assert_eq!(listing.size, 32_001 * 4033);
    assert_eq!((listing.too_large, list.len()), (true, 16));
    assert_eq!(decoder.table.len(), 1);
}

#[test]
fn a_string_beyond_all_limits_is_measured_and_not_stored() {
    let long = b"0".repeat(1 << 20);
    for (limit, handed_out) in [(1000, 1), (1 << 22, 4)] {
        let mut block = vec![0x82];
        added(&mut block, b"a", &long);
        added(&mut block, &long, b"");
        block.extend_from_slice(&bytes("00 0161 00"));
        let mut decoder = Decoder::new(4096);
        let (listing, list) = decode(&mut decoder, &block, limit);
        assert_eq!(listing.size, 42 + (33 + (1 << 20)) + (32 + (1 << 20)) + 33);
        assert_eq!((list.len(), listing.too_large), (handed_out, limit == 1000));
        assert_eq!(decoder.table.len(), 0);
    }
    // What is not stored is checked all the same.
    let mut block = vec![0];
    encode_string(&mut block, &long);
    let last = block.len() - 1;
    block[last] = 0;
    block.push(0);
    block[last - 3..last].fill(0xff);
    let result = Decoder::new(4096).decode(&block, &mut Vec::new(), 1000, |_, _, _| ());
    assert_eq!(result, Err(Error::HuffmanPadding));
}

#[test]
fn a_list_beyond_all_bounds_is_decoded_no_further() {
    let (empty, indexed) = ([0, 0, 0].repeat(100), [0x82].repeat(100));
    // ":method: GET" has ten octets of text.
    for (block, size) in [(&empty, 3_200), (&indexed, 4_200)] {
        for (list_max, expected) in [(size, Ok(size)), (size - 1, Err(Error::ListSize))] {
            let mut decoder = Decoder::new(4096).with_list_max(list_max);
            let result = decoder.decode(block, &mut Vec::new(), 1000, |_, _, _| ());
            assert_eq!(result.map(|listing| listing.size), expected);
        }
    }
}
