//! What the data plane and the control process must agree on: the routing table and its lookup, the snapshot
//! layout, the statistics layout, the link protocol and the pure HTTP codecs.
//!
//! This crate has no async runtime and opens no listener: a fuzzer, a simulation or a bench drives every part of it
//! with bytes. The places that touch file descriptors are [`snapshot::region`] (sealed memfds) and
//! [`link::channel`] (one seqpacket message with descriptors), because both processes need the very same checks there.

pub mod certificate;
pub mod client_hello;
pub mod clock;
pub mod http;
pub mod id;
pub mod identity;
pub mod limits;
pub mod link;
pub mod secret;
pub mod snapshot;
pub mod spiffe;
pub mod stats;
pub mod sync;
pub mod table;
