//! The client's side of HTTP/2: an upstream connection that many requests share.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use meshring_core::{
    http::http2::Role,
    limits::{HTTP2_PING_INTERVAL_MS, HTTP2_SETTINGS_MS_MAX, HTTP2_UPSTREAM_STREAMS_MAX},
    stats::Counter,
};

use super::{
    Origin, Stream,
    link::{Link, Side},
};
use crate::worker::{
    Worker,
    conn::{Conn, Wear},
    deadlines::{Expiry, Timer, now_ms},
    interrupt::Interrupt,
    join::within,
    tasks,
};

/// An upstream connection. It ends when nobody has it any more and its last stream is done.
pub(crate) struct Multiplexed {
    link: Rc<Link>,
    state: Rc<State>,
    origin: Rc<Origin>,
    wear: Wear,
}

impl Drop for Multiplexed {
    fn drop(&mut self) {
        self.state.is_abandoned.set(true);
        self.link.wake();
    }
}

impl std::fmt::Debug for Multiplexed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Multiplexed").field("state", &self.state).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct State {
    streams: Cell<usize>,
    idle_since_ms: Cell<u64>,
    has_ended: Cell<bool>,
    /// No request will be sent on it any more.
    is_abandoned: Cell<bool>,
    /// A request has waited in vain while nothing at all came.
    is_suspect: Cell<bool>,
    /// Nobody knows yet whether its server speaks HTTP/2 at all.
    is_trial: Cell<bool>,
    /// Its settings are known.
    is_confirmed: Cell<bool>,
    /// Those who wait for that.
    waiting: RefCell<Vec<Waker>>,
}

impl State {
    /// For [`is_confirmed`](Self::is_confirmed), or the end.
    fn wait(&self, cx: &Context<'_>) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|known| known.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
    }

    fn confirm(&self) {
        self.is_confirmed.set(true);
        let waiting = self.waiting.take();
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// The place that a stream takes on its connection.
#[derive(Debug)]
pub(super) struct Place {
    state: Rc<State>,
    link: Rc<Link>,
    /// What had come before it.
    received_bytes: u64,
}

impl Place {
    fn take(state: &Rc<State>, link: &Rc<Link>) -> Self {
        state.streams.set(state.streams.get() + 1);
        Self { state: Rc::clone(state), link: Rc::clone(link), received_bytes: link.received_bytes() }
    }

    /// Its request got no answer in time. Where nothing else came either, the other side may be gone without a word: the next
    /// requests had better go elsewhere.
    pub(super) fn waited_in_vain(&self) {
        if self.link.received_bytes() == self.received_bytes {
            self.state.is_suspect.set(true);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.state.streams.set(self.state.streams.get() - 1);
        self.state.idle_since_ms.set(now_ms());
        if self.state.is_abandoned.get() {
            self.link.wake();
        }
    }
}

/// What opens a stream.
#[derive(Debug)]
pub(super) struct Opener {
    state: Rc<State>,
    is_secured: bool,
}

impl Opener {
    /// The scheme of what is asked for: that of the connection.
    pub(super) fn scheme(&self) -> &'static [u8] {
        if self.is_secured { b"https" } else { b"http" }
    }

    /// Ready when it is known whether the server takes an extended CONNECT, which it must have allowed (RFC 8441 section 3).
    ///
    /// # Errors
    /// It does not.
    pub(super) fn poll_extended(&self, link: &Link, cx: &Context<'_>) -> Poll<io::Result<()>> {
        if !self.state.is_confirmed.get() && !self.state.has_ended.get() {
            self.state.wait(cx);
            return Poll::Pending;
        }
        if link.ask(|protocol| protocol.takes_extended_connect()) {
            return Poll::Ready(Ok(()));
        }
        let why = "the upstream does not take extended CONNECT (RFC 8441)";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::Unsupported, why)))
    }
}

/// Makes an upstream connection of one on which nothing was sent yet. What it sends first waits to be written: nothing here takes
/// time.
pub(crate) fn start(worker: &Rc<Worker>, conn: Conn) -> Multiplexed {
    worker.stats.add(Counter::UpstreamHttp2Connections, 1);
    let link = Link::new(Role::Client, &worker.buffers);
    let (origin, wear) = (Origin::of(&conn), conn.wear());
    let state = Rc::new(State {
        streams: Cell::new(0),
        idle_since_ms: Cell::new(now_ms()),
        has_ended: Cell::new(false),
        is_abandoned: Cell::new(false),
        is_suspect: Cell::new(false),
        is_trial: Cell::new(false),
        is_confirmed: Cell::new(false),
        waiting: RefCell::default(),
    });
    let bell = Rc::<Interrupt>::default();
    let client = Client {
        worker: Rc::clone(worker),
        state: Rc::clone(&state),
        timer: worker.deadlines.interrupting(&bell),
        bell,
    };
    client.wind();
    conn.watch_silence();
    let shared = Rc::clone(&link);
    monoio::spawn(async move {
        let worker = Rc::clone(&client.worker);
        // Whatever happens to it, nobody is to wait for it.
        let _end = End(Rc::clone(&client.state));
        tasks::contained(&worker, pin!(run(conn, &shared, client))).await;
    });
    Multiplexed { link, state, origin, wear }
}

/// Tells everybody that a connection is over.
struct End(Rc<State>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.has_ended.set(true);
        self.0.confirm();
    }
}

/// What looks after an upstream connection.
struct Client {
    worker: Rc<Worker>,
    state: Rc<State>,
    /// Rings now and then.
    bell: Rc<Interrupt>,
    timer: Timer,
}

impl Client {
    fn wind(&self) {
        self.timer.set(now_ms() + HTTP2_PING_INTERVAL_MS, Expiry::ShutdownRead);
    }
}

impl Client {
    /// Tells those who wait for it what the server is.
    fn confirm(&self, link: &Link) {
        if !self.state.is_confirmed.get() {
            let (has_failed, has_settings) = link.ask(|protocol| (protocol.has_failed(), protocol.has_settings()));
            self.state.has_ended.set(has_failed);
            if has_failed || has_settings {
                self.state.confirm();
            }
        }
    }
}

impl Side for Client {
    fn received(&mut self, link: &Rc<Link>, _goes_on: bool) -> bool {
        // What is wrong with a response is told by whoever waits for it, see `Stream::flaw`.
        link.ask(|protocol| while protocol.next_event().is_some() {});
        self.confirm(link);
        false
    }

    fn look(&mut self, link: &Rc<Link>, cx: &mut Context<'_>) -> bool {
        self.bell.register(cx);
        if self.bell.take_rung() {
            link.ask(|protocol| protocol.forgive());
            self.wind();
        }
        // An end takes its time: the last words go out first.
        self.confirm(link);
        self.state.is_abandoned.get() && self.state.streams.get() == 0
    }
}

async fn run(mut conn: Conn, link: &Rc<Link>, client: Client) {
    let (worker, state) = (Rc::clone(&client.worker), Rc::clone(&client.state));
    let result = link.run(&worker, &mut conn, None, &RefCell::new(client)).await;
    if let Err(error) = result
        && !state.is_trial.get()
    {
        worker.stats.add(Counter::UpstreamBadResponses, 1);
        worker.log_refusal(
            "upstream_http2.connection",
            conn.peer(),
            &format_args!("HTTP/2 upstream connection ended: {error}"),
        );
    }
}

impl Multiplexed {
    /// Whether its server speaks HTTP/2, of which it has not said anything: its SETTINGS tell, which come first (RFC 9113 section
    /// 3.4). A server of HTTP/1.1 refuses the preface and has seen no request. `None`: it has not said enough within so many
    /// milliseconds, which are fewer than it may take.
    pub(crate) async fn proves_http2(&self, ms_max: u64) -> Option<bool> {
        let state = &self.state;
        state.is_trial.set(true);
        let told = poll_fn(|cx| {
            if state.is_confirmed.get() {
                return Poll::Ready(());
            }
            state.wait(cx);
            Poll::Pending
        });
        let is_told = within(ms_max.min(HTTP2_SETTINGS_MS_MAX), told).await.is_some();
        if !is_told && ms_max < HTTP2_SETTINGS_MS_MAX {
            return None;
        }
        let is_http2 = is_told && !state.has_ended.get();
        state.is_trial.set(!is_http2);
        Some(is_http2)
    }

    /// A stream for one more request, if there is room for it: `streams_max` is the cluster's limit, 0 for none. `known`: how many streams a
    /// connection to this server may have, as far as any has said so. A new one has not yet, and requests beyond it would be refused there,
    /// and sent once more.
    pub(crate) fn stream(&self, streams_max: u32, known: &Cell<usize>) -> Option<Stream> {
        let limit = match streams_max {
            0 => HTTP2_UPSTREAM_STREAMS_MAX,
            some => HTTP2_UPSTREAM_STREAMS_MAX.min(some as usize),
        };
        let mut said = self.link.ask(|protocol| protocol.max_concurrent_streams());
        if self.state.is_confirmed.get() {
            known.set(said.max(1));
        } else {
            said = said.min(known.get());
        }
        if self.streams() >= limit.min(said) {
            return None;
        }
        let opener = Opener { state: Rc::clone(&self.state), is_secured: self.origin.secured.is_some() };
        let place = Place::take(&self.state, &self.link);
        Some(Stream::opening(&self.origin, &self.link, opener, place))
    }

    /// Requests in flight.
    pub(crate) fn streams(&self) -> usize {
        self.state.streams.get()
    }

    /// Whether new requests may go on it: it is neither broken nor worn, nor has the server said GOAWAY.
    pub(crate) fn is_open(&self) -> bool {
        !self.state.has_ended.get()
            && !self.state.is_suspect.get()
            && !self.wear.is_worn()
            && self.link.ask(|protocol| protocol.is_open())
    }

    /// Whether it has carried nothing since then.
    pub(crate) fn is_idle_since(&self, at_ms: u64) -> bool {
        self.streams() == 0 && self.state.idle_since_ms.get() <= at_ms
    }
}
