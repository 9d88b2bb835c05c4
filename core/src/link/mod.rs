//! The link between control and a proxy: one `SOCK_SEQPACKET` unix connection per proxy, one JSON message per packet,
//! descriptors beside it. It carries configuration and state, never a request; JSON keeps it readable in a trace and
//! open to new fields.
//!
//! Proxy: `Hello` (with its statistics memfd) -> control: `Welcome` (with the control page) -> control: `Prepare`
//! (with a snapshot) -> proxy: `Prepared` or `Refused` -> control commits on the page. `Retire` lets a proxy forget
//! generations that nobody can roll back to.

pub mod channel;

use serde::{Deserialize, Serialize};

use crate::id::Generation;

/// Version of this protocol. Control refuses a proxy of another one with a message that names both.
pub const PROTOCOL: u32 = 1;
/// The socket's name inside the run directory.
pub const SOCKET_NAME: &str = "link.sock";

/// A proxy's identity and state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// See [`PROTOCOL`].
    pub protocol: u32,
    /// Snapshot layout that this build reads ([`crate::snapshot::layout::LAYOUT`]).
    pub layout: u64,
    /// The proxy's process id, for people.
    pub pid: u32,
    /// The workload's namespace.
    pub namespace: String,
    /// The workload's name.
    pub workload: String,
    /// Number of workers.
    pub workers: u32,
    /// The I/O driver that runs, `io_uring` or `epoll`, with its reason.
    pub driver: String,
    /// Addresses: `outbound 127.0.0.1:15001`, `inbound 127.0.0.1:15006=127.0.0.1:8080`.
    pub listeners: Vec<String>,
    /// What it runs now; 0 for nothing.
    pub generation: Generation,
    /// Checksum of that; 0 for nothing. A restarted control recognises its own configuration by it.
    pub checksum: u64,
}

/// From a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToControl {
    /// First message; the statistics memfd is beside it.
    Hello(Hello),
    /// A snapshot is mapped and can be committed.
    Prepared {
        /// Which.
        generation: Generation,
    },
    /// A snapshot is unusable; the proxy goes on with what it has.
    Refused {
        /// Which.
        generation: Generation,
        /// Why, for people.
        reason: String,
    },
}

/// To a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToProxy {
    /// Answer to `Hello`; the control page is beside it.
    Welcome {
        /// The active generation, 0 for none yet.
        active: Generation,
    },
    /// Answer to a `Hello` that cannot be served; control closes after it.
    Rejected {
        /// Why, for people.
        reason: String,
    },
    /// A snapshot to prove and map; the memfd is beside it.
    Prepare {
        /// Which.
        generation: Generation,
    },
    /// Generations that will never be active again.
    Retire {
        /// Everything below this one, except the active one.
        below: Generation,
    },
}

#[cfg(test)]
mod tests;
