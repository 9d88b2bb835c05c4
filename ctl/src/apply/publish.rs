//! The publisher: the one place that gives numbers to generations. Sources and applied resources become a world, the
//! world a table, the table a sealed snapshot; proxies prepare it, then it is committed.

use std::{
    io,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, RwLock},
    time::{Duration, Instant},
};

use meshring_core::{
    clock,
    id::Generation,
    limits::PREPARE_MS_MAX,
    snapshot::{Encoded, encode},
};

use super::{
    change::{self, Change},
    overlay::Overlay,
    refusal::Refusal,
};
use crate::{
    compile::{self, DnsTable, JwksTable},
    control::{
        dns,
        fleet::{Fleet, Prepared, Retained},
        jwks,
        run_dir::RunDir,
        scribe::{Scribe, Settled, Unsettled},
        state::{Checksum, HistoryEntry, RolledBack, State},
        view::{Problem, View},
    },
    diagnostic::{self, Code, Diagnostic, Severity, has_errors},
    source::{self, Cache},
    spec::{
        Hostname, Place, Resource, World,
        request_authentication::{KeySource, key_sources},
    },
};

/// Where a rollback's snapshot is kept over a restart: its content can no longer be compiled from the sources.
pub(super) const ROLLED_BACK_NAME: &str = "rolled-back.snapshot";
/// How long a number waits for the disk before it is given all the same.
const STORED_MAX: Duration = Duration::from_secs(5);
/// Diagnostics of one publication that are logged; the rest is counted.
const LOGGED_MAX: usize = 100;
/// Changes that an entry of the history lists.
const HISTORY_CHANGES_MAX: usize = 5;

/// What a publication did.
#[derive(Debug, Clone)]
pub struct Published {
    /// The active generation after it.
    pub generation: Generation,
    /// Whether that is a new one.
    pub new: bool,
    /// Resources that changed; those asked for, unchanged ones included, come first.
    pub changes: Vec<Change>,
    /// What there is to say about the input, errors excluded.
    pub diagnostics: Vec<Diagnostic>,
    /// Size of the snapshot in bytes.
    pub bytes: usize,
    /// From resources to snapshot, in milliseconds.
    pub compile_ms: f64,
    /// First phase.
    pub prepared: Prepared,
    /// From the first `Prepare` to the last answer, in milliseconds.
    pub prepare_ms: f64,
    /// Set while the active generation is older than what the sources say.
    pub rolled_back: Option<RolledBack>,
}

/// The files' resources, last read without errors.
#[derive(Debug, Clone, Default)]
pub(super) struct FileSet {
    pub(super) resources: Vec<Resource>,
    notes: Vec<Diagnostic>,
}

/// A world with its table, not yet published.
pub(super) struct Compiled {
    world: World,
    pub(super) encoded: Encoded,
    pub(super) diagnostics: Vec<Diagnostic>,
    compile_ms: f64,
}

/// Holds the sources and gives numbers. One per control process, behind a mutex.
#[derive(Debug)]
pub struct Publisher {
    pub(super) run_dir: Arc<RunDir>,
    pub(super) fleet: Arc<Fleet>,
    view: Arc<RwLock<Arc<View>>>,
    paths: Vec<PathBuf>,
    cache: Cache,
    pub(super) files: Option<FileSet>,
    dns: DnsTable,
    jwks: JwksTable,
    pub(super) overlay: Overlay,
    /// What this version refuses of the stored overlay: nothing is published without what the user has applied.
    overlay_errors: Vec<Diagnostic>,
    pub(super) state: State,
    /// The highest number that this process or one before it can have given to a proxy.
    pub(super) given: Generation,
    scribe: Scribe,
    pub(super) world: Arc<World>,
    pub(super) diagnostics: Vec<Diagnostic>,
    pub(super) problem: Option<Problem>,
}

impl Publisher {
    /// Reads everything and publishes it, or takes up the generation that a predecessor has published. Errors in the
    /// files are logged and shown, not returned: control serves on, and proxies keep what they run.
    pub fn start(
        run_dir: Arc<RunDir>,
        fleet: Arc<Fleet>,
        view: Arc<RwLock<Arc<View>>>,
        paths: Vec<PathBuf>,
        state: State,
    ) -> io::Result<Self> {
        let (overlay, mut overlay_errors) = Overlay::load(&run_dir)?;
        overlay_errors.retain(Diagnostic::is_error);
        let jwks = jwks::load(&run_dir);
        let given = state.reserved;
        let mut publisher = Self {
            given,
            scribe: Scribe::start(Arc::clone(&run_dir), given)?,
            run_dir,
            fleet,
            view,
            paths,
            cache: Cache::default(),
            files: None,
            dns: DnsTable::default(),
            jwks,
            overlay,
            overlay_errors,
            state,
            world: Arc::new(World::assemble(Vec::new()).0),
            diagnostics: Vec::new(),
            problem: None,
        };
        if let Err(refusal) = publisher.read_paths().and_then(|files| publisher.resume(files)) {
            publisher.problem(&refusal);
        }
        publisher.show();
        // Nobody is served before a successor would find what is served. Logged where it has failed.
        let _ = publisher.settled().wait();
        Ok(publisher)
    }

    /// Reads the files; an error refuses the whole set. An empty set is refused where there was something before.
    fn read_paths(&mut self) -> Result<FileSet, Refusal> {
        if !self.overlay_errors.is_empty() {
            return Err(Refusal::Invalid(self.overlay_errors.clone()));
        }
        let (files, mut diagnostics) = source::discover(&self.paths);
        let had = self.files.as_ref().map_or(self.state.file_resources, |files| files.resources.len());
        let reading = source::read_files(&files, &mut self.cache);
        diagnostics.extend(reading.diagnostics);
        if had > 0 && reading.resources.is_empty() && !has_errors(&diagnostics) {
            diagnostics.retain(|diagnostic| diagnostic.code != Code::EMPTY);
            let file = self.paths.first().map(|path| path.display().to_string()).unwrap_or_default();
            diagnostics.push(
                Diagnostic::error(
                    Code::EMPTY,
                    Place::file(file.as_str().into()),
                    "no resource is left in the configuration",
                )
                .hint("if that is meant, stop control and remove state.json from its run directory"),
            );
        }
        if has_errors(&diagnostics) {
            diagnostic::sort(&mut diagnostics);
            return Err(Refusal::Invalid(diagnostics));
        }
        Ok(FileSet { resources: reading.resources, notes: diagnostics })
    }

    pub(super) fn compile(
        &mut self,
        files: &FileSet,
        overlay: &Overlay,
        extra: &[Resource],
    ) -> Result<Compiled, Refusal> {
        let begin = Instant::now();
        let mut resources = overlay.over(&files.resources);
        resources.extend_from_slice(extra);
        let (world, mut diagnostics) = World::assemble(resources);
        diagnostics.extend(files.notes.iter().chain(overlay.notes()).cloned());
        if has_errors(&diagnostics) {
            diagnostic::sort(&mut diagnostics);
            return Err(Refusal::Invalid(diagnostics));
        }
        dns::learn(&mut self.dns, world.registry().dns_names());
        jwks::learn(&mut self.jwks, &key_sources(&world), &self.run_dir);
        let (dns, jwks) = (&self.dns, &self.jwks);
        // Both only read the world; with 100,000 services the analysis takes a third as long as the table.
        let (encoded, analysis) = std::thread::scope(|scope| {
            let analysis = scope.spawn(|| world.analyze());
            let encoded = compile::compile_with(&world, dns, jwks)
                .map_err(|error| Refusal::Table(error.to_string()))
                .and_then(|table| encode(&table).map_err(|error| Refusal::Table(error.to_string())));
            (encoded, analysis.join())
        });
        let encoded = encoded?;
        diagnostics.extend(analysis.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        diagnostic::sort(&mut diagnostics);
        Ok(Compiled { world, encoded, diagnostics, compile_ms: begin.elapsed().as_secs_f64() * 1e3 })
    }

    /// The first publication of this process: the same generation where the content is the same.
    fn resume(&mut self, files: FileSet) -> Result<(), Refusal> {
        let compiled = self.compile(&files, &self.overlay.clone(), &[])?;
        let checksum = compiled.encoded.checksum();
        if self.state.desired.0 != checksum || self.state.active.0 == 0 {
            return self.publish(compiled, files, self.overlay.clone(), "start").map(drop);
        }
        self.take_up(&compiled)?;
        self.accept(compiled, files, self.overlay.clone());
        Ok(())
    }

    /// The sources say what they said when the predecessor published: no new number.
    fn take_up(&mut self, compiled: &Compiled) -> Result<(), Refusal> {
        let sealed = |generation| {
            Retained::seal(&compiled.encoded, generation)
                .map_err(|source| Refusal::System { action: "memfd for a snapshot", source })
        };
        if let Some(RolledBack { from }) = self.state.rolled_back {
            self.fleet.restore(sealed(from)?);
            match self.stored_rollback() {
                Ok(content) => self.fleet.restore(content),
                Err(error) => {
                    tracing::warn!("the rollback to generation {} is lost: {error}", self.state.active);
                    self.state.rolled_back = None;
                    (self.state.active, self.state.checksum) = (from, Checksum(compiled.encoded.checksum()));
                    self.activate();
                }
            }
        } else {
            self.fleet.restore(sealed(self.state.active)?);
        }
        self.store_state();
        tracing::info!("generation {} is active as before: the configuration has not changed", self.state.active);
        Ok(())
    }

    fn stored_rollback(&self) -> Result<Arc<Retained>, String> {
        let bytes = self.run_dir.load(ROLLED_BACK_NAME).map_err(|error| error.to_string())?;
        let content = Retained::from_bytes(&bytes.ok_or("its snapshot is gone")?).map_err(|error| error.to_string())?;
        if content.generation != self.state.active || content.checksum != self.state.checksum.0 {
            return Err(format!("the stored snapshot is of generation {}", content.generation));
        }
        Ok(content)
    }

    /// Second phase: what the state says is active becomes it. It is shown first: whoever has seen a worker run the
    /// generation also sees its resources. It is stored meanwhile: that takes longer than all workers need.
    pub(super) fn activate(&mut self) {
        self.show();
        self.fleet.commit(self.state.active);
        self.store_state();
    }

    /// Stores what a successor must know, with one number more than was given.
    pub(super) fn store_state(&mut self) {
        self.state.reserved = Generation(self.given.0 + 1);
        self.scribe.state(self.state.clone());
    }

    /// To be waited for, without holding the publisher, before a change is said to survive this process.
    #[must_use]
    pub fn settled(&self) -> Settled {
        self.scribe.settled()
    }

    /// For an orderly end: all is stored, and no number stays reserved that was not given.
    pub fn close(&mut self) {
        self.state.reserved = self.given;
        self.scribe.state(self.state.clone());
        // Logged where it has failed.
        let _ = self.settled().wait();
    }

    /// Notes what is in effect now.
    fn accept(&mut self, compiled: Compiled, files: FileSet, overlay: Overlay) {
        // Nothing is dropped in silence; and nothing is said twice.
        let mut new = compiled.diagnostics.iter().filter(|diagnostic| !self.diagnostics.contains(diagnostic));
        for diagnostic in new.by_ref().take(LOGGED_MAX) {
            match diagnostic.severity {
                Severity::Info => tracing::info!("{diagnostic}"),
                _ => tracing::warn!("{diagnostic}"),
            }
        }
        match new.count() {
            0 => {}
            more => tracing::warn!(
                "and {more} more about this configuration: `meshring get status` shows all warnings, `meshring analyze -f FILES` \
                 everything"
            ),
        }
        self.world = Arc::new(compiled.world);
        self.diagnostics = compiled.diagnostics;
        self.files = Some(files);
        self.overlay = overlay;
    }

    /// Shows the current state to everybody who only reads.
    pub(super) fn show(&self) {
        let view = View {
            world: Arc::clone(&self.world),
            applied: self.overlay.resources().map(|resource| resource.key.clone()).collect(),
            diagnostics: self.diagnostics.clone(),
            problem: self.problem.clone(),
            state: self.state.clone(),
            paths: self.paths.clone(),
        };
        *self.view.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Arc::new(view);
    }

    /// Notes and logs why the files are not in effect; the same reason is logged once.
    fn problem(&mut self, refusal: &Refusal) {
        let problem = Problem {
            since_ms: clock::unix_ms(),
            summary: refusal.to_string(),
            diagnostics: refusal.diagnostics().iter().filter(|diagnostic| diagnostic.is_error()).cloned().collect(),
        };
        if self
            .problem
            .as_ref()
            .is_some_and(|known| known.summary == problem.summary && known.diagnostics == problem.diagnostics)
        {
            return;
        }
        problem.diagnostics.iter().for_each(|diagnostic| tracing::error!("{diagnostic}"));
        match self.fleet.active() {
            Generation(0) => tracing::error!("{}; there is no earlier generation", problem.summary),
            active => tracing::error!("{}; generation {active} stays active", problem.summary),
        }
        self.problem = Some(problem);
    }

    /// Publishes a compiled world under the next number, unless it says what the last one said.
    pub(super) fn publish(
        &mut self,
        compiled: Compiled,
        files: FileSet,
        overlay: Overlay,
        cause: &str,
    ) -> Result<Published, Refusal> {
        let checksum = compiled.encoded.checksum();
        let mut published = Published {
            generation: self.fleet.active(),
            new: false,
            changes: change::between(self.world.resources(), compiled.world.resources()),
            diagnostics: compiled.diagnostics.clone(),
            bytes: compiled.encoded.len(),
            compile_ms: compiled.compile_ms,
            prepared: Prepared::default(),
            prepare_ms: 0.0,
            rolled_back: self.state.rolled_back,
        };
        let write_overlay = |run_dir: &RunDir| {
            overlay.write(run_dir).map_err(|source| Refusal::System { action: "cannot store what was applied", source })
        };
        let has_content = self.fleet.active_content().is_some();
        if has_content && (checksum == self.state.desired.0 || checksum == self.state.checksum.0) {
            self.scribe.replace(write_overlay(&self.run_dir)?);
            // The sources have come back to what a rollback had made active: nothing is left to be undone.
            if checksum == self.state.checksum.0 && self.state.rolled_back.take().is_some() {
                self.state.desired = Checksum(checksum);
                self.store_state();
            }
            published.rolled_back = self.state.rolled_back;
            self.accept(compiled, files, overlay);
            self.show();
            return Ok(published);
        }
        let generation = self.next_number();
        let content = Retained::seal(&compiled.encoded, generation)
            .map_err(|source| Refusal::System { action: "memfd for a snapshot", source })?;
        let begin = Instant::now();
        // Where there is no room for it, nothing is changed; to look for that costs no time of the proxies'.
        let (prepared, written) = std::thread::scope(|scope| {
            let written = scope.spawn(|| write_overlay(&self.run_dir));
            let prepared = self.fleet.prepare(&content, Duration::from_millis(PREPARE_MS_MAX));
            published.prepare_ms = begin.elapsed().as_secs_f64() * 1e3;
            (prepared, written.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        published.prepared = prepared;
        let refused = std::mem::take(&mut published.prepared.refused);
        let written = if refused.is_empty() { written } else { Err(Refusal::Proxies { generation, refused }) };
        let written = match written {
            Ok(written) => written,
            Err(refusal) => {
                self.fleet.withdraw(generation);
                self.show();
                return Err(refusal);
            }
        };
        self.state.desired = Checksum(checksum);
        self.state.rolled_back = None;
        self.state.file_resources = files.resources.len();
        self.remember(&content, cause, &published.changes);
        self.accept(compiled, files, overlay);
        self.scribe.replace(written);
        self.activate();
        log_publication(generation, &published, cause);
        Ok(Published { generation, new: true, rolled_back: None, ..published })
    }

    /// The next number, written down before any proxy hears of it: it never gets a second content, crash or not. The change before has
    /// written it down already, unless it is the first one.
    pub(super) fn next_number(&mut self) -> Generation {
        let highest = self.given.max(self.state.active).max(self.fleet.active());
        self.given = Generation(highest.0 + 1);
        if self.given > self.scribe.reserved() {
            self.store_state();
            // Logged where it has failed. Nobody else can change anything meanwhile, nor a proxy come back.
            if let Err(Unsettled::Late) = self.settled().wait_until(Instant::now() + STORED_MAX) {
                tracing::error!("the number of generation {} is not written yet: the disk does not answer", self.given);
            }
        }
        self.given
    }

    /// Notes what becomes active, and why.
    pub(super) fn remember(&mut self, content: &Retained, cause: &str, changes: &[Change]) {
        let mut list: Vec<String> = changes.iter().take(HISTORY_CHANGES_MAX).map(Change::to_string).collect();
        if changes.len() > HISTORY_CHANGES_MAX {
            list.push(format!("and {} more", changes.len() - HISTORY_CHANGES_MAX));
        }
        (self.state.active, self.state.checksum) = (content.generation, Checksum(content.checksum));
        self.state.remember(HistoryEntry {
            generation: content.generation,
            at_ms: clock::unix_ms(),
            checksum: Checksum(content.checksum),
            bytes: content.bytes,
            cause: cause.to_owned(),
            changes: list,
        });
    }

    /// Reads the files again and publishes what has changed. An invalid set is refused as a whole and shown as the
    /// current problem.
    pub fn rescan(&mut self) -> Result<Published, Refusal> {
        let result = self.read_paths().and_then(|files| {
            if self.files.is_none() && self.fleet.active_content().is_none() {
                // Errors at the start are repaired: this is the first publication after all.
                self.resume(files)?;
                return Ok(self.nothing_new());
            }
            let compiled = self.compile(&files, &self.overlay.clone(), &[])?;
            self.publish(compiled, files, self.overlay.clone(), "files changed")
        });
        // Only reading the files again can show that they are sound: an `apply` over broken ones repairs nothing.
        match &result {
            Err(refusal) => self.problem(refusal),
            Ok(_) if self.problem.take().is_some() => tracing::info!("the configuration is valid again"),
            Ok(_) => {}
        }
        self.show();
        result
    }

    /// The key sets of token issuers that were fetched so far.
    #[must_use]
    pub fn key_sets(&self) -> &JwksTable {
        &self.jwks
    }

    /// Takes key sets that were fetched again; where they are others than before, that makes a new generation.
    pub fn key_sets_changed(&mut self, fetched: Vec<(KeySource, Arc<str>)>) {
        let before = self.jwks.clone();
        self.jwks.0.extend(fetched);
        if self.jwks == before {
            return;
        }
        jwks::store(&self.jwks, &self.run_dir);
        let Some(files) = self.files.clone() else { return };
        let overlay = self.overlay.clone();
        let published = self
            .compile(&files, &overlay, &[])
            .and_then(|compiled| self.publish(compiled, files, overlay, "key sets of token issuers changed"));
        if let Err(refusal) = published {
            tracing::error!("key sets of token issuers changed: {refusal}");
        }
    }

    /// Names have other addresses now: the same sources make another table.
    pub fn addresses_changed(&mut self, answers: Vec<(Hostname, Vec<IpAddr>)>) {
        let before = self.dns.clone();
        self.dns.extend(answers);
        let Some(files) = self.files.clone().filter(|_| self.dns != before) else { return };
        let overlay = self.overlay.clone();
        let published = self
            .compile(&files, &overlay, &[])
            .and_then(|compiled| self.publish(compiled, files, overlay, "addresses of names changed"));
        if let Err(refusal) = published {
            tracing::error!("addresses of names changed: {refusal}");
        }
    }

    pub(super) fn nothing_new(&self) -> Published {
        Published {
            generation: self.fleet.active(),
            new: false,
            changes: Vec::new(),
            diagnostics: self.diagnostics.clone(),
            bytes: self.fleet.active_content().map_or(0, |content| content.bytes),
            compile_ms: 0.0,
            prepared: Prepared::default(),
            prepare_ms: 0.0,
            rolled_back: self.state.rolled_back,
        }
    }
}

fn log_publication(generation: Generation, published: &Published, cause: &str) {
    let Published { bytes, compile_ms, prepared, prepare_ms, .. } = published;
    let ready = prepared.ready;
    tracing::info!(
        "generation {generation} is active ({cause}): {bytes} bytes, compiled in {compile_ms:.1} ms, \
         prepared by {ready} proxies in {prepare_ms:.1} ms"
    );
    for proxy in &prepared.stale {
        tracing::warn!("proxy {proxy} has not answered for generation {generation} within {PREPARE_MS_MAX} ms: stale");
    }
}
