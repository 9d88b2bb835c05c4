//! Log lines about what is refused. An attacker must not fill the disk, and one kind of refusal must not hide another:
//! each code has a line per second and worker, and the next line says how many came between.

use std::{cell::RefCell, collections::HashMap};

/// Between two lines of one code, in nanoseconds.
const INTERVAL_NS: u64 = 1_000_000_000;

#[derive(Debug, Default, Clone, Copy)]
struct Slot {
    logged_ns: Option<u64>,
    unlogged: u64,
}

/// What was logged when. Codes are literals of this program, so that there are not more than some dozens.
#[derive(Debug, Default)]
pub(crate) struct RefusalLog(RefCell<HashMap<&'static str, Slot>>);

impl RefusalLog {
    /// Whether a line is due: then how many of this code were left out since the last one.
    pub(crate) fn due(&self, code: &'static str, now_ns: u64) -> Option<u64> {
        let mut slots = self.0.borrow_mut();
        let slot = slots.entry(code).or_default();
        if slot.logged_ns.is_some_and(|logged_ns| now_ns.saturating_sub(logged_ns) < INTERVAL_NS) {
            slot.unlogged += 1;
            return None;
        }
        slot.logged_ns = Some(now_ns);
        Some(std::mem::take(&mut slot.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_a_line_per_second() {
        let log = RefusalLog::default();
        assert_eq!(log.due("a", 5), Some(0));
        for now_ns in 6..100 {
            assert_eq!(log.due("a", now_ns), None);
        }
        assert_eq!(log.due("b", 50), Some(0), "a flood of one kind does not hide another");
        assert_eq!(log.due("a", 5 + INTERVAL_NS), Some(94));
        assert_eq!(log.due("a", 5 + 2 * INTERVAL_NS), Some(0));
    }
}
