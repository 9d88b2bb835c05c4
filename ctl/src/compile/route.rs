//! Rules of a VirtualService to routes of the table.

use meshring_core::{
    id::OriginId,
    table::{
        build::{BuildError, TableBuilder},
        model::{
            Action, Condition, DestinationHeaders, DirectResponse, HeaderOp, Match, Redirect, RedirectPort,
            RegexRewrite, Rewrite, Route, RouteOptions, StringMatch,
        },
        regexes,
    },
};

use super::cluster::Clusters;
use crate::spec::{
    HostPattern, Namespace,
    value::HeaderValue,
    virtual_service::{self as spec, HeaderOperations, HttpMatch, HttpRoute, UriRewrite},
};

/// What a rule does, for the virtual host of one port and one view.
pub(super) fn action(
    builder: &mut TableBuilder,
    clusters: &mut Clusters<'_>,
    rule: &HttpRoute,
    port: u16,
    client: Option<&Namespace>,
) -> Result<Action, BuildError> {
    match &rule.action {
        spec::Action::Route(destinations) => {
            let mut weighted = Vec::with_capacity(destinations.len());
            for destination in destinations {
                let host = HostPattern::Exact(destination.host.clone());
                let wanted = destination.port.map(|port| port.number());
                let cluster = clusters.of_host(builder, &host, destination.subset.as_ref(), wanted, port, client);
                let headers = (!destination.headers.is_empty()).then(|| DestinationHeaders {
                    request: header_ops(&destination.headers.request),
                    response: header_ops(&destination.headers.response),
                });
                weighted.push((cluster, destination.weight, headers));
            }
            builder.forward(weighted)
        }
        spec::Action::Redirect(redirect) => Ok(Action::Redirect(Box::new(Redirect {
            uri: redirect.uri.as_deref().map(str::to_owned),
            authority: redirect.authority.as_ref().map(HeaderValue::to_string),
            scheme: redirect.scheme.as_deref().map(str::to_owned),
            port: match redirect.port {
                None => RedirectPort::Keep,
                Some(spec::RedirectPort::Number(port)) => RedirectPort::Fixed(port.number()),
                Some(spec::RedirectPort::FromProtocolDefault) => RedirectPort::ProtocolDefault,
                Some(spec::RedirectPort::FromRequestPort) => RedirectPort::RequestPort,
            },
            status: redirect.code,
        }))),
        spec::Action::DirectResponse(response) => Ok(Action::DirectResponse(Box::new(DirectResponse {
            status: response.status,
            body: response.body.to_vec(),
        }))),
    }
}

/// The rest of a rule, which is the same for every port and view.
pub(super) fn route(builder: &mut TableBuilder, rule: &HttpRoute, origin: OriginId, action: Action) -> Route {
    let matches = rule.matches.iter().map(|candidate| Match {
        name: candidate.name.as_deref().unwrap_or_default().to_owned(),
        line: candidate.at.line,
        conditions: conditions(builder, candidate),
    });
    let matches = matches.collect();
    let options = (!rule.headers.is_empty() || rule.rewrite.is_some()).then(|| {
        Box::new(RouteOptions {
            request_headers: header_ops(&rule.headers.request),
            response_headers: header_ops(&rule.headers.response),
            rewrite: rule.rewrite.as_ref().map(|rewrite| self::rewrite(builder, rewrite)),
        })
    });
    Route {
        name: rule.name.as_deref().unwrap_or_default().to_owned(),
        origin,
        rule: u16::try_from(rule.index).unwrap_or(u16::MAX),
        line: rule.at.line,
        matches,
        action,
        timeout_ms: rule.timeout.map_or(0, |timeout| u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX)),
        options,
    }
}

/// In the order in which they are cheapest to refuse: a path or method settles most requests, labels never change.
fn conditions(builder: &mut TableBuilder, rule: &HttpMatch) -> Vec<Condition> {
    let mut conditions = Vec::new();
    if let Some(namespace) = &rule.source_namespace {
        conditions.push(Condition::SourceNamespace(builder.namespace(namespace.as_str())));
    }
    for (key, value) in rule.source_labels.iter() {
        conditions.push(Condition::SourceLabel { key: key.to_owned(), value: value.to_owned() });
    }
    conditions.extend(rule.port.map(|port| Condition::Port(port.number())));
    if let Some(uri) = &rule.uri {
        conditions.push(Condition::Uri(uri_match(builder, uri, rule.ignore_uri_case)));
    }
    conditions.extend(rule.method.as_ref().map(|value| Condition::Method(string_match(builder, value))));
    conditions.extend(rule.scheme.as_ref().map(|value| Condition::Scheme(string_match(builder, value))));
    conditions.extend(rule.authority.as_ref().map(|value| Condition::Authority(string_match(builder, value))));
    for (name, value) in &rule.headers {
        conditions.push(Condition::Header { name: name.to_string(), value: string_match(builder, value) });
    }
    for (name, value) in &rule.without_headers {
        conditions.push(Condition::WithoutHeader { name: name.to_string(), value: string_match(builder, value) });
    }
    for (name, value) in &rule.query_params {
        conditions.push(Condition::Query { name: name.to_string(), value: string_match(builder, value) });
    }
    conditions
}

fn uri_match(builder: &mut TableBuilder, uri: &spec::StringMatch, ignore_case: bool) -> StringMatch {
    match string_match(builder, uri) {
        StringMatch::Exact(text) if ignore_case => StringMatch::ExactIgnoreCase(text),
        StringMatch::Prefix(text) if ignore_case => StringMatch::PrefixIgnoreCase(text),
        value => value,
    }
}

fn string_match(builder: &mut TableBuilder, value: &spec::StringMatch) -> StringMatch {
    match value {
        spec::StringMatch::Exact(text) => StringMatch::Exact(text.to_string()),
        spec::StringMatch::Prefix(text) => StringMatch::Prefix(text.to_string()),
        spec::StringMatch::Regex(pattern) => StringMatch::Regex(builder.regex(&regexes::anchored(pattern.as_str()))),
        spec::StringMatch::Present => StringMatch::Present,
    }
}

fn header_ops(operations: &HeaderOperations) -> Vec<HeaderOp> {
    let remove = operations.remove.iter().map(|name| HeaderOp::Remove { name: name.to_string() });
    let set =
        operations.set.iter().map(|(name, value)| HeaderOp::Set { name: name.to_string(), value: value.to_string() });
    let add = operations.add.iter().map(|(name, value)| {
        let (name, value) = (name.to_string(), value.to_string());
        // There is one authority: as in Istio, to add it is to set it.
        if name == "host" { HeaderOp::Set { name, value } } else { HeaderOp::Add { name, value } }
    });
    remove.chain(set).chain(add).collect()
}

fn rewrite(builder: &mut TableBuilder, rewrite: &spec::Rewrite) -> Rewrite {
    let mut compiled =
        Rewrite { uri: None, authority: rewrite.authority.as_ref().map(HeaderValue::to_string), regex: None };
    match &rewrite.uri {
        Some(UriRewrite::Replace(uri)) => compiled.uri = Some(uri.to_string()),
        Some(UriRewrite::Regex { pattern, substitution }) => {
            compiled.regex =
                Some(RegexRewrite { pattern: builder.regex(pattern.as_str()), replacement: replacement(substitution) });
        }
        None => {}
    }
    compiled
}

/// RE2's `\1` to the regex crate's `${1}`; `$`, which means nothing to RE2, to `$$`.
fn replacement(substitution: &str) -> String {
    let mut replacement = String::with_capacity(substitution.len() + 8);
    let mut characters = substitution.chars();
    while let Some(character) = characters.next() {
        match character {
            '$' => replacement.push_str("$$"),
            '\\' => match characters.next() {
                Some(digit @ '0'..='9') => {
                    replacement.push_str("${");
                    replacement.push(digit);
                    replacement.push('}');
                }
                Some(other) => replacement.push(other),
                None => {}
            },
            other => replacement.push(other),
        }
    }
    replacement
}

#[cfg(test)]
mod tests {
    use super::replacement;

    #[test]
    fn substitutions_are_translated() {
        for (re2, ours) in [(r"/\1/x", "/${1}/x"), (r"\0", "${0}"), ("/$1", "/$$1"), ("/a", "/a")] {
            assert_eq!(replacement(re2), ours);
        }
    }
}
