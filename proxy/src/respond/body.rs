//! Bodies on their way, in either direction.

use std::{cell::Cell, io};

use meshring_core::{
    http::{
        body::{self, BodyDecoder, CHUNK_END, LAST_CHUNK, LAST_CHUNK_BEFORE_TRAILERS},
        chunked::Event,
        error::{ChunkError, Refusal},
        head::BodyFraming,
        serialize,
    },
    limits::{
        BODY_IDLE_MS_MAX, BUFFER_BYTES, BUFFERS_IN_A_ROW_MAX, HOLD_BUFFER_MS_MAX, SPLICE_ATTEMPTS_MAX,
        SPLICE_BYTES_MIN, SPLICE_IN_VAIN_MAX, SPLICED_IN_A_ROW_BYTES_MAX,
    },
    stats::GrpcStatus,
};

use super::relay::Exchange;
use crate::worker::{
    Places,
    buffers::{Buffer, Input},
    conn::{ReadHalf, WriteHalf, fill, pass_trailers, readable, write_all},
    deadlines::{Expiry, Timer, now_ms},
    http2::Stream,
    join::yield_now,
    splice::{Moved, Splice},
};

/// How a body goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    /// As it is: by length, or until the connection closes.
    Identity,
    /// In chunks of our own.
    Chunked {
        /// Whether the trailer section has begun.
        in_trailers: bool,
    },
}

impl Coding {
    /// For a framing that was announced.
    pub(crate) fn of(framing: BodyFraming) -> Self {
        match framing {
            BodyFraming::Chunked => Self::Chunked { in_trailers: false },
            _ => Self::Identity,
        }
    }
}

/// A request body that is not forwarded to its end, and the client is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadBody {
    /// A broken framing.
    #[error("the request body is malformed: {0}")]
    Malformed(#[from] ChunkError),
    /// Beyond `--request-body-max`.
    #[error("{}", Refusal::BodyTooLarge)]
    TooLarge,
    /// Below `--min-body-rate`, silent for too long, or not there when the rule's timeout passed.
    #[error("the request body did not arrive in time")]
    TooSlow,
}

impl BadBody {
    /// The status of the answer: 400, 408 or 413.
    pub(crate) fn status(self) -> u16 {
        match self {
            Self::Malformed(error) => error.status(),
            Self::TooLarge => Refusal::BodyTooLarge.status(),
            Self::TooSlow => 408,
        }
    }

    /// A stable short name.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Malformed(error) => error.code(),
            Self::TooLarge => Refusal::BodyTooLarge.code(),
            Self::TooSlow => "http1.body_timeout",
        }
    }
}

/// Why a body did not get through.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The sender sent what it must not, or not in time.
    #[error("{0}")]
    Bad(#[from] BadBody),
    /// Reading failed.
    #[error("reading: {0}")]
    Read(io::Error),
    /// The receiver went away.
    #[error("writing: {0}")]
    Write(io::Error),
}

/// A body on its way.
#[derive(Debug)]
pub(crate) struct Body {
    decoder: BodyDecoder,
    coding: Coding,
    /// Data bytes that may still come.
    left_bytes: u64,
    ended: bool,
    /// What has gone from socket to socket.
    spliced_bytes: u64,
    ends_with_stream: bool,
    /// How a gRPC call ended, from the trailer section.
    grpc_status: Option<GrpcStatus>,
}

/// Bytes that a chunk's header and end may add to its data.
const CHUNK_OVERHEAD_BYTES: usize = 32;
/// At most so many bytes of a body are read at once: with the overhead of chunks they fit the outgoing buffer, so that
/// the incoming one is empty and can be given back while the other waits for a slow receiver. And they fit one TLS record.
const BODY_READ_BYTES_MAX: usize = 16 * 1024 - 2 * CHUNK_OVERHEAD_BYTES;
/// Likewise for a head with what follows it: the next hop's head is a little longer than this one's.
pub(crate) const HEAD_READ_BYTES_MAX: usize = BUFFER_BYTES - 1024;
/// How a gRPC call ended.
pub(super) const GRPC_STATUS: &[u8] = b"grpc-status";
/// Less free space than this in the outgoing buffer is not worth another chunk.
const ROOM_BYTES_MIN: usize = 256;

impl Body {
    /// Received in one framing, sent in another.
    pub(crate) fn new(received: BodyFraming, sent: BodyFraming) -> Self {
        let decoder = BodyDecoder::new(received);
        // No body at all, or a length of 0: nothing will be written, not even a last chunk.
        let ended = decoder.is_done();
        let ends_with_stream = received == BodyFraming::UntilClose;
        Self {
            decoder,
            coding: Coding::of(sent),
            left_bytes: u64::MAX,
            ended,
            spliced_bytes: 0,
            ends_with_stream,
            grpc_status: None,
        }
    }

    /// With a limit to its data, in bytes.
    pub(crate) fn limited(self, bytes_max: u64) -> Self {
        Self { left_bytes: bytes_max, ..self }
    }

    /// Whether all of it has been encoded.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Moves what is in `input` to `out`, as far as `out` has room without growing. Returns whether more input is
    /// needed (true), or the body has ended or `out` is full (false).
    pub(crate) fn encode(&mut self, input: &mut Input, out: &mut Vec<u8>) -> Result<bool, BadBody> {
        while !self.ended {
            let room = out.capacity().saturating_sub(out.len());
            if room < ROOM_BYTES_MIN {
                return Ok(false);
            }
            let unread = input.unread();
            if unread.is_empty() {
                return Ok(true);
            }
            let window = &unread[..unread.len().min(room - CHUNK_OVERHEAD_BYTES)];
            let clipped = window.len() < unread.len();
            let step = self.decoder.decode(window)?;
            match step.event {
                Event::Data(range) => {
                    let left = self.left_bytes.checked_sub(range.len() as u64);
                    self.left_bytes = left.ok_or(BadBody::TooLarge)?;
                    self.data(&window[range], out);
                }
                Event::Trailer { name, value } => self.trailer(&window[name], &window[value], out),
                // What is clipped may hold the rest of a trailer line: once `out` is flushed the window is wider.
                Event::NeedInput if step.consumed == 0 => return Ok(!clipped),
                Event::NeedInput | Event::End => {}
            }
            input.consume(step.consumed);
            if self.decoder.is_done() {
                self.finish(out);
            }
        }
        Ok(false)
    }

    fn data(&self, data: &[u8], out: &mut Vec<u8>) {
        match self.coding {
            Coding::Identity => out.extend_from_slice(data),
            Coding::Chunked { .. } => body::encode_chunk(out, data),
        }
    }

    fn trailer(&mut self, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        if name.eq_ignore_ascii_case(GRPC_STATUS) {
            self.grpc_status = Some(GrpcStatus::parse(value));
        }
        if let Coding::Chunked { in_trailers } = &mut self.coding {
            if !std::mem::replace(in_trailers, true) {
                out.extend_from_slice(LAST_CHUNK_BEFORE_TRAILERS);
            }
            serialize::field(out, name, value);
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        self.ended = true;
        match self.coding {
            Coding::Identity => {}
            Coding::Chunked { in_trailers: false } => out.extend_from_slice(LAST_CHUNK),
            Coding::Chunked { in_trailers: true } => out.extend_from_slice(CHUNK_END),
        }
    }

    /// Whether only the end of the connection ends it.
    fn ends_with_stream(&self) -> bool {
        self.ends_with_stream
    }

    /// Bytes that may go from socket to socket as they are: the rest of a large body of a known length.
    fn left_to_splice(&self) -> Option<u64> {
        let left = self.decoder.remaining().filter(|_| self.coding == Coding::Identity)?;
        (left >= SPLICE_BYTES_MIN && left <= self.left_bytes).then_some(left)
    }

    /// So many bytes of it have gone by.
    fn skip(&mut self, count: usize) {
        self.decoder.skip(count as u64);
        self.left_bytes = self.left_bytes.saturating_sub(count as u64);
        self.spliced_bytes += count as u64;
        self.ended = self.decoder.is_done();
    }

    /// How a gRPC call ended, once its trailer section has come.
    pub(super) fn grpc_status(&self) -> Option<GrpcStatus> {
        self.grpc_status
    }

    /// Likewise, since the last call.
    pub(super) fn take_spliced_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.spliced_bytes)
    }

    /// How many bytes of it have gone from socket to socket.
    pub(crate) fn spliced_bytes(&self) -> u64 {
        self.spliced_bytes
    }

    /// The sender has closed: the end of a body until close, an error for every other.
    fn end_of_stream(&mut self, out: &mut Vec<u8>) -> Result<(), BadBody> {
        self.decoder.end_of_stream()?;
        if !self.ended {
            self.finish(out);
        }
        Ok(())
    }
}

/// One side of a relay with its deadline. Where two directions run at once, each half has a timer of its own: they must
/// not arm, clear or read each other's.
pub(crate) struct Side<'a, H> {
    pub(crate) half: &'a mut H,
    pub(crate) timer: &'a Timer,
}

/// What is asked of a client that sends a body (Apache's mod_reqtimeout): it may let us wait for the grace, and for
/// another second for each `min` bytes that it sends. Only time in which we wait for the client counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyRate {
    min: u64,
    allowed_ms: u64,
    received_bytes: u64,
    waited_ms: u64,
}

impl BodyRate {
    /// Bytes per second, 0 for any rate; milliseconds.
    pub(crate) fn new(min: u64, grace_ms: u64) -> Self {
        Self { min, allowed_ms: grace_ms, received_bytes: 0, waited_ms: 0 }
    }

    /// How much longer we wait, in milliseconds.
    fn left_ms(&self) -> u64 {
        if self.min == 0 {
            return u64::MAX;
        }
        let earned_ms = u128::from(self.received_bytes) * 1_000 / u128::from(self.min);
        let earned_ms = u64::try_from(earned_ms).unwrap_or(u64::MAX);
        self.allowed_ms.saturating_add(earned_ms).saturating_sub(self.waited_ms)
    }

    fn received(&mut self, bytes: usize, waited_ms: u64) {
        self.received_bytes = self.received_bytes.saturating_add(bytes as u64);
        self.waited_ms = self.waited_ms.saturating_add(waited_ms);
    }
}

/// How long a relay waits for a peer. Milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience<'a> {
    /// An end to it all, where the rule has a timeout.
    pub(crate) total_at_ms: Option<u64>,
    /// Silence of the one who sends.
    pub(crate) silence_ms_max: u64,
    /// What is relayed is a request body.
    pub(crate) upload: Option<Upload<'a>>,
    /// No other body is, or will be, on its way on either socket before the end of this one, so that it may be spliced.
    pub(crate) is_alone: bool,
    /// A client's stream that takes nothing is not waited for: at once where these places are taken, else for a moment only. See
    /// [`Passed::Stalled`].
    pub(crate) hot: Option<&'a Places>,
}

/// How far a body has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passed {
    /// All of it is written.
    Whole,
    /// Its receiver takes no more for now. What was to be written next is in `out`, and the receiver's deadline is set.
    Stalled,
}

/// How long a relay waits for a request body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Upload<'a> {
    pub(crate) rate: BodyRate,
    /// Set when nobody waits for the rest of it any more.
    pub(crate) ends_at_ms: &'a Cell<u64>,
    /// Whether it is the client's turn: it was told to continue, or has not asked.
    pub(crate) begun: &'a Cell<bool>,
}

impl<'a> Patience<'a> {
    /// For the response.
    pub(crate) fn response(exchange: &Exchange<'a>) -> Self {
        let Exchange { total_at_ms, silence_ms_max, hot, .. } = *exchange;
        Self { total_at_ms, silence_ms_max, upload: None, is_alone: false, hot }
    }

    /// For the side that receives.
    pub(super) fn next(&self) -> u64 {
        self.within(BODY_IDLE_MS_MAX)
    }

    fn within(&self, ms_max: u64) -> u64 {
        let idle_at = now_ms() + ms_max;
        self.total_at_ms.map_or(idle_at, |total| total.min(idle_at))
    }

    /// For the side that sends and has been waited for since then.
    fn next_read(&self, since_ms: u64) -> u64 {
        let at_ms = self.within(self.silence_ms_max);
        self.upload.map_or(at_ms, |upload| {
            let rate_at_ms = match upload.begun.get() {
                true => since_ms.saturating_add(upload.rate.left_ms()),
                false => u64::MAX,
            };
            at_ms.min(upload.ends_at_ms.get()).min(rate_at_ms)
        })
    }
}

impl Side<'_, ReadHalf> {
    /// See [`fill`].
    pub(super) async fn fill(
        &mut self,
        input: &mut Input,
        at_most: usize,
        bytes_max: usize,
        until_ms: impl Fn() -> u64,
        end: Expiry,
    ) -> io::Result<usize> {
        fill(self.half, self.timer, input, (at_most, bytes_max), until_ms, end).await
    }
}

/// Moves a body from one side to the other, one buffer at a time: the slower side sets the pace. `out` may hold a head
/// that goes first. Each side has a deadline of its own, which is not armed when this returns. Whoever is waited for,
/// no buffer is held but one that has something in it.
pub(crate) async fn relay_body(
    body: &mut Body,
    input: &mut Input,
    mut from: Side<'_, ReadHalf>,
    to: Side<'_, WriteHalf>,
    out: &mut Buffer,
    mut patience: Patience<'_>,
) -> Result<Passed, BodyError> {
    let mut written: u32 = 0;
    let mut splice_attempts = if patience.is_alone { SPLICE_ATTEMPTS_MAX } else { 0 };
    loop {
        out.ensure();
        let needs_input = body.encode(input, out)?;
        if !out.is_empty() {
            input.release();
            pass_trailers(from.half, to.half);
            match (&*to.half, patience.hot.filter(|_| input.is_empty())) {
                (WriteHalf::Stream(stream), Some(hot)) => {
                    if !write_or_stall(stream, to.timer, out, hot, patience.next()).await.map_err(BodyError::Write)? {
                        return Ok(Passed::Stalled);
                    }
                }
                _ => {
                    to.timer.set(patience.next(), Expiry::ShutdownBoth);
                    let result = write_all(to.half, out).await;
                    to.timer.clear();
                    out.clear();
                    result.map_err(BodyError::Write)?;
                }
            }
            written += 1;
        }
        // Before others get their turn: an answer to it may have come, which would look as if it had come before the end.
        if body.ended() {
            return Ok(Passed::Whole);
        }
        if written >= BUFFERS_IN_A_ROW_MAX {
            written = 0;
            yield_now().await;
        }
        if needs_input
            && splice_attempts > 0
            && input.is_empty()
            && body.left_to_splice().is_some()
            && patience.upload.is_none_or(|upload| upload.begun.get())
        {
            // What has come before the kernel had the keys goes through the buffer first.
            splice_attempts -= 1;
            if let Some(splice) = Splice::for_body(from.half, to.half, input.pool()) {
                out.release();
                input.release();
                splice_body(body, splice, &from, &to, &mut patience).await?;
                // What it has stopped at will be met again by a read.
                splice_attempts = 0;
                continue;
            }
        }
        if needs_input {
            out.release();
            let begun_ms = now_ms();
            let wanted = match (&*to.half, patience.hot) {
                (WriteHalf::Stream(stream), Some(_)) => BODY_READ_BYTES_MAX.min(stream.appetite()),
                _ => BODY_READ_BYTES_MAX,
            };
            let at_most = wanted.saturating_sub(input.unread().len()).max(1);
            let was_clients_turn = patience.upload.is_none_or(|upload| upload.begun.get());
            let until_ms = || patience.next_read(begun_ms);
            let read = from.fill(input, at_most, BUFFER_BYTES, until_ms, Expiry::ShutdownRead).await;
            if let (Some(upload), &Ok(count)) = (&mut patience.upload, &read) {
                let waited_ms = if was_clients_turn { now_ms().saturating_sub(begun_ms) } else { 0 };
                upload.rate.received(count, waited_ms);
                // Some clients do not wait for long.
                upload.begun.set(true);
            }
            match read {
                // Ended by us, not by the sender: of a body that lasts until the connection closes this is not the end.
                Ok(0) if from.timer.take_expired() => {
                    return Err(match patience.upload {
                        Some(_) => BadBody::TooSlow.into(),
                        None => BodyError::Read(io::ErrorKind::TimedOut.into()),
                    });
                }
                // As with a reset: a body that lasts until the connection closes would look whole (RFC 8446 section 6.1).
                Ok(0) if from.half.is_truncated() && body.ends_with_stream() => {
                    return Err(BodyError::Read(io::ErrorKind::UnexpectedEof.into()));
                }
                Ok(0) => body.end_of_stream(out)?,
                Ok(_) => {}
                Err(error) => return Err(BodyError::Read(error)),
            }
        }
    }
}

/// Writes all of a buffer to a client's stream. False: it takes no more for now; the rest is in the buffer, and the deadline is set.
async fn write_or_stall(
    stream: &Stream,
    timer: &Timer,
    out: &mut Buffer,
    hot: &Places,
    until_ms: u64,
) -> io::Result<bool> {
    timer.set(until_ms.min(now_ms() + HOLD_BUFFER_MS_MAX), Expiry::CancelRead);
    let stalled = stream.write_or_stall(out, hot).await;
    timer.clear();
    timer.forget_cancel();
    match stalled {
        Ok(Some(written)) => {
            out.drain(..written);
            timer.set(until_ms, Expiry::ShutdownBoth);
            Ok(false)
        }
        result => {
            out.clear();
            result.map(|_| true)
        }
    }
}

/// The rest of a large body from socket to socket, as far as it comes: whatever else is in the way, an end among it, is for a buffer.
async fn splice_body(
    body: &mut Body,
    mut splice: Splice,
    from: &Side<'_, ReadHalf>,
    to: &Side<'_, WriteHalf>,
    patience: &mut Patience<'_>,
) -> Result<(), BodyError> {
    let mut in_a_row = 0;
    while let Some(left) = body.decoder.remaining().filter(|&left| left > 0) {
        if in_a_row >= SPLICED_IN_A_ROW_BYTES_MAX {
            in_a_row = 0;
            yield_now().await;
        }
        let begun_ms = now_ms();
        let mut in_vain = 0;
        let count = loop {
            match splice.take(from.half, left).map_err(BodyError::Read)? {
                Moved::Bytes(count) => break count,
                // Ended by us, not by the sender.
                Moved::End if from.timer.take_expired() => {
                    return Err(match patience.upload {
                        Some(_) => BadBody::TooSlow.into(),
                        None => BodyError::Read(io::ErrorKind::TimedOut.into()),
                    });
                }
                Moved::Nothing if in_vain < SPLICE_IN_VAIN_MAX => in_vain += 1,
                Moved::Nothing | Moved::End => return Ok(()),
            }
            splice.rest();
            from.timer.set(patience.next_read(begun_ms), Expiry::ShutdownRead);
            let ready = readable(from.half).await;
            from.timer.clear();
            ready.map_err(BodyError::Read)?;
        };
        body.skip(count);
        if let Some(upload) = &mut patience.upload {
            upload.rate.received(count, now_ms().saturating_sub(begun_ms));
        }
        loop {
            splice.give(to.half).map_err(BodyError::Write)?;
            if splice.held() == 0 {
                break;
            }
            to.timer.set(patience.next(), Expiry::ShutdownBoth);
            let ready = Splice::writable(to.half).await;
            to.timer.clear();
            ready.map_err(BodyError::Write)?;
        }
        in_a_row += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `wire` in pieces of `piece` bytes and returns what goes out, through a buffer that is flushed when full.
    fn relayed(wire: &[u8], piece: usize, received: BodyFraming, sent: BodyFraming) -> Vec<u8> {
        let mut body = Body::new(received, sent);
        let mut all = Vec::new();
        let mut out = Vec::with_capacity(BUFFER_BYTES);
        let mut unread = Vec::with_capacity(2 * BUFFER_BYTES);
        let pool = std::rc::Rc::<crate::worker::buffers::Buffers>::default();
        for part in wire.chunks(piece) {
            unread.extend_from_slice(part);
            let mut input = Input::new(pool.lazy());
            input.extend(&std::mem::take(&mut unread));
            while !body.encode(&mut input, &mut out).unwrap() && !body.ended() {
                assert!(!out.is_empty(), "no progress");
                all.append(&mut out);
                out.reserve_exact(BUFFER_BYTES);
            }
            all.append(&mut out);
            out.reserve_exact(BUFFER_BYTES);
            unread = input.unread().to_vec();
        }
        assert!(body.ended());
        all
    }

    fn dechunked(mut wire: &[u8]) -> Vec<u8> {
        let mut decoder = BodyDecoder::new(BodyFraming::Chunked);
        let mut data = Vec::new();
        while !decoder.is_done() {
            let step = decoder.decode(wire).unwrap();
            if let Event::Data(range) = step.event {
                data.extend_from_slice(&wire[range]);
            }
            wire = &wire[step.consumed..];
        }
        assert!(wire.is_empty(), "bytes behind the last chunk");
        data
    }

    proptest! {
        #[test]
        fn a_body_survives_every_recoding_and_every_split(
            data in proptest::collection::vec(any::<u8>(), 1..40_000),
            chunk in 1_usize..9_000,
            piece in 1_usize..20_000,
        ) {
            let mut chunked = Vec::new();
            data.chunks(chunk).for_each(|part| body::encode_chunk(&mut chunked, part));
            chunked.extend_from_slice(LAST_CHUNK);
            let length = BodyFraming::Length(data.len() as u64);
            prop_assert_eq!(&relayed(&data, piece, length, length), &data);
            prop_assert_eq!(&relayed(&chunked, piece, BodyFraming::Chunked, BodyFraming::UntilClose), &data);
            let recoded = relayed(&chunked, piece, BodyFraming::Chunked, BodyFraming::Chunked);
            prop_assert_eq!(&dechunked(&recoded), &data);
        }
    }

    #[test]
    fn trailers_go_along_where_the_coding_has_room_for_them() {
        let wire = b"3\r\nabc\r\n0\r\nx-sum: 1\r\nx-more: 2\r\n\r\n";
        for piece in 1..wire.len() {
            let chunked = relayed(wire, piece, BodyFraming::Chunked, BodyFraming::Chunked);
            assert!(chunked.ends_with(b"0\r\nx-sum: 1\r\nx-more: 2\r\n\r\n"), "{}", String::from_utf8_lossy(&chunked));
            assert_eq!(relayed(wire, piece, BodyFraming::Chunked, BodyFraming::UntilClose), b"abc");
        }
    }
}
