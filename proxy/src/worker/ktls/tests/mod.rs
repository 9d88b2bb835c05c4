//! Against rustls, with the kernel's own sockets. Where the kernel has no TLS these tests say so and check that it is
//! refused cleanly; `MESHRING_EXPECT_KTLS=1`, which the virtual machine of tests/vm sets, makes that a failure.

mod cost;
mod pair;

use std::{
    cell::RefCell,
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    os::fd::{AsRawFd as _, RawFd},
    thread,
};

use aws_lc_rs::digest::{SHA256, digest};
use rustix::event::{PollFd, PollFlags, poll};
use rustls::{AlertDescription, ConnectionTrafficSecrets, ContentType, ProtocolVersion};

use self::pair::{Kernel, Ours, Peer, default_suite, pair, sockets, suites};
use super::probe::Absence;
use super::{
    EnableError, Pipe, Probe, Received, Records, Secrets, probe, receive_record, rekey_rx, rekey_tx, send_record,
    set_nonblocking,
};
use crate::worker::secure::KeySchedule;

const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// What the kernel does, if it does any TLS.
fn present() -> Option<Probe> {
    let probe = probe();
    if probe.is_present() {
        return Some(probe);
    }
    assert!(std::env::var_os("MESHRING_EXPECT_KTLS").is_none(), "{probe}");
    // Not silent where there is nothing to test: what must hold is that the connection is left as it was.
    let (mut kernel, mut peer) = pair(default_suite(), Ours::Server);
    let refused = kernel.enable();
    assert!(matches!(refused, Err(EnableError::Ulp(_))), "the probe says {probe}, the kernel {refused:?}");
    peer.send(b"x");
    let mut header = [0; 5];
    kernel.socket.read_exact(&mut header).unwrap();
    assert_eq!(header[0], 23, "the record is there as it was sent");
    None
}

fn moved(ours: Ours) -> Option<(Kernel, Peer, Probe)> {
    let probe = present()?;
    let (kernel, peer) = pair(default_suite(), ours);
    kernel.enable().unwrap();
    Some((kernel, peer, probe))
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + (at >> 8) * 7 + (at >> 16)) as u8).collect()
}

fn wait(fd: RawFd, flags: PollFlags) {
    // SAFETY: the tests keep their sockets open.
    let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    let limit = rustix::time::Timespec { tv_sec: 60, tv_nsec: 0 };
    assert_ne!(poll(&mut [PollFd::new(&socket, flags)], Some(&limit)).unwrap(), 0, "nothing happens");
}

/// The next record of any type.
fn next(kernel: &Kernel) -> io::Result<(Received, Vec<u8>)> {
    let mut bytes = vec![0; 32 * 1024];
    loop {
        match receive_record(kernel.fd(), &mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(kernel.fd(), PollFlags::IN),
            Ok(received) => {
                if let Received::Record(_, count) = received {
                    bytes.truncate(count);
                }
                return Ok((received, bytes));
            }
            Err(error) => return Err(error),
        }
    }
}

fn os_error(result: io::Result<usize>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

#[test]
fn the_probe_says_what_the_kernel_does() {
    let probe = probe();
    let text = probe.to_string();
    println!("{text}");
    match probe.absence() {
        None => {
            assert!(text.contains("TLS 1.3 AES-128-GCM"), "{text}");
            // The release decides, and the probe must find it out by itself.
            let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
            let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
            let version = (numbers.next().unwrap(), numbers.next().unwrap());
            assert_eq!(probe.can_rekey(), version >= (6, 14), "Linux {release}: {text}");
        }
        Some(Absence::NoModule) => assert!(text.contains("tls module not loaded (ENOENT)"), "{text}"),
        Some(absence) => assert!(text.ends_with(&absence.to_string()), "{text}"),
    }
    let _ = present();
}

#[test]
fn what_the_probe_promises_can_be_moved_and_every_byte_arrives() {
    let Some(probe) = present() else { return };
    let mut moved = 0;
    for suite in suites() {
        for ours in [Ours::Client, Ours::Server] {
            let (kernel, peer) = pair(suite, ours);
            let enabled = kernel.enable();
            assert_eq!(enabled.is_ok(), kernel.is_supported(&probe), "{suite:?}: {enabled:?}, {probe}");
            if enabled.is_ok() {
                exchange(kernel, peer, &format!("{:?} as {ours:?}", suite.suite()));
                moved += 1;
            }
        }
    }
    println!("{moved} combinations of suite and side; {probe}");
    assert!(moved >= 2);
}

/// Both ways at once, in writes of very different sizes.
fn exchange(kernel: Kernel, mut peer: Peer, what: &str) {
    let sizes = [1, 2, 100, 1_000, 16_384, 16_385, 65_536, 1 << 20];
    let total: usize = sizes.iter().sum();
    let bytes = pattern(total);
    let expected = digest(&SHA256, &bytes);
    let mut writer = kernel.socket.try_clone().unwrap();
    let sent = bytes.clone();
    let writing = thread::spawn(move || {
        let mut rest = &sent[..];
        for size in sizes {
            writer.write_all(&rest[..size]).unwrap();
            rest = &rest[size..];
        }
    });
    assert_eq!(
        digest(&SHA256, &peer.receive(total).unwrap()).as_ref(),
        expected.as_ref(),
        "sent by the kernel: {what}"
    );
    writing.join().unwrap();
    // A client gets session tickets before the data.
    while matches!(kernel.schedule, KeySchedule::Client(_)) && is_control_next(&kernel, &mut peer) {
        assert!(matches!(next(&kernel).unwrap().0, Received::Record(ContentType::Handshake, _)), "{what}");
    }
    let mut reader = kernel.socket.try_clone().unwrap();
    let reading = thread::spawn(move || {
        let mut received = vec![0; total];
        reader.read_exact(&mut received).unwrap();
        received
    });
    let mut rest = &bytes[..];
    for size in sizes {
        peer.send(&rest[..size]);
        rest = &rest[size..];
    }
    assert_eq!(digest(&SHA256, &reading.join().unwrap()).as_ref(), expected.as_ref(), "opened by the kernel: {what}");
}

/// Whether a message that is no data is there: rustls' server has sent its tickets with its last flight.
fn is_control_next(kernel: &Kernel, _peer: &mut Peer) -> bool {
    if kernel.version == ProtocolVersion::TLSv1_2 {
        return false;
    }
    let (mut byte, socket) = ([0; 1], &kernel.socket);
    socket.set_nonblocking(true).unwrap();
    let peeked = socket.peek(&mut byte);
    socket.set_nonblocking(false).unwrap();
    match peeked {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
        Err(error) => error.raw_os_error() == Some(libc::EIO),
        Ok(_) => false,
    }
}

#[test]
fn close_notify_is_seen_and_said() {
    let Some((mut kernel, mut peer, _)) = moved(Ours::Server) else { return };
    peer.send(b"last words");
    peer.close_notify();
    let mut bytes = [0; 64];
    kernel.socket.read_exact(&mut bytes[..10]).unwrap();
    assert_eq!(&bytes[..10], b"last words");
    // A plain read never takes it for an end, as often as it is tried.
    assert_eq!(os_error(kernel.socket.read(&mut bytes)), Some(libc::EIO));
    assert_eq!(os_error(kernel.socket.read(&mut bytes)), Some(libc::EIO));
    assert_eq!(next(&kernel).unwrap(), (Received::Record(ContentType::Alert, 2), CLOSE_NOTIFY.to_vec()));
    assert_eq!(send_record(kernel.fd(), ContentType::Alert, &CLOSE_NOTIFY).unwrap(), 2);
    kernel.socket.shutdown(Shutdown::Write).unwrap();
    assert_eq!(peer.receive(1).unwrap(), b"", "a clean end");
}

#[test]
fn a_fatal_alert_reaches_the_peer_and_comes_from_it() {
    let Some((kernel, mut peer, _)) = moved(Ours::Server) else { return };
    assert_eq!(send_record(kernel.fd(), ContentType::Alert, &[2, 80]).unwrap(), 2);
    let error = peer.receive(1).unwrap_err();
    assert_eq!(error, rustls::Error::AlertReceived(AlertDescription::InternalError));

    // A message that no server expects: rustls says so with an alert of its own.
    let Some((kernel, mut peer, _)) = moved(Ours::Server) else { return };
    assert_eq!(send_record(kernel.fd(), ContentType::Handshake, &[20, 0, 0, 0]).unwrap(), 4);
    assert!(peer.receive(1).is_err());
    peer.flush();
    let (received, bytes) = next(&kernel).unwrap();
    assert_eq!((received, bytes[0]), (Received::Record(ContentType::Alert, 2), 2));
}

#[test]
fn a_cut_stream_shows_no_close_notify() {
    let Some((kernel, mut peer, _)) = moved(Ours::Server) else { return };
    peer.send(b"some");
    peer.cut();
    assert_eq!(next(&kernel).unwrap(), (Received::Record(ContentType::ApplicationData, 4), b"some".to_vec()));
    assert_eq!(next(&kernel).unwrap().0, Received::End, "an end, and no alert before it");
}

#[test]
fn a_record_that_is_cut_or_changed_gives_no_bytes() {
    for is_cut in [true, false] {
        let Some((kernel, mut peer, _)) = moved(Ours::Server) else { return };
        peer.connection.writer().write_all(&pattern(1_000)).unwrap();
        let mut record = Vec::new();
        peer.connection.write_tls(&mut record).unwrap();
        if is_cut {
            record.truncate(500);
        } else {
            record[500] ^= 1;
        }
        peer.socket.write_all(&record).unwrap();
        peer.cut();
        match next(&kernel) {
            Ok((received, _)) => assert!(is_cut && received == Received::End, "{received:?}"),
            Err(error) if is_cut => println!("a record that is cut: {error}"),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EBADMSG)),
        }
    }
}

#[test]
fn session_tickets_are_taken_and_data_goes_on() {
    let Some((mut kernel, mut peer, _)) = moved(Ours::Client) else { return };
    peer.send(b"behind the tickets");
    let mut tickets = 0;
    let mut bytes = [0; 64];
    let count = loop {
        match kernel.socket.read(&mut bytes) {
            Ok(count) => break count,
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO)),
        }
        let (received, message) = next(&kernel).unwrap();
        assert!(matches!(received, Received::Record(ContentType::Handshake, _)), "{received:?}");
        let mut rest = &message[..];
        while let [kind, high, middle, low, behind @ ..] = rest {
            let len = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
            let KeySchedule::Client(client) = &mut kernel.schedule else { panic!("a client") };
            assert_eq!(*kind, 4);
            client.handle_new_session_ticket(&behind[..len]).unwrap();
            tickets += 1;
            rest = &behind[len..];
        }
    };
    assert_eq!(&bytes[..count], b"behind the tickets");
    assert!(tickets > 0);
    println!("{tickets} tickets");
}

fn next_keys(kernel: &mut Kernel, is_tx: bool) -> (u64, ConnectionTrafficSecrets) {
    match (&mut kernel.schedule, is_tx) {
        (KeySchedule::Server(connection), true) => connection.update_tx_secret(),
        (KeySchedule::Server(connection), false) => connection.update_rx_secret(),
        (KeySchedule::Client(connection), true) => connection.update_tx_secret(),
        (KeySchedule::Client(connection), false) => connection.update_rx_secret(),
    }
    .unwrap()
}

#[test]
fn the_peers_new_keys_are_taken_or_refused_cleanly() {
    let Some((mut kernel, mut peer, probe)) = moved(Ours::Server) else { return };
    for round in 0..3_u8 {
        peer.update_keys();
        peer.send(&[round; 5]);
        let (received, message) = next(&kernel).unwrap();
        assert_eq!(received, Received::Record(ContentType::Handshake, 5));
        assert_eq!(message[..4], KEY_UPDATE[..4]);
        if probe.can_rekey() && round == 0 {
            // The kernel does not try the old key on what comes behind.
            let mut bytes = [0; 16];
            assert_eq!(os_error(kernel.socket.read(&mut bytes)), Some(libc::EKEYEXPIRED));
        }
        let (sequence, secrets) = next_keys(&mut kernel, false);
        let secrets = Secrets { version: kernel.version, secrets: &secrets, sequence };
        let rekeyed = rekey_rx(kernel.fd(), secrets);
        if !probe.can_rekey() {
            assert_eq!(rekeyed.unwrap_err().raw_os_error(), Some(libc::EBUSY));
            // Nothing of what follows is given out, and the peer can still be told.
            assert_eq!(next(&kernel).unwrap_err().raw_os_error(), Some(libc::EBADMSG));
            println!("refused: {probe}");
            return;
        }
        rekeyed.unwrap();
        let mut bytes = [0; 5];
        kernel.socket.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [round; 5]);
    }
}

#[test]
fn our_new_keys_reach_the_peer() {
    let Some((mut kernel, mut peer, probe)) = moved(Ours::Server) else { return };
    for round in 0..3_u8 {
        kernel.socket.write_all(&[round; 7]).unwrap();
        assert_eq!(peer.receive(7).unwrap(), [round; 7]);
        let (sequence, secrets) = next_keys(&mut kernel, true);
        let secrets = Secrets { version: kernel.version, secrets: &secrets, sequence };
        if !probe.can_rekey() {
            // Asked without the message: the old key stays, and goes on to be understood.
            assert_eq!(rekey_tx(kernel.fd(), secrets).unwrap_err().raw_os_error(), Some(libc::EBUSY));
            kernel.socket.write_all(b"old").unwrap();
            assert_eq!(peer.receive(3).unwrap(), b"old");
            return;
        }
        assert_eq!(send_record(kernel.fd(), ContentType::Handshake, &KEY_UPDATE).unwrap(), 5);
        rekey_tx(kernel.fd(), secrets).unwrap();
    }
    kernel.socket.write_all(&pattern(100_000)).unwrap();
    assert_eq!(peer.receive(100_000).unwrap(), pattern(100_000));
}

#[test]
fn pipes_are_bounded_and_give_back_what_they_took() {
    let mut pipe = Pipe::new().unwrap();
    assert!(pipe.capacity() <= meshring_core::limits::SPLICE_PIPE_BYTES && pipe.capacity() > 0);
    let (mut from, near) = sockets();
    let (far, mut to) = sockets();
    assert!(!set_nonblocking(near.as_raw_fd(), true).unwrap());
    assert!(set_nonblocking(near.as_raw_fd(), true).unwrap());
    set_nonblocking(far.as_raw_fd(), true).unwrap();
    let nothing = pipe.splice_in(near.as_raw_fd(), 100).unwrap_err();
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    from.write_all(b"0123456789").unwrap();
    wait(near.as_raw_fd(), PollFlags::IN);
    assert_eq!(pipe.splice_in(near.as_raw_fd(), 4).unwrap(), 4);
    assert_eq!(pipe.splice_out(far.as_raw_fd(), 3).unwrap(), 3);
    assert_eq!(pipe.held(), 1);
    assert_eq!(pipe.splice_in(near.as_raw_fd(), 100).unwrap(), 6);
    assert_eq!(pipe.splice_out(far.as_raw_fd(), usize::MAX).unwrap(), 7);
    let mut bytes = [0; 10];
    to.read_exact(&mut bytes).unwrap();
    assert_eq!((&bytes, pipe.held()), (b"0123456789", 0));
    from.shutdown(Shutdown::Write).unwrap();
    wait(near.as_raw_fd(), PollFlags::IN);
    assert_eq!(pipe.splice_in(near.as_raw_fd(), 100).unwrap(), 0);
}

/// Moves all that comes until the source ends, or does not go on; both sockets do not block. System calls, polls apart.
fn relay(
    (from, to): (RawFd, RawFd),
    mut take: impl FnMut(RawFd) -> io::Result<usize>,
    mut give: impl FnMut(RawFd) -> io::Result<usize>,
) -> (io::Result<usize>, u64) {
    let mut calls = 0;
    loop {
        calls += 1;
        let mut held = match take(from) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(from, PollFlags::IN);
                continue;
            }
            Ok(count) if count > 0 => count,
            end => return (end, calls),
        };
        while held > 0 {
            calls += 1;
            match give(to) {
                Ok(count) => held -= count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(to, PollFlags::OUT),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn bytes_go_between_kernel_tls_and_plain_sockets() {
    const BYTES: usize = 3 << 20;
    let Some((kernel, mut peer, _)) = moved(Ours::Server) else { return };
    let bytes = pattern(BYTES);
    let expected = digest(&SHA256, &bytes);
    set_nonblocking(kernel.fd(), true).unwrap();

    // Opened: out of the kernel TLS socket.
    let (plain, mut far) = sockets();
    set_nonblocking(plain.as_raw_fd(), true).unwrap();
    let reading = thread::spawn(move || {
        let mut received = vec![0; BYTES];
        far.read_exact(&mut received).unwrap();
        received
    });
    let sent = bytes.clone();
    let sending = thread::spawn(move || {
        peer.send(&sent);
        peer.close_notify();
        peer
    });
    let records = RefCell::new(Records::new());
    let (end, calls) = relay(
        (kernel.fd(), plain.as_raw_fd()),
        |from| records.borrow_mut().take(from, usize::MAX),
        |to| records.borrow_mut().give(to),
    );
    println!("kernel TLS to plain: {} system calls per MB", calls * 1_000_000 / BYTES as u64);
    assert_eq!(os_error(end), Some(libc::EIO), "close_notify is not taken for an end");
    assert_eq!(next(&kernel).unwrap(), (Received::Record(ContentType::Alert, 2), CLOSE_NOTIFY.to_vec()));
    assert_eq!(digest(&SHA256, &reading.join().unwrap()).as_ref(), expected.as_ref());

    // Sealed: into it.
    let mut peer = sending.join().unwrap();
    let (plain, mut far) = sockets();
    set_nonblocking(plain.as_raw_fd(), true).unwrap();
    let writing = thread::spawn(move || {
        far.write_all(&bytes).unwrap();
        far.shutdown(Shutdown::Write).unwrap();
        far
    });
    let receiving = thread::spawn(move || peer.receive(BYTES).unwrap());
    let pipe = RefCell::new(Pipe::new().unwrap());
    let (end, calls) = relay(
        (plain.as_raw_fd(), kernel.fd()),
        |from| pipe.borrow_mut().splice_in(from, usize::MAX),
        |to| pipe.borrow_mut().splice_out(to, usize::MAX),
    );
    println!("plain to kernel TLS: {} system calls per MB", calls * 1_000_000 / BYTES as u64);
    assert_eq!(end.unwrap(), 0);
    let _open: TcpStream = writing.join().unwrap();
    assert_eq!(digest(&SHA256, &receiving.join().unwrap()).as_ref(), expected.as_ref());
}

#[test]
fn a_reset_needs_no_more_than_the_descriptor() {
    let Some((kernel, peer, _)) = moved(Ours::Server) else { return };
    crate::worker::readiness::reset(kernel.fd());
    // As the runtime's write half does when it is dropped.
    let _ = kernel.socket.shutdown(Shutdown::Write);
    drop(kernel);
    assert!(peer.socket.peer_addr().is_err(), "the peer has an end where it should have none");
}
