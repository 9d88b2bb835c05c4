//! What bytecheck cannot know: that every index is in bounds and every weight is sane. After this a lookup needs no
//! check of its own, whoever wrote the table.

use super::model::{
    ArchivedAction, ArchivedCondition, ArchivedHeaderOp, ArchivedMatch, ArchivedRoute, ArchivedStringMatch,
    ArchivedTable, FILE_NONE, SCOPE_ALL,
};
use crate::limits::DIRECT_RESPONSE_BODY_BYTES_MAX;

/// The first thing that is wrong with a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{array}[{position}]: {reason}")]
pub struct Invalid {
    /// Which array.
    pub array: &'static str,
    /// Position in it.
    pub position: usize,
    /// What is wrong.
    pub reason: String,
}

type Checked = Result<(), String>;

/// Checks a whole table; 100,000 routes and 1,000,000 endpoints take a few milliseconds.
pub fn validate(table: &ArchivedTable) -> Result<(), Invalid> {
    let size = table.buckets.len();
    if !size.is_power_of_two() {
        return Err(Invalid { array: "buckets", position: size, reason: "size is not a power of two".into() });
    }
    if !table.buckets.iter().any(|b| b.to_native() == 0) {
        return Err(Invalid { array: "buckets", position: size, reason: "no bucket is empty".into() });
    }
    each("buckets", &table.buckets, |b| below("domain", b.to_native(), table.domains.len() + 1))?;
    each("domains", &table.domains, |d| range("virtual host", &d.first, &d.count, table.virtual_hosts.len()))?;
    each("origins", &table.origins, |o| match o.file.to_native() {
        FILE_NONE => Ok(()),
        file => below("file", file, table.files.len()),
    })?;
    each("virtual_hosts", &table.virtual_hosts, |h| {
        if h.scope.to_native() != SCOPE_ALL {
            below("namespace", h.scope.to_native(), table.namespaces.len())?;
        }
        below("origin", h.origin.0.to_native(), table.origins.len())?;
        range("route", &h.first, &h.count, table.routes.len())
    })?;
    each("routes", &table.routes, |r| route(table, r))?;
    each("destinations", &table.destinations, |d| {
        below("cluster", d.cluster.0.to_native(), table.clusters.len())?;
        match d.headers.as_ref() {
            Some(headers) => headers.request.iter().chain(headers.response.iter()).try_for_each(header_op),
            None => Ok(()),
        }
    })?;
    each("clusters", &table.clusters, |c| {
        let total = if c.selected { table.members.len() } else { table.endpoints.len() };
        range("endpoint", &c.first, &c.count, total)
    })?;
    each("members", &table.members, |m| below("endpoint", m.to_native(), table.endpoints.len()))?;
    each("endpoints", &table.endpoints, |e| {
        if e.v6 {
            below("IPv6 address", e.address.to_native(), table.addresses_v6.len())?;
        }
        check(e.weight.to_native() > 0, || "weight is 0".into())?;
        check(e.port.to_native() > 0, || "port is 0".into())
    })?;
    each("workloads", &table.workloads, |w| below("namespace", w.namespace.0.to_native(), table.namespaces.len()))
}

fn each<T>(array: &'static str, list: &[T], mut check: impl FnMut(&T) -> Checked) -> Result<(), Invalid> {
    for (position, item) in list.iter().enumerate() {
        check(item).map_err(|reason| Invalid { array, position, reason })?;
    }
    Ok(())
}

fn check(holds: bool, reason: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(reason()) }
}

fn below(what: &str, index: u32, len: usize) -> Checked {
    check((index as usize) < len, || format!("{what} {index} of {len}"))
}

fn range(what: &str, first: &rkyv::Archived<u32>, count: &rkyv::Archived<u32>, len: usize) -> Checked {
    let (first, count) = (first.to_native(), count.to_native());
    let end = u64::from(first) + u64::from(count);
    check(end <= len as u64, || format!("{what}s {first} to {end} of {len}"))
}

fn route(table: &ArchivedTable, route: &ArchivedRoute) -> Checked {
    below("origin", route.origin.0.to_native(), table.origins.len())?;
    route.matches.iter().try_for_each(|m| conditions(table, m))?;
    match &route.action {
        ArchivedAction::Forward { first, count, weight_sum } => {
            range("destination", first, count, table.destinations.len())?;
            let start = first.to_native() as usize;
            let destinations = &table.destinations[start..start + count.to_native() as usize];
            let sum: u64 = destinations.iter().map(|d| u64::from(d.weight.to_native())).sum();
            let declared = u64::from(weight_sum.to_native());
            check(sum > 0 && sum == declared, || format!("weights sum to {sum}, declared {declared}"))?;
        }
        ArchivedAction::Redirect(redirect) => {
            let status = redirect.status.to_native();
            check(matches!(status, 301 | 302 | 303 | 307 | 308), || format!("redirect status {status}"))?;
            [&redirect.uri, &redirect.authority, &redirect.scheme]
                .into_iter()
                .filter_map(|part| part.as_ref())
                .try_for_each(|part| field_value("redirect", part))?;
        }
        ArchivedAction::DirectResponse(response) => {
            let (status, len) = (response.status.to_native(), response.body.len());
            check((200..600).contains(&status), || format!("direct response status {status}"))?;
            check(len <= DIRECT_RESPONSE_BODY_BYTES_MAX, || format!("direct response of {len} bytes"))?;
        }
    }
    let Some(options) = route.options.as_ref() else { return Ok(()) };
    options.request_headers.iter().chain(options.response_headers.iter()).try_for_each(header_op)?;
    let Some(rewrite) = options.rewrite.as_ref() else { return Ok(()) };
    [&rewrite.uri, &rewrite.authority]
        .into_iter()
        .filter_map(|part| part.as_ref())
        .try_for_each(|part| field_value("rewrite", part))?;
    match rewrite.regex.as_ref() {
        Some(regex) => {
            below("regex", regex.pattern.0.to_native(), table.regexes.len())?;
            field_value("rewrite", &regex.replacement)
        }
        None => Ok(()),
    }
}

fn conditions(table: &ArchivedTable, candidate: &ArchivedMatch) -> Checked {
    candidate.conditions.iter().try_for_each(|condition| {
        let value = match condition {
            ArchivedCondition::Uri(value)
            | ArchivedCondition::Scheme(value)
            | ArchivedCondition::Method(value)
            | ArchivedCondition::Authority(value)
            | ArchivedCondition::Header { value, .. }
            | ArchivedCondition::WithoutHeader { value, .. }
            | ArchivedCondition::Query { value, .. } => value,
            ArchivedCondition::SourceNamespace(id) => {
                return below("namespace", id.0.to_native(), table.namespaces.len());
            }
            ArchivedCondition::Port(_) | ArchivedCondition::SourceLabel { .. } => return Ok(()),
        };
        match value {
            ArchivedStringMatch::Regex(id) => below("regex", id.0.to_native(), table.regexes.len()),
            _ => Ok(()),
        }
    })
}

/// A table must not be able to split a message: names are tokens, values hold no control bytes.
fn header_op(op: &ArchivedHeaderOp) -> Checked {
    let (name, value) = match op {
        ArchivedHeaderOp::Remove { name } => (name, None),
        ArchivedHeaderOp::Set { name, value } | ArchivedHeaderOp::Add { name, value } => (name, Some(value)),
    };
    let token = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b);
    check(!name.is_empty() && name.bytes().all(token), || format!("header name {:?}", name.as_str()))?;
    value.map_or(Ok(()), |value| field_value(name, value))
}

fn field_value(what: &str, value: &str) -> Checked {
    let printable = |b: u8| b == b'\t' || (b >= 0x20 && b != 0x7f);
    check(value.bytes().all(printable), || format!("control byte in {what}: {value:?}"))
}
