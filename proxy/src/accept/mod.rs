//! Listeners, and which worker serves a connection.
//!
//! Each worker has its own SO_REUSEPORT socket, so accepting needs no lock. The kernel spreads by a hash of the
//! addresses, which is uneven for few connections; long-lived ones would stay so. A worker that accepts a connection
//! while another has clearly fewer hands the socket over.

mod first;
mod security;

pub(crate) use security::refuse_tls;

use std::{
    cell::{Cell, OnceCell},
    fmt,
    net::{SocketAddr, TcpListener as StdTcpListener, TcpStream as StdTcpStream},
    os::fd::{AsFd as _, OwnedFd},
    pin::{Pin, pin},
    rc::Rc,
};

use meshring_core::{
    http::{error::Refusal, head::Bounds},
    limits::{CONNECTIONS_TURNED_AWAY_MAX, HANDOVER_DIFFERENCE_MIN, LISTEN_BACKLOG, UNSENT_BYTES_MAX, UNTRACKED_MS},
    stats::Counter,
    table::{
        ArchivedTable,
        lookup::{Silent, Viewpoint},
    },
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen as listen_on, socket_with, sockopt};
use socket2::SockRef;

use crate::{
    parse::Begin,
    request::{
        self, End,
        parked::Parked,
        stream::{self, Carries, First},
        tunnel::Tunnel,
    },
    upstream::Endpoint,
    worker::{
        self, Worker, accept_loop,
        buffers::{Held, Input},
        congestion,
        conn::Conn,
        deadlines::now_ms,
        futures::Pooled,
        generation::ClusterShared,
        guarded,
        http2::server,
        mailbox::Message,
    },
};

/// Which way a listener's requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the application into the mesh: routed by the table.
    Outbound,
    /// From the mesh to the application.
    Inbound {
        /// Where the application listens.
        application: SocketAddr,
    },
    /// From the mesh to the applications of the inbound listeners, through tunnels over mutual TLS (Istio's HBONE).
    Hbone,
}

impl Direction {
    /// How large a request head may be: an application's own, or what another sidecar has made of it.
    pub(crate) fn request_bounds(self) -> Bounds {
        match self {
            Self::Outbound => Bounds::FIRST_HOP,
            Self::Inbound { .. } | Self::Hbone => Bounds::NEXT_HOP,
        }
    }
}

/// One listening address of a worker.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) index: usize,
    pub(crate) address: SocketAddr,
    pub(crate) direction: Direction,
    /// What connections to it are for, where the command line says so.
    service: Option<ServicePort>,
    /// Until then no connection is asked whether it was intercepted, in milliseconds of the worker's clock.
    untracked_until_ms: Cell<u64>,
    application: OnceCell<(Rc<Endpoint>, Rc<ClusterShared>)>,
}

/// `HOST:PORT`, or `*:PORT` for whatever service has the port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServicePort {
    pub(crate) host: Option<String>,
    pub(crate) port: u16,
}

impl ServicePort {
    /// Whether requests for it are routed as HTTP.
    pub(crate) fn is_http(&self, table: &ArchivedTable, viewpoint: &Viewpoint) -> bool {
        let host = self.host.as_ref().map(String::as_bytes);
        host.is_some_and(|host| table.virtual_host(viewpoint, host, Some(self.port), &mut Silent).is_ok())
    }
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host.as_deref().unwrap_or("*"), self.port)
    }
}

/// A connection that is on its way to its worker.
#[derive(Debug)]
pub(crate) struct Accepted {
    stream: StdTcpStream,
    listener: usize,
}

impl Accepted {
    /// By the worker's listener of that index.
    pub(crate) fn new(stream: StdTcpStream, listener: usize) -> Self {
        Self { stream, listener }
    }
}

impl Listener {
    pub(crate) fn new(index: usize, address: SocketAddr, direction: Direction) -> Self {
        let untracked_until_ms = Cell::new(0);
        Self { index, address, direction, service: None, untracked_until_ms, application: OnceCell::new() }
    }

    /// For connections to a service.
    pub(crate) fn with_service(self, service: Option<ServicePort>) -> Self {
        Self { service, ..self }
    }

    /// What connections to it are for, where the command line says so.
    pub(crate) fn service(&self) -> Option<&ServicePort> {
        self.service.as_ref()
    }

    /// Whether there is nothing to be learnt about interceptions.
    pub(crate) fn is_untracked(&self) -> bool {
        now_ms() < self.untracked_until_ms.get()
    }

    /// There is not, for a while.
    pub(crate) fn note_untracked(&self) {
        self.untracked_until_ms.set(now_ms() + UNTRACKED_MS);
    }

    fn target(&self, worker: &Worker) -> &(Rc<Endpoint>, Rc<ClusterShared>) {
        self.application.get_or_init(|| {
            let address = match self.direction {
                Direction::Inbound { application } => application,
                Direction::Outbound | Direction::Hbone => self.address,
            };
            let name = format!("inbound|{}||{address}", self.address.port());
            (worker.endpoints.of(address, None), worker.clusters.of(&name))
        })
    }

    /// The application behind an inbound listener.
    pub(crate) fn application(&self, worker: &Worker) -> Rc<Endpoint> {
        Rc::clone(&self.target(worker).0)
    }

    /// Its statistics.
    pub(crate) fn cluster(&self, worker: &Worker) -> Rc<ClusterShared> {
        Rc::clone(&self.target(worker).1)
    }
}

/// Whether nobody else listens on an address. SO_REUSEPORT would let a second proxy of the same user in, and the kernel
/// would split the traffic between the two in silence.
pub(crate) fn check_free(address: SocketAddr) -> std::io::Result<()> {
    let fd = tcp_socket(address)?;
    bind(fd.as_fd(), &address)?;
    listen_on(fd.as_fd(), 1)?;
    Ok(())
}

fn tcp_socket(address: SocketAddr) -> std::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(fd.as_fd(), true)?;
    Ok(fd)
}

/// Binds an address that other workers can bind, too. Nobody is let in before [`listening`].
pub(crate) fn bind_address(address: SocketAddr) -> std::io::Result<OwnedFd> {
    let fd = tcp_socket(address)?;
    sockopt::set_socket_reuseport(fd.as_fd(), true)?;
    // Accepted sockets inherit it. A kernel that does not know it (before 3.12) holds more for slow readers.
    let _ = SockRef::from(&fd).set_tcp_notsent_lowat(UNSENT_BYTES_MAX);
    if congestion::applies(address) {
        congestion::set_local(fd.as_fd());
    }
    bind(fd.as_fd(), &address)?;
    Ok(fd)
}

/// Opens the door.
pub(crate) fn listening(bound: OwnedFd) -> std::io::Result<StdTcpListener> {
    listen_on(bound.as_fd(), LISTEN_BACKLOG)?;
    Ok(StdTcpListener::from(bound))
}

/// Accepts on one socket until the worker drains.
pub(crate) async fn listen(worker: Rc<Worker>, socket: StdTcpListener, listener: Rc<Listener>) {
    accept_loop(&worker, socket, &listener).await;
}

/// Serves a fresh connection here, or hands it over.
pub(crate) fn place(worker: &Rc<Worker>, listener: &Rc<Listener>, accepted: Accepted) {
    let own = worker.mailboxes.connections(worker.index);
    let (least, count) = worker.mailboxes.least_loaded();
    if least != worker.index && own + 1 >= count + HANDOVER_DIFFERENCE_MIN {
        worker.stats.add(Counter::ConnectionsHandedOver, 1);
        // Counted at once: the next decision, of any worker, must know.
        worker.mailboxes.add_connection(least);
        worker.mailboxes.send(least, Message::Connection(accepted));
        return;
    }
    worker.mailboxes.add_connection(worker.index);
    start(worker, Rc::clone(listener), accepted);
}

/// Serves a connection that another worker has accepted and counted.
pub(crate) fn take_over(worker: &Rc<Worker>, accepted: Accepted) {
    let listener = Rc::clone(&worker.listeners[accepted.listener]);
    start(worker, listener, accepted);
}

fn start(worker: &Rc<Worker>, listener: Rc<Listener>, accepted: Accepted) {
    let is_full = worker.mailboxes.connections(worker.index) as usize > worker.limits.connections_max;
    if is_full {
        worker.stats.add(Counter::ConnectionsRefused, 1);
        worker.mailboxes.remove_connection(worker.index);
        if worker.turned_away.get() >= CONNECTIONS_TURNED_AWAY_MAX {
            return;
        }
    }
    match Conn::from_std(accepted.stream, &worker.deadlines) {
        // A response would be no answer to what is no request.
        Ok(conn) if is_full && stream::carries(worker, &conn, &listener) == Carries::Bytes => conn.abort(),
        Ok(conn) if is_full => worker::turn_away(worker, conn),
        Ok(conn) => {
            worker.stats.add(Counter::ConnectionsAccepted, 1);
            worker.stats.add(Counter::ConnectionsActive, 1);
            guarded(worker, conn, listener);
        }
        Err(error) => {
            worker.log_refusal("register_failed", None, &format_args!("cannot register a connection: {error}"));
            if !is_full {
                worker.mailboxes.remove_connection(worker.index);
            }
        }
    }
}

/// A run of requests, on the heap. Not an `async fn`: the large future must never be part of the small one's frame, not
/// even on its way into the box.
fn requests<'a>(
    worker: &'a Rc<Worker>,
    conn: &'a mut Conn,
    listener: &'a Listener,
    begin: Begin,
    is_fresh: &'a mut bool,
) -> Pooled<'a, End> {
    Pooled::new(&worker.futures, request::serve(worker, conn, listener, begin, is_fresh))
}

/// As [`requests`]: a handshake, if there is one.
fn opened<'a>(worker: &'a Rc<Worker>, conn: &'a mut Conn, listener: &'a Listener) -> Pooled<'a, Option<Begin>> {
    Pooled::new(&worker.futures, security::open(worker, conn, listener))
}

/// As [`requests`]: the beginning of a connection that carries bytes, or may.
fn first<'a>(
    worker: &'a Rc<Worker>,
    conn: &'a mut Conn,
    listener: &'a Listener,
    carries: Carries,
) -> Pooled<'a, First> {
    Pooled::new(&worker.futures, first::first(worker, conn, listener, carries))
}

/// As [`requests`]: a connection of bytes, from its first ones to its upstream.
fn bytes<'a>(
    worker: &'a Rc<Worker>,
    conn: &'a mut Conn,
    listener: &'a Listener,
    begun: Held,
) -> Pin<Box<dyn Future<Output = Option<Box<Tunnel>>> + 'a>> {
    Box::pin(async move {
        let mut input = Input::new(worker.buffers.lazy());
        input.extend(&begun);
        drop(begun);
        stream::open(worker, conn, listener, input).await
    })
}

/// As [`requests`]: the last words to a client whose head has not come in time.
fn time_out<'a>(worker: &'a Rc<Worker>, conn: &'a mut Conn) -> Pooled<'a, ()> {
    Pooled::new(&worker.futures, request::time_out(worker, conn))
}

/// As [`requests`]: a connection that speaks HTTP/2.
fn http2<'a>(
    worker: &'a Rc<Worker>,
    conn: &'a mut Conn,
    listener: &'a Rc<Listener>,
    first: Held,
) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
    Box::pin(async move { server::serve(worker, conn, listener, first).await })
}

/// What is to be done on a stream of an HTTP/2 connection.
pub(crate) enum Work {
    /// To serve its request.
    Request,
    /// To answer what is none.
    Refusal(Refusal),
    /// To go on with what its upstream has said something about.
    Response(Box<Parked>),
}

/// What a stream waits with, once the large future that serves it has nothing to do.
pub(crate) enum Quiet {
    Tunnel(Box<Tunnel>),
    Request(Box<Parked>),
}

/// Works on a stream until it is done, or quiet. It ends at once when the client cancels it.
pub(crate) async fn serve_stream(
    worker: &Rc<Worker>,
    conn: &mut Conn,
    listener: &Listener,
    work: Work,
) -> Option<Quiet> {
    let stream = conn.stream().cloned()?;
    // Pinned where it is made: moved there, it would have its place in this future twice.
    let serving = pin!(async {
        let mut work = Some(work);
        loop {
            let end = match work.take() {
                Some(Work::Refusal(refusal)) => {
                    request::refuse_stream(worker, conn, refusal).await;
                    return None;
                }
                Some(Work::Response(parked)) => resumed(conn, parked).await,
                Some(Work::Request) | None => request::serve(worker, conn, listener, Begin::Readable, &mut false).await,
            };
            match end {
                End::Tunnel(tunnel) => return Some(Quiet::Tunnel(tunnel)),
                End::Parked(parked) => return Some(Quiet::Request(parked)),
                // The head is withheld until the frames have shown that they do not belie it, and comes only then.
                End::Idle if conn.readable_until(now_ms() + worker.limits.head_ms_max, false).await => {
                    stream.take_arrival();
                }
                End::Idle => {
                    time_out(worker, conn).await;
                    return None;
                }
                End::Partial(_) | End::Closed | End::Http2(_) | End::Bytes(_) => return None,
            }
        }
    });
    server::until_cancelled(&stream, serving).await.unwrap_or_else(|_| {
        worker.stats.add(Counter::Http2StreamsCancelled, 1);
        None
    })
}

/// As [`requests`]: what was parked.
fn resumed(conn: &mut Conn, parked: Box<Parked>) -> Pin<Box<dyn Future<Output = End> + '_>> {
    Box::pin(request::resume(conn, parked))
}

/// As [`requests`], for as long as a tunnel is open.
pub(crate) fn tunnelled<'a>(
    worker: &'a Worker,
    conn: &'a mut Conn,
    tunnel: &'a mut Tunnel,
) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
    Box::pin(tunnel.run(worker, conn))
}

/// The life of a connection. While it is idle, or in the middle of a head that does not come, this small future is all
/// that it costs; the large one of a request exists only between the first byte of a request and the next such time.
pub(crate) async fn serve(worker: &Rc<Worker>, conn: &mut Conn, listener: &Rc<Listener>) {
    let mut is_fresh = true;
    // What a variable of the loop's outside holds is a part of every idle connection, so `end` is the only one.
    let mut end = {
        let carries = stream::carries(worker, conn, listener);
        let begin = if carries != Carries::Requests {
            match first(worker, conn, listener, carries).await {
                First::Requests(begin) => begin,
                First::Tunnel(mut tunnel) => return tunnelled(worker, conn, &mut tunnel).await,
                First::Over => return,
            }
        } else if security::may_be_tls(worker, listener) {
            match opened(worker, conn, listener).await {
                Some(begin) => begin,
                None => return,
            }
        } else {
            Begin::Silence
        };
        requests(worker, conn, listener, begin, &mut is_fresh).await
    };
    loop {
        let begin = match end {
            // Only a stream's is parked.
            End::Closed | End::Parked(_) => return,
            End::Http2(first) => return http2(worker, conn, listener, first).await,
            End::Tunnel(mut tunnel) => return tunnelled(worker, conn, &mut tunnel).await,
            End::Bytes(begun) => {
                let Some(mut tunnel) = bytes(worker, conn, listener, begun).await else { return };
                return tunnelled(worker, conn, &mut tunnel).await;
            }
            End::Idle if worker.draining() => return,
            End::Idle => {
                if !conn.readable_until(now_ms() + worker.limits.idle_ms_max, true).await {
                    return;
                }
                Begin::Readable
            }
            End::Partial(mut partial) => {
                if !conn.readable_until(partial.deadline_ms(), false).await {
                    drop(partial);
                    return time_out(worker, conn).await;
                }
                if partial.takes_piece(worker, conn, listener.direction.request_bounds()) {
                    end = End::Partial(partial);
                    continue;
                }
                Begin::Partial(partial)
            }
        };
        end = requests(worker, conn, listener, begin, &mut is_fresh).await;
    }
}

/// Tells a connection beyond the limit that there is no room for it.
pub(crate) async fn turn_away(worker: &Worker, mut conn: Conn) {
    request::turn_away(worker, &mut conn).await;
}
