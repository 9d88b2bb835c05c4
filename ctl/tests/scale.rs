//! How long a large mesh takes from the model to the snapshot: `cargo test --release -p meshring-ctl --test scale --
//! --ignored --nocapture`.
#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what it calls")]

use std::{fmt::Write, time::Instant};

use meshring_core::snapshot::writer;
use meshring_ctl::{
    compile::{NoDns, compile},
    source::{Cache, SourceFile, read_files},
    spec::World,
};

const SERVICES: usize = 100_000;
const ENDPOINTS_EACH: usize = 10;
const FILES: usize = 8;

/// One of the files: services with an EndpointSlice and a VirtualService each.
fn file(index: usize) -> SourceFile {
    let mut text = String::new();
    for id in (0..SERVICES).filter(|id| id % FILES == index) {
        write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: svc-{id}\nspec:\n  ports:\n  - name: http\n    port: 80\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: svc-{id}\n  labels:\n    \
             kubernetes.io/service-name: svc-{id}\naddressType: IPv4\nports:\n- name: http\n  port: 8080\nendpoints:\n"
        )
        .unwrap();
        for endpoint in 0..ENDPOINTS_EACH {
            let number = id * ENDPOINTS_EACH + endpoint;
            let [_, a, b, c] = (number as u32).to_be_bytes();
            writeln!(text, "- addresses:\n  - 10.{a}.{b}.{c}\n  conditions:\n    ready: true").unwrap();
        }
        write!(
            text,
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: svc-{id}\nspec:\n  hosts:\n  - svc-{id}\n  \
             http:\n  - route:\n    - destination:\n        host: svc-{id}\n"
        )
        .unwrap();
    }
    SourceFile { path: format!("{index}.yaml").into(), text: text.into() }
}

#[test]
#[ignore = "takes a minute in a debug build; prints what a release build takes"]
fn a_hundred_thousand_services_with_a_million_endpoints() {
    let mut files: Vec<_> = (0..FILES).map(file).collect();
    let bytes: usize = files.iter().map(|file| file.text.len()).sum();
    let mut cache = Cache::default();
    let timed = |what: &str, begin: Instant| println!("{what:<40} {:>8.1} ms", begin.elapsed().as_secs_f64() * 1e3);

    let begin = Instant::now();
    let reading = read_files(&files, &mut cache);
    timed(&format!("read {} MB of YAML", bytes / 1_000_000), begin);
    assert_eq!((reading.resources.len(), reading.diagnostics.len()), (3 * SERVICES, 0));
    files[3].text = files[3].text.replace("host: svc-3\n", "host: svc-3\n      weight: 50\n").into();
    let begin = Instant::now();
    let reading = read_files(&files, &mut cache);
    timed("read again, one rule changed", begin);

    let whole = Instant::now();
    let (world, diagnostics) = World::assemble(reading.resources);
    timed("assemble", whole);
    assert_eq!(diagnostics, []);
    let begin = Instant::now();
    assert_eq!(world.analyze(), []);
    timed("analyze", begin);
    let begin = Instant::now();
    let table = compile(&world, &NoDns).unwrap();
    timed("compile", begin);
    let begin = Instant::now();
    let encoded = writer::encode(&table).unwrap();
    timed("encode", begin);
    timed("from the model to the snapshot", whole);
    println!("{:<40} {:>8.1} MB", "snapshot", encoded.len() as f64 / 1e6);
    assert_eq!((table.virtual_hosts.len(), table.endpoints.len()), (SERVICES, SERVICES * ENDPOINTS_EACH));
}
