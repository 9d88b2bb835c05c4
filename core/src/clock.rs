//! Time as the data plane uses it: a coarse monotonic clock that never follows the wall clock (FAULTS: a wall clock
//! that jumps ten years must fire no deadline).

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // The monotonic clock starts at boot: neither part is ever negative.
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Milliseconds of `CLOCK_MONOTONIC_COARSE`: that of the kernel's last tick, at most 10 ms ago. It is read several times per request,
/// and costs a fifth of the exact one, which has to ask the processor.
#[must_use]
pub fn coarse_ms() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    now.tv_sec.unsigned_abs() * 1_000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

/// Seconds since the Unix epoch by `CLOCK_REALTIME_COARSE`, for dates: at most 10 ms late. 0 before 1970.
#[must_use]
pub fn coarse_unix_s() -> u64 {
    clock_gettime(ClockId::RealtimeCoarse).tv_sec.try_into().unwrap_or(0)
}

/// Milliseconds since the Unix epoch, for people: history, log lines. Never used for a deadline.
#[must_use]
pub fn unix_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
