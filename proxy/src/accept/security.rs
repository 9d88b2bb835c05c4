//! Whether a new connection is TLS, and its handshake.

use std::rc::Rc;

use meshring_core::{
    client_hello::HANDSHAKE_RECORD, limits::DOWNSTREAM_IDLE_MS_MAX, stats::Counter, table::security::MtlsMode,
};

use super::{Direction, Listener};
use crate::{
    parse::Begin,
    tls::{
        handshake::{self, HandshakeError},
        materials::NoTls,
    },
    worker::{Worker, conn::Conn, deadlines::now_ms, generation::Pinned},
};

/// `handshake_failure`: TLS is not spoken on this port.
const HANDSHAKE_FAILURE: u8 = 40;
/// `internal_error`: it would be, but there is no certificate.
const INTERNAL_ERROR: u8 = 80;
/// `unrecognized_name`.
const UNRECOGNIZED_NAME: u8 = 112;
/// `decode_error`.
const DECODE_ERROR: u8 = 50;

/// What a new connection may be. What a plain one may do is for each request to say, by the generation that it runs on.
#[derive(Debug)]
pub(crate) enum Demand {
    /// Nobody expects TLS here: the application's side.
    PlainOnly,
    /// From another workload: told apart by its first byte.
    Mesh {
        /// By PeerAuthentication.
        mode: MtlsMode,
        /// Whether TLS 1.2 will do.
        tls12: bool,
    },
    /// From outside, to a port on which this workload is a gateway.
    Gateway { port: u16, generation: Rc<Pinned> },
}

impl Demand {
    /// Of a listener, by the active generation.
    pub(crate) fn of(worker: &Worker, listener: &Listener) -> Self {
        let generation = worker.current.pin();
        let policy = generation.table().inbound_policy(generation.viewpoint());
        match listener.direction {
            Direction::Inbound { application } => {
                let mode = policy.map_or(MtlsMode::Permissive, |policy| policy.mtls_on(application.port()));
                let tls12 = generation.table().settings().mesh_tls12;
                Self::Mesh { mode, tls12 }
            }
            Direction::Outbound => {
                let port = listener.address.port();
                match policy.is_some_and(|policy| policy.has_gateway(port)) {
                    true => Self::Gateway { port, generation },
                    false => Self::PlainOnly,
                }
            }
        }
    }
}

/// Waits for the first bytes of a connection; serves its handshake where they are one. `None`: it has ended.
pub(crate) async fn open(worker: &Rc<Worker>, conn: &mut Conn, demand: Demand) -> Option<Begin> {
    if !conn.readable_until(now_ms() + DOWNSTREAM_IDLE_MS_MAX, true).await {
        return None;
    }
    let mut first = [0];
    match conn.peek(&mut first) {
        Ok(1) if first[0] == HANDSHAKE_RECORD => {}
        // Plain, gone, or a readiness that was none: reading will tell.
        _ => return Some(Begin::Readable),
    }
    worker.stats.add(Counter::TlsHandshakes, 1);
    match secure(worker, conn, demand).await {
        Ok(()) => {
            if conn.secured_peer().is_some_and(|peer| peer.is_resumed) {
                worker.stats.add(Counter::TlsResumed, 1);
            }
            Some(Begin::Silence)
        }
        Err(refused) => {
            worker.stats.add(Counter::TlsRefused, 1);
            worker.log_refusal(refused.code(), conn.peer(), &refused);
            conn.drain(meshring_core::limits::LINGER_BYTES_MAX, LINGER_MS).await;
            None
        }
    }
}

/// How long a client may take to read why it was refused, in milliseconds.
const LINGER_MS: u64 = 1_000;

/// Why a TLS connection is not served.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("TLS on a port that takes plain text only (PeerAuthentication mode DISABLE)")]
    NotExpected,
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
            Self::NotExpected => "tls.not_expected",
            Self::UnknownName(_) | Self::NoName => "tls.unknown_name",
            Self::NoTls(NoTls::NoIdentity) => "tls.no_identity",
            Self::NoTls(_) => "tls.no_credential",
            Self::Handshake(error) => error.code(),
        }
    }

    /// The alert that is not rustls' to send.
    fn alert(&self) -> Option<u8> {
        match self {
            Self::NotExpected => Some(HANDSHAKE_FAILURE),
            Self::UnknownName(_) | Self::NoName => Some(UNRECOGNIZED_NAME),
            Self::NoTls(_) => Some(INTERNAL_ERROR),
            Self::Handshake(HandshakeError::Hello(_)) => Some(DECODE_ERROR),
            Self::Handshake(_) => None,
        }
    }
}

async fn secure(worker: &Worker, conn: &mut Conn, demand: Demand) -> Result<(), Refused> {
    let result = shake(worker, conn, demand).await;
    if let Err(refused) = &result
        && let Some(description) = refused.alert()
    {
        // Before the handshake an alert is in plain text (RFC 8446 section 6).
        conn.send_now(&[21, 3, 3, 0, 2, 2, description]);
    }
    result
}

async fn shake(worker: &Worker, conn: &mut Conn, demand: Demand) -> Result<(), Refused> {
    let server = match demand {
        Demand::PlainOnly | Demand::Mesh { mode: MtlsMode::Disable, .. } => return Err(Refused::NotExpected),
        Demand::Mesh { tls12, .. } => {
            let server = worker.materials.mesh_server(tls12)?;
            let opening = handshake::opening(worker, conn).await?;
            return Ok(handshake::accept(worker, conn, &server, opening).await?);
        }
        Demand::Gateway { port, generation } => {
            let opening = handshake::opening(worker, conn).await?;
            let name = opening.hello.server_name.as_deref();
            let policy = generation.table().inbound_policy(generation.viewpoint());
            let Some(tls) = policy.and_then(|policy| policy.gateway(port, name)) else {
                return Err(name.map_or(Refused::NoName, |name| Refused::UnknownName(name.to_owned())));
            };
            let server = worker.materials.gateway(tls)?;
            (server, opening)
        }
    };
    let (server, opening) = server;
    Ok(handshake::accept(worker, conn, &server, opening).await?)
}
