//! Statistics: one memfd per proxy, written by its workers, read by control. The data plane never formats a metric.

pub mod declare;
pub mod histogram;
pub mod page;

pub use declare::Counter;
pub use page::{ClusterCounter, ClusterTcp, GrpcStatus, StatsPage, TlsCounter, WorkerSlots};

#[cfg(test)]
mod tests;
