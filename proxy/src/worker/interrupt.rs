//! What a deadline does to a wait that is no operation of the kernel: of a stream of an HTTP/2 connection, or of that
//! connection's own task. The one who waits polls, so that it can be woken at any time and nothing is lost.

use std::{
    cell::Cell,
    io,
    task::{Context, Waker},
};

use super::deadlines::Expiry;

/// Ends waits. One task waits at a time.
#[derive(Default)]
pub(crate) struct Interrupt {
    read_ended: Cell<bool>,
    write_ended: Cell<bool>,
    read_cancelled: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interrupt").field("read_ended", &self.read_ended.get()).finish_non_exhaustive()
    }
}

impl Interrupt {
    /// What has happened to it ends waits of `cx`'s task from now on.
    pub(crate) fn register(&self, cx: &Context<'_>) {
        let known = self.waker.take().filter(|known| known.will_wake(cx.waker()));
        self.waker.set(Some(known.unwrap_or_else(|| cx.waker().clone())));
    }

    /// Carries out what a deadline says.
    pub(crate) fn act(&self, expiry: Expiry) {
        match expiry {
            Expiry::ShutdownRead => self.read_ended.set(true),
            Expiry::ShutdownWrite => self.write_ended.set(true),
            Expiry::ShutdownBoth | Expiry::EndBoth => {
                self.read_ended.set(true);
                self.write_ended.set(true);
            }
            Expiry::CancelRead => self.read_cancelled.set(true),
        }
        self.wake();
    }

    /// Lets whoever waits look again.
    pub(crate) fn wake(&self) {
        // Taken before it is woken: it may register again at once.
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// A read begins: what was cancelled before it was another one.
    pub(crate) fn begin_read(&self) {
        self.read_cancelled.set(false);
    }

    /// How a read is to end now: with 0 like at the end of a stream, or because it was cancelled.
    pub(crate) fn read_end(&self) -> Option<io::Result<usize>> {
        if self.read_ended.get() {
            return Some(Ok(0));
        }
        self.read_cancelled.take().then(|| Err(rustix::io::Errno::CANCELED.into()))
    }

    /// Whether nothing is to be written any more.
    pub(crate) fn has_write_ended(&self) -> bool {
        self.write_ended.get()
    }

    /// Whether nothing has been ended.
    pub(crate) fn is_untouched(&self) -> bool {
        !self.read_ended.get() && !self.write_ended.get()
    }

    /// Whether it has acted since the last call; for one that only wants to look around.
    pub(crate) fn take_rung(&self) -> bool {
        self.read_ended.take()
    }
}
