//! Istio's AuthorizationPolicy: `security.istio.io` v1 and v1beta1.

use std::net::IpAddr;

use meshring_core::table::access::{AccessCondition, AccessRule, AccessTerm, AccessValue, Attribute, TemplatePart};

use super::scope;
use crate::{
    diagnostic::{Code, Position},
    source::{
        decode::{Fields, Object, Path, Reader},
        node::Node,
        resource::Metadata,
    },
    spec::{
        authorization_policy::{Action, AuthorizationPolicy},
        scope::Scope,
        value::{InvalidValue, Port},
    },
};

const SPEC: Fields = Fields {
    honoured: &["selector", "targetRef", "targetRefs", "rules", "action", "provider"],
    not_yet: &[],
    silent: &[],
};
const PROVIDER: Fields = Fields { honoured: &["name"], not_yet: &[], silent: &[] };
const RULE: Fields = Fields { honoured: &["from", "to", "when"], not_yet: &[], silent: &[] };
const FROM: Fields = Fields { honoured: &["source"], not_yet: &[], silent: &[] };
const TO: Fields = Fields { honoured: &["operation"], not_yet: &[], silent: &[] };
const WHEN: Fields = Fields { honoured: &["key", "values", "notValues"], not_yet: &[], silent: &[] };

/// Fields of a term: attribute, field, negated field.
type Terms = [(Attribute, &'static str, &'static str)];

const SOURCE: [(Attribute, &str, &str); 7] = [
    (Attribute::Principal, "principals", "notPrincipals"),
    (Attribute::RequestPrincipal, "requestPrincipals", "notRequestPrincipals"),
    (Attribute::Namespace, "namespaces", "notNamespaces"),
    (Attribute::ServiceAccount, "serviceAccounts", "notServiceAccounts"),
    (Attribute::TrustDomain, "trustDomains", "notTrustDomains"),
    (Attribute::SourceIp, "ipBlocks", "notIpBlocks"),
    (Attribute::RemoteIp, "remoteIpBlocks", "notRemoteIpBlocks"),
];
const SOURCE_FIELDS: Fields = Fields {
    honoured: &[
        "principals",
        "notPrincipals",
        "requestPrincipals",
        "notRequestPrincipals",
        "namespaces",
        "notNamespaces",
        "serviceAccounts",
        "notServiceAccounts",
        "trustDomains",
        "notTrustDomains",
        "ipBlocks",
        "notIpBlocks",
        "remoteIpBlocks",
        "notRemoteIpBlocks",
    ],
    not_yet: &[],
    silent: &[],
};
const OPERATION: [(Attribute, &str, &str); 4] = [
    (Attribute::Host, "hosts", "notHosts"),
    (Attribute::Port, "ports", "notPorts"),
    (Attribute::Method, "methods", "notMethods"),
    (Attribute::Path, "paths", "notPaths"),
];
const OPERATION_FIELDS: Fields = Fields {
    honoured: &["hosts", "notHosts", "ports", "notPorts", "methods", "notMethods", "paths", "notPaths"],
    not_yet: &[],
    silent: &[],
};

pub(crate) fn read(
    r: &mut Reader<'_>,
    root: &mut Object<'_, '_, '_>,
    metadata: &Metadata,
) -> Option<AuthorizationPolicy> {
    let path = root.path.field("spec");
    let mut policy = AuthorizationPolicy {
        scope: Scope::default(),
        action: Action::Allow,
        dry_run: metadata.dry_run,
        rules: Vec::new(),
    };
    // Istio takes one without `spec`: it allows nothing.
    let Some(node) = root.field("spec") else { return Some(policy) };
    let mut spec = r.object(node, &path)?;
    policy.scope = scope::read(r, &mut spec);
    policy.action = action(r, &mut spec)?;
    let rules_path = path.field("rules");
    let rules = spec.list(r, "rules");
    for (index, node) in rules.iter().enumerate() {
        let path = rules_path.index(index);
        policy.rules.extend(rule(r, node, &path, &policy.action, metadata));
    }
    if matches!(policy.action, Action::Deny | Action::Audit | Action::Custom(..)) && rules.is_empty() && !r.failed {
        let message = format!("has no rules, so {} applies to no request", policy.action.as_str());
        r.warning(Code::NO_EFFECT, node.at, &rules_path, message, "write `rules: [{}]` for every request");
    }
    spec.finish(r, &SPEC);
    (!r.failed).then_some(policy)
}

fn action(r: &mut Reader<'_>, spec: &mut Object<'_, '_, '_>) -> Option<Action> {
    let action = spec.text(r, "action");
    let provider_path = spec.path.field("provider");
    let provider_node = spec.field("provider");
    let mut provider = None;
    if let Some(mut object) = provider_node.and_then(|node| r.object(node, &provider_path)) {
        provider = object.text(r, "name").map(|(name, at)| (r.share(name), at));
        object.finish(r, &PROVIDER);
    }
    let path = spec.path.field("action");
    let action = match action {
        None | Some(("ALLOW", _)) => Action::Allow,
        Some(("DENY", _)) => Action::Deny,
        Some(("AUDIT", _)) => Action::Audit,
        Some(("CUSTOM", at)) => match provider {
            Some((name, at)) => return Some(Action::Custom(name, at)),
            None => {
                let hint = "write `provider:` with the `name:` of one of the MeshConfig's extensionProviders";
                r.missing(at, &provider_path.field("name"), hint);
                return None;
            }
        },
        Some((other, at)) => {
            let message = format!("`{other}` is not an action");
            r.error(Code::INVALID_VALUE, at, &path, message, "write ALLOW, DENY, AUDIT or CUSTOM");
            return None;
        }
    };
    if let Some(node) = provider_node {
        r.error(Code::CONFLICT, node.at, &provider_path, "is for CUSTOM only", "write `action: CUSTOM`, or remove it");
    }
    Some(action)
}

fn rule(
    r: &mut Reader<'_>,
    node: &Node<'_>,
    path: &Path<'_>,
    action: &Action,
    metadata: &Metadata,
) -> Option<AccessRule> {
    // `- ` with nothing behind it is a rule without conditions.
    if node.is_null() {
        return Some(AccessRule { line: node.at.line, ..AccessRule::default() });
    }
    let mut object = r.object(node, path)?;
    let mut rule = AccessRule { line: node.at.line, ..AccessRule::default() };
    rule.from = terms(r, &mut object, ("from", &FROM), ("source", &SOURCE, &SOURCE_FIELDS), metadata);
    rule.to = terms(r, &mut object, ("to", &TO), ("operation", &OPERATION, &OPERATION_FIELDS), metadata);
    let when_path = path.field("when");
    let mut possible = true;
    for (index, node) in object.list(r, "when").iter().enumerate() {
        match when(r, node, &when_path.index(index), metadata) {
            When::Condition(condition) => rule.when.push(condition),
            When::Invalid => {}
            // What cannot be judged must not open a door: ALLOW never matches by it, DENY and CUSTOM do without it.
            When::NotHonoured => possible &= matches!(action, Action::Deny | Action::Custom(..)),
        }
    }
    object.finish(r, &RULE);
    possible.then_some(rule)
}

fn terms(
    r: &mut Reader<'_>,
    rule: &mut Object<'_, '_, '_>,
    (list, list_fields): (&str, &Fields),
    (inner, attributes, fields): (&str, &Terms, &Fields),
    metadata: &Metadata,
) -> Vec<AccessTerm> {
    let list_path = rule.path.field(list);
    let Some(node) = rule.field(list) else { return Vec::new() };
    let items = r.list(node, &list_path);
    if items.is_empty() && !r.failed {
        r.error(Code::INVALID_VALUE, node.at, &list_path, "is empty", "leave it out, or write what it asks for");
    }
    let mut terms = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let path = list_path.index(index);
        let Some(mut outer) = r.object(item, &path) else { continue };
        let inner_path = path.field(inner);
        match outer.field(inner) {
            None => r.missing(item.at, &inner_path, "write what it asks for"),
            Some(node) => {
                if let Some(mut object) = r.object(node, &inner_path) {
                    let mut conditions = Vec::new();
                    for (attribute, yes, no) in attributes {
                        let positive = values(r, &mut object, yes, attribute, metadata);
                        let not_values = values(r, &mut object, no, attribute, metadata);
                        if !positive.is_empty() || !not_values.is_empty() {
                            conditions.push(AccessCondition {
                                attribute: attribute.clone(),
                                values: positive,
                                not_values,
                            });
                        }
                    }
                    object.finish(r, fields);
                    if conditions.is_empty() && !r.failed {
                        let hint = "name at least one of its fields, or leave it out";
                        r.error(Code::INVALID_VALUE, node.at, &inner_path, "is empty", hint);
                    }
                    terms.push(AccessTerm { conditions });
                }
            }
        }
        outer.finish(r, list_fields);
    }
    terms
}

fn values(
    r: &mut Reader<'_>,
    object: &mut Object<'_, '_, '_>,
    field: &str,
    attribute: &Attribute,
    metadata: &Metadata,
) -> Vec<AccessValue> {
    let path = object.path.field(field);
    let items = object.list(r, field);
    let mut values = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let path = path.index(index);
        values.extend(r.parsed(item, &path, |text| value(attribute, text, metadata)));
    }
    values
}

/// What a condition of `when` comes to.
enum When {
    Condition(AccessCondition),
    /// Reported as an error.
    Invalid,
    /// Reported as a warning.
    NotHonoured,
}

fn when(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>, metadata: &Metadata) -> When {
    let Some(mut object) = r.object(node, path) else { return When::Invalid };
    let key_path = path.field("key");
    let Some((key, at)) = object.text(r, "key") else {
        r.missing(node.at, &key_path, "write for instance `key: request.headers[x-user]`");
        return When::Invalid;
    };
    if key.starts_with("experimental.") {
        let message =
            format!("`{key}` is not yet honoured: an ALLOW rule with it matches nothing, others match without it");
        r.warning(Code::VALUE_NOT_HONOURED, at, &key_path, message, "");
        return When::NotHonoured;
    }
    let Some(attribute) = key_of(r, key, at, &key_path) else { return When::Invalid };
    let of_values = values(r, &mut object, "values", &attribute, metadata);
    let not_values = values(r, &mut object, "notValues", &attribute, metadata);
    object.finish(r, &WHEN);
    if of_values.is_empty() && not_values.is_empty() {
        r.missing(node.at, &path.field("values"), "write `values:` or `notValues:`");
        return When::Invalid;
    }
    When::Condition(AccessCondition { attribute, values: of_values, not_values })
}

fn key_of(r: &mut Reader<'_>, key: &str, at: Position, path: &Path<'_>) -> Option<Attribute> {
    let attribute = match key {
        "source.ip" => Attribute::SourceIp,
        "remote.ip" => Attribute::RemoteIp,
        "source.namespace" => Attribute::Namespace,
        "source.principal" => Attribute::Principal,
        "source.serviceAccount" => Attribute::ServiceAccount,
        "source.trustDomain" => Attribute::TrustDomain,
        "request.auth.principal" => Attribute::RequestPrincipal,
        "request.auth.audiences" => Attribute::Audiences,
        "request.auth.presenter" => Attribute::Presenter,
        "destination.ip" => Attribute::DestinationIp,
        "destination.port" => Attribute::Port,
        "connection.sni" => Attribute::Sni,
        _ => {
            let named = |start: &str| key.strip_prefix(start).and_then(names);
            match (named("request.headers"), named("request.auth.claims")) {
                (Some(names), _) if names.len() == 1 && is_token(&names[0]) => {
                    return names.into_iter().next().map(|name| Attribute::Header(name.to_ascii_lowercase()));
                }
                (_, Some(names)) => return Some(Attribute::Claim(names)),
                _ => {}
            }
            let hint = "write for instance request.headers[NAME], request.auth.claims[NAME], source.ip, remote.ip, \
                        source.namespace, destination.port or connection.sni";
            r.error(Code::INVALID_VALUE, at, path, format!("`{key}` is not a key of a condition"), hint);
            return None;
        }
    };
    Some(attribute)
}

/// `[a][b]` as its names.
fn names(mut text: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    while !text.is_empty() {
        let (name, rest) = text.strip_prefix('[')?.split_once(']')?;
        if name.is_empty() || name.contains('[') {
            return None;
        }
        names.push(name.to_owned());
        text = rest;
    }
    (!names.is_empty()).then_some(names)
}

/// RFC 9110 section 5.6.2.
fn is_token(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

fn value(attribute: &Attribute, text: &str, metadata: &Metadata) -> Result<AccessValue, InvalidValue> {
    if text.is_empty() {
        return Err(InvalidValue::with_hint("is empty", "write `*` for any value"));
    }
    match attribute {
        Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => block(text),
        Attribute::Port => {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let number = digits.then(|| text.parse().ok()).flatten();
            let wrong = || InvalidValue::new(format!("`{text}` is not a port: it must be 1 to 65535"));
            Ok(AccessValue::Port(Port::parse(number.ok_or_else(wrong)?)?.number()))
        }
        Attribute::ServiceAccount => service_account(text, metadata),
        Attribute::Path if text.contains("{*}") || text.contains("{**}") => template(text),
        _ => Ok(pattern(text)),
    }
}

/// `*`, `*suffix`, `prefix*`, or the very text.
fn pattern(text: &str) -> AccessValue {
    if text == "*" {
        AccessValue::Present
    } else if let Some(suffix) = text.strip_prefix('*') {
        AccessValue::Suffix(suffix.to_owned())
    } else if let Some(prefix) = text.strip_suffix('*') {
        AccessValue::Prefix(prefix.to_owned())
    } else {
        AccessValue::Exact(text.to_owned())
    }
}

fn service_account(text: &str, metadata: &Metadata) -> Result<AccessValue, InvalidValue> {
    let sound = |part: &str| !part.is_empty() && !part.contains(['/', '*']);
    match text.split_once('/') {
        None if sound(text) => Ok(AccessValue::Exact(format!("{}/{text}", metadata.namespace))),
        Some((namespace, name)) if sound(namespace) && sound(name) => Ok(AccessValue::Exact(text.to_owned())),
        _ => Err(InvalidValue::with_hint(
            format!("`{text}` is not a service account"),
            "write NAMESPACE/NAME or NAME, without `*`",
        )),
    }
}

fn block(text: &str) -> Result<AccessValue, InvalidValue> {
    let wrong = || {
        InvalidValue::with_hint(
            format!("`{text}` is not an address block"),
            "write for instance 10.1.0.0/16 or 10.1.2.3",
        )
    };
    let (address, length) = match text.split_once('/') {
        Some((address, length)) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
            (address, Some(length.parse::<u8>().map_err(|_| wrong())?))
        }
        Some(_) => return Err(wrong()),
        None => (text, None),
    };
    let (address, bits, before) = match address.parse().map_err(|_| wrong())? {
        IpAddr::V4(v4) => (v4.to_ipv6_mapped().octets(), 32, 96),
        IpAddr::V6(v6) => (v6.octets(), 128, 0),
    };
    let length = length.unwrap_or(bits);
    if length > bits {
        return Err(wrong());
    }
    Ok(AccessValue::Block { address, length: before + length })
}

/// `{*}` and `{**}` are whole segments, and `{**}` is the last operator (Istio's rule).
fn template(text: &str) -> Result<AccessValue, InvalidValue> {
    let wrong = |why: &str| InvalidValue::with_hint(format!("`{text}` {why}"), "write for instance /users/{*}/{**}");
    let mut parts = Vec::new();
    let mut rest = text;
    let mut before = String::new();
    while !rest.is_empty() {
        let at = rest.find("{*").unwrap_or(rest.len());
        let (literal, behind) = rest.split_at(at);
        if literal.contains(['{', '}', '*']) {
            return Err(wrong("has `{`, `}` or `*` outside of {*} and {**}"));
        }
        if !literal.is_empty() {
            parts.push(TemplatePart::Text(literal.to_owned()));
        }
        before.push_str(literal);
        if behind.is_empty() {
            break;
        }
        let (part, behind) = if let Some(behind) = behind.strip_prefix("{**}") {
            (TemplatePart::Rest, behind)
        } else if let Some(behind) = behind.strip_prefix("{*}") {
            (TemplatePart::Segment, behind)
        } else {
            return Err(wrong("has `{` outside of {*} and {**}"));
        };
        if parts.contains(&TemplatePart::Rest) {
            return Err(wrong("has an operator behind {**}"));
        }
        if !before.ends_with('/') || !(behind.is_empty() || behind.starts_with('/')) {
            return Err(wrong("has {*} or {**} in a part of a segment"));
        }
        parts.push(part);
        before.clear();
        rest = behind;
    }
    Ok(AccessValue::Template(parts))
}

#[cfg(test)]
mod tests;
