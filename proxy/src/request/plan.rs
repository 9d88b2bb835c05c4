//! What was decided about a request: where it goes and what becomes of it on the way.

use std::{net::SocketAddr, rc::Rc};

use meshring_core::{
    http::head::Bounds,
    table::model::{ArchivedClusterKind, UpstreamProtocol},
};

use super::lease::Http2;

use crate::{
    accept::Listener,
    balance::ClusterState,
    policy::Edits,
    route::{self, Forward, Request},
    upstream::Endpoint,
    worker::{
        Worker,
        conn::{Conn, Meant},
        deadlines::now_ms,
        generation::{ClusterShared, Pinned},
    },
};

/// Where a request goes.
pub(super) enum Target<'g> {
    /// To an endpoint of a cluster of the table.
    Cluster {
        chosen: Forward<'g>,
        cluster: Rc<ClusterState>,
        /// Host as an address, for clusters without endpoints of their own.
        literal: Option<SocketAddr>,
    },
    /// To the application beside this proxy.
    Application { endpoint: Rc<Endpoint>, shared: Rc<ClusterShared> },
}

/// All that was decided about a request.
pub(super) struct Plan<'g> {
    pub(super) target: Target<'g>,
    pub(super) response_edits: Edits<'g>,
    /// From the end of the request head to the end of the response; 0 for none.
    pub(super) timeout_ms: u32,
    /// Ready lines for the response.
    pub(super) extra: Vec<u8>,
}

impl Target<'_> {
    pub(super) fn slot(&self) -> usize {
        match self {
            Self::Cluster { cluster, .. } => cluster.shared.slot,
            Self::Application { shared, .. } => shared.slot,
        }
    }

    pub(super) fn choose(
        &self,
        worker: &Worker,
        pinned: &Pinned,
        conn: &Conn,
        tried: Option<&Rc<Endpoint>>,
    ) -> Option<Rc<Endpoint>> {
        match self {
            Self::Application { endpoint, .. } => Some(Rc::clone(endpoint)),
            Self::Cluster { chosen, cluster, literal } => {
                let table = pinned.table();
                if table.cluster(chosen.cluster()).kind == ArchivedClusterKind::OriginalDestination {
                    let meant = conn.original_destination().or(*literal);
                    return meant.map(|address| cluster.elsewhere(&worker.endpoints, address));
                }
                cluster.choose(table, &worker.endpoints, &worker.random, now_ms(), tried)
            }
        }
    }

    /// Whether HTTP/2 is spoken there. `is_stream`: the client speaks it.
    pub(super) fn http2(&self, pinned: &Pinned, is_stream: bool) -> Http2 {
        let table = pinned.table();
        let (protocol, streams_max) = match self {
            Self::Application { endpoint, .. } => {
                (table.application_protocol(pinned.viewpoint(), endpoint.address().port()), 0)
            }
            Self::Cluster { chosen, .. } => {
                let cluster = table.cluster(chosen.cluster());
                (cluster.protocol.into(), cluster.max_streams.to_native())
            }
        };
        match protocol {
            UpstreamProtocol::Http2 => Http2::Yes { streams_max },
            UpstreamProtocol::Downstream if is_stream => Http2::LikeClient { streams_max },
            UpstreamProtocol::Http1 | UpstreamProtocol::Tcp | UpstreamProtocol::Downstream => Http2::No,
        }
    }

    /// How large its response heads may be: the application's own, or what another sidecar has made of them.
    pub(super) fn response_bounds(&self) -> Bounds {
        match self {
            Self::Application { .. } => Bounds::FIRST_HOP,
            Self::Cluster { .. } => Bounds::NEXT_HOP,
        }
    }

    /// For people, in the body of a 503.
    pub(super) fn why_no_endpoint(&self, pinned: &Pinned) -> String {
        let Self::Cluster { chosen, .. } = self else { return "the application".into() };
        let cluster = pinned.table().cluster(chosen.cluster());
        let why = match cluster.kind {
            ArchivedClusterKind::Static => "it has no endpoint",
            ArchivedClusterKind::OriginalDestination => {
                "it forwards to the address that the client meant, but the connection was not intercepted and Host is no address"
            }
            ArchivedClusterKind::NoSuchService => "no Service or ServiceEntry defines this host",
            ArchivedClusterKind::NoSuchSubset => "no DestinationRule defines this subset",
            ArchivedClusterKind::NoSuchPort => "the service has no such port",
        };
        format!("cluster {}: {why}; chosen by {}", cluster.name, route::describe_rule(pinned, chosen.rule))
    }
}

/// The port that the client of an intercepted connection meant, as Istio's sidecars have a listener for each: Host need not name it.
pub(super) fn meant_port(conn: &Conn, listener: &Listener) -> Option<u16> {
    let ask = || match conn.meant(listener.address, listener.is_untracked()) {
        // A listener on all addresses is met at one of them.
        Meant::Address(meant) => Some(meant.port()).filter(|&port| port != listener.address.port()),
        Meant::Listener => None,
        Meant::Untracked => {
            listener.note_untracked();
            None
        }
    };
    conn.meant_port(ask)
}

/// Host as a literal address, for clusters that forward to what the client meant.
pub(super) fn request_address(request: &Request<'_>) -> Option<SocketAddr> {
    let text = std::str::from_utf8(request.text(request.head.authority)).ok()?;
    let ip = text.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
    Some(SocketAddr::new(ip, request.head.port.unwrap_or(80)))
}
