//! One stream of an HTTP/2 connection, as a connection that carries HTTP/1.1 text.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use meshring_core::http::head::Method;

use super::{
    Origin,
    client::{Opener, Place},
    incoming::Incoming,
    outgoing::{Extended, Outgoing},
};
use crate::worker::{
    buffers::{Buffer, Input},
    interrupt::Interrupt,
};

/// A stream. What is read from it is the other side's message as HTTP/1.1 text, what is written to it must be ours.
pub(crate) struct Stream {
    origin: Rc<Origin>,
    interrupt: Rc<Interrupt>,
    incoming: RefCell<Incoming>,
    outgoing: RefCell<Outgoing>,
    /// The other side has said that it has not processed the request.
    is_unprocessed: Cell<bool>,
    is_lost: Cell<bool>,
    /// Of an upstream connection's streams.
    place: Option<Place>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Stream {
    /// A client's request, whose head has become `text`, with what answers it. The method is that of the text.
    pub(super) fn accepted(
        origin: &Rc<Origin>,
        text: Vec<u8>,
        (method, extended): (Method, Option<Extended>),
        body: RecvStream,
        respond: SendResponse<Bytes>,
    ) -> Self {
        Self {
            origin: Rc::clone(origin),
            interrupt: Rc::default(),
            incoming: RefCell::new(Incoming::request(text, body)),
            outgoing: RefCell::new(Outgoing::response(method, extended, respond)),
            is_unprocessed: Cell::new(false),
            is_lost: Cell::new(false),
            place: None,
        }
    }

    /// A request to an upstream, which is opened when its head is written.
    pub(super) fn opening(origin: &Rc<Origin>, opener: Opener, place: Place) -> Self {
        Self {
            origin: Rc::clone(origin),
            interrupt: Rc::default(),
            incoming: RefCell::new(Incoming::unopened()),
            outgoing: RefCell::new(Outgoing::request(opener)),
            is_unprocessed: Cell::new(false),
            is_lost: Cell::new(false),
            place: Some(place),
        }
    }

    /// The connection that it is part of.
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(crate) fn interrupt(&self) -> &Rc<Interrupt> {
        &self.interrupt
    }

    /// Whether its connection was lost, and with it what came of the request.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost.get()
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
    pub(crate) fn fill_now(&self, input: &mut Input, bytes_max: usize) -> io::Result<usize> {
        self.interrupt.begin_read();
        // Whoever waits next registers itself.
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match self.poll_fill(&mut cx, input, usize::MAX, bytes_max) {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn poll_fill(
        &self,
        cx: &mut Context<'_>,
        input: &mut Input,
        at_most: usize,
        bytes_max: usize,
    ) -> Poll<io::Result<usize>> {
        if let Some(end) = self.interrupt.read_end() {
            return Poll::Ready(end);
        }
        self.interrupt.register(cx);
        let result = ready!(self.incoming.borrow_mut().poll_fill(cx, input, at_most, bytes_max));
        Poll::Ready(result.map_err(|error| self.note(error)))
    }

    /// Waits until a read would not wait.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.interrupt.begin_read();
        poll_fn(|cx| {
            if self.interrupt.read_end().is_some() {
                return Poll::Ready(Ok(()));
            }
            self.interrupt.register(cx);
            let result = ready!(self.incoming.borrow_mut().poll_ready(cx));
            Poll::Ready(result.map_err(|error| self.note(error)))
        })
        .await
    }

    /// Writes all of a buffer, whose end must be the end of a chunk where the body is chunked. May be dropped.
    pub(crate) async fn write_all(&self, buffer: &Buffer) -> io::Result<()> {
        let mut written = 0;
        poll_fn(|cx| self.poll_write(cx, buffer, &mut written)).await
    }

    fn poll_write(&self, cx: &mut Context<'_>, buffer: &Buffer, written: &mut usize) -> Poll<io::Result<()>> {
        if self.interrupt.has_write_ended() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.interrupt.register(cx);
        let mut outgoing = self.outgoing.borrow_mut();
        let result = outgoing.poll_write(cx, buffer, written);
        // Also where the body waits for credit: the response may come before it has any.
        if let Some(opened) = outgoing.take_opened() {
            self.incoming.borrow_mut().opened(opened);
            self.interrupt.wake();
        }
        let result = ready!(result);
        if result.is_err() && self.incoming.borrow_mut().fail_unopened() {
            self.is_unprocessed.set(true);
            self.interrupt.wake();
        }
        Poll::Ready(result.map_err(|error| self.note(error)))
    }

    /// Sends a request and waits for the first bytes of its response, as [`Conn::ask`](crate::worker::conn::Conn::ask). A response may
    /// come while the request still waits for credit, and is the end of it then.
    pub(crate) async fn ask(
        &self,
        out: &mut Buffer,
        is_kept: bool,
        input: &mut Input,
        at_most: usize,
        bytes_max: usize,
    ) -> io::Result<usize> {
        let (mut written, mut is_written) = (0, false);
        self.interrupt.begin_read();
        poll_fn(|cx| {
            // How a write fails, the read will say.
            if !is_written && self.poll_write(cx, out, &mut written).is_ready() {
                is_written = true;
                if !is_kept {
                    // As many requests as wait for a slow upstream, so many buffers less.
                    out.clear();
                    out.release();
                }
            }
            self.poll_fill(cx, input, at_most, bytes_max)
        })
        .await
    }

    /// Takes along the trailers of a body whose length is announced, of which HTTP/1.1 text does not tell. All of them have come
    /// before the last piece of that body is read.
    pub(crate) fn take_trailers_of(&self, from: &Self) {
        if let Some(trailers) = from.incoming.borrow().trailers() {
            self.outgoing.borrow_mut().put_trailers(trailers);
        }
    }

    /// Ends our direction of a tunnel.
    pub(crate) fn end(&self) {
        self.outgoing.borrow_mut().end();
    }

    /// Ends it with an error: the peer must not take what it has for all of the message.
    pub(crate) fn abort(&self) {
        self.outgoing.borrow_mut().reset(Reason::INTERNAL_ERROR);
    }

    /// Ready when the client has cancelled it.
    pub(super) fn poll_cancelled(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.outgoing.borrow_mut().poll_reset(cx)
    }

    fn note(&self, error: Broken) -> io::Error {
        let error = match error {
            Broken::Io(error) => return error,
            Broken::Protocol(error) => error,
        };
        let is_refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
        if error.is_remote() && (is_refused || error.is_go_away()) {
            self.is_unprocessed.set(true);
        }
        if error.is_io() {
            self.is_lost.set(true);
        }
        io::Error::new(io::ErrorKind::ConnectionReset, error)
    }
}

/// Why a stream goes no further.
#[derive(Debug)]
pub(super) enum Broken {
    Protocol(h2::Error),
    Io(io::Error),
}

impl From<h2::Error> for Broken {
    fn from(error: h2::Error) -> Self {
        Self::Protocol(error)
    }
}

impl From<io::ErrorKind> for Broken {
    fn from(kind: io::ErrorKind) -> Self {
        Self::Io(kind.into())
    }
}
