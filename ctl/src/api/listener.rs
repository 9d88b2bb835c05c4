//! The API's unix socket: a peer that may not talk to control gets one clear answer.

use std::time::Duration;

use axum::serve::Listener;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream, unix::SocketAddr},
};

use super::types::ErrorBody;
use crate::control::permission;

/// Accepts the owner's and root's connections only.
#[derive(Debug)]
pub(super) struct PeerChecked(pub UnixListener);

impl Listener for PeerChecked {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            // The one of tokio's listener retries for us.
            let (stream, address) = Listener::accept(&mut self.0).await;
            match stream.peer_cred() {
                Ok(peer) => match permission::check(peer.uid()) {
                    Ok(()) => return (stream, address),
                    Err(denied) => deny(stream, denied.to_string()),
                },
                Err(error) => deny(stream, format!("the kernel does not say who you are: {error}")),
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

fn deny(mut stream: UnixStream, reason: String) {
    tracing::warn!("API: {reason}");
    let body = serde_json::to_string(&ErrorBody { error: reason, diagnostics: Vec::new() }).unwrap_or_default();
    let answer = format!(
        "HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    tokio::spawn(async move {
        // The request is read first, so that closing does not reset the connection under the answer.
        let _ = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut [0; 4096])).await;
        let _ = stream.write_all(answer.as_bytes()).await;
    });
}
