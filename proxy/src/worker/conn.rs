//! A connection as the stages see it: a TCP connection, or one stream of an HTTP/2 connection.

use std::{
    cell::Cell,
    io,
    net::{SocketAddr, TcpStream as StdTcpStream},
    os::fd::{AsRawFd as _, RawFd},
    pin::Pin,
    rc::Rc,
    time::Duration,
};

use meshring_core::{
    http::Via,
    limits::{HOLD_BUFFER_MS_MAX, LINGER_LOOK_MS, PROMPT_ANSWERS_MIN},
    stats::TlsCounter,
};
use monoio::{
    io::{AsyncWriteRentExt as _, OwnedReadHalf, OwnedWriteHalf, Splitable as _},
    net::TcpStream,
};
use rustix::io::Errno;

use super::{
    buffers::{Buffer, Input},
    congestion,
    deadlines::{Deadlines, Expiry, Timer, now_ms},
    http2::Stream,
    refusals::Told,
    secure::{Tls, peer::Peer},
};

mod ask;
mod write;

pub(super) use ask::Hold;
pub(crate) use write::{end, pass_trailers, write_all};

/// The half that is read from.
#[derive(Debug)]
pub(crate) enum ReadHalf {
    /// Of a TCP connection.
    Socket(SocketReader),
    /// Of a stream.
    Stream(Rc<Stream>),
}

/// The half that is written to.
#[derive(Debug)]
pub(crate) enum WriteHalf {
    /// Of a TCP connection.
    Socket(SocketWriter),
    /// Of a stream.
    Stream(Rc<Stream>),
}

/// What reads from a socket.
#[derive(Debug)]
pub(crate) struct SocketReader {
    pub(super) socket: OwnedReadHalf<TcpStream>,
    fd: RawFd,
    /// Once the connection is secured.
    pub(super) tls: Option<Rc<Tls>>,
    /// What the log has said of a client's connection.
    told: Told,
    /// See [`Conn::meant_port`]; `None` before somebody asks.
    meant_port: Cell<Option<Option<u16>>>,
    /// See [`Conn::quiet_ms`].
    quiet_ms: Cell<Option<u64>>,
    /// See [`Conn::has_answered`].
    prompt_answers: Cell<u8>,
}

/// What writes to a socket.
#[derive(Debug)]
pub(crate) struct SocketWriter {
    pub(super) socket: OwnedWriteHalf<TcpStream>,
    fd: RawFd,
    /// Once the connection is secured.
    pub(super) tls: Option<Rc<Tls>>,
}

impl ReadHalf {
    /// Whether the stream has ended without the peer's word for it, so that what it has sent may be cut.
    pub(crate) fn is_truncated(&self) -> bool {
        self.tls().is_some_and(|tls| tls.is_truncated())
    }

    /// Whether a stream that has ended may have been reset: the kernel tells only one operation, and that can be a write. A
    /// connection that was ended by both sides looks like this, too. Of a stream the protocol tells.
    pub(crate) fn may_be_reset(&self) -> bool {
        match self {
            Self::Socket(socket) => super::readiness::peer(socket.fd).is_none(),
            Self::Stream(_) => false,
        }
    }

    /// See [`Conn::watch_silence`].
    pub(super) fn watch_silence(&self) {
        if let Self::Socket(socket) = self {
            super::readiness::watch_silence(socket.fd);
        }
    }

    fn tls(&self) -> Option<&Rc<Tls>> {
        match self {
            Self::Socket(socket) => socket.tls.as_ref(),
            Self::Stream(_) => None,
        }
    }

    /// What Via says of messages from it.
    pub(crate) fn via(&self) -> Via {
        match self {
            Self::Stream(stream) if !stream.is_tunnel() => Via::Http2,
            Self::Socket(_) | Self::Stream(_) => Via::Http1,
        }
    }
}

impl SocketReader {
    /// Notes how the read of an answer has ended that had room for so many bytes: one that was not filled has left nothing behind.
    pub(super) fn has_read_answer(&self, result: &io::Result<usize>, room: usize) {
        let is_quiet = matches!(*result, Ok(count) if count > 0 && count < room);
        self.quiet_ms.set(is_quiet.then(now_ms));
    }

    /// Notes any other read of the socket.
    pub(super) fn is_read(&self) {
        self.quiet_ms.set(None);
    }

    /// Its socket, where plain bytes come out of it: without TLS, or with the kernel's.
    pub(super) fn plain_fd(&self) -> Option<RawFd> {
        self.tls.as_ref().is_none_or(|tls| tls.is_kernel() && !tls.has_input()).then_some(self.fd)
    }
}

impl SocketWriter {
    /// As [`SocketReader::plain_fd`], where plain bytes may be written.
    pub(super) fn plain_fd(&self) -> Option<RawFd> {
        self.tls.as_ref().is_none_or(|tls| tls.is_kernel()).then_some(self.fd)
    }
}

/// A connection with its deadline.
#[derive(Debug)]
pub(crate) struct Conn {
    // First, so that the deadline goes before the descriptor: see `deadlines`.
    pub(crate) timer: Timer,
    pub(crate) read: ReadHalf,
    pub(crate) write: WriteHalf,
}

/// See [`Conn::wear`].
#[derive(Debug)]
pub(super) struct Wear(Option<Rc<Tls>>);

impl Wear {
    pub(super) fn is_worn(&self) -> bool {
        self.0.as_ref().is_some_and(|tls| tls.is_worn())
    }
}

/// What a client has connected to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meant {
    /// An address other than the listener's.
    Address(SocketAddr),
    /// The listener itself.
    Listener,
    /// Likewise; nothing else can be known, since this network namespace does not keep track of connections.
    Untracked,
}

/// How an idle read ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum IdleRead {
    /// Bytes are there.
    Bytes,
    /// Nothing came in time: give the buffer back and wait without one.
    StillIdle,
    /// The peer has closed, or the connection was ended.
    Closed,
    /// The buffer is full at its largest size.
    Full,
}

impl Conn {
    /// Over a connected socket.
    pub(crate) fn new(stream: TcpStream, deadlines: &Rc<Deadlines>) -> Self {
        // Small writes must not wait for an acknowledgement. An error means that the peer is gone: the first read or
        // write says so.
        let _ = stream.set_nodelay(true);
        let fd = stream.as_raw_fd();
        let (read, write) = stream.into_split();
        let read = SocketReader {
            socket: read,
            fd,
            tls: None,
            told: Told::default(),
            meant_port: Cell::new(None),
            quiet_ms: Cell::new(None),
            prompt_answers: Cell::new(0),
        };
        let read = ReadHalf::Socket(read);
        let write = WriteHalf::Socket(SocketWriter { socket: write, fd, tls: None });
        Self { timer: deadlines.timer(fd), read, write }
    }

    /// One stream of an HTTP/2 connection: it carries one request and its response as HTTP/1.1 text.
    pub(crate) fn of_stream(stream: Stream, deadlines: &Rc<Deadlines>) -> Self {
        let stream = Rc::new(stream);
        let timer = deadlines.interrupting(stream.interrupt());
        Self { timer, read: ReadHalf::Stream(Rc::clone(&stream)), write: WriteHalf::Stream(stream) }
    }

    /// The stream that this is, if it is no socket. One that is a tunnel carries bytes like a socket, and is none to those who send
    /// messages.
    pub(crate) fn stream(&self) -> Option<&Rc<Stream>> {
        match &self.read {
            ReadHalf::Stream(stream) if !stream.is_tunnel() => Some(stream),
            ReadHalf::Socket(_) | ReadHalf::Stream(_) => None,
        }
    }

    /// Makes a stream of an upstream connection a tunnel: sends `head`, a CONNECT, and waits for the answer. Gives its status; if that
    /// is a 2xx, what comes behind it is there to be read. The deadline is the caller's.
    pub(crate) async fn open_tunnel(&self, head: &mut Buffer) -> io::Result<u16> {
        match &self.read {
            ReadHalf::Socket(_) => Err(io::ErrorKind::Unsupported.into()),
            ReadHalf::Stream(stream) => stream.open_tunnel(head).await,
        }
    }

    /// The descriptor, unless this is a stream.
    pub(crate) fn fd(&self) -> Option<RawFd> {
        match &self.read {
            ReadHalf::Socket(socket) => Some(socket.fd),
            ReadHalf::Stream(_) => None,
        }
    }

    fn tls(&self) -> Option<&Rc<Tls>> {
        self.read.tls()
    }

    /// What the log has said of a client's connection; streams of HTTP/2 share it.
    pub(crate) fn told(&self) -> &Told {
        match &self.read {
            ReadHalf::Socket(socket) => &socket.told,
            ReadHalf::Stream(stream) => &stream.origin().told,
        }
    }

    /// Likewise, for what only sockets do.
    fn socket_fd(&self) -> io::Result<RawFd> {
        self.fd().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// After a handshake: from now on everything goes through it.
    pub(crate) fn secure(&mut self, tls: Tls) {
        if let (ReadHalf::Socket(read), WriteHalf::Socket(write)) = (&mut self.read, &mut self.write) {
            let tls = Rc::new(tls);
            read.tls = Some(Rc::clone(&tls));
            write.tls = Some(tls);
        }
    }

    /// Whether the connection is to end with the message that it carries: its keys are near their end.
    pub(crate) fn is_worn(&self) -> bool {
        self.tls().is_some_and(|tls| tls.is_worn())
    }

    /// Tells [`is_worn`](Self::is_worn) of the connection while others have it.
    pub(super) fn wear(&self) -> Wear {
        Wear(self.tls().cloned())
    }

    /// Who is on the other side, as far as a handshake has proved it.
    pub(crate) fn secured_peer(&self) -> Option<&Rc<Peer>> {
        match &self.read {
            ReadHalf::Socket(socket) => socket.tls.as_ref().map(|tls| tls.peer()),
            ReadHalf::Stream(stream) => stream.origin().secured.as_ref(),
        }
    }

    /// Who seals and opens its records, after a handshake.
    pub(crate) fn tls_runs_in(&self) -> TlsCounter {
        match self.tls() {
            Some(tls) if tls.is_kernel() => TlsCounter::Kernel,
            _ => TlsCounter::Userspace,
        }
    }

    /// Reads what is there from the socket itself, before it is secured. `WouldBlock` when there is nothing.
    pub(crate) fn receive_now(&self, buffer: &mut Buffer) -> io::Result<usize> {
        super::readiness::receive_now(self.socket_fd()?, buffer)
    }

    /// Likewise, at most as many bytes as these.
    pub(crate) fn receive_into_now(&self, bytes: &mut [u8]) -> io::Result<usize> {
        super::readiness::receive_into_now(self.socket_fd()?, bytes)
    }

    /// Waits until there is something to read, or the end of it; the deadline is the caller's.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match &self.read {
            ReadHalf::Socket(socket) => super::readiness::readable(socket).await,
            ReadHalf::Stream(stream) => stream.readable().await,
        }
    }

    /// Writes to the socket itself, before it is secured; gives the bytes back.
    pub(crate) async fn send_plain(&mut self, bytes: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let WriteHalf::Socket(to) = &mut self.write else { return (Err(io::ErrorKind::Unsupported.into()), bytes) };
        let (result, bytes) = to.socket.write_all(bytes).await;
        (result.map(drop), bytes)
    }

    /// Likewise, last words that must not be waited for.
    pub(crate) fn send_now(&self, bytes: &[u8]) {
        // A peer that does not read gets no last word.
        let _ = self.socket_fd().and_then(|fd| super::readiness::send_now(fd, bytes));
    }

    /// Looks at the first bytes without taking them. `WouldBlock` when there is nothing.
    pub(crate) fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        super::readiness::peek_now(self.socket_fd()?, bytes)
    }

    /// Over a socket that another worker has accepted.
    pub(crate) fn from_std(stream: StdTcpStream, deadlines: &Rc<Deadlines>) -> io::Result<Self> {
        TcpStream::from_std(stream).map(|stream| Self::new(stream, deadlines))
    }

    /// A further timer for the time in which both directions are in use. Drop it before the connection.
    pub(crate) fn second_timer(&self) -> Timer {
        self.timer.beside()
    }

    /// Connects within so many milliseconds.
    pub(crate) async fn connect(address: SocketAddr, deadlines: &Rc<Deadlines>, ms_max: u64) -> io::Result<Self> {
        // The one future that is dropped in flight: a socket without data has none to lose.
        let connecting = async {
            if congestion::applies(address) {
                return congestion::connect_local(address).await;
            }
            TcpStream::connect_addr(address).await
        };
        match monoio::time::timeout(Duration::from_millis(ms_max), connecting).await {
            Ok(stream) => stream.map(|stream| Self::new(stream, deadlines)),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Lets the kernel find out about a peer that is gone without a word, also where nothing or too little is written.
    pub(super) fn watch_silence(&self) {
        self.read.watch_silence();
    }

    /// Reads more into an input of at most `bytes_max`; the deadline is the caller's.
    pub(crate) async fn read_more(&mut self, input: &mut Input, bytes_max: usize) -> io::Result<usize> {
        let handle = self.timer.cancel_handle();
        let result = input.fill_cancelable(&mut self.read, usize::MAX, bytes_max, handle).await;
        self.timer.drop_canceller();
        result
    }

    /// Waits with a buffer in hand, until a point in time. `idle`: for a next request, of which nothing has come.
    pub(crate) async fn read_until(&mut self, input: &mut Input, bytes_max: usize, at_ms: u64, idle: bool) -> IdleRead {
        if idle {
            self.timer.set_idle(at_ms, Expiry::CancelRead);
        } else {
            self.timer.set(at_ms, Expiry::CancelRead);
        }
        let handle = self.timer.cancel_handle();
        let result = input.fill_cancelable(&mut self.read, usize::MAX, bytes_max, handle).await;
        self.timer.clear();
        let expired = self.timer.take_expired();
        match result {
            Err(_) if expired => IdleRead::StillIdle,
            result => read_as(&result),
        }
    }

    /// Reads what [`readable_until`](Self::readable_until) has announced, not much more than `at_most`.
    pub(crate) fn read_now(&mut self, input: &mut Input, at_most: usize, bytes_max: usize) -> IdleRead {
        read_as(&input.fill_now(&self.read, at_most, bytes_max))
    }

    /// Waits without a buffer until there is something to read, or the end of it. False: the time has passed.
    /// `idle`: for a next request, of which nothing has come.
    pub(crate) async fn readable_until(&mut self, at_ms: u64, idle: bool) -> bool {
        self.timer.drop_canceller();
        if idle {
            self.timer.set_idle(at_ms, Expiry::ShutdownRead);
        } else {
            self.timer.set(at_ms, Expiry::ShutdownRead);
        }
        // An error is the end of the connection: the read that follows meets it, too.
        let _ = readable(&self.read).await;
        self.timer.clear();
        !self.timer.take_expired()
    }

    /// Lets the peer read what was written last: ends our side, then throws away what still comes, since closing with
    /// unread input would reset the connection and take the response from the peer. Bounded in bytes and time, and
    /// without a buffer: whoever was refused must not cost more than before.
    pub(crate) async fn drain(&mut self, bytes_max: usize, ms_max: u64) {
        // The end of a stream takes nothing from it that was sent before.
        let ReadHalf::Socket(read) = &self.read else { return };
        self.end_write();
        self.timer.drop_canceller();
        let until_ms = now_ms() + ms_max;
        self.timer.set(until_ms, Expiry::ShutdownRead);
        let mut drained = 0;
        while drained < bytes_max {
            match super::readiness::discard_now(read.fd, bytes_max - drained) {
                Ok(0) => break,
                Ok(count) => drained += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if super::readiness::readable(read).await.is_err() {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
        self.timer.clear();
        if drained >= bytes_max {
            Self::say_last_words(read.fd, until_ms).await;
        }
    }

    /// Closing resets the connection of a peer that goes on sending, and behind that the kernel sends nothing more: what still waits for
    /// acknowledgements goes first. Not an `async fn`: few need it, and those who wait for others have its place in their futures.
    fn say_last_words(fd: RawFd, until_ms: u64) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(async move {
            while now_ms() < until_ms && super::readiness::is_sending(fd) {
                monoio::time::sleep(Duration::from_millis(LINGER_LOOK_MS)).await;
            }
        })
    }

    /// Whether control may have taken it around TCP: then the kernel's TLS must not touch it.
    pub(crate) fn may_be_bypassed(&self) -> bool {
        self.fd().is_some_and(super::readiness::may_be_bypassed)
    }

    /// The address of the other side, for the log.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        match &self.read {
            ReadHalf::Socket(socket) => super::readiness::peer(socket.fd),
            ReadHalf::Stream(stream) => stream.origin().peer,
        }
    }

    /// Ends our side: the peer reads what was written, then FIN.
    pub(crate) fn end_write(&self) {
        if let Some(tls) = self.tls() {
            tls.close();
        }
        self.timer.shutdown(Expiry::ShutdownWrite);
    }

    /// Ends the connection with a reset: the peer must not take what it has for all of the message, not even where its end
    /// is marked by the end of the connection.
    pub(crate) fn abort(&self) {
        if let Some(tls) = self.tls() {
            tls.forget();
        }
        match &self.read {
            ReadHalf::Socket(socket) => super::readiness::reset(socket.fd),
            ReadHalf::Stream(stream) => stream.abort(),
        }
    }

    /// Whether an idle connection is still open and silent. Bytes that nobody asked for make it unusable, too
    /// (RFC 9112 section 9.5).
    pub(crate) fn is_quiet(&self) -> bool {
        let fd = match &self.read {
            ReadHalf::Socket(socket) => socket.fd,
            ReadHalf::Stream(stream) => return stream.is_quiet(),
        };
        // Nearly always nothing has come: one peek tells.
        super::readiness::is_quiet(fd) && self.tls().is_none_or(|tls| tls.is_empty())
            || self.tls().is_some_and(|tls| tls.is_quiet())
    }

    /// When an answer that one read has brought whole was the last thing there, by the coarse clock.
    pub(crate) fn quiet_ms(&self) -> Option<u64> {
        let ReadHalf::Socket(socket) = &self.read else { return None };
        let holds_nothing = socket.tls.as_ref().is_none_or(|tls| !tls.is_kernel() && tls.is_empty());
        socket.quiet_ms.get().filter(|_| holds_nothing)
    }

    /// Notes whether an answer has come within [`HOLD_BUFFER_MS_MAX`].
    pub(crate) fn has_answered(&self, is_prompt: bool) {
        if let ReadHalf::Socket(socket) = &self.read {
            let count = if is_prompt { socket.prompt_answers.get().saturating_add(1) } else { 0 };
            socket.prompt_answers.set(count);
        }
    }

    /// Whether its last [`PROMPT_ANSWERS_MIN`] answers have all been prompt, so that the next one is expected to be. Of a stream nothing is
    /// noted: its reads are taken back at no cost.
    pub(crate) fn is_prompt(&self) -> bool {
        matches!(&self.read, ReadHalf::Socket(socket) if socket.prompt_answers.get() >= PROMPT_ANSWERS_MIN)
    }

    /// The address that the client of a listener meant. `is_untracked`: no kernel module keeps track of interceptions here, as far as
    /// is known.
    pub(crate) fn meant(&self, listener: SocketAddr, is_untracked: bool) -> Meant {
        let ReadHalf::Socket(socket) = &self.read else { return Meant::Listener };
        let intercepted = if is_untracked { None } else { Some(super::readiness::intercepted(socket.fd, listener)) };
        // A listener on all addresses does not say which one was meant: the socket does.
        let own = || if listener.ip().is_unspecified() { super::readiness::own(socket.fd) } else { Some(listener) };
        match (intercepted, own()) {
            (Some(Ok(meant)), Some(own)) if meant != own => Meant::Address(meant),
            (_, Some(own)) if own != listener => Meant::Address(own),
            (Some(Err(Errno::NOPROTOOPT)), _) => Meant::Untracked,
            _ => Meant::Listener,
        }
    }

    /// The port that an intercepted client meant. `ask`: of the kernel, once for a connection.
    pub(crate) fn meant_port(&self, ask: impl FnOnce() -> Option<u16>) -> Option<u16> {
        match &self.read {
            ReadHalf::Socket(socket) => socket.meant_port.get().unwrap_or_else(|| {
                let port = ask();
                socket.meant_port.set(Some(port));
                port
            }),
            ReadHalf::Stream(stream) => stream.origin().original_destination.map(|address| address.port()),
        }
    }

    /// The address that an intercepted client meant, if it is not ours (`SO_ORIGINAL_DST`).
    pub(crate) fn original_destination(&self) -> Option<SocketAddr> {
        match &self.read {
            ReadHalf::Socket(socket) => super::readiness::original_destination(socket.fd),
            ReadHalf::Stream(stream) => stream.origin().original_destination,
        }
    }
}

fn read_as(result: &io::Result<usize>) -> IdleRead {
    match result {
        Ok(0) => IdleRead::Closed,
        Ok(_) => IdleRead::Bytes,
        Err(error) => match error.kind() {
            // Readiness may be wrong, and only a cancelled read of ours can tell.
            io::ErrorKind::WouldBlock => IdleRead::StillIdle,
            io::ErrorKind::OutOfMemory => IdleRead::Full,
            _ => IdleRead::Closed,
        },
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        if self.fd().is_some() && self.timer.is_cut() {
            // What is cut must not look whole. And a peer that waits for room to send would go on waiting for a minute: behind
            // `shutdown` the kernel opens the window no more, and closes without a reset if all was read (`tcp_cleanup_rbuf`).
            return self.abort();
        }
        // Before the descriptor goes: the peer must be able to tell an end from a cut.
        if let Some(tls) = self.tls() {
            tls.close();
        }
    }
}

/// Waits without a buffer until a read would not block.
pub(crate) async fn readable(half: &ReadHalf) -> io::Result<()> {
    let socket = match half {
        ReadHalf::Socket(socket) => socket,
        ReadHalf::Stream(stream) => return stream.readable().await,
    };
    if let Some(tls) = &socket.tls {
        if tls.has_input() {
            return Ok(());
        }
        tls.rest();
    }
    super::readiness::readable(socket).await
}

/// Reads more, at most so many bytes into an input of at most `bytes_max`, before `until_ms`, which is asked again
/// whenever it matters. A sender that is slow is waited for without a buffer, unless a part of what it sends is in it.
pub(crate) async fn fill(
    half: &mut ReadHalf,
    timer: &Timer,
    input: &mut Input,
    (at_most, bytes_max): (usize, usize),
    until_ms: impl Fn() -> u64,
    end: Expiry,
) -> io::Result<usize> {
    loop {
        let (at_ms, hold_until_ms) = (until_ms(), now_ms() + HOLD_BUFFER_MS_MAX);
        if at_ms <= hold_until_ms {
            timer.set(at_ms, end);
        } else {
            timer.set(hold_until_ms, Expiry::CancelRead);
        }
        let handle = timer.cancel_handle();
        match input.fill_cancelable(half, at_most, bytes_max, handle).await {
            // A socket that is spliced the other way does not wait.
            Err(error) if is_canceled(&error) || error.kind() == io::ErrorKind::WouldBlock => {}
            result => {
                timer.clear();
                timer.forget_cancel();
                return result;
            }
        }
        input.release();
        timer.drop_canceller();
        timer.set(until_ms(), end);
        let ready = readable(half).await;
        timer.clear();
        ready?;
        if timer.has_expired() {
            return Ok(0);
        }
    }
}

/// Whether an operation has failed because [`Expiry::CancelRead`] has cancelled it.
pub(crate) fn is_canceled(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::CANCELED | Errno::INTR))
}

/// Why an operation failed, where the cause is this machine and not the peer: a stable short code.
pub(crate) fn exhausted(error: &io::Error) -> Option<&'static str> {
    match Errno::from_io_error(error)? {
        Errno::MFILE | Errno::NFILE => Some("out_of_descriptors"),
        Errno::NOBUFS | Errno::NOMEM => Some("out_of_memory"),
        // Of `connect`: every local port to that address is taken.
        Errno::ADDRNOTAVAIL => Some("out_of_ports"),
        _ => None,
    }
}

/// The standard library's view of an accepted socket, so that it can move to another worker.
pub(crate) fn into_std(stream: TcpStream) -> StdTcpStream {
    super::readiness::into_std(stream)
}
