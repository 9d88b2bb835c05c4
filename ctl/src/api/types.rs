//! The API's messages: what control serialises and the command line reads. Fields are only ever added.

use std::fmt;

use meshring_core::id::Generation;
use serde::{Deserialize, Serialize};

use crate::{
    apply::{Change, Published},
    control::state::{HistoryEntry, RolledBack},
    diagnostic::Diagnostic,
    explain::MeshSettings,
};

/// A diagnostic as it travels; `Display` is the same line as [`Diagnostic`]'s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// `info`, `warning` or `error`.
    pub severity: String,
    /// `MR0301`.
    pub code: String,
    /// The file as the user named it.
    pub file: String,
    /// From 1; 0 for the file as a whole.
    pub line: u32,
    /// From 1.
    pub column: u32,
    /// `VirtualService default/reviews`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// `spec.http[0].route[1].weight`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl From<&Diagnostic> for Finding {
    fn from(diagnostic: &Diagnostic) -> Self {
        Self {
            severity: diagnostic.severity.to_string(),
            code: diagnostic.code.to_string(),
            file: diagnostic.place.file.to_string(),
            line: diagnostic.place.at.line,
            column: diagnostic.place.at.column,
            resource: diagnostic.resource.clone(),
            field: diagnostic.field.clone(),
            message: diagnostic.message.clone(),
            hint: diagnostic.hint.as_ref().map(ToString::to_string),
        }
    }
}

/// All of them.
#[must_use]
pub fn findings(diagnostics: &[Diagnostic]) -> Vec<Finding> {
    diagnostics.iter().map(Finding::from).collect()
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}[{}]: ", self.severity, self.code)?;
        for part in [&self.resource, &self.field].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}

/// Why a call was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// In one sentence.
    pub error: String,
    /// What is wrong with the input, if that is the reason.
    #[serde(default)]
    pub diagnostics: Vec<Finding>,
}

/// A file's content on its way to control.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// As the user named it; messages about it use this name.
    pub path: String,
    /// YAML or JSON.
    pub text: String,
}

/// Body of `POST /v1/apply`, `/v1/delete` and `/v1/diff`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// One or more.
    pub files: Vec<File>,
}

/// Query of calls that change something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChangeQuery {
    /// Only check, and show what would change.
    pub dry_run: bool,
    /// Answer when every worker runs the new generation.
    pub wait: bool,
    /// How long to wait, in milliseconds.
    pub timeout_ms: u64,
}

impl Default for ChangeQuery {
    fn default() -> Self {
        Self { dry_run: false, wait: false, timeout_ms: 5_000 }
    }
}

/// One resource that changed, or did not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceChange {
    /// `created`, `configured`, `unchanged`, `deleted`, `restored`.
    pub change: String,
    /// `VirtualService`.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub file: String,
    /// From 1.
    pub line: u32,
}

impl From<&Change> for ResourceChange {
    fn from(change: &Change) -> Self {
        Self {
            change: change.verb.as_str().to_owned(),
            kind: change.key.kind.to_string(),
            namespace: change.key.namespace.to_string(),
            name: change.key.name.to_string(),
            file: change.place.file.to_string(),
            line: change.place.at.line,
        }
    }
}

/// How far a generation has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    /// Which generation.
    pub generation: Generation,
    /// Whether every worker that counts runs it.
    pub complete: bool,
    /// Proxies that count.
    pub proxies: usize,
    /// Their workers.
    pub workers: usize,
    /// Workers that run it.
    pub workers_current: usize,
    /// From the call to the last acknowledgement, in milliseconds.
    pub ms: f64,
    /// Those that do not run it yet.
    pub missing: Vec<String>,
}

/// Answer of calls that change something.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The active generation.
    pub generation: Generation,
    /// Whether it is a new one.
    pub new_generation: bool,
    /// Nothing was published.
    pub dry_run: bool,
    /// The resources that were asked for.
    pub changes: Vec<ResourceChange>,
    /// What there is to say about them.
    pub diagnostics: Vec<Finding>,
    /// Size of the snapshot in bytes.
    pub bytes: usize,
    /// From resources to snapshot, in milliseconds.
    pub compile_ms: f64,
    /// From asking the proxies to their last answer, in milliseconds.
    pub prepare_ms: f64,
    /// Proxies that have not answered in time.
    pub stale: Vec<String>,
    /// Set while the active generation is older than what the sources say.
    pub rolled_back: Option<RolledBack>,
    /// Set where the call was to wait.
    pub applied: Option<Applied>,
}

impl Outcome {
    /// From a publication.
    #[must_use]
    pub fn of(published: &Published, dry_run: bool) -> Self {
        Self {
            generation: published.generation,
            new_generation: published.new,
            dry_run,
            changes: published.changes.iter().map(ResourceChange::from).collect(),
            diagnostics: findings(&published.diagnostics),
            bytes: published.bytes,
            compile_ms: published.compile_ms,
            prepare_ms: published.prepare_ms,
            stale: published.prepared.stale.clone(),
            rolled_back: published.rolled_back,
            applied: None,
        }
    }
}

/// Answer of `POST /v1/diff`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diffs {
    /// Unified diffs of the resources that differ.
    pub diffs: Vec<String>,
}

/// Body of `POST /v1/rollback`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    /// Which generation; without it, the one before the active one.
    #[serde(default)]
    pub to: Option<Generation>,
}

/// Answer of `GET /v1/history`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The active generation.
    pub active: Generation,
    /// Generations that can be rolled back to, the active one included.
    pub retained: Vec<Generation>,
    /// Oldest first.
    pub entries: Vec<HistoryEntry>,
}

/// A resource in effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResourceItem {
    /// `VirtualService`.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// Whether it comes from `meshring apply` rather than from the configuration files.
    pub applied: bool,
    /// As the user wrote it; only where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// The same as JSON; only where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<serde_json::Value>,
}

/// Query of `GET /v1/resources`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceQuery {
    /// As kubectl users type it.
    pub kind: Option<String>,
    /// One namespace only.
    pub namespace: Option<String>,
    /// One name only.
    pub name: Option<String>,
    /// With the documents.
    pub documents: bool,
}

/// Query of `GET /v1/bypass`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BypassQuery {
    /// With the captured sockets.
    pub sockets: bool,
}

/// Body of `POST /v1/bypass/install`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BypassInstall {
    /// Where; by default the root of the hierarchy.
    #[serde(default)]
    pub cgroup: Option<std::path::PathBuf>,
}

/// Body of `POST /v1/bypass/port`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BypassPort {
    /// That connections are made to.
    pub port: u16,
    /// Whether they may bypass TCP.
    pub on: bool,
}

/// A connected proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyItem {
    /// Its workload's namespace.
    pub namespace: String,
    /// Its workload's name.
    pub workload: String,
    /// Its process id.
    pub pid: u32,
    /// Its SPIFFE id, where it was given one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// `current`, `applying`, `stale`, `refused`, `empty`.
    pub state: String,
    /// Why it is not `current`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What each worker runs.
    pub generations: Vec<Generation>,
    /// The I/O driver.
    pub driver: String,
    /// Its addresses.
    pub listeners: Vec<String>,
    /// When it connected, in milliseconds since the Unix epoch.
    pub connected_at_ms: u64,
}

/// Answer of `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The active generation; 0 for none.
    pub generation: Generation,
    /// Of its content.
    pub checksum: String,
    /// Set while the active generation is older than what the sources say.
    pub rolled_back: Option<RolledBack>,
    /// Generations that can be rolled back to.
    pub retained: Vec<Generation>,
    /// Whether the files on disk are in effect.
    pub valid: bool,
    /// Why not.
    pub problem: Option<ErrorBody>,
    /// Since when not, in milliseconds since the Unix epoch.
    pub problem_since_ms: Option<u64>,
    /// Resources in effect.
    pub resources: usize,
    /// Those from `meshring apply`.
    pub applied_resources: usize,
    /// What holds for the whole mesh, as the sources say it.
    #[serde(default)]
    pub mesh: MeshSettings,
    /// Warnings about what is in effect.
    pub warnings: Vec<Finding>,
    /// Connected proxies.
    pub proxies: usize,
    /// Those that run the active generation on every worker.
    pub proxies_current: usize,
    /// Where the configuration is read from.
    pub config: Vec<String>,
    /// This process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Since when it runs, in milliseconds since the Unix epoch.
    pub started_at_ms: u64,
}

/// Body of `POST /v1/explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainRequest {
    /// The calling workload: `NAMESPACE/NAME`.
    pub from: String,
    /// `http://reviews/path?query`; empty for a connection.
    #[serde(default)]
    pub url: String,
    /// A connection of bytes instead of a request, and what it is for: `redis:6379`, `10.96.0.1:6379`, `*:443`.
    #[serde(default)]
    pub tcp: Option<String>,
    /// The server name in its ClientHello.
    #[serde(default)]
    pub sni: Option<String>,
    /// `GET` without it.
    #[serde(default)]
    pub method: Option<String>,
    /// `name: value`.
    #[serde(default)]
    pub headers: Vec<String>,
}

/// Query of `GET /v1/applied`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AppliedQuery {
    /// How long to wait, in milliseconds.
    pub timeout_ms: u64,
}

impl Default for AppliedQuery {
    fn default() -> Self {
        Self { timeout_ms: 5_000 }
    }
}
