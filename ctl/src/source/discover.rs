//! Which files make up the input.

use std::{
    collections::HashSet,
    fs,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{FILE_BYTES_MAX, SourceFile, lines::Lines};
use crate::diagnostic::{Code, Diagnostic, Place, Position};

/// Deepest directory below a given one.
const DEPTH_MAX: usize = 32;
/// Directories that are read, or watched. Symbolic links to and fro make more paths of a few of them than anybody can read.
pub(crate) const DIRECTORIES_MAX: usize = 100_000;

/// Reads files, and directories with all below them: `*.yaml`, `*.yml` and `*.json`, symbolic links followed (a Git
/// checkout or a mounted ConfigMap is often switched by one), hidden names skipped. The order is that of `paths`, and
/// of names below each.
///
/// What cannot be read, is too large or is not UTF-8 is an error; no file at all is a warning.
pub fn discover(paths: &[PathBuf]) -> (Vec<SourceFile>, Vec<Diagnostic>) {
    discover_in(paths, DIRECTORIES_MAX)
}

pub(super) fn discover_in(paths: &[PathBuf], directories_max: usize) -> (Vec<SourceFile>, Vec<Diagnostic>) {
    let mut found = Found { directories_max, ..Found::default() };
    for path in paths {
        found.path(path, true, 0);
    }
    if found.files.is_empty() && found.diagnostics.is_empty() {
        let place = Place::file(paths.first().map_or("".into(), |path| path.display().to_string().into()));
        let warning = Diagnostic::warning(Code::EMPTY, place, "no file ends with .yaml, .yml or .json");
        found.diagnostics.push(warning.hint("name a directory with such files, or rename them"));
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
    directories: usize,
    directories_max: usize,
    diagnostics: Vec<Diagnostic>,
}

impl Found {
    fn error(&mut self, path: &Path, message: String, hint: &'static str) {
        let place = Place::file(path.display().to_string().into());
        self.diagnostics.push(Diagnostic::error(Code::FILE, place, message).hint(hint));
    }

    fn unreadable(&mut self, path: &Path, error: &std::io::Error) {
        let hint = match error.kind() {
            ErrorKind::NotFound => "name a file or directory that exists",
            ErrorKind::PermissionDenied => "let the user who runs this read it",
            _ => "name a file or directory that can be read",
        };
        self.error(path, format!("cannot be read: {error}"), hint);
    }

    fn path(&mut self, path: &Path, named: bool, depth: usize) {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => return self.unreadable(path, &error),
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
            let message = format!("is more than {DEPTH_MAX} directories deep");
            return self.error(path, message, "name the directory that holds the configuration");
        }
        self.directories += 1;
        if self.directories > self.directories_max {
            // Once is enough.
            if self.directories == self.directories_max + 1 {
                let message = format!("there are more than {} directories up to here", self.directories_max);
                self.error(
                    path,
                    message,
                    "name the directory that holds the configuration, without links to and fro in it",
                );
            }
            return;
        }
        let canonical = match fs::canonicalize(path) {
            Ok(canonical) if self.ancestors.contains(&canonical) => {
                let message = "is a symbolic link to a directory that it lies in".to_owned();
                return self.error(path, message, "remove it, or begin its name with a `.`");
            }
            Ok(canonical) => canonical,
            Err(error) => return self.unreadable(path, &error),
        };
        let entries = match fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
            Ok(entries) => entries,
            Err(error) => return self.unreadable(path, &error),
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
                    let valid = error.utf8_error().valid_up_to();
                    let text = std::str::from_utf8(&error.as_bytes()[..valid]).unwrap_or_default();
                    let at = Lines::new(text, Position::new(1, 1)).position(valid);
                    let message = format!("is not UTF-8: byte {valid} is no part of a character");
                    let diagnostic = Diagnostic::error(Code::FILE, Place::new(name, at), message);
                    self.diagnostics.push(diagnostic.hint("save the file in UTF-8"));
                }
            },
            Err(error) => self.unreadable(path, &error),
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
