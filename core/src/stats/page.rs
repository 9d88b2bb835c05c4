//! The statistics page: a header, a directory of cluster names, and one block per worker. Everything is 64-bit words
//! that one worker writes with plain relaxed stores (no locked instruction) and control reads.

#![allow(unsafe_code, reason = "atomics over shared memory; the invariant stands at the one block")]

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

use super::{
    declare::Counter,
    histogram,
    peers::{PeerCounter, PeerSlot},
};
use crate::{
    id::Generation,
    limits::{CLUSTER_NAME_BYTES_MAX, CLUSTER_SLOTS, LISTENER_SLOTS, PEER_SLOTS, WORKERS_MAX},
    snapshot::{
        publication::Acknowledged,
        region::{BadRegion, Region, SEALS_SINGLE_WRITER},
    },
};

const MAGIC: u64 = u64::from_le_bytes(*b"MESHSTAT");
/// Words per cache line.
pub(super) const LINE: usize = 8;

// Header words.
const H_MAGIC: usize = 0;
const H_LAYOUT: usize = 1;
const H_WORKERS: usize = 2;
const H_CLUSTERS: usize = 3;
pub(super) const H_PEERS: usize = 4;
const HEADER_WORDS: usize = 512;

const NAME_WORDS: usize = CLUSTER_NAME_BYTES_MAX / 8;
/// One directory entry: the name's length, then its bytes.
const ENTRY_WORDS: usize = 1 + NAME_WORDS;
/// The clusters' entries, then the peers'.
pub(super) const PEER_ENTRIES: usize = CLUSTER_SLOTS;
const DIRECTORY_WORDS: usize = ENTRY_WORDS * (CLUSTER_SLOTS + PEER_SLOTS);

// Words of a worker's block, each part on cache lines of its own.
const W_GENERATION: usize = 0;
const W_COUNTERS: usize = LINE;
const W_HISTOGRAM: usize = W_COUNTERS + Counter::ALL.len().next_multiple_of(LINE);
const W_CLUSTERS: usize = W_HISTOGRAM + histogram::BUCKETS.next_multiple_of(LINE);
const W_GRPC: usize = W_CLUSTERS + CLUSTER_SLOTS * LINE;
/// Of one cluster, on cache lines of its own. The part of slots without a name is never touched, and costs no memory.
const GRPC_WORDS: usize = GrpcStatus::COUNT.next_multiple_of(LINE);
/// Of one cluster, one cache line, touched by connections of bytes alone.
const W_TCP: usize = W_GRPC + CLUSTER_SLOTS * GRPC_WORDS;
/// Of one listener, one cache line, and of one cluster likewise: touched by handshakes alone.
const W_LISTENER_TLS: usize = W_TCP + CLUSTER_SLOTS * LINE;
const W_CLUSTER_TLS: usize = W_LISTENER_TLS + LISTENER_SLOTS * LINE;
/// Of one peer, one cache line, touched by what comes and goes over mutual TLS.
const W_PEERS: usize = W_CLUSTER_TLS + CLUSTER_SLOTS * LINE;
const BLOCK_WORDS: usize = W_PEERS + PEER_SLOTS * LINE;

/// Changes with the meaning of any word: control refuses a page of another layout.
const LAYOUT: u64 = 5 << 32 | (Counter::ALL.len() as u64) << 16 | histogram::BUCKETS as u64;

/// What is counted per cluster and worker: one cache line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum ClusterCounter {
    /// Requests sent to it, further attempts included.
    Requests,
    /// Responses 200 to 299.
    Responses2xx,
    /// Responses 300 to 399.
    Responses3xx,
    /// Responses 400 to 499.
    Responses4xx,
    /// Responses 500 to 599.
    Responses5xx,
    /// Requests without any response: connect failure, reset, deadline.
    Failures,
    /// Requests in flight (gauge).
    Active,
    /// Sum of response times, in microseconds.
    LatencySumUs,
}

/// What is counted per cluster and worker of connections that are passed on as bytes: one cache line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum ClusterTcp {
    /// Connections opened to it.
    Opened,
    /// Of them, those that have ended.
    Closed,
    /// Bytes from clients that were passed on to it.
    ReceivedBytes,
    /// Bytes of it that were passed on to clients.
    SentBytes,
    /// Connections that it refused, or that timed out, or whose TLS failed.
    ConnectFailures,
}

/// What is counted of TLS handshakes, per listener (those of clients) and per cluster (ours with its endpoints), and worker: one
/// cache line. A connection moves to the kernel with both of its directions or not at all, so one word says it of both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum TlsCounter {
    /// Handshakes after which the kernel seals and opens the records.
    Kernel,
    /// Handshakes after which we do.
    Userspace,
    /// Of both, those that resumed an earlier session.
    Resumed,
    /// Handshakes that failed, or were refused.
    Refused,
}

/// How a gRPC call ended: `grpc-status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GrpcStatus(u8);

impl GrpcStatus {
    /// Without a status, or with one that gRPC does not define.
    pub const UNKNOWN: Self = Self(17);
    /// How many there are.
    pub const COUNT: usize = 18;

    /// Of a code; [`UNKNOWN`](Self::UNKNOWN) for one above 16.
    #[must_use]
    pub fn new(code: u8) -> Self {
        Self(code.min(Self::UNKNOWN.0))
    }

    /// Of a field's value.
    #[must_use]
    pub fn parse(value: &[u8]) -> Self {
        match *value {
            [digit @ b'0'..=b'9'] => Self(digit - b'0'),
            [b'1', digit @ b'0'..=b'6'] => Self(10 + digit - b'0'),
            _ => Self::UNKNOWN,
        }
    }

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..=Self::UNKNOWN.0).map(Self)
    }

    /// Whether it is an error, or nobody knows.
    #[must_use]
    pub fn is_error(self) -> bool {
        self.0 != 0
    }
}

impl std::fmt::Display for GrpcStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if *self == Self::UNKNOWN { f.write_str("unknown") } else { self.0.fmt(f) }
    }
}

/// A proxy's statistics, mapped by the proxy (writable) or by control (read-only).
#[derive(Debug)]
pub struct StatsPage {
    region: Region,
    workers: usize,
    /// Names to slots, on the proxy's side only; control reads the directory.
    directory: Mutex<std::collections::HashMap<String, usize>>,
    /// Likewise of peers.
    pub(super) peers: Mutex<std::collections::HashMap<String, PeerSlot>>,
}

/// The writing end of one worker.
#[derive(Debug, Clone)]
pub struct WorkerSlots {
    page: Arc<StatsPage>,
    base: usize,
}

impl StatsPage {
    /// A fresh page for a proxy and the descriptor to send to control.
    pub fn create(workers: usize) -> io::Result<(OwnedFd, Arc<Self>)> {
        let workers = workers.clamp(1, WORKERS_MAX);
        let words = HEADER_WORDS + DIRECTORY_WORDS + workers * BLOCK_WORDS;
        let (fd, region) = Region::create("meshring-stats", words * 8)?;
        let page = Self { region, workers, directory: Mutex::default(), peers: Mutex::default() };
        page.word(H_LAYOUT).store(LAYOUT, Relaxed);
        page.word(H_WORKERS).store(workers as u64, Relaxed);
        page.word(H_MAGIC).store(MAGIC, Release);
        Ok((fd, Arc::new(page)))
    }

    /// Maps a page that a proxy has sent.
    pub fn open(fd: impl AsFd) -> Result<Self, BadRegion> {
        let least = ((HEADER_WORDS + DIRECTORY_WORDS + BLOCK_WORDS) * 8) as u64;
        let most = ((HEADER_WORDS + DIRECTORY_WORDS + WORKERS_MAX * BLOCK_WORDS) * 8) as u64;
        let region = Region::open(fd, SEALS_SINGLE_WRITER, least, most)?;
        let words = region.len() / 8;
        let page = Self {
            region,
            workers: (words - HEADER_WORDS - DIRECTORY_WORDS) / BLOCK_WORDS,
            directory: Mutex::default(),
            peers: Mutex::default(),
        };
        let (magic, layout) = (page.word(H_MAGIC).load(Acquire), page.word(H_LAYOUT).load(Relaxed));
        if magic != MAGIC || layout != LAYOUT {
            let source = io::Error::new(io::ErrorKind::InvalidData, "this is no statistics page of this version");
            return Err(BadRegion::System { call: "statistics page", source });
        }
        Ok(page)
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned and `len` bytes long; any bit pattern is a valid AtomicU64; other
        // processes and threads touch it through atomics alone. The region lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.region.start().as_ptr().cast(), self.region.len() / 8) }
    }

    #[inline]
    pub(super) fn word(&self, index: usize) -> &AtomicU64 {
        &self.words()[index]
    }

    pub(super) fn block(worker: usize) -> usize {
        HEADER_WORDS + DIRECTORY_WORDS + worker * BLOCK_WORDS
    }

    /// Number of workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// The writing end of a worker, below [`workers`](Self::workers).
    #[must_use]
    pub fn worker(self: &Arc<Self>, worker: usize) -> WorkerSlots {
        assert!(worker < self.workers, "worker {worker} of {}", self.workers);
        WorkerSlots { page: Arc::clone(self), base: Self::block(worker) }
    }

    /// The slot of a cluster, found or made. Not for the request path: a worker asks once per cluster and generation.
    /// The last slot is shared by all that come after the page is full, under the name `other`.
    pub fn cluster_slot(&self, name: &str) -> usize {
        let mut directory = self.directory.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let count = directory.len();
        if let Some(&slot) = directory.get(name) {
            return slot;
        }
        if count >= CLUSTER_SLOTS - 1 {
            self.write_name(CLUSTER_SLOTS - 1, "other");
            self.word(H_CLUSTERS).store(CLUSTER_SLOTS as u64, Release);
            return CLUSTER_SLOTS - 1;
        }
        self.write_name(count, name);
        directory.insert(name.to_owned(), count);
        // Release: pairs with the Acquire in `clusters`: a counted slot has its name.
        self.word(H_CLUSTERS).store(count as u64 + 1, Release);
        count
    }

    /// Writes an entry of the directory.
    pub(super) fn write_name(&self, entry: usize, name: &str) {
        let name = cut(name);
        let (end, entry) = (name.len(), HEADER_WORDS + entry * ENTRY_WORDS);
        for (index, chunk) in name.as_bytes().chunks(8).enumerate() {
            let mut raw = [0; 8];
            raw[..chunk.len()].copy_from_slice(chunk);
            self.word(entry + 1 + index).store(u64::from_le_bytes(raw), Relaxed);
        }
        self.word(entry).store(end as u64, Relaxed);
    }

    /// Names of the clusters that have had traffic, by slot.
    #[must_use]
    pub fn clusters(&self) -> Vec<String> {
        let count = (self.word(H_CLUSTERS).load(Acquire) as usize).min(CLUSTER_SLOTS);
        (0..count).map(|slot| self.read_name(slot)).collect()
    }

    /// Reads an entry of the directory.
    pub(super) fn read_name(&self, entry: usize) -> String {
        let entry = HEADER_WORDS + entry * ENTRY_WORDS;
        let len = (self.word(entry).load(Relaxed) as usize).min(CLUSTER_NAME_BYTES_MAX);
        let bytes: Vec<u8> =
            (0..len.div_ceil(8)).flat_map(|i| self.word(entry + 1 + i).load(Relaxed).to_le_bytes()).collect();
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    }

    /// The generation that a worker's new requests run on.
    #[must_use]
    pub fn acknowledged(&self, worker: usize) -> Generation {
        // Acquire: pairs with the Release in `WorkerSlots::acknowledge`.
        Generation(self.word(Self::block(worker) + W_GENERATION).load(Acquire))
    }

    /// A counter of one worker.
    #[must_use]
    pub fn counter(&self, worker: usize, counter: Counter) -> u64 {
        self.word(Self::block(worker) + W_COUNTERS + counter as usize).load(Relaxed)
    }

    /// A counter, summed over workers. Gauges wrap per worker where a connection moves, and add up.
    #[must_use]
    pub fn total(&self, counter: Counter) -> u64 {
        (0..self.workers).fold(0, |sum, worker| sum.wrapping_add(self.counter(worker, counter)))
    }

    /// A cluster's counter, summed over workers.
    #[must_use]
    pub fn cluster_total(&self, slot: usize, counter: ClusterCounter) -> u64 {
        let at = |worker| Self::block(worker) + W_CLUSTERS + slot * LINE + counter as usize;
        (0..self.workers).fold(0, |sum, worker| sum.wrapping_add(self.word(at(worker)).load(Relaxed)))
    }

    /// A cluster's gRPC calls that ended with this status, summed over workers.
    #[must_use]
    pub fn grpc_total(&self, slot: usize, status: GrpcStatus) -> u64 {
        let at = |worker| Self::block(worker) + W_GRPC + slot * GRPC_WORDS + usize::from(status.0);
        (0..self.workers).fold(0, |sum, worker| sum.wrapping_add(self.word(at(worker)).load(Relaxed)))
    }

    /// What a cluster's connections of bytes were counted for, summed over workers.
    #[must_use]
    pub fn tcp_total(&self, slot: usize, counter: ClusterTcp) -> u64 {
        let at = |worker| Self::block(worker) + W_TCP + slot * LINE + counter as usize;
        (0..self.workers).fold(0, |sum, worker| sum.wrapping_add(self.word(at(worker)).load(Relaxed)))
    }

    /// The TLS handshakes of a listener's clients, summed over workers; listeners are numbered as on the command line, see
    /// [`LISTENER_SLOTS`].
    #[must_use]
    pub fn listener_tls_total(&self, listener: usize, counter: TlsCounter) -> u64 {
        let at = |worker| Self::block(worker) + listener_tls(listener, counter);
        (0..self.workers).fold(0, |sum, worker| sum.wrapping_add(self.word(at(worker)).load(Relaxed)))
    }

    /// The TLS handshakes with a cluster's endpoints, summed over workers.
    #[must_use]
    pub fn cluster_tls_total(&self, slot: usize, counter: TlsCounter) -> u64 {
        let at = |worker| Self::block(worker) + W_CLUSTER_TLS + slot * LINE + counter as usize;
        (0..self.workers).fold(0, |sum, worker| sum.wrapping_add(self.word(at(worker)).load(Relaxed)))
    }

    /// Request durations, summed over workers: counts per bucket of [`histogram`].
    #[must_use]
    pub fn durations(&self) -> Vec<u64> {
        let at = |worker, bucket| Self::block(worker) + W_HISTOGRAM + bucket;
        (0..histogram::BUCKETS)
            .map(|bucket| (0..self.workers).map(|worker| self.word(at(worker, bucket)).load(Relaxed)).sum())
            .collect()
    }
}

/// As much of a name as there is room for.
pub(super) fn cut(name: &str) -> &str {
    let mut end = name.len().min(CLUSTER_NAME_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

/// Of a worker's block.
pub(super) fn peer(slot: PeerSlot, counter: PeerCounter) -> usize {
    W_PEERS + slot.index() * LINE + counter as usize
}

fn listener_tls(listener: usize, counter: TlsCounter) -> usize {
    W_LISTENER_TLS + listener.min(LISTENER_SLOTS - 1) * LINE + counter as usize
}

impl WorkerSlots {
    #[inline]
    fn add_word(&self, index: usize, delta: u64) {
        let word = self.page.word(index);
        // One writer per block: load and store need no locked instruction.
        word.store(word.load(Relaxed).wrapping_add(delta), Relaxed);
    }

    /// Adds to a counter.
    #[inline]
    pub fn add(&self, counter: Counter, delta: u64) {
        self.add_word(self.base + W_COUNTERS + counter as usize, delta);
    }

    /// Takes from a gauge.
    #[inline]
    pub fn subtract(&self, counter: Counter, delta: u64) {
        self.add_word(self.base + W_COUNTERS + counter as usize, delta.wrapping_neg());
    }

    /// Records the duration of one request.
    #[inline]
    pub fn duration(&self, value_us: u64) {
        self.add_word(self.base + W_HISTOGRAM + histogram::bucket(value_us), 1);
    }

    /// Adds to a cluster's counter; a gauge is reduced with a wrapped negative.
    #[inline]
    pub fn cluster(&self, slot: usize, counter: ClusterCounter, delta: u64) {
        self.add_word(self.base + W_CLUSTERS + slot * LINE + counter as usize, delta);
    }

    /// Counts a gRPC call to a cluster by how it ended.
    #[inline]
    pub fn grpc(&self, slot: usize, status: GrpcStatus) {
        self.add_word(self.base + W_GRPC + slot * GRPC_WORDS + usize::from(status.0), 1);
    }

    /// Adds to what a cluster's connections of bytes are counted for.
    #[inline]
    pub fn tcp(&self, slot: usize, counter: ClusterTcp, delta: u64) {
        self.add_word(self.base + W_TCP + slot * LINE + counter as usize, delta);
    }

    /// Counts a handshake of a listener's client.
    #[inline]
    pub fn listener_tls(&self, listener: usize, counter: TlsCounter) {
        self.add_word(self.base + listener_tls(listener, counter), 1);
    }

    /// Counts a handshake with an endpoint of a cluster.
    #[inline]
    pub fn cluster_tls(&self, slot: usize, counter: TlsCounter) {
        self.add_word(self.base + W_CLUSTER_TLS + slot * LINE + counter as usize, 1);
    }

    /// Counts something of a peer.
    #[inline]
    pub fn peer(&self, slot: PeerSlot, counter: PeerCounter) {
        self.add_word(self.base + peer(slot, counter), 1);
    }

    /// Says which generation this worker's new requests run on.
    pub fn acknowledge(&self, generation: Generation) {
        // Release: pairs with the Acquire in `StatsPage::acknowledged`.
        self.page.word(self.base + W_GENERATION).store(generation.0, Release);
    }

    /// The page.
    #[must_use]
    pub fn page(&self) -> &Arc<StatsPage> {
        &self.page
    }
}

// The page's acknowledgement word is what the publication model calls `Acknowledged`.
const _: () = assert!(size_of::<Acknowledged>() == size_of::<AtomicU64>() || cfg!(loom));
