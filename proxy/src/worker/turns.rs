//! The worker's turns. The runtime goes on with tasks that are ready, also those that yield and are ready again, and asks the driver for
//! what has come only in between; who waits for a turn goes on behind that.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    task::{Poll, Waker},
};

use meshring_core::limits::DEADLINE_TICK_MS;

use super::deadlines::now_ms;

/// Counts turns, and tells those who wait for the next one.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    number: Cell<u64>,
    /// Of the future that the runtime was started with: it is polled behind the tasks that were ready, before the driver is asked.
    main: RefCell<Option<Waker>>,
    waiting: RefCell<Vec<Waker>>,
    /// When the tick came last; `None` where there is none.
    ticked_ms: Cell<Option<u64>>,
}

impl Turns {
    /// Runs the future that the runtime was started with; whatever polls it is a turn.
    pub(super) async fn drive<F: Future>(&self, mut main: Pin<&mut F>) -> F::Output {
        poll_fn(|cx| {
            self.main.borrow_mut().get_or_insert_with(|| cx.waker().clone()).clone_from(cx.waker());
            let done = main.as_mut().poll(cx);
            // The runtime looks at its timers only when no task is ready. Where somebody always waits for a turn, that never is: all
            // wait then until the tick has come, with which the main future is polled again.
            if !self.is_tick_late() {
                self.number.set(self.number.get() + 1);
                self.waiting.borrow_mut().drain(..).for_each(Waker::wake);
            }
            done
        })
        .await
    }

    /// The worker's tick has come.
    pub(super) fn note_tick(&self) {
        self.ticked_ms.set(Some(now_ms()));
    }

    fn is_tick_late(&self) -> bool {
        let is_waited_for = !self.waiting.borrow().is_empty();
        let late_ms = DEADLINE_TICK_MS + DEADLINE_TICK_MS / 2;
        is_waited_for && self.ticked_ms.get().is_some_and(|ticked_ms| now_ms() >= ticked_ms + late_ms)
    }

    /// Which turn it is. One lasts for as long as nobody waits for the next.
    pub(crate) fn number(&self) -> u64 {
        self.number.get()
    }

    /// Wakes somebody in the next turn.
    pub(crate) fn wake(&self, waker: &Waker) {
        match &*self.main.borrow() {
            Some(main) => {
                self.waiting.borrow_mut().push(waker.clone());
                main.wake_by_ref();
            }
            // Nobody counts.
            None => {
                self.number.set(self.number.get() + 1);
                waker.wake_by_ref();
            }
        }
    }

    /// Goes on in the next turn. May be dropped.
    pub(crate) async fn next(&self) {
        let mut awaited = None;
        poll_fn(|cx| match awaited {
            Some(number) if self.number.get() > number => Poll::Ready(()),
            _ => {
                awaited.get_or_insert(self.number.get());
                self.wake(cx.waker());
                Poll::Pending
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::{rc::Rc, time::Duration};

    use super::*;

    #[test]
    fn who_waits_for_a_turn_lets_come_what_the_driver_has() {
        let mut runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().enable_timer().build().unwrap();
        let turns = Rc::<Turns>::default();
        let (counted, finished) = (Rc::<Cell<u32>>::default(), Rc::<Cell<bool>>::default());
        let main = async {
            for _ in 0..8 {
                let (turns, counted) = (Rc::clone(&turns), Rc::clone(&counted));
                monoio::spawn(async move {
                    for _ in 0..100 {
                        turns.next().await;
                        counted.set(counted.get() + 1);
                    }
                });
            }
            let before = turns.number.get();
            let finished = Rc::clone(&finished);
            monoio::spawn(async move { finished.set(true) });
            while counted.get() < 800 {
                monoio::time::sleep(Duration::from_millis(1)).await;
            }
            turns.number.get() - before
        };
        let passed = runtime.block_on(async { turns.drive(std::pin::pin!(main)).await });
        // Each of them once in a turn, whatever polls the main future beside.
        assert!((100..200).contains(&passed), "{passed}");
        assert!(finished.get());
    }

    #[test]
    fn timers_go_on_where_somebody_always_waits_for_a_turn() {
        let mut runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().enable_timer().build().unwrap();
        let turns = Rc::<Turns>::default();
        let waiting = Rc::clone(&turns);
        let main = async {
            monoio::spawn(async move {
                loop {
                    waiting.next().await;
                }
            });
            for _ in 0..3 {
                turns.note_tick();
                monoio::time::sleep(Duration::from_millis(DEADLINE_TICK_MS)).await;
            }
        };
        let begun = std::time::Instant::now();
        runtime.block_on(async { turns.drive(std::pin::pin!(main)).await });
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert!(turns.number.get() > 100, "{}", turns.number.get());
    }

    #[test]
    fn without_a_main_future_it_is_a_yield() {
        let mut runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().build().unwrap();
        let turns = Turns::default();
        runtime.block_on(async {
            for _ in 0..100 {
                turns.next().await;
            }
        });
        assert_eq!(turns.number.get(), 100);
    }
}
