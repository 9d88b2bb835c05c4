//! Which HTTP is spoken with a port of a service: Istio's rules, for those who call it and for the application itself.

use std::fmt;

use meshring_core::table::model::UpstreamProtocol;

use super::{destination_rule::ConnectionPool, value::Protocol};

/// What decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// `connectionPool.http.useClientProtocol` of the DestinationRule.
    ClientProtocol,
    /// `connectionPool.http.h2UpgradePolicy` of the DestinationRule.
    UpgradePolicy,
    /// `h2UpgradePolicy` of the MeshConfig.
    MeshUpgradePolicy,
    /// What the port speaks.
    Port(Protocol),
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClientProtocol => "useClientProtocol",
            Self::UpgradePolicy => "h2UpgradePolicy",
            Self::MeshUpgradePolicy => "h2UpgradePolicy of the MeshConfig",
            Self::Port(Protocol::Http) => "the port is HTTP",
            Self::Port(Protocol::Http2) => "the port is HTTP/2",
            Self::Port(Protocol::Grpc) => "the port is gRPC",
            Self::Port(Protocol::Unknown) => "neither name nor appProtocol of the port says anything",
            Self::Port(Protocol::Tls) => "the port is TLS, which is passed on",
            Self::Port(Protocol::Tcp) => "the port is TCP",
            Self::Port(Protocol::Udp) => "the port is not HTTP",
        })
    }
}

/// What is spoken with the endpoints of a port. `mesh_upgrade`: `MeshConfig.h2UpgradePolicy`.
pub fn outbound(
    port: Protocol,
    pool: Option<&ConnectionPool>,
    mesh_upgrade: Option<bool>,
) -> (UpstreamProtocol, Because) {
    if of_port(port) == UpstreamProtocol::Tcp {
        return (UpstreamProtocol::Tcp, Because::Port(port));
    }
    if pool.is_some_and(|pool| pool.use_client_protocol) {
        return (UpstreamProtocol::Downstream, Because::ClientProtocol);
    }
    let rule = pool.and_then(|pool| pool.h2_upgrade);
    match (of_port(port), rule, mesh_upgrade) {
        (UpstreamProtocol::Http2, ..) => (UpstreamProtocol::Http2, Because::Port(port)),
        // Whoever says so for this very destination knows what it speaks.
        (_, Some(true), _) => (UpstreamProtocol::Http2, Because::UpgradePolicy),
        (UpstreamProtocol::Http1, Some(false), _) => (UpstreamProtocol::Http1, Because::UpgradePolicy),
        (UpstreamProtocol::Http1, None, Some(true)) => (UpstreamProtocol::Http2, Because::MeshUpgradePolicy),
        (spoken, ..) => (spoken, Because::Port(port)),
    }
}

/// What is spoken with the application behind a port: upgrades are for the hop between two sidecars.
pub fn inbound(port: Protocol, pool: Option<&ConnectionPool>) -> UpstreamProtocol {
    match of_port(port) {
        UpstreamProtocol::Tcp => UpstreamProtocol::Tcp,
        _ if pool.is_some_and(|pool| pool.use_client_protocol) => UpstreamProtocol::Downstream,
        spoken => spoken,
    }
}

fn of_port(port: Protocol) -> UpstreamProtocol {
    match port {
        // gRPC-Web too, as in Istio.
        Protocol::Http2 | Protocol::Grpc => UpstreamProtocol::Http2,
        Protocol::Http => UpstreamProtocol::Http1,
        Protocol::Tls | Protocol::Tcp => UpstreamProtocol::Tcp,
        Protocol::Unknown | Protocol::Udp => UpstreamProtocol::Downstream,
    }
}

#[cfg(test)]
mod tests {
    use super::{UpstreamProtocol::*, *};

    fn pool(h2_upgrade: Option<bool>, use_client_protocol: bool) -> ConnectionPool {
        ConnectionPool { h2_upgrade, use_client_protocol, max_concurrent_streams: 0 }
    }

    #[test]
    fn ports_rules_and_mesh_decide_as_in_istio() {
        let silent = pool(None, false);
        for (port, pool, mesh, expected) in [
            (Protocol::Http, None, None, (Http1, Because::Port(Protocol::Http))),
            (Protocol::Http, Some(silent), Some(false), (Http1, Because::Port(Protocol::Http))),
            (Protocol::Http, Some(silent), Some(true), (Http2, Because::MeshUpgradePolicy)),
            (Protocol::Http, Some(pool(Some(true), false)), Some(false), (Http2, Because::UpgradePolicy)),
            (Protocol::Http, Some(pool(Some(false), false)), Some(true), (Http1, Because::UpgradePolicy)),
            (Protocol::Http, Some(pool(None, true)), Some(true), (Downstream, Because::ClientProtocol)),
            (Protocol::Grpc, None, Some(false), (Http2, Because::Port(Protocol::Grpc))),
            (Protocol::Grpc, Some(pool(Some(false), false)), None, (Http2, Because::Port(Protocol::Grpc))),
            (Protocol::Http2, Some(pool(None, true)), None, (Downstream, Because::ClientProtocol)),
            (Protocol::Tcp, Some(pool(Some(true), true)), Some(true), (Tcp, Because::Port(Protocol::Tcp))),
            (Protocol::Unknown, None, Some(true), (Downstream, Because::Port(Protocol::Unknown))),
            (Protocol::Unknown, Some(pool(Some(true), false)), None, (Http2, Because::UpgradePolicy)),
            (Protocol::Unknown, Some(pool(Some(false), false)), None, (Downstream, Because::Port(Protocol::Unknown))),
        ] {
            assert_eq!(outbound(port, pool.as_ref(), mesh), expected, "{port:?} {pool:?} {mesh:?}");
        }
    }

    #[test]
    fn an_application_is_spoken_to_as_its_port_says_whatever_is_upgraded_before_it() {
        for (port, pool, expected) in [
            (Protocol::Http, Some(pool(Some(true), false)), Http1),
            (Protocol::Http, Some(pool(None, true)), Downstream),
            (Protocol::Grpc, None, Http2),
            (Protocol::Unknown, None, Downstream),
            (Protocol::Tcp, Some(pool(Some(true), true)), Tcp),
            (Protocol::Tls, None, Tcp),
        ] {
            assert_eq!(inbound(port, pool.as_ref()), expected, "{port:?} {pool:?}");
        }
    }
}
