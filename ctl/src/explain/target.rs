//! The path of a request as rules and the upstream see it: by the proxies' own normalisation.

use std::borrow::Cow;

use meshring_core::{
    http::{Refusal, check_target, path},
    limits::TARGET_BYTES_MAX,
    table::model::PathNormalization,
};
use serde::{Deserialize, Serialize};

use super::Question;

/// A path on its way through a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SeenPath {
    /// As the client sends it.
    pub sent: String,
    /// Normalised: what the upstream sees, where no rule rewrites it.
    pub normalized: String,
    /// Without parameters: what rules are matched on.
    pub matched: String,
}

impl SeenPath {
    /// What a proxy makes of a path at a level, or why it refuses the request.
    pub(super) fn of(question: &Question, level: PathNormalization) -> Result<Self, Refusal> {
        let target = match &question.query {
            Some(query) => Cow::Owned(format!("{}?{query}", question.path)),
            None => Cow::Borrowed(&question.path),
        };
        if target.len() > TARGET_BYTES_MAX {
            return Err(Refusal::TargetTooLong);
        }
        check_target(target.as_bytes())?;
        let (mut normalized, mut matched) = (Vec::new(), Vec::new());
        let normalized = path::normalize(question.path.as_bytes(), level, &mut normalized)?;
        let matched = match level {
            PathNormalization::None => normalized,
            _ => path::without_parameters(normalized, &mut matched),
        };
        // The check has let nothing but ASCII through.
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Self { sent: question.path.clone(), normalized: text(normalized), matched: text(matched) })
    }

    /// What is left of the normalised path behind the first bytes of the matched one.
    pub(super) fn rest(&self, matched: usize) -> &str {
        let position = path::position_with_parameters(self.normalized.as_bytes(), matched);
        self.normalized.get(position..).unwrap_or_default()
    }
}
