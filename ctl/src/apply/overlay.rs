//! What `meshring apply` has put over the configuration files. It survives a restart of control, with the text and the
//! names of the files it came from, so that every message still points to the right line.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    io,
    sync::Arc,
};

use meshring_core::secret::SecretBytes;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    control::run_dir::{Pending, RunDir},
    diagnostic::Diagnostic,
    source::{self, Cache, SourceFile},
    spec::{Key, Resource},
};

const FILE_NAME: &str = "applied.json";

/// Applied resources by key; each overrides the one of that key in the configuration files.
#[derive(Debug, Clone, Default)]
pub struct Overlay {
    resources: BTreeMap<Key, Resource>,
    /// What the reader had to say about them: fields that are not honoured and the like.
    notes: Vec<Diagnostic>,
}

#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    files: Vec<StoredFile<'a>>,
}

#[derive(Serialize, Deserialize)]
struct StoredFile<'a> {
    path: String,
    text: Cow<'a, str>,
    /// Which of the resources in it are in effect: `VirtualService default/reviews`.
    resources: Vec<String>,
}

impl Overlay {
    /// The applied resources in the order of their keys.
    pub fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.resources.values()
    }

    /// One of them.
    #[must_use]
    pub fn resource(&self, key: &Key) -> Option<&Resource> {
        self.resources.get(key)
    }

    /// What there is to say about them.
    #[must_use]
    pub fn notes(&self) -> &[Diagnostic] {
        &self.notes
    }

    /// With these resources added or replaced.
    #[must_use]
    pub fn with(&self, resources: &[Resource], notes: &[Diagnostic]) -> Self {
        let mut next = self.clone();
        let names: HashSet<String> = resources.iter().map(|resource| resource.key.to_string()).collect();
        next.notes.retain(|note| note.resource.as_ref().is_none_or(|name| !names.contains(name)));
        next.resources.extend(resources.iter().map(|resource| (resource.key.clone(), resource.clone())));
        next.notes.extend(notes.iter().filter(|note| note.resource.is_some()).cloned());
        next
    }

    /// Without this resource.
    #[must_use]
    pub fn without(&self, key: &Key) -> Self {
        let mut next = self.clone();
        next.resources.remove(key);
        let name = key.to_string();
        next.notes.retain(|note| note.resource.as_ref() != Some(&name));
        next
    }

    /// The configuration files' resources with the applied ones over them.
    #[must_use]
    pub fn over(&self, files: &[Resource]) -> Vec<Resource> {
        let kept = files.iter().filter(|resource| !self.resources.contains_key(&resource.key));
        kept.chain(self.resources.values()).cloned().collect()
    }

    /// Writes it to the run directory, beside the one before.
    pub fn write(&self, run_dir: &RunDir) -> io::Result<Pending> {
        let mut files: Vec<StoredFile<'_>> = Vec::new();
        let mut index: HashMap<(Arc<str>, *const u8), usize> = HashMap::new();
        for resource in self.resources.values() {
            let (path, text) = (&resource.place.file, &resource.raw.file_text);
            let at = *index.entry((Arc::clone(path), text.as_ptr())).or_insert_with(|| {
                files.push(StoredFile { path: path.to_string(), text: Cow::Borrowed(text), resources: Vec::new() });
                files.len() - 1
            });
            files[at].resources.push(resource.key.to_string());
        }
        // With the Secrets among them, in a file for control alone.
        let mut bytes = SecretBytes::default();
        serde_json::to_writer(&mut bytes, &Stored { files })?;
        run_dir.write(FILE_NAME, &bytes)
    }

    /// Reads what a predecessor has stored. Errors among the diagnostics mean that this version refuses what an earlier
    /// one accepted.
    pub fn load(run_dir: &RunDir) -> io::Result<(Self, Vec<Diagnostic>)> {
        let Some(content) = run_dir.load(FILE_NAME)? else { return Ok(Default::default()) };
        let content = Zeroizing::new(content);
        let stored: Stored<'_> = serde_json::from_slice(&content)
            .map_err(|error| io::Error::other(format!("{}: {error}", run_dir.join(FILE_NAME).display())))?;
        let (mut overlay, mut diagnostics) = (Self::default(), Vec::new());
        for file in stored.files {
            let source = SourceFile { path: file.path.as_str().into(), text: file.text.into_owned().into() };
            let mut reading = source::read_files(&[source], &mut Cache::default());
            let wanted: HashSet<&str> = file.resources.iter().map(String::as_str).collect();
            reading.resources.retain(|resource| wanted.contains(resource.key.to_string().as_str()));
            overlay = overlay.with(&reading.resources, &reading.diagnostics);
            diagnostics.extend(reading.diagnostics);
        }
        Ok((overlay, diagnostics))
    }
}
