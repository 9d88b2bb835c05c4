//! What an explanation consists of; the CLI prints it, `-o json` gives it as it is.

use meshring_core::{http::Refusal, id::Generation, table::model::Settings};
use serde::{Deserialize, Serialize};

use super::{access::FoundAccess, spoken::Spoken, target::SeenPath};

/// The whole story of one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The generation that decides.
    pub generation: Generation,
    /// The request in one line: `GET http://reviews/ from default/productpage-v1`.
    pub request: String,
    /// Labels of the calling workload, where the configuration knows it.
    pub labels: Vec<String>,
    /// What holds for every request of this generation.
    #[serde(default)]
    pub mesh: MeshSettings,
    /// The path as rules and the upstream see it.
    #[serde(default)]
    pub path: SeenPath,
    /// Why the request is answered with an error: before anything is looked up, or for what a rewrite makes of its path.
    #[serde(default)]
    pub refusal: Option<Refused>,
    /// Names that were looked for, in this order.
    pub resolution: Vec<Step>,
    /// What decides: `forward`, `http` (of a connection: its requests do), `no_service`, `redirect`, `direct_response`, `unknown_host`, `unknown_port`, `no_rule`, `refused`.
    pub outcome: String,
    /// The same for people.
    pub summary: String,
    /// The virtual host that was found.
    pub virtual_host: Option<FoundHost>,
    /// Rules before the chosen one, and why they do not match.
    pub skipped: Vec<SkippedRule>,
    /// The chosen rule.
    pub rule: Option<ChosenRule>,
    /// Where to, by weight.
    pub destinations: Vec<FoundDestination>,
    /// What the workloads there say to it: each answer once.
    #[serde(default)]
    pub access: Vec<FoundAccess>,
    /// Which way the connections take, hop by hop: around TCP, or by it.
    #[serde(default)]
    pub connections: Vec<Hop>,
    /// Known names that resemble an unknown host.
    pub suggestions: Vec<String>,
}

/// A connection that the request would use, on the caller's side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// `application to proxy`, `proxy to 127.0.0.1:9080`.
    pub between: String,
    /// `bypass` or `tcp`, and why.
    pub path: String,
}

/// What holds for every request (Istio `MeshConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MeshSettings {
    /// `pathNormalization.normalization`.
    pub path_normalization: String,
    /// `defaultConfig.gatewayTopology.numTrustedProxies`.
    pub trusted_hops: u8,
    /// Whether a request without `X-Request-Id` gets one.
    pub request_id: bool,
}

impl From<Settings> for MeshSettings {
    fn from(settings: Settings) -> Self {
        let Settings { path_normalization, trusted_hops, request_id, .. } = settings;
        Self { path_normalization: path_normalization.as_str().to_owned(), trusted_hops, request_id }
    }
}

impl std::fmt::Display for MeshSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (hops, ids) = (self.trusted_hops, if self.request_id { "added" } else { "not added" });
        write!(f, "paths {}, trusted hops {hops}, request ids {ids}", self.path_normalization)
    }
}

/// A request that a proxy answers with an error and forwards to nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The status of the answer.
    pub status: u16,
    /// As the access log has it: `http1.path_escapes_root`.
    pub code: String,
    /// In words.
    pub reason: String,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { status: refusal.status(), code: refusal.code().to_owned(), reason: refusal.to_string() }
    }
}

/// A name that was looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The name, wildcards as `*.example.com`.
    pub name: String,
    /// Whether the table has it. It may still be invisible to the caller, or not on this port.
    pub found: bool,
}

/// The virtual host that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundHost {
    /// Its domain.
    pub domain: String,
    /// The service port, 0 for any.
    pub port: u16,
    /// The only namespace that sees it, where there is one.
    pub scope: Option<String>,
    /// `VirtualService default/reviews (reviews.yaml:4)`.
    pub origin: String,
    /// Number of rules.
    pub rules: u32,
}

/// A rule that does not match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedRule {
    /// `http[0]`.
    pub rule: String,
    /// Its name, or empty.
    pub name: String,
    /// `reviews.yaml:10`.
    pub place: String,
    /// The condition that fails, per alternative.
    pub alternatives: Vec<FailedMatch>,
}

/// The first condition of a match that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedMatch {
    /// `match[0]`.
    pub alternative: String,
    /// `reviews.yaml:12`.
    pub place: String,
    /// `headers[end-user] exact "jason"`.
    pub expected: String,
    /// `the request has no such header`.
    pub actual: String,
}

/// The rule that decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChosenRule {
    /// `http[0]`.
    pub rule: String,
    /// Its name, or empty.
    pub name: String,
    /// `reviews.yaml:10`, or the place of the service where no rule is written.
    pub place: String,
    /// Which alternative matches and where it stands, or that the rule matches everything.
    pub because: String,
    /// From the request's head to the end of the response, in milliseconds; 0 for none.
    pub timeout_ms: u32,
    /// Redirect or direct response, for people.
    pub answer: Option<String>,
    /// Rewrite of the request, for people.
    pub rewrite: Vec<String>,
    /// Edits of the request's headers.
    pub request_headers: Vec<String>,
    /// Edits of the response's headers.
    pub response_headers: Vec<String>,
}

/// A weighted destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FoundDestination {
    /// `outbound|9080|v1|reviews.default.svc.cluster.local`.
    pub cluster: String,
    /// As configured.
    pub weight: u32,
    /// Of all requests that come to this rule.
    pub percent: f64,
    /// How an endpoint is chosen.
    pub policy: String,
    /// What is spoken with them.
    #[serde(default)]
    pub spoken: Spoken,
    /// Number of endpoints.
    pub endpoint_count: u32,
    /// The first of them.
    pub endpoints: Vec<String>,
    /// Why there are none.
    pub problem: Option<String>,
    /// Edits of the request's headers for this destination alone.
    pub request_headers: Vec<String>,
    /// Edits of the response's headers for this destination alone.
    pub response_headers: Vec<String>,
}
