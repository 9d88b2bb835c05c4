//! Drives core's body decoder the way a connection does.

use meshring_core::http::{BodyDecoder, BodyFraming, ChunkError, Event};

/// What a body decodes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// Its data, joined.
    pub data: Vec<u8>,
    /// Its trailer fields, those that must not be in trailers left out.
    pub trailers: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of the input that it takes.
    pub len: usize,
    /// Whether it ended within the input.
    pub whole: bool,
}

/// Decodes input that arrives in pieces of the sizes given (the last one repeats).
pub fn decode(framing: BodyFraming, input: &[u8], pieces: &[usize]) -> Result<Decoded, ChunkError> {
    let mut decoder = BodyDecoder::new(framing);
    let (mut decoded, mut arrived, mut piece) = (Decoded::default(), 0, 0);
    loop {
        let pending = &input[decoded.len..arrived];
        let step = decoder.decode(pending)?;
        assert!(step.consumed <= pending.len());
        match step.event {
            Event::Data(range) => decoded.data.extend_from_slice(&pending[range]),
            Event::Trailer { name, value } => decoded.trailers.push((pending[name].to_vec(), pending[value].to_vec())),
            Event::End => {
                assert!(decoder.is_done());
                decoded.len += step.consumed;
                decoded.whole = true;
                return Ok(decoded);
            }
            Event::NeedInput if arrived == input.len() => {
                decoded.len += step.consumed;
                decoded.whole = decoder.end_of_stream().is_ok();
                return Ok(decoded);
            }
            Event::NeedInput => {
                let size = pieces[piece.min(pieces.len() - 1)].max(1);
                piece += 1;
                arrived = (arrived + size).min(input.len());
            }
        }
        decoded.len += step.consumed;
    }
}
