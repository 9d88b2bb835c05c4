//! Our message on a stream: HTTP/1.1 text becomes frames.

use std::{
    io,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream, ext::Protocol, server::SendResponse};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, uri};
use meshring_core::http::{
    body::BodyDecoder,
    chunked::Event,
    head::{BodyFraming, Method},
    http2::{self, RequestText, ResponseText},
};

use super::{client::Opener, incoming::Opened, stream::Broken, websocket};

/// The head that is to be sent as soon as it is known whether anything follows.
enum Head {
    Response(Response<()>),
    Request(Box<(Request<()>, Method, Option<[u8; 28]>)>),
}

/// An extended CONNECT (RFC 8441), which the text of our side is an upgrade for.
pub(super) struct Extended {
    /// Of a WebSocket: what the server must say to the key that was sent.
    accept: Option<[u8; 28]>,
}

impl Extended {
    /// Of the text that the request has become.
    pub(super) fn of(text: &[u8]) -> Self {
        let key = http2::request_from_text(text).and_then(|request| request.websocket_key());
        Self { accept: key.map(websocket::accept) }
    }

    /// Whether an answer may go on as it is. To its client a 2xx says that the tunnel is open (section 5), and a server that knows no
    /// upgrade means another thing; and only we can tell a server that has understood the key (RFC 6455 section 4.1).
    fn takes(&self, answer: &ResponseText<'_>) -> bool {
        match (answer.is_tunnel, &self.accept) {
            (false, _) => !(200..300).contains(&answer.status),
            (true, None) => true,
            (true, Some(accept)) => answer.websocket_accept() == Some(accept),
        }
    }
}

/// Where frames go.
enum Sink {
    /// A response is to begin.
    Respond(SendResponse<Bytes>),
    /// A request is to begin.
    Open(Box<Opener>),
    /// The body.
    Body(SendStream<Bytes>),
    /// Nothing can be sent any more.
    Done,
}

/// How the body of the text is framed.
enum Framing {
    /// A head comes first.
    Head,
    Coded(BodyDecoder),
    /// A tunnel: there is no text any more.
    Raw,
}

/// Our message.
pub(super) struct Outgoing {
    /// Of the request that is sent, or answered.
    method: Method,
    /// What is answered is an extended CONNECT.
    extended: Option<Extended>,
    sink: Sink,
    framing: Framing,
    head: Option<Head>,
    /// What is being sent, as far as the receiver has room.
    sending: Bytes,
    /// What is to be sent next: kept back until it is known whether it is the last.
    held: Bytes,
    trailers: Option<HeaderMap>,
    /// All of the message is in `sending` and `held`.
    is_whole: bool,
    opened: Option<Opened>,
}

impl Outgoing {
    pub(super) fn response(method: Method, extended: Option<Extended>, respond: SendResponse<Bytes>) -> Self {
        Self { extended, ..Self::new(method, Sink::Respond(respond)) }
    }

    pub(super) fn request(opener: Opener) -> Self {
        Self::new(Method::Other, Sink::Open(Box::new(opener)))
    }

    fn new(method: Method, sink: Sink) -> Self {
        Self {
            method,
            extended: None,
            sink,
            framing: Framing::Head,
            head: None,
            sending: Bytes::new(),
            held: Bytes::new(),
            trailers: None,
            is_whole: false,
            opened: None,
        }
    }

    /// What a request that was just opened waits for.
    pub(super) fn take_opened(&mut self) -> Option<Opened> {
        self.opened.take()
    }

    /// Sends `text` from `written` on; `written` says how far it is understood.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        text: &[u8],
        written: &mut usize,
    ) -> Poll<Result<(), Broken>> {
        loop {
            ready!(self.poll_send(cx))?;
            if self.is_whole {
                ready!(self.poll_end(cx))?;
                return Poll::Ready(Ok(()));
            }
            let rest = &text[*written..];
            if !rest.is_empty() {
                *written += self.take(rest)?;
                continue;
            }
            // Nothing says yet that this is the end.
            ready!(self.poll_begin(cx, false))?;
            if self.held.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.sending = std::mem::take(&mut self.held);
        }
    }

    /// Understands the next piece of text: how long it is.
    fn take(&mut self, text: &[u8]) -> Result<usize, Broken> {
        let step = match &mut self.framing {
            Framing::Head => return self.take_head(text),
            Framing::Raw => {
                self.keep(text);
                return Ok(text.len());
            }
            Framing::Coded(decoder) => decoder.decode(text).map_err(not_ours)?,
        };
        let is_done = match step.event {
            Event::Data(range) => {
                self.keep(&text[range]);
                false
            }
            Event::Trailer { name, value } => {
                let name = HeaderName::from_bytes(&text[name]).map_err(not_ours)?;
                let mut value = HeaderValue::from_bytes(&text[value]).map_err(not_ours)?;
                value.set_sensitive(!may_be_indexed(&name));
                self.trailers.get_or_insert_default().append(name, value);
                false
            }
            Event::End => true,
            Event::NeedInput if step.consumed == 0 => return Err(io::ErrorKind::InvalidData.into()),
            Event::NeedInput => false,
        };
        self.is_whole |= is_done || matches!(&self.framing, Framing::Coded(decoder) if decoder.is_done());
        Ok(step.consumed)
    }

    fn keep(&mut self, data: &[u8]) {
        self.sending = std::mem::replace(&mut self.held, Bytes::copy_from_slice(data));
    }

    fn take_head(&mut self, text: &[u8]) -> Result<usize, Broken> {
        match &mut self.sink {
            Sink::Respond(respond) => {
                let head = http2::response_from_text(text, self.method).ok_or(io::ErrorKind::InvalidData)?;
                let len = head.len;
                let response = response(&head)?;
                if (100..200).contains(&head.status) && !head.is_tunnel {
                    respond.send_informational(response)?;
                    return Ok(len);
                }
                if self.extended.as_ref().is_some_and(|extended| !extended.takes(&head)) {
                    // What follows is not for this client.
                    let mut refused = Response::new(());
                    *refused.status_mut() = StatusCode::BAD_GATEWAY;
                    self.head = Some(Head::Response(refused));
                    self.is_whole = true;
                    return Ok(text.len());
                }
                self.begin_body(head.framing, head.is_tunnel);
                self.head = Some(Head::Response(response));
                Ok(len)
            }
            Sink::Open(opener) => {
                let scheme = opener.scheme();
                let head = http2::request_from_text(text).ok_or(io::ErrorKind::InvalidData)?;
                let (len, method) = (head.len, Method::named(head.method));
                let accept = head.websocket_key().map(websocket::accept);
                let request = request(&head, scheme)?;
                self.begin_body(head.framing, head.protocol.is_some() || method == Method::Connect);
                self.head = Some(Head::Request(Box::new((request, method, accept))));
                Ok(len)
            }
            Sink::Body(_) | Sink::Done => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn begin_body(&mut self, framing: BodyFraming, is_tunnel: bool) {
        self.framing = if is_tunnel { Framing::Raw } else { Framing::Coded(BodyDecoder::new(framing)) };
        self.is_whole = matches!(&self.framing, Framing::Coded(decoder) if decoder.is_done());
    }

    /// Sends the head, if that is still to be done.
    fn poll_begin(&mut self, cx: &mut Context<'_>, ended: bool) -> Poll<Result<(), Broken>> {
        if self.head.is_none() {
            return Poll::Ready(Ok(()));
        }
        if let (Sink::Open(opener), Some(Head::Request(request))) = (&mut self.sink, &self.head) {
            ready!(opener.poll_ready(cx, request.0.extensions().get::<Protocol>().is_some()))?;
        }
        let head = self.head.take();
        self.sink = match (std::mem::replace(&mut self.sink, Sink::Done), head) {
            (Sink::Respond(mut respond), Some(Head::Response(response))) => {
                Sink::Body(respond.send_response(response, ended)?)
            }
            (Sink::Open(mut opener), Some(Head::Request(request))) => {
                let (request, method, accept) = *request;
                let protocol = request.extensions().get::<Protocol>().map(|name| name.as_str().as_bytes().to_vec());
                let (response, body) = opener.open(request, ended)?;
                self.method = method;
                self.opened = Some(Opened { response, method, tunnel: protocol.map(|protocol| (protocol, accept)) });
                Sink::Body(body)
            }
            _ => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        Poll::Ready(Ok(()))
    }

    /// Sends what is in `sending`, as fast as the receiver takes it.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while !self.sending.is_empty() {
            if self.head.is_some() {
                ready!(self.poll_begin(cx, false))?;
            }
            let Sink::Body(body) = &mut self.sink else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
            body.reserve_capacity(self.sending.len());
            let mut room = body.capacity();
            if room == 0 {
                room = match ready!(body.poll_capacity(cx)) {
                    Some(room) => room?,
                    None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                };
            }
            let part = self.sending.split_to(room.min(self.sending.len()));
            let is_last = self.is_whole && self.sending.is_empty() && self.held.is_empty() && self.trailers.is_none();
            body.send_data(part, is_last)?;
            if is_last {
                self.sink = Sink::Done;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends the rest of a whole message, and that it is whole.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.head.is_some() {
            let ended = self.held.is_empty() && self.trailers.is_none();
            ready!(self.poll_begin(cx, ended))?;
            if ended {
                self.sink = Sink::Done;
            }
        }
        if !self.held.is_empty() {
            self.sending = std::mem::take(&mut self.held);
        }
        ready!(self.poll_send(cx))?;
        if let Sink::Body(body) = &mut self.sink {
            match self.trailers.take() {
                Some(trailers) => body.send_trailers(trailers)?,
                None => body.send_data(Bytes::new(), true)?,
            }
            self.sink = Sink::Done;
        }
        Poll::Ready(Ok(()))
    }

    /// What goes out behind a body of an announced length.
    pub(super) fn put_trailers(&mut self, received: &HeaderMap) {
        let mut trailers = HeaderMap::with_capacity(received.len());
        for (name, value) in received {
            if http2::is_trailer(name.as_str().as_bytes()) {
                let mut value = value.clone();
                value.set_sensitive(!may_be_indexed(name));
                trailers.append(name, value);
            }
        }
        self.trailers = Some(trailers).filter(|trailers| !trailers.is_empty());
    }

    /// Ends our side of a tunnel.
    pub(super) fn end(&mut self) {
        if let (Framing::Raw, Sink::Body(body)) = (&self.framing, &mut self.sink) {
            // An error means that the stream is gone.
            let _ = body.send_data(Bytes::new(), true);
            self.sink = Sink::Done;
        }
    }

    /// Ends the stream with an error.
    pub(super) fn reset(&mut self, reason: Reason) {
        match &mut self.sink {
            Sink::Respond(respond) => respond.send_reset(reason),
            Sink::Body(body) => body.send_reset(reason),
            Sink::Open(_) | Sink::Done => {}
        }
        self.sink = Sink::Done;
    }

    /// Ready when the other side has reset the stream.
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let reset = match &mut self.sink {
            Sink::Respond(respond) => respond.poll_reset(cx),
            Sink::Body(body) => body.poll_reset(cx),
            Sink::Open(_) | Sink::Done => return Poll::Pending,
        };
        // An error is the end of the connection.
        reset.map(drop)
    }
}

/// What we write is ours: this never happens, and if it did, nothing of it must go out.
fn not_ours(error: impl std::error::Error + Send + Sync + 'static) -> Broken {
    Broken::Io(io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Fields that most messages have at most: room for more costs a larger allocation with each of them.
const FIELDS_USUAL: usize = 12;

fn fields_of<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Result<HeaderMap, Broken> {
    let mut map = HeaderMap::with_capacity(FIELDS_USUAL);
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name).map_err(not_ours)?;
        let mut value = HeaderValue::from_bytes(value).map_err(not_ours)?;
        value.set_sensitive(!may_be_indexed(&name));
        map.append(name, value);
    }
    Ok(map)
}

/// Whether a field may go into the table of compression. What the other hop has sent as never to be indexed must stay so (RFC
/// 7541 section 7.1.3), which the h2 crate does not tell: so it is done only to fields that are no secret anywhere.
fn may_be_indexed(name: &HeaderName) -> bool {
    use http::header as h;
    [
        h::ACCEPT,
        h::ACCEPT_ENCODING,
        h::ACCEPT_LANGUAGE,
        h::CACHE_CONTROL,
        h::CONTENT_ENCODING,
        h::CONTENT_LENGTH,
        h::CONTENT_TYPE,
        h::DATE,
        h::FORWARDED,
        h::SERVER,
        h::TE,
        h::TRAILER,
        h::USER_AGENT,
        h::VARY,
        h::VIA,
    ]
    .contains(name)
        || OWN_FIELDS.contains(&name.as_str())
}

/// What the proxy itself writes, and gRPC's fields.
const OWN_FIELDS: [&str; 9] = [
    "grpc-accept-encoding",
    "grpc-encoding",
    "grpc-status",
    "grpc-timeout",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-request-id",
];

fn response(head: &ResponseText<'_>) -> Result<Response<()>, Broken> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).map_err(not_ours)?;
    *response.headers_mut() = fields_of(head.fields())?;
    Ok(response)
}

fn request(head: &RequestText<'_>, scheme: uri::Scheme) -> Result<Request<()>, Broken> {
    let mut request = Request::new(());
    *request.method_mut() = http::Method::from_bytes(head.method).map_err(not_ours)?;
    let mut parts = uri::Parts::default();
    parts.authority = Some(uri::Authority::try_from(head.authority).map_err(not_ours)?);
    if let Some(path) = head.path {
        parts.scheme = Some(scheme);
        parts.path_and_query = Some(uri::PathAndQuery::try_from(path).map_err(not_ours)?);
    }
    *request.uri_mut() = Uri::from_parts(parts).map_err(not_ours)?;
    *request.headers_mut() = fields_of(head.fields())?;
    if let Some(protocol) = head.protocol {
        let protocol = std::str::from_utf8(protocol).map_err(not_ours)?;
        request.extensions_mut().insert(Protocol::from(protocol));
    }
    Ok(request)
}
