//! The life of a request, in order: parse, route, policy, balance, upstream, respond, observe.

mod attempt;
mod authorize;
mod connect;
mod debug;
mod denial;
mod ext_authz;
mod grpc;
mod lease;
pub(crate) mod parked;
mod plan;
pub(crate) mod stream;
pub(crate) mod tunnel;

use std::{
    net::{IpAddr, Ipv4Addr},
    rc::Rc,
};

use meshring_core::{
    clock::monotonic_ns,
    http::{
        detect::may_be_http,
        error::Refusal,
        fields::Fields,
        forwarding::{self, ClientCertificate, Hop},
        head::Method,
        http2,
        path::without_parameters,
        request::RequestHead,
        serialize::{self, ConnectionOption, NoEdits, RequestOut},
        status::reason,
    },
    limits::REQUESTS_IN_A_ROW_MAX,
    stats::Counter,
    table::{
        model::{ArchivedClusterKind, ForwardClientCertificate, PathNormalization, Settings},
        security::MtlsMode,
    },
};

use self::{
    attempt::{Sending, forward},
    authorize::{Changes, Passed, Source, authorize},
    debug::{debug_generation, debug_lines},
    denial::{Denial, answer, deny, deny_late, refuse_path},
    grpc::Call,
    parked::Parked,
    plan::{Plan, Target, meant_port, request_address},
    stream::Carries,
    tunnel::Tunnel,
};
use crate::{
    accept::{Direction, Listener, refuse_tls},
    observe::Record,
    parse::{self, Begin, Next, PartialHead},
    policy::{self, Edits, Rewritten},
    respond::{
        body::BadBody,
        last_hop,
        local::{self, Response},
    },
    route::{self, Decision, Request},
    worker::{
        Worker,
        buffers::{Buffer, Held, Input},
        conn::Conn,
        generation::Pinned,
        join::yield_now,
        secure::peer::Peer,
    },
};

/// How a run of requests on one connection ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The client is silent: wait for it without a buffer.
    Idle,
    /// The client is silent in the middle of a head: likewise.
    Partial(PartialHead),
    /// There are no more requests: what comes belongs to a tunnel.
    Tunnel(Box<Tunnel>),
    /// Of a stream: its response does not come.
    Parked(Box<Parked>),
    /// The connection is done.
    Closed,
    /// The client speaks HTTP/2: what it has sent so far.
    Http2(Held),
    /// The client speaks something else, on a port of which nobody says what it speaks: likewise.
    Bytes(Held),
}

/// What becomes of a connection after a request.
#[derive(Debug)]
enum After {
    /// It can go on with the next one.
    KeepAlive,
    /// It has become a tunnel.
    Tunnel(Box<Tunnel>),
    /// It is a stream, whose response does not come.
    Parked(Box<Parked>),
    /// It is to be closed.
    Close,
}

impl After {
    /// What is counted of the request ends here, or waits with it.
    fn with(mut self, record: Record<'_>) -> Self {
        if let Self::Parked(parked) = &mut self {
            parked.keep(record);
        }
        self
    }
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
        let is_mesh_peer = listener.direction != Direction::Outbound
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

/// Serves requests on a connection until it is idle or done. `is_fresh`: nothing was understood on it so far.
pub(crate) async fn serve(
    worker: &Rc<Worker>,
    conn: &mut Conn,
    listener: &Listener,
    mut begin: Begin,
    is_fresh: &mut bool,
) -> End {
    let mut input = Input::new(worker.buffers.lazy());
    let mut scratch = worker.take_scratch();
    let client = Client::of(conn, listener);
    let bounds = listener.direction.request_bounds();
    let mut served: u32 = 0;
    let end = loop {
        let begin = std::mem::take(&mut begin);
        let may_be_other = *is_fresh;
        // Asked only of what is no whole request.
        let is_other = |conn: &Conn, bytes: &[u8]| {
            may_be_other && !may_be_http(bytes) && stream::carries(worker, conn, listener) == Carries::Unknown
        };
        match parse::request_head(worker, conn, &mut input, &mut scratch.request, begin, bounds, is_other).await {
            Next::Request(head) => {
                *is_fresh = false;
                match exchange(worker, conn, listener, client, &mut input, &mut scratch, &head).await {
                    After::KeepAlive if conn.stream().is_some() => break End::Closed,
                    After::KeepAlive => {}
                    After::Tunnel(tunnel) => break End::Tunnel(tunnel),
                    After::Parked(parked) => break End::Parked(parked),
                    After::Close => break End::Closed,
                }
                served = served.wrapping_add(1);
                if served.is_multiple_of(REQUESTS_IN_A_ROW_MAX) {
                    yield_now().await;
                }
            }
            Next::Idle => break End::Idle,
            Next::Partial(partial) => break End::Partial(partial),
            Next::Closed => break End::Closed,
            // RFC 9113 section 3.4: only a connection's first bytes are its preface.
            Next::Refused(_) if *is_fresh && conn.stream().is_none() && http2::begins_preface(input.unread()) => {
                break End::Http2(worker.buffers.hold(input.unread()));
            }
            Next::Other => break End::Bytes(worker.buffers.hold(input.unread())),
            Next::Tls => {
                input.clear();
                input.release();
                refuse_tls(worker, conn, listener).await;
                break End::Closed;
            }
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

/// Goes on with a stream's request, of which its upstream has said something.
pub(crate) async fn resume(conn: &mut Conn, parked: Box<Parked>) -> End {
    match parked::resume(conn, parked).await {
        After::Tunnel(tunnel) => End::Tunnel(tunnel),
        After::Parked(parked) => End::Parked(parked),
        After::KeepAlive | After::Close => End::Closed,
    }
}

/// Answers a stream whose request is none.
pub(crate) async fn refuse_stream(worker: &Worker, conn: &mut Conn, refusal: Refusal) {
    worker.stats.add(Counter::RequestsRefused, 1);
    refuse(worker, conn, refusal.status(), refusal.code(), &refusal).await;
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
    worker.log_refused(code, conn, what);
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
    let arrived_ns = conn.stream().and_then(|stream| stream.take_arrival()).unwrap_or_else(monotonic_ns);
    let record = Record::start(&worker.stats, arrived_ns);
    if let Some(slot) = conn.secured_peer().and_then(|peer| peer.slot) {
        record.source(slot);
    }
    let call = Call::of(&input.unread()[..head.len], &scratch.request);
    if call.is_grpc() {
        record.call();
    }
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
    let is_connect = head.method == Method::Connect;
    if is_connect && !connect::is_allowed(worker, &pinned, listener, head.port)
        || !is_connect && listener.direction == Direction::Hbone
    {
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
    if is_connect {
        let last = RequestHead { keep_alive: false, ..*head };
        let peer = conn.secured_peer().map(|peer| &**peer);
        let source = Source { address: client.address, peer };
        return match connect::target(worker, &pinned, listener, &request, source) {
            Ok(target) => connect::open(worker, conn, input, head, &record, &pinned, &target).await,
            Err(denial) => deny(worker, conn, input, &last, &record, denial).await,
        };
    }
    let is_trusted = client.is_trusted(worker, settings);
    // Mutual TLS between sidecars is the mesh's business, not the request's.
    let came_over_tls = conn.secured_peer().is_some() && listener.direction == Direction::Outbound;
    let is_https = forwarding::is_https(bytes, head, fields, came_over_tls, is_trusted);
    let request = Request { is_https, ..request };
    // Files and lines of the configuration are for those on this side, not for whoever stands behind a trusted hop.
    let is_debugged = is_trusted && client.is_local_application;
    let hop = |is_host_rewritten| {
        let has_id = forwarding::kept_request_id(bytes, fields, is_trusted).is_some();
        Hop {
            peer: client.address,
            is_https: came_over_tls,
            port: listener.address.port(),
            is_trusted,
            new_request_id: (settings.request_id && !has_id).then(|| worker.request_ids.next()),
            is_host_rewritten,
            via: conn.read.via(),
        }
    };
    if is_misdirected(&pinned, listener, conn, &request) {
        let last = RequestHead { keep_alive: false, ..*head };
        return deny(worker, conn, input, &last, &record, Denial::Misdirected).await;
    }
    let is_guarded = is_guarded(&pinned, listener);
    let passed = if is_guarded {
        let source = Source { address: client.address, peer: conn.secured_peer().map(|peer| &**peer) };
        match authorize(worker, &pinned, listener, &request, source).await {
            Ok(passed) => passed,
            Err(denial) => return deny(worker, conn, input, head, &record, denial).await,
        }
    } else {
        Passed::default()
    };
    if head.max_forwards == Some(0) {
        let response = last_hop::answer(&request, &mut texts.lines);
        return answer(worker, conn, input, head, &record, &response, &NoEdits).await;
    }
    if call.is_late() {
        record.due(Some(record.started_ms()));
        return deny(worker, conn, input, head, &record, Denial::Late).await;
    }
    let certificate = client_certificate(&pinned, listener, is_guarded, conn);
    // Declared before, and not made of what the branches say: both are large.
    let (plan, out);
    if listener.direction != Direction::Outbound {
        let target = Target::Application { endpoint: listener.application(worker), shared: listener.cluster(worker) };
        let extra = passed.to_client.clone();
        let timeout_ms = call.timeout_ms(0);
        plan = Plan { target, response_edits: Edits::default(), timeout_ms, extra };
        let rewritten = Rewritten { path: request.replaced_path(), authority: None };
        let edits = passed.edits(&pinned, Edits::default(), call.left_ms(timeout_ms, &record));
        let how = Outgoing { edits: &edits, query: passed.query.as_deref(), certificate };
        out = serialized(worker, &request, &how, &rewritten, &hop(false), &mut texts.lines);
    } else {
        let asked_port = head.port.or_else(|| meant_port(conn, listener));
        match route::decide(&pinned, &request, asked_port, &worker.random) {
            Ok(Decision::Forward(chosen)) => {
                let edits = Edits::of_request(&chosen);
                let rewritten = match policy::rewrite(&pinned, &request, &chosen, &edits, &mut texts.rewritten) {
                    Ok(rewritten) => rewritten,
                    Err(refusal) => return refuse_path(worker, conn, input, head, &record, refusal).await,
                };
                let mut extra = if is_debugged { debug_lines(&request, &pinned, &chosen) } else { Vec::new() };
                extra.extend_from_slice(&passed.to_client);
                let cluster = pinned.cluster(chosen.cluster(), &worker.clusters, &worker.endpoints);
                // Others have endpoints, and nobody asks whether a name is an address.
                let is_literal =
                    pinned.table().cluster(chosen.cluster()).kind == ArchivedClusterKind::OriginalDestination;
                let literal = if is_literal { request_address(&request) } else { None };
                plan = Plan {
                    target: Target::Cluster { chosen, cluster, literal },
                    response_edits: Edits::of_response(&chosen),
                    timeout_ms: call.timeout_ms(chosen.rule.timeout_ms.to_native()),
                    extra,
                };
                let hop = hop(rewritten.authority.is_some());
                let edits = passed.edits(&pinned, edits, call.left_ms(plan.timeout_ms, &record));
                let how = Outgoing { edits: &edits, query: passed.query.as_deref(), certificate };
                out = serialized(worker, &request, &how, &rewritten, &hop, &mut texts.lines);
            }
            Ok(Decision::Redirect { rule, redirect, service_port }) => {
                let request_port = asked_port.or(is_guarded.then_some(listener.address.port())).or(service_port);
                let location = policy::location(&request, redirect, request_port);
                let mut extra = Vec::new();
                serialize::field(&mut extra, b"location", &location);
                if is_debugged {
                    extra.extend(debug_generation(&request, &pinned));
                }
                let status = redirect.status.to_native();
                let response = Response { status, content_type: "", body: b"", extra: &extra };
                return answer(worker, conn, input, head, &record, &response, &Edits::of_local_response(rule)).await;
            }
            Ok(Decision::Direct(rule, direct)) => {
                let status = direct.status.to_native();
                let extra = if is_debugged { debug_generation(&request, &pinned) } else { Vec::new() };
                let response = Response { status, content_type: "text/plain", body: &direct.body, extra: &extra };
                return answer(worker, conn, input, head, &record, &response, &Edits::of_local_response(rule)).await;
            }
            Err(no_route) => {
                let host = String::from_utf8_lossy(request.text(head.authority_full)).into_owned();
                let denial = Denial::NoRoute { no_route, host, namespace: pinned.viewpoint().namespace.clone() };
                return deny(worker, conn, input, head, &record, denial).await;
            }
        }
    }
    let mut sending = match Sending::new(worker, conn, input, head, &record, plan.timeout_ms, out) {
        Ok(sending) => sending,
        Err(bad) => return deny_late(worker, conn, input, head, &record, Denial::BadBody(bad)).await,
    };
    let after = forward(worker, conn, input, response_fields, &record, &pinned, &plan, &mut sending).await;
    after.with(record)
}

/// Whether plain requests are refused, and if so, because this is a gateway.
fn requires_tls(pinned: &Pinned, listener: &Listener) -> Option<bool> {
    let policy = pinned.table().inbound_policy(pinned.viewpoint());
    match listener.direction {
        Direction::Hbone => Some(false),
        Direction::Inbound { application } => {
            (policy?.mtls_on(application.port()) == MtlsMode::Strict).then_some(false)
        }
        Direction::Outbound => policy?.has_gateway(listener.address.port()).then_some(true),
    }
}

/// Whether a gateway's client asks for a host for which other rules of TLS hold than for the server name of its handshake: it
/// might have been asked for a certificate then (RFC 9110 section 7.4).
fn is_misdirected(pinned: &Pinned, listener: &Listener, conn: &Conn, request: &Request<'_>) -> bool {
    let (Direction::Outbound, Some(peer)) = (listener.direction, conn.secured_peer()) else { return false };
    let host = request.text(request.head.authority);
    // Nearly every request is for the host that the handshake was for.
    let is_named = peer.sni.as_ref().is_some_and(|name| name.as_bytes() == host);
    if is_named && peer.fits.get() == Some(pinned.number()) {
        return false;
    }
    let is_misdirected = is_held_to_other_terms(pinned, listener, peer, host);
    if is_named && !is_misdirected {
        peer.fits.set(Some(pinned.number()));
    }
    is_misdirected
}

fn is_held_to_other_terms(pinned: &Pinned, listener: &Listener, peer: &Peer, host: &[u8]) -> bool {
    let policy = pinned.table().inbound_policy(pinned.viewpoint());
    let gateway = |name: Option<&str>| policy.and_then(|policy| policy.gateway(listener.address.port(), name));
    let Ok(host) = std::str::from_utf8(host) else { return true };
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    match (gateway(peer.sni.as_deref()), gateway(Some(&host))) {
        // Also where the settings have changed since.
        (Some(by_name), Some(by_host)) => !std::ptr::eq(by_name, by_host) || Some(by_name.terms()) != peer.terms,
        // A gateway serves the hosts of its servers, and nothing else of the mesh.
        _ => true,
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
    Ok(Request { bytes, head, fields, path, rule_path, level, is_https: head.https })
}

/// What changes on a request's head beside its target.
struct Outgoing<'a> {
    edits: &'a Changes<'a>,
    /// Replaces the query.
    query: Option<&'a [u8]>,
    /// What it says of the client's certificate.
    certificate: ClientCertificate<'a>,
}

/// What the next one is told of the client's certificate: by a sidecar as Istio has it, by a gateway as the mesh wants it. Of what
/// the application beside us sends nothing is passed on.
fn client_certificate<'c>(
    pinned: &Pinned,
    listener: &Listener,
    is_guarded: bool,
    conn: &'c Conn,
) -> ClientCertificate<'c> {
    let element = conn.secured_peer().and_then(|peer| peer.element.as_deref());
    if listener.direction != Direction::Outbound {
        return element.map_or(ClientCertificate::Removed, ClientCertificate::Appended);
    }
    if !is_guarded {
        return ClientCertificate::Removed;
    }
    match (pinned.table().settings().gateway_client_certificate, element) {
        (ForwardClientCertificate::AlwaysForwardOnly, _) => ClientCertificate::Received,
        (ForwardClientCertificate::Sanitize, _) | (_, None) => ClientCertificate::Removed,
        (ForwardClientCertificate::ForwardOnly, Some(_)) => ClientCertificate::Received,
        (ForwardClientCertificate::AppendForward, Some(element)) => ClientCertificate::Appended(element),
        (ForwardClientCertificate::SanitizeSet, Some(element)) => ClientCertificate::Set(element),
    }
}

/// Whether policies for those who come to this workload apply: its own listeners, and those of a gateway.
fn is_guarded(pinned: &Pinned, listener: &Listener) -> bool {
    let Some(policy) = pinned.table().inbound_policy(pinned.viewpoint()) else { return false };
    match listener.direction {
        Direction::Inbound { .. } | Direction::Hbone => true,
        Direction::Outbound => policy.guards(listener.address.port()),
    }
}

/// The request as it goes upstream, in a buffer of the pool.
fn serialized(
    worker: &Worker,
    request: &Request<'_>,
    outgoing: &Outgoing<'_>,
    rewritten: &Rewritten<'_>,
    hop: &Hop,
    lines: &mut Vec<u8>,
) -> Buffer {
    let Outgoing { edits, query, certificate } = *outgoing;
    let Request { bytes, head, fields, .. } = *request;
    lines.clear();
    let mut drop = forwarding::request_lines(lines, bytes, head, fields, hop, edits);
    drop = drop.union(forwarding::client_certificate_line(lines, bytes, fields, certificate, edits));
    let mut out = worker.buffers.take();
    let how = RequestOut {
        path: rewritten.path.map(|path| [path, b""]),
        query,
        authority: rewritten.authority,
        connection: match head.is_websocket(bytes) {
            true => ConnectionOption::Upgrade,
            false => ConnectionOption::Implied,
        },
        via: hop.via,
        drop,
        extra: lines,
        ..RequestOut::new(head, edits)
    };
    serialize::request_head(&mut out, request.bytes, request.head, request.fields, &how);
    out
}
