//! HTTP/2 (RFC 9113) at the edge of the proxy. The protocol itself is core's [`Engine`](meshring_core::http::http2::Engine); here is
//! what stands between it and the rest: the I/O of its connection ([`link`]), and streams that the stages see as connections
//! which carry one request and its response as HTTP/1.1 text ([`stream`]). So there is one request path, one strict codec and
//! one set of deadlines, whatever is spoken on either side, and what HTTP/1.1 forbids no HTTP/2 message can smuggle in.

pub(crate) mod client;
mod link;
mod outgoing;
mod pulse;
pub(crate) mod server;
mod starts;
mod stream;
mod websocket;

use std::{net::SocketAddr, rc::Rc};

pub(crate) use self::stream::{Flaw, Stream};
use super::{conn::Conn, refusals::Told, secure::peer::Peer};

/// What the streams of a connection know of it.
#[derive(Debug)]
pub(crate) struct Origin {
    /// The other side, while it was there.
    pub(crate) peer: Option<SocketAddr>,
    /// What its handshake has proved.
    pub(crate) secured: Option<Rc<Peer>>,
    /// The address that an intercepted client meant.
    pub(crate) original_destination: Option<SocketAddr>,
    /// What the log has said of it.
    pub(crate) told: Told,
}

impl Origin {
    fn of(conn: &Conn) -> Rc<Self> {
        Rc::new(Self {
            peer: conn.peer(),
            secured: conn.secured_peer().cloned(),
            original_destination: conn.original_destination(),
            told: Told::default(),
        })
    }
}
