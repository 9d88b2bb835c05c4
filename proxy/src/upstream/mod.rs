//! Upstream connections: a pool per endpoint and worker, shared by nobody.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::SocketAddr,
    rc::Rc,
};

use meshring_core::limits::{UPSTREAM_IDLE_MS_MAX, UPSTREAM_IDLE_PER_ENDPOINT_MAX};

use crate::worker::{
    conn::Conn,
    deadlines::{Deadlines, now_ms},
};

/// How long an endpoint that refused a connection is passed over where there are others, in milliseconds.
const AVOID_MS: u64 = 1_000;

#[derive(Debug)]
struct Idle {
    conn: Conn,
    since_ms: u64,
}

/// One address as a worker knows it, over all generations and clusters.
#[derive(Debug)]
pub(crate) struct Endpoint {
    address: SocketAddr,
    active: Cell<u32>,
    avoid_until_ms: Cell<u64>,
    idle: RefCell<Vec<Idle>>,
}

/// A connection in use; the endpoint counts the request as active until it is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) conn: Conn,
    /// Whether it has carried a request before: only then can it turn out closed by the peer's idle timeout.
    pub(crate) reused: bool,
    // After the connection: dropping it ends the request.
    active: ActiveRequest,
}

#[derive(Debug)]
struct ActiveRequest(Rc<Endpoint>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
    }
}

impl Endpoint {
    /// Its address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests in flight from this worker.
    pub(crate) fn active(&self) -> u32 {
        self.active.get()
    }

    /// Whether it has just refused a connection.
    pub(crate) fn avoided(&self, now_ms: u64) -> bool {
        now_ms < self.avoid_until_ms.get()
    }

    /// An idle connection that is still open, newest first: the older ones age out under low load.
    fn take_idle(&self) -> Option<Conn> {
        loop {
            let idle = self.idle.borrow_mut().pop()?;
            if idle.conn.is_quiet() {
                return Some(idle.conn);
            }
        }
    }

    /// A connection for one request: pooled, or new within `connect_ms_max`. `fresh` skips the pool.
    pub(crate) async fn lease(
        self: &Rc<Self>,
        deadlines: &Rc<Deadlines>,
        fresh: bool,
        connect_ms_max: u64,
    ) -> io::Result<Lease> {
        self.active.set(self.active.get() + 1);
        let active = ActiveRequest(Rc::clone(self));
        if !fresh && let Some(conn) = self.take_idle() {
            return Ok(Lease { conn, reused: true, active });
        }
        match Conn::connect(self.address, deadlines, connect_ms_max).await {
            Ok(conn) => Ok(Lease { conn, reused: false, active }),
            Err(error) => {
                self.avoid_until_ms.set(now_ms() + AVOID_MS);
                Err(error)
            }
        }
    }

    /// Drops idle connections that are too old or no longer open.
    fn sweep(&self, now_ms: u64) {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|idle| now_ms < idle.since_ms + UPSTREAM_IDLE_MS_MAX && idle.conn.is_quiet());
        if idle.is_empty() {
            idle.shrink_to_fit();
        }
    }
}

impl Lease {
    /// Gives the connection back after a complete exchange.
    pub(crate) fn give_back(self, now_ms: u64) {
        let Self { conn, active, .. } = self;
        conn.timer.clear();
        if conn.timer.take_expired() {
            return;
        }
        let mut idle = active.0.idle.borrow_mut();
        if idle.len() < UPSTREAM_IDLE_PER_ENDPOINT_MAX {
            idle.push(Idle { conn, since_ms: now_ms });
        }
    }
}

/// All endpoints that a worker has used.
#[derive(Debug, Default)]
pub(crate) struct Endpoints(RefCell<HashMap<SocketAddr, Rc<Endpoint>>>);

impl Endpoints {
    /// Found or made.
    pub(crate) fn of(&self, address: SocketAddr) -> Rc<Endpoint> {
        let make = || {
            Rc::new(Endpoint { address, active: Cell::new(0), avoid_until_ms: Cell::new(0), idle: RefCell::default() })
        };
        Rc::clone(self.0.borrow_mut().entry(address).or_insert_with(make))
    }

    /// Once a second: closes what is idle for too long, forgets what no generation uses.
    pub(crate) fn sweep(&self, now_ms: u64) {
        self.0.borrow_mut().retain(|_, endpoint| {
            endpoint.sweep(now_ms);
            Rc::strong_count(endpoint) > 1 || !endpoint.idle.borrow().is_empty()
        });
    }

    /// Closes all idle connections; for draining.
    pub(crate) fn close_idle(&self) {
        self.0.borrow().values().for_each(|endpoint| endpoint.idle.borrow_mut().clear());
    }
}

#[cfg(test)]
impl Endpoint {
    /// One more request in flight until the guard is dropped.
    pub(crate) fn pretend_active(self: &Rc<Self>) -> impl Drop + use<> {
        self.active.set(self.active.get() + 1);
        ActiveRequest(Rc::clone(self))
    }

    /// As after a refused connection.
    pub(crate) fn pretend_refused(&self, until_ms: u64) {
        self.avoid_until_ms.set(until_ms);
    }
}
