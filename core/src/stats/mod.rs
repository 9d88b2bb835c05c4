//! Statistics: one memfd per proxy, written by its workers, read by control. The data plane never formats a metric.

pub mod declare;
pub mod histogram;
pub mod page;
mod peers;

pub use declare::Counter;
pub use page::{ClusterCounter, ClusterTcp, GrpcStatus, StatsPage, TlsCounter, WorkerSlots};
pub use peers::{PeerCounter, PeerSlot};

#[cfg(test)]
mod tests;
