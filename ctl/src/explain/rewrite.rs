//! What a rewrite makes of a request.

use meshring_core::{
    http::{Refusal, path::normalize_rewritten},
    id::RegexId,
    snapshot::Snapshot,
    table::{lookup::UriMatch, model::ArchivedRewrite},
};

use super::target::SeenPath;

/// A rewrite's result.
#[derive(Default)]
pub(super) struct Changes {
    /// For people.
    pub(super) shown: Vec<String>,
    /// The new path, normalised.
    pub(super) path: Option<String>,
}

/// What a rewrite changes on a request, for people. Its result is normalised like a received path, which refuses what
/// climbs above its root: `prefix: /api` with `uri: /` makes `/../x` of `/api../x`.
pub(super) fn changes(
    snapshot: &Snapshot,
    rewrite: &ArchivedRewrite,
    matched: UriMatch,
    path: &SeenPath,
) -> Result<Changes, Refusal> {
    let mut changes = Changes::default();
    if let Some(rewritten) = rewritten_path(snapshot, rewrite, matched, path) {
        let level = snapshot.table().settings().path_normalization;
        let mut scratch = Vec::new();
        let normalized = String::from_utf8_lossy(normalize_rewritten(rewritten.as_bytes(), level, &mut scratch)?);
        changes.shown.push(format!("path {} becomes {normalized}", path.normalized));
        changes.path = Some(normalized.into_owned());
    }
    if let Some(authority) = rewrite.authority.as_ref() {
        changes.shown.push(format!("Host becomes {authority}"));
    }
    Ok(changes)
}

/// What a proxy makes of the path, before it normalises that.
fn rewritten_path(
    snapshot: &Snapshot,
    rewrite: &ArchivedRewrite,
    matched: UriMatch,
    path: &SeenPath,
) -> Option<String> {
    let rooted = |text: String| if text.starts_with('/') { text } else { format!("/{text}") };
    if let Some(regex) = rewrite.regex.as_ref() {
        let pattern = snapshot.regexes().of(RegexId::from(&regex.pattern));
        let replaced = pattern.replace_all(path.normalized.as_bytes(), regex.replacement.as_bytes());
        return Some(rooted(String::from_utf8_lossy(&replaced).into_owned()));
    }
    let uri = rewrite.uri.as_ref()?;
    let rest = match matched {
        UriMatch::Prefix(len) => path.rest(len),
        UriMatch::Whole => "",
        // Istio: a rule without `uri` matches the prefix `/`.
        UriMatch::None => path.normalized.strip_prefix('/').unwrap_or(&path.normalized),
    };
    Some(rooted(format!("{uri}{rest}")))
}
