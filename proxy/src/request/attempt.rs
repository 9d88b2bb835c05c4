//! Sending a request upstream and relaying its response: attempts, TLS to the upstream, what became of it.

use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
};

use meshring_core::{
    http::{fields::Fields, head::BodyFraming, request::RequestHead},
    limits::{ATTEMPTS_MAX, BUFFER_BYTES, GRPC_SILENCE_MS_MAX, HOLD_BUFFER_MS_MAX, LINGER_MS_MAX},
    stats::{Counter, TlsCounter},
};

use super::{
    After,
    denial::{Denial, deny_late},
    lease::{self, Unleased},
    parked::Parked,
    plan::Plan,
    tunnel::Tunnel,
};
use crate::{
    observe::Record,
    respond::{
        body::{BadBody, Body, BodyError, BodyRate, HEAD_READ_BYTES_MAX, Patience, Side, Upload, relay_body},
        local,
        relay::{self, Exchange, Failure, Progress, Relayed, Relaying},
    },
    tls::{
        handshake::{self, HandshakeError},
        materials::{NoTls, Offer},
    },
    upstream::{Endpoint, Lease, Origination, Reuse, Seen},
    worker::{
        Place, Worker,
        buffers::{Buffer, Input, Kept},
        conn::{Conn, IdleRead, exhausted, is_canceled, pass_trailers},
        deadlines::{Expiry, now_ms},
        generation::Pinned,
        join::both,
    },
};

/// A request on its way upstream.
pub(super) struct Sending {
    pub(super) head: RequestHead,
    pub(super) is_websocket: bool,
    /// The head with as much of the body as came with it.
    out: Buffer,
    body: Body,
    /// A body that did not fit beside the head is gone once it was sent: only a whole request can be sent again.
    replayable: bool,
    uploading: Cell<bool>,
    continued: Cell<bool>,
    /// See [`Exchange::silence_ms_max`].
    silence_ms_max: u64,
    /// See [`Exchange::head_at_ms`].
    head_at_ms: u64,
    pub(super) attempt: u32,
    pub(super) reuse: Reuse,
    tried: Option<Rc<Endpoint>>,
    sent: Option<Sent>,
}

/// A request that has gone upstream already.
pub(super) struct Sent {
    pub(super) lease: Lease,
    /// What it was, if it may be sent again.
    pub(super) kept: Option<Kept>,
    /// Its response has begun, and its client takes no more for now.
    pub(super) stalled: Option<Box<Relaying>>,
}

/// How long an upstream may be silent, in milliseconds. A stream of messages may have none for long; a call has a deadline where its
/// client wants one.
fn silence_ms_max(worker: &Worker, record: &Record<'_>, conn: &Conn) -> u64 {
    if record.is_call() && conn.stream().is_some() { GRPC_SILENCE_MS_MAX } else { worker.limits.response_ms_max }
}

impl Sending {
    /// Of a request whose head is in the input, and in `out` as it goes upstream.
    ///
    /// # Errors
    /// What came of its body is broken.
    pub(super) fn new(
        worker: &Worker,
        conn: &Conn,
        input: &mut Input,
        head: &RequestHead,
        record: &Record<'_>,
        timeout_ms: u32,
        mut out: Buffer,
    ) -> Result<Self, BadBody> {
        let is_websocket = head.is_websocket(input.unread());
        input.consume(head.len);
        // What a client sends behind such a request is meant for the tunnel: if there will be none, it must not be taken for a
        // next request.
        let keep_alive = head.keep_alive && (!is_websocket || input.is_empty());
        let head = RequestHead { keep_alive, ..*head };
        let mut body = Body::new(head.framing, head.framing).limited(worker.limits.request_body_bytes_max);
        body.encode(input, &mut out)?;
        // Nothing more is read from a client whose request is whole: its buffer is for others meanwhile.
        input.release();
        let total_at_ms = (timeout_ms > 0).then(|| record.started_ms() + u64::from(timeout_ms));
        record.due(total_at_ms);
        let replayable = body.ended();
        let silence_ms_max = silence_ms_max(worker, record, conn);
        // An upstream is silent from when it has all of the request, or is asked whether it wants the body.
        let head_at_ms = match replayable || head.expect_continue {
            true => record.started_ms() + silence_ms_max,
            false => u64::MAX,
        };
        let can_be_sent_again = replayable && head.method.is_idempotent() && !is_websocket;
        Ok(Self {
            head,
            is_websocket,
            out,
            body,
            replayable,
            uploading: Cell::new(!replayable),
            continued: Cell::new(!head.expect_continue),
            silence_ms_max,
            head_at_ms: total_at_ms.unwrap_or(head_at_ms),
            attempt: 1,
            reuse: if can_be_sent_again { Reuse::Any } else { Reuse::Recent },
            tried: None,
            sent: None,
        })
    }

    /// Of a whole request that has been sent: `parked` says how far it had come.
    pub(super) fn resumed(worker: &Worker, conn: &Conn, record: &Record<'_>, sent: Sent, parked: &Parked) -> Self {
        let &Parked { method, version, keep_alive, is_websocket, attempt, reuse, .. } = parked;
        let silence_ms_max = silence_ms_max(worker, record, conn);
        Self {
            head: RequestHead::gone(method, version, keep_alive),
            is_websocket,
            out: worker.buffers.lazy(),
            body: Body::new(BodyFraming::None, BodyFraming::None),
            replayable: true,
            uploading: Cell::new(false),
            continued: Cell::new(true),
            silence_ms_max,
            head_at_ms: record.due_ms().unwrap_or(record.started_ms() + silence_ms_max),
            attempt: u32::from(attempt),
            reuse,
            tried: None,
            sent: Some(sent),
        }
    }
}

/// Sends a request and relays its response; further attempts where the first cannot have been processed.
#[expect(clippy::too_many_arguments, reason = "the one place where everything that was decided comes together")]
pub(super) async fn forward(
    worker: &Rc<Worker>,
    conn: &mut Conn,
    input: &mut Input,
    response_fields: &mut Fields,
    record: &Record<'_>,
    pinned: &Rc<Pinned>,
    plan: &Plan<'_>,
    sending: &mut Sending,
) -> After {
    let Sending { head, is_websocket, out, body, replayable, uploading, continued, .. } = sending;
    let Sending { silence_ms_max, head_at_ms, attempt, reuse, tried, sent, .. } = sending;
    let (head, is_websocket, replayable) = (&*head, *is_websocket, *replayable);
    let (total_at_ms, silence_ms_max) = (record.due_ms(), *silence_ms_max);
    let exchange = Exchange {
        worker,
        record,
        method: head.method,
        version: head.version,
        keep_alive: head.keep_alive,
        is_websocket,
        edits: plan.response_edits,
        extra: &plan.extra,
        total_at_ms,
        silence_ms_max,
        head_at_ms: Cell::new(*head_at_ms),
        awaits_head: Cell::new(true),
        continued,
        bounds: plan.target.response_bounds(),
        uploading,
        // While the request is on its way up, too, both directions need what they have.
        hot: body.ended().then_some(&worker.hot_streams),
    };
    while *attempt <= ATTEMPTS_MAX {
        let is_last = *attempt == ATTEMPTS_MAX;
        // The last one is not sent again.
        let which = if is_last { reuse.once() } else { *reuse };
        let (was_sent, kept, stalled, mut lease) = match sent.take() {
            Some(Sent { lease, kept, stalled }) => (true, kept, stalled, lease),
            None => match leased(worker, conn, record, pinned, plan, total_at_ms, which, tried.as_ref()).await {
                Ok(lease) => (false, None, None, lease),
                Err(NotLeased { endpoint: Some(endpoint), .. }) if !is_last => {
                    worker.stats.add(Counter::UpstreamRetries, 1);
                    *tried = Some(endpoint);
                    *attempt += 1;
                    continue;
                }
                Err(NotLeased { denial, .. }) => return deny_late(worker, conn, input, head, record, denial).await,
            },
        };
        let mut response_input = Input::new(worker.buffers.lazy());
        // RFC 9110 section 9.2.2 and RFC 9112 section 9.3.1: a reused connection that closes without a byte was most likely
        // closed before the request came; an idempotent request may be sent once more.
        // Of a stream the server says more: that the request was not processed, and any method may be sent again, or another thing.
        let can_send_again = lease.reused && *reuse == Reuse::Any && !is_last;
        let may_be_lost = can_send_again;
        let can_send_again = can_send_again && lease.conn.stream().is_none();
        let stream = lease.conn.stream().filter(|_| replayable && !is_last).cloned();
        let is_kept = can_send_again || stream.is_some();
        let result = if was_sent {
            answered(&exchange, &mut lease, conn, stalled, &mut response_input, response_fields, out).await
        } else {
            worker.stats.add(if lease.reused { Counter::UpstreamReused } else { Counter::UpstreamConnects }, 1);
            lease.conn.timer.set(exchange.head_at_ms.get(), Expiry::ShutdownBoth);
            pass_trailers(&conn.read, &lease.conn.write);
            if body.ended() {
                let may_park = conn.stream().is_some() && input.is_empty();
                whole(&exchange, &mut lease, conn, &mut response_input, response_fields, out, is_kept, may_park).await
            } else {
                streamed(&exchange, &mut lease, conn, input, body, &mut response_input, response_fields, out)
                    .await
                    .map(Some)
            }
        };
        match result {
            Ok(Some(Progress::Done(relayed))) if relayed.is_switched => {
                out.clear();
                out.release();
                let from_client = std::mem::replace(input, Input::new(worker.buffers.lazy()));
                return After::Tunnel(Box::new(Tunnel::new(lease, from_client, response_input)));
            }
            Ok(Some(Progress::Done(relayed))) => {
                out.clear();
                out.release();
                drop(response_input);
                if settle(&exchange, conn, lease, &relayed) {
                    return After::KeepAlive;
                }
                return finish(&exchange, conn, input).await;
            }
            Ok(Some(Progress::Stalled(mut relaying))) => {
                relaying.rest = Some(worker.buffers.keep(out));
                out.clear();
                out.release();
                drop(response_input);
                let sent = Sent { lease, kept: None, stalled: Some(relaying) };
                return After::Parked(Parked::new(worker, pinned, plan, sending, sent));
            }
            Ok(None) => {
                let kept = match was_sent {
                    true => kept,
                    false => is_kept.then(|| worker.buffers.keep(out)),
                };
                let sent = Sent { lease, kept, stalled: None };
                return After::Parked(Parked::new(worker, pinned, plan, sending, sent));
            }
            Err(Failure::NoResponse)
                if can_send_again
                    || stream.is_some_and(|stream| stream.is_unprocessed() || may_be_lost && stream.is_lost()) =>
            {
                drop(response_input);
                if let Some(kept) = kept {
                    out.ensure();
                    out.extend_from_slice(&kept);
                }
                worker.stats.add(Counter::UpstreamRetries, 1);
                if lease.conn.stream().is_none() {
                    lease.endpoint().distrust_idle();
                }
                *reuse = Reuse::Never;
                *attempt += 1;
            }
            Err(failure) => {
                out.clear();
                out.release();
                drop(response_input);
                let is_odd = matches!(failure, Failure::NoResponse | Failure::Malformed(_));
                if is_odd && lease.reused && lease.conn.stream().is_none() {
                    lease.endpoint().distrust_idle();
                }
                if let (Failure::Timeout, Some(stream)) = (&failure, lease.conn.stream()) {
                    stream.waited_in_vain();
                }
                let failure = failure.because_of(lease.conn.stream().and_then(|stream| stream.flaw()));
                let address = lease.endpoint().address();
                drop(lease);
                return failed(worker, conn, input, head, record, failure, address).await;
            }
        }
    }
    let denial = Denial::Upstream { status: 502, code: "upstream.no_response", what: "every attempt failed".into() };
    deny_late(worker, conn, input, head, record, denial).await
}

/// Why an attempt has no connection.
struct NotLeased {
    denial: Denial,
    /// The one that failed, where another one may do better.
    endpoint: Option<Rc<Endpoint>>,
}

impl From<Denial> for NotLeased {
    fn from(denial: Denial) -> Self {
        Self { denial, endpoint: None }
    }
}

/// A connection for an attempt, or a stream of one.
#[expect(clippy::too_many_arguments, reason = "as `forward`")]
async fn leased(
    worker: &Rc<Worker>,
    conn: &Conn,
    record: &Record<'_>,
    pinned: &Pinned,
    plan: &Plan<'_>,
    total_at_ms: Option<u64>,
    reuse: Reuse,
    tried: Option<&Rc<Endpoint>>,
) -> Result<Lease, NotLeased> {
    let Some(endpoint) = plan.target.choose(worker, pinned, conn, tried) else {
        worker.stats.add(Counter::NoEndpoint, 1);
        return Err(Denial::NoEndpoint(plan.target.why_no_endpoint(pinned)).into());
    };
    let address = endpoint.address();
    let connect_ms_max = worker.limits.connect_ms_max;
    let left_ms = total_at_ms.map_or(connect_ms_max, |total| total.saturating_sub(now_ms()).min(connect_ms_max));
    if left_ms == 0 {
        worker.stats.add(Counter::UpstreamTimeouts, 1);
        let failure = Failure::Timeout;
        let what = format!("{address}: {failure}");
        return Err(Denial::Upstream { status: 504, code: failure.code(), what }.into());
    }
    record.sent_to(plan.target.slot());
    let http2 = plan.target.http2(pinned, conn.stream().is_some());
    match lease::lease(worker, &endpoint, plan.target.slot(), http2, reuse, left_ms).await {
        Ok(lease) => {
            if let Some(peer) = lease.conn.secured_peer().and_then(|peer| peer.slot) {
                record.destination(peer);
            }
            Ok(lease)
        }
        Err(Unleased::Connect(error)) if let Some(code) = exhausted(&error) => {
            // What others keep for later is worth less than a request now.
            worker.endpoints.close_idle();
            Err(Denial::Exhausted { code, error }.into())
        }
        Err(Unleased::Connect(error)) => {
            worker.stats.add(Counter::UpstreamConnectFailures, 1);
            let is_worth_another = error.kind() != io::ErrorKind::TimedOut;
            Err(NotLeased {
                denial: Denial::ConnectFailed { address, error },
                endpoint: is_worth_another.then_some(endpoint),
            })
        }
        Err(Unleased::Secure(error)) => {
            endpoint.avoid();
            let is_worth_another = error.is_worth_another();
            Err(NotLeased {
                denial: Denial::TlsFailed { address, error },
                endpoint: is_worth_another.then_some(endpoint),
            })
        }
    }
}

/// Why nothing can be sent to an upstream.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotSecured {
    #[error(transparent)]
    NoTls(#[from] NoTls),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}

impl NotSecured {
    /// What we lack is lacking for every endpoint.
    pub(super) fn is_worth_another(&self) -> bool {
        matches!(self, Self::Handshake(_))
    }

    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::NoTls(_) => "tls.no_credential",
            Self::Handshake(error) => error.code(),
        }
    }
}

/// TLS to an upstream, over a new connection; `slot`: its cluster's statistics. Not an `async fn`: its frame is for new
/// connections alone.
pub(super) fn secure<'a>(
    worker: &'a Worker,
    conn: &'a mut Conn,
    slot: usize,
    origination: &'a Origination,
    offer: Offer,
    ms_max: u64,
) -> Pin<Box<dyn Future<Output = Result<(), NotSecured>> + 'a>> {
    Box::pin(async move {
        worker.stats.add(Counter::TlsUpstream, 1);
        let shake = async {
            let client = worker.materials.cluster(&origination.settings, origination.tls12, offer)?;
            Ok(handshake::connect(worker, conn, &client, &origination.name, ms_max).await?)
        };
        let result: Result<(), NotSecured> = shake.await;
        match &result {
            Ok(()) => {
                worker.stats.cluster_tls(slot, conn.tls_runs_in());
                if conn.secured_peer().is_some_and(|peer| peer.is_resumed) {
                    worker.stats.cluster_tls(slot, TlsCounter::Resumed);
                }
            }
            Err(error) => {
                worker.stats.add(Counter::TlsUpstreamFailures, 1);
                worker.stats.cluster_tls(slot, TlsCounter::Refused);
                worker.log_refusal(error.code(), conn.peer(), &format_args!("upstream: {error}"));
            }
        }
        result
    })
}

/// The whole request is in `out`, which comes back as it was if nothing of the response has come and `is_kept`, so that it can be sent
/// again. `None`, only if `may_park`: the request is sent, and the upstream takes its time.
#[expect(clippy::too_many_arguments, reason = "as `streamed`, with how it is to be waited for")]
async fn whole(
    exchange: &Exchange<'_>,
    lease: &mut Lease,
    conn: &mut Conn,
    response_input: &mut Input,
    fields: &mut Fields,
    out: &mut Buffer,
    is_kept: bool,
    may_park: bool,
) -> Result<Option<Progress>, Failure> {
    let upstream = &mut lease.conn;
    let head_at_ms = exchange.head_at_ms.get();
    let mut wait = None;
    if may_park {
        let asked_ms = now_ms();
        // One whose time is nearly over is waited for as it is.
        if head_at_ms > asked_ms + 2 * HOLD_BUFFER_MS_MAX {
            wait = Wait::begin(exchange.worker, upstream, asked_ms);
            if wait.is_none() {
                upstream.tell(out).await;
                return Ok(None);
            }
        }
    }
    let hold = wait.as_ref().and_then(|wait| wait.hold);
    let bounds = (head_read_bytes(conn), exchange.bounds.head_bytes + 1);
    let read = upstream.ask(out, is_kept, response_input, bounds, hold).await;
    if let Some(wait) = wait {
        wait.end(upstream);
    }
    if hold.is_some() {
        upstream.timer.set(head_at_ms, Expiry::ShutdownBoth);
        if let Err(error) = &read
            && is_canceled(error)
        {
            response_input.release();
            upstream.timer.drop_canceller();
            return Ok(None);
        }
    }
    if let Err(error) = &read
        && upstream.fd().is_some()
        && upstream.secured_peer().is_some()
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        // A TLS 1.3 server says only now that it does not like our certificate.
        let worker = exchange.worker;
        worker.log_refusal("tls.upstream_ended", upstream.peer(), &format_args!("upstream: {error}"));
    }
    if !matches!(read, Ok(count) if count > 0) {
        let failure = if upstream.timer.take_expired() { Failure::Timeout } else { Failure::NoResponse };
        return Err(failure);
    }
    let from = Side { half: &mut upstream.read, timer: &upstream.timer };
    let to = Side { half: &mut conn.write, timer: &conn.timer };
    relay::relay_response(exchange, fields, response_input, from, to, out).await.map(Some)
}

/// How a stream waits for its response with all in hand.
#[derive(Debug)]
struct Wait<'a> {
    _place: Place<'a>,
    asked_ms: u64,
    /// For how long, in milliseconds; `None`: for as long as it takes.
    hold: Option<u64>,
}

impl<'a> Wait<'a> {
    /// `None`: there is no place.
    fn begin(worker: &'a Worker, upstream: &Conn, asked_ms: u64) -> Option<Self> {
        // A read that can be taken back costs 3 % of what a request does. Who has been prompt is trusted to be so: in places of its own,
        // since one that then takes its time keeps its place.
        if upstream.is_prompt()
            && let Some(place) = worker.prompt_streams.enter()
        {
            return Some(Self { _place: place, asked_ms, hold: None });
        }
        let place = worker.hot_streams.enter()?;
        Some(Self { _place: place, asked_ms, hold: Some(HOLD_BUFFER_MS_MAX) })
    }

    /// The answer is there, or will not be waited for so any longer.
    fn end(self, upstream: &Conn) {
        let answered_ms = upstream.quiet_ms().unwrap_or_else(now_ms);
        upstream.has_answered(answered_ms < self.asked_ms + HOLD_BUFFER_MS_MAX);
    }
}

/// What is read at once of a response: not much more than its client takes.
fn head_read_bytes(conn: &Conn) -> usize {
    conn.stream().map_or(HEAD_READ_BYTES_MAX, |stream| HEAD_READ_BYTES_MAX.min(stream.appetite()))
}

/// The upstream of a request that was parked has something to say, or the client takes more of its response, or time is over. `None`: it
/// was nothing, such as a session ticket.
async fn answered(
    exchange: &Exchange<'_>,
    lease: &mut Lease,
    conn: &mut Conn,
    stalled: Option<Box<Relaying>>,
    response_input: &mut Input,
    fields: &mut Fields,
    out: &mut Buffer,
) -> Result<Option<Progress>, Failure> {
    let upstream = &mut lease.conn;
    if let Some(relaying) = stalled {
        let from = Side { half: &mut upstream.read, timer: &upstream.timer };
        let to = Side { half: &mut conn.write, timer: &conn.timer };
        return relay::go_on(exchange, relaying, response_input, from, to, out).await.map(Some);
    }
    let read = upstream.read_now(response_input, head_read_bytes(conn), exchange.bounds.head_bytes + 1);
    if read != IdleRead::Bytes {
        response_input.release();
        // What TLS says of an end is told once, so nothing may be read behind it.
        return match read {
            _ if upstream.timer.take_expired() => Err(Failure::Timeout),
            IdleRead::StillIdle => Ok(None),
            _ => Err(Failure::NoResponse),
        };
    }
    let from = Side { half: &mut upstream.read, timer: &upstream.timer };
    let to = Side { half: &mut conn.write, timer: &conn.timer };
    relay::relay_response(exchange, fields, response_input, from, to, out).await.map(Some)
}

/// The request body is still on its way: it goes up while the response comes down.
#[expect(clippy::too_many_arguments, reason = "two directions at once")]
pub(super) async fn streamed(
    exchange: &Exchange<'_>,
    lease: &mut Lease,
    conn: &mut Conn,
    input: &mut Input,
    body: &mut Body,
    response_input: &mut Input,
    fields: &mut Fields,
    out: &mut Buffer,
) -> Result<Progress, Failure> {
    let worker = exchange.worker;
    let limits = &worker.limits;
    let ends_at_ms = Cell::new(u64::MAX);
    // A field alone must not let a client off.
    let is_call = exchange.record.is_call() && conn.stream().is_some();
    let rate_min = if is_call { 0 } else { limits.body_rate_min };
    let rate = BodyRate::new(rate_min, limits.body_grace_ms);
    let patience = Patience {
        total_at_ms: exchange.total_at_ms,
        silence_ms_max: exchange.silence_ms_max,
        upload: Some(Upload { rate, ends_at_ms: &ends_at_ms, begun: exchange.continued }),
        // A response that comes before the end of it goes through buffers.
        is_alone: true,
        hot: None,
    };
    // The connections' own timers are for reading; writing goes on at the same time.
    let (client, upstream) = (&conn.timer, &lease.conn.timer);
    let (to_client, to_upstream) = (conn.second_timer(), lease.conn.second_timer());
    let up = async {
        let from = Side { half: &mut conn.read, timer: client };
        let to = Side { half: &mut lease.conn.write, timer: &to_upstream };
        let sent = relay_body(body, input, from, to, out, patience).await;
        exchange.worker.stats.add(Counter::SplicedBytes, body.spliced_bytes());
        if matches!(sent, Ok(_) | Err(BodyError::Write(_))) && exchange.awaits_head.get() {
            // Now it is the upstream's turn.
            let at_ms = exchange.total_at_ms.unwrap_or_else(|| now_ms() + exchange.silence_ms_max);
            exchange.head_at_ms.set(at_ms);
            upstream.set(at_ms, Expiry::ShutdownBoth);
        }
        match sent {
            Ok(_) => {
                exchange.uploading.set(false);
                None
            }
            // The upstream reads no more; it may have responded all the same.
            Err(BodyError::Write(_)) => None,
            // The client's body is broken or it went away: the upstream must not take what it has for all of it.
            Err(fault) => {
                upstream.shutdown(Expiry::ShutdownBoth);
                Some(fault)
            }
        }
    };
    let down = async {
        let from = Side { half: &mut lease.conn.read, timer: upstream };
        let to = Side { half: &mut conn.write, timer: &to_client };
        let mut out = worker.buffers.lazy();
        let result = relay::relay_response(exchange, fields, response_input, from, to, &mut out).await;
        if exchange.uploading.get() {
            // The response is complete, or there will be none: nobody waits for the rest of the body. The client may
            // still be sending; its next bytes meet a closed upstream and end the other direction.
            upstream.shutdown(Expiry::ShutdownBoth);
            ends_at_ms.set(now_ms() + LINGER_MS_MAX);
            client.set(ends_at_ms.get(), Expiry::ShutdownRead);
        }
        result
    };
    let (fault, result) = both(pin!(up), pin!(down)).await;
    let unanswered = matches!(result, Err(Failure::NoResponse | Failure::CutHead | Failure::Timeout));
    match (fault, result) {
        // Not the upstream's fault, whatever it looked like from there.
        (Some(BodyError::Bad(bad)), Err(_)) if unanswered => Err(Failure::ClientBody(bad)),
        (Some(BodyError::Bad(bad)), Err(Failure::Broken(_))) => Err(Failure::ClientBodyLate(bad)),
        (Some(BodyError::Read(error)), Err(_)) if unanswered => Err(Failure::Client(error)),
        (_, result) => result,
    }
}

/// After a complete response: pools the upstream connection, and says whether the client's can go on.
fn settle(exchange: &Exchange<'_>, conn: &Conn, lease: Lease, relayed: &Relayed) -> bool {
    let Exchange { worker, uploading, .. } = *exchange;
    conn.timer.clear();
    conn.told().works();
    if relayed.upstream_seen == Seen::Excess {
        lease.endpoint().distrust_idle();
    }
    if relayed.upstream_reusable && !uploading.get() && !worker.draining() {
        lease.give_back(now_ms(), relayed.keep_alive_timeout_s, relayed.upstream_seen);
    }
    relayed.downstream_keep && !uploading.get() && !conn.is_worn()
}

/// Ends a client's connection behind a complete response.
async fn finish(exchange: &Exchange<'_>, conn: &mut Conn, input: &mut Input) -> After {
    let Exchange { uploading, keep_alive, .. } = *exchange;
    // A client that has asked for an end sends no more. Any other may have: closing over it would reset the connection.
    if keep_alive || uploading.get() || !input.is_empty() {
        // A body that was still coming may have filled a buffer when the response was already there.
        local::linger(conn, input, if uploading.get() { BUFFER_BYTES } else { 0 }).await;
    }
    After::Close
}

/// After a failed exchange: an error response where the client has seen nothing yet.
pub(super) async fn failed(
    worker: &Worker,
    conn: &mut Conn,
    input: &mut Input,
    head: &RequestHead,
    record: &Record<'_>,
    failure: Failure,
    address: SocketAddr,
) -> After {
    let (status, counter) = match &failure {
        Failure::Broken(_) | Failure::BrokenHttp2(_) => {
            // Nothing can be said any more: an abrupt end tells the client that the response is not whole.
            worker.stats.add(Counter::UpstreamResets, 1);
            worker.log_fault(failure.code(), conn, &format_args!("{address}: {failure}"));
            conn.abort();
            return After::Close;
        }
        Failure::Client(_) => return After::Close,
        Failure::ClientBody(bad) => {
            return deny_late(worker, conn, input, head, record, Denial::BadBody(*bad)).await;
        }
        Failure::ClientBodyLate(bad) => {
            Denial::BadBody(*bad).observe(worker, conn);
            conn.abort();
            return After::Close;
        }
        Failure::Timeout => (504, Counter::UpstreamTimeouts),
        Failure::NoResponse | Failure::CutHead => (502, Counter::UpstreamResets),
        Failure::Malformed(_) | Failure::Http2(_) | Failure::UnsolicitedUpgrade => (502, Counter::UpstreamBadResponses),
    };
    worker.stats.add(counter, 1);
    let denial = Denial::Upstream { status, code: failure.code(), what: format!("{address}: {failure}") };
    deny_late(worker, conn, input, head, record, denial).await
}

#[cfg(test)]
mod tests;
