//! Header blocks of one connection, whatever they are: no panic, no more fields than the limits allow, and where
//! loona-hpack accepts them, too, the same fields. What is decoded survives our encoder.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshring_core::http::http2::hpack::{Decoder, FIELD_OVERHEAD, TABLE_SIZE_INITIAL, encode};

type Field = (Vec<u8>, Vec<u8>, bool);

fuzz_target!(|data: &[u8]| {
    // Limit of each list in pieces of 64 octets, and our table's size in such pieces; then blocks, each after its length.
    let [list_limit, table_size, rest @ ..] = data else { return };
    let list_limit = usize::from(*list_limit) * 64;
    let table_size = (usize::from(*table_size) * 64).min(TABLE_SIZE_INITIAL);
    let mut bounded = Decoder::new(table_size);
    let mut unbounded = Decoder::new(table_size);
    // Its table has 4,096 octets at first.
    let mut judge = (table_size == TABLE_SIZE_INITIAL).then(loona_hpack::Decoder::new);
    if let Some(judge) = &mut judge {
        judge.set_max_allowed_table_size(table_size);
    }
    let mut work = vec![0x55; 64];
    let mut rest = rest;
    while let Some((block, next)) = rest.split_first().and_then(|(len, rest)| split_at_most(rest, *len)) {
        rest = next;
        let (mut list, mut some) = (Vec::new(), Vec::new());
        let all = unbounded.decode(block, &mut work, usize::MAX, |name, value, never_indexed| {
            list.push((name.to_vec(), value.to_vec(), never_indexed));
        });
        let bounded = bounded.decode(block, &mut work, list_limit, |name, value, never_indexed| {
            some.push((name.to_vec(), value.to_vec(), never_indexed));
        });
        // What the limit hides changes neither the verdict nor the table.
        assert_eq!(all.is_ok(), bounded.is_ok());
        let (Ok(all), Ok(bounded)) = (all, bounded) else {
            assert_eq!(all, bounded);
            return;
        };
        assert_eq!(all.size, size(&list));
        assert_eq!((all.too_large, all.size, all.table_changed), (false, bounded.size, bounded.table_changed));
        assert!(list.starts_with(&some) && size(&some) <= list_limit);
        assert_eq!(bounded.too_large, list.len() > some.len());
        assert_eq!(bounded.too_large, all.size > list_limit);
        let judged = judge.as_mut().map(|judge| judge.decode(block));
        match judged {
            Some(Ok(judged)) => expect_same(&judged, &list),
            // From here on its table is another one.
            Some(Err(_)) => judge = None,
            None => {}
        }
        survives_the_encoder(list, &mut work);
    }
});

fn expect_same(judged: &[(Vec<u8>, Vec<u8>)], list: &[Field]) {
    assert_eq!(judged.len(), list.len());
    for (judged, (name, value, _)) in judged.iter().zip(list) {
        assert_eq!((&judged.0, &judged.1), (name, value));
    }
}

/// So many bytes and the rest, or all there are.
fn split_at_most(bytes: &[u8], len: u8) -> Option<(&[u8], &[u8])> {
    bytes.split_at_checked(usize::from(len)).or(Some((bytes, &[])))
}

fn size(list: &[Field]) -> usize {
    list.iter().map(|(name, value, _)| name.len() + value.len() + FIELD_OVERHEAD).sum()
}

fn survives_the_encoder(mut list: Vec<Field>, work: &mut Vec<u8>) {
    let mut block = Vec::new();
    for (name, value, never_indexed) in &mut list {
        name.make_ascii_lowercase();
        encode(&mut block, name, value, *never_indexed);
    }
    let mut again = Vec::new();
    let listing = Decoder::new(TABLE_SIZE_INITIAL)
        .decode(&block, work, usize::MAX, |name, value, never_indexed| {
            again.push((name.to_vec(), value.to_vec(), never_indexed));
        })
        .expect("what we have written");
    assert!(!listing.table_changed);
    assert_eq!(again, list);
    expect_same(&loona_hpack::Decoder::new().decode(&block).expect("what we have written"), &list);
}
