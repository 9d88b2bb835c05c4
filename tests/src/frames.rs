//! HTTP/2 frames as bytes, well formed or not (RFC 9113 section 6), and header blocks without compression.

/// DATA.
pub const DATA: u8 = 0;
/// HEADERS.
pub const HEADERS: u8 = 1;
/// PRIORITY.
pub const PRIORITY: u8 = 2;
/// RST_STREAM.
pub const RST_STREAM: u8 = 3;
/// SETTINGS.
pub const SETTINGS: u8 = 4;
/// PUSH_PROMISE.
pub const PUSH_PROMISE: u8 = 5;
/// PING.
pub const PING: u8 = 6;
/// GOAWAY.
pub const GOAWAY: u8 = 7;
/// WINDOW_UPDATE.
pub const WINDOW_UPDATE: u8 = 8;
/// CONTINUATION.
pub const CONTINUATION: u8 = 9;

/// END_STREAM of DATA and HEADERS.
pub const END_STREAM: u8 = 1;
/// ACK of SETTINGS and PING.
pub const ACK: u8 = 1;
/// END_HEADERS.
pub const END_HEADERS: u8 = 4;
/// PADDED.
pub const PADDED: u8 = 8;
/// PRIORITY flag of HEADERS.
pub const WITH_PRIORITY: u8 = 0x20;

/// SETTINGS_HEADER_TABLE_SIZE.
pub const HEADER_TABLE_SIZE: u16 = 1;
/// SETTINGS_ENABLE_PUSH.
pub const ENABLE_PUSH: u16 = 2;
/// SETTINGS_MAX_CONCURRENT_STREAMS.
pub const MAX_CONCURRENT_STREAMS: u16 = 3;
/// SETTINGS_INITIAL_WINDOW_SIZE.
pub const INITIAL_WINDOW_SIZE: u16 = 4;
/// SETTINGS_MAX_FRAME_SIZE.
pub const MAX_FRAME_SIZE: u16 = 5;
/// SETTINGS_MAX_HEADER_LIST_SIZE.
pub const MAX_HEADER_LIST_SIZE: u16 = 6;
/// SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441 section 3).
pub const ENABLE_CONNECT_PROTOCOL: u16 = 8;

/// Error codes (RFC 9113 section 7).
pub mod code {
    /// Graceful.
    pub const NO_ERROR: u32 = 0;
    /// Anything that the others are not for.
    pub const PROTOCOL_ERROR: u32 = 1;
    /// The sender's own fault.
    pub const INTERNAL_ERROR: u32 = 2;
    /// A window is exceeded or overflows.
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    /// A frame for a stream that was half closed.
    pub const STREAM_CLOSED: u32 = 5;
    /// A frame of an impossible size.
    pub const FRAME_SIZE_ERROR: u32 = 6;
    /// Nothing of the request was processed.
    pub const REFUSED_STREAM: u32 = 7;
    /// Nobody wants it any more.
    pub const CANCEL: u32 = 8;
    /// HPACK broke.
    pub const COMPRESSION_ERROR: u32 = 9;
    /// A tunnel's connection broke.
    pub const CONNECT_ERROR: u32 = 10;
    /// The peer is a burden.
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// What a client begins with (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Largest frame before any SETTINGS.
pub const FRAME_BYTES_DEFAULT: usize = 16_384;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Such as [`DATA`].
    pub kind: u8,
    /// Such as [`END_STREAM`].
    pub flags: u8,
    /// 0: the connection.
    pub stream: u32,
    /// Behind the nine bytes of the frame's head.
    pub payload: Vec<u8>,
}

/// Any frame.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// HEADERS with the whole block.
#[must_use]
pub fn headers(stream: u32, block: impl AsRef<[u8]>, ended: bool) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | u8::from(ended), stream, block)
}

/// DATA.
#[must_use]
pub fn data(stream: u32, bytes: impl AsRef<[u8]>, ended: bool) -> Vec<u8> {
    frame(DATA, u8::from(ended), stream, bytes)
}

/// RST_STREAM.
#[must_use]
pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, code.to_be_bytes())
}

/// SETTINGS.
#[must_use]
pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> =
        values.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(SETTINGS, 0, 0, payload)
}

/// PING.
#[must_use]
pub fn ping(data: [u8; 8]) -> Vec<u8> {
    frame(PING, 0, 0, data)
}

/// GOAWAY.
#[must_use]
pub fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, [last.to_be_bytes(), code.to_be_bytes()].concat())
}

/// WINDOW_UPDATE.
#[must_use]
pub fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, increment.to_be_bytes())
}

/// An integer with a prefix of so many bits (RFC 7541 section 5.1), beneath `first`.
#[must_use]
pub fn integer(first: u8, bits: u8, value: usize) -> Vec<u8> {
    let most = (1_usize << bits) - 1;
    if value < most {
        return vec![first | value as u8];
    }
    let mut bytes = vec![first | most as u8];
    let mut rest = value - most;
    while rest >= 128 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}

/// A string without Huffman coding.
#[must_use]
pub fn string(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [&integer(0, 7, bytes.len())[..], bytes].concat()
}

/// A field that enters no table (RFC 7541 section 6.2.2).
#[must_use]
pub fn field(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    [vec![0], string(name), string(value)].concat()
}

/// A field that must enter no table on any hop (RFC 7541 section 6.2.3).
#[must_use]
pub fn never_indexed(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    [vec![0x10], string(name), string(value)].concat()
}

/// A field that enters the dynamic table (RFC 7541 section 6.2.1).
#[must_use]
pub fn indexed(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    [vec![0x40], string(name), string(value)].concat()
}

/// A header block of fields that enter no table.
#[must_use]
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// How many fields of a header block are never to be indexed: what a decoder does not tell.
///
/// # Panics
/// When the block is malformed.
#[must_use]
pub fn count_never_indexed(block: &[u8]) -> usize {
    let mut rest = block;
    let mut count = 0;
    while let Some(&first) = rest.first() {
        let (bits, has_value) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        count += usize::from(first & 0xf0 == 0x10);
        let index = take_integer(&mut rest, bits);
        if has_value {
            let strings = if index == 0 { 2 } else { 1 };
            for _ in 0..strings {
                let len = take_integer(&mut rest, 7);
                rest = rest.get(len..).expect("a string that is there");
            }
        }
    }
    count
}

fn take_integer(rest: &mut &[u8], bits: u8) -> usize {
    let mut next = || {
        let (&first, others) = rest.split_first().expect("a byte of an integer");
        *rest = others;
        usize::from(first)
    };
    let most = (1_usize << bits) - 1;
    let mut value = next() & most;
    if value < most {
        return value;
    }
    let mut shift = 0;
    loop {
        let byte = next();
        value += (byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            return value;
        }
    }
}

#[cfg(test)]
mod tests {
    use loona_hpack::Decoder;

    use super::*;

    #[test]
    fn blocks_say_what_was_meant() {
        let long = "x".repeat(300);
        let bytes = [block(&[(":path", "/"), ("a", &long)]), never_indexed("s", "1"), indexed("i", "2")].concat();
        let decoded = Decoder::new().decode(&bytes).unwrap();
        let names: Vec<_> = decoded.iter().map(|(name, _)| name.as_slice()).collect();
        assert_eq!(names, [&b":path"[..], b"a", b"s", b"i"]);
        assert_eq!(decoded[1].1, long.as_bytes());
        assert_eq!(count_never_indexed(&bytes), 1);
    }
}
