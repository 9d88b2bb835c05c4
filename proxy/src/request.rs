//! The life of a request, in order: parse, route, policy, balance, upstream, respond, observe.

use std::{
    cell::Cell,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::{Pin, pin},
    rc::Rc,
};

use meshring_core::{
    http::{
        error::Refusal,
        fields::Fields,
        forwarding::{self, Hop},
        head::{Bounds, Method},
        path::without_parameters,
        request::RequestHead,
        serialize::{self, HeaderEdits, NoEdits, RequestOut},
        status::reason,
    },
    limits::{ATTEMPTS_MAX, CONNECT_MS_MAX, REQUESTS_IN_A_ROW_MAX, RESPONSE_HEAD_MS_MAX},
    stats::Counter,
    table::{
        lookup::NoRoute,
        model::{ArchivedClusterKind, PathNormalization, Settings},
        security::MtlsMode,
    },
};
use crate::{
    accept::{Direction, Listener},
    balance::ClusterState,
    observe::Record,
    parse::{self, Begin, Next, PartialHead},
    policy::{self, Edits, Rewritten},
    respond::{
        last_hop,
        local::{self, After, Response},
        relay::{
            self, BadBody, Body, BodyError, BodyRate, Exchange, Failure, HEAD_READ_BYTES_MAX, Patience, Relayed, Side,
            Upload,
        },
    },
    route::{self, Decision, Forward, Request},
    tls::{
        handshake::{self, HandshakeError},
        materials::NoTls,
    },
    upstream::{Endpoint, Lease, Origination, Reuse},
    worker::{
        Worker,
        buffers::{Buffer, Input},
        conn::{Conn, exhausted},
        deadlines::{Expiry, now_ms},
        generation::{ClusterShared, Pinned},
        join::{both, yield_now},
    },
};

/// How a run of requests on one connection ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The client is silent: wait for it without a buffer.
    Idle,
    /// The client is silent in the middle of a head: likewise.
    Partial(PartialHead),
    /// The connection is done.
    Closed,
}

/// Tables of header fields and texts of a request, reused from request to request.
pub(crate) struct Scratch {
    request: Box<Fields>,
    response: Box<Fields>,
    texts: Texts,
}

/// What is made of a request on its way upstream.
#[derive(Debug, Default)]
struct Texts {
    /// The path in its normal form, where that is not the received one.
    path: Vec<u8>,
    /// The path without parameters, where it has any.
    rule_path: Vec<u8>,
    /// The path that a rule's rewrite makes, and its normal form.
    rewritten: policy::RewrittenPath,
    /// Forwarding fields.
    lines: Vec<u8>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { request: Fields::new(), response: Fields::new(), texts: Texts::default() }
    }
}

/// The other side of a downstream connection.
#[derive(Debug, Clone, Copy)]
struct Client {
    address: IpAddr,
    /// The application beside this proxy: it speaks for the workload.
    is_local_application: bool,
    /// Another workload, which has proved its identity.
    is_mesh_peer: bool,
}

impl Client {
    fn of(conn: &Conn, listener: &Listener) -> Self {
        // A connection that is gone already has no address; nothing will be forwarded from it.
        let address = conn.peer().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip().to_canonical());
        let is_local_application = listener.direction == Direction::Outbound && address.is_loopback();
        let is_mesh_peer = matches!(listener.direction, Direction::Inbound { .. })
            && conn.secured_peer().is_some_and(|peer| peer.identity.is_some());
        Self { address, is_local_application, is_mesh_peer }
    }

    /// Whether to believe what it says about where a request came from.
    fn is_trusted(self, worker: &Worker, settings: Settings) -> bool {
        match worker.tuning.trusted_hops {
            Some(hops) => hops > 0,
            None => self.is_local_application || self.is_mesh_peer || settings.trusted_hops > 0,
        }
    }
}

/// Serves requests on a connection until it is idle or done.
pub(crate) async fn serve(worker: &Rc<Worker>, conn: &mut Conn, listener: &Listener, mut begin: Begin) -> End {
    let mut input = Input::new(worker.buffers.lazy());
    let mut scratch = worker.take_scratch();
    let client = Client::of(conn, listener);
    let bounds = listener.direction.request_bounds();
    let mut served: u32 = 0;
    let end = loop {
        let begin = std::mem::take(&mut begin);
        match parse::request_head(worker, conn, &mut input, &mut scratch.request, begin, bounds).await {
            Next::Request(head) => {
                if exchange(worker, conn, listener, client, &mut input, &mut scratch, &head).await == After::Close {
                    break End::Closed;
                }
                served = served.wrapping_add(1);
                if served.is_multiple_of(REQUESTS_IN_A_ROW_MAX) {
                    yield_now().await;
                }
            }
            Next::Idle => break End::Idle,
            Next::Partial(partial) => break End::Partial(partial),
            Next::Closed => break End::Closed,
            Next::Refused(refusal) => {
                input.clear();
                input.release();
                worker.stats.add(Counter::RequestsRefused, 1);
                refuse(worker, conn, refusal.status(), refusal.code(), &refusal).await;
                break End::Closed;
            }
            Next::TimedOut => {
                input.clear();
                input.release();
                time_out(worker, conn).await;
                break End::Closed;
            }
            Next::Overload => {
                input.clear();
                input.release();
                worker.stats.add(Counter::RequestsOverload, 1);
                let what = "the worker's memory for unfinished requests is used up";
                refuse(worker, conn, 503, "overload", &what).await;
                break End::Closed;
            }
        }
    };
    worker.give_scratch(scratch);
    end
}

/// The last words to a client whose request head has not come in time.
pub(crate) async fn time_out(worker: &Worker, conn: &mut Conn) {
    worker.stats.add(Counter::HeadTimeouts, 1);
    refuse(worker, conn, 408, "http1.head_timeout", &"the request head did not arrive in time").await;
}

/// The last words to a client for which there is no room.
pub(crate) async fn turn_away(worker: &Worker, conn: &mut Conn) {
    refuse(worker, conn, 503, "overload", &"the worker has as many connections as it may have").await;
}

/// Answers what is not even a request.
async fn refuse(worker: &Worker, conn: &mut Conn, status: u16, code: &'static str, what: &dyn std::fmt::Display) {
    worker.log_refusal(code, conn.peer(), what);
    let body = format!("meshring: {} ({code}): {what}\n", reason(status));
    local::refuse(worker, conn, status, &body).await;
}

/// One request and its response.
async fn exchange(
    worker: &Rc<Worker>,
    conn: &mut Conn,
    listener: &Listener,
    client: Client,
    input: &mut Input,
    scratch: &mut Scratch,
    head: &RequestHead,
) -> After {
    let record = Record::start(&worker.stats);
    if worker.overloaded() {
        let denial = Denial::Overload("the worker's memory for messages is used up");
        let last = RequestHead { keep_alive: false, ..*head };
        return deny(worker, conn, input, &last, &record, denial).await;
    }
    if head.limit_body(worker.limits.request_body_bytes_max).is_err() {
        let last = RequestHead { keep_alive: false, ..*head };
        return deny(worker, conn, input, &last, &record, Denial::BadBody(BadBody::TooLarge)).await;
    }
    let pinned = worker.current.pin();
    let settings = pinned.table().settings();
    let Scratch { request: fields, response: response_fields, texts } = scratch;
    if head.method == Method::Connect {
        // What follows may be meant for the tunnel: it must not be taken for a next request.
        let last = RequestHead { keep_alive: false, ..*head };
        return deny(worker, conn, input, &last, &record, Denial::ConnectNotConfigured).await;
    }
    if conn.secured_peer().is_none()
        && let Some(is_gateway) = requires_tls(&pinned, listener)
    {
        // Also of a connection that was made before it was required.
        let last = RequestHead { keep_alive: false, ..*head };
        return deny(worker, conn, input, &last, &record, Denial::TlsRequired { is_gateway }).await;
    }
    let bytes = &input.unread()[..head.len];
    let request = match normalized(settings, bytes, head, fields, &mut texts.path, &mut texts.rule_path) {
        Ok(request) => request,
        Err(refusal) => return refuse_path(worker, conn, input, head, &record, refusal).await,
    };
    if head.max_forwards == Some(0) {
        let response = last_hop::answer(&request, &mut texts.lines);
        return answer(worker, conn, input, head, &record, &response, &NoEdits).await;
    }
    let is_trusted = client.is_trusted(worker, settings);
    // Files and lines of the configuration are for those on this side, not for whoever stands behind a trusted hop.
    let is_debugged = is_trusted && client.is_local_application;
    let hop = |is_host_rewritten| {
        let has_id = forwarding::kept_request_id(bytes, fields, is_trusted).is_some();
        Hop {
            peer: client.address,
            is_https: conn.secured_peer().is_some() && listener.direction == Direction::Outbound,
            port: listener.address.port(),
            is_trusted,
            new_request_id: (settings.request_id && !has_id).then(|| worker.request_ids.next()),
            is_host_rewritten,
        }
    };
    let Direction::Outbound = listener.direction else {
        let target = Target::Application { endpoint: listener.application(worker), shared: listener.cluster(worker) };
        let extra = Vec::new();
        let plan = Plan { target, edits: Edits::default(), response_edits: Edits::default(), timeout_ms: 0, extra };
        let rewritten = Rewritten { path: request.replaced_path(), authority: None };
        let element = conn.secured_peer().and_then(|peer| peer.element.as_deref());
        let out = serialized(worker, &request, &plan, &rewritten, &hop(false), element, &mut texts.lines);
        return forward(worker, conn, input, response_fields, head, &record, &pinned, &plan, out).await;
    };
    match route::decide(&pinned, &request, &worker.random) {
        Ok(Decision::Forward(chosen)) => {
            let edits = Edits::of_request(&chosen);
            let rewritten = match policy::rewrite(&pinned, &request, &chosen, &edits, &mut texts.rewritten) {
                Ok(rewritten) => rewritten,
                Err(refusal) => return refuse_path(worker, conn, input, head, &record, refusal).await,
            };
            let extra = if is_debugged { debug_lines(&request, &pinned, &chosen) } else { Vec::new() };
            let cluster = pinned.cluster(chosen.cluster(), &worker.clusters, &worker.endpoints);
            let literal = request_address(&request);
            let plan = Plan {
                target: Target::Cluster { chosen, cluster, literal },
                edits,
                response_edits: Edits::of_response(&chosen),
                timeout_ms: chosen.rule.timeout_ms.to_native(),
                extra,
            };
            let hop = hop(rewritten.authority.is_some());
            let out = serialized(worker, &request, &plan, &rewritten, &hop, None, &mut texts.lines);
            forward(worker, conn, input, response_fields, head, &record, &pinned, &plan, out).await
        }
        Ok(Decision::Redirect(rule, redirect)) => {
            let location = policy::location(&request, redirect, head.port);
            let mut extra = Vec::new();
            serialize::field(&mut extra, b"location", &location);
            if is_debugged {
                extra.extend(debug_generation(&request, &pinned));
            }
            let status = redirect.status.to_native();
            let response = Response { status, content_type: "", body: b"", extra: &extra };
            answer(worker, conn, input, head, &record, &response, &Edits::of_local_response(rule)).await
        }
        Ok(Decision::Direct(rule, direct)) => {
            let status = direct.status.to_native();
            let extra = if is_debugged { debug_generation(&request, &pinned) } else { Vec::new() };
            let response = Response { status, content_type: "text/plain", body: &direct.body, extra: &extra };
            answer(worker, conn, input, head, &record, &response, &Edits::of_local_response(rule)).await
        }
        Err(no_route) => {
            let host = String::from_utf8_lossy(request.text(head.authority_full)).into_owned();
            let denial = Denial::NoRoute { no_route, host, namespace: pinned.viewpoint().namespace.clone() };
            deny(worker, conn, input, head, &record, denial).await
        }
    }
}

/// Whether plain requests are refused, and if so, because this is a gateway.
fn requires_tls(pinned: &Pinned, listener: &Listener) -> Option<bool> {
    let policy = pinned.table().inbound_policy(pinned.viewpoint())?;
    match listener.direction {
        Direction::Inbound { application } => (policy.mtls_on(application.port()) == MtlsMode::Strict).then_some(false),
        Direction::Outbound => policy.has_gateway(listener.address.port()).then_some(true),
    }
}

/// A request as rules see it and as it goes upstream: with the one spelling of its path.
fn normalized<'a>(
    settings: Settings,
    bytes: &'a [u8],
    head: &'a RequestHead,
    fields: &'a Fields,
    path: &'a mut Vec<u8>,
    rule_path: &'a mut Vec<u8>,
) -> Result<Request<'a>, Refusal> {
    let level = settings.path_normalization;
    let path = head.normalized_path(bytes, level, path)?;
    let rule_path = if level == PathNormalization::None { path } else { without_parameters(path, rule_path) };
    Ok(Request { bytes, head, fields, path, rule_path, level })
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
                    let meant = conn.original_destination().or(*literal);
                    return meant.map(|address| cluster.elsewhere(&worker.endpoints, address));
                }
                cluster.choose(table, &worker.endpoints, &worker.random, now_ms(), tried)
            }
        }
    }

    /// How large its response heads may be: the application's own, or what another sidecar has made of them.
    fn response_bounds(&self) -> Bounds {
        match self {
            Self::Application { .. } => Bounds::FIRST_HOP,
            Self::Cluster { .. } => Bounds::NEXT_HOP,
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
fn serialized(
    worker: &Worker,
    request: &Request<'_>,
    plan: &Plan<'_>,
    rewritten: &Rewritten<'_>,
    hop: &Hop,
    element: Option<&[u8]>,
    lines: &mut Vec<u8>,
) -> Buffer {
    let Request { bytes, head, fields, .. } = *request;
    lines.clear();
    let mut drop = forwarding::request_lines(lines, bytes, head, fields, hop, &plan.edits);
    if let Some(element) = element {
        drop = drop.union(forwarding::client_certificate_line(lines, bytes, fields, element, &plan.edits));
    }
    let mut out = worker.buffers.take();
    let how = RequestOut {
        path: rewritten.path.map(|path| [path, b""]),
        authority: rewritten.authority,
        via: true,
        drop,
        extra: lines,
        ..RequestOut::new(head, &plan.edits)
    };
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
    mut out: Buffer,
) -> After {
    input.consume(head.len);
    let mut body = Body::new(head.framing, head.framing).limited(worker.limits.request_body_bytes_max);
    if let Err(bad) = body.encode(input, &mut out) {
        return deny_late(worker, conn, input, head, record, Denial::BadBody(bad)).await;
    }
    // Nothing more is read from a client whose request is whole: its buffer is for others meanwhile.
    input.release();
    let total_at_ms = (plan.timeout_ms > 0).then(|| record.started_ms() + u64::from(plan.timeout_ms));
    // A body that did not fit beside the head is gone once it was sent: only a whole request can be sent again.
    let replayable = body.ended();
    let uploading = Cell::new(!replayable);
    let continued = Cell::new(!head.expect_continue);
    // An upstream is silent from when it has all of the request, or is asked whether it wants the body.
    let head_at_ms = match replayable || head.expect_continue {
        true => record.started_ms() + RESPONSE_HEAD_MS_MAX,
        false => u64::MAX,
    };
    let exchange = Exchange {
        worker,
        record,
        method: head.method,
        version: head.version,
        keep_alive: head.keep_alive,
        edits: plan.response_edits,
        extra: &plan.extra,
        total_at_ms,
        head_at_ms: Cell::new(total_at_ms.unwrap_or(head_at_ms)),
        awaits_head: Cell::new(true),
        continued: &continued,
        bounds: plan.target.response_bounds(),
        uploading: &uploading,
    };
    let mut tried: Option<Rc<Endpoint>> = None;
    let mut reuse = if replayable && head.method.is_idempotent() { Reuse::Any } else { Reuse::Recent };
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
        let mut lease = match endpoint.lease(&worker.deadlines, reuse, left_ms).await {
            Ok(lease) => lease,
            Err(error) if let Some(code) = exhausted(&error) => {
                // What others keep for later is worth less than a request now.
                worker.endpoints.close_idle();
                let denial = Denial::Exhausted { code, error };
                return deny_late(worker, conn, input, head, record, denial).await;
            }
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
        if !lease.reused
            && let Some(origination) = endpoint.security()
            && let Err(error) = secure(worker, &mut lease.conn, origination, left_ms).await
        {
            drop(lease);
            endpoint.avoid();
            if attempt < ATTEMPTS_MAX && error.is_worth_another() {
                worker.stats.add(Counter::UpstreamRetries, 1);
                tried = Some(endpoint);
                continue;
            }
            let denial = Denial::TlsFailed { address: endpoint.address(), error };
            return deny_late(worker, conn, input, head, record, denial).await;
        }
        lease.conn.timer.set(exchange.head_at_ms.get(), Expiry::ShutdownBoth);
        let mut response_input = Input::new(worker.buffers.lazy());
        // RFC 9110 section 9.2.2 and RFC 9112 section 9.3.1: a reused connection that closes without a byte was most likely
        // closed before the request came; an idempotent request may be sent once more.
        let can_send_again = lease.reused && reuse == Reuse::Any && attempt < ATTEMPTS_MAX;
        let result = if body.ended() {
            whole(&exchange, &mut lease, conn, &mut response_input, response_fields, &mut out, can_send_again).await
        } else {
            streamed(&exchange, &mut lease, conn, input, &mut body, &mut response_input, response_fields, &mut out)
                .await
        };
        drop(response_input);
        match result {
            Ok(relayed) => {
                drop(out);
                return finish(&exchange, conn, input, lease, relayed).await;
            }
            Err(Failure::NoResponse) if can_send_again => {
                worker.stats.add(Counter::UpstreamRetries, 1);
                reuse = Reuse::Never;
            }
            Err(failure) => {
                drop(out);
                drop(lease);
                return failed(worker, conn, input, head, record, failure, endpoint.address()).await;
            }
        }
    }
    let denial = Denial::Upstream { status: 502, what: "every attempt failed".into() };
    deny_late(worker, conn, input, head, record, denial).await
}

/// Why nothing can be sent to an upstream.
#[derive(Debug, thiserror::Error)]
enum NotSecured {
    #[error(transparent)]
    NoTls(#[from] NoTls),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}

impl NotSecured {
    /// What we lack is lacking for every endpoint.
    fn is_worth_another(&self) -> bool {
        matches!(self, Self::Handshake(_))
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NoTls(_) => "tls.no_credential",
            Self::Handshake(error) => error.code(),
        }
    }
}

/// TLS to an upstream, over a new connection. Not an `async fn`: its frame is for new connections alone.
fn secure<'a>(
    worker: &'a Worker,
    conn: &'a mut Conn,
    origination: &'a Origination,
    ms_max: u64,
) -> Pin<Box<dyn Future<Output = Result<(), NotSecured>> + 'a>> {
    Box::pin(async move {
        worker.stats.add(Counter::TlsUpstream, 1);
        let shake = async {
            let client = worker.materials.cluster(&origination.settings, origination.tls12)?;
            Ok(handshake::connect(worker, conn, &client, &origination.name, ms_max).await?)
        };
        let result: Result<(), NotSecured> = shake.await;
        if let Err(error) = &result {
            worker.stats.add(Counter::TlsUpstreamFailures, 1);
            worker.log_refusal(error.code(), conn.peer(), &format_args!("upstream: {error}"));
        }
        result
    })
}

/// The whole request is in `out`. Write and first read are submitted together: one pass through the event loop less.
/// `out` comes back as it was if nothing of the response has come and `is_kept`, so that it can be sent again.
async fn whole(
    exchange: &Exchange<'_>,
    lease: &mut Lease,
    conn: &mut Conn,
    response_input: &mut Input,
    fields: &mut Fields,
    out: &mut Buffer,
    is_kept: bool,
) -> Result<Relayed, Failure> {
    let upstream = &mut lease.conn;
    let bytes_max = exchange.bounds.head_bytes + 1;
    let read = upstream.ask(out, is_kept, response_input, HEAD_READ_BYTES_MAX, bytes_max).await;
    if !matches!(read, Ok(count) if count > 0) {
        let failure = if upstream.timer.take_expired() { Failure::Timeout } else { Failure::NoResponse };
        return Err(failure);
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
    out: &mut Buffer,
) -> Result<Relayed, Failure> {
    let worker = exchange.worker;
    let limits = &worker.limits;
    let ends_at_ms = Cell::new(u64::MAX);
    let rate = BodyRate::new(limits.body_rate_min, limits.body_grace_ms);
    let patience = Patience {
        total_at_ms: exchange.total_at_ms,
        upload: Some(Upload { rate, ends_at_ms: &ends_at_ms, begun: exchange.continued }),
    };
    // The connections' own timers are for reading; writing goes on at the same time.
    let (client, upstream) = (&conn.timer, &lease.conn.timer);
    let (to_client, to_upstream) = (conn.second_timer(), lease.conn.second_timer());
    let up = async {
        let from = Side { half: &mut conn.read, timer: client };
        let to = Side { half: &mut lease.conn.write, timer: &to_upstream };
        let sent = relay::relay_body(body, input, from, to, out, patience).await;
        if matches!(sent, Ok(()) | Err(BodyError::Write(_))) && exchange.awaits_head.get() {
            // Now it is the upstream's turn.
            let at_ms = exchange.total_at_ms.unwrap_or_else(|| now_ms() + RESPONSE_HEAD_MS_MAX);
            exchange.head_at_ms.set(at_ms);
            upstream.set(at_ms, Expiry::ShutdownBoth);
        }
        match sent {
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
            ends_at_ms.set(now_ms() + local::LINGER_MS_MAX);
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

/// After a complete response: pool the upstream connection, say whether the client's can go on.
async fn finish(exchange: &Exchange<'_>, conn: &mut Conn, input: &mut Input, lease: Lease, relayed: Relayed) -> After {
    let Exchange { worker, uploading, keep_alive, .. } = *exchange;
    conn.timer.clear();
    if relayed.upstream_reusable && !uploading.get() && !worker.draining() {
        lease.give_back(now_ms(), relayed.keep_alive_timeout_s);
    }
    if relayed.downstream_keep && !uploading.get() {
        return After::KeepAlive;
    }
    // A client that has asked for an end sends no more. Any other may have: closing over it would reset the connection.
    if keep_alive || uploading.get() || !input.is_empty() {
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
        Failure::ClientBody(bad) => {
            return deny_late(worker, conn, input, head, record, Denial::BadBody(bad)).await;
        }
        Failure::ClientBodyLate(bad) => {
            Denial::BadBody(bad).observe(worker, conn);
            conn.abort();
            return After::Close;
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
    Refused(Refusal),
    NoRoute { no_route: NoRoute, host: String, namespace: String },
    NoEndpoint(String),
    ConnectFailed { address: SocketAddr, error: io::Error },
    TlsFailed { address: SocketAddr, error: NotSecured },
    TlsRequired { is_gateway: bool },
    BadBody(BadBody),
    Overload(&'static str),
    Exhausted { code: &'static str, error: io::Error },
    Upstream { status: u16, what: String },
}

impl Denial {
    fn status(&self) -> u16 {
        match self {
            Self::ConnectNotConfigured => 405,
            Self::Refused(refusal) => refusal.status(),
            Self::NoRoute { .. } => 404,
            Self::NoEndpoint(_) | Self::Overload(_) | Self::Exhausted { .. } => 503,
            Self::ConnectFailed { error, .. } if error.kind() == io::ErrorKind::TimedOut => 504,
            Self::ConnectFailed { .. } | Self::TlsFailed { .. } => 503,
            // As servers answer plain HTTP on a port for TLS; between workloads it is about who may come.
            Self::TlsRequired { is_gateway: true } => 400,
            Self::TlsRequired { is_gateway: false } => 403,
            Self::BadBody(bad) => bad.status(),
            Self::Upstream { status, .. } => *status,
        }
    }

    /// Counts it, and logs what an operator must know of: what a client or this machine is to blame for.
    fn observe(&self, worker: &Worker, conn: &Conn) {
        let (counter, code, what): (_, _, &dyn std::fmt::Display) = match self {
            Self::NoRoute { .. } => return worker.stats.add(Counter::NoRoute, 1),
            Self::BadBody(BadBody::TooSlow) => (Counter::BodyTimeouts, BadBody::TooSlow.code(), &BadBody::TooSlow),
            Self::BadBody(bad) => (Counter::RequestsRefused, bad.code(), bad),
            Self::Overload(what) => (Counter::RequestsOverload, "overload", what),
            Self::TlsRequired { .. } => (Counter::TlsRequired, "tls_required", &"plain text where TLS is required"),
            Self::Exhausted { code, error } => (Counter::RequestsOverload, *code, error),
            _ => return,
        };
        worker.stats.add(counter, 1);
        worker.log_refusal(code, conn.peer(), what);
    }

    fn text(&self) -> String {
        let status = self.status();
        let (code, what) = match self {
            Self::ConnectNotConfigured => ("connect_not_configured", "CONNECT is not configured here".into()),
            Self::Refused(refusal) => (refusal.code(), refusal.to_string()),
            Self::NoRoute { no_route, host, namespace } => {
                let hint = match no_route {
                    NoRoute::NoRule(_) => "",
                    _ => "; `meshring explain` shows what was looked for",
                };
                ("no_route", format!("host {host:?}, asked from namespace {namespace}: {no_route}{hint}"))
            }
            Self::NoEndpoint(why) => ("no_endpoint", why.clone()),
            Self::ConnectFailed { address, error } => ("connect_failed", format!("{address}: {error}")),
            Self::TlsFailed { address, error } => (error.code(), format!("{address}: {error}")),
            Self::TlsRequired { is_gateway: true } => ("tls_required", "this port takes TLS only".into()),
            Self::TlsRequired { is_gateway: false } => {
                ("tls_required", "this workload takes mutual TLS only (PeerAuthentication mode STRICT)".into())
            }
            Self::BadBody(bad) => (bad.code(), bad.to_string()),
            Self::Overload(what) => ("overload", (*what).into()),
            Self::Exhausted { code, error } => {
                (*code, format!("this proxy cannot open an upstream connection: {error}"))
            }
            Self::Upstream { what, .. } => ("upstream", what.clone()),
        };
        format!("meshring: {} ({code}): {what}\n", reason(status))
    }
}

/// A path that no server reads in one way only: as for every other malformed request, nothing of it goes anywhere.
async fn refuse_path(
    worker: &Worker,
    conn: &mut Conn,
    input: &mut Input,
    head: &RequestHead,
    record: &Record<'_>,
    refusal: Refusal,
) -> After {
    worker.stats.add(Counter::RequestsRefused, 1);
    worker.log_refusal(refusal.code(), conn.peer(), &refusal);
    let head = RequestHead { keep_alive: false, ..*head };
    deny(worker, conn, input, &head, record, Denial::Refused(refusal)).await
}

/// A response of our own to a request whose head is still in the input.
async fn answer(
    worker: &Worker,
    conn: &mut Conn,
    input: &mut Input,
    head: &RequestHead,
    record: &Record<'_>,
    response: &Response<'_>,
    edits: &impl HeaderEdits,
) -> After {
    record.status(response.status);
    let after = local::answer(worker, conn, input, head, response, edits).await;
    record.complete();
    after
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
    denial.observe(worker, conn);
    let (status, text) = (denial.status(), denial.text());
    let extra: &[u8] = match denial {
        // RFC 9110 section 15.5.6 asks for the field.
        Denial::ConnectNotConfigured => b"allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE\r\n",
        _ => b"",
    };
    let response = Response { status, content_type: "text/plain", body: text.as_bytes(), extra };
    answer(worker, conn, input, head, record, &response, &NoEdits).await
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
