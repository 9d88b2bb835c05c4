//! Identifiers for requests that come without one, as Envoy makes them: a version 4 UUID in X-Request-Id.

use std::{cell::Cell, time::SystemTime};

use meshring_core::{
    clock::monotonic_ns,
    http::forwarding::{REQUEST_ID_BYTES, new_request_id},
};
use rustix::rand::{GetRandomFlags, getrandom};

/// A source of identifiers: xoroshiro128+ from a random start. They tell requests apart over all proxies of a mesh; they are
/// no secret.
#[derive(Debug)]
pub(crate) struct RequestIds(Cell<[u64; 2]>);

impl Default for RequestIds {
    fn default() -> Self {
        let mut seed = [0_u8; 16];
        if !matches!(getrandom(&mut seed, GetRandomFlags::NONBLOCK), Ok(16)) {
            // Early in a machine's life, or where seccomp forbids it: time and address still tell processes apart.
            let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |since| since.as_nanos());
            seed = (wall ^ (u128::from(monotonic_ns()) << 64) ^ (&raw const seed).addr() as u128).to_ne_bytes();
        }
        let words = u128::from_ne_bytes(seed);
        // All zeros would be a fixed point.
        Self(Cell::new([words as u64 | 1, (words >> 64) as u64]))
    }
}

impl RequestIds {
    fn word(&self) -> u64 {
        let [first, second] = self.0.get();
        let mixed = first ^ second;
        self.0.set([first.rotate_left(24) ^ mixed ^ (mixed << 16), mixed.rotate_left(37)]);
        first.wrapping_add(second)
    }

    /// The next identifier.
    pub(crate) fn next(&self) -> [u8; REQUEST_ID_BYTES] {
        new_request_id((u128::from(self.word()) << 64 | u128::from(self.word())).to_ne_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn identifiers_are_all_different_over_all_sources() {
        let (one, other) = (RequestIds::default(), RequestIds::default());
        let mut seen = HashSet::new();
        for _ in 0..10_000 {
            assert!(seen.insert(one.next()) && seen.insert(other.next()), "an identifier came twice");
        }
    }
}
