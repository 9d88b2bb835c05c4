//! Which connections control may have taken around TCP (ARCHITECTURE.md, "The bypass"). The proxy cannot see it, and need
//! not: only kernel TLS and splice look past the queue that such a connection is read from, so those that control could
//! take have neither.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::net::{getpeername, getsockname};

/// Whether control has asked for our listening sockets, ever: what it has taken stays taken.
static OFFERED: AtomicBool = AtomicBool::new(false);

/// Before a listening socket is given to control.
pub(crate) fn offer() {
    // Pairs with the Acquire in `may_take`; between the two lies control's system call, at the earliest.
    OFFERED.store(true, Ordering::Release);
}

/// Whether control could have taken this connection.
pub(crate) fn may_take(socket: &impl AsFd) -> bool {
    OFFERED.load(Ordering::Acquire) && is_on_this_host(socket.as_fd())
}

/// The rule of `same_host` in `ctl/src/bypass/programs.rs`. A socket without addresses is closed already.
fn is_on_this_host(socket: BorrowedFd<'_>) -> bool {
    let own = getsockname(socket).ok().and_then(|address| SocketAddr::try_from(address).ok());
    let peer = getpeername(socket).ok().flatten().and_then(|address| SocketAddr::try_from(address).ok());
    own.zip(peer).is_some_and(|(own, peer)| are_on_one_host(own.ip(), peer.ip()))
}

fn are_on_one_host(own: IpAddr, peer: IpAddr) -> bool {
    let (own, peer) = (own.to_canonical(), peer.to_canonical());
    own == peer || matches!((own, peer), (IpAddr::V4(own), IpAddr::V4(peer)) if own.is_loopback() && peer.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_ends_have_the_same_address_for_is_on_this_host() {
        let same = |own: &str, peer: &str| are_on_one_host(own.parse().unwrap(), peer.parse().unwrap());
        assert!(same("127.0.0.1", "127.0.0.1") && same("127.0.0.1", "127.8.0.9") && same("::1", "::1"));
        assert!(same("10.0.0.1", "10.0.0.1") && same("::ffff:127.0.0.1", "127.0.0.2"));
        assert!(!same("10.0.0.1", "10.0.0.2") && !same("127.0.0.1", "10.0.0.2") && !same("::1", "::2"));
    }
}
