//! The streams of a connection.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use super::super::super::head::Method;
use super::super::code::Fault;
use super::inbox::{Inbox, Spare};
use super::{Tunnel, Wake};

/// Names a stream of a connection, for as long as whoever has it has not released it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamKey {
    pub(super) place: u32,
    pub(super) id: u32,
}

/// How far our message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum Sending {
    /// Its head is to come.
    #[default]
    Head,
    Body,
    /// END_STREAM or RST_STREAM was sent, or has come.
    Ended,
}

#[derive(Debug, Default)]
pub(super) struct Stream<T> {
    /// 0: the place is free.
    pub(super) id: u32,
    /// Whoever waits for it; nobody where the place is free.
    pub(super) waiter: Option<T>,
    pub(super) inbox: Inbox,
    /// What the engine knows of its footprint: a window and two heads at the most.
    counted: u32,
    pub(super) sending: Sending,
    pub(super) fault: Option<Fault>,
    /// How much we may send, in bytes; SETTINGS can make it negative.
    pub(super) send_window: i64,
    /// How much the other side may send, in bytes.
    pub(super) receive_window: u32,
    /// What was read of it and is not given back yet, in bytes.
    pub(super) credit: u32,
    /// Waits for room on the connection: stands in the queue, once.
    pub(super) is_queued: bool,
    /// What it waits with is a head.
    pub(super) waits_with_head: bool,
    /// When it was opened, see [`forgive`](super::Engine::forgive).
    pub(super) opened_at: u32,
    /// CONNECT: nothing but data may follow (RFC 9113 section 8.5).
    pub(super) is_tunnel: bool,
    /// Of the text of the request.
    pub(super) method: Option<Method>,
    /// Of an upstream's stream.
    pub(super) tunnel: Option<Box<Tunnel>>,
}

impl<T> Stream<T> {
    /// Brings the sum of all footprints up to date.
    pub(super) fn count(&mut self, sum: &mut usize) {
        let footprint = self.inbox.footprint();
        *sum = *sum + footprint - self.counted as usize;
        self.counted = footprint as u32;
    }

    /// Whether more of the other side's message is expected.
    pub(super) fn is_receiving(&self) -> bool {
        self.fault.is_none() && !self.inbox.is_ended
    }

    /// Whether the protocol has done with it.
    pub(super) fn is_over(&self) -> bool {
        self.fault.is_some() || self.inbox.is_ended && self.sending == Sending::Ended
    }
}

/// For ids of streams. The other side may choose some that collide, but has only a few hundred streams at a time.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, id: u32) {
        // The golden ratio. What is mixed best comes to where a table looks first.
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Streams that somebody has.
#[derive(Debug)]
pub(super) struct Streams<T> {
    places: Vec<Stream<T>>,
    free: Vec<u32>,
    by_id: HashMap<u32, u32, BuildHasherDefault<IdHasher>>,
    pub(super) spare: Spare,
    /// Freed places that are kept, and storages.
    kept_max: usize,
    /// Those that wait for room on the connection, in their order.
    pub(super) queue: VecDeque<StreamKey>,
}

impl<T: Wake + Default> Streams<T> {
    pub(super) fn new(kept_max: usize) -> Self {
        let (places, free, by_id) = (Vec::new(), Vec::new(), HashMap::default());
        Self { places, free, by_id, spare: Spare::new(kept_max), kept_max, queue: VecDeque::new() }
    }

    /// How many somebody has.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// A new one.
    pub(super) fn insert(&mut self, id: u32, waiter: T, send_window: i64, receive_window: u32) -> StreamKey {
        let place = self.free.pop().unwrap_or_else(|| {
            if self.places.len() == self.places.capacity() {
                // Twice as many places would be half of them for nothing.
                self.places.reserve_exact((self.places.len() / 4).max(8));
            }
            self.places.push(Stream::default());
            self.places.len() as u32 - 1
        });
        let stream = Stream { id, waiter: Some(waiter), send_window, receive_window, ..Stream::default() };
        self.places[place as usize] = stream;
        self.by_id.insert(id, place);
        StreamKey { place, id }
    }

    pub(super) fn find(&self, id: u32) -> Option<StreamKey> {
        self.by_id.get(&id).map(|&place| StreamKey { place, id })
    }

    pub(super) fn get(&self, key: StreamKey) -> Option<&Stream<T>> {
        self.places.get(key.place as usize).filter(|stream| stream.id == key.id)
    }

    pub(super) fn get_mut(&mut self, key: StreamKey) -> Option<&mut Stream<T>> {
        self.places.get_mut(key.place as usize).filter(|stream| stream.id == key.id)
    }

    /// Likewise, with storage for what it has to keep.
    pub(super) fn with_spare(&mut self, key: StreamKey) -> Option<(&mut Stream<T>, &mut Spare)> {
        let stream = self.places.get_mut(key.place as usize).filter(|stream| stream.id == key.id)?;
        Some((stream, &mut self.spare))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream<T>> {
        self.places.iter_mut().filter(|stream| stream.id != 0)
    }

    /// Places that streams have, or had.
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    /// Wakes those who wait for so many streams, from the end of the first `places` places on: how many places are left.
    pub(super) fn wake_below(&self, places: usize, count: usize) -> usize {
        let below = &self.places[..places.min(self.places.len())];
        let (mut left, mut woken) = (below.len(), 0);
        for stream in below.iter().rev() {
            if woken == count {
                break;
            }
            left -= 1;
            if stream.id != 0 {
                stream.waiter.wake();
                woken += 1;
            }
        }
        left
    }

    /// Frees the place of one. `sum`: of all footprints.
    pub(super) fn remove(&mut self, key: StreamKey, sum: &mut usize) {
        let Some((stream, spare)) = self.with_spare(key) else { return };
        *sum -= stream.counted as usize;
        stream.inbox.discard(spare);
        *stream = Stream::default();
        self.free.push(key.place);
        self.by_id.remove(&key.id);
        if self.by_id.is_empty() {
            self.shrink();
        }
    }

    /// A connection without streams keeps what the next few need.
    fn shrink(&mut self) {
        self.queue.clear();
        if self.places.len() > self.kept_max {
            *self = Self::new(self.kept_max);
        }
    }
}
