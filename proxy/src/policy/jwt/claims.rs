//! What a verified token says.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use meshring_core::table::text;

use super::{
    json::Json,
    token::{BadToken, Validity},
};

/// Claims whose words are always values of their own (Istio).
const SPACE_DELIMITED: [&str; 2] = ["scope", "permission"];

/// The claims of one token.
#[derive(Debug, PartialEq)]
pub(crate) struct Claims {
    payload: Json,
    /// As it stood in the token.
    payload_base64url: Box<str>,
    /// `ISS/SUB`, where both are there.
    principal: Option<Box<str>>,
    validity: Validity,
    space_delimited: Vec<Box<str>>,
}

impl Claims {
    /// Checks the types of registered claims (RFC 7519 section 4.1).
    pub(super) fn new(
        payload: Json,
        payload_base64url: &[u8],
        space_delimited: Vec<Box<str>>,
    ) -> Result<Self, BadToken> {
        let texts = ["iss", "sub", "jti"];
        if texts.iter().filter_map(|name| payload.member(name)).any(|value| value.text().is_none()) {
            return Err(BadToken::ClaimType);
        }
        let sound = match payload.member("aud") {
            None | Some(Json::Text(_)) => true,
            Some(Json::List(list)) => list.iter().all(|value| value.text().is_some()),
            Some(_) => false,
        };
        if !sound {
            return Err(BadToken::ClaimType);
        }
        let seconds = |name: &str| payload.member(name).map(seconds).transpose();
        let validity = Validity { not_before_s: seconds("nbf")?, expires_s: seconds("exp")? };
        seconds("iat")?;
        let named = |name: &str| payload.member(name).and_then(Json::text).filter(|text| !text.is_empty());
        let principal = named("iss").zip(named("sub")).map(|(issuer, subject)| format!("{issuer}/{subject}").into());
        // Decoded before, so it is ASCII.
        let payload_base64url = String::from_utf8_lossy(payload_base64url).into();
        Ok(Self { payload, payload_base64url, principal, validity, space_delimited })
    }

    /// `iss`.
    pub(crate) fn issuer(&self) -> Option<&str> {
        self.payload.member("iss").and_then(Json::text)
    }

    /// `request.auth.principal`: `ISS/SUB`; `None` where one of them is missing or empty.
    pub(crate) fn principal(&self) -> Option<&str> {
        self.principal.as_deref()
    }

    /// `request.auth.audiences`: `aud`, which is a string or a list of them.
    pub(crate) fn audiences(&self) -> Vec<&str> {
        let mut list = Vec::new();
        texts(self.payload.member("aud"), &mut |text| list.push(text));
        list
    }

    /// `request.auth.claims[A][B]`: calls `each` with the values of the claim at the path, from the outermost name. Strings
    /// and lists of strings have values, others none, as in Istio; the words of a space-delimited claim are one value
    /// each.
    pub(crate) fn claim<'c, 'p>(&'c self, path: impl Iterator<Item = &'p str>, each: &mut dyn FnMut(&'c str)) {
        let mut path = path.peekable();
        let Some(first) = path.next() else { return };
        let Some(mut value) = self.payload.member(first) else { return };
        if path.peek().is_none()
            && self.is_space_delimited(first)
            && let Json::Text(words) = value
        {
            return words.split(' ').filter(|word| !word.is_empty()).for_each(each);
        }
        for name in path {
            let Some(inner) = value.member(name) else { return };
            value = inner;
        }
        texts(Some(value), each);
    }

    /// Until when and since when the token is valid.
    pub(crate) fn validity(&self) -> Validity {
        self.validity
    }

    /// The payload as it stood in the token, for `outputPayloadToHeader`.
    pub(crate) fn payload_base64url(&self) -> &str {
        &self.payload_base64url
    }

    /// The value of `outputClaimToHeaders`, written to `out`: strings, numbers and booleans as they are, lists and objects
    /// as Base64 of their JSON, as Envoy does. `false`, and nothing is written, where there is no such claim, where it is
    /// empty, or where it would not be one field value.
    pub(crate) fn write_output(&self, claim: &str, out: &mut Vec<u8>) -> bool {
        let mut names = claim.split('.');
        let Some(mut value) = names.next().and_then(|name| self.payload.member(name)) else { return false };
        for name in names {
            let Some(inner) = value.member(name) else { return false };
            value = inner;
        }
        match value {
            // A claim is its issuer's and often its user's choice: a line end in it must not begin another field.
            Json::Text(value) if value.is_empty() || text::field_value(value).is_err() || value.trim() != &**value => {
                return false;
            }
            Json::Text(value) => out.extend_from_slice(value.as_bytes()),
            Json::Integer(number) => out.extend_from_slice(number.to_string().as_bytes()),
            Json::Number(number) => out.extend_from_slice(number.to_string().as_bytes()),
            Json::Bool(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
            Json::Null => return false,
            Json::List(_) | Json::Object(_) => {
                let Ok(json) = serde_json::to_vec(value) else { return false };
                out.extend_from_slice(STANDARD.encode(json).as_bytes());
            }
        }
        true
    }

    /// About what it takes in memory, in bytes.
    pub(super) fn footprint(&self) -> usize {
        let principal = self.principal.as_ref().map_or(0, |text| text.len());
        size_of::<Self>() + self.payload.footprint() + self.payload_base64url.len() + principal
    }

    fn is_space_delimited(&self, name: &str) -> bool {
        SPACE_DELIMITED.contains(&name) || self.space_delimited.iter().any(|known| &**known == name)
    }
}

fn texts<'c>(value: Option<&'c Json>, each: &mut dyn FnMut(&'c str)) {
    match value {
        Some(Json::Text(text)) => each(text),
        Some(Json::List(list)) => list.iter().filter_map(Json::text).for_each(each),
        _ => {}
    }
}

/// A NumericDate: seconds since the Unix epoch, fractions allowed (RFC 7519 section 2).
fn seconds(value: &Json) -> Result<u64, BadToken> {
    match value {
        Json::Integer(seconds) => u64::try_from(*seconds).map_err(|_| BadToken::ClaimType),
        // Beyond 64 bits the cast saturates, which is as far away.
        Json::Number(seconds) if *seconds >= 0.0 => Ok(*seconds as u64),
        _ => Err(BadToken::ClaimType),
    }
}
