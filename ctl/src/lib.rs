//! The control process: reads the user's files, makes the data plane's table of them, and publishes it.

pub mod api;
pub mod apply;
pub mod bypass;
pub mod ca;
pub mod command;
pub mod compile;
pub mod control;
pub mod diagnostic;
pub mod explain;
pub mod export;
pub mod source;
pub mod spec;
pub mod workload_api;
