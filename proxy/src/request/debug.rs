//! How a request was served, for the application that asks.

use meshring_core::http::serialize;

use crate::{
    route::{self, Forward, Request},
    worker::generation::Pinned,
};

/// A request that carries this field learns from the response's fields how it was served.
pub(super) const DEBUG_FIELD: &[u8] = b"x-meshring-debug";

pub(super) fn wants_debug(request: &Request<'_>) -> bool {
    request.fields.iter().any(|field| field.name.of(request.bytes).eq_ignore_ascii_case(DEBUG_FIELD))
}

pub(super) fn debug_generation(request: &Request<'_>, pinned: &Pinned) -> Vec<u8> {
    let mut lines = Vec::new();
    if wants_debug(request) {
        serialize::field(&mut lines, b"x-meshring-generation", pinned.number().to_string().as_bytes());
    }
    lines
}

pub(super) fn debug_lines(request: &Request<'_>, pinned: &Pinned, chosen: &Forward<'_>) -> Vec<u8> {
    let mut lines = debug_generation(request, pinned);
    if !lines.is_empty() {
        let cluster = pinned.table().cluster(chosen.cluster()).name.as_bytes();
        serialize::field(&mut lines, b"x-meshring-cluster", cluster);
        serialize::field(&mut lines, b"x-meshring-rule", route::describe_rule(pinned, chosen.rule).as_bytes());
    }
    lines
}
