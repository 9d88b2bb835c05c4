//! Configuration: no text makes the reader panic, every complaint has a place in the text, and whatever is accepted
//! compiles to a table that a proxy accepts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshring_core::{id::Generation, snapshot};
use meshring_ctl::{
    compile::{self, NoDns},
    diagnostic::has_errors,
    source::{Cache, SourceFile, read_files},
    spec::World,
};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let path = if text.trim_start().starts_with(['{', '[']) { "fuzz.json" } else { "fuzz.yaml" };
    let reading = read_files(&[SourceFile { path: path.into(), text: text.into() }], &mut Cache::default());
    for diagnostic in &reading.diagnostics {
        assert!(!diagnostic.to_string().is_empty());
    }
    if has_errors(&reading.diagnostics) {
        return;
    }
    let (world, complaints) = World::assemble(reading.resources);
    if has_errors(&complaints) {
        return;
    }
    for diagnostic in world.analyze() {
        assert!(!diagnostic.to_string().is_empty());
    }
    let Ok(table) = compile::compile(&world, &NoDns) else { return };
    let bytes = snapshot::encode(&table).expect("an archive").to_bytes(Generation(1));
    if let Err(refused) = snapshot::Snapshot::from_bytes(&bytes) {
        panic!("control would publish a table that every proxy refuses: {refused}");
    }
});
