//! What one side writes the other side reads, by our codec and by loona-hpack's.

use proptest::prelude::*;

use super::super::static_table::STATIC;
use super::*;

type Field = (Vec<u8>, Vec<u8>);

fn decoded(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<(Field, bool)>, Error> {
    let mut list = Vec::new();
    let add = |name: &[u8], value: &[u8], never: bool| list.push(((name.to_vec(), value.to_vec()), never));
    decoder.decode(block, &mut vec![0xaa; 10], usize::MAX, add)?;
    Ok(list)
}

/// One representation. Indices wrap around at the end of the tables, so that any number is one.
#[derive(Clone, Debug)]
enum Step {
    Indexed(usize),
    /// First bits, bits of the prefix; the name or its index; whether name and value are in the Huffman code.
    Literal((u8, u32), Result<Vec<u8>, usize>, Vec<u8>, [bool; 2]),
}

fn texts() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => "[a-z0-9:/._-]{0,40}".prop_map(String::into_bytes),
        2 => prop::collection::vec(any::<u8>(), 0..40),
        1 => (any::<u8>(), 0..5000_usize).prop_map(|(byte, length)| vec![byte; length]),
        1 => prop::sample::select(&STATIC[..]).prop_map(|(name, _)| name.to_vec()),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    let kinds = prop::sample::select(vec![(0x40, 6), (0x40, 6), (0x00, 4), (0x10, 4)]);
    let names = prop_oneof![texts().prop_map(Ok), (0..200_usize).prop_map(Err)];
    prop_oneof![
        1 => (0..200_usize).prop_map(Step::Indexed),
        2 => (kinds, names, texts(), any::<[bool; 2]>())
            .prop_map(|(kind, name, value, huffman)| Step::Literal(kind, name, value, huffman)),
    ]
}

/// Writes blocks, and knows what they mean from a table that is a plain list.
struct Model {
    entries: Vec<Field>,
    size_max: usize,
}

impl Model {
    fn field(&self, index: usize) -> (usize, Field) {
        let position = index % (STATIC_LEN + self.entries.len());
        let field = match STATIC.get(position) {
            Some((name, value)) => (name.to_vec(), value.to_vec()),
            None => self.entries[position - STATIC_LEN].clone(),
        };
        (position + 1, field)
    }

    fn evict(&mut self) {
        let mut size = 0;
        let size_max = self.size_max;
        let fits = |(name, value): &&Field| {
            size += name.len() + value.len() + FIELD_OVERHEAD;
            size <= size_max
        };
        self.entries.truncate(self.entries.iter().take_while(fits).count());
    }

    fn write(&mut self, sizes: &[usize], steps: &[Step]) -> (Vec<u8>, Vec<(Field, bool)>) {
        let (mut block, mut list) = (Vec::new(), Vec::new());
        for &size in sizes {
            encode_size_update(&mut block, size);
            self.size_max = size;
            self.evict();
        }
        for step in steps {
            match step {
                Step::Indexed(index) => {
                    let (index, field) = self.field(*index);
                    encode_integer(&mut block, 0x80, 7, index);
                    list.push((field, false));
                }
                Step::Literal((first, prefix_bits), name, value, [name_huffman, value_huffman]) => {
                    let name = match name {
                        Ok(name) => {
                            block.push(*first);
                            write_string(&mut block, name, *name_huffman);
                            name.clone()
                        }
                        Err(index) => {
                            let (index, (name, _)) = self.field(*index);
                            encode_integer(&mut block, *first, *prefix_bits, index);
                            name
                        }
                    };
                    write_string(&mut block, value, *value_huffman);
                    let field = (name, value.clone());
                    list.push((field.clone(), *first == 0x10));
                    if *first == 0x40 {
                        self.entries.insert(0, field);
                        self.evict();
                    }
                }
            }
        }
        (block, list)
    }
}

/// In the Huffman code even if that is longer.
fn write_string(out: &mut Vec<u8>, text: &[u8], in_huffman_code: bool) {
    if in_huffman_code {
        encode_integer(out, 0x80, 7, huffman::encoded_len(text));
        huffman::encode(out, text);
    } else {
        encode_integer(out, 0, 7, text.len());
        out.extend_from_slice(text);
    }
}

type Block = (Vec<usize>, Vec<Step>);

fn connections() -> impl Strategy<Value = Vec<Block>> {
    let sizes = prop_oneof![
        8 => Just(Vec::new()),
        1 => prop::collection::vec(0..4097_usize, 1..3),
        1 => Just(vec![0, 4096]),
    ];
    prop::collection::vec((sizes, prop::collection::vec(steps(), 1..12)), 1..8)
}

proptest! {
    #[test]
    fn a_connection_of_any_representations_means_the_same_to_all(blocks in connections()) {
        let mut model = Model { entries: Vec::new(), size_max: 4096 };
        let (mut decoder, mut judge) = (Decoder::new(4096), loona_hpack::Decoder::new());
        for (sizes, steps) in blocks {
            let (block, expected) = model.write(&sizes, &steps);
            let judged = judge.decode(&block).expect("what loona-hpack accepts");
            prop_assert!(judged.iter().eq(expected.iter().map(|(field, _)| field)));
            prop_assert_eq!(decoded(&mut decoder, &block), Ok(expected));
            prop_assert_eq!(decoder.table.len(), model.entries.len());
        }
    }

    #[test]
    fn what_we_write_is_read_by_both_and_leaves_no_entry(
        fields in prop::collection::vec((texts(), texts(), any::<bool>()), 0..12), status in 100..1000_u16,
    ) {
        let mut block = Vec::new();
        encode_status(&mut block, status);
        let mut expected = vec![((b":status".to_vec(), status.to_string().into_bytes()), false)];
        for (name, value, sensitive) in fields {
            let name = name.to_ascii_lowercase();
            encode(&mut block, &name, &value, sensitive);
            expected.push(((name, value), sensitive));
        }
        let judged = loona_hpack::Decoder::new().decode(&block).expect("what loona-hpack accepts");
        prop_assert!(judged.iter().eq(expected.iter().map(|(field, _)| field)));
        let mut decoder = Decoder::new(4096);
        prop_assert_eq!(decoded(&mut decoder, &block), Ok(expected));
        prop_assert_eq!(decoder.table.len(), 0);
    }

    #[test]
    fn what_loona_hpack_writes_we_read(
        heads in prop::collection::vec(prop::collection::vec((texts(), texts()), 1..10), 1..8),
    ) {
        let (mut encoder, mut decoder) = (loona_hpack::Encoder::new(), Decoder::new(4096));
        for head in heads {
            let block = encoder.encode(head.iter().map(|(name, value)| (&name[..], &value[..])));
            let list = decoded(&mut decoder, &block).expect("acceptable");
            prop_assert!(list.iter().map(|(field, _)| field).eq(&head));
        }
    }

    /// With one byte changed, or cut: no panic, and if both accept it, the same fields.
    #[test]
    fn what_is_damaged_never_means_two_things(
        blocks in connections(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 8),
    ) {
        let mut model = Model { entries: Vec::new(), size_max: 4096 };
        let (mut decoder, mut judge) = (Decoder::new(4096), loona_hpack::Decoder::new());
        judge.set_max_allowed_table_size(4096);
        for ((sizes, steps), (at, byte, cut)) in blocks.iter().zip(damage) {
            let (mut block, _) = model.write(sizes, steps);
            let at = at.index(block.len());
            block[at] = byte;
            block.truncate(if cut { at } else { block.len() });
            let (Ok(list), Ok(judged)) = (decoded(&mut decoder, &block), judge.decode(&block)) else { return Ok(()) };
            prop_assert!(list.iter().map(|(field, _)| field).eq(&judged));
        }
    }

    #[test]
    fn no_block_makes_it_panic_or_hand_out_too_much(
        blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..6),
        list_limit in 0..2000_usize, max_size in 0..5000_usize,
    ) {
        let (mut decoder, mut work) = (Decoder::new(max_size), Vec::new());
        for block in blocks {
            let mut size = 0;
            let add = |name: &[u8], value: &[u8], _| size += name.len() + value.len() + FIELD_OVERHEAD;
            let Ok(listing) = decoder.decode(&block, &mut work, list_limit, add) else { return Ok(()) };
            prop_assert!(size <= list_limit && size <= listing.size);
            prop_assert_eq!(size < listing.size, listing.too_large);
            prop_assert_eq!(listing.size > list_limit, listing.too_large);
            prop_assert!(decoder.table.size() <= max_size);
        }
    }

    #[test]
    fn any_text_survives_the_huffman_code_at_any_room(text in texts(), room in 0..6000_usize) {
        let mut encoded = Vec::new();
        huffman::encode(&mut encoded, &text);
        prop_assert_eq!(encoded.len(), huffman::encoded_len(&text));
        prop_assert!(text.len() <= huffman::decoded_len_max(encoded.len()));
        let mut out = vec![0; room + huffman::SLACK];
        prop_assert_eq!(huffman::decode(&encoded, &mut out), Ok(text.len()));
        let kept = text.len().min(room);
        prop_assert_eq!(&out[..kept], &text[..kept]);
        if kept < text.len() {
            return Ok(());
        }
        // Cut anywhere it is a beginning of the text, or refused.
        for cut in encoded.len().saturating_sub(20)..encoded.len() {
            if let Ok(len) = huffman::decode(&encoded[..cut], &mut out) {
                prop_assert_eq!(&out[..len], &text[..len]);
            }
        }
    }
}

/// All strings of up to two bytes, and all of three that begin with ones: what is accepted is what the encoder writes.
#[test]
fn each_text_has_one_code() {
    let check = |encoded: &[u8]| {
        let mut text = [0; 16];
        if let Ok(len) = huffman::decode(encoded, &mut text) {
            let mut again = Vec::new();
            huffman::encode(&mut again, &text[..len]);
            assert_eq!(again, encoded);
        }
    };
    for word in 0..=u16::MAX {
        let [high, low] = word.to_be_bytes();
        check(&[low]);
        check(&[high, low]);
        check(&[0xff, high, low]);
        check(&[0xff, 0xff, 0xff, high, low]);
    }
}
