//! Writes the seeds of the targets about HTTP/2: from `fuzz/`, `cargo run --example http2_seeds`.

use std::fs;

/// The first byte of a seed of `http2_frames`: pieces of 4,081 bytes.
const WHOLE: u8 = 0xff;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Literal fields without indexing, neither part with Huffman coding; each shorter than 127 bytes.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let literal = |(name, value): &(&str, &str)| {
        [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
    };
    fields.iter().flat_map(literal).collect()
}

fn request(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", method), (":scheme", "http"), (":authority", "a"), (":path", path)];
    block(&[&pseudo, more].concat())
}

fn padded(payload: &[u8], padding: u8) -> Vec<u8> {
    [&[padding], payload, &vec![0; usize::from(padding)]].concat()
}

fn sessions() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let settings = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100, 0, 4, 0, 1, 0, 0]);
    let ack = frame(SETTINGS, ACK, 0, &[]);
    let get =
        frame(HEADERS, END_STREAM | END_HEADERS, 1, &request("GET", "/a?b", &[("cookie", "a=b"), ("cookie", "c")]));
    let post = frame(HEADERS, END_HEADERS, 1, &request("POST", "/", &[("te", "trailers")]));
    let last = frame(DATA, END_STREAM, 1, b"world");
    // The static table: GET, http, `/`, and `:authority` with a value that is indexed, then by its index.
    let indexed = [0x82, 0x86, 0x84, 0x41, 1, b'a'];
    let indexed_again = [0x82, 0x86, 0x84, 0xbe];
    let (begin, end) = indexed.split_at(3);
    vec![
        ("get", vec![settings.clone(), get.clone(), ack.clone()]),
        ("post", vec![settings.clone(), post.clone(), frame(DATA, 0, 1, b"hello "), last.clone()]),
        (
            "padded",
            vec![
                settings.clone(),
                frame(
                    HEADERS,
                    END_HEADERS | PADDED | WITH_PRIORITY,
                    1,
                    &padded(&[&[0, 0, 0, 0, 7], &indexed[..]].concat(), 9),
                ),
                frame(DATA, PADDED | END_STREAM, 1, &padded(b"hello", 200)),
            ],
        ),
        (
            "continuation",
            vec![
                settings.clone(),
                frame(HEADERS, END_STREAM, 1, begin),
                frame(CONTINUATION, 0, 1, &[]),
                frame(CONTINUATION, END_HEADERS, 1, end),
                frame(HEADERS, END_STREAM | END_HEADERS, 3, &indexed_again),
            ],
        ),
        (
            "trailers",
            vec![
                settings.clone(),
                post.clone(),
                frame(DATA, 0, 1, b"hello"),
                frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&[("grpc-status", "0"), ("host", "b")])),
            ],
        ),
        (
            "resets",
            std::iter::once(settings.clone())
                .chain((0..40).flat_map(|i| {
                    let fields = request("GET", "/", &[]);
                    let begun = frame(HEADERS, END_STREAM | END_HEADERS, 2 * i + 1, &fields);
                    [begun, frame(RST_STREAM, 0, 2 * i + 1, &[0, 0, 0, 8])]
                }))
                .collect(),
        ),
        (
            "housekeeping",
            vec![
                settings.clone(),
                frame(PING, 0, 0, b"12345678"),
                frame(WINDOW_UPDATE, 0, 0, &[0, 1, 0, 0]),
                post.clone(),
                frame(WINDOW_UPDATE, 0, 1, &[0, 1, 0, 0]),
                frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 15]),
                frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1]),
                frame(PING, ACK, 0, b"12345678"),
                last,
                frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0]),
            ],
        ),
        (
            "websocket",
            vec![
                settings.clone(),
                frame(
                    HEADERS,
                    END_HEADERS,
                    1,
                    &request("CONNECT", "/chat", &[(":protocol", "websocket"), ("sec-websocket-version", "13")]),
                ),
                frame(DATA, 0, 1, &[0x81, 2, b'h', b'i']),
            ],
        ),
        (
            "connect",
            vec![
                settings.clone(),
                frame(HEADERS, END_HEADERS, 1, &block(&[(":method", "CONNECT"), (":authority", "a:1")])),
                frame(DATA, END_STREAM, 1, b"x"),
            ],
        ),
        (
            "mismatch",
            vec![
                settings,
                frame(HEADERS, END_HEADERS, 1, &request("POST", "/", &[("content-length", "5")])),
                frame(DATA, END_STREAM, 1, b"1234"),
                frame(
                    HEADERS,
                    END_STREAM | END_HEADERS,
                    3,
                    &block(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "b")]),
                ),
            ],
        ),
    ]
}

/// Seeds of `http2_translate`: a byte of flags, then texts between 0xff.
fn heads() -> Vec<(&'static str, u8, Vec<&'static str>)> {
    vec![
        ("get", 0x17, vec!["GET", "http", "a", "/b?c", "", "accept", "*/*", "cookie", "a=b", "cookie", "c"]),
        ("https", 0x17, vec!["OPTIONS", "https", "a:8443", "*", "", "te", "trailers", "host", "A:8443"]),
        ("post", 0x07, vec!["POST", "http", "a", "/", "", "content-length", "5", "expect", "100-continue"]),
        ("host_only", 0x05, vec!["PUT", "http", "", "/", "", "host", "b:80", "x-forwarded-for", "1.2.3.4"]),
        ("websocket", 0x0f, vec!["CONNECT", "http", "a", "/chat", "websocket", "sec-websocket-version", "13"]),
        ("connect", 0x02, vec!["CONNECT", "", "a:1", "", "", "x", "y"]),
        (
            "bad",
            0x17,
            vec!["GET", "http", "a\r\nb: c", "/ HTTP/1.1\r\n", "", "X", " y", ":path", "/", "connection", "a"],
        ),
        ("response", 0x80, vec!["200", "content-length", "5", "set-cookie", "a", "set-cookie", "b"]),
        ("head", 0x91, vec!["200", "content-length", "5", "date", "x"]),
        ("tunnel", 0x84, vec!["200", "sec-websocket-accept", "x", "sec-websocket-protocol", "y"]),
        ("connected", 0x82, vec!["204", "via", "2 a"]),
        ("hints", 0x80, vec!["103", "link", "</a>"]),
    ]
}

/// Seeds of `hpack`: the limit of lists and the table's size in pieces of 64 octets, then blocks of RFC 7541 and others.
fn header_blocks() -> Vec<(&'static str, u8, u8, Vec<&'static str>)> {
    vec![
        (
            "requests",
            255,
            64,
            vec![
                "828684418cf1e3c2e5f23a6ba0ab90f4ff",
                "828684be5886a8eb10649cbf",
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
            ],
        ),
        (
            "plain_requests",
            255,
            64,
            vec![
                "828684410f7777772e6578616d706c652e636f6d",
                "828684be58086e6f2d6361636865",
                "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
            ],
        ),
        (
            "responses",
            255,
            4,
            vec![
                "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
                "4883640effc1c0bf",
                "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
            ],
        ),
        // Sizes 0, 100 and 4,096; a value that is never indexed; long integers; no table; a small limit.
        ("sizes", 255, 64, vec!["20824001610162", "3f4540016101627e0163", "203fe11fbe"]),
        ("never_indexed", 255, 64, vec!["1008706173737764066162636465660f1f0178", "017f80000f808080800000"]),
        ("without_table", 255, 0, vec!["82400161016140026162026364", "be"]),
        ("small_limit", 1, 64, vec!["4001610162400163016440016501667e0167bfbebf", "bfbebebe8286"]),
        // EOS, padding of zeros, codes of 28 and 30 bits.
        (
            "codes",
            255,
            64,
            vec!["00016183fe2eff", "00016184fffffe2f", "00016184fffffff3", "0001618108", "00016184ffffffff"],
        ),
    ]
}

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |digit: u8| char::from(digit).to_digit(16).expect("a digit") as u8;
    hex.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn main() -> std::io::Result<()> {
    fs::create_dir_all("corpus/http2_frames")?;
    for (name, frames) in sessions() {
        fs::write(format!("corpus/http2_frames/{name}"), [&[WHOLE], &frames.concat()[..]].concat())?;
    }
    fs::create_dir_all("corpus/http2_translate")?;
    for (name, flags, texts) in heads() {
        let texts = texts.iter().map(|text| text.as_bytes()).collect::<Vec<_>>().join(&0xff);
        fs::write(format!("corpus/http2_translate/{name}"), [&[flags], &texts[..]].concat())?;
    }
    fs::create_dir_all("corpus/hpack")?;
    for (name, list_limit, table_size, blocks) in header_blocks() {
        let mut seed = vec![list_limit, table_size];
        for block in blocks {
            seed.push((block.len() / 2) as u8);
            seed.extend_from_slice(&bytes(block));
        }
        fs::write(format!("corpus/hpack/{name}"), seed)?;
    }
    Ok(())
}
