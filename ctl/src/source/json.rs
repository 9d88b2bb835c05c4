//! JSON text to [`Node`]s. `serde_json` reads each level as raw slices of the text, whose addresses tell their
//! positions.

use std::{borrow::Cow, fmt};

use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::lines::Lines;
use super::{
    decode::{Step, path_of},
    node::{DEPTH_MAX, Entry, NODES_MAX, Node, Scalar, SyntaxError, Value, duplicate_key},
};
use crate::diagnostic::{Code, Position};

/// One document of a file: several may follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk<'a> {
    pub(crate) text: &'a str,
    pub(crate) offset: usize,
}

/// The documents of a file; what is not JSON is an error with its position.
pub(crate) fn chunks(file: &str) -> Result<Vec<Chunk<'_>>, SyntaxError> {
    let mut chunks = Vec::new();
    for document in serde_json::Deserializer::from_str(file).into_iter::<&RawValue>() {
        let text = document.map_err(|error| syntax(&error, Position::new(1, 1)))?.get();
        chunks.push(Chunk { text, offset: text.as_ptr() as usize - file.as_ptr() as usize });
    }
    Ok(chunks)
}

/// serde_json ends its messages with the position, which the diagnostic has already.
fn syntax(error: &serde_json::Error, start: Position) -> SyntaxError {
    let (line, column) = (error.line() as u32, error.column() as u32);
    let at = match line {
        0 => start,
        1 => Position::new(start.line, start.column + column.saturating_sub(1)),
        _ => Position::new(start.line + line - 1, column.max(1)),
    };
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
    let hint = if text.starts_with("EOF") {
        "close each `{`, `[` and `\"`"
    } else if text.contains("trailing comma") {
        "remove the `,` before `}` or `]`"
    } else if text.contains("key must be a string") {
        "write the name of a field in double quotes, and no `,` before `}`"
    } else if text.contains("recursion limit") {
        "write fewer lists and objects within one another"
    } else {
        "write `\"name\": value`, `,` between two of them, and texts in double quotes"
    };
    SyntaxError::new(Code::SYNTAX, at, format!("not well-formed JSON: {text}"), hint)
}

/// With the field in which its position is.
pub(crate) fn located(error: SyntaxError, text: &str, lines: &Lines<'_>) -> SyntaxError {
    let field = field_at(text, lines.offset(error.at));
    error.within(field)
}

/// The field to which what begins at or before a byte belongs. The text need not be well-formed.
fn field_at(text: &str, offset: usize) -> String {
    enum Open<'a> {
        Object(Option<&'a str>),
        Array(usize),
    }
    let mut open = Vec::new();
    let mut at = 0;
    let bytes = text.as_bytes();
    while at < bytes.len().min(offset.saturating_add(1)) {
        match (bytes[at], open.last_mut()) {
            (b'{', _) => open.push(Open::Object(None)),
            (b'[', _) => open.push(Open::Array(0)),
            (b'}' | b']', _) if at < offset => drop(open.pop()),
            (b',', Some(Open::Object(key))) if at < offset => *key = None,
            (b',', Some(Open::Array(index))) if at < offset => *index += 1,
            (b'"', last) => {
                let begin = at + 1;
                at = begin;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                if let Some(Open::Object(key @ None)) = last {
                    *key = text.get(begin..at.min(bytes.len()));
                }
            }
            _ => {}
        }
        at += 1;
    }
    let steps = open.iter().filter_map(|open| match open {
        Open::Object(key) => key.map(Step::Field),
        Open::Array(index) => Some(Step::Index(*index)),
    });
    path_of(&steps.collect::<Vec<_>>())
}

/// One document, of which `lines` knows the place.
pub(crate) fn parse<'a>(document: &'a str, lines: &Lines<'a>) -> Result<Node<'a>, SyntaxError> {
    Parser { document, lines, nodes: 0 }.node(document, 0)
}

struct Parser<'a, 'l> {
    document: &'a str,
    lines: &'l Lines<'a>,
    nodes: usize,
}

impl<'a> Parser<'a, '_> {
    fn at(&self, text: &str) -> Position {
        self.lines.position(text.as_ptr() as usize - self.document.as_ptr() as usize)
    }

    fn node(&mut self, text: &'a str, depth: usize) -> Result<Node<'a>, SyntaxError> {
        let at = self.at(text);
        self.nodes += 1;
        if depth > DEPTH_MAX {
            return Err(SyntaxError::too_deep(at));
        }
        if self.nodes > NODES_MAX {
            return Err(SyntaxError::too_many(at));
        }
        let wrong = |error: serde_json::Error| syntax(&error, at);
        let value = match text.as_bytes().first() {
            Some(b'{') => {
                let mut json = serde_json::Deserializer::from_str(text);
                let pairs = Pairs.deserialize(&mut json).map_err(wrong)?;
                let mut entries = Vec::with_capacity(pairs.len());
                for (key, value) in pairs {
                    // An escaped key is not a slice of the text; its value's place is near enough.
                    let at = match &key {
                        Cow::Borrowed(key) => self.at(key),
                        Cow::Owned(_) => self.at(value.get()),
                    };
                    let at = Position::new(at.line, at.column.saturating_sub(1).max(1));
                    entries.push(Entry { at, key, value: self.node(value.get(), depth + 1)? });
                }
                if let Some((_, error)) = duplicate_key(&entries) {
                    return Err(error);
                }
                Value::Mapping { entries, end: self.at(&text[text.len()..]) }
            }
            Some(b'[') => {
                let mut json = serde_json::Deserializer::from_str(text);
                let items = Items.deserialize(&mut json).map_err(wrong)?;
                Value::Sequence(
                    items.into_iter().map(|item| self.node(item.get(), depth + 1)).collect::<Result<_, _>>()?,
                )
            }
            Some(b'"') => {
                let Text(text) = serde_json::from_str(text).map_err(wrong)?;
                Value::Scalar(Scalar { text, quoted: true, block: None })
            }
            _ => Value::Scalar(Scalar { text: Cow::Borrowed(text), quoted: false, block: None }),
        };
        Ok(Node { at, value })
    }
}

struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

struct Pairs;

impl<'de> DeserializeSeed<'de> for Pairs {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Pairs {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some((Text(key), value)) = map.next_entry()? {
            pairs.push((key, value));
        }
        Ok(pairs)
    }
}

struct Items;

impl<'de> DeserializeSeed<'de> for Items {
    type Value = Vec<&'de RawValue>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items {
    type Value = Vec<&'de RawValue>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Node<'_>, SyntaxError> {
        let chunks = chunks(text)?;
        parse(chunks[0].text, &Lines::new(chunks[0].text, Position::new(1, 1)))
    }

    #[test]
    fn nodes_know_their_line_and_column() {
        let text = "{\n  \"ä\": [1, {\"b\\n\": \"\\ud83d\\ude00\"}],\n  \"c\": true\n}\n{\"second\": null}";
        let node = one(text).unwrap();
        assert_eq!(
            node.to_json(),
            serde_json::from_str::<Vec<serde_json::Value>>(&format!("[{}]", &text[..text.len() - 17]))
                .unwrap()
                .remove(0)
        );
        assert_eq!(node.value_of("ä").unwrap().at, Position::new(2, 8));
        assert_eq!(node.value_of("c").unwrap().at, Position::new(3, 8));
        assert_eq!(chunks(text).unwrap().len(), 2);
    }

    #[test]
    fn errors_have_positions() {
        let error = one("{\n  \"a\": trx\n}").unwrap_err();
        assert_eq!((error.at.line, &*error.message), (2, "not well-formed JSON: expected ident"));
        let error = one("{\"a\": 1,\n \"a\": 2}").unwrap_err();
        assert_eq!(error.at, Position::new(2, 2));
        for (text, field) in [
            ("{\"a\": 1,\n \"a\": 2}", "a"),
            ("{\"spec\": {\"hosts\": [\"a\", b]}}", "spec.hosts[1]"),
            ("{\"spec\": {\"hosts\": [\"a\"],}}", "spec"),
            ("{\"spec\": [{\"x\": 1}, {\"y.z\": \"}\\\"\", \"q\": tru}]}", "spec[1].q"),
            ("{\"spec\": [{\"y.z\": \"}\\\"\"\n", "spec[0][\"y.z\"]"),
            ("{\"spec\" 1}", "spec"),
        ] {
            let error = located(one(text).unwrap_err(), text, &Lines::new(text, Position::new(1, 1)));
            assert_eq!(error.field.as_deref(), Some(field), "{text}: {error:?}");
        }
        assert_eq!(one(&"[".repeat(100_000)).unwrap_err().code, Code::SYNTAX);
        assert_eq!(one(&format!("{}{}", "[".repeat(90), "]".repeat(90))).unwrap_err().code, Code::TOO_COMPLEX);
    }
}
