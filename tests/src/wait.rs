//! Waiting on conditions. The one place that lets time pass.

use std::{
    thread,
    time::{Duration, Instant},
};

/// What any single wait may take before a test fails: generous, since it is only ever waited out on failure.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at a condition.
const INTERVAL: Duration = Duration::from_millis(2);

/// Looks at a condition until it yields a value.
///
/// # Panics
/// After [`PATIENCE`], naming what was waited for.
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, look)
}

/// As [`until`], with a patience of its own.
///
/// # Panics
/// After `patience`, naming what was waited for.
pub fn until_within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain for: {what}");
        thread::park_timeout(INTERVAL);
    }
}

/// Looks at a value until it has not changed for `still`; for "it has stopped".
pub fn until_still<T: PartialEq>(still: Duration, what: &str, mut look: impl FnMut() -> T) -> T {
    let (mut last, mut since) = (look(), Instant::now());
    until(what, || {
        let now = look();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() >= still).then_some(())
    });
    last
}
