//! YAML text to [`Node`]s: the events of `saphyr-parser` with positions, bounds on depth and size, aliases and merge
//! keys.

use std::{borrow::Cow, collections::HashMap};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, StrInput, Tag};

use super::{
    decode::{Step, path_of},
    node::{ALIASED_NODES_MAX, Block, DEPTH_MAX, Entry, NODES_MAX, Node, Scalar, SyntaxError, Value, duplicate_key},
};
use crate::diagnostic::{Code, Position};

/// A document between two `---`, with its place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk<'a> {
    /// Its text, from `---` on where it has one.
    pub(crate) text: &'a str,
    /// Where it begins in the file, in bytes.
    pub(crate) offset: usize,
    /// The number of its first line.
    pub(crate) line: u32,
    /// By how many columns its lines are indented in the file, where it is the text of a block scalar.
    pub(crate) indent: u32,
}

/// Splits a file at its `---` lines, as `kubectl` does. A `---` at the first column ends whatever stands before it
/// (YAML 1.2.2 section 9.1.2), so no parse is needed to find it; and a document that does not parse does not hide the
/// others.
pub(crate) fn chunks(file: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let (mut offset, mut line) = (0, 1);
    let finder = memchr::memmem::Finder::new(b"\n---");
    let mut search = 0;
    while let Some(found) = finder.find(&file.as_bytes()[search..]) {
        let next = search + found + 1;
        search = next;
        let marker = file.as_bytes().get(next + 3).is_none_or(|byte| byte.is_ascii_whitespace());
        // A header of directives (`%YAML 1.2`) belongs to the document after it.
        if marker && !is_header(&file[offset..next]) {
            push(&mut chunks, file, offset..next, &mut line);
            offset = next;
        }
    }
    push(&mut chunks, file, offset..file.len(), &mut line);
    chunks
}

fn push<'a>(chunks: &mut Vec<Chunk<'a>>, file: &'a str, range: std::ops::Range<usize>, line: &mut u32) {
    let text = &file[range.clone()];
    chunks.push(Chunk { text, offset: range.start, line: *line, indent: 0 });
    *line += memchr::memchr_iter(b'\n', text.as_bytes()).count() as u32;
}

fn is_header(text: &str) -> bool {
    text.starts_with('%') && text.lines().all(|line| line.is_empty() || line.starts_with(['%', '#']))
}

/// All documents of one chunk; nearly always one.
pub(crate) fn parse<'a>(chunk: &Chunk<'a>) -> Result<Vec<Node<'a>>, SyntaxError> {
    Builder {
        lines_before: chunk.line - 1,
        indent: chunk.indent,
        stack: Vec::new(),
        anchors: HashMap::new(),
        nodes: 0,
        aliased: 0,
        roots: Vec::new(),
    }
    .run(Parser::new_from_str(chunk.text))
}

/// A collection that is not complete yet.
enum Open<'a> {
    Sequence { at: Position, anchor: usize, items: Vec<Node<'a>> },
    Mapping { at: Position, anchor: usize, entries: Vec<Entry<'a>>, key: Option<(Cow<'a, str>, Position)> },
}

struct Builder<'a> {
    lines_before: u32,
    indent: u32,
    stack: Vec<Open<'a>>,
    anchors: HashMap<usize, Node<'a>>,
    nodes: usize,
    aliased: usize,
    roots: Vec<Node<'a>>,
}

impl<'a> Builder<'a> {
    fn run(mut self, mut parser: Parser<'a, StrInput<'a>>) -> Result<Vec<Node<'a>>, SyntaxError> {
        while let Some(event) = parser.next_event() {
            let step = match event {
                Ok((event, span)) => self.event(event, span),
                Err(error) => {
                    let message = format!("not well-formed YAML: {}", error.info());
                    Err(SyntaxError::new(Code::SYNTAX, self.position(error.marker()), message, hint(error.info())))
                }
            };
            step.map_err(|error| error.within(self.field()))?;
        }
        Ok(self.roots)
    }

    /// The field that is being read, or was read last.
    fn field(&self) -> String {
        self.field_below(None)
    }

    fn field_below(&self, key: Option<&str>) -> String {
        let open = self.stack.iter().filter_map(|open| match open {
            Open::Sequence { items, .. } => Some(Step::Index(items.len())),
            Open::Mapping { key: Some((key, _)), .. } => Some(Step::Field(key)),
            Open::Mapping { entries, .. } => entries.last().map(|entry| Step::Field(&entry.key)),
        });
        path_of(&open.chain(key.map(Step::Field)).collect::<Vec<_>>())
    }

    fn position(&self, marker: &Marker) -> Position {
        let clamp = |value: usize| u32::try_from(value).unwrap_or(u32::MAX / 2);
        Position::new(self.lines_before + clamp(marker.line()).max(1), self.indent + clamp(marker.col()) + 1)
    }

    fn event(&mut self, event: Event<'a>, span: Span) -> Result<(), SyntaxError> {
        let at = self.position(&span.start);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let quoted = style != ScalarStyle::Plain || is_string_tag(tag.as_deref());
                let block = (style == ScalarStyle::Literal).then(|| block(&text, at));
                self.add(Node { at, value: Value::Scalar(Scalar { text, quoted, block }) }, anchor)
            }
            Event::SequenceStart(anchor, _) => self.open(Open::Sequence { at, anchor, items: Vec::new() }, at),
            Event::MappingStart(anchor, _) => {
                self.open(Open::Mapping { at, anchor, entries: Vec::new(), key: None }, at)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(self.position(&span.end)),
            Event::Alias(anchor) => self.alias(anchor, at),
            Event::DocumentStart(_) => {
                self.anchors.clear();
                (self.nodes, self.aliased) = (0, 0);
                Ok(())
            }
            Event::DocumentEnd | Event::StreamStart | Event::StreamEnd | Event::Nothing => Ok(()),
        }
    }

    fn open(&mut self, open: Open<'a>, at: Position) -> Result<(), SyntaxError> {
        if self.stack.len() >= DEPTH_MAX {
            return Err(SyntaxError::too_deep(at));
        }
        self.stack.push(open);
        Ok(())
    }

    fn close(&mut self, end: Position) -> Result<(), SyntaxError> {
        match self.stack.pop() {
            Some(Open::Sequence { at, anchor, items }) => self.add(Node { at, value: Value::Sequence(items) }, anchor),
            Some(Open::Mapping { at, anchor, mut entries, .. }) => {
                if let Some((key, error)) = duplicate_key(&entries) {
                    return Err(error.within(self.field_below(Some(key))));
                }
                merge(&mut entries).map_err(|error| error.within(self.field_below(Some("<<"))))?;
                self.add(Node { at, value: Value::Mapping { entries, end } }, anchor)
            }
            None => Ok(()),
        }
    }

    fn alias(&mut self, anchor: usize, at: Position) -> Result<(), SyntaxError> {
        let Some(node) = self.anchors.get(&anchor) else {
            let message = "alias of something that is not complete yet";
            return Err(SyntaxError::new(
                Code::SYNTAX,
                at,
                message,
                "write the value out: it cannot be a part of itself",
            ));
        };
        self.aliased += node.size();
        if self.aliased > ALIASED_NODES_MAX {
            let message = format!("aliases expand to more than {ALIASED_NODES_MAX} values");
            return Err(SyntaxError::new(Code::TOO_COMPLEX, at, message, "write the values out, or fewer of them"));
        }
        // An alias may bring a deep block into a deep place; depth is bounded for what comes out.
        let depth = self.stack.len() + depth(node);
        if depth > DEPTH_MAX {
            return Err(SyntaxError::too_deep(at));
        }
        let node = Node { at, value: node.value.clone() };
        self.add(node, 0)
    }

    fn add(&mut self, node: Node<'a>, anchor: usize) -> Result<(), SyntaxError> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(SyntaxError::too_many(node.at));
        }
        if anchor != 0 {
            self.aliased += node.size();
            if self.aliased > ALIASED_NODES_MAX {
                let message = format!("anchors hold more than {ALIASED_NODES_MAX} values");
                return Err(SyntaxError::new(
                    Code::TOO_COMPLEX,
                    node.at,
                    message,
                    "write the values out, without anchors",
                ));
            }
            self.anchors.insert(anchor, node.clone());
        }
        match self.stack.last_mut() {
            None => self.roots.push(node),
            Some(Open::Sequence { items, .. }) => items.push(node),
            Some(Open::Mapping { entries, key, .. }) => match key.take() {
                Some((key, at)) => entries.push(Entry { at, key, value: node }),
                None => {
                    let Value::Scalar(scalar) = node.value else {
                        return Err(SyntaxError::new(
                            Code::SYNTAX,
                            node.at,
                            "a key must be a plain text, not a list or mapping",
                            "write a name, or quote a text that begins with `[`, `{` or `- `",
                        ));
                    };
                    *key = Some((scalar.text, node.at));
                }
            },
        }
        Ok(())
    }
}

/// What to write instead of what the parser does not understand; its messages are those of saphyr-parser 0.3.
fn hint(message: &str) -> &'static str {
    const HINTS: [(&[&str], &str); 12] = [
        (&["unprintable", "UTF-8", "byte order mark"], "write text in UTF-8, without control characters"),
        (&["tab"], "write spaces: YAML takes no tabs for indentation"),
        (&["recursion limit"], "write fewer lists and objects within one another"),
        (&["unknown anchor"], "write `&NAME` before the value that `*NAME` repeats; quote a text that begins with `*`"),
        (&["anchor"], "name each anchor once, in letters and digits; quote a text that begins with `&` or `*`"),
        (&["quoted"], "close the quotes in the same field; in double quotes a backslash is written twice"),
        (&["flow", "bracket", "':' indicator", "[{"], "close each `[` and `{`, and write `,` between what is in them"),
        (
            &["block scalar"],
            "indent each line of a text after `|` or `>` by the same number of spaces, more than its key",
        ),
        (
            &["mapping values", "':'"],
            "write one `key: value` a line, the fields of one object in one column; quote a text that contains `: `",
        ),
        (&["tag", "TAG"], "quote a text that begins with `!`: no value needs a tag here"),
        (&["directive", "document"], "begin each document with a line `---` of its own"),
        (&["unexpected character"], "quote a text that begins with a character that is special in YAML"),
    ];
    let known = HINTS.iter().find(|(words, _)| words.iter().any(|word| message.contains(word)));
    known.map_or(
        "indent the fields of one object equally, by spaces, begin each item of a list with `- `, and write `: ` after each name",
        |(_, hint)| hint,
    )
}

/// The place of a literal block scalar's text, whose event begins at its first character that is no line break.
fn block(text: &str, first_character: Position) -> Block {
    let breaks = text.bytes().take_while(|byte| *byte == b'\n').count() as u32;
    Block { line: first_character.line.saturating_sub(breaks), indent: first_character.column.saturating_sub(1) }
}

fn is_string_tag(tag: Option<&Tag>) -> bool {
    tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str")
}

fn depth(node: &Node<'_>) -> usize {
    match &node.value {
        Value::Scalar(_) => 0,
        Value::Sequence(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Mapping { entries, .. } => 1 + entries.iter().map(|entry| depth(&entry.value)).max().unwrap_or(0),
    }
}

/// `<<: *base` and `<<: [*a, *b]` (YAML 1.1 merge keys, which `kubectl` still takes): what the mapping itself says
/// wins.
fn merge(entries: &mut Vec<Entry<'_>>) -> Result<(), SyntaxError> {
    let Some(index) = entries.iter().position(|entry| entry.key == "<<") else { return Ok(()) };
    let base = entries.remove(index);
    let at = base.value.at;
    let wrong = || {
        SyntaxError::new(
            Code::SYNTAX,
            at,
            "`<<` merges mappings, and this is none",
            "write `<<: *NAME` of an anchor before a mapping",
        )
    };
    let bases = match base.value.value {
        Value::Sequence(items) => items,
        value => vec![Node { at, value }],
    };
    for base in bases {
        let Value::Mapping { entries: more, .. } = base.value else { return Err(wrong()) };
        for entry in more {
            if !entries.iter().any(|own| own.key == entry.key) {
                entries.push(entry);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Node<'_>, SyntaxError> {
        parse(&Chunk { text, offset: 0, line: 1, indent: 0 }).map(|mut roots| roots.remove(0))
    }

    #[test]
    fn a_file_is_split_at_its_document_markers() {
        let file = "a: 1\n---\nb: |\n  ---\n  x\n--- {c: 3}\n---x: 4\n---";
        let parts: Vec<_> = chunks(file).iter().map(|chunk| (chunk.line, chunk.offset, chunk.text)).collect();
        assert_eq!(
            parts,
            [(1, 0, "a: 1\n"), (2, 5, "---\nb: |\n  ---\n  x\n"), (6, 24, "--- {c: 3}\n---x: 4\n"), (8, 43, "---")]
        );
        assert_eq!(chunks("%YAML 1.2\n# x\n---\na: 1\n").len(), 1);
    }

    #[test]
    fn nodes_know_their_line_and_column() {
        let node =
            parse(&Chunk { text: "---\na:\n  - b: ü\n    c: x\n", offset: 0, line: 11, indent: 0 }).unwrap().remove(0);
        let item = match &node.value_of("a").unwrap().value {
            Value::Sequence(items) => &items[0],
            other => panic!("{other:?}"),
        };
        assert_eq!(item.at, Position::new(13, 5));
        assert_eq!(item.value_of("c").unwrap().at, Position::new(14, 8));
    }

    #[test]
    fn a_position_in_a_block_scalar_leads_to_its_place_in_the_file() {
        for (text, place) in [
            ("---\na:\n  b: |\n    x: 1\n    y: ü\n", Position::new(15, 8)),
            ("---\na: &a\n  b: |- # note\n\n     x: 1\n\n     y: 1\n", Position::new(17, 9)),
            ("---\nb: |2\n    x: 1\n    y: 2\n", Position::new(14, 8)),
            ("---\na: |\n 1\n 2\nb: |+\n      x: 1\n      y: 2\n\n", Position::new(17, 10)),
        ] {
            let node = parse(&Chunk { text, offset: 0, line: 11, indent: 0 }).unwrap().remove(0);
            let scalar = node.value_of("b").or_else(|| node.value_of("a").unwrap().value_of("b")).unwrap();
            let Value::Scalar(Scalar { text: inner, block: Some(block), .. }) = &scalar.value else { panic!() };
            let at = parse(&block.chunk(inner)).map(|roots| Node::value_of(&roots[0], "y").unwrap().at);
            assert_eq!(at, Ok(place), "{text}");
        }
        let folded = one("b: >\n  x\n  y\n").unwrap();
        assert!(matches!(&folded.value_of("b").unwrap().value, Value::Scalar(Scalar { block: None, .. })));
    }

    #[test]
    fn billion_laughs_are_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let line: Vec<_> = (0..10).map(|_| format!("*a{}", level - 1)).collect();
            text.push_str(&format!("a{level}: &a{level} [{}]\n", line.join(", ")));
        }
        let error = one(&text).unwrap_err();
        assert_eq!((error.code, error.at.line), (Code::TOO_COMPLEX, 5), "{error:?}");
    }

    #[test]
    fn deep_nesting_is_refused() {
        for text in ["[".repeat(5000), "- ".repeat(5000), "{a: ".repeat(5000)] {
            let error = one(&text).unwrap_err();
            assert!(matches!(error.code, Code::TOO_COMPLEX | Code::SYNTAX), "{error:?}");
        }
        assert_eq!(one(&"[".repeat(100)).unwrap_err().message, "nested deeper than 64 levels");
    }

    #[test]
    fn duplicate_keys_name_both_places() {
        let error = one("a: 1\nb: 2\na: 3\n").unwrap_err();
        assert_eq!(error.at, Position::new(3, 1));
        assert_eq!(error.message, "the key `a` is here for the second time; the first is at 1:1");
    }

    #[test]
    fn merge_keys_yield_to_own_keys() {
        let node = one("base: &base {a: 1, b: 2}\nuse:\n  <<: *base\n  b: 3\n").unwrap();
        assert_eq!(node.value_of("use").unwrap().to_json(), serde_json::json!({"b": 3, "a": 1}));
    }
}
