//! What a call carries, and our own errors where it is not what the call takes: axum's are plain text.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Query, Request, rejection::BytesRejection},
    http::{StatusCode, request::Parts},
};
use serde::de::DeserializeOwned;

use super::ApiError;

/// A body in JSON, whatever its Content-Type says.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection: BytesRejection| {
            ApiError::new(rejection.status(), format!("the body cannot be read: {}", rejection.body_text()))
        })?;
        serde_json::from_slice(&bytes).map(Body).map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, told(&error)))
    }
}

/// Parameters behind the `?`.
pub(super) struct Parameters<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => {
                let query = parts.uri.query().unwrap_or_default();
                let reason =
                    std::error::Error::source(&rejection).map_or_else(|| rejection.body_text(), ToString::to_string);
                Err(ApiError::new(StatusCode::BAD_REQUEST, format!("query {query:?}: {reason}")))
            }
        }
    }
}

/// Place and reason, the place first as in all our messages.
fn told(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let reason = text.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&text);
    let what = if error.is_data() { "is not what this call takes" } else { "is not JSON" };
    format!("the body {what}: line {line}, column {column}: {reason}")
}
