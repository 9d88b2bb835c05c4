//! A connection as the h2 crate wants it: bytes that can be read and written at any time, while operations of the ring own
//! their buffers and must not be dropped. So there is a buffer each way, and a pump each that moves it.

use std::{
    cell::{Cell, RefCell},
    future::{Future as _, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use meshring_core::limits::{BODY_IDLE_MS_MAX, BUFFER_BYTES, HOLD_BUFFER_MS_MAX, HTTP2_LAST_WORDS_MS_MAX};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::worker::{
    buffers::{Buffer, Buffers, Input},
    conn::{ReadHalf, WriteHalf, is_canceled, readable, write_all},
    deadlines::{Expiry, Timer, now_ms},
};

/// One who waits.
#[derive(Debug, Default)]
struct Waiter(RefCell<Option<Waker>>);

impl Waiter {
    fn wait<T>(&self, cx: &Context<'_>) -> Poll<T> {
        *self.0.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    fn wake(&self) {
        let waker = self.0.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Both buffers, and who waits for them.
#[derive(Debug)]
struct Shared {
    incoming: RefCell<Input>,
    outgoing: RefCell<Buffer>,
    /// How reading has ended.
    read_end: Cell<Option<io::ErrorKind>>,
    is_read_closed: Cell<bool>,
    is_broken: Cell<bool>,
    /// The protocol has ended.
    is_done: Cell<bool>,
    is_writing: Cell<bool>,
    /// How long the other side may take to accept what is written, in milliseconds.
    write_ms_max: Cell<u64>,
    received_bytes: Cell<u64>,
    /// The first bytes that have come, as many as tell a frame's type.
    begun: Cell<([u8; 4], usize)>,
    protocol: Waiter,
    reader: Waiter,
    writer: Waiter,
}

/// The protocol's side.
#[derive(Debug)]
pub(super) struct Transport(Rc<Shared>);

/// The pumps' side.
#[derive(Debug, Clone)]
pub(super) struct Pumps {
    shared: Rc<Shared>,
    pool: Rc<Buffers>,
}

/// A transport on which `first` has come already.
pub(super) fn transport(pool: &Rc<Buffers>, first: &[u8]) -> (Transport, Pumps) {
    let mut incoming = Input::new(pool.lazy());
    if !first.is_empty() {
        incoming.extend(first);
    }
    let shared = Rc::new(Shared {
        incoming: RefCell::new(incoming),
        outgoing: RefCell::new(pool.lazy()),
        read_end: Cell::new(None),
        is_read_closed: Cell::new(false),
        is_broken: Cell::new(false),
        is_done: Cell::new(false),
        is_writing: Cell::new(false),
        write_ms_max: Cell::new(BODY_IDLE_MS_MAX),
        received_bytes: Cell::new(first.len() as u64),
        begun: Cell::default(),
        protocol: Waiter::default(),
        reader: Waiter::default(),
        writer: Waiter::default(),
    });
    (Transport(Rc::clone(&shared)), Pumps { shared, pool: Rc::clone(pool) })
}

impl Pumps {
    /// Bytes that have come so far.
    pub(super) fn received_bytes(&self) -> u64 {
        self.shared.received_bytes.get()
    }

    /// Whether the other side, a server, has begun as one of HTTP/2 must: with SETTINGS (RFC 9113 section 3.4). `None`: it has not said
    /// enough.
    pub(super) fn begins_with_settings(&self) -> Option<bool> {
        const SETTINGS: u8 = 4;
        let (bytes, len) = self.shared.begun.get();
        (len == bytes.len()).then_some(bytes[3] == SETTINGS)
    }

    fn note_beginning(&self, bytes: &[u8]) {
        let (mut begun, mut len) = self.shared.begun.get();
        for &byte in bytes.iter().take(begun.len() - len) {
            begun[len] = byte;
            len += 1;
        }
        self.shared.begun.set((begun, len));
    }

    /// The protocol has ended: what it has written goes out soon or not at all, and nothing more is read.
    pub(super) fn finish(&self, reading: &Timer, writing: &Timer) {
        self.shared.is_done.set(true);
        self.shared.write_ms_max.set(HTTP2_LAST_WORDS_MS_MAX);
        if self.shared.is_writing.get() {
            writing.set(now_ms() + HTTP2_LAST_WORDS_MS_MAX, Expiry::ShutdownBoth);
        }
        self.shared.writer.wake();
        self.shared.reader.wake();
        // Not shut: what still comes is to be taken in, or closing would reset the connection and take the last frames from the peer.
        reading.shutdown(Expiry::CancelRead);
    }

    /// Reads whenever the protocol has taken everything.
    pub(super) async fn read(&self, half: &mut ReadHalf, timer: &Timer) {
        let shared = &self.shared;
        loop {
            let is_done = poll_fn(|cx| match (shared.is_done.get(), shared.incoming.borrow().is_empty()) {
                (true, _) => Poll::Ready(true),
                (false, true) => Poll::Ready(false),
                (false, false) => shared.reader.wait(cx),
            });
            if is_done.await {
                return;
            }
            let mut input = Input::new(self.pool.lazy());
            let Some(result) = self.fill(half, timer, &mut input).await else { return };
            match result {
                Ok(count) if count > 0 => {
                    shared.received_bytes.set(shared.received_bytes.get() + count as u64);
                    self.note_beginning(input.unread());
                    *shared.incoming.borrow_mut() = input;
                }
                Ok(_) => shared.is_read_closed.set(true),
                Err(error) => {
                    shared.read_end.set(Some(error.kind()));
                    shared.is_read_closed.set(true);
                }
            }
            shared.protocol.wake();
            if shared.is_read_closed.get() {
                return;
            }
        }
    }

    /// Reads more; without a buffer while nothing comes. `None`: the protocol has ended.
    async fn fill(&self, half: &mut ReadHalf, timer: &Timer, input: &mut Input) -> Option<io::Result<usize>> {
        let shared = &self.shared;
        loop {
            timer.set(now_ms() + HOLD_BUFFER_MS_MAX, Expiry::CancelRead);
            let result = input.fill_cancelable(half, BUFFER_BYTES, BUFFER_BYTES, timer.cancel_handle()).await;
            timer.clear();
            timer.forget_cancel();
            match result {
                Err(error) if is_canceled(&error) => {}
                result => return Some(result),
            }
            input.release();
            timer.drop_canceller();
            // A wait for readiness may be dropped: it has no bytes.
            let mut ready = pin!(readable(half));
            let ready = poll_fn(|cx| {
                if shared.is_done.get() {
                    return Poll::Ready(None);
                }
                match ready.as_mut().poll(cx) {
                    Poll::Ready(result) => Poll::Ready(Some(result)),
                    Poll::Pending => shared.reader.wait(cx),
                }
            });
            if let Err(error) = ready.await? {
                return Some(Err(error));
            }
        }
    }

    /// Writes whenever there is something.
    pub(super) async fn write(&self, half: &mut WriteHalf, timer: &Timer) {
        let shared = &self.shared;
        loop {
            let has_more = poll_fn(|cx| match (shared.outgoing.borrow().is_empty(), shared.is_done.get()) {
                (false, _) => Poll::Ready(true),
                (true, true) => Poll::Ready(false),
                (true, false) => shared.writer.wait(cx),
            });
            if !has_more.await {
                return;
            }
            let mut buffer = shared.outgoing.replace(self.pool.lazy());
            shared.is_writing.set(true);
            shared.protocol.wake();
            timer.set(now_ms() + shared.write_ms_max.get(), Expiry::ShutdownBoth);
            let result = write_all(half, &mut buffer).await;
            timer.clear();
            shared.is_writing.set(false);
            if result.is_err() {
                shared.is_broken.set(true);
                shared.protocol.wake();
                return;
            }
            shared.protocol.wake();
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let shared = &self.0;
        let mut incoming = shared.incoming.borrow_mut();
        if incoming.is_empty() {
            return match (shared.is_read_closed.get(), shared.read_end.get()) {
                (true, Some(kind)) => Poll::Ready(Err(kind.into())),
                (true, None) => Poll::Ready(Ok(())),
                (false, _) => shared.protocol.wait(cx),
            };
        }
        let unread = incoming.unread();
        let count = unread.len().min(buf.remaining());
        buf.put_slice(&unread[..count]);
        incoming.consume(count);
        if incoming.is_empty() {
            // Its storage serves the next read, of whichever connection.
            incoming.release();
            shared.reader.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let shared = &self.0;
        if shared.is_broken.get() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut outgoing = shared.outgoing.borrow_mut();
        outgoing.ensure();
        let mut taken = 0;
        for part in parts {
            let count = part.len().min(BUFFER_BYTES.saturating_sub(outgoing.len()));
            outgoing.extend_from_slice(&part[..count]);
            taken += count;
        }
        if taken == 0 && parts.iter().any(|part| !part.is_empty()) {
            return shared.protocol.wait(cx);
        }
        shared.writer.wake();
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is taken goes out by itself; how much that may be is bounded by the buffer.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shared = &self.0;
        if shared.is_broken.get() || shared.outgoing.borrow().is_empty() && !shared.is_writing.get() {
            return Poll::Ready(Ok(()));
        }
        shared.protocol.wait(cx)
    }
}
