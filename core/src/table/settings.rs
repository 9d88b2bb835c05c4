//! What holds for the whole mesh (Istio `MeshConfig`).

use rkyv::{Archive, Deserialize, Serialize};

use super::ArchivedTable;

/// Istio's default for `MeshConfig.trustDomain`.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// What holds for every request (Istio `MeshConfig`). Plain values: [`ArchivedTable::settings`] copies them out.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct Settings {
    /// `pathNormalization.normalization`.
    pub path_normalization: PathNormalization,
    /// `defaultConfig.gatewayTopology.numTrustedProxies`: how many hops before a proxy are believed in what their
    /// forwarding fields say. At most [`crate::limits::TRUSTED_HOPS_MAX`].
    pub trusted_hops: u8,
    /// Whether a request without `X-Request-Id` gets one (`defaultConfig.proxyHeaders.requestId.disabled`, inverted).
    pub request_id: bool,
    /// Whether mutual TLS between workloads may be TLS 1.2 (`meshMTLS.minProtocolVersion` below `TLSV1_3`). Both ends of
    /// ours prefer 1.3.
    pub mesh_tls12: bool,
    /// `defaultConfig.gatewayTopology.forwardClientCertDetails`, on the ports where gateways end TLS.
    pub gateway_client_certificate: ForwardClientCertificate,
}

impl Default for Settings {
    /// Without a `MeshConfig`: the safest normalisation, nobody is trusted, requests get an id.
    fn default() -> Self {
        Self {
            path_normalization: PathNormalization::DecodeAndMergeSlashes,
            trusted_hops: 0,
            request_id: true,
            mesh_tls12: true,
            gateway_client_certificate: ForwardClientCertificate::SanitizeSet,
        }
    }
}

/// What becomes of X-Forwarded-Client-Cert (Istio `Topology.forwardClientCertDetails`, Envoy `forward_client_cert_details`).
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub enum ForwardClientCertificate {
    /// No request has one.
    Sanitize,
    /// A client with a certificate may say what it wants.
    ForwardOnly,
    /// What a client with a certificate says, and ours behind it.
    AppendForward,
    /// Ours, of clients with a certificate. Istio's default for gateways.
    SanitizeSet,
    /// Whoever comes may say what it wants.
    AlwaysForwardOnly,
}

impl ForwardClientCertificate {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Sanitize, Self::ForwardOnly, Self::AppendForward, Self::SanitizeSet, Self::AlwaysForwardOnly];

    /// As Istio writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sanitize => "SANITIZE",
            Self::ForwardOnly => "FORWARD_ONLY",
            Self::AppendForward => "APPEND_FORWARD",
            Self::SanitizeSet => "SANITIZE_SET",
            Self::AlwaysForwardOnly => "ALWAYS_FORWARD_ONLY",
        }
    }
}

/// How far paths are normalised before anything looks at them (Istio
/// `MeshConfig.ProxyPathNormalization.NormalizationType`). Each level does what the ones before it do, and more.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[rkyv(derive(Debug))]
pub enum PathNormalization {
    /// As sent.
    None,
    /// RFC 3986 section 6.2.2: escapes of unreserved characters decoded, dot segments removed.
    Base,
    /// `//` becomes `/`.
    MergeSlashes,
    /// `%2F` and `%5C` become `/` before the rest.
    DecodeAndMergeSlashes,
}

impl PathNormalization {
    /// All of them, from the weakest to the strictest.
    pub const ALL: [Self; 4] = [Self::None, Self::Base, Self::MergeSlashes, Self::DecodeAndMergeSlashes];

    /// As Istio writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Base => "BASE",
            Self::MergeSlashes => "MERGE_SLASHES",
            Self::DecodeAndMergeSlashes => "DECODE_AND_MERGE_SLASHES",
        }
    }
}

impl ArchivedTable {
    /// What holds for every request.
    #[inline]
    #[must_use]
    pub fn settings(&self) -> Settings {
        let path_normalization = match self.settings.path_normalization {
            ArchivedPathNormalization::None => PathNormalization::None,
            ArchivedPathNormalization::Base => PathNormalization::Base,
            ArchivedPathNormalization::MergeSlashes => PathNormalization::MergeSlashes,
            ArchivedPathNormalization::DecodeAndMergeSlashes => PathNormalization::DecodeAndMergeSlashes,
        };
        let gateway_client_certificate = match self.settings.gateway_client_certificate {
            ArchivedForwardClientCertificate::Sanitize => ForwardClientCertificate::Sanitize,
            ArchivedForwardClientCertificate::ForwardOnly => ForwardClientCertificate::ForwardOnly,
            ArchivedForwardClientCertificate::AppendForward => ForwardClientCertificate::AppendForward,
            ArchivedForwardClientCertificate::SanitizeSet => ForwardClientCertificate::SanitizeSet,
            ArchivedForwardClientCertificate::AlwaysForwardOnly => ForwardClientCertificate::AlwaysForwardOnly,
        };
        let ArchivedSettings { trusted_hops, request_id, mesh_tls12, .. } = self.settings;
        Settings { path_normalization, trusted_hops, request_id, mesh_tls12, gateway_client_certificate }
    }
}
