//! One function per call.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use meshring_core::id::Generation;

use super::{
    ApiError,
    extract::{Body, Parameters},
    types::{
        Applied, AppliedQuery, ChangeQuery, Diffs, ErrorBody, ExplainRequest, Files, History, Outcome, ProxyItem,
        ResourceItem, ResourceQuery, Rollback, Status, findings,
    },
};
use crate::{
    apply::{Published, Publisher, Refusal},
    control::{
        Control,
        fleet::Proxy,
        scribe::{Settled, Unsettled},
    },
    diagnostic::Severity,
    explain::{self, Explanation, Hop},
    export,
    source::SourceFile,
    spec::Kind,
};

pub(super) type Answer<T> = Result<Json<T>, ApiError>;
pub(super) type Shared = State<Arc<Control>>;

/// Longest wait that a call may ask for.
const WAIT_MS_MAX: u64 = 600_000;
/// What a disk may take for a small file, however little time a call has.
const STORED_MIN: Duration = Duration::from_millis(1_000);

/// Publications block for up to a second, so they run beside the runtime's threads.
pub(super) async fn blocking<T: Send + 'static>(
    body: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(body).await {
        Ok(result) => result,
        Err(error) => Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("this is a bug of ours: {error}"))),
    }
}

fn sources(files: Files) -> Vec<SourceFile> {
    let source = |file: super::types::File| SourceFile { path: file.path.as_str().into(), text: file.text.into() };
    files.files.into_iter().map(source).collect()
}

async fn change(
    control: Arc<Control>,
    query: ChangeQuery,
    body: impl FnOnce(&mut Publisher) -> Result<Published, Refusal> + Send + 'static,
) -> Answer<Outcome> {
    let begin = Instant::now();
    blocking(move || {
        let (published, settled) = {
            let mut publisher = control.publisher();
            let published = body(&mut publisher)?;
            (published, publisher.settled())
        };
        let mut outcome = Outcome::of(&published, query.dry_run);
        if query.wait && !query.dry_run {
            outcome.applied = Some(wait(&control, published.generation, false, query.timeout_ms, begin));
        }
        if !query.dry_run {
            survives(published.generation, settled, begin + timeout(query.timeout_ms))?;
        }
        Ok(Json(outcome))
    })
    .await
}

/// Who is answered relies on the change: it must outlive this process. Waits for that as long as for anything else, and a moment at least.
fn survives(generation: Generation, settled: Settled, deadline: Instant) -> Result<(), ApiError> {
    settled.wait_until(deadline.max(Instant::now() + STORED_MIN)).map_err(|error| {
        let told = format!("generation {generation} is active, but {error}");
        // A failure has been logged by whoever has met it.
        if error == Unsettled::Late {
            tracing::warn!("{told}");
        }
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, told)
    })
}

fn timeout(ms: u64) -> Duration {
    Duration::from_millis(ms.min(WAIT_MS_MAX))
}

fn wait(control: &Control, generation: Generation, all: bool, timeout_ms: u64, begin: Instant) -> Applied {
    let sum = control.fleet.wait_acknowledged(generation, all, timeout(timeout_ms));
    Applied {
        generation,
        complete: sum.complete(),
        proxies: sum.proxies,
        workers: sum.workers,
        workers_current: sum.workers_current,
        ms: begin.elapsed().as_secs_f64() * 1e3,
        missing: sum.missing,
    }
}

pub(super) async fn apply(
    State(control): Shared,
    Parameters(query): Parameters<ChangeQuery>,
    Body(files): Body<Files>,
) -> Answer<Outcome> {
    let (sources, dry_run) = (sources(files), query.dry_run);
    change(control, query, move |publisher| publisher.apply(&sources, dry_run)).await
}

pub(super) async fn delete(
    State(control): Shared,
    Parameters(query): Parameters<ChangeQuery>,
    Body(files): Body<Files>,
) -> Answer<Outcome> {
    let (sources, dry_run) = (sources(files), query.dry_run);
    change(control, query, move |publisher| publisher.delete(&sources, dry_run)).await
}

pub(super) async fn rollback(
    State(control): Shared,
    Parameters(query): Parameters<ChangeQuery>,
    Body(rollback): Body<Rollback>,
) -> Answer<Outcome> {
    change(control, query, move |publisher| publisher.rollback(rollback.to)).await
}

pub(super) async fn diff(State(control): Shared, Body(files): Body<Files>) -> Answer<Diffs> {
    let sources = sources(files);
    blocking(move || Ok(Json(Diffs { diffs: control.publisher().diff(&sources)? }))).await
}

/// The files are read first: whoever has just changed one means that change.
pub(super) async fn applied(State(control): Shared, Parameters(query): Parameters<AppliedQuery>) -> Answer<Applied> {
    let begin = Instant::now();
    blocking(move || {
        let (published, settled) = {
            let mut publisher = control.publisher();
            let published = publisher.rescan()?;
            (published, publisher.settled())
        };
        let applied = wait(&control, published.generation, true, query.timeout_ms, begin);
        survives(published.generation, settled, begin + timeout(query.timeout_ms))?;
        Ok(Json(applied))
    })
    .await
}

pub(super) async fn explain(State(control): Shared, Body(request): Body<ExplainRequest>) -> Answer<Explanation> {
    blocking(move || {
        let content = control.fleet.active_content().ok_or_else(|| {
            ApiError::new(StatusCode::CONFLICT, "no generation is active: there is nothing to explain yet")
        })?;
        let snapshot = content
            .snapshot()
            .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("active snapshot: {error}")))?;
        let question = explain::Question::parse(&request)
            .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, error.to_string()))?;
        let mut explanation = explain::explain(&snapshot, &control.view().world, &question);
        explanation.connections = connections(&control, &question, &explanation);
        Ok(Json(explanation))
    })
    .await
}

/// Which way the connections of a request take, as far as this host's bypass says it.
fn connections(control: &Control, question: &explain::Question, explanation: &Explanation) -> Vec<Hop> {
    let first = Hop {
        between: "application to proxy".into(),
        path: control.bypass.path_to_proxy(&question.namespace, &question.workload),
    };
    let endpoints = explanation.destinations.iter().flat_map(|destination| &destination.endpoints);
    let hop = |address: std::net::SocketAddr| Hop {
        between: format!("proxy to {address}"),
        path: control.bypass.path_to_endpoint(address).into(),
    };
    std::iter::once(first).chain(endpoints.filter_map(|text| text.parse().ok()).map(hop)).collect()
}

pub(super) async fn resources(
    State(control): Shared,
    Parameters(query): Parameters<ResourceQuery>,
) -> Answer<Vec<ResourceItem>> {
    let kind = match &query.kind {
        None => None,
        Some(text) => Some(Kind::parse(text).ok_or_else(|| {
            let known = Kind::ALL.map(|kind| kind.as_str()).join(", ");
            ApiError::new(StatusCode::BAD_REQUEST, format!("unknown kind {text:?}; known are {known}"))
        })?),
    };
    let view = control.view();
    let wanted = view.world.resources().iter().filter(|resource| {
        kind.is_none_or(|kind| resource.key.kind == kind)
            && query.namespace.as_ref().is_none_or(|namespace| resource.key.namespace.as_str() == namespace)
            && query.name.as_ref().is_none_or(|name| resource.key.name.as_str() == name)
    });
    let items = wanted.map(|resource| ResourceItem {
        kind: resource.key.kind.to_string(),
        namespace: resource.key.namespace.to_string(),
        name: resource.key.name.to_string(),
        file: resource.place.file.to_string(),
        line: resource.place.at.line,
        applied: view.applied.contains(&resource.key),
        document: query.documents.then(|| resource.raw.document()),
        object: query.documents.then(|| resource.raw.to_json().unwrap_or_default()),
    });
    Ok(Json(items.collect()))
}

fn item(proxy: &Proxy, active: Generation, identity: Option<String>) -> ProxyItem {
    let generations = proxy.worker_generations();
    let (state, detail) = if let Some(reason) = proxy.refusal(active) {
        ("refused", Some(format!("generation {active}: {reason}")))
    } else if let Some(missed) = proxy.stale {
        ("stale", Some(format!("no answer for generation {missed}")))
    } else if generations.iter().all(|&generation| generation == active) {
        ("current", None)
    } else if generations.iter().all(|generation| generation.0 == 0) {
        ("empty", Some("no configuration yet".to_owned()))
    } else {
        ("applying", Some(format!("on its way to generation {active}")))
    };
    let hello = &*proxy.hello;
    ProxyItem {
        namespace: hello.namespace.clone(),
        workload: hello.workload.clone(),
        pid: hello.pid,
        identity,
        state: state.to_owned(),
        detail,
        generations,
        driver: hello.driver.clone(),
        listeners: hello.listeners.clone(),
        connected_at_ms: proxy.connected_at_ms,
    }
}

fn proxy_items(control: &Control) -> Vec<ProxyItem> {
    let active = control.fleet.active();
    let mut identities = control.materials.identities();
    let items = control.fleet.proxies().into_iter().map(|proxy| {
        let hello = &proxy.hello;
        let identity = identities.remove(&(hello.namespace.clone(), hello.workload.clone(), hello.pid));
        item(&proxy, active, identity)
    });
    items.collect()
}

pub(super) async fn proxies(State(control): Shared) -> Json<Vec<ProxyItem>> {
    Json(proxy_items(&control))
}

pub(super) async fn history(State(control): Shared) -> Json<History> {
    let (active, retained) = (control.fleet.active(), control.fleet.retained());
    Json(History { active, retained, entries: control.view().state.history.clone() })
}

pub(super) async fn status(State(control): Shared) -> Json<Status> {
    let view = control.view();
    let proxies = proxy_items(&control);
    let problem = view
        .problem
        .as_ref()
        .map(|problem| ErrorBody { error: problem.summary.clone(), diagnostics: findings(&problem.diagnostics) });
    let warnings: Vec<_> =
        view.diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Warning).cloned().collect();
    Json(Status {
        generation: control.fleet.active(),
        checksum: view.state.checksum.to_string(),
        rolled_back: view.state.rolled_back,
        retained: control.fleet.retained(),
        valid: problem.is_none(),
        problem,
        problem_since_ms: view.problem.as_ref().map(|problem| problem.since_ms),
        resources: view.world.resources().len(),
        applied_resources: view.applied.len(),
        mesh: view.world.settings().into(),
        warnings: findings(&warnings),
        proxies: proxies.len(),
        proxies_current: proxies.iter().filter(|proxy| proxy.state == "current").count(),
        config: view.paths.iter().map(|path| path.display().to_string()).collect(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at_ms: control.started_at_ms,
    })
}

pub(super) async fn stats(State(control): Shared) -> Json<export::Stats> {
    let mut stats = export::Stats::read(&control.fleet, &control.materials.identities());
    for shown in control.bypass.show(false).map(|shown| shown.proxies).unwrap_or_default() {
        let of_pid = |proxy: &&mut export::ProxyStats| proxy.pid == shown.pid && proxy.proxy == shown.proxy;
        if let Some(proxy) = stats.proxies.iter_mut().find(of_pid) {
            proxy.bypass = Some(shown.counters);
        }
    }
    Json(stats)
}

pub(super) async fn metrics(State(control): Shared) -> impl IntoResponse {
    let mut text = export::prometheus::render(&control.fleet, &control.view());
    export::principals::render(&mut text, &control.fleet, &control.materials.identities());
    export::certificates::render(&mut text, &control.materials);
    export::bypass::render(&mut text, &control.bypass);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}
