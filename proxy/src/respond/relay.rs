//! An upstream's response on its way to the client.

use std::{cell::Cell, fmt, io};

use meshring_core::{
    http::{
        error::BadResponse,
        fields::Fields,
        head::{BodyFraming, Bounds, Method, Span, Version},
        request::WEBSOCKET,
        response::{self, ResponseHead},
        serialize::{self, ConnectionOption, ResponseOut},
        status::framing_for,
    },
    stats::{Counter, GrpcStatus},
};

use super::body::{BadBody, Body, BodyError, GRPC_STATUS, HEAD_READ_BYTES_MAX, Passed, Patience, Side, relay_body};
use crate::{
    observe::Record,
    policy::Edits,
    upstream::Seen,
    worker::{
        Places, Worker,
        buffers::{Buffer, Input, Kept},
        conn::{ReadHalf, WriteHalf, write_all},
        deadlines::Expiry,
        http2::Flaw,
    },
};

/// Why there is no (whole) response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The upstream closed or reset before the first byte of its response.
    #[error("the upstream closed the connection before it sent a response")]
    NoResponse,
    /// The upstream closed or reset within the response head.
    #[error("the upstream closed the connection in the middle of the response head")]
    CutHead,
    /// The deadline passed before the response head was complete.
    #[error("the upstream did not respond in time")]
    Timeout,
    /// The response head violates HTTP.
    #[error("the upstream's response is malformed: {0}")]
    Malformed(#[from] BadResponse),
    /// What has come over HTTP/2 instead of a response, or of the rest of its head, violates HTTP.
    #[error("the upstream's response is malformed: {0}")]
    Http2(Flaw),
    /// After the head had been sent on, as [`Broken`](Self::Broken).
    #[error("in mid-response: the upstream's body is malformed: {0}")]
    BrokenHttp2(Flaw),
    /// 101 without a request for it, or to another protocol (RFC 9110 section 15.2.2).
    #[error("the upstream switched protocols without being asked to")]
    UnsolicitedUpgrade,
    /// The client's own request body is to blame; the upstream was cut off before it said anything.
    #[error("{0}")]
    ClientBody(BadBody),
    /// As [`ClientBody`](Self::ClientBody), with the response already on its way.
    #[error("in mid-response: {0}")]
    ClientBodyLate(BadBody),
    /// After the head had been sent on: nothing can be said to the client any more but an abrupt end.
    #[error("in mid-response: {}", Cause(.0))]
    Broken(BodyError),
    /// The client went away.
    #[error("the client closed the connection: {0}")]
    Client(io::Error),
}

/// Why an upstream's body is broken; [`BodyError`] has words for a client's.
struct Cause<'a>(&'a BodyError);

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            BodyError::Bad(BadBody::Malformed(error)) => write!(f, "the upstream's body is malformed: {error}"),
            BodyError::Bad(BadBody::TooSlow) => f.write_str("the upstream's body did not arrive in time"),
            error => error.fmt(f),
        }
    }
}

impl Failure {
    /// Names the reason where a stream of HTTP/2 tells one, which looks like the end of a connection.
    pub(crate) fn because_of(self, flaw: Option<Flaw>) -> Self {
        match (self, flaw) {
            (Self::NoResponse | Self::CutHead, Some(flaw)) => Self::Http2(flaw),
            (Self::Broken(BodyError::Read(_)), Some(flaw)) => Self::BrokenHttp2(flaw),
            (failure, _) => failure,
        }
    }

    /// A stable short name for the log and for the text of an answer.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::NoResponse => "upstream.no_response",
            Self::CutHead => "upstream.cut_head",
            Self::Timeout => "upstream.timeout",
            Self::Malformed(bad) => bad.code(),
            Self::Http2(flaw) | Self::BrokenHttp2(flaw) => flaw.code(),
            Self::UnsolicitedUpgrade => "upstream_http1.unsolicited_upgrade",
            Self::Broken(BodyError::Bad(BadBody::Malformed(error))) => error.upstream_code(),
            Self::Broken(BodyError::Bad(BadBody::TooLarge)) => "upstream.body_too_large",
            Self::Broken(BodyError::Bad(BadBody::TooSlow)) => "upstream.body_timeout",
            Self::Broken(BodyError::Read(error)) => match error.kind() {
                io::ErrorKind::TimedOut => "upstream.body_timeout",
                io::ErrorKind::UnexpectedEof => "upstream.truncated_body",
                _ => "upstream.reset",
            },
            Self::Broken(BodyError::Write(_)) | Self::Client(_) => "client_gone",
            Self::ClientBody(bad) | Self::ClientBodyLate(bad) => bad.code(),
        }
    }
}

/// A response that went through.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Relayed {
    /// It was a 101 that the client had asked for: from here on the connections are a tunnel.
    pub(crate) is_switched: bool,
    /// The upstream connection can carry another request.
    pub(crate) upstream_reusable: bool,
    /// What it has shown of its server.
    pub(crate) upstream_seen: Seen,
    /// The client's connection can carry another request.
    pub(crate) downstream_keep: bool,
    /// How long the upstream keeps an idle connection, where it says so, in seconds.
    pub(crate) keep_alive_timeout_s: Option<u32>,
}

/// What the relay of a response has to know of the request.
pub(crate) struct Exchange<'a> {
    pub(crate) worker: &'a Worker,
    pub(crate) record: &'a Record<'a>,
    pub(crate) method: Method,
    pub(crate) version: Version,
    pub(crate) keep_alive: bool,
    /// Whether it asks for a WebSocket.
    pub(crate) is_websocket: bool,
    pub(crate) edits: Edits<'a>,
    /// Ready lines to add.
    pub(crate) extra: &'a [u8],
    /// See [`Patience::total_at_ms`].
    pub(crate) total_at_ms: Option<u64>,
    /// See [`Patience::silence_ms_max`].
    pub(crate) silence_ms_max: u64,
    /// When the head of the final response must be there.
    pub(crate) head_at_ms: Cell<u64>,
    /// Whether that head is still to come.
    pub(crate) awaits_head: Cell<bool>,
    /// Whether the client was told to continue, or has not asked.
    pub(crate) continued: &'a Cell<bool>,
    /// How large the upstream's heads may be.
    pub(crate) bounds: Bounds,
    /// Whether the request body is still on its way.
    pub(crate) uploading: &'a Cell<bool>,
    /// See [`Patience::hot`].
    pub(crate) hot: Option<&'a Places>,
}

/// How far a response has come.
pub(crate) enum Progress {
    Done(Relayed),
    /// Its client takes no more for now; what was to be written next is in `out`.
    Stalled(Box<Relaying>),
}

/// A response of which the head has been written.
#[derive(Debug)]
pub(crate) struct Relaying {
    body: Body,
    /// What of it was to be written next, while it is put aside.
    pub(crate) rest: Option<Kept>,
    /// The upstream connection can carry another request behind it.
    is_reusable: bool,
    seen: Seen,
    downstream_keep: bool,
    keep_alive_timeout_s: Option<u32>,
}

/// Relays interim responses, then the final one. `input` may hold its first bytes.
pub(crate) async fn relay_response(
    exchange: &Exchange<'_>,
    fields: &mut Fields,
    input: &mut Input,
    mut from: Side<'_, ReadHalf>,
    to: Side<'_, WriteHalf>,
    out: &mut Buffer,
) -> Result<Progress, Failure> {
    let (mut begun, mut continued) = (false, false);
    loop {
        let head = match response_head(exchange, fields, input, &mut from).await {
            Ok(head) => head,
            // The upstream has the request: after an interim response it must not be sent again.
            Err(Failure::NoResponse) if begun => return Err(Failure::CutHead),
            Err(failure) => return Err(failure),
        };
        begun = true;
        out.clear();
        out.ensure();
        if head.is_switching() {
            return relay_switch(exchange, fields, &head, input, &from, to, out).await.map(Progress::Done);
        }
        if !head.is_interim() {
            return relay_final(exchange, fields, &head, input, from, to, out).await;
        }
        // RFC 9110 section 15.2: a proxy forwards 1xx unless it has asked for them itself, and no 1xx to HTTP/1.0. So the
        // first 100 goes on whether or not the client asked for it (it may discard it, section 15.2.1). A further one says
        // nothing that the first has not, and clients take it for the answer to their next Expect: it ends here.
        let is_repeated_continue = head.status == 100 && std::mem::replace(&mut continued, true);
        if head.status == 100 && !exchange.continued.replace(true) && exchange.total_at_ms.is_none() {
            // It is the client's turn now; the upstream's begins anew when it has the body.
            exchange.head_at_ms.set(u64::MAX);
        }
        if exchange.version == Version::Http11 && !is_repeated_continue {
            serialize::response_head(out, input.unread(), &head, fields, &ResponseOut::new(&head, &exchange.edits));
            to.timer.set(Patience::response(exchange).next(), Expiry::ShutdownBoth);
            let result = write_all(to.half, out).await;
            to.timer.clear();
            result.map_err(Failure::Client)?;
            out.clear();
            out.release();
        }
        input.consume(head.len);
    }
}

async fn response_head(
    exchange: &Exchange<'_>,
    fields: &mut Fields,
    input: &mut Input,
    from: &mut Side<'_, ReadHalf>,
) -> Result<ResponseHead, Failure> {
    loop {
        if !input.is_empty()
            && let Some(head) = response::parse(input.unread(), fields, exchange.method, exchange.bounds)?
        {
            return Ok(head);
        }
        let closed = if input.is_empty() { Failure::NoResponse } else { Failure::CutHead };
        let bytes_max = exchange.bounds.head_bytes + 1;
        let at_most = if input.is_empty() { HEAD_READ_BYTES_MAX } else { bytes_max };
        match from.fill(input, at_most, bytes_max, || exchange.head_at_ms.get(), Expiry::ShutdownBoth).await {
            Ok(count) if count > 0 => {}
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => return Err(BadResponse::HeadTooLarge.into()),
            _ if from.timer.take_expired() => return Err(Failure::Timeout),
            _ => return Err(closed),
        }
    }
}

/// The last head of HTTP on both connections. What is behind it in `input` belongs to the new protocol.
async fn relay_switch(
    exchange: &Exchange<'_>,
    fields: &Fields,
    head: &ResponseHead,
    input: &mut Input,
    from: &Side<'_, ReadHalf>,
    to: Side<'_, WriteHalf>,
    out: &mut Buffer,
) -> Result<Relayed, Failure> {
    let is_meant = |protocol: Span| protocol.of(input.unread()).eq_ignore_ascii_case(WEBSOCKET);
    if !exchange.is_websocket || !head.upgrade.is_some_and(is_meant) {
        return Err(Failure::UnsolicitedUpgrade);
    }
    exchange.awaits_head.set(false);
    from.timer.clear();
    exchange.record.status(head.status);
    let how = ResponseOut {
        connection: ConnectionOption::Upgrade,
        via: from.half.via(),
        extra: exchange.extra,
        ..ResponseOut::new(head, &exchange.edits)
    };
    serialize::response_head(out, input.unread(), head, fields, &how);
    input.consume(head.len);
    to.timer.set(Patience::response(exchange).next(), Expiry::ShutdownBoth);
    let result = write_all(to.half, out).await;
    to.timer.clear();
    result.map_err(Failure::Client)?;
    exchange.record.complete();
    Ok(Relayed {
        is_switched: true,
        upstream_reusable: false,
        upstream_seen: Seen::Nothing,
        downstream_keep: false,
        keep_alive_timeout_s: None,
    })
}

async fn relay_final(
    exchange: &Exchange<'_>,
    fields: &Fields,
    head: &ResponseHead,
    input: &mut Input,
    from: Side<'_, ReadHalf>,
    to: Side<'_, WriteHalf>,
    out: &mut Buffer,
) -> Result<Progress, Failure> {
    // The deadline of the head must not meet the body.
    exchange.awaits_head.set(false);
    from.timer.clear();
    exchange.record.status(head.status);
    // A call that fails at once ends with its head.
    if exchange.record.is_call()
        && let Some(status) = fields.values_named(input.unread(), GRPC_STATUS).next()
    {
        exchange.record.grpc_status(GrpcStatus::parse(status));
    }
    let framing = framing_for(exchange.version, head.framing);
    // A response that comes while the request's body is still on its way ends the connection: whether the rest of the
    // body would ever come is not ours to know.
    let keep = exchange.keep_alive
        && framing != BodyFraming::UntilClose
        && !exchange.uploading.get()
        && !exchange.worker.draining();
    let date = exchange.worker.date.now();
    let how = ResponseOut {
        framing,
        connection: connection_option(exchange, keep),
        via: from.half.via(),
        date: Some(&date),
        extra: exchange.extra,
        ..ResponseOut::new(head, &exchange.edits)
    };
    serialize::response_head(out, input.unread(), head, fields, &how);
    input.consume(head.len);
    let relaying = Relaying {
        body: Body::new(head.framing, framing),
        rest: None,
        is_reusable: head.keep_alive && head.framing != BodyFraming::UntilClose,
        // Behind a head that has no body, servers are known to send one.
        seen: match head.framing {
            BodyFraming::Length(1..) | BodyFraming::Chunked => Seen::End,
            _ => Seen::Nothing,
        },
        downstream_keep: keep,
        keep_alive_timeout_s: head.keep_alive_timeout_s,
    };
    relay_rest(exchange, relaying, input, from, to, out).await
}

/// Goes on with a response whose client takes more, or is out of time.
pub(crate) async fn go_on(
    exchange: &Exchange<'_>,
    mut relaying: Box<Relaying>,
    input: &mut Input,
    from: Side<'_, ReadHalf>,
    to: Side<'_, WriteHalf>,
    out: &mut Buffer,
) -> Result<Progress, Failure> {
    exchange.awaits_head.set(false);
    if let Some(rest) = relaying.rest.take() {
        out.ensure();
        out.extend_from_slice(&rest);
    }
    relay_rest(exchange, *relaying, input, from, to, out).await
}

/// `out` may hold what goes first.
async fn relay_rest(
    exchange: &Exchange<'_>,
    mut relaying: Relaying,
    input: &mut Input,
    from: Side<'_, ReadHalf>,
    to: Side<'_, WriteHalf>,
    out: &mut Buffer,
) -> Result<Progress, Failure> {
    let is_alone = !exchange.uploading.get();
    let patience = Patience { is_alone, ..Patience::response(exchange) };
    let result = relay_body(&mut relaying.body, input, from, to, out, patience).await;
    exchange.worker.stats.add(Counter::SplicedBytes, relaying.body.take_spliced_bytes());
    match result {
        Ok(Passed::Stalled) => return Ok(Progress::Stalled(Box::new(relaying))),
        Ok(Passed::Whole) => {}
        Err(BodyError::Write(error)) => return Err(Failure::Client(error)),
        Err(error) => return Err(Failure::Broken(error)),
    }
    if let Some(status) = relaying.body.grpc_status() {
        exchange.record.grpc_status(status);
    }
    exchange.record.complete();
    Ok(Progress::Done(Relayed {
        is_switched: false,
        // Bytes behind the end of a response belong to nobody (RFC 9112 section 9.5): that connection is done.
        upstream_reusable: relaying.is_reusable && input.is_empty(),
        upstream_seen: if input.is_empty() { relaying.seen } else { Seen::Excess },
        downstream_keep: relaying.downstream_keep,
        keep_alive_timeout_s: relaying.keep_alive_timeout_s,
    }))
}

fn connection_option(exchange: &Exchange<'_>, keep: bool) -> ConnectionOption {
    match (keep, exchange.version) {
        (true, Version::Http11) => ConnectionOption::Implied,
        (true, Version::Http10) => ConnectionOption::KeepAlive,
        (false, _) => ConnectionOption::Close,
    }
}
