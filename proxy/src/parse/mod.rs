//! Reading one request head.
//!
//! Nearly every head arrives in one read. One that does not is waited for with a buffer in hand for a moment only; then
//! the bytes so far go into an allocation of their size, and the connection costs as little as an idle one until more
//! comes. The deadline counts from the first byte through all of that.

use meshring_core::{
    client_hello::HANDSHAKE_RECORD,
    http::{
        detect::may_be_http,
        error::Refusal,
        fields::Fields,
        head::{Bounds, HeadScanner},
        request::{self, RequestHead},
    },
    limits::{HOLD_BUFFER_MS_MAX, HOT_IDLE_MS_MAX, TRICKLED_HEAD_BYTES_MAX, TRICKLED_PIECE_BYTES_MAX},
};

use crate::worker::{
    Worker,
    buffers::{Held, Input},
    conn::{Conn, IdleRead},
    deadlines::now_ms,
};

/// What is known about the next request before its head is read.
#[derive(Debug, Default)]
pub(crate) enum Begin {
    /// Nothing.
    #[default]
    Silence,
    /// Something is there to be read.
    Readable,
    /// It has begun: these bytes were read already.
    Bytes(Held),
    /// It has begun, and something more is there to be read.
    Partial(PartialHead),
}

/// A head that did not come in one piece, while its connection waits without a buffer. On the heap, since every idle connection
/// has a place for one.
#[derive(Debug)]
pub(crate) struct PartialHead(Box<(Held, Progress)>);

/// How far a head that did not come in one piece has got.
#[derive(Debug, Clone, Copy)]
struct Progress {
    /// Keeps a trickled head linear: parsing starts over from the first byte each time.
    scanner: HeadScanner,
    deadline_ms: u64,
}

impl PartialHead {
    /// When the head must be there, in milliseconds of the worker's clock.
    pub(crate) fn deadline_ms(&self) -> u64 {
        self.0.1.deadline_ms
    }

    /// Takes what has come, where it is a small piece that does not tell more about the head: a trickle brings nothing else, and the
    /// large future of a request, made and freed for each piece of ten thousand of them, leaves the heap full of holes. False: nothing
    /// was taken, and whoever reads requests has to look.
    pub(crate) fn takes_piece(&mut self, worker: &Worker, conn: &Conn, bounds: Bounds) -> bool {
        let (held, progress) = &mut *self.0;
        let (mut bytes, len) = ([0; TRICKLED_HEAD_BYTES_MAX], held.len());
        let Some(space) = bytes.get_mut(len..len + TRICKLED_PIECE_BYTES_MAX) else { return false };
        if conn.secured_peer().is_some() {
            return false;
        }
        // The end and errors are for the reader of requests, too.
        let Ok(count @ 1..) = conn.peek(space) else { return false };
        bytes[..len].copy_from_slice(held);
        let known = &bytes[..len + count];
        let mut scanner = progress.scanner;
        let has_room = worker.buffers.held_bytes() + count <= worker.limits.buffer_bytes_max / 4;
        if !has_room || !may_be_http(known) || scanner.ready(known, bounds) {
            return false;
        }
        // The same bytes: nobody else reads here.
        let Ok(count @ 1..) = conn.receive_into_now(&mut bytes[len..len + count]) else { return false };
        *held = worker.buffers.hold(&bytes[..len + count]);
        progress.scanner = scanner;
        true
    }
}

/// What came instead of, or as, the next request.
#[derive(Debug)]
pub(crate) enum Next {
    /// A request whose head is in the input.
    Request(RequestHead),
    /// Nothing yet: wait for it without a buffer.
    Idle,
    /// A part of it: wait for the rest without a buffer.
    Partial(PartialHead),
    /// The client has closed, between two requests or in mid-head.
    Closed,
    /// Malformed.
    Refused(Refusal),
    /// Another protocol.
    Other,
    /// A TLS handshake, which is not for this connection.
    Tls,
    /// Begun, but not finished in time.
    TimedOut,
    /// Begun, and there is no room to wait for the rest of it.
    Overload,
}

/// Reads the next request head into `input`; its fields go into `fields`. `is_other`: whether what is no whole head is another
/// protocol.
pub(crate) async fn request_head(
    worker: &Worker,
    conn: &mut Conn,
    input: &mut Input,
    fields: &mut Fields,
    begin: Begin,
    bounds: Bounds,
    is_other: impl Fn(&Conn, &[u8]) -> bool,
) -> Next {
    // One byte beyond the bound tells a head that is too large from one that is exactly as large as it may be.
    let bytes_max = bounds.head_bytes + 1;
    let read = match begin {
        Begin::Partial(PartialHead(partial)) => {
            let (bytes, progress) = *partial;
            input.extend(&bytes);
            drop(bytes);
            let read = conn.read_now(input, usize::MAX, bytes_max);
            return rest_of_head(worker, conn, input, fields, bounds, progress, Some(read), is_other).await;
        }
        Begin::Bytes(bytes) => {
            input.extend(&bytes);
            IdleRead::Bytes
        }
        _ if !input.is_empty() => IdleRead::Bytes,
        Begin::Readable => conn.read_now(input, usize::MAX, bytes_max),
        Begin::Silence => match worker.hot_idle.enter() {
            Some(_place) => conn.read_until(input, bytes_max, now_ms() + HOT_IDLE_MS_MAX, true).await,
            None => IdleRead::StillIdle,
        },
    };
    match read {
        IdleRead::Bytes => {}
        IdleRead::StillIdle => return Next::Idle,
        IdleRead::Closed | IdleRead::Full => return Next::Closed,
    }
    match request::parse(input.unread(), fields, bounds) {
        Ok(Some(head)) => Next::Request(head),
        Ok(None) | Err(_) if is_other(conn, input.unread()) => Next::Other,
        // No request begins so.
        Ok(None) | Err(_) if input.unread().first() == Some(&HANDSHAKE_RECORD) && conn.secured_peer().is_none() => {
            Next::Tls
        }
        Ok(None) => {
            let mut scanner = HeadScanner::default();
            scanner.ready(input.unread(), bounds);
            let progress = Progress { scanner, deadline_ms: now_ms() + worker.limits.head_ms_max };
            rest_of_head(worker, conn, input, fields, bounds, progress, None, is_other).await
        }
        Err(refusal) => Next::Refused(refusal),
    }
}

/// The head did not come in one piece. `read`: how the read after the parts so far has ended, if there was one. Who needs more than
/// that sends in a trickle, and is not waited for with a buffer again: a thousand of them would be cancelled at every tick.
#[expect(clippy::too_many_arguments, reason = "as `request_head`, with what is known so far")]
async fn rest_of_head(
    worker: &Worker,
    conn: &mut Conn,
    input: &mut Input,
    fields: &mut Fields,
    bounds: Bounds,
    mut progress: Progress,
    mut read: Option<IdleRead>,
    is_other: impl Fn(&Conn, &[u8]) -> bool,
) -> Next {
    // To wait without a buffer costs two copies of all that has come.
    let trickles = read.is_some() && input.unread().len() <= TRICKLED_HEAD_BYTES_MAX;
    loop {
        let read = match read.take() {
            Some(read) => read,
            None if trickles => IdleRead::StillIdle,
            None => {
                // Past the deadline the next tick ends the read, however many bytes keep coming.
                let until_ms = progress.deadline_ms.min(now_ms() + HOLD_BUFFER_MS_MAX);
                match worker.hot_idle.enter() {
                    Some(_place) => conn.read_until(input, bounds.head_bytes + 1, until_ms, false).await,
                    None => IdleRead::StillIdle,
                }
            }
        };
        match read {
            IdleRead::Bytes if is_other(conn, input.unread()) => return Next::Other,
            IdleRead::Bytes if !progress.scanner.ready(input.unread(), bounds) => {}
            IdleRead::Bytes => match request::parse(input.unread(), fields, bounds) {
                Ok(Some(head)) => return Next::Request(head),
                Ok(None) => {}
                Err(refusal) => return Next::Refused(refusal),
            },
            // Waiting must not keep requests from being served: heads that are not whole get a quarter of the budget.
            IdleRead::StillIdle
                if worker.buffers.held_bytes() + input.unread().len() > worker.limits.buffer_bytes_max / 4 =>
            {
                return Next::Overload;
            }
            IdleRead::StillIdle if now_ms() < progress.deadline_ms => {
                return Next::Partial(PartialHead(Box::new((worker.buffers.hold(input.unread()), progress))));
            }
            IdleRead::StillIdle => return Next::TimedOut,
            IdleRead::Closed => return Next::Closed,
            IdleRead::Full => return Next::Refused(Refusal::HeadTooLarge),
        }
    }
}
