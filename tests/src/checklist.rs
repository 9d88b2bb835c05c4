//! What the tests of the HTTP checklist share: a sidecar between a client whose every byte a test writes and an upstream
//! that records every byte it gets, and the two verdicts about a request. It is refused, which means a status, our stable
//! code, the end of the connection, nothing served of what stands behind it and nothing at all at the upstream; or it is
//! forwarded as exactly these bytes.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use meshring_core::{
    http::status::reason,
    table::model::{Action, DirectResponse},
};

use crate::{
    client::{Client, Response},
    proxy::{Driver, Proxy, ProxyBuilder},
    table::{World, rule},
    upstream::{Upstream, ok},
};

/// A request that nothing is wrong with, for the place behind one that is refused.
pub const BEHIND: &[u8] = b"GET /behind HTTP/1.1\r\nhost: echo\r\n\r\n";

/// One proxy. Its outbound listener routes `echo` to the upstream and answers for `ping` itself; its inbound listener leads
/// to the same upstream.
#[derive(Debug)]
pub struct Sidecar {
    /// Whatever the proxy forwards ends here.
    pub upstream: Upstream,
    /// The proxy.
    pub proxy: Proxy,
    ping: Mutex<Client>,
}

/// Bytes as a Rust literal, for messages about failed tests; long ones are cut.
pub struct Shown<'a>(pub &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LEN_MAX: usize = 600;
        let (shown, rest) = self.0.split_at(self.0.len().min(LEN_MAX));
        write!(f, "b\"{}\"", shown.escape_ascii())?;
        if rest.is_empty() { Ok(()) } else { write!(f, " and {} bytes more", rest.len()) }
    }
}

impl Sidecar {
    /// With an upstream that answers 200 with the target that it was asked for.
    #[must_use]
    pub fn new(driver: Driver) -> Self {
        Self::before(driver, Upstream::answering(|request| ok(request.target())))
    }

    /// With an upstream of one's own.
    #[must_use]
    pub fn before(driver: Driver, upstream: Upstream) -> Self {
        Self::configured(driver, upstream, |builder| builder, |_, _| ())
    }

    /// With further arguments of the proxy, and with further hosts or settings in the table.
    #[must_use]
    pub fn configured(
        driver: Driver,
        upstream: Upstream,
        configure: impl FnOnce(ProxyBuilder) -> ProxyBuilder,
        extend: impl FnOnce(&mut World, meshring_core::id::ClusterId),
    ) -> Self {
        let mut world = World::new();
        let cluster = world.cluster("echo", &[upstream.address()]);
        let action = world.forward(&[(cluster, 1)]);
        world.host("echo", vec![rule(action)]);
        world.host("ping", vec![rule(saying("pong"))]);
        extend(&mut world, cluster);
        let proxy = Proxy::alone_with(&world.snapshot(), |builder| {
            configure(builder.driver(driver).inbound(upstream.address()))
        });
        let ping = Mutex::new(proxy.connect());
        Self { upstream, proxy, ping }
    }

    /// Where the application enters the mesh.
    #[must_use]
    pub fn outbound(&self) -> SocketAddr {
        self.proxy.outbound()
    }

    /// Where the mesh reaches the application.
    #[must_use]
    pub fn inbound(&self) -> SocketAddr {
        self.proxy.inbound()[0]
    }

    /// Returns once the proxy's one worker has taken in all that was sent to it before: it answers in the order in which input
    /// arrives. What comes on a new connection takes it several turns (accept, start, read), so that it is asked several
    /// times.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn settle(&self) {
        const TURNS: usize = 3;
        let mut ping = self.ping.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..TURNS {
            ping.get("ping", "/").expect(200);
        }
    }

    /// Asserts that both listeners refuse a request.
    ///
    /// # Panics
    /// When one of them does not.
    #[track_caller]
    pub fn refuses(&self, request: impl AsRef<[u8]>, status: u16, code: &str) {
        for listener in [self.outbound(), self.inbound()] {
            self.refuses_at(listener, request.as_ref(), status, code);
        }
    }

    /// Asserts that a listener refuses a request.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn refuses_at(&self, listener: SocketAddr, request: &[u8], status: u16, code: &str) {
        let mut client = Client::connect(listener);
        client.send([request, BEHIND].concat());
        expect_refusal(&mut client, request, status, code);
    }

    /// Asserts that a request is refused with the same status and code when it arrives in two pieces, wherever it is cut, and
    /// when it arrives byte by byte.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn refuses_in_pieces(&self, request: impl AsRef<[u8]>, status: u16, code: &str) {
        let request = request.as_ref();
        for cut in 1..request.len() {
            let mut client = self.proxy.connect();
            client.send(&request[..cut]);
            self.settle();
            client.send([&request[cut..], BEHIND].concat());
            expect_refusal(&mut client, request, status, code);
        }
        let mut client = self.proxy.connect();
        for byte in request.iter().chain(BEHIND) {
            client.send([*byte]);
        }
        expect_refusal(&mut client, request, status, code);
    }

    /// Asserts that a request whose body is broken is answered with 400 wherever it is cut in two, and that the upstream,
    /// which may have the beginning of it by then, never gets an end: its connection breaks off and is not used again.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn aborts_in_pieces(&self, request: impl AsRef<[u8]>) {
        let request = request.as_ref();
        let begin = format!("meshring: {} (http1.", reason(400));
        let _ = self.upstream.take_bytes();
        let complete = self.upstream.received().len();
        let body = request.windows(4).position(|window| window == b"\r\n\r\n").expect("the end of a head") + 4;
        for cut in body..request.len() {
            let mut client = self.proxy.connect();
            client.send(&request[..cut]);
            self.settle();
            client.send([&request[cut..], BEHIND].concat());
            expect_last_answer(&mut client, request, 400, &begin);
        }
        self.upstream.wait_until_all_ended();
        assert_eq!(self.upstream.received().len(), complete, "{} was passed off as whole", Shown(request));
        for bytes in self.upstream.take_bytes() {
            assert!(!contains(&bytes, b"/behind"), "smuggled: {}", Shown(&bytes));
        }
    }

    /// Asserts that nobody has ever connected to the upstream, and that it would have been noticed: a request that nothing
    /// is wrong with still arrives, as the first one.
    ///
    /// # Panics
    /// When somebody has.
    #[track_caller]
    pub fn expect_untouched(&self) {
        self.upstream.catch_up();
        let bytes = self.upstream.take_bytes();
        assert_eq!(self.upstream.connections(), 0, "the upstream was reached: {}", Shown(&bytes.concat()));
        for listener in [self.outbound(), self.inbound()] {
            assert_eq!(Client::connect(listener).send(BEHIND).response().expect(200).text(), "/behind");
        }
        let targets: Vec<_> = self.upstream.received().iter().map(|request| request.target().to_owned()).collect();
        assert_eq!(targets, ["/behind", "/behind"]);
    }

    /// Sends a request to a listener and returns its response together with the exact bytes that the upstream got.
    ///
    /// # Panics
    /// When there is no response, or when the upstream got bytes on several connections.
    #[track_caller]
    pub fn exchange(&self, listener: SocketAddr, request: impl AsRef<[u8]>) -> (Response, Vec<u8>) {
        let response = Client::connect(listener).send(request).response();
        (response, self.received())
    }

    /// The exact bytes that the upstream got since this was asked last, with generated request ids replaced by `UUID`.
    ///
    /// # Panics
    /// When they came on several connections.
    #[track_caller]
    pub fn received(&self) -> Vec<u8> {
        self.upstream.catch_up();
        let mut connections = self.upstream.take_bytes();
        connections.retain(|bytes| !bytes.is_empty());
        assert!(connections.len() <= 1, "{} connections have brought bytes", connections.len());
        without_generated_ids(&connections.pop().unwrap_or_default())
    }

    /// Asserts that what the application sends is forwarded as exactly these bytes. `expected` is the request without the
    /// lines that the proxy adds; see [`own_lines`].
    ///
    /// # Panics
    /// When it is not answered with 200, or when other bytes arrive.
    #[track_caller]
    pub fn forwards(&self, request: impl AsRef<[u8]>, expected: impl AsRef<[u8]>) -> Response {
        let request = request.as_ref();
        let (response, received) = self.exchange(self.outbound(), request);
        expect_bytes(&received, &with_own_lines(expected.as_ref()), request);
        response.expect(200);
        response
    }
}

/// Whether `needle` occurs in `bytes`.
#[must_use]
pub fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

/// A response of the proxy itself.
#[must_use]
pub fn saying(text: &str) -> Action {
    Action::DirectResponse(Box::new(DirectResponse { status: 200, body: text.into() }))
}

/// Asserts that the next response is a refusal and the last thing on the connection.
///
/// # Panics
/// When it is not.
#[track_caller]
pub fn expect_refusal(client: &mut Client, request: &[u8], status: u16, code: &str) {
    expect_last_answer(client, request, status, &format!("meshring: {} ({code}): ", reason(status)));
}

#[track_caller]
fn expect_last_answer(client: &mut Client, request: &[u8], status: u16, begin: &str) {
    let shown = Shown(request);
    let response = match client.try_response("GET") {
        Ok(response) => response,
        Err(error) => panic!("no readable response to {shown}: {error:#}"),
    };
    let text = response.text();
    assert_eq!(response.status, status, "{shown} was answered with {text:?}");
    assert!(text.starts_with(begin) && text.ends_with('\n'), "{shown} was answered with {text:?} instead of {begin:?}");
    assert_eq!(response.fields.value("connection"), Some("close"), "{shown}");
    match client.rest() {
        Ok(rest) => assert!(rest.is_empty(), "behind the refusal of {shown} came {}", Shown(&rest)),
        Err(error) => panic!("the refusal of {shown} does not end with FIN: {error:#}"),
    }
}

/// Asserts that two messages are the same, byte by byte.
///
/// # Panics
/// When they are not.
#[track_caller]
pub fn expect_bytes(received: &[u8], expected: &[u8], sent: &[u8]) {
    assert!(
        received == expected,
        "sent:     {}\nreceived: {}\nexpected: {}",
        Shown(sent),
        Shown(received),
        Shown(expected)
    );
}

/// The lines that the outbound listener writes behind all others for an application that sends none of these fields.
#[must_use]
pub fn own_lines() -> String {
    "via: 1.1 meshring\r\nx-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: http\r\nx-request-id: UUID\r\n".into()
}

/// A request with [`own_lines`] at the end of its head.
///
/// # Panics
/// When its head has no end.
#[must_use]
pub fn with_own_lines(request: &[u8]) -> Vec<u8> {
    with_lines(request, &own_lines())
}

/// A message with further lines at the end of its head.
///
/// # Panics
/// When its head has no end.
#[must_use]
pub fn with_lines(message: &[u8], lines: &str) -> Vec<u8> {
    let end = message.windows(4).position(|window| window == b"\r\n\r\n").expect("the end of a head") + 2;
    [&message[..end], lines.as_bytes(), &message[end..]].concat()
}

/// Replaces the value of each `x-request-id` that is a random UUID (RFC 9562 section 5.4) by `UUID`: the one thing in a
/// forwarded message that nobody can know before.
#[must_use]
pub fn without_generated_ids(bytes: &[u8]) -> Vec<u8> {
    const NAME: &[u8] = b"x-request-id: ";
    const UUID_LEN: usize = 36;
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = rest.windows(NAME.len()).position(|window| window == NAME) {
        let (before, value) = rest.split_at(at + NAME.len());
        out.extend_from_slice(before);
        rest = value;
        if value.get(..UUID_LEN).is_some_and(is_random_uuid) {
            out.extend_from_slice(b"UUID");
            rest = &value[UUID_LEN..];
        }
    }
    out.extend_from_slice(rest);
    out
}

fn is_random_uuid(text: &[u8]) -> bool {
    text.iter().enumerate().all(|(at, &byte)| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        14 => byte == b'4',
        19 => matches!(byte, b'8' | b'9' | b'a' | b'b'),
        _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
    })
}

/// `POST / HTTP/1.1` for `echo` with these further lines.
#[must_use]
pub fn with(lines: impl AsRef<[u8]>) -> Vec<u8> {
    [b"POST / HTTP/1.1\r\nhost: echo\r\n", lines.as_ref(), b"\r\n"].concat()
}

/// A chunked request with this body, as it is.
#[must_use]
pub fn chunked(body: impl AsRef<[u8]>) -> Vec<u8> {
    [&with("transfer-encoding: chunked\r\n"), body.as_ref()].concat()
}

/// Two sidecars in a row: the outbound listener of one, the inbound listener of the other, then the upstream.
#[derive(Debug)]
pub struct Chain {
    /// The sidecar of the application that asks; its upstream is the other sidecar.
    pub first: Proxy,
    /// The sidecar of the one that is asked.
    pub second: Sidecar,
}

impl Chain {
    /// With an upstream that answers 200 with the target that it was asked for.
    #[must_use]
    pub fn new(driver: Driver) -> Self {
        Self::before(driver, Upstream::answering(|request| ok(request.target())))
    }

    /// With an upstream of one's own.
    #[must_use]
    pub fn before(driver: Driver, upstream: Upstream) -> Self {
        let second = Sidecar::before(driver, upstream);
        let first = Proxy::alone(&World::with_echo(second.inbound()), driver);
        Self { first, second }
    }

    /// Asserts that what the application sends arrives at the upstream as exactly these bytes, but for the lines that the
    /// two sidecars add.
    ///
    /// # Panics
    /// When it is not answered with 200, or when other bytes arrive.
    #[track_caller]
    pub fn forwards(&self, request: impl AsRef<[u8]>, expected: impl AsRef<[u8]>) -> Response {
        let (request, expected) = (request.as_ref(), expected.as_ref());
        let response = self.first.connect().send(request).response();
        let received = self.second.received();
        expect_bytes(&received, &with_lines_of_two(expected), request);
        response.expect(200);
        response
    }
}

/// A request with the lines of two sidecars. What each of them writes anew for its hop (TE, Connection, the framing) stands
/// between the first one's Via and the second one's. The second one does not trust its peer: it joins its own address to
/// X-Forwarded-For and replaces the rest.
fn with_lines_of_two(request: &[u8]) -> Vec<u8> {
    const OF_THIS_HOP: [&[u8]; 4] = [b"te: ", b"connection: ", b"content-length: ", b"transfer-encoding: "];
    let end = request.windows(4).position(|window| window == b"\r\n\r\n").expect("the end of a head") + 2;
    let mut at = end;
    let lines: Vec<_> = request[..end].split_inclusive(|&byte| byte == b'\n').collect();
    for line in lines.iter().rev().take_while(|line| OF_THIS_HOP.iter().any(|name| line.starts_with(name))) {
        at -= line.len();
    }
    let own = "via: 1.1 meshring\r\nx-forwarded-for: 127.0.0.1, 127.0.0.1\r\nx-forwarded-proto: http\r\nx-request-id: UUID\r\n";
    [&request[..at], b"via: 1.1 meshring\r\n", &request[at..end], own.as_bytes(), &request[end..]].concat()
}
