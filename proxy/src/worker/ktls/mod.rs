//! Kernel TLS: after a handshake the kernel can seal and open records (Linux, `Documentation/networking/tls.rst`), so that
//! plain reads, writes and splices of the socket carry plaintext. System calls only: who waits for what is for the
//! callers. All of them act on a socket that its owner keeps open for the time of the call.
//!
//! What a socket does after [`enable`]:
//! - A read gives plaintext, of as many records as there are and fit. When the next record is no data, it fails with EIO
//!   and the record stays: take it with [`receive_record`]. EBADMSG: a record that does not open, the connection is lost.
//! - An end of the stream without close_notify reads as 0 bytes, as any other end: only who has seen the alert knows that
//!   nothing was cut off.
//! - A write seals at once; `close_notify` and other messages that are no data go out by [`send_record`].
//! - After a KeyUpdate was taken, reads fail with EKEYEXPIRED until [`rekey_rx`] (Linux 6.14). Kernels before 6.14 know no
//!   new keys: they go on with the old one, the peer's next record fails with EBADMSG, so end the connection at once.
//! - There is no way back to userspace: what is in the kernel stays there until the socket is closed.

#![allow(unsafe_code, reason = "socket options and control messages of kernel TLS, which rustix does not know")]

mod crypto_info;
mod probe;
mod record;
mod records;
mod splice;
#[cfg(test)]
mod tests;

use std::{io, os::fd::RawFd};

use rustls::{ConnectionTrafficSecrets, ProtocolVersion};

use self::crypto_info::CryptoInfo;

pub(crate) use self::{
    probe::{Probe, probe},
    record::{Received, receive_record, send_record},
    records::Records,
    splice::{Pipe, set_nonblocking},
};

/// The keys of one direction of a connection.
#[derive(Clone, Copy)]
pub(crate) struct Secrets<'a> {
    /// TLS 1.2 or 1.3.
    pub(crate) version: ProtocolVersion,
    /// Key and IV, as rustls gives them.
    pub(crate) secrets: &'a ConnectionTrafficSecrets,
    /// How many records were sealed or opened with them: the sequence number of the next one.
    pub(crate) sequence: u64,
}

/// Which way the records go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Tx,
    Rx,
}

impl Direction {
    fn option(self) -> libc::c_int {
        match self {
            Self::Tx => libc::TLS_TX,
            Self::Rx => libc::TLS_RX,
        }
    }
}

/// A connection that has not moved to the kernel, or only in part.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnableError {
    /// The kernel has no TLS, or knows it under no such name. Nothing has changed: go on in userspace.
    #[error("the kernel has no TLS for this socket: {0}")]
    Ulp(io::Error),
    /// Sending was refused, and receiving not tried. Nothing has changed: go on in userspace.
    #[error("the kernel does not take the keys to send with: {0}")]
    Tx(io::Error),
    /// Receiving was refused. If sending was asked for, too, it is in the kernel for good.
    #[error("the kernel does not take the keys to receive with: {0}")]
    Rx(io::Error),
}

/// Moves a connection, or one direction of it, to the kernel. Everything sealed in userspace must be with the kernel
/// already, and nothing that belongs to records of the peer may have been read beyond `rx`'s sequence number: the kernel
/// begins with the very next byte of the stream.
pub(crate) fn enable(fd: RawFd, tx: Option<Secrets<'_>>, rx: Option<Secrets<'_>>) -> Result<(), EnableError> {
    // Converted first: what the kernel would refuse by its kind must change nothing.
    let tx = tx.map(|secrets| CryptoInfo::new(secrets, Direction::Tx)).transpose().map_err(EnableError::Tx)?;
    let rx = rx.map(|secrets| CryptoInfo::new(secrets, Direction::Rx)).transpose().map_err(EnableError::Rx)?;
    enable_with(fd, tx, rx)
}

fn enable_with(fd: RawFd, tx: Option<CryptoInfo>, rx: Option<CryptoInfo>) -> Result<(), EnableError> {
    install_ulp(fd).map_err(EnableError::Ulp)?;
    if let Some(info) = tx {
        set(fd, Direction::Tx, &info).map_err(EnableError::Tx)?;
    }
    if let Some(info) = rx {
        set(fd, Direction::Rx, &info).map_err(EnableError::Rx)?;
        expect_no_padding(fd);
    }
    Ok(())
}

/// Lets the kernel open records of TLS 1.3 where the reader wants them, as it does those of 1.2, instead of copying them there. A
/// record that is padded all the same is opened twice. Before Linux 6.0, and for 1.2, it is an error, and nothing changes.
fn expect_no_padding(fd: RawFd) {
    let _ = set_option(fd, libc::SOL_TLS, libc::TLS_RX_EXPECT_NO_PAD, &1_i32.to_ne_bytes());
}

/// New keys to receive with, after the peer's KeyUpdate was taken. EBUSY before Linux 6.14: end the connection.
pub(crate) fn rekey_rx(fd: RawFd, secrets: Secrets<'_>) -> io::Result<()> {
    set(fd, Direction::Rx, &CryptoInfo::new(secrets, Direction::Rx)?)
}

/// New keys to send with, right after our KeyUpdate went out under the old ones by [`send_record`]. EBUSY before Linux
/// 6.14: ask [`Probe::can_rekey`] before the message is sent, for there is no way back from it.
pub(crate) fn rekey_tx(fd: RawFd, secrets: Secrets<'_>) -> io::Result<()> {
    set(fd, Direction::Tx, &CryptoInfo::new(secrets, Direction::Tx)?)
}

fn install_ulp(fd: RawFd) -> io::Result<()> {
    const NAME: &[u8] = b"tls";
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_ULP, NAME)
}

fn set(fd: RawFd, direction: Direction, info: &CryptoInfo) -> io::Result<()> {
    set_option(fd, libc::SOL_TLS, direction.option(), info.bytes())
}

fn set_option(fd: RawFd, level: libc::c_int, name: libc::c_int, value: &[u8]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `len` bytes of `value`, which is borrowed for the time of the call, and keeps no pointer.
    // A descriptor that is not open, or no socket, is an error and nothing else.
    let result = unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
