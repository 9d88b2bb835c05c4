//! Memory that the allocator keeps.

#![allow(unsafe_code, reason = "malloc_trim(3), for which there is no safe crate")]

use std::sync::atomic::{AtomicU64, Ordering};

use super::deadlines::now_ms;
use meshring_core::limits::TRIM_INTERVAL_MS_MIN;

/// Gives the pages of freed memory back to the kernel: the allocator keeps those that lie between what is in use, so that a burst
/// would be remembered for good. It looks at all of its memory, about a millisecond for each 10 MB, so it is for quiet times. Whether it was
/// done: not soon after another time.
pub(super) fn give_back() -> bool {
    // It locks the memory of every thread in turn: a client that makes one worker burst again and again must not slow the others.
    static LAST_MS: AtomicU64 = AtomicU64::new(0);
    let now = now_ms();
    let last = LAST_MS.load(Ordering::Relaxed);
    if last != 0 && now < last + TRIM_INTERVAL_MS_MIN
        || LAST_MS.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_err()
    {
        return false;
    }
    // SAFETY: malloc_trim has no precondition; it may be called from any thread at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
    true
}
