//! RFC 7541, appendix C.

use super::*;

#[test]
fn c_1_integers() {
    for (hex, first, prefix_bits, value) in [("0a", 0, 5, 10), ("1f9a0a", 0, 5, 1337), ("2a", 0, 7, 42)] {
        let mut out = Vec::new();
        encode_integer(&mut out, first, prefix_bits, value);
        assert_eq!(out, bytes(hex));
    }
    // The same sizes of tables: 10, 1337.
    let mut decoder = Decoder::new(1337);
    assert_eq!(fields(&mut decoder, &bytes("2a")), Ok(Vec::new()));
    assert_eq!(decoder.table.size_max(), 10);
    assert_eq!(fields(&mut decoder, &bytes("3f9a0a")), Ok(Vec::new()));
    assert_eq!(decoder.table.size_max(), 1337);
    assert_eq!(fields(&mut Decoder::new(1336), &bytes("3f9a0a")), Err(Error::SizeUpdateLimit));
}

#[test]
fn c_2_representations() {
    for (hex, field, size) in [
        ("400a 637573746f6d2d6b6579 0d 637573746f6d2d686561646572", "custom-key: custom-header", 55),
        ("040c 2f73616d706c652f70617468", ":path: /sample/path", 0),
        ("1008 70617373776f7264 06 736563726574", "password: secret !", 0),
        ("82", ":method: GET", 0),
    ] {
        let mut decoder = Decoder::new(4096);
        assert_eq!(fields(&mut decoder, &bytes(hex)).unwrap(), [field]);
        assert_eq!(decoder.table.size(), size);
    }
}

/// One connection: blocks, their fields without those of the static table in front, and what the table has then.
fn expect_blocks(table_size: usize, blocks: &[(&str, &[&str], &[&str], usize)]) {
    let mut decoder = Decoder::new(table_size);
    for (hex, expected, entries, size) in blocks {
        assert_eq!(fields(&mut decoder, &bytes(hex)).unwrap(), *expected);
        let position = |position| {
            let (name, value) = decoder.table.field(position).unwrap();
            [name, &b": "[..], value].concat()
        };
        let found: Vec<_> = (0..decoder.table.len()).map(position).collect();
        assert_eq!(found, entries.iter().map(|entry| entry.as_bytes()).collect::<Vec<_>>(), "{hex}");
        assert_eq!(decoder.table.size(), *size);
    }
}

const FIRST: &[&str] = &[":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"];
const SECOND: &[&str] =
    &[":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com", "cache-control: no-cache"];
const THIRD: &[&str] = &[
    ":method: GET",
    ":scheme: https",
    ":path: /index.html",
    ":authority: www.example.com",
    "custom-key: custom-value",
];

fn expect_requests(blocks: [&str; 3]) {
    let entries = &["custom-key: custom-value", "cache-control: no-cache", ":authority: www.example.com"];
    expect_blocks(
        4096,
        &[
            (blocks[0], FIRST, &entries[2..], 57),
            (blocks[1], SECOND, &entries[1..], 110),
            (blocks[2], THIRD, entries, 164),
        ],
    );
}

#[test]
fn c_3_requests_without_the_huffman_code() {
    expect_requests([
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ]);
}

#[test]
fn c_4_requests_in_the_huffman_code() {
    expect_requests([
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ]);
}

const LOCATION: &str = "location: https://www.example.com";
const DATE_21: &str = "date: Mon, 21 Oct 2013 20:13:21 GMT";
const DATE_22: &str = "date: Mon, 21 Oct 2013 20:13:22 GMT";
const PRIVATE: &str = "cache-control: private";
const GZIP: &str = "content-encoding: gzip";
const COOKIE: &str = "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";

/// In a table of 256 octets, from which entries have to leave.
fn expect_responses(blocks: [&str; 3]) {
    expect_blocks(
        256,
        &[
            (
                blocks[0],
                &[":status: 302", PRIVATE, DATE_21, LOCATION],
                &[LOCATION, DATE_21, PRIVATE, ":status: 302"],
                222,
            ),
            (
                blocks[1],
                &[":status: 307", PRIVATE, DATE_21, LOCATION],
                &[":status: 307", LOCATION, DATE_21, PRIVATE],
                222,
            ),
            (blocks[2], &[":status: 200", PRIVATE, DATE_22, LOCATION, GZIP, COOKIE], &[COOKIE, GZIP, DATE_22], 215),
        ],
    );
}

#[test]
fn c_5_responses_without_the_huffman_code() {
    expect_responses([
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120
         474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738
         666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33
         3630 303b 2076 6572 7369 6f6e 3d31",
    ]);
}

#[test]
fn c_6_responses_in_the_huffman_code() {
    expect_responses([
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718
         63c7 8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7
         b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ]);
}
