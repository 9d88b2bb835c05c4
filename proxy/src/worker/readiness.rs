//! Questions about a socket that the runtime's types do not answer.

#![allow(
    unsafe_code,
    reason = "borrows raw descriptors and monoio's shared stream; the invariants stand at the blocks"
)]

use std::{
    io,
    mem::MaybeUninit,
    net::SocketAddr,
    os::fd::{AsRawFd as _, BorrowedFd, RawFd},
    time::Duration,
};

use meshring_core::limits::{TCP_KEEPALIVE_IDLE_S, TCP_KEEPALIVE_INTERVAL_S, TCP_UNACKNOWLEDGED_MS_MAX};
use rustix::{
    io::Errno,
    ioctl::{Getter, Opcode, ioctl},
    net::{RecvFlags, SendFlags, connect_unspec, getpeername, getsockname, recv, send, sockopt},
};

use super::conn::{SocketReader, SocketWriter};

/// Waits until a read would not block.
pub(crate) async fn readable(half: &SocketReader) -> io::Result<()> {
    // SAFETY: monoio's split halves share the stream in an Rc<UnsafeCell>, and both halves of ours live in one Conn
    // that one task owns. `readable` takes `&self`; no `&mut` to the stream is alive, since every read and write
    // borrows its half for the time of its call.
    let stream = unsafe { &*half.socket.0.get() };
    // Not relaxed: a false positive on epoll would cost an idle connection a buffer.
    stream.readable(false).await
}

/// Waits until a write would not block.
pub(crate) async fn writable(half: &SocketWriter) -> io::Result<()> {
    // SAFETY: see `readable`.
    let stream = unsafe { &*half.socket.0.get() };
    stream.writable(false).await
}

/// Reads what is there behind what `bytes` holds, at most so many and as far as it has room, without waiting and without the
/// ring: what a readiness has announced is there. `WouldBlock` when it is not.
pub(crate) fn read_now(half: &SocketReader, bytes: &mut Vec<u8>, at_most: usize) -> io::Result<usize> {
    // SAFETY: see `readable`; the borrow ends with the read.
    let socket = unsafe { BorrowedFd::borrow_raw((&*half.socket.0.get()).as_raw_fd()) };
    let spare = bytes.spare_capacity_mut();
    let room = spare.len().min(at_most);
    let ((read, _), _) = recv(socket, &mut spare[..room], RecvFlags::DONTWAIT)?;
    let count = read.len();
    // SAFETY: the kernel has written so many bytes behind the end, and they are within the capacity.
    unsafe { bytes.set_len(bytes.len() + count) };
    Ok(count)
}

/// As [`read_now`], for the owner of the half.
pub(crate) fn receive_now(fd: RawFd, bytes: &mut Vec<u8>) -> io::Result<usize> {
    // SAFETY: the caller is the Conn, or the Tls in it, that owns the open descriptor.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    let (count, _) = recv(socket, rustix::buffer::spare_capacity(bytes), RecvFlags::DONTWAIT)?;
    Ok(count)
}

/// Likewise, as far as `bytes` goes.
pub(crate) fn receive_into_now(fd: RawFd, bytes: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the caller is the Conn that owns the open descriptor.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    let (count, _) = recv(socket, bytes, RecvFlags::DONTWAIT)?;
    Ok(count)
}

/// Looks at what is there without taking it, as far as `bytes` goes. `WouldBlock` when there is nothing.
pub(crate) fn peek_now(fd: RawFd, bytes: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the caller is the Conn that owns the open descriptor.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    let (count, _) = recv(socket, bytes, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    Ok(count)
}

/// Sends last words without waiting, while no write is on its way. What does not fit is lost.
pub(crate) fn send_now(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the caller is the Conn, or the Tls in it, that owns the open descriptor.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
}

/// Reads and forgets what is there, so many bytes at most, without waiting: how many that were, 0 at the end. `WouldBlock` when
/// there is nothing.
pub(crate) fn discard_now(fd: RawFd, at_most: usize) -> io::Result<usize> {
    // SAFETY: the caller is the Conn that owns the open descriptor.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    let mut space = [MaybeUninit::<u8>::uninit(); 4096];
    let space = &mut space[..at_most.min(4096)];
    let (_, count) = recv(socket, space, RecvFlags::DONTWAIT)?;
    Ok(count)
}

/// The address of the other side, while it is there.
pub(crate) fn peer(fd: RawFd) -> Option<SocketAddr> {
    // SAFETY: the caller is the Conn that owns the open descriptor.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    SocketAddr::try_from(getpeername(socket).ok()??).ok()
}

/// See [`bypass::may_take`](super::bypass::may_take).
pub(crate) fn may_be_bypassed(fd: RawFd) -> bool {
    // SAFETY: the caller is the Conn, or the Splice between two of them, that owns the open descriptor.
    super::bypass::may_take(&unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Whether bytes that were written, or our end behind them, are not acknowledged yet, and still can be.
pub(crate) fn is_sending(fd: RawFd) -> bool {
    // SAFETY: the caller is the Conn that owns the open descriptor.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    // SAFETY: SIOCOUTQ (tcp(7)), which has the number of TIOCOUTQ, writes one int.
    let unacknowledged = unsafe { ioctl(socket, Getter::<{ libc::TIOCOUTQ as Opcode }, libc::c_int>::new()) };
    // Of a connection that was reset the number stays.
    unacknowledged.is_ok_and(|bytes| bytes > 0) && getpeername(socket).is_ok()
}

/// Whether a peek finds neither bytes nor FIN nor an error.
pub(crate) fn is_quiet(fd: RawFd) -> bool {
    // SAFETY: the caller is the Conn that owns the open descriptor.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    let mut byte = [0_u8; 1];
    matches!(recv(socket, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT), Err(Errno::AGAIN))
}

/// Keep-alive probes, and an end where data or probes are not acknowledged. Errors leave the system's own patience.
pub(crate) fn watch_silence(fd: RawFd) {
    // SAFETY: the caller is the Conn that owns the open descriptor.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    let _ = sockopt::set_socket_keepalive(socket, true);
    let _ = sockopt::set_tcp_keepidle(socket, Duration::from_secs(TCP_KEEPALIVE_IDLE_S));
    let _ = sockopt::set_tcp_keepintvl(socket, Duration::from_secs(TCP_KEEPALIVE_INTERVAL_S));
    let _ = sockopt::set_tcp_user_timeout(socket, TCP_UNACKNOWLEDGED_MS_MAX);
}

/// Resets a connection now. SO_LINGER with a time of 0 would come too late: the runtime's write half sends a FIN when it
/// is dropped, before the descriptor is closed.
pub(crate) fn reset(fd: RawFd) {
    // SAFETY: the caller is the Conn that owns the open descriptor.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    // `connect` to no address dissolves the connection with a RST. It fails where the connection is gone already, and where the kernel
    // does its TLS (`tls_disconnect`): there the RST comes behind the FIN, when the descriptor is closed.
    if connect_unspec(socket).is_err() {
        let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
    }
}

/// `SO_ORIGINAL_DST` where it differs from the socket's own address.
pub(crate) fn original_destination(fd: RawFd) -> Option<SocketAddr> {
    // SAFETY: the caller is the Conn that owns the open descriptor.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    let own = SocketAddr::try_from(getsockname(socket).ok()?).ok()?;
    let original = match own {
        SocketAddr::V4(_) => SocketAddr::V4(sockopt::ip_original_dst(socket).ok()?),
        SocketAddr::V6(_) => SocketAddr::V6(sockopt::ipv6_original_dst(socket).ok()?),
    };
    (original != own).then_some(original)
}

/// `SO_ORIGINAL_DST`, of a socket of a listener's family.
pub(crate) fn intercepted(fd: RawFd, listener: SocketAddr) -> Result<SocketAddr, Errno> {
    // SAFETY: the caller is the Conn that owns the open descriptor.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    match listener {
        SocketAddr::V4(_) => sockopt::ip_original_dst(socket).map(SocketAddr::V4),
        SocketAddr::V6(_) => sockopt::ipv6_original_dst(socket).map(SocketAddr::V6),
    }
}

/// The socket's own address.
pub(crate) fn own(fd: RawFd) -> Option<SocketAddr> {
    // SAFETY: the caller is the Conn that owns the open descriptor.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    SocketAddr::try_from(getsockname(socket).ok()?).ok()
}

/// How a connection that was being established has ended.
pub(crate) fn connected(stream: &monoio::net::TcpStream) -> io::Result<()> {
    // SAFETY: the stream keeps the descriptor open.
    let socket = unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) };
    Ok(sockopt::socket_error(socket)??)
}

/// Takes a socket out of the runtime.
pub(crate) fn into_std(stream: monoio::net::TcpStream) -> std::net::TcpStream {
    use std::os::fd::{FromRawFd as _, IntoRawFd as _};
    // SAFETY: `into_raw_fd` gives up the ownership of an open descriptor, which is taken here.
    unsafe { std::net::TcpStream::from_raw_fd(stream.into_raw_fd()) }
}
