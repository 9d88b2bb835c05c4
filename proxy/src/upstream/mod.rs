//! Upstream connections: a pool per endpoint and worker, shared by nobody.

mod idle;

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
};

use meshring_core::{
    limits::{KEEP_ALIVE_MARGIN_MS, UPSTREAM_AVOID_MS, UPSTREAM_HTTP1_ONLY_MS},
    table::{
        model::{ArchivedCluster, ArchivedTable, Reach},
        protocol::HBONE_PORT,
        security::{ClusterTls, ClusterTlsMode},
    },
};
use rustls::pki_types::ServerName;

use self::idle::IdleConns;
pub(crate) use self::idle::Seen;
use crate::worker::{
    Worker,
    conn::{Conn, exhausted},
    deadlines::{Deadlines, now_ms},
    http2::client::Multiplexed,
    limits::PoolLimits,
};

/// Which pooled connections a request may go on.
///
/// A server may close an idle connection at the very moment at which a request is on its way to it. Nobody can tell then
/// whether the request was processed, so that only one which may be sent twice can be sent again (RFC 9110 section 9.2.2
/// forbids a proxy more than that). For the others the moment itself is avoided: servers close after a time of their own,
/// of seconds; a connection that was used within the last second is not near its end, whatever that time is. One that was
/// not gives way to a new connection, which costs a handshake, and only where requests are rare. What is left is a server
/// that closes for other reasons than time within microseconds: then the client gets 502 and decides for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// Any that is open and silent: the request can be sent again.
    Any,
    /// One that was in use until just now: the request must not be sent again.
    Recent,
    /// None.
    Never,
}

impl Reuse {
    /// For the last attempt of a request.
    pub(crate) fn once(self) -> Self {
        if self == Self::Any { Self::Recent } else { self }
    }
}

/// One address as a worker knows it, over all generations and clusters.
#[derive(Debug)]
pub(crate) struct Endpoint {
    address: SocketAddr,
    /// How its connections are secured; one address may be reached in several ways, each with a pool of its own.
    security: Option<Rc<Origination>>,
    /// Where the tunnels lead through that are its connections, instead of connections to its address.
    carrier: Option<Rc<Endpoint>>,
    pool: PoolLimits,
    active: Cell<u32>,
    avoid_until_ms: Cell<u64>,
    idle: RefCell<IdleConns>,
    /// Connections that requests share (HTTP/2).
    shared: RefCell<Vec<Multiplexed>>,
    /// How many streams one of them may have, as far as its server has ever said so.
    streams_known: Cell<usize>,
    /// Another one of them on its way.
    joining: RefCell<Option<Rc<Attempt>>>,
    /// Until then its server, which was offered HTTP/2, is taken to speak HTTP/1.1 only.
    http1_only_until_ms: Cell<u64>,
}

/// How the attempt to make a connection for all has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is there, or another try may bring one: whoever made it had no time or no wish to wait for it any more.
    TryAgain,
    /// The system's number of the error.
    System(i32),
    /// Another reason.
    Failed(io::ErrorKind),
}

/// A connection that is being made for all who wait for it.
#[derive(Debug, Default)]
pub(crate) struct Attempt {
    outcome: Cell<Option<Outcome>>,
    waiting: RefCell<Vec<Waker>>,
}

impl Attempt {
    /// How it has ended. May be dropped.
    pub(crate) async fn outcome(&self) -> Outcome {
        poll_fn(|cx| match self.outcome.get() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                let mut waiting = self.waiting.borrow_mut();
                if !waiting.iter().any(|known| known.will_wake(cx.waker())) {
                    waiting.push(cx.waker().clone());
                }
                Poll::Pending
            }
        })
        .await
    }

    fn end(&self, outcome: Outcome) {
        self.outcome.set(Some(outcome));
        let waiting = self.waiting.take();
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// Who makes a connection that requests share.
pub(crate) enum Joining {
    /// Whoever asks.
    Alone(Joint),
    /// Somebody else, already.
    Others(Rc<Attempt>),
}

/// The duty to make it: whoever drops this has failed.
#[derive(Debug)]
pub(crate) struct Joint {
    endpoint: Rc<Endpoint>,
    attempt: Rc<Attempt>,
}

impl Joint {
    /// Tells the others.
    pub(crate) fn end(self, outcome: Outcome) {
        self.attempt.end(outcome);
    }
}

impl Drop for Joint {
    fn drop(&mut self) {
        self.endpoint.joining.take();
        if self.attempt.outcome.get().is_none() {
            self.attempt.end(Outcome::TryAgain);
        }
    }
}

/// A connection in use; the endpoint counts the request as active until it is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) conn: Conn,
    /// Whether it has carried a request before: only then can it turn out closed by the peer's idle timeout.
    pub(crate) reused: bool,
    // After the connection: dropping it ends the request.
    active: ActiveRequest,
}

#[derive(Debug)]
struct ActiveRequest(Rc<Endpoint>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
    }
}

impl Endpoint {
    fn new(
        address: SocketAddr,
        security: Option<Rc<Origination>>,
        carrier: Option<Rc<Self>>,
        pool: PoolLimits,
    ) -> Rc<Self> {
        Rc::new(Self {
            address,
            security,
            carrier,
            pool,
            active: Cell::new(0),
            avoid_until_ms: Cell::new(0),
            idle: RefCell::default(),
            shared: RefCell::default(),
            streams_known: Cell::new(usize::MAX),
            joining: RefCell::default(),
            http1_only_until_ms: Cell::new(0),
        })
    }

    /// Its address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How a new connection is to be secured before anything is sent on it.
    pub(crate) fn security(&self) -> Option<&Rc<Origination>> {
        self.security.as_ref()
    }

    /// What its connections are tunnels through: a server of HBONE.
    pub(crate) fn carrier(&self) -> Option<&Rc<Endpoint>> {
        self.carrier.as_ref()
    }

    /// Passes it over for a moment: its connections fail.
    pub(crate) fn avoid(&self) {
        self.avoid_until_ms.set(now_ms() + UPSTREAM_AVOID_MS);
    }

    /// Its server closes connections, or says more on them, when nobody expects it.
    pub(crate) fn distrust_idle(&self) {
        self.idle.borrow_mut().distrust(now_ms());
    }

    /// Requests in flight from this worker.
    pub(crate) fn active(&self) -> u32 {
        self.active.get()
    }

    /// Whether it has just refused a connection.
    pub(crate) fn avoided(&self, now_ms: u64) -> bool {
        now_ms < self.avoid_until_ms.get()
    }

    fn has_connections(&self) -> bool {
        !self.idle.borrow().is_empty() || !self.shared.borrow().is_empty()
    }

    fn activate(self: &Rc<Self>) -> ActiveRequest {
        self.active.set(self.active.get() + 1);
        ActiveRequest(Rc::clone(self))
    }

    /// A pooled connection for one request.
    pub(crate) fn lease_idle(self: &Rc<Self>, reuse: Reuse) -> Option<Lease> {
        let conn = if reuse == Reuse::Never { None } else { self.idle.borrow_mut().take(reuse, now_ms()) };
        conn.map(|conn| Lease { conn, reused: true, active: self.activate() })
    }

    /// A new connection that was made elsewhere, for one request.
    pub(crate) fn lease_of(self: &Rc<Self>, conn: Conn) -> Lease {
        Lease { conn, reused: false, active: self.activate() }
    }

    /// A connection for one request: pooled, or new within `connect_ms_max`. Not to one behind a [carrier](Self::carrier): nothing may
    /// go around that.
    pub(crate) async fn lease(
        self: &Rc<Self>,
        worker: &Worker,
        reuse: Reuse,
        connect_ms_max: u64,
    ) -> io::Result<Lease> {
        if let Some(lease) = self.lease_idle(reuse) {
            return Ok(lease);
        }
        if self.carrier.is_some() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let active = self.activate();
        let asked_ms = now_ms();
        let connecting = pin!(async {
            // Waiting for a turn counts.
            match connect_ms_max.saturating_sub(now_ms().saturating_sub(asked_ms)) {
                0 => Err(io::ErrorKind::TimedOut.into()),
                left_ms => Conn::connect(self.address, &worker.deadlines, left_ms).await,
            }
        });
        match worker.connects.run(&worker.turns, connecting).await {
            Ok(conn) => Ok(Lease { conn, reused: false, active }),
            Err(error) => {
                // What this machine has run out of is not the endpoint's fault.
                if exhausted(&error).is_none() {
                    self.avoid();
                }
                Err(error)
            }
        }
    }

    /// A stream of a connection that is there and has room, the least busy one.
    pub(crate) fn lease_stream(self: &Rc<Self>, deadlines: &Rc<Deadlines>, streams_max: u32) -> Option<Lease> {
        let mut shared = self.shared.borrow_mut();
        shared.retain(Multiplexed::is_open);
        shared.sort_by_key(Multiplexed::streams);
        // The least busy one may be one that allows few.
        let stream = shared.iter().find_map(|connection| connection.stream(streams_max, &self.streams_known))?;
        Some(Lease { conn: Conn::of_stream(stream, deadlines), reused: true, active: self.activate() })
    }

    /// A further connection that requests share.
    pub(crate) fn share(&self, connection: Multiplexed) {
        self.shared.borrow_mut().push(connection);
    }

    /// Who makes one.
    pub(crate) fn join(self: &Rc<Self>) -> Joining {
        let mut joining = self.joining.borrow_mut();
        if let Some(attempt) = &*joining {
            return Joining::Others(Rc::clone(attempt));
        }
        let attempt = Rc::clone(joining.get_or_insert_default());
        Joining::Alone(Joint { endpoint: Rc::clone(self), attempt })
    }

    /// Whether its server has been found to speak HTTP/1.1 only.
    pub(crate) fn has_http1_only(&self, now_ms: u64) -> bool {
        now_ms < self.http1_only_until_ms.get()
    }

    /// It has. Not for ever: another server may come to its address.
    pub(crate) fn note_http1_only(&self, now_ms: u64) {
        self.http1_only_until_ms.set(now_ms + UPSTREAM_HTTP1_ONLY_MS);
    }

    /// Drops idle connections that are too old or no longer open.
    fn sweep(&self, now_ms: u64) {
        let idle_since_ms = now_ms.saturating_sub(self.pool.idle_ms_max);
        self.shared.borrow_mut().retain(|connection| connection.is_open() && !connection.is_idle_since(idle_since_ms));
        self.idle.borrow_mut().sweep(now_ms);
    }
}

impl Lease {
    /// Whose connection it is.
    pub(crate) fn endpoint(&self) -> &Rc<Endpoint> {
        &self.active.0
    }

    /// The connection, for more than one request.
    pub(crate) fn into_conn(self) -> Conn {
        self.conn
    }

    /// Gives the connection back after a complete exchange. `keep_alive_timeout_s`: after so many seconds without a request
    /// the server closes it, if it has said so (`Keep-Alive: timeout=5`).
    pub(crate) fn give_back(self, now_ms: u64, keep_alive_timeout_s: Option<u32>, seen: Seen) {
        let Self { conn, active, .. } = self;
        conn.timer.clear();
        if conn.timer.take_expired() || conn.is_worn() || conn.stream().is_some() {
            return;
        }
        let announced_ms = keep_alive_timeout_s.map_or(u64::MAX, |s| u64::from(s) * 1_000);
        let pool = active.0.pool;
        let idle_ms_max = announced_ms.saturating_sub(KEEP_ALIVE_MARGIN_MS).min(pool.idle_ms_max);
        let mut idle = active.0.idle.borrow_mut();
        if idle_ms_max > 0 && idle.len() < pool.idle_max {
            idle.put(conn, now_ms, idle_ms_max, seen);
        }
    }
}

/// TLS to a cluster's endpoints. The same settings are one of these over all generations, so that pooled connections
/// outlive a change of something else.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Origination {
    pub(crate) settings: ClusterTls,
    /// The server name that is asked for.
    pub(crate) name: ServerName<'static>,
    /// Whether the mesh allows TLS 1.2 between workloads.
    pub(crate) tls12: bool,
}

/// How the endpoints of a cluster are reached.
#[derive(Debug, Clone, Default)]
pub(crate) enum Security {
    /// In plain text.
    #[default]
    Plain,
    /// Those with a sidecar over mutual TLS, the others in plain text.
    Auto(Rc<Origination>),
    /// All of them over TLS.
    Always(Rc<Origination>),
}

impl Security {
    /// For an endpoint; `has_sidecar`: the table knows that it speaks mutual TLS.
    pub(crate) fn of(&self, has_sidecar: bool) -> Option<&Rc<Origination>> {
        match self {
            Self::Plain => None,
            Self::Auto(origination) => has_sidecar.then_some(origination),
            Self::Always(origination) => Some(origination),
        }
    }

    /// For the tunnels to an endpoint that is reached by such. A DestinationRule with TLS of another kind means its server.
    pub(crate) fn tunnel(&self, reach: Reach) -> Option<&Rc<Origination>> {
        match self {
            Self::Auto(origination) if reach == Reach::Hbone => Some(origination),
            Self::Always(origination)
                if reach == Reach::Hbone && origination.settings.mode == ClusterTlsMode::IstioMutual =>
            {
                Some(origination)
            }
            _ => None,
        }
    }
}

/// An address, and the way in which it is reached: with which TLS, and whether through a tunnel of that.
type EndpointKey = (SocketAddr, Option<*const Origination>, bool);

/// All endpoints that a worker has used.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    /// By address and position of the origination in memory, which the endpoint keeps alive.
    by_address: RefCell<HashMap<EndpointKey, Rc<Endpoint>>>,
    originations: RefCell<HashSet<Rc<Origination>>>,
    pool: PoolLimits,
}

impl Endpoints {
    /// None yet.
    pub(crate) fn new(pool: PoolLimits) -> Self {
        Self { pool, ..Self::default() }
    }

    /// Found or made.
    pub(crate) fn of(&self, address: SocketAddr, security: Option<&Rc<Origination>>) -> Rc<Endpoint> {
        let key = (address, security.map(Rc::as_ptr), false);
        let make = || Endpoint::new(address, security.cloned(), None, self.pool);
        Rc::clone(self.by_address.borrow_mut().entry(key).or_insert_with(make))
    }

    /// Likewise, reached through the tunnels that a server of HBONE on the same address takes. Tunnels to all ports of an address share
    /// connections: unlike elsewhere the server name does not tell clusters apart, it is left out.
    pub(crate) fn through_tunnel(&self, address: SocketAddr, origination: &Origination) -> Rc<Endpoint> {
        let settings = ClusterTls { sni: String::new(), ..origination.settings.clone() };
        let name = ServerName::IpAddress(address.ip().into());
        let origination = self.origination(Origination { settings, name, tls12: origination.tls12 });
        let carrier = self.of(SocketAddr::new(address.ip(), HBONE_PORT), Some(&origination));
        // The carrier keeps the origination alive.
        let key = (address, Some(Rc::as_ptr(&origination)), true);
        let make = || Endpoint::new(address, None, Some(carrier), self.pool);
        Rc::clone(self.by_address.borrow_mut().entry(key).or_insert_with(make))
    }

    /// How a cluster's endpoints are reached.
    pub(crate) fn security(&self, table: &ArchivedTable, cluster: &ArchivedCluster) -> Security {
        let Some(settings) = table.tls_of(cluster) else { return Security::Plain };
        let is_auto = settings.mode == ClusterTlsMode::AutoMutual;
        let is_mesh = is_auto || settings.mode == ClusterTlsMode::IstioMutual;
        let name = match settings.sni.as_str() {
            // As Istio names a cluster where only names of hosts may stand.
            "" if is_mesh => cluster.name.replace('|', "_."),
            "" => cluster.name.rsplit('|').next().unwrap_or_default().to_owned(),
            sni => sni.to_owned(),
        };
        let Ok(name) = ServerName::try_from(name) else {
            // Only names that control has not checked, and a wildcard host without an SNI of its own: nothing can be asked for, and
            // nothing goes out in plain text.
            let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
            return Security::Always(self.origination(Origination { settings, name, tls12: false }));
        };
        let tls12 = table.settings().mesh_tls12;
        let origination = self.origination(Origination { settings, name, tls12 });
        if is_auto { Security::Auto(origination) } else { Security::Always(origination) }
    }

    fn origination(&self, wanted: Origination) -> Rc<Origination> {
        let mut known = self.originations.borrow_mut();
        if let Some(origination) = known.get(&wanted) {
            return Rc::clone(origination);
        }
        let origination = Rc::new(wanted);
        known.insert(Rc::clone(&origination));
        origination
    }

    /// Once a second: closes what is idle for too long, forgets what no generation uses.
    pub(crate) fn sweep(&self, now_ms: u64) {
        self.by_address.borrow_mut().retain(|_, endpoint| {
            endpoint.sweep(now_ms);
            Rc::strong_count(endpoint) > 1 || endpoint.has_connections()
        });
        self.originations.borrow_mut().retain(|origination| Rc::strong_count(origination) > 1);
    }

    /// Closes all idle connections; for draining.
    pub(crate) fn close_idle(&self) {
        // Tunnels first: they are streams of what is shared.
        for endpoint in self.by_address.borrow().values() {
            endpoint.idle.borrow_mut().clear();
        }
        for endpoint in self.by_address.borrow().values() {
            endpoint.shared.borrow_mut().retain(|connection| connection.streams() > 0);
        }
    }
}

#[cfg(test)]
impl Endpoint {
    /// One more request in flight until the guard is dropped.
    pub(crate) fn pretend_active(self: &Rc<Self>) -> impl Drop + use<> {
        self.active.set(self.active.get() + 1);
        ActiveRequest(Rc::clone(self))
    }

    /// As after a refused connection.
    pub(crate) fn pretend_refused(&self, until_ms: u64) {
        self.avoid_until_ms.set(until_ms);
    }
}
