//! At its limits the proxy says so and goes on: the right status for what is too much, nothing lost of what was begun, and
//! the way back by itself.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use meshring_core::limits::{BUFFER_BYTES, CONNECTIONS_TURNED_AWAY_MAX, DEADLINE_TICK_MS, HOLD_BUFFER_MS_MAX};
use meshring_tests::{
    alone,
    client::{Client, Response, request},
    frames::{self, PREFACE, block, code, data, headers},
    h2::{self, Connection, Opening},
    on_both_drivers,
    proxy::{Driver, Proxy},
    table::{World, rule},
    upstream::{Upstream, ok},
    wait,
};
use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with},
    process::{Pid, Resource, Rlimit, prlimit},
};

on_both_drivers! {
    a_used_up_byte_budget_is_503_until_it_is_free_again
    partial_heads_get_a_part_of_the_byte_budget_and_others_the_rest
    what_a_connection_of_http_2_began_with_is_not_kept
    streams_that_nobody_reads_end_where_there_is_no_memory_for_them
    a_connection_beyond_the_limit_is_503_until_one_has_gone
    many_connections_beyond_the_limit_leave_those_within_it_alone
    without_descriptors_for_clients_the_proxy_waits_and_recovers
    without_descriptors_for_upstreams_it_is_503_and_not_the_endpoints_fault
    in_a_small_memory_control_group_a_flood_gets_503_and_nobody_is_killed
    a_memory_control_group_that_is_nearly_full_gives_503_whatever_the_budget
}

/// Lets time pass.
fn pause(time: Duration) {
    let begun = Instant::now();
    wait::until("a pause", || (begun.elapsed() >= time).then_some(()));
}

/// Asserts a refusal for being overloaded and the end of the connection.
#[track_caller]
fn assert_overload(client: &mut Client, response: &Response, code: &str) {
    let text = response.expect(503).text();
    assert!(text.starts_with(&format!("meshring: Service Unavailable ({code}): ")), "{text}");
    assert_eq!(response.fields.value("connection"), Some("close"));
    client.expect_end();
}

/// A proxy whose worker may have so many buffers in use.
fn with_buffers(upstream: &Upstream, driver: Driver, count: usize) -> Proxy {
    let bytes = (count * BUFFER_BYTES).to_string();
    Proxy::alone_with(&World::with_echo(upstream.address()), |builder| {
        builder.driver(driver).arguments(&["--buffer-bytes-max", &bytes])
    })
}

/// Answers `/large` with a body that no socket buffers can hold, piece by piece.
fn large_or_small() -> Upstream {
    Upstream::scripted(move |peer| {
        static PIECE: [u8; 64 * 1024] = [b'x'; 64 * 1024];
        while let Some(request) = peer.request() {
            if request.target() != "/large" {
                peer.send(ok("small"));
                continue;
            }
            peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n"));
            if !(0..LARGE / PIECE.len()).all(|_| peer.send(PIECE)) {
                return;
            }
        }
    })
}

const LARGE: usize = 16 * 1024 * 1024;

fn a_used_up_byte_budget_is_503_until_it_is_free_again(driver: Driver) {
    let upstream = large_or_small();
    let mut proxy = with_buffers(&upstream, driver, 8);
    let mut waiting = proxy.connect();
    waiting.get("echo", "/small").expect(200);
    // Each holds one buffer while it does not read, and for a moment at the beginning two.
    let mut stalled = Vec::new();
    wait::until("the byte budget to be used up", || {
        assert!(stalled.len() < 8, "eight buffers serve no more than eight");
        let mut client = proxy.connect();
        client.send(request("GET", "echo", "/large", &[]));
        let head = client.head();
        if head.line.contains("200") {
            stalled.push(client);
            return None;
        }
        assert!(head.line.contains("503"), "{head:?}");
        (stalled.len() == 7).then_some(())
    });
    let requests = upstream.received().len();
    // Whoever comes now is told so, on a new connection and on an old one, and no byte goes upstream.
    let mut fresh = proxy.connect();
    let answer = fresh.get("echo", "/small");
    assert_overload(&mut fresh, &answer, "overload");
    let answer = waiting.send("POST / HTTP/1.1\r\nhost: echo\r\ncontent-length: 3\r\n\r\nabc").response();
    assert_overload(&mut waiting, &answer, "overload");
    assert_eq!(upstream.received().len(), requests);
    assert!(proxy.process.wait_for_line("overload").contains("peer=\"127.0.0.1:"));
    // What was begun goes on, to its last byte.
    for client in &mut stalled {
        assert!(client.bytes(LARGE).iter().all(|&byte| byte == b'x'));
    }
    let mut client = proxy.connect();
    assert_eq!(client.get("echo", "/small").expect(200).text(), "small");
    assert_eq!(stalled[0].get("echo", "/small").expect(200).text(), "small");
}

/// Of a body in one frame, less than a buffer holds.
const FRAME: [u8; 16_000] = [b'x'; 16_000];

fn what_a_connection_of_http_2_began_with_is_not_kept(driver: Driver) {
    let upstream = Upstream::answering(|request| ok(&request.body.len().to_string()));
    let proxy = with_buffers(&upstream, driver, 8);
    // What is read first has all of a request in it. The connections stay.
    let begin = [
        PREFACE,
        &frames::settings(&[]),
        &headers(1, block(&h2::request("POST", "echo", "/")), false),
        &data(1, FRAME, true),
    ]
    .concat();
    let mut clients = Vec::new();
    for number in 0..16 {
        // Each holds a buffer for a moment after it was of use.
        clients.push(wait::until(&format!("room for connection {number}"), || {
            let mut stream = TcpStream::connect(proxy.outbound()).unwrap();
            stream.write_all(&begin).unwrap();
            let mut client = Connection::resumed(stream, &Opening::default());
            let response = client.response(1);
            (response.status() == 200 && response.text() == "16000").then_some(client)
        }));
    }
    for client in &mut clients {
        client.settle();
    }
}

fn streams_that_nobody_reads_end_where_there_is_no_memory_for_them(driver: Driver) {
    // Its queue has room for one connection: any other request for it waits to be connected.
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    listen(&socket, 0).unwrap();
    let full = SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
    let upstream = Upstream::echoing();
    let mut world = World::new();
    for (name, endpoint) in [("echo", upstream.address()), ("full", full)] {
        let cluster = world.cluster(name, &[endpoint]);
        let action = world.forward(&[(cluster, 1)]);
        world.host(name, vec![rule(action)]);
    }
    let bytes = (16 * BUFFER_BYTES).to_string();
    let proxy = Proxy::alone_with(&world.snapshot(), |builder| {
        builder.driver(driver).arguments(&["--buffer-bytes-max", &bytes])
    });
    let mut client = Connection::connect(proxy.outbound());
    let streams: Vec<u32> = (0..12).map(|_| client.request(&h2::request("POST", "full", "/"), false)).collect();
    // Within the windows, and more than all of them may have together.
    for _ in 0..4 {
        for &stream in &streams {
            client.send(data(stream, FRAME, false));
        }
    }
    let ended = client.wait("the end of a stream", |client| {
        streams.iter().copied().find(|&stream| client.message(stream).reset == Some(code::ENHANCE_YOUR_CALM))
    });
    assert!(client.message(ended).fields.0.is_empty(), "no answer came before");
    wait::until("a line in the log", || proxy.process.line("code=\"overload\""));
    // The connection goes on, and with the other streams all that they hold goes.
    client.settle();
    drop(client);
    wait::until("room for others", || (proxy.connect().get("echo", "/").status == 200).then_some(()));
}

fn partial_heads_get_a_part_of_the_byte_budget_and_others_the_rest(driver: Driver) {
    let upstream = Upstream::saying("hello");
    // A quarter of 32 buffers is for heads that are not whole: four of these.
    let proxy = with_buffers(&upstream, driver, 32);
    let partial = format!("GET / HTTP/1.1\r\nhost: echo\r\nx: {}", "y".repeat(30_000));
    let mut partials: Vec<_> = (0..10).map(|_| proxy.connect()).collect();
    for client in &mut partials {
        client.send(&partial);
    }
    let is_answered = |client: &Client| {
        client.stream().set_nonblocking(true).unwrap();
        let is_answered = client.stream().peek(&mut [0; 1]).is_ok();
        client.stream().set_nonblocking(false).unwrap();
        is_answered
    };
    wait::until("all but four to be refused", || {
        (partials.iter().filter(|client| is_answered(client)).count() == 6).then_some(())
    });
    let (refused, mut waiting): (Vec<_>, Vec<_>) = partials.into_iter().partition(is_answered);
    for mut client in refused {
        let response = client.response();
        assert_overload(&mut client, &response, "overload");
    }
    // Nobody else notices, and those that were let in are served when the rest of them comes.
    assert_eq!(proxy.connect().get("echo", "/").expect(200).text(), "hello");
    for client in &mut waiting {
        assert_eq!(client.send("\r\n\r\n").response().expect(200).text(), "hello");
    }
    // Their place is free again.
    let mut client = proxy.connect();
    client.send(&partial);
    pause(Duration::from_millis(HOLD_BUFFER_MS_MAX + 3 * DEADLINE_TICK_MS));
    assert_eq!(client.send("\r\n\r\n").response().expect(200).text(), "hello");
}

fn a_connection_beyond_the_limit_is_503_until_one_has_gone(driver: Driver) {
    let upstream = Upstream::saying("hello");
    let mut proxy = Proxy::alone_with(&World::with_echo(upstream.address()), |builder| {
        builder.driver(driver).arguments(&["--connections-max", "3"])
    });
    let mut clients: Vec<_> = (0..3).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.get("echo", "/").expect(200);
    }
    // Whether it has said something or not, and however much.
    for sent in [Vec::new(), request("GET", "echo", "/", &[]), vec![b'x'; 20_000]] {
        let mut client = proxy.connect();
        client.try_send(&sent).unwrap();
        let response = client.response();
        // What was on its way meanwhile does not meet a closed socket, which would answer with a reset.
        for late in [request("GET", "echo", "/late", &[]), b"x".to_vec()] {
            client.send(late);
            pause(Duration::from_millis(30));
        }
        assert_overload(&mut client, &response, "overload");
    }
    assert_eq!(upstream.received().len(), 3);
    assert!(proxy.process.wait_for_line("overload").contains("peer=\"127.0.0.1:"));
    for client in &mut clients {
        assert_eq!(client.get("echo", "/").expect(200).text(), "hello");
    }
    clients.pop();
    wait::until("the place to be free", || (proxy.connect().get("echo", "/").status == 200).then_some(()));
}

fn many_connections_beyond_the_limit_leave_those_within_it_alone(driver: Driver) {
    let _alone = alone();
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::alone_with(&World::with_echo(upstream.address()), |builder| {
        builder.driver(driver).arguments(&["--connections-max", "2"])
    });
    let mut client = proxy.connect();
    client.get("echo", "/").expect(200);
    for _ in 0..3 {
        // None of them ever says anything; each that is told why takes a descriptor and a task for a second.
        let silent: Vec<_> = (0..400).map(|_| TcpStream::connect(proxy.outbound()).unwrap()).collect();
        client.get("echo", "/").expect(200);
        let mut answer = Vec::new();
        let told = silent.into_iter().filter(|mut stream| {
            answer.clear();
            // One of them may have got the second place, and nothing is said to it.
            stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            // A reset where nothing was said is as good as an end.
            let _ = stream.read_to_end(&mut answer);
            !answer.is_empty()
        });
        let told = told.count();
        assert!((1..=3 * CONNECTIONS_TURNED_AWAY_MAX).contains(&told), "{told} of 400 were told why");
    }
    wait::until("another place", || {
        let mut other = proxy.connect();
        let _ = other.try_send(request("GET", "echo", "/", &[]));
        other.try_response("GET").is_ok_and(|response| response.status == 200).then_some(())
    });
}

fn descriptors(proxy: &Proxy) -> Vec<u64> {
    let dir = fs::read_dir(format!("/proc/{}/fd", proxy.process.pid())).unwrap();
    dir.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok()).collect()
}

/// Takes the last free descriptor away from a running proxy: a limit below those that are open forbids further ones.
fn limit_descriptors(proxy: &Proxy) {
    let mut lowest = u64::MAX;
    // A file that is open for a moment only, such as one of /proc, leaves a number below the limit when it is closed.
    wait::until_still(Duration::from_millis(500), "all descriptors below the limit to be open", || {
        let used = descriptors(proxy);
        lowest = lowest.min((0..).find(|number| !used.contains(number)).unwrap());
        set_limit(proxy, lowest);
        lowest
    });
}

fn set_limit(proxy: &Proxy, number: u64) {
    let pid = Pid::from_raw(i32::try_from(proxy.process.pid()).unwrap());
    let limit = Rlimit { current: Some(number), maximum: Some(hard_limit(proxy)) };
    prlimit(pid, Resource::Nofile, limit).unwrap();
}

fn hard_limit(proxy: &Proxy) -> u64 {
    let limits = fs::read_to_string(format!("/proc/{}/limits", proxy.process.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(4).unwrap().parse().unwrap()
}

/// CPU time of a process, in ticks of 10 ms.
fn cpu_ticks(proxy: &Proxy) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", proxy.process.pid())).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn without_descriptors_for_clients_the_proxy_waits_and_recovers(driver: Driver) {
    let _alone = alone();
    let upstream = Upstream::saying("hello");
    let mut proxy = Proxy::alone(&World::with_echo(upstream.address()), driver);
    let mut client = proxy.connect();
    client.get("echo", "/").expect(200);
    limit_descriptors(&proxy);
    // They are in the backlog; nobody can take them out.
    let mut waiting: Vec<_> = (0..20).map(|_| proxy.connect()).collect();
    let line = proxy.process.wait_for_line("cannot accept a connection");
    assert!(line.contains("out_of_descriptors"), "{line}");
    let ticks = cpu_ticks(&proxy);
    pause(Duration::from_secs(2));
    let busy = cpu_ticks(&proxy) - ticks;
    assert!(busy <= 40, "{busy} ticks of 10 ms in two seconds are more than 20 %");
    let lines = proxy.process.output().lines().filter(|line| line.contains("cannot accept")).count();
    assert!(lines <= 5, "{lines} lines in about two seconds");
    client.get("echo", "/").expect(200);
    set_limit(&proxy, hard_limit(&proxy));
    let freed = Instant::now();
    for client in &mut waiting {
        assert_eq!(client.get("echo", "/").expect(200).text(), "hello");
    }
    assert!(freed.elapsed() < Duration::from_secs(1), "recovered after {:?}", freed.elapsed());
}

fn without_descriptors_for_upstreams_it_is_503_and_not_the_endpoints_fault(driver: Driver) {
    let upstreams = [Upstream::saying("hello"), Upstream::saying("hello")];
    let mut world = World::new();
    let cluster = world.cluster("echo", &[upstreams[0].address(), upstreams[1].address()]);
    let action = world.forward(&[(cluster, 1)]);
    world.host("echo", vec![rule(action)]);
    let mut proxy = Proxy::alone(&world.snapshot(), driver);
    let mut client = proxy.connect();
    client.get("nobody", "/").expect(404);
    limit_descriptors(&proxy);
    let text = client.get("echo", "/").expect(503).text();
    assert!(text.starts_with("meshring: Service Unavailable (out_of_descriptors): "), "{text}");
    assert!(!text.contains("127.0.0.1"), "no endpoint is to blame: {text}");
    assert!(proxy.process.wait_for_line("out_of_descriptors").contains("failed: "));
    set_limit(&proxy, hard_limit(&proxy));
    // At once, and neither is passed over for a second as if it had refused; the client's connection goes on.
    for _ in 0..4 {
        assert_eq!(client.get("echo", "/").expect(200).text(), "hello");
    }
    assert_eq!(upstreams.each_ref().map(|upstream| upstream.received().len()), [2, 2]);
}

/// A memory control group of our own, gone with this value.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// `None` where we may not make one, or the controller is not there.
    fn new(name: &str, bytes: u64) -> Option<Self> {
        let (root, limit) = match Path::new("/sys/fs/cgroup/memory").is_dir() {
            true => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            false => ("/sys/fs/cgroup", "memory.max"),
        };
        let group = Self(Path::new(root).join(format!("meshring-test-{}-{name}", std::process::id())));
        let made = fs::create_dir(&group.0).and_then(|()| fs::write(group.0.join(limit), bytes.to_string()));
        if let Err(error) = made {
            println!("skipped: no memory control group: {error}");
            return None;
        }
        Some(group)
    }

    /// What the kernel has killed in it.
    fn kills(&self) -> u64 {
        let read = |file| fs::read_to_string(self.0.join(file)).unwrap_or_default();
        let text = read("memory.oom_control") + &read("memory.events");
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill ")).expect("a count of kills");
        line.trim().parse().unwrap()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // A group can be removed once its last process is gone.
        wait::until("the control group to be empty", || {
            (fs::remove_dir(&self.0).is_ok() || !self.0.exists()).then_some(())
        });
    }
}

fn in_a_small_memory_control_group_a_flood_gets_503_and_nobody_is_killed(driver: Driver) {
    // The default budget is a quarter of it: 1,024 buffers.
    flood(driver, 64 * 1024 * 1024, &[]);
}

/// What is not in the buffers counts, too.
fn a_memory_control_group_that_is_nearly_full_gives_503_whatever_the_budget(driver: Driver) {
    let arguments = ["--buffer-bytes-max", "1000000000", "--connections-max", "5000"];
    let refusals = flood(driver, 32 * 1024 * 1024, &arguments);
    assert!(refusals.is_none_or(|output| output.contains("the memory control group is nearly full")));
}

/// Readers that stall, until requests are refused and beyond, in a group with so much memory. What the proxy has logged;
/// `None` where there are no control groups.
fn flood(driver: Driver, limit: u64, arguments: &[&str]) -> Option<String> {
    /// More than either limit lets in.
    const READERS: usize = 1_500;
    let _alone = alone();
    let group = MemoryGroup::new(&format!("{driver:?}"), limit)?;
    let upstream = large_or_small();
    let join = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", group.0.display());
    let mut proxy = Proxy::alone_with(&World::with_echo(upstream.address()), |builder| {
        builder.driver(driver).arguments(arguments).wrapper(["sh", "-c", &join, "sh"])
    });
    let large = request("GET", "echo", "/large", &[("x", &"y".repeat(2_000))]);
    let mut refused = 0;
    let mut stalled = Vec::new();
    for _ in 0..READERS {
        let mut client = proxy.connect();
        client.send(&large);
        let head = client.head();
        if head.line.contains(" 503 ") {
            refused += 1;
        } else {
            assert!(head.line.contains(" 200 "), "{head:?}");
            stalled.push(client);
        }
    }
    println!("{} served, {refused} refused", stalled.len());
    assert!(refused > 0 && stalled.len() > 100, "{} served, {refused} refused", stalled.len());
    assert_eq!((proxy.process.try_exit(), group.kills()), (None, 0));
    drop(stalled);
    wait::until("requests to be served again", || (proxy.connect().get("echo", "/small").status == 200).then_some(()));
    assert_eq!((proxy.process.try_exit(), group.kills()), (None, 0));
    Some(proxy.process.output())
}
