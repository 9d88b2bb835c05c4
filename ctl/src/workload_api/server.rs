//! The five methods on the wire.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::http;
use meshring_core::limits::WORKLOAD_API_REQUEST_BYTES_MAX;
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, NamedService, ServerStreamingService, UnaryService},
};
use tonic_prost::ProstCodec;

use super::{
    WorkloadApi,
    peer::Caller,
    proto::{
        JwtBundlesRequest, JwtSvidRequest, SECURITY_HEADER, ValidateJwtSvidRequest, X509BundlesRequest,
        X509SvidRequest, method,
    },
    streams::{self, Boxed, Make},
    users::Slot,
};

/// What tonic calls.
#[derive(Debug, Clone)]
pub(super) struct Service(pub(super) Arc<WorkloadApi>);

impl NamedService for Service {
    const NAME: &'static str = "SpiffeWorkloadAPI";
}

/// A method as a function.
struct Method<F>(F);

impl<Q, R, F, A> UnaryService<Q> for Method<F>
where
    F: FnMut(Request<Q>) -> A,
    A: Future<Output = Result<Response<R>, Status>>,
{
    type Response = R;
    type Future = A;

    fn call(&mut self, request: Request<Q>) -> A {
        (self.0)(request)
    }
}

/// A method with a stream for its answer.
struct Streaming<R> {
    api: Arc<WorkloadApi>,
    uid: u32,
    /// Moves into the stream.
    slot: Option<Slot>,
    make: Make<R>,
}

impl<Q, R: Send + 'static> ServerStreamingService<Q> for Streaming<R> {
    type Response = R;
    type ResponseStream = Boxed<R>;
    type Future = Ready<Result<Response<Boxed<R>>, Status>>;

    fn call(&mut self, _: Request<Q>) -> Self::Future {
        let slot = self.slot.take().ok_or_else(|| Status::internal("called twice"));
        ready(slot.and_then(|slot| streams::begin(&self.api, self.uid, slot, self.make)).map(Response::new))
    }
}

impl tower_service::Service<http::Request<Body>> for Service {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let api = Arc::clone(&self.0);
        Box::pin(async move {
            Ok(match admit(&api, &request) {
                Ok((caller, slot)) => dispatch(api, caller, slot, request).await,
                Err(status) => status.into_http(),
            })
        })
    }
}

/// Checks what holds for every method.
fn admit(api: &WorkloadApi, request: &http::Request<Body>) -> Result<(Caller, Slot), Status> {
    let Some(caller) = request.extensions().get::<Caller>().copied() else {
        return Err(Status::internal("the connection has no user"));
    };
    if request.headers().get(SECURITY_HEADER).is_none_or(|value| value != "true") {
        return Err(Status::invalid_argument(format!("the metadata `{SECURITY_HEADER}: true` is missing")));
    }
    let slot = api.users.call(caller.uid).ok_or_else(|| {
        Status::resource_exhausted(format!("user id {} has too many calls open; end some", caller.uid))
    })?;
    Ok((caller, slot))
}

async fn dispatch(
    api: Arc<WorkloadApi>,
    caller: Caller,
    slot: Slot,
    request: http::Request<Body>,
) -> http::Response<Body> {
    let uid = caller.uid;
    match request.uri().path() {
        method::FETCH_X509_SVID => match api.identities(uid).and_then(|identities| api.spend(uid, identities.len())) {
            Ok(()) => stream::<X509SvidRequest, _>(api, uid, slot, WorkloadApi::x509_svids, request).await,
            Err(status) => status.into_http(),
        },
        method::FETCH_X509_BUNDLES => {
            stream::<X509BundlesRequest, _>(api, uid, slot, WorkloadApi::x509_bundles, request).await
        }
        method::FETCH_JWT_BUNDLES => {
            stream::<JwtBundlesRequest, _>(api, uid, slot, WorkloadApi::jwt_bundles, request).await
        }
        method::FETCH_JWT_SVID => {
            let api = &api;
            let method = |request: Request<JwtSvidRequest>| async move {
                api.jwt_svids(uid, request.get_ref()).await.map(Response::new)
            };
            grpc().unary(Method(method), request).await
        }
        method::VALIDATE_JWT_SVID => {
            let api = &api;
            let method = |request: Request<ValidateJwtSvidRequest>| async move {
                api.validate(uid, request.get_ref()).await.map(Response::new)
            };
            grpc().unary(Method(method), request).await
        }
        _ => Status::unimplemented("no such method").into_http(),
    }
}

async fn stream<Q, R>(
    api: Arc<WorkloadApi>,
    uid: u32,
    slot: Slot,
    make: Make<R>,
    request: http::Request<Body>,
) -> http::Response<Body>
where
    Q: prost::Message + Default + Send + 'static,
    R: prost::Message + Send + 'static,
{
    grpc::<Q, R>().server_streaming(Streaming { api, uid, slot: Some(slot), make }, request).await
}

fn grpc<Q, R>() -> Grpc<ProstCodec<R, Q>>
where
    Q: prost::Message + Default + Send + 'static,
    R: prost::Message + Send + 'static,
{
    Grpc::new(ProstCodec::default()).max_decoding_message_size(WORKLOAD_API_REQUEST_BYTES_MAX)
}
