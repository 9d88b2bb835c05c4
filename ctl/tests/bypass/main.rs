//! What the two ends of a connection see when it goes around TCP. The process of the test is proxy and application at once,
//! in a cgroup of its own. Skipped where the kernel or the privilege is missing.

mod namespaces;
mod waiting;
mod world;

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use meshring_core::limits::BYPASS_MESSAGES_MAX;
use meshring_ctl::bypass::Bypass;
use world::{PATIENCE, World, pair, reach, until};

/// A generator of numbers that are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// What stands at a place of a stream: any loss, copy or change of order shows.
fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut numbers = Numbers(seed);
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| numbers.next().to_ne_bytes()).collect();
    bytes.truncate(len);
    bytes
}

/// Writes in pieces of 1 byte to 1 MiB, then ends its direction.
fn send(mut socket: &TcpStream, bytes: &[u8], seed: u64, largest: usize) {
    let mut numbers = Numbers(seed);
    let mut rest = bytes;
    while !rest.is_empty() {
        // As many small ones as large ones.
        let bits = numbers.next() % (largest.ilog2() as u64 + 1);
        let size = ((numbers.next() % (1 << bits)) as usize + 1).min(rest.len());
        socket.write_all(&rest[..size]).expect("written");
        rest = &rest[size..];
    }
    socket.shutdown(Shutdown::Write).expect("shut");
}

/// Reads to the end, now and then more slowly.
fn receive(mut socket: &TcpStream, expected: &[u8], seed: u64) {
    let mut numbers = Numbers(seed);
    let mut buffer = vec![0; 64 * 1024];
    let mut at = 0;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let size = (numbers.next() as usize % buffer.len()) + 1;
        match socket.read(&mut buffer[..size]) {
            Ok(0) => break,
            // Who waits in a blocking read may be woken for nothing (ARCHITECTURE.md, "The bypass").
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {}
            Err(error) => panic!("{error} at {at} of {}", expected.len()),
            Ok(count) => {
                assert_eq!(buffer[..count], expected[at..at + count], "bytes {at}..{}", at + count);
                at += count;
            }
        }
        if numbers.next().is_multiple_of(64) {
            thread::yield_now();
        }
    }
    assert_eq!(at, expected.len(), "the end comes behind all bytes");
}

#[test]
fn both_directions_go_around_tcp_on_every_kind_of_address() {
    let Some(mut world) = World::new() else { return };
    for (number, address) in (1..).zip(["127.0.0.1:0", "127.0.0.9:0", "0.0.0.0:0", "[::1]:0", "[::]:0"]) {
        let listener = world.listener(address);
        let (mut client, mut server) = pair(&listener);
        let mut buffer = [0; 100];
        client.write_all(b"question").expect("written");
        assert_eq!(server.read(&mut buffer).expect("read"), 8, "{address}");
        server.write_all(b"the answer").expect("written");
        assert_eq!(client.read(&mut buffer).expect("read"), 10, "{address}");
        let counters = world.counters();
        assert_eq!((counters.bytes_bypass, counters.connections_bypass), (18 * number, number), "{address}");
        assert_eq!(world.bypass.ends(10).expect("listed").len(), 2, "{address}");
        drop((client, server));
        until("the sockets to leave the map", || world.bypass.ends(10).expect("listed").is_empty());
    }
    let counters = world.counters();
    assert_eq!((counters.bytes_tcp, counters.connections_tcp, counters.switched), (0, 0, 0));
}

#[test]
fn every_byte_arrives_once_and_in_order() {
    let Some(mut world) = World::unregistered() else { return };
    let listener = world.listener("127.0.0.1:0");
    // The first size never fills a queue, the others go over to TCP on the way.
    for (round, largest) in [256, 16 * 1024, 1 << 20, 1 << 20].into_iter().enumerate() {
        let (there, back) = (content(round as u64, 6 << 20), content(round as u64 + 100, 4 << 20));
        let len = if largest < 1000 { 200_000 } else { usize::MAX };
        let (there, back) = (&there[..there.len().min(len)], &back[..back.len().min(len)]);
        let (client, server) = pair(&listener);
        thread::scope(|scope| {
            scope.spawn(|| send(&client, there, 1, largest));
            scope.spawn(|| send(&server, back, 2, largest));
            scope.spawn(|| receive(&server, there, 3));
            scope.spawn(|| receive(&client, back, 4));
        });
    }
    let counters = world.counters();
    assert!(counters.bytes_bypass > 0 && counters.switched > 0, "both ways were tried: {counters:?}");
}

#[test]
fn a_reader_that_reads_nothing_pins_what_is_bounded_and_loses_nothing() {
    let Some(mut world) = World::new() else { return };
    let listener = world.listener("127.0.0.1:0");
    for size in [1, 100, 10_000, 40_000] {
        let before = world.counters();
        let (mut client, mut server) = pair(&listener);
        client.set_nonblocking(true).expect("set");
        let bytes = content(7, 64 << 20);
        let mut sent = 0;
        // Small ones are bounded by their number, and TCP takes many of them.
        while sent < bytes.len() && sent / size < 20_000 {
            match client.write(&bytes[sent..(sent + size).min(bytes.len())]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        let counters = world.counters();
        assert_eq!(counters.switched - before.switched, 1, "{size}: over to TCP, once");
        let around = counters.bytes_bypass - before.bytes_bypass;
        let half = rustix::net::sockopt::socket_recv_buffer_size(&server).expect("a size") as u64 / 2;
        let bound = half.min(u64::from(BYPASS_MESSAGES_MAX) * size as u64);
        assert!(around > 0 && around <= bound, "{size}: {around} of {bound} bytes are unread");
        drop(client);
        let mut received = Vec::new();
        server.read_to_end(&mut received).expect("read");
        assert!(received == bytes[..sent], "{size}: {} of {sent} bytes", received.len());
    }
}

#[test]
fn each_half_ends_for_itself_in_every_order() {
    let Some(mut world) = World::unregistered() else { return };
    let listener = world.listener("127.0.0.1:0");
    for client_first in [true, false] {
        for unread in [true, false] {
            let (mut client, mut server) = pair(&listener);
            let (first, second) = if client_first { (&mut client, &mut server) } else { (&mut server, &mut client) };
            let mut buffer = [0; 100];
            if unread {
                first.write_all(b"last words").expect("written");
            }
            first.shutdown(Shutdown::Write).expect("shut");
            assert_eq!(first.write(b"x").map_err(|error| error.kind()), Err(ErrorKind::BrokenPipe));
            if unread {
                assert_eq!(second.read(&mut buffer).expect("read"), 10);
            }
            assert_eq!(second.read(&mut buffer).expect("the end"), 0);
            second.write_all(b"still here").expect("written");
            assert_eq!(first.read(&mut buffer).expect("read"), 10);
            second.write_all(b"more").expect("written");
            second.shutdown(Shutdown::Write).expect("shut");
            assert_eq!(first.read(&mut buffer).expect("read"), 4);
            assert_eq!(first.read(&mut buffer).expect("the end"), 0);
        }
    }
    // Whoever does not read any more still takes what comes.
    let (mut client, mut server) = pair(&listener);
    server.shutdown(Shutdown::Read).expect("shut");
    client.write_all(b"taken").expect("written");
    assert_eq!(server.read(&mut [0; 100]).expect("read"), 5);
    assert_eq!(server.read(&mut [0; 100]).expect("the end"), 0);
}

#[test]
fn a_close_shows_as_tcp_shows_it() {
    let Some(mut world) = World::new() else { return };
    let bypassed = world.listener("127.0.0.1:0");
    let plain = TcpListener::bind("127.0.0.1:0").expect("bound");
    // The process is a registered proxy: without this, what it connects would be captured, too.
    world.bypass.set_port(reach(&plain).port(), false).expect("set");
    let seen = [&plain, &bypassed].map(|listener| {
        let mut seen = Vec::new();
        let mut note = |what: &str, socket: &mut TcpStream| {
            let mut buffer = [0; 100];
            for _ in 0..3 {
                seen.push(format!("{what}: read {:?}", socket.read(&mut buffer).map_err(|error| error.kind())));
            }
            for _ in 0..2 {
                seen.push(format!("{what}: write {:?}", socket.write(b"x").map_err(|error| error.kind())));
            }
        };
        let (mut client, mut server) = pair(listener);
        client.write_all(b"read").expect("written");
        server.read_exact(&mut [0; 4]).expect("read");
        server.write_all(b"last words").expect("written");
        drop(server);
        note("closed", &mut client);
        let (mut client, mut server) = pair(listener);
        server.write_all(b"last words").expect("written");
        rustix::net::sockopt::set_socket_linger(&server, Some(Duration::ZERO)).expect("set");
        drop(server);
        note("reset", &mut client);
        let (mut client, mut server) = pair(listener);
        server.write_all(b"last words").expect("written");
        server.shutdown(Shutdown::Both).expect("shut");
        note("shut", &mut client);
        let (mut client, server) = pair(listener);
        rustix::net::connect_unspec(&server).expect("dissolved");
        note("dissolved", &mut client);
        seen
    });
    assert_eq!(seen[0], seen[1], "plain TCP and bypass");
    assert!(world.counters().bytes_bypass > 0);
}

#[test]
fn a_close_with_unread_data_is_an_end_at_least() {
    let Some(mut world) = World::new() else { return };
    let listener = world.listener("127.0.0.1:0");
    let (mut client, server) = pair(&listener);
    client.write_all(b"nobody reads this").expect("written");
    drop(server);
    // TCP would say ECONNRESET (ARCHITECTURE.md, "The bypass").
    match client.read(&mut [0; 10]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("{other:?}"),
    }
    until("a write to fail", || client.write(b"x").is_err());
    assert_eq!(client.write(b"x").map_err(|error| error.kind()), Err(ErrorKind::BrokenPipe));
}

#[test]
fn a_port_that_is_switched_off_goes_over_to_tcp_without_losing_a_byte() {
    let Some(mut world) = World::new() else { return };
    let listener = world.listener("127.0.0.1:0");
    let (mut client, mut server) = pair(&listener);
    client.write_all(b"around, ").expect("written");
    world.bypass.set_port(reach(&listener).port(), false).expect("set");
    assert_eq!(world.bypass.ports_off(), [reach(&listener).port()]);
    client.write_all(b"and by TCP").expect("written");
    let mut buffer = [0; 18];
    server.read_exact(&mut buffer).expect("read");
    assert_eq!(&buffer, b"around, and by TCP");
    let counters = world.counters();
    assert_eq!((counters.bytes_bypass, counters.switched), (8, 1));
    // A new connection is not captured, until the port is on again.
    let (mut plain, _server) = pair(&listener);
    plain.write_all(b"x").expect("written");
    world.bypass.set_port(reach(&listener).port(), true).expect("set");
    let (mut again, _server) = pair(&listener);
    again.write_all(b"four").expect("written");
    assert_eq!(world.counters().bytes_bypass, 12);
}

#[test]
fn while_the_kernel_is_short_of_memory_everything_goes_by_tcp() {
    let Some(mut world) = World::new() else { return };
    let listener = world.listener("127.0.0.1:0");
    let (mut client, mut server) = pair(&listener);
    client.write_all(b"around, ").expect("written");
    world.bypass.set_pressed(true).expect("set");
    assert!(world.bypass.is_pressed());
    client.write_all(b"and by TCP").expect("written");
    let mut buffer = [0; 18];
    server.read_exact(&mut buffer).expect("read");
    assert_eq!(&buffer, b"around, and by TCP");
    let (mut meanwhile, mut other) = pair(&listener);
    meanwhile.write_all(b"plain").expect("written");
    other.read_exact(&mut buffer[..5]).expect("read");
    world.bypass.set_pressed(false).expect("set");
    // No direction comes back; a new connection is captured.
    client.write_all(b"and on").expect("written");
    server.read_exact(&mut buffer[..6]).expect("read");
    assert_eq!(world.counters().bytes_bypass, 8);
    let (mut again, _server) = pair(&listener);
    again.write_all(b"four").expect("written");
    assert_eq!(world.counters().bytes_bypass, 12);
}

#[test]
fn a_drained_bypass_loses_nothing_and_captures_nothing() {
    let Some(mut world) = World::new() else { return };
    let listener = world.listener("127.0.0.1:0");
    let (mut client, mut server) = pair(&listener);
    client.write_all(b"before").expect("written");
    world.bypass.drain().expect("drained");
    client.write_all(b" and after").expect("written");
    let mut buffer = [0; 16];
    server.read_exact(&mut buffer).expect("read");
    assert_eq!(&buffer, b"before and after");
    let (mut client, mut server) = pair(&listener);
    client.write_all(b"plain").expect("written");
    server.read_exact(&mut buffer[..5]).expect("read");
    assert_eq!(world.counters().bytes_bypass, 6);
}

#[test]
fn connections_outlive_the_process_that_has_installed_the_bypass() {
    let Some(mut world) = World::new() else { return };
    let listener = world.listener("127.0.0.1:0");
    let (mut client, mut server) = pair(&listener);
    client.write_all(b"before").expect("written");
    // All descriptors of programs and maps go, as when control is killed.
    let cgroup = world.cgroup.clone();
    world.bypass.unregister(world.slot);
    world.bypass = Bypass::install(Some(&cgroup)).expect("another one");
    client.write_all(b" and after").expect("written");
    let mut buffer = [0; 16];
    server.read_exact(&mut buffer).expect("read");
    assert_eq!(&buffer, b"before and after");
    server.write_all(b"back").expect("written");
    client.read_exact(&mut buffer[..4]).expect("read");
    assert_eq!(&buffer[..4], b"back");
}

#[test]
fn a_socket_of_another_process_on_a_registered_address_is_not_captured() {
    let Some(mut world) = World::unregistered() else { return };
    let listener = world.listener("127.0.0.1:0");
    let address = reach(&listener);
    let (mut client, server) = pair(&listener);
    client.write_all(b"ours").expect("written");
    assert_eq!(world.counters().bytes_bypass, 4);
    rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).expect("set");
    drop((listener, client, server));
    // The address is still registered, and the socket that listens there now is not: as when a port is taken by another
    // process before control knows that the proxy has gone.
    let foreign = rebind(address);
    let (mut client, mut server) = pair(&foreign);
    for _ in 0..3 {
        client.write_all(b"theirs").expect("written");
        server.read_exact(&mut [0; 6]).expect("read");
        server.write_all(b"and back").expect("written");
        client.read_exact(&mut [0; 8]).expect("read");
    }
    let counters = world.counters();
    assert_eq!((counters.bytes_bypass, counters.connections_bypass), (4, 1), "{counters:?}");
    // Neither is what a process connects that has the number of a registered one no longer.
    let (mut client, _server) = pair(&TcpListener::bind("127.0.0.1:0").expect("bound"));
    client.write_all(b"x").expect("written");
    assert_eq!(world.counters(), counters);
}

/// Binds an address that was in use a moment ago.
fn rebind(address: SocketAddr) -> TcpListener {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpListener::bind(address) {
            Ok(listener) => return listener,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        thread::yield_now();
    }
}

#[test]
fn what_finds_no_room_stays_on_tcp_and_is_counted() {
    let Some(mut world) = World::with_room(4) else { return };
    let listener = world.listener("127.0.0.1:0");
    let mut pairs: Vec<_> = (0..6).map(|_| pair(&listener)).collect();
    for (client, server) in &mut pairs {
        client.write_all(b"to").expect("written");
        server.read_exact(&mut [0; 2]).expect("read");
        server.write_all(b"fro").expect("written");
        client.read_exact(&mut [0; 3]).expect("read");
    }
    let counters = world.counters();
    assert_eq!(counters.connections_bypass, 2, "{counters:?}");
    assert_eq!(counters.bytes_bypass, 10, "{counters:?}");
    assert!(counters.full >= 4, "{counters:?}");
}

#[test]
fn thousands_of_connections_leave_nothing_behind() {
    let Some(mut world) = World::new() else { return };
    let listener = world.listener("127.0.0.1:0");
    let address = reach(&listener);
    let count = 10_000;
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..count {
                let (mut server, _) = listener.accept().expect("accepted");
                let mut word = [0; 8];
                server.read_exact(&mut word).expect("read");
                server.write_all(&word).expect("written");
            }
        });
        for number in 0..count as u64 {
            let mut client = TcpStream::connect(address).expect("connected");
            client.write_all(&number.to_ne_bytes()).expect("written");
            let mut word = [0; 8];
            client.read_exact(&mut word).expect("read");
            assert_eq!(u64::from_ne_bytes(word), number);
            // In place of a FIN: else each port would have to wait.
            rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).expect("set");
        }
    });
    let counters = world.counters();
    assert_eq!((counters.connections_bypass, counters.bytes_bypass), (count as u64, 16 * count as u64), "{counters:?}");
    until("the sockets to leave the map", || world.bypass.ends(10).expect("listed").is_empty());
}

#[test]
fn a_cgroup_that_is_none_is_named() {
    for (path, reason) in [("/sys/fs/cgroup/no-such-group", "No such file"), ("/tmp", "not a directory of the cgroup2")]
    {
        let error = Bypass::install(Some(Path::new(path))).expect_err("no cgroup").to_string();
        assert!(error.contains(path) && error.contains(reason), "{error}");
    }
}

/// CPU time of the whole process, kernel included: it is both ends.
fn cpu_us() -> u64 {
    let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    usage.tv_sec.unsigned_abs() * 1_000_000 + usage.tv_nsec.unsigned_abs() / 1000
}

/// `cargo test --release -p meshring-ctl --test bypass -- --ignored --nocapture`: what it costs to set up and end a
/// connection, in interleaved rounds.
#[test]
#[ignore = "measures"]
fn setting_up_a_connection_costs_little_more_than_with_tcp() {
    let Some(mut world) = World::new() else { return };
    let plain = TcpListener::bind("127.0.0.1:0").expect("bound");
    let bypassed = world.listener("127.0.0.1:0");
    world.bypass.set_port(reach(&plain).port(), false).expect("set");
    let round = |listener: &TcpListener, speaks: bool| {
        let (count, begin, busy) = (5_000, Instant::now(), cpu_us());
        for _ in 0..count {
            let (mut client, mut server) = pair(listener);
            if speaks {
                client.write_all(&[0; 100]).expect("written");
                server.read_exact(&mut [0; 100]).expect("read");
                server.write_all(&[0; 100]).expect("written");
                client.read_exact(&mut [0; 100]).expect("read");
            }
            rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).expect("set");
        }
        [begin.elapsed().as_micros() as f64 / f64::from(count), (cpu_us() - busy) as f64 / f64::from(count)]
    };
    for speaks in [false, true] {
        for _ in 0..5 {
            let [tcp, around] = [round(&plain, speaks), round(&bypassed, speaks)];
            println!("speaks {speaks}: time, CPU in us: TCP {tcp:.2?}, bypass {around:.2?}, {:.3}", around[0] / tcp[0]);
        }
    }
}
