//! The worker's buffers: a pool, and the input side of a connection.

use std::{cell::RefCell, io};

use meshring_core::limits::{BUFFER_BYTES, BUFFERS_POOLED_MAX};
use monoio::{
    buf::{IoBufMut as _, SliceMut},
    io::AsyncReadRent as _,
};

use super::conn::ReadHalf;

/// Free buffers of [`BUFFER_BYTES`].
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    free: RefCell<Vec<Vec<u8>>>,
}

impl Buffers {
    /// An empty buffer.
    pub(crate) fn take(&self) -> Vec<u8> {
        self.free.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES))
    }

    /// Gives a buffer back. One that grew for a large head, and those beyond the pool's bound, go to the allocator.
    pub(crate) fn give(&self, mut buffer: Vec<u8>) {
        let mut free = self.free.borrow_mut();
        if buffer.capacity() == BUFFER_BYTES && free.len() < BUFFERS_POOLED_MAX {
            buffer.clear();
            free.push(buffer);
        }
    }
}

/// Bytes that a peer has sent and nobody has consumed yet.
#[derive(Debug, Default)]
pub(crate) struct Input {
    bytes: Vec<u8>,
    start: usize,
}

impl Input {
    /// Over an empty buffer.
    pub(crate) fn new(buffer: Vec<u8>) -> Self {
        Self { bytes: buffer, start: 0 }
    }

    /// The buffer, for the pool.
    pub(crate) fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }

    /// What is there.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Whether nothing is there.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// Drops bytes at the front.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.bytes.len());
        if self.is_empty() {
            self.bytes.clear();
            self.start = 0;
        }
    }

    /// Makes room behind what is there: moves it to the front, and beyond that grows to `bytes_max`. False when the
    /// buffer is full at its largest size.
    fn make_room(&mut self, bytes_max: usize) -> bool {
        if self.bytes.capacity() == 0 {
            self.bytes.reserve_exact(BUFFER_BYTES);
        }
        if self.bytes.len() < self.bytes.capacity() {
            return true;
        }
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
            return true;
        }
        let larger = (self.bytes.capacity() * 2).min(bytes_max);
        if larger <= self.bytes.len() {
            return false;
        }
        self.bytes.reserve_exact(larger - self.bytes.len());
        true
    }

    /// The space behind what is there, to be handed to a read.
    pub(crate) fn lend(&mut self, bytes_max: usize) -> Option<SliceMut<Vec<u8>>> {
        if !self.make_room(bytes_max) {
            return None;
        }
        let bytes = std::mem::take(&mut self.bytes);
        let (len, capacity) = (bytes.len(), bytes.capacity());
        Some(bytes.slice_mut(len..capacity))
    }

    /// Takes the space back after the read.
    pub(crate) fn restore(&mut self, lent: SliceMut<Vec<u8>>) {
        self.bytes = lent.into_inner();
    }

    /// Reads more. 0 is the peer's FIN. A buffer that is full at `bytes_max` is an error of kind `OutOfMemory`.
    pub(crate) async fn fill(&mut self, from: &mut ReadHalf, bytes_max: usize) -> io::Result<usize> {
        let Some(space) = self.lend(bytes_max) else { return Err(io::ErrorKind::OutOfMemory.into()) };
        let (result, space) = from.read(space).await;
        self.restore(space);
        result
    }
}
