//! CONNECT: a tunnel to an endpoint of a service, or to the application behind this proxy (RFC 9110 section 9.3.6).

use std::{io, net::SocketAddr, rc::Rc};

use meshring_core::{
    http::{request::RequestHead, status::write_tunnel_head},
    limits::{ATTEMPTS_MAX, BODY_IDLE_MS_MAX},
    stats::Counter,
};

use super::{
    After,
    attempt::{NotSecured, secure},
    authorize::{Source, authorize_connection},
    denial::{Denial, deny},
    is_guarded,
    lease::{Unleased, tunnel},
    plan::{Target, request_address},
    tunnel::Tunnel,
};
use crate::{
    accept::{Direction, Listener},
    observe::Record,
    route::{self, Request},
    tls::materials::Offer,
    upstream::{Endpoint, Lease, Reuse},
    worker::{
        Worker,
        buffers::Input,
        conn::{Conn, exhausted, write_all},
        deadlines::{Expiry, now_ms},
        generation::Pinned,
    },
};

/// Whether CONNECT is served on a listener for this port: between workloads where there are tunnels, and for the application beside
/// this proxy where the command line says so. A gateway is no way into the mesh that nobody has configured.
pub(super) fn is_allowed(worker: &Worker, pinned: &Pinned, listener: &Listener, port: Option<u16>) -> bool {
    match listener.direction {
        Direction::Hbone => true,
        Direction::Inbound { .. } => false,
        Direction::Outbound => {
            !is_guarded(pinned, listener) && port.is_some_and(|port| worker.tuning.connect_ports.contains(&port))
        }
    }
}

/// Where a CONNECT goes, if it may.
pub(super) fn target<'g>(
    worker: &Worker,
    pinned: &'g Pinned,
    listener: &Listener,
    request: &Request<'_>,
    source: Source<'_>,
) -> Result<Target<'g>, Denial> {
    if listener.direction != Direction::Hbone {
        return service(worker, pinned, request);
    }
    if source.peer.is_none_or(|peer| peer.identity.is_none()) {
        return Err(Denial::TlsRequired { is_gateway: false });
    }
    let Some(behind) = application(worker, listener, request_address(request)) else {
        let host = String::from_utf8_lossy(request.text(request.head.authority_full)).into_owned();
        return Err(Denial::NoApplication { host });
    };
    authorize_connection(worker, pinned, behind, source)?;
    Ok(Target::Application { endpoint: behind.application(worker), shared: behind.cluster(worker) })
}

/// The inbound listener whose application has this port, where the address is one of this workload's.
fn application<'w>(worker: &'w Worker, listener: &Listener, meant: Option<SocketAddr>) -> Option<&'w Listener> {
    let meant = meant?;
    let ip = meant.ip().to_canonical();
    worker.listeners.iter().map(|inbound| &**inbound).find(|inbound| {
        let Direction::Inbound { application } = inbound.direction else { return false };
        let own = [application.ip(), inbound.address.ip(), listener.address.ip()];
        application.port() == meant.port() && (ip.is_loopback() || own.contains(&ip) && !ip.is_unspecified())
    })
}

/// The cluster that a host and port have by the rule without conditions.
fn service<'g>(worker: &Worker, pinned: &'g Pinned, request: &Request<'_>) -> Result<Target<'g>, Denial> {
    let chosen = route::tunnel(pinned, request, &worker.random).map_err(|no_route| {
        let host = String::from_utf8_lossy(request.text(request.head.authority_full)).into_owned();
        Denial::NoRoute { no_route, host, namespace: pinned.viewpoint().namespace.clone() }
    })?;
    let cluster = pinned.cluster(chosen.cluster(), &worker.clusters, &worker.endpoints);
    Ok(Target::Cluster { chosen, cluster, literal: request_address(request) })
}

/// Connects and says so. Whatever the client has sent behind its head is not looked at before; without a tunnel it goes nowhere.
pub(super) async fn open(
    worker: &Rc<Worker>,
    conn: &mut Conn,
    input: &mut Input,
    head: &RequestHead,
    record: &Record<'_>,
    pinned: &Pinned,
    target: &Target<'_>,
) -> After {
    let lease = match leased(worker, conn, record, pinned, target).await {
        Ok(lease) => lease,
        Err(denial) => {
            let last = RequestHead { keep_alive: false, ..*head };
            return deny(worker, conn, input, &last, record, denial).await;
        }
    };
    input.consume(head.len);
    record.status(200);
    let mut out = worker.buffers.take();
    write_tunnel_head(&mut out, &worker.date.now());
    conn.timer.set(now_ms() + BODY_IDLE_MS_MAX, Expiry::ShutdownBoth);
    let result = write_all(&mut conn.write, &mut out).await;
    conn.timer.clear();
    if result.is_err() {
        return After::Close;
    }
    record.complete();
    let from_client = std::mem::replace(input, Input::new(worker.buffers.lazy()));
    After::Tunnel(Box::new(Tunnel::new(lease, from_client, Input::new(worker.buffers.lazy()))))
}

/// A new connection to one of the endpoints. Nothing was sent to those that fail, so that another one may be tried.
async fn leased(
    worker: &Rc<Worker>,
    conn: &Conn,
    record: &Record<'_>,
    pinned: &Pinned,
    target: &Target<'_>,
) -> Result<Lease, Denial> {
    let mut tried: Option<Rc<Endpoint>> = None;
    let mut attempt = 1;
    loop {
        let Some(endpoint) = target.choose(worker, pinned, conn, tried.as_ref()) else {
            worker.stats.add(Counter::NoEndpoint, 1);
            return Err(Denial::NoEndpoint(target.why_no_endpoint(pinned)));
        };
        record.sent_to(target.slot());
        match connected(worker, &endpoint, target.slot(), Offer::Http1).await {
            Ok(lease) => {
                if let Some(peer) = lease.conn.secured_peer().and_then(|peer| peer.slot) {
                    record.destination(peer);
                }
                return Ok(lease);
            }
            Err((denial, false)) => return Err(denial),
            Err((denial, true)) if attempt == ATTEMPTS_MAX => return Err(denial),
            Err(_) => {}
        }
        worker.stats.add(Counter::UpstreamRetries, 1);
        tried = Some(endpoint);
        attempt += 1;
    }
}

/// A connection to an endpoint, secured where its cluster says so; or why not, and whether another endpoint may do better. `slot`:
/// the cluster's statistics.
pub(super) async fn connected(
    worker: &Rc<Worker>,
    endpoint: &Rc<Endpoint>,
    slot: usize,
    offer: Offer,
) -> Result<Lease, (Denial, bool)> {
    let address = endpoint.address();
    let unsecured = |error: NotSecured| {
        endpoint.avoid();
        let is_worth_another = error.is_worth_another();
        (Denial::TlsFailed { address, error }, is_worth_another)
    };
    let unconnected = |error: io::Error| {
        if let Some(code) = exhausted(&error) {
            // What others keep for later is worth less than a connection now.
            worker.endpoints.close_idle();
            return (Denial::Exhausted { code, error }, false);
        }
        worker.stats.add(Counter::UpstreamConnectFailures, 1);
        let is_worth_another = error.kind() != io::ErrorKind::TimedOut;
        (Denial::ConnectFailed { address, error }, is_worth_another)
    };
    let mut lease = match endpoint.carrier() {
        Some(carrier) => {
            tunnel(worker, endpoint, carrier, slot, worker.limits.connect_ms_max).await.map_err(|unleased| {
                match unleased {
                    Unleased::Connect(error) => unconnected(error),
                    Unleased::Secure(error) => unsecured(error),
                }
            })?
        }
        None => endpoint.lease(worker, Reuse::Never, worker.limits.connect_ms_max).await.map_err(unconnected)?,
    };
    worker.stats.add(Counter::UpstreamConnects, 1);
    if let Some(origination) = endpoint.security() {
        secure(worker, &mut lease.conn, slot, origination, offer, worker.limits.connect_ms_max)
            .await
            .map_err(unsecured)?;
    }
    Ok(lease)
}
