//! `http[].match`: the conditions of a rule.

use std::sync::Arc;

use crate::{
    diagnostic::Code,
    source::{
        decode::{Fields, Object, Path, Reader},
        node::Node,
        resource::labels,
    },
    spec::{
        value::{HeaderName, Labels, Namespace, Pattern, Port},
        virtual_service::{HttpMatch, StringMatch},
    },
};

const MATCH: Fields = Fields {
    honoured: &[
        "name",
        "uri",
        "scheme",
        "method",
        "authority",
        "headers",
        "withoutHeaders",
        "queryParams",
        "port",
        "sourceLabels",
        "sourceNamespace",
        "ignoreUriCase",
        "gateways",
    ],
    not_yet: &["statPrefix"],
    silent: &[],
};
const STRING_MATCH: Fields = Fields { honoured: &["exact", "prefix", "regex"], not_yet: &[], silent: &[] };

/// One match. `None` also where it is only for gateways.
pub(crate) fn read(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>) -> Option<HttpMatch> {
    let mut object = r.object(node, path)?;
    let mut rule = HttpMatch { at: node.at, ..HttpMatch::default() };
    rule.name = object.text(r, "name").map(|(text, _)| r.share(text));
    rule.uri = string_match_field(r, &mut object, "uri");
    rule.scheme = string_match_field(r, &mut object, "scheme");
    rule.method = string_match_field(r, &mut object, "method");
    rule.authority = string_match_field(r, &mut object, "authority");
    rule.headers = header_matches(r, &mut object, "headers");
    rule.without_headers = header_matches(r, &mut object, "withoutHeaders");
    let query_path = path.field("queryParams");
    for entry in object.entries(r, "queryParams") {
        if let Some(value) = present_match(r, &entry.value, &query_path.field(&entry.key)) {
            rule.query_params.push((r.share(&entry.key), value));
        }
    }
    rule.port = match object.integer(r, "port") {
        Some((0, _)) | None => None,
        Some((number, at)) => r.valid(at, &path.field("port"), Port::parse(number)),
    };
    rule.source_labels = match object.field("sourceLabels") {
        Some(node) => labels(r, node, &path.field("sourceLabels")),
        None => Labels::default(),
    };
    rule.source_namespace = object.parsed(r, "sourceNamespace", |text| Namespace::parse(text));
    if let Some(node) = object.field("ignoreUriCase") {
        rule.ignore_uri_case = r.boolean(node, &path.field("ignoreUriCase")).unwrap_or_default();
        if rule.ignore_uri_case && !matches!(rule.uri, Some(StringMatch::Exact(_) | StringMatch::Prefix(_))) {
            let message = "has no effect without `uri.exact` or `uri.prefix`";
            r.warning(
                Code::NO_EFFECT,
                node.at,
                &path.field("ignoreUriCase"),
                message,
                "write `(?i)` in the regex instead",
            );
        }
    }
    let for_mesh = gateways(r, &mut object, path);
    object.finish(r, &MATCH);
    for_mesh.then_some(rule)
}

/// Whether the match is for sidecars: `gateways` is absent or names `mesh`.
pub(super) fn gateways(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>, path: &Path<'_>) -> bool {
    let path = path.field("gateways");
    let items = object.list(r, "gateways");
    let mut mesh = items.is_empty();
    for (index, node) in items.iter().enumerate() {
        let path = path.index(index);
        match r.string(node, &path) {
            Some("mesh") => mesh = true,
            Some(_) => {
                let message = "gateways other than `mesh` are not yet honoured";
                r.warning(Code::VALUE_NOT_HONOURED, node.at, &path, message, "");
            }
            None => {}
        }
    }
    mesh
}

fn string_match_field(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>, name: &str) -> Option<StringMatch> {
    let node = object.field(name)?;
    let path = object.path.field(name);
    match string_match(r, node, &path)? {
        StringMatch::Present => {
            let message = "is empty: one of `exact`, `prefix` and `regex` is needed";
            r.error(Code::MISSING_FIELD, node.at, &path, message, "write for instance `exact: TEXT`");
            None
        }
        matches => Some(matches),
    }
}

fn header_matches(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>, field: &str) -> Vec<(HeaderName, StringMatch)> {
    let path = object.path.field(field);
    let mut matches = Vec::new();
    for entry in object.entries(r, field) {
        let path = path.field(&entry.key);
        let name = r.valid(entry.at, &path, HeaderName::parse(&entry.key));
        if matches!(&*entry.key, "uri" | "scheme" | "method" | "authority") {
            let message = format!("`{}` here is a header of that name, not the request's {0}", entry.key);
            r.warning(Code::NO_EFFECT, entry.at, &path, message, "write it beside `headers:`, not under it");
        }
        let value = present_match(r, &entry.value, &path);
        matches.extend(name.zip(value));
    }
    matches
}

/// A match of a header or parameter; an empty one asks for its presence.
fn present_match(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>) -> Option<StringMatch> {
    if node.is_null() {
        r.error(Code::WRONG_TYPE, node.at, path, "is null", "write `{}` to ask for its presence");
        return None;
    }
    string_match(r, node, path)
}

fn string_match(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>) -> Option<StringMatch> {
    if let Some(text) = node.text() {
        let message = format!("is the string {text:?}, but must be an object");
        r.error(Code::WRONG_TYPE, node.at, path, message, &format!("write `exact: {text}` under it"));
        return None;
    }
    let mut object = r.object(node, path)?;
    let exact = object.string(r, "exact");
    let prefix = object.string(r, "prefix");
    let regex = object.string(r, "regex");
    let at = object.at;
    let failed = r.failed;
    object.finish(r, &STRING_MATCH);
    let shared = |r: &mut Reader<'_>, text: &str| -> Arc<str> { r.share(text) };
    match (exact, prefix, regex) {
        (None, None, None) if failed => None,
        (None, None, None) => Some(StringMatch::Present),
        (Some((text, _)), None, None) => Some(StringMatch::Exact(shared(r, text))),
        (None, Some((text, at)), None) => {
            if text.is_empty() {
                let message = "is empty: it matches everything";
                r.warning(Code::NO_EFFECT, at, &path.field("prefix"), message, "leave the condition out");
            }
            Some(StringMatch::Prefix(shared(r, text)))
        }
        (None, None, Some((text, at))) => pattern(r, text, at, &path.field("regex")).map(StringMatch::Regex),
        _ => {
            r.error(Code::CONFLICT, at, path, "has more than one of `exact`, `prefix` and `regex`", "keep one of them");
            None
        }
    }
}

pub(crate) fn pattern(
    r: &mut Reader<'_>,
    text: &str,
    at: crate::diagnostic::Position,
    path: &Path<'_>,
) -> Option<Pattern> {
    match Pattern::parse(text) {
        Ok(pattern) => Some(pattern),
        Err(why) => {
            r.error(Code::INVALID_REGEX, at, path, why.message, &why.hint.unwrap_or_default());
            None
        }
    }
}
