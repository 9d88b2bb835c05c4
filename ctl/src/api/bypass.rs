//! Calls about the bypass.

use axum::{Json, extract::State, http::StatusCode};

use super::{
    ApiError,
    extract::{Body, Parameters},
    handlers::{Answer, Shared, blocking},
    types::{BypassInstall, BypassPort, BypassQuery},
};
use crate::control::bypass::{BypassError, Shown};

impl From<BypassError> for ApiError {
    fn from(error: BypassError) -> Self {
        Self::new(StatusCode::CONFLICT, error.to_string())
    }
}

pub(super) async fn show(State(control): Shared, Parameters(query): Parameters<BypassQuery>) -> Answer<Shown> {
    blocking(move || Ok(Json(control.bypass.show(query.sockets)?))).await
}

pub(super) async fn install(State(control): Shared, Body(install): Body<BypassInstall>) -> Answer<Shown> {
    blocking(move || {
        control.bypass.install(install.cgroup)?;
        Ok(Json(control.bypass.show(false)?))
    })
    .await
}

pub(super) async fn remove(State(control): Shared) -> Answer<Shown> {
    blocking(move || {
        control.bypass.remove()?;
        Ok(Json(control.bypass.show(false)?))
    })
    .await
}

pub(super) async fn set_port(State(control): Shared, Body(port): Body<BypassPort>) -> Answer<Shown> {
    blocking(move || {
        control.bypass.set_port(port.port, port.on)?;
        Ok(Json(control.bypass.show(false)?))
    })
    .await
}
