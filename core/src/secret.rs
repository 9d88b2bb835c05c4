//! Memory for private keys: wiped when it is given back, and never part of a core dump.
//!
//! What a TLS library makes of a key lies on its own heap, so [`core_dumps`] goes with it.

#![allow(unsafe_code, reason = "mmap and madvise; the invariants stand at each block")]

pub mod core_dumps;

use std::{
    alloc::{Layout, handle_alloc_error},
    fmt,
    io::{self, Read, Write},
    ops::{Deref, DerefMut},
    ptr::{self, NonNull},
    slice,
};

use rustix::{
    mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap},
    param::page_size,
};
use zeroize::Zeroize;

/// Bytes on pages of their own, which the kernel leaves out of core dumps (MADV_DONTDUMP, madvise(2)) and which are wiped before
/// they are given back. A page at least, so it is for keys and for what is read or written of them, not for every small text.
///
/// It grows as a vector does, and wipes what it leaves. Without memory the process ends, as with any allocation.
#[derive(Default)]
pub struct SecretBytes(Option<Pages>, usize);

/// A private mapping of whole pages, all of it zero or a secret.
struct Pages {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone, and is reached through borrows of it only.
unsafe impl Send for Pages {}
// SAFETY: likewise; a shared borrow only reads.
unsafe impl Sync for Pages {}

impl Pages {
    fn new(bytes: usize) -> Self {
        let len = bytes.next_multiple_of(page_size());
        Self::map(len).unwrap_or_else(|_| handle_alloc_error(Layout::new::<[u8; 4096]>()))
    }

    fn map(len: usize) -> rustix::io::Result<Self> {
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)? };
        let pages = Self { start: NonNull::new(start.cast()).ok_or(rustix::io::Errno::NOMEM)?, len };
        // SAFETY: the range is the mapping above; the advice changes nothing that a program can see.
        unsafe { madvise(start, len, Advice::LinuxDontDump)? };
        Ok(pages)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `start` and `len` are those of a readable mapping of zeros or what was written since, which lives until the drop.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; the mapping can be written, and `&mut self` is the only borrow.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        // SAFETY: the mapping is ours, and nothing borrows it any more. That it fails is impossible for a whole mapping; if it
        // does, zeros stay behind.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

impl SecretBytes {
    /// Room for so many bytes, none of which is used.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self((bytes > 0).then(|| Pages::new(bytes)), 0)
    }

    /// So many zeros.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        Self { 1: len, ..Self::with_capacity(len) }
    }

    /// Everything that is left to read, at most `bytes_max` bytes.
    ///
    /// # Errors
    /// Reading fails, or there is more.
    pub fn read_from(mut source: impl Read, bytes_max: usize) -> io::Result<Self> {
        let mut bytes = Self::zeroed(page_size().min(bytes_max.saturating_add(1)));
        let mut read = 0;
        loop {
            if read == bytes.len() {
                let mut more = Self::zeroed(read.saturating_mul(2).min(bytes_max.saturating_add(1)));
                more[..read].copy_from_slice(&bytes);
                bytes = more;
            }
            match source.read(&mut bytes[read..]) {
                Ok(0) => break,
                Ok(count) => read += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if read > bytes_max {
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("is longer than {bytes_max} bytes")));
            }
        }
        bytes.1 = read;
        Ok(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self
    }

    /// Appends bytes.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let (used, needed) = (self.1, self.1 + bytes.len());
        if self.0.as_ref().map_or(0, |pages| pages.len) < needed {
            let mut larger = Self::with_capacity(needed.max(used * 2));
            larger.put(0, self);
            *self = larger;
        }
        self.put(used, bytes);
    }

    /// `at` and what comes there are within the pages.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(pages) = &mut self.0 {
            pages.bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        }
        self.1 = at + bytes.len();
    }

    /// Appends a byte.
    pub fn push(&mut self, byte: u8) {
        self.extend_from_slice(&[byte]);
    }
}

impl Deref for SecretBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |pages| &pages.bytes()[..self.1])
    }
}

impl DerefMut for SecretBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_mut().map_or(&mut [], |pages| &mut pages.bytes_mut()[..self.1])
    }
}

impl AsRef<[u8]> for SecretBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<&[u8]> for SecretBytes {
    fn from(bytes: &[u8]) -> Self {
        let mut secret = Self::with_capacity(bytes.len());
        secret.put(0, bytes);
        secret
    }
}

impl From<Vec<u8>> for SecretBytes {
    /// Wipes the vector.
    fn from(mut bytes: Vec<u8>) -> Self {
        let secret = Self::from(bytes.as_slice());
        bytes.zeroize();
        secret
    }
}

impl Clone for SecretBytes {
    fn clone(&self) -> Self {
        Self::from(&**self)
    }
}

impl PartialEq for SecretBytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for SecretBytes {}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes(..)")
    }
}

impl Write for SecretBytes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
