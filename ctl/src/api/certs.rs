//! Certificates: what is in use, join tokens, the replacement of the root. Nothing here ever carries a key; a join token is
//! shown once, to who makes it.

use std::time::{Duration, SystemTime};

use axum::{Json, extract::State, http::StatusCode};
use meshring_core::limits::JOIN_TOKEN_TTL_S_MAX;
use serde::{Deserialize, Serialize};

use super::{
    ApiError,
    extract::Body,
    handlers::{Answer, Shared, blocking},
};
use crate::{
    ca::{
        RotationError, SpiffeId,
        tokens::{Claim, TokenError},
    },
    control::materials::{Certificates, RootStep, RotationItem},
};

/// Answer of `GET /v1/certs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certs {
    /// Identities, credentials and the CA.
    #[serde(flatten)]
    pub certificates: Certificates,
    /// Join tokens.
    pub tokens: Vec<TokenItem>,
}

/// A join token, without itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenItem {
    /// Its name: the first digits of its hash.
    pub id: String,
    /// `NAMESPACE/SERVICE-ACCOUNT`.
    pub account: String,
    /// End of the time for its first use, in seconds since 1970.
    pub expires_s: u64,
    /// The user id that has used it, and alone may use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
}

/// Body of `POST /v1/certs/root`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotateRoot {
    /// What to do.
    pub step: RootStep,
}

/// Body of `POST /v1/certs/token`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakeToken {
    /// `NAMESPACE/SERVICE-ACCOUNT`.
    pub account: String,
    /// Time for its first use, in seconds; at most [`JOIN_TOKEN_TTL_S_MAX`].
    pub ttl_s: u64,
}

/// Answer of `POST /v1/certs/token`.
#[derive(Clone, Serialize, Deserialize)]
pub struct MadeToken {
    /// The token.
    pub token: String,
}

impl std::fmt::Debug for MadeToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MadeToken(..)")
    }
}

/// Body of `POST /v1/certs/revoke`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeToken {
    /// See [`TokenItem::id`].
    pub id: String,
}

impl From<RotationError> for ApiError {
    fn from(error: RotationError) -> Self {
        let status = match error {
            RotationError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::CONFLICT,
        };
        Self::new(status, error.to_string())
    }
}

impl From<TokenError> for ApiError {
    fn from(error: TokenError) -> Self {
        let status = match error {
            TokenError::Unknown => StatusCode::NOT_FOUND,
            TokenError::TooMany => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

pub(super) async fn show(State(control): Shared) -> Answer<Certs> {
    blocking(move || {
        let tokens = control.tokens.list(SystemTime::now()).into_iter().map(|token| TokenItem {
            id: token.id,
            account: format!("{}/{}", token.claim.namespace, token.claim.service_account),
            expires_s: token.expires_s,
            uid: token.uid,
        });
        Ok(Json(Certs { certificates: control.materials.report(), tokens: tokens.collect() }))
    })
    .await
}

pub(super) async fn rotate_root(State(control): Shared, Body(request): Body<RotateRoot>) -> Answer<RotationItem> {
    blocking(move || {
        control.materials.rotate_root(request.step)?;
        Ok(Json(control.materials.report().rotation))
    })
    .await
}

pub(super) async fn make_token(State(control): Shared, Body(request): Body<MakeToken>) -> Answer<MadeToken> {
    blocking(move || {
        let bad = |reason: String| ApiError::new(StatusCode::BAD_REQUEST, reason);
        let MakeToken { account, ttl_s } = request;
        let Some((namespace, service_account)) = account.split_once('/') else {
            return Err(bad(format!("{account:?} is no NAMESPACE/SERVICE-ACCOUNT, such as default/reviews")));
        };
        SpiffeId::workload("any", namespace, service_account)
            .map_err(|error| bad(format!("{account:?} cannot be an identity: {error}")))?;
        if ttl_s == 0 || ttl_s > JOIN_TOKEN_TTL_S_MAX {
            return Err(bad(format!(
                "a join token waits for its first use 1 to {JOIN_TOKEN_TTL_S_MAX} seconds, not {ttl_s}"
            )));
        }
        let claim = Claim { namespace: namespace.to_owned(), service_account: service_account.to_owned() };
        let token = control.tokens.make(claim, Duration::from_secs(ttl_s), SystemTime::now())?;
        tracing::info!("a join token for {account} is made");
        Ok(Json(MadeToken { token: token.to_string() }))
    })
    .await
}

pub(super) async fn revoke_token(State(control): Shared, Body(request): Body<RevokeToken>) -> Answer<RevokeToken> {
    blocking(move || match control.tokens.revoke(&request.id) {
        Err(TokenError::Unknown) => {
            let reason = format!("there is no join token {:?}; `meshring certs` lists them", request.id);
            Err(ApiError::new(StatusCode::NOT_FOUND, reason))
        }
        Err(error) => Err(error.into()),
        Ok(()) => Ok(Json(request)),
    })
    .await
}
