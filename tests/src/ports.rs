//! Ports that nobody else takes.

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
    process,
};

use meshring_core::table::protocol::HBONE_PORT;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};

use crate::proxy::Driver;

/// A port on 127.0.0.1 that is bound but does not listen: connecting to it is refused, nobody is given it, and a program
/// that binds with SO_REUSEADDR and SO_REUSEPORT, as the proxy does, can listen on it beside the reservation.
#[derive(Debug)]
pub struct Reserved {
    address: SocketAddr,
    _socket: OwnedFd,
}

impl Reserved {
    /// A free port, ours until dropped.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "two of them are never equal")]
    pub fn new() -> Self {
        let socket =
            socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("a TCP socket");
        sockopt::set_socket_reuseport(socket.as_fd(), true).expect("SO_REUSEPORT");
        bind(socket.as_fd(), &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
        // Not before: with it, the port of another reservation would do.
        sockopt::set_socket_reuseaddr(socket.as_fd(), true).expect("SO_REUSEADDR");
        let address = getsockname(socket.as_fd()).expect("the bound address");
        Self { address: address.try_into().expect("an IPv4 address"), _socket: socket }
    }

    /// Address and port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A loopback address for a server of tunnels, whose port is the same for all, that no other test has, of this process or another.
/// `test`: up to 90, each test has its own.
#[must_use]
pub fn hbone_address(test: u8, driver: Driver) -> SocketAddr {
    let (pid, of_driver) = (process::id(), u8::from(driver == Driver::Epoll));
    let ip = Ipv4Addr::new(127, 64 + 2 * test + of_driver, 1 + (pid / 250 % 250) as u8, 1 + (pid % 250) as u8);
    (ip, HBONE_PORT).into()
}
