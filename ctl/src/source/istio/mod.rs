//! Istio's networking API: `networking.istio.io` v1, v1beta1 and v1alpha3, which have the same fields; and its MeshConfig.
//!
//! What is checked is what Istio's admission webhook checks (`pkg/config/validation`); what the API knows and we do not
//! honour yet stands in a table beside each reader, so that each use of it is reported and none is dropped in silence.

pub(crate) mod authorization_policy;
mod connection_pool;
pub(crate) mod destination_rule;
pub(crate) mod duration;
pub(crate) mod export_to;
pub(crate) mod extension_provider;
pub(crate) mod gateway;
pub(crate) mod headers;
pub(crate) mod mesh_config;
pub(crate) mod peer_authentication;
pub(crate) mod request_authentication;
pub(crate) mod route;
pub(crate) mod rule_match;
mod scope;
pub(crate) mod service_entry;
mod stream_route;
pub(crate) mod tls;
pub(crate) mod virtual_service;
