//! The server's side of HTTP/2: a downstream connection and its streams.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use meshring_core::{
    clock::monotonic_ns,
    http::http2::{Code, ConnectionError, Event, Opening, Role},
    limits::{
        DEADLINE_TICK_MS, HTTP2_ENDED_PING_INTERVAL_MS, HTTP2_LINGER_MS, HTTP2_REQUESTS_IN_A_ROW_MAX, LINGER_BYTES_MAX,
    },
    stats::Counter,
};

use super::{
    Origin, Stream,
    link::{Link, Side},
    pulse::{Care, Pulse, Seen},
    starts::{Starts, Waiting},
};
use crate::{
    accept::{Listener, Work},
    worker::{
        Worker,
        buffers::Held,
        conn::{Conn, Wear},
        deadlines::{Expiry, Timer, now_ms},
        interrupt::Interrupt,
        tasks,
    },
};

/// Serves a connection, of which `first` has been read, until it ends.
pub(crate) async fn serve(worker: &Rc<Worker>, conn: &mut Conn, listener: &Rc<Listener>, first: Held) {
    worker.stats.add(Counter::Http2Connections, 1);
    let link = Link::new(Role::Server, &worker.buffers);
    let bell = Rc::<Interrupt>::default();
    let timer = worker.deadlines.interrupting(&bell);
    // Not as one that is idle: a worker that drains says so with GOAWAY, once there is a connection to say it on.
    timer.set(now_ms() + worker.limits.head_ms_max, RING);
    let server = RefCell::new(Server {
        worker,
        listener,
        origin: Origin::of(conn),
        wear: conn.wear(),
        pulse: None,
        is_leaving: false,
        timer,
        bell,
        opened: Waiting::new(),
        starts: Starts::new(),
        begun: (0, 0),
        is_amid_read: false,
        received_ns: 0,
    });
    let result = link.run(worker, conn, Some(first), &server).await;
    if let Err(error) = &result {
        worker.log_refusal(code(*error), conn.peer(), &format_args!("HTTP/2 connection ended: {error}"));
        worker.stats.add(Counter::Http2ConnectionErrors, 1);
    }
    // The last word must not be taken from the client by a reset.
    conn.drain(LINGER_BYTES_MAX, HTTP2_LINGER_MS).await;
}

/// A stable short name for why a connection ends.
fn code(error: ConnectionError) -> &'static str {
    match error.code {
        Code::ENHANCE_YOUR_CALM => "http2.enhance_your_calm",
        Code::FLOW_CONTROL_ERROR => "http2.flow_control_error",
        Code::COMPRESSION_ERROR => "http2.compression_error",
        Code::FRAME_SIZE_ERROR => "http2.frame_size_error",
        Code::STREAM_CLOSED => "http2.stream_closed",
        _ => "http2.protocol_error",
    }
}

/// How a connection's bell rings: there is nothing to shut.
const RING: Expiry = Expiry::ShutdownRead;

/// A connection's server.
struct Server<'a> {
    worker: &'a Rc<Worker>,
    listener: &'a Rc<Listener>,
    origin: Rc<Origin>,
    wear: Wear,
    /// Once the client's SETTINGS have come.
    pulse: Option<Pulse>,
    is_leaving: bool,
    /// Rings when the connection is to be looked at, and when the worker drains.
    bell: Rc<Interrupt>,
    timer: Timer,
    /// Requests that wait for their turn.
    opened: Waiting<(Conn, Work)>,
    starts: Starts,
    /// How many were begun since the line of connects was looked at, and where it ended then.
    begun: (usize, u64),
    /// Of what was read last, not all was taken.
    is_amid_read: bool,
    /// When the first of it was, in [`monotonic_ns`].
    received_ns: u64,
}

impl Side for Server<'_> {
    fn received(&mut self, link: &Rc<Link>, goes_on: bool) -> bool {
        if !std::mem::replace(&mut self.is_amid_read, goes_on) {
            self.received_ns = monotonic_ns();
        }
        while let Some(event) = link.ask(|protocol| protocol.next_event()) {
            match event {
                Event::Opened(opening) => self.accept(link, opening),
                Event::Malformed(malformed) => {
                    self.worker.stats.add(Counter::RequestsRefused, 1);
                    self.worker.log_refused_stream(malformed.code(), &self.origin, &malformed);
                }
                Event::Crowded => {
                    self.worker.stats.add(Counter::RequestsOverload, 1);
                    let what =
                        "the worker's memory for messages is more than used up: a request that nobody reads is ended";
                    self.worker.log_refused_stream("overload", &self.origin, &what);
                }
            }
        }
        if link.ask(|protocol| protocol.has_ended()) {
            self.timer.set_idle(now_ms() + DEADLINE_TICK_MS, RING);
        } else if self.pulse.is_none() && link.ask(|protocol| protocol.has_settings()) {
            self.pulse = Some(Pulse::new(now_ms(), self.worker.limits.idle_ms_max));
            self.timer.set_idle(now_ms(), RING);
        }
        if !goes_on {
            self.opened.release();
        }
        !self.opened.is_empty()
    }

    fn look(&mut self, link: &Rc<Link>, cx: &mut Context<'_>) -> bool {
        self.begin(link, cx);
        if !self.is_leaving && self.pulse.is_some() && (self.worker.draining() || self.wear.is_worn()) {
            self.leave(link);
        }
        self.bell.register(cx);
        if !self.bell.take_rung() {
            return false;
        }
        let Some(pulse) = &mut self.pulse else {
            // The preface and the first frame have not come in time.
            return true;
        };
        if link.ask(|protocol| protocol.has_ended()) {
            // One that is gone answers this with a reset.
            link.with(|protocol, out| protocol.ping(out));
            self.timer.set_idle(now_ms() + HTTP2_ENDED_PING_INTERVAL_MS, RING);
            return false;
        }
        let received_bytes = link.received_bytes();
        let (has_pong, seen) = link.ask(|protocol| {
            protocol.forgive();
            let seen = Seen { received_bytes, has_streams: !protocol.is_idle(), last_id: protocol.last_id() };
            (protocol.take_pong(), seen)
        });
        if has_pong {
            pulse.pong();
        }
        let (care, next_ms) = pulse.check(now_ms(), seen);
        self.timer.set_idle(next_ms, RING);
        match care {
            Care::None => {}
            Care::Ping => link.with(|protocol, out| protocol.ping(out)),
            Care::Dead => return true,
            Care::Idle if !self.is_leaving => self.leave(link),
            // It has not answered the PING behind GOAWAY for a whole look.
            Care::Idle => return true,
        }
        false
    }
}

impl Server<'_> {
    fn leave(&mut self, link: &Link) {
        self.is_leaving = true;
        link.with(|protocol, out| protocol.leave(out));
    }

    /// A request: served on a task of its own, when it is its turn.
    fn accept(&mut self, link: &Rc<Link>, opening: Opening) {
        let work = opening.shape.err().map_or(Work::Request, Work::Refusal);
        let Some(stream) = Stream::accepted(&self.origin, link, opening, self.received_ns) else { return };
        let conn = Conn::of_stream(stream, &self.worker.deadlines);
        let may_be_cancelled = self.is_amid_read && !self.is_alone();
        if self.opened.is_empty() && !may_be_cancelled && self.may_begin() {
            return self.start(conn, work);
        }
        if self.opened.is_full() {
            // There is no bound on how many may be opened and cancelled behind those that wait.
            self.opened.retain(|(conn, _)| !is_cancelled(self.worker, conn));
        }
        self.opened.push((conn, work));
    }

    /// Lets those begin that wait, as many as may in this turn.
    fn begin(&mut self, link: &Link, cx: &mut Context<'_>) {
        if self.opened.is_empty() {
            return;
        }
        let is_over = link.is_over();
        if is_over {
            self.opened.release();
        }
        while let Some((conn, _)) = self.opened.next() {
            let is_gone = is_cancelled(self.worker, conn) || is_over;
            if !is_gone && !self.may_begin() {
                return self.worker.turns.wake(cx.waker());
            }
            match self.opened.take() {
                Some((conn, work)) if !is_gone => self.start(conn, work),
                _ => {}
            }
        }
    }

    fn start(&mut self, conn: Conn, work: Work) {
        self.begun.0 += 1;
        tasks::guarded_stream(self.worker, conn, Rc::clone(self.listener), work);
    }

    /// Whether one more request may be begun in this turn. Where nobody else waits a turn lasts: whoever has begun so many lets one pass,
    /// and what comes meanwhile is worked on, and answered, together.
    fn may_begin(&mut self) -> bool {
        // One that waits for its connection has all in hand: no more of them before those that are there go on. By now they are in the line.
        if self.begun.0 >= HTTP2_REQUESTS_IN_A_ROW_MAX {
            self.begun = (0, self.worker.connects.end());
        }
        self.worker.connects.has_passed(self.begun.1)
            && (self.starts.may(self.worker.turns.number()) || self.is_alone())
    }

    fn is_alone(&self) -> bool {
        self.worker.mailboxes.connections(self.worker.index) <= 1
    }
}

/// Whether the client has cancelled a request before it was begun, which counts it: to be asked no more of one that is.
fn is_cancelled(worker: &Worker, conn: &Conn) -> bool {
    let is_cancelled = conn.stream().is_some_and(|stream| stream.is_cancelled());
    if is_cancelled {
        worker.stats.add(Counter::Http2StreamsCancelled, 1);
    }
    is_cancelled
}

/// Runs what serves a stream until it is done or the client has cancelled it: then it is dropped, and with it whatever it has
/// open upstream.
pub(crate) async fn until_cancelled<T>(
    stream: &Stream,
    mut serving: Pin<&mut impl Future<Output = T>>,
) -> io::Result<T> {
    poll_fn(|cx| {
        // Before anything was done for it (CVE-2023-44487), or anything more: its turn to connect may come when its client is gone.
        if stream.is_cancelled() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if let Poll::Ready(result) = serving.as_mut().poll(cx) {
            return Poll::Ready(Ok(result));
        }
        // Behind it: what it asks of the stream in passing leaves nobody to be woken.
        stream.poll_cancelled(cx).map(|()| Err(io::ErrorKind::ConnectionReset.into()))
    })
    .await
}
