//! One immutable memfd per generation: how control writes it, how a proxy proves it sound, how a generation becomes
//! the active one.
//!
//! 1. [`writer`] serialises a table behind a [`layout::Header`] into a memfd and seals it.
//! 2. [`reader`] checks seals, size, header, checksum, structure (bytecheck) and meaning, and keeps it mapped.
//! 3. [`page`] holds the one word that says which generation is active.

pub mod layout;
pub mod page;
pub mod publication;
pub mod reader;
pub mod region;
pub mod writer;

pub use reader::{Refused, Snapshot};
pub use writer::{Encoded, encode};

#[cfg(test)]
mod tests;
