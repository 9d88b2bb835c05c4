//! `headers` of rules and destinations.

use meshring_core::table::text;

use super::route::authority_value;
use crate::{
    diagnostic::{Code, Position},
    source::{
        decode::{Fields, Object, Path, Reader},
        node::Node,
    },
    spec::{
        value::{HeaderName, HeaderValue, InvalidValue},
        virtual_service::{HeaderOperations, Headers},
    },
};

const HEADERS: Fields = Fields { honoured: &["request", "response"], not_yet: &[], silent: &[] };
const OPERATIONS: Fields = Fields { honoured: &["set", "add", "remove"], not_yet: &[], silent: &[] };

type ParseName = fn(&str) -> Result<HeaderName, InvalidValue>;

/// The field `headers` of an object; nothing where it is absent.
pub(crate) fn field(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>) -> Headers {
    let path = object.path.field("headers");
    let Some(mut headers) = object.field("headers").and_then(|node| r.object(node, &path)) else {
        return Headers::default();
    };
    let (request_path, response_path) = (path.field("request"), path.field("response"));
    let request = headers.field("request");
    let response = headers.field("response");
    headers.finish(r, &HEADERS);
    Headers {
        request: request
            .map(|node| operations(r, node, &request_path, HeaderName::parse_or_authority))
            .unwrap_or_default(),
        response: response
            .map(|node| operations(r, node, &response_path, HeaderName::parse_changeable))
            .unwrap_or_default(),
    }
}

fn operations(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>, name: ParseName) -> HeaderOperations {
    let Some(mut object) = r.object(node, path) else { return HeaderOperations::default() };
    let set = pairs(r, &mut object, "set", name);
    let add = pairs(r, &mut object, "add", name);
    let remove_path = path.field("remove");
    let mut remove = Vec::new();
    for (index, node) in object.list(r, "remove").iter().enumerate() {
        let path = remove_path.index(index);
        let Some(name) = r.parsed(node, &path, HeaderName::parse_changeable) else { continue };
        if written_by_edit(&name).is_err() {
            let message = format!("has no effect: `{name}` is a field that the proxy writes itself");
            r.warning(Code::NO_EFFECT, node.at, &path, message, "remove it");
        }
        remove.push(name);
    }
    object.finish(r, &OPERATIONS);
    HeaderOperations { set, add, remove }
}

/// Whether an edit may write a field of this name; the very check that a proxy applies to a snapshot.
fn written_by_edit(name: &HeaderName) -> Result<(), InvalidValue> {
    text::written_field_name(name.as_str())
        .map_err(|why| InvalidValue::with_hint(format!("`{name}` {why}"), "remove it"))
}

fn pairs(
    r: &mut Reader<'_>,
    object: &mut Object<'_, '_, '_>,
    field: &str,
    parse: ParseName,
) -> Vec<(HeaderName, HeaderValue)> {
    let path = object.path.field(field);
    let mut pairs = Vec::new();
    for entry in object.entries(r, field) {
        let path = path.field(&entry.key);
        let name = parse(&entry.key).and_then(|name| written_by_edit(&name).map(|()| name));
        let name = r.valid(entry.at, &path, name);
        let is_host = name.as_ref().is_some_and(|name| name.as_str() == "host");
        let value = match is_host {
            true => r.parsed(&entry.value, &path, authority_value),
            false if entry.value.is_null() => HeaderValue::parse("").ok(),
            false => r.parsed(&entry.value, &path, HeaderValue::parse),
        };
        pairs.extend(name.zip(value));
    }
    pairs
}

/// Istio allows the authority to be changed in one place only: `rewrite.authority`, or one of `set` and `add`.
pub(crate) fn check_authority(
    r: &mut Reader<'_>,
    headers: &Headers,
    rewrites_authority: bool,
    at: Position,
    path: &Path<'_>,
) {
    let operations = headers.request.set.iter().chain(&headers.request.add);
    let count = operations.filter(|(name, _)| name.as_str() == "host").count() + usize::from(rewrites_authority);
    if count > 1 {
        let message = "the authority is set more than once";
        let hint = "keep one of `rewrite.authority`, `headers.request.set` and `headers.request.add`";
        r.error(Code::CONFLICT, at, path, message, hint);
    }
}
