//! Who comes and who is gone to, by SPIFFE id: a part of the [page](super::page) with a directory of its own.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::page::{H_PEERS, LINE, PEER_ENTRIES, StatsPage, cut, peer};
use crate::limits::PEER_SLOTS;

/// What is counted per peer and worker: one cache line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum PeerCounter {
    /// Connections on which it has proved its identity to us: it is the source.
    Connections,
    /// Requests that came from it.
    Requests,
    /// Of their responses, those with status 200 to 299.
    Responses2xx,
    /// Of their responses, those with status 300 to 399.
    Responses3xx,
    /// Of their responses, those with status 400 to 499.
    Responses4xx,
    /// Of their responses, those with status 500 to 599.
    Responses5xx,
    /// Connections of ours on which it has proved its identity: it is the destination.
    UpstreamConnections,
    /// Requests sent to it, further attempts included.
    UpstreamRequests,
}

/// A peer's place in the statistics, below [`PEER_SLOTS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerSlot(u8);

const _: () = assert!((PeerCounter::UpstreamRequests as usize) < LINE);
const _: () = assert!(PEER_SLOTS <= 1 << u8::BITS);
const LAST: PeerSlot = PeerSlot((PEER_SLOTS - 1) as u8);

impl PeerSlot {
    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl StatsPage {
    /// The slot of a peer, found or made. Not for the request path: a worker asks once per handshake. The last slot is shared by all
    /// that come after the page is full, under the name `other`.
    pub fn peer_slot(&self, id: &str) -> PeerSlot {
        // Two that look the same in the page are one: there must not be two series of one name.
        let id = cut(id);
        let mut peers = self.peers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(&slot) = peers.get(id) {
            return slot;
        }
        let count = peers.len();
        let (slot, name) = match u8::try_from(count) {
            Ok(count) if PeerSlot(count) != LAST && usize::from(count) < PEER_SLOTS => (PeerSlot(count), id),
            _ => (LAST, "other"),
        };
        self.write_name(PEER_ENTRIES + slot.index(), name);
        if slot != LAST {
            peers.insert(id.to_owned(), slot);
        }
        // Release: pairs with the Acquire in `peers`: a counted slot has its name.
        self.word(H_PEERS).store(slot.index() as u64 + 1, Release);
        slot
    }

    /// The SPIFFE ids of the peers that have been seen, with their slots.
    #[must_use]
    pub fn peers(&self) -> Vec<(PeerSlot, String)> {
        let count = (self.word(H_PEERS).load(Acquire) as usize).min(PEER_SLOTS);
        (0..count).map(|slot| (PeerSlot(slot as u8), self.read_name(PEER_ENTRIES + slot))).collect()
    }

    /// A peer's counter, summed over workers.
    #[must_use]
    pub fn peer_total(&self, slot: PeerSlot, counter: PeerCounter) -> u64 {
        let at = |worker| Self::block(worker) + peer(slot, counter);
        (0..self.workers()).fold(0, |sum, worker| sum.wrapping_add(self.word(at(worker)).load(Relaxed)))
    }
}
