//! JSON Web Tokens at the door of a workload (Istio's RequestAuthentication): which tokens a request brings, whether they
//! are good, what they say, and what of them goes on to the application.
//!
//! Pure: no socket is opened and no key is fetched here, whatever a token says. Keys come with the generation, from
//! control.
//!
//! As Istio sets Envoy up: a request without a token passes, since AuthorizationPolicies decide about it. With rules for
//! several issuers, one rule whose tokens are all good is enough: the one header cannot satisfy two issuers. Else every
//! token that is there makes for a refusal.

mod cache;
pub(crate) mod claims;
pub(crate) mod json;
pub(crate) mod keys;
mod locate;
pub(crate) mod token;
mod view;

use std::{borrow::Cow, cell::RefCell, rc::Rc, sync::Arc};

use meshring_core::{
    http::serialize::{self, HeaderEdits},
    limits::{JWT_CACHE_BYTES_MAX, JWT_CACHE_TOKENS_MAX, JWT_TOKENS_MAX},
    table::{
        ArchivedTable,
        security::{ArchivedInboundPolicy, ArchivedJwtRule},
    },
};

use self::{cache::Cache, keys::KeySet};
pub(crate) use self::{
    claims::Claims,
    locate::TokenView,
    token::{BadToken, Demands},
};

/// The key sets of a workload's rules, in their order: made once per generation, shared by all workers.
#[derive(Debug, Default)]
pub(crate) struct KeySets(Vec<KeySet>);

impl KeySets {
    /// Parses the sets of the policy's rules. A set without a usable key refuses the tokens of its issuer; that is no
    /// reason to refuse the generation.
    pub(crate) fn of(table: &ArchivedTable, policy: &ArchivedInboundPolicy) -> Self {
        Self(rules(table, policy).map(|rule| KeySet::parse(rule.jwks.as_bytes())).collect())
    }
}

/// The policy's rules; validation has proved that they are there.
fn rules<'t>(
    table: &'t ArchivedTable,
    policy: &'t ArchivedInboundPolicy,
) -> impl Iterator<Item = &'t ArchivedJwtRule> + Clone {
    policy.jwt_rules.iter().map(|rule| &table.jwt_rules[rule.to_native() as usize])
}

impl Demands for &ArchivedJwtRule {
    fn issuer(&self) -> &str {
        self.issuer.as_str()
    }

    fn takes_audience(&self, audiences: &[&str]) -> bool {
        self.audiences.is_empty() || self.audiences.iter().any(|known| audiences.contains(&known.as_str()))
    }

    fn space_delimited(&self) -> Vec<Box<str>> {
        self.space_delimited_claims.iter().map(|name| name.as_str().into()).collect()
    }
}

/// A worker's verifier for one generation.
#[derive(Debug)]
pub(crate) struct Jwt {
    keys: Arc<KeySets>,
    cache: RefCell<Cache>,
}

/// What came of a request's tokens.
#[derive(Debug)]
pub(crate) enum Outcome<'t> {
    /// There is none, and none was looked for in a CORS preflight.
    NoToken,
    /// At least one, and all of this rule's are good.
    Valid(Valid<'t>),
    /// One is not.
    Refused(Refused),
}

/// A good token.
#[derive(Debug)]
pub(crate) struct Valid<'t> {
    /// The rule that accepted it.
    pub(crate) rule: &'t ArchivedJwtRule,
    /// What it says.
    pub(crate) claims: Rc<Claims>,
    /// The Cookie field for the upstream, where a token was in it and must not go on.
    cookies: Option<Vec<u8>>,
}

/// Why a request is answered here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// What is wrong with the token: status, code for logs, body.
    pub(crate) bad: BadToken,
    /// The value of WWW-Authenticate (RFC 6750 section 3), with 403, too, as Envoy has it.
    pub(crate) www_authenticate: String,
}

impl Jwt {
    /// With an empty memory.
    pub(crate) fn new(keys: Arc<KeySets>) -> Self {
        Self { keys, cache: RefCell::new(Cache::new(JWT_CACHE_TOKENS_MAX, JWT_CACHE_BYTES_MAX)) }
    }

    /// Looks at a request's tokens. `table` and `policy` are those that [`KeySets::of`] got; `now_s` counts from the Unix
    /// epoch.
    pub(crate) fn check<'t>(
        &self,
        table: &'t ArchivedTable,
        policy: &'t ArchivedInboundPolicy,
        view: &impl TokenView,
        now_s: u64,
    ) -> Outcome<'t> {
        if policy.jwt_rules.is_empty() || is_cors_preflight(view) {
            return Outcome::NoToken;
        }
        let mut worst = None;
        for (position, rule) in rules(table, policy).enumerate() {
            match self.check_rule(position, rule, view, now_s) {
                None => {}
                Some(Ok(claims)) => {
                    let cookies = if rule.forward { None } else { locate::cookies_without(rule, view) };
                    return Outcome::Valid(Valid { rule, claims, cookies });
                }
                Some(Err(bad)) => worst = more_telling(worst, bad),
            }
        }
        match worst {
            None => Outcome::NoToken,
            Some(bad) => Outcome::Refused(Refused { bad, www_authenticate: challenge(view) }),
        }
    }

    /// One rule: `None` where no token is at its locations. All that are there must be good: the application might take
    /// another one than we did. The first is whose claims count.
    fn check_rule(
        &self,
        position: usize,
        rule: &ArchivedJwtRule,
        view: &impl TokenView,
        now_s: u64,
    ) -> Option<Result<Rc<Claims>, BadToken>> {
        let (mut first, mut bad, mut count) = (None, None, 0);
        locate::tokens(rule, view, &mut |token: Cow<'_, [u8]>| {
            count += 1;
            if bad.is_some() {
                return;
            }
            if count > JWT_TOKENS_MAX {
                bad = Some(BadToken::TooMany);
                return;
            }
            match self.check_token(position, rule, &token, now_s) {
                Ok(claims) => drop(first.get_or_insert(claims)),
                Err(why) => bad = Some(why),
            }
        });
        match bad {
            Some(bad) => Some(Err(bad)),
            None => first.map(Ok),
        }
    }

    fn check_token(
        &self,
        position: usize,
        rule: &ArchivedJwtRule,
        token: &[u8],
        now_s: u64,
    ) -> Result<Rc<Claims>, BadToken> {
        if let Some(claims) = self.cache.borrow_mut().find(position, token, now_s) {
            return Ok(claims);
        }
        // One set for each rule of the policy; without it there is no key.
        let keys = self.keys.0.get(position).ok_or(BadToken::NotFetched)?;
        let claims = Rc::new(token::verify(token, keys, &rule, now_s)?);
        self.cache.borrow_mut().insert(position, token, &claims);
        Ok(claims)
    }
}

/// That one rule does not know the issuer tells nothing where another one does.
fn more_telling(known: Option<BadToken>, bad: BadToken) -> Option<BadToken> {
    match known {
        Some(known) if known != BadToken::Issuer => Some(known),
        _ => Some(bad),
    }
}

/// Browsers send preflights without credentials (Fetch, section 3.3.5); Istio lets them pass without a look at tokens.
fn is_cors_preflight(view: &impl TokenView) -> bool {
    let has = |name: &str| {
        let mut found = false;
        view.header_lines(name, &mut |value| found |= !value.is_empty());
        found
    };
    view.method() == b"OPTIONS" && has("origin") && has("access-control-request-method")
}

fn challenge(view: &impl TokenView) -> String {
    let mut text = String::from("Bearer realm=\"");
    let pieces = [view.scheme(), b"://", view.authority(), view.path()];
    // A quoted-string (RFC 9110 section 5.6.4): what would end it, or is no text, is left out.
    let clean =
        pieces.iter().flat_map(|piece| piece.iter()).filter(|&&b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
    text.extend(clean.map(|&byte| char::from(byte)));
    text.push_str("\", error=\"invalid_token\"");
    text
}

impl Valid<'_> {
    /// The query for the upstream, where a token was in it and must not go on.
    pub(crate) fn query_without_token(&self, query: &[u8]) -> Option<Vec<u8>> {
        if self.rule.forward { None } else { locate::query_without(self.rule, query) }
    }
}

impl<'t> Outcome<'t> {
    /// What changes on a request's head on its way to the application.
    pub(crate) fn edits<'o>(
        &'o self,
        table: &'t ArchivedTable,
        policy: &'t ArchivedInboundPolicy,
    ) -> TokenEdits<'t, 'o> {
        let valid = if let Self::Valid(valid) = self { Some(valid) } else { None };
        TokenEdits { table, policy, valid }
    }
}

/// The edits of a request that a token's rule asks for: what only we may say is removed from every request, with a token
/// or without; a good token goes no further unless it is to be forwarded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TokenEdits<'t, 'o> {
    table: &'t ArchivedTable,
    policy: &'t ArchivedInboundPolicy,
    valid: Option<&'o Valid<'t>>,
}

impl HeaderEdits for TokenEdits<'_, '_> {
    fn is_empty(&self) -> bool {
        self.policy.jwt_rules.is_empty()
    }

    fn removes(&self, name: &[u8]) -> bool {
        let is_ours = |rule: &ArchivedJwtRule| {
            let payload = &rule.output_payload_to_header;
            !payload.is_empty() && name.eq_ignore_ascii_case(payload.as_bytes())
                || rule.output_claims.iter().any(|pair| name.eq_ignore_ascii_case(pair.0.as_bytes()))
        };
        let is_token = |valid: &Valid<'_>| {
            !valid.rule.forward && locate::is_header_of(valid.rule, name)
                || valid.cookies.is_some() && name.eq_ignore_ascii_case(b"cookie")
        };
        rules(self.table, self.policy).any(is_ours) || self.valid.is_some_and(is_token)
    }

    fn append(&self, out: &mut Vec<u8>) {
        let Some(Valid { rule, claims, cookies }) = self.valid else { return };
        if let Some(cookies) = cookies.as_ref().filter(|cookies| !cookies.is_empty()) {
            serialize::field(out, b"cookie", cookies);
        }
        if !rule.output_payload_to_header.is_empty() {
            serialize::field(out, rule.output_payload_to_header.as_bytes(), claims.payload_base64url().as_bytes());
        }
        for pair in rule.output_claims.iter() {
            let begin = out.len();
            out.extend_from_slice(pair.0.as_bytes());
            out.extend_from_slice(b": ");
            if claims.write_output(pair.1.as_str(), out) {
                out.extend_from_slice(b"\r\n");
            } else {
                out.truncate(begin);
            }
        }
    }
}

#[cfg(test)]
mod tests;
