//! `http[]`: one rule, with what it does to a request that matches.

use std::{sync::Arc, time::Duration};

use meshring_core::table::text::{self, BadText};
use zeroize::Zeroizing;

use super::{duration, headers, rule_match};
use crate::{
    diagnostic::{Code, Position},
    source::{
        decode::{Fields, Object, Path, Reader, shorten},
        node::{Meaning, Node, Value},
    },
    spec::{
        value::{HeaderValue, Hostname, InvalidValue, Namespace, Port},
        virtual_service::{
            Action, DirectResponse, Headers, HttpMatch, HttpRoute, Redirect, RedirectPort, Rewrite, UriRewrite,
            WeightedDestination,
        },
    },
};

const ROUTE: Fields = Fields {
    honoured: &["name", "match", "route", "redirect", "directResponse", "rewrite", "timeout", "headers"],
    not_yet: &["retries", "fault", "mirror", "mirrors", "mirrorPercent", "mirrorPercentage", "corsPolicy", "delegate"],
    silent: &[],
};
const WEIGHTED: Fields = Fields { honoured: &["destination", "weight", "headers"], not_yet: &[], silent: &[] };
/// In lists that are not about HTTP.
const WEIGHTED_STREAM: Fields = Fields { honoured: &["destination", "weight"], not_yet: &[], silent: &[] };
const DESTINATION: Fields = Fields { honoured: &["host", "subset", "port"], not_yet: &[], silent: &[] };
const PORT: Fields = Fields { honoured: &["number"], not_yet: &[], silent: &[] };
const REWRITE: Fields = Fields { honoured: &["uri", "authority", "uriRegexRewrite"], not_yet: &[], silent: &[] };
const REGEX_REWRITE: Fields = Fields { honoured: &["match", "rewrite"], not_yet: &[], silent: &[] };
const REDIRECT: Fields = Fields {
    honoured: &["uri", "authority", "scheme", "port", "derivePort", "redirectCode"],
    not_yet: &[],
    silent: &[],
};
const RESPONSE: Fields = Fields { honoured: &["status", "body"], not_yet: &[], silent: &[] };
const BODY: Fields = Fields { honoured: &["string", "bytes"], not_yet: &[], silent: &[] };

/// Largest body of a direct response, in bytes; Istio's bound.
const BODY_BYTES_MAX: usize = 1 << 20;

/// One rule. `None` also where all of its matches are only for gateways.
pub(crate) fn read(
    r: &mut Reader<'_>,
    node: &Node<'_>,
    path: &Path<'_>,
    index: usize,
    namespace: &Namespace,
) -> Option<HttpRoute> {
    let mut object = r.object(node, path)?;
    let name = object.text(r, "name").map(|(text, _)| r.share(text));
    let (matches, for_mesh) = matches(r, &mut object);
    let headers = headers::field(r, &mut object);
    let rewrite = rewrite(r, &mut object);
    let timeout = timeout(r, &mut object);
    let action = action(r, &mut object, namespace, rewrite.is_some());
    let rewrites_authority = rewrite.as_ref().is_some_and(|rewrite| rewrite.authority.is_some());
    headers::check_authority(r, &headers, rewrites_authority, node.at, path);
    object.finish(r, &ROUTE);
    let route =
        HttpRoute { at: node.at, index: index as u32, name, matches, action: action?, headers, rewrite, timeout };
    for_mesh.then_some(route)
}

fn timeout(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>) -> Option<Duration> {
    let node = object.field("timeout")?;
    let path = object.path.field("timeout");
    if let Value::Scalar(scalar) = &node.value
        && let Meaning::Integer(number) = scalar.meaning()
    {
        let message = format!("is the number {number}, but must be a duration");
        r.error(Code::WRONG_TYPE, node.at, &path, message, &format!("write {number}s for seconds"));
        return None;
    }
    r.parsed(node, &path, duration::parse)
}

/// The matches for sidecars, and whether the rule is for sidecars at all.
fn matches(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>) -> (Vec<HttpMatch>, bool) {
    let path = object.path.field("match");
    let items = object.list(r, "match");
    let mut matches = Vec::with_capacity(items.len());
    for (index, node) in items.iter().enumerate() {
        matches.extend(rule_match::read(r, node, &path.index(index)));
    }
    let for_mesh = items.is_empty() || !matches.is_empty();
    (matches, for_mesh)
}

fn action(
    r: &mut Reader<'_>,
    object: &mut Object<'_, '_, '_>,
    namespace: &Namespace,
    rewrites: bool,
) -> Option<Action> {
    let (at, path) = (object.at, object.path);
    let route = object.field("route").filter(|node| !matches!(&node.value, Value::Sequence(items) if items.is_empty()));
    let redirect = object.field("redirect");
    let response = object.field("directResponse");
    let delegated = object.field("delegate");
    if let Some(delegate) = delegated {
        r.not_honoured(delegate.at, &path.field("delegate"));
    }
    let given: Vec<_> = [("route", route), ("redirect", redirect), ("directResponse", response)]
        .into_iter()
        .filter_map(|(name, node)| node.map(|node| (name, node)))
        .collect();
    if let [(first, _), (second, node), ..] = given[..] {
        let message = format!("the rule has both `{first}` and `{second}`");
        r.error(Code::CONFLICT, node.at, &path.field(second), message, "keep one of them");
        return None;
    }
    if let Some(node) = redirect
        && rewrites
    {
        let hint = "remove `rewrite`: a redirect has `uri` and `authority` of its own";
        r.error(Code::CONFLICT, node.at, path, "the rule has both `rewrite` and `redirect`", hint);
    }
    match given.first() {
        Some(("route", node)) => destinations(r, node, &path.field("route"), namespace, true).map(Action::Route),
        Some(("redirect", node)) => read_redirect(r, node, &path.field("redirect")).map(Action::Redirect),
        Some((_, node)) => direct_response(r, node, &path.field("directResponse")).map(Action::DirectResponse),
        // What we cannot do must not turn into what the next rule does.
        None if delegated.is_some() => Some(Action::DirectResponse(DirectResponse {
            status: 503,
            body: Arc::from(&b"the rule delegates to another VirtualService, which is not yet honoured\n"[..]),
        })),
        None => {
            let message = "the rule has none of `route`, `redirect` and `directResponse`";
            r.error(Code::MISSING_FIELD, at, path, message, "write `route:` with at least one `destination:`");
            None
        }
    }
}

/// `route`. `is_http`: its destinations may have `headers`.
pub(super) fn destinations(
    r: &mut Reader<'_>,
    node: &Node<'_>,
    path: &Path<'_>,
    namespace: &Namespace,
    is_http: bool,
) -> Option<Vec<WeightedDestination>> {
    let items = r.list(node, path);
    let mut destinations = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        destinations.extend(destination(r, item, &path.index(index), namespace, items.len() == 1, is_http));
    }
    if destinations.len() < items.len() || destinations.is_empty() {
        return None;
    }
    let sum: u64 = destinations.iter().map(|destination| u64::from(destination.weight)).sum();
    if sum == 0 {
        let message = format!("the weights of the {} destinations add up to 0", items.len());
        r.error(Code::INVALID_WEIGHT, node.at, path, message, "give at least one of them a weight above 0");
    } else if sum > u64::from(u32::MAX) {
        let message = format!("the weights add up to {sum}, which is more than {}", u32::MAX);
        r.error(Code::INVALID_WEIGHT, node.at, path, message, "write weights that add up to 100");
    } else if sum != 100 && items.len() > 1 {
        let share = |weight: u32| f64::from(weight) * 100.0 / sum as f64;
        let shares: Vec<_> =
            destinations.iter().map(|destination| format!("{:.1}%", share(destination.weight))).collect();
        let message =
            format!("the weights add up to {sum}, not 100: they are taken as relative ({})", shares.join(", "));
        r.warning(Code::WEIGHT_SUM, node.at, path, message, "write weights that add up to 100");
    }
    Some(destinations)
}

fn destination(
    r: &mut Reader<'_>,
    node: &Node<'_>,
    path: &Path<'_>,
    namespace: &Namespace,
    only: bool,
    is_http: bool,
) -> Option<WeightedDestination> {
    let mut object = r.object(node, path)?;
    let weight = weight(r, &mut object, only);
    let headers = if is_http { headers::field(r, &mut object) } else { Headers::default() };
    let destination = object.field("destination");
    let at = object.at;
    object.finish(r, if is_http { &WEIGHTED } else { &WEIGHTED_STREAM });
    headers::check_authority(r, &headers, false, at, path);
    let path = path.field("destination");
    let Some(destination) = destination else {
        r.missing(at, &path, "write `destination:` with `host:`");
        return None;
    };
    let mut object = r.object(destination, &path)?;
    let mut host_at = at;
    let host = match object.text(r, "host") {
        Some((text, at)) => {
            host_at = at;
            r.valid(at, &path.field("host"), destination_host(text, namespace))
        }
        None => {
            r.missing(object.at, &path.field("host"), "write the name of a service");
            None
        }
    };
    let mut subset_at = at;
    let subset = object.text(r, "subset").map(|(text, at)| {
        subset_at = at;
        r.share(text)
    });
    let port_path = path.field("port");
    let mut port = None;
    if let Some(node) = object.field("port")
        && let Some(mut selector) = r.object(node, &port_path)
    {
        match selector.integer(r, "number") {
            Some((number, at)) => port = r.valid(at, &port_path.field("number"), Port::parse(number)),
            None => r.missing(node.at, &port_path.field("number"), "write `number:` with a port of the service"),
        }
        selector.finish(r, &PORT);
    }
    object.finish(r, &DESTINATION);
    Some(WeightedDestination { at, host: host?, host_at, subset, subset_at, port, weight: weight?, headers })
}

fn destination_host(text: &str, namespace: &Namespace) -> Result<Hostname, InvalidValue> {
    if text.contains('*') {
        let why = InvalidValue::with_hint(
            format!("`{text}` is a wildcard, which is not a destination"),
            "write the full name of one service",
        );
        return Err(why);
    }
    Hostname::resolve(text, namespace)
}

fn weight(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>, only: bool) -> Option<u32> {
    let Some(node) = object.field("weight") else { return Some(if only { 100 } else { 0 }) };
    let path = object.path.field("weight");
    let value = r.integer(node, &path)?;
    match u32::try_from(value) {
        // Istio: a single destination takes all traffic, whatever its weight.
        Ok(0) if only => Some(100),
        Ok(weight) if weight <= i32::MAX as u32 => Some(weight),
        _ => {
            let message = format!("weight {value} is not between 0 and {}", i32::MAX);
            r.error(Code::INVALID_WEIGHT, node.at, &path, message, "write a share of 100");
            None
        }
    }
}

fn rewrite(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>) -> Option<Rewrite> {
    let node = object.field("rewrite")?;
    let path = object.path.field("rewrite");
    let mut rewrite = r.object(node, &path)?;
    let uri = rewrite.text(r, "uri");
    let authority = rewrite.parsed(r, "authority", authority_value);
    let regex = rewrite.field("uriRegexRewrite");
    let failed = r.failed;
    rewrite.finish(r, &REWRITE);
    if let (Some(_), Some(regex)) = (uri, regex) {
        let message = "has both `uri` and `uriRegexRewrite`";
        r.error(Code::CONFLICT, regex.at, &path, message, "keep one of them");
        return None;
    }
    if uri.is_none() && authority.is_none() && regex.is_none() && !failed {
        let message = "has none of `uri`, `uriRegexRewrite` and `authority`";
        r.error(Code::MISSING_FIELD, node.at, &path, message, "write for instance `uri: /`");
    }
    let uri = match (uri, regex) {
        (Some((text, at)), _) => {
            let value = r.valid(at, &path.field("uri"), rewrite_uri(text));
            value.map(UriRewrite::Replace)
        }
        (None, Some(node)) => regex_rewrite(r, node, &path.field("uriRegexRewrite")),
        (None, None) => None,
    };
    Some(Rewrite { uri, authority })
}

fn regex_rewrite(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>) -> Option<UriRewrite> {
    let mut object = r.object(node, path)?;
    let pattern = match object.text(r, "match") {
        Some((text, at)) => rule_match::pattern(r, text, at, &path.field("match")),
        None => {
            r.missing(node.at, &path.field("match"), "write a regular expression");
            None
        }
    };
    let substitution = match object.text(r, "rewrite") {
        Some((text, at)) => substitution(r, text, at, &path.field("rewrite"), pattern.as_ref().map(|p| p.as_str())),
        None => {
            r.missing(node.at, &path.field("rewrite"), "write what the match becomes; `\\1` is its first group");
            None
        }
    };
    object.finish(r, &REGEX_REWRITE);
    Some(UriRewrite::Regex { pattern: pattern?, substitution: substitution? })
}

/// RE2's substitution: `\0` to `\9`, of groups that exist. RE2's `\\` would put a backslash into the path.
fn substitution(
    r: &mut Reader<'_>,
    text: &str,
    at: Position,
    path: &Path<'_>,
    pattern: Option<&str>,
) -> Option<Arc<str>> {
    // Backslashes are looked at below.
    let literal = text.replace('\\', "");
    let checked = text::rewrite_replacement(&literal).map_err(|why| {
        let hint = "write a path, percent-encoded, without fragment";
        InvalidValue::with_hint(format!("{:?} {why}", shorten(text)), hint)
    });
    r.valid(at, path, checked)?;
    let groups = pattern.and_then(|pattern| regex::Regex::new(pattern).ok()).map(|regex| regex.captures_len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            continue;
        }
        match characters.next() {
            Some('\\') => {
                let message = "a path cannot hold a backslash: the next server would refuse it";
                r.error(Code::INVALID_VALUE, at, path, message, "write `/` or `%5C`");
                return None;
            }
            Some(digit @ '0'..='9') => {
                let group = digit as usize - '0' as usize;
                if let Some(groups) = groups.filter(|groups| group >= *groups) {
                    let message =
                        format!("`\\{group}` refers to a group that the match has not: it has {}", groups - 1);
                    r.error(Code::INVALID_VALUE, at, path, message, "put the part to keep into parentheses in `match`");
                    return None;
                }
            }
            _ => {
                let message = "a backslash must be followed by a digit";
                r.error(Code::INVALID_VALUE, at, path, message, "write `\\1` for the first group");
                return None;
            }
        }
    }
    Some(text.into())
}

/// A text that becomes part of a message; the very check that a proxy applies to a snapshot.
fn sound(text: &str, check: fn(&str) -> Result<(), BadText>, hint: &str) -> Result<Arc<str>, InvalidValue> {
    match check(text) {
        Ok(()) => Ok(text.into()),
        Err(why) => Err(InvalidValue::with_hint(format!("{:?} {why}", shorten(text)), hint)),
    }
}

/// `rewrite.uri`. A query in it is kept, as Envoy keeps it; with a fragment no server would take the request.
fn rewrite_uri(text: &str) -> Result<Arc<str>, InvalidValue> {
    sound(text, text::rewrite_uri, "write a path, percent-encoded, without fragment")
}

/// `redirect.uri`, with the slash that it must begin with.
fn redirect_uri(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>) -> Option<Arc<str>> {
    let (text, at) = object.text(r, "uri")?;
    let path = object.path.field("uri");
    let hint = "write a path, percent-encoded";
    if text.starts_with('/') {
        return r.valid(at, &path, sound(text, text::redirect_uri, hint));
    }
    let rooted = r.valid(at, &path, sound(&format!("/{text}"), text::redirect_uri, hint))?;
    let message = format!("does not begin with a slash: it is taken as `{}`", shorten(&rooted));
    r.warning(Code::INVALID_VALUE, at, &path, message, "write the slash");
    Some(rooted)
}

/// What can stand in a Host field.
pub(crate) fn authority_value(text: &str) -> Result<HeaderValue, InvalidValue> {
    sound(text, text::authority_text, "write HOST or HOST:PORT").and_then(|text| HeaderValue::parse(&text))
}

fn read_redirect(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>) -> Option<Redirect> {
    let mut object = r.object(node, path)?;
    let uri = redirect_uri(r, &mut object);
    let authority = object.parsed(r, "authority", authority_value);
    let scheme = match object.text(r, "scheme") {
        Some((text @ ("http" | "https"), _)) => Some(r.share(text)),
        Some((text, at)) => {
            let message = format!("`{text}` is not a scheme");
            r.error(Code::INVALID_VALUE, at, &path.field("scheme"), message, "write http or https");
            None
        }
        None => None,
    };
    let number = object.integer(r, "port");
    let derived = object.text(r, "derivePort");
    let code = object.integer(r, "redirectCode");
    let failed = r.failed;
    object.finish(r, &REDIRECT);
    let mut port = None;
    if let Some((number, at)) = number {
        port = r.valid(at, &path.field("port"), Port::parse(number)).map(RedirectPort::Number);
    }
    if let Some((text, at)) = derived {
        if number.is_some() {
            r.error(Code::CONFLICT, at, path, "has both `port` and `derivePort`", "keep one of them");
        }
        port = match text {
            "FROM_PROTOCOL_DEFAULT" => Some(RedirectPort::FromProtocolDefault),
            "FROM_REQUEST_PORT" => Some(RedirectPort::FromRequestPort),
            _ => {
                let message = format!("`{text}` is not a way to derive a port");
                let hint = "write FROM_PROTOCOL_DEFAULT or FROM_REQUEST_PORT";
                r.error(Code::INVALID_VALUE, at, &path.field("derivePort"), message, hint);
                None
            }
        };
    }
    if uri.is_none() && authority.is_none() && scheme.is_none() && port.is_none() && !failed && !r.failed {
        let message = "has none of `uri`, `authority`, `scheme` and `port`";
        r.error(Code::MISSING_FIELD, node.at, path, message, "write where the client is to go");
    }
    let code = match code {
        None | Some((0, _)) => 301,
        Some((code @ (301 | 302 | 303 | 307 | 308), _)) => code as u16,
        Some((code, at)) => {
            let message = format!("{code} is not a redirect code");
            r.error(Code::INVALID_VALUE, at, &path.field("redirectCode"), message, "write 301, 302, 303, 307 or 308");
            return None;
        }
    };
    Some(Redirect { uri, authority, scheme, port, code })
}

fn direct_response(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>) -> Option<DirectResponse> {
    let mut object = r.object(node, path)?;
    let status = match object.integer(r, "status") {
        Some((status, _)) if (200..=599).contains(&status) => Some(status as u16),
        Some((status, at)) => {
            let message = format!("{status} is not a status that can be answered");
            r.error(Code::INVALID_VALUE, at, &path.field("status"), message, "write 200 to 599");
            None
        }
        None => {
            r.missing(node.at, &path.field("status"), "write 200 to 599");
            None
        }
    };
    let body_path = path.field("body");
    let body = object.field("body");
    object.finish(r, &RESPONSE);
    let body = match body {
        Some(node) => read_body(r, node, &body_path)?,
        None => Vec::new(),
    };
    if body.len() > BODY_BYTES_MAX {
        let message = format!("the body has {} bytes; at most {BODY_BYTES_MAX} are allowed", body.len());
        r.error(Code::INVALID_VALUE, node.at, &body_path, message, "serve it from a service");
    }
    Some(DirectResponse { status: status?, body: body.into() })
}

fn read_body(r: &mut Reader<'_>, node: &Node<'_>, path: &Path<'_>) -> Option<Vec<u8>> {
    let mut object = r.object(node, path)?;
    let string = object.string(r, "string");
    let bytes = object.string(r, "bytes");
    object.finish(r, &BODY);
    match (string, bytes) {
        (Some(_), Some((_, at))) => {
            r.error(Code::CONFLICT, at, path, "has both `string` and `bytes`", "keep one of them");
            None
        }
        (Some((text, _)), None) => Some(text.as_bytes().to_vec()),
        (None, Some((text, at))) => {
            let decoded = base64(text);
            if decoded.is_none() {
                r.error(
                    Code::INVALID_VALUE,
                    at,
                    &path.field("bytes"),
                    "is not base64",
                    "write text into `string` instead",
                );
            }
            decoded
        }
        (None, None) => Some(Vec::new()),
    }
}

/// RFC 4648 section 4, with line breaks, with or without padding. What is refused is wiped: it may be a part of a key.
pub(crate) fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() * 3 / 4));
    let (mut bits, mut count) = (0_u32, 0);
    let mut padded = false;
    for byte in text.bytes().filter(|byte| !byte.is_ascii_whitespace()) {
        let value = match byte {
            b'=' => {
                padded = true;
                continue;
            }
            _ if padded => return None,
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    (count < 6).then(|| std::mem::take(&mut *bytes))
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_rfc_4648() {
        let cases: [(&str, Option<&[u8]>); 8] = [
            ("", Some(b"")),
            ("Zg==", Some(b"f")),
            ("Zm8=", Some(b"fo")),
            ("Zm9v\nYmFy", Some(b"foobar")),
            ("Zg", Some(b"f")),
            ("Z", None),
            ("Zm=v", None),
            ("Zm-v", None),
        ];
        for (text, bytes) in cases {
            assert_eq!(base64(text).as_deref(), bytes, "{text}");
        }
    }
}
