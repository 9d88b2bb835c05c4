//! Responses that the proxy makes itself. Each says in its body what happened, in words for the person who reads it in
//! a terminal, behind a stable short code.

use meshring_core::{
    http::{
        body::BodyDecoder,
        chunked::Event,
        head::{Method, Version},
        request::RequestHead,
        serialize::HeaderEdits,
        status::{Local, write_response},
    },
    limits::{LINGER_BYTES_MAX, LINGER_MS_MAX},
};

use crate::worker::{
    Worker,
    buffers::Input,
    conn::{Conn, write_all},
    deadlines::{Expiry, now_ms},
};

/// A response to be made.
pub(crate) struct Response<'a> {
    pub(crate) status: u16,
    pub(crate) content_type: &'a str,
    pub(crate) body: &'a [u8],
    /// Ready `name: value` lines.
    pub(crate) extra: &'a [u8],
}

/// Answers a request whose head is still in the input. True: the connection can go on with the next one. A body that is not there in full ends the connection: reading
/// an unknown amount of what nobody wants is no service.
pub(crate) async fn answer(
    worker: &Worker,
    conn: &mut Conn,
    input: &mut Input,
    head: &RequestHead,
    response: &Response<'_>,
    edits: &impl HeaderEdits,
) -> bool {
    input.consume(head.len);
    // An HTTP/1.0 client would have to be told that the connection stays.
    let keep = head.keep_alive && head.version == Version::Http11 && skip_body(input, head) && !worker.draining();
    let mut out = worker.buffers.take();
    let mut extra = response.extra.to_vec();
    edits.append(&mut extra);
    let date = worker.date.now();
    let how = Local { close: !keep, head: head.method == Method::Head, date: Some(&date), extra: &extra };
    write_response(&mut out, response.status, response.content_type, response.body, &how);
    conn.timer.set(now_ms() + meshring_core::limits::BODY_IDLE_MS_MAX, Expiry::ShutdownBoth);
    let result = write_all(&mut conn.write, &mut out).await;
    conn.timer.clear();
    drop(out);
    if result.is_ok() && !keep {
        linger(conn, input, 0).await;
    }
    result.is_ok() && keep
}

/// Answers what is not even a request, and ends the connection. Without a buffer of the pool: a refusal is short, and
/// whoever is refused must not cost more than before.
pub(crate) async fn refuse(worker: &Worker, conn: &mut Conn, status: u16, body: &str) {
    let mut out = worker.buffers.lazy();
    let date = worker.date.now();
    let how = Local { close: true, date: Some(&date), ..Local::default() };
    write_response(&mut out, status, "text/plain", body.as_bytes(), &how);
    conn.timer.set(now_ms() + meshring_core::limits::BODY_IDLE_MS_MAX, Expiry::ShutdownBoth);
    let result = write_all(&mut conn.write, &mut out).await;
    conn.timer.clear();
    drop(out);
    if result.is_ok() {
        conn.drain(LINGER_BYTES_MAX, LINGER_MS_MAX).await;
    }
}

/// Drops a body that is in the input already. False when more of it would have to be read.
fn skip_body(input: &mut Input, head: &RequestHead) -> bool {
    let mut body = BodyDecoder::new(head.framing);
    while !body.is_done() {
        let Ok(step) = body.decode(input.unread()) else { return false };
        input.consume(step.consumed);
        match step.event {
            Event::NeedInput => return false,
            Event::Data(_) | Event::Trailer { .. } | Event::End => {}
        }
    }
    true
}

/// Lets a client read the last response before the connection goes, see [`Conn::drain`]. `taken`: so much may have been read
/// already of what nobody wants.
pub(crate) async fn linger(conn: &mut Conn, input: &mut Input, taken: usize) {
    input.clear();
    input.release();
    conn.drain(LINGER_BYTES_MAX - taken, LINGER_MS_MAX).await;
}
