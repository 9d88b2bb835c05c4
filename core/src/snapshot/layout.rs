//! The 64 bytes before the archive. Little endian, fixed offsets, no padding: every bit of the file is either covered
//! by a checksum or is one.

use crate::id::Generation;

/// `MESHRING` in ASCII.
pub const MAGIC: [u8; 8] = *b"MESHRING";
/// Bytes of the header; the archive follows and is as aligned as the mapping.
pub const HEADER_BYTES: usize = 64;

/// Counted up with each change of the archived types that sizes alone do not show.
const REVISION: u64 = 6;

/// Identifies what the archive's bytes mean: the revision and the sizes of the archived types. A proxy refuses any
/// other value, so that control and proxies of different builds never misread each other.
pub const LAYOUT: u64 = {
    use crate::table::{model as m, tcp as t};
    let sizes = [
        REVISION,
        size_of::<m::ArchivedTable>() as u64,
        size_of::<m::ArchivedDomain>() as u64,
        size_of::<m::ArchivedOrigin>() as u64,
        size_of::<m::ArchivedVirtualHost>() as u64,
        size_of::<m::ArchivedRoute>() as u64,
        size_of::<m::ArchivedCondition>() as u64,
        size_of::<m::ArchivedDestination>() as u64,
        size_of::<m::ArchivedCluster>() as u64,
        size_of::<m::ArchivedEndpoint>() as u64,
        size_of::<m::ArchivedWorkload>() as u64,
        size_of::<m::ArchivedSettings>() as u64,
        size_of::<m::ArchivedHeavyWeight>() as u64,
        size_of::<t::ArchivedTcpService>() as u64,
        size_of::<t::ArchivedTcpRoute>() as u64,
        size_of::<t::ArchivedTcpAddress>() as u64,
    ];
    // FNV-1a over the words: const, and collisions do not matter for a handful of builds.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut at = 0;
    while at < sizes.len() {
        hash = (hash ^ sizes[at]).wrapping_mul(0x0000_0100_0000_01b3);
        at += 1;
    }
    hash
};

/// What stands before the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// See [`LAYOUT`].
    pub layout: u64,
    /// Which generation this is.
    pub generation: Generation,
    /// Bytes of the archive.
    pub length: u64,
    /// XXH3 of the archive: identifies a configuration's content across restarts of control.
    pub checksum: u64,
}

/// A header that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// Not one of ours.
    #[error("does not start with MESHRING: this is no snapshot")]
    Magic,
    /// The header's own checksum does not fit.
    #[error("header is corrupt")]
    Corrupt,
    /// Another build's.
    #[error("layout {found:016x} is not ours ({LAYOUT:016x}): control and proxy are of different versions")]
    Layout {
        /// What the header says.
        found: u64,
    },
}

impl Header {
    /// For an archive.
    #[must_use]
    pub fn of(generation: Generation, archive: &[u8]) -> Self {
        Self { layout: LAYOUT, generation, length: archive.len() as u64, checksum: checksum(archive) }
    }

    /// The bytes in the file. Reserved words are 0 and covered by the header's checksum.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let words = [u64::from_le_bytes(MAGIC), self.layout, self.generation.0, self.length, self.checksum];
        for (target, word) in bytes.chunks_exact_mut(8).zip(words) {
            target.copy_from_slice(&word.to_le_bytes());
        }
        let own = checksum(&bytes[..HEADER_BYTES - 8]);
        bytes[HEADER_BYTES - 8..].copy_from_slice(&own.to_le_bytes());
        bytes
    }

    /// Reads the bytes in the file.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, BadHeader> {
        let mut words = [0_u64; HEADER_BYTES / 8];
        for (word, source) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            let mut raw = [0; 8];
            raw.copy_from_slice(source);
            *word = u64::from_le_bytes(raw);
        }
        let [magic, layout, generation, length, archive_checksum, _, _, own] = words;
        if magic.to_le_bytes() != MAGIC {
            return Err(BadHeader::Magic);
        }
        if own != checksum(&bytes[..HEADER_BYTES - 8]) {
            return Err(BadHeader::Corrupt);
        }
        if layout != LAYOUT {
            return Err(BadHeader::Layout { found: layout });
        }
        Ok(Self { layout, generation: Generation(generation), length, checksum: archive_checksum })
    }
}

/// XXH3-64: 36 MB in about 3 ms; it guards against corruption, not against malice (the unix socket does that).
#[must_use]
pub fn checksum(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}
