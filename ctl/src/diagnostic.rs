//! What is wrong with, or not honoured in, the input: always with file, line, column, field and what to write instead.
//!
//! A diagnostic is data first (the API serialises it) and one line of text second ([`Display`](fmt::Display)):
//! `file:line:column: error[MR0301]: VirtualService default/reviews: spec.http[0].route: message; hint`.

use std::{borrow::Cow, collections::HashMap, fmt, sync::Arc};

use serde::{Serialize, Serializer};

/// A line and a column of one file, both counted from 1; columns count characters, as editors do. Line 0 means that the
/// whole file is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
pub struct Position {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl Position {
    /// The position at `line` and `column`, both from 1.
    pub const fn new(line: u32, column: u32) -> Self {
        Self { line, column }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A position in a named file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Place {
    /// The file as the user named it.
    #[serde(serialize_with = "as_str")]
    pub file: Arc<str>,
    /// Line and column in it.
    #[serde(flatten)]
    pub at: Position,
}

impl Place {
    /// `at` in `file`.
    pub fn new(file: Arc<str>, at: Position) -> Self {
        Self { file, at }
    }

    /// The file as a whole, without a line.
    pub fn file(file: Arc<str>) -> Self {
        Self { file, at: Position::default() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.at.line == 0 { f.write_str(&self.file) } else { write!(f, "{}:{}", self.file, self.at) }
    }
}

fn as_str<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

/// How bad it is. The order is from harmless to bad, so `max()` finds the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know; nothing to do.
    Info,
    /// The input is accepted, but something in it does not do what it says.
    Warning,
    /// The whole set of files is refused. Where the analysis of references finds one, `analyze` fails, and control
    /// publishes what denies.
    Error,
}

impl Severity {
    /// `info`, `warning` or `error`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Stable short codes: scripts filter on them, so a code is never reused for something else.
///
/// MR01xx files and YAML, MR02xx resources, MR03xx field values, MR04xx rules of a VirtualService, MR05xx references
/// between resources, MR06xx known to Istio or Kubernetes but not honoured here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(pub &'static str);

impl Code {
    /// The file cannot be read, is not UTF-8, or is larger than the bound.
    pub const FILE: Self = Self("MR0101");
    /// The text is not well-formed YAML or JSON.
    pub const SYNTAX: Self = Self("MR0102");
    /// Nesting, aliases or node count exceed the bound.
    pub const TOO_COMPLEX: Self = Self("MR0103");
    /// The same key twice in one mapping.
    pub const DUPLICATE_KEY: Self = Self("MR0104");
    /// The file set is empty: no file or no resource in it.
    pub const EMPTY: Self = Self("MR0105");
    /// Not a resource: `apiVersion`, `kind` or `metadata.name` is missing or malformed.
    pub const NOT_A_RESOURCE: Self = Self("MR0201");
    /// The `apiVersion` is not one of the known versions of its group.
    pub const UNKNOWN_VERSION: Self = Self("MR0202");
    /// The group has no such kind.
    pub const UNKNOWN_KIND: Self = Self("MR0203");
    /// Kind, namespace and name twice in one set of files.
    pub const DUPLICATE_RESOURCE: Self = Self("MR0204");
    /// A kind of another group that has nothing to do with traffic; ignored.
    pub const FOREIGN_KIND: Self = Self("MR0205");
    /// The resource has no such field.
    pub const UNKNOWN_FIELD: Self = Self("MR0301");
    /// The value has the wrong type, such as a number where a string belongs.
    pub const WRONG_TYPE: Self = Self("MR0302");
    /// A field that must be there is not.
    pub const MISSING_FIELD: Self = Self("MR0303");
    /// The value is of the right type but not valid.
    pub const INVALID_VALUE: Self = Self("MR0304");
    /// The regular expression does not compile or is too large.
    pub const INVALID_REGEX: Self = Self("MR0305");
    /// Fields that exclude each other.
    pub const CONFLICT: Self = Self("MR0306");
    /// Istio calls the field or value deprecated.
    pub const DEPRECATED: Self = Self("MR0307");
    /// Weights that are negative or add up to 0.
    pub const INVALID_WEIGHT: Self = Self("MR0401");
    /// Weights that do not add up to 100; they are taken as relative.
    pub const WEIGHT_SUM: Self = Self("MR0402");
    /// A rule after one that already matches everything.
    pub const UNREACHABLE_RULE: Self = Self("MR0403");
    /// A value that can never match or never take effect.
    pub const NO_EFFECT: Self = Self("MR0404");
    /// A destination host that no Service and no ServiceEntry defines (Istio: IST0101).
    pub const UNKNOWN_HOST: Self = Self("MR0501");
    /// A subset that no DestinationRule defines (Istio: IST0101).
    pub const UNKNOWN_SUBSET: Self = Self("MR0502");
    /// A subset whose labels select no endpoint.
    pub const EMPTY_SUBSET: Self = Self("MR0503");
    /// A port that the destination service does not have.
    pub const UNKNOWN_PORT: Self = Self("MR0504");
    /// Two VirtualServices for one host in the same scope (Istio: IST0109).
    pub const CONFLICTING_VIRTUAL_SERVICES: Self = Self("MR0505");
    /// Two DestinationRules for one host that contradict each other.
    pub const CONFLICTING_DESTINATION_RULES: Self = Self("MR0506");
    /// Two services define the same host in one namespace.
    pub const CONFLICTING_SERVICES: Self = Self("MR0507");
    /// A destination that exists but is not exported to this namespace.
    pub const NOT_VISIBLE: Self = Self("MR0508");
    /// A port that must say which one, since the service has several.
    pub const AMBIGUOUS_PORT: Self = Self("MR0509");
    /// An EndpointSlice without its Service.
    pub const ORPHAN_ENDPOINTS: Self = Self("MR0510");
    /// Two mesh configurations of which it is open which one is meant.
    pub const CONFLICTING_MESH_CONFIGS: Self = Self("MR0511");
    /// Two policies for the same workloads of which one has no effect.
    pub const CONFLICTING_POLICIES: Self = Self("MR0512");
    /// A Secret that is not there, or lacks what it is named for.
    pub const UNKNOWN_SECRET: Self = Self("MR0513");
    /// A selector that no workload matches.
    pub const NO_WORKLOAD: Self = Self("MR0514");
    /// A condition on a token where no token is read.
    pub const NO_TOKEN: Self = Self("MR0515");
    /// A denial of identities where requests without an identity are taken.
    pub const NO_IDENTITY: Self = Self("MR0516");
    /// A provider that the MeshConfig does not have: what refers to it denies.
    pub const UNKNOWN_PROVIDER: Self = Self("MR0517");
    /// Two authorizers for one workload: every request to it is denied.
    pub const CONFLICTING_PROVIDERS: Self = Self("MR0518");
    /// An endpoint with another identity than the workload at its address.
    pub const CONFLICTING_IDENTITIES: Self = Self("MR0519");
    /// A field that Istio or Kubernetes knows and that is not yet honoured here.
    pub const FIELD_NOT_HONOURED: Self = Self("MR0601");
    /// A kind that Istio knows and that is not yet honoured here.
    pub const KIND_NOT_HONOURED: Self = Self("MR0602");
    /// A value that Istio knows and that is not yet honoured here.
    pub const VALUE_NOT_HONOURED: Self = Self("MR0603");
    /// More of the same kind were found than are listed.
    pub const AND_MORE: Self = Self("MR0604");

    /// The code as text, such as `MR0301`.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

/// One thing to tell the user about the input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Stable short code.
    pub code: Code,
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// Which resource, such as `VirtualService default/reviews`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// Which field, such as `spec.http[0].route[1].weight`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<Cow<'static, str>>,
}

impl Diagnostic {
    /// A diagnostic at `place`, without resource, field and hint.
    pub fn new(severity: Severity, code: Code, place: Place, message: impl Into<String>) -> Self {
        Self { severity, code, place, resource: None, field: None, message: message.into(), hint: None }
    }

    /// An error: the whole file set is refused.
    pub fn error(code: Code, place: Place, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, place, message)
    }

    /// A warning: accepted, but it does not do what it says.
    pub fn warning(code: Code, place: Place, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, code, place, message)
    }

    /// Good to know.
    pub fn info(code: Code, place: Place, message: impl Into<String>) -> Self {
        Self::new(Severity::Info, code, place, message)
    }

    /// Names the resource.
    #[must_use]
    pub fn of(mut self, resource: impl fmt::Display) -> Self {
        self.resource = Some(resource.to_string());
        self
    }

    /// Names the field.
    #[must_use]
    pub fn at_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Says what to write instead.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Whether this refuses the file set.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}[{}]: ", self.place, self.severity, self.code)?;
        if let Some(resource) = &self.resource {
            write!(f, "{resource}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// Whether any of them refuses the file set.
pub fn has_errors(diagnostics: &[Diagnostic]) -> bool {
    diagnostics.iter().any(Diagnostic::is_error)
}

/// Sorts by file, line and column, as a reader goes through the files; equal places keep their order.
pub fn sort(diagnostics: &mut [Diagnostic]) {
    diagnostics.sort_by(|a, b| a.place.cmp(&b.place));
}

/// Diagnostics that a reader can take in. Fewer are never cut.
const LISTED_MIN: usize = 50;
/// Diagnostics of one kind about one field in one file that are listed where there are many.
const SAME_MAX: usize = 10;

/// Cuts repetitions: one missing field in a hundred thousand documents is told `SAME_MAX` times and counted. What is
/// left out is of the same severity, code, file, kind and field as what is listed.
pub fn limit(diagnostics: Vec<Diagnostic>) -> Vec<Diagnostic> {
    if diagnostics.len() <= LISTED_MIN {
        return diagnostics;
    }
    /// Severity, code, file, kind and field.
    type Sort = (Severity, Code, Arc<str>, String, String);
    let mut counts: HashMap<Sort, (usize, Place)> = HashMap::new();
    let mut listed = Vec::new();
    for diagnostic in diagnostics {
        let kind = diagnostic.resource.as_deref().and_then(|resource| resource.split(' ').next()).unwrap_or_default();
        let field = without_indices(diagnostic.field.as_deref().unwrap_or_default());
        let file = Arc::clone(&diagnostic.place.file);
        let key = (diagnostic.severity, diagnostic.code, file, kind.to_owned(), field);
        let (count, last) = counts.entry(key).or_insert_with(|| (0, diagnostic.place.clone()));
        *count += 1;
        last.clone_from(&diagnostic.place);
        if *count <= SAME_MAX {
            listed.push(diagnostic);
        }
    }
    for ((severity, code, _, kind, field), (count, last)) in counts {
        if count > SAME_MAX {
            let message = format!("and {} more of {code} in this file, the last here", count - SAME_MAX);
            let mut more = Diagnostic::new(severity, Code::AND_MORE, last, message);
            more.resource = (!kind.is_empty()).then_some(kind);
            more.field = (!field.is_empty()).then_some(field);
            listed.push(more);
        }
    }
    listed.sort_by(|a, b| a.place.cmp(&b.place).then_with(|| a.message.cmp(&b.message)));
    listed
}

/// `spec.http[3].route[0]` as `spec.http[].route[]`.
fn without_indices(field: &str) -> String {
    let mut inside = false;
    field
        .chars()
        .filter(|c| {
            let keep = !inside || *c == ']';
            inside = (inside || *c == '[') && *c != ']';
            keep
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_compilers_do() {
        let place = Place::new("mesh/reviews.yaml".into(), Position::new(12, 9));
        let diagnostic = Diagnostic::error(Code::UNKNOWN_FIELD, place, "unknown field `wieght`")
            .of("VirtualService default/reviews")
            .at_field("spec.http[0].route[1].wieght")
            .hint("did you mean `weight`?");
        assert_eq!(
            diagnostic.to_string(),
            "mesh/reviews.yaml:12:9: error[MR0301]: VirtualService default/reviews: spec.http[0].route[1].wieght: \
             unknown field `wieght`; did you mean `weight`?"
        );
        assert_eq!(
            serde_json::to_value(&diagnostic).unwrap(),
            serde_json::json!({
                "severity": "error", "code": "MR0301", "file": "mesh/reviews.yaml", "line": 12, "column": 9,
                "resource": "VirtualService default/reviews", "field": "spec.http[0].route[1].wieght",
                "message": "unknown field `wieght`", "hint": "did you mean `weight`?"
            })
        );
    }

    #[test]
    fn a_whole_file_has_no_line() {
        let diagnostic = Diagnostic::error(Code::FILE, Place::file("a.yaml".into()), "is not UTF-8");
        assert_eq!(diagnostic.to_string(), "a.yaml: error[MR0101]: is not UTF-8");
    }

    #[test]
    fn repetitions_are_counted_not_listed() {
        let at = |line| Place::new("a.yaml".into(), Position::new(line, 1));
        let many: Vec<_> = (1..=60)
            .map(|line| {
                Diagnostic::warning(Code::FIELD_NOT_HONOURED, at(line), "not yet honoured")
                    .of(format!("VirtualService default/a{line}"))
                    .at_field(format!("spec.http[{line}].retries"))
            })
            .collect();
        let listed = limit(many);
        assert_eq!(listed.len(), SAME_MAX + 1);
        assert_eq!(
            listed[SAME_MAX].to_string(),
            "a.yaml:60:1: warning[MR0604]: VirtualService: spec.http[].retries: and 50 more of MR0601 in this file, the last here"
        );
    }
}
