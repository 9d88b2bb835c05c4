//! Both ends of a tunnel in a test's hand, over one sidecar, over two, and over two with mutual TLS between them.

use std::{
    fmt::Debug,
    io::ErrorKind,
    net::{SocketAddr, TcpListener},
    panic::resume_unwind,
    thread,
    time::Duration,
};

use meshring_core::table::tcp::TcpProtocol;
use rustix::net::sockopt;

use crate::{
    bytes,
    client::Client,
    proxy::{Driver, Proxy, ProxyBuilder},
    table::World,
    tls::{Mesh, peer_authentication},
    wait,
    wire::is_truncation,
};

/// What a read or write may take before it fails the test.
const IO_PATIENCE: Duration = Duration::from_secs(20);

/// A server whose connections a test takes one by one and serves itself.
#[derive(Debug)]
pub struct Application {
    listener: TcpListener,
}

impl Application {
    /// On a free port.
    #[must_use]
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        Self { listener }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("a bound socket")
    }

    /// The next connection, if it is there.
    #[must_use]
    pub fn try_accept(&self) -> Option<Client> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).expect("a socket");
                stream.set_nodelay(true).expect("a socket");
                stream.set_read_timeout(Some(IO_PATIENCE)).expect("a socket");
                stream.set_write_timeout(Some(IO_PATIENCE)).expect("a socket");
                Some(Client::over(stream))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("no connection: {error}"),
        }
    }

    /// The next connection.
    ///
    /// # Panics
    /// When nobody connects.
    #[must_use]
    pub fn accept(&self) -> Client {
        wait::until("a connection to the application", || self.try_accept())
    }
}

/// A WebSocket handshake with the key of RFC 6455 section 1.3.
pub const HANDSHAKE: &str = "GET /chat HTTP/1.1\r\nhost: reviews\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
/// The answer to it.
pub const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Runs something for each of these at once.
///
/// # Panics
/// When one of them does; what it was about is told.
pub fn in_parallel<K: Debug + Copy + Send, const N: usize>(all: [K; N], test: impl Fn(K) + Sync) {
    thread::scope(|scope| {
        let threads = all.map(|one| {
            (
                one,
                scope.spawn({
                    let test = &test;
                    move || test(one)
                }),
            )
        });
        for (one, thread) in threads {
            if let Err(panic) = thread.join() {
                println!("it was about {one:?}");
                resume_unwind(panic);
            }
        }
    });
}

/// What there may be between a client and an application: see [`Way`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`Way::One`]
    One,
    /// [`Way::Two`]
    Two,
    /// [`Way::Mutual`]
    Mutual,
    /// [`Way::Bytes`]
    Bytes,
    /// [`Way::MutualBytes`]
    MutualBytes,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::One, Self::Two, Self::Mutual, Self::Bytes, Self::MutualBytes];
}

/// Sidecars between a client and an application.
#[derive(Debug)]
pub enum Way {
    /// The client's.
    One(Box<Proxy>),
    /// The client's and the application's.
    Two(Box<[Proxy; 2]>),
    /// Likewise, with mutual TLS between them.
    Mutual(Box<Mesh>),
    /// The client's, over which the whole connection is bytes: its listener for the service.
    Bytes(Box<Proxy>),
    /// Likewise, over both with mutual TLS between them.
    MutualBytes(Box<bytes::Mesh>),
}

impl Way {
    /// Over one sidecar with further settings.
    #[must_use]
    pub fn one(driver: Driver, to: &Application, configure: impl FnOnce(ProxyBuilder) -> ProxyBuilder) -> Self {
        let snapshot = World::with_service("reviews", to.address());
        Self::One(Box::new(Proxy::alone_with(&snapshot, |builder| configure(builder.driver(driver)))))
    }

    /// Over sidecars with nothing special about them.
    #[must_use]
    pub fn start(kind: Kind, driver: Driver, to: &Application) -> Self {
        let mode = peer_authentication("STRICT", "");
        let files = [("mode.yaml", mode.as_str())];
        match kind {
            Kind::One => Self::one(driver, to, |builder| builder),
            Kind::Two => {
                let empty = World::new().snapshot();
                let second = Proxy::alone_with(&empty, |builder| builder.driver(driver).inbound(to.address()));
                let first = Proxy::alone(&World::with_service("reviews", second.inbound()[0]), driver);
                Self::Two(Box::new([first, second]))
            }
            Kind::Mutual => Self::Mutual(Box::new(Mesh::start(driver, &[to.address()], &files))),
            Kind::Bytes => Self::bytes(driver, to, |builder| builder),
            Kind::MutualBytes => Self::MutualBytes(Box::new(bytes::Mesh::start(driver, to.address(), "tcp", &files))),
        }
    }

    /// Over each kind of way, for a connection that is upgraded.
    #[must_use]
    pub fn upgrades(driver: Driver, to: &Application) -> [Self; 3] {
        [Kind::One, Kind::Two, Kind::Mutual].map(|kind| Self::start(kind, driver, to))
    }

    /// Does something over each kind of way, all of them at once, since most of it is waiting; each has an application of its own.
    ///
    /// # Panics
    /// When it does.
    pub fn on_each(driver: Driver, test: impl Fn(&Self, &Application) + Sync) {
        in_parallel(Kind::ALL, |kind| {
            let application = Application::start();
            test(&Self::start(kind, driver, &application), &application);
        });
    }

    /// Over one sidecar, as bytes, with further settings.
    #[must_use]
    pub fn bytes(driver: Driver, to: &Application, configure: impl FnOnce(ProxyBuilder) -> ProxyBuilder) -> Self {
        let snapshot = World::with_stream("db", 5432, TcpProtocol::Tcp, &[to.address()]);
        let configure = |builder: ProxyBuilder| configure(builder.driver(driver).outbound_for("db:5432"));
        Self::Bytes(Box::new(Proxy::alone_with(&snapshot, configure)))
    }

    /// The sidecar of the client.
    #[must_use]
    pub fn first(&self) -> &Proxy {
        match self {
            Self::One(proxy) => proxy,
            Self::Two(proxies) => &proxies[0],
            Self::Mutual(mesh) => &mesh.client,
            Self::Bytes(proxy) => proxy,
            Self::MutualBytes(mesh) => &mesh.client,
        }
    }

    /// A tunnel: a WebSocket, whose frames nobody looks at, or a connection of bytes.
    ///
    /// # Panics
    /// When it does not open.
    #[must_use]
    #[track_caller]
    pub fn open(&self, application: &Application) -> Ends {
        if let Self::Bytes(_) | Self::MutualBytes(_) = self {
            let client = Client::connect(self.first().services()[0]);
            return Ends { client, upstream: application.accept() };
        }
        let mut client = self.first().connect();
        client.send(HANDSHAKE);
        let mut upstream = application.accept();
        upstream.head();
        upstream.send(SWITCH);
        assert_eq!(client.head().line, "HTTP/1.1 101 Switching Protocols");
        Ends { client, upstream }
    }
}

/// The two ends.
#[derive(Debug)]
pub struct Ends {
    /// Whose sidecar it goes through.
    pub client: Client,
    /// Who was asked.
    pub upstream: Client,
}

impl Ends {
    /// Asserts that bytes get through each way.
    ///
    /// # Panics
    /// When they do not.
    #[track_caller]
    pub fn expect_open(&mut self) {
        self.client.send("up");
        assert_eq!(self.upstream.bytes(2), b"up");
        self.upstream.send("down");
        assert_eq!(self.client.bytes(4), b"down");
    }
}

/// Ends a connection with a reset instead of FIN.
///
/// # Panics
/// When that cannot be set.
pub fn reset(end: Client) {
    sockopt::set_socket_linger(end.stream(), Some(Duration::ZERO)).expect("a socket");
    drop(end);
}

/// Asserts that a connection ends with a reset, not with FIN, which would look like the end of the conversation.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn expect_reset(end: &mut Client) {
    match end.rest() {
        Ok(rest) => panic!("FIN behind {:?}", String::from_utf8_lossy(&rest)),
        Err(error) => assert!(is_truncation(&error), "{error:#}"),
    }
}
