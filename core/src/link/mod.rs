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
pub const PROTOCOL: u32 = 2;
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
    /// The service account that the workload runs as, where the proxy was told one; else what control knows of the
    /// workload, or `default`.
    #[serde(default)]
    pub service_account: Option<String>,
    /// Whether it understands [`ToProxy::OfferListeners`].
    #[serde(default)]
    pub bypass: bool,
    /// The join token that proves that this proxy may speak for the workload; needed where its unix credentials do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_token: Option<JoinToken>,
}

/// A secret that is never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JoinToken(pub String);

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinToken(..)")
    }
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
    /// A material is in use.
    Installed {
        /// Which ([`Material::name`](crate::identity::Material::name)).
        name: String,
        /// End of its leaf's validity in seconds since 1970; 0 where there is none.
        not_after_s: u64,
    },
    /// A socket that the proxy listens on, beside the message: answer to [`ToProxy::OfferListeners`], once for each. What
    /// it accepts from now on may bypass TCP.
    Listener,
    /// A material is unusable; the proxy goes on with what it has.
    NotInstalled {
        /// Which.
        name: String,
        /// Why, for people; nothing secret.
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
    /// A [material](crate::identity) to use from now on; the sealed memfd is beside it. A later one of the same name
    /// replaces it; connections that were made with the earlier one go on.
    Material {
        /// Its name.
        name: String,
    },
    /// Materials that the table does not name any more.
    Forget {
        /// Which.
        names: Vec<String>,
    },
    /// Control can take local connections around TCP, and asks for the listening sockets: by them it knows whose a
    /// connection is.
    OfferListeners,
    /// The workload gets no identity: it goes on with what it has.
    NoIdentity {
        /// Why, for people.
        reason: String,
    },
}

#[cfg(test)]
mod tests;
