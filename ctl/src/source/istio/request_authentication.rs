//! Istio's RequestAuthentication: `security.istio.io` v1 and v1beta1.

use std::sync::Arc;

use meshring_core::{limits::JWKS_BYTES_MAX, table::text};

use super::{duration, scope};
use crate::{
    diagnostic::{Code, Position},
    source::{
        decode::{Fields, Object, Path, Reader},
        resource::Metadata,
    },
    spec::{
        request_authentication::{FETCH_MS, JwtRule, KeySource, Keys, RequestAuthentication},
        scope::Scope,
        value::InvalidValue,
    },
};

const SPEC: Fields =
    Fields { honoured: &["selector", "targetRef", "targetRefs", "jwtRules"], not_yet: &[], silent: &[] };
const RULE: Fields = Fields {
    honoured: &[
        "issuer",
        "audiences",
        "jwksUri",
        "jwks_uri",
        "jwks",
        "fromHeaders",
        "fromParams",
        "fromCookies",
        "forwardOriginalToken",
        "outputPayloadToHeader",
        "outputClaimToHeaders",
        "spaceDelimitedClaims",
        "timeout",
    ],
    not_yet: &[],
    silent: &[],
};
const FROM_HEADER: Fields = Fields { honoured: &["name", "prefix"], not_yet: &[], silent: &[] };
const CLAIM: Fields = Fields { honoured: &["header", "claim"], not_yet: &[], silent: &[] };

/// What OpenID Connect Discovery 1.0 section 4 adds to an issuer.
const DISCOVERY_PATH: &str = "/.well-known/openid-configuration";

pub(crate) fn read(r: &mut Reader<'_>, root: &mut Object<'_, '_, '_>, _: &Metadata) -> Option<RequestAuthentication> {
    let path = root.path.field("spec");
    // Istio takes one without `spec`: it demands nothing.
    let Some(node) = root.field("spec") else {
        return Some(RequestAuthentication { scope: Scope::default(), rules: Vec::new() });
    };
    let mut spec = r.object(node, &path)?;
    let scope = scope::read(r, &mut spec);
    let rules_path = path.field("jwtRules");
    let mut rules = Vec::new();
    for (index, node) in spec.list(r, "jwtRules").iter().enumerate() {
        let path = rules_path.index(index);
        let Some(object) = r.object(node, &path) else { continue };
        rules.push(rule(r, object));
    }
    spec.finish(r, &SPEC);
    (!r.failed).then_some(RequestAuthentication { scope, rules })
}

fn rule(r: &mut Reader<'_>, mut object: Object<'_, '_, '_>) -> JwtRule {
    let (at, path) = (object.at, object.path);
    let issuer = object.text(r, "issuer");
    let audiences = texts(r, &mut object, "audiences");
    let timeout_ms = object.parsed(r, "timeout", duration::parse);
    let timeout_ms = timeout_ms.map_or(FETCH_MS, |timeout| u64::try_from(timeout.as_millis()).unwrap_or(FETCH_MS));
    let keys = keys(r, &mut object, issuer, timeout_ms);
    let from_headers = from_headers(r, &mut object);
    let from_params = texts(r, &mut object, "fromParams");
    let from_cookies = texts(r, &mut object, "fromCookies");
    let forward = object.boolean(r, "forwardOriginalToken").unwrap_or_default();
    let output_payload_to_header = match object.text(r, "outputPayloadToHeader") {
        Some((name, at)) => written_header(r, at, &path.field("outputPayloadToHeader"), name),
        None => None,
    };
    let output_claims = output_claims(r, &mut object);
    let space_delimited_claims = texts(r, &mut object, "spaceDelimitedClaims");
    object.finish(r, &RULE);
    JwtRule {
        at,
        issuer: r.share(issuer.map_or("", |(issuer, _)| issuer)),
        audiences,
        keys,
        from_headers,
        from_params,
        from_cookies,
        forward,
        output_payload_to_header,
        output_claims,
        space_delimited_claims,
    }
}

/// `jwks`, else `jwksUri`, else the issuer's discovery document.
fn keys(
    r: &mut Reader<'_>,
    object: &mut Object<'_, '_, '_>,
    issuer: Option<(&str, Position)>,
    timeout_ms: u64,
) -> Keys {
    let path = object.path;
    // protobuf's JSON takes both spellings, and Istio's own examples have had both.
    let uri = object.text(r, "jwksUri").or_else(|| object.text(r, "jwks_uri"));
    let inline = object.text(r, "jwks");
    if issuer.is_none() && uri.is_none() {
        let hint = "write the `iss` of the tokens; only with `jwksUri` it may be left out";
        r.missing(object.at, &path.field("issuer"), hint);
    }
    let uri =
        uri.and_then(|(text, at)| r.valid(at, &path.field("jwksUri"), url(text).map(|()| text)).map(|uri| (uri, at)));
    if let Some((text, at)) = inline {
        if let Some((_, at)) = uri {
            let message = "has no effect: `jwks` is there, too, and wins";
            r.warning(Code::NO_EFFECT, at, &path.field("jwksUri"), message, "keep one of them");
        }
        r.valid(at, &path.field("jwks"), key_set(text));
        return Keys::Inline(r.share(text));
    }
    if let Some((text, _)) = uri {
        return Keys::Fetched(KeySource { url: r.share(text), is_discovery: false, timeout_ms });
    }
    let Some((issuer, at)) = issuer else { return Keys::Nowhere };
    if url(issuer).is_err() {
        let message = format!("is no URL, so that its keys cannot be found: every token of `{issuer}` is refused");
        r.warning(Code::NO_EFFECT, at, &path.field("issuer"), message, "write `jwksUri` or `jwks`");
        return Keys::Nowhere;
    }
    let discovery = format!("{}{DISCOVERY_PATH}", issuer.strip_suffix('/').unwrap_or(issuer));
    Keys::Fetched(KeySource { url: r.share(&discovery), is_discovery: true, timeout_ms })
}

/// An absolute `http` or `https` URL with a host and without credentials.
fn url(text: &str) -> Result<(), InvalidValue> {
    let wrong = |why: &str| {
        Err(InvalidValue::with_hint(format!("`{text}` {why}"), "write for instance `https://issuer.example/jwks.json`"))
    };
    let Ok(uri) = text.parse::<hyper::Uri>() else { return wrong("is not a URL") };
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return wrong("is neither an http nor an https URL");
    }
    match uri.authority() {
        Some(authority) if authority.as_str().contains('@') => wrong("has a user in it"),
        Some(authority) if !authority.host().is_empty() => Ok(()),
        _ => wrong("has no host"),
    }
}

/// An object with a list `keys` of objects (RFC 7517 section 5), one of which is of a kind that can verify.
fn key_set(text: &str) -> Result<(), InvalidValue> {
    let wrong = |why: String| {
        InvalidValue::with_hint(format!("is no JWK set: {why}"), "write the JSON of the issuer's `jwks_uri`")
    };
    if text.len() > JWKS_BYTES_MAX {
        return Err(wrong(format!("it is longer than {JWKS_BYTES_MAX} bytes")));
    }
    let value: serde_json::Value = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let Some(keys) = value.get("keys").and_then(serde_json::Value::as_array) else {
        return Err(wrong("it has no list `keys`".into()));
    };
    let kind = |key: &serde_json::Value| key.get("kty").and_then(serde_json::Value::as_str).map(str::to_owned);
    if let Some(index) = keys.iter().position(|key| kind(key).is_none()) {
        return Err(wrong(format!("keys[{index}] has no `kty`")));
    }
    if !keys.iter().filter_map(kind).any(|kind| matches!(&*kind, "RSA" | "EC" | "OKP")) {
        return Err(wrong("no key of it is RSA, EC or OKP".into()));
    }
    Ok(())
}

fn from_headers(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>) -> Vec<(Arc<str>, Arc<str>)> {
    let list_path = object.path.field("fromHeaders");
    let mut list = Vec::new();
    for (index, node) in object.list(r, "fromHeaders").iter().enumerate() {
        let path = list_path.index(index);
        let Some(mut object) = r.object(node, &path) else { continue };
        let name = object.text(r, "name");
        let prefix = object.text(r, "prefix").map_or("", |(prefix, _)| prefix);
        object.finish(r, &FROM_HEADER);
        match name {
            None => r.missing(node.at, &path.field("name"), "write the header's name"),
            Some((name, at)) => {
                let valid = header(name, text::field_name);
                let name = r.valid(at, &path.field("name"), valid);
                list.extend(name.map(|name| (r.share(&name), r.share(prefix))));
            }
        }
    }
    list
}

fn output_claims(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>) -> Vec<(Arc<str>, Arc<str>)> {
    let list_path = object.path.field("outputClaimToHeaders");
    let mut list = Vec::new();
    for (index, node) in object.list(r, "outputClaimToHeaders").iter().enumerate() {
        let path = list_path.index(index);
        let Some(mut object) = r.object(node, &path) else { continue };
        let (name, claim) = (object.text(r, "header"), object.text(r, "claim"));
        object.finish(r, &CLAIM);
        if claim.is_none() {
            r.missing(node.at, &path.field("claim"), "write the claim's name, the names of nested ones with dots");
        }
        match name {
            None => r.missing(node.at, &path.field("header"), "write the header's name"),
            Some((name, at)) => {
                let name = written_header(r, at, &path.field("header"), name);
                list.extend(name.zip(claim).map(|(name, (claim, _))| (name, r.share(claim))));
            }
        }
    }
    list
}

fn header(name: &str, check: fn(&str) -> Result<(), text::BadText>) -> Result<String, InvalidValue> {
    let lower = name.to_ascii_lowercase();
    check(&lower).map_err(|why| InvalidValue::new(format!("`{name}` {why}")))?;
    Ok(lower)
}

/// The name of a header that we write, in lower case.
fn written_header(r: &mut Reader<'_>, at: Position, path: &Path<'_>, name: &str) -> Option<Arc<str>> {
    let name = r.valid(at, path, header(name, text::written_field_name))?;
    Some(r.share(&name))
}

/// A list of strings, none of them empty.
fn texts(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>, name: &str) -> Vec<Arc<str>> {
    let list_path = object.path.field(name);
    let mut list = Vec::new();
    for (index, node) in object.list(r, name).iter().enumerate() {
        let path = list_path.index(index);
        match r.string(node, &path) {
            Some("") => r.invalid(node.at, &path, InvalidValue::new("is empty")),
            Some(text) => list.push(r.share(text)),
            None => {}
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_keys_are_absolute_and_of_the_web() {
        for good in ["https://a.example", "http://127.0.0.1:8080/jwks?x=1", "https://[::1]/keys"] {
            assert_eq!(url(good), Ok(()), "{good}");
        }
        for bad in
            ["", "/jwks", "a.example/jwks", "ftp://a.example", "file:///etc/passwd", "https://u:p@a.example/", "x y"]
        {
            assert!(url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_inline_set_must_be_one() {
        assert_eq!(key_set(r#"{"keys":[{"kty":"oct"},{"kty":"RSA","n":"AQ","e":"AQ"}]}"#), Ok(()));
        for bad in
            ["", "{}", "[]", r#"{"keys":{}}"#, r#"{"keys":[]}"#, r#"{"keys":[{}]}"#, r#"{"keys":[{"kty":"oct"}]}"#]
        {
            assert!(key_set(bad).is_err(), "{bad}");
        }
    }
}
