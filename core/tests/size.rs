//! What a large mesh costs: the size of its snapshot, the time to write and to prove it.
//!
//! The figures at full size, in a release build:
//! `cargo test --release -p meshring-core --test size -- --ignored --nocapture`

use std::{net::SocketAddr, time::Instant};

use meshring_core::{
    id::Generation,
    snapshot::{Snapshot, encode},
    table::{
        Table, TableBuilder,
        build::{ClusterEndpoints, VirtualHostInput},
        lookup::{Silent, Viewpoint},
        model::{BalancePolicy, ClusterKind, Route},
    },
};

/// The length of the host names that are measured, in bytes: `svc-of-a-team-12345.ns-45.svc.cluster.local`. Each byte of a
/// name costs three, since domain, cluster and origin hold it.
const HOST_BYTES: usize = 43;

fn name(service: u32) -> String {
    format!("svc-of-a-team-{service:05}")
}

/// So many services with one route and one cluster each, and ten endpoints per service, as a compiler writes them.
fn mesh(services: u32) -> Table {
    let mut builder = TableBuilder::new("cluster.local");
    for namespace in 0..100 {
        builder.namespace(&format!("ns-{namespace:02}"));
    }
    for service in 0..services {
        let namespace = service % 100;
        let name = name(service);
        let domain = format!("{name}.ns-{namespace:02}.svc.cluster.local");
        assert_eq!(domain.len(), HOST_BYTES);
        let address = |pod: u32| SocketAddr::from(((0x0a00_0000 + service * 10 + pod).to_be_bytes(), 8080));
        let (first, count) = builder.endpoints((0..10).map(|pod| (address(pod), 1)));
        let cluster = builder.cluster(
            &format!("outbound|8080||{domain}"),
            BalancePolicy::LeastRequest,
            ClusterKind::Static,
            ClusterEndpoints::Range { first, count },
        );
        let origin = builder.origin_in(&format!("Service ns-{namespace:02}/{name}"), "mesh.yaml", service + 1);
        let action = builder.forward([(cluster, 1, None)]).expect("a weight");
        let route = Route {
            name: String::new(),
            origin,
            rule: 0,
            line: 0,
            matches: Vec::new(),
            action,
            timeout_ms: 0,
            options: None,
        };
        builder.virtual_host(VirtualHostInput { domain, scope: None, port: 8080, origin, routes: vec![route] });
    }
    builder.finish().expect("a sound table")
}

/// The promise is 40 MB for 100,000 services, which is 400 bytes each with its endpoints.
const BYTES_PER_SERVICE_MAX: usize = 400;

#[test]
fn a_service_with_a_route_and_ten_endpoints_takes_at_most_400_bytes() {
    for services in [1_000, 5_000] {
        let bytes = encode(&mesh(services)).expect("an archive").len();
        let each = bytes / services as usize;
        assert!(each <= BYTES_PER_SERVICE_MAX, "{each} bytes per service at {services} services");
    }
}

#[test]
#[ignore = "takes seconds and some hundred megabytes; prints the figures of a full-size mesh"]
fn a_hundred_thousand_routes_and_a_million_endpoints_fit_40_mb() {
    let ms = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
    let begun = Instant::now();
    let table = mesh(100_000);
    println!("build: {:.0} ms", ms(begun));
    let begun = Instant::now();
    let encoded = encode(&table).expect("an archive");
    println!("serialise and checksum: {:.1} ms", ms(begun));
    let begun = Instant::now();
    let fd = encoded.seal(Generation(1)).expect("a memfd");
    println!("copy into a sealed memfd: {:.1} ms", ms(begun));
    let begun = Instant::now();
    let snapshot = Snapshot::open(fd).expect("a sound snapshot");
    println!("seals, checksum, bytecheck, validation: {:.1} ms", ms(begun));
    let megabytes = snapshot.len() as f64 / 1e6;
    let (routes, endpoints) = (snapshot.table().routes.len(), snapshot.table().endpoints.len());
    println!("{routes} routes, {endpoints} endpoints: {megabytes:.1} MB");
    assert_eq!((routes, endpoints), (100_000, 1_000_000));
    let viewpoint = Viewpoint::resolve(snapshot.table(), "ns-07", "client");
    assert!(snapshot.table().virtual_host(&viewpoint, name(99_907).as_bytes(), None, &mut Silent).is_ok());
    assert!(megabytes <= 40.0, "{megabytes:.1} MB");
}
