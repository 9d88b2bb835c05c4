//! Where tokens stand in a request: `fromHeaders`, `fromParams`, `fromCookies`, or without any of them
//! `Authorization: Bearer` and the parameter `access_token` (Istio, Envoy).

use std::borrow::Cow;

use meshring_core::table::security::ArchivedJwtRule;

/// What the verifier looks at in a request.
pub(crate) trait TokenView {
    /// The method, as sent.
    fn method(&self) -> &[u8];
    /// `http` or `https`.
    fn scheme(&self) -> &[u8];
    /// The Host value as sent, port included.
    fn authority(&self) -> &[u8];
    /// The path without query.
    fn path(&self) -> &[u8];
    /// The query without its question mark.
    fn query(&self) -> Option<&[u8]>;
    /// Calls `each` with the value of every line of that (lower-case) name, one by one.
    fn header_lines<'v>(&'v self, name: &str, each: &mut dyn FnMut(&'v [u8]));
}

/// Header of the default location.
const AUTHORIZATION: &str = "authorization";
/// Parameter of the default location (RFC 6750 section 2.3).
const ACCESS_TOKEN: &str = "access_token";
/// Scheme of the default location, in any case (RFC 9110 section 11.1).
const BEARER: &[u8] = b"bearer";

/// The default locations hold for a rule that names none.
fn is_default(rule: &ArchivedJwtRule) -> bool {
    rule.from_headers.is_empty() && rule.from_params.is_empty() && rule.from_cookies.is_empty()
}

/// Calls `each` with every token at one of the rule's locations, the same one twice if it is there twice.
pub(super) fn tokens<'v>(rule: &ArchivedJwtRule, view: &'v impl TokenView, each: &mut dyn FnMut(Cow<'v, [u8]>)) {
    if is_default(rule) {
        view.header_lines(AUTHORIZATION, &mut |line| bearer(line).into_iter().for_each(|t| each(t.into())));
        parameter(view, ACCESS_TOKEN, each);
        return;
    }
    for pair in rule.from_headers.iter() {
        let prefix = pair.1.as_bytes();
        view.header_lines(pair.0.as_str(), &mut |line| {
            let token = line.strip_prefix(prefix).map(<[u8]>::trim_ascii).filter(|token| !token.is_empty());
            token.into_iter().for_each(|token| each(token.into()));
        });
    }
    rule.from_params.iter().for_each(|name| parameter(view, name.as_str(), each));
    for name in rule.from_cookies.iter() {
        view.header_lines("cookie", &mut |line| {
            let values = cookies(line).filter(|(known, _)| *known == name.as_bytes()).map(|(_, value)| value);
            values.filter(|value| !value.is_empty()).for_each(|value| each(value.into()));
        });
    }
}

/// The credentials of `Bearer`, if that is the scheme.
fn bearer(line: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = line.split_at_checked(BEARER.len())?;
    let is_scheme = scheme.eq_ignore_ascii_case(BEARER) && rest.first().is_some_and(u8::is_ascii_whitespace);
    let token = rest.trim_ascii();
    (is_scheme && !token.is_empty()).then_some(token)
}

fn parameter<'v>(view: &'v impl TokenView, name: &str, each: &mut dyn FnMut(Cow<'v, [u8]>)) {
    let Some(query) = view.query() else { return };
    for pair in query.split(|&byte| byte == b'&') {
        if let Some(value) = parameter_named(pair, name).filter(|value| !value.is_empty()) {
            each(decoded(value));
        }
    }
}

/// The value of a `name=value` with this name, which may be spelled with escapes.
fn parameter_named<'q>(pair: &'q [u8], name: &str) -> Option<&'q [u8]> {
    let equals = pair.iter().position(|&byte| byte == b'=')?;
    (*decoded(&pair[..equals]) == *name.as_bytes()).then(|| &pair[equals + 1..])
}

/// Without percent escapes; what is no escape stays as it is.
fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'%') {
        return Cow::Borrowed(text);
    }
    let digit = |at: usize| text.get(at).and_then(|&byte| char::from(byte).to_digit(16));
    let (mut out, mut at) = (Vec::with_capacity(text.len()), 0);
    while let Some(&byte) = text.get(at) {
        let escape = if byte == b'%' { digit(at + 1).zip(digit(at + 2)) } else { None };
        out.push(escape.map_or(byte, |(high, low)| (high * 16 + low) as u8));
        at += if escape.is_some() { 3 } else { 1 };
    }
    Cow::Owned(out)
}

/// Names and values of a Cookie field (RFC 6265 section 4.2), quotes around a value removed.
fn cookies(line: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    line.split(|&byte| byte == b';').filter_map(|pair| {
        let equals = pair.iter().position(|&byte| byte == b'=')?;
        let value = pair[equals + 1..].trim_ascii();
        let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        Some((pair[..equals].trim_ascii(), unquoted.unwrap_or(value)))
    })
}

/// Whether a received field of this name (in any case) is where the rule's tokens stand.
pub(super) fn is_header_of(rule: &ArchivedJwtRule, name: &[u8]) -> bool {
    match is_default(rule) {
        true => name.eq_ignore_ascii_case(AUTHORIZATION.as_bytes()),
        false => rule.from_headers.iter().any(|pair| name.eq_ignore_ascii_case(pair.0.as_bytes())),
    }
}

/// The query without the rule's tokens; `None` where none of them is in it.
pub(super) fn query_without(rule: &ArchivedJwtRule, query: &[u8]) -> Option<Vec<u8>> {
    let is_token = |pair: &[u8]| match is_default(rule) {
        true => parameter_named(pair, ACCESS_TOKEN).is_some(),
        false => rule.from_params.iter().any(|name| parameter_named(pair, name).is_some()),
    };
    let pairs = || query.split(|&byte| byte == b'&');
    if !pairs().any(is_token) {
        return None;
    }
    Some(pairs().filter(|pair| !is_token(pair)).collect::<Vec<_>>().join(&b'&'))
}

/// The one Cookie field without the rule's tokens; `None` where none of them is in one.
pub(super) fn cookies_without(rule: &ArchivedJwtRule, view: &impl TokenView) -> Option<Vec<u8>> {
    if rule.from_cookies.is_empty() {
        return None;
    }
    let is_token = |pair: &[u8]| {
        let name = cookies(pair).next().map(|(name, _)| name);
        name.is_some_and(|name| rule.from_cookies.iter().any(|known| known.as_bytes() == name))
    };
    let (mut kept, mut found) = (Vec::new(), false);
    view.header_lines("cookie", &mut |line| {
        for pair in line.split(|&byte| byte == b';') {
            let pair = pair.trim_ascii();
            if is_token(pair) {
                found = true;
            } else if !pair.is_empty() {
                kept.push(pair);
            }
        }
    });
    found.then(|| kept.join(&b"; "[..]))
}
