//! Frames of an HTTP/2 client, whatever they are: nothing panics or goes on forever, and each request that the frames make
//! becomes text that the strict parser judges.
#![no_main]

use std::{
    cell::Cell,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use h2::{
    Reason, RecvStream, SendStream,
    ext::Protocol,
    server::{Builder, Connection},
};
use http::{HeaderMap, Response, request::Parts};
use libfuzzer_sys::fuzz_target;
use meshring_core::http::{
    Bounds, Fields, NoEdits, RequestOut,
    http2::{PREFACE, Pseudo, Refused, begins_preface, request_from_text, request_to_text, trailers_to_text},
    request, request_head,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

fuzz_target!(|data: &[u8]| {
    // In pieces of so many bytes; the client has sent its preface.
    let [piece, data @ ..] = data else { return };
    let input = [PREFACE, data].concat();
    assert!(begins_preface(&input));
    let client = Client { unread: Cell::new(&input), is_closed: Cell::new(false) };
    serve(Wire { client: &client, piece: usize::from(*piece) * 16 + 1, is_due: true });
});

/// A client that takes whatever comes.
struct Client<'a> {
    /// What it sends and nobody has read yet.
    unread: Cell<&'a [u8]>,
    /// Whether it closes then.
    is_closed: Cell<bool>,
}

/// The connection to it, which waits after each piece: the crate hands requests out only when it has to wait, and none of
/// a connection that has ended.
struct Wire<'a> {
    client: &'a Client<'a>,
    piece: usize,
    is_due: bool,
}

impl AsyncRead for Wire<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let unread = self.client.unread.get();
        let is_end = unread.is_empty();
        if is_end && self.client.is_closed.get() {
            return Poll::Ready(Ok(()));
        }
        self.is_due = !self.is_due && !is_end;
        if !self.is_due {
            return Poll::Pending;
        }
        let (read, rest) = unread.split_at(unread.len().min(self.piece).min(buf.remaining()));
        buf.put_slice(read);
        self.client.unread.set(rest);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// With the limits of the proxy.
fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(64 * 1024)
        .initial_connection_window_size(512 * 1024)
        .max_concurrent_streams(100)
        .max_header_list_size(64 * 1024)
        .max_send_buffer_size(16 * 1024)
        .max_concurrent_reset_streams(50)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(Some(128))
        .enable_connect_protocol();
    builder
}

type Data = &'static [u8];

/// A request whose body is being read.
struct Stream {
    body: RecvStream,
    /// Whether its data has ended.
    ended: bool,
    /// The response's body, which is kept until the request's is over.
    _response: Option<SendStream<Data>>,
}

fn serve(wire: Wire<'_>) {
    let client = wire.client;
    let mut cx = Context::from_waker(Waker::noop());
    let polls_max = 16 * (client.unread.get().len() + 64);
    let mut handshake = pin!(builder().handshake::<_, Data>(wire));
    let mut polls = 0;
    let mut connection = loop {
        match handshake.as_mut().poll(&mut cx) {
            Poll::Ready(Ok(connection)) => break connection,
            Poll::Ready(Err(_)) => return,
            Poll::Pending => {}
        }
        polls += 1;
        assert!(polls < polls_max, "the handshake does not end");
    };
    let mut streams = Vec::new();
    // Rounds in which nothing happens: the first one may be the wire's turn to wait, after more the client closes.
    let mut idle = 0;
    loop {
        let unread = client.unread.get().len();
        let mut is_busy = false;
        match accept(&mut connection, &mut cx) {
            Poll::Ready(None) => break,
            Poll::Ready(Some(stream)) => {
                is_busy = true;
                streams.extend(stream);
            }
            Poll::Pending => {}
        }
        streams.retain_mut(|stream: &mut Stream| stream.read(&mut cx, &mut is_busy));
        is_busy |= client.unread.get().len() < unread;
        idle = if is_busy { 0 } else { idle + 1 };
        if idle > 2 {
            assert!(client.unread.get().is_empty(), "what the client sends is not read");
            client.is_closed.set(true);
        }
        polls += 1;
        assert!(polls < polls_max, "the connection does not end");
    }
    drop(streams);
}

/// The next request, if it can be served.
fn accept(connection: &mut Connection<Wire<'_>, Data>, cx: &mut Context<'_>) -> Poll<Option<Option<Stream>>> {
    let (request, mut respond) = match connection.poll_accept(cx) {
        Poll::Ready(Some(Ok(accepted))) => accepted,
        Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(None),
        Poll::Pending => return Poll::Pending,
    };
    let (parts, body) = request.into_parts();
    let ended = body.is_end_stream();
    let status = match judge(&parts, ended) {
        Ok(()) => 200,
        Err(Refused::Status(refusal)) => refusal.status(),
        Err(Refused::Malformed(malformed)) => {
            assert!(!malformed.code().is_empty());
            respond.send_reset(Reason::PROTOCOL_ERROR);
            return Poll::Ready(Some(None));
        }
    };
    let response = Response::builder().status(status).body(()).expect("a response");
    let mut sending = respond.send_response(response, false).ok();
    if let Some(sending) = &mut sending {
        // Fails if the client has reset the stream already.
        let _ = sending.send_data(b"what there is to say", true);
    }
    Poll::Ready(Some(Some(Stream { body, ended: false, _response: sending })))
}

/// As the proxy does it.
fn judge(parts: &Parts, ended: bool) -> Result<(), Refused> {
    let protocol = parts.extensions.get::<Protocol>().map(|protocol| protocol.as_str().as_bytes());
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    let is_connect = parts.method == http::Method::CONNECT && protocol.is_none();
    // The crate drops the scheme where there is no authority.
    let default = (authority.is_none() && !is_connect).then_some(&b"http"[..]);
    let pseudo = Pseudo {
        method: parts.method.as_str().as_bytes(),
        scheme: parts.uri.scheme_str().map(str::as_bytes).or(default),
        authority,
        path: parts.uri.path_and_query().map(|path| path.as_str().as_bytes()),
        protocol,
    };
    let mut text = Vec::new();
    request_to_text(&mut text, &pseudo, lines(&parts.headers).into_iter(), ended, [7; 16])?;
    assert_eq!(text.windows(4).filter(|end| end == b"\r\n\r\n").count(), 1);
    let mut fields = Fields::new();
    let head = request::parse(&text, &mut fields, Bounds::FIRST_HOP)?.expect("a whole head");
    assert_eq!(head.len, text.len());
    assert!(fields.len() <= parts.headers.len() + 5);
    let mut out = Vec::new();
    request_head(&mut out, &text, &head, &fields, &RequestOut::new(&head, &NoEdits));
    assert!(request_from_text(&out).is_some_and(|again| again.len == out.len()));
    Ok(())
}

fn lines(fields: &HeaderMap) -> Vec<(&[u8], &[u8])> {
    fields.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())).collect()
}

impl Stream {
    /// Reads on; whether there may be more.
    fn read(&mut self, cx: &mut Context<'_>, is_busy: &mut bool) -> bool {
        while !self.ended {
            match self.body.poll_data(cx) {
                Poll::Pending => return true,
                Poll::Ready(Some(Ok(data))) => {
                    *is_busy = true;
                    let released = self.body.flow_control().release_capacity(data.len());
                    assert!(released.is_ok(), "credit for what has come");
                }
                Poll::Ready(Some(Err(_))) => return false,
                Poll::Ready(None) => self.ended = true,
            }
        }
        match self.body.poll_trailers(cx) {
            Poll::Pending => true,
            Poll::Ready(trailers) => {
                *is_busy = true;
                if let Ok(Some(trailers)) = trailers {
                    // Malformed ones end the stream; there is nothing else to see.
                    let _ = trailers_to_text(&mut Vec::new(), lines(&trailers).into_iter());
                }
                false
            }
        }
    }
}
