//! The I/O of an HTTP/2 connection: one task reads, hands the bytes to the engine, and writes what the engine and the streams
//! have to say. Operations of the ring own their buffers and must not be dropped, so there is a pump each way; what several
//! streams write in one turn goes out in one write.

use std::{
    cell::{Cell, RefCell},
    future::{Future as _, poll_fn},
    io,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use meshring_core::{
    http::http2::{Code, ConnectionError, Engine, Role, Wake},
    limits::{
        BODY_IDLE_MS_MAX, BUFFER_BYTES, BUFFERS_IN_A_ROW_MAX, HOLD_BUFFER_MS_MAX, HTTP2_LAST_WORDS_MS_MAX,
        HTTP2_READ_AHEAD_BYTES, HTTP2_TOLD_IN_A_ROW_MAX, HTTP2_UNWRITTEN_BYTES_MAX, HTTP2_WOKEN_AT_ONCE,
    },
};

use crate::worker::{
    Worker,
    buffers::{Buffer, Buffers, Held, Input, Reserved},
    conn::{Conn, ReadHalf, WriteHalf, is_canceled, readable, write_all},
    deadlines::{Expiry, Timer, now_ms},
    interrupt::Interrupt,
    join::yield_now,
};

/// Who waits for a stream.
#[derive(Debug, Default)]
pub(super) struct Waiter(pub(super) Rc<Interrupt>);

impl Wake for Waiter {
    fn wake(&self) {
        self.0.wake();
    }
}

pub(super) type Protocol = Engine<Waiter>;

/// A connection as its streams and its task share it.
#[derive(Debug)]
pub(super) struct Link {
    protocol: RefCell<Protocol>,
    /// What is to be written next.
    outgoing: RefCell<Buffer>,
    /// What waits in the streams counts as used.
    waiting: RefCell<Reserved>,
    pool: Rc<Buffers>,
    task: RefCell<Option<Waker>>,
    received_bytes: Cell<u64>,
    /// Bytes that the other side has taken, or the kernel for it.
    written_bytes: Cell<u64>,
    /// Nothing more is read, and what is to be written goes out soon or not at all.
    is_ending: Cell<bool>,
    is_writing: Cell<bool>,
    /// The reader waits until what is there is on its way.
    is_stalled: Cell<bool>,
}

/// Tells the streams of a connection that it is over.
struct End<'a>(&'a Link);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// What a side does beside moving bytes.
pub(super) trait Side {
    /// Something has come, or the end of it. `goes_on`: more was read with it, which is taken next. True: something waits for its turn, and
    /// more is to be taken in the next one.
    fn received(&mut self, link: &Rc<Link>, goes_on: bool) -> bool;

    /// Looks after the connection with each turn. True: it is to end.
    fn look(&mut self, link: &Rc<Link>, cx: &mut Context<'_>) -> bool;
}

impl Link {
    pub(super) fn new(role: Role, pool: &Rc<Buffers>) -> Rc<Self> {
        let mut outgoing = pool.take();
        Rc::new(Self {
            protocol: RefCell::new(Engine::new(role, &mut outgoing)),
            outgoing: RefCell::new(outgoing),
            waiting: RefCell::new(pool.reserve(0)),
            pool: Rc::clone(pool),
            task: RefCell::default(),
            received_bytes: Cell::new(0),
            written_bytes: Cell::new(0),
            is_ending: Cell::new(false),
            is_writing: Cell::new(false),
            is_stalled: Cell::new(false),
        })
    }

    /// Does something to the connection, and sees to it that what comes of it goes out.
    pub(super) fn with<R>(&self, act: impl FnOnce(&mut Protocol, &mut Vec<u8>) -> R) -> R {
        let (mut protocol, mut outgoing) = (self.protocol.borrow_mut(), self.outgoing.borrow_mut());
        outgoing.ensure();
        let result = act(&mut protocol, &mut outgoing);
        let is_due = !outgoing.is_empty() || protocol.is_done();
        // The storage serves whoever writes next, of whichever connection.
        outgoing.release();
        self.waiting.borrow_mut().resize(protocol.waiting_bytes());
        drop((protocol, outgoing));
        if is_due {
            self.wake();
        }
        result
    }

    /// Nobody moves its bytes any more.
    fn give_up(&self) {
        if let Ok(mut protocol) = self.protocol.try_borrow_mut() {
            protocol.lose();
            protocol.tell(usize::MAX);
        }
    }

    /// Asks something about the connection.
    pub(super) fn ask<R>(&self, look: impl FnOnce(&mut Protocol) -> R) -> R {
        look(&mut self.protocol.borrow_mut())
    }

    /// Nothing that comes of the connection reaches the other side any more.
    pub(super) fn is_over(&self) -> bool {
        self.is_ending.get() || self.ask(|protocol| protocol.has_failed())
    }

    /// Bytes that have come so far.
    pub(super) fn received_bytes(&self) -> u64 {
        self.received_bytes.get()
    }

    /// How much one of its streams may read of a response before the other side has taken it, in bytes.
    pub(super) fn read_ahead_bytes(&self) -> usize {
        let taken = usize::try_from(self.written_bytes.get() / 4).unwrap_or(usize::MAX);
        HTTP2_READ_AHEAD_BYTES.saturating_add(taken) / self.protocol.borrow().streams().max(1)
    }

    /// Lets the connection's task look again.
    pub(super) fn wake(&self) {
        let waker = self.task.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Moves bytes until the connection has ended and what it had to say is out. `first` has been read already, and is gone as soon as it
    /// was taken in: a connection may live for days.
    ///
    /// # Errors
    /// Why we have ended it.
    pub(super) async fn run(
        self: &Rc<Self>,
        worker: &Worker,
        conn: &mut Conn,
        first: Option<Held>,
        side: &RefCell<impl Side>,
    ) -> Result<(), ConnectionError> {
        // Also after a panic nobody is to wait for it.
        let _end = End(self);
        let writing = conn.second_timer();
        let Conn { timer, read, write } = conn;
        let timer = &*timer;
        let mut reader = pin!(self.read(worker, read, timer, first, side));
        let mut writer = pin!(self.write(write, &writing));
        let (mut ended, mut is_written, mut told_in) = (None, false, None);
        poll_fn(|cx| {
            // Who writes in this turn has no need to ask for another one.
            self.task.take();
            loop {
                // In this order what has just come is answered with the next write.
                if ended.is_none()
                    && let Poll::Ready(result) = reader.as_mut().poll(cx)
                {
                    ended = Some(result);
                }
                let is_over =
                    side.borrow_mut().look(self, cx) || ended.is_some() || self.ask(|protocol| protocol.is_done());
                let ends_now = is_over && !self.is_ending.replace(true);
                if ends_now {
                    self.finish(timer, &writing);
                }
                let was_written = is_written;
                is_written = is_written || writer.as_mut().poll(cx).is_ready();
                // A write that fails is the end, too, which nobody else tells.
                let goes_on = ends_now || is_written && !was_written || self.is_stalled.get() && !self.is_full();
                if ended.is_some() || !goes_on {
                    break;
                }
            }
            // Its streams have much to close, and each of them wakes this task by what it has to say last.
            let turn = Some(worker.turns.number());
            let at_most = if told_in == turn { 0 } else { HTTP2_TOLD_IN_A_ROW_MAX };
            told_in = turn;
            let is_told = !self.ask(|protocol| protocol.tell(at_most));
            if !is_told {
                worker.turns.wake(cx.waker());
            }
            match &ended {
                Some(result) if is_written && is_told => Poll::Ready(*result),
                _ => {
                    *self.task.borrow_mut() = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The last words go out soon or not at all, and nothing more is read.
    fn finish(&self, reading: &Timer, writing: &Timer) {
        self.with(|protocol, out| protocol.close(out));
        if self.is_writing.get() {
            // Whole responses may stand before what is not written.
            writing.set(now_ms() + HTTP2_LAST_WORDS_MS_MAX, Expiry::EndBoth);
        }
        // Not shut: what still comes is to be taken in, or closing would reset the connection and take the last frames from the peer.
        reading.shutdown(Expiry::CancelRead);
    }

    async fn read(
        self: &Rc<Self>,
        worker: &Worker,
        half: &mut ReadHalf,
        timer: &Timer,
        first: Option<Held>,
        side: &RefCell<impl Side>,
    ) -> Result<(), ConnectionError> {
        let mut input = Input::new(self.pool.lazy());
        let mut count = first.as_ref().map_or(0, |first| first.len());
        if count > 0 {
            first.iter().for_each(|first| input.extend(first));
        }
        let mut reads: u32 = 0;
        drop(first);
        loop {
            self.received_bytes.set(self.received_bytes.get() + count as u64);
            while !input.is_empty() {
                // Who breaks the protocol gets nothing more done.
                let taken = self.take(worker, input.unread())?;
                let waits = side.borrow_mut().received(self, taken < input.unread().len());
                match taken {
                    // What was said so far is to go out before more is asked.
                    0 => self.room().await,
                    taken => input.consume(taken),
                }
                if self.is_ending.get() {
                    return Ok(());
                }
                // So many frames at a time are enough.
                match input.is_empty() {
                    true => {}
                    false if waits => worker.turns.next().await,
                    false => yield_now().await,
                }
            }
            reads = reads.wrapping_add(1);
            if reads.is_multiple_of(BUFFERS_IN_A_ROW_MAX) {
                yield_now().await;
            }
            let filled = self.fill(half, timer, &mut input).await;
            count = match filled {
                Some(Ok(count)) if count > 0 => count,
                Some(Ok(_)) if !half.is_truncated() => {
                    self.with(|protocol, out| protocol.end(out));
                    side.borrow_mut().received(self, false);
                    self.outlive(half).await;
                    return Ok(());
                }
                Some(_) => {
                    self.with(|protocol, _| protocol.lose());
                    side.borrow_mut().received(self, false);
                    return Ok(());
                }
                None => return Ok(()),
            };
        }
    }

    /// The other side sends nothing more: until what it has asked for is answered, or it turns out to be gone.
    async fn outlive(&self, half: &ReadHalf) {
        // Its host may be gone, too.
        half.watch_silence();
        poll_fn(|_| {
            let is_over = self.is_ending.get() || self.ask(|protocol| protocol.has_failed());
            if is_over || half.may_be_reset() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        self.with(|protocol, _| protocol.lose());
    }

    async fn room(&self) {
        poll_fn(|_| {
            self.is_stalled.set(self.is_full() && !self.is_ending.get());
            if self.is_stalled.get() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    fn is_full(&self) -> bool {
        self.outgoing.borrow().len() >= HTTP2_UNWRITTEN_BYTES_MAX
    }

    fn take(&self, worker: &Worker, bytes: &[u8]) -> Result<usize, ConnectionError> {
        let mut scratch = worker.http2_scratch.borrow_mut();
        scratch.key = worker.random.bytes();
        self.with(|protocol, out| {
            protocol.crowd(worker.crowded());
            protocol.receive(bytes, &mut scratch, out).inspect_err(|&error| protocol.fail(error, out))
        })
    }

    /// Reads more; without a buffer while nothing comes. `None`: the connection is to end.
    async fn fill(&self, half: &mut ReadHalf, timer: &Timer, input: &mut Input) -> Option<io::Result<usize>> {
        loop {
            if self.is_ending.get() {
                return None;
            }
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
                if self.is_ending.get() {
                    return Poll::Ready(None);
                }
                ready.as_mut().poll(cx).map(Some)
            });
            if let Err(error) = ready.await? {
                return Some(Err(error));
            }
        }
    }

    /// Writes whenever there is something.
    async fn write(&self, half: &mut WriteHalf, timer: &Timer) {
        let mut buffer = self.pool.lazy();
        loop {
            // Whoever writes wakes the task.
            let has_more = poll_fn(|_| match (self.outgoing.borrow().is_empty(), self.is_ending.get()) {
                (false, _) => Poll::Ready(true),
                (true, true) => Poll::Ready(false),
                (true, false) => Poll::Pending,
            });
            if !has_more.await {
                return;
            }
            std::mem::swap(&mut buffer, &mut *self.outgoing.borrow_mut());
            let len = buffer.len();
            self.is_writing.set(true);
            self.go_on(HTTP2_WOKEN_AT_ONCE);
            let ms_max = if self.is_ending.get() { HTTP2_LAST_WORDS_MS_MAX } else { BODY_IDLE_MS_MAX };
            timer.set(now_ms() + ms_max, Expiry::EndBoth);
            let result = write_all(half, &mut buffer).await;
            timer.clear();
            self.is_writing.set(false);
            if result.is_err() {
                let error = ConnectionError { code: Code::NO_ERROR, reason: "closed" };
                self.with(|protocol, out| {
                    protocol.fail(error, out);
                    out.clear();
                });
                return;
            }
            self.written_bytes.set(self.written_bytes.get() + len as u64);
            buffer.clear();
            buffer.release();
            if self.outgoing.borrow().is_empty() {
                // Those who were to go on may have had nothing to say any more.
                self.go_on(usize::MAX);
            }
        }
    }

    /// There is room for streams that wait.
    fn go_on(&self, count: usize) {
        self.ask(|protocol| protocol.wake_queued(count));
    }
}
