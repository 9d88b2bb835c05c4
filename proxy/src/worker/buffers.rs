//! The worker's buffers: a pool that knows how many bytes are in use, and the input side of a connection.

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    ops::{Deref, DerefMut},
    rc::Rc,
};

use meshring_core::limits::{BUFFER_BYTES, BUFFERS_POOLED_MAX, FREED_BYTES_KEPT_MAX};
use monoio::{
    buf::{IoBufMut as _, SliceMut},
    io::{CancelHandle, CancelableAsyncReadRent as _},
};

use super::{
    conn::{ReadHalf, SocketReader},
    secure::{Taken, Tls},
    splice::Carriers,
};

/// Free buffers of [`BUFFER_BYTES`], and the number of bytes in those that are not free.
#[derive(Default)]
pub(crate) struct Buffers {
    free: RefCell<Vec<Vec<u8>>>,
    used_bytes: Cell<usize>,
    held_bytes: Cell<usize>,
    carriers: Carriers,
    /// The fewest that were free since the last [`sweep`](Self::sweep).
    unused: Cell<usize>,
    freed: Freed,
}

/// What went to the allocator, in bytes.
#[derive(Default)]
struct Freed {
    /// Since it was last asked to give memory back.
    bytes: Cell<usize>,
    /// The same at the last sweep.
    swept_bytes: Cell<usize>,
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffers").field("used_bytes", &self.used_bytes.get()).finish_non_exhaustive()
    }
}

impl Buffers {
    /// An empty buffer.
    pub(crate) fn take(self: &Rc<Self>) -> Buffer {
        let mut buffer = self.lazy();
        buffer.ensure();
        buffer
    }

    /// A buffer without storage: [`Buffer::ensure`] takes some when it is needed.
    pub(crate) fn lazy(self: &Rc<Self>) -> Buffer {
        Buffer { bytes: Vec::new(), counted: 0, pool: Rc::clone(self) }
    }

    /// A copy of bytes that wait for more of their kind.
    pub(crate) fn hold(self: &Rc<Self>, bytes: &[u8]) -> Held {
        self.held_bytes.set(self.held_bytes.get() + bytes.len());
        Held(self.keep(bytes))
    }

    /// A copy of bytes in as much memory as they need.
    pub(crate) fn keep(self: &Rc<Self>, bytes: &[u8]) -> Kept {
        self.used_bytes.set(self.used_bytes.get() + bytes.len());
        Kept { bytes: bytes.into(), pool: Rc::clone(self) }
    }

    /// Counts memory as used that lies elsewhere, until it is dropped.
    pub(crate) fn reserve(self: &Rc<Self>, bytes: usize) -> Reserved {
        self.used_bytes.set(self.used_bytes.get() + bytes);
        Reserved { bytes, pool: Rc::clone(self) }
    }

    /// Bytes that grow, in an allocation of their own; for what peers say before they are known.
    pub(crate) fn counted(self: &Rc<Self>) -> Counted {
        Counted { bytes: Vec::new(), counted: 0, pool: Rc::clone(self) }
    }

    /// What moves bytes without a buffer.
    pub(super) fn carriers(&self) -> &Carriers {
        &self.carriers
    }

    /// Bytes of those that wait for more of their kind: a part of [`used_bytes`](Self::used_bytes).
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes.get()
    }

    /// Bytes outside of the pool.
    pub(crate) fn used_bytes(&self) -> usize {
        self.used_bytes.get()
    }

    fn storage(&self) -> Vec<u8> {
        let mut free = self.free.borrow_mut();
        let storage = free.pop();
        self.unused.set(self.unused.get().min(free.len()));
        storage.unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES))
    }

    /// Frees what was not needed since the last call. Whether the allocator holds much that was freed, and no more of it comes: a
    /// burst is over.
    pub(super) fn sweep(&self) -> bool {
        let mut free = self.free.borrow_mut();
        let keep = free.len() - self.unused.get().min(free.len());
        self.note_freed((free.len() - keep) * BUFFER_BYTES + self.carriers.sweep());
        free.truncate(keep);
        self.unused.set(keep);
        let Freed { bytes, swept_bytes } = &self.freed;
        if bytes.get() != swept_bytes.get() || bytes.get() < FREED_BYTES_KEPT_MAX {
            swept_bytes.set(bytes.get());
            return false;
        }
        bytes.set(0);
        swept_bytes.set(0);
        true
    }

    /// So much went to the allocator.
    pub(super) fn note_freed(&self, bytes: usize) {
        self.freed.bytes.set(self.freed.bytes.get().saturating_add(bytes));
    }

    /// Storage comes back. What grew for a large head, and what is beyond the pool's bound, goes to the allocator.
    fn give(&self, mut storage: Vec<u8>) {
        let mut free = self.free.borrow_mut();
        if storage.capacity() == BUFFER_BYTES && free.len() < BUFFERS_POOLED_MAX {
            storage.clear();
            free.push(storage);
        } else {
            self.note_freed(storage.capacity());
        }
    }
}

/// Bytes with storage of the pool, which gets it back when this is dropped.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    /// What [`Buffers::used_bytes`] knows of; storage that has grown since is made known at the next I/O.
    counted: usize,
    pool: Rc<Buffers>,
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.bytes.len()).field("capacity", &self.bytes.capacity()).finish()
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Buffer {
    /// Takes storage if there is none.
    pub(crate) fn ensure(&mut self) {
        if self.bytes.capacity() == 0 {
            self.bytes = self.pool.storage();
            self.count(self.bytes.capacity());
        }
    }

    /// Gives the storage back while nothing is in it: whoever waits for a peer without it costs less.
    pub(crate) fn release(&mut self) {
        if self.bytes.is_empty() && self.bytes.capacity() > 0 {
            self.count(0);
            self.pool.give(std::mem::take(&mut self.bytes));
        } else {
            // It may have grown.
            self.count(self.bytes.capacity());
        }
    }

    /// Who has to wait with little in hand keeps it in an allocation of its size, and the storage is for others: whether that is so
    /// now. [`grow`](Self::grow) it again before more is put into it.
    pub(super) fn shrink(&mut self) -> bool {
        let is_little = self.bytes.len() < self.bytes.capacity() / 4;
        if is_little {
            let storage = std::mem::take(&mut self.bytes);
            self.bytes = Vec::with_capacity(storage.len());
            self.bytes.extend_from_slice(&storage);
            self.count(self.bytes.capacity());
            self.pool.give(storage);
        }
        is_little
    }

    /// After [`shrink`](Self::shrink): as it was.
    pub(super) fn grow(&mut self) {
        let few = std::mem::replace(&mut self.bytes, self.pool.storage());
        self.bytes.extend_from_slice(&few);
        self.count(self.bytes.capacity());
    }

    /// The bytes, to be owned by an operation; [`restore`](Self::restore) them after it.
    pub(crate) fn lend(&mut self) -> Vec<u8> {
        self.count(self.bytes.capacity());
        std::mem::take(&mut self.bytes)
    }

    /// Takes the bytes back.
    pub(crate) fn restore(&mut self, bytes: Vec<u8>) {
        self.bytes = bytes;
    }

    fn count(&mut self, capacity: usize) {
        let used = &self.pool.used_bytes;
        used.set(used.get() + capacity - self.counted);
        self.counted = capacity;
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.count(0);
        self.pool.give(std::mem::take(&mut self.bytes));
    }
}

/// Bytes in an allocation of their size. They count as used.
pub(crate) struct Kept {
    bytes: Box<[u8]>,
    pool: Rc<Buffers>,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("len", &self.bytes.len()).finish_non_exhaustive()
    }
}

impl Deref for Kept {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let used = &self.pool.used_bytes;
        used.set(used.get() - self.bytes.len());
    }
}

/// Kept bytes that wait for more of their kind, see [`Buffers::held_bytes`].
#[derive(Debug)]
pub(crate) struct Held(Kept);

impl Deref for Held {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let held = &self.0.pool.held_bytes;
        held.set(held.get() - self.0.len());
    }
}

/// Memory that lies elsewhere and counts as used.
pub(crate) struct Reserved {
    bytes: usize,
    pool: Rc<Buffers>,
}

impl fmt::Debug for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reserved").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Reserved {
    /// What it counts in.
    pub(super) fn pool(&self) -> &Rc<Buffers> {
        &self.pool
    }

    /// It has become more, or less.
    pub(crate) fn resize(&mut self, bytes: usize) {
        let used = &self.pool.used_bytes;
        used.set(used.get() + bytes - self.bytes);
        self.bytes = bytes;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let used = &self.pool.used_bytes;
        used.set(used.get() - self.bytes);
    }
}

/// Bytes in an allocation of their own. They count as used.
pub(crate) struct Counted {
    bytes: Vec<u8>,
    counted: usize,
    pool: Rc<Buffers>,
}

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counted").field("len", &self.bytes.len()).finish_non_exhaustive()
    }
}

impl Deref for Counted {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Counted {
    /// To be changed in place.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Adds bytes at the end.
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let used = &self.pool.used_bytes;
        used.set(used.get() + self.bytes.capacity() - self.counted);
        self.counted = self.bytes.capacity();
    }

    /// Drops bytes at the front.
    pub(crate) fn consume(&mut self, count: usize) {
        self.bytes.drain(..count);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let used = &self.pool.used_bytes;
        used.set(used.get() - self.counted);
    }
}

/// Bytes that a peer has sent and nobody has consumed yet.
#[derive(Debug)]
pub(crate) struct Input {
    bytes: Buffer,
    start: usize,
}

impl Input {
    /// Over a buffer in which nothing was consumed yet.
    pub(crate) fn new(buffer: Buffer) -> Self {
        Self { bytes: buffer, start: 0 }
    }

    /// What is there.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Whether nothing is there.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// Where its storage comes from.
    pub(crate) fn pool(&self) -> &Rc<Buffers> {
        &self.bytes.pool
    }

    /// Drops bytes at the front.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.bytes.len());
        if self.is_empty() {
            self.bytes.clear();
            self.start = 0;
        }
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
    }

    /// Adds as many of these bytes as fit into an input of at most `bytes_max`: how many. `None`: it is full.
    pub(crate) fn append(&mut self, bytes: &[u8], bytes_max: usize) -> Option<usize> {
        if !self.make_room(bytes_max) {
            return None;
        }
        let room = self.bytes.capacity() - self.bytes.len();
        let count = bytes.len().min(room);
        self.bytes.extend_from_slice(&bytes[..count]);
        Some(count)
    }

    /// All that is there, to be written as it is; [`clear`](Self::clear) it then.
    pub(crate) fn whole(&mut self) -> &mut Buffer {
        self.bytes.drain(..self.start);
        self.start = 0;
        &mut self.bytes
    }

    /// Gives the storage back while nothing is there; the next read takes some again.
    pub(crate) fn release(&mut self) {
        self.bytes.release();
    }

    /// Adds bytes at the end, as if they had been read.
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.ensure();
        self.bytes.extend_from_slice(bytes);
    }

    /// Makes room behind what is there: moves it to the front, and beyond that grows to `bytes_max`. False when the
    /// buffer is full at its largest size.
    fn make_room(&mut self, bytes_max: usize) -> bool {
        self.bytes.ensure();
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
        let further = larger - self.bytes.len();
        self.bytes.reserve_exact(further);
        true
    }

    /// Space for at most `at_most` bytes behind what is there, to be handed to a read.
    pub(crate) fn lend(&mut self, at_most: usize, bytes_max: usize) -> Option<SliceMut<Vec<u8>>> {
        if !self.make_room(bytes_max) {
            return None;
        }
        let bytes = self.bytes.lend();
        let (len, capacity) = (bytes.len(), bytes.capacity());
        Some(bytes.slice_mut(len..capacity.min(len.saturating_add(at_most))))
    }

    /// Takes the space back after the read.
    pub(crate) fn restore(&mut self, lent: SliceMut<Vec<u8>>) {
        self.bytes.restore(lent.into_inner());
    }

    /// Reads more, at most so many bytes, until the handle cancels it: then it fails, and no byte is lost. 0 is the peer's
    /// FIN. A buffer that is full at `bytes_max` is an error of kind `OutOfMemory`.
    pub(crate) async fn fill_cancelable(
        &mut self,
        from: &mut ReadHalf,
        at_most: usize,
        bytes_max: usize,
        handle: CancelHandle,
    ) -> io::Result<usize> {
        let from = match from {
            ReadHalf::Socket(socket) => socket,
            ReadHalf::Stream(stream) => return stream.fill(self, at_most, bytes_max).await,
        };
        from.is_read();
        if let Some(tls) = from.tls.clone() {
            return self.fill_secured(from, &tls, at_most, bytes_max, handle).await;
        }
        let Some(space) = self.lend(at_most, bytes_max) else { return Err(io::ErrorKind::OutOfMemory.into()) };
        let (result, space) = from.socket.cancelable_read(space, handle).await;
        self.restore(space);
        result
    }

    /// As [`fill_cancelable`](Self::fill_cancelable), from a secured connection.
    async fn fill_secured(
        &mut self,
        from: &mut SocketReader,
        tls: &Tls,
        at_most: usize,
        bytes_max: usize,
        handle: CancelHandle,
    ) -> io::Result<usize> {
        loop {
            match tls.take(self, at_most, bytes_max)? {
                Taken::Bytes(count) => return Ok(count),
                Taken::Closed => return Ok(0),
                Taken::Nothing => {}
            }
            if tls.is_kernel() {
                let Some(space) = self.lend(at_most, bytes_max) else { return Err(io::ErrorKind::OutOfMemory.into()) };
                let (result, space) = from.socket.cancelable_read(space, handle.clone()).await;
                self.restore(space);
                match tls.kernel_read(result)? {
                    Some(count) => return Ok(count),
                    None => continue,
                }
            }
            let (result, space) = from.socket.cancelable_read(tls.lend_space(), handle.clone()).await;
            tls.restore_space(space);
            if result? == 0 {
                tls.socket_ended();
                return Ok(0);
            }
        }
    }

    /// Reads what is there now, without waiting for anything, and not much more than `at_most`. `WouldBlock` when there is nothing.
    pub(crate) fn fill_now(&mut self, from: &ReadHalf, at_most: usize, bytes_max: usize) -> io::Result<usize> {
        let from = match from {
            ReadHalf::Socket(socket) => socket,
            ReadHalf::Stream(stream) => return stream.fill_now(self, at_most, bytes_max),
        };
        from.is_read();
        if let Some(tls) = &from.tls {
            return self.fill_secured_now(tls, at_most, bytes_max);
        }
        if !self.make_room(bytes_max) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let mut bytes = self.bytes.lend();
        let result = super::readiness::read_now(from, &mut bytes, at_most);
        self.bytes.restore(bytes);
        result
    }

    fn fill_secured_now(&mut self, tls: &Tls, at_most: usize, bytes_max: usize) -> io::Result<usize> {
        loop {
            match tls.take(self, at_most, bytes_max)? {
                Taken::Bytes(count) => return Ok(count),
                Taken::Closed => return Ok(0),
                Taken::Nothing => {}
            }
            if tls.is_kernel() {
                if !self.make_room(bytes_max) {
                    return Err(io::ErrorKind::OutOfMemory.into());
                }
                let mut bytes = self.bytes.lend();
                let result = tls.kernel_fill_now(&mut bytes);
                self.bytes.restore(bytes);
                match tls.kernel_read(result)? {
                    Some(count) => return Ok(count),
                    None => continue,
                }
            }
            match tls.fill_now() {
                Ok(0) => {
                    tls.socket_ended();
                    return Ok(0);
                }
                Ok(_) => {}
                Err(error) => {
                    tls.rest();
                    return Err(error);
                }
            }
        }
    }
}

/// For a read that nothing cancels.
#[cfg(test)]
pub(crate) fn never_cancelled() -> CancelHandle {
    monoio::io::Canceller::new().handle()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_outside_of_the_pool_is_counted_and_given_back() {
        let pool = Rc::<Buffers>::default();
        let mut one = pool.take();
        let two = pool.take();
        assert_eq!(pool.used_bytes(), 2 * BUFFER_BYTES);
        // A head that does not fit: what it grew to counts as soon as it is sent.
        one.resize(3 * BUFFER_BYTES, 0);
        let lent = one.lend();
        assert!(pool.used_bytes() >= 4 * BUFFER_BYTES, "{}", pool.used_bytes());
        one.restore(lent);
        drop(two);
        one.clear();
        one.release();
        assert_eq!(pool.used_bytes(), 0);
        one.ensure();
        assert_eq!((pool.used_bytes(), one.capacity()), (BUFFER_BYTES, BUFFER_BYTES));
        drop(one);
        let held = pool.hold(b"GET / HT");
        assert_eq!((pool.used_bytes(), &*held), (8, &b"GET / HT"[..]));
        drop(held);
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn what_a_burst_needed_is_freed_once_it_is_over() {
        let pool = Rc::<Buffers>::default();
        let burst = FREED_BYTES_KEPT_MAX / BUFFER_BYTES + BUFFERS_POOLED_MAX;
        let buffers: Vec<_> = (0..=burst).map(|_| pool.take()).collect();
        assert!(!pool.sweep(), "all of it is in use");
        drop(buffers);
        assert_eq!(pool.free.borrow().len(), BUFFERS_POOLED_MAX);
        assert!(!pool.sweep(), "there may be more");
        drop((pool.take(), pool.take()));
        assert!(!pool.sweep(), "what was not needed since has just been freed");
        assert_eq!(pool.free.borrow().len(), 2, "as many as were needed at a time");
        drop((pool.take(), pool.take()));
        assert!(pool.sweep(), "the burst is over");
        drop((pool.take(), pool.take()));
        assert!(!pool.sweep() && !pool.sweep(), "there is nothing more");
        assert_eq!(pool.free.borrow().len(), 0);
    }

    #[test]
    fn storage_with_something_in_it_is_not_given_back() {
        let pool = Rc::<Buffers>::default();
        let mut input = Input::new(pool.lazy());
        assert_eq!(pool.used_bytes(), 0);
        input.extend(b"abc");
        input.release();
        assert_eq!((input.unread(), pool.used_bytes()), (&b"abc"[..], BUFFER_BYTES));
        input.consume(3);
        input.release();
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn an_operation_that_is_lost_with_its_bytes_costs_nothing_for_ever() {
        let pool = Rc::<Buffers>::default();
        let mut buffer = pool.take();
        drop(buffer.lend());
        assert_eq!(pool.used_bytes(), BUFFER_BYTES);
        drop(buffer);
        assert_eq!(pool.used_bytes(), 0);
    }
}
