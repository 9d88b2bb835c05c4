//! A connection for one attempt: of its own, or a stream of one that others share; either may be a tunnel.

use std::{io, net::SocketAddr, pin::Pin, rc::Rc};

use meshring_core::{http::status::write_connect, limits::ATTEMPTS_MAX};

use super::attempt::{NotSecured, secure};
use crate::{
    tls::materials::{HTTP2, Offer},
    upstream::{Endpoint, Joining, Lease, Outcome, Reuse},
    worker::{
        Worker,
        conn::{Conn, exhausted},
        deadlines::{Expiry, now_ms},
        http2::client,
        join::within,
    },
};

/// Whether HTTP/2 is spoken with an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Http2 {
    /// HTTP/1.1.
    No,
    /// Where a TLS server agrees to it, and to one that was not asked.
    Yes {
        /// Streams of one connection, 0 for as many as the server allows.
        streams_max: u32,
    },
    /// Where a TLS server agrees to it, or another one proves that it speaks it: the client does, the configuration says nothing.
    LikeClient {
        /// As above.
        streams_max: u32,
    },
}

/// Why there is none.
pub(super) enum Unleased {
    Connect(io::Error),
    Secure(NotSecured),
}

/// Why there is no tunnel to an endpoint.
#[derive(Debug, thiserror::Error)]
enum NoTunnel {
    #[error("the tunnel through {carrier} was refused with {status}")]
    Status { carrier: SocketAddr, status: u16 },
    #[error("the tunnel through {carrier}: {why}")]
    Failed { carrier: SocketAddr, why: String },
}

/// A connection to an endpoint within so many milliseconds, ready for a request; `slot`: the statistics of its cluster.
pub(super) async fn lease(
    worker: &Rc<Worker>,
    endpoint: &Rc<Endpoint>,
    slot: usize,
    http2: Http2,
    reuse: Reuse,
    ms_max: u64,
) -> Result<Lease, Unleased> {
    let until_ms = now_ms() + ms_max;
    if let Some(lease) = stream(worker, endpoint, slot, http2, ms_max).await? {
        return Ok(lease);
    }
    whole(worker, endpoint, slot, reuse, until_ms.saturating_sub(now_ms())).await
}

/// A stream of a connection that requests share. `None`: HTTP/1.1 is spoken there.
async fn stream(
    worker: &Rc<Worker>,
    endpoint: &Rc<Endpoint>,
    slot: usize,
    http2: Http2,
    ms_max: u64,
) -> Result<Option<Lease>, Unleased> {
    let (Http2::Yes { streams_max } | Http2::LikeClient { streams_max }) = http2 else { return Ok(None) };
    let until_ms = now_ms() + ms_max;
    let mut made: u32 = 0;
    loop {
        if endpoint.has_http1_only(now_ms()) {
            return Ok(None);
        }
        if let Some(lease) = endpoint.lease_stream(&worker.deadlines, streams_max) {
            return Ok(Some(lease));
        }
        let left_ms = until_ms.saturating_sub(now_ms());
        if left_ms == 0 {
            return Err(Unleased::Connect(io::ErrorKind::TimedOut.into()));
        }
        // One at a time makes a connection that all share: a burst of requests must not make one each.
        match endpoint.join() {
            Joining::Others(attempt) => match within(left_ms, attempt.outcome()).await {
                None => return Err(Unleased::Connect(io::ErrorKind::TimedOut.into())),
                Some(Outcome::Failed(kind)) => return Err(Unleased::Connect(kind.into())),
                Some(Outcome::System(number)) => {
                    return Err(Unleased::Connect(io::Error::from_raw_os_error(number)));
                }
                Some(Outcome::TryAgain) => {}
            },
            Joining::Alone(attempt) => {
                let result = shared(worker, endpoint, slot, http2, left_ms).await;
                attempt.end(match &result {
                    Ok(_) => Outcome::TryAgain,
                    // Others may have more time.
                    Err(Unleased::Connect(error)) if error.kind() == io::ErrorKind::TimedOut => Outcome::TryAgain,
                    Err(Unleased::Connect(error)) => {
                        error.raw_os_error().map_or(Outcome::Failed(error.kind()), Outcome::System)
                    }
                    Err(Unleased::Secure(_)) => Outcome::Failed(io::ErrorKind::ConnectionAborted),
                });
                // One that speaks HTTP/1.1 only is for this request alone.
                if let Some(lease) = result? {
                    return Ok(Some(lease));
                }
                // A server that ends each connection at once, or allows no stream on it, is not to be asked for ever.
                made += 1;
                if made > ATTEMPTS_MAX {
                    return Err(Unleased::Connect(io::ErrorKind::ConnectionAborted.into()));
                }
            }
        }
    }
}

/// A connection that no other request uses meanwhile.
async fn whole(
    worker: &Rc<Worker>,
    endpoint: &Rc<Endpoint>,
    slot: usize,
    reuse: Reuse,
    ms_max: u64,
) -> Result<Lease, Unleased> {
    if let Some(carrier) = endpoint.carrier() {
        return match endpoint.lease_idle(reuse) {
            Some(lease) => Ok(lease),
            None => tunnel(worker, endpoint, carrier, slot, ms_max).await,
        };
    }
    let mut lease = endpoint.lease(worker, reuse, ms_max).await.map_err(Unleased::Connect)?;
    if !lease.reused
        && let Some(origination) = endpoint.security()
    {
        secure(worker, &mut lease.conn, slot, origination, Offer::Http1, ms_max).await.map_err(Unleased::Secure)?;
    }
    Ok(lease)
}

/// Makes a connection that requests share. `Some`: the server wants HTTP/1.1 on it.
async fn shared(
    worker: &Rc<Worker>,
    endpoint: &Rc<Endpoint>,
    slot: usize,
    http2: Http2,
    ms_max: u64,
) -> Result<Option<Lease>, Unleased> {
    let until_ms = now_ms() + ms_max;
    let mut lease = match endpoint.carrier() {
        Some(carrier) => tunnel(worker, endpoint, carrier, slot, ms_max).await?,
        None => endpoint.lease(worker, Reuse::Never, ms_max).await.map_err(Unleased::Connect)?,
    };
    let mut is_agreed = false;
    if let Some(origination) = endpoint.security() {
        secure(worker, &mut lease.conn, slot, origination, Offer::Http2, ms_max).await.map_err(Unleased::Secure)?;
        let agreed = lease.conn.secured_peer().and_then(|peer| peer.protocol.as_deref());
        let is_http2 = match agreed {
            // Prior knowledge, as between Envoys.
            None => matches!(http2, Http2::Yes { .. }),
            Some(protocol) => protocol == HTTP2 || protocol == b"istio-h2",
        };
        if !is_http2 {
            // Where nothing was agreed, a request that wants HTTP/2 in any case has prior knowledge.
            if agreed.is_some() || matches!(http2, Http2::LikeClient { .. }) {
                endpoint.note_http1_only(now_ms());
            }
            return Ok(Some(lease));
        }
        is_agreed = agreed.is_some();
    }
    let conn: Conn = lease.into_conn();
    let connection = client::start(worker, conn);
    // That the client speaks HTTP/2 says nothing about the server.
    let is_trial = matches!(http2, Http2::LikeClient { .. }) && !is_agreed;
    if is_trial {
        match connection.proves_http2(until_ms.saturating_sub(now_ms())).await {
            Some(true) => {}
            Some(false) => {
                endpoint.note_http1_only(now_ms());
                return Ok(None);
            }
            None => return Err(Unleased::Connect(io::ErrorKind::TimedOut.into())),
        }
    }
    endpoint.share(connection);
    Ok(None)
}

/// A new tunnel to an endpoint (HBONE): a stream of a connection to its carrier, which takes it for a connection. Not an `async fn`: its
/// frame is for new tunnels alone, and to get to the carrier is a lease, too. `slot`: as of [`lease`].
pub(super) fn tunnel<'a>(
    worker: &'a Rc<Worker>,
    endpoint: &'a Rc<Endpoint>,
    carrier: &'a Rc<Endpoint>,
    slot: usize,
    ms_max: u64,
) -> Pin<Box<dyn Future<Output = Result<Lease, Unleased>> + 'a>> {
    Box::pin(async move {
        let until_ms = now_ms() + ms_max;
        let through = carrier.address();
        let failed = |kind: io::ErrorKind, why: String| {
            endpoint.avoid();
            Unleased::Connect(io::Error::new(kind, NoTunnel::Failed { carrier: through, why }))
        };
        let conn: Conn = match stream(worker, carrier, slot, Http2::Yes { streams_max: 0 }, ms_max).await {
            Ok(Some(lease)) if lease.conn.stream().is_some() => lease.into_conn(),
            // Istio's servers take nothing else.
            Ok(_) => return Err(failed(io::ErrorKind::ConnectionRefused, "its server does not speak HTTP/2".into())),
            // What this machine has run out of is told as it is.
            Err(Unleased::Connect(error)) if exhausted(&error).is_some() => return Err(Unleased::Connect(error)),
            Err(Unleased::Connect(error)) => return Err(failed(error.kind(), error.to_string())),
            Err(unsecured) => {
                endpoint.avoid();
                return Err(unsecured);
            }
        };
        let mut head = worker.buffers.take();
        write_connect(&mut head, endpoint.address());
        conn.timer.set(until_ms, Expiry::ShutdownBoth);
        let answer = conn.open_tunnel(&mut head).await;
        conn.timer.clear();
        if conn.timer.take_expired() {
            // Of the connection that others share: they had better take another one.
            if let Some(stream) = conn.stream() {
                stream.waited_in_vain();
            }
            return Err(failed(io::ErrorKind::TimedOut, "no answer in time".into()));
        }
        match answer {
            Ok(200..300) => Ok(endpoint.lease_of(conn)),
            // Somebody has decided this: it is not the connection that fails.
            Ok(status) => Err(Unleased::Connect(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                NoTunnel::Status { carrier: through, status },
            ))),
            Err(error) => Err(failed(error.kind(), error.to_string())),
        }
    })
}
