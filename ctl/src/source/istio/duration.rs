//! Durations as Istio takes them: `1h`, `1m30s`, `0.5s`, `15ms`.

use std::time::Duration;

use crate::spec::value::InvalidValue;

/// Longest timeout, in milliseconds: the table counts them in 32 bits (49 days).
const DURATION_MS_MAX: f64 = u32::MAX as f64;

/// Whole milliseconds, at least one.
pub(crate) fn parse(text: &str) -> Result<Duration, InvalidValue> {
    let wrong = || {
        InvalidValue::with_hint(
            format!("`{text}` is not a duration"),
            "write a number and a unit, such as 15s, 0.5s, 200ms, 1m or 1h",
        )
    };
    let mut rest = text;
    let mut ms = 0.0;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(|byte| !byte.is_ascii_digit() && *byte != b'.').count();
        let unit = match rest.get(..letters).ok_or_else(wrong)? {
            "h" => 3_600_000.0,
            "m" => 60_000.0,
            "s" => 1_000.0,
            "ms" => 1.0,
            "us" | "µs" => 0.001,
            "ns" => 0.000_001,
            _ => return Err(wrong()),
        };
        rest = &rest[letters..];
        ms += number * unit;
    }
    let whole = ms.round();
    if ms < 1.0 {
        return Err(InvalidValue::with_hint(
            format!("`{text}` is shorter than 1ms"),
            "write at least 1ms, or leave the field out for no limit",
        ));
    }
    if (ms - whole).abs() > 1e-6 {
        return Err(InvalidValue::with_hint(format!("`{text}` is finer than 1ms"), "write whole milliseconds"));
    }
    if whole > DURATION_MS_MAX {
        return Err(InvalidValue::with_hint(format!("`{text}` is longer than 49 days"), "write at most 1193h"));
    }
    Ok(Duration::from_millis(whole as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_istio() {
        let cases =
            [("10s", 10_000), ("1.5s", 1_500), ("1m30s", 90_000), ("200ms", 200), ("1h", 3_600_000), ("1000us", 1)];
        for (text, ms) in cases {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        let wrong = [
            ("", "`` is not a duration"),
            ("10", "`10` is not a duration"),
            ("s", "`s` is not a duration"),
            ("-1s", "`-1s` is not a duration"),
            ("1.2.3s", "`1.2.3s` is not a duration"),
            ("1 s", "`1 s` is not a duration"),
            ("0s", "`0s` is shorter than 1ms"),
            ("500us", "`500us` is shorter than 1ms"),
            ("1.5ms", "`1.5ms` is finer than 1ms"),
            ("1200h", "`1200h` is longer than 49 days"),
        ];
        for (text, message) in wrong {
            assert_eq!(parse(text).unwrap_err().message, message, "{text}");
        }
    }
}
