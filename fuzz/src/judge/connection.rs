//! hyper's server and hyper's client over a connection that is a buffer.

use std::{
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use http_body_util::{BodyExt, Empty};
use hyper::{
    HeaderMap, Request, Response,
    body::{Body, Bytes, Incoming},
    client, ext,
    header::{HeaderName, HeaderValue},
    rt::{Read, ReadBufCursor, Write},
    server,
    service::service_fn,
    upgrade,
};

use super::{Content, FIELDS_MAX, Message};

/// Polls that any exchange is done in; more is a hang.
const POLLS_MAX: usize = 100_000;

/// The other end of a connection: what it says, in pieces that wait for so many requests each, and then its FIN.
#[derive(Debug, Default)]
struct Peer {
    pieces: Vec<(usize, Vec<u8>)>,
    read: usize,
    /// Heads that it was sent.
    asked: usize,
    written: Vec<u8>,
}

impl Peer {
    fn saying(pieces: &[(usize, &[u8])]) -> Self {
        let pieces = pieces.iter().rev().map(|&(asked, bytes)| (asked, bytes.to_vec())).collect();
        Self { pieces, ..Self::default() }
    }

    /// What it has not said yet.
    fn rest(&self) -> Vec<u8> {
        let all: Vec<u8> = self.pieces.iter().rev().flat_map(|(_, bytes)| bytes).copied().collect();
        all[self.read..].to_vec()
    }
}

impl Read for Peer {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, mut room: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.pieces.last().is_some_and(|(_, bytes)| this.read == bytes.len()) {
            this.pieces.pop();
            this.read = 0;
        }
        match this.pieces.last() {
            None => Poll::Ready(Ok(())),
            Some((asked, _)) if *asked > this.asked => Poll::Pending,
            Some((_, bytes)) => {
                let len = room.remaining().min(bytes.len() - this.read);
                room.put_slice(&bytes[this.read..this.read + len]);
                this.read += len;
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl Write for Peer {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.written.extend_from_slice(bytes);
        self.asked = self.written.windows(4).filter(|end| end == b"\r\n\r\n").count();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Reads a body to its end.
async fn content(mut body: Incoming) -> Option<Content> {
    let mut content = Content::default();
    while let Some(frame) = body.frame().await {
        match frame.ok()?.into_data() {
            Ok(data) => content.data.extend_from_slice(&data),
            Err(frame) => {
                let trailers = frame.into_trailers().expect("data or trailers");
                let field = |(name, value): (&HeaderName, &HeaderValue)| {
                    (name.as_str().as_bytes().to_vec(), value.as_bytes().to_vec())
                };
                content.trailers.extend(trailers.iter().map(field));
            }
        }
    }
    Some(content)
}

/// The requests that a server finds in the bytes, one after the other, until it refuses one or they are over. It answers each of
/// them with 405, so that it goes on behind a CONNECT, too.
pub fn requests(bytes: &[u8]) -> Vec<Message> {
    let seen = Mutex::new(Vec::new());
    let service = service_fn(|request: Request<Incoming>| async {
        let (head, body) = request.into_parts();
        let length = body.size_hint().exact();
        let start = [head.method.to_string(), head.uri.to_string(), format!("{:?}", head.version)];
        let content = content(body).await;
        seen.lock().expect("not poisoned").push(Message { start, fields: head.headers, length, content });
        let refused = Response::builder().status(405).body(Empty::<Bytes>::new()).expect("a response");
        Ok::<_, Infallible>(refused)
    });
    let mut server = server::conn::http1::Builder::new();
    server.max_headers(FIELDS_MAX).header_read_timeout(None).half_close(true).auto_date_header(false);
    {
        let mut connection = pin!(server.serve_connection(Peer::saying(&[(0, bytes)]), service));
        let mut context = Context::from_waker(Waker::noop());
        let is_over = (0..POLLS_MAX).any(|_| connection.as_mut().poll(&mut context).is_ready());
        assert!(is_over, "the server waits for ever");
    }
    seen.into_inner().expect("not poisoned")
}

/// What a client makes of a server's bytes.
#[derive(Debug, Default)]
pub struct Answered {
    /// Interim responses: status and fields.
    pub interim: Vec<(u16, HeaderMap)>,
    /// The response, if it was acceptable.
    pub response: Option<Message>,
    /// After 101, or a 2xx to CONNECT: what follows on the connection, which is no message.
    pub tunnelled: Option<Vec<u8>>,
    /// The response to a second request on the same connection.
    pub next: Option<Message>,
}

/// What the server of [`answered`] says second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next<'a> {
    /// Nothing: it closes.
    Close,
    /// This, with no further request: the final response behind an interim one, or bytes of a tunnel.
    AtOnce(&'a [u8]),
    /// This, to a second request.
    Answer(&'a [u8]),
}

/// What a client makes of these bytes as the response to a request with this method, and of what comes next.
pub fn answered(method: &str, bytes: &[u8], next: Next<'_>) -> Answered {
    let peer = match next {
        Next::Close => Peer::saying(&[(1, bytes)]),
        Next::AtOnce(next) => Peer::saying(&[(1, &[bytes, next].concat())]),
        Next::Answer(next) => Peer::saying(&[(1, bytes), (2, next)]),
    };
    let seen = Arc::new(Mutex::new(Answered::default()));
    let mut context = Context::from_waker(Waker::noop());
    let mut client = client::conn::http1::Builder::new();
    client.max_headers(FIELDS_MAX);
    let handshake = pin!(client.handshake(peer));
    let Poll::Ready(Ok((sender, connection))) = handshake.poll(&mut context) else { panic!("nothing is waited for") };
    let mut connection = pin!(connection.with_upgrades());
    let mut exchange = pin!(exchange(sender, method, matches!(next, Next::Answer(_)), seen.clone()));
    let mut is_connection_over = false;
    let is_over = (0..POLLS_MAX).any(|_| {
        is_connection_over = is_connection_over || connection.as_mut().poll(&mut context).is_ready();
        exchange.as_mut().poll(&mut context).is_ready()
    });
    assert!(is_over, "the client waits for ever");
    std::mem::take(&mut *seen.lock().expect("not poisoned"))
}

/// One request, or two; ends early where the connection does.
async fn exchange(
    mut sender: client::conn::http1::SendRequest<Empty<Bytes>>,
    method: &str,
    is_asked_again: bool,
    seen: Arc<Mutex<Answered>>,
) -> Option<()> {
    let target = if method == "CONNECT" { "a:80" } else { "/" };
    let mut request = Request::builder().method(method).uri(target).body(Empty::new()).expect("a request");
    let interim = seen.clone();
    ext::on_informational(&mut request, move |head| {
        interim.lock().expect("not poisoned").interim.push((head.status().as_u16(), head.headers().clone()));
    });
    let mut response = sender.send_request(request).await.ok()?;
    let status = response.status().as_u16();
    if status == 101 || method == "CONNECT" && response.status().is_success() {
        let upgraded = upgrade::on(&mut response).await.ok()?.downcast::<Peer>().expect("what it was given");
        let rest = [&upgraded.read_buf[..], &upgraded.io.rest()].concat();
        seen.lock().expect("not poisoned").tunnelled = Some(rest);
    }
    let first = message(response).await;
    seen.lock().expect("not poisoned").response = Some(first);
    if is_asked_again {
        sender.ready().await.ok()?;
        let request = Request::builder().uri("/next").body(Empty::new()).expect("a request");
        let second = message(sender.send_request(request).await.ok()?).await;
        seen.lock().expect("not poisoned").next = Some(second);
    }
    Some(())
}

async fn message(response: Response<Incoming>) -> Message {
    let (head, body) = response.into_parts();
    let start = [format!("{:?}", head.version), head.status.as_str().to_owned(), String::new()];
    let length = body.size_hint().exact();
    Message { start, fields: head.headers, length, content: content(body).await }
}
