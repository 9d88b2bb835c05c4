//! Which requests of a connection may begin, and how many of them in a turn of the worker.

use std::collections::VecDeque;

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

/// What waits for its turn, first come first served, and not before all is taken that was read together with it: of a burst nothing is
/// begun that is cancelled behind it, or whose client only asks for the answer to a PING and leaves.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    all: VecDeque<T>,
    /// So many of the first may have their turn.
    released: usize,
}

impl<T> Waiting<T> {
    pub(super) fn new() -> Self {
        Self { all: VecDeque::new(), released: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether one more takes more memory.
    pub(super) fn is_full(&self) -> bool {
        self.all.len() == self.all.capacity()
    }

    pub(super) fn push(&mut self, one: T) {
        self.all.push_back(one);
    }

    /// All that was read with those that are here was taken.
    pub(super) fn release(&mut self) {
        self.released = self.all.len();
    }

    /// Whose turn it is.
    pub(super) fn next(&self) -> Option<&T> {
        if self.released > 0 { self.all.front() } else { None }
    }

    /// Takes the [next](Self::next).
    pub(super) fn take(&mut self) -> Option<T> {
        self.released = self.released.checked_sub(1)?;
        let one = self.all.pop_front();
        if self.all.is_empty() {
            // A connection may live for days.
            self.all = VecDeque::new();
        }
        one
    }

    pub(super) fn retain(&mut self, mut keeps: impl FnMut(&T) -> bool) {
        let (mut at, mut gone) = (0, 0);
        self.all.retain(|one| {
            let kept = keeps(one);
            gone += usize::from(!kept && at < self.released);
            at += 1;
            kept
        });
        self.released -= gone;
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

    #[test]
    fn nothing_has_its_turn_before_all_is_taken_that_came_with_it() {
        let mut waiting = Waiting::new();
        waiting.push(1);
        waiting.push(2);
        assert_eq!(waiting.next(), None);
        assert_eq!(waiting.take(), None);
        waiting.release();
        // Of the next read.
        waiting.push(3);
        waiting.push(4);
        assert_eq!((waiting.take(), waiting.take(), waiting.take()), (Some(1), Some(2), None));
        waiting.release();
        assert_eq!((waiting.take(), waiting.next()), (Some(3), Some(&4)));
        assert_eq!(waiting.take(), Some(4));
        assert!(waiting.is_empty() && waiting.is_full() && waiting.take().is_none());
    }

    #[test]
    fn who_leaves_takes_nobodys_turn() {
        let mut waiting = Waiting::new();
        (0..4).for_each(|number| waiting.push(number));
        waiting.release();
        (4..8).for_each(|number| waiting.push(number));
        waiting.retain(|number| number % 2 == 1);
        assert_eq!((waiting.take(), waiting.take(), waiting.take()), (Some(1), Some(3), None));
        waiting.release();
        assert_eq!((waiting.take(), waiting.take(), waiting.take()), (Some(5), Some(7), None));
    }
}
