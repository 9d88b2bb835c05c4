//! The compiled regular expressions of one generation.

use regex::bytes::{Regex, RegexBuilder};

use super::model::ArchivedTable;
use crate::{id::RegexId, limits::REGEX_BYTES_MAX};

/// A pattern that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("regular expression {pattern:?}: {reason}")]
pub struct RegexError {
    /// The pattern as the table holds it.
    pub pattern: String,
    /// What the regex crate says, on one line.
    pub reason: String,
}

/// Compiles one pattern with the bound that both control and proxies apply. Case, multi-line and Unicode defaults are
/// those of RE2 as Envoy uses it: Unicode off, so that a byte >= 0x80 is matched as a byte.
pub fn compile(pattern: &str) -> Result<Regex, RegexError> {
    RegexBuilder::new(pattern)
        .size_limit(REGEX_BYTES_MAX)
        .dfa_size_limit(REGEX_BYTES_MAX)
        .unicode(false)
        .build()
        .map_err(|error| RegexError {
            pattern: pattern.to_owned(),
            reason: error.to_string().lines().last().unwrap_or("does not compile").trim().to_owned(),
        })
}

/// Anchors a pattern so that it must match the whole string (Envoy `safe_regex` semantics).
#[must_use]
pub fn anchored(pattern: &str) -> String {
    format!("^(?:{pattern})$")
}

/// All patterns of a table. A clone has scratch memory of its own, so that workers never contend for it.
#[derive(Clone, Debug, Default)]
pub struct Regexes(Vec<Regex>);

impl Regexes {
    /// Compiles every pattern of a table.
    pub fn compile(table: &ArchivedTable) -> Result<Self, RegexError> {
        table.regexes.iter().map(|pattern| compile(pattern)).collect::<Result<_, _>>().map(Self)
    }

    /// The compiled pattern; validation has proved that the index is in bounds.
    #[must_use]
    pub fn of(&self, id: RegexId) -> &Regex {
        &self.0[id.index()]
    }
}
