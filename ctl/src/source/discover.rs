//! Which files make up the input.

use std::{
    collections::HashSet,
    fs,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{FILE_BYTES_MAX, SourceFile};
use crate::diagnostic::{Code, Diagnostic, Place};

/// Deepest directory below a given one.
const DEPTH_MAX: usize = 32;

/// Reads files, and directories with all below them: `*.yaml`, `*.yml` and `*.json`, symbolic links followed (a Git
/// checkout or a mounted ConfigMap is often switched by one), hidden names skipped. The order is that of `paths`, and
/// of names below each.
///
/// What cannot be read, is too large or is not UTF-8 is an error; no file at all is a warning.
pub fn discover(paths: &[PathBuf]) -> (Vec<SourceFile>, Vec<Diagnostic>) {
    let mut found = Found::default();
    for path in paths {
        found.path(path, true, 0);
    }
    if found.files.is_empty() && found.diagnostics.is_empty() {
        let place = Place::file(paths.first().map_or("".into(), |path| path.display().to_string().into()));
        let warning = Diagnostic::warning(Code::EMPTY, place, "no file ends with .yaml, .yml or .json");
        found.diagnostics.push(warning);
    }
    (found.files, found.diagnostics)
}

pub(super) fn too_large(path: Arc<str>, bytes: u64) -> Diagnostic {
    let message = format!("has {bytes} bytes; at most {FILE_BYTES_MAX} are read");
    Diagnostic::error(Code::FILE, Place::file(path), message).hint("split it into several files")
}

#[derive(Default)]
struct Found {
    files: Vec<SourceFile>,
    seen: HashSet<PathBuf>,
    /// The directories that are being read, without symbolic links: one that is in here already is a loop.
    ancestors: Vec<PathBuf>,
    diagnostics: Vec<Diagnostic>,
}

impl Found {
    fn error(&mut self, path: &Path, message: String) {
        let place = Place::file(path.display().to_string().into());
        self.diagnostics.push(Diagnostic::error(Code::FILE, place, message));
    }

    fn path(&mut self, path: &Path, named: bool, depth: usize) {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => return self.error(path, format!("cannot be read: {error}")),
        };
        if metadata.is_dir() {
            return self.directory(path, depth);
        }
        // A pipe that was named is read; one that lies in a directory would block.
        if named || (metadata.is_file() && is_input(path)) {
            self.file(path);
        }
    }

    fn directory(&mut self, path: &Path, depth: usize) {
        if depth > DEPTH_MAX {
            return self.error(path, format!("is more than {DEPTH_MAX} directories deep"));
        }
        let canonical = match fs::canonicalize(path) {
            Ok(canonical) if self.ancestors.contains(&canonical) => {
                return self.error(path, "is a symbolic link to a directory that it lies in".to_owned());
            }
            Ok(canonical) => canonical,
            Err(error) => return self.error(path, format!("cannot be read: {error}")),
        };
        let entries = match fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
            Ok(entries) => entries,
            Err(error) => return self.error(path, format!("cannot be read: {error}")),
        };
        let mut names: Vec<_> = entries.into_iter().map(|entry| entry.file_name()).collect();
        names.sort();
        self.ancestors.push(canonical);
        for name in names {
            let hidden = name.as_encoded_bytes().starts_with(b".");
            let below = path.join(&name);
            if !hidden && (is_input(&below) || below.is_dir()) {
                self.path(&below, false, depth + 1);
            }
        }
        self.ancestors.pop();
    }

    fn file(&mut self, path: &Path) {
        if !self.seen.insert(path.to_path_buf()) {
            return;
        }
        let name: Arc<str> = path.display().to_string().into();
        match read(path) {
            Ok(bytes) if bytes.len() as u64 > FILE_BYTES_MAX => {
                let length = fs::metadata(path).map_or(bytes.len() as u64, |metadata| metadata.len());
                self.diagnostics.push(too_large(name, length));
            }
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => self.files.push(SourceFile { path: name, text: text.into() }),
                Err(error) => {
                    let at = error.utf8_error().valid_up_to();
                    let line = memchr::memchr_iter(b'\n', &error.as_bytes()[..at]).count() + 1;
                    self.error(path, format!("is not UTF-8: byte {at}, in line {line}, is not a character"));
                }
            },
            Err(error) => self.error(path, format!("cannot be read: {error}")),
        }
    }
}

/// At most one byte more than is allowed, whatever the file claims its length to be.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    // At once, and a byte more to see its end: a vector that grows leaves copies behind, of a Secret, too.
    let len = file.metadata()?.len().min(FILE_BYTES_MAX);
    let mut bytes = Vec::with_capacity(len as usize + 1);
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn is_input(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    ["yaml", "yml", "json"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}
