//! A snapshot that is not exactly what control wrote is refused, whatever is wrong with it.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use meshring_core::{
    id::Generation,
    snapshot::{
        Snapshot,
        layout::{HEADER_BYTES, Header, LAYOUT},
    },
};
use meshring_tests::{
    generate::Random,
    proxy::{Driver, Proxy, store},
    table::{World, rule, rule_if},
    upstream::Upstream,
};

const DAMAGES: usize = 10_000;

fn some_snapshot() -> Vec<u8> {
    let mut world = World::new();
    for number in 0..20 {
        let name = format!("service-{number}");
        let cluster = world.cluster(&name, &["127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap()]);
        let (split, plain) = (world.forward(&[(cluster, 80), (cluster, 20)]), world.forward(&[(cluster, 1)]));
        let pattern = world.regex("/a.*z");
        let condition =
            meshring_core::table::model::Condition::Uri(meshring_core::table::model::StringMatch::Regex(pattern));
        world.host(&name, vec![rule_if(vec![condition], split), rule(plain)]);
    }
    world.snapshot()
}

#[test]
fn ten_thousand_bit_flips_and_truncations_are_all_refused() {
    let sound = some_snapshot();
    Snapshot::from_bytes(&sound).expect("the undamaged snapshot is accepted");
    let mut random = Random::new(0x5eed);
    for number in 0..DAMAGES {
        let mut bytes = sound.clone();
        let what = match number % 4 {
            0 => {
                let len = random.below(bytes.len());
                bytes.truncate(len);
                format!("cut to {len} bytes")
            }
            1 => {
                let extra = 1 + random.below(64);
                bytes.extend((0..extra).map(|_| random.word() as u8));
                format!("{extra} bytes appended")
            }
            // One bit, then up to eight of them.
            kind => {
                let flips: Vec<_> = (0..if kind == 2 { 1 } else { 1 + random.below(8) })
                    .map(|_| random.below(bytes.len() * 8))
                    .collect();
                for bit in &flips {
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
                format!("bits {flips:?} flipped")
            }
        };
        // An even number of flips of one bit is no damage.
        if bytes != sound {
            assert!(Snapshot::from_bytes(&bytes).is_err(), "accepted with {what}");
        }
    }
}

#[test]
fn every_bit_of_the_header_counts() {
    let sound = some_snapshot();
    for bit in 0..64 * 8 {
        let mut bytes = sound.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Snapshot::from_bytes(&bytes).is_err(), "accepted with bit {bit} of the header flipped");
    }
}

#[test]
fn a_proxy_ignores_a_damaged_last_good_snapshot_and_says_why() {
    let sound = World::with_echo("127.0.0.1:1".parse().unwrap());
    let mut corrupt = sound.clone();
    let last = corrupt.len() - 9;
    corrupt[last] ^= 1;
    let foreign = vec![b'#'; 4096];
    let short = sound[..sound.len() - 1].to_vec();
    // As after an upgrade or a downgrade: all checksums are right.
    let archive = &sound[HEADER_BYTES..];
    let header = Header { layout: LAYOUT + 1, ..Header::of(Generation(7), archive) };
    let other = [&header.encode()[..], archive].concat();
    for (bytes, why) in [
        (corrupt, "corrupt"),
        (foreign, "no snapshot"),
        (short, "cut short"),
        (Vec::new(), "0 bytes"),
        (other, "control and proxy are of different versions"),
    ] {
        let dir = tempfile::TempDir::new().unwrap();
        store(dir.path(), &bytes);
        let builder = meshring_tests::proxy::ProxyBuilder::new(dir.path()).state_dir(dir.path()).driver(Driver::Epoll);
        let mut process = builder.spawn();
        let line = process.wait_for_line("the last good snapshot is unusable");
        assert!(line.contains("last-good.snapshot") && line.contains(why), "{why}: {line}");
        // It goes on as a proxy that has never had one.
        process.wait_for_line("no configuration yet");
        process.signal(rustix::process::Signal::TERM);
        assert_eq!(process.wait_for_exit().code(), Some(1));
    }
}

#[test]
fn a_proxy_starts_from_its_last_good_snapshot_without_control() {
    let upstream = Upstream::saying("hello");
    let mut proxy = Proxy::alone(&World::with_echo(upstream.address()), Driver::Auto);
    let line = proxy.process.wait_for_line("starting from the last good snapshot");
    assert!(line.contains("generation=7"), "{line}");
    let response = proxy.connect().get_with("echo", "/", &[("x-meshring-debug", "1")]);
    assert_eq!(response.expect(200).fields.value("x-meshring-generation"), Some("7"));
}
