//! Work that takes the kernel long and comes in crowds, done a little at a time: who begins it waits in a line, and tasks that are
//! ready meanwhile do not wait for all of it, nor do those that wait for a socket.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Poll, Waker},
};

use meshring_core::limits::CONNECTS_IN_LINE_FOR_EACH;

use super::turns::Turns;

/// How much of it is begun before others get their turn.
#[derive(Debug)]
pub(crate) struct Pace {
    in_a_row_max: usize,
    /// Begun, and others have not had their turn since.
    begun: Cell<usize>,
    line: RefCell<VecDeque<Rc<Waiter>>>,
    /// How many have been at the head of the line.
    called: Cell<u64>,
}

#[derive(Debug, Default)]
struct Waiter {
    waker: RefCell<Option<Waker>>,
    /// It is its turn.
    is_called: Cell<bool>,
    has_left: Cell<bool>,
}

/// The right to begin, passed on when it is dropped: who drops it before others had their turn lets the next one wait for that.
struct Turn<'a> {
    pace: &'a Pace,
    turns: &'a Turns,
    is_over: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.pace.pass_on((!self.is_over).then_some(self.turns));
    }
}

/// A place in the line, which may be left at any time.
struct InLine<'a> {
    pace: &'a Pace,
    turns: &'a Turns,
    waiter: Rc<Waiter>,
    has_turn: bool,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        match (self.has_turn, self.waiter.is_called.get()) {
            (true, _) => {}
            // Nobody else would be called.
            (false, true) => self.pace.pass_on(Some(self.turns)),
            (false, false) => self.waiter.has_left.set(true),
        }
    }
}

impl Pace {
    /// So much at a time.
    pub(crate) fn new(in_a_row_max: usize) -> Self {
        Self { in_a_row_max, begun: Cell::new(0), line: RefCell::default(), called: Cell::new(0) }
    }

    /// Runs a future, of which the first step is what takes long, when it is its turn. May be dropped if the future may, which is
    /// borrowed: moved here, it would have its place in its caller's twice.
    pub(crate) async fn run<F: Future>(&self, turns: &Turns, mut future: Pin<&mut F>) -> F::Output {
        let mut turn = self.turn(turns).await;
        let first = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        turns.next().await;
        turn.is_over = true;
        drop(turn);
        match first {
            Poll::Ready(output) => output,
            Poll::Pending => future.await,
        }
    }

    /// Where the line ends now, for [`has_passed`](Self::has_passed).
    pub(crate) fn end(&self) -> u64 {
        self.called.get() + self.line.borrow().len() as u64
    }

    /// Whether all were called, or have left, that were in the line when this was its [end](Self::end): whoever makes them is to make no
    /// more of them before.
    pub(crate) fn has_passed(&self, end: u64) -> bool {
        self.called.get() >= end
    }

    async fn turn<'a>(&'a self, turns: &'a Turns) -> Turn<'a> {
        let turn = || Turn { pace: self, turns, is_over: false };
        if self.begun.get() < self.in_a_row_max {
            self.begun.set(self.begun.get() + 1);
            return turn();
        }
        let waiter = Rc::<Waiter>::default();
        self.line.borrow_mut().push_back(Rc::clone(&waiter));
        let mut place = InLine { pace: self, turns, waiter, has_turn: false };
        poll_fn(|cx| {
            if place.waiter.is_called.get() {
                place.has_turn = true;
                return Poll::Ready(());
            }
            *place.waiter.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        turn()
    }

    /// One has begun: calls who is next, at once or in the next turn. More than one where the line is long: the more there is to do in
    /// each turn, the longer it takes, and a line that only grows helps nobody.
    fn pass_on(&self, after: Option<&Turns>) {
        self.begun.set(self.begun.get() - 1);
        let at_most = self.in_a_row_max.max(self.line.borrow().len() / CONNECTS_IN_LINE_FOR_EACH);
        while self.begun.get() < at_most {
            let next = self.line.borrow_mut().pop_front();
            let Some(next) = next else { return };
            self.called.set(self.called.get() + 1);
            if next.has_left.get() {
                continue;
            }
            self.begun.set(self.begun.get() + 1);
            next.is_called.set(true);
            let waker = next.waker.borrow_mut().take();
            match (waker, after) {
                (Some(waker), Some(turns)) => turns.wake(&waker),
                (Some(waker), None) => waker.wake(),
                (None, _) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        pin::pin,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Context, Wake},
    };

    use super::*;

    type Running<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

    /// Polls each once: how many have begun so far.
    fn step(futures: &mut [Option<Running<'_>>], begun: &Cell<usize>) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        for place in futures {
            if place.as_mut().is_some_and(|future| future.as_mut().poll(&mut cx).is_ready()) {
                *place = None;
            }
        }
        begun.get()
    }

    #[test]
    fn a_crowd_begins_a_few_at_a_time_in_its_order_and_who_leaves_holds_up_nobody() {
        let (pace, begun, order) = (Pace::new(2), Cell::new(0), RefCell::new(Vec::new()));
        let mut futures: Vec<_> = (0..9)
            .map(|number| {
                let (pace, begun, order) = (&pace, &begun, &order);
                let work = async move {
                    begun.set(begun.get() + 1);
                    order.borrow_mut().push(number);
                };
                Some(Box::pin(async move { pace.run(&Turns::default(), pin!(work)).await }) as Running<'_>)
            })
            .collect();
        assert_eq!(step(&mut futures, &begun), 2);
        let end = pace.end();
        // One in the line leaves, and one that has just been called.
        futures[3] = None;
        futures[0] = None;
        futures[2] = None;
        let mut steps = 1;
        while futures.iter().any(Option::is_some) {
            let before = begun.get();
            assert!(step(&mut futures, &begun) <= before + 4, "{:?}", order.borrow());
            assert!(!pace.has_passed(end) || order.borrow().len() >= 5, "{:?}", order.borrow());
            steps += 1;
            assert!(steps < 20, "{:?}", order.borrow());
        }
        assert_eq!(*order.borrow(), [0, 1, 4, 5, 6, 7, 8]);
        assert!(pace.has_passed(end) && !pace.has_passed(end + 1));
        drop(futures);
        assert_eq!(pace.begun.get(), 0);
    }

    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_gives_up_right_after_its_beginning_lets_the_next_one_wait_for_the_next_turn() {
        let (pace, turns) = (Pace::new(1), Turns::default());
        let mut nobody = Context::from_waker(Waker::noop());
        let idle = pin!(pending::<()>());
        let mut main = pin!(turns.drive(idle));
        assert!(main.as_mut().poll(&mut nobody).is_pending());
        let running = || -> Running<'_> { Box::pin(async { pace.run(&turns, pin!(pending())).await }) };
        let (mut first, mut second) = (running(), running());
        assert!(first.as_mut().poll(&mut nobody).is_pending());
        let woken = Arc::<Counted>::default();
        assert!(second.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::clone(&woken)))).is_pending());
        // Its request is cancelled.
        drop(first);
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        assert!(main.as_mut().poll(&mut nobody).is_pending());
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        drop(second);
        assert_eq!(pace.begun.get(), 0);
    }
}
