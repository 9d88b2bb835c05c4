//! Who may come to a workload, over which connection, and how a workload reaches others: the archived types behind
//! Istio's PeerAuthentication, RequestAuthentication, AuthorizationPolicy, `DestinationRule.trafficPolicy.tls` and a
//! Gateway's `servers[].tls`. Keys and certificates are never in here: a [material](crate::identity) is named, and
//! travels on the link.

use rkyv::{Archive, Deserialize, Serialize};

use crate::id::OriginId;

/// `tls` of a cluster that needs none.
pub const TLS_NONE: u32 = u32::MAX;
/// A workload, namespace or mesh about which no security resource says anything.
pub const POLICY_NONE: u32 = u32::MAX;

/// What an inbound connection must be (Istio `PeerAuthentication.mtls.mode`).
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq, Debug))]
pub enum MtlsMode {
    /// Mutual TLS or plain text, told apart by the first byte. Istio's default.
    #[default]
    Permissive,
    /// Mutual TLS only.
    Strict,
    /// Plain text only.
    Disable,
}

impl MtlsMode {
    /// As Istio writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Permissive => "PERMISSIVE",
            Self::Strict => "STRICT",
            Self::Disable => "DISABLE",
        }
    }
}

impl From<ArchivedServerTlsMode> for ServerTlsMode {
    fn from(mode: ArchivedServerTlsMode) -> Self {
        match mode {
            ArchivedServerTlsMode::Simple => Self::Simple,
            ArchivedServerTlsMode::Mutual => Self::Mutual,
            ArchivedServerTlsMode::OptionalMutual => Self::OptionalMutual,
            ArchivedServerTlsMode::IstioMutual => Self::IstioMutual,
        }
    }
}

impl From<ArchivedClusterTlsMode> for ClusterTlsMode {
    fn from(mode: ArchivedClusterTlsMode) -> Self {
        match mode {
            ArchivedClusterTlsMode::AutoMutual => Self::AutoMutual,
            ArchivedClusterTlsMode::IstioMutual => Self::IstioMutual,
            ArchivedClusterTlsMode::Simple => Self::Simple,
            ArchivedClusterTlsMode::Mutual => Self::Mutual,
        }
    }
}

impl From<ArchivedMtlsMode> for MtlsMode {
    fn from(mode: ArchivedMtlsMode) -> Self {
        match mode {
            ArchivedMtlsMode::Permissive => Self::Permissive,
            ArchivedMtlsMode::Strict => Self::Strict,
            ArchivedMtlsMode::Disable => Self::Disable,
        }
    }
}

/// Everything that holds for requests to one workload: all policies that select it, resolved.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[rkyv(derive(Debug))]
pub struct InboundPolicy {
    /// For ports that are not listed.
    pub mtls: MtlsMode,
    /// `portLevelMtls`: the application's ports, sorted.
    pub port_mtls: Vec<(u16, MtlsMode)>,
    /// The PeerAuthentication that decides, if any.
    pub mtls_origin: Option<OriginId>,
    /// Positions in `authorization` whose action is CUSTOM, then DENY, then ALLOW, then AUDIT: Istio's order. Within an
    /// action by namespace and name.
    pub authorization: Vec<u32>,
    /// Positions in `jwt_rules`.
    pub jwt_rules: Vec<u32>,
    /// TLS that this workload ends as a gateway.
    pub gateways: Vec<ServerTls>,
    /// Ports of this workload's listeners that are a gateway's for HTTP without TLS, sorted.
    pub plain_gateway_ports: Vec<u16>,
}

/// TLS of a gateway's port (Istio `Gateway.servers[]`).
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct ServerTls {
    /// `port.number`: the listener's port.
    pub port: u16,
    /// Server names, lower case; `*.example.com` is stored as `.example.com`, `*` as `*`. The most specific one wins.
    pub hosts: Vec<String>,
    /// `tls.mode`.
    pub mode: ServerTlsMode,
    /// The [material](crate::identity) with chain and key, and for MUTUAL the roots of clients.
    pub material: String,
    /// `tls.subjectAltNames`: one of them must be in the client's certificate; empty for any.
    pub subject_alt_names: Vec<String>,
    /// Whether TLS 1.2 is allowed (`minProtocolVersion` below `TLSV1_3`).
    pub tls12: bool,
    /// Where it stands.
    pub origin: OriginId,
}

/// `Gateway.servers[].tls.mode`.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq, Debug))]
pub enum ServerTlsMode {
    /// `SIMPLE`.
    Simple,
    /// `MUTUAL`.
    Mutual,
    /// `OPTIONAL_MUTUAL`.
    OptionalMutual,
    /// `ISTIO_MUTUAL`: with the workload's own identity.
    IstioMutual,
}

/// How connections to a cluster's endpoints are secured.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Hash)]
#[rkyv(derive(Debug))]
pub struct ClusterTls {
    /// How.
    pub mode: ClusterTlsMode,
    /// `sni`; empty: for Istio's modes the cluster's name in Istio's form, else the request's host where that is a name.
    pub sni: String,
    /// `subjectAltNames`, or for Istio's modes the SPIFFE ids of the endpoints' service accounts. One of them must be in
    /// the server's certificate. Empty: for Istio's modes any identity of the trust domains, else the name in `sni`.
    pub subject_alt_names: Vec<String>,
    /// The [material](crate::identity) with the client's chain and key, and the roots; empty for Istio's modes, which
    /// use the workload's own identity, and for SIMPLE with the system's roots.
    pub material: String,
    /// `insecureSkipVerify`.
    pub insecure_skip_verify: bool,
}

/// `ClientTLSSettings.mode`. DISABLE is [`TLS_NONE`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq, Debug))]
pub enum ClusterTlsMode {
    /// No rule: mutual TLS to endpoints that have a sidecar ([`Reach`](super::model::Reach)), plain text
    /// to others.
    AutoMutual,
    /// `ISTIO_MUTUAL`.
    IstioMutual,
    /// `SIMPLE`.
    Simple,
    /// `MUTUAL`.
    Mutual,
}

/// One issuer whose tokens a workload takes (Istio `RequestAuthentication.jwtRules[]`).
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct JwtRule {
    /// Where it stands.
    pub origin: OriginId,
    /// Line of the rule in its file, from 1.
    pub line: u32,
    /// `issuer`: equal to the claim `iss`.
    pub issuer: String,
    /// `audiences`: one of them must be in `aud`; empty for any.
    pub audiences: Vec<String>,
    /// The JWK set (RFC 7517) as JSON text: `jwks`, or what control has fetched from `jwksUri`. Empty: it could not be
    /// fetched yet, and every token of this issuer is refused.
    pub jwks: String,
    /// `fromHeaders`: lower-case name and prefix.
    pub from_headers: Vec<(String, String)>,
    /// `fromParams`.
    pub from_params: Vec<String>,
    /// `fromCookies`.
    pub from_cookies: Vec<String>,
    /// `forwardOriginalToken`.
    pub forward: bool,
    /// `outputPayloadToHeader`: lower-case name, or empty.
    pub output_payload_to_header: String,
    /// `outputClaimToHeaders`: lower-case header name and claim, whose parts are separated by dots.
    pub output_claims: Vec<(String, String)>,
    /// `spaceDelimitedClaims`: claims whose words are separate values, beside `scope` and `permission`.
    pub space_delimited_claims: Vec<String>,
}
