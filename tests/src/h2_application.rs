//! An application that speaks HTTP/2 with prior knowledge, and a sidecar before it.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use meshring_core::{id::ClusterId, table::model::UpstreamProtocol};

use crate::{
    frames::{self, code},
    h2::{Connection, Message, Opening},
    proxy::{Driver, Proxy, ProxyBuilder},
    table::{World, rule},
    upstream::{Upstream, response},
    wait,
};

/// The server's side of one connection.
pub type Served = Connection<std::net::TcpStream>;

/// What has come so far, each with the number of its connection.
type Received = Arc<Mutex<Vec<(usize, Message)>>>;

/// A server on a port of its own.
#[derive(Debug)]
pub struct Application {
    /// For its address and its connections; what it receives is here.
    pub upstream: Upstream,
    received: Received,
}

impl Application {
    /// Calls `respond` for each request once it is whole or was reset.
    #[must_use]
    pub fn answering(respond: impl Fn(&mut Served, u32, &Message) + Send + Sync + 'static) -> Self {
        Self::opening(Opening::default(), respond)
    }

    /// As [`answering`](Self::answering), with another beginning of connections.
    #[must_use]
    pub fn opening(opening: Opening, respond: impl Fn(&mut Served, u32, &Message) + Send + Sync + 'static) -> Self {
        let received = Received::default();
        let kept = Arc::clone(&received);
        let upstream = Upstream::scripted(move |peer| {
            let Some(mut connection) = Connection::accept(peer.stream(), &opening) else { return };
            while let Some((stream, message)) = connection.next_request() {
                kept.lock().unwrap_or_else(PoisonError::into_inner).push((peer.connection, message.clone()));
                if message.reset.is_none() {
                    respond(&mut connection, stream, &message);
                }
            }
        });
        Self { upstream, received }
    }

    /// Answers 200 with `x-path`, the body of the request, and `x-end` behind it where there is one.
    #[must_use]
    pub fn echoing() -> Self {
        Self::answering(|connection, stream, message| {
            let path = message.fields.value(":path").unwrap_or_default();
            let head = frames::block(&[(":status", "200"), ("x-path", path)]);
            if message.body.is_empty() {
                let _ = connection.try_send(frames::headers(stream, head, true));
                return;
            }
            let _ = connection.try_send(frames::headers(stream, head, false));
            if connection.offer(stream, &message.body, false) {
                let _ = connection.try_send(frames::headers(stream, frames::block(&[("x-end", "here")]), true));
            }
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.upstream.address()
    }

    /// The requests so far, broken ones included.
    #[must_use]
    pub fn received(&self) -> Vec<Message> {
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        received.iter().map(|(_, message)| message.clone()).collect()
    }

    /// The numbers of the connections that the requests so far came on.
    #[must_use]
    pub fn connections_used(&self) -> Vec<usize> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(number, _)| *number).collect()
    }

    /// Waits for so many requests.
    #[must_use]
    pub fn wait_for(&self, count: usize) -> Vec<Message> {
        wait::until(&format!("{count} requests at the application"), || {
            let received = self.received();
            (received.len() >= count).then_some(received)
        })
    }
}

/// A server that speaks both versions, as the client begins, and answers with the one that it was asked in: `HTTP/1.1` or
/// `HTTP/2`, and the body.
#[must_use]
pub fn bilingual() -> Upstream {
    Upstream::scripted(|peer| {
        let mut begin = [0; 3];
        let is_preface = peer.stream().peek(&mut begin).is_ok_and(|count| begin[..count] == *b"PRI");
        if !is_preface {
            while let Some(request) = peer.request() {
                let answer = response(200, &[("x-spoken", "HTTP/1.1")], &request.body);
                if !peer.send(answer) {
                    return;
                }
            }
            return;
        }
        let Some(mut connection) = Connection::accept(peer.stream(), &Opening::default()) else { return };
        while let Some((stream, message)) = connection.next_request() {
            if message.reset.is_none() {
                let head = frames::block(&[(":status", "200"), ("x-spoken", "HTTP/2")]);
                let _ = connection.try_send(frames::headers(stream, head, false));
                let _ = connection.offer(stream, &message.body, true);
            }
        }
    })
}

/// A sidecar whose outbound listener routes `echo` to the application, and whose inbound listener leads to it, too.
#[derive(Debug)]
pub struct Hop {
    /// In the middle.
    pub proxy: Proxy,
    /// Behind it.
    pub application: Application,
}

impl Hop {
    /// Before an application that echoes.
    #[must_use]
    pub fn new(driver: Driver) -> Self {
        Self::before(driver, Application::echoing())
    }

    /// Before an application of one's own.
    #[must_use]
    pub fn before(driver: Driver, application: Application) -> Self {
        Self::configured(application, |builder| builder.driver(driver), |_, _| ())
    }

    /// With further arguments of the proxy, and with further hosts or settings in the table.
    #[must_use]
    pub fn configured(
        application: Application,
        configure: impl FnOnce(ProxyBuilder) -> ProxyBuilder,
        extend: impl FnOnce(&mut World, ClusterId),
    ) -> Self {
        let mut world = World::new();
        let cluster = world.cluster("echo", &[application.address()]);
        world.protocol(cluster, UpstreamProtocol::Http2);
        let action = world.forward(&[(cluster, 1)]);
        world.host("echo", vec![rule(action)]);
        extend(&mut world, cluster);
        let proxy = Proxy::alone_with(&world.snapshot(), |builder| configure(builder.inbound(application.address())));
        Self { proxy, application }
    }

    /// Both listeners.
    #[must_use]
    pub fn listeners(&self) -> [SocketAddr; 2] {
        [self.proxy.outbound(), self.proxy.inbound()[0]]
    }

    /// A client of the outbound listener.
    #[must_use]
    pub fn connect(&self) -> Connection<std::net::TcpStream> {
        Connection::connect(self.proxy.outbound())
    }

    /// Asserts that both listeners end the stream of a request with PROTOCOL_ERROR, that its connection goes on, and that
    /// nothing of it reaches the application. `block` is its header block.
    ///
    /// # Panics
    /// When something else happens.
    #[track_caller]
    pub fn resets(&self, block: &[u8], what: &str) {
        for listener in self.listeners() {
            let before = self.application.received().len();
            let mut client = Connection::connect(listener);
            for ended in [true, false] {
                let stream = client.new_stream();
                client.send(frames::headers(stream, block, ended));
                let answer = client.response(stream);
                let seen = (answer.reset, answer.fields.0.len());
                assert_eq!(seen, (Some(code::PROTOCOL_ERROR), 0), "{what}, END_STREAM {ended}: {answer:?}");
            }
            client.get("echo", "/behind").expect(200);
            let received = self.application.received();
            let paths: Vec<_> = received[before..].iter().map(|message| message.fields.value(":path")).collect();
            assert_eq!(paths, [Some("/behind")], "{what}");
        }
    }

    /// Asserts that both listeners answer a request with a status of their own, and nothing of it reaches the application.
    ///
    /// # Panics
    /// When something else happens.
    #[track_caller]
    pub fn refuses(&self, block: &[u8], status: u16, what: &str) {
        for listener in self.listeners() {
            let before = self.application.received().len();
            let mut client = Connection::connect(listener);
            let stream = client.new_stream();
            client.send(frames::headers(stream, block, true));
            let answer = client.response(stream);
            assert!(answer.ended && answer.status() == status, "{what}: {answer:?}");
            client.get("echo", "/behind").expect(200);
            assert_eq!(self.application.received().len(), before + 1, "{what}");
        }
    }

    /// As [`resets`](Self::resets), or the connection ends: what HPACK has brought to light is treated as a connection error
    /// by the library that reads it, which RFC 9113 section 5.4.1 leaves to it.
    ///
    /// # Panics
    /// When something else happens.
    #[track_caller]
    pub fn breaks(&self, block: &[u8], what: &str) {
        for listener in self.listeners() {
            for ended in [true, false] {
                let before = self.application.received().len();
                let mut client = Connection::connect(listener);
                client.send(frames::headers(1, block, ended));
                while client.message(1).reset.is_none() && client.pump() {}
                let answer = client.message(1);
                let why = answer.reset.or(client.goaways.last().map(|(_, code)| *code));
                let seen = (why, answer.fields.0.len());
                assert_eq!(seen, (Some(code::PROTOCOL_ERROR), 0), "{what}, END_STREAM {ended}: {client:?}");
                Connection::connect(listener).get("echo", "/behind").expect(200);
                assert_eq!(self.application.received().len(), before + 1, "{what}");
            }
        }
    }

    /// As [`refuses`](Self::refuses) with 400, or as [`resets`](Self::resets): where a request is malformed for who reads
    /// frames, and merely bad for who reads HTTP, either is right (RFC 9113 section 8.1.1).
    ///
    /// # Panics
    /// When something else happens.
    #[track_caller]
    pub fn rejects(&self, block: &[u8], what: &str) {
        for listener in self.listeners() {
            let before = self.application.received().len();
            let mut client = Connection::connect(listener);
            let stream = client.new_stream();
            client.send(frames::headers(stream, block, true));
            let answer = client.response(stream);
            let is_reset = answer.reset == Some(code::PROTOCOL_ERROR) && answer.fields.0.is_empty();
            assert!(is_reset || (answer.ended && answer.status() == 400), "{what}: {answer:?}");
            client.get("echo", "/behind").expect(200);
            assert_eq!(self.application.received().len(), before + 1, "{what}");
        }
    }

    /// Asserts that both listeners end the connection of who sends these frames, with this code, and that the application gets nothing.
    ///
    /// # Panics
    /// When something else happens.
    #[track_caller]
    pub fn ends(&self, frames: impl AsRef<[u8]>, expected: u32, what: &str) {
        for listener in self.listeners() {
            let before = self.application.received().len();
            let mut client = Connection::connect(listener);
            // The end may come while they are being sent.
            let _ = client.try_send(frames.as_ref());
            assert_eq!(client.end(), Some(expected), "{what}: {client:?}");
            Connection::connect(listener).get("echo", "/behind").expect(200);
            assert_eq!(self.application.received().len(), before + 1, "{what}");
        }
    }
}
