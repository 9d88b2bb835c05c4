//! Chunked bodies: no panic, the same data and the same verdict however the bytes arrive, and what is encoded decodes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshring_core::http::{BodyFraming, ChunkError, LAST_CHUNK, encode_chunk};
use meshring_fuzz::bodies::{Decoded, decode};

fuzz_target!(|data: &[u8]| {
    let whole = decode(BodyFraming::Chunked, data, &[data.len()]);
    for pieces in [&[1][..], &[2], &[3, 1, 7], &[data.len() / 2 + 1]] {
        same(&whole, &decode(BodyFraming::Chunked, data, pieces));
    }
    let Ok(decoded) = whole else { return };
    if decoded.whole {
        let mut bytes = Vec::new();
        encode_chunk(&mut bytes, &decoded.data);
        bytes.extend_from_slice(LAST_CHUNK);
        let again = decode(BodyFraming::Chunked, &bytes, &[bytes.len()]).expect("what we write is acceptable");
        assert!(again.whole && again.len == bytes.len());
        assert_eq!(again.data, decoded.data);
    }
});

fn same(whole: &Result<Decoded, ChunkError>, pieces: &Result<Decoded, ChunkError>) {
    match (whole, pieces) {
        (Ok(whole), Ok(pieces)) if whole.whole || pieces.whole => assert_eq!(whole, pieces),
        // An unfinished body: how much of it is consumed may depend on the pieces, its data may not.
        (Ok(whole), Ok(pieces)) => assert_eq!((&whole.data, &whole.trailers), (&pieces.data, &pieces.trailers)),
        (Err(whole), Err(pieces)) => assert_eq!(whole, pieces),
        _ => panic!("{whole:?} at once, {pieces:?} in pieces"),
    }
}
