//! What users have, read into the one internal model ([`spec`](crate::spec)): Istio's and Kubernetes' resources as YAML
//! or JSON.
//!
//! Reading never fails as a whole. What is wrong becomes a [`Diagnostic`] with file, line, column and field, and the
//! caller refuses the file set if any of them is an error. Whatever the APIs know and we do not honour is reported too.

mod cache;
pub(crate) mod decode;
mod discover;
pub(crate) mod istio;
mod json;
pub(crate) mod kubernetes;
mod lines;
pub(crate) mod node;
pub(crate) mod resource;
mod yaml;

#[cfg(test)]
mod tests;

use std::{ops::Range, sync::Arc};

pub(crate) use self::discover::DIRECTORIES_MAX;
pub use self::{cache::Cache, discover::discover};
use self::{
    decode::{Interner, Reader},
    lines::Lines,
    node::{Node, SyntaxError},
    resource::Parsed,
};
use crate::{
    diagnostic::{self, Diagnostic, Place, Position},
    spec::{FileText, Kind, Raw, Resource},
};

/// Largest file, in bytes. 40,000 resources of 1.5 KB; larger sets are many files anyway.
pub const FILE_BYTES_MAX: u64 = 64 << 20;

/// From this many bytes of unread documents on, several threads read them.
const PARALLEL_BYTES_MIN: usize = 1 << 20;
/// Threads that read; the control process shares its machine with the proxies.
const THREADS_MAX: usize = 4;

/// One file of the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// As the user named it; diagnostics repeat it.
    pub path: Arc<str>,
    /// Its text.
    pub text: FileText,
}

/// What was read.
#[derive(Debug, Default)]
pub struct Reading {
    /// Valid resources, in the order of files and documents.
    pub resources: Vec<Resource>,
    /// What is wrong or not honoured, in the order of files and lines.
    pub diagnostics: Vec<Diagnostic>,
}

/// One document before it is read.
#[derive(Debug, Clone, Copy)]
struct Piece<'a> {
    file: &'a SourceFile,
    /// Where its text lies in the file's.
    offset: usize,
    text: &'a str,
    /// The position of its first character.
    start: Position,
    json: bool,
}

/// A document that was read. Nothing in it depends on where in the file's bytes it stands, only on its line.
#[derive(Debug, Default, Clone)]
struct Document {
    /// Resources with the range of their text relative to the document's.
    resources: Vec<(Resource, Range<usize>)>,
    diagnostics: Vec<Diagnostic>,
}

/// Reads all documents of all files. A document that `cache` has seen at the same line of the same file is not read
/// again.
pub fn read_files(files: &[SourceFile], cache: &mut Cache) -> Reading {
    let mut reading = Reading::default();
    let mut pieces = Vec::new();
    for file in files {
        if let Err(diagnostic) = split(file, &mut pieces) {
            reading.diagnostics.push(*diagnostic);
        }
    }
    let known = cache.look_up(&pieces);
    let missing: Vec<usize> = (0..pieces.len()).filter(|index| known[*index].is_none()).collect();
    let read = read_pieces(&pieces, &missing);
    let mut read = missing.into_iter().zip(read).peekable();
    let mut documents = Vec::with_capacity(pieces.len());
    for (index, known) in known.into_iter().enumerate() {
        documents.push(match (known, read.next_if(|(at, _)| *at == index)) {
            (Some(document), _) | (None, Some((_, document))) => document,
            (None, None) => Arc::default(),
        });
    }
    for (piece, document) in pieces.iter().zip(&documents) {
        reading.diagnostics.extend(document.diagnostics.iter().cloned());
        for (resource, range) in &document.resources {
            let mut resource = resource.clone();
            resource.raw.file_text = piece.file.text.clone();
            resource.raw.range = piece.offset + range.start..piece.offset + range.end;
            reading.resources.push(resource);
        }
    }
    cache.keep(&pieces, documents);
    diagnostic::sort(&mut reading.diagnostics);
    reading.diagnostics = diagnostic::limit(reading.diagnostics);
    reading
}

/// The documents of a file.
fn split<'a>(file: &'a SourceFile, pieces: &mut Vec<Piece<'a>>) -> Result<(), Box<Diagnostic>> {
    let place = |at| Place::new(Arc::clone(&file.path), at);
    if file.text.len() as u64 > FILE_BYTES_MAX {
        return Err(Box::new(discover::too_large(Arc::clone(&file.path), file.text.len() as u64)));
    }
    // A byte order mark is no content, whatever editor left it there.
    let text = file.text.strip_prefix('\u{feff}').unwrap_or(&file.text);
    let skipped = file.text.len() - text.len();
    if is_json(&file.path, text) {
        let lines = Lines::new(text, Position::new(1, 1));
        let chunks = json::chunks(text)
            .map_err(|error| Box::new(syntax_diagnostic(place(error.at), json::located(error, text, &lines))))?;
        for chunk in chunks {
            let start = lines.position(chunk.offset);
            pieces.push(Piece { file, offset: skipped + chunk.offset, text: chunk.text, start, json: true });
        }
    } else {
        for chunk in yaml::chunks(text) {
            let start = Position::new(chunk.line, 1);
            pieces.push(Piece { file, offset: skipped + chunk.offset, text: chunk.text, start, json: false });
        }
    }
    Ok(())
}

/// By the name's extension; without one, by the first character, as `kubectl` guesses.
fn is_json(path: &str, text: &str) -> bool {
    let extension = path.rsplit(['/', '.']).next().unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "json" => true,
        "yaml" | "yml" => false,
        _ => text.trim_start().starts_with('{') && json::chunks(text).is_ok(),
    }
}

fn syntax_diagnostic(place: Place, error: SyntaxError) -> Diagnostic {
    let diagnostic = Diagnostic::error(error.code, place, error.message).hint(error.hint);
    Diagnostic { field: error.field, ..diagnostic }
}

/// Reads those of `pieces` that `missing` lists, in this order; on several threads where it pays.
fn read_pieces(pieces: &[Piece<'_>], missing: &[usize]) -> Vec<Arc<Document>> {
    let bytes: usize = missing.iter().map(|index| pieces[*index].text.len()).sum();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    if bytes < PARALLEL_BYTES_MIN || threads < 2 {
        return read_in_order(pieces, missing);
    }
    let shares = shares(pieces, missing, bytes / threads + 1);
    std::thread::scope(|scope| {
        let workers: Vec<_> = shares.iter().map(|share| scope.spawn(|| read_in_order(pieces, share))).collect();
        workers
            .into_iter()
            .zip(&shares)
            // A panic in one thread would be a bug of ours; its share is read again here, where it surfaces as it does
            // on one thread.
            .flat_map(|(worker, share)| worker.join().unwrap_or_else(|_| read_in_order(pieces, share)))
            .collect()
    })
}

/// Cuts a list into runs of about so many bytes.
fn shares<'i>(pieces: &[Piece<'_>], missing: &'i [usize], share_bytes: usize) -> Vec<&'i [usize]> {
    let mut shares = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (position, index) in missing.iter().enumerate() {
        bytes += pieces[*index].text.len();
        if bytes >= share_bytes {
            shares.push(&missing[start..=position]);
            (start, bytes) = (position + 1, 0);
        }
    }
    if start < missing.len() {
        shares.push(&missing[start..]);
    }
    shares
}

fn read_in_order(pieces: &[Piece<'_>], indices: &[usize]) -> Vec<Arc<Document>> {
    let mut interner = Interner::default();
    indices.iter().map(|index| Arc::new(read_piece(&pieces[*index], &mut interner))).collect()
}

fn read_piece(piece: &Piece<'_>, interner: &mut Interner) -> Document {
    let mut reader = Reader::new(Arc::clone(&piece.file.path), interner);
    let mut parsed = Vec::new();
    match roots(piece) {
        Ok(mut roots) => {
            for root in &roots {
                resource::read(&mut reader, root, &mut parsed);
            }
            if parsed.iter().any(|parsed| parsed.key.kind == Kind::Secret) {
                roots.iter_mut().for_each(Node::wipe);
            }
        }
        Err(error) => {
            let place = Place::new(Arc::clone(&piece.file.path), error.at);
            reader.diagnostics.push(syntax_diagnostic(place, error));
        }
    }
    let lines = parsed.iter().any(|parsed| parsed.in_list).then(|| Lines::new(piece.text, piece.start));
    let resources = parsed.into_iter().map(|parsed| locate(piece, parsed, lines.as_ref())).collect();
    Document { resources, diagnostics: reader.diagnostics }
}

fn roots<'a>(piece: &Piece<'a>) -> Result<Vec<Node<'a>>, SyntaxError> {
    if piece.json {
        let lines = Lines::new(piece.text, piece.start);
        return match json::parse(piece.text, &lines) {
            Ok(node) => Ok(vec![node]),
            Err(error) => Err(json::located(error, piece.text, &lines)),
        };
    }
    yaml::parse(&yaml::Chunk { text: piece.text, offset: piece.offset, line: piece.start.line, indent: 0 })
}

/// A resource with the place of its text in the document's.
fn locate(piece: &Piece<'_>, parsed: Parsed, lines: Option<&Lines<'_>>) -> (Resource, Range<usize>) {
    let (mut range, mut indent) = (0..piece.text.len(), 0);
    // The item of a `List`: only its part of the document.
    if let Some(lines) = lines.filter(|_| parsed.in_list) {
        let start = lines.offset(parsed.at);
        range = start..lines.offset(parsed.end).max(start);
        indent = parsed.at.column.saturating_sub(1) as usize;
    }
    let secret = parsed.key.kind == Kind::Secret;
    let raw = Raw { file_text: piece.file.text.clone(), range: range.clone(), indent, json: piece.json, secret };
    let place = Place::new(Arc::clone(&piece.file.path), parsed.at);
    (Resource { key: parsed.key, place, created: parsed.created, body: parsed.body, raw }, range)
}

/// A document as JSON, its fields in their order.
///
/// # Errors
/// What is wrong with its syntax.
pub fn to_json(document: &str, is_json: bool) -> Result<serde_json::Value, String> {
    if is_json {
        return serde_json::from_str(document).map_err(|error| error.to_string());
    }
    let chunk = yaml::Chunk { text: document, offset: 0, line: 1, indent: 0 };
    let roots = yaml::parse(&chunk).map_err(|error| format!("{}: {}", error.at, error.message))?;
    Ok(roots.first().map_or(serde_json::Value::Null, Node::to_json))
}
