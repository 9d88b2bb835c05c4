//! What a megabyte costs, spliced and through userspace. The machine of tests/vm can count instructions instead of time
//! (`-i`): then a nanosecond of its clock is one instruction, whoever executes it, kernel or we.

use std::{
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    time::Instant,
};

use rustls::ExtractedSecrets;

use super::{Pipe, Spliced, default_suite, moved, pair, present, set_nonblocking, sockets};
use crate::worker::{
    ktls::tests::pair::{Ours, Peer},
    secure::record::{RECORD_BYTES_MAX, RecordKey},
};

const CHUNK_BYTES: usize = 16 * 1024;
const CHUNKS: usize = 64;

/// Instructions, or nanoseconds, and system calls.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    units: u64,
    calls: u64,
}

impl Cost {
    fn per_mb(self) -> Self {
        let mb = |value: u64| value * 1_000_000 / (CHUNK_BYTES * CHUNKS) as u64;
        Self { units: mb(self.units), calls: mb(self.calls) }
    }

    /// One thread, and what is measured never waits: nothing else's work is counted but the network stack's own.
    fn measure(&mut self, calls: u64, work: impl FnOnce()) {
        let begun = Instant::now();
        work();
        self.units += begun.elapsed().as_nanos() as u64;
        self.calls += calls;
    }
}

/// One record from the peer, ready to be read.
fn feed(peer: &mut Peer, chunk: &[u8]) {
    peer.send(chunk);
}

/// What comes out of kernel TLS, spliced to a plain socket: two calls for a record.
fn spliced() -> Option<Cost> {
    let (kernel, mut peer, _) = moved(Ours::Server)?;
    let (plain, mut far) = sockets();
    set_nonblocking(kernel.fd(), true).unwrap();
    set_nonblocking(plain.as_raw_fd(), true).unwrap();
    let (mut pipe, mut cost) = (Pipe::new().unwrap(), Cost::default());
    let (chunk, mut received) = (super::pattern(CHUNK_BYTES), vec![0; CHUNK_BYTES]);
    for _ in 0..CHUNKS {
        feed(&mut peer, &chunk);
        super::wait(kernel.fd(), rustix::event::PollFlags::IN);
        cost.measure(2, || {
            assert_eq!(pipe.splice_in(kernel.fd(), CHUNK_BYTES).unwrap(), Spliced::Bytes(CHUNK_BYTES));
            assert_eq!(pipe.splice_out(plain.as_raw_fd(), CHUNK_BYTES).unwrap(), CHUNK_BYTES);
        });
        far.read_exact(&mut received).unwrap();
        assert_eq!(received, chunk);
    }
    Some(cost.per_mb())
}

/// The same through our own records: read, open, write.
fn through_userspace() -> Cost {
    let (mut ours, mut peer) = pair(default_suite(), Ours::Server);
    let ExtractedSecrets { rx: (sequence, secrets), .. } = &ours.secrets;
    let mut key = RecordKey::new(secrets, *sequence, ours.version).unwrap();
    let (mut plain, mut far) = sockets();
    let mut cost = Cost::default();
    let (chunk, mut received) = (super::pattern(CHUNK_BYTES), vec![0; CHUNK_BYTES]);
    let mut bytes = vec![0; RECORD_BYTES_MAX];
    for _ in 0..CHUNKS {
        feed(&mut peer, &chunk);
        super::wait(ours.fd(), rustix::event::PollFlags::IN);
        cost.measure(2, || {
            let mut count = ours.socket.read(&mut bytes).unwrap();
            // A record is one segment or two on loopback; all of them are there.
            while count < CHUNK_BYTES + 22 {
                count += ours.socket.read(&mut bytes[count..]).unwrap();
            }
            let opened = key.open(&mut bytes[..count]).unwrap();
            plain.write_all(&bytes[opened.start..opened.start + opened.len]).unwrap();
        });
        far.read_exact(&mut received).unwrap();
        assert_eq!(received, chunk);
    }
    cost.per_mb()
}

#[test]
fn the_cost_of_a_megabyte_is_told() {
    if present().is_none() {
        return;
    }
    // Twice: the first round warms up what the kernel allocates.
    for round in 1..=2 {
        let (spliced, userspace) = (spliced().unwrap(), through_userspace());
        println!("round {round}: spliced {spliced:?}, userspace {userspace:?} per MB");
        println!("round {round}: ratio {:.2}", spliced.units as f64 / userspace.units as f64);
    }
}
