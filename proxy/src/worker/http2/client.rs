//! The client's side of HTTP/2: an upstream connection that many requests share.

use std::{
    cell::{Cell, RefCell},
    future::{Future as _, poll_fn},
    io,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use h2::{
    SendStream,
    client::{Builder, Connection, ResponseFuture, SendRequest},
};
use http::{Request, uri::Scheme};
use meshring_core::{
    limits::{
        HTTP2_DATA_FRAME_BUDGET_BYTES, HTTP2_HEADER_LIST_BYTES_MAX, HTTP2_SEND_BUFFER_BYTES_MAX, HTTP2_SETTINGS_MS_MAX,
        HTTP2_STREAM_WINDOW_BYTES, HTTP2_UPSTREAM_RESETS_REMEMBERED_MAX, HTTP2_UPSTREAM_STREAMS_MAX,
        HTTP2_UPSTREAM_WINDOW_BYTES,
    },
    stats::Counter,
};

use super::{
    Origin, Stream,
    connection::drive,
    stream::Broken,
    transport::{Pumps, Transport, transport},
};
use crate::worker::{
    Worker,
    conn::{Conn, Wear},
    deadlines::now_ms,
    join::within,
    tasks,
};

/// An upstream connection. It ends when nobody has it any more and its last stream is done.
pub(crate) struct Multiplexed {
    send: SendRequest<Bytes>,
    state: Rc<State>,
    origin: Rc<Origin>,
    wear: Wear,
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
    /// A request has waited in vain while nothing at all came.
    is_suspect: Cell<bool>,
    /// Bytes that have come.
    received_bytes: Cell<u64>,
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
    /// What had come before it.
    received_bytes: u64,
}

impl Place {
    fn take(state: &Rc<State>) -> Self {
        state.streams.set(state.streams.get() + 1);
        Self { state: Rc::clone(state), received_bytes: state.received_bytes.get() }
    }

    /// Its request got no answer in time. Where nothing else came either, the other side may be gone without a word: the next
    /// requests had better go elsewhere.
    pub(super) fn waited_in_vain(&self) {
        if self.state.received_bytes.get() == self.received_bytes {
            self.state.is_suspect.set(true);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.state.streams.set(self.state.streams.get() - 1);
        self.state.idle_since_ms.set(now_ms());
    }
}

/// What opens a stream.
pub(super) struct Opener {
    send: SendRequest<Bytes>,
    state: Rc<State>,
    is_secured: bool,
}

impl Opener {
    /// The scheme of what is asked for: that of the connection.
    pub(super) fn scheme(&self) -> Scheme {
        if self.is_secured { Scheme::HTTPS } else { Scheme::HTTP }
    }

    /// Ready when the request can be sent. `is_extended`: an extended CONNECT, which the server must have allowed (RFC 8441
    /// section 3).
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>, is_extended: bool) -> Poll<Result<(), Broken>> {
        ready!(self.send.poll_ready(cx))?;
        if !is_extended {
            return Poll::Ready(Ok(()));
        }
        if !self.state.is_confirmed.get() && !self.state.has_ended.get() {
            self.state.wait(cx);
            return Poll::Pending;
        }
        if self.send.is_extended_connect_protocol_enabled() {
            return Poll::Ready(Ok(()));
        }
        let why = "the upstream does not take extended CONNECT (RFC 8441)";
        Poll::Ready(Err(Broken::Io(io::Error::new(io::ErrorKind::Unsupported, why))))
    }

    pub(super) fn open(
        &mut self,
        request: Request<()>,
        ended: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        self.send.send_request(request, ended)
    }
}

/// Makes an upstream connection of one on which nothing was sent yet.
pub(crate) async fn start(worker: &Rc<Worker>, conn: Conn) -> io::Result<Multiplexed> {
    worker.stats.add(Counter::UpstreamHttp2Connections, 1);
    let (transport, pumps) = transport(&worker.buffers, b"");
    let (origin, wear) = (Origin::of(&conn), conn.wear());
    // What it sends first waits in the transport: nothing here takes time.
    let (send, connection) = builder().handshake(transport).await.map_err(into_io)?;
    let state = Rc::new(State {
        streams: Cell::new(0),
        idle_since_ms: Cell::new(now_ms()),
        has_ended: Cell::new(false),
        is_suspect: Cell::new(false),
        received_bytes: Cell::new(0),
        is_trial: Cell::new(false),
        is_confirmed: Cell::new(false),
        waiting: RefCell::default(),
    });
    let shared = Rc::clone(&state);
    let worker = Rc::clone(worker);
    conn.watch_silence();
    monoio::spawn(async move {
        // Whatever happens to it, nobody is to wait for it.
        let _end = End(Rc::clone(&shared));
        tasks::contained(&worker, pin!(run(&worker, conn, connection, pumps, shared))).await;
    });
    Ok(Multiplexed { send, state, origin, wear })
}

/// Tells everybody that a connection is over.
struct End(Rc<State>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.has_ended.set(true);
        self.0.confirm();
    }
}

async fn run(
    worker: &Worker,
    mut conn: Conn,
    connection: Connection<Transport, Bytes>,
    pumps: Pumps,
    shared: Rc<State>,
) {
    let mut connection = pin!(connection);
    let protocol = pin!(poll_fn(|cx| {
        let received_bytes = pumps.received_bytes();
        let result = connection.as_mut().poll(cx);
        shared.received_bytes.set(received_bytes);
        if !shared.is_confirmed.get()
            && let Some(is_http2) = pumps.begins_with_settings()
        {
            // An end takes its time: the last words go out first.
            shared.has_ended.set(!is_http2);
            shared.confirm();
        }
        result
    }));
    let result = drive(&mut conn, &pumps, protocol).await;
    if let Err(error) = result
        && error.is_library()
        && !shared.is_trial.get()
    {
        worker.stats.add(Counter::UpstreamBadResponses, 1);
        worker.log_refusal(
            "http2.upstream_error",
            conn.peer(),
            &format_args!("HTTP/2 upstream connection ended: {error}"),
        );
    }
}

fn into_io(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, error)
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

    /// A stream for one more request, if there is room for it: `streams_max` is the cluster's limit, 0 for none.
    pub(crate) fn stream(&self, streams_max: u32) -> Option<Stream> {
        let limit = match streams_max {
            0 => HTTP2_UPSTREAM_STREAMS_MAX,
            some => HTTP2_UPSTREAM_STREAMS_MAX.min(some as usize),
        };
        if self.streams() >= limit.min(self.send.current_max_send_streams()) {
            return None;
        }
        let opener = Opener {
            send: self.send.clone(),
            state: Rc::clone(&self.state),
            is_secured: self.origin.secured.is_some(),
        };
        Some(Stream::opening(&self.origin, opener, Place::take(&self.state)))
    }

    /// Requests in flight.
    pub(crate) fn streams(&self) -> usize {
        self.state.streams.get()
    }

    /// Whether new requests may go on it: it is neither broken nor worn, nor has the server said GOAWAY.
    pub(crate) fn is_open(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        // With nothing that waits to be opened it is ready, unless the connection has an end.
        !self.state.has_ended.get()
            && !self.state.is_suspect.get()
            && !self.wear.is_worn()
            && matches!(self.send.clone().poll_ready(&mut cx), Poll::Ready(Ok(())))
    }

    /// Whether it has carried nothing since then.
    pub(crate) fn is_idle_since(&self, at_ms: u64) -> bool {
        self.streams() == 0 && self.state.idle_since_ms.get() <= at_ms
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_UPSTREAM_WINDOW_BYTES)
        .data_frame_budget(HTTP2_DATA_FRAME_BUDGET_BYTES)
        .max_header_list_size(HTTP2_HEADER_LIST_BYTES_MAX)
        .max_send_buffer_size(HTTP2_SEND_BUFFER_BYTES_MAX)
        .max_concurrent_reset_streams(HTTP2_UPSTREAM_RESETS_REMEMBERED_MAX)
        // A server's errors end the streams that they are about, not those of others.
        .max_local_error_reset_streams(None);
    builder
}
