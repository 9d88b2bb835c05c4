//! The HTTP+JSON API on a unix socket, and its read-only part on TCP.
//!
//! | call | what it does |
//! |---|---|
//! | `GET /v1/status` | generation, validity, proxies |
//! | `GET /v1/resources?kind&namespace&name&documents` | resources in effect |
//! | `GET /v1/proxies`, `/v1/history`, `/v1/stats` | as their commands |
//! | `GET /v1/applied?timeout_ms` | reads the files, waits until every worker runs the active generation |
//! | `POST /v1/apply?wait&dry_run&timeout_ms`, `/v1/delete?...` | [`types::Files`] |
//! | `POST /v1/diff`, `/v1/rollback?wait`, `/v1/explain` | as their commands |
//! | `GET /v1/certs` | identities, credentials, the CA, join tokens: never a key |
//! | `POST /v1/certs/root`, `/v1/certs/token`, `/v1/certs/revoke` | replaces the root; makes and revokes join tokens |
//! | `GET /v1/bypass?sockets` | programs, maps, registered proxies, bytes by path |
//! | `POST /v1/bypass/install`, `/v1/bypass/remove`, `/v1/bypass/port` | as their commands |
//! | `GET /metrics`, `/healthz` | Prometheus text; 200 while the process serves |
//!
//! Errors are [`types::ErrorBody`] with 400 (not understood: with place and reason), 404, 405, 413, 409 (refused by state or proxies) or 422 (invalid
//! configuration).

mod bypass;
pub mod certs;
pub mod client;
mod extract;
mod handlers;
mod listener;
pub mod types;

use std::{io, os::unix::net::UnixListener as StdUnixListener, sync::Arc};

use axum::{
    Json, Router,
    extract::DefaultBodyLimit,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
};

use crate::{apply::Refusal, control::Control};

/// Largest body of a call, in bytes: 100,000 routes are about 40 MB of YAML.
const BODY_BYTES_MAX: usize = 256 * 1024 * 1024;

/// A call that was refused.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    body: types::ErrorBody,
}

impl ApiError {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, body: types::ErrorBody { error: error.into(), diagnostics: Vec::new() } }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let status = match &refusal {
            Refusal::Invalid(_) | Refusal::Table(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refusal::NotFound { .. } => StatusCode::NOT_FOUND,
            Refusal::System { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::CONFLICT,
        };
        let diagnostics = types::findings(refusal.diagnostics());
        Self { status, body: types::ErrorBody { error: refusal.to_string(), diagnostics } }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

fn read_only(control: &Arc<Control>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(handlers::metrics))
        .route("/v1/status", get(handlers::status))
        .route("/v1/proxies", get(handlers::proxies))
        .route("/v1/history", get(handlers::history))
        .route("/v1/stats", get(handlers::stats))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(Arc::clone(control))
}

fn full(control: &Arc<Control>) -> Router {
    let changing = Router::new()
        .route("/v1/resources", get(handlers::resources))
        .route("/v1/certs", get(certs::show))
        .route("/v1/certs/root", post(certs::rotate_root))
        .route("/v1/certs/token", post(certs::make_token))
        .route("/v1/certs/revoke", post(certs::revoke_token))
        .route("/v1/bypass", get(bypass::show))
        .route("/v1/bypass/install", post(bypass::install))
        .route("/v1/bypass/remove", post(bypass::remove))
        .route("/v1/bypass/port", post(bypass::set_port))
        .route("/v1/applied", get(handlers::applied))
        .route("/v1/apply", post(handlers::apply))
        .route("/v1/delete", post(handlers::delete))
        .route("/v1/diff", post(handlers::diff))
        .route("/v1/rollback", post(handlers::rollback))
        .route("/v1/explain", post(handlers::explain))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Arc::clone(control));
    read_only(control).merge(changing)
}

async fn not_found() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "no such call; see the table in the documentation of the API")
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this call has another method; see the documentation of the API")
}

/// Serves until SIGINT or SIGTERM.
pub async fn serve(control: &Arc<Control>, socket: StdUnixListener, admin: Option<TcpListener>) -> io::Result<()> {
    let unix = axum::serve(listener::PeerChecked(UnixListener::from_std(socket)?), full(control)).into_future();
    let tcp = read_only(control);
    let tcp = async move {
        match admin {
            Some(admin) => axum::serve(admin, tcp).await,
            None => std::future::pending().await,
        }
    };
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        result = unix => result,
        result = tcp => result,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}
