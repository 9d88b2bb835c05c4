//! When requests are sent, in either loop.

use std::num::NonZeroU64;
use std::time::Instant;

use super::LoadArgs;
use super::schedule::Schedule;

/// When requests are sent.
pub(super) enum Pace {
    /// Connections are being opened; no requests yet.
    NotStarted,
    Open(Schedule),
    Closed {
        end: Instant,
        left: u64,
    },
}

impl Pace {
    /// The one that the arguments ask for, from now on.
    pub(super) fn starting(args: &LoadArgs, start: Instant) -> Self {
        match args.rate {
            Some(rate) => Self::Open(Schedule::new(start, rate, args.duration, args.requests)),
            None => Self::Closed { end: start + args.duration, left: args.requests.map_or(u64::MAX, NonZeroU64::get) },
        }
    }

    /// Takes the next request that is to be sent now; gives its intended send time.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Instant> {
        match self {
            Self::NotStarted => None,
            Self::Open(schedule) => schedule.take_due(now),
            Self::Closed { end, left } => {
                let due = now < *end && *left > 0;
                *left -= u64::from(due);
                due.then_some(now)
            }
        }
    }

    /// When the next request of an open loop is to be sent.
    pub(super) fn next_at(&self) -> Option<Instant> {
        match self {
            Self::Open(schedule) => schedule.next_at(),
            Self::NotStarted | Self::Closed { .. } => None,
        }
    }

    pub(super) fn exhausted(&self, now: Instant) -> bool {
        match self {
            Self::NotStarted => true,
            Self::Open(schedule) => schedule.next_at().is_none(),
            Self::Closed { end, left } => now >= *end || *left == 0,
        }
    }

    pub(super) fn stop(&mut self) {
        match self {
            Self::NotStarted => {}
            Self::Open(schedule) => schedule.stop(),
            Self::Closed { left, .. } => *left = 0,
        }
    }
}
