//! The control page: one memfd that control writes and every proxy maps read-only. It holds the number of the active
//! generation and a futex word that counts its changes.

#![allow(unsafe_code, reason = "atomics over shared memory; the invariants stand at each block")]

use std::{
    io,
    os::fd::OwnedFd,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use rustix::{io::Errno, thread::futex, time::Timespec};

use super::{
    publication::Active,
    region::{BadRegion, Region, SEALS_SINGLE_WRITER},
};
use crate::id::Generation;

const PAGE_BYTES: usize = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"MESHPAGE");

/// The page as laid out in memory. Both sides see the same struct; it is all atomics, since one process writes while
/// others read.
#[repr(C, align(64))]
#[derive(Debug)]
struct Layout {
    magic: AtomicU64,
    active: Active,
    changes: AtomicU32,
}

/// Control's end of the page.
#[derive(Debug)]
pub struct PageWriter {
    region: Region,
    fd: OwnedFd,
}

/// A proxy's end of the page. Cheap to share: it is a mapping.
#[derive(Debug)]
pub struct PageReader {
    region: Region,
}

fn layout(region: &Region) -> &Layout {
    // SAFETY: both constructors map exactly PAGE_BYTES >= size_of::<Layout>() at page alignment, any bit pattern is a
    // valid Layout, and all access goes through its atomics. The region outlives the reference.
    unsafe { region.start().cast::<Layout>().as_ref() }
}

impl PageWriter {
    /// A new page with `active` as the active generation.
    pub fn create(active: Generation) -> io::Result<Self> {
        let (fd, region) = Region::create("meshring-page", PAGE_BYTES)?;
        layout(&region).active.store(active);
        layout(&region).magic.store(MAGIC, Ordering::Release);
        Ok(Self { region, fd })
    }

    /// The descriptor to send to proxies: they can map it read-only and nothing else.
    #[must_use]
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Commits a generation: from now on each worker's next request runs on it. Wakes every waiting proxy.
    pub fn commit(&self, generation: Generation) {
        let page = layout(&self.region);
        page.active.store(generation);
        page.changes.fetch_add(1, Ordering::Release);
        // Nobody waiting is no error; every other error of FUTEX_WAKE is a bad address, which `layout` rules out.
        let _ = futex::wake(&page.changes, futex::Flags::empty(), i32::MAX as u32);
    }

    /// The active generation.
    #[must_use]
    pub fn active(&self) -> Generation {
        layout(&self.region).active.load()
    }
}

impl PageReader {
    /// Maps a page that control has sent.
    pub fn open(fd: &OwnedFd) -> Result<Self, BadRegion> {
        let size = PAGE_BYTES as u64;
        let region = Region::open(fd, SEALS_SINGLE_WRITER, size, size)?;
        if layout(&region).magic.load(Ordering::Acquire) != MAGIC {
            let source = io::Error::new(io::ErrorKind::InvalidData, "this is no control page of this version");
            return Err(BadRegion::System { call: "control page", source });
        }
        Ok(Self { region })
    }

    /// The word that workers load once per request.
    #[must_use]
    pub fn active(&self) -> &Active {
        &layout(&self.region).active
    }

    /// The number of changes so far: read it, look at `active`, then [`wait`](Self::wait) for another number.
    #[must_use]
    pub fn changes(&self) -> u32 {
        layout(&self.region).changes.load(Ordering::Acquire)
    }

    /// Blocks until the number of changes is no longer `seen`, or for `timeout`. May return early.
    pub fn wait(&self, seen: u32, timeout: Duration) {
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        let word = &layout(&self.region).changes;
        match futex::wait(word, futex::Flags::empty(), seen, Some(&timeout)) {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => {}
            // A kernel that refuses to wait on a read-only shared mapping: fall back to the caller's own polling.
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

#[cfg(test)]
mod tests;
