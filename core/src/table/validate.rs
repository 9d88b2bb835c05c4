//! What bytecheck cannot know: that every index is in bounds, every weight is sane, and no text breaks a message. After
//! this a lookup needs no check of its own, whoever wrote the table.

use rkyv::string::ArchivedString;

use super::{
    access::{self, ArchivedPolicyAction},
    model::{
        ArchivedAction, ArchivedCondition, ArchivedHeaderOp, ArchivedMatch, ArchivedRoute, ArchivedStringMatch,
        ArchivedTable, ArchivedVirtualHost, FILE_NONE, SCOPE_ALL, WEIGHT_INLINE_MAX, precedence,
    },
    protocol::PROTOCOLS_NONE,
    security::{POLICY_NONE, TLS_NONE},
    tcp::{ArchivedTcpCondition, ArchivedTcpRoute, ArchivedTcpService},
    text::{self, BadText},
};
use crate::limits::{DIRECT_RESPONSE_BODY_BYTES_MAX, TRUSTED_HOPS_MAX};

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
    each("domains", &table.domains, |d| {
        range("virtual host", &d.first, &d.count, table.virtual_hosts.len())?;
        let first = d.first.to_native() as usize;
        in_precedence(&table.virtual_hosts[first..first + d.count.to_native() as usize])
    })?;
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
            Some(headers) => {
                headers.request.iter().try_for_each(request_op)?;
                headers.response.iter().try_for_each(response_op)
            }
            None => Ok(()),
        }
    })?;
    tcp(table)?;
    each("clusters", &table.clusters, |c| {
        let total = if c.selected { table.members.len() } else { table.endpoints.len() };
        if c.tls.to_native() != TLS_NONE {
            below("TLS settings", c.tls.to_native(), table.cluster_tls.len())?;
        }
        range("endpoint", &c.first, &c.count, total)
    })?;
    each("members", &table.members, |m| below("endpoint", m.to_native(), table.endpoints.len()))?;
    each("endpoints", &table.endpoints, |e| {
        if e.is_v6() {
            below("IPv6 address", e.address.to_native(), table.addresses_v6.len())?;
        }
        check(e.port.to_native() > 0, || "port is 0".into())
    })?;
    heavy_weights(table)?;
    each("workloads", &table.workloads, |w| {
        below("namespace", w.namespace.0.to_native(), table.namespaces.len())?;
        if w.protocols.to_native() != PROTOCOLS_NONE {
            below("application's ports", w.protocols.to_native(), table.application_ports.len())?;
        }
        policy(table, w.policy.to_native())
    })?;
    each("application_ports", &table.application_ports, |ports| {
        check(ports.is_sorted_by(|a, b| a.0.to_native() < b.0.to_native()), || "ports are out of order".into())
    })?;
    security(table)?;
    each("settings", std::slice::from_ref(&table.settings), |settings| {
        let hops = settings.trusted_hops;
        check(hops <= TRUSTED_HOPS_MAX, || format!("{hops} trusted hops are more than {TRUSTED_HOPS_MAX}"))
    })
}

fn policy(table: &ArchivedTable, position: u32) -> Checked {
    if position == POLICY_NONE { Ok(()) } else { below("inbound policy", position, table.inbound_policies.len()) }
}

fn security(table: &ArchivedTable) -> Result<(), Invalid> {
    each("namespace_policies", &table.namespace_policies, |p| policy(table, p.to_native()))?;
    each("mesh_policy", std::slice::from_ref(&table.mesh_policy), |p| policy(table, p.to_native()))?;
    each("trust_domains", std::slice::from_ref(&table.trust_domains), |domains| {
        check(!domains.is_empty(), || "there is none".into())
    })?;
    each("inbound_policies", &table.inbound_policies, |p| {
        check(p.port_mtls.is_sorted_by(|a, b| a.0.to_native() < b.0.to_native()), || "ports are out of order".into())?;
        p.mtls_origin.iter().try_for_each(|o| below("origin", o.0.to_native(), table.origins.len()))?;
        p.authorization.iter().try_for_each(|a| below("policy", a.to_native(), table.authorization.len()))?;
        p.jwt_rules.iter().try_for_each(|j| below("issuer", j.to_native(), table.jwt_rules.len()))?;
        p.gateways.iter().try_for_each(|g| below("origin", g.origin.0.to_native(), table.origins.len()))
    })?;
    each("jwt_rules", &table.jwt_rules, |rule| {
        below("origin", rule.origin.0.to_native(), table.origins.len())?;
        let names = rule.output_claims.iter().map(|pair| &pair.0).chain([&rule.output_payload_to_header]);
        names
            .filter(|name| !name.is_empty())
            .try_for_each(|name| part("header name", Some(name), text::written_field_name))
    })?;
    each("ext_authz", &table.ext_authz, |authorizer| {
        below("cluster", authorizer.cluster.0.to_native(), table.clusters.len())?;
        part("authority", Some(&authorizer.authority), text::authority_text)?;
        authorizer.additional_headers.iter().try_for_each(|pair| {
            part("header name", Some(&pair.0), text::written_field_name)?;
            part(&pair.0, Some(&pair.1), text::field_value)
        })?;
        let status = authorizer.status_on_error.to_native();
        check((200..600).contains(&status), || format!("status {status}"))
    })?;
    each("access_indexes", &table.access_indexes, |index| access::validate::index(table, index))?;
    each("access_index_of", std::slice::from_ref(table), access::validate::assignment)?;
    each("authorization", &table.authorization, |policy| {
        below("origin", policy.origin.0.to_native(), table.origins.len())?;
        access::validate::policy(policy)?;
        match policy.action {
            ArchivedPolicyAction::Custom(position) => {
                below("external authorizer", position.to_native(), table.ext_authz.len())
            }
            _ => Ok(()),
        }
    })
}

/// Each endpoint without a weight of its own has one among the heavy ones, and the other way round.
fn heavy_weights(table: &ArchivedTable) -> Result<(), Invalid> {
    let mut after = 0;
    each("heavy_weights", &table.heavy_weights, |heavy| {
        let (endpoint, weight) = (heavy.endpoint.0.to_native(), heavy.weight.to_native());
        below("endpoint", endpoint, table.endpoints.len())?;
        check(endpoint >= after, || format!("endpoint {endpoint} is out of order"))?;
        after = endpoint + 1;
        let inline = table.endpoints[endpoint as usize].weight_inline();
        check(inline.is_none(), || format!("endpoint {endpoint} has a weight of its own"))?;
        check(weight > u32::from(WEIGHT_INLINE_MAX), || format!("weight {weight} is not heavy"))
    })?;
    let mut heavy = table.heavy_weights.iter().map(|heavy| heavy.endpoint.0.to_native() as usize).peekable();
    for (position, endpoint) in table.endpoints.iter().enumerate() {
        if endpoint.weight_inline().is_none() && heavy.next_if_eq(&position).is_none() {
            return Err(Invalid { array: "endpoints", position, reason: "weight is 0".into() });
        }
    }
    Ok(())
}

/// A lookup takes the first virtual host that serves a request: the others would never be found.
fn in_precedence(hosts: &[ArchivedVirtualHost]) -> Checked {
    let key = |host: &ArchivedVirtualHost| precedence(host.scope.to_native(), host.port.to_native());
    match hosts.windows(2).find(|pair| key(&pair[0]) >= key(&pair[1])) {
        Some([_, late]) => Err(format!("virtual host for scope {}, port {} is out of order", late.scope, late.port)),
        _ => Ok(()),
    }
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
            weights(table, first, count, weight_sum)?;
        }
        ArchivedAction::Redirect(redirect) => {
            let status = redirect.status.to_native();
            check(matches!(status, 301 | 302 | 303 | 307 | 308), || format!("redirect status {status}"))?;
            part("redirect.uri", redirect.uri.as_ref(), text::redirect_uri)?;
            part("redirect.authority", redirect.authority.as_ref(), text::authority_text)?;
            part("redirect.scheme", redirect.scheme.as_ref(), text::scheme)?;
        }
        ArchivedAction::DirectResponse(response) => {
            let (status, len) = (response.status.to_native(), response.body.len());
            check((200..600).contains(&status), || format!("direct response status {status}"))?;
            check(len <= DIRECT_RESPONSE_BODY_BYTES_MAX, || format!("direct response of {len} bytes"))?;
        }
    }
    let Some(options) = route.options.as_ref() else { return Ok(()) };
    options.request_headers.iter().try_for_each(request_op)?;
    options.response_headers.iter().try_for_each(response_op)?;
    let Some(rewrite) = options.rewrite.as_ref() else { return Ok(()) };
    part("rewrite.uri", rewrite.uri.as_ref(), text::rewrite_uri)?;
    part("rewrite.authority", rewrite.authority.as_ref(), text::authority_text)?;
    match rewrite.regex.as_ref() {
        Some(regex) => {
            below("regex", regex.pattern.0.to_native(), table.regexes.len())?;
            part("rewrite.uriRegexRewrite", Some(&regex.replacement), text::rewrite_replacement)
        }
        None => Ok(()),
    }
}

/// Services whose connections are bytes: the searches for them want an order.
fn tcp(table: &ArchivedTable) -> Result<(), Invalid> {
    let key =
        |s: &ArchivedTcpService| (s.host.as_bytes().to_vec(), precedence(s.scope.to_native(), s.port.to_native()));
    let mut before = None;
    each("tcp_services", &table.tcp_services, |s| {
        let key = key(s);
        let is_sorted = before.as_ref().is_none_or(|before| *before < key);
        check(is_sorted, || format!("{:?} is out of order", s.host.as_str()))?;
        before = Some(key);
        if s.scope.to_native() != SCOPE_ALL {
            below("namespace", s.scope.to_native(), table.namespaces.len())?;
        }
        below("origin", s.origin.0.to_native(), table.origins.len())?;
        range("TCP route", &s.first, &s.count, table.tcp_routes.len())
    })?;
    each("tcp_routes", &table.tcp_routes, |r| tcp_route(table, r))?;
    let mut before = None;
    each("tcp_addresses", &table.tcp_addresses, |a| {
        below("TCP service", a.service.to_native(), table.tcp_services.len())?;
        let scope = table.tcp_services[a.service.to_native() as usize].scope.to_native();
        let key = (a.address, a.port.to_native(), scope);
        check(before.replace(key).is_none_or(|before| before <= key), || "is out of order".into())
    })
}

fn tcp_route(table: &ArchivedTable, route: &ArchivedTcpRoute) -> Checked {
    below("origin", route.origin.0.to_native(), table.origins.len())?;
    weights(table, &route.first, &route.count, &route.weight_sum)?;
    route.matches.iter().flat_map(|m| m.conditions.iter()).try_for_each(|condition| match condition {
        ArchivedTcpCondition::SourceNamespace(id) => below("namespace", id.0.to_native(), table.namespaces.len()),
        ArchivedTcpCondition::DestinationSubnets(subnets) => subnets
            .iter()
            .try_for_each(|subnet| check(subnet.bits <= 128, || format!("a prefix of {} bits", subnet.bits))),
        ArchivedTcpCondition::Sni(_) | ArchivedTcpCondition::Port(_) | ArchivedTcpCondition::SourceLabel { .. } => {
            Ok(())
        }
    })
}

/// The weights of a rule's destinations, of which at least one is above 0.
fn weights(
    table: &ArchivedTable,
    first: &rkyv::Archived<u32>,
    count: &rkyv::Archived<u32>,
    weight_sum: &rkyv::Archived<u32>,
) -> Checked {
    range("destination", first, count, table.destinations.len())?;
    let start = first.to_native() as usize;
    let destinations = &table.destinations[start..start + count.to_native() as usize];
    let sum: u64 = destinations.iter().map(|d| u64::from(d.weight.to_native())).sum();
    let declared = u64::from(weight_sum.to_native());
    check(sum > 0 && sum == declared, || format!("weights sum to {sum}, declared {declared}"))
}

/// A text of a rule that becomes part of a message.
fn part(what: &str, value: Option<&ArchivedString>, sound: fn(&str) -> Result<(), BadText>) -> Checked {
    let Some(value) = value else { return Ok(()) };
    sound(value).map_err(|why| format!("{what} {:?} {why}", value.as_str()))
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

/// A table must not be able to split a message: names are tokens, values hold no control bytes. The authority can be
/// set, and must be one then.
fn request_op(op: &ArchivedHeaderOp) -> Checked {
    match op {
        ArchivedHeaderOp::Remove { name } if name == "host" => Err(format!("header name \"host\" {}", BadText::Host)),
        ArchivedHeaderOp::Set { name, value } if name == "host" => part("host", Some(value), text::authority_text),
        _ => response_op(op),
    }
}

fn response_op(op: &ArchivedHeaderOp) -> Checked {
    match op {
        ArchivedHeaderOp::Remove { name } => part("header name", Some(name), text::field_name),
        ArchivedHeaderOp::Set { name, value } | ArchivedHeaderOp::Add { name, value } => {
            part("header name", Some(name), text::written_field_name)?;
            part(name, Some(value), text::field_value)
        }
    }
}
