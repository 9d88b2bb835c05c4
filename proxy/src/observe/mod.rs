//! What is counted for each request: plain stores into the worker's own slots.

use std::cell::Cell;

use meshring_core::{
    clock::monotonic_ns,
    stats::{ClusterCounter, Counter, WorkerSlots},
};

/// One request, from its parsed head to its end. Dropping it counts the request.
pub(crate) struct Record<'w> {
    stats: &'w WorkerSlots,
    started_ns: u64,
    status: Cell<u16>,
    cluster: Cell<Option<usize>>,
    complete: Cell<bool>,
}

impl<'w> Record<'w> {
    /// A request was understood.
    pub(crate) fn start(stats: &'w WorkerSlots) -> Self {
        stats.add(Counter::Requests, 1);
        let cells = (Cell::new(0), Cell::new(None), Cell::new(false));
        Self { stats, started_ns: monotonic_ns(), status: cells.0, cluster: cells.1, complete: cells.2 }
    }

    /// When it began, in milliseconds of the monotonic clock.
    pub(crate) fn started_ms(&self) -> u64 {
        self.started_ns / 1_000_000
    }

    /// It goes to this cluster.
    pub(crate) fn sent_to(&self, slot: usize) {
        self.stats.cluster(slot, ClusterCounter::Requests, 1);
        if self.cluster.replace(Some(slot)).is_none() {
            self.stats.cluster(slot, ClusterCounter::Active, 1);
        }
    }

    /// Its response has this status.
    pub(crate) fn status(&self, status: u16) {
        self.status.set(status);
    }

    /// Its response was written to the end.
    pub(crate) fn complete(&self) {
        self.complete.set(true);
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        let stats = self.stats;
        let elapsed_us = monotonic_ns().saturating_sub(self.started_ns) / 1_000;
        let status = self.status.get();
        let class = match status {
            200..300 => Some((Counter::Responses2xx, ClusterCounter::Responses2xx)),
            300..400 => Some((Counter::Responses3xx, ClusterCounter::Responses3xx)),
            400..500 => Some((Counter::Responses4xx, ClusterCounter::Responses4xx)),
            500.. => Some((Counter::Responses5xx, ClusterCounter::Responses5xx)),
            _ => None,
        };
        if let Some((counter, _)) = class {
            stats.add(counter, 1);
        } else if status == 101 {
            stats.add(Counter::Responses1xx, 1);
        }
        if !self.complete.get() {
            stats.add(Counter::RequestsAborted, 1);
        }
        stats.duration(elapsed_us);
        if let Some(slot) = self.cluster.get() {
            stats.cluster(slot, ClusterCounter::Active, 1_u64.wrapping_neg());
            stats.cluster(slot, ClusterCounter::LatencySumUs, elapsed_us);
            match class {
                Some((_, counter)) => stats.cluster(slot, counter, 1),
                // Neither an answer nor the lack of one.
                None if status == 101 => {}
                None => stats.cluster(slot, ClusterCounter::Failures, 1),
            }
        }
    }
}
