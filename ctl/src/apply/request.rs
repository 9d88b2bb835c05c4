//! What an operator asks the publisher for: `apply`, `delete`, `diff`.

use super::{
    change::{self, Change, Verb},
    publish::{FileSet, Published, Publisher},
    refusal::Refusal,
};
use crate::{
    diagnostic::{Diagnostic, has_errors},
    source::{self, Cache, SourceFile},
    spec::{Key, Resource},
};

impl Publisher {
    fn current_files(&self) -> Result<FileSet, Refusal> {
        self.files.clone().ok_or_else(|| {
            Refusal::NoConfiguration(
                self.problem.as_ref().map(|problem| problem.diagnostics.clone()).unwrap_or_default(),
            )
        })
    }

    /// Puts the resources of these files over the configuration.
    pub fn apply(&mut self, sources: &[SourceFile], dry_run: bool) -> Result<Published, Refusal> {
        let files = self.current_files()?;
        let (resources, notes) = read_applied(sources)?;
        // Two of the same key in one call: `World::assemble` tells them apart from an override only if it sees both.
        let duplicates: Vec<Resource> = duplicates(&resources);
        let overlay = self.overlay.with(&resources, &notes);
        let compiled = self.compile(&files, &overlay, &duplicates)?;
        let asked: Vec<Change> = resources.iter().map(|resource| self.change_of(resource)).collect();
        let known = self.diagnostics.clone();
        let mut published = if dry_run {
            Published { diagnostics: compiled.diagnostics, bytes: compiled.encoded.len(), ..self.nothing_new() }
        } else {
            self.publish(compiled, files, overlay, "apply")?
        };
        let about = |diagnostic: &Diagnostic| sources.iter().any(|source| source.path == diagnostic.place.file);
        published.diagnostics.retain(|diagnostic| about(diagnostic) || !known.contains(diagnostic));
        published.changes = asked;
        Ok(published)
    }

    fn change_of(&self, resource: &Resource) -> Change {
        let Key { kind, namespace, name } = &resource.key;
        let verb = match self.world.resource(*kind, namespace.as_str(), name.as_str()) {
            None => Verb::Created,
            Some(live) if live.means_the_same_as(resource) => Verb::Unchanged,
            Some(_) => Verb::Configured,
        };
        Change { verb, key: resource.key.clone(), place: resource.place.clone() }
    }

    /// Unified diffs of the resources of these files against what is live.
    pub fn diff(&self, sources: &[SourceFile]) -> Result<Vec<String>, Refusal> {
        let (resources, _) = read_applied(sources)?;
        let live = |key: &Key| self.world.resource(key.kind, key.namespace.as_str(), key.name.as_str());
        let diffs = resources.iter().map(|resource| change::unified(live(&resource.key), resource));
        Ok(diffs.filter(|diff| !diff.is_empty()).collect())
    }

    /// Takes the resources of these files out of what was applied; all of them or none.
    pub fn delete(&mut self, sources: &[SourceFile], dry_run: bool) -> Result<Published, Refusal> {
        let files = self.current_files()?;
        let (resources, _) = read_applied(sources)?;
        let mut overlay = self.overlay.clone();
        let mut asked = Vec::new();
        for resource in &resources {
            let key = resource.key.clone();
            let in_file = files.resources.iter().find(|candidate| candidate.key == key);
            match (self.overlay.resource(&key), in_file) {
                (Some(applied), None) => asked.push(Change { verb: Verb::Deleted, place: applied.place.clone(), key }),
                (Some(_), Some(file)) => asked.push(Change { verb: Verb::Restored, place: file.place.clone(), key }),
                (None, Some(file)) => return Err(Refusal::FromFile { key, place: file.place.clone() }),
                (None, None) => return Err(Refusal::NotFound { key }),
            }
            overlay = overlay.without(&resource.key);
        }
        let compiled = self.compile(&files, &overlay, &[])?;
        let known = self.diagnostics.clone();
        let mut published = if dry_run {
            Published { diagnostics: compiled.diagnostics, bytes: compiled.encoded.len(), ..self.nothing_new() }
        } else {
            self.publish(compiled, files, overlay, "delete")?
        };
        published.diagnostics.retain(|diagnostic| !known.contains(diagnostic));
        published.changes = asked;
        Ok(published)
    }
}

fn read_applied(sources: &[SourceFile]) -> Result<(Vec<Resource>, Vec<Diagnostic>), Refusal> {
    let reading = source::read_files(sources, &mut Cache::default());
    if has_errors(&reading.diagnostics) {
        return Err(Refusal::Invalid(reading.diagnostics));
    }
    Ok((reading.resources, reading.diagnostics))
}

fn duplicates(resources: &[Resource]) -> Vec<Resource> {
    let mut seen = std::collections::HashSet::new();
    let mut last_wins: Vec<&Resource> = Vec::new();
    for resource in resources {
        if !seen.insert(&resource.key) {
            last_wins.push(resource);
        }
    }
    // The overlay holds the last of each key; the earlier ones are what `assemble` must see beside it.
    let earlier = |again: &&Resource| resources.iter().find(|first| first.key == again.key).cloned();
    last_wins.iter().filter_map(earlier).collect()
}
