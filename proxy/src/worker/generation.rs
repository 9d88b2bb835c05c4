//! The worker's view of configuration generations: which one new requests run on, and the state beside it that
//! outlives a swap.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard},
};

use meshring_core::{
    id::{ClusterId, Generation},
    snapshot::{Snapshot, page::PageReader},
    stats::{Counter, WorkerSlots},
    table::{lookup::Viewpoint, model::ArchivedTable, regexes::Regexes},
};

use crate::{
    balance::ClusterState,
    policy::jwt::{Jwt, KeySets},
    upstream::Endpoints,
};

/// A proved generation with this workload's viewpoint.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) snapshot: Snapshot,
    pub(crate) viewpoint: Viewpoint,
    /// By which tokens are judged; `None`: nobody asks for any.
    token_keys: Option<Arc<KeySets>>,
}

impl Prepared {
    /// For a workload. Key sets are parsed here, once for all workers.
    pub(crate) fn new(snapshot: Snapshot, viewpoint: Viewpoint) -> Self {
        let policy = snapshot.table().inbound_policy(&viewpoint).filter(|policy| !policy.jwt_rules.is_empty());
        let token_keys = policy.map(|policy| Arc::new(KeySets::of(snapshot.table(), policy)));
        Self { snapshot, viewpoint, token_keys }
    }
}

/// The generations that the process holds: the main thread adds and retires, a worker looks one up per swap.
#[derive(Debug, Default)]
pub(crate) struct Generations(Mutex<BTreeMap<Generation, Arc<Prepared>>>);

impl Generations {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Generation, Arc<Prepared>>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds a proved snapshot.
    pub(crate) fn add(&self, prepared: Arc<Prepared>) {
        self.lock().insert(prepared.snapshot.generation(), prepared);
    }

    /// Finds one.
    pub(crate) fn find(&self, generation: Generation) -> Option<Arc<Prepared>> {
        self.lock().get(&generation).cloned()
    }

    /// The one with the highest number.
    pub(crate) fn newest(&self) -> Option<Arc<Prepared>> {
        self.lock().values().next_back().cloned()
    }

    /// Forgets all below `below`, except `active`. Requests that still run on one keep it mapped.
    pub(crate) fn retire(&self, below: Generation, active: Generation) {
        self.lock().retain(|&generation, _| generation >= below || generation == active);
    }
}

/// One generation as a worker uses it. A request holds the `Rc` from its first to its last decision.
#[derive(Debug)]
pub(crate) struct Pinned {
    prepared: Arc<Prepared>,
    regexes: Regexes,
    jwt: Option<Jwt>,
    /// By numbers of our own, which nobody can choose to collide.
    clusters: RefCell<HashMap<ClusterId, Rc<ClusterState>, foldhash::fast::RandomState>>,
}

impl Pinned {
    pub(crate) fn new(prepared: Arc<Prepared>) -> Self {
        // A clone has scratch memory of its own: workers do not contend for it.
        let regexes = prepared.snapshot.regexes().clone();
        let jwt = prepared.token_keys.clone().map(Jwt::new);
        Self { prepared, regexes, jwt, clusters: RefCell::default() }
    }

    /// Its number.
    pub(crate) fn number(&self) -> Generation {
        self.prepared.snapshot.generation()
    }

    /// Its table.
    pub(crate) fn table(&self) -> &ArchivedTable {
        self.prepared.snapshot.table()
    }

    /// Its regular expressions, this worker's copy.
    pub(crate) fn regexes(&self) -> &Regexes {
        &self.regexes
    }

    /// This worker's verifier of tokens, if the workload asks for any.
    pub(crate) fn jwt(&self) -> Option<&Jwt> {
        self.jwt.as_ref()
    }

    /// Who asks.
    pub(crate) fn viewpoint(&self) -> &Viewpoint {
        &self.prepared.viewpoint
    }

    /// The state of a cluster, made at its first use in this generation from what the worker already knows.
    pub(crate) fn cluster(&self, id: ClusterId, known: &KnownClusters, endpoints: &Endpoints) -> Rc<ClusterState> {
        if let Some(state) = self.clusters.borrow().get(&id) {
            return Rc::clone(state);
        }
        let table = self.table();
        let shared = known.of(table.cluster(id).name.as_str());
        let security = endpoints.security(table, table.cluster(id));
        let state = Rc::new(ClusterState::new(table, table.cluster(id), shared, security));
        self.clusters.borrow_mut().insert(id, Rc::clone(&state));
        state
    }
}

/// What outlives a swap for one cluster name: its statistics slot and the round robin's position.
#[derive(Debug)]
pub(crate) struct ClusterShared {
    pub(crate) slot: usize,
    pub(crate) cursor: Cell<u32>,
}

/// Clusters by name, over all generations.
#[derive(Debug)]
pub(crate) struct KnownClusters {
    stats: WorkerSlots,
    by_name: RefCell<HashMap<String, Rc<ClusterShared>>>,
}

impl KnownClusters {
    pub(crate) fn new(stats: WorkerSlots) -> Self {
        Self { stats, by_name: RefCell::default() }
    }

    /// Found or made.
    pub(crate) fn of(&self, name: &str) -> Rc<ClusterShared> {
        if let Some(shared) = self.by_name.borrow().get(name) {
            return Rc::clone(shared);
        }
        let slot = self.stats.page().cluster_slot(name);
        let shared = Rc::new(ClusterShared { slot, cursor: Cell::new(0) });
        self.by_name.borrow_mut().insert(name.to_owned(), Rc::clone(&shared));
        shared
    }

    /// Forgets clusters that no generation uses any more.
    pub(crate) fn sweep(&self) {
        self.by_name.borrow_mut().retain(|_, shared| Rc::strong_count(shared) > 1);
    }
}

/// The generation that new requests run on.
#[derive(Debug)]
pub(crate) struct Current {
    page: RefCell<Arc<PageReader>>,
    generations: Arc<Generations>,
    pinned: RefCell<Rc<Pinned>>,
    /// The number that was last looked up without success: a commit that this proxy has not prepared (it is stale
    /// and will be given the snapshot), so that the lock is taken once and not per request.
    missing: Cell<Generation>,
    stats: WorkerSlots,
}

impl Current {
    pub(crate) fn new(
        page: Arc<PageReader>,
        generations: Arc<Generations>,
        first: Arc<Prepared>,
        stats: WorkerSlots,
    ) -> Self {
        let pinned = Rc::new(Pinned::new(first));
        stats.acknowledge(pinned.number());
        let missing = Cell::default();
        Self { page: RefCell::new(page), generations, pinned: RefCell::new(pinned), missing, stats }
    }

    /// Pins the active generation for a request: one shared load.
    #[inline]
    pub(crate) fn pin(&self) -> Rc<Pinned> {
        let active = self.page.borrow().active().load();
        let pinned = self.pinned.borrow();
        if active == pinned.number() || active == self.missing.get() {
            return Rc::clone(&pinned);
        }
        drop(pinned);
        self.adopt(active)
    }

    #[cold]
    fn adopt(&self, active: Generation) -> Rc<Pinned> {
        match self.generations.find(active) {
            Some(prepared) => {
                *self.pinned.borrow_mut() = Rc::new(Pinned::new(prepared));
                self.stats.add(Counter::GenerationSwaps, 1);
                self.stats.acknowledge(active);
            }
            None => self.missing.set(active),
        }
        Rc::clone(&self.pinned.borrow())
    }

    /// Looks again at what is active, on a nudge from the main thread: something was prepared or committed.
    pub(crate) fn refresh(&self) {
        self.missing.set(Generation(0));
        self.pin();
    }

    /// Follows another control page (control was restarted).
    pub(crate) fn follow(&self, page: Arc<PageReader>) {
        *self.page.borrow_mut() = page;
        self.refresh();
    }
}
