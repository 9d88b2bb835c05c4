//! From [`Node`]s to valid values: strict about types, complete about fields. Whatever a reader does not ask for is
//! reported, either as unknown or as known and not yet honoured.

use std::{fmt, sync::Arc};

use super::node::{Entry, Meaning, Node, Value};
use crate::{
    diagnostic::{Code, Diagnostic, Place, Position, Severity},
    spec::{FastSet, value::InvalidValue},
};

/// The way from the document's root to a field, as `spec.http[0].match[1].headers.x-user`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Path<'p> {
    Root,
    Field(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

impl<'p> Path<'p> {
    pub(crate) fn field(&'p self, name: &'p str) -> Path<'p> {
        Path::Field(self, name)
    }

    pub(crate) fn index(&'p self, index: usize) -> Path<'p> {
        Path::Index(self, index)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Field(Path::Root, name) => f.write_str(name),
            Path::Field(parent, name) if name.contains(['.', '/', '[', ' ']) => write!(f, "{parent}[{name:?}]"),
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// A step of a path that is kept in a list.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step<'p> {
    Field(&'p str),
    Index(usize),
}

/// The path of these steps as text. A name may be whatever stands in a broken file.
pub(crate) fn path_of(steps: &[Step<'_>]) -> String {
    fn below(path: &Path<'_>, steps: &[Step<'_>]) -> String {
        match steps.split_first() {
            None => path.to_string(),
            Some((Step::Field(name), rest)) => below(&path.field(name), rest),
            Some((Step::Index(index), rest)) => below(&path.index(*index), rest),
        }
    }
    cut(one_line(below(&Path::Root, steps)), MESSAGE_CHARACTERS_MAX)
}

/// The fields of one object of an API.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields {
    /// What the reader asks for; only to suggest names for misspelt ones.
    pub(crate) honoured: &'static [&'static str],
    /// Known to the API, without effect here: a warning each.
    pub(crate) not_yet: &'static [&'static str],
    /// Known to the API and without any meaning for traffic, such as `metadata.managedFields`.
    pub(crate) silent: &'static [&'static str],
}

/// Longest message, in characters: it repeats what was written, which may be a whole file.
const MESSAGE_CHARACTERS_MAX: usize = 500;

/// Shares equal texts: names repeat a hundred thousand times.
#[derive(Debug, Default)]
pub(crate) struct Interner(FastSet<Arc<str>>);

impl Interner {
    pub(crate) fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return Arc::clone(known);
        }
        let new: Arc<str> = text.into();
        self.0.insert(Arc::clone(&new));
        new
    }
}

/// Reads one document and collects what is wrong with it.
pub(crate) struct Reader<'r> {
    pub(crate) file: Arc<str>,
    /// What diagnostics call the document, such as `VirtualService default/reviews`.
    pub(crate) resource: Option<String>,
    pub(crate) interner: &'r mut Interner,
    pub(crate) diagnostics: Vec<Diagnostic>,
    pub(crate) failed: bool,
}

impl<'r> Reader<'r> {
    pub(crate) fn new(file: Arc<str>, interner: &'r mut Interner) -> Self {
        Self { file, resource: None, interner, diagnostics: Vec::new(), failed: false }
    }

    pub(crate) fn share(&mut self, text: &str) -> Arc<str> {
        self.interner.share(text)
    }

    fn report(
        &mut self,
        severity: Severity,
        code: Code,
        at: Position,
        path: &Path<'_>,
        message: String,
        hint: Option<String>,
    ) {
        self.failed |= severity == Severity::Error;
        let line = |text: String| cut(one_line(text), MESSAGE_CHARACTERS_MAX);
        let mut diagnostic = Diagnostic::new(severity, code, Place::new(Arc::clone(&self.file), at), line(message));
        diagnostic.resource.clone_from(&self.resource);
        if !matches!(path, Path::Root) {
            diagnostic.field = Some(line(path.to_string()));
        }
        diagnostic.hint = hint.map(|hint| line(hint).into());
        self.diagnostics.push(diagnostic);
    }

    pub(crate) fn error(&mut self, code: Code, at: Position, path: &Path<'_>, message: impl Into<String>, hint: &str) {
        let hint = (!hint.is_empty()).then(|| hint.to_owned());
        self.report(Severity::Error, code, at, path, message.into(), hint);
    }

    pub(crate) fn warning(
        &mut self,
        code: Code,
        at: Position,
        path: &Path<'_>,
        message: impl Into<String>,
        hint: &str,
    ) {
        let hint = (!hint.is_empty()).then(|| hint.to_owned());
        self.report(Severity::Warning, code, at, path, message.into(), hint);
    }

    pub(crate) fn info(&mut self, code: Code, at: Position, path: &Path<'_>, message: impl Into<String>) {
        self.report(Severity::Info, code, at, path, message.into(), None);
    }

    pub(crate) fn invalid(&mut self, at: Position, path: &Path<'_>, why: InvalidValue) {
        self.report(Severity::Error, Code::INVALID_VALUE, at, path, why.message, why.hint);
    }

    pub(crate) fn not_honoured(&mut self, at: Position, path: &Path<'_>) {
        self.warning(
            Code::FIELD_NOT_HONOURED,
            at,
            path,
            "known to Istio or Kubernetes, but not yet honoured: it has no effect here",
            "",
        );
    }

    /// A field that must be there is not. What was there but of the wrong type has been reported as that.
    pub(crate) fn missing(&mut self, at: Position, path: &Path<'_>, hint: &str) {
        let field = path.to_string();
        let said = |known: &Diagnostic| known.code == Code::WRONG_TYPE && known.field.as_ref() == Some(&field);
        if self.diagnostics.iter().rev().take(16).any(said) {
            return;
        }
        self.error(Code::MISSING_FIELD, at, path, "is missing", hint);
    }

    fn wrong_type(&mut self, node: &Node<'_>, path: &Path<'_>, wanted: &str) {
        let (what, hint) = match &node.value {
            Value::Sequence(_) => ("is a list".to_owned(), String::new()),
            Value::Mapping { .. } => ("is an object".to_owned(), String::new()),
            Value::Scalar(scalar) => match scalar.meaning() {
                Meaning::Null => ("is null".to_owned(), String::new()),
                Meaning::Bool(_) => (format!("is the boolean {}", scalar.text), format!("write \"{}\"", scalar.text)),
                Meaning::Integer(_) | Meaning::Float(_) => {
                    (format!("is the number {}", scalar.text), format!("write \"{}\"", scalar.text))
                }
                Meaning::String(text) => {
                    let bare = text.parse::<i64>().is_ok() || matches!(text, "true" | "false");
                    let hint = if bare { format!("write {text} without quotes") } else { String::new() };
                    (format!("is the string {:?}", shorten(text)), hint)
                }
            },
        };
        let hint = if wanted == "a string" || matches!(&node.value, Value::Scalar(s) if s.quoted) {
            hint
        } else {
            String::new()
        };
        let hint = if wanted.starts_with("a list") && hint.is_empty() {
            "write each item after `- `".to_owned()
        } else {
            hint
        };
        self.error(Code::WRONG_TYPE, node.at, path, format!("{what}, but must be {wanted}"), &hint);
    }

    pub(crate) fn string<'n>(&mut self, node: &'n Node<'_>, path: &Path<'_>) -> Option<&'n str> {
        if let Value::Scalar(scalar) = &node.value
            && let Meaning::String(text) = scalar.meaning()
        {
            return Some(text);
        }
        self.wrong_type(node, path, "a string");
        None
    }

    pub(crate) fn integer(&mut self, node: &Node<'_>, path: &Path<'_>) -> Option<i64> {
        if let Value::Scalar(scalar) = &node.value {
            match scalar.meaning() {
                Meaning::Integer(value) => return Some(value),
                Meaning::Float(value) if value.fract() == 0.0 && value.abs() < 9e15 => return Some(value as i64),
                _ => {}
            }
        }
        self.wrong_type(node, path, "an integer");
        None
    }

    pub(crate) fn boolean(&mut self, node: &Node<'_>, path: &Path<'_>) -> Option<bool> {
        if let Value::Scalar(scalar) = &node.value
            && let Meaning::Bool(value) = scalar.meaning()
        {
            return Some(value);
        }
        self.wrong_type(node, path, "a boolean");
        None
    }

    pub(crate) fn list<'n, 'a>(&mut self, node: &'n Node<'a>, path: &Path<'_>) -> &'n [Node<'a>] {
        match &node.value {
            Value::Sequence(items) => items,
            _ => {
                self.wrong_type(node, path, "a list");
                &[]
            }
        }
    }

    pub(crate) fn entries<'n, 'a>(&mut self, node: &'n Node<'a>, path: &Path<'_>) -> &'n [Entry<'a>] {
        match &node.value {
            Value::Mapping { entries, .. } => entries,
            _ => {
                self.wrong_type(node, path, "an object");
                &[]
            }
        }
    }

    pub(crate) fn object<'n, 'a, 'p>(&mut self, node: &'n Node<'a>, path: &'p Path<'p>) -> Option<Object<'n, 'a, 'p>> {
        match &node.value {
            Value::Mapping { entries, .. } => Some(Object { at: node.at, path, entries, used: 0 }),
            _ => {
                self.wrong_type(node, path, "an object");
                None
            }
        }
    }

    /// A string that is valid as `T`.
    pub(crate) fn parsed<T>(
        &mut self,
        node: &Node<'_>,
        path: &Path<'_>,
        parse: impl FnOnce(&str) -> Result<T, InvalidValue>,
    ) -> Option<T> {
        let text = self.string(node, path)?;
        self.valid(node.at, path, parse(text))
    }

    /// The value, or what is wrong with it reported.
    pub(crate) fn valid<T>(&mut self, at: Position, path: &Path<'_>, value: Result<T, InvalidValue>) -> Option<T> {
        match value {
            Ok(value) => Some(value),
            Err(why) => {
                self.invalid(at, path, why);
                None
            }
        }
    }
}

/// A mapping whose fields are asked for one by one.
pub(crate) struct Object<'n, 'a, 'p> {
    pub(crate) at: Position,
    pub(crate) path: &'p Path<'p>,
    entries: &'n [Entry<'a>],
    /// Bit i: entry i was asked for. No API object has 128 fields.
    used: u128,
}

impl<'n, 'a> Object<'n, 'a, '_> {
    /// The value of a field that is not thereby asked for.
    pub(crate) fn peek(&self, name: &str) -> Option<&'n Node<'a>> {
        self.entries.iter().find(|entry| entry.key == name).map(|entry| &entry.value)
    }

    /// The value of a field; `null` is as good as absent.
    pub(crate) fn field(&mut self, name: &str) -> Option<&'n Node<'a>> {
        let index = self.entries.iter().position(|entry| entry.key == name)?;
        if index < 128 {
            self.used |= 1 << index;
        }
        let node = &self.entries[index].value;
        (!node.is_null()).then_some(node)
    }

    pub(crate) fn string(&mut self, r: &mut Reader<'_>, name: &str) -> Option<(&'n str, Position)> {
        let node = self.field(name)?;
        r.string(node, &self.path.field(name)).map(|text| (text, node.at))
    }

    /// As [`Self::string`]; an empty string is as good as absent, as in protobuf.
    pub(crate) fn text(&mut self, r: &mut Reader<'_>, name: &str) -> Option<(&'n str, Position)> {
        self.string(r, name).filter(|(text, _)| !text.is_empty())
    }

    pub(crate) fn integer(&mut self, r: &mut Reader<'_>, name: &str) -> Option<(i64, Position)> {
        let node = self.field(name)?;
        r.integer(node, &self.path.field(name)).map(|value| (value, node.at))
    }

    pub(crate) fn boolean(&mut self, r: &mut Reader<'_>, name: &str) -> Option<bool> {
        let node = self.field(name)?;
        r.boolean(node, &self.path.field(name))
    }

    pub(crate) fn list(&mut self, r: &mut Reader<'_>, name: &str) -> &'n [Node<'a>] {
        match self.field(name) {
            Some(node) => r.list(node, &self.path.field(name)),
            None => &[],
        }
    }

    pub(crate) fn entries(&mut self, r: &mut Reader<'_>, name: &str) -> &'n [Entry<'a>] {
        match self.field(name) {
            Some(node) => r.entries(node, &self.path.field(name)),
            None => &[],
        }
    }

    pub(crate) fn parsed<T>(
        &mut self,
        r: &mut Reader<'_>,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, InvalidValue>,
    ) -> Option<T> {
        let (text, at) = self.text(r, name)?;
        r.valid(at, &self.path.field(name), parse(text))
    }

    /// Reports every field that was not asked for.
    pub(crate) fn finish(self, r: &mut Reader<'_>, fields: &Fields) {
        let all = if self.entries.len() >= 128 { u128::MAX } else { (1 << self.entries.len()) - 1 };
        if self.used == all && self.entries.len() <= 128 {
            return;
        }
        for (index, entry) in self.entries.iter().enumerate() {
            if (index < 128 && self.used >> index & 1 == 1) || fields.silent.contains(&&*entry.key) {
                continue;
            }
            let path = self.path.field(&entry.key);
            if fields.not_yet.contains(&&*entry.key) {
                if !is_empty(&entry.value) {
                    r.not_honoured(entry.at, &path);
                }
                continue;
            }
            let known = fields.honoured.iter().chain(fields.not_yet).chain(fields.silent);
            let hint = match closest(&entry.key, known.copied()) {
                Some(name) => format!("did you mean `{name}`?"),
                None => "remove it".to_owned(),
            };
            r.error(Code::UNKNOWN_FIELD, entry.at, &path, format!("unknown field `{}`", shorten(&entry.key)), &hint);
        }
    }
}

/// Whether a value says nothing, as protobuf sees it.
fn is_empty(node: &Node<'_>) -> bool {
    match &node.value {
        Value::Sequence(items) => items.is_empty(),
        Value::Mapping { .. } => false,
        Value::Scalar(_) => node.is_null(),
    }
}

/// The name that was probably meant: at most a third of the letters differ, case aside.
pub(crate) fn closest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    if word.len() > 64 {
        return None;
    }
    let word = word.to_ascii_lowercase();
    let bound = (word.len() / 3).max(1);
    known
        .map(|name| (strsim::damerau_levenshtein(&word, &name.to_ascii_lowercase()), name))
        .filter(|(distance, _)| *distance <= bound)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// At most 80 characters of a text, for messages.
pub(crate) fn shorten(text: &str) -> String {
    cut(text.to_owned(), 80)
}

/// Control characters escaped: what repeats a text of the input must not break a line, or a terminal.
pub(crate) fn one_line(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let mut line = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if character.is_control() { line.extend(character.escape_debug()) } else { line.push(character) }
    }
    line
}

fn cut(mut text: String, characters: usize) -> String {
    if text.len() > characters
        && let Some((end, _)) = text.char_indices().nth(characters)
    {
        text.truncate(end);
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_as_istio_writes_them() {
        let spec = Path::Root.field("spec");
        let http = spec.field("http");
        let rule = http.index(2);
        let headers = rule.field("headers");
        assert_eq!(headers.field("x-user").to_string(), "spec.http[2].headers.x-user");
        assert_eq!(headers.field("a.b/c").to_string(), "spec.http[2].headers[\"a.b/c\"]");
    }

    #[test]
    fn misspelt_names_are_recognised() {
        let known = ["weight", "destination", "headers"];
        assert_eq!(closest("wieght", known.into_iter()), Some("weight"));
        assert_eq!(closest("Destination", known.into_iter()), Some("destination"));
        assert_eq!(closest("colour", known.into_iter()), None);
    }
}
