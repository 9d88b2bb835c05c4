//! A TCP connection as the stages see it.

use std::{
    io,
    net::{SocketAddr, TcpStream as StdTcpStream},
    os::fd::{AsRawFd as _, RawFd},
    rc::Rc,
    time::Duration,
};

use meshring_core::limits::HOT_IDLE_MS_MAX;
use monoio::{
    io::{
        AsyncWriteRent as _, AsyncWriteRentExt as _, CancelableAsyncReadRent as _, OwnedReadHalf, OwnedWriteHalf,
        Splitable as _,
    },
    net::TcpStream,
};

use super::{
    buffers::Input,
    deadlines::{Deadlines, Expiry, Timer, now_ms},
};

/// The half that is read from.
pub(crate) type ReadHalf = OwnedReadHalf<TcpStream>;
/// The half that is written to.
pub(crate) type WriteHalf = OwnedWriteHalf<TcpStream>;

/// A connected socket with its deadline.
#[derive(Debug)]
pub(crate) struct Conn {
    // First, so that the deadline goes before the descriptor: see `deadlines`.
    pub(crate) timer: Timer,
    pub(crate) read: ReadHalf,
    pub(crate) write: WriteHalf,
    fd: RawFd,
}

/// How an idle read ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum IdleRead {
    /// Bytes are there.
    Bytes,
    /// Nothing came within [`HOT_IDLE_MS_MAX`]: give the buffer back and wait without one.
    StillIdle,
    /// The peer has closed, or the idle limit has passed.
    Closed,
}

impl Conn {
    /// Over a connected socket.
    pub(crate) fn new(stream: TcpStream, deadlines: &Rc<Deadlines>) -> Self {
        // Small writes must not wait for an acknowledgement. An error means that the peer is gone: the first read or
        // write says so.
        let _ = stream.set_nodelay(true);
        let fd = stream.as_raw_fd();
        let (read, write) = stream.into_split();
        Self { timer: deadlines.timer(fd), read, write, fd }
    }

    /// Over a socket that another worker has accepted.
    pub(crate) fn from_std(stream: StdTcpStream, deadlines: &Rc<Deadlines>) -> io::Result<Self> {
        TcpStream::from_std(stream).map(|stream| Self::new(stream, deadlines))
    }

    /// A further timer for the time in which both directions are in use. Drop it before the connection.
    pub(crate) fn second_timer(&self) -> Timer {
        self.timer.beside(self.fd)
    }

    /// Connects within so many milliseconds.
    pub(crate) async fn connect(address: SocketAddr, deadlines: &Rc<Deadlines>, ms_max: u64) -> io::Result<Self> {
        // The one future that is dropped in flight: a socket without data has none to lose.
        let connecting = TcpStream::connect_addr(address);
        match monoio::time::timeout(Duration::from_millis(ms_max), connecting).await {
            Ok(stream) => stream.map(|stream| Self::new(stream, deadlines)),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Waits for the first bytes of a next request with a buffer in hand, for [`HOT_IDLE_MS_MAX`] at most.
    pub(crate) async fn read_idle(&mut self, input: &mut Input, bytes_max: usize) -> IdleRead {
        self.timer.set_idle(now_ms() + HOT_IDLE_MS_MAX, Expiry::CancelRead);
        let Some(space) = input.lend(bytes_max) else { return IdleRead::Closed };
        let handle = self.timer.cancel_handle();
        let (result, space) = self.read.cancelable_read(space, handle).await;
        input.restore(space);
        self.timer.clear();
        let expired = self.timer.take_expired();
        match result {
            Ok(0) => IdleRead::Closed,
            Ok(_) => IdleRead::Bytes,
            Err(_) if expired => IdleRead::StillIdle,
            Err(_) => IdleRead::Closed,
        }
    }

    /// Waits without a buffer until there is something to read, for `idle_ms_max` at most. False: closed.
    pub(crate) async fn readable(&mut self, idle_ms_max: u64) -> bool {
        self.timer.drop_canceller();
        self.timer.set_idle(now_ms() + idle_ms_max, Expiry::ShutdownRead);
        let ready = super::readiness::readable(&self.read).await;
        self.timer.clear();
        ready.is_ok() && !self.timer.take_expired()
    }

    /// Ends our side: the peer reads what was written, then FIN.
    pub(crate) fn end_write(&self) {
        self.timer.shutdown(Expiry::ShutdownWrite);
    }

    /// Ends the connection with a reset: the peer must not take what it has for all of the message, not even where its end
    /// is marked by the end of the connection.
    pub(crate) fn abort(&self) {
        super::readiness::reset(self.fd);
    }

    /// Whether an idle connection is still open and silent. Bytes that nobody asked for make it unusable, too
    /// (RFC 9112 section 9.5).
    pub(crate) fn is_quiet(&self) -> bool {
        super::readiness::is_quiet(self.fd)
    }

    /// The address that an intercepted client meant, if it is not ours (`SO_ORIGINAL_DST`).
    pub(crate) fn original_destination(&self) -> Option<SocketAddr> {
        super::readiness::original_destination(self.fd)
    }
}

/// Writes all of a buffer and returns it.
pub(crate) async fn write_all(to: &mut WriteHalf, buffer: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
    let len = buffer.len();
    let (result, buffer) = to.write(buffer).await;
    match result {
        Ok(written) if written == len => (Ok(()), buffer),
        Ok(written) => write_rest(to, buffer, written).await,
        Err(error) => (Err(error), buffer),
    }
}

/// Writes what is left of a buffer after a short write.
pub(crate) async fn write_rest(to: &mut WriteHalf, buffer: Vec<u8>, written: usize) -> (io::Result<()>, Vec<u8>) {
    use monoio::buf::IoBuf as _;
    let (result, rest) = to.write_all(buffer.slice(written..)).await;
    (result.map(drop), rest.into_inner())
}

/// The standard library's view of an accepted socket, so that it can move to another worker.
pub(crate) fn into_std(stream: TcpStream) -> StdTcpStream {
    super::readiness::into_std(stream)
}
