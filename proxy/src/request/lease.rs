//! A connection for one attempt: of its own, or a stream of one that others share.

use std::{io, rc::Rc};

use meshring_core::limits::ATTEMPTS_MAX;

use super::attempt::{NotSecured, secure};
use crate::{
    tls::materials::{HTTP2, Offer},
    upstream::{Endpoint, Joining, Lease, Outcome, Reuse},
    worker::{Worker, conn::Conn, deadlines::now_ms, http2::client, join::within},
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

/// A connection to an endpoint within so many milliseconds, ready for a request; `slot`: the statistics of its cluster.
pub(super) async fn lease(
    worker: &Rc<Worker>,
    endpoint: &Rc<Endpoint>,
    slot: usize,
    http2: Http2,
    reuse: Reuse,
    ms_max: u64,
) -> Result<Lease, Unleased> {
    let (Http2::Yes { streams_max } | Http2::LikeClient { streams_max }) = http2 else {
        return whole(worker, endpoint, slot, reuse, ms_max).await;
    };
    let until_ms = now_ms() + ms_max;
    let mut made: u32 = 0;
    loop {
        if endpoint.has_http1_only(now_ms()) {
            return whole(worker, endpoint, slot, reuse, until_ms.saturating_sub(now_ms())).await;
        }
        if let Some(lease) = endpoint.lease_stream(&worker.deadlines, streams_max) {
            return Ok(lease);
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
                    return Ok(lease);
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
    let mut lease = endpoint.lease(&worker.deadlines, reuse, ms_max).await.map_err(Unleased::Connect)?;
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
    let mut lease = endpoint.lease(&worker.deadlines, Reuse::Never, ms_max).await.map_err(Unleased::Connect)?;
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
