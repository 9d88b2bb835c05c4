//! Bytes from socket to socket through a pipe, without a copy to userspace.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd, RawFd},
};

use meshring_core::limits::SPLICE_PIPE_BYTES;
use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice},
};

/// Between two sockets, in one direction.
#[derive(Debug)]
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    held: usize,
}

impl Pipe {
    /// Of [`SPLICE_PIPE_BYTES`], or what the kernel grants: a user above its limit gets one page or two.
    pub(crate) fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let capacity = match fcntl_setpipe_size(&write, SPLICE_PIPE_BYTES) {
            Ok(_) | Err(Errno::PERM | Errno::BUSY | Errno::NOMEM) => fcntl_getpipe_size(&write)?,
            Err(error) => return Err(error.into()),
        };
        Ok(Self { read, write, capacity, held: 0 })
    }

    /// How many bytes are in it. A pipe that holds some belongs to its stream: it must not be used for another.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// How many bytes it can hold if all its pages are full. Small packets take a page each, so it may be full earlier.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Moves at most `bytes_max` bytes from a socket into the pipe, as much as there is; kernel TLS of its own it must not have, see
    /// [`Records`](super::Records). 0: the source has ended, or has sent urgent data and ended behind it. `WouldBlock`: nothing has
    /// come, or, when the pipe holds something, possibly no room: empty it first. The socket must not block ([`set_nonblocking`]): the
    /// kernel looks at the socket's flag, not at the call's.
    pub(crate) fn splice_in(&mut self, fd: RawFd, bytes_max: usize) -> io::Result<usize> {
        let room = self.capacity.saturating_sub(self.held).min(bytes_max);
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // SAFETY: the caller is the owner of the open descriptor.
        let source = unsafe { BorrowedFd::borrow_raw(fd) };
        let count = splice(source, None, &self.write, None, room, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?;
        self.held += count;
        Ok(count)
    }

    /// Moves at most `bytes_max` bytes from the pipe to a socket, sealed where it has kernel TLS: one record per 16 KiB, and
    /// what is less becomes a record at once. `WouldBlock`: the socket is full. Its flag decides, as above.
    pub(crate) fn splice_out(&mut self, fd: RawFd, bytes_max: usize) -> io::Result<usize> {
        let count = self.held.min(bytes_max);
        if count == 0 {
            return Ok(0);
        }
        // SAFETY: the caller is the owner of the open descriptor.
        let sink = unsafe { BorrowedFd::borrow_raw(fd) };
        let count = splice(&self.read, None, sink, None, count, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?;
        self.held -= count;
        Ok(count)
    }
}

/// Sets or clears a socket's O_NONBLOCK; says what it was. On io_uring the runtime's sockets are without it, and splice
/// would wait inside of the kernel, the whole worker with it.
pub(crate) fn set_nonblocking(fd: RawFd, nonblocking: bool) -> io::Result<bool> {
    // SAFETY: the caller is the owner of the open descriptor.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = fcntl_getfl(socket)?;
    let was = flags.contains(OFlags::NONBLOCK);
    if was != nonblocking {
        fcntl_setfl(socket, if nonblocking { flags | OFlags::NONBLOCK } else { flags - OFlags::NONBLOCK })?;
    }
    Ok(was)
}
