//! The life of a request, in order: parse, route, policy, balance, upstream, respond, observe.

use std::{cell::Cell, io, net::SocketAddr, pin::pin, rc::Rc};

use meshring_core::{
    http::{
        fields::Fields,
        head::Method,
        request::RequestHead,
        serialize::{self, NoEdits, RequestOut},
        status::reason,
    },
    limits::{ATTEMPTS_MAX, CONNECT_MS_MAX, HEAD_BYTES_MAX, RESPONSE_HEAD_MS_MAX},
    stats::Counter,
    table::{lookup::NoRoute, model::ArchivedClusterKind},
};
use monoio::io::{AsyncReadRent as _, AsyncWriteRent as _};

use crate::{
    accept::{Direction, Listener},
    balance::ClusterState,
    observe::Record,
    parse::{self, Next},
    policy::{self, Edits, Rewritten},
    respond::{
        local::{self, After, Response},
        relay::{self, Body, BodyError, Exchange, Failure, Patience, Relayed, Side},
    },
    route::{self, Decision, Forward, Request},
    upstream::{Endpoint, Lease},
    worker::{
        Worker,
        buffers::Input,
        conn::{Conn, write_rest},
        deadlines::{Expiry, now_ms},
        generation::{ClusterShared, Pinned},
        join::both,
    },
};

/// How a run of requests on one connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The client is silent: wait for it without a buffer.
    Idle,
    /// The connection is done.
    Closed,
}

/// Tables of header fields, reused from request to request.
pub(crate) struct Scratch {
    request: Box<Fields>,
    response: Box<Fields>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { request: Fields::new(), response: Fields::new() }
    }
}

/// Serves requests on a connection until it is idle or done. `ready`: the first one has begun to arrive.
pub(crate) async fn serve(worker: &Rc<Worker>, conn: &mut Conn, listener: &Listener, mut ready: bool) -> End {
    let mut input = Input::new(worker.buffers.take());
    let mut scratch = worker.take_scratch();
    let end = loop {
        match parse::request_head(worker, conn, &mut input, &mut scratch.request, std::mem::take(&mut ready)).await {
            Next::Request(head) => {
                if exchange(worker, conn, listener, &mut input, &mut scratch, &head).await == After::Close {
                    break End::Closed;
                }
            }
            Next::Idle => break End::Idle,
            Next::Closed => break End::Closed,
            Next::Refused(refusal) => {
                worker.stats.add(Counter::RequestsRefused, 1);
                let (status, code) = (refusal.status(), refusal.code());
                worker.log_refusal(code, &refusal);
                let body = format!("meshring: {} ({code}): {refusal}\n", reason(status));
                local::refuse(worker, conn, &mut input, status, &body).await;
                break End::Closed;
            }
            Next::TimedOut => {
                worker.stats.add(Counter::HeadTimeouts, 1);
                let body = "meshring: Request Timeout (http1.head_timeout): the request head did not arrive in time\n";
                local::refuse(worker, conn, &mut input, 408, body).await;
                break End::Closed;
            }
        }
    };
    worker.buffers.give(input.into_buffer());
    worker.give_scratch(scratch);
    end
}

/// One request and its response.
async fn exchange(
    worker: &Rc<Worker>,
    conn: &mut Conn,
    listener: &Listener,
    input: &mut Input,
    scratch: &mut Scratch,
    head: &RequestHead,
) -> After {
    let record = Record::start(&worker.stats);
    let pinned = worker.current.pin();
    let request = Request { bytes: &input.unread()[..head.len], head, fields: &scratch.request };
    if head.method == Method::Connect {
        return deny(worker, conn, input, head, &record, Denial::ConnectNotConfigured).await;
    }
    let Direction::Outbound = listener.direction else {
        let target = Target::Application { endpoint: listener.application(worker), shared: listener.cluster(worker) };
        let extra = Vec::new();
        let plan = Plan { target, edits: Edits::default(), response_edits: Edits::default(), timeout_ms: 0, extra };
        let rewritten = Rewritten { path: None, authority: None };
        let out = serialized(worker, &request, &plan, &rewritten);
        return forward(worker, conn, input, &mut scratch.response, head, &record, &pinned, &plan, out).await;
    };
    match route::decide(&pinned, &request, &worker.random) {
        Ok(Decision::Forward(chosen)) => {
            let edits = Edits::of_request(&chosen);
            let rewritten = policy::rewrite(&pinned, &request, &chosen, &edits);
            let extra = debug_lines(&request, &pinned, &chosen);
            let cluster = pinned.cluster(chosen.cluster(), &worker.clusters);
            let literal = request_address(&request);
            let plan = Plan {
                target: Target::Cluster { chosen, cluster, literal },
                edits,
                response_edits: Edits::of_response(&chosen),
                timeout_ms: chosen.rule.timeout_ms.to_native(),
                extra,
            };
            let out = serialized(worker, &request, &plan, &rewritten);
            forward(worker, conn, input, &mut scratch.response, head, &record, &pinned, &plan, out).await
        }
        Ok(Decision::Redirect(rule, redirect)) => {
            let location = policy::location(&request, redirect, head.port);
            let mut extra = Vec::new();
            serialize::field(&mut extra, b"location", &location);
            extra.extend(debug_generation(&request, &pinned));
            let status = redirect.status.to_native();
            let response = Response { status, content_type: "", body: b"", extra: &extra };
            record.status(status);
            let after = local::answer(worker, conn, input, head, &response, &Edits::of_local_response(rule)).await;
            record.complete();
            after
        }
        Ok(Decision::Direct(rule, direct)) => {
            let status = direct.status.to_native();
            let extra = debug_generation(&request, &pinned);
            let response = Response { status, content_type: "text/plain", body: &direct.body, extra: &extra };
            record.status(status);
            let after = local::answer(worker, conn, input, head, &response, &Edits::of_local_response(rule)).await;
            record.complete();
            after
        }
        Err(no_route) => {
            let host = String::from_utf8_lossy(request.text(head.authority_full)).into_owned();
            let denial = Denial::NoRoute { no_route, host, namespace: pinned.viewpoint().namespace.clone() };
            deny(worker, conn, input, head, &record, denial).await
        }
    }
}

/// Where a request goes.
enum Target<'g> {
    /// To an endpoint of a cluster of the table.
    Cluster {
        chosen: Forward<'g>,
        cluster: Rc<ClusterState>,
        /// Host as an address, for clusters without endpoints of their own.
        literal: Option<SocketAddr>,
    },
    /// To the application beside this proxy.
    Application { endpoint: Rc<Endpoint>, shared: Rc<ClusterShared> },
}

/// All that was decided about a request.
struct Plan<'g> {
    target: Target<'g>,
    edits: Edits<'g>,
    response_edits: Edits<'g>,
    /// From the end of the request head to the end of the response; 0 for none.
    timeout_ms: u32,
    /// Ready lines for the response.
    extra: Vec<u8>,
}

impl Target<'_> {
    fn slot(&self) -> usize {
        match self {
            Self::Cluster { cluster, .. } => cluster.shared.slot,
            Self::Application { shared, .. } => shared.slot,
        }
    }

    fn choose(
        &self,
        worker: &Worker,
        pinned: &Pinned,
        conn: &Conn,
        tried: Option<&Rc<Endpoint>>,
    ) -> Option<Rc<Endpoint>> {
        match self {
            Self::Application { endpoint, .. } => Some(Rc::clone(endpoint)),
            Self::Cluster { chosen, cluster, literal } => {
                let table = pinned.table();
                if table.cluster(chosen.cluster()).kind == ArchivedClusterKind::OriginalDestination {
                    return conn.original_destination().or(*literal).map(|address| worker.endpoints.of(address));
                }
                cluster.choose(table, &worker.endpoints, &worker.random, now_ms(), tried)
            }
        }
    }

    /// For people, in the body of a 503.
    fn why_no_endpoint(&self, pinned: &Pinned) -> String {
        let Self::Cluster { chosen, .. } = self else { return "the application".into() };
        let cluster = pinned.table().cluster(chosen.cluster());
        let why = match cluster.kind {
            ArchivedClusterKind::Static => "it has no endpoint",
            ArchivedClusterKind::OriginalDestination => {
                "it forwards to the address that the client meant, but the connection was not intercepted and Host is no address"
            }
            ArchivedClusterKind::NoSuchService => "no Service or ServiceEntry defines this host",
            ArchivedClusterKind::NoSuchSubset => "no DestinationRule defines this subset",
            ArchivedClusterKind::NoSuchPort => "the service has no such port",
        };
        format!("cluster {}: {why}; chosen by {}", cluster.name, route::describe_rule(pinned, chosen.rule))
    }
}

/// The request as it goes upstream, in a buffer of the pool.
fn serialized(worker: &Worker, request: &Request<'_>, plan: &Plan<'_>, rewritten: &Rewritten<'_>) -> Vec<u8> {
    let mut out = worker.buffers.take();
    let path = rewritten.path.as_ref().map(|[first, rest]| [&**first, &**rest]);
    let how = RequestOut { path, authority: rewritten.authority, ..RequestOut::new(request.head, &plan.edits) };
    serialize::request_head(&mut out, request.bytes, request.head, request.fields, &how);
    out
}

/// Sends a request and relays its response; further attempts where the first cannot have been processed.
#[expect(clippy::too_many_arguments, reason = "the one place where everything that was decided comes together")]
async fn forward(
    worker: &Rc<Worker>,
    conn: &mut Conn,
    input: &mut Input,
    response_fields: &mut Fields,
    head: &RequestHead,
    record: &Record<'_>,
    pinned: &Pinned,
    plan: &Plan<'_>,
    mut out: Vec<u8>,
) -> After {
    input.consume(head.len);
    let mut body = Body::new(head.framing, head.framing);
    if let Err(error) = body.encode(input, &mut out) {
        return deny_late(worker, conn, input, head, record, Denial::BadBody(error.status(), error.code())).await;
    }
    let total_at_ms = (plan.timeout_ms > 0).then(|| record.started_ms() + u64::from(plan.timeout_ms));
    // A body that did not fit beside the head is gone once it was sent: only a whole request can be sent again.
    let replayable = body.ended();
    let uploading = Cell::new(!replayable);
    let exchange = Exchange {
        worker,
        record,
        method: head.method,
        version: head.version,
        keep_alive: head.keep_alive,
        edits: plan.response_edits,
        extra: &plan.extra,
        patience: Patience { total_at_ms },
        uploading: &uploading,
    };
    let mut tried: Option<Rc<Endpoint>> = None;
    let mut fresh = false;
    for attempt in 1..=ATTEMPTS_MAX {
        let Some(endpoint) = plan.target.choose(worker, pinned, conn, tried.as_ref()) else {
            worker.stats.add(Counter::NoEndpoint, 1);
            let why = plan.target.why_no_endpoint(pinned);
            return deny_late(worker, conn, input, head, record, Denial::NoEndpoint(why)).await;
        };
        let left_ms = total_at_ms.map_or(CONNECT_MS_MAX, |total| total.saturating_sub(now_ms()).min(CONNECT_MS_MAX));
        if left_ms == 0 {
            return failed(worker, conn, input, head, record, Failure::Timeout, endpoint.address()).await;
        }
        record.sent_to(plan.target.slot());
        let mut lease = match endpoint.lease(&worker.deadlines, fresh, left_ms).await {
            Ok(lease) => lease,
            Err(error) => {
                worker.stats.add(Counter::UpstreamConnectFailures, 1);
                if attempt < ATTEMPTS_MAX && error.kind() != io::ErrorKind::TimedOut {
                    worker.stats.add(Counter::UpstreamRetries, 1);
                    tried = Some(endpoint);
                    continue;
                }
                let denial = Denial::ConnectFailed { address: endpoint.address(), error };
                return deny_late(worker, conn, input, head, record, denial).await;
            }
        };
        worker.stats.add(if lease.reused { Counter::UpstreamReused } else { Counter::UpstreamConnects }, 1);
        let head_at_ms = total_at_ms.unwrap_or(record.started_ms() + RESPONSE_HEAD_MS_MAX);
        lease.conn.timer.set(head_at_ms, Expiry::ShutdownBoth);
        let mut response_input = Input::new(worker.buffers.take());
        let (result, sent) = if body.ended() {
            whole(&exchange, &mut lease, conn, &mut response_input, response_fields, out).await
        } else {
            streamed(&exchange, &mut lease, conn, input, &mut body, &mut response_input, response_fields, out).await
        };
        worker.buffers.give(response_input.into_buffer());
        out = sent;
        match result {
            Ok(relayed) => {
                worker.buffers.give(out);
                return finish(worker, conn, input, lease, relayed, &uploading).await;
            }
            // RFC 9110 section 9.2.2 and RFC 9112 section 9.3.1: a reused connection that closes without a byte was
            // most likely closed before the request came; an idempotent request may be sent once more.
            Err(Failure::NoResponse)
                if lease.reused && replayable && head.method.is_idempotent() && !fresh && attempt < ATTEMPTS_MAX =>
            {
                worker.stats.add(Counter::UpstreamRetries, 1);
                fresh = true;
            }
            Err(failure) => {
                worker.buffers.give(out);
                drop(lease);
                return failed(worker, conn, input, head, record, failure, endpoint.address()).await;
            }
        }
    }
    let denial = Denial::Upstream { status: 502, what: "every attempt failed".into() };
    deny_late(worker, conn, input, head, record, denial).await
}

/// The whole request is in `out`. Write and first read are submitted together: one pass through the event loop less.
/// `out` comes back as it was if nothing of the response has come, so that it can be sent again.
async fn whole(
    exchange: &Exchange<'_>,
    lease: &mut Lease,
    conn: &mut Conn,
    response_input: &mut Input,
    fields: &mut Fields,
    out: Vec<u8>,
) -> (Result<Relayed, Failure>, Vec<u8>) {
    let upstream = &mut lease.conn;
    let Some(space) = response_input.lend(HEAD_BYTES_MAX + 1) else { return (Err(Failure::CutHead), out) };
    let len = out.len();
    let writing = upstream.write.write(out);
    let reading = upstream.read.read(space);
    let (written, mut out) = writing.await;
    if let Ok(written) = written
        && written < len
    {
        // A request larger than the socket's buffer; the read is pending meanwhile.
        (_, out) = write_rest(&mut upstream.write, out, written).await;
    }
    // A failed write needs no handling of its own: the read ends with the same broken connection, or with a response
    // that the upstream sent before it stopped reading.
    let (read, space) = reading.await;
    response_input.restore(space);
    if !matches!(read, Ok(count) if count > 0) {
        let failure = if upstream.timer.take_expired() { Failure::Timeout } else { Failure::NoResponse };
        return (Err(failure), out);
    }
    let from = Side { half: &mut upstream.read, timer: &upstream.timer };
    let to = Side { half: &mut conn.write, timer: &conn.timer };
    relay::relay_response(exchange, fields, response_input, from, to, out).await
}

/// The request body is still on its way: it goes up while the response comes down.
#[expect(clippy::too_many_arguments, reason = "two directions at once")]
async fn streamed(
    exchange: &Exchange<'_>,
    lease: &mut Lease,
    conn: &mut Conn,
    input: &mut Input,
    body: &mut Body,
    response_input: &mut Input,
    fields: &mut Fields,
    out: Vec<u8>,
) -> (Result<Relayed, Failure>, Vec<u8>) {
    let worker = exchange.worker;
    // The connections' own timers are for reading; writing goes on at the same time.
    let (client, upstream) = (&conn.timer, &lease.conn.timer);
    let (to_client, to_upstream) = (conn.second_timer(), lease.conn.second_timer());
    let up = async {
        let from = Side { half: &mut conn.read, timer: client };
        let to = Side { half: &mut lease.conn.write, timer: &to_upstream };
        let (result, out) = relay::relay_body(body, input, from, to, out, exchange.patience).await;
        let fault = match result {
            Ok(()) => {
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
        };
        (fault, out)
    };
    let down = async {
        let from = Side { half: &mut lease.conn.read, timer: upstream };
        let to = Side { half: &mut conn.write, timer: &to_client };
        let out = worker.buffers.take();
        let (result, out) = relay::relay_response(exchange, fields, response_input, from, to, out).await;
        worker.buffers.give(out);
        if exchange.uploading.get() {
            // The response is complete, or there will be none: nobody waits for the rest of the body. The client may
            // still be sending; its next bytes meet a closed upstream and end the other direction.
            upstream.shutdown(Expiry::ShutdownBoth);
            client.set(now_ms() + local::LINGER_MS_MAX, Expiry::ShutdownRead);
        }
        result
    };
    let ((fault, out), result) = both(pin!(up), pin!(down)).await;
    let unanswered = matches!(result, Err(Failure::NoResponse | Failure::CutHead | Failure::Timeout));
    let result = match fault {
        // Not the upstream's fault, whatever it looked like from there.
        Some(BodyError::Malformed(error)) if unanswered => Err(Failure::ClientBody(error)),
        Some(BodyError::Read(error)) if unanswered => Err(Failure::Client(error)),
        _ => result,
    };
    (result, out)
}

/// After a complete response: pool the upstream connection, say whether the client's can go on.
async fn finish(
    worker: &Worker,
    conn: &mut Conn,
    input: &mut Input,
    lease: Lease,
    relayed: Relayed,
    uploading: &Cell<bool>,
) -> After {
    conn.timer.clear();
    if relayed.upstream_reusable && !uploading.get() && !worker.draining() {
        lease.give_back(now_ms());
    }
    if relayed.downstream_keep && !uploading.get() {
        return After::KeepAlive;
    }
    if uploading.get() || !input.is_empty() {
        local::linger(conn, input).await;
    }
    After::Close
}

/// After a failed exchange: an error response where the client has seen nothing yet.
async fn failed(
    worker: &Worker,
    conn: &mut Conn,
    input: &mut Input,
    head: &RequestHead,
    record: &Record<'_>,
    failure: Failure,
    address: SocketAddr,
) -> After {
    let (status, counter) = match failure {
        Failure::Broken(error) => {
            // Nothing can be said any more: an abrupt end tells the client that the response is not whole.
            worker.stats.add(Counter::UpstreamResets, 1);
            tracing::debug!(%address, "response broken off: {error}");
            conn.abort();
            return After::Close;
        }
        Failure::Client(_) => return After::Close,
        Failure::ClientBody(error) => {
            worker.stats.add(Counter::RequestsRefused, 1);
            let denial = Denial::BadBody(error.status(), error.code());
            return deny_late(worker, conn, input, head, record, denial).await;
        }
        Failure::Timeout => (504, Counter::UpstreamTimeouts),
        Failure::NoResponse | Failure::CutHead => (502, Counter::UpstreamResets),
        Failure::Malformed(_) | Failure::UnsolicitedUpgrade => (502, Counter::UpstreamBadResponses),
    };
    worker.stats.add(counter, 1);
    let denial = Denial::Upstream { status, what: format!("{address}: {failure}") };
    deny_late(worker, conn, input, head, record, denial).await
}

/// Why a request is answered here.
enum Denial {
    ConnectNotConfigured,
    NoRoute { no_route: NoRoute, host: String, namespace: String },
    NoEndpoint(String),
    ConnectFailed { address: SocketAddr, error: io::Error },
    BadBody(u16, &'static str),
    Upstream { status: u16, what: String },
}

impl Denial {
    fn status(&self) -> u16 {
        match self {
            Self::ConnectNotConfigured => 405,
            Self::NoRoute { .. } => 404,
            Self::NoEndpoint(_) => 503,
            Self::ConnectFailed { error, .. } if error.kind() == io::ErrorKind::TimedOut => 504,
            Self::ConnectFailed { .. } => 503,
            Self::BadBody(status, _) | Self::Upstream { status, .. } => *status,
        }
    }

    fn text(&self) -> String {
        let status = self.status();
        let (code, what) = match self {
            Self::ConnectNotConfigured => ("connect_not_configured", "CONNECT is not configured here".into()),
            Self::NoRoute { no_route, host, namespace } => {
                let hint = match no_route {
                    NoRoute::NoRule(_) => "",
                    _ => "; `meshring explain` shows what was looked for",
                };
                ("no_route", format!("host {host:?}, asked from namespace {namespace}: {no_route}{hint}"))
            }
            Self::NoEndpoint(why) => ("no_endpoint", why.clone()),
            Self::ConnectFailed { address, error } => ("connect_failed", format!("{address}: {error}")),
            Self::BadBody(_, code) => (*code, "the request body is malformed".into()),
            Self::Upstream { what, .. } => ("upstream", what.clone()),
        };
        format!("meshring: {} ({code}): {what}\n", reason(status))
    }
}

/// Answers a request whose head is still in the input.
async fn deny(
    worker: &Worker,
    conn: &mut Conn,
    input: &mut Input,
    head: &RequestHead,
    record: &Record<'_>,
    denial: Denial,
) -> After {
    if let Denial::NoRoute { .. } = denial {
        worker.stats.add(Counter::NoRoute, 1);
    }
    let (status, text) = (denial.status(), denial.text());
    record.status(status);
    let response = Response { status, content_type: "text/plain", body: text.as_bytes(), extra: b"" };
    let after = local::answer(worker, conn, input, head, &response, &NoEdits).await;
    record.complete();
    after
}

/// Answers a request whose head, and perhaps part of its body, has left the input. The connection goes on only where
/// there was no body at all.
async fn deny_late(
    worker: &Worker,
    conn: &mut Conn,
    input: &mut Input,
    head: &RequestHead,
    record: &Record<'_>,
    denial: Denial,
) -> After {
    conn.timer.clear();
    let rest = RequestHead { len: 0, keep_alive: head.keep_alive && !head.framing.has_body(), ..*head };
    deny(worker, conn, input, &rest, record, denial).await
}

/// Host as a literal address, for clusters that forward to what the client meant.
fn request_address(request: &Request<'_>) -> Option<SocketAddr> {
    let text = std::str::from_utf8(request.text(request.head.authority)).ok()?;
    let ip = text.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
    Some(SocketAddr::new(ip, request.head.port.unwrap_or(80)))
}

/// A request that carries this field learns from the response's fields how it was served.
const DEBUG_FIELD: &[u8] = b"x-meshring-debug";

fn wants_debug(request: &Request<'_>) -> bool {
    request.fields.iter().any(|field| field.name.of(request.bytes).eq_ignore_ascii_case(DEBUG_FIELD))
}

fn debug_generation(request: &Request<'_>, pinned: &Pinned) -> Vec<u8> {
    let mut lines = Vec::new();
    if wants_debug(request) {
        serialize::field(&mut lines, b"x-meshring-generation", pinned.number().to_string().as_bytes());
    }
    lines
}

fn debug_lines(request: &Request<'_>, pinned: &Pinned, chosen: &Forward<'_>) -> Vec<u8> {
    let mut lines = debug_generation(request, pinned);
    if !lines.is_empty() {
        let cluster = pinned.table().cluster(chosen.cluster()).name.as_bytes();
        serialize::field(&mut lines, b"x-meshring-cluster", cluster);
        serialize::field(&mut lines, b"x-meshring-rule", route::describe_rule(pinned, chosen.rule).as_bytes());
    }
    lines
}
