//! A request and the first bytes of its response, or until it has been waited for long enough.

use std::io;

use monoio::{
    buf::SliceMut,
    io::{AsyncReadRent as _, AsyncWriteRent as _, CancelableAsyncReadRent as _},
};
use rustix::io::Errno;

use super::{
    super::{
        buffers::{Buffer, Input},
        deadlines::{Expiry, Timer, now_ms},
        secure::{Taken, Tls},
    },
    Conn, ReadHalf, SocketReader, SocketWriter, WriteHalf,
    write::{ready_to_write, write_all, write_plain, write_rest},
};

impl Conn {
    /// Sends a request and waits for the first bytes of its response. `out` comes back as it was if `is_kept`; without it its
    /// storage is given back while the upstream takes its time. Returns what [`Input`] reads return: a failed write needs no handling of
    /// its own, since the read ends with the same broken connection, or with a response that the peer sent before it stopped reading.
    ///
    /// `hold`: an answer that does not come within so many milliseconds behind the request is not waited for any longer, see
    /// [`is_canceled`](super::is_canceled); the deadline that was set before is gone then.
    pub(crate) async fn ask(
        &mut self,
        out: &mut Buffer,
        is_kept: bool,
        input: &mut Input,
        (at_most, bytes_max): (usize, usize),
        hold: Option<u64>,
    ) -> io::Result<usize> {
        let hold = hold.map(|ms| Hold { timer: &self.timer, ms });
        let (ReadHalf::Socket(read), WriteHalf::Socket(write)) = (&mut self.read, &mut self.write) else {
            // Also one that is a tunnel.
            let ReadHalf::Stream(stream) = &self.read else { return Err(io::ErrorKind::Unsupported.into()) };
            return stream.ask(out, is_kept, input, (at_most, bytes_max), hold).await;
        };
        let Some(tls) = read.tls.clone() else {
            let space = input.lend(at_most, bytes_max).ok_or(io::ErrorKind::OutOfMemory)?;
            let (result, space) = ask_plain(read, write, out, is_kept, space, hold).await;
            input.restore(space);
            return result;
        };
        if tls.is_kernel() {
            return ask_kernel(read, write, &tls, out, is_kept, input, (at_most, bytes_max), hold).await;
        }
        let mut sent = 0;
        loop {
            let mut records = tls.buffer();
            sent += tls.seal(&out[sent..], &mut records)?;
            if sent < out.len() {
                let result = write_plain(write, &mut records).await;
                tls.written(result.is_ok());
                result?;
                continue;
            }
            if !is_kept {
                out.clear();
                out.release();
            }
            let (result, space) = ask_plain(read, write, &mut records, false, tls.lend_space(), hold).await;
            tls.restore_space(space);
            tls.written(true);
            drop(records);
            let mut result = result;
            loop {
                if result? == 0 {
                    tls.socket_ended();
                    return Ok(0);
                }
                match tls.take(input, at_most, bytes_max)? {
                    Taken::Bytes(count) => return Ok(count),
                    Taken::Closed => return Ok(0),
                    Taken::Nothing => {}
                }
                let (again, space) = read_held(read, tls.lend_space(), hold).await;
                tls.restore_space(space);
                result = again;
            }
        }
    }

    /// Sends a request, until it is written or its response has begun to come. How it fails, reading will say.
    pub(crate) async fn tell(&mut self, out: &mut Buffer) {
        match &self.write {
            WriteHalf::Socket(_) => drop(write_all(&mut self.write, out).await),
            WriteHalf::Stream(stream) => stream.tell(out).await,
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "as `Conn::ask`, with the halves taken apart")]
async fn ask_kernel(
    read: &mut SocketReader,
    write: &mut SocketWriter,
    tls: &Tls,
    out: &mut Buffer,
    is_kept: bool,
    input: &mut Input,
    (at_most, bytes_max): (usize, usize),
    hold: Option<Hold<'_>>,
) -> io::Result<usize> {
    ready_to_write(tls, write, out.len()).await?;
    let space = input.lend(at_most, bytes_max).ok_or(io::ErrorKind::OutOfMemory)?;
    let (mut result, space) = ask_plain(read, write, out, is_kept, space, hold).await;
    input.restore(space);
    loop {
        if let Some(count) = tls.kernel_read(result)? {
            return Ok(count);
        }
        let space = input.lend(at_most, bytes_max).ok_or(io::ErrorKind::OutOfMemory)?;
        let (again, space) = read_held(read, space, hold).await;
        input.restore(space);
        result = again;
    }
}

/// See [`Conn::ask`].
#[derive(Debug, Clone, Copy)]
pub(in crate::worker) struct Hold<'a> {
    timer: &'a Timer,
    ms: u64,
}

impl Hold<'_> {
    /// The request is written: from here on its answer is waited for.
    pub(in crate::worker) fn begin(self) {
        // A deadline that has passed in mid-write stays the one that has.
        if !self.timer.has_expired() {
            self.timer.set(now_ms() + self.ms, Expiry::CancelRead);
        }
    }
}

/// Reads, for as long as the hold lasts.
async fn read_held(
    read: &mut SocketReader,
    space: SliceMut<Vec<u8>>,
    hold: Option<Hold<'_>>,
) -> (io::Result<usize>, SliceMut<Vec<u8>>) {
    let room = space.end() - space.begin();
    let (result, space) = match hold {
        // It has passed after the read before this one, which it was too late for.
        Some(hold) if hold.timer.has_expired() => (Err(Errno::CANCELED.into()), space),
        Some(hold) => read.socket.cancelable_read(space, hold.timer.cancel_handle()).await,
        None => read.socket.read(space).await,
    };
    read.has_read_answer(&result, room);
    (result, space)
}

/// Not both at once: a read that is submitted together with its request finds nothing, and must be woken up for what comes. One that is
/// submitted a pass later finds the response where it has come by then, which on a busy worker is most of the time.
async fn ask_plain(
    read: &mut SocketReader,
    write: &mut SocketWriter,
    out: &mut Buffer,
    is_kept: bool,
    space: SliceMut<Vec<u8>>,
    hold: Option<Hold<'_>>,
) -> (io::Result<usize>, SliceMut<Vec<u8>>) {
    let len = out.len();
    let (written, bytes) = write.socket.write(out.lend()).await;
    out.restore(bytes);
    asked(write, out, is_kept, written, len).await;
    if let Some(hold) = hold {
        hold.begin();
    }
    read_held(read, space, hold).await
}

/// The first write of a request of `len` bytes is done.
async fn asked(write: &mut SocketWriter, out: &mut Buffer, is_kept: bool, written: io::Result<usize>, len: usize) {
    if let Ok(written) = written
        && written < len
    {
        // A request larger than the socket's buffer. How it ends, the read will say.
        let _ = write_rest(write, out, written).await;
    }
    if !is_kept {
        // An upstream may take its time: as many requests as wait for it, so many buffers less.
        out.clear();
        out.release();
    }
}

#[cfg(test)]
mod tests {
    use meshring_core::limits::PROMPT_ANSWERS_MIN;

    use super::*;
    use crate::testing::{on_each_driver, pair};

    #[test]
    fn a_connection_is_prompt_after_enough_answers_in_a_row_and_no_more_after_one_that_is_late() {
        on_each_driver(async |worker| {
            let (conn, _server) = pair(&worker);
            for _ in 0..2 {
                for _ in 0..PROMPT_ANSWERS_MIN {
                    assert!(!conn.is_prompt());
                    conn.has_answered(true);
                }
                for _ in 0..1_000 {
                    assert!(conn.is_prompt());
                    conn.has_answered(true);
                }
                conn.has_answered(false);
            }
        });
    }

    #[test]
    fn a_deadline_that_has_passed_while_the_request_was_written_is_still_known_behind_it() {
        on_each_driver(async |worker| {
            for is_late in [false, true] {
                let (conn, _server) = pair(&worker);
                conn.timer.set(now_ms() + 1_000, Expiry::ShutdownBoth);
                worker.deadlines.tick(now_ms() + if is_late { 2_000 } else { 0 });
                Hold { timer: &conn.timer, ms: 100 }.begin();
                conn.timer.set(now_ms() + 1_000, Expiry::ShutdownBoth);
                assert_eq!(conn.timer.take_expired(), is_late);
            }
        });
    }
}
