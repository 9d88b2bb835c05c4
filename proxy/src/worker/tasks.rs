//! The tasks of a worker: accept loops, the mailbox, the clock, and one per connection.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    net::TcpListener as StdTcpListener,
    os::unix::net::UnixStream as StdUnixStream,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

use meshring_core::{
    limits::{ACCEPT_PAUSE_MS, DEADLINE_TICK_MS, STREAM_TASKS_POOLED_MAX, SWEEP_MS},
    stats::Counter,
};
use monoio::{
    io::AsyncReadRent as _,
    net::{TcpListener, UnixStream},
};

use super::{
    Start, Worker, build,
    conn::{Conn, exhausted, into_std},
    deadlines::now_ms,
    futures::Pooled,
};
use crate::{
    accept::{self, Accepted, Listener, Quiet, Work},
    request::{parked::Parked, tunnel::Tunnel},
};

/// Everything that a worker does, until it has drained.
pub(super) async fn main(start: Start) -> io::Result<()> {
    let (worker, sockets, wakeups) = build(start)?;
    let counting = Rc::clone(&worker);
    counting.turns.drive(pin!(serve(worker, sockets, wakeups))).await
}

async fn serve(worker: Rc<Worker>, sockets: Vec<StdTcpListener>, wakeups: StdUnixStream) -> io::Result<()> {
    let _last_rites = LastRites(Rc::clone(&worker));
    for (socket, listener) in sockets.into_iter().zip(worker.listeners.clone()) {
        socket.set_nonblocking(true)?;
        monoio::spawn(accept::listen(Rc::clone(&worker), socket, listener));
    }
    wakeups.set_nonblocking(true)?;
    monoio::spawn(mail(Rc::clone(&worker), wakeups));
    let mut swept_ms = now_ms();
    let mut has_burst = false;
    while !worker.drained() {
        worker.turns.note_tick();
        monoio::time::sleep(Duration::from_millis(DEADLINE_TICK_MS)).await;
        let now = now_ms();
        worker.deadlines.tick(now);
        worker.gauge_buffers();
        if now >= swept_ms + SWEEP_MS {
            swept_ms = now;
            worker.endpoints.sweep(now);
            worker.clusters.sweep();
            worker.buffers.note_freed(worker.futures.sweep());
            has_burst |= worker.buffers.sweep();
            has_burst = has_burst && !super::allocator::give_back();
        }
    }
    Ok(())
}

/// Dropped with the future of [`main`], which a panic of any task unwinds. The runtime keeps the other tasks, and with
/// them their sockets: a listening socket that nobody accepts from would go on to get its share of new connections, and
/// clients would wait for ever.
struct LastRites(Rc<Worker>);

impl Drop for LastRites {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end_all();
        }
    }
}

async fn mail(worker: Rc<Worker>, wakeups: StdUnixStream) {
    let Ok(mut wakeups) = UnixStream::from_std(wakeups) else { return };
    let mut buffer = vec![0; 64];
    loop {
        let mailboxes = std::sync::Arc::clone(&worker.mailboxes);
        for message in mailboxes.drain(worker.index) {
            if let Some(accepted) = worker.handle(message) {
                accept::take_over(&worker, accepted);
            }
        }
        let (result, returned) = wakeups.read(buffer).await;
        buffer = returned;
        if !matches!(result, Ok(count) if count > 0) {
            return;
        }
    }
}

/// Accepts connections until the worker drains; what to do with each is for `accept` to say.
pub(crate) async fn accept_loop(worker: &Rc<Worker>, socket: StdTcpListener, listener: &Rc<Listener>) {
    let socket = match TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::error!(address = %listener.address, %error, "cannot listen");
            return;
        }
    };
    loop {
        match socket.accept().await {
            Ok((stream, _)) if worker.draining() => drop(stream),
            Ok((stream, _)) => accept::place(worker, listener, Accepted::new(into_std(stream), listener.index)),
            Err(_) if worker.draining() => return,
            Err(error) => {
                // EMFILE, ENFILE, ENOBUFS: the backlog keeps the client while descriptors come back. Without the pause this loop
                // would take a whole CPU.
                let code = exhausted(&error).unwrap_or("accept_failed");
                worker.log_refusal(
                    code,
                    None,
                    &format_args!("cannot accept a connection on {}: {error}", listener.address),
                );
                monoio::time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
            }
        }
        if worker.draining() {
            return;
        }
    }
}

/// Tells a connection that there is no room for it, on a task of its own.
pub(crate) fn turn_away(worker: &Rc<Worker>, conn: Conn) {
    let worker = Rc::clone(worker);
    worker.turned_away.set(worker.turned_away.get() + 1);
    monoio::spawn(async move {
        accept::turn_away(&worker, conn).await;
        worker.turned_away.set(worker.turned_away.get() - 1);
    });
}

/// Serves a connection on a task of its own. A panic ends that connection alone.
pub(crate) fn guarded(worker: &Rc<Worker>, mut conn: Conn, listener: Rc<Listener>) {
    let worker = Rc::clone(worker);
    monoio::spawn(async move {
        // By reference: what is moved into a future has a place in its caller's, too.
        contained(&worker, pin!(accept::serve(&worker, &mut conn, &listener))).await;
        drop(conn);
        worker.stats.subtract(Counter::ConnectionsActive, 1);
        worker.mailboxes.remove_connection(worker.index);
    });
}

/// Tasks that have worked on a stream and wait for the next one. To make such a task takes kilobytes that the allocator has to find and
/// that are moved there: 6 % of what a small request costs.
#[derive(Default)]
pub(super) struct StreamTasks(RefCell<Vec<Rc<Seat>>>);

/// Where a task waits.
#[derive(Default)]
struct Seat {
    next: RefCell<Option<Job>>,
    waker: RefCell<Option<Waker>>,
}

/// One stream to be worked on.
struct Job {
    conn: Conn,
    listener: Rc<Listener>,
    work: Work,
}

/// Works on one stream of an HTTP/2 connection on a task of its own. A panic ends that stream alone.
pub(super) fn guarded_stream(worker: &Rc<Worker>, conn: Conn, listener: Rc<Listener>, work: Work) {
    let job = Job { conn, listener, work };
    let waiting = worker.stream_tasks.0.borrow_mut().pop();
    let Some(seat) = waiting else {
        let worker = Rc::clone(worker);
        // Not in the task itself: requests that wait for their connections to upstreams are many, and then gone.
        monoio::spawn(async move { Pooled::new(&worker.futures, serve_streams(&worker, job)).await });
        return;
    };
    *seat.next.borrow_mut() = Some(job);
    let waker = seat.waker.borrow_mut().take();
    if let Some(waker) = waker {
        waker.wake();
    }
}

async fn serve_streams(worker: &Rc<Worker>, first: Job) {
    let seat = Rc::new(Seat::default());
    let mut next = first;
    loop {
        let Job { mut conn, listener, work } = next;
        let mut quiet = None;
        let has_panicked = {
            let serving = pin!(async { quiet = accept::serve_stream(worker, &mut conn, &listener, work).await });
            contained(worker, serving).await
        };
        if has_panicked {
            return;
        }
        match quiet {
            Some(quiet) => keep(worker, conn, listener, quiet),
            None => drop((conn, listener)),
        }
        {
            let mut waiting = worker.stream_tasks.0.borrow_mut();
            if worker.draining() || waiting.len() >= STREAM_TASKS_POOLED_MAX {
                return;
            }
            waiting.push(Rc::clone(&seat));
        }
        next = poll_fn(|cx| {
            if let Some(job) = seat.next.borrow_mut().take() {
                return Poll::Ready(job);
            }
            *seat.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Waits with a quiet stream on a task that is as small as can be: there may be thousands.
fn keep(worker: &Rc<Worker>, conn: Conn, listener: Rc<Listener>, quiet: Quiet) {
    match quiet {
        Quiet::Tunnel(tunnel) => tunnel_on(worker, conn, tunnel),
        Quiet::Request(parked) => wait_for_response(worker, conn, listener, parked),
    }
}

/// A reset is for the tunnel to pass on: dropped, it would look like an end.
fn tunnel_on(worker: &Rc<Worker>, mut conn: Conn, mut tunnel: Box<Tunnel>) {
    let worker = Rc::clone(worker);
    monoio::spawn(async move {
        contained(&worker, pin!(accept::tunnelled(&worker, &mut conn, &mut tunnel))).await;
    });
}

/// Until there is work to do on the stream again.
fn wait_for_response(worker: &Rc<Worker>, conn: Conn, listener: Rc<Listener>, parked: Box<Parked>) {
    let worker = Rc::clone(worker);
    monoio::spawn(async move {
        let answered = {
            let mut readiness = parked.readiness();
            poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| parked.poll(&conn, &mut readiness, cx))) {
                Ok(polled) => polled.map(Ok),
                Err(_) => Poll::Ready(Err(())),
            })
            .await
        };
        match answered {
            Ok(true) => guarded_stream(&worker, conn, listener, Work::Response(parked)),
            Ok(false) => {}
            Err(()) => worker.stats.add(Counter::Panics, 1),
        }
    });
}

/// Runs a future; a panic in it is counted and ends it: whether there was one.
pub(super) async fn contained(worker: &Worker, mut serving: Pin<&mut impl Future<Output = ()>>) -> bool {
    let panicked = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| serving.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(())) => Poll::Ready(false),
        Err(_) => Poll::Ready(true),
    })
    .await;
    if panicked {
        worker.stats.add(Counter::Panics, 1);
    }
    panicked
}
