//! A snapshot is what was written, or it is refused: changed, cut, foreign or of the future.

use std::fs;

use super::{
    Encoded, Refused, Snapshot, encode,
    layout::{BadHeader, HEADER_BYTES, Header, LAYOUT, MAGIC, checksum},
    region::BadRegion,
};
use crate::{
    id::{ClusterId, EndpointId, Generation, OriginId, RouteId, VirtualHostId},
    limits::SNAPSHOT_BYTES_MAX,
    table::{
        TableBuilder,
        build::{ClusterEndpoints, VirtualHostInput},
        lookup::{RequestView, Silent, Viewpoint},
        model::{ArchivedAction, BalancePolicy, ClusterKind, Condition, Match, Route, StringMatch},
        regexes::anchored,
    },
};

/// A small generator of our own (SplitMix64): the same bytes in each run, no dependency on a version.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// A table of the kind that an ordinary mesh has.
fn mesh() -> Encoded {
    let mut builder = TableBuilder::new("cluster.local");
    let namespace = builder.namespace("default");
    builder.workload(namespace, "productpage", vec![("app".into(), "productpage".into())]);
    let pattern = builder.regex(&anchored("/v[0-9]+"));
    for service in 0..4_u8 {
        let domain = format!("s{service}.default.svc.cluster.local");
        let addresses = (1..4_u8).map(|last| (std::net::SocketAddr::from(([10, 0, service, last], 8080)), 1));
        let v6 = (std::net::SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(service)], 8080)), 2);
        let (first, count) = builder.endpoints(addresses.chain([v6]));
        let mut cluster =
            |name: &str, endpoints| builder.cluster(name, BalancePolicy::LeastRequest, ClusterKind::Static, endpoints);
        let whole = cluster("whole", ClusterEndpoints::Range { first, count });
        let subset = cluster("subset", ClusterEndpoints::Selection(&[first, EndpointId(first.0 + 3)]));
        let origin = builder.origin(&domain);
        let action = builder.forward([(whole, 80, None), (subset, 20, None)]).expect("weights");
        let matches =
            vec![Match { name: String::new(), line: 1, conditions: vec![Condition::Uri(StringMatch::Regex(pattern))] }];
        let route = Route { name: "r".into(), origin, rule: 0, line: 1, matches, action, timeout_ms: 0, options: None };
        let routes = vec![route.clone(), Route { matches: Vec::new(), ..route }];
        builder.virtual_host(VirtualHostInput { domain, scope: None, port: 80, origin, routes });
    }
    encode(&builder.finish().expect("a sound table")).expect("an archive")
}

struct Any;

impl RequestView for Any {
    fn method(&self) -> &[u8] {
        b"GET"
    }
    fn scheme(&self) -> &[u8] {
        b"http"
    }
    fn authority(&self) -> &[u8] {
        b"s0"
    }
    fn path(&self) -> &[u8] {
        b"/v1"
    }
    fn query(&self) -> Option<&[u8]> {
        None
    }
    fn any_header(&self, _name: &str, predicate: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        predicate(b"x")
    }
}

/// Reads whatever a proxy could ever read of a snapshot; returns how much that was.
fn walk(snapshot: &Snapshot) -> usize {
    let table = snapshot.table();
    let viewpoint = Viewpoint::resolve(table, "default", "productpage");
    let mut read = viewpoint.labels.len() + format!("{table:?}").len();
    for name in ["s0", "s1.default", "s2.default.svc.cluster.local", "x.example.com"] {
        if let Ok(id) = table.virtual_host(&viewpoint, name.as_bytes(), None, &mut Silent) {
            read += usize::from(table.route(snapshot.regexes(), &viewpoint, id, &Any, None, &mut Silent).is_ok());
        }
    }
    for index in 0..table.virtual_hosts.len() as u32 {
        let (id, host) = (VirtualHostId(index), &table.virtual_hosts[index as usize]);
        read += table.origin(OriginId::from(&host.origin)).len();
        read += usize::from(table.route(snapshot.regexes(), &viewpoint, id, &Any, Some(80), &mut Silent).is_ok());
    }
    for index in 0..table.routes.len() as u32 {
        let route = &table.routes[RouteId(index).index()];
        if let ArchivedAction::Forward { first, count, .. } = &route.action {
            let first = first.to_native() as usize;
            for destination in &table.destinations[first..first + count.to_native() as usize] {
                read += table.cluster(ClusterId::from(&destination.cluster)).name.len();
            }
        }
    }
    for cluster in table.clusters.iter() {
        for position in 0..cluster.count.to_native() {
            read += usize::from(table.address(table.endpoint_of(cluster, position)).port());
        }
    }
    read
}

/// The bytes with a header that fits whatever the archive has become.
fn resealed(bytes: &[u8]) -> Vec<u8> {
    let archive = &bytes[HEADER_BYTES..];
    [&Header::of(Generation(1), archive).encode()[..], archive].concat()
}

#[test]
fn what_control_writes_is_what_a_proxy_reads() {
    let encoded = mesh();
    let snapshot = Snapshot::open(encoded.seal(Generation(42)).expect("a memfd")).expect("a sound snapshot");
    assert_eq!(snapshot.generation(), Generation(42));
    assert_eq!(snapshot.checksum(), encoded.checksum());
    assert_eq!(snapshot.len(), encoded.len());
    assert!(!snapshot.is_empty() && !encoded.is_empty());
    assert_eq!(snapshot.table().endpoints.len(), 16);
    assert!(walk(&snapshot) > 1000);
}

#[test]
fn the_number_of_a_generation_is_no_part_of_its_content() {
    let encoded = mesh();
    let (one, two) = (encoded.to_bytes(Generation(1)), encoded.to_bytes(Generation(2)));
    assert_ne!(one, two);
    assert_eq!(one[HEADER_BYTES..], two[HEADER_BYTES..]);
    let checksums = [one, two].map(|bytes| Snapshot::from_bytes(&bytes).expect("sound").checksum());
    assert_eq!(checksums, [encoded.checksum(); 2]);
}

#[test]
fn a_header_survives_its_encoding() {
    let header = Header { layout: LAYOUT, generation: Generation(u64::MAX), length: 12, checksum: 0xdead };
    assert_eq!(Header::decode(&header.encode()), Ok(header));
    assert_eq!(&header.encode()[..8], b"MESHRING");
}

#[test]
fn ten_thousand_flipped_bits_are_all_refused() {
    let good = mesh().to_bytes(Generation(1));
    assert!(Snapshot::from_bytes(&good).is_ok());
    let mut numbers = Numbers(1);
    let mut bytes = good.clone();
    for _ in 0..10_000 {
        let bit = numbers.below(good.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Snapshot::from_bytes(&bytes).is_err(), "bit {bit} was flipped unnoticed");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(bytes, good);
}

#[test]
fn every_bit_of_the_header_counts() {
    let good = mesh().to_bytes(Generation(1));
    for bit in 0..HEADER_BYTES * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(Snapshot::from_bytes(&bytes), Err(Refused::Header(_))), "bit {bit}");
    }
}

#[test]
fn every_truncation_and_extension_is_refused() {
    let good = mesh().to_bytes(Generation(1));
    for len in 0..good.len() {
        assert!(Snapshot::from_bytes(&good[..len]).is_err(), "cut to {len} bytes unnoticed");
    }
    let cut = Snapshot::from_bytes(&good[..good.len() - 1]).expect_err("cut");
    assert!(matches!(cut, Refused::Length { .. }), "{cut}");
    let long = Snapshot::from_bytes(&[&good[..], &[0]].concat()).expect_err("longer");
    assert!(matches!(long, Refused::Length { .. }), "{long}");
    let short = Snapshot::from_bytes(&good[..HEADER_BYTES - 1]).expect_err("no header");
    assert!(matches!(short, Refused::Region(BadRegion::Size { actual: 63, .. })), "{short}");
}

#[test]
fn damage_with_a_fitting_checksum_is_refused_or_harmless() {
    // Whoever can forge a checksum can send any archive: structure and meaning must hold, or the table is refused.
    let good = mesh().to_bytes(Generation(1));
    let mut numbers = Numbers(2);
    let (mut refused, mut harmless) = (0, 0);
    for _ in 0..4_000 {
        let mut bytes = good.clone();
        for _ in 0..=numbers.below(3) {
            let at = HEADER_BYTES + numbers.below(good.len() - HEADER_BYTES);
            bytes[at] = match numbers.below(3) {
                0 => bytes[at] ^ (1 << numbers.below(8)),
                1 => 0xff,
                _ => numbers.next() as u8,
            };
        }
        match Snapshot::from_bytes(&resealed(&bytes)) {
            Ok(snapshot) => {
                assert!(walk(&snapshot) > 0);
                harmless += 1;
            }
            Err(Refused::Structure(_) | Refused::Meaning(_) | Refused::Regex(_)) => refused += 1,
            Err(other) => panic!("refused for a reason that does not fit: {other}"),
        }
    }
    assert!(refused > 1000 && harmless > 100, "{refused} refused, {harmless} harmless: not a test of both");
}

#[test]
fn cut_archives_with_a_fitting_header_are_refused() {
    let good = mesh().to_bytes(Generation(1));
    for len in (HEADER_BYTES..good.len()).step_by(7) {
        if let Ok(snapshot) = Snapshot::from_bytes(&resealed(&good[..len])) {
            assert!(walk(&snapshot) > 0);
        }
    }
    let noise: Vec<u8> = (0..4096_u32).map(|i| (i * 37) as u8).collect();
    assert!(Snapshot::from_bytes(&resealed(&noise)).is_err());
}

#[test]
fn a_foreign_file_is_refused_with_a_message_that_says_so() {
    let refused = Snapshot::from_bytes(&[b'x'; 4096]).expect_err("foreign");
    assert!(matches!(refused, Refused::Header(BadHeader::Magic)));
    assert_eq!(refused.to_string(), "does not start with MESHRING: this is no snapshot");
    let refused = Snapshot::from_bytes(b"").expect_err("empty");
    assert_eq!(refused.to_string(), format!("0 bytes, expected 64 to {SNAPSHOT_BYTES_MAX}"));
}

#[test]
fn a_snapshot_of_another_version_is_refused_with_both_layouts_named() {
    let good = mesh().to_bytes(Generation(1));
    let archive = &good[HEADER_BYTES..];
    let header = Header { layout: LAYOUT + 1, ..Header::of(Generation(1), archive) };
    let refused = Snapshot::from_bytes(&[&header.encode()[..], archive].concat()).expect_err("of the future");
    assert!(matches!(refused, Refused::Header(BadHeader::Layout { found }) if found == LAYOUT + 1));
    let message = refused.to_string();
    assert!(message.contains(&format!("{LAYOUT:016x}")) && message.contains("different versions"), "{message}");
}

#[test]
fn a_header_with_reserved_bits_set_is_refused_even_with_its_checksum_repaired() {
    // Reserved words are 0 today. They are covered by the header's checksum, so only a future version can set them,
    // and a future version has another layout.
    let mut head = Header::of(Generation(1), b"").encode();
    assert_eq!(head[40..56], [0; 16]);
    head[40] = 1;
    assert_eq!(Header::decode(&head), Err(BadHeader::Corrupt));
}

#[test]
fn a_changed_archive_is_told_by_its_checksum() {
    let mut bytes = mesh().to_bytes(Generation(1));
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let refused = Snapshot::from_bytes(&bytes).expect_err("changed");
    assert!(matches!(refused, Refused::Checksum { actual, declared } if actual != declared), "{refused}");
    assert!(refused.to_string().contains("corrupt"));
    assert_eq!(checksum(b""), checksum(&[]));
    assert_eq!(MAGIC.len(), 8);
}

#[test]
fn the_last_good_snapshot_is_read_back_from_disk() {
    let directory = Directory::new("last-good");
    let path = directory.0.join("snapshot");
    let encoded = mesh();
    let snapshot = Snapshot::from_bytes(&encoded.to_bytes(Generation(5))).expect("sound");
    snapshot.store(&path).expect("written");
    let loaded = Snapshot::load(&path).expect("sound");
    assert_eq!((loaded.generation(), loaded.checksum()), (Generation(5), encoded.checksum()));
    assert_eq!(walk(&loaded), walk(&snapshot));
    // A later one replaces it, and nothing else is left behind.
    Snapshot::from_bytes(&encoded.to_bytes(Generation(6))).expect("sound").store(&path).expect("written");
    assert_eq!(Snapshot::load(&path).expect("sound").generation(), Generation(6));
    assert_eq!(fs::read_dir(&directory.0).expect("a directory").count(), 1);
}

#[test]
fn a_damaged_or_missing_file_is_refused_and_the_file_left_alone() {
    let directory = Directory::new("damaged");
    let path = directory.0.join("snapshot");
    assert!(matches!(Snapshot::load(&path), Err(Refused::File(_))));
    let bytes = mesh().to_bytes(Generation(5));
    fs::write(&path, &bytes[..bytes.len() / 2]).expect("written");
    assert!(matches!(Snapshot::load(&path), Err(Refused::Length { .. })));
    assert_eq!(fs::read(&path).expect("still there").len(), bytes.len() / 2);
    let huge = fs::File::create(&path).expect("a file");
    huge.set_len(SNAPSHOT_BYTES_MAX + 1).expect("a sparse file");
    assert!(matches!(Snapshot::load(&path), Err(Refused::Region(BadRegion::Size { .. }))));
}

/// A directory of this test alone, removed at its end.
struct Directory(std::path::PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("meshring-core-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a temporary directory");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
