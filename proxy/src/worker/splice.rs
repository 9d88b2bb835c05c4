//! A large body from socket to socket without a copy to userspace, where both carry plain bytes and at least one has the kernel's
//! TLS. Between two sockets without TLS a buffer does as well, and a reader that stalls pins less.

use std::{io, os::fd::RawFd};

use meshring_core::limits::SPLICE_PIPE_BYTES;

use super::{
    buffers::Reserved,
    conn::{ReadHalf, WriteHalf},
    ktls::{Pipe, Spliced, set_nonblocking},
    readiness,
};

/// A way from one socket to another. While it lives both are non-blocking: the kernel looks at that, and would let the whole
/// worker wait. Nobody else reads the one or writes the other meanwhile.
#[derive(Debug)]
pub(crate) struct Splice {
    pipe: Pipe,
    from: RawFd,
    to: RawFd,
    /// What the sockets were before.
    were_nonblocking: (bool, bool),
    /// What a reader that stalls may leave in the pipe.
    _memory: Reserved,
}

/// What came of reading.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// So many bytes are on their way: write them before more is read.
    Bytes(usize),
    /// The sender has ended.
    End,
    /// Nothing is there: wait until there is.
    Nothing,
}

impl Splice {
    /// `None` where one of them is not plain or neither has TLS, or where there is no pipe to be had: then buffers will do.
    pub(crate) fn between(from: &ReadHalf, to: &WriteHalf) -> Option<Self> {
        let (ReadHalf::Socket(from), WriteHalf::Socket(to)) = (from, to) else { return None };
        let tls = from.tls.as_ref().or(to.tls.as_ref())?;
        let memory = tls.reserve(SPLICE_PIPE_BYTES);
        let (from, to) = (from.plain_fd()?, to.plain_fd()?);
        if readiness::may_be_bypassed(from) || readiness::may_be_bypassed(to) {
            return None;
        }
        let pipe = Pipe::new().ok()?;
        let was = set_nonblocking(from, true).ok()?;
        match set_nonblocking(to, true) {
            Ok(other) => Some(Self { pipe, from, to, were_nonblocking: (was, other), _memory: memory }),
            Err(_) => {
                let _ = set_nonblocking(from, was);
                None
            }
        }
    }

    /// Takes at most so many bytes out of the sender's socket, without waiting.
    pub(crate) fn take(&mut self, half: &ReadHalf, bytes_max: u64) -> io::Result<Moved> {
        let ReadHalf::Socket(half) = half else { return Err(io::ErrorKind::Unsupported.into()) };
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        if bytes_max == 0 {
            return Ok(Moved::Nothing);
        }
        loop {
            match self.pipe.splice_in(self.from, bytes_max) {
                Ok(Spliced::Bytes(count)) => return Ok(Moved::Bytes(count)),
                Ok(Spliced::End) => {
                    if let Some(tls) = &half.tls {
                        tls.socket_ended();
                    }
                    return Ok(Moved::End);
                }
                // A ticket, new keys, an alert: then what is behind it.
                Ok(Spliced::Control) => match &half.tls {
                    Some(tls) => {
                        if tls.kernel_read(Err(rustix::io::Errno::IO.into()))?.is_some() {
                            return Ok(Moved::End);
                        }
                    }
                    None => return Err(rustix::io::Errno::INVAL.into()),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Moved::Nothing),
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes what is on its way, as far as the receiver takes it without waiting. True: all of it.
    pub(crate) fn give(&mut self, half: &WriteHalf) -> io::Result<bool> {
        let WriteHalf::Socket(half) = half else { return Err(io::ErrorKind::Unsupported.into()) };
        if let Some(tls) = &half.tls {
            match tls.before_write(self.pipe.held()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                result => result?,
            }
        }
        while self.pipe.held() > 0 {
            match self.pipe.splice_out(self.to, usize::MAX) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Waits until the receiver takes more; the deadline is the caller's.
    pub(crate) async fn writable(half: &WriteHalf) -> io::Result<()> {
        let WriteHalf::Socket(half) = half else { return Err(io::ErrorKind::Unsupported.into()) };
        readiness::writable(half).await
    }
}

impl Drop for Splice {
    fn drop(&mut self) {
        // An error means that the socket is gone.
        let _ = set_nonblocking(self.from, self.were_nonblocking.0);
        let _ = set_nonblocking(self.to, self.were_nonblocking.1);
    }
}
