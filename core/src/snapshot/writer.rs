//! Control's side: a table becomes bytes, bytes become a sealed memfd.

use std::{io, os::fd::OwnedFd};

use rkyv::{rancor::Error, util::AlignedVec};

use super::{layout::Header, region};
use crate::{id::Generation, table::Table};

/// A serialised table without its generation number, so that an unchanged configuration can be told by its checksum
/// before a number is spent on it.
#[derive(Debug)]
pub struct Encoded {
    archive: AlignedVec,
    checksum: u64,
}

/// Serialises a table. The error is out of memory or a table beyond the archive's 2 GiB of relative pointers.
pub fn encode(table: &Table) -> Result<Encoded, Error> {
    let archive = rkyv::to_bytes::<Error>(table)?;
    let checksum = super::layout::checksum(&archive);
    Ok(Encoded { archive, checksum })
}

impl Encoded {
    /// Identifies the content.
    #[must_use]
    pub fn checksum(&self) -> u64 {
        self.checksum
    }

    /// Bytes of header and archive.
    #[must_use]
    pub fn len(&self) -> usize {
        super::layout::HEADER_BYTES + self.archive.len()
    }

    /// Whether there is nothing in it; never, since even an empty table has a root.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.archive.is_empty()
    }

    /// The header of this content as a generation.
    #[must_use]
    pub fn header(&self, generation: Generation) -> Header {
        Header { layout: super::layout::LAYOUT, generation, length: self.archive.len() as u64, checksum: self.checksum }
    }

    /// The sealed memfd of this content as a generation.
    pub fn seal(&self, generation: Generation) -> io::Result<OwnedFd> {
        region::sealed("meshring-snapshot", &[&self.header(generation).encode(), &self.archive])
    }

    /// The same bytes as a file's content, for tests and tools.
    #[must_use]
    pub fn to_bytes(&self, generation: Generation) -> Vec<u8> {
        [&self.header(generation).encode()[..], &self.archive].concat()
    }
}
