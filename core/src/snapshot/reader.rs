//! A proxy's side: prove a memfd sound, then read it without further checks.

#![allow(
    unsafe_code,
    reason = "reads a validated archive without re-validating it; the invariant stands at each block"
)]

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::{fd::AsFd, unix::fs::OpenOptionsExt as _},
    path::Path,
};

use rkyv::rancor::Error;

use super::{
    layout::{BadHeader, HEADER_BYTES, Header, checksum},
    region::{self, BadRegion, Region, SEALS_IMMUTABLE},
};
use crate::{
    id::Generation,
    limits::SNAPSHOT_BYTES_MAX,
    table::{
        ArchivedTable,
        regexes::{RegexError, Regexes},
        validate::{Invalid, validate},
    },
};

/// Why a snapshot is not used. The running generation goes on.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Not sealed, or of an impossible size.
    #[error(transparent)]
    Region(#[from] BadRegion),
    /// No header of ours.
    #[error(transparent)]
    Header(#[from] BadHeader),
    /// The file is longer or shorter than the header says.
    #[error("{actual} bytes behind the header, which says {declared}: cut short or extended")]
    Length {
        /// Bytes there.
        actual: u64,
        /// Bytes declared.
        declared: u64,
    },
    /// The archive's bytes were changed.
    #[error("checksum {actual:016x}, header says {declared:016x}: corrupt")]
    Checksum {
        /// Of the bytes.
        actual: u64,
        /// In the header.
        declared: u64,
    },
    /// Another generation than the one announced.
    #[error("holds generation {actual}, announced was {announced}")]
    Generation {
        /// In the header.
        actual: Generation,
        /// In the message.
        announced: Generation,
    },
    /// Not a valid archive.
    #[error("structure: {0}")]
    Structure(String),
    /// A valid archive of an impossible table.
    #[error("meaning: {0}")]
    Meaning(#[from] Invalid),
    /// A pattern does not compile within the bound.
    #[error(transparent)]
    Regex(#[from] RegexError),
    /// The file with the last good snapshot cannot be read.
    #[error("{0}")]
    File(#[source] io::Error),
}

/// A proved snapshot: mapped, immutable, its regexes compiled.
#[derive(Debug)]
pub struct Snapshot {
    region: Region,
    header: Header,
    regexes: Regexes,
}

impl Snapshot {
    /// Proves and maps a memfd.
    pub fn open(fd: impl AsFd) -> Result<Self, Refused> {
        let region = Region::open(fd, SEALS_IMMUTABLE, HEADER_BYTES as u64, SNAPSHOT_BYTES_MAX)?;
        // SAFETY: opened with SEALS_IMMUTABLE just above.
        let bytes = unsafe { region.bytes() };
        let (header, archive) = split(bytes)?;
        let table = rkyv::access::<ArchivedTable, Error>(archive)
            .map_err(|error| Refused::Structure(error.to_string().replace('\n', "; ")))?;
        validate(table)?;
        let regexes = Regexes::compile(table)?;
        Ok(Self { region, header, regexes })
    }

    /// Reads a file into a sealed memfd and proves it like any other: the file itself could be cut under our feet.
    pub fn load(path: &Path) -> Result<Self, Refused> {
        let size = fs::metadata(path).map_err(Refused::File)?.len();
        if size > SNAPSHOT_BYTES_MAX {
            return Err(BadRegion::Size { actual: size, min: HEADER_BYTES as u64, max: SNAPSHOT_BYTES_MAX }.into());
        }
        let bytes = fs::read(path).map_err(Refused::File)?;
        Self::from_bytes(&bytes)
    }

    /// As [`load`](Self::load), from memory.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Refused> {
        let fd = region::sealed("meshring-snapshot", &[bytes]).map_err(Refused::File)?;
        Self::open(fd)
    }

    /// Stores it where [`load`](Self::load) finds it; atomically, so that a crash leaves the old or the new one. Other users cannot
    /// read it: it says what is in the mesh.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension("tmp");
        // One that a crash has left has the mode that it was made with.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(self.bytes())?;
        fs::rename(&temporary, path)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `open` has opened the region with SEALS_IMMUTABLE.
        unsafe { self.region.bytes() }
    }

    /// Its number.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.header.generation
    }

    /// Identifies its content.
    #[must_use]
    pub fn checksum(&self) -> u64 {
        self.header.checksum
    }

    /// Bytes of shared memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.region.len()
    }

    /// Whether nothing is in it; never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.region.is_empty()
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> &ArchivedTable {
        // SAFETY: `open` has run bytecheck over these very bytes, and the seals keep them as they were.
        unsafe { rkyv::access_unchecked::<ArchivedTable>(&self.bytes()[HEADER_BYTES..]) }
    }

    /// The table's patterns, compiled. Clone them per worker.
    #[must_use]
    pub fn regexes(&self) -> &Regexes {
        &self.regexes
    }
}

fn split(bytes: &[u8]) -> Result<(Header, &[u8]), Refused> {
    let Some((head, archive)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(Refused::Length { actual: bytes.len() as u64, declared: HEADER_BYTES as u64 });
    };
    let header = Header::decode(head)?;
    if header.length != archive.len() as u64 {
        return Err(Refused::Length { actual: archive.len() as u64, declared: header.length });
    }
    let actual = checksum(archive);
    if actual != header.checksum {
        return Err(Refused::Checksum { actual, declared: header.checksum });
    }
    Ok((header, archive))
}
