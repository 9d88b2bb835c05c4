//! From sources to the active generation: what was applied over the files, what changes, and the publication.

pub mod change;
mod number;
pub mod overlay;
pub mod publish;
mod refusal;
mod request;

pub use change::{Change, Verb};
pub use overlay::Overlay;
pub use publish::{Published, Publisher};
pub use refusal::Refusal;
