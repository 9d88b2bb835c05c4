//! The client's side of the Workload API: five calls on one connection.

use std::{path::Path, time::Duration};

use axum::http::uri::PathAndQuery;
use meshring_core::limits::WORKLOAD_API_RESPONSE_BYTES_MAX;
use tonic::{
    Request, Status, Streaming,
    client::Grpc,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::proto::{
    JwtBundlesRequest, JwtBundlesResponse, JwtSvidRequest, JwtSvidResponse, SECURITY_HEADER, ValidateJwtSvidRequest,
    ValidateJwtSvidResponse, X509BundlesRequest, X509BundlesResponse, X509SvidRequest, X509SvidResponse, method,
};

/// A server on the same machine that does not take a connection within this time hangs.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// A stream is silent for hours; this is how a hanging server is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// There is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Only absolute UTF-8 paths can be an endpoint's address (SPIFFE Workload Endpoint, section 4).
    #[error("{0}: not an absolute path in UTF-8")]
    Path(String),
    /// Nobody listens, or we may not talk to it.
    #[error("{path}: {reason}")]
    Connect {
        /// The socket.
        path: String,
        /// Down to the system's error.
        reason: String,
    },
}

/// A connection to a Workload API. Clones share it.
#[derive(Debug, Clone)]
pub struct Client {
    grpc: Grpc<Channel>,
}

impl Client {
    /// Connects to a unix socket.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(path: &Path) -> Result<Self, ConnectError> {
        let shown = path.display().to_string();
        let text = path.to_str().filter(|_| path.is_absolute()).ok_or_else(|| ConnectError::Path(shown.clone()))?;
        let failed = |error: tonic::transport::Error| ConnectError::Connect { path: shown, reason: causes(&error) };
        let endpoint = match Endpoint::from_shared(format!("unix://{text}")) {
            Ok(endpoint) => endpoint,
            Err(error) => return Err(failed(error)),
        };
        let endpoint = endpoint
            .connect_timeout(CONNECT_MAX)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let channel = endpoint.connect().await.map_err(failed)?;
        Ok(Self { grpc: Grpc::new(channel).max_decoding_message_size(WORKLOAD_API_RESPONSE_BYTES_MAX) })
    }

    async fn stream<Q, R>(&mut self, method: &'static str, request: Q) -> Result<Streaming<R>, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        R: prost::Message + Default + Send + Sync + 'static,
    {
        ready(&mut self.grpc).await?;
        let path = PathAndQuery::from_static(method);
        let codec = ProstCodec::<Q, R>::default();
        self.grpc.server_streaming(marked(request), path, codec).await.map(tonic::Response::into_inner)
    }

    async fn one<Q, R>(&mut self, method: &'static str, request: Q) -> Result<R, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        R: prost::Message + Default + Send + Sync + 'static,
    {
        ready(&mut self.grpc).await?;
        let path = PathAndQuery::from_static(method);
        let codec = ProstCodec::<Q, R>::default();
        self.grpc.unary(marked(request), path, codec).await.map(tonic::Response::into_inner)
    }

    /// Our X.509-SVIDs, again at each change.
    ///
    /// # Errors
    /// The server's status.
    pub async fn x509_svids(&mut self) -> Result<Streaming<X509SvidResponse>, Status> {
        self.stream(method::FETCH_X509_SVID, X509SvidRequest {}).await
    }

    /// X.509 bundles, again at each change.
    ///
    /// # Errors
    /// The server's status.
    pub async fn x509_bundles(&mut self) -> Result<Streaming<X509BundlesResponse>, Status> {
        self.stream(method::FETCH_X509_BUNDLES, X509BundlesRequest {}).await
    }

    /// JWT-SVIDs for these audiences: of one identity, or of all where `spiffe_id` is empty.
    ///
    /// # Errors
    /// The server's status.
    pub async fn jwt_svids(&mut self, audience: Vec<String>, spiffe_id: String) -> Result<JwtSvidResponse, Status> {
        self.one(method::FETCH_JWT_SVID, JwtSvidRequest { audience, spiffe_id }).await
    }

    /// JWT bundles, again at each change.
    ///
    /// # Errors
    /// The server's status.
    pub async fn jwt_bundles(&mut self) -> Result<Streaming<JwtBundlesResponse>, Status> {
        self.stream(method::FETCH_JWT_BUNDLES, JwtBundlesRequest {}).await
    }

    /// Has a JWT-SVID judged.
    ///
    /// # Errors
    /// The server's status; `InvalidArgument` for a token that is not valid.
    pub async fn validate_jwt_svid(
        &mut self,
        audience: String,
        svid: String,
    ) -> Result<ValidateJwtSvidResponse, Status> {
        self.one(method::VALIDATE_JWT_SVID, ValidateJwtSvidRequest { audience, svid }).await
    }
}

fn marked<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(SECURITY_HEADER, MetadataValue::from_static("true"));
    request
}

async fn ready(grpc: &mut Grpc<Channel>) -> Result<(), Status> {
    grpc.ready().await.map_err(|error| Status::unavailable(causes(&error)))
}

/// An error with all that it comes from: the system's own words are at the end.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}
