//! Kubernetes' own resources: Service, EndpointSlice, Secret and, for the labels of endpoints, Pod.

pub(crate) mod endpoint_slice;
pub(crate) mod pod;
pub(crate) mod secret;
pub(crate) mod service;

use std::net::IpAddr;

use crate::spec::value::InvalidValue;

pub(crate) fn ip(text: &str) -> Result<IpAddr, InvalidValue> {
    text.parse().map_err(|_| InvalidValue::new(format!("`{text}` is not an IP address")))
}
