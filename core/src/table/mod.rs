//! The routing table: what control compiles, what a proxy looks up. Immutable; one per generation.
//!
//! [`model`] holds the archived types ([`security`] and [`access`] those of the security API, [`protocol`] what is spoken with whom,
//! [`settings`] what holds for the whole mesh), [`tcp`] connections that are bytes, [`build`] is how a compiler fills them, [`lookup`] finds virtual host and route,
//! [`validate`] proves that every index is in bounds before a proxy uses a table that somebody else wrote, [`text`] says
//! which of its texts may become part of a message.

pub mod access;
pub mod build;
pub mod lookup;
pub mod model;
pub mod protocol;
pub mod regexes;
pub mod security;
pub mod settings;
pub mod tcp;
pub mod text;
pub mod validate;

pub use build::TableBuilder;
pub use model::{ArchivedTable, Table};

#[cfg(test)]
mod tests;
