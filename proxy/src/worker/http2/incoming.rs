//! The other side's message on a stream, as HTTP/1.1 text.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{RecvStream, client::ResponseFuture};
use http::{HeaderMap, HeaderValue};
use meshring_core::http::{
    body::{CHUNK_END, LAST_CHUNK, LAST_CHUNK_BEFORE_TRAILERS, chunk_header},
    head::{BodyFraming, Method},
    http2::{self, Upgraded},
};

use super::stream::Broken;
use crate::worker::buffers::Input;

/// What an opened request waits for.
pub(super) struct Opened {
    pub(super) response: ResponseFuture,
    pub(super) method: Method,
    /// Of an extended CONNECT: its protocol, and what the client expects as Sec-WebSocket-Accept.
    pub(super) tunnel: Option<(Vec<u8>, Option<[u8; 28]>)>,
}

/// How the body is written as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    /// Nothing follows.
    None,
    /// As it is, so many bytes more.
    Length(u64),
    /// As it is: a tunnel.
    Raw,
    /// In chunks.
    Chunked,
}

/// Where the text comes from.
enum Source {
    /// The request is not open yet.
    Unopened,
    /// The head of the response is to come.
    Response(Opened),
    /// The body is on its way.
    Body(RecvStream),
    /// The request could not be opened.
    Failed,
    /// All is said.
    Done,
}

/// The text that comes.
pub(super) struct Incoming {
    /// A head, or what stands before, between and behind the data of chunks.
    text: Bytes,
    data: Bytes,
    /// What follows the data.
    after: &'static [u8],
    /// What would make the message look whole: it is told when END_STREAM has come, since a length that the frames belie must
    /// never look so (RFC 9113 section 8.1.1).
    withheld: Option<(Bytes, Bytes)>,
    /// Those of a body whose length is announced: its text has no place for them.
    trailers: Option<HeaderMap>,
    coding: Coding,
    source: Source,
}

impl Incoming {
    pub(super) fn request(text: Vec<u8>, body: RecvStream) -> Self {
        // What the head announces is told by the head: a body whose length is not known is chunked.
        let ended = body.is_end_stream();
        let coding = match http2::request_from_text(&text) {
            _ if ended => Coding::None,
            Some(request) if request.protocol.is_some() || request.path.is_none() => Coding::Raw,
            Some(request) => Coding::of(request.framing),
            None => Coding::None,
        };
        let source = if ended { Source::Done } else { Source::Body(body) };
        let mut incoming = Self { coding, source, text: text.into(), ..Self::unopened() };
        incoming.withhold();
        incoming
    }

    pub(super) fn unopened() -> Self {
        Self {
            text: Bytes::new(),
            data: Bytes::new(),
            after: b"",
            withheld: None,
            trailers: None,
            coding: Coding::None,
            source: Source::Unopened,
        }
    }

    pub(super) fn opened(&mut self, opened: Opened) {
        self.source = Source::Response(opened);
    }

    /// The request will not be opened any more, if it was not: whether that is so.
    pub(super) fn fail_unopened(&mut self) -> bool {
        let is_unopened = matches!(self.source, Source::Unopened);
        if is_unopened {
            self.source = Source::Failed;
        }
        is_unopened
    }

    /// What a stream on the other side may take along, see `trailers`.
    pub(super) fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }

    /// Moves what is there to `input`, as far as there is room and `at_most` allows; waits for the first of it.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        input: &mut Input,
        at_most: usize,
        bytes_max: usize,
    ) -> Poll<Result<usize, Broken>> {
        let mut moved = 0;
        loop {
            if moved == at_most {
                return Poll::Ready(Ok(moved));
            }
            match self.step(input, at_most - moved, bytes_max)? {
                Some(Some(count)) => {
                    moved += count;
                    continue;
                }
                Some(None) if moved == 0 => return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into())),
                Some(None) => return Poll::Ready(Ok(moved)),
                None => {}
            }
            match self.poll_next(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(moved)),
                // What came before it is told first; the error is met again.
                Poll::Pending | Poll::Ready(Err(_)) if moved > 0 => return Poll::Ready(Ok(moved)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Waits until there is something, or an end.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.text.is_empty() && self.data.is_empty() && self.after.is_empty() {
            ready!(self.poll_next(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Moves a piece: `None` where nothing is left, `Some(None)` where the input is full.
    fn step(&mut self, input: &mut Input, at_most: usize, bytes_max: usize) -> Result<Option<Option<usize>>, Broken> {
        if !self.text.is_empty() {
            return Ok(Some(input.append_from(&mut self.text, at_most, bytes_max)));
        }
        if !self.data.is_empty() {
            let moved = input.append_from(&mut self.data, at_most, bytes_max);
            if let (Some(count), Source::Body(body)) = (moved, &mut self.source) {
                // It is in a buffer of ours now, which is written before more is read: so the sender is as fast as the receiver.
                body.flow_control().release_capacity(count)?;
            }
            return Ok(Some(moved));
        }
        if !self.after.is_empty() {
            return Ok(Some(input.append_from(&mut self.after, at_most, bytes_max)));
        }
        Ok(None)
    }

    /// Brings something to move. False: there is nothing any more.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        loop {
            match &mut self.source {
                // Whoever opens it wakes the one who waits.
                Source::Unopened => return Poll::Pending,
                Source::Failed => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
                Source::Done => return Poll::Ready(Ok(false)),
                Source::Response(_) => {
                    ready!(self.poll_head(cx))?;
                    return Poll::Ready(Ok(true));
                }
                Source::Body(body) => match ready!(body.poll_data(cx)) {
                    Some(Ok(data)) if data.is_empty() => {}
                    Some(Ok(data)) => {
                        let len = data.len() as u64;
                        match &mut self.coding {
                            Coding::Chunked => {
                                self.text = Bytes::copy_from_slice(chunk_header(len).as_bytes());
                                self.after = CHUNK_END;
                            }
                            // More than was announced is an error of the h2 crate's.
                            Coding::Length(left) => *left = left.saturating_sub(len),
                            Coding::None | Coding::Raw => {}
                        }
                        self.data = data;
                        self.withhold();
                        if self.withheld.is_none() {
                            return Poll::Ready(Ok(true));
                        }
                    }
                    Some(Err(error)) => return Poll::Ready(Err(error.into())),
                    None => {
                        let trailers = ready!(body.poll_trailers(cx))?;
                        if let Some((text, data)) = self.withheld.take() {
                            (self.text, self.data) = (text, data);
                            self.trailers = trailers;
                            // The rest is moved, then the source is asked once more.
                            return Poll::Ready(Ok(true));
                        }
                        self.source = Source::Done;
                        if self.coding == Coding::Chunked {
                            self.text = last_chunk(trailers.as_ref())?;
                            return Poll::Ready(Ok(true));
                        }
                    }
                },
            }
        }
    }

    /// The head of a response, interim or final.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let Source::Response(opened) = &mut self.source else { return Poll::Ready(Ok(())) };
        let mut text = Vec::with_capacity(512);
        if let Poll::Ready(Some(interim)) = opened.response.poll_informational(cx)? {
            let (status, fields) = (interim.status().as_u16(), interim.headers());
            http2::response_to_text(&mut text, status, lines(fields), false, opened.method, None).map_err(malformed)?;
            self.text = text.into();
            return Poll::Ready(Ok(()));
        }
        let answer = ready!(Pin::new(&mut opened.response).poll(cx));
        let Source::Response(opened) = std::mem::replace(&mut self.source, Source::Failed) else {
            return Poll::Ready(Ok(()));
        };
        // From here on there is no future any more that could be asked again.
        let (head, body) = answer?.into_parts();
        let ended = body.is_end_stream();
        let status = head.status.as_u16();
        let is_tunnel = head.status.is_success() && (opened.tunnel.is_some() || opened.method == Method::Connect);
        let upgraded = opened
            .tunnel
            .as_ref()
            .map(|(protocol, accept)| Upgraded { protocol, accept: accept.as_ref().map(<[u8; 28]>::as_slice) });
        let framing = http2::response_to_text(&mut text, status, lines(&head.headers), ended, opened.method, upgraded)
            .map_err(malformed)?;
        self.coding = if is_tunnel { Coding::Raw } else { Coding::of(framing) };
        if ended && self.coding == Coding::Chunked {
            text.extend_from_slice(LAST_CHUNK);
        }
        self.source = if ended { Source::Done } else { Source::Body(body) };
        self.text = text.into();
        self.withhold();
        Poll::Ready(Ok(()))
    }

    /// Keeps back what would make the message look whole before it is.
    fn withhold(&mut self) {
        let Source::Body(body) = &self.source else { return };
        if self.coding == Coding::Length(0) && !body.is_end_stream() {
            self.withheld = Some((std::mem::take(&mut self.text), std::mem::take(&mut self.data)));
        }
    }
}

impl Coding {
    fn of(framing: BodyFraming) -> Self {
        match framing {
            BodyFraming::Chunked => Self::Chunked,
            BodyFraming::Length(length) => Self::Length(length),
            BodyFraming::UntilClose => Self::Raw,
            BodyFraming::None => Self::None,
        }
    }
}

fn malformed(error: http2::Malformed) -> Broken {
    Broken::Io(io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The fields of a message as the codec takes them.
pub(super) fn lines(fields: &HeaderMap) -> Lines<'_> {
    Lines { fields, next: fields.iter(), taken: 0 }
}

/// See [`lines`]. The map's own iterator cannot be cloned.
pub(super) struct Lines<'a> {
    fields: &'a HeaderMap,
    next: http::header::Iter<'a, HeaderValue>,
    taken: usize,
}

impl<'a> Iterator for Lines<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, value) = self.next.next()?;
        self.taken += 1;
        Some((name.as_str().as_bytes(), value.as_bytes()))
    }
}

impl Clone for Lines<'_> {
    fn clone(&self) -> Self {
        let mut next = self.fields.iter();
        // Cloned before it is used: there is nothing to pass over.
        next.by_ref().take(self.taken).for_each(drop);
        Self { fields: self.fields, next, taken: self.taken }
    }
}

fn last_chunk(trailers: Option<&HeaderMap>) -> Result<Bytes, Broken> {
    let Some(trailers) = trailers.filter(|trailers| !trailers.is_empty()) else {
        return Ok(Bytes::from_static(LAST_CHUNK));
    };
    let mut text = Vec::with_capacity(128);
    text.extend_from_slice(LAST_CHUNK_BEFORE_TRAILERS);
    http2::trailers_to_text(&mut text, lines(trailers)).map_err(malformed)?;
    text.extend_from_slice(CHUNK_END);
    Ok(text.into())
}
