//! A thousand changes while requests run: none fails, none sees two configurations at once.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
};

use meshring_tests::{
    alone,
    client::{Response, request},
    control::{Control, call, files, reviews, shop},
    load::{Load, is_ok},
    on_both_drivers,
    proxy::Driver,
    upstream::{Received, Upstream, response},
};
use serde_json::Value;

/// What one response says about the configuration that served it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Witness {
    /// From the proxy.
    generation: u64,
    /// What the upstream received in `x-gen-req`.
    on_the_way_up: u64,
    /// `x-gen-resp`.
    on_the_way_down: u64,
    /// Which upstream answered.
    version: String,
}

impl Witness {
    fn of(response: &Response) -> Result<Self, String> {
        is_ok(response)?;
        let number = |name: &str| {
            let value = response.fields.value(name).ok_or(format!("no {name}: {:?}", response.fields))?;
            value.parse().map_err(|_| format!("{name}: {value}"))
        };
        Ok(Self {
            generation: number("x-meshring-generation")?,
            on_the_way_up: number("x-seen")?,
            on_the_way_down: number("x-gen-resp")?,
            version: response.text(),
        })
    }
}

/// Change `number`: its number in a header on the way up, in a header on the way down, and as the parity of the subset.
fn configuration(number: u64) -> String {
    reviews(&format!(
        "- headers:\n    request:\n      set:\n        x-gen-req: \"{number}\"\n  route:\n  - destination:\n      host: reviews\n      \
         subset: {}\n    headers:\n      response:\n        set:\n          x-gen-resp: \"{number}\"\n",
        version(number)
    ))
}

fn version(number: u64) -> &'static str {
    if number.is_multiple_of(2) { "v2" } else { "v1" }
}

fn upstream(version: &'static str) -> Upstream {
    Upstream::answering(move |request: &Received| {
        let seen = request.fields.value("x-gen-req").unwrap_or("nothing").to_owned();
        response(200, &[("x-seen", &seen)], version.as_bytes())
    })
}

on_both_drivers! {
    a_request_keeps_the_generation_that_it_began_with
}

/// Also when so many others were published meanwhile that its own is no longer retained for rollback.
fn a_request_keeps_the_generation_that_it_began_with(driver: Driver) {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    let v1 = Upstream::answering(move |request: &Received| {
        if request.target() == "/slow" {
            released.lock().unwrap().recv().unwrap();
        }
        response(200, &[("x-seen", request.fields.value("x-gen-req").unwrap())], b"v1")
    });
    let v2 = upstream("v2");
    let control = Control::start(&[("shop.yaml", &shop(v1.address(), v2.address()))]);
    let proxy = control.proxy("default/client").driver(driver).start();
    control.wait_for_proxies(1);
    let mut api = control.connect().unwrap();
    let mut apply = |number: u64| {
        let body = files("reviews.yaml", &configuration(number));
        let answer = call(&mut api, "POST", "/v1/apply?wait=true", Some(&body)).unwrap();
        let outcome: Value = serde_json::from_slice(&answer.expect(200).body).unwrap();
        outcome["generation"].as_u64().unwrap()
    };
    let first = apply(1);
    let mut slow = proxy.connect();
    slow.send(request("GET", "reviews", "/slow", &[("x-meshring-debug", "1")]));
    let _ = v1.wait_for(1);
    let last = (2..=30).map(&mut apply).last().unwrap();
    let mut client = proxy.connect();
    let now = client.get_with("reviews", "/", &[("x-meshring-debug", "1")]);
    let expected = Witness { generation: last, on_the_way_up: 30, on_the_way_down: 30, version: "v2".into() };
    assert_eq!(Witness::of(&now), Ok(expected));
    release.send(()).unwrap();
    let late = Witness { generation: first, on_the_way_up: 1, on_the_way_down: 1, version: "v1".into() };
    assert_eq!(Witness::of(&slow.response()), Ok(late));
}

fn changes_under_load(driver: Driver, changes: u64) {
    let _alone = alone();
    let (v1, v2) = (upstream("v1"), upstream("v2"));
    let control =
        Control::start(&[("shop.yaml", &shop(v1.address(), v2.address())), ("reviews.yaml", &configuration(0))]);
    let proxy = control.proxy("default/client").driver(driver).workers(2).start();
    control.wait_for_proxies(1);
    let mut numbers = HashMap::from([(control.generation(), 0)]);

    let witnesses = Arc::<Mutex<HashSet<Witness>>>::default();
    let seen = Arc::clone(&witnesses);
    let request = request("GET", "reviews", "/", &[("x-meshring-debug", "1"), ("x-gen-req", "from the client")]);
    let load = Load::start(proxy.outbound(), 3, request, move |response| {
        seen.lock().unwrap().insert(Witness::of(response)?);
        Ok(())
    });
    load.pass(100);
    let mut api = control.connect().unwrap();
    for number in 1..=changes {
        // With and without waiting for the workers: changes may overtake each other on their way.
        let wait = number.is_multiple_of(4) || number == changes;
        let body = files("reviews.yaml", &configuration(number));
        let answer = call(&mut api, "POST", &format!("/v1/apply?wait={wait}"), Some(&body)).unwrap();
        let outcome: Value = serde_json::from_slice(&answer.expect(200).body).unwrap();
        assert!(!wait || outcome["applied"]["complete"] == true, "{outcome}");
        let before = numbers.insert(outcome["generation"].as_u64().unwrap(), number);
        assert_eq!(before, None, "a generation was used twice");
    }
    load.pass(100);
    let responses = load.finish();

    let witnesses = witnesses.lock().unwrap();
    for witness in witnesses.iter() {
        let Some(&number) = numbers.get(&witness.generation) else { panic!("unknown generation: {witness:?}") };
        let whole = Witness {
            generation: witness.generation,
            on_the_way_up: number,
            on_the_way_down: number,
            version: version(number).to_owned(),
        };
        assert_eq!(*witness, whole, "a response that mixes two generations");
    }
    let generations: HashSet<_> = witnesses.iter().map(|witness| witness.generation).collect();
    assert!(
        generations.len() as u64 > changes / 4,
        "{responses} responses saw only {} of {changes} generations: this proves nothing",
        generations.len()
    );
    let last = witnesses.iter().map(|witness| witness.on_the_way_up).max();
    assert_eq!(last, Some(changes), "the last change is live");
}

#[test]
fn a_thousand_changes_under_load_fail_no_request_and_mix_no_generations() {
    changes_under_load(Driver::Auto, 1_000);
}

#[test]
fn changes_under_load_fail_no_request_and_mix_no_generations_on_epoll() {
    changes_under_load(Driver::Epoll, 200);
}
