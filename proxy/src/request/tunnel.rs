//! A tunnel: two connections that are one from here on, for whatever protocol (RFC 9110 sections 7.8 and 9.3.6).
//!
//! Each direction has one buffer, which it gives back while nothing comes, and the slower side sets its pace. What is large goes from
//! socket to socket instead, where both carry plain bytes. A half that is
//! closed is closed on the other side, too, behind all that came before, while the other direction goes on; a reset becomes a
//! reset.

use std::{
    cell::Cell,
    io,
    pin::{Pin, pin},
};

use meshring_core::{
    limits::{
        BUFFER_BYTES, BUFFERS_IN_A_ROW_MAX, LINGER_BYTES_MAX, SPLICE_PIPE_BYTES, SPLICE_TUNNEL_BYTES_MIN,
        SPLICE_TUNNEL_PART_BYTES_MIN, SPLICED_IN_A_ROW_BYTES_MAX, TUNNEL_BROKEN_MS_MAX, TUNNEL_READ_BYTES_MAX,
    },
    stats::{ClusterTcp, Counter, WorkerSlots},
};

use crate::{
    upstream::Lease,
    worker::{
        Worker,
        buffers::Input,
        conn::{Conn, ReadHalf, WriteHalf, end, readable, write_all},
        deadlines::{Expiry, Timer, now_ms},
        join::{both, yield_now},
        splice::{Moved, Splice},
    },
};

/// A client's connection that became a tunnel, but for the client's side.
#[derive(Debug)]
pub(crate) struct Tunnel {
    /// The endpoint counts it as a request in flight.
    lease: Lease,
    /// What came before it was open.
    from_client: Input,
    from_upstream: Input,
    /// The statistics of its cluster, for a connection that was nothing else from its beginning.
    slot: Option<usize>,
}

/// How a direction has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// To its end, which was passed on; or with the time.
    Whole,
    /// It looks so, but the other direction's write to the sender, which fails, knows better: nothing was passed on.
    Unclear,
    /// Its sender is gone without an end.
    ReadFailed,
    /// Its receiver is gone.
    WriteFailed {
        /// It was reset before it had ended its side.
        is_reset: bool,
    },
}

/// What both directions know of a connection.
struct End {
    /// For the limit of time of the whole tunnel.
    timer: Timer,
    /// Whether a write to it is on its way, or has failed.
    is_written: Cell<bool>,
}

impl End {
    fn of(conn: &Conn) -> Self {
        Self { timer: conn.second_timer(), is_written: Cell::new(false) }
    }
}

/// The limit of time for both directions together: whatever moves in one of them keeps both.
struct Patience {
    client: End,
    upstream: End,
    ms_max: Cell<u64>,
}

impl Patience {
    /// Something has moved.
    fn renew(&self) {
        let at_ms = now_ms().saturating_add(self.ms_max.get());
        // What is reset is decided when both directions have ended.
        self.client.timer.set(at_ms, Expiry::EndBoth);
        self.upstream.timer.set(at_ms, Expiry::EndBoth);
    }

    /// Whether the connections were ended by us.
    fn is_over(&self) -> bool {
        self.client.timer.has_expired() || self.upstream.timer.has_expired()
    }

    /// One direction has broken: the other one may only bring what is on its way.
    fn shorten(&self) {
        self.ms_max.set(TUNNEL_BROKEN_MS_MAX);
        self.renew();
    }
}

/// Counts an open tunnel.
struct Open<'w> {
    stats: &'w WorkerSlots,
    slot: Option<usize>,
}

impl<'w> Open<'w> {
    fn count(stats: &'w WorkerSlots, slot: Option<usize>) -> Self {
        match slot {
            Some(slot) => {
                stats.add(Counter::TcpConnections, 1);
                stats.add(Counter::TcpActive, 1);
                stats.tcp(slot, ClusterTcp::Opened, 1);
            }
            None => {
                stats.add(Counter::Tunnels, 1);
                stats.add(Counter::TunnelsActive, 1);
            }
        }
        Self { stats, slot }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        match self.slot {
            Some(slot) => {
                self.stats.subtract(Counter::TcpActive, 1);
                self.stats.tcp(slot, ClusterTcp::Closed, 1);
            }
            None => self.stats.subtract(Counter::TunnelsActive, 1),
        }
    }
}

/// Where the bytes of a direction are counted.
#[derive(Debug, Clone, Copy)]
enum Meter {
    Tunnel(Counter),
    Connection(usize, ClusterTcp),
}

impl Meter {
    fn add(self, stats: &WorkerSlots, bytes: u64) {
        match self {
            Self::Tunnel(counter) => stats.add(counter, bytes),
            Self::Connection(slot, counter) => stats.tcp(slot, counter, bytes),
        }
    }
}

impl Tunnel {
    /// To the upstream of a lease. What both have sent already goes first.
    pub(super) fn new(lease: Lease, from_client: Input, from_upstream: Input) -> Self {
        Self { lease, from_client, from_upstream, slot: None }
    }

    /// Likewise, for a connection that was never one of HTTP; `slot`: the statistics of its cluster.
    pub(super) fn of_connection(lease: Lease, from_client: Input, from_upstream: Input, slot: usize) -> Self {
        Self { lease, from_client, from_upstream, slot: Some(slot) }
    }

    /// Passes bytes on until both directions have ended. No generation is held meanwhile: a tunnel may last for days. Everything is
    /// borrowed, since a future keeps what it is given twice.
    pub(crate) async fn run(&mut self, worker: &Worker, client: &mut Conn) {
        let stats = &worker.stats;
        let slot = self.slot;
        let _open = Open::count(stats, slot);
        let meter = |tunnel, connection| match slot {
            Some(slot) => Meter::Connection(slot, connection),
            None => Meter::Tunnel(tunnel),
        };
        let upstream = &mut self.lease.conn;
        for timer in [&client.timer, &upstream.timer] {
            timer.clear();
            timer.drop_canceller();
        }
        let (up, down) = {
            // Dropped before the connections, whose timers they are.
            let ms_max = Cell::new(worker.limits.tunnel_idle_ms_max);
            let patience = Patience { client: End::of(client), upstream: End::of(upstream), ms_max };
            patience.renew();
            let mut up = Way {
                from: &client.read,
                to: &mut upstream.write,
                input: &mut self.from_client,
                patience: &patience,
                ends: (&patience.client, &patience.upstream),
                in_a_row: 0,
                worker,
                meter: meter(Counter::TunnelUpstreamBytes, ClusterTcp::ReceivedBytes),
            };
            let mut down = Way {
                from: &upstream.read,
                to: &mut client.write,
                input: &mut self.from_upstream,
                patience: &patience,
                ends: (&patience.upstream, &patience.client),
                in_a_row: 0,
                worker,
                meter: meter(Counter::TunnelDownstreamBytes, ClusterTcp::SentBytes),
            };
            both(pin!(up.pass()), pin!(down.pass())).await
        };
        match (up, down) {
            (Ended::Whole, Ended::Whole) => {}
            // It has got all, or gets its end now, but closing with unread input would take that from it.
            (Ended::WriteFailed { .. }, Ended::Whole) | (Ended::WriteFailed { is_reset: false }, Ended::Unclear) => {
                client.drain(LINGER_BYTES_MAX, TUNNEL_BROKEN_MS_MAX).await;
            }
            (Ended::Whole, Ended::WriteFailed { .. }) | (Ended::Unclear, Ended::WriteFailed { is_reset: false }) => {
                upstream.drain(LINGER_BYTES_MAX, TUNNEL_BROKEN_MS_MAX).await;
            }
            _ => {
                client.abort();
                upstream.abort();
            }
        }
    }
}

/// How a direction stops being spliced.
enum Unspliced {
    Ended(Ended),
    /// Nothing more is there.
    Paused,
    /// What comes is not worth it, or only a read can take it.
    Small,
}

fn write_failed(error: &io::Error) -> Ended {
    Ended::WriteFailed { is_reset: error.kind() == io::ErrorKind::ConnectionReset }
}

/// One direction.
struct Way<'a> {
    from: &'a ReadHalf,
    to: &'a mut WriteHalf,
    input: &'a mut Input,
    patience: &'a Patience,
    /// The sender and the receiver.
    ends: (&'a End, &'a End),
    /// Bytes since it was last tried to splice it, or enough to try at once: it was spliced until nothing more came.
    in_a_row: u64,
    worker: &'a Worker,
    meter: Meter,
}

impl Way<'_> {
    /// While nothing comes, this small future is all there is.
    async fn pass(&mut self) -> Ended {
        let ended = loop {
            if let Some(ended) = self.burst().await {
                break ended;
            }
            if readable(self.from).await.is_err() {
                break Ended::ReadFailed;
            }
        };
        if matches!(ended, Ended::ReadFailed | Ended::WriteFailed { .. }) {
            self.patience.shorten();
        }
        if ended == Ended::ReadFailed {
            // Nobody is there to take what the other direction brings: it need not go on waiting for it.
            self.ends.1.timer.shutdown(Expiry::ShutdownRead);
        }
        ended
    }

    /// Passes on what is there; `None` where nothing is left. A read that finds nothing costs as much as one that does, so there
    /// is none behind one that was not full. Not an `async fn`: see `requests` in `accept`.
    fn burst(&mut self) -> Pin<Box<dyn Future<Output = Option<Ended>> + '_>> {
        Box::pin(async {
            let mut written: u32 = 0;
            let mut is_all = false;
            loop {
                if !self.input.is_empty() {
                    let count = self.input.unread().len() as u64;
                    self.ends.1.is_written.set(true);
                    if let Err(error) = write_all(self.to, self.input.whole()).await {
                        return Some(write_failed(&error));
                    }
                    self.ends.1.is_written.set(false);
                    self.input.clear();
                    self.meter.add(&self.worker.stats, count);
                    self.patience.renew();
                    written = written.wrapping_add(1);
                    self.in_a_row += count;
                    if written.is_multiple_of(BUFFERS_IN_A_ROW_MAX) {
                        yield_now().await;
                    }
                }
                if self.in_a_row >= SPLICE_TUNNEL_BYTES_MIN {
                    self.in_a_row = 0;
                    if let Some(splice) = self.splice() {
                        match self.spliced(splice).await {
                            Unspliced::Ended(ended) => return Some(ended),
                            Unspliced::Paused => {
                                self.in_a_row = SPLICE_TUNNEL_BYTES_MIN;
                                return None;
                            }
                            Unspliced::Small => is_all = false,
                        }
                    }
                }
                if is_all {
                    self.input.release();
                    return None;
                }
                match self.input.fill_now(self.from, TUNNEL_READ_BYTES_MAX, BUFFER_BYTES) {
                    Ok(0) => return Some(self.end().await),
                    Ok(count) => {
                        self.patience.renew();
                        is_all = count < TUNNEL_READ_BYTES_MAX;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.input.release();
                        return None;
                    }
                    Err(_) => return Some(Ended::ReadFailed),
                }
            }
        })
    }

    /// A way around the buffer, where there is one. Half of the worker's memory is for others: what a receiver that stalls pins here is
    /// more than a buffer.
    fn splice(&mut self) -> Option<Splice> {
        let pool = self.input.pool();
        if pool.used_bytes() + SPLICE_PIPE_BYTES > self.worker.limits.buffer_bytes_max / 2 {
            return None;
        }
        let splice = Splice::for_tunnel(self.from, self.to, pool)?;
        self.input.release();
        Some(splice)
    }

    /// Passes on what comes without a buffer, for as long as it keeps coming.
    async fn spliced(&mut self, mut splice: Splice) -> Unspliced {
        let mut in_a_row = 0;
        let mut is_first = true;
        loop {
            let count = match splice.take(self.from, u64::MAX) {
                Ok(Moved::Bytes(count)) => count,
                // Urgent data looks the same once the sender has ended behind it: only a read can tell.
                Ok(Moved::End) => return Unspliced::Small,
                // There was something to read, and there is not: a read will find out what it is.
                Ok(Moved::Nothing) if is_first => return Unspliced::Small,
                Ok(Moved::Nothing) => return Unspliced::Paused,
                Err(_) => return Unspliced::Ended(Ended::ReadFailed),
            };
            is_first = false;
            self.ends.1.is_written.set(true);
            while splice.held() > 0 {
                let given = match splice.give(self.to) {
                    Ok(given) => given,
                    Err(error) => return Unspliced::Ended(write_failed(&error)),
                };
                if given > 0 {
                    self.meter.add(&self.worker.stats, given as u64);
                    self.worker.stats.add(Counter::SplicedBytes, given as u64);
                    self.patience.renew();
                }
                if splice.held() > 0
                    && let Err(error) = Splice::writable(self.to).await
                {
                    return Unspliced::Ended(write_failed(&error));
                }
            }
            self.ends.1.is_written.set(false);
            if count < SPLICE_TUNNEL_PART_BYTES_MIN {
                return Unspliced::Small;
            }
            in_a_row += count;
            if in_a_row >= SPLICED_IN_A_ROW_BYTES_MAX {
                in_a_row = 0;
                yield_now().await;
            }
        }
    }

    /// The sender has ended, or it looks so.
    async fn end(&mut self) -> Ended {
        self.input.release();
        let (sender, half) = (self.ends.0, self.from);
        if self.patience.is_over() {
            return Ended::Whole;
        }
        if half.is_truncated() {
            return Ended::ReadFailed;
        }
        if sender.is_written.get() && half.may_be_reset() {
            return Ended::Unclear;
        }
        if end(self.to).await.is_ok() { Ended::Whole } else { Ended::WriteFailed { is_reset: false } }
    }
}

#[cfg(test)]
mod tests;
