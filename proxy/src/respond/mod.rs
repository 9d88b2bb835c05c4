//! Responses: relayed from an upstream, or our own.

pub(crate) mod body;
pub(crate) mod date;
pub(crate) mod last_hop;
pub(crate) mod local;
pub(crate) mod relay;

#[cfg(test)]
mod tests;
