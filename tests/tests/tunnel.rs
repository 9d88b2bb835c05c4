//! A tunnel passes on every byte and every end, each way by itself, for as long as anything moves in it.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    io::Write as _,
    thread,
    time::{Duration, Instant},
};

use meshring_core::limits::{DEADLINE_TICK_MS, GENERATIONS_RETAINED};
use meshring_tests::{
    alone,
    control::{Control, call, files, reviews, shop},
    generate::{assert_same_bytes, body},
    on_both_drivers,
    proxy::Driver,
    tunnel::{Application, Ends, Kind, Way, expect_reset, in_parallel, reset},
    wait,
};
use rustix::process::Signal;

on_both_drivers! {
    an_end_is_passed_on_and_the_other_direction_goes_on
    a_reset_is_passed_on_as_a_reset
    a_reset_reaches_a_peer_that_does_not_read
    a_mebibyte_each_way_at_once_arrives_as_it_was_sent
    a_receiver_that_does_not_read_stops_its_sender
    what_was_sent_before_the_receiver_went_away_arrives
    a_tunnel_in_which_nothing_moves_is_closed_at_the_limit
    a_tunnel_in_which_something_moves_stays_open
    a_draining_proxy_waits_for_its_tunnels
    changes_of_the_configuration_leave_a_tunnel_alone
    an_idle_tunnel_costs_little
}

fn an_end_is_passed_on_and_the_other_direction_goes_on(driver: Driver) {
    Way::on_each(driver, |way, application| {
        let mut ends = way.open(application);
        ends.client.send("last words");
        ends.client.finish_sending();
        assert_eq!(ends.upstream.rest().unwrap(), b"last words");
        for _ in 0..3 {
            ends.upstream.send("more");
            assert_eq!(ends.client.bytes(4), b"more");
        }
        ends.upstream.send("the end");
        ends.upstream.finish_sending();
        assert_eq!(ends.client.rest().unwrap(), b"the end");

        let mut ends = way.open(application);
        ends.upstream.finish_sending();
        ends.client.expect_end();
        for _ in 0..3 {
            ends.client.send("more");
            assert_eq!(ends.upstream.bytes(4), b"more");
        }
        ends.client.finish_sending();
        ends.upstream.expect_end();

        let mut ends = way.open(application);
        ends.client.send("up").finish_sending();
        ends.upstream.send("down").finish_sending();
        assert_eq!(ends.upstream.rest().unwrap(), b"up");
        assert_eq!(ends.client.rest().unwrap(), b"down");
    });
}

fn a_reset_is_passed_on_as_a_reset(driver: Driver) {
    Way::on_each(driver, |way, application| {
        let mut ends = way.open(application);
        ends.expect_open();
        reset(ends.client);
        expect_reset(&mut ends.upstream);

        let mut ends = way.open(application);
        ends.expect_open();
        reset(ends.upstream);
        expect_reset(&mut ends.client);

        // Also behind an end: the half that is still open breaks.
        let mut ends = way.open(application);
        ends.client.finish_sending();
        ends.upstream.expect_end();
        ends.upstream.send("half of it");
        assert_eq!(ends.client.bytes(10), b"half of it");
        reset(ends.upstream);
        expect_reset(&mut ends.client);
    });
}

/// Sends until the other side takes no more.
fn fill(ends: &mut Ends) {
    let mut stream = ends.upstream.stream();
    stream.set_nonblocking(true).unwrap();
    let mut sent = 0;
    wait::until_still(Duration::from_millis(3 * DEADLINE_TICK_MS), "a full tunnel", || {
        while let Ok(count) = stream.write(&[b'x'; 16 * 1024]) {
            sent += count;
        }
        sent
    });
    stream.set_nonblocking(false).unwrap();
}

fn a_reset_reaches_a_peer_that_does_not_read(driver: Driver) {
    Way::on_each(driver, |way, application| {
        // The proxy waits for the client to read, and learns all the same that nobody sends any more.
        let mut ends = way.open(application);
        fill(&mut ends);
        reset(ends.upstream);
        wait::until("the reset", || {
            let mut stream = ends.client.stream();
            stream.write(b"is anybody there?").is_err().then_some(())
        });

        // And that nobody takes what is sent.
        let mut ends = way.open(application);
        fill(&mut ends);
        reset(ends.client);
        expect_reset(&mut ends.upstream);
    });
}

const MEBIBYTE: usize = 1024 * 1024;

fn a_mebibyte_each_way_at_once_arrives_as_it_was_sent(driver: Driver) {
    let (up, down) = (body(1, MEBIBYTE), body(2, MEBIBYTE));
    Way::on_each(driver, |way, application| {
        let Ends { mut client, mut upstream } = way.open(application);
        let (mut client_writes, mut upstream_writes) =
            (client.stream().try_clone().unwrap(), upstream.stream().try_clone().unwrap());
        let (from_upstream, from_client) = thread::scope(|scope| {
            scope.spawn(|| client_writes.write_all(&up).unwrap());
            scope.spawn(|| upstream_writes.write_all(&down).unwrap());
            let reader = scope.spawn(|| client.bytes(MEBIBYTE));
            let from_client = upstream.bytes(MEBIBYTE);
            (reader.join().unwrap(), from_client)
        });
        assert_same_bytes(&from_upstream, &down);
        assert_same_bytes(&from_client, &up);
    });
}

fn a_receiver_that_does_not_read_stops_its_sender(driver: Driver) {
    Way::on_each(driver, |way, application| {
        let mut ends = way.open(application);
        fill(&mut ends);
        // The other direction does not mind.
        ends.client.send("up");
        assert_eq!(ends.upstream.bytes(2), b"up");
        ends.upstream.finish_sending();
        let rest = ends.client.rest().unwrap();
        assert!(!rest.is_empty() && rest.iter().all(|&byte| byte == b'x'));
        ends.client.send("up");
        assert_eq!(ends.upstream.bytes(2), b"up");
    });
}

fn what_was_sent_before_the_receiver_went_away_arrives(driver: Driver) {
    Way::on_each(driver, |way, application| {
        let mut ends = way.open(application);
        ends.upstream.send([b'x'; 64 * 1024]).finish_sending();
        drop(ends.upstream);
        // Nobody reads them: the first is answered with a reset, the second has nowhere to go.
        for _ in 0..2 {
            let _ = ends.client.try_send("is anybody there?");
        }
        assert_eq!(ends.client.rest().unwrap().len(), 64 * 1024);
    });
}

const IDLE: Duration = Duration::from_millis(500);
/// Where something moves every 100 ms: a test that is not run for this long on a busy machine would be idle itself.
const LONG_IDLE: Duration = Duration::from_secs(4);

fn with_limit(idle: Duration, kind: Kind, driver: Driver, application: &Application) -> Way {
    let idle = format!("{}ms", idle.as_millis());
    let arguments = ["--tunnel-idle-timeout", &idle];
    match kind {
        Kind::Bytes => Way::bytes(driver, application, |builder| builder.arguments(&arguments)),
        _ => Way::one(driver, application, |builder| builder.arguments(&arguments)),
    }
}

fn a_tunnel_in_which_nothing_moves_is_closed_at_the_limit(driver: Driver) {
    in_parallel([Kind::One, Kind::Bytes], |kind| {
        let application = Application::start();
        let way = with_limit(IDLE, kind, driver, &application);
        let begun = Instant::now();
        let mut ends = way.open(&application);
        ends.client.expect_end();
        ends.upstream.expect_end();
        assert!(begun.elapsed() + Duration::from_millis(DEADLINE_TICK_MS) >= IDLE, "after {:?}", begun.elapsed());

        // A receiver that does not read moves nothing either.
        let mut ends = way.open(&application);
        fill(&mut ends);
        wait::until("the end of the tunnel", || ends.upstream.try_send("x").err());
        assert!(!ends.client.rest().unwrap_or_else(|_| vec![b'x']).is_empty());
    });
}

fn a_tunnel_in_which_something_moves_stays_open(driver: Driver) {
    in_parallel([(Kind::One, true), (Kind::Bytes, false)], |(kind, is_up)| {
        let application = Application::start();
        let way = with_limit(LONG_IDLE, kind, driver, &application);
        let Ends { mut client, mut upstream } = way.open(&application);
        let (from, to) = if is_up { (&mut client, &mut upstream) } else { (&mut upstream, &mut client) };
        let begun = Instant::now();
        let mut sent = Instant::now();
        from.send(".");
        // One direction is enough for both.
        wait::until_within(4 * LONG_IDLE, "twice the limit", || {
            if sent.elapsed() >= LONG_IDLE / 40 {
                assert_eq!(to.bytes(1), b".");
                from.send(".");
                sent = Instant::now();
            }
            (begun.elapsed() >= 2 * LONG_IDLE).then_some(())
        });
        assert_eq!(to.bytes(1), b".");
        Ends { client, upstream }.expect_open();
    });
}

fn a_draining_proxy_waits_for_its_tunnels(driver: Driver) {
    let application = Application::start();
    for mut way in
        [Way::one(driver, &application, |builder| builder), Way::bytes(driver, &application, |builder| builder)]
    {
        let mut ends = way.open(&application);
        let (Way::One(proxy) | Way::Bytes(proxy)) = &mut way else { unreachable!("one sidecar") };
        proxy.process.signal(Signal::TERM);
        proxy.process.wait_for_line("draining");
        ends.expect_open();
        drop(ends);
        assert!(proxy.process.wait_for_exit().success());
    }
}

/// Mappings of snapshots that a process has.
fn snapshots_mapped(pid: u32) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    maps.lines().filter(|line| line.contains("memfd:meshring-snapshot")).count()
}

fn changes_of_the_configuration_leave_a_tunnel_alone(driver: Driver) {
    const CHANGES: usize = 100;
    let application = Application::start();
    let control = Control::start(&[("shop.yaml", &shop(application.address(), application.address()))]);
    let proxy = control.proxy("default/client").driver(driver).start();
    control.wait_for_proxies(1);
    let way = Way::One(Box::new(proxy));
    let mut api = control.connect().unwrap();
    let mut ends = Vec::new();
    for number in 0..CHANGES {
        // The first half opens a tunnel on a generation of its own each.
        if number < CHANGES / 2 {
            ends.push(way.open(&application));
        }
        let rules = format!(
            "- route:\n  - destination: {{host: reviews, subset: v1}}\n    headers:\n      response:\n        set: {{x: \"{number}\"}}\n"
        );
        let body = files("reviews.yaml", &reviews(&rules));
        call(&mut api, "POST", "/v1/apply?wait=true", Some(&body)).unwrap().expect(200);
    }
    ends.iter_mut().for_each(Ends::expect_open);
    // No tunnel keeps the generation on which it was opened.
    let mapped = wait::until("generations to be retired", || {
        let mapped = snapshots_mapped(way.first().process.pid());
        (mapped <= GENERATIONS_RETAINED + 1).then_some(mapped)
    });
    assert!(mapped >= 1, "the name of a snapshot's mapping has changed: this proves nothing");
}

fn an_idle_tunnel_costs_little(driver: Driver) {
    const TUNNELS: usize = 400;
    /// Memory of the proxy, with both connections, a kilobyte each: 2.4 KB were measured, and memory comes in pages.
    const BYTES_EACH_MAX: u64 = 3 * 1024;
    let _alone = alone();
    in_parallel([Kind::One, Kind::Bytes], |kind| {
        let application = Application::start();
        idle_tunnels(&Way::start(kind, driver, &application), &application, TUNNELS, BYTES_EACH_MAX);
    });
}

fn idle_tunnels(way: &Way, application: &Application, tunnels: usize, bytes_each_max: u64) {
    const AT_ONCE: usize = 50;
    let still = |ticks| {
        wait::until_still(Duration::from_millis(ticks * DEADLINE_TICK_MS), "memory", || {
            way.first().process.resident_kib()
        })
    };
    // Each has buffers for its first tenth of a second: as many as a fast machine opens in that time would be what is measured.
    let open = |count: usize| {
        let mut opened = Vec::new();
        while opened.len() < count {
            opened.extend((0..AT_ONCE).map(|_| way.open(application)));
            still(3);
        }
        opened
    };
    // The pool of buffers and whatever is made once.
    let first = open(2 * AT_ONCE);
    let before = still(5);
    let second = open(tunnels);
    let each = still(5).saturating_sub(before) * 1024 / tunnels as u64;
    println!("{each} bytes for each idle tunnel");
    assert!(each <= bytes_each_max, "{each} bytes for each idle tunnel");
    for mut ends in first.into_iter().chain(second) {
        ends.expect_open();
    }
}
