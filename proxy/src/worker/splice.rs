//! Bytes from socket to socket without a copy to userspace, where both carry plain bytes: large bodies beside the kernel's TLS, and
//! whatever goes through a tunnel for as long as much of it comes.

use std::{cell::RefCell, io, os::fd::RawFd, rc::Rc};

use meshring_core::limits::{SPLICE_PARTS_MAX, SPLICE_PIPE_BYTES, SPLICE_PIPES_POOLED_MAX};

use super::{
    buffers::{Buffers, Reserved},
    conn::{ReadHalf, SocketReader, WriteHalf},
    ktls::{Pipe, Spliced, set_nonblocking},
    readiness,
};

/// Empty pipes of a worker: making one takes five system calls.
#[derive(Debug, Default)]
pub(crate) struct Pipes(RefCell<Vec<Pipe>>);

impl Pipes {
    fn take(&self) -> io::Result<Pipe> {
        let pooled = self.0.borrow_mut().pop();
        pooled.map_or_else(Pipe::new, Ok)
    }

    /// What is left in a pipe belongs to its stream, and goes with it.
    fn give(&self, pipe: Pipe) {
        let mut pooled = self.0.borrow_mut();
        if pipe.held() == 0 && pooled.len() < SPLICE_PIPES_POOLED_MAX {
            pooled.push(pipe);
        }
    }
}

/// A way from one socket to another. While it lives both are non-blocking: the kernel looks at that, and would let the whole
/// worker wait. An operation of the ring that goes the other way on one of them may then fail with `WouldBlock`, and whoever reads
/// or writes there waits for readiness and does it again. Nobody else reads the one or writes the other meanwhile.
#[derive(Debug)]
pub(crate) struct Splice {
    /// `None` while it rests, and once it is dropped.
    pipe: Option<Pipe>,
    from: RawFd,
    to: RawFd,
    /// What the sockets were before, where they are to become that again.
    were_nonblocking: Option<(bool, bool)>,
    /// What was found behind bytes that had to be given on first.
    later: Option<io::Result<Moved>>,
    /// What a reader that stalls may leave in the pipe.
    memory: Reserved,
}

/// What came of reading.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// So many bytes are on their way: write them before more is read.
    Bytes(usize),
    /// The sender has ended; or has sent urgent data and ended behind it, which looks the same here (`tcp_splice_read`): only a read
    /// can tell.
    End,
    /// Nothing is there: wait until there is.
    Nothing,
}

impl Splice {
    /// For a body, if one of the two has TLS: between two sockets without it a buffer does as well, and a reader that stalls pins
    /// less. Of the two sockets no other splice may begin before this one is dropped. `None`: buffers will have to do.
    pub(crate) fn for_body(from: &ReadHalf, to: &WriteHalf, pool: &Rc<Buffers>) -> Option<Self> {
        let (ReadHalf::Socket(reader), WriteHalf::Socket(writer)) = (from, to) else { return None };
        if reader.tls.is_none() && writer.tls.is_none() {
            return None;
        }
        Self::between(from, to, pool, true)
    }

    /// For one direction of a tunnel: its sockets, which carry nothing else any more, stay non-blocking.
    pub(crate) fn for_tunnel(from: &ReadHalf, to: &WriteHalf, pool: &Rc<Buffers>) -> Option<Self> {
        Self::between(from, to, pool, false)
    }

    /// `None` where one of them does not carry plain bytes, where control may have taken it around TCP, or without a pipe.
    fn between(from: &ReadHalf, to: &WriteHalf, pool: &Rc<Buffers>, restores: bool) -> Option<Self> {
        let (ReadHalf::Socket(from), WriteHalf::Socket(to)) = (from, to) else { return None };
        let (from, to) = (from.plain_fd()?, to.plain_fd()?);
        if readiness::may_be_bypassed(from) || readiness::may_be_bypassed(to) {
            return None;
        }
        let mut splice = Self {
            pipe: Some(pool.pipes().take().ok()?),
            from,
            to,
            were_nonblocking: None,
            later: None,
            memory: pool.reserve(SPLICE_PIPE_BYTES),
        };
        let was = set_nonblocking(from, true).ok()?;
        // From here on it is undone when this is dropped.
        splice.were_nonblocking = restores.then_some((was, true));
        let was = (was, set_nonblocking(to, true).ok()?);
        splice.were_nonblocking = restores.then_some(was);
        Some(splice)
    }

    /// What is on its way, in bytes.
    pub(crate) fn held(&self) -> usize {
        self.pipe.as_ref().map_or(0, Pipe::held)
    }

    /// Waits without a pipe, where nothing is in it: a sender that pauses must not take from the worker's budget.
    pub(crate) fn rest(&mut self) {
        if self.held() == 0
            && let Some(pipe) = self.pipe.take()
        {
            self.memory.pool().pipes().give(pipe);
            self.memory.resize(0);
        }
    }

    /// Takes at most so many bytes out of the sender's socket, without waiting; nothing may be on its way.
    pub(crate) fn take(&mut self, half: &ReadHalf, bytes_max: u64) -> io::Result<Moved> {
        let ReadHalf::Socket(half) = half else { return Err(io::ErrorKind::Unsupported.into()) };
        if let Some(found) = self.later.take() {
            return found;
        }
        // Of kernel TLS each part is one record: a few of them are given on together. Of a plain socket one part is all there is.
        let parts = if half.tls.is_some() { SPLICE_PARTS_MAX } else { 1 };
        let mut left = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let mut taken = 0;
        for _ in 0..parts {
            let found = self.take_part(half, left);
            if let Ok(Moved::Bytes(count)) = found {
                taken += count;
                left -= count;
                continue;
            }
            if taken == 0 {
                return found;
            }
            if !matches!(found, Ok(Moved::Nothing)) {
                self.later = Some(found);
            }
            break;
        }
        Ok(if taken > 0 { Moved::Bytes(taken) } else { Moved::Nothing })
    }

    fn take_part(&mut self, half: &SocketReader, bytes_max: usize) -> io::Result<Moved> {
        if bytes_max == 0 {
            return Ok(Moved::Nothing);
        }
        let pipe = match &mut self.pipe {
            Some(pipe) => pipe,
            // Without one it looks like nothing, again and again, and buffers go on.
            rested @ None => match self.memory.pool().pipes().take() {
                Ok(pipe) => {
                    self.memory.resize(SPLICE_PIPE_BYTES);
                    rested.insert(pipe)
                }
                Err(_) => return Ok(Moved::Nothing),
            },
        };
        // A peer may end TLS and leave the connection open: there is nothing to wait for then.
        if half.tls.as_ref().is_some_and(|tls| tls.has_ended()) {
            return Ok(Moved::End);
        }
        loop {
            match pipe.splice_in(self.from, bytes_max) {
                Ok(Spliced::Bytes(count)) => {
                    if let Some(tls) = &half.tls {
                        tls.kernel_read(Ok(count))?;
                    }
                    return Ok(Moved::Bytes(count));
                }
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

    /// Writes what is on its way, as far as the receiver takes it without waiting: how many bytes. See [`held`](Self::held) for the
    /// rest.
    pub(crate) fn give(&mut self, half: &WriteHalf) -> io::Result<usize> {
        let WriteHalf::Socket(half) = half else { return Err(io::ErrorKind::Unsupported.into()) };
        let Some(pipe) = &mut self.pipe else { return Ok(0) };
        if let Some(tls) = &half.tls {
            match tls.before_write(pipe.held()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                result => result?,
            }
        }
        let mut given = 0;
        while pipe.held() > 0 {
            match pipe.splice_out(self.to, usize::MAX) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => given += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(given)
    }

    /// Waits until the receiver takes more; the deadline is the caller's.
    pub(crate) async fn writable(half: &WriteHalf) -> io::Result<()> {
        let WriteHalf::Socket(half) = half else { return Err(io::ErrorKind::Unsupported.into()) };
        readiness::writable(half).await
    }
}

impl Drop for Splice {
    fn drop(&mut self) {
        if let Some((from, to)) = self.were_nonblocking {
            // An error means that the socket is gone.
            let _ = set_nonblocking(self.from, from);
            let _ = set_nonblocking(self.to, to);
        }
        if let Some(pipe) = self.pipe.take() {
            self.memory.pool().pipes().give(pipe);
        }
    }
}
