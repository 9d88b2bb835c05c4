//! What a thread sees that waits in a *blocking* read when something else than data wakes it. The kernel's `tcp_bpf_recvmsg`
//! sleeps once: where it finds neither data nor an end of it then, it says EAGAIN, where `tcp_recvmsg` sleeps again or says
//! why (net/ipv4/tcp_bpf.c, 6.12 and 6.18 alike). What comes behind that EAGAIN is what TCP shows.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    net::{SendFlags, send},
    thread::gettid,
};

use super::{
    PATIENCE, World,
    world::{pair, reach, until},
};

/// What a read came to: the bytes, or the kind of its error.
type Outcome = Result<usize, ErrorKind>;

/// Reads in a thread of its own, does something once that waits in the kernel, and tells how often the read came back with
/// EAGAIN and what it came to then.
fn woken(socket: &TcpStream, wake: impl FnOnce()) -> (usize, Outcome) {
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let (mut socket, deadline) = (socket, Instant::now() + PATIENCE);
            let mut for_nothing = 0;
            tell.send(gettid().as_raw_nonzero()).expect("told");
            loop {
                match socket.read(&mut [0; 100]).map_err(|error| error.kind()) {
                    Err(ErrorKind::WouldBlock) if Instant::now() < deadline => for_nothing += 1,
                    outcome => return (for_nothing, outcome),
                }
            }
        });
        let call = format!("/proc/self/task/{}/syscall", told.recv().expect("the thread"));
        let waits = format!("{} ", libc::SYS_recvfrom);
        until("the thread to wait in the kernel", || {
            fs::read_to_string(&call).is_ok_and(|call| call.starts_with(&waits))
        });
        wake();
        reader.join().expect("read")
    })
}

/// Stops this process and lets it go on, as debuggers, shells and freezers of containers do. What waits in a read of TCP does
/// not notice.
fn stop_and_continue() {
    let pid = std::process::id();
    let script =
        format!("kill -STOP {pid}; until grep -q '^State:.T' /proc/{pid}/status; do :; done; kill -CONT {pid}");
    assert!(Command::new("sh").args(["-c", &script]).status().expect("run").success());
}

/// Everything that wakes a reader. Each name with what the reader saw.
fn all_of(listener: &TcpListener) -> Vec<(&'static str, usize, Outcome)> {
    let mut seen = Vec::new();
    let mut note = |what, (for_nothing, outcome)| seen.push((what, for_nothing, outcome));
    let (client, mut server) = pair(listener);
    note("data", woken(&client, || server.write_all(b"four").expect("written")));
    // A read with a time limit fails with EINTR when it is stopped, by TCP, too (signal(7)).
    client.set_read_timeout(None).expect("set");
    note(
        "a signal",
        woken(&client, || {
            stop_and_continue();
            server.write_all(b"fifth").expect("written");
        }),
    );
    note("an end", woken(&client, || drop(server)));

    let (client, server) = pair(listener);
    rustix::net::sockopt::set_socket_linger(&server, Some(Duration::ZERO)).expect("set");
    note("a reset", woken(&client, || drop(server)));

    let (client, _server) = pair(listener);
    note("the other thread's shutdown", woken(&client, || client.shutdown(Shutdown::Read).expect("shut")));

    // The other end does not read until nothing more goes in: then a writer waits for room, and the reader is woken for it.
    let (client, mut server) = pair(listener);
    let (mut sent, mut refused) = (0, 0);
    // What is acknowledged meanwhile makes room once more.
    while refused < 1000 {
        match send(&client, &[0; 16 * 1024], SendFlags::DONTWAIT) {
            Ok(count) => (sent, refused) = (sent + count, 0),
            Err(error) => {
                assert_eq!(error, rustix::io::Errno::AGAIN);
                refused += 1;
                thread::yield_now();
            }
        }
    }
    note(
        "room for writing",
        woken(&client, || {
            server.read_exact(&mut vec![0; sent]).expect("read");
            server.write_all(b"sixth.").expect("written");
        }),
    );
    seen
}

#[test]
fn a_blocking_reader_that_is_woken_for_nothing_sees_at_its_next_read_what_tcp_shows() {
    let Some(mut world) = World::new() else { return };
    let bypassed = world.listener("127.0.0.1:0");
    let plain = TcpListener::bind("127.0.0.1:0").expect("bound");
    // The process is a registered proxy: without this, what it connects would be captured, too.
    world.bypass.set_port(reach(&plain).port(), false).expect("set");
    let (by_tcp, around) = (all_of(&plain), all_of(&bypassed));
    println!("{around:?}");
    assert_eq!(world.counters().connections_bypass, 4);
    for (tcp, bypass) in by_tcp.iter().zip(&around) {
        assert_eq!(tcp.1, 0, "TCP wakes nobody for nothing: {tcp:?}");
        assert_eq!(tcp.2, bypass.2, "in the end TCP and bypass show the same: {tcp:?}, {bypass:?}");
        // These two are what every reader waits for.
        assert!(bypass.1 == 0 || !["data", "an end"].contains(&bypass.0), "{bypass:?}");
    }
}
