//! Bytes from socket to socket without a copy to userspace, or with as few calls as one allows, where both carry plain bytes: large
//! bodies beside the kernel's TLS, and whatever goes through a tunnel for as long as much of it comes.

use std::{cell::RefCell, io, os::fd::RawFd, rc::Rc};

use meshring_core::limits::{
    SPLICE_PIPE_BYTES, SPLICE_PIPES_POOLED_MAX, SPLICE_RECORDS_BYTES, SPLICE_RECORDS_POOLED_MAX,
};

use super::{
    buffers::{Buffers, Reserved},
    conn::{ReadHalf, SocketReader, WriteHalf},
    ktls::{Pipe, Records, set_nonblocking},
    readiness,
};

/// What carries the bytes.
#[derive(Debug)]
enum Carrier {
    /// Out of a plain socket.
    Pipe(Pipe),
    /// Out of kernel TLS.
    Records(Records),
}

impl Carrier {
    fn held(&self) -> usize {
        match self {
            Self::Pipe(pipe) => pipe.held(),
            Self::Records(records) => records.held(),
        }
    }

    /// What a receiver that stalls may leave in it.
    fn bytes(&self) -> usize {
        match self {
            Self::Pipe(_) => SPLICE_PIPE_BYTES,
            Self::Records(_) => SPLICE_RECORDS_BYTES,
        }
    }

    fn take(&mut self, fd: RawFd, bytes_max: usize) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.splice_in(fd, bytes_max),
            Self::Records(records) => records.take(fd, bytes_max),
        }
    }

    fn give(&mut self, fd: RawFd) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.splice_out(fd, usize::MAX),
            Self::Records(records) => records.give(fd),
        }
    }
}

/// A worker's carriers with nothing in them: making a pipe takes five system calls.
#[derive(Debug, Default)]
pub(crate) struct Carriers {
    pipes: RefCell<Vec<Pipe>>,
    records: RefCell<Vec<Records>>,
}

impl Carriers {
    fn take(&self, is_kernel_tls: bool) -> io::Result<Carrier> {
        if is_kernel_tls {
            let pooled = self.records.borrow_mut().pop();
            return Ok(Carrier::Records(pooled.unwrap_or_else(Records::new)));
        }
        let pooled = self.pipes.borrow_mut().pop();
        pooled.map_or_else(Pipe::new, Ok).map(Carrier::Pipe)
    }

    /// What is left in one belongs to its stream, and goes with it.
    fn give(&self, carrier: Carrier) {
        fn keep<T>(pool: &RefCell<Vec<T>>, max: usize, one: T) {
            let mut pool = pool.borrow_mut();
            if pool.len() < max {
                pool.push(one);
            }
        }
        if carrier.held() > 0 {
            return;
        }
        match carrier {
            Carrier::Pipe(pipe) => keep(&self.pipes, SPLICE_PIPES_POOLED_MAX, pipe),
            Carrier::Records(records) => keep(&self.records, SPLICE_RECORDS_POOLED_MAX, records),
        }
    }

    /// Frees the memory that they hold: so many bytes.
    pub(super) fn sweep(&self) -> usize {
        let mut records = self.records.borrow_mut();
        let bytes = records.len() * SPLICE_RECORDS_BYTES;
        records.clear();
        bytes
    }
}

/// A way from one socket to another. While it lives both are non-blocking: the kernel looks at that, and would let the whole
/// worker wait. An operation of the ring that goes the other way on one of them may then fail with `WouldBlock`, and whoever reads
/// or writes there waits for readiness and does it again. Nobody else reads the one or writes the other meanwhile.
#[derive(Debug)]
pub(crate) struct Splice {
    /// `None` while it rests, and once it is dropped.
    carrier: Option<Carrier>,
    from: RawFd,
    to: RawFd,
    /// What the sockets were before, where they are to become that again.
    were_nonblocking: Option<(bool, bool)>,
    /// What a receiver that stalls may leave in the carrier.
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
        from.is_read();
        let is_kernel_tls = from.tls.is_some();
        let (from, to) = (from.plain_fd()?, to.plain_fd()?);
        if readiness::may_be_bypassed(from) || readiness::may_be_bypassed(to) {
            return None;
        }
        let carrier = pool.carriers().take(is_kernel_tls).ok()?;
        let memory = pool.reserve(carrier.bytes());
        let mut splice = Self { carrier: Some(carrier), from, to, were_nonblocking: None, memory };
        let was = set_nonblocking(from, true).ok()?;
        // From here on it is undone when this is dropped.
        splice.were_nonblocking = restores.then_some((was, true));
        let was = (was, set_nonblocking(to, true).ok()?);
        splice.were_nonblocking = restores.then_some(was);
        Some(splice)
    }

    /// What is on its way, in bytes.
    pub(crate) fn held(&self) -> usize {
        self.carrier.as_ref().map_or(0, Carrier::held)
    }

    /// Waits without a carrier, where nothing is in it: a sender that pauses must not take from the worker's budget.
    pub(crate) fn rest(&mut self) {
        if self.held() == 0 {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        if let Some(carrier) = self.carrier.take() {
            self.memory.pool().carriers().give(carrier);
            self.memory.resize(0);
        }
    }

    /// Takes at most so many bytes out of the sender's socket, without waiting; nothing may be on its way.
    pub(crate) fn take(&mut self, half: &ReadHalf, bytes_max: u64) -> io::Result<Moved> {
        let ReadHalf::Socket(SocketReader { tls, .. }) = half else { return Err(io::ErrorKind::Unsupported.into()) };
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        if bytes_max == 0 {
            return Ok(Moved::Nothing);
        }
        let carrier = match &mut self.carrier {
            Some(carrier) => carrier,
            // Without one it looks like nothing, again and again, and buffers go on.
            rested @ None => match self.memory.pool().carriers().take(tls.is_some()) {
                Ok(carrier) => {
                    self.memory.resize(carrier.bytes());
                    rested.insert(carrier)
                }
                Err(_) => return Ok(Moved::Nothing),
            },
        };
        // A peer may end TLS and leave the connection open: there is nothing to wait for then.
        if tls.as_ref().is_some_and(|tls| tls.has_ended()) {
            return Ok(Moved::End);
        }
        loop {
            let taken = carrier.take(self.from, bytes_max);
            let taken = match tls {
                Some(tls) => tls.kernel_read(taken),
                None => taken.map(Some),
            };
            return match taken {
                Ok(Some(0)) => Ok(Moved::End),
                Ok(Some(count)) => Ok(Moved::Bytes(count)),
                // A ticket, new keys, an alert: then what is behind it.
                Ok(None) => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Moved::Nothing),
                Err(error) => Err(error),
            };
        }
    }

    /// Writes what is on its way, as far as the receiver takes it without waiting: how many bytes. See [`held`](Self::held) for the
    /// rest.
    pub(crate) fn give(&mut self, half: &WriteHalf) -> io::Result<usize> {
        let WriteHalf::Socket(half) = half else { return Err(io::ErrorKind::Unsupported.into()) };
        let Some(carrier) = &mut self.carrier else { return Ok(0) };
        if let Some(tls) = &half.tls {
            match tls.before_write(carrier.held()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                result => result?,
            }
        }
        let mut given = 0;
        while carrier.held() > 0 {
            match carrier.give(self.to) {
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
        self.give_back();
    }
}
