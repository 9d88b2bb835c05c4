//! The user's own file, unchanged, splits real traffic; changing it under load costs no request.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use meshring_tests::{
    alone,
    client::{Response, request},
    control::{Control, shop, split},
    generate::assert_share,
    load::{Load, is_ok},
    proxy::Proxy,
    upstream::Upstream,
    wait,
};

const REVIEWS_80_20: &str = include_str!("../data/reviews-80-20.yaml");
const REQUESTS: u64 = 10_000;

/// Answers of v1 and v2 by generation.
#[derive(Debug, Clone, Default)]
struct Tally(Arc<Mutex<BTreeMap<u64, [u64; 2]>>>);

impl Tally {
    fn judge(&self, response: &Response) -> Result<(), String> {
        is_ok(response)?;
        let generation = response.fields.value("x-meshring-generation").and_then(|g| g.parse().ok());
        let generation = generation.ok_or("no x-meshring-generation")?;
        let version = match response.text().as_str() {
            "v1" => 0,
            "v2" => 1,
            other => return Err(format!("body {other:?}")),
        };
        self.0.lock().unwrap().entry(generation).or_default()[version] += 1;
        Ok(())
    }

    fn of(&self, generation: u64) -> [u64; 2] {
        self.0.lock().unwrap().get(&generation).copied().unwrap_or_default()
    }
}

#[test]
fn the_users_file_splits_80_to_20_and_changes_to_50_to_50_under_load_without_a_failure() {
    let _alone = alone();
    let (v1, v2) = (Upstream::saying("v1"), Upstream::saying("v2"));
    let control = Control::start(&[]);
    // Two sidecars: one beside the caller, one before both versions.
    let reviews: Proxy = control.proxy("default/reviews").inbound(v1.address()).inbound(v2.address()).start();
    let [inbound_v1, inbound_v2] = reviews.inbound()[..] else { panic!("two inbound listeners") };
    control.write("shop.yaml", &shop(inbound_v1, inbound_v2));
    let caller = control.proxy("default/productpage").workers(2).start();

    // Reads the files now instead of at the watcher's next look.
    control.meshring(&["wait", "--applied"]).expect(0);
    let file = control.file("reviews-80-20.yaml", REVIEWS_80_20);
    let applied = control.meshring(&["apply", "-f", &file, "-o", "json"]);
    let applied = applied.expect(0).json();
    assert_eq!((&applied["applied"]["complete"], &applied["applied"]["proxies"]), (&true.into(), &2.into()));
    let first = applied["generation"].as_u64().unwrap();

    let tally = Tally::default();
    let judge = tally.clone();
    let request = request("GET", "reviews", "/", &[("x-meshring-debug", "1")]);
    let load = Load::start(caller.outbound(), 4, request, move |response| judge.judge(response));
    wait::until("10,000 requests", || (tally.of(first).iter().sum::<u64>() >= REQUESTS).then_some(()));

    let file = control.file("reviews-50-50.yaml", &split(50, 50));
    let changed = control.meshring(&["apply", "-f", &file, "-o", "json"]);
    let second = changed.expect(0).json()["generation"].as_u64().unwrap();
    assert!(second > first, "{second} after {first}");
    wait::until("10,000 more", || (tally.of(second).iter().sum::<u64>() >= REQUESTS).then_some(()));
    let responses = load.finish();
    assert!(responses >= 2 * REQUESTS);

    let [old, new] = [tally.of(first), tally.of(second)];
    assert_share(old[1], old.iter().sum(), 0.8);
    assert_share(new[1], new.iter().sum(), 0.5);
    assert_eq!(tally.0.lock().unwrap().len(), 2, "exactly two generations have served: {tally:?}");
}

/// What the demo shows is what the tests prove.
#[test]
fn the_example_is_the_same_everywhere() {
    assert_eq!(REVIEWS_80_20, include_str!("../../ctl/src/command/demo/reviews-80-20.yaml"));
    assert!(REVIEWS_80_20.starts_with("# The user's own example: 80% of the traffic to reviews v2, 20% to v1."));
}
