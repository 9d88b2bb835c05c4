//! Responses: relayed from an upstream, or our own.

pub(crate) mod local;
pub(crate) mod relay;
