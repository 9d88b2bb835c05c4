//! What is counted for each request: plain stores into the worker's own slots.

use std::cell::Cell;

use meshring_core::{
    clock::monotonic_ns,
    stats::{ClusterCounter, Counter, GrpcStatus, PeerCounter, PeerSlot, WorkerSlots},
};

/// A [`Record`] without the slots that it is counted in: of a request that somebody keeps by hand. It counts nothing when it is dropped.
#[derive(Debug)]
pub(crate) struct Paused {
    started_ns: u64,
    due_ms: u64,
    /// Of clusters there are fewer than their statistics have slots.
    cluster: Option<u32>,
    status: u16,
    grpc: Option<GrpcStatus>,
    source: Option<PeerSlot>,
}

/// One request, from its parsed head to its end. Dropping it counts the request.
pub(crate) struct Record<'w> {
    stats: &'w WorkerSlots,
    started_ns: u64,
    status: Cell<u16>,
    cluster: Cell<Option<usize>>,
    complete: Cell<bool>,
    /// How it ended as a gRPC call; `None` where it is none.
    grpc: Cell<Option<GrpcStatus>>,
    /// Who has sent it, where that is proved.
    source: Cell<Option<PeerSlot>>,
    /// When it must have ended, in milliseconds of the monotonic clock; `u64::MAX` where nobody says.
    due_ms: Cell<u64>,
}

impl<'w> Record<'w> {
    /// A request was understood, which has come at this time of [`monotonic_ns`].
    pub(crate) fn start(stats: &'w WorkerSlots, started_ns: u64) -> Self {
        stats.add(Counter::Requests, 1);
        Self {
            stats,
            started_ns,
            status: Cell::new(0),
            cluster: Cell::new(None),
            complete: Cell::new(false),
            grpc: Cell::new(None),
            source: Cell::new(None),
            due_ms: Cell::new(u64::MAX),
        }
    }

    /// To be [resumed](Self::resume): it is not counted yet.
    pub(crate) fn pause(self) -> Paused {
        let Self { started_ns, ref status, ref cluster, ref grpc, ref source, ref due_ms, .. } = self;
        let (status, grpc, source, due_ms) = (status.get(), grpc.get(), source.get(), due_ms.get());
        let cluster = cluster.get().map(|slot| slot as u32);
        std::mem::forget(self);
        Paused { started_ns, due_ms, cluster, status, grpc, source }
    }

    /// Goes on with it.
    pub(crate) fn resume(stats: &'w WorkerSlots, paused: Paused) -> Self {
        let Paused { started_ns, due_ms, cluster, status, grpc, source } = paused;
        Self {
            stats,
            started_ns,
            status: Cell::new(status),
            cluster: Cell::new(cluster.map(|slot| slot as usize)),
            complete: Cell::new(false),
            grpc: Cell::new(grpc),
            source: Cell::new(source),
            due_ms: Cell::new(due_ms),
        }
    }

    /// When it began, in milliseconds of the monotonic clock.
    pub(crate) fn started_ms(&self) -> u64 {
        self.started_ns / 1_000_000
    }

    /// It comes from this peer.
    pub(crate) fn source(&self, slot: PeerSlot) {
        self.stats.peer(slot, PeerCounter::Requests);
        self.source.set(Some(slot));
    }

    /// It goes to this peer.
    pub(crate) fn destination(&self, slot: PeerSlot) {
        self.stats.peer(slot, PeerCounter::UpstreamRequests);
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

    /// It is a gRPC call, which has no status yet.
    pub(crate) fn call(&self) {
        self.grpc.set(Some(GrpcStatus::UNKNOWN));
    }

    /// Whether it is a gRPC call.
    pub(crate) fn is_call(&self) -> bool {
        self.grpc.get().is_some()
    }

    /// As a gRPC call it has ended so. Of a request that is none this says nothing.
    pub(crate) fn grpc_status(&self, status: GrpcStatus) {
        if self.is_call() {
            self.grpc.set(Some(status));
        }
    }

    /// It must have ended by then, in milliseconds of the monotonic clock.
    pub(crate) fn due(&self, at_ms: Option<u64>) {
        self.due_ms.set(at_ms.unwrap_or(u64::MAX));
    }

    /// See [`due`](Self::due).
    pub(crate) fn due_ms(&self) -> Option<u64> {
        let at_ms = self.due_ms.get();
        (at_ms != u64::MAX).then_some(at_ms)
    }

    /// Whether it should have ended by now. By the exact clock: a connect is timed by that, and the coarse one may be behind.
    pub(crate) fn is_overdue(&self) -> bool {
        monotonic_ns() / 1_000_000 >= self.due_ms.get()
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
            200..300 => Some((Counter::Responses2xx, ClusterCounter::Responses2xx, PeerCounter::Responses2xx)),
            300..400 => Some((Counter::Responses3xx, ClusterCounter::Responses3xx, PeerCounter::Responses3xx)),
            400..500 => Some((Counter::Responses4xx, ClusterCounter::Responses4xx, PeerCounter::Responses4xx)),
            500.. => Some((Counter::Responses5xx, ClusterCounter::Responses5xx, PeerCounter::Responses5xx)),
            _ => None,
        };
        if let Some((counter, _, of_peer)) = class {
            stats.add(counter, 1);
            if let Some(slot) = self.source.get() {
                stats.peer(slot, of_peer);
            }
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
                Some((_, counter, _)) => stats.cluster(slot, counter, 1),
                // Neither an answer nor the lack of one.
                None if status == 101 => {}
                None => stats.cluster(slot, ClusterCounter::Failures, 1),
            }
            if let Some(status) = self.grpc.get() {
                stats.grpc(slot, status);
            }
        }
    }
}
