//! Congestion control of connections that never leave this host.
//!
//! Where the host's default paces (BBR does), the kernel arms a timer for every write, although a loopback path has
//! neither loss nor a queue to measure. Such sockets get Reno, which every Linux kernel has and lets anybody choose.
//! Connections to other hosts keep what the operator has set.

use std::{
    io,
    net::{SocketAddr, TcpStream as StdTcpStream},
    os::fd::{AsFd, OwnedFd},
    sync::OnceLock,
};

use monoio::net::TcpStream;
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt},
};

/// It has no pacing and no parameters.
const LOCAL: &str = "reno";

/// Whether sockets of this host are paced unless somebody says otherwise.
fn default_paces() -> bool {
    static PACES: OnceLock<bool> = OnceLock::new();
    *PACES.get_or_init(|| {
        // New sockets have the network namespace's default.
        let probe = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        probe.and_then(sockopt::tcp_congestion).is_ok_and(|name| name.starts_with("bbr"))
    })
}

/// Whether a connection with this address is better off without the default.
pub(crate) fn applies(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback() && default_paces()
}

/// To be called before the socket listens or connects: a connection that has begun to pace goes on pacing.
pub(crate) fn set_local(socket: impl AsFd) {
    // The default works as well, at a higher price.
    let _ = sockopt::set_tcp_congestion(socket, LOCAL);
}

/// Connects to a loopback address.
pub(super) async fn connect_local(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = socket_with(family, SocketType::STREAM, flags, None)?;
    set_local(&socket);
    let in_progress = match connect(&socket, &address) {
        Ok(()) => false,
        Err(Errno::INPROGRESS) => true,
        Err(error) => return Err(error.into()),
    };
    let stream = TcpStream::from_std(StdTcpStream::from(socket))?;
    if in_progress {
        // Nearly always done already; a full backlog takes until the kernel's next try.
        stream.writable(false).await?;
        super::readiness::connected(&stream)?;
    }
    Ok(stream)
}
