//! How many requests of a connection may begin in a turn of the worker.

use meshring_core::limits::HTTP2_BEGUN_IN_A_ROW_MAX;

/// The requests that a connection has begun. A new one may begin one in a turn, and twice as many after each turn in which it began all
/// that it might, up to a bound: one that asks for a hundred things at once and leaves costs the others less, while one that stays has
/// its full share within four turns.
#[derive(Debug)]
pub(super) struct Starts {
    turn: u64,
    begun: usize,
    at_most: usize,
}

impl Starts {
    pub(super) fn new() -> Self {
        Self { turn: 0, begun: 0, at_most: 1 }
    }

    /// Whether one more may begin in this turn, which counts it.
    pub(super) fn may(&mut self, turn: u64) -> bool {
        if self.turn != turn {
            if self.begun == self.at_most {
                self.at_most = HTTP2_BEGUN_IN_A_ROW_MAX.min(2 * self.at_most);
            }
            (self.turn, self.begun) = (turn, 0);
        }
        let may = self.begun < self.at_most;
        self.begun += usize::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many begin in a turn if `wanted` would like to.
    fn begin(starts: &mut Starts, turn: u64, wanted: usize) -> usize {
        (0..wanted).filter(|_| starts.may(turn)).count()
    }

    #[test]
    fn begins_slowly() {
        let mut starts = Starts::new();
        let begun: Vec<usize> = (5..11).map(|turn| begin(&mut starts, turn, 100)).collect();
        assert_eq!(begun, [1, 2, 4, 8, 8, 8]);
        assert_eq!(begin(&mut starts, 10, 1), 0, "the turn is the same");
    }

    #[test]
    fn what_is_not_used_does_not_grow() {
        let mut starts = Starts::new();
        assert_eq!((begin(&mut starts, 0, 9), begin(&mut starts, 1, 1)), (1, 1));
        let begun: Vec<usize> = (2..5).map(|turn| begin(&mut starts, turn, 9)).collect();
        assert_eq!(begun, [2, 4, 8]);
    }
}
