//! What the end-to-end tests share: real processes on loopback, servers and clients that speak HTTP byte by byte, and
//! waiting on conditions. The files in `tests/` are one per promise.
//!
//! A test that needs only the proxy builds a [`table::World`], starts a [`proxy::Proxy`] from its snapshot and talks to it
//! with [`client::Client`]. A test of the whole mesh starts a [`control::Control`] with YAML files.

pub mod binaries;
pub mod bypass;
pub mod bytes;
pub mod checklist;
pub mod client;
pub mod control;
pub mod envoy;
pub mod frames;
pub mod generate;
pub mod h2;
pub mod h2_application;
pub mod load;
pub mod openssl;
pub mod peers;
pub mod pki;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod table;
pub mod tls;
pub mod tunnel;
pub mod upstream;
pub mod wait;
pub mod wire;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held by tests that need the machine for themselves: load, and anything that measures time or memory. The others of
/// one test file go on in parallel.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    // A test that failed while it held the lock has left nothing behind that the next one depends on.
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs each named function, which takes a [`proxy::Driver`], as one test per I/O driver.
#[macro_export]
macro_rules! on_both_drivers {
    ($($name:ident)+) => {
        mod on_io_uring {
            $(#[test] fn $name() {
                if $crate::proxy::Driver::Uring.is_available() { super::$name($crate::proxy::Driver::Uring) }
            })+
        }
        mod on_epoll {
            $(#[test] fn $name() { super::$name($crate::proxy::Driver::Epoll) })+
        }
    };
}
