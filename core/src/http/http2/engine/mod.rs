//! An HTTP/2 connection without its I/O: bytes in, streams of HTTP/1.1 text out, and back into bytes.
//!
//! Whoever owns the connection hands over what it reads ([`Engine::receive`]) and writes what has come into `out`. Each
//! stream has a key; its message is read piece by piece ([`Engine::piece`], [`Engine::consume`]), and ours is sent as far as
//! windows and `out` have room ([`Engine::room`], [`Engine::data`]). Nothing is queued per stream on the way out: who has to wait keeps
//! its bytes. Who waits is told by [`Wake::wake`], possibly too often.

mod control;
mod data;
mod inbox;
mod receive;
mod sections;
mod send;
mod streams;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

pub use self::inbox::Piece;
pub use self::send::encode_field;
pub use self::streams::StreamKey;

use self::streams::{Sending, Streams};
use super::super::error::Refusal;
use super::super::head::Method;
use super::code::{Code, ConnectionError, Fault};
use super::fields::FieldList;
use super::frame::{self, STREAM_MAX, WINDOW_DEFAULT, Wishes, kind, setting};
use super::{Malformed, PREFACE, Shape, hpack};
use crate::limits::{
    BUFFER_BYTES, HTTP2_CONNECTION_WINDOW_BYTES, HTTP2_HEADER_LIST_BYTES_ENDURED, HTTP2_HEADER_LIST_BYTES_MAX,
    HTTP2_LOCAL_RESETS_MAX, HTTP2_RESETS_REMEMBERED_MAX, HTTP2_STREAM_WINDOW_BYTES, HTTP2_STREAMS_MAX,
    HTTP2_UPDATES_FOR_A_USELESS_FRAME, HTTP2_UPSTREAM_WINDOW_BYTES, HTTP2_USELESS_FRAMES_MAX,
};

/// Who waits for a stream.
pub trait Wake {
    /// Something has happened to it. Must not call the engine.
    fn wake(&self);
}

impl Wake for () {
    fn wake(&self) {}
}

impl<T: Wake> Wake for Option<T> {
    fn wake(&self) {
        if let Some(waiter) = self {
            waiter.wake();
        }
    }
}

/// Which side of the connection is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The other side makes requests.
    Server,
    /// We do.
    Client,
}

/// Memory that decoding needs, for all connections of a thread together.
#[derive(Debug, Default)]
pub struct Scratch {
    fields: FieldList,
    strings: Vec<u8>,
    /// Random bytes for Sec-WebSocket-Key, see [`request_to_text`](super::request_to_text).
    pub key: [u8; 16],
}

/// What a request upstream was that asked for a tunnel by extended CONNECT.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// Its `:protocol`.
    pub protocol: Vec<u8>,
    /// What the client expects as Sec-WebSocket-Accept.
    pub accept: Option<[u8; 28]>,
}

/// What is told about the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request, for whoever serves it. It has been judged as far as HTTP/2 goes.
    Opened(Opening),
    /// A request that was refused with RST_STREAM, or a response or trailers on whose account the stream was.
    Malformed(Malformed),
    /// A request that was ended for want of memory, see [`Engine::crowd`].
    Crowded,
}

/// A request of the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Its stream.
    pub key: StreamKey,
    /// What it has become. Of one that is to be refused nothing can be said but that it is none of these.
    pub shape: Result<Shape, Refusal>,
}

/// How much can be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// So many bytes of data, at least one; or a head.
    Bytes(usize),
    /// None: whoever waits will be woken.
    Wait,
    /// Nothing can be sent any more.
    Gone,
}

/// Where reading of the connection is.
#[derive(Clone, Copy, Debug)]
enum Reading {
    /// So many bytes of the preface have come.
    Preface(usize),
    Frame,
    /// The length of a DATA frame's padding is next, then so many bytes.
    Padded {
        stream: u32,
        len: usize,
        ends: bool,
    },
    /// The payload of a DATA frame, and its padding.
    Data {
        key: Option<StreamKey>,
        len: usize,
        padding: usize,
        ends: bool,
    },
}

/// A header block that goes on in CONTINUATION.
#[derive(Debug)]
struct Block {
    stream: u32,
    ends: bool,
    frames: usize,
    bytes: Vec<u8>,
}

/// How far the end of the connection is announced (RFC 9113 section 6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// GOAWAY with the largest id, and a PING by which a round trip is measured.
    Announced,
    /// GOAWAY with the id of the last stream that was taken.
    Final,
}

/// The payload of the PING that [`Leaving::Announced`] goes with, and of any other.
const LEAVING: [u8; 8] = *b"leaving!";
const ALIVE: [u8; 8] = *b"alive? \n";

/// One side of a connection. `T`: who waits for a stream.
#[derive(Debug)]
pub struct Engine<T> {
    role: Role,
    reading: Reading,
    /// A frame of which not all has come.
    partial: Vec<u8>,
    block: Option<Block>,
    decoder: hpack::Decoder,
    streams: Streams<T>,
    /// Streams that the protocol has not done with.
    active: usize,
    /// The last one of the other side's.
    last_id: u32,
    /// Ids that the other side has passed over, first and last: they can never be used (RFC 9113 section 5.1.1).
    passed_over: Vec<(u32, u32)>,
    /// The next one of ours.
    next_id: u32,
    wishes: Wishes,
    has_settings: bool,
    send_window: i64,
    receive_window: u32,
    receive_window_max: u32,
    credit: u32,
    /// What we have reset, so that late frames are no error.
    resets: VecDeque<u32>,
    leaving: Leaving,
    /// The last stream that the other side will process, once it has said GOAWAY.
    last_processed: Option<u32>,
    has_pong: bool,
    events: VecDeque<Event>,
    /// Bytes that wait in the streams.
    waiting_bytes: usize,
    /// What was of no use lately, in WINDOW_UPDATEs.
    useless_updates: u32,
    /// WINDOW_UPDATE frames that our data accounts for.
    updates_due: u32,
    local_resets: usize,
    is_crowded: bool,
    /// Calls of [`forgive`](Self::forgive): about half a minute each.
    age: u32,
    opened: u64,
    premature_resets: u64,
    /// The other side sends nothing more.
    has_ended: bool,
    failed: Option<ConnectionError>,
    /// The streams in so many places do not know of an end yet, see [`tell`](Self::tell).
    untold: usize,
}

impl<T: Wake + Default> Engine<T> {
    /// A new connection; what is to be sent first goes to `out`.
    #[must_use]
    pub fn new(role: Role, out: &mut Vec<u8>) -> Self {
        let list = (setting::MAX_HEADER_LIST_SIZE, HTTP2_HEADER_LIST_BYTES_MAX);
        let window = (setting::INITIAL_WINDOW_SIZE, HTTP2_STREAM_WINDOW_BYTES);
        // There are many connections of clients, of which most are idle, and few to upstreams, which carry everybody's requests.
        let (receive_window_max, kept_max) = match role {
            Role::Server => {
                let streams = (setting::MAX_CONCURRENT_STREAMS, HTTP2_STREAMS_MAX);
                frame::write_settings(out, &[streams, window, list, (setting::ENABLE_CONNECT_PROTOCOL, 1)]);
                (HTTP2_CONNECTION_WINDOW_BYTES, 8)
            }
            Role::Client => {
                out.extend_from_slice(PREFACE);
                frame::write_settings(out, &[(setting::ENABLE_PUSH, 0), window, list]);
                (HTTP2_UPSTREAM_WINDOW_BYTES, 64)
            }
        };
        frame::write_number(out, kind::WINDOW_UPDATE, 0, receive_window_max - WINDOW_DEFAULT);
        Self {
            role,
            reading: if role == Role::Server { Reading::Preface(0) } else { Reading::Frame },
            partial: Vec::new(),
            block: None,
            decoder: hpack::Decoder::new(4_096).with_list_max(HTTP2_HEADER_LIST_BYTES_ENDURED),
            streams: Streams::new(kept_max),
            active: 0,
            last_id: 0,
            passed_over: Vec::new(),
            next_id: 1,
            wishes: Wishes::default(),
            has_settings: false,
            send_window: i64::from(WINDOW_DEFAULT),
            receive_window: receive_window_max,
            receive_window_max,
            credit: 0,
            resets: VecDeque::new(),
            leaving: Leaving::No,
            last_processed: None,
            has_pong: false,
            events: VecDeque::new(),
            waiting_bytes: 0,
            useless_updates: 0,
            updates_due: 0,
            local_resets: 0,
            is_crowded: false,
            age: 0,
            opened: 0,
            premature_resets: 0,
            has_ended: false,
            failed: None,
            untold: 0,
        }
    }

    /// What has happened, in its order.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether the other side's SETTINGS have come: it speaks HTTP/2.
    #[must_use]
    pub fn has_settings(&self) -> bool {
        self.has_settings
    }

    /// Whether the other side takes extended CONNECT (RFC 8441 section 3), as far as it has said.
    #[must_use]
    pub fn takes_extended_connect(&self) -> bool {
        self.wishes.takes_extended_connect
    }

    /// Streams that the other side wants us to have at most.
    #[must_use]
    pub fn max_concurrent_streams(&self) -> usize {
        self.wishes.max_concurrent_streams as usize
    }

    /// Whether a stream may be opened.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.failed.is_none()
            && self.last_processed.is_none()
            && self.next_id <= STREAM_MAX
            && self.leaving == Leaving::No
    }

    /// Whether nobody has a stream of it.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.streams.len() == 0
    }

    /// How many streams somebody has.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// The highest id of a stream that the other side has opened; 0 for none.
    #[must_use]
    pub fn last_id(&self) -> u32 {
        self.last_id
    }

    /// Whether all is said: its end was announced, and no stream is left, or it has failed.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let is_leaving = self.leaving == Leaving::Final || self.last_processed.is_some() || self.has_ended;
        self.has_failed() || is_leaving && self.is_idle()
    }

    /// Whether it has ended, for whatever reason.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// The other side's error that has ended it.
    #[must_use]
    pub fn failure(&self) -> Option<ConnectionError> {
        self.failed.filter(|error| error.code != Code::NO_ERROR)
    }

    /// Whether the other side sends nothing more, and waits for what it has asked for.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.has_ended && self.failed.is_none()
    }

    /// Bytes that wait for those who read streams, and what has come of a frame or a header section.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        let block = self.block.as_ref().map_or(0, |block| block.bytes.capacity());
        self.waiting_bytes + self.partial.capacity() + block
    }

    /// Says whether memory for what waits in streams is used up. Then a request ends with ENHANCE_YOUR_CALM of which more comes than one
    /// frame that nobody has read: windows alone would let the streams of many connections have as much as there are of them.
    pub fn crowd(&mut self, is_crowded: bool) {
        self.is_crowded = is_crowded;
    }

    /// Whether the answer to [`ping`](Self::ping) has come since the last call.
    pub fn take_pong(&mut self) -> bool {
        std::mem::take(&mut self.has_pong)
    }

    /// Asks the other side whether it is still there.
    pub fn ping(&mut self, out: &mut Vec<u8>) {
        frame::write_ping(out, 0, ALIVE);
    }

    /// To be called now and then: what is odd only in a crowd is forgiven.
    pub fn forgive(&mut self) {
        self.useless_updates = 0;
        self.local_resets /= 2;
        self.age = self.age.wrapping_add(1);
    }

    /// Begins to end the connection: new streams are taken for one more round trip (RFC 9113 section 6.8).
    pub fn leave(&mut self, out: &mut Vec<u8>) {
        if self.leaving == Leaving::No && self.failed.is_none() {
            self.leaving = Leaving::Announced;
            frame::write_goaway(out, STREAM_MAX, Code::NO_ERROR, "");
            frame::write_ping(out, 0, LEAVING);
        }
    }

    /// Ends the connection for an error, the other side's or that it is gone. Nothing is read any more.
    pub fn fail(&mut self, error: ConnectionError, out: &mut Vec<u8>) {
        if self.failed.is_none() {
            let last = if self.role == Role::Server { self.last_id } else { 0 };
            frame::write_goaway(out, last, error.code, error.reason);
            self.failed = Some(error);
        }
        self.lose();
    }

    /// The other side sends nothing more (a FIN of TCP, `close_notify` of TLS): what a client has asked for before is answered, as far
    /// as its windows go, and what it has not sent whole is gone. A PING asks whether it has ended only its own direction: one that
    /// is gone resets the connection, one that listens says nothing.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        if self.role == Role::Client || self.is_idle() {
            return self.lose();
        }
        if self.failed.is_some() || std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        (self.partial, self.block) = (Vec::new(), None);
        for stream in self.streams.iter_mut() {
            if stream.is_receiving() {
                stream.fault = Some(Fault::Lost);
                stream.sending = Sending::Ended;
                self.active = self.active.saturating_sub(1);
            }
        }
        // Also who waits for a window waits in vain.
        self.untold = self.streams.places();
        self.ping(out);
    }

    /// The connection is gone: so are its streams, which [`tell`](Self::tell) wakes.
    pub fn lose(&mut self) {
        self.failed.get_or_insert(ConnectionError::new(Code::NO_ERROR, "lost"));
        (self.partial, self.block) = (Vec::new(), None);
        for stream in self.streams.iter_mut() {
            stream.sending = Sending::Ended;
            // What was complete is.
            if !stream.inbox.is_ended {
                stream.fault.get_or_insert(Fault::Lost);
            }
        }
        self.untold = self.streams.places();
        self.active = 0;
    }

    /// Wakes so many of those whose streams [`end`](Self::end) or [`lose`](Self::lose) has ended: whether there may be more. To end a
    /// stream is to close what it has upstream, and a connection that ends with all of its streams must not hold up everybody else's
    /// (CVE-2021-32778): the rest is for when others had their turn.
    pub fn tell(&mut self, count: usize) -> bool {
        self.untold = self.streams.wake_below(self.untold, count);
        self.untold > 0
    }

    /// The next piece of a stream's text. An error comes after all that came before it.
    ///
    /// # Errors
    /// Why there is no more.
    pub fn piece(&mut self, key: StreamKey) -> Result<Piece<'_>, Fault> {
        let Some((stream, spare)) = self.streams.with_spare(key) else { return Err(Fault::Lost) };
        match (stream.inbox.piece(spare), stream.fault) {
            (Piece::Wait, Some(fault)) => Err(fault),
            (piece, _) => Ok(piece),
        }
    }

    /// Takes the first bytes of the piece away; the other side may send as many more.
    pub fn consume(&mut self, key: StreamKey, count: usize, out: &mut Vec<u8>) {
        let Some((stream, spare)) = self.streams.with_spare(key) else { return };
        let data = stream.inbox.consume(count, spare) as u32;
        stream.count(&mut self.waiting_bytes);
        stream.credit += data;
        self.renew(key, out);
        self.give_back(data, out);
    }

    /// Gives window back to a stream, once it is worth a frame.
    fn renew(&mut self, key: StreamKey, out: &mut Vec<u8>) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.is_receiving() && stream.credit >= HTTP2_STREAM_WINDOW_BYTES / 2 {
            let credit = std::mem::take(&mut stream.credit);
            stream.receive_window += credit;
            frame::write_number(out, kind::WINDOW_UPDATE, key.id, credit);
        }
    }

    /// Gives window back to the connection.
    fn give_back(&mut self, count: u32, out: &mut Vec<u8>) {
        self.credit += count;
        // Half of the window, but not too much at a time: a sender that waits is a slow one.
        if self.credit >= (self.receive_window_max / 2).min(8 * HTTP2_STREAM_WINDOW_BYTES) && self.failed.is_none() {
            let credit = std::mem::take(&mut self.credit);
            self.receive_window += credit;
            frame::write_number(out, kind::WINDOW_UPDATE, 0, credit);
        }
    }

    /// Trailer lines, as text, of a message whose length is announced. All of them have come before the last piece of it.
    #[must_use]
    pub fn trailers(&self, key: StreamKey) -> &[u8] {
        self.streams.get(key).map_or(b"", |stream| stream.inbox.trailers())
    }

    /// Who waits for a stream.
    #[must_use]
    pub fn waiter(&self, key: StreamKey) -> Option<&T> {
        self.streams.get(key)?.waiter.as_ref()
    }

    /// Whether the other side wants nothing of it any more, or is gone.
    #[must_use]
    pub fn is_cancelled(&self, key: StreamKey) -> bool {
        let fault = self.streams.get(key).map_or(Some(Fault::Lost), |stream| stream.fault);
        self.failed.is_some() || fault.is_some()
    }

    /// Why a stream goes no further, if so.
    #[must_use]
    pub fn fault(&self, key: StreamKey) -> Option<Fault> {
        self.streams.get(key).map_or(Some(Fault::Lost), |stream| stream.fault)
    }

    /// Marks a stream as one that the protocol has done with, if so.
    fn settle(&mut self, was_over: bool, key: StreamKey) {
        if !was_over && self.streams.get(key).is_some_and(streams::Stream::is_over) {
            self.active = self.active.saturating_sub(1);
        }
    }
}
