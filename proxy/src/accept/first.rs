//! The beginning of a connection that carries bytes, or may.

use std::rc::Rc;

use meshring_core::limits::DETECTION_MS;

use super::{Listener, security};
use crate::{
    parse::Begin,
    request::stream::{self, Carries, First},
    worker::{
        Worker,
        buffers::Input,
        conn::{Conn, readable},
        join::within,
    },
};

/// TLS where it is for this proxy, then a tunnel, or what looks like requests.
pub(super) async fn first(worker: &Rc<Worker>, conn: &mut Conn, listener: &Listener, carries: Carries) -> First {
    let mut input = Input::new(worker.buffers.lazy());
    let Some(has_begun) = security::open_bytes(worker, conn, listener, &mut input).await else {
        return First::Over;
    };
    if carries == Carries::Bytes {
        return stream::open(worker, conn, listener, input).await.map_or(First::Over, First::Tunnel);
    }
    if !input.is_empty() {
        // The beginning of TLS that is not for us.
        return First::Requests(Begin::Bytes(worker.buffers.hold(input.unread())));
    }
    let is_silent = !has_begun && conn.peek(&mut [0]).is_err();
    let greets = is_silent && stream::greets(worker, conn, listener);
    if !is_silent || !greets && within(DETECTION_MS, readable(&conn.read)).await.is_some() {
        return First::Requests(Begin::Readable);
    }
    stream::who_speaks(worker, conn, listener).await
}
