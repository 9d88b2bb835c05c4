//! One stream of an HTTP/2 connection, as a connection that carries HTTP/1.1 text.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    rc::Rc,
    task::{Context, Poll, ready},
};

use meshring_core::{
    http::{
        head::Method,
        http2::{ConnectionError, Fault, Malformed, Opening, Piece, Room, StreamKey, response_from_text},
    },
    limits::HTTP2_READ_BEYOND_BYTES,
};

use super::{
    Origin,
    client::{Opener, Place},
    link::Link,
    outgoing::{Extended, Outgoing, Target},
};
use crate::worker::{
    Places,
    buffers::{Buffer, Input},
    conn::Hold,
    interrupt::Interrupt,
};

/// A stream. What is read from it is the other side's message as HTTP/1.1 text, what is written to it must be ours.
pub(crate) struct Stream {
    origin: Rc<Origin>,
    link: Rc<Link>,
    interrupt: Rc<Interrupt>,
    /// Once it is open.
    key: Cell<Option<StreamKey>>,
    outgoing: RefCell<Outgoing>,
    /// It could not be opened.
    has_failed: Cell<bool>,
    /// The other side has said that it has not processed the request.
    is_unprocessed: Cell<bool>,
    is_lost: Cell<bool>,
    /// What is wrong with what the other side has sent.
    malformed: Cell<Option<Malformed>>,
    /// An upstream's, which has taken our CONNECT: it carries bytes.
    is_tunnel: Cell<bool>,
    /// Of an upstream connection's streams.
    place: Option<Place>,
    /// See [`Stream::take_arrival`].
    arrived_ns: Cell<Option<u64>>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(key) = self.key.get() {
            self.link.with(|protocol, out| protocol.release(key, out));
        }
    }
}

impl Stream {
    /// A client's request, which has come at this time of [`monotonic_ns`](meshring_core::clock::monotonic_ns). `None`: it is gone already.
    pub(super) fn accepted(origin: &Rc<Origin>, link: &Rc<Link>, opening: Opening, arrived_ns: u64) -> Option<Self> {
        let key = opening.key;
        let (method, extended) = match opening.shape {
            Ok(shape) if shape.is_extended => {
                let text = link.ask(|protocol| match protocol.piece(key) {
                    Ok(Piece::Bytes(text)) => Some(Extended::of(text)),
                    _ => None,
                });
                (shape.method, text)
            }
            Ok(shape) => (shape.method, None),
            Err(_) => (Method::Other, None),
        };
        let interrupt = link.ask(|protocol| protocol.waiter(key).map(|waiter| Rc::clone(&waiter.0)))?;
        let outgoing = Outgoing::response(method, extended);
        let stream = Self::new(origin, link, interrupt, Some(key), outgoing, None);
        stream.arrived_ns.set(Some(arrived_ns));
        Some(stream)
    }

    /// A request to an upstream, which is opened when its head is written.
    pub(super) fn opening(origin: &Rc<Origin>, link: &Rc<Link>, opener: Opener, place: Place) -> Self {
        Self::new(origin, link, Rc::default(), None, Outgoing::request(opener), Some(place))
    }

    fn new(
        origin: &Rc<Origin>,
        link: &Rc<Link>,
        interrupt: Rc<Interrupt>,
        key: Option<StreamKey>,
        outgoing: Outgoing,
        place: Option<Place>,
    ) -> Self {
        Self {
            origin: Rc::clone(origin),
            link: Rc::clone(link),
            interrupt,
            key: Cell::new(key),
            outgoing: RefCell::new(outgoing),
            has_failed: Cell::new(false),
            is_unprocessed: Cell::new(false),
            is_lost: Cell::new(false),
            malformed: Cell::new(None),
            is_tunnel: Cell::new(false),
            place,
            arrived_ns: Cell::new(None),
        }
    }

    /// The connection that it is part of.
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// When the request that it begins with has come, in [`monotonic_ns`](meshring_core::clock::monotonic_ns), for whoever asks first: it
    /// may have waited for its turn, and what follows in a tunnel came later.
    pub(crate) fn take_arrival(&self) -> Option<u64> {
        self.arrived_ns.take()
    }

    pub(crate) fn interrupt(&self) -> &Rc<Interrupt> {
        &self.interrupt
    }

    /// Whether its connection was lost, and with it what came of the request.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost.get()
    }

    /// What is wrong with what the other side has sent, as far as somebody has met it here.
    pub(crate) fn flaw(&self) -> Option<Flaw> {
        match self.malformed.get() {
            Some(malformed) => Some(Flaw::Stream(malformed)),
            None if self.is_lost() => self.link.ask(|protocol| protocol.failure()).map(Flaw::Connection),
            None => None,
        }
    }

    /// Whether it is a tunnel of ours to somewhere behind the upstream.
    pub(crate) fn is_tunnel(&self) -> bool {
        self.is_tunnel.get()
    }

    /// Whether a tunnel that nobody uses is still open and silent.
    pub(crate) fn is_quiet(&self) -> bool {
        let Some(key) = self.key.get().filter(|_| self.is_tunnel() && self.interrupt.is_untouched()) else {
            return false;
        };
        self.link.ask(|protocol| matches!(protocol.piece(key), Ok(Piece::Wait)))
    }

    /// Sends a CONNECT and waits for the answer to it; see [`Conn::open_tunnel`](crate::worker::conn::Conn::open_tunnel).
    pub(crate) async fn open_tunnel(&self, head: &mut Buffer) -> io::Result<u16> {
        self.write_all(head).await?;
        let status = loop {
            self.readable().await?;
            if self.interrupt.read_end().is_some() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let Some(key) = self.key.get() else { return Err(io::ErrorKind::NotConnected.into()) };
            let head = self.link.with(|protocol, out| {
                // A head is there whole, and what follows is a piece of its own.
                let Ok(Piece::Bytes(text)) = protocol.piece(key) else { return None };
                let head = response_from_text(text, Method::Connect)?;
                let (len, told) = (head.len, (head.status, head.is_interim()));
                protocol.consume(key, len, out);
                Some(told)
            });
            match head {
                Some((_, true)) => {}
                Some((status, false)) => break status,
                None => return Err(io::ErrorKind::ConnectionReset.into()),
            }
        };
        self.is_tunnel.set((200..300).contains(&status));
        Ok(status)
    }

    /// Its request got no answer in time.
    pub(crate) fn waited_in_vain(&self) {
        if let Some(place) = &self.place {
            place.waited_in_vain();
        }
    }

    /// Whether a request that got no response was certainly not processed: REFUSED_STREAM, or beyond what a GOAWAY names as
    /// the last one (RFC 9113 sections 6.8 and 8.7). Any method may be sent again then.
    pub(crate) fn is_unprocessed(&self) -> bool {
        self.is_unprocessed.get()
    }

    /// Reads more, at most so many bytes into an input of at most `bytes_max`: as much as is there, or the first that comes. 0
    /// is the end. May be dropped at any time without losing a byte.
    pub(crate) async fn fill(&self, input: &mut Input, at_most: usize, bytes_max: usize) -> io::Result<usize> {
        self.interrupt.begin_read();
        poll_fn(|cx| self.poll_fill(cx, input, at_most, bytes_max)).await
    }

    /// Reads what is there now. `WouldBlock` when there is nothing.
    pub(crate) fn fill_now(&self, input: &mut Input, at_most: usize, bytes_max: usize) -> io::Result<usize> {
        self.interrupt.begin_read();
        // Whoever waits next registers itself.
        let cx = Context::from_waker(std::task::Waker::noop());
        match self.poll_fill(&cx, input, at_most, bytes_max) {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn poll_fill(
        &self,
        cx: &Context<'_>,
        input: &mut Input,
        at_most: usize,
        bytes_max: usize,
    ) -> Poll<io::Result<usize>> {
        if let Some(end) = self.interrupt.read_end() {
            return Poll::Ready(end);
        }
        self.interrupt.register(cx);
        let Some(key) = self.key.get() else { return self.unopened() };
        self.link.with(|protocol, out| {
            let mut moved = 0;
            while moved < at_most {
                let count = match protocol.piece(key) {
                    Ok(Piece::Bytes(bytes)) => input.append(&bytes[..bytes.len().min(at_most - moved)], bytes_max),
                    // What came before it is told first; an error is met again.
                    _ if moved > 0 => break,
                    Ok(Piece::End) => return Poll::Ready(Ok(0)),
                    Ok(Piece::Wait) => return Poll::Pending,
                    Err(fault) => return Poll::Ready(Err(self.note(fault.into()))),
                };
                match count {
                    Some(count) => {
                        // It is in a buffer of ours now, which is written before more is read: so the sender is as fast as the receiver.
                        protocol.consume(key, count, out);
                        moved += count;
                    }
                    None if moved > 0 => break,
                    None => return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into())),
                }
            }
            Poll::Ready(Ok(moved))
        })
    }

    /// Nothing can come yet, or ever. Whoever opens it wakes the one who waits.
    fn unopened<T>(&self) -> Poll<io::Result<T>> {
        if self.has_failed.get() { Poll::Ready(Err(io::ErrorKind::NotConnected.into())) } else { Poll::Pending }
    }

    /// Waits until a read would not wait.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.interrupt.begin_read();
        poll_fn(|cx| self.poll_readable(cx)).await
    }

    /// Ready when a read would not wait, or was to be cancelled before.
    pub(crate) fn poll_readable(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        if self.interrupt.read_end().is_some() {
            return Poll::Ready(Ok(()));
        }
        self.interrupt.register(cx);
        let Some(key) = self.key.get() else { return self.unopened() };
        self.link.ask(|protocol| match protocol.piece(key) {
            Ok(Piece::Bytes(_) | Piece::End) => Poll::Ready(Ok(())),
            Ok(Piece::Wait) => Poll::Pending,
            Err(fault) => Poll::Ready(Err(self.note(fault.into()))),
        })
    }

    /// Writes all of a buffer, whose end must be the end of a chunk where the body is chunked. One that is dropped is the last.
    pub(crate) async fn write_all(&self, buffer: &mut Buffer) -> io::Result<()> {
        let (mut written, mut is_shrunk) = (0, false);
        let result = poll_fn(|cx| {
            let polled = self.poll_write(cx, buffer, &mut written);
            if polled.is_pending() && !is_shrunk {
                is_shrunk = buffer.shrink();
            }
            polled
        })
        .await;
        if is_shrunk {
            buffer.grow();
        }
        result
    }

    /// As [`write_all`](Self::write_all), to a client that may take nothing for long: how much is written when it has been waited for
    /// until a read was cancelled, or at once where `hot` has no place. `None`: all is.
    pub(crate) async fn write_or_stall(&self, buffer: &Buffer, hot: &Places) -> io::Result<Option<usize>> {
        let (mut written, mut place) = (0, None);
        self.interrupt.begin_read();
        poll_fn(|cx| {
            if let Poll::Ready(result) = self.poll_write(cx, buffer, &mut written) {
                return Poll::Ready(result.map(|()| None));
            }
            // Where its connection moves, its turn comes soon, but that is known only afterwards.
            if place.is_none() {
                place = hot.enter();
                if place.is_none() {
                    return Poll::Ready(Ok(Some(written)));
                }
            }
            match self.interrupt.read_end() {
                Some(Err(_)) => Poll::Ready(Ok(Some(written))),
                _ => Poll::Pending,
            }
        })
        .await
    }

    /// Ready when a write would go on, or fail.
    pub(crate) fn poll_writable(&self, cx: &Context<'_>) -> Poll<()> {
        if self.interrupt.has_write_ended() {
            return Poll::Ready(());
        }
        self.interrupt.register(cx);
        let Some(key) = self.key.get() else { return Poll::Ready(()) };
        let has_room = if self.outgoing.borrow().is_at_head() {
            self.link.with(|protocol, out| protocol.head_room(key, out))
        } else {
            self.link.with(|protocol, out| protocol.room(key, out) != Room::Wait)
        };
        if has_room { Poll::Ready(()) } else { Poll::Pending }
    }

    /// How much is worth reading to be written here, in bytes: a little more than the windows take, and not much where the client may
    /// take nothing at all.
    pub(crate) fn appetite(&self) -> usize {
        let window = self.key.get().map_or(0, |key| self.link.ask(|protocol| protocol.window(key)));
        HTTP2_READ_BEYOND_BYTES + window.min(self.link.read_ahead_bytes())
    }

    fn poll_write(&self, cx: &Context<'_>, buffer: &Buffer, written: &mut usize) -> Poll<io::Result<()>> {
        if self.interrupt.has_write_ended() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.interrupt.register(cx);
        let was_open = self.key.get().is_some();
        let result = self.write(|outgoing, target| outgoing.poll_write(cx, target, buffer, written));
        let is_open = self.key.get().is_some();
        if is_open && !was_open {
            // Also where the body waits for credit: the response may come before it has any.
            self.interrupt.wake();
        }
        let result = ready!(result);
        if result.is_err() && !is_open {
            self.has_failed.set(true);
            self.is_unprocessed.set(true);
            self.interrupt.wake();
        }
        Poll::Ready(result.map_err(|error| self.note(error)))
    }

    fn write<T>(&self, act: impl FnOnce(&mut Outgoing, &mut Target<'_>) -> T) -> T {
        let mut key = self.key.get();
        let mut target = Target { link: &self.link, key: &mut key, interrupt: &self.interrupt };
        let result = act(&mut self.outgoing.borrow_mut(), &mut target);
        self.key.set(key);
        result
    }

    /// Sends a request and waits for the first bytes of its response, as [`Conn::ask`](crate::worker::conn::Conn::ask). A response may
    /// come while the request still waits for credit, and is the end of it then.
    pub(in crate::worker) async fn ask(
        &self,
        out: &mut Buffer,
        is_kept: bool,
        input: &mut Input,
        (at_most, bytes_max): (usize, usize),
        hold: Option<Hold<'_>>,
    ) -> io::Result<usize> {
        let (mut written, mut is_written) = (0, false);
        self.interrupt.begin_read();
        let result = poll_fn(|cx| {
            // How a write fails, the read will say.
            if !is_written && self.poll_write(cx, out, &mut written).is_ready() {
                is_written = true;
                if let Some(hold) = hold {
                    hold.begin();
                }
                if !is_kept {
                    // As many requests as wait for a slow upstream, so many buffers less.
                    out.clear();
                    out.release();
                }
            }
            self.poll_fill(cx, input, at_most, bytes_max)
        })
        .await;
        if !is_written {
            self.outgoing.borrow_mut().give_up();
        }
        result
    }

    /// Sends a request, until it is written or its response has begun to come, which is the end of it, too.
    pub(in crate::worker) async fn tell(&self, out: &Buffer) {
        let mut written = 0;
        self.interrupt.begin_read();
        let is_written = poll_fn(|cx| match self.poll_write(cx, out, &mut written) {
            Poll::Ready(_) => Poll::Ready(true),
            Poll::Pending => self.poll_readable(cx).map(|_| false),
        })
        .await;
        if !is_written {
            self.outgoing.borrow_mut().give_up();
        }
    }

    /// Takes along the trailers of a body whose length is announced, of which HTTP/1.1 text does not tell. All of them have come
    /// before the last piece of that body is read.
    pub(crate) fn take_trailers_of(&self, from: &Self) {
        let Some(key) = from.key.get() else { return };
        from.link.ask(|protocol| {
            let lines = protocol.trailers(key);
            if !lines.is_empty() {
                self.outgoing.borrow_mut().put_trailers(lines);
            }
        });
    }

    /// Ends our direction of a tunnel.
    pub(crate) fn end(&self) {
        self.write(|outgoing, target| outgoing.end(target));
    }

    /// Ends it with an error: the peer must not take what it has for all of the message.
    pub(crate) fn abort(&self) {
        let is_upstream = self.place.is_some();
        self.write(|outgoing, target| outgoing.abort(target, is_upstream));
    }

    /// Ready when the client has cancelled it.
    pub(crate) fn poll_cancelled(&self, cx: &Context<'_>) -> Poll<()> {
        let Some(key) = self.key.get() else { return Poll::Pending };
        self.interrupt.register(cx);
        if self.link.ask(|protocol| protocol.is_cancelled(key)) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether the client has cancelled it.
    pub(super) fn is_cancelled(&self) -> bool {
        self.key.get().is_some_and(|key| self.link.ask(|protocol| protocol.is_cancelled(key)))
    }

    fn note(&self, error: Broken) -> io::Error {
        let fault = match error {
            Broken::Io(error) => return error,
            Broken::Fault(fault) => fault,
        };
        if fault.is_unprocessed() {
            self.is_unprocessed.set(true);
        }
        match fault {
            Fault::Lost => self.is_lost.set(true),
            Fault::Broken(_, malformed) => {
                self.malformed.set(Some(malformed));
                return io::Error::new(io::ErrorKind::InvalidData, fault);
            }
            Fault::Reset(_) | Fault::Given(_) | Fault::Unprocessed => {}
        }
        io::Error::new(io::ErrorKind::ConnectionReset, fault)
    }
}

/// What is wrong with what an upstream has sent.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub(crate) enum Flaw {
    /// On one stream.
    #[error(transparent)]
    Stream(Malformed),
    /// On its connection, with which all of its streams are lost.
    #[error("the connection of HTTP/2: {0}")]
    Connection(ConnectionError),
}

impl Flaw {
    /// A stable short name for the log and for the text of an answer.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Stream(malformed) => malformed.upstream_code(),
            Self::Connection(_) => "upstream_http2.connection",
        }
    }
}

/// Why a stream goes no further.
#[derive(Debug)]
pub(super) enum Broken {
    Fault(Fault),
    Io(io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<io::ErrorKind> for Broken {
    fn from(kind: io::ErrorKind) -> Self {
        Self::Io(kind.into())
    }
}
