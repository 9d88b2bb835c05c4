//! Deadlines of connections without a timer per request: each connection owns a slot with the time at which something
//! must have happened, and one task per worker looks at all of them on a coarse tick. Expiry acts on the socket itself
//! (`shutdown(2)`), so that the pending read or write completes with an ordinary result: no future is ever dropped in
//! mid-flight, which on io_uring would lose bytes. A stream of an HTTP/2 connection is interrupted to the same effect.

#![allow(unsafe_code, reason = "borrows a raw descriptor; the invariant stands at the block")]

use std::{
    cell::RefCell,
    os::fd::{BorrowedFd, RawFd},
    rc::Rc,
};

use meshring_core::clock::coarse_ms;
use monoio::io::{CancelHandle, Canceller};
use rustix::net::Shutdown;

use super::interrupt::Interrupt;

const NEVER: u64 = u64::MAX;

/// What happens at the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// End the read side: a pending read returns 0, and a response can still be written.
    ShutdownRead,
    /// End the write side: the peer sees FIN.
    ShutdownWrite,
    /// End both sides, and reset the connection when it is closed: see [`Timer::is_cut`].
    ShutdownBoth,
    /// End both sides behind what was written.
    EndBoth,
    /// Cancel the pending idle read, so that the connection can give its buffer back.
    CancelRead,
}

/// What a deadline acts on.
#[derive(Debug, Clone)]
enum Target {
    /// A socket, by `shutdown(2)`.
    Socket(RawFd),
    /// Whoever waits for something else.
    Interrupt(Rc<Interrupt>),
}

struct Slot {
    target: Target,
    expiry: Expiry,
    expired: bool,
    /// Ended by us at once, and for good: a deadline that is set later must not make it look like the peer's end.
    ended: bool,
    /// See [`Timer::is_cut`].
    cut: bool,
    idle: bool,
    canceller: Option<Canceller>,
}

impl std::fmt::Debug for Deadlines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deadlines").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Slots {
    /// Apart from the rest: the tick scans this array alone.
    at_ms: Vec<u64>,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

/// All deadlines of a worker.
#[derive(Default)]
pub(crate) struct Deadlines(RefCell<Slots>);

/// One connection's slot, freed on drop.
#[derive(Debug)]
pub(crate) struct Timer {
    deadlines: Rc<Deadlines>,
    index: u32,
    /// The slot of the timer that this one is beside, or its own.
    main: u32,
}

/// Milliseconds of the monotonic clock; deadlines are looked at ten times a second, so that a few do not matter.
pub(crate) fn now_ms() -> u64 {
    coarse_ms()
}

impl Deadlines {
    /// A slot for a socket. The owner drops the timer before it closes the descriptor.
    pub(crate) fn timer(self: &Rc<Self>, fd: RawFd) -> Timer {
        self.timer_of(Target::Socket(fd))
    }

    /// A slot for something that is no socket.
    pub(crate) fn interrupting(self: &Rc<Self>, interrupt: &Rc<Interrupt>) -> Timer {
        self.timer_of(Target::Interrupt(Rc::clone(interrupt)))
    }

    fn timer_of(self: &Rc<Self>, target: Target) -> Timer {
        let mut slots = self.0.borrow_mut();
        let expiry = Expiry::ShutdownBoth;
        let slot = Slot { target, expiry, expired: false, ended: false, cut: false, idle: false, canceller: None };
        let index = match slots.free.pop() {
            Some(index) => {
                slots.slots[index as usize] = slot;
                index
            }
            None => {
                if slots.slots.len() == slots.slots.capacity() {
                    // Twice as many slots would be half of them for nothing.
                    let more = (slots.slots.len() / 4).max(64);
                    slots.at_ms.reserve_exact(more);
                    slots.slots.reserve_exact(more);
                }
                slots.at_ms.push(NEVER);
                slots.slots.push(slot);
                slots.slots.len() as u32 - 1
            }
        };
        Timer { deadlines: Rc::clone(self), index, main: index }
    }

    /// Acts on every deadline that has passed.
    pub(crate) fn tick(&self, now_ms: u64) {
        let mut slots = self.0.borrow_mut();
        let slots = &mut *slots;
        for (at_ms, slot) in slots.at_ms.iter_mut().zip(&mut slots.slots) {
            if *at_ms <= now_ms {
                *at_ms = NEVER;
                slot.expired = true;
                slot.act();
            }
        }
    }

    /// Ends every connection now; for a worker that dies. A panic may have come in the middle of a change: then there is
    /// nothing that can be relied upon, and nothing is done.
    pub(crate) fn end_all(&self) {
        let Ok(mut slots) = self.0.try_borrow_mut() else { return };
        let Slots { slots, free, .. } = &mut *slots;
        let mut in_use = vec![true; slots.len()];
        free.iter().for_each(|&index| in_use[index as usize] = false);
        for (slot, _) in slots.iter_mut().zip(in_use).filter(|(_, in_use)| *in_use) {
            slot.expiry = Expiry::ShutdownBoth;
            slot.act();
        }
    }

    /// Ends the connections that wait for a next request; for draining.
    pub(crate) fn expire_idle(&self) {
        let mut slots = self.0.borrow_mut();
        let slots = &mut *slots;
        for (at_ms, slot) in slots.at_ms.iter_mut().zip(&mut slots.slots) {
            if slot.idle && *at_ms != NEVER {
                *at_ms = NEVER;
                slot.expired = true;
                slot.expiry = Expiry::ShutdownRead;
                slot.act();
            }
        }
    }
}

impl Slot {
    fn act(&mut self) {
        self.cut |= self.expiry == Expiry::ShutdownBoth;
        let fd = match &self.target {
            Target::Socket(fd) => *fd,
            Target::Interrupt(interrupt) => return interrupt.act(self.expiry),
        };
        let how = match self.expiry {
            Expiry::CancelRead => {
                self.canceller = self.canceller.take().map(Canceller::cancel);
                return;
            }
            Expiry::ShutdownRead => Shutdown::Read,
            Expiry::ShutdownWrite => Shutdown::Write,
            Expiry::ShutdownBoth | Expiry::EndBoth => Shutdown::Both,
        };
        // SAFETY: a Timer lives beside its socket in a Conn, which drops the timer first (field order), or in a frame
        // that borrows the Conn; with the timer goes this slot's deadline: a slot with a deadline always names an open
        // descriptor.
        let socket = unsafe { BorrowedFd::borrow_raw(fd) };
        // ENOTCONN: the peer was faster; the pending operation completes all the same.
        let _ = rustix::net::shutdown(socket, how);
    }
}

impl Timer {
    /// Another timer for the same socket or stream, which is dropped before this one.
    pub(crate) fn beside(&self) -> Timer {
        let target = self.deadlines.0.borrow().slots[self.index as usize].target.clone();
        let mut beside = self.deadlines.timer_of(target);
        beside.main = self.main;
        beside
    }

    /// Whether this timer, or one that was beside it, has ended both sides in the middle of something ([`Expiry::ShutdownBoth`]).
    pub(crate) fn is_cut(&self) -> bool {
        self.deadlines.0.borrow().slots[self.index as usize].cut
    }

    /// Sets the deadline, in milliseconds of [`now_ms`]; replaces the one before.
    pub(crate) fn set(&self, at_ms: u64, expiry: Expiry) {
        let mut slots = self.deadlines.0.borrow_mut();
        let index = self.index as usize;
        slots.at_ms[index] = at_ms;
        let slot = &mut slots.slots[index];
        // What a deadline has shut stays shut: an operation that completed at the same moment must not make the end that
        // the next one meets look like the peer's.
        slot.expired &= slot.expiry != Expiry::CancelRead;
        slot.expiry = expiry;
        slot.idle = false;
    }

    /// As [`set`](Self::set), for a connection that waits for a next request.
    pub(crate) fn set_idle(&self, at_ms: u64, expiry: Expiry) {
        self.set(at_ms, expiry);
        self.deadlines.0.borrow_mut().slots[self.index as usize].idle = true;
    }

    /// No deadline any more.
    pub(crate) fn clear(&self) {
        self.deadlines.0.borrow_mut().at_ms[self.index as usize] = NEVER;
    }

    /// Whether a deadline has passed since the last call.
    pub(crate) fn take_expired(&self) -> bool {
        let slot = &mut self.deadlines.0.borrow_mut().slots[self.index as usize];
        std::mem::take(&mut slot.expired) || slot.ended
    }

    /// Forgets that the time to cancel a read has passed: the read was done before that. Another deadline that has passed
    /// meanwhile is not forgotten.
    pub(crate) fn forget_cancel(&self) {
        let slot = &mut self.deadlines.0.borrow_mut().slots[self.index as usize];
        if slot.expiry == Expiry::CancelRead {
            slot.expired = false;
        }
    }

    /// As [`take_expired`](Self::take_expired), which will say it again.
    pub(crate) fn has_expired(&self) -> bool {
        let slot = &self.deadlines.0.borrow().slots[self.index as usize];
        slot.expired || slot.ended
    }

    /// A handle that makes a read cancelable by [`Expiry::CancelRead`].
    pub(crate) fn cancel_handle(&self) -> CancelHandle {
        let mut slots = self.deadlines.0.borrow_mut();
        slots.slots[self.index as usize].canceller.get_or_insert_with(Canceller::new).handle()
    }

    /// Frees what a cancelable read needs; an idle connection does without.
    pub(crate) fn drop_canceller(&self) {
        self.deadlines.0.borrow_mut().slots[self.index as usize].canceller = None;
    }

    /// Ends the socket now, as a deadline would: a reader can tell that it was not the peer.
    pub(crate) fn shutdown(&self, expiry: Expiry) {
        let mut slots = self.deadlines.0.borrow_mut();
        let slot = &mut slots.slots[self.index as usize];
        slot.expired = true;
        slot.ended = expiry == Expiry::ShutdownBoth;
        slot.expiry = expiry;
        slot.act();
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut slots = self.deadlines.0.borrow_mut();
        let index = self.index as usize;
        slots.at_ms[index] = NEVER;
        let slot = &mut slots.slots[index];
        slot.canceller = None;
        slot.target = Target::Socket(-1);
        let was_cut = slot.cut;
        slots.slots[self.main as usize].cut |= was_cut;
        slots.free.push(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{on_each_driver, pair};

    #[test]
    fn what_any_timer_of_a_connection_has_cut_ends_with_a_reset() {
        on_each_driver(async |worker| {
            for (is_beside, expiry) in
                [(false, Expiry::ShutdownBoth), (true, Expiry::ShutdownBoth), (true, Expiry::EndBoth)]
            {
                let (conn, peer) = pair(&worker);
                let second = conn.second_timer();
                let timer = if is_beside { &second } else { &conn.timer };
                timer.set(now_ms() + 1_000, expiry);
                worker.deadlines.tick(now_ms() + 2_000);
                drop(second);
                assert_eq!(conn.timer.is_cut(), expiry == Expiry::ShutdownBoth);
                // What the slot was before is nothing to the next one.
                assert!(!conn.second_timer().is_cut());
                drop(conn);
                // A reset dissolves the connection; behind a FIN it still has two ends.
                assert_eq!(peer.peer_addr().is_err(), expiry == Expiry::ShutdownBoth);
            }
        });
    }
}
