//! Which HTTP the caller's sidecar speaks with a destination, and why.

use std::fmt;

use meshring_core::table::model::{ArchivedCluster, UpstreamProtocol};
use serde::{Deserialize, Serialize};

use super::access::connection;
use crate::spec::{
    World,
    upstream_protocol::{self, Because},
};

/// What is spoken with a destination.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Spoken {
    /// `HTTP/1.1`, `HTTP/2`, `as the client does`.
    pub protocol: String,
    /// Why, for people; empty where the resources in effect no longer tell it.
    pub because: String,
    /// Most streams on one HTTP/2 connection at a time; 0 for as many as the server allows.
    pub max_streams: u32,
}

impl fmt::Display for Spoken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.protocol)?;
        if self.max_streams > 0 {
            write!(f, ", at most {} streams on a connection", self.max_streams)?;
        }
        if self.because.is_empty() { Ok(()) } else { write!(f, ": {}", self.because) }
    }
}

impl Spoken {
    pub(super) fn with(world: &World, cluster: &ArchivedCluster, client: &str) -> Self {
        let protocol = UpstreamProtocol::from(cluster.protocol);
        Self {
            protocol: protocol.as_str().to_owned(),
            because: because(world, &cluster.name, client, protocol).unwrap_or_default(),
            max_streams: cluster.max_streams.to_native(),
        }
    }
}

fn because(world: &World, cluster: &str, client: &str, protocol: UpstreamProtocol) -> Option<String> {
    let (number, subset, _) = connection::parts(cluster)?;
    let (service, rule) = connection::service_and_rule(world, cluster, client)?;
    let port = &service.ports[service.port_index(number)?];
    let subset = rule.and_then(|rule| rule.subset(subset).filter(|_| !subset.is_empty()));
    let pool = rule.and_then(|rule| rule.connection_pool(number, subset));
    let (found, because) = upstream_protocol::outbound(port.protocol, pool, world.h2_upgrade());
    if found != protocol {
        return None;
    }
    Some(match because {
        Because::Port(_) if port.name.as_str().is_empty() => because.to_string(),
        Because::Port(_) => format!("{because} (`{}`)", port.name),
        Because::MeshUpgradePolicy => because.to_string(),
        Because::ClientProtocol | Because::UpgradePolicy => {
            let resource = &world.resources()[*rule?.resources.first()?];
            format!("{because} of {} ({})", resource.key, resource.place)
        }
    })
}
