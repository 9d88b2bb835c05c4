use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<(String, bool), HpackError> {
    let mut lines = String::new();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let changed = decoder.decode(block, |name, value| lines += &format!("{}={} ", text(name), text(value)))?;
    Ok((lines.trim_end().to_owned(), changed))
}

/// RFC 7541, appendix C.4: three requests with Huffman codes on one connection.
#[test]
fn the_requests_of_the_rfc_are_decoded() {
    let mut decoder = Decoder::new();
    for (hex, fields, changed) in [
        ("828684418cf1e3c2e5f23a6ba0ab90f4ff", ":method=GET :scheme=http :path=/ :authority=www.example.com", true),
        (
            "828684be5886a8eb10649cbf",
            ":method=GET :scheme=http :path=/ :authority=www.example.com cache-control=no-cache",
            true,
        ),
        (
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
            ":method=GET :scheme=https :path=/index.html :authority=www.example.com custom-key=custom-value",
            true,
        ),
        ("828785c0", ":method=GET :scheme=https :path=/index.html :authority=www.example.com", false),
    ] {
        assert_eq!(decode(&mut decoder, &bytes(hex)).unwrap(), (fields.to_owned(), changed), "{hex}");
    }
    assert_eq!(decoder.size, 57 + 53 + 54);
}

/// RFC 7541, appendix C.6: a table of 256 bytes, from which entries are evicted.
#[test]
fn entries_are_evicted_as_the_rfc_does() {
    let mut decoder = Decoder::new();
    let resize = bytes("3fe101");
    let first = bytes(
        "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
    );
    let (fields, _) = decode(&mut decoder, &[resize, first].concat()).unwrap();
    let rest = "cache-control=private date=Mon, 21 Oct 2013 20:13:21 GMT location=https://www.example.com";
    assert_eq!(fields, format!(":status=302 {rest}"));
    assert_eq!(decoder.size, 222);
    let (fields, _) = decode(&mut decoder, &bytes("4883640effc1c0bf")).unwrap();
    assert_eq!(fields, format!(":status=307 {rest}"));
    assert_eq!((decoder.size, decoder.entries.len()), (222, 4));
}

#[test]
fn every_byte_survives_the_huffman_code() {
    let all: Vec<u8> = (0..=255).collect();
    for text in [&all[..], b"", b"a", b"www.example.com"] {
        for byte in text {
            let (code, bits) = HUFFMAN.code_of(*byte);
            assert_eq!(HUFFMAN.symbol_at(u64::from(code) << (64 - bits)), Some((u16::from(*byte), bits)));
        }
        let mut encoded = Vec::new();
        write_string(text, &mut encoded);
        let (mut rest, mut decoded) = (&encoded[..], Vec::new());
        string(&mut rest, &mut decoded).unwrap();
        assert_eq!((rest, &decoded[..]), (&[][..], text));
    }
}

#[test]
fn what_is_malformed_is_refused_without_a_panic() {
    for (hex, error) in [
        ("80", HpackError::Index),
        ("be", HpackError::Index),
        ("ff", HpackError::Truncated),
        ("ffffffffff7f", HpackError::Integer),
        ("40", HpackError::Truncated),
        ("4003", HpackError::Truncated),
        ("400361", HpackError::Truncated),
        ("823f01", HpackError::TableSize),
        ("3fe21f", HpackError::TableSize),
        // Padding of eight ones, of a zero, and EOS itself.
        ("0001618 1ff", HpackError::Huffman),
        ("00016181 fe", HpackError::Huffman),
        ("00016184 ffffffff", HpackError::Huffman),
    ] {
        assert_eq!(decode(&mut Decoder::new(), &bytes(hex)), Err(error), "{hex}");
    }
    // Whatever comes: no panic.
    let mut state = 1_u32;
    for _ in 0..20_000 {
        let block: Vec<u8> = (0..state % 40)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        state = state.wrapping_add(1);
        let _ = Decoder::new().decode(&block, |_, _| ());
    }
}

#[test]
fn fields_are_one_byte_each_once_the_peer_knows_them() {
    let set = FieldSet::new(&[(":status", "200"), ("content-type", "text/plain"), ("x", "1"), ("grpc-status", "0")]);
    let (mut encoder, mut decoder) = (Encoder::new(&set), Decoder::new());
    for (positions, fields, length) in [
        (0..2, ":status=200 content-type=text/plain", None),
        (0..3, ":status=200 content-type=text/plain x=1", None),
        (0..3, ":status=200 content-type=text/plain x=1", Some(3)),
        (3..4, "grpc-status=0", None),
        (1..4, "content-type=text/plain x=1 grpc-status=0", Some(3)),
    ] {
        let mut block = Vec::new();
        encoder.write(&set, positions, &mut block);
        assert_eq!(decode(&mut decoder, &block).unwrap().0, fields);
        assert!(length.is_none_or(|length| length == block.len()), "{block:?}");
    }
    // A peer without a table is told once that none is used, and gets literals.
    encoder.set_table_size(0);
    for first in [Some(0x20), None] {
        let mut block = Vec::new();
        encoder.write(&set, 0..4, &mut block);
        assert_eq!(block.first() == Some(&0x20), first.is_some());
        assert_eq!(decode(&mut decoder, &block).unwrap().0, ":status=200 content-type=text/plain x=1 grpc-status=0");
        assert_eq!(decoder.size, 0);
    }
}

#[test]
fn fields_too_large_for_a_table_are_never_added_to_it() {
    let long = "v".repeat(5_000);
    let set = FieldSet::new(&[("a", &long)]);
    let (mut encoder, mut decoder) = (Encoder::new(&set), Decoder::new());
    for _ in 0..2 {
        let mut block = Vec::new();
        encoder.write(&set, 0..1, &mut block);
        assert!(!decode(&mut decoder, &block).unwrap().1);
    }
}
