//! Connections that are passed on as bytes: what one is for, where it goes, and the way there.
//!
//! The stages are those of a request as far as there is something to them: route (by the address that the client meant, or by the
//! server name in its ClientHello), policy (the connection is judged as a whole), balance, upstream; what follows is a
//! [tunnel](super::tunnel). Whatever stands in the way ends with a reset, which no protocol takes for an answer.

use std::{io, net::SocketAddr, rc::Rc};

use meshring_core::{
    http::detect::may_be_http,
    id::{ClusterId, OriginId},
    limits::{ATTEMPTS_MAX, BUFFER_BYTES, SERVER_FIRST_MS_MAX},
    stats::{ClusterTcp, Counter},
    table::{
        lookup::Silent,
        model::{ArchivedClusterKind, UpstreamProtocol},
        tcp::{ArchivedTcpList, ArchivedTcpRoute, TcpFound, TcpView},
    },
};

use super::{
    authorize::{Source, authorize_connection},
    connect::connected,
    denial::Denial,
    is_guarded, requires_tls,
    tunnel::Tunnel,
};
use crate::{
    accept::{Direction, Listener},
    balance::ClusterState,
    parse::Begin,
    route,
    tls::{handshake, handshake::HandshakeError, materials::Offer},
    upstream::{Endpoint, Lease},
    worker::{
        Worker,
        buffers::Input,
        conn::{Conn, IdleRead, Meant, readable},
        deadlines::{Expiry, now_ms},
        generation::{ClusterShared, Pinned},
        join::either,
    },
};

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carries {
    /// HTTP, by what the configuration says, or because it says nothing at all.
    Requests,
    /// Bytes.
    Bytes,
    /// Nobody says: the first bytes tell, or the server's.
    Unknown,
}

/// Why a connection of bytes is reset.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("no service has {0}")]
    NoService(String),
    #[error("no rule of {service} matches{name}")]
    NoRule { service: String, name: String },
    #[error("cluster {cluster}: {why}; chosen by {rule}")]
    NoEndpoint { cluster: String, why: &'static str, rule: String },
    #[error("{what}; chosen by {rule}")]
    Upstream { code: &'static str, what: String, rule: String },
    #[error("this workload takes mutual TLS only (PeerAuthentication mode STRICT)")]
    TlsRequired,
    #[error("{0}")]
    Forbidden(String),
    #[error("the ClientHello that tells the server name: {0}")]
    Hello(#[from] HandshakeError),
    #[error("the worker's memory for messages is used up")]
    Overload,
}

impl Refused {
    fn code(&self) -> &'static str {
        match self {
            Self::NoService(_) | Self::NoRule { .. } => "tcp.no_route",
            Self::NoEndpoint { .. } => "tcp.no_endpoint",
            Self::Upstream { code, .. } => code,
            Self::TlsRequired => "tls_required",
            Self::Forbidden(_) => "access_denied",
            Self::Hello(error) => error.code(),
            Self::Overload => "overload",
        }
    }

    fn counter(&self) -> Option<Counter> {
        match self {
            Self::NoService(_) | Self::NoRule { .. } => Some(Counter::NoRoute),
            Self::NoEndpoint { .. } => Some(Counter::NoEndpoint),
            Self::TlsRequired => Some(Counter::TlsRequired),
            Self::Forbidden(_) => Some(Counter::AccessDenied),
            Self::Overload => Some(Counter::RequestsOverload),
            Self::Hello(_) | Self::Upstream { .. } => None,
        }
    }
}

/// What a connection is for, as far as the client has said it by connecting.
struct Found {
    /// The address that it meant.
    meant: Option<SocketAddr>,
    found: Option<TcpFound>,
}

fn found(pinned: &Pinned, conn: &Conn, listener: &Listener) -> Found {
    let (table, viewpoint) = (pinned.table(), pinned.viewpoint());
    match listener.service() {
        Some(service) => {
            let found = match &service.host {
                Some(host) => {
                    let service = table.tcp_named(viewpoint, host, service.port);
                    service.map(|service| TcpFound::Service { service, endpoint: None })
                }
                None => table.tcp_on_port(viewpoint, service.port),
            };
            Found { meant: None, found }
        }
        None => {
            let meant = match conn.meant(listener.address, listener.is_untracked()) {
                Meant::Address(meant) => Some(meant),
                Meant::Listener => None,
                Meant::Untracked => {
                    listener.note_untracked();
                    None
                }
            };
            Found { meant, found: meant.and_then(|meant| table.tcp_at(viewpoint, meant)) }
        }
    }
}

/// What a fresh connection carries. Where no service of the mesh carries bytes, or may, this looks at nothing but the table.
pub(crate) fn carries(worker: &Worker, conn: &Conn, listener: &Listener) -> Carries {
    if conn.stream().is_some() {
        return Carries::Requests;
    }
    let pinned = worker.current.pin();
    let (table, viewpoint) = (pinned.table(), pinned.viewpoint());
    match listener.direction {
        Direction::Hbone => Carries::Requests,
        Direction::Inbound { application } => {
            // Services lead to the listener, or, where connections are intercepted, to the application.
            let listed = |port| table.listed_protocol(viewpoint, port);
            match listed(listener.address.port()).or_else(|| listed(application.port())) {
                Some(UpstreamProtocol::Tcp) => Carries::Bytes,
                Some(UpstreamProtocol::Downstream) => Carries::Unknown,
                Some(UpstreamProtocol::Http1 | UpstreamProtocol::Http2) | None => Carries::Requests,
            }
        }
        Direction::Outbound if listener.service().is_none() && !table.has_tcp() => Carries::Requests,
        // A gateway's port is for HTTP.
        Direction::Outbound if is_guarded(&pinned, listener) => Carries::Requests,
        Direction::Outbound => match found(&pinned, conn, listener).found {
            Some(TcpFound::Service { service, .. }) if table.tcp_may_be_http(service) => Carries::Unknown,
            Some(_) => Carries::Bytes,
            None => match listener.service() {
                // What the configuration does not know (yet) must not be answered as if it spoke HTTP.
                Some(service) if !service.is_http(table, viewpoint) => Carries::Bytes,
                _ => Carries::Requests,
            },
        },
    }
}

/// Where a connection goes.
enum To<'g> {
    Cluster {
        rule: &'g ArchivedTcpRoute,
        id: ClusterId,
        cluster: Rc<ClusterState>,
        meant: Option<SocketAddr>,
        /// The endpoint that the client has chosen by itself.
        endpoint: Option<SocketAddr>,
    },
    /// The application beside this proxy.
    Application { endpoint: Rc<Endpoint>, shared: Rc<ClusterShared> },
}

impl To<'_> {
    fn slot(&self) -> usize {
        match self {
            Self::Cluster { cluster, .. } => cluster.shared.slot,
            Self::Application { shared, .. } => shared.slot,
        }
    }

    fn choose(&self, worker: &Worker, pinned: &Pinned, tried: Option<&Rc<Endpoint>>) -> Option<Rc<Endpoint>> {
        let table = pinned.table();
        match self {
            Self::Application { endpoint, .. } => Some(Rc::clone(endpoint)),
            Self::Cluster { id, cluster, meant, .. }
                if table.cluster(*id).kind == ArchivedClusterKind::OriginalDestination =>
            {
                meant.map(|address| cluster.elsewhere(&worker.endpoints, address))
            }
            Self::Cluster { cluster, endpoint: Some(address), .. } => cluster.at(table, &worker.endpoints, *address),
            Self::Cluster { cluster, .. } => cluster.choose(table, &worker.endpoints, &worker.random, now_ms(), tried),
        }
    }

    /// Which rule of which file, for the log.
    fn rule(&self, pinned: &Pinned) -> String {
        match self {
            Self::Application { .. } => "the inbound listener".into(),
            Self::Cluster { rule, .. } => {
                let origin = pinned.table().origin(OriginId::from(&rule.origin));
                let list = match rule.list {
                    ArchivedTcpList::Tcp => "tcp",
                    ArchivedTcpList::Tls => "tls",
                    ArchivedTcpList::Service => return origin,
                };
                format!("{origin}, {list}[{}] at line {}", rule.rule, rule.line)
            }
        }
    }

    fn no_endpoint(&self, pinned: &Pinned) -> Refused {
        let (cluster, why) = match self {
            Self::Application { .. } => ("inbound".into(), "it has no endpoint"),
            Self::Cluster { id, .. } => {
                let cluster = pinned.table().cluster(*id);
                let why = match cluster.kind {
                    ArchivedClusterKind::Static => "it has no endpoint",
                    ArchivedClusterKind::OriginalDestination => {
                        "it forwards to the address that the client meant, but the connection was not intercepted"
                    }
                    ArchivedClusterKind::NoSuchService => "no Service or ServiceEntry defines this host",
                    ArchivedClusterKind::NoSuchSubset => "no DestinationRule defines this subset",
                    ArchivedClusterKind::NoSuchPort => "the service has no such port",
                };
                (cluster.name.to_string(), why)
            }
        };
        Refused::NoEndpoint { cluster, why, rule: self.rule(pinned) }
    }
}

/// Connects a connection of bytes to where it goes. `input`: what the client has sent so far. `None`: it was reset, and the log
/// says why.
pub(crate) async fn open(
    worker: &Rc<Worker>,
    conn: &mut Conn,
    listener: &Listener,
    mut input: Input,
) -> Option<Box<Tunnel>> {
    match connect(worker, conn, listener, &mut input).await {
        Ok((lease, slot)) => {
            let from_upstream = Input::new(worker.buffers.lazy());
            Some(Box::new(Tunnel::of_connection(lease, input, from_upstream, slot)))
        }
        Err(refused) => {
            refuse(worker, conn, &refused);
            None
        }
    }
}

fn refuse(worker: &Worker, conn: &Conn, refused: &Refused) {
    worker.stats.add(Counter::TcpRefused, 1);
    if let Some(counter) = refused.counter() {
        worker.stats.add(counter, 1);
    }
    worker.log_refusal(refused.code(), conn.peer(), refused);
    conn.abort();
}

/// How it turns out what a connection of unknown content carries.
pub(crate) enum First {
    /// Perhaps HTTP: for the parser to tell.
    Requests(Begin),
    /// The server has spoken first, or the client has, and not HTTP.
    Tunnel(Box<Tunnel>),
    /// The client is gone.
    Over,
}

/// What a connection is for, as far as it matters to who speaks first.
fn greeter(conn: &Conn, listener: &Listener) -> (usize, Option<SocketAddr>) {
    let meant = match listener.service() {
        Some(_) => None,
        None => match conn.meant(listener.address, listener.is_untracked()) {
            Meant::Address(meant) => Some(meant),
            Meant::Listener | Meant::Untracked => None,
        },
    };
    (listener.index, meant)
}

/// Whether the server has spoken first the last time.
pub(crate) fn greets(worker: &Worker, conn: &Conn, listener: &Listener) -> bool {
    worker.greeters.has(greeter(conn, listener))
}

/// A client is silent, and nobody says what it will speak: the server may be the one to begin. For a while both are watched; a client
/// that speaks HTTP after all is served as always, and its connection to the server is given up.
pub(crate) async fn who_speaks(worker: &Rc<Worker>, conn: &mut Conn, listener: &Listener) -> First {
    let mut input = Input::new(worker.buffers.lazy());
    // A failure is no answer to a client that has not asked for anything.
    let Ok((mut lease, slot)) = connect(worker, conn, listener, &mut input).await else {
        return First::Requests(Begin::Silence);
    };
    let until_ms = now_ms() + SERVER_FIRST_MS_MAX;
    let mut from_upstream = Input::new(worker.buffers.lazy());
    // A proxy that drains ends it.
    conn.timer.set_idle(until_ms + SERVER_FIRST_MS_MAX, Expiry::ShutdownRead);
    let first = watch(worker, conn, &mut lease, &mut input, &mut from_upstream, until_ms).await;
    conn.timer.clear();
    worker.greeters.note(greeter(conn, listener), !from_upstream.is_empty());
    first.unwrap_or_else(|| First::Tunnel(Box::new(Tunnel::of_connection(lease, input, from_upstream, slot))))
}

/// Watches both until one speaks. `None`: what has come belongs to a connection of bytes.
async fn watch(
    worker: &Worker,
    conn: &mut Conn,
    lease: &mut Lease,
    input: &mut Input,
    from_upstream: &mut Input,
    until_ms: u64,
) -> Option<First> {
    loop {
        let left_ms = until_ms.saturating_sub(now_ms());
        if left_ms == 0 {
            return Some(First::Requests(Begin::Silence));
        }
        match either(left_ms, readable(&conn.read), readable(&lease.conn.read)).await {
            None => return Some(First::Requests(Begin::Silence)),
            Some(true) => match conn.read_now(input, BUFFER_BYTES, BUFFER_BYTES) {
                IdleRead::Bytes if may_be_http(input.unread()) => {
                    return Some(First::Requests(Begin::Bytes(worker.buffers.hold(input.unread()))));
                }
                IdleRead::Bytes | IdleRead::Full => return None,
                IdleRead::StillIdle => {}
                IdleRead::Closed if worker.draining() => return Some(First::Over),
                // It has nothing to say, and may wait for what the server has.
                IdleRead::Closed => return None,
            },
            Some(false) => match lease.conn.read_now(from_upstream, BUFFER_BYTES, BUFFER_BYTES) {
                IdleRead::Bytes | IdleRead::Full => return None,
                // A session ticket.
                IdleRead::StillIdle => {}
                // Servers of HTTP close what is silent.
                IdleRead::Closed => return Some(First::Requests(Begin::Silence)),
            },
        }
        // What was lent for nothing is for others.
        input.release();
        from_upstream.release();
    }
}

async fn connect(
    worker: &Rc<Worker>,
    conn: &mut Conn,
    listener: &Listener,
    input: &mut Input,
) -> Result<(Lease, usize), Refused> {
    if worker.overloaded() {
        return Err(Refused::Overload);
    }
    let pinned = worker.current.pin();
    let to = match listener.direction {
        Direction::Outbound => outbound(worker, &pinned, conn, listener, input).await?,
        Direction::Inbound { .. } | Direction::Hbone => inbound(worker, &pinned, conn, listener)?,
    };
    let slot = to.slot();
    let lease =
        leased(worker, &pinned, &to).await.inspect_err(|_| worker.stats.tcp(slot, ClusterTcp::ConnectFailures, 1))?;
    Ok((lease, slot))
}

/// To the application, where the connection may come in.
fn inbound<'g>(worker: &Worker, pinned: &Pinned, conn: &Conn, listener: &Listener) -> Result<To<'g>, Refused> {
    if conn.secured_peer().is_none() && requires_tls(pinned, listener).is_some() {
        return Err(Refused::TlsRequired);
    }
    if is_guarded(pinned, listener) {
        let Some(peer) = conn.peer() else { return Err(HandshakeError::Closed.into()) };
        let source = Source { address: peer.ip().to_canonical(), peer: conn.secured_peer().map(|peer| &**peer) };
        authorize_connection(worker, pinned, listener, source).map_err(|denial| match denial {
            Denial::Forbidden { why } => Refused::Forbidden(why),
            other => Refused::Forbidden(other.text().trim_end().to_owned()),
        })?;
    }
    Ok(To::Application { endpoint: listener.application(worker), shared: listener.cluster(worker) })
}

/// By the rules of the service that the connection is for.
async fn outbound<'g>(
    worker: &Worker,
    pinned: &'g Pinned,
    conn: &mut Conn,
    listener: &Listener,
    input: &mut Input,
) -> Result<To<'g>, Refused> {
    let (table, viewpoint) = (pinned.table(), pinned.viewpoint());
    let Found { meant, found } = found(pinned, conn, listener);
    let no_service = |name: Option<&str>| {
        let what = match (listener.service(), meant) {
            (Some(service), _) => service.to_string(),
            (None, Some(address)) => address.to_string(),
            (None, None) => listener.address.to_string(),
        };
        let name = name.map(|name| format!(" and the server name {name:?}")).unwrap_or_default();
        Refused::NoService(format!("{what}{name} (asked from namespace {})", viewpoint.namespace))
    };
    let found = found.ok_or_else(|| no_service(None))?;
    let asks = match found {
        TcpFound::Service { service, .. } => table.tcp_asks_server_name(service),
        TcpFound::ByServerName { .. } => true,
    };
    let server_name = if asks { server_name(worker, conn, input).await? } else { None };
    let server_name = server_name.as_deref();
    let (service, endpoint) = match found {
        TcpFound::Service { service, endpoint } => (service, endpoint),
        TcpFound::ByServerName { port, otherwise } => {
            let service = table.tcp_by_server_name(viewpoint, server_name, port, otherwise);
            (service.ok_or_else(|| no_service(server_name))?, None)
        }
    };
    let view = TcpView { server_name, destination: meant.map(|address| address.ip()) };
    let Some((rule, _)) = table.tcp_route(viewpoint, service, view, &mut Silent) else {
        let name = server_name.map(|name| format!(" the server name {name:?}")).unwrap_or_default();
        let service = &table.tcp_services[service];
        let origin = table.origin(OriginId::from(&service.origin));
        return Err(Refused::NoRule { service: format!("{origin}, port {}", service.port), name });
    };
    let (first, count) = (rule.first.to_native() as usize, rule.count.to_native() as usize);
    let destinations = &table.destinations[first..first + count];
    let id = ClusterId::from(&route::by_weight(destinations, rule.weight_sum.to_native(), &worker.random).cluster);
    let cluster = pinned.cluster(id, &worker.clusters, &worker.endpoints);
    // A rule of a VirtualService chooses the endpoint by itself.
    let endpoint = endpoint.filter(|_| rule.list == ArchivedTcpList::Service);
    Ok(To::Cluster { rule, id, cluster, meant, endpoint })
}

/// The server name in the ClientHello, which stays in the input. Other protocols have none.
async fn server_name(worker: &Worker, conn: &mut Conn, input: &mut Input) -> Result<Option<String>, HandshakeError> {
    let sniffed = handshake::sniff(worker, conn, input.unread()).await?;
    input.clear();
    input.extend(sniffed.bytes());
    Ok(sniffed.hello()?.and_then(|hello| hello.server_name))
}

/// A connection to one of the endpoints. Nothing was sent to those that fail, so that another one may be tried.
async fn leased(worker: &Rc<Worker>, pinned: &Pinned, to: &To<'_>) -> Result<Lease, Refused> {
    let mut tried: Option<Rc<Endpoint>> = None;
    let mut attempt = 1;
    loop {
        let Some(endpoint) = to.choose(worker, pinned, tried.as_ref()) else { return Err(to.no_endpoint(pinned)) };
        match connected(worker, &endpoint, to.slot(), Offer::Bytes).await {
            Ok(lease) => return Ok(lease),
            Err((_, true)) if attempt < ATTEMPTS_MAX => {}
            Err((denial, _)) => {
                let (code, what) = match denial {
                    Denial::ConnectFailed { address, error } if error.kind() == io::ErrorKind::TimedOut => {
                        ("tcp.connect_timeout", format!("{address}: {error}"))
                    }
                    Denial::ConnectFailed { address, error } => ("tcp.connect_failed", format!("{address}: {error}")),
                    Denial::TlsFailed { address, error } => (error.code(), format!("{address}: {error}")),
                    Denial::Exhausted { code, error } => (code, error.to_string()),
                    other => ("tcp.connect_failed", other.text().trim_end().to_owned()),
                };
                return Err(Refused::Upstream { code, what, rule: to.rule(pinned) });
            }
        }
        worker.stats.add(Counter::UpstreamRetries, 1);
        tried = Some(endpoint);
        attempt += 1;
    }
}
