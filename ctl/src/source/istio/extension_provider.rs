//! `MeshConfig.extensionProviders`: who is asked about a request (`envoyExtAuthzHttp`). The other kinds are about
//! telemetry, or speak gRPC; they are not honoured yet.

use std::{sync::Arc, time::Duration};

use meshring_core::table::text;

use super::duration;
use crate::{
    diagnostic::{Code, Position},
    source::{
        decode::{Fields, Object, Path, Reader},
        node::Node,
    },
    spec::{
        mesh_config::ExtAuthzHttp,
        value::{HeaderName, HeaderValue, Hostname, InvalidValue, Namespace, Port, ROOT_NAMESPACE},
    },
};

/// Istio's default for `timeout`.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Istio's default for `statusOnError`.
const STATUS_ON_ERROR: u16 = 403;

const PROVIDER: Fields = Fields {
    honoured: &["name", "envoyExtAuthzHttp"],
    not_yet: &[
        "envoyExtAuthzGrpc",
        "zipkin",
        "lightstep",
        "datadog",
        "stackdriver",
        "opencensus",
        "skywalking",
        "opentelemetry",
        "prometheus",
        "envoyFileAccessLog",
        "envoyHttpAls",
        "envoyTcpAls",
        "envoyOtelAls",
        "sds",
    ],
    silent: &[],
};
const HTTP: Fields = Fields {
    honoured: &[
        "service",
        "port",
        "timeout",
        "pathPrefix",
        "failOpen",
        "statusOnError",
        "includeHeadersInCheck",
        "includeRequestHeadersInCheck",
        "includeAdditionalHeadersInCheck",
        "headersToUpstreamOnAllow",
        "headersToDownstreamOnAllow",
        "headersToDownstreamOnDeny",
    ],
    not_yet: &["clearRouteCache", "includeRequestBodyInCheck"],
    silent: &[],
};

pub(crate) fn read(r: &mut Reader<'_>, mesh: &mut Object<'_, '_, '_>) -> Vec<ExtAuthzHttp> {
    let path = mesh.path.field("extensionProviders");
    let mut names: Vec<(&str, Position)> = Vec::new();
    let mut list = Vec::new();
    for (index, node) in mesh.list(r, "extensionProviders").iter().enumerate() {
        let path = path.index(index);
        let Some(mut provider) = r.object(node, &path) else { continue };
        let name = provider.text(r, "name");
        let http = provider.field("envoyExtAuthzHttp");
        provider.finish(r, &PROVIDER);
        let Some((name, at)) = name else {
            r.missing(node.at, &path.field("name"), "write the name by which AuthorizationPolicies refer to it");
            continue;
        };
        if let Some((_, first)) = names.iter().find(|(other, _)| *other == name) {
            let message = format!("the provider `{name}` is here for the second time; the first is at {first}");
            r.error(Code::CONFLICT, at, &path.field("name"), message, "remove or rename one of them");
            continue;
        }
        names.push((name, at));
        let Some(http) = http else { continue };
        let name = r.share(name);
        list.extend(ext_authz_http(r, http, &path.field("envoyExtAuthzHttp"), name));
    }
    list
}

fn ext_authz_http(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>, name: Arc<str>) -> Option<ExtAuthzHttp> {
    let mut object = r.object(node, path)?;
    let service = object.text(r, "service").map(|(text, at)| r.valid(at, &path.field("service"), service(text)));
    let port = object.integer(r, "port").map(|(number, at)| r.valid(at, &path.field("port"), Port::parse(number)));
    let timeout = object.parsed(r, "timeout", duration::parse);
    let path_prefix = object.parsed(r, "pathPrefix", path_prefix);
    let fail_open = object.boolean(r, "failOpen").unwrap_or(false);
    let status_on_error = object.parsed(r, "statusOnError", status);
    let mut request_headers = names(r, &mut object, "includeRequestHeadersInCheck");
    let old_path = path.field("includeHeadersInCheck");
    let old = names(r, &mut object, "includeHeadersInCheck");
    if !old.is_empty() {
        let hint = "write includeRequestHeadersInCheck, which means the same";
        r.warning(Code::DEPRECATED, object.at, &old_path, "is deprecated", hint);
        // As Istio: what is written under the new name wins.
        if request_headers.is_empty() {
            request_headers = old;
        }
    }
    let mut additional_headers = Vec::new();
    let additional_path = path.field("includeAdditionalHeadersInCheck");
    for entry in object.entries(r, "includeAdditionalHeadersInCheck") {
        let path = additional_path.field(&entry.key);
        let name = r.valid(entry.at, &path, written_name(&entry.key));
        let value = r.parsed(&entry.value, &path, HeaderValue::parse);
        additional_headers.extend(name.zip(value));
    }
    let headers_to_upstream = names(r, &mut object, "headersToUpstreamOnAllow");
    let headers_to_downstream = names(r, &mut object, "headersToDownstreamOnAllow");
    let headers_on_deny = names(r, &mut object, "headersToDownstreamOnDeny");
    object.finish(r, &HTTP);
    if service.is_none() {
        r.missing(node.at, &path.field("service"), "write the authorizer's `[NAMESPACE/]HOST`");
    }
    if port.is_none() {
        r.missing(node.at, &path.field("port"), "write the authorizer's port");
    }
    let (namespace, service) = service??;
    Some(ExtAuthzHttp {
        at: node.at,
        name,
        namespace,
        service,
        port: port??,
        timeout: timeout.unwrap_or(TIMEOUT),
        path_prefix: path_prefix.unwrap_or_default(),
        fail_open,
        status_on_error: status_on_error.unwrap_or(STATUS_ON_ERROR),
        request_headers,
        additional_headers,
        headers_to_upstream,
        headers_to_downstream,
        headers_on_deny,
    })
}

/// `[NAMESPACE/]HOST`.
fn service(text: &str) -> Result<(Option<Namespace>, Hostname), InvalidValue> {
    let (namespace, host) = match text.split_once('/') {
        Some((namespace, host)) => (Some(Namespace::parse(namespace)?), host),
        None => (None, text),
    };
    let home = namespace.clone().map_or_else(|| Namespace::parse(ROOT_NAMESPACE), Ok)?;
    Ok((namespace, Hostname::resolve(host, &home)?))
}

fn path_prefix(text: &str) -> Result<Arc<str>, InvalidValue> {
    let fits = |byte: u8| byte.is_ascii_graphic() && !b"?#".contains(&byte);
    if text.starts_with('/') && text.bytes().all(fits) {
        return Ok(text.into());
    }
    let message = format!("`{text}` is not the beginning of a path");
    Err(InvalidValue::with_hint(message, "write for instance /check, escaped as in a request"))
}

fn status(text: &str) -> Result<u16, InvalidValue> {
    let code = text.parse().ok().filter(|code| (200..600).contains(code));
    code.ok_or_else(|| InvalidValue::with_hint(format!("`{text}` is not a status"), "write a code such as \"503\""))
}

/// A header that is written: neither the authority nor what frames a message.
fn written_name(text: &str) -> Result<HeaderName, InvalidValue> {
    let name = HeaderName::parse_changeable(text)?;
    text::written_field_name(name.as_str()).map_err(|why| InvalidValue::new(format!("`{text}` {why}")))?;
    Ok(name)
}

/// Names of headers, or with a `*` at the end prefixes of names.
fn names(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>, field: &str) -> Vec<Arc<str>> {
    let path = object.path.field(field);
    let mut names = Vec::new();
    for (index, node) in object.list(r, field).iter().enumerate() {
        let path = path.index(index);
        let Some(text) = r.string(node, &path) else { continue };
        if text.len() > 1 && text.starts_with('*') {
            let message = "a suffix is not yet honoured: it has no effect here";
            r.warning(Code::VALUE_NOT_HONOURED, node.at, &path, message, "write names, or a prefix such as `x-auth-*`");
            continue;
        }
        let bare = text.strip_suffix('*').unwrap_or(text);
        let any = bare.is_empty() && !text.is_empty();
        if any || r.valid(node.at, &path, HeaderName::parse(bare)).is_some() {
            names.push(r.share(&text.to_ascii_lowercase()));
        }
    }
    names
}
