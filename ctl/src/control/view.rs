//! What is in effect, for everybody who only reads: replaced as a whole, so that readers never wait for a publication.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use super::state::State;
use crate::{
    diagnostic::Diagnostic,
    spec::{Key, World},
};

/// Why the files on disk are not in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Since when, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// In one sentence.
    pub summary: String,
    /// The errors.
    pub diagnostics: Vec<Diagnostic>,
}

/// A consistent picture of the publisher.
#[derive(Debug, Clone)]
pub struct View {
    /// The resources in effect.
    pub world: Arc<World>,
    /// Keys of those that come from `apply`.
    pub applied: BTreeSet<Key>,
    /// What there is to say about them.
    pub diagnostics: Vec<Diagnostic>,
    /// Set while the files on disk are not in effect.
    pub problem: Option<Problem>,
    /// Numbers and history.
    pub state: State,
    /// Where the configuration is read from.
    pub paths: Vec<PathBuf>,
}

impl View {
    /// Before the first reading.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            world: Arc::new(World::assemble(Vec::new()).0),
            applied: BTreeSet::new(),
            diagnostics: Vec::new(),
            problem: None,
            state: State::default(),
            paths: Vec::new(),
        }
    }
}
