//! Connections, each with its user.

use std::{
    convert::Infallible,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use futures_util::stream::{Stream, unfold};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
};
use tonic::transport::server::Connected;

use super::{
    authority::Rewriter,
    users::{Slot, Users},
};

/// What is read at once, in bytes; requests are small.
const READ_BYTES: usize = 4096;

/// Whom the kernel says we talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) uid: u32,
}

/// A connection that counts among its user's.
#[derive(Debug)]
pub(super) struct Peer {
    stream: UnixStream,
    caller: Caller,
    rewriter: Rewriter,
    /// Rewritten and not yet read.
    ready: BytesMut,
    _slot: Slot,
}

impl Connected for Peer {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller
    }
}

impl AsyncRead for Peer {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.ready.is_empty() {
            let mut bytes = [MaybeUninit::uninit(); READ_BYTES];
            let mut bytes = ReadBuf::uninit(&mut bytes);
            std::task::ready!(Pin::new(&mut this.stream).poll_read(cx, &mut bytes))?;
            if bytes.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.rewriter
                .feed(bytes.filled(), &mut this.ready)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
        let count = this.ready.len().min(buffer.remaining());
        buffer.put_slice(&this.ready.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Connections of users that do not have too many; others are closed at once.
pub(super) fn incoming(listener: UnixListener, users: Users) -> impl Stream<Item = Result<Peer, Infallible>> {
    unfold((listener, users), |(listener, users)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => match admit(stream, &users) {
                    Ok(peer) => return Some((Ok(peer), (listener, users))),
                    Err(reason) => tracing::debug!("Workload API: connection closed: {reason}"),
                },
                Err(error) => {
                    // Out of descriptors, most likely: they come back when connections end.
                    tracing::warn!("Workload API: accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    })
}

fn admit(stream: UnixStream, users: &Users) -> io::Result<Peer> {
    let uid = stream.peer_cred()?.uid();
    let slot = users
        .connection(uid)
        .ok_or_else(|| io::Error::new(io::ErrorKind::QuotaExceeded, format!("too many connections (user id {uid})")))?;
    Ok(Peer { stream, caller: Caller { uid }, rewriter: Rewriter::new(), ready: BytesMut::new(), _slot: slot })
}
