//! Istio's RequestAuthentication: which issuers' tokens a workload takes.
//!
//! All that select a workload hold for it together: those of its namespace and those of the root namespace, which select
//! in every namespace.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Body, Kind, Position, World, rules::precedence, scope::Scope};

/// How long one fetch of a key set may take where the rule does not say, in milliseconds (Istio's default of `timeout`).
pub const FETCH_MS: u64 = 5_000;

/// `security.istio.io` RequestAuthentication.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestAuthentication {
    /// `selector` or `targetRefs`.
    #[serde(flatten)]
    pub scope: Scope,
    /// `jwtRules`.
    pub rules: Vec<JwtRule>,
}

/// One of `jwtRules`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JwtRule {
    /// Where it begins.
    pub at: Position,
    /// `issuer`; empty: any, with `jwksUri` only.
    pub issuer: Arc<str>,
    /// `audiences`; empty: any.
    pub audiences: Vec<Arc<str>>,
    /// `jwks`, `jwksUri`, or what the issuer's discovery document says.
    pub keys: Keys,
    /// `fromHeaders`: lower-case name and prefix.
    pub from_headers: Vec<(Arc<str>, Arc<str>)>,
    /// `fromParams`.
    pub from_params: Vec<Arc<str>>,
    /// `fromCookies`.
    pub from_cookies: Vec<Arc<str>>,
    /// `forwardOriginalToken`.
    pub forward: bool,
    /// `outputPayloadToHeader`, lower case.
    pub output_payload_to_header: Option<Arc<str>>,
    /// `outputClaimToHeaders`: lower-case header and claim.
    pub output_claims: Vec<(Arc<str>, Arc<str>)>,
    /// `spaceDelimitedClaims`.
    pub space_delimited_claims: Vec<Arc<str>>,
}

/// Where an issuer's keys are.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Keys {
    /// `jwks`: a JWK set as JSON. It wins over `jwksUri`, as in Istio.
    Inline(Arc<str>),
    /// To be fetched.
    Fetched(KeySource),
    /// Nowhere: the issuer is no URL, and nothing else is said.
    Nowhere,
}

/// A key set that control fetches.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeySource {
    /// `http` or `https`.
    pub url: Arc<str>,
    /// Whether there is an OpenID Provider's configuration that names the key set in `jwks_uri`.
    pub is_discovery: bool,
    /// `timeout`, in milliseconds.
    pub timeout_ms: u64,
}

/// The key sets that some rule needs, each once, sorted.
#[must_use]
pub fn key_sources(world: &World) -> Vec<KeySource> {
    let mut sources: Vec<KeySource> = policies(world)
        .flat_map(|(_, policy)| &policy.rules)
        .filter_map(|rule| match &rule.keys {
            Keys::Fetched(source) => Some(source.clone()),
            _ => None,
        })
        .collect();
    sources.sort();
    sources.dedup();
    sources
}

/// All that are for anybody, with their positions among the world's resources: those of the root namespace first, then
/// the older ones.
pub(crate) fn policies(world: &World) -> impl Iterator<Item = (usize, &RequestAuthentication)> {
    let resources = world.resources();
    let mut list: Vec<_> = resources
        .iter()
        .enumerate()
        .filter(|(_, resource)| resource.key.kind == Kind::RequestAuthentication)
        .filter_map(|(position, resource)| match &resource.body {
            Body::RequestAuthentication(policy) if !policy.scope.is_nobody() => Some((position, &**policy)),
            _ => None,
        })
        .collect();
    let is_root = |position: usize| resources[position].key.namespace == *world.root_namespace();
    list.sort_by(|a, b| {
        let rank = |position: usize| (!is_root(position), precedence(&resources[position]));
        rank(a.0).cmp(&rank(b.0))
    });
    list.into_iter()
}
