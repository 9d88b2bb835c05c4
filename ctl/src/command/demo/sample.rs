//! One sample service: `reviews` says its version, `productpage` asks `reviews` for it through the sidecar.

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, http::StatusCode, response::IntoResponse};
use bytes::Bytes;
use clap::Args;
use hyper::header::HeaderValue;
use tokio::sync::Mutex;

use super::{
    Done, refused,
    traffic::{Connection, fetch},
};

/// Connections to the sidecar that are kept for reuse.
const IDLE_MAX: usize = 64;

#[derive(Debug, Args)]
pub(in crate::command) struct Options {
    /// Its name, or the version that it says
    #[arg(long)]
    name: String,
    /// Where to serve
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// The sidecar's outbound address, by which it reaches `reviews`
    #[arg(long, value_name = "ADDR")]
    reviews: Option<SocketAddr>,
}

pub(in crate::command) fn run(options: Options) -> Done {
    // A demo that is killed must not leave its services behind.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM)).map_err(refused)?;
    crate::command::runtime()?.block_on(Box::pin(serve(options)))
}

async fn serve(options: Options) -> Done {
    let listener = tokio::net::TcpListener::bind(options.listen).await.map_err(refused)?;
    let router = match options.reviews {
        None => Router::new().fallback(move || {
            let version = options.name.clone();
            async move { version }
        }),
        Some(sidecar) => {
            let pool = Arc::new(Mutex::new(Vec::new()));
            Router::new().fallback(move || page(sidecar, Arc::clone(&pool)))
        }
    };
    axum::serve(listener, router).await.map_err(refused)
}

/// A page view: the call to `reviews` is plain HTTP to the sidecar, which reads the name from the Host field.
async fn page(sidecar: SocketAddr, pool: Arc<Mutex<Vec<Connection>>>) -> impl IntoResponse {
    let host = HeaderValue::from_static("reviews");
    // A kept connection may have been closed at the other end in the meantime: then a fresh one is tried.
    while let Some(mut connection) = take(&pool).await {
        if let Ok(answer) = fetch(&mut connection, &host).await {
            return answered(&pool, connection, answer).await;
        }
    }
    let fresh = async {
        let mut connection = Connection::open(sidecar).await?;
        let answer = fetch(&mut connection, &host).await?;
        Ok::<_, super::traffic::BadFetch>((connection, answer))
    };
    match fresh.await {
        Ok((connection, answer)) => answered(&pool, connection, answer).await,
        Err(error) => (StatusCode::BAD_GATEWAY, format!("reviews: {error}\n")),
    }
}

async fn take(pool: &Mutex<Vec<Connection>>) -> Option<Connection> {
    pool.lock().await.pop()
}

async fn answered(
    pool: &Mutex<Vec<Connection>>,
    connection: Connection,
    (status, body): (StatusCode, Bytes),
) -> (StatusCode, String) {
    let mut pool = pool.lock().await;
    if pool.len() < IDLE_MAX {
        pool.push(connection);
    }
    let reviews = String::from_utf8_lossy(&body);
    if status.is_success() {
        (StatusCode::OK, format!("{{\"page\": \"product\", \"reviews\": \"{reviews}\"}}\n"))
    } else {
        (StatusCode::BAD_GATEWAY, format!("reviews: status {status}: {reviews}\n"))
    }
}
