//! The control process: reads the user's files, makes the data plane's table of them, and publishes it.

pub mod compile;
pub mod diagnostic;
pub mod source;
pub mod spec;
