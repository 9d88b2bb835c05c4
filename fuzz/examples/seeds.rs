//! Writes the seeds of the target `snapshot`, which a change of the archived types makes stale: from `fuzz/`,
//! `cargo run --example seeds`.

use std::fs;

use meshring_core::snapshot::layout::HEADER_BYTES;

fn main() -> std::io::Result<()> {
    let good = meshring_fuzz::mesh::bytes();
    fs::create_dir_all("corpus/snapshot")?;
    fs::write("corpus/snapshot/file", [&[0], &good[..]].concat())?;
    fs::write("corpus/snapshot/archive", [&[1], &good[HEADER_BYTES..]].concat())?;
    fs::write("corpus/snapshot/changes", [2, 0, 0, 0, 1, 64, 0, 1, 1, 128, 0, 2, 3])
}
