//! JSON as tokens and key sets are read: no name twice in an object, bounded nesting. Where two readers of one token
//! disagree on which of two `sub` counts, one of them is deceived (RFC 8725 section 2.4, RFC 7519 section 4).

use std::{collections::HashSet, fmt};

use meshring_core::limits::JWT_JSON_DEPTH_MAX;
use serde::{
    Serialize, Serializer,
    de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor},
};

/// Members up to which a linear search for a second one of the same name is the fastest.
const FEW: usize = 16;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Integer(i64),
    /// Beyond 63 bits, or with a fraction.
    Number(f64),
    Text(Box<str>),
    List(Vec<Json>),
    Object(Vec<(Box<str>, Json)>),
}

impl Json {
    /// Parses one value that is all there is.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        let value = Seed { depth: JWT_JSON_DEPTH_MAX }.deserialize(&mut deserializer).ok()?;
        deserializer.end().ok()?;
        Some(value)
    }

    /// Parses an object that is all there is.
    pub(crate) fn parse_object(bytes: &[u8]) -> Option<Self> {
        Self::parse(bytes).filter(|value| matches!(value, Self::Object(_)))
    }

    /// A member; `None` where it is absent or this is no object.
    pub(crate) fn member(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Object(members) => members.iter().find(|(known, _)| &**known == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// What it says, where it is a string.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// About what it takes in memory, in bytes.
    pub(crate) fn footprint(&self) -> usize {
        let inner = match self {
            Self::Text(text) => text.len(),
            Self::List(items) => items.iter().map(Self::footprint).sum(),
            Self::Object(members) => members.iter().map(|(name, value)| 16 + name.len() + value.footprint()).sum(),
            _ => 0,
        };
        size_of::<Self>() + inner
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Integer(value) => serializer.serialize_i64(*value),
            Self::Number(value) => serializer.serialize_f64(*value),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(items) => serializer.collect_seq(items),
            Self::Object(members) => serializer.collect_map(members.iter().map(|(name, value)| (&**name, value))),
        }
    }
}

/// Reads a value that may be `depth` levels deep.
#[derive(Clone, Copy)]
struct Seed {
    depth: usize,
}

impl Seed {
    fn below<E: serde::de::Error>(self) -> Result<Self, E> {
        match self.depth.checked_sub(1) {
            Some(depth) => Ok(Self { depth }),
            None => Err(E::custom("nested too deeply")),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(i64::try_from(value).map_or(Json::Number(value as f64), Json::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let below = self.below()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(below)? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let below = self.below()?;
        let mut members: Vec<(Box<str>, Json)> = Vec::new();
        let mut names: HashSet<Box<str>> = HashSet::new();
        while let Some(name) = entries.next_key::<Box<str>>()? {
            // A set only once it pays: most objects are small.
            if members.len() == FEW {
                names.extend(members.iter().map(|(name, _)| name.clone()));
            }
            let is_known = if members.len() < FEW {
                members.iter().any(|(known, _)| *known == name)
            } else {
                !names.insert(name.clone())
            };
            if is_known {
                return Err(A::Error::custom("the same name twice"));
            }
            members.push((name, entries.next_value_seed(below)?));
        }
        Ok(Json::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_must_not_come_twice_at_any_depth() {
        for bad in [r#"{"a":1,"a":1}"#, r#"{"x":[{"a":1,"b":2,"\u0061":3}]}"#] {
            assert_eq!(Json::parse(bad.as_bytes()), None, "{bad}");
        }
        let mut many: Vec<String> = (0..40).map(|number| format!(r#""m{number}":{number}"#)).collect();
        assert!(Json::parse(format!("{{{}}}", many.join(",")).as_bytes()).is_some());
        for again in [0, 15, 16, 39] {
            many.push(format!(r#""m{again}":0"#));
            assert_eq!(Json::parse(format!("{{{}}}", many.join(",")).as_bytes()), None, "m{again}");
            many.pop();
        }
    }

    #[test]
    fn nesting_is_bounded_and_nothing_may_follow() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(Json::parse(nested(JWT_JSON_DEPTH_MAX).as_bytes()).is_some());
        assert_eq!(Json::parse(nested(JWT_JSON_DEPTH_MAX + 1).as_bytes()), None);
        assert_eq!(Json::parse(nested(100_000).as_bytes()), None);
        for bad in [&b"{} {}"[..], b"{}x", b"", b"{", b"\xef\xbb\xbf{}", b"{\"a\":\"\xff\"}", b"{'a':1}", b"{\"a\":1,}"]
        {
            assert_eq!(Json::parse(bad), None, "{bad:?}");
        }
        assert_eq!(Json::parse_object(b"[]"), None);
    }

    #[test]
    fn values_come_out_as_they_went_in() {
        let text = r#"{"b":[true,null,-1,1.5,"\u00e4\n"],"a":{}}"#;
        let value = Json::parse(text.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&value).unwrap(), text.replace("\\u00e4", "ä"));
    }
}
