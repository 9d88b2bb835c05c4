//! Log lines about what is refused. An attacker must not fill the disk, and one kind of refusal must not hide another:
//! each code has a line per second and worker, and the next line says how many came between. And a client that goes on and on
//! has one line only: its connection knows which codes it has had a line about.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

use meshring_core::limits::REFUSAL_LOG_INTERVAL_MS;

/// Between two lines of one code, in nanoseconds.
const INTERVAL_NS: u64 = REFUSAL_LOG_INTERVAL_MS * 1_000_000;

/// What the lines were about that a client's connection has had: a bit for each code.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// What the client is to blame for: once, for as long as the connection is there.
    pub(super) refused: Cell<u64>,
    /// What somebody else is to blame for: once, until it works again. The next outage must not go by without a word because
    /// the connection has seen one before.
    pub(super) faults: Cell<u64>,
}

impl Told {
    /// A response has come through.
    pub(crate) fn works(&self) {
        self.faults.set(0);
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Slot {
    /// Its bit in [`Told`]: none for a code that is met after 64 others, which is bounded by time alone.
    bit: u64,
    logged_ns: Option<u64>,
    unlogged: u64,
}

/// What was logged when. Codes are literals of this program, so that there are not more than some dozens.
#[derive(Debug, Default)]
pub(crate) struct RefusalLog(RefCell<HashMap<&'static str, Slot>>);

impl RefusalLog {
    /// Whether a line is due: then how many of this code were left out since the last one. `told`: of the connection that it is
    /// about, which takes note of it.
    pub(crate) fn due(&self, code: &'static str, now_ns: u64, told: Option<&Cell<u64>>) -> Option<u64> {
        let mut slots = self.0.borrow_mut();
        let known = slots.len();
        let slot = slots.entry(code).or_insert_with(|| Slot {
            bit: u32::try_from(known).ok().and_then(|known| 1_u64.checked_shl(known)).unwrap_or(0),
            ..Slot::default()
        });
        let is_told = told.is_some_and(|told| told.get() & slot.bit != 0);
        if is_told || slot.logged_ns.is_some_and(|logged_ns| now_ns.saturating_sub(logged_ns) < INTERVAL_NS) {
            slot.unlogged += 1;
            return None;
        }
        if let Some(told) = told {
            told.set(told.get() | slot.bit);
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
        assert_eq!(log.due("a", 5, None), Some(0));
        for now_ns in 6..100 {
            assert_eq!(log.due("a", now_ns, None), None);
        }
        assert_eq!(log.due("b", 50, None), Some(0), "a flood of one kind does not hide another");
        assert_eq!(log.due("a", 5 + INTERVAL_NS, None), Some(94));
        assert_eq!(log.due("a", 5 + 2 * INTERVAL_NS, None), Some(0));
    }

    #[test]
    fn a_connection_has_one_line_of_each_code() {
        let log = RefusalLog::default();
        let (first, second) = (Told::default(), Told::default());
        assert_eq!(log.due("a", 0, Some(&first.refused)), Some(0));
        for second in 1..100 {
            assert_eq!(log.due("a", second * INTERVAL_NS, Some(&first.refused)), None);
        }
        assert_eq!(log.due("b", 100 * INTERVAL_NS, Some(&first.refused)), Some(0), "another code is another thing");
        // What the first one has not had a line about is counted all the same.
        assert_eq!(log.due("a", 100 * INTERVAL_NS, Some(&second.refused)), Some(99));
        assert_eq!(log.due("a", 101 * INTERVAL_NS, Some(&second.refused)), None);
        // Where it was not its turn, it comes later.
        let third = Told::default();
        assert_eq!(log.due("b", 100 * INTERVAL_NS + 1, Some(&third.refused)), None);
        assert_eq!(log.due("b", 101 * INTERVAL_NS, Some(&third.refused)), Some(1));
    }

    #[test]
    fn an_outage_after_another_one_has_a_line() {
        let (log, told) = (RefusalLog::default(), Told::default());
        assert_eq!(log.due("refused", 0, Some(&told.refused)), Some(0));
        assert_eq!(log.due("down", 0, Some(&told.faults)), Some(0));
        assert_eq!(log.due("down", INTERVAL_NS, Some(&told.faults)), None);
        told.works();
        assert_eq!(log.due("down", 2 * INTERVAL_NS, Some(&told.faults)), Some(1));
        assert_eq!(log.due("refused", 2 * INTERVAL_NS, Some(&told.refused)), None);
    }

    #[test]
    fn one_code_too_many_hides_no_other() {
        let (log, told) = (RefusalLog::default(), Told::default());
        let codes: Vec<&'static str> = (0..70).map(|number| &*format!("code-{number}").leak()).collect();
        for code in &codes {
            assert_eq!(log.due(code, 0, Some(&told.refused)), Some(0), "{code}");
        }
        for (number, code) in codes.iter().enumerate() {
            // The last ones are bounded by time alone.
            let expected = (number >= 64).then_some(0);
            assert_eq!(log.due(code, INTERVAL_NS, Some(&told.refused)), expected, "{code}");
        }
    }
}
