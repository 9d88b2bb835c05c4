//! A request of a stream that has gone upstream, while its response does not come, or its client does not take it.
//!
//! Most responses come within a moment. For one that does not, all that its request has needed on the way is given up: tables of
//! fields, buffers, and the large future that serves it. What is left here is what it takes to go on when the upstream says
//! something, or to send the request once more where that is allowed. So thousands of streams can wait, as long polls and calls to slow
//! servers do.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use meshring_core::{
    http::{
        head::{Method, Version},
        request::RequestHead,
    },
    stats::Counter,
    table::lookup::UriMatch,
};

use super::{
    After,
    attempt::{Sending, Sent, forward},
    plan::{Plan, Target},
};
use crate::{
    balance::ClusterState,
    observe::{Paused, Record},
    policy::Edits,
    route::Forward,
    upstream::{Endpoint, Reuse},
    worker::{
        Worker,
        buffers::Input,
        conn::{Conn, readable},
        generation::{ClusterShared, Pinned},
    },
};

/// See [`Parked::readiness`].
pub(crate) type Readiness<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + 'a>>;

/// A request whose response is waited for, or cannot be written, but for the client's side.
pub(crate) struct Parked {
    worker: Rc<Worker>,
    pinned: Rc<Pinned>,
    aim: Aim,
    /// See [`Plan::extra`].
    extra: Box<[u8]>,
    /// Always there, but on the way in and out.
    record: Option<Paused>,
    sent: Option<Sent>,
    pub(super) attempt: u8,
    pub(super) reuse: Reuse,
    pub(super) method: Method,
    pub(super) version: Version,
    pub(super) keep_alive: bool,
    pub(super) is_websocket: bool,
}

/// A [`Target`] that borrows nothing: rule and destination by their positions in the table.
enum Aim {
    Cluster { rule: u32, destination: u32, cluster: Rc<ClusterState>, literal: Option<Box<SocketAddr>> },
    Application { endpoint: Rc<Endpoint>, shared: Rc<ClusterShared> },
}

impl Aim {
    fn of(target: &Target<'_>, pinned: &Pinned) -> Self {
        let table = pinned.table();
        match target {
            Target::Cluster { chosen, cluster, literal } => Self::Cluster {
                rule: position(&table.routes, chosen.rule),
                destination: position(&table.destinations, chosen.destination),
                cluster: Rc::clone(cluster),
                literal: literal.map(Box::new),
            },
            Target::Application { endpoint, shared } => {
                Self::Application { endpoint: Rc::clone(endpoint), shared: Rc::clone(shared) }
            }
        }
    }

    fn target<'g>(&self, pinned: &'g Pinned) -> Target<'g> {
        let table = pinned.table();
        match self {
            Self::Cluster { rule, destination, cluster, literal } => Target::Cluster {
                chosen: Forward {
                    rule: &table.routes[*rule as usize],
                    destination: &table.destinations[*destination as usize],
                    // It was for the request's path.
                    uri: UriMatch::None,
                },
                cluster: Rc::clone(cluster),
                literal: literal.as_deref().copied(),
            },
            Self::Application { endpoint, shared } => {
                Target::Application { endpoint: Rc::clone(endpoint), shared: Rc::clone(shared) }
            }
        }
    }
}

/// Where `one` is in the slice that it was borrowed from.
fn position<T>(all: &[T], one: &T) -> u32 {
    let offset = std::ptr::from_ref(one).addr() - all.as_ptr().addr();
    (offset / size_of::<T>()) as u32
}

impl fmt::Debug for Parked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parked").field("record", &self.record).finish_non_exhaustive()
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        if let Some(paused) = self.record.take() {
            drop(Record::resume(&self.worker.stats, paused));
        }
    }
}

impl Parked {
    /// A request that was sent and has no response yet; [`keep`](Self::keep) what is counted of it, too.
    pub(super) fn new(
        worker: &Rc<Worker>,
        pinned: &Rc<Pinned>,
        plan: &Plan<'_>,
        sending: &Sending,
        sent: Sent,
    ) -> Box<Self> {
        let &Sending { head: RequestHead { method, version, keep_alive, .. }, is_websocket, reuse, .. } = sending;
        Box::new(Self {
            worker: Rc::clone(worker),
            pinned: Rc::clone(pinned),
            aim: Aim::of(&plan.target, pinned),
            extra: plan.extra.as_slice().into(),
            record: None,
            sent: Some(sent),
            attempt: sending.attempt as u8,
            reuse,
            method,
            version,
            keep_alive,
            is_websocket,
        })
    }

    /// Counts on with it.
    pub(super) fn keep(&mut self, record: Record<'_>) {
        self.record = Some(record.pause());
    }

    /// What waits for the upstream, where that is a connection of its own; a stream is [polled](Self::poll) as it is. May be dropped: a
    /// wait for readiness has no bytes.
    pub(crate) fn readiness(&self) -> Option<Readiness<'_>> {
        let sent = self.sent.as_ref()?;
        let upstream = &sent.lease.conn;
        match upstream.stream() {
            // It is the client that is waited for.
            _ if sent.stalled.is_some() => None,
            Some(_) => None,
            None => Some(Box::pin(readable(&upstream.read))),
        }
    }

    /// Waits until the upstream says something, or the client takes more of its response, or time is over. Ready with false: the client,
    /// whose stream `conn` is, has cancelled it.
    pub(crate) fn poll(&self, conn: &Conn, readiness: &mut Option<Readiness<'_>>, cx: &mut Context<'_>) -> Poll<bool> {
        let (Some(sent), Some(stream)) = (&self.sent, conn.stream()) else { return Poll::Ready(true) };
        // An error is for the read that follows.
        let is_ready = match (readiness, sent.lease.conn.stream()) {
            _ if sent.stalled.is_some() => stream.poll_writable(cx).is_ready(),
            (Some(ready), _) => ready.as_mut().poll(cx).is_ready(),
            (None, Some(upstream)) => upstream.poll_readable(cx).is_ready(),
            (None, None) => true,
        };
        if is_ready {
            return Poll::Ready(true);
        }
        stream.poll_cancelled(cx).map(|()| {
            self.worker.stats.add(Counter::Http2StreamsCancelled, 1);
            false
        })
    }
}

/// Goes on with a request of which its upstream has said something, or whose client takes more.
pub(super) async fn resume(conn: &mut Conn, mut parked: Box<Parked>) -> After {
    let (Some(paused), Some(sent)) = (parked.record.take(), parked.sent.take()) else { return After::Close };
    let worker = Rc::clone(&parked.worker);
    let record = Record::resume(&worker.stats, paused);
    let mut sending = Sending::resumed(&worker, conn, &record, sent, &parked);
    let (pinned, extra) = (Rc::clone(&parked.pinned), std::mem::take(&mut parked.extra).into_vec());
    let target = parked.aim.target(&pinned);
    drop(parked);
    let response_edits = match &target {
        Target::Cluster { chosen, .. } => Edits::of_response(chosen),
        Target::Application { .. } => Edits::default(),
    };
    // The deadlines are set already.
    let plan = Plan { target, response_edits, timeout_ms: 0, extra };
    let mut input = Input::new(worker.buffers.lazy());
    let mut scratch = worker.take_scratch();
    let fields = &mut scratch.response;
    let after = forward(&worker, conn, &mut input, fields, &record, &pinned, &plan, &mut sending).await;
    worker.give_scratch(scratch);
    after.with(record)
}
