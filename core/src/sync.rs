//! Atomics for the publication protocol: the real ones, or loom's under `--cfg loom`, so that the very code that
//! runs in production is what the model checker explores.

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
