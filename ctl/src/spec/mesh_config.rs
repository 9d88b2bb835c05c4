//! Istio's MeshConfig: what holds for the whole mesh. It comes in a ConfigMap or in an IstioOperator; one of those that
//! are there is in effect.

use std::{sync::Arc, time::Duration};

use meshring_core::table::model::{ForwardClientCertificate, PathNormalization, Settings};
use serde::{Serialize, Serializer};

use super::{
    Body, Position, Resource,
    value::{HeaderName, HeaderValue, Hostname, Namespace, Port},
};
use crate::diagnostic::{Code, Diagnostic};

/// The revision of resources that name none.
pub const DEFAULT_REVISION: &str = "default";

/// `istio.mesh.v1alpha1` MeshConfig, as far as it is honoured. What is not said is `None`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshConfig {
    /// Which revision of the control plane it is for: the end of the ConfigMap's name, `spec.revision` of an
    /// IstioOperator.
    pub revision: Arc<str>,
    /// `pathNormalization.normalization`.
    #[serde(serialize_with = "normalization")]
    pub path_normalization: Option<PathNormalization>,
    /// `defaultConfig.gatewayTopology.numTrustedProxies`.
    pub trusted_hops: Option<u8>,
    /// `defaultConfig.gatewayTopology.forwardClientCertDetails`.
    #[serde(serialize_with = "forward_client_certificate")]
    pub gateway_client_certificate: Option<ForwardClientCertificate>,
    /// Inverted, `defaultConfig.proxyHeaders.requestId.disabled`.
    pub request_id: Option<bool>,
    /// `trustDomain`.
    pub trust_domain: Option<Arc<str>>,
    /// `trustDomainAliases`: identities of these are taken for those of the trust domain.
    pub trust_domain_aliases: Vec<Arc<str>>,
    /// `rootNamespace`: what stands in it without a selector holds for the whole mesh.
    pub root_namespace: Option<Namespace>,
    /// `enableAutoMtls`.
    pub auto_mtls: Option<bool>,
    /// Whether `meshMTLS.minProtocolVersion` is below `TLSV1_3`.
    pub mesh_tls12: Option<bool>,
    /// Whether `h2UpgradePolicy` is `UPGRADE`.
    pub h2_upgrade: Option<bool>,
    /// `extensionProviders` with `envoyExtAuthzHttp`, each name once.
    pub ext_authz: Vec<ExtAuthzHttp>,
}

/// One of `extensionProviders`: `envoyExtAuthzHttp`, an external authorizer over HTTP.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExtAuthzHttp {
    /// Where it begins.
    pub at: Position,
    /// `name`: what AuthorizationPolicies with action CUSTOM refer to.
    pub name: Arc<str>,
    /// The part of `service` before the slash: in whose eyes the service is looked up.
    pub namespace: Option<Namespace>,
    /// The host in `service`, a short name resolved.
    pub service: Hostname,
    /// `port`.
    pub port: Port,
    /// `timeout`; 600 s where nothing is said, as in Istio.
    pub timeout: Duration,
    /// `pathPrefix`, empty or from a slash on.
    pub path_prefix: Arc<str>,
    /// `failOpen`.
    pub fail_open: bool,
    /// `statusOnError`; 403 where nothing is said.
    pub status_on_error: u16,
    /// `includeRequestHeadersInCheck`, lower case; what ends with `*` is a prefix. So are the other lists of names.
    pub request_headers: Vec<Arc<str>>,
    /// `includeAdditionalHeadersInCheck`.
    pub additional_headers: Vec<(HeaderName, HeaderValue)>,
    /// `headersToUpstreamOnAllow`.
    pub headers_to_upstream: Vec<Arc<str>>,
    /// `headersToDownstreamOnAllow`.
    pub headers_to_downstream: Vec<Arc<str>>,
    /// `headersToDownstreamOnDeny`.
    pub headers_on_deny: Vec<Arc<str>>,
}

fn normalization<S: Serializer>(level: &Option<PathNormalization>, serializer: S) -> Result<S::Ok, S::Error> {
    level.map(PathNormalization::as_str).serialize(serializer)
}

fn forward_client_certificate<S: Serializer>(
    how: &Option<ForwardClientCertificate>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    how.map(ForwardClientCertificate::as_str).serialize(serializer)
}

impl MeshConfig {
    /// One that says nothing.
    pub fn new(revision: Arc<str>) -> Self {
        Self {
            revision,
            path_normalization: None,
            trusted_hops: None,
            gateway_client_certificate: None,
            request_id: None,
            trust_domain: None,
            trust_domain_aliases: Vec::new(),
            root_namespace: None,
            auto_mtls: None,
            mesh_tls12: None,
            h2_upgrade: None,
            ext_authz: Vec::new(),
        }
    }

    /// For the data plane. Where nothing is said our defaults hold, which are Istio's but for paths: these are normalised
    /// as far as can be.
    pub fn settings(&self) -> Settings {
        let default = Settings::default();
        Settings {
            path_normalization: self.path_normalization.unwrap_or(default.path_normalization),
            trusted_hops: self.trusted_hops.unwrap_or(default.trusted_hops),
            request_id: self.request_id.unwrap_or(default.request_id),
            mesh_tls12: self.mesh_tls12.unwrap_or(default.mesh_tls12),
            gateway_client_certificate: self.gateway_client_certificate.unwrap_or(default.gateway_client_certificate),
        }
    }
}

/// The MeshConfig that is in effect, among resources sorted by key.
///
/// Istio runs one control plane per revision, each with a MeshConfig of its own; here is one control plane. It follows the
/// default revision, or the only one there is. Two for the same revision, or several revisions without the default one,
/// leave open what is meant: an error, since it is about security.
pub(super) fn in_effect(resources: &[Resource]) -> (Option<Arc<MeshConfig>>, Vec<Diagnostic>) {
    let mut configs: Vec<(&Resource, &Arc<MeshConfig>)> = resources
        .iter()
        .filter_map(|resource| match &resource.body {
            Body::ConfigMap(config) | Body::IstioOperator(config) => Some((resource, config)),
            _ => None,
        })
        .collect();
    let mut diagnostics = Vec::new();
    configs.sort_by(|a, b| (&*a.1.revision, &a.0.place).cmp(&(&*b.1.revision, &b.0.place)));
    for pair in configs.windows(2).filter(|pair| pair[0].1.revision == pair[1].1.revision) {
        let [(first, config), (second, _)] = [pair[0], pair[1]];
        let message = format!(
            "is the second MeshConfig of revision `{}`; the first is {} at {}",
            config.revision, first.key, first.place
        );
        diagnostics.push(conflict(second, message, "keep one of them"));
    }
    configs.dedup_by(|b, a| a.1.revision == b.1.revision);
    let default = configs.iter().position(|(_, config)| &*config.revision == DEFAULT_REVISION);
    let Some(&(chosen, config)) = default.map_or(configs.first(), |default| configs.get(default)) else {
        return (None, diagnostics);
    };
    for &(other, theirs) in configs.iter().filter(|(other, _)| other.key != chosen.key) {
        diagnostics.push(if default.is_some() {
            let message = format!(
                "is the MeshConfig of revision `{}`, and control follows revision `{DEFAULT_REVISION}` ({} at {}): it \
                 has no effect here",
                theirs.revision, chosen.key, chosen.place
            );
            Diagnostic::warning(Code::NO_EFFECT, other.place.clone(), message).of(&other.key)
        } else {
            let message = format!(
                "is the MeshConfig of revision `{}`, and {} at {} is that of revision `{}`: neither is the default",
                theirs.revision, chosen.key, chosen.place, config.revision
            );
            conflict(other, message, "keep the one of the revision that the proxies here are to follow")
        });
    }
    (Some(Arc::clone(config)), diagnostics)
}

fn conflict(resource: &Resource, message: String, hint: &'static str) -> Diagnostic {
    Diagnostic::error(Code::CONFLICTING_MESH_CONFIGS, resource.place.clone(), message).of(&resource.key).hint(hint)
}
