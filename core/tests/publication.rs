//! The publication protocol under loom, which runs every interleaving and every stale read that its memory model has.
//!
//! The words are those of production ([`Active`] and [`Acknowledged`] over loom's atomics); what they protect is a cell
//! that loom watches. Two tests weaken one ordering each and must fail: they prove that the model would notice.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p meshring-core --release --test publication`

#![cfg(loom)]
#![expect(unsafe_code, reason = "one `Sync` for the cell that loom watches; the invariant stands at the impl")]

use loom::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};
use meshring_core::{
    id::Generation,
    snapshot::publication::{Acknowledged, Active},
};

/// What stands in the memory of a generation.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Memory {
    Unwritten,
    Prepared(u64),
    Freed,
}

/// The memory of one generation. loom fails a run in which two threads touch it without an order between them.
struct Slot(Cell<Memory>);

// SAFETY: loom runs one thread at a time, and reports the unordered accesses that would be races in real life.
unsafe impl Sync for Slot {}

/// A word that carries a generation number from one side to the other.
trait Word: Send + Sync + 'static {
    fn new() -> Self;
    fn store(&self, generation: u64);
    fn load(&self) -> u64;
}

impl Word for Active {
    fn new() -> Self {
        Active::new(Generation(0))
    }
    fn store(&self, generation: u64) {
        Active::store(self, Generation(generation));
    }
    fn load(&self) -> u64 {
        Active::load(self).0
    }
}

impl Word for Acknowledged {
    fn new() -> Self {
        Acknowledged::default()
    }
    fn store(&self, generation: u64) {
        Acknowledged::store(self, Generation(generation));
    }
    fn load(&self) -> u64 {
        Acknowledged::load(self).0
    }
}

/// What a hasty edit would make of either: no ordering.
struct Unordered(AtomicU64);

impl Word for Unordered {
    fn new() -> Self {
        Self(AtomicU64::new(0))
    }
    fn store(&self, generation: u64) {
        self.0.store(generation, Relaxed);
    }
    fn load(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

struct Mesh<A, K> {
    active: A,
    acknowledged: Vec<K>,
    /// By generation; 0 stands for none yet.
    slots: Vec<Slot>,
}

impl<A: Word, K: Word> Mesh<A, K> {
    fn new(workers: usize, generations: usize) -> Arc<Self> {
        Arc::new(Self {
            active: A::new(),
            acknowledged: (0..workers).map(|_| K::new()).collect(),
            slots: (0..=generations).map(|_| Slot(Cell::new(Memory::Unwritten))).collect(),
        })
    }

    /// Control: first the memory, then the number.
    fn publish(&self, generation: u64) {
        self.slots[generation as usize].0.set(Memory::Prepared(generation));
        self.active.store(generation);
    }

    /// Control: frees a generation if every worker has left it. Returns whether it did.
    fn free_if_left(&self, generation: u64) -> bool {
        let left = self.acknowledged.iter().all(|worker| worker.load() > generation);
        if left {
            self.slots[generation as usize].0.set(Memory::Freed);
        }
        left
    }

    /// A worker's request: the number, what it stands for, then the acknowledgement.
    fn request(&self, worker: usize) -> u64 {
        let generation = self.active.load();
        if generation > 0 {
            assert_eq!(self.slots[generation as usize].0.get(), Memory::Prepared(generation));
            self.acknowledged[worker].store(generation);
        }
        generation
    }
}

fn workers<A: Word, K: Word>(mesh: &Arc<Mesh<A, K>>, requests: usize) -> Vec<thread::JoinHandle<()>> {
    (0..mesh.acknowledged.len())
        .map(|worker| {
            let mesh = Arc::clone(mesh);
            thread::spawn(move || {
                let mut last = 0;
                for _ in 0..requests {
                    let generation = mesh.request(worker);
                    assert!(generation >= last, "a worker went back from {last} to {generation}");
                    last = generation;
                }
            })
        })
        .collect()
}

/// Whoever reads a number sees all of the generation that it stands for.
fn publication<A: Word, K: Word>() {
    loom::model(|| {
        let mesh = Mesh::<A, K>::new(2, 2);
        let running = workers(&mesh, 2);
        mesh.publish(1);
        mesh.publish(2);
        running.into_iter().for_each(|worker| worker.join().expect("no panic"));
        assert_eq!(mesh.request(0), 2);
    });
}

/// A generation is freed after the last request that runs on it.
fn reclamation<A: Word, K: Word>() {
    loom::model(|| {
        let mesh = Mesh::<A, K>::new(2, 2);
        mesh.publish(1);
        let running = workers(&mesh, 2);
        mesh.publish(2);
        mesh.free_if_left(1);
        running.into_iter().for_each(|worker| worker.join().expect("no panic"));
        // Once every worker has run a request on the new one, the old one is free for certain.
        assert_eq!((mesh.request(0), mesh.request(1)), (2, 2));
        assert!(mesh.free_if_left(1));
    });
}

#[test]
fn a_worker_that_loads_a_generation_sees_everything_prepared_before_its_store() {
    publication::<Active, Acknowledged>();
}

#[test]
fn a_generation_is_freed_only_after_every_worker_has_left_it() {
    reclamation::<Active, Acknowledged>();
}

#[test]
fn a_rollback_publishes_a_generation_that_is_still_there() {
    loom::model(|| {
        let mesh = Mesh::<Active, Acknowledged>::new(1, 2);
        mesh.publish(1);
        let other = Arc::clone(&mesh);
        let worker = thread::spawn(move || {
            other.request(0);
            other.request(0)
        });
        mesh.publish(2);
        // Nothing is prepared anew: the retained generation 1 becomes the active one again.
        mesh.active.store(Generation(1));
        worker.join().expect("no panic");
        assert_eq!(mesh.request(0), 1);
    });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn the_model_notices_a_publication_without_release_and_acquire() {
    publication::<Unordered, Acknowledged>();
}

#[test]
#[should_panic(expected = "Causality violation")]
fn the_model_notices_an_acknowledgement_without_release_and_acquire() {
    reclamation::<Active, Unordered>();
}
