//! What is spoken with whom, HTTP of some version or bytes: with the endpoints of a cluster, and with the application beside a proxy.

use rkyv::{Archive, Deserialize, Serialize};

use super::{lookup::Viewpoint, model::ArchivedTable};

/// A workload about whose ports no service says what they speak.
pub const PROTOCOLS_NONE: u32 = u32::MAX;

/// Where a workload takes tunnels over mutual TLS (HBONE), in Istio's sidecars as in its ztunnel.
pub const HBONE_PORT: u16 = 15_008;

/// What is spoken with an upstream.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord, Hash)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq, Debug))]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, in clear text by prior knowledge (RFC 9113 section 3.3), over TLS by ALPN.
    Http2,
    /// Bytes: nothing is known of HTTP there.
    Tcp,
    /// As the client does: HTTP/2 for what came over HTTP/2. Where nothing says more.
    #[default]
    Downstream,
}

impl UpstreamProtocol {
    /// For people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::Tcp => "bytes",
            Self::Downstream => "as the client does",
        }
    }
}

impl From<ArchivedUpstreamProtocol> for UpstreamProtocol {
    fn from(protocol: ArchivedUpstreamProtocol) -> Self {
        match protocol {
            ArchivedUpstreamProtocol::Http1 => Self::Http1,
            ArchivedUpstreamProtocol::Http2 => Self::Http2,
            ArchivedUpstreamProtocol::Tcp => Self::Tcp,
            ArchivedUpstreamProtocol::Downstream => Self::Downstream,
        }
    }
}

/// What a workload's application speaks: its ports (`targetPort`), sorted, each once.
pub type ApplicationPorts = Vec<(u16, UpstreamProtocol)>;

impl ArchivedTable {
    /// What the application beside a proxy speaks on one of its ports. [`UpstreamProtocol::Downstream`] where nothing
    /// says so.
    #[must_use]
    pub fn application_protocol(&self, viewpoint: &Viewpoint, port: u16) -> UpstreamProtocol {
        self.listed_protocol(viewpoint, port).unwrap_or_default()
    }

    /// Likewise; [`UpstreamProtocol::Downstream`] only where a service leads to the port without saying what it speaks, `None` where
    /// none does.
    #[must_use]
    pub fn listed_protocol(&self, viewpoint: &Viewpoint, port: u16) -> Option<UpstreamProtocol> {
        let ports = viewpoint.protocols.map_or(&[][..], |position| &self.application_ports[position]);
        let found = ports.binary_search_by_key(&port, |pair| pair.0.to_native()).ok()?;
        Some(ports[found].1.into())
    }
}
