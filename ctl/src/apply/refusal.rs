//! Why nothing was changed, for people.

use std::io;

use meshring_core::id::Generation;

use crate::{
    diagnostic::Diagnostic,
    spec::{Key, Place},
};

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The input has errors.
    #[error("the configuration has errors: nothing was changed")]
    Invalid(Vec<Diagnostic>),
    /// The files had errors at the start and have not been repaired: there is nothing to apply over.
    #[error("the configuration files have errors: repair them first, then apply")]
    NoConfiguration(Vec<Diagnostic>),
    /// The input is valid, but beyond the bounds of a table.
    #[error("the configuration does not fit a routing table: {0}")]
    Table(String),
    /// Live proxies cannot run it.
    #[error("{}", refused_text(*generation, refused))]
    Proxies {
        /// The number that it had.
        generation: Generation,
        /// Who, and why.
        refused: Vec<(String, String)>,
    },
    /// To be deleted, but it is not from `apply`.
    #[error("{key} is not from `meshring apply`: it stands in {place}; remove it there")]
    FromFile {
        /// Which.
        key: Key,
        /// Where it stands.
        place: Place,
    },
    /// To be deleted, but there is no such resource.
    #[error("{key} does not exist: there is nothing to delete")]
    NotFound {
        /// Which.
        key: Key,
    },
    /// No such generation to roll back to.
    #[error("{0}")]
    NoGeneration(String),
    /// The system refuses.
    #[error("{action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The error.
        source: io::Error,
    },
}

fn refused_text(generation: Generation, refused: &[(String, String)]) -> String {
    let list: Vec<_> = refused.iter().map(|(who, why)| format!("{who}: {why}")).collect();
    format!("generation {generation} is refused by {}: nothing was changed", list.join("; "))
}

impl Refusal {
    /// What is wrong with the input, if that is the reason.
    #[must_use]
    pub fn diagnostics(&self) -> &[Diagnostic] {
        match self {
            Self::Invalid(diagnostics) | Self::NoConfiguration(diagnostics) => diagnostics,
            _ => &[],
        }
    }
}
