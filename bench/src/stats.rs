//! Summaries of measurements: latency quantiles, and the median of rounds.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::limits::{LATENCY_DIGITS, LATENCY_MAX};

/// Latencies in nanoseconds, right to 0.1%.
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let nanos_max = u64::try_from(LATENCY_MAX.as_nanos())?;
        Ok(Self(Histogram::new_with_bounds(1_000, nanos_max, LATENCY_DIGITS)?))
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn summary(&self) -> LatencySummary {
        let micros = |nanos: u64| nanos as f64 / 1e3;
        let quantile = |quantile| micros(self.0.value_at_quantile(quantile));
        LatencySummary {
            mean: self.0.mean() / 1e3,
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p99_9: quantile(0.999),
            max: micros(self.0.max()),
        }
    }
}

/// Latency of the answered requests, in microseconds; all zero if there were none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct LatencySummary {
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p99_9: f64,
    pub(crate) max: f64,
}

/// Median and range of one figure over the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// None without any (finite) value.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let upper = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[upper] } else { f64::midpoint(values[upper - 1], values[upper]) };
        Some(Self { median, min, max })
    }
}

/// Microseconds for people: three significant digits, with the unit that fits.
pub(crate) fn format_micros(micros: f64) -> String {
    match micros {
        m if m >= 999_500.0 => format!("{} s", three_digits(m / 1e6)),
        m if m >= 999.5 => format!("{} ms", three_digits(m / 1e3)),
        m => format!("{} µs", three_digits(m)),
    }
}

/// Three significant digits, but never fewer than the integer part has.
pub(crate) fn three_digits(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

/// An integer with a comma after each group of three digits.
pub(crate) fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_one_per_mille() {
        let mut latencies = Latencies::new().unwrap();
        for micros in 1..=10_000 {
            latencies.record(Duration::from_micros(micros));
        }
        let summary = latencies.summary();
        for (actual, expected) in [
            (summary.p50, 5_000.0),
            (summary.p90, 9_000.0),
            (summary.p99, 9_900.0),
            (summary.p99_9, 9_990.0),
            (summary.max, 10_000.0),
            (summary.mean, 5_000.5),
        ] {
            assert!((actual - expected).abs() <= expected / 1000.0, "{actual} instead of {expected}");
        }
    }

    #[test]
    fn a_latency_beyond_the_bound_counts_as_the_bound() {
        let mut latencies = Latencies::new().unwrap();
        latencies.record(LATENCY_MAX * 100);
        let max = latencies.summary().max;
        assert!((max / LATENCY_MAX.as_secs_f64() / 1e6 - 1.0).abs() < 0.001, "{max}");
    }

    #[test]
    fn no_latencies_give_zeros() {
        assert_eq!(Latencies::new().unwrap().summary(), LatencySummary::default());
    }

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_the_two_in_the_middle() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([f64::NAN, f64::INFINITY]), None);
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
    }

    #[test]
    fn figures_read_well() {
        assert_eq!(format_micros(0.0), "0.00 µs");
        assert_eq!(format_micros(23.456), "23.5 µs");
        assert_eq!(format_micros(999.4), "999 µs");
        assert_eq!(format_micros(999.6), "1.00 ms");
        assert_eq!(format_micros(123_456.0), "123 ms");
        assert_eq!(format_micros(2_500_000.0), "2.50 s");
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_000), "1,000");
        assert_eq!(thousands(12_345_678), "12,345,678");
    }
}
