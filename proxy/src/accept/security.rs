//! Whether a new connection is TLS, and its handshake.

use std::{rc::Rc, sync::Arc};

use meshring_core::{
    client_hello::HANDSHAKE_RECORD,
    limits::{PERMISSIVE_MS, TLS_LINGER_BYTES_MAX, TLS_LINGER_MS},
    stats::{Counter, TlsCounter},
    table::security::MtlsMode,
};

use super::{Direction, Listener};
use crate::{
    parse::Begin,
    tls::{
        handshake::{self, HandshakeError, Opening},
        materials::{NoTls, Server},
    },
    worker::{
        Worker,
        buffers::Input,
        conn::{Conn, readable},
        deadlines::now_ms,
        generation::Pinned,
        join::within,
    },
};

/// `handshake_failure`: TLS is not spoken on this port.
const HANDSHAKE_FAILURE: u8 = 40;
/// `internal_error`: it would be, but there is no certificate.
const INTERNAL_ERROR: u8 = 80;
/// `unrecognized_name`.
const UNRECOGNIZED_NAME: u8 = 112;

/// What a TLS connection is to a listener. What a plain one may do is for each request to say, by the generation that it runs on.
#[derive(Debug, Clone, Copy)]
enum Demand {
    /// Not expected.
    No,
    /// From another workload.
    Mesh {
        /// Whether TLS 1.2 will do.
        tls12: bool,
    },
    /// From outside, to a port on which this workload is a gateway.
    Gateway { port: u16 },
}

impl Demand {
    /// Of a listener, by a generation.
    fn of(generation: &Pinned, listener: &Listener) -> Self {
        let policy = generation.table().inbound_policy(generation.viewpoint());
        match listener.direction {
            Direction::Inbound { application } => match policy.map(|policy| policy.mtls_on(application.port())) {
                Some(MtlsMode::Disable) => Self::No,
                _ => Self::Mesh { tls12: generation.table().settings().mesh_tls12 },
            },
            // Whatever the policy says about plain text: a tunnel without an identity leads nowhere.
            Direction::Hbone => Self::Mesh { tls12: generation.table().settings().mesh_tls12 },
            Direction::Outbound => {
                let port = listener.address.port();
                if policy.is_some_and(|policy| policy.has_gateway(port)) { Self::Gateway { port } } else { Self::No }
            }
        }
    }
}

/// Whether a new connection's first byte is to be looked at. The application's own side stays as cheap as it is.
pub(super) fn may_be_tls(worker: &Worker, listener: &Listener) -> bool {
    listener.direction != Direction::Outbound
        || matches!(Demand::of(&worker.current.pin(), listener), Demand::Gateway { .. })
}

/// Waits for the first bytes of a connection; serves its handshake where they are one. `None`: it has ended.
pub(super) async fn open(worker: &Rc<Worker>, conn: &mut Conn, listener: &Listener) -> Option<Begin> {
    if !conn.readable_until(now_ms() + worker.limits.idle_ms_max, true).await {
        return None;
    }
    let mut first = [0];
    match conn.peek(&mut first) {
        Ok(1) if first[0] == HANDSHAKE_RECORD => {}
        // Plain, gone, or a readiness that was none: reading will tell.
        _ => return Some(Begin::Readable),
    }
    worker.stats.add(Counter::TlsHandshakes, 1);
    match secure(worker, conn, listener).await {
        Ok(()) => {
            count(worker, conn, listener);
            Some(Begin::Silence)
        }
        Err(error) => {
            refused(worker, conn, listener, error).await;
            None
        }
    }
}

/// Ends a connection that has begun with a handshake where nobody looks for one, so that a client of TLS hears of it in its own words.
pub(crate) async fn refuse_tls(worker: &Worker, conn: &mut Conn, listener: &Listener) {
    worker.stats.add(Counter::TlsHandshakes, 1);
    warn(conn, &Refused::PlainListener);
    refused(worker, conn, listener, Refused::PlainListener).await;
}

/// As [`open`], on a port for bytes, or of which nobody says what it speaks: TLS there may be for the application, and silence is
/// no sign of anything. `None`: it has ended; else whether the client has begun. What was read of it and is not for us is put into
/// `input`.
pub(super) async fn open_bytes(
    worker: &Worker,
    conn: &mut Conn,
    listener: &Listener,
    input: &mut Input,
) -> Option<bool> {
    let Direction::Inbound { application } = listener.direction else { return Some(false) };
    let mode = {
        let generation = worker.current.pin();
        let policy = generation.table().inbound_policy(generation.viewpoint());
        policy.map_or(MtlsMode::Permissive, |policy| policy.mtls_on(application.port()))
    };
    let is_strict = match mode {
        // Whatever comes is for the application.
        MtlsMode::Disable => return Some(false),
        MtlsMode::Permissive => {
            if within(PERMISSIVE_MS, readable(&conn.read)).await.is_none() {
                return Some(false);
            }
            false
        }
        MtlsMode::Strict => {
            if !conn.readable_until(now_ms() + worker.limits.idle_ms_max, true).await {
                return None;
            }
            true
        }
    };
    let mut first = [0];
    if !matches!(conn.peek(&mut first), Ok(1) if first[0] == HANDSHAKE_RECORD) {
        return Some(true);
    }
    let sniffed = match handshake::sniff(worker, conn, b"").await {
        Ok(sniffed) => sniffed,
        Err(error) => {
            let error = error.into();
            warn(conn, &error);
            refused(worker, conn, listener, error).await;
            return None;
        }
    };
    if !is_strict && !sniffed.is_mesh() {
        input.extend(sniffed.bytes());
        return Some(true);
    }
    worker.stats.add(Counter::TlsHandshakes, 1);
    let result = match sniffed.opening() {
        Ok(opening) => answer(worker, conn, listener, opening).await,
        Err(bad) => Err(bad.into()),
    };
    match result {
        Ok(()) => {
            count(worker, conn, listener);
            Some(false)
        }
        Err(error) => {
            warn(conn, &error);
            refused(worker, conn, listener, error).await;
            None
        }
    }
}

/// A handshake that is over.
fn count(worker: &Worker, conn: &Conn, listener: &Listener) {
    worker.stats.listener_tls(listener.index, conn.tls_runs_in());
    if conn.secured_peer().is_some_and(|peer| peer.is_resumed) {
        worker.stats.add(Counter::TlsResumed, 1);
        worker.stats.listener_tls(listener.index, TlsCounter::Resumed);
    }
}

/// The end of a connection whose handshake has failed.
async fn refused(worker: &Worker, conn: &mut Conn, listener: &Listener, refused: Refused) {
    worker.stats.add(Counter::TlsRefused, 1);
    worker.stats.listener_tls(listener.index, TlsCounter::Refused);
    worker.log_refusal(refused.code(), conn.peer(), &refused);
    conn.drain(TLS_LINGER_BYTES_MAX, TLS_LINGER_MS).await;
}

/// Why a TLS connection is not served.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("TLS on a port that takes plain text only (PeerAuthentication mode DISABLE)")]
    NotExpected,
    #[error("TLS on a listener for what the application sends in plain text")]
    PlainListener,
    #[error("no Gateway has the server name {0:?} on this port")]
    UnknownName(String),
    #[error("no Gateway takes connections without a server name on this port")]
    NoName,
    #[error("no TLS here: {0}")]
    NoTls(#[from] NoTls),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}

impl Refused {
    fn code(&self) -> &'static str {
        match self {
            Self::NotExpected | Self::PlainListener => "tls.not_expected",
            Self::UnknownName(_) | Self::NoName => "tls.unknown_name",
            Self::NoTls(NoTls::NoIdentity) => "tls.no_identity",
            Self::NoTls(_) => "tls.no_credential",
            Self::Handshake(error) => error.code(),
        }
    }

    /// The alert that is not rustls' to send.
    fn alert(&self) -> Option<u8> {
        match self {
            Self::NotExpected | Self::PlainListener => Some(HANDSHAKE_FAILURE),
            Self::UnknownName(_) | Self::NoName => Some(UNRECOGNIZED_NAME),
            Self::NoTls(_) => Some(INTERNAL_ERROR),
            Self::Handshake(HandshakeError::Hello(bad)) => Some(bad.alert()),
            Self::Handshake(_) => None,
        }
    }
}

async fn secure(worker: &Worker, conn: &mut Conn, listener: &Listener) -> Result<(), Refused> {
    let result = shake(worker, conn, listener).await;
    if let Err(refused) = &result {
        warn(conn, refused);
    }
    result
}

fn warn(conn: &Conn, refused: &Refused) {
    if let Some(description) = refused.alert() {
        // Before the handshake an alert is in plain text (RFC 8446 section 6).
        conn.send_now(&[21, 3, 3, 0, 2, 2, description]);
    }
}

async fn shake(worker: &Worker, conn: &mut Conn, listener: &Listener) -> Result<(), Refused> {
    if matches!(Demand::of(&worker.current.pin(), listener), Demand::No) {
        return Err(Refused::NotExpected);
    }
    let opening = handshake::opening(worker, conn).await?;
    answer(worker, conn, listener, opening).await
}

async fn answer(worker: &Worker, conn: &mut Conn, listener: &Listener, opening: Opening) -> Result<(), Refused> {
    // Only now: a client that takes its time must not be served by what held when it came, nor keep that in memory.
    let (server, terms) = served_by(worker, listener, opening.hello.server_name.as_deref())?;
    Ok(handshake::accept(worker, conn, &server, opening, terms).await?)
}

/// Our side of the handshake, and for a gateway the terms that each request is compared with.
fn served_by(worker: &Worker, listener: &Listener, name: Option<&str>) -> Result<(Arc<Server>, Option<u64>), Refused> {
    let generation = worker.current.pin();
    match Demand::of(&generation, listener) {
        Demand::No => Err(Refused::NotExpected),
        Demand::Mesh { tls12 } => Ok((worker.materials.mesh_server(tls12)?, None)),
        Demand::Gateway { port } => {
            let policy = generation.table().inbound_policy(generation.viewpoint());
            let Some(tls) = policy.and_then(|policy| policy.gateway(port, name)) else {
                return Err(name.map_or(Refused::NoName, |name| Refused::UnknownName(name.to_owned())));
            };
            Ok((worker.materials.gateway(tls)?, Some(tls.terms())))
        }
    }
}
