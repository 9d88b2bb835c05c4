//! The command line's end of the API.

use std::{
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::types::ErrorBody;
use crate::control::run_dir::API_SOCKET_NAME;

/// A call without an answer, or with a refusal.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens.
    #[error(
        "control is not running: {socket}: {source}; start it with `meshring control --config DIR --run-dir {run_dir}`, \
         or name its directory with --run-dir or $MESHRING_RUN_DIR",
        socket = socket.display(), run_dir = run_dir.display()
    )]
    NotRunning {
        /// Where it was looked for.
        socket: PathBuf,
        /// The run directory.
        run_dir: PathBuf,
        /// Of `connect`.
        source: io::Error,
    },
    /// Control has answered, and refuses.
    #[error("{}", body.error)]
    Refused {
        /// Of the answer.
        status: StatusCode,
        /// Why.
        body: ErrorBody,
    },
    /// The connection broke.
    #[error("control does not answer: {0}")]
    Http(#[from] hyper::Error),
    /// The connection broke.
    #[error("control does not answer: {0}")]
    Io(#[from] io::Error),
    /// Not what this version understands.
    #[error("control answers something else than expected ({0}): is it of the same version?")]
    Malformed(String),
}

/// Calls the control process of one run directory.
#[derive(Debug, Clone)]
pub struct Client {
    run_dir: PathBuf,
}

impl Client {
    /// For a run directory.
    #[must_use]
    pub fn new(run_dir: &Path) -> Self {
        Self { run_dir: run_dir.to_owned() }
    }

    /// The run directory.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// `GET`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        parse(&self.call(Method::GET, path, Bytes::new()).await?)
    }

    /// `POST` with a JSON body.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, CallError> {
        let body = serde_json::to_vec(body).map_err(|error| CallError::Malformed(error.to_string()))?;
        parse(&self.call(Method::POST, path, body.into()).await?)
    }

    /// One call; the body of a 2xx answer.
    pub async fn call(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, CallError> {
        let socket = self.run_dir.join(API_SOCKET_NAME);
        let stream = UnixStream::connect(&socket).await.map_err(|source| CallError::NotRunning {
            socket: socket.clone(),
            run_dir: self.run_dir.clone(),
            source,
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "control")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| CallError::Malformed(error.to_string()))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        connection.abort();
        if status.is_success() {
            return Ok(body);
        }
        let body = serde_json::from_slice(&body).unwrap_or_else(|_| ErrorBody {
            error: format!("{status}: {}", String::from_utf8_lossy(&body)),
            diagnostics: Vec::new(),
        });
        Err(CallError::Refused { status, body })
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, CallError> {
    serde_json::from_slice(body).map_err(|error| CallError::Malformed(error.to_string()))
}
