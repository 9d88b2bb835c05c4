//! Memory that the allocator keeps.

#![allow(unsafe_code, reason = "malloc_trim(3), for which there is no safe crate")]

/// Gives the pages of freed memory back to the kernel: the allocator keeps those that lie between what is in use, so that a burst
/// would be remembered for good. It looks at all of its memory, about a millisecond for each 10 MB, so it is for quiet times.
pub(super) fn give_back() {
    // SAFETY: malloc_trim has no precondition; it may be called from any thread at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
