//! What was read before. A change of one file costs the reading of the documents that changed, not of all.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use xxhash_rust::xxh3::Xxh3;

use super::{Document, Piece};

/// Documents of the last reading, by file, place and text. One for each set of files that is read again and again: a
/// reading forgets whatever it did not come across.
#[derive(Debug, Default)]
pub struct Cache {
    documents: HashMap<u128, Arc<Document>, BuildHasherDefault<Taken>>,
}

impl Cache {
    /// The known ones among `pieces`, in their order.
    pub(super) fn look_up(&self, pieces: &[Piece<'_>]) -> Vec<Option<Arc<Document>>> {
        if self.documents.is_empty() {
            return vec![None; pieces.len()];
        }
        pieces.iter().map(|piece| self.documents.get(&key(piece)).cloned()).collect()
    }

    /// Remembers these and nothing else.
    pub(super) fn keep(&mut self, pieces: &[Piece<'_>], documents: Vec<Arc<Document>>) {
        self.documents = pieces.iter().map(key).zip(documents).collect();
    }
}

/// 128 bits over file, place and text: two documents that differ never meet in practice.
fn key(piece: &Piece<'_>) -> u128 {
    let mut hash = Xxh3::new();
    hash.update(piece.file.path.as_bytes());
    hash.update(&[0xff, u8::from(piece.json)]);
    hash.update(&piece.start.line.to_le_bytes());
    hash.update(&piece.start.column.to_le_bytes());
    hash.update(piece.text.as_bytes());
    hash.digest128()
}

/// The key is a hash already.
#[derive(Debug, Default)]
struct Taken(u64);

impl Hasher for Taken {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 ^= u64::from_le_bytes(word);
        }
    }
}
