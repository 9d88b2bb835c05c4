//! Reading one request head.

use meshring_core::{
    http::{
        error::Refusal,
        fields::Fields,
        head::HeadScanner,
        request::{self, RequestHead},
    },
    limits::{HEAD_BYTES_MAX, HOT_IDLE_CONNECTIONS_MAX, REQUEST_HEAD_MS_MAX},
};

use crate::worker::{
    Worker,
    buffers::Input,
    conn::{Conn, IdleRead},
    deadlines::{Expiry, now_ms},
};

/// What came instead of, or as, the next request.
#[derive(Debug)]
pub(crate) enum Next {
    /// A request whose head is in the input.
    Request(RequestHead),
    /// Nothing yet: wait for it without a buffer.
    Idle,
    /// The client has closed, between two requests or in mid-head.
    Closed,
    /// Malformed.
    Refused(Refusal),
    /// Begun, but not finished in time.
    TimedOut,
}

/// Reads the next request head into `input`; its fields go into `fields`. `ready`: something is there to be read, so the
/// bound on connections that wait with a buffer in hand does not apply.
pub(crate) async fn request_head(
    worker: &Worker,
    conn: &mut Conn,
    input: &mut Input,
    fields: &mut Fields,
    ready: bool,
) -> Next {
    if input.is_empty() {
        let hot = worker.hot_idle.enter(HOT_IDLE_CONNECTIONS_MAX);
        if hot.is_none() && !ready {
            return Next::Idle;
        }
        match conn.read_idle(input, HEAD_BYTES_MAX).await {
            IdleRead::Bytes => {}
            IdleRead::StillIdle => return Next::Idle,
            IdleRead::Closed => return Next::Closed,
        }
    }
    match request::parse(input.unread(), fields) {
        Ok(Some(head)) => Next::Request(head),
        Ok(None) => rest_of_head(conn, input, fields).await,
        Err(refusal) => Next::Refused(refusal),
    }
}

/// The head did not come in one piece. The scanner keeps a trickled head linear.
async fn rest_of_head(conn: &mut Conn, input: &mut Input, fields: &mut Fields) -> Next {
    conn.timer.set(now_ms() + REQUEST_HEAD_MS_MAX, Expiry::ShutdownRead);
    let mut scanner = HeadScanner::default();
    scanner.ready(input.unread());
    let next = loop {
        match input.fill(&mut conn.read, HEAD_BYTES_MAX + 1).await {
            Ok(0) if conn.timer.take_expired() => break Next::TimedOut,
            Err(error) if error.kind() == std::io::ErrorKind::OutOfMemory => {
                break Next::Refused(Refusal::HeadTooLarge);
            }
            Ok(0) | Err(_) => break Next::Closed,
            Ok(_) if !scanner.ready(input.unread()) => {}
            Ok(_) => match request::parse(input.unread(), fields) {
                Ok(Some(head)) => break Next::Request(head),
                Ok(None) => {}
                Err(refusal) => break Next::Refused(refusal),
            },
        }
    };
    conn.timer.clear();
    conn.timer.take_expired();
    next
}
