//! Header blocks: put together from their frames, and reduced to what the bench has to know.

use meshring_core::http::http2::hpack::Decoder;

use super::frame::{Frame, flag, kind};
use super::{ConnectionError, HEADER_LIST_BYTES_MAX};
use crate::limits::{HEAD_BYTES_MAX, HEADER_TABLE_BYTES};

/// What is kept of a header block.
pub(super) trait Summary: Copy + Default {
    fn add(&mut self, name: &[u8], value: &[u8]);
}

/// A whole header block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Headers<S> {
    pub(super) stream: u32,
    pub(super) end_stream: bool,
    pub(super) summary: S,
}

/// Takes the HEADERS and CONTINUATION frames of one direction of a connection.
pub(super) struct HeaderReader<S> {
    decoder: Decoder,
    /// The decoder's scratch.
    work: Vec<u8>,
    /// A block that CONTINUATION frames go on with: stream, END_STREAM, and what has come.
    unfinished: Option<(u32, bool, Vec<u8>)>,
    /// The last blocks whose bytes still mean the same: peers send the same fields again and again. Two, for heads and trailers.
    known: [Option<(Vec<u8>, S)>; 2],
    /// Which of them is replaced next.
    oldest: usize,
}

impl<S: Summary> HeaderReader<S> {
    pub(super) const fn new() -> Self {
        Self {
            decoder: Decoder::new(HEADER_TABLE_BYTES),
            work: Vec::new(),
            unfinished: None,
            known: [None, None],
            oldest: 0,
        }
    }

    /// Fails if the frame must not come now: nothing may come between the frames of a header block (section 6.10).
    pub(super) fn check_order(&self, frame: &Frame<'_>) -> Result<(), ConnectionError> {
        let expected = self.unfinished.as_ref().map(|(stream, ..)| *stream);
        let continued = (frame.kind == kind::CONTINUATION).then_some(frame.stream);
        match expected == continued {
            true => Ok(()),
            false => Err(ConnectionError::Protocol("a header block that is interrupted, or continued without a begin")),
        }
    }

    /// Takes HEADERS or CONTINUATION; gives the block once it is whole.
    pub(super) fn take(&mut self, frame: &Frame<'_>) -> Result<Option<Headers<S>>, ConnectionError> {
        let whole = frame.has(flag::END_HEADERS);
        if frame.kind == kind::HEADERS {
            let (block, end_stream) = (frame.content()?, frame.has(flag::END_STREAM));
            if whole {
                let summary = self.summarize(block)?;
                return Ok(Some(Headers { stream: frame.stream, end_stream, summary }));
            }
            self.unfinished = Some((frame.stream, end_stream, block.to_vec()));
            return Ok(None);
        }
        let Some((stream, end_stream, mut block)) = self.unfinished.take() else { return Ok(None) };
        block.extend_from_slice(frame.payload);
        if block.len() > HEAD_BYTES_MAX {
            return Err(ConnectionError::Protocol("a header block that is too long"));
        }
        if whole {
            let summary = self.summarize(&block)?;
            return Ok(Some(Headers { stream, end_stream, summary }));
        }
        self.unfinished = Some((stream, end_stream, block));
        Ok(None)
    }

    fn summarize(&mut self, block: &[u8]) -> Result<S, ConnectionError> {
        if let Some((_, summary)) = self.known.iter().flatten().find(|(bytes, _)| bytes == block) {
            return Ok(*summary);
        }
        let mut summary = S::default();
        let field = |name: &[u8], value: &[u8], _| summary.add(name, value);
        let listing = self.decoder.decode(block, &mut self.work, HEADER_LIST_BYTES_MAX, field)?;
        if listing.too_large {
            return Err(ConnectionError::Protocol("a list of fields that is too long"));
        }
        if listing.table_changed {
            self.known = [None, None];
        } else {
            let (mut bytes, _) = self.known[self.oldest].take().unwrap_or_default();
            bytes.clear();
            bytes.extend_from_slice(block);
            self.known[self.oldest] = Some((bytes, summary));
            self.oldest = 1 - self.oldest;
        }
        Ok(summary)
    }
}
