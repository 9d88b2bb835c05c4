//! Snapshots: arbitrary bytes are refused or readable to the last index; so are archives with a checksum that fits.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use meshring_core::{
    id::Generation,
    snapshot::{
        Snapshot,
        layout::{HEADER_BYTES, Header},
    },
};
use meshring_fuzz::mesh;

// The first byte says what the rest is: a file, an archive without header, or changes to a good archive.
fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else { return };
    let bytes = match kind % 3 {
        0 => rest.to_vec(),
        1 => sealed(rest),
        _ => sealed(&changed(rest)),
    };
    if let Ok(snapshot) = Snapshot::from_bytes(&bytes) {
        assert!(mesh::walk(&snapshot) > 0);
    }
});

fn sealed(archive: &[u8]) -> Vec<u8> {
    [&Header::of(Generation(1), archive).encode()[..], archive].concat()
}

/// Each four bytes of input are a position from the end (the root is there), a way and a value.
fn changed(changes: &[u8]) -> Vec<u8> {
    static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
    let mut archive = GOOD.get_or_init(|| mesh::bytes()[HEADER_BYTES..].to_vec()).clone();
    let len = archive.len();
    for change in changes.chunks_exact(4) {
        let at = len - 1 - usize::from(u16::from_le_bytes([change[0], change[1]])) % len;
        archive[at] = match change[2] % 3 {
            0 => change[3],
            1 => archive[at].wrapping_add(change[3]),
            _ => archive[at] ^ (1 << (change[3] % 8)),
        };
    }
    archive
}
