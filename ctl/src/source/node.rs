//! A document as a tree in which every node knows its place. It lives only while a document is read.

use std::borrow::Cow;

use zeroize::Zeroize as _;

use super::yaml::Chunk;
use crate::diagnostic::{Code, Position};

/// Deepest nesting of a document. The deepest honoured field of Istio is 12 levels down.
pub(crate) const DEPTH_MAX: usize = 64;
/// Nodes of one document. A `List` of 50,000 resources has some 3 million.
pub(crate) const NODES_MAX: usize = 4_000_000;
/// Nodes that aliases may add to one document: enough to share blocks, too few for a "billion laughs".
pub(crate) const ALIASED_NODES_MAX: usize = 100_000;

/// One value and where it begins.
#[derive(Debug, Clone)]
pub(crate) struct Node<'a> {
    pub(crate) at: Position,
    pub(crate) value: Value<'a>,
}

#[derive(Debug, Clone)]
pub(crate) enum Value<'a> {
    Scalar(Scalar<'a>),
    Sequence(Vec<Node<'a>>),
    Mapping {
        entries: Vec<Entry<'a>>,
        /// Where it ends: the position after its last character, or that of what follows it.
        end: Position,
    },
}

/// A key and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry<'a> {
    pub(crate) at: Position,
    pub(crate) key: Cow<'a, str>,
    pub(crate) value: Node<'a>,
}

#[derive(Debug, Clone)]
pub(crate) struct Scalar<'a> {
    pub(crate) text: Cow<'a, str>,
    /// Quoted, a block scalar, or tagged `!!str`: a string whatever it looks like.
    pub(crate) quoted: bool,
    /// Where the text of a literal block scalar (`|`) stands.
    pub(crate) block: Option<Block>,
}

/// The place of a literal block scalar's text. Its lines are lines of the file, without their indentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    /// The file's line that holds the text's first line.
    pub(crate) line: u32,
    /// By how many columns the text is indented.
    pub(crate) indent: u32,
}

impl Block {
    /// The text as YAML in the file.
    pub(crate) fn chunk(self, text: &str) -> Chunk<'_> {
        Chunk { text, offset: 0, line: self.line, indent: self.indent }
    }
}

/// What a scalar means. As `kubectl` has it: YAML 1.2 and the booleans of 1.1 that are words (`yes`, `no`, `on`,
/// `off`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Meaning<'s> {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    String(&'s str),
}

impl Node<'_> {
    /// Takes the copies of texts that it holds out of memory: they are those of a Secret.
    pub(super) fn wipe(&mut self) {
        match &mut self.value {
            Value::Scalar(Scalar { text: Cow::Owned(text), .. }) => text.zeroize(),
            Value::Scalar(_) => {}
            Value::Sequence(nodes) => nodes.iter_mut().for_each(Self::wipe),
            Value::Mapping { entries, .. } => entries.iter_mut().for_each(|entry| entry.value.wipe()),
        }
    }
}

impl<'a> Scalar<'a> {
    pub(crate) fn meaning(&self) -> Meaning<'_> {
        if self.quoted { Meaning::String(&self.text) } else { plain(&self.text) }
    }
}

/// What an unquoted scalar means.
fn plain(text: &str) -> Meaning<'_> {
    let Some(first) = text.as_bytes().first() else { return Meaning::Null };
    // Most scalars are words; only these can begin anything else.
    if !matches!(
        first,
        b'0'..=b'9' | b'+' | b'-' | b'.' | b'~' | b'n' | b'N' | b't' | b'T' | b'f' | b'F' | b'y' | b'Y' | b'o' | b'O'
    ) {
        return Meaning::String(text);
    }
    match text {
        "~" | "null" | "Null" | "NULL" => return Meaning::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Meaning::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Meaning::Bool(false),
        ".inf" | ".Inf" | ".INF" | "+.inf" => return Meaning::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Meaning::Float(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => return Meaning::Float(f64::NAN),
        _ => {}
    }
    match number(text) {
        Some(meaning) => meaning,
        None => Meaning::String(text),
    }
}

fn number(text: &str) -> Option<Meaning<'_>> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !digits.bytes().next().is_some_and(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if let Some(rest) = digits.strip_prefix(prefix) {
            let value = i64::from_str_radix(rest, radix).ok()?;
            return Some(Meaning::Integer(if text.starts_with('-') { -value } else { value }));
        }
    }
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        // Beyond 64 bits it is still a number, just not one that any field takes.
        return Some(text.parse().map_or_else(|_| Meaning::Float(text.parse().unwrap_or(f64::MAX)), Meaning::Integer));
    }
    if digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-')) {
        return text.parse().ok().map(Meaning::Float);
    }
    None
}

impl<'a> Node<'a> {
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if !scalar.quoted && scalar.meaning() == Meaning::Null)
    }

    /// The value of `key`, where this is a mapping that has it.
    pub(crate) fn value_of(&self, key: &str) -> Option<&Node<'a>> {
        match &self.value {
            Value::Mapping { entries, .. } => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value),
            _ => None,
        }
    }

    /// Its text, where it is a string.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(scalar) => match scalar.meaning() {
                Meaning::String(text) => Some(text),
                _ => None,
            },
            _ => None,
        }
    }

    /// Puts it and all in it at one place.
    pub(crate) fn relocate(&mut self, place: Position) {
        self.at = place;
        match &mut self.value {
            Value::Scalar(_) => {}
            Value::Sequence(items) => items.iter_mut().for_each(|item| item.relocate(place)),
            Value::Mapping { entries, end } => {
                *end = place;
                for entry in entries {
                    entry.at = place;
                    entry.value.relocate(place);
                }
            }
        }
    }

    /// How many nodes it is, itself included.
    pub(crate) fn size(&self) -> usize {
        1 + match &self.value {
            Value::Scalar(_) => 0,
            Value::Sequence(items) => items.iter().map(Self::size).sum(),
            Value::Mapping { entries, .. } => entries.iter().map(|entry| entry.value.size()).sum(),
        }
    }

    /// The same as JSON.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Scalar(scalar) => match scalar.meaning() {
                Meaning::Null => serde_json::Value::Null,
                Meaning::Bool(value) => value.into(),
                Meaning::Integer(value) => value.into(),
                Meaning::Float(value) => value.into(),
                Meaning::String(text) => text.into(),
            },
            Value::Sequence(items) => items.iter().map(Self::to_json).collect(),
            Value::Mapping { entries, .. } => {
                entries.iter().map(|entry| (entry.key.to_string(), entry.value.to_json())).collect()
            }
        }
    }
}

/// Why a document cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    pub(crate) code: Code,
    pub(crate) at: Position,
    /// The field in which it is, such as `spec.http[0].match`.
    pub(crate) field: Option<String>,
    pub(crate) message: String,
    pub(crate) hint: Cow<'static, str>,
}

impl SyntaxError {
    pub(crate) fn new(
        code: Code,
        at: Position,
        message: impl Into<String>,
        hint: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { code, at, field: None, message: message.into(), hint: hint.into() }
    }

    /// Deeper than [`DEPTH_MAX`].
    pub(crate) fn too_deep(at: Position) -> Self {
        let message = format!("nested deeper than {DEPTH_MAX} levels");
        Self::new(Code::TOO_COMPLEX, at, message, "write fewer lists and objects within one another")
    }

    /// More than [`NODES_MAX`].
    pub(crate) fn too_many(at: Position) -> Self {
        let message = format!("more than {NODES_MAX} values in one document");
        Self::new(
            Code::TOO_COMPLEX,
            at,
            message,
            "split the document: write `---` between resources, instead of one list",
        )
    }

    /// Names the field, unless a deeper one is known.
    pub(crate) fn within(mut self, field: String) -> Self {
        if self.field.is_none() && !field.is_empty() {
            self.field = Some(field);
        }
        self
    }
}

/// The first key that stands twice in a mapping, and an error with both places.
pub(crate) fn duplicate_key<'e>(entries: &'e [Entry<'_>]) -> Option<(&'e str, SyntaxError)> {
    let (first, second) = if entries.len() <= 16 {
        entries.iter().enumerate().find_map(|(index, second)| {
            entries[..index].iter().find(|first| first.key == second.key).map(|first| (first, second))
        })?
    } else {
        let mut seen = std::collections::HashMap::with_capacity(entries.len());
        entries.iter().find_map(|second| seen.insert(&*second.key, second).map(|first| (first, second)))?
    };
    let message = format!("the key `{}` is here for the second time; the first is at {}", second.key, first.at);
    Some((&second.key, SyntaxError::new(Code::DUPLICATE_KEY, second.at, message, "remove one of them")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_mean_what_kubectl_takes_them_for() {
        let cases = [
            ("", Meaning::Null),
            ("~", Meaning::Null),
            ("null", Meaning::Null),
            ("true", Meaning::Bool(true)),
            ("off", Meaning::Bool(false)),
            ("80", Meaning::Integer(80)),
            ("-1", Meaning::Integer(-1)),
            ("0x1F", Meaning::Integer(31)),
            ("1.10", Meaning::Float(1.1)),
            ("1e3", Meaning::Float(1000.0)),
            ("1.2.3", Meaning::String("1.2.3")),
            ("v1", Meaning::String("v1")),
            ("1s", Meaning::String("1s")),
            ("10.0.0.1", Meaning::String("10.0.0.1")),
            ("2024-01-01T00:00:00Z", Meaning::String("2024-01-01T00:00:00Z")),
            ("-", Meaning::String("-")),
            ("...", Meaning::String("...")),
            ("nullable", Meaning::String("nullable")),
        ];
        for (text, meaning) in cases {
            assert_eq!(plain(text), meaning, "{text}");
        }
    }
}
