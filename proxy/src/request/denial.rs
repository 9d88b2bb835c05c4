//! Requests that are answered here, and why.

use std::{io, net::SocketAddr};

use meshring_core::{
    http::{
        error::Refusal,
        request::RequestHead,
        serialize::{self, HeaderEdits, NoEdits},
        status::reason,
    },
    stats::{Counter, GrpcStatus},
    table::lookup::NoRoute,
};

use super::{After, attempt::NotSecured, grpc};
use crate::{
    observe::Record,
    policy::jwt,
    respond::{
        body::BadBody,
        local::{self, Response},
    },
    worker::{Worker, buffers::Input, conn::Conn},
};

/// Why a request is answered here.
pub(super) enum Denial {
    ConnectNotConfigured,
    Refused(Refusal),
    NoRoute {
        no_route: NoRoute,
        host: String,
        namespace: String,
    },
    /// A tunnel to an address that is not an application of this workload.
    NoApplication {
        host: String,
    },
    NoEndpoint(String),
    ConnectFailed {
        address: SocketAddr,
        error: io::Error,
    },
    TlsFailed {
        address: SocketAddr,
        error: NotSecured,
    },
    TlsRequired {
        is_gateway: bool,
    },
    /// For another server name than that of the handshake, or for a host of no gateway.
    Misdirected,
    /// A token that is not good.
    BadToken(jwt::Refused),
    /// An AuthorizationPolicy says no; the reason is for the log.
    Forbidden {
        why: String,
    },
    /// An external authorizer says no: its answer.
    External {
        status: u16,
        lines: Vec<u8>,
        body: Vec<u8>,
    },
    /// An external authorizer could not be asked; the reason is for the log.
    ExternalFailed {
        status: u16,
        why: String,
    },
    /// The client does not wait any more.
    Late,
    BadBody(BadBody),
    Overload(&'static str),
    Exhausted {
        code: &'static str,
        error: io::Error,
    },
    Upstream {
        status: u16,
        code: &'static str,
        what: String,
    },
}

impl Denial {
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::ConnectNotConfigured => 405,
            Self::Refused(refusal) => refusal.status(),
            Self::NoRoute { .. } | Self::NoApplication { .. } => 404,
            Self::NoEndpoint(_) | Self::Overload(_) | Self::Exhausted { .. } => 503,
            Self::ConnectFailed { error, .. } if error.kind() == io::ErrorKind::TimedOut => 504,
            Self::ConnectFailed { .. } | Self::TlsFailed { .. } => 503,
            // As servers answer plain HTTP on a port for TLS; between workloads it is about who may come.
            Self::TlsRequired { is_gateway: true } => 400,
            Self::TlsRequired { is_gateway: false } => 403,
            Self::Misdirected => 421,
            Self::BadToken(refused) => refused.bad.status(),
            Self::Forbidden { .. } => 403,
            Self::External { status, .. } | Self::ExternalFailed { status, .. } => *status,
            Self::Late => 504,
            Self::BadBody(bad) => bad.status(),
            Self::Upstream { status, .. } => *status,
        }
    }

    /// Counts it, and says why in the log, in one line for a connection, see [`Worker::log_refused`] and [`Worker::log_fault`].
    pub(super) fn observe(&self, worker: &Worker, conn: &Conn) {
        match self {
            // The path's own line was written where it was found to be bad, that of a handshake by whom it failed for.
            Self::Refused(_) | Self::TlsFailed { .. } => {}
            // An authorizer's answer is not ours to explain, and a login begins with one.
            Self::External { .. } => worker.stats.add(Counter::AccessDenied, 1),
            Self::BadBody(bad) => {
                let counter = match bad {
                    BadBody::TooSlow => Counter::BodyTimeouts,
                    _ => Counter::RequestsRefused,
                };
                worker.stats.add(counter, 1);
                worker.log_refused(bad.code(), conn, bad);
            }
            Self::Misdirected => {
                worker.stats.add(Counter::RequestsRefused, 1);
                worker.log_refused("misdirected", conn, &"a host that the TLS handshake was not for");
            }
            Self::BadToken(refused) => {
                worker.stats.add(Counter::JwtRefused, 1);
                worker.log_refused(refused.bad.code(), conn, &refused.bad.message());
            }
            Self::Forbidden { why } => {
                worker.stats.add(Counter::AccessDenied, 1);
                worker.log_refused("access_denied", conn, why);
            }
            Self::TlsRequired { .. } => {
                worker.stats.add(Counter::TlsRequired, 1);
                worker.log_refused("tls_required", conn, &"plain text where TLS is required");
            }
            Self::NoRoute { .. } | Self::NoApplication { .. } => {
                worker.stats.add(Counter::NoRoute, 1);
                let (code, what) = self.reason();
                worker.log_refused(code, conn, &what);
            }
            Self::ConnectNotConfigured | Self::Late => {
                let (code, what) = self.reason();
                worker.log_refused(code, conn, &what);
            }
            Self::ExternalFailed { why, .. } => {
                worker.stats.add(Counter::AccessDenied, 1);
                worker.log_fault("ext_authz_failed", conn, why);
            }
            Self::Overload(what) => {
                worker.stats.add(Counter::RequestsOverload, 1);
                worker.log_fault("overload", conn, what);
            }
            Self::Exhausted { code, error } => {
                worker.stats.add(Counter::RequestsOverload, 1);
                worker.log_fault(code, conn, error);
            }
            // Counted where they were met.
            Self::NoEndpoint(_) | Self::ConnectFailed { .. } | Self::Upstream { .. } => {
                let (code, what) = self.reason();
                worker.log_fault(code, conn, &what);
            }
        }
    }

    pub(super) fn text(&self) -> String {
        let (code, what) = self.reason();
        format!("meshring: {} ({code}): {what}\n", reason(self.status()))
    }

    /// Its stable short code, and in words.
    fn reason(&self) -> (&'static str, String) {
        match self {
            Self::ConnectNotConfigured => ("connect_not_configured", "CONNECT is not configured here".into()),
            Self::Refused(refusal) => (refusal.code(), refusal.to_string()),
            Self::NoRoute { no_route, host, namespace } => {
                let hint = match no_route {
                    NoRoute::NoRule(_) => "",
                    _ => "; `meshring explain` shows what was looked for",
                };
                ("no_route", format!("host {host:?}, asked from namespace {namespace}: {no_route}{hint}"))
            }
            Self::NoApplication { host } => ("no_route", format!("{host:?} is no application of this workload")),
            Self::NoEndpoint(why) => ("no_endpoint", why.clone()),
            Self::ConnectFailed { address, error } => ("connect_failed", format!("{address}: {error}")),
            Self::TlsFailed { address, error } => (error.code(), format!("{address}: {error}")),
            Self::TlsRequired { is_gateway: true } => ("tls_required", "this port takes TLS only".into()),
            Self::TlsRequired { is_gateway: false } => {
                ("tls_required", "this workload takes mutual TLS only (PeerAuthentication mode STRICT)".into())
            }
            Self::Late => ("late", "the request's own deadline has passed".into()),
            Self::BadBody(bad) => (bad.code(), bad.to_string()),
            Self::Misdirected => ("misdirected", "the TLS handshake was not for this host".into()),
            Self::BadToken(refused) => (refused.bad.code(), refused.bad.message().into()),
            Self::Forbidden { .. } => ("access_denied", "RBAC: access denied".into()),
            Self::External { .. } | Self::ExternalFailed { .. } => ("access_denied", "external authorization".into()),
            Self::Overload(what) => ("overload", (*what).into()),
            Self::Exhausted { code, error } => {
                (*code, format!("this proxy cannot open an upstream connection: {error}"))
            }
            Self::Upstream { code, what, .. } => (*code, what.clone()),
        }
    }
}

/// A path that no server reads in one way only: as for every other malformed request, nothing of it goes anywhere.
pub(super) async fn refuse_path(
    worker: &Worker,
    conn: &mut Conn,
    input: &mut Input,
    head: &RequestHead,
    record: &Record<'_>,
    refusal: Refusal,
) -> After {
    worker.stats.add(Counter::RequestsRefused, 1);
    worker.log_refused(refusal.code(), conn, &refusal);
    let head = RequestHead { keep_alive: false, ..*head };
    deny(worker, conn, input, &head, record, Denial::Refused(refusal)).await
}

/// A response of our own to a request whose head is still in the input.
pub(super) async fn answer(
    worker: &Worker,
    conn: &mut Conn,
    input: &mut Input,
    head: &RequestHead,
    record: &Record<'_>,
    response: &Response<'_>,
    edits: &impl HeaderEdits,
) -> After {
    record.status(response.status);
    let is_kept = local::answer(worker, conn, input, head, response, edits).await;
    record.complete();
    if is_kept { After::KeepAlive } else { After::Close }
}

/// Answers a request whose head is still in the input.
pub(super) async fn deny(
    worker: &Worker,
    conn: &mut Conn,
    input: &mut Input,
    head: &RequestHead,
    record: &Record<'_>,
    denial: Denial,
) -> After {
    denial.observe(worker, conn);
    let (status, text) = (denial.status(), denial.text());
    let mut challenge = Vec::new();
    let extra: &[u8] = match &denial {
        // RFC 9110 section 15.5.6 asks for the field.
        Denial::ConnectNotConfigured => b"allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE\r\n",
        // Section 11.6.1.
        Denial::BadToken(refused) => {
            serialize::field(&mut challenge, b"www-authenticate", refused.www_authenticate.as_bytes());
            &challenge
        }
        Denial::External { lines, .. } => lines,
        _ => b"",
    };
    let (content_type, body) = match &denial {
        // It says itself what it is.
        Denial::External { body, .. } => ("", &body[..]),
        _ => ("text/plain", text.as_bytes()),
    };
    if !record.is_call() {
        let response = Response { status, content_type, body, extra };
        return answer(worker, conn, input, head, record, &response, &NoEdits).await;
    }
    let code = grpc::code(status, record);
    let message = if body.is_empty() { text.as_bytes() } else { body };
    let lines = grpc::trailers_only(code, message, extra);
    record.status(status);
    record.grpc_status(GrpcStatus::new(code));
    let response = Response { status: 200, content_type: "", body: b"", extra: &lines };
    let is_kept = local::answer(worker, conn, input, head, &response, &NoEdits).await;
    record.complete();
    if is_kept { After::KeepAlive } else { After::Close }
}

/// Answers a request whose head, and perhaps part of its body, has left the input. The connection goes on only where
/// there was no body at all.
pub(super) async fn deny_late(
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
