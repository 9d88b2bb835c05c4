//! When each request of an open loop is to be sent.

use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Requests per second, more than zero; may be a fraction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rate(f64);

impl Rate {
    pub(crate) fn per_second(self) -> f64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(rate) if rate > 0.0 && rate <= 10_000_000.0 => Ok(Self(rate)),
            _ => Err("requests per second, more than 0 and at most 10000000, such as 5000 or 0.5".to_owned()),
        }
    }
}

/// A constant rate: request k is to be sent k/rate seconds after the start, whatever became of those before it.
/// Latency counts from there, so a stall of the server is seen by all requests that it delayed (no coordinated omission).
#[derive(Debug)]
pub(crate) struct Schedule {
    start: Instant,
    rate: Rate,
    next: u64,
    total: u64,
}

impl Schedule {
    pub(crate) fn new(start: Instant, rate: Rate, duration: Duration, requests_max: Option<NonZeroU64>) -> Self {
        // Half a request of slack keeps 0.1 s at 1000/s at 100 requests despite rounding.
        let in_time = (duration.as_secs_f64() * rate.0 + 0.5) as u64;
        let total = requests_max.map_or(in_time, |max| max.get().min(in_time)).max(1);
        Self { start, rate, next: 0, total }
    }

    /// When the next request is to be sent; none after the last.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        (self.next < self.total).then(|| self.start + Duration::from_secs_f64(self.next as f64 / self.rate.0))
    }

    /// Takes the next request if its time has come.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Instant> {
        let at = self.next_at().filter(|at| *at <= now)?;
        self.next += 1;
        Some(at)
    }

    /// Gives up all requests to come.
    pub(crate) fn stop(&mut self) {
        self.total = self.next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(rate: &str, duration_ms: u64, requests_max: Option<u64>) -> (Instant, Schedule) {
        let start = Instant::now();
        let max = requests_max.and_then(NonZeroU64::new);
        (start, Schedule::new(start, rate.parse().unwrap(), Duration::from_millis(duration_ms), max))
    }

    /// Offsets in microseconds at which requests are taken when asked every microsecond.
    fn taken(start: Instant, schedule: &mut Schedule, micros: std::ops::Range<u64>) -> Vec<u64> {
        let mut offsets = Vec::new();
        for micro in micros {
            while schedule.take_due(start + Duration::from_micros(micro)).is_some() {
                offsets.push(micro);
            }
        }
        offsets
    }

    #[test]
    fn requests_are_due_at_equal_distances_from_the_start() {
        let (start, mut schedule) = schedule("1000", 5, None);
        assert_eq!(taken(start, &mut schedule, 0..20_000), [0, 1000, 2000, 3000, 4000]);
        assert_eq!(schedule.next_at(), None);
    }

    #[test]
    fn a_stall_does_not_move_intended_times() {
        let (start, mut schedule) = schedule("1000", 10, None);
        let late = start + Duration::from_millis(3);
        let intended: Vec<_> =
            std::iter::from_fn(|| schedule.take_due(late)).map(|at| (at - start).as_millis()).collect();
        assert_eq!(intended, [0, 1, 2, 3]);
        assert_eq!(schedule.next_at(), Some(start + Duration::from_millis(4)));
    }

    #[test]
    fn the_number_of_requests_is_rate_times_duration_without_drift() {
        for (rate, duration_ms, expected) in
            [("3333.3", 3_000, 10_000), ("7", 60_000, 420), ("0.5", 10_000, 5), ("1000", 100, 100)]
        {
            let (start, mut schedule) = schedule(rate, duration_ms, None);
            let end = start + Duration::from_millis(duration_ms);
            let count = std::iter::from_fn(|| schedule.take_due(end)).count();
            assert_eq!(count, expected, "{rate}/s for {duration_ms} ms");
        }
    }

    #[test]
    fn a_limit_on_requests_ends_the_schedule_early_and_stop_at_once() {
        let (start, mut first) = schedule("1000", 1_000, Some(3));
        assert_eq!(taken(start, &mut first, 0..10_000).len(), 3);
        let (start, mut second) = schedule("1000", 1_000, None);
        assert_eq!(taken(start, &mut second, 0..1_500).len(), 2);
        second.stop();
        assert_eq!(second.next_at(), None);
    }

    #[test]
    fn rates_that_make_no_sense_are_refused() {
        for text in ["0", "-1", "NaN", "inf", "fast", ""] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
