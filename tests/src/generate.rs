//! Deterministic data: bodies that their reader can check byte by byte, split points, random numbers with a seed.

use std::f64;

/// A small generator (SplitMix64): the same seed gives the same test.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.word() % limit as u64) as usize
    }
}

/// A body of `len` bytes that no shift or repetition of itself resembles.
#[must_use]
pub fn body(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| random.word().to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

/// Cuts `bytes` into pieces of 1 to `longest` bytes.
#[must_use]
pub fn pieces<'a>(random: &mut Random, mut bytes: &'a [u8], longest: usize) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at((1 + random.below(longest)).min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

/// The same body in chunks of 1 to `longest` bytes, with its last chunk.
#[must_use]
pub fn chunked(random: &mut Random, bytes: &[u8], longest: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / longest.max(1) * 16);
    for piece in pieces(random, bytes, longest) {
        out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

/// Asserts that two bodies are equal and says where they differ instead of printing megabytes.
///
/// # Panics
/// When they are not.
#[track_caller]
pub fn assert_same_bytes(actual: &[u8], expected: &[u8]) {
    if actual == expected {
        return;
    }
    let at = actual.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(actual.len().min(expected.len()));
    panic!("bodies differ from byte {at} on: {} bytes came, {} were sent", actual.len(), expected.len());
}

/// Asserts that `hits` of `total` is what chance gives for `probability` in 99.9% of all runs: within 3.29 standard
/// deviations of the binomial distribution.
///
/// # Panics
/// When it is not.
#[track_caller]
pub fn assert_share(hits: u64, total: u64, probability: f64) {
    let (n, hits) = (total as f64, hits as f64);
    let deviation = (n * probability * (1.0 - probability)).sqrt();
    let (low, high) = (n * probability - 3.29 * deviation - 0.5, n * probability + 3.29 * deviation + 0.5);
    assert!(
        (low..=high).contains(&hits),
        "{hits} of {total} is not {probability}: the 99.9% interval is {low:.1} to {high:.1}"
    );
}
