//! Tunnels between peers that these tests play, plain and over TLS, on both drivers. In a machine whose kernel has TLS (tests/vm) it is
//! the kernel's, and what is large goes from socket to socket.

use std::{
    net::{Shutdown, TcpListener},
    sync::mpsc,
};

use super::*;
use crate::{
    testing::{
        kernel_tls, on_each_driver, pair,
        peer::{Peer, Received, Town, pattern},
    },
    upstream::Reuse,
};

/// More than twice what a tunnel takes for large, and no more: in an emulated machine a megabyte takes its time.
const LARGE: usize = 600_000;
/// Client and upstream: whether each comes over TLS.
const WAYS: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];

/// Opens a tunnel, runs it between these two, and gives what came of them. `secured`: see [`WAYS`].
async fn between<C: Send + 'static, U: Send + 'static>(
    worker: &Worker,
    secured: (bool, bool),
    client: impl FnOnce(&mut Peer) -> C + Send + 'static,
    upstream: impl FnOnce(&mut Peer) -> U + Send + 'static,
) -> (C, U) {
    let town = Town::new();
    let (mut conn, client) = town.client(worker, secured.0, client).await;
    let (lease, upstream) = town.upstream(worker, secured.1, upstream).await;
    let input = || Input::new(worker.buffers.lazy());
    let mut tunnel = Tunnel::new(lease, input(), input());
    tunnel.run(worker, &mut conn).await;
    drop((tunnel, conn));
    let done = (client.join(), upstream.join());
    let (Ok(client), Ok(upstream)) = done else { panic!("a peer has failed, secured: {secured:?}") };
    assert_eq!(worker.buffers.used_bytes(), 0);
    (client, upstream)
}

fn spliced(worker: &Worker) -> u64 {
    worker.stats.page().total(Counter::SplicedBytes)
}

/// Whether what is large must go from socket to socket.
fn is_spliced(secured: (bool, bool)) -> bool {
    kernel_tls().is_some() || secured == (false, false)
}

#[test]
fn ktls_what_is_large_is_exact_both_ways_at_once_and_what_is_small_is_not_spliced() {
    on_each_driver(async |worker| {
        for secured in WAYS {
            let before = spliced(&worker);
            let (client, upstream) = between(
                &worker,
                secured,
                |peer| {
                    let mut down = Vec::new();
                    assert_eq!(peer.exchange(&pattern(1, LARGE), LARGE, &mut down), Received::All);
                    for _ in 0..50 {
                        peer.send(b"question");
                        assert_eq!(peer.receive(6), b"answer");
                    }
                    peer.finish_sending();
                    assert_eq!(peer.rest(), (Vec::new(), Received::End));
                    down
                },
                |peer| {
                    let mut up = Vec::new();
                    // The first question may come right behind it.
                    assert_eq!(peer.exchange(&pattern(2, LARGE), LARGE + 8, &mut up), Received::All);
                    peer.send(b"answer");
                    for _ in 1..50 {
                        assert_eq!(peer.receive(8), b"question");
                        peer.send(b"answer");
                    }
                    assert_eq!(peer.rest(), (Vec::new(), Received::End));
                    peer.finish_sending();
                    up.truncate(LARGE);
                    up
                },
            )
            .await;
            assert!(client == pattern(2, LARGE) && upstream == pattern(1, LARGE), "bytes have changed: {secured:?}");
            let count = spliced(&worker) - before;
            if is_spliced(secured) {
                assert!(count >= LARGE as u64 / 4, "{count} bytes spliced, {secured:?}");
                assert!(count <= 2 * LARGE as u64 + 100, "{count} bytes spliced, small ones among them, {secured:?}");
            } else {
                assert_eq!(count, 0, "spliced in spite of TLS in userspace: {secured:?}");
            }
        }
    });
}

#[test]
fn ktls_a_half_that_ends_behind_much_is_whole_and_the_other_goes_on() {
    on_each_driver(async |worker| {
        for secured in [(false, false), (true, false), (false, true)] {
            let first = |seed: usize| {
                move |peer: &mut Peer| {
                    peer.send(&pattern(seed, LARGE));
                    peer.finish_sending();
                    peer.rest()
                }
            };
            let second = |seed: usize| {
                move |peer: &mut Peer| {
                    let received = peer.rest();
                    peer.send(&pattern(seed, LARGE));
                    peer.finish_sending();
                    received
                }
            };
            for (client, upstream) in [
                between(&worker, secured, first(3), second(4)).await,
                between(&worker, secured, second(3), first(4)).await,
            ] {
                assert!(client == (pattern(4, LARGE), Received::End), "{secured:?}: {:?}", client.1);
                assert!(upstream == (pattern(3, LARGE), Received::End), "{secured:?}: {:?}", upstream.1);
            }
        }
    });
}

#[test]
fn ktls_a_cut_behind_much_does_not_look_like_an_end() {
    on_each_driver(async |worker| {
        let cut = |peer: &mut Peer| {
            peer.send(&pattern(5, LARGE));
            // Without close_notify.
            peer.socket.shutdown(Shutdown::Write).unwrap();
            peer.rest().1
        };
        let cut_off = |peer: &mut Peer| peer.rest().1;
        for other in [false, true] {
            let (_, upstream) = between(&worker, (true, other), cut, cut_off).await;
            assert_eq!(upstream, Received::Cut, "to TLS: {other}");
            let (client, _) = between(&worker, (other, true), cut_off, cut).await;
            assert_eq!(client, Received::Cut, "to TLS: {other}");
        }
    });
}

#[test]
fn urgent_data_among_much_stops_nobody_even_with_the_end_behind_it() {
    on_each_driver(async |worker| {
        // The second: with the end there already, splice says of urgent data what it says of an end.
        for (behind, waits) in [(LARGE, false), (100, true)] {
            let (ended, has_ended) = mpsc::channel();
            let (_, upstream) = between(
                &worker,
                (false, false),
                move |peer| {
                    peer.send(&pattern(6, LARGE));
                    // Splice stops at it, and only a read goes on behind it: in the stream it has no place.
                    while let Err(error) = rustix::net::send(&peer.socket, b"!", rustix::net::SendFlags::OOB) {
                        assert_eq!(error, rustix::io::Errno::AGAIN);
                        peer.wait(true);
                    }
                    peer.send(&pattern(7, behind));
                    peer.finish_sending();
                    // Who does not wait for it may be gone.
                    let _ = ended.send(());
                    peer.rest()
                },
                move |peer| {
                    if waits {
                        has_ended.recv().unwrap();
                    }
                    let received = peer.rest();
                    peer.finish_sending();
                    received
                },
            )
            .await;
            assert!(upstream.0 == [pattern(6, LARGE), pattern(7, behind)].concat(), "{} bytes", upstream.0.len());
            assert_eq!(upstream.1, Received::End);
        }
    });
}

#[test]
fn the_future_of_a_tunnel_is_small() {
    on_each_driver(async |worker| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = worker.endpoints.of(listener.local_addr().unwrap(), None);
        let lease = endpoint.lease(&worker, Reuse::Never, 1_000).await.unwrap();
        let (mut client, _peer) = pair(&worker);
        let input = || Input::new(worker.buffers.lazy());
        let mut tunnel = Tunnel::new(lease, input(), input());
        let bytes = size_of_val(&tunnel.run(&worker, &mut client)) + size_of::<Tunnel>();
        // Thousands of WebSockets wait for most of their life.
        assert!(bytes <= 1_024, "{bytes} bytes");
    });
}
