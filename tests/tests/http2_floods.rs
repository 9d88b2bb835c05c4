//! Floods that took other HTTP/2 proxies down: each ends its own connection, or gets no further than its bounds, while everybody
//! else's requests succeed and the proxy's memory stays below a hundred times what the attacker has sent.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::time::{Duration, Instant};

use meshring_core::table::model::UpstreamProtocol;
use meshring_tests::{
    alone,
    client::request as request_http1,
    frames::{
        self, CONTINUATION, END_HEADERS, HEADERS, INITIAL_WINDOW_SIZE, PRIORITY, block, code, field, headers, indexed,
        never_indexed,
    },
    h2::{Connection, Opening, get, request},
    h2_application::{Application, Hop},
    load::{Load, is_ok},
    on_both_drivers,
    proxy::Driver,
    table::rule,
    upstream::Upstream,
    wait,
};

on_both_drivers! {
    cve_2019_9511_a_dribble_of_window_updates_harms_nobody
    cve_2019_9512_a_flood_of_pings_is_bounded
    cve_2019_9513_a_flood_of_priorities_is_bounded
    cve_2019_9514_a_flood_of_bad_requests_ends_its_connection
    cve_2019_9515_a_flood_of_settings_is_bounded
    cve_2019_9516_empty_fields_are_no_leak
    cve_2019_9517_a_client_that_does_not_read_holds_no_response
    cve_2019_9518_empty_frames_end_their_connection
    cve_2023_44487_rapid_resets_end_their_connection
    requests_that_wait_for_their_turn_are_served_and_cancelled_ones_reach_nobody
    cve_2025_8671_a_proxy_that_is_made_to_reset_ends_the_connection
    cve_2024_27316_endless_continuations_end_their_connection
    cve_2026_47774_an_hpack_bomb_is_refused
    cve_2026_49975_cookie_crumbs_are_no_bomb
    cve_2026_73550_windows_of_zero_hold_nothing
    cve_2021_32778_connections_that_end_with_all_their_streams_harm_nobody
    cve_2024_7246_one_clients_table_is_not_anothers
}

/// What an attacker costs at the least: allocator and buffers that the proxy keeps, in KiB.
const MEMORY_KIB: u64 = 16 * 1024;

/// How an attack went.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The proxy has ended the connection; the code of its last GOAWAY.
    Ended(Option<u32>),
    /// All was sent, and the connection is of use still.
    Tolerated,
    /// The proxy takes nothing more.
    Stalled,
}

/// A sidecar with an attacker and others.
struct Target {
    hop: Hop,
    others: Load,
    _calm: Upstream,
    resident_kib: u64,
    sent: u64,
}

impl Target {
    fn start(driver: Driver, application: Application) -> Self {
        let calm = Upstream::saying("calm");
        let hop = Hop::configured(
            application,
            |builder| builder.driver(driver),
            |world, _| {
                let cluster = world.cluster("calm", &[calm.address()]);
                world.protocol(cluster, UpstreamProtocol::Http1);
                let action = world.forward(&[(cluster, 1)]);
                world.host("calm", vec![rule(action)]);
            },
        );
        let others = Load::start(hop.proxy.outbound(), 4, request_http1("GET", "calm", "/", &[]), is_ok);
        others.pass(500);
        hop.connect().get("echo", "/").expect(200);
        let resident_kib = hop.proxy.process.resident_kib();
        Self { hop, others, _calm: calm, resident_kib, sent: 0 }
    }

    /// Sends what `bytes` makes, so many times or until the connection ends or takes nothing more.
    fn attack(&mut self, opening: &Opening, rounds: u32, mut bytes: impl FnMut(u32) -> Vec<u8>) -> Outcome {
        let mut client = Connection::connect_with(self.hop.proxy.outbound(), opening);
        client.socket().set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        for round in 0..rounds {
            let bytes = bytes(round);
            self.sent += bytes.len() as u64;
            match client.try_send(bytes) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Outcome::Stalled,
                Err(_) => return Outcome::Ended(client.end()),
            }
        }
        let before = client.pongs.len();
        let _ = client.try_send(frames::ping(*b"still on"));
        while client.pump() {
            if client.pongs[before..].contains(b"still on") {
                return Outcome::Tolerated;
            }
        }
        Outcome::Ended(client.goaways.last().map(|(_, code)| *code))
    }

    /// Asserts that the others have gone on, and what the attack has cost.
    #[track_caller]
    fn finish(self, outcome: &Outcome) {
        self.others.pass(200);
        self.others.finish();
        let grown = self.hop.proxy.process.resident_kib().saturating_sub(self.resident_kib);
        let bound = (self.sent * 100 / 1024).clamp(MEMORY_KIB, 20 * MEMORY_KIB);
        assert!(grown <= bound, "{grown} KiB for {} bytes ({outcome:?})", self.sent);
        self.hop.connect().get("echo", "/after").expect(200);
    }
}

/// Asserts that the proxy has ended the connection with one of these codes.
#[track_caller]
fn expect_ended(outcome: &Outcome, codes: &[u32]) {
    let is_right = matches!(outcome, Outcome::Ended(Some(code)) if codes.contains(code));
    assert!(is_right, "{outcome:?} instead of {codes:?}");
}

fn stream(round: u32) -> u32 {
    2 * round + 1
}

fn cve_2019_9511_a_dribble_of_window_updates_harms_nobody(driver: Driver) {
    let _alone = alone();
    let application = Application::answering(|connection, stream, message| {
        let _ = connection.try_send(headers(stream, block(&[(":status", "200")]), message.body.is_empty()));
        if message.fields.value(":path") == Some("/large") {
            let _ = connection.offer(stream, &vec![7; 200_000], true);
        }
    });
    let mut target = Target::start(driver, application);
    let head = block(&request("POST", "echo", "/large"));
    let begin = [headers(1, head, false), frames::data(1, "body", true)].concat();
    let outcome = target.attack(&Opening::narrow().with(INITIAL_WINDOW_SIZE, 1), 20_000, |round| {
        if round == 0 { begin.clone() } else { frames::window_update(1, 1) }
    });
    // What comes before the response has begun is one large step: whether it ends the connection is a matter of speed.
    target.finish(&outcome);
}

fn cve_2019_9512_a_flood_of_pings_is_bounded(driver: Driver) {
    let _alone = alone();
    let mut target = Target::start(driver, Application::echoing());
    // Never reads the answers.
    let many = frames::ping(*b"pingping").repeat(1_000);
    let outcome = target.attack(&Opening::default(), 2_000, |_| many.clone());
    expect_ended(&outcome, &[code::ENHANCE_YOUR_CALM]);
    target.finish(&outcome);
}

fn cve_2019_9513_a_flood_of_priorities_is_bounded(driver: Driver) {
    let _alone = alone();
    let mut target = Target::start(driver, Application::echoing());
    let outcome = target.attack(&Opening::default(), 200, |round| {
        (0..1_000).flat_map(|at| frames::frame(PRIORITY, 0, stream(at), [0, 0, 0, round as u8, 200])).collect()
    });
    expect_ended(&outcome, &[code::ENHANCE_YOUR_CALM]);
    target.finish(&outcome);
}

fn cve_2019_9514_a_flood_of_bad_requests_ends_its_connection(driver: Driver) {
    let _alone = alone();
    let mut target = Target::start(driver, Application::echoing());
    let bad = block(&[&get("echo", "/bad")[..], &[("connection", "close")]].concat());
    let outcome = target.attack(&Opening::default(), 20_000, |round| headers(stream(round), &bad, true));
    expect_ended(&outcome, &[code::ENHANCE_YOUR_CALM]);
    target.finish(&outcome);
}

fn cve_2019_9515_a_flood_of_settings_is_bounded(driver: Driver) {
    let _alone = alone();
    let mut target = Target::start(driver, Application::echoing());
    let many = frames::settings(&[(INITIAL_WINDOW_SIZE, 65_535)]).repeat(1_000);
    let outcome = target.attack(&Opening::default(), 2_000, |_| many.clone());
    expect_ended(&outcome, &[code::ENHANCE_YOUR_CALM]);
    target.finish(&outcome);
}

fn cve_2019_9516_empty_fields_are_no_leak(driver: Driver) {
    let _alone = alone();
    let mut target = Target::start(driver, Application::echoing());
    // A field of no bytes costs a header table, or a list that counts bytes only, something all the same.
    let empty = [block(&get("echo", "/bad")), field("", "").repeat(4_000)].concat();
    let outcome = target.attack(&Opening::default(), 500, |round| headers(stream(round), &empty, true));
    expect_ended(&outcome, &[code::ENHANCE_YOUR_CALM]);
    target.finish(&outcome);
}

fn cve_2019_9517_a_client_that_does_not_read_holds_no_response(driver: Driver) {
    const LARGE: usize = 64 * 1024 * 1024;
    let _alone = alone();
    let application = Application::answering(|connection, stream, message| {
        let is_large = message.fields.value(":path") == Some("/large");
        let _ = connection.try_send(headers(stream, block(&[(":status", "200")]), !is_large));
        if is_large {
            // Nobody takes all of it; the end of the connection ends this thread.
            let _ = connection.offer(stream, &vec![7; LARGE], true);
        }
    });
    let mut target = Target::start(driver, application);
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let mut client = target.hop.connect();
            let _ = client.request(&get("echo", "/large"), true);
            client
        })
        .collect();
    let resident = || target.hop.proxy.process.resident_kib();
    wait::until_still(Duration::from_millis(500), "the proxy's memory to settle", resident);
    let grown = resident().saturating_sub(target.resident_kib);
    assert!(grown < 32 * 1024, "{grown} KiB for eight responses that nobody reads");
    drop(clients);
    target.sent += 1;
    target.others.pass(200);
    target.others.finish();
}

fn cve_2019_9518_empty_frames_end_their_connection(driver: Driver) {
    let _alone = alone();
    let upload = headers(1, block(&request("POST", "echo", "/")), false);
    for (what, frame) in
        [("DATA", frames::data(1, "", false)), ("padded DATA", frames::frame(frames::DATA, frames::PADDED, 1, [0]))]
    {
        let mut target = Target::start(driver, Application::echoing());
        let many = frame.repeat(100);
        let outcome =
            target.attack(&Opening::default(), 2_000, |round| if round == 0 { upload.clone() } else { many.clone() });
        assert!(matches!(outcome, Outcome::Ended(Some(_))), "{what}: {outcome:?}");
        target.finish(&outcome);
    }
    let mut target = Target::start(driver, Application::echoing());
    let outcome = target.attack(&Opening::default(), 100_000, |round| {
        let kind = if round == 0 { HEADERS } else { CONTINUATION };
        frames::frame(kind, 0, 1, [])
    });
    expect_ended(&outcome, &[code::ENHANCE_YOUR_CALM]);
    target.finish(&outcome);
}

fn cve_2023_44487_rapid_resets_end_their_connection(driver: Driver) {
    const ROUNDS: u32 = 50_000;
    let _alone = alone();
    let mut target = Target::start(driver, Application::echoing());
    let head = block(&get("echo", "/rapid"));
    let outcome = target.attack(&Opening::default(), ROUNDS, |round| {
        let stream = stream(round);
        [headers(stream, &head, true), frames::reset(stream, code::CANCEL)].concat()
    });
    expect_ended(&outcome, &[code::ENHANCE_YOUR_CALM]);
    let reached = target.hop.application.received().len();
    assert!(reached < ROUNDS as usize / 10, "{reached} of them have reached the application");
    target.finish(&outcome);
}

fn requests_that_wait_for_their_turn_are_served_and_cancelled_ones_reach_nobody(driver: Driver) {
    let _alone = alone();
    let target = Target::start(driver, Application::echoing());
    let before = target.hop.application.received().len();
    let mut client = target.hop.connect();
    client.settle();
    let mut bytes = Vec::new();
    let mut open = |path, are_cancelled| -> Vec<u32> {
        let opened: Vec<u32> = (0..40).map(|_| client.new_stream()).collect();
        bytes.extend(opened.iter().flat_map(|&stream| headers(stream, block(&get("echo", path)), true)));
        if are_cancelled {
            bytes.extend(opened.iter().flat_map(|&stream| frames::reset(stream, code::CANCEL)));
        }
        opened
    };
    // Begun before their resets are looked at, which come with the same read, these would reach the application.
    open("/cancelled", true);
    let kept = open("/kept", false);
    open("/cancelled", true);
    assert!(bytes.len() < 16 * 1024, "one read takes {} bytes", bytes.len());
    // More than a connection begins in one turn.
    let begun = Instant::now();
    client.send(bytes);
    for stream in kept {
        client.response(stream).expect(200);
    }
    // Without their turn they go on only when something else happens to the connection.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    client.get("echo", "/kept").expect(200);
    let received = target.hop.application.received().split_off(before);
    assert!(received.iter().all(|message| message.fields.value(":path") == Some("/kept")), "{received:?}");
    assert_eq!(received.len(), 41);
    target.finish(&Outcome::Tolerated);
}

fn cve_2025_8671_a_proxy_that_is_made_to_reset_ends_the_connection(driver: Driver) {
    const ROUNDS: u32 = 20_000;
    let _alone = alone();
    let head = block(&request("POST", "echo", "/made"));
    type Provoke = fn(u32) -> Vec<u8>;
    let provocations: [(&str, Provoke); 3] = [
        ("an increment of 0", |stream| frames::window_update(stream, 0)),
        ("a window that overflows", |stream| frames::window_update(stream, 0x7fff_ffff)),
        ("trailers that are malformed", |stream| {
            headers(stream, block(&[("x-end", "1"), ("connection", "close")]), true)
        }),
    ];
    for (what, provoke) in provocations {
        let mut target = Target::start(driver, Application::echoing());
        let outcome = target.attack(&Opening::default(), ROUNDS, |round| {
            let stream = stream(round);
            [headers(stream, &head, false), provoke(stream)].concat()
        });
        assert!(matches!(outcome, Outcome::Ended(Some(_))), "{what}: {outcome:?}");
        let reached = target.hop.application.received().len();
        assert!(reached < ROUNDS as usize / 4, "{what}: {reached} of them have reached the application");
        target.finish(&outcome);
    }
}

fn cve_2024_27316_endless_continuations_end_their_connection(driver: Driver) {
    let _alone = alone();
    let mut target = Target::start(driver, Application::echoing());
    let fields: Vec<u8> = (0..100).flat_map(|at| field(format!("x-{at}"), "v".repeat(100))).collect();
    let outcome = target.attack(&Opening::default(), 20_000, |round| match round {
        0 => frames::frame(HEADERS, 0, 1, block(&get("echo", "/endless"))),
        _ => frames::frame(CONTINUATION, 0, 1, &fields),
    });
    expect_ended(&outcome, &[code::ENHANCE_YOUR_CALM]);
    target.finish(&outcome);
}

fn cve_2026_47774_an_hpack_bomb_is_refused(driver: Driver) {
    let _alone = alone();
    let mut target = Target::start(driver, Application::echoing());
    let before = target.hop.application.received().len();
    // One entry of 4,000 bytes, named 12,000 times by one byte each: 48 MB.
    let entry = indexed("x-bomb", "b".repeat(3_900));
    let bomb = [block(&get("echo", "/bomb")), entry, vec![0xbe; 12_000]].concat();
    for _ in 0..20 {
        let mut client = target.hop.connect();
        for _ in 0..5 {
            let stream = client.new_stream();
            let frame = headers(stream, &bomb, true);
            target.sent += frame.len() as u64;
            if client.try_send(frame).is_err() {
                break;
            }
        }
        assert_eq!(client.end(), Some(code::ENHANCE_YOUR_CALM));
    }
    assert_eq!(target.hop.application.received().len(), before, "a bomb was passed on");
    target.finish(&Outcome::Tolerated);
}

fn cve_2026_49975_cookie_crumbs_are_no_bomb(driver: Driver) {
    let _alone = alone();
    let mut target = Target::start(driver, Application::echoing());
    let before = target.hop.application.received().len();
    // Joined they are one field, of two bytes more for each crumb than what was counted.
    let crumbs = [block(&get("echo", "/crumbs")), indexed("cookie", ""), vec![0xbe; 15_000]].concat();
    for _ in 0..20 {
        let mut client = target.hop.connect();
        let stream = client.new_stream();
        let frame = headers(stream, &crumbs, true);
        target.sent += frame.len() as u64;
        client.send(frame);
        assert_eq!(client.end(), Some(code::ENHANCE_YOUR_CALM));
    }
    assert_eq!(target.hop.application.received().len(), before, "crumbs were passed on");
    target.finish(&Outcome::Tolerated);
}

fn cve_2026_73550_windows_of_zero_hold_nothing(driver: Driver) {
    const CLIENTS: usize = 20;
    const STREAMS: u32 = 50;
    // 64 KiB for each stream that waits: what its window lets the application send, and what a request costs by itself.
    const BOUND_KIB: u64 = CLIENTS as u64 * STREAMS as u64 * 64;
    let _alone = alone();
    let application = Application::answering(|connection, stream, message| {
        let is_large = message.fields.value(":path") == Some("/large");
        let length = if is_large { "4000" } else { "0" };
        let head = block(&[(":status", "200"), ("content-length", length)]);
        let _ = connection.try_send(headers(stream, head, !is_large));
        if is_large {
            let _ = connection.offer(stream, &[7; 4_000], true);
        }
    });
    let mut target = Target::start(driver, application);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let opening = Opening::narrow().with(INITIAL_WINDOW_SIZE, 0);
        let mut client = Connection::connect_with(target.hop.proxy.outbound(), &opening);
        for _ in 0..STREAMS {
            let _ = client.request(&get("echo", "/large"), true);
            target.sent += 100;
        }
        clients.push(client);
    }
    for client in &mut clients {
        client.wait("the first heads", |connection| (!connection.message(1).fields.0.is_empty()).then_some(()));
        client.settle();
        assert!((0..STREAMS).all(|at| client.message(stream(at)).body.is_empty()), "DATA without a window");
    }
    let grown = target.hop.proxy.process.resident_kib().saturating_sub(target.resident_kib);
    assert!(grown < BOUND_KIB, "{grown} KiB for 1,000 streams without a window");
    target.others.pass(200);
    target.others.finish();
    drop(clients);
    target.hop.connect().get("echo", "/after").expect(200);
}

fn cve_2021_32778_connections_that_end_with_all_their_streams_harm_nobody(driver: Driver) {
    let _alone = alone();
    // Never answers.
    let application = Application::answering(|connection, stream, message| {
        if message.fields.value(":path") != Some("/held") {
            let _ = connection.try_send(headers(stream, block(&[(":status", "200")]), true));
        }
    });
    let mut target = Target::start(driver, application);
    let head = block(&get("echo", "/held"));
    for _ in 0..50 {
        let mut client = target.hop.connect();
        let all: Vec<u8> = (0..100).flat_map(|at| headers(stream(at), &head, true)).collect();
        target.sent += all.len() as u64;
        client.send(all).settle();
    }
    target.finish(&Outcome::Tolerated);
}

fn cve_2024_7246_one_clients_table_is_not_anothers(driver: Driver) {
    let application = Application::answering(|connection, stream, message| {
        let seen = message.fields.value("x-who").unwrap_or("nobody");
        connection.send(headers(stream, block(&[(":status", "200"), ("x-seen", seen)]), true));
    });
    let hop = Hop::before(driver, application);
    let mut clients = [hop.connect(), hop.connect()];
    // A client that is refused more often than this is up to CVE-2025-8671.
    for round in 0..90 {
        let (at, name) = if round % 3 == 0 { (0, "one") } else { (1, "two") };
        let client = &mut clients[at];
        let who = format!("{name}-{}", round % 7);
        // Fields that enter tables, of requests that are refused, cancelled, or forwarded.
        let whole = [block(&get("echo", "/")), indexed("x-who", &who), indexed(format!("x-{round}"), "entry")].concat();
        let bad = [&whole[..], &field("connection", "close"), &never_indexed("x-secret", "s")].concat();
        let stream = client.new_stream();
        client.send(headers(stream, bad, true));
        client.response(stream).expect_reset(code::PROTOCOL_ERROR);
        let cancelled = client.new_stream();
        client.send(frames::frame(HEADERS, END_HEADERS, cancelled, &whole));
        client.send(frames::reset(cancelled, code::CANCEL));
        let stream = client.new_stream();
        client.send(headers(stream, &whole, true));
        let response = client.response(stream);
        assert_eq!(response.expect(200).fields.value("x-seen"), Some(who.as_str()), "round {round}");
    }
}
