//! The two words of the publication protocol and their ordering. Under `--cfg loom` these very types are explored by
//! the model checker (`tests/publication.rs` of this crate).
//!
//! Control prepares a generation, then stores its number in [`Active`]. A worker loads the number, takes the generation
//! that it stands for, and stores the number in its [`Acknowledged`]. Control frees an older generation only when every
//! worker has acknowledged a newer one.

use crate::{
    id::Generation,
    sync::{AtomicU64, Ordering},
};

/// Which generation is active: one per node, written by control, read by every worker once per request.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Active(AtomicU64);

impl Active {
    /// With this generation as the active one.
    #[must_use]
    pub fn new(generation: Generation) -> Self {
        Self(AtomicU64::new(generation.0))
    }

    /// Makes a generation the active one.
    ///
    /// Release: pairs with the Acquire in [`load`](Self::load). Whoever reads the number also sees everything that was
    /// written before, above all the prepared generation that the number stands for.
    pub fn store(&self, generation: Generation) {
        self.0.store(generation.0, Ordering::Release);
    }

    /// The active generation. Acquire: pairs with the Release in [`store`](Self::store).
    #[inline]
    #[must_use]
    pub fn load(&self) -> Generation {
        Generation(self.0.load(Ordering::Acquire))
    }
}

/// Which generation a worker's new requests run on: one per worker, written by it, read by control.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Acknowledged(AtomicU64);

impl Acknowledged {
    /// A worker has left every older generation behind.
    ///
    /// Release: pairs with the Acquire in [`load`](Self::load). Whoever reads the number also knows that all reads of
    /// older generations by this worker's new requests are over.
    pub fn store(&self, generation: Generation) {
        self.0.store(generation.0, Ordering::Release);
    }

    /// What the worker runs. Acquire: pairs with the Release in [`store`](Self::store).
    #[must_use]
    pub fn load(&self) -> Generation {
        Generation(self.0.load(Ordering::Acquire))
    }
}
