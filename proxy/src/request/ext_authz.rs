//! Asking an external authorizer over HTTP (AuthorizationPolicy `action: CUSTOM`, MeshConfig
//! `extensionProviders[].envoyExtAuthzHttp`).
//!
//! The check has the request's method, path and chosen fields, and no body. 200 lets the request pass; another status below 500 is
//! the client's answer; a failure is what the provider's `failOpen` says.

use std::{io, rc::Rc};

use meshring_core::{
    http::{
        body::BodyDecoder,
        chunked::Event,
        error::BadResponse,
        fields::{Field, Fields},
        head::Bounds,
        response::{self, ResponseHead},
        serialize,
    },
    id::ClusterId,
    limits::{ATTEMPTS_MAX, EXT_AUTHZ_BODY_BYTES_MAX, EXT_AUTHZ_MS_MAX},
    table::{access::ArchivedExtAuthz, lookup::RequestView as _},
};

use super::{
    attempt::NotSecured,
    lease::{self, Http2, Unleased},
};
use crate::{
    respond::body::HEAD_READ_BYTES_MAX,
    route::Request,
    upstream::{Lease, Reuse, Seen},
    worker::{
        Worker,
        buffers::{Buffer, Input},
        deadlines::{Expiry, now_ms},
        generation::Pinned,
    },
};

/// Fields, names in lower case.
pub(super) type Lines = Vec<(Vec<u8>, Vec<u8>)>;

/// What the authorizer says.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The request may pass.
    Allow {
        /// Fields that replace those of the request.
        to_upstream: Lines,
        /// Ready lines for the response.
        to_client: Vec<u8>,
    },
    /// This is the client's answer.
    Deny { status: u16, lines: Vec<u8>, body: Vec<u8> },
    /// It could not be asked, and `failOpen` is not set.
    Failed { status: u16, why: String },
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("it has no endpoint")]
    NoEndpoint,
    #[error("no connection: {0}")]
    Connect(io::Error),
    #[error(transparent)]
    Tls(NotSecured),
    #[error("it did not answer in time")]
    TimedOut,
    #[error("it closed the connection without an answer")]
    NoAnswer,
    #[error("its answer is malformed: {0}")]
    Malformed(#[from] BadResponse),
    #[error("its answer is cut")]
    Cut,
    #[error("it answered {0}")]
    Status(u16),
}

/// Asks.
pub(super) async fn ask(
    worker: &Rc<Worker>,
    pinned: &Pinned,
    request: &Request<'_>,
    authorizer: &ArchivedExtAuthz,
) -> Verdict {
    match answer(worker, pinned, request, authorizer).await {
        Ok(verdict) => verdict,
        Err(failure) => {
            let why = format!("{}: {failure}", authorizer.name);
            if authorizer.fail_open {
                worker.log_refusal("ext_authz_failed_open", None, &why);
                return Verdict::Allow { to_upstream: Vec::new(), to_client: Vec::new() };
            }
            Verdict::Failed { status: authorizer.status_on_error.to_native(), why }
        }
    }
}

async fn answer(
    worker: &Rc<Worker>,
    pinned: &Pinned,
    request: &Request<'_>,
    authorizer: &ArchivedExtAuthz,
) -> Result<Verdict, Failure> {
    let timeout_ms = u64::from(authorizer.timeout_ms.to_native()).clamp(1, EXT_AUTHZ_MS_MAX);
    let ends_at_ms = now_ms() + timeout_ms;
    let cluster = pinned.cluster(ClusterId::from(&authorizer.cluster), &worker.clusters, &worker.endpoints);
    let mut tried = None;
    let mut reuse = Reuse::Any;
    let mut last = Failure::NoEndpoint;
    for attempt in 1..=ATTEMPTS_MAX {
        let table = pinned.table();
        let chosen = cluster.choose(table, &worker.endpoints, &worker.random, now_ms(), tried.as_ref());
        let Some(endpoint) = chosen else { return Err(last) };
        let left_ms = ends_at_ms.saturating_sub(now_ms());
        if left_ms == 0 {
            return Err(Failure::TimedOut);
        }
        // The last one is not sent again.
        let which = if attempt == ATTEMPTS_MAX { reuse.once() } else { reuse };
        let lease = match lease::lease(worker, &endpoint, cluster.shared.slot, Http2::No, which, left_ms).await {
            Ok(lease) => lease,
            Err(unleased) => {
                last = match unleased {
                    Unleased::Connect(error) => Failure::Connect(error),
                    Unleased::Secure(error) => {
                        endpoint.avoid();
                        Failure::Tls(error)
                    }
                };
                tried = Some(endpoint);
                continue;
            }
        };
        let was_reused = lease.reused;
        match exchange(worker, lease, request, authorizer, ends_at_ms).await {
            // A check changes nothing: it may be asked again where a pooled connection has turned out closed.
            Err(Failure::NoAnswer) if was_reused => {
                last = Failure::NoAnswer;
                reuse = Reuse::Never;
            }
            result => return result,
        }
    }
    Err(last)
}

/// The check as it goes out.
fn check(out: &mut Buffer, request: &Request<'_>, authorizer: &ArchivedExtAuthz) {
    out.extend_from_slice(request.method());
    out.push(b' ');
    out.extend_from_slice(authorizer.path_prefix.as_bytes());
    out.extend_from_slice(request.path);
    if let Some(query) = request.query() {
        out.push(b'?');
        out.extend_from_slice(query);
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    // As the client has named it: rules of an authorizer are about that host.
    serialize::field(out, b"host", request.authority());
    serialize::field(out, b"content-length", b"0");
    let ours = |name: &[u8]| {
        [&b"host"[..], b"content-length", b"connection"].iter().any(|known| name.eq_ignore_ascii_case(known))
            || authorizer.additional_headers.iter().any(|pair| name.eq_ignore_ascii_case(pair.0.as_bytes()))
    };
    for (index, field) in request.fields.iter().enumerate() {
        let name = field.name.of(request.bytes);
        if !request.fields.is_hop_by_hop(index) && !ours(name) && is_listed(&authorizer.request_headers, name) {
            serialize::field(out, name, field.value.of(request.bytes));
        }
    }
    for pair in authorizer.additional_headers.iter() {
        serialize::field(out, pair.0.as_bytes(), pair.1.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// Whether a list of names, of which some end with `*`, has this one.
fn is_listed(list: &[impl AsRef<str>], name: &[u8]) -> bool {
    list.iter().any(|entry| match entry.as_ref().as_bytes().split_last() {
        Some((b'*', prefix)) => name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix)),
        _ => name.eq_ignore_ascii_case(entry.as_ref().as_bytes()),
    })
}

async fn exchange(
    worker: &Worker,
    mut lease: Lease,
    request: &Request<'_>,
    authorizer: &ArchivedExtAuthz,
    ends_at_ms: u64,
) -> Result<Verdict, Failure> {
    let mut out = worker.buffers.take();
    check(&mut out, request, authorizer);
    let mut input = Input::new(worker.buffers.lazy());
    let mut fields = Fields::new();
    lease.conn.timer.set(ends_at_ms, Expiry::ShutdownBoth);
    let bounds = Bounds::FIRST_HOP;
    let bytes_max = bounds.head_bytes + 1;
    let mut read = lease.conn.ask(&mut out, false, &mut input, (HEAD_READ_BYTES_MAX, bytes_max), None).await;
    let method = request.head.method;
    let head = loop {
        if !matches!(read, Ok(count) if count > 0) {
            return Err(match (lease.conn.timer.take_expired(), input.is_empty()) {
                (true, _) => Failure::TimedOut,
                (false, true) => Failure::NoAnswer,
                (false, false) => Failure::Cut,
            });
        }
        match response::parse(input.unread(), &mut fields, method, bounds)? {
            Some(head) if head.is_interim() => {
                input.consume(head.len);
                read = if input.is_empty() { lease.conn.read_more(&mut input, bytes_max).await } else { Ok(1) };
            }
            Some(head) => break head,
            None => read = lease.conn.read_more(&mut input, bytes_max).await,
        }
    };
    let verdict = verdict(&head, input.unread(), &fields, authorizer)?;
    input.consume(head.len);
    let mut body = Vec::new();
    let mut decoder = BodyDecoder::new(head.framing);
    let is_whole = read_body(&mut lease, &mut input, &mut decoder, &mut body, bytes_max).await;
    if is_whole && head.keep_alive && input.is_empty() && decoder.is_done() && !worker.draining() {
        lease.give_back(now_ms(), head.keep_alive_timeout_s, Seen::Nothing);
    }
    Ok(match verdict {
        Verdict::Deny { status, lines, .. } => {
            // What is cut or too long is left out: the status says enough.
            Verdict::Deny { status, lines, body: if is_whole { body } else { Vec::new() } }
        }
        verdict => verdict,
    })
}

/// Reads the body of an answer, as far as it is kept. False: it is cut, malformed or longer than what is kept.
async fn read_body(
    lease: &mut Lease,
    input: &mut Input,
    decoder: &mut BodyDecoder,
    body: &mut Vec<u8>,
    bytes_max: usize,
) -> bool {
    while !decoder.is_done() {
        let unread = input.unread();
        let Ok(step) = decoder.decode(unread) else { return false };
        match step.event {
            Event::Data(range) => {
                if body.len() + range.len() > EXT_AUTHZ_BODY_BYTES_MAX {
                    return false;
                }
                body.extend_from_slice(&unread[range]);
            }
            Event::NeedInput if step.consumed == 0 => match lease.conn.read_more(input, bytes_max).await {
                Ok(0) | Err(_) => return matches!(decoder, BodyDecoder::UntilClose) && !lease.conn.read.is_truncated(),
                Ok(_) => {}
            },
            Event::NeedInput | Event::Trailer { .. } | Event::End => {}
        }
        input.consume(step.consumed);
    }
    true
}

fn verdict(
    head: &ResponseHead,
    bytes: &[u8],
    fields: &Fields,
    authorizer: &ArchivedExtAuthz,
) -> Result<Verdict, Failure> {
    let chosen = |is_chosen: &dyn Fn(&[u8]) -> bool| -> Vec<&Field> {
        let end_to_end = fields.iter().enumerate().filter(|(index, _)| !fields.is_hop_by_hop(*index));
        end_to_end.map(|(_, field)| field).filter(|field| is_chosen(field.name.of(bytes))).collect()
    };
    let lines = |fields: Vec<&Field>| {
        let mut lines = Vec::new();
        fields.iter().for_each(|field| serialize::field(&mut lines, field.name.of(bytes), field.value.of(bytes)));
        lines
    };
    // Framing and Date of the answer are ours to make.
    let is_ours = |name: &[u8]| {
        [&b"content-length"[..], b"transfer-encoding", b"date", b"host", b"trailer", b"via"]
            .iter()
            .any(|ours| name.eq_ignore_ascii_case(ours))
    };
    match head.status {
        200 => {
            let upstream = chosen(&|name| !is_ours(name) && is_listed(&authorizer.headers_to_upstream, name));
            let to_upstream = upstream
                .into_iter()
                .map(|field| (field.name.of(bytes).to_ascii_lowercase(), field.value.of(bytes).to_vec()))
                .collect();
            let client = chosen(&|name| !is_ours(name) && is_listed(&authorizer.headers_to_downstream, name));
            Ok(Verdict::Allow { to_upstream, to_client: lines(client) })
        }
        status @ 500.. => Err(Failure::Status(status)),
        status => {
            let list = &authorizer.headers_on_deny;
            let always = |name: &[u8]| {
                [&b"www-authenticate"[..], b"location", b"content-type"].iter().any(|n| name.eq_ignore_ascii_case(n))
            };
            let denied = chosen(&|name| !is_ours(name) && (list.is_empty() || always(name) || is_listed(list, name)));
            // An interim or switching status is no answer to a check.
            let status = if status < 200 { 403 } else { status };
            Ok(Verdict::Deny { status, lines: lines(denied), body: Vec::new() })
        }
    }
}
