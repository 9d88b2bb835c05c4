//! Istio's AuthorizationPolicy as the data plane evaluates it.
//!
//! [`index`] files rules so that `lookup` finds the few that a request can match at all, [`evaluate`] decides, `validate` checks both in a
//! table that somebody else wrote.
//!
//! Nothing in a rule is decoded or parsed per request: texts are compared as bytes, so there is no request that cannot be
//! judged. What a request lacks (an identity over plain text, a token, a header) matches no value: a positive
//! condition on it fails, whatever the action, and a negated one holds. That is Envoy's reading of Istio's rules; a DENY that
//! is to stop clients without an identity says so with `notPrincipals: ["*"]`.

#![expect(missing_docs, reason = "rkyv's derive writes no docs on the fields of a resolver's struct-like variants")]

pub mod evaluate;
pub mod index;
mod lookup;
pub(super) mod validate;

#[cfg(test)]
mod tests;

pub use evaluate::{AccessObserver, AccessView, Decision, Failure, Stage, Unheard};
pub use index::AccessIndex;

use rkyv::{Archive, Deserialize, Serialize};

use crate::id::{ClusterId, OriginId};

/// One AuthorizationPolicy.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct AuthorizationPolicy {
    /// Where it stands; its text is `AuthorizationPolicy NAMESPACE/NAME`.
    pub origin: OriginId,
    /// `action`.
    pub action: PolicyAction,
    /// Annotation `istio.io/dry-run: "true"`: evaluated, counted and logged, never enforced.
    pub dry_run: bool,
    /// `rules`: any of them. None at all never matches; one without conditions always does.
    pub rules: Vec<AccessRule>,
}

/// `action`.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq, Debug))]
pub enum PolicyAction {
    /// `ALLOW`: with one such policy, what none of them matches is denied.
    Allow,
    /// `DENY`.
    Deny,
    /// `AUDIT`: decides nothing.
    Audit,
    /// `CUSTOM`: asks an external authorizer, by its position in `ext_authz`.
    Custom(u32),
}

/// One of `rules`: a source, an operation and all conditions must match; a part that is empty always does.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[rkyv(derive(Debug))]
pub struct AccessRule {
    /// Line in the file, from 1.
    pub line: u32,
    /// `from[].source`: any of them.
    pub from: Vec<AccessTerm>,
    /// `to[].operation`: any of them.
    pub to: Vec<AccessTerm>,
    /// `when`: all of them.
    pub when: Vec<AccessCondition>,
}

/// One source or operation: all of its conditions must hold.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[rkyv(derive(Debug))]
pub struct AccessTerm {
    /// All of them.
    pub conditions: Vec<AccessCondition>,
}

/// One attribute and the values that it may or must not have.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct AccessCondition {
    /// What is looked at.
    pub attribute: Attribute,
    /// One of them must match; empty where only `not_values` are given.
    pub values: Vec<AccessValue>,
    /// None of them may match. An attribute that is absent matches no value, so it passes.
    pub not_values: Vec<AccessValue>,
}

/// An attribute of a request and its connection.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Hash)]
#[rkyv(derive(Debug, PartialEq))]
pub enum Attribute {
    /// `principals`, `source.principal`: the SPIFFE id without `spiffe://`.
    Principal,
    /// `requestPrincipals`, `request.auth.principal`: `ISSUER/SUBJECT` of the token.
    RequestPrincipal,
    /// `namespaces`, `source.namespace`.
    Namespace,
    /// `serviceAccounts`, `source.serviceAccount`: `NAMESPACE/NAME`.
    ServiceAccount,
    /// `trustDomains`.
    TrustDomain,
    /// `ipBlocks`, `source.ip`: the connection's peer.
    SourceIp,
    /// `remoteIpBlocks`, `remote.ip`: the original client by X-Forwarded-For and trusted hops.
    RemoteIp,
    /// `hosts`: the authority, case-insensitive.
    Host,
    /// `ports`, `destination.port`: the application's port.
    Port,
    /// `methods`.
    Method,
    /// `paths`: the normalised path without query.
    Path,
    /// `request.headers[NAME]`, lower case.
    Header(String),
    /// `destination.ip`.
    DestinationIp,
    /// `connection.sni`.
    Sni,
    /// `request.auth.audiences`.
    Audiences,
    /// `request.auth.presenter`: the claim `azp`.
    Presenter,
    /// `request.auth.claims[A][B]`: the names from the outermost.
    Claim(Vec<String>),
}

/// How an attribute's value is compared.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Hash)]
#[rkyv(derive(Debug, PartialEq))]
pub enum AccessValue {
    /// Equal.
    Exact(String),
    /// `prefix*`.
    Prefix(String),
    /// `*suffix`.
    Suffix(String),
    /// `*`: present and not empty. A header: present, with any value.
    Present,
    /// A path with `{*}` (one segment) or `{**}` (zero or more): Istio's URI template.
    Template(Vec<TemplatePart>),
    /// An address block: IPv4 as IPv4-mapped IPv6; `length` counts in 128 bits.
    Block {
        /// Of the network.
        address: [u8; 16],
        /// Bits that must be equal.
        length: u8,
    },
    /// A port.
    Port(u16),
}

/// One part of a path template.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Hash)]
#[rkyv(derive(Debug, PartialEq))]
pub enum TemplatePart {
    /// Bytes as they stand, slashes included.
    Text(String),
    /// `{*}`: at least one byte, none of them a slash.
    Segment,
    /// `{**}`: any bytes.
    Rest,
}

/// An external authorizer over HTTP (Istio `extensionProviders[].envoyExtAuthzHttp`).
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[rkyv(derive(Debug))]
pub struct ExtAuthz {
    /// `name` of the provider.
    pub name: String,
    /// The service and port.
    pub cluster: ClusterId,
    /// Of the Host field of checks.
    pub authority: String,
    /// `pathPrefix`, put before the request's path.
    pub path_prefix: String,
    /// `timeout`, in milliseconds.
    pub timeout_ms: u32,
    /// `failOpen`: whether a request passes when the authorizer fails.
    pub fail_open: bool,
    /// `statusOnError`.
    pub status_on_error: u16,
    /// `includeRequestHeadersInCheck`, lower case; a name that ends with `*` is a prefix.
    pub request_headers: Vec<String>,
    /// `includeAdditionalHeadersInCheck`.
    pub additional_headers: Vec<(String, String)>,
    /// `headersToUpstreamOnAllow`.
    pub headers_to_upstream: Vec<String>,
    /// `headersToDownstreamOnAllow`.
    pub headers_to_downstream: Vec<String>,
    /// `headersToDownstreamOnDeny`.
    pub headers_on_deny: Vec<String>,
}
