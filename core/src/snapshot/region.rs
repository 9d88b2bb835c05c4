//! Sealed memfds and their mappings.

#![allow(unsafe_code, reason = "mmap; the invariants stand at each block")]

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    ptr::NonNull,
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create},
    io::pread,
    mm::{MapFlags, ProtFlags, mmap, munmap},
};

use crate::secret::SecretBytes;

/// Seals of a snapshot: nobody, control included, can change or cut it any more.
pub const SEALS_IMMUTABLE: SealFlags =
    SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);
/// Seals of a page that its creator alone goes on writing through the mapping that it already has (Linux 5.1).
pub const SEALS_SINGLE_WRITER: SealFlags =
    SealFlags::FUTURE_WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// A mapping of a whole memfd, unmapped on drop.
#[derive(Debug)]
pub struct Region {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a Region is plain memory. Read-only ones are immutable (seals), and writable ones are only reached through
// atomics by the modules `page` and `stats`, so moving or sharing it between threads adds no access of its own.
unsafe impl Send for Region {}
// SAFETY: as above: `&Region` gives bytes of sealed memory or a raw pointer that only atomics are made of.
unsafe impl Sync for Region {}

/// A descriptor that must not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum BadRegion {
    /// No memfd, or a system call failed.
    #[error("{call}: {source}")]
    System {
        /// Which call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// Somebody could still change or cut the memory under our feet.
    #[error("the memory is not sealed: a writer could change it or cut it short")]
    NotSealed,
    /// Out of the range that the caller accepts.
    #[error("{actual} bytes, expected {min} to {max}")]
    Size {
        /// What it has.
        actual: u64,
        /// Least accepted.
        min: u64,
        /// Most accepted.
        max: u64,
    },
}

fn system(call: &'static str) -> impl FnOnce(rustix::io::Errno) -> BadRegion {
    move |errno| BadRegion::System { call, source: errno.into() }
}

/// A memfd with this content, sealed for good.
pub fn sealed(name: &str, parts: &[&[u8]]) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    for part in parts {
        file.write_all(part)?;
    }
    let fd = OwnedFd::from(file);
    fcntl_add_seals(&fd, SEALS_IMMUTABLE)?;
    Ok(fd)
}

/// The content of a memfd that nobody can change any more, at most `bytes_max` bytes, without mapping it: it may be a key.
pub fn read_sealed(fd: impl AsFd, bytes_max: usize) -> Result<SecretBytes, BadRegion> {
    let present = fcntl_get_seals(&fd).map_err(system("fcntl(F_GET_SEALS)"))?;
    if !present.contains(SEALS_IMMUTABLE) {
        return Err(BadRegion::NotSealed);
    }
    let actual = fstat(&fd).map_err(system("fstat"))?.st_size.unsigned_abs();
    if actual > bytes_max as u64 {
        return Err(BadRegion::Size { actual, min: 0, max: bytes_max as u64 });
    }
    let mut bytes = SecretBytes::zeroed(actual as usize);
    let mut read = 0;
    while read < bytes.len() {
        // Positioned: the sender's own offset, which the descriptor shares, does not matter.
        match pread(&fd, &mut bytes[read..], read as u64).map_err(system("pread"))? {
            0 => return Err(BadRegion::Size { actual: read as u64, min: actual, max: actual }),
            count => read += count,
        }
    }
    Ok(bytes)
}

impl Region {
    /// Creates a zeroed memfd of `len` bytes and maps it writable. With `SEALS_SINGLE_WRITER` this mapping stays the
    /// only writable one that can ever exist.
    pub fn create(name: &str, len: usize) -> io::Result<(OwnedFd, Self)> {
        let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        let region = Self::map(&fd, len, ProtFlags::READ | ProtFlags::WRITE)?;
        fcntl_add_seals(&fd, SEALS_SINGLE_WRITER)?;
        Ok((fd, region))
    }

    /// Maps a received memfd read-only after proving that it carries `seals` and that its size is within bounds.
    pub fn open(fd: impl AsFd, seals: SealFlags, size_min: u64, size_max: u64) -> Result<Self, BadRegion> {
        let present = fcntl_get_seals(&fd).map_err(system("fcntl(F_GET_SEALS)"))?;
        if !present.contains(seals) {
            return Err(BadRegion::NotSealed);
        }
        // Seals first, size second: a sealed size cannot change between this check and the mapping.
        let actual = fstat(&fd).map_err(system("fstat"))?.st_size.unsigned_abs();
        if actual < size_min || actual > size_max {
            return Err(BadRegion::Size { actual, min: size_min, max: size_max });
        }
        Self::map(&fd, actual as usize, ProtFlags::READ).map_err(system("mmap"))
    }

    fn map(fd: impl AsFd, len: usize, protection: ProtFlags) -> rustix::io::Result<Self> {
        // SAFETY: a fresh shared mapping at an address of the kernel's choice aliases no Rust object. Its length is
        // the file's: GROW and SHRINK are sealed (by `create` below, by the check in `open`), so no access can SIGBUS.
        let start = unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, fd, 0)? };
        let start = NonNull::new(start.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Self { start, len })
    }

    /// Bytes mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is mapped; never, since the kernel refuses such mappings.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first byte; for the modules that build atomics over a page.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The content of an immutable region.
    ///
    /// # Safety
    /// The region was opened with [`SEALS_IMMUTABLE`], so that nobody writes while the slice lives.
    pub(crate) unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is `len` bytes long and lives as long as `self`; the caller keeps the rest.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` are of one mmap call, and no reference outlives `self`. An error would mean that
        // they are not, and there is nothing to be done about it here.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests;
