//! Memory for large futures that come and go.

#![allow(unsafe_code, reason = "puts futures into memory that is kept for the next one")]

use std::{
    alloc::{Layout, alloc, dealloc, handle_alloc_error},
    cell::{Cell, RefCell},
    fmt,
    pin::Pin,
    ptr::NonNull,
    task::{Context, Poll},
};

use meshring_core::limits::FUTURES_POOLED_MAX;

/// Room for one future: the largest that [`Pooled::new`] is given, with some to spare.
const BLOCK_BYTES: usize = 8 * 1024;
/// Whole pages, so that a block that is freed can go back to the kernel whatever lies beside it.
const BLOCK_ALIGN: usize = 4 * 1024;

const BLOCK: Layout = match Layout::from_size_align(BLOCK_BYTES, BLOCK_ALIGN) {
    Ok(layout) => layout,
    Err(_) => panic!("a block is no layout"),
};

/// Blocks that are free. The allocator would cut what one future leaves into pieces for small things, and find no room for the
/// next one: with ten thousand connections a heap full of holes.
#[derive(Default)]
pub(crate) struct FuturePool {
    free: RefCell<Vec<NonNull<u8>>>,
    /// The fewest that were free since the last [`sweep`](Self::sweep).
    unused: Cell<usize>,
}

impl fmt::Debug for FuturePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FuturePool").field("free", &self.free.borrow().len()).finish()
    }
}

impl FuturePool {
    fn take(&self) -> NonNull<u8> {
        let mut free = self.free.borrow_mut();
        let block = free.pop();
        self.unused.set(self.unused.get().min(free.len()));
        block.unwrap_or_else(|| {
            // SAFETY: the layout is not empty.
            let block = unsafe { alloc(BLOCK) };
            NonNull::new(block).unwrap_or_else(|| handle_alloc_error(BLOCK))
        })
    }

    fn give(&self, block: NonNull<u8>) {
        let mut free = self.free.borrow_mut();
        if free.len() < FUTURES_POOLED_MAX {
            free.push(block);
        } else {
            discard(block);
        }
    }

    /// Frees what was not needed since the last call: so many bytes.
    pub(super) fn sweep(&self) -> usize {
        let mut free = self.free.borrow_mut();
        let keep = free.len() - self.unused.get().min(free.len());
        let freed = (free.len() - keep) * BLOCK_BYTES;
        free.drain(keep..).for_each(discard);
        self.unused.set(keep);
        freed
    }
}

fn discard(block: NonNull<u8>) {
    // SAFETY: blocks come from `take` alone, which allocates them with this layout, and a pool gives each away once.
    unsafe { dealloc(block.as_ptr(), BLOCK) }
}

impl Drop for FuturePool {
    fn drop(&mut self) {
        self.free.get_mut().drain(..).for_each(discard);
    }
}

/// A future on the heap, like `Pin<Box<dyn Future>>`, in a block of a pool where it fits.
pub(crate) struct Pooled<'a, T> {
    future: NonNull<dyn Future<Output = T> + 'a>,
    /// Whose block it is; `None`: in a box.
    pool: Option<&'a FuturePool>,
}

impl<'a, T> Pooled<'a, T> {
    /// Moves a future there.
    #[inline]
    pub(crate) fn new<F: Future<Output = T> + 'a>(pool: &'a FuturePool, future: F) -> Self {
        let layout = Layout::new::<F>();
        if layout.size() > BLOCK_BYTES || layout.align() > BLOCK_ALIGN {
            return Self { future: NonNull::from(Box::leak(Box::new(future))), pool: None };
        }
        let place = pool.take().cast::<F>();
        // SAFETY: the block is large enough, aligned for the future, and nobody else's.
        unsafe { place.write(future) };
        Self { future: place, pool: Some(pool) }
    }
}

impl<T> Future for Pooled<'_, T> {
    type Output = T;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        // SAFETY: the pointer is valid until this is dropped, only this has it, and the future stays where it is until it is dropped
        // there, whatever becomes of this.
        unsafe { Pin::new_unchecked(self.future.as_mut()) }.poll(context)
    }
}

impl<T> Drop for Pooled<'_, T> {
    fn drop(&mut self) {
        match self.pool {
            Some(pool) => {
                // SAFETY: the future is valid and dropped once, here; after that its block holds nothing. Should it panic, the block is
                // lost, and nothing else.
                unsafe { self.future.drop_in_place() };
                pool.give(self.future.cast());
            }
            // SAFETY: without a pool it was a box.
            None => drop(unsafe { Box::from_raw(self.future.as_ptr()) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, rc::Rc, task::Waker};

    use super::*;

    fn poll_once<T>(future: &mut Pooled<'_, T>) -> Poll<T> {
        Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    /// Pends once, keeps itself and so many bytes alive meanwhile.
    async fn waits<const N: usize>(of: Rc<u32>) -> u32 {
        let bytes = [7_u8; N];
        let mut has_waited = false;
        std::future::poll_fn(
            |_| if std::mem::replace(&mut has_waited, true) { Poll::Ready(()) } else { Poll::Pending },
        )
        .await;
        *of + bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>()
    }

    #[test]
    fn a_block_serves_one_future_after_another_and_each_is_dropped_once() {
        let (pool, counted) = (FuturePool::default(), Rc::new(1));
        let mut blocks = Vec::new();
        for _ in 0..3 {
            let mut future = Pooled::new(&pool, waits::<100>(Rc::clone(&counted)));
            assert_eq!(future.future.cast::<u8>().as_ptr() as usize % BLOCK_ALIGN, 0);
            blocks.push(future.future.cast::<u8>());
            assert_eq!(poll_once(&mut future), Poll::Pending);
            assert_eq!(Rc::strong_count(&counted), 2);
            assert_eq!(poll_once(&mut future), Poll::Ready(701));
            drop(future);
            // Also where it has not begun, and in its middle.
            drop(Pooled::new(&pool, waits::<100>(Rc::clone(&counted))));
            let mut left = Pooled::new(&pool, waits::<100>(Rc::clone(&counted)));
            assert_eq!(poll_once(&mut left), Poll::Pending);
            drop(left);
            assert_eq!(Rc::strong_count(&counted), 1);
        }
        assert!(blocks.iter().all(|block| *block == blocks[0]), "{blocks:?}");
    }

    #[test]
    fn what_does_not_fit_is_in_a_box_and_does_as_well() {
        let (pool, counted) = (FuturePool::default(), Rc::new(1));
        let mut large = Pooled::new(&pool, waits::<BLOCK_BYTES>(Rc::clone(&counted)));
        assert!(large.pool.is_none());
        assert_eq!(poll_once(&mut large), Poll::Pending);
        assert_eq!(poll_once(&mut large), Poll::Ready(1 + 7 * BLOCK_BYTES as u32));
        drop(large);
        assert_eq!((Rc::strong_count(&counted), pool.free.borrow().len()), (1, 0));
    }

    #[test]
    fn what_a_burst_needed_is_freed_once_it_is_over() {
        let pool = FuturePool::default();
        let burst: Vec<_> = (0..FUTURES_POOLED_MAX + 10).map(|_| Pooled::new(&pool, async {})).collect();
        drop(burst);
        assert_eq!(pool.free.borrow().len(), FUTURES_POOLED_MAX);
        assert_eq!(pool.sweep(), 0, "it was needed a moment ago");
        for _ in 0..3 {
            let mut one = pin!(Pooled::new(&pool, async { 5 }));
            assert_eq!(one.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(5));
        }
        assert_eq!(pool.sweep(), (FUTURES_POOLED_MAX - 1) * BLOCK_BYTES);
        assert_eq!((pool.sweep(), pool.sweep()), (BLOCK_BYTES, 0));
    }
}
