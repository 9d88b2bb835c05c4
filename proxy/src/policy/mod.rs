//! What a rule changes on a message: header edits, rewrites, redirects, fixed responses.

pub(crate) mod jwt;
pub(crate) mod request_id;

use std::borrow::Cow;

use meshring_core::{
    http::{
        error::Refusal,
        path::{normalize_rewritten, position_with_parameters},
        serialize::{self, HeaderEdits},
    },
    id::RegexId,
    table::{
        lookup::{RequestView as _, UriMatch},
        model::{
            ArchivedHeaderOp, ArchivedRedirect, ArchivedRedirectPort, ArchivedRewrite, ArchivedRoute,
            ArchivedRouteOptions,
        },
    },
};

use crate::{
    route::{Forward, Request},
    worker::generation::Pinned,
};

/// The edits of the chosen destination, then those of the rule: the more specific first, as Envoy applies them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Edits<'g> {
    destination: &'g [ArchivedHeaderOp],
    rule: &'g [ArchivedHeaderOp],
}

fn options(rule: &ArchivedRoute) -> Option<&ArchivedRouteOptions> {
    rule.options.as_ref().map(|options| &**options)
}

impl<'g> Edits<'g> {
    /// On the way to the upstream.
    pub(crate) fn of_request(forward: &Forward<'g>) -> Self {
        Self {
            destination: forward.destination.headers.as_ref().map_or(&[], |h| h.request.as_slice()),
            rule: options(forward.rule).map_or(&[], |o| o.request_headers.as_slice()),
        }
    }

    /// On the way back.
    pub(crate) fn of_response(forward: &Forward<'g>) -> Self {
        Self {
            destination: forward.destination.headers.as_ref().map_or(&[], |h| h.response.as_slice()),
            rule: Self::of_local_response(forward.rule).rule,
        }
    }

    /// On a response of our own.
    pub(crate) fn of_local_response(rule: &'g ArchivedRoute) -> Self {
        Self { destination: &[], rule: options(rule).map_or(&[], |o| o.response_headers.as_slice()) }
    }

    /// The authority that `headers.request.set.host` asks for.
    fn host(&self) -> Option<&'g str> {
        self.rule.iter().chain(self.destination).find_map(|op| match op {
            ArchivedHeaderOp::Set { name, value } if name == "host" => Some(value.as_str()),
            _ => None,
        })
    }
}

fn name_of(op: &ArchivedHeaderOp) -> &str {
    match op {
        ArchivedHeaderOp::Remove { name } | ArchivedHeaderOp::Set { name, .. } | ArchivedHeaderOp::Add { name, .. } => {
            name
        }
    }
}

fn replaces(op: &ArchivedHeaderOp, name: &[u8]) -> bool {
    !matches!(op, ArchivedHeaderOp::Add { .. }) && name_of(op).as_bytes().eq_ignore_ascii_case(name)
}

impl HeaderEdits for Edits<'_> {
    fn is_empty(&self) -> bool {
        self.destination.is_empty() && self.rule.is_empty()
    }

    fn removes(&self, name: &[u8]) -> bool {
        self.destination.iter().chain(self.rule).any(|op| replaces(op, name))
    }

    fn append(&self, out: &mut Vec<u8>) {
        for op in self.destination {
            // The rule comes later: what it removes or sets is gone.
            if !self.rule.iter().any(|later| replaces(later, name_of(op).as_bytes())) {
                append(out, op);
            }
        }
        self.rule.iter().for_each(|op| append(out, op));
    }
}

fn append(out: &mut Vec<u8>, op: &ArchivedHeaderOp) {
    match op {
        ArchivedHeaderOp::Set { name, value } | ArchivedHeaderOp::Add { name, value } if name != "host" => {
            serialize::field(out, name.as_bytes(), value.as_bytes());
        }
        _ => {}
    }
}

/// What a request looks like upstream.
pub(crate) struct Rewritten<'a> {
    /// Replaces the path.
    pub(crate) path: Option<&'a [u8]>,
    /// Replaces Host.
    pub(crate) authority: Option<&'a [u8]>,
}

/// Room for a rewritten path, reused from request to request.
#[derive(Debug, Default)]
pub(crate) struct RewrittenPath {
    path: Vec<u8>,
    normalized: Vec<u8>,
}

/// Applies `rewrite` and `headers.request.set.host`.
///
/// # Errors
/// What is left of the path behind a rewritten prefix makes it climb above its root (`/static` rewritten to `/` turns
/// `/static../x` into `/../x`), or hides a dot segment otherwise.
pub(crate) fn rewrite<'a>(
    pinned: &'a Pinned,
    request: &Request<'a>,
    forward: &Forward<'a>,
    edits: &Edits<'a>,
    room: &'a mut RewrittenPath,
) -> Result<Rewritten<'a>, Refusal> {
    let Some(rewrite) = options(forward.rule).and_then(|o| o.rewrite.as_ref()) else {
        return Ok(Rewritten { path: request.replaced_path(), authority: edits.host().map(str::as_bytes) });
    };
    let authority = edits.host().or(rewrite.authority.as_ref().map(|a| a.as_str())).map(str::as_bytes);
    let RewrittenPath { path: whole, normalized } = room;
    let path = match rewritten_path(pinned, request, rewrite, forward.uri) {
        Some([first, rest]) => {
            whole.clear();
            whole.extend_from_slice(&first);
            whole.extend_from_slice(&rest);
            Some(normalize_rewritten(whole, request.level, normalized)?)
        }
        None => request.replaced_path(),
    };
    Ok(Rewritten { path, authority })
}

fn rewritten_path<'a>(
    pinned: &Pinned,
    request: &Request<'a>,
    rewrite: &'a ArchivedRewrite,
    uri: UriMatch,
) -> Option<[Cow<'a, [u8]>; 2]> {
    let path = request.path;
    if let Some(regex) = rewrite.regex.as_ref() {
        let pattern = pinned.regexes().of(RegexId::from(&regex.pattern));
        let replaced = pattern.replace_all(path, regex.replacement.as_bytes());
        return Some([rooted(replaced), Cow::Borrowed(b"")]);
    }
    let replacement = rewrite.uri.as_ref()?.as_bytes();
    let matched = match uri {
        UriMatch::Whole => path.len(),
        UriMatch::Prefix(len) if request.rule_path.len() < path.len() => position_with_parameters(path, len),
        UriMatch::Prefix(len) => len.min(path.len()),
        // Istio: a rule without `uri` matches the prefix `/`.
        UriMatch::None => 1.min(path.len()),
    };
    let rest = &path[matched..];
    let replacement = if replacement.is_empty() && !rest.starts_with(b"/") { b"/" } else { replacement };
    Some([rooted(Cow::Borrowed(replacement)), Cow::Borrowed(rest)])
}

/// A path begins with a slash (RFC 9112 section 3.2.1), whatever a rewrite says. An empty one is left for the caller,
/// whose second piece begins with one.
fn rooted(path: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    match path.first() {
        Some(b'/') | None => path,
        Some(_) => Cow::Owned([b"/", &*path].concat()),
    }
}

/// The Location of a redirect.
pub(crate) fn location(request: &Request<'_>, redirect: &ArchivedRedirect, request_port: Option<u16>) -> Vec<u8> {
    let scheme: &[u8] = redirect.scheme.as_ref().map_or_else(|| request.scheme(), |s| s.as_bytes());
    let mut location = [scheme, b"://"].concat();
    let host = match redirect.authority.as_ref() {
        Some(authority) => authority.as_bytes(),
        None => request.text(request.head.authority),
    };
    location.extend_from_slice(host);
    let default = |port: u16| matches!((scheme, port), (b"http", 80) | (b"https", 443));
    let port = match redirect.port {
        ArchivedRedirectPort::Fixed(port) => Some(port.to_native()),
        ArchivedRedirectPort::RequestPort => request_port,
        ArchivedRedirectPort::ProtocolDefault => None,
        ArchivedRedirectPort::Keep if redirect.authority.is_some() => None,
        // Envoy: with another scheme, the port of the old scheme makes no sense.
        ArchivedRedirectPort::Keep if redirect.scheme.is_some() => {
            request.head.port.filter(|&port| port != 80 && port != 443)
        }
        ArchivedRedirectPort::Keep => request.head.port,
    };
    if let Some(port) = port.filter(|&port| !default(port)) {
        location.extend_from_slice(format!(":{port}").as_bytes());
    }
    let path = redirect.uri.as_ref().map_or(request.path, |uri| uri.as_bytes());
    location.extend_from_slice(path);
    if let Some(query) = request.query()
        && !path.contains(&b'?')
    {
        location.push(b'?');
        location.extend_from_slice(query);
    }
    location
}

#[cfg(test)]
mod tests;
