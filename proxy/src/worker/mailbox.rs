//! How other threads reach a worker: a lock-free queue and a byte on a socket pair that wakes its ring.

use std::{
    io::{self, Write as _},
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use crossbeam_queue::SegQueue;
use meshring_core::snapshot::page::PageReader;

use crate::accept::Accepted;

/// To a worker.
pub(crate) enum Message {
    /// A connection that another worker has accepted.
    Connection(Accepted),
    /// Look again at what is active.
    Refresh,
    /// Control has a new page.
    Page(Arc<PageReader>),
    /// Finish what is running, then end.
    Drain,
}

struct Mailbox {
    queue: SegQueue<Message>,
    /// Set while a byte is on its way: one wake-up for many messages.
    woken: AtomicBool,
    wakeups: Mutex<UnixStream>,
    connections: AtomicU32,
}

/// The mailboxes of all workers of a process, by worker index.
pub(crate) struct Mailboxes(Vec<Mailbox>);

impl std::fmt::Debug for Mailboxes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailboxes").field("workers", &self.0.len()).finish()
    }
}

impl Mailboxes {
    /// For `count` workers, with the reading ends of their wake-ups.
    pub(crate) fn new(count: usize) -> io::Result<(Self, Vec<UnixStream>)> {
        let (mut boxes, mut readers) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (writer, reader) = UnixStream::pair()?;
            writer.set_nonblocking(true)?;
            readers.push(reader);
            boxes.push(Mailbox {
                queue: SegQueue::new(),
                woken: AtomicBool::new(false),
                wakeups: Mutex::new(writer),
                connections: AtomicU32::new(0),
            });
        }
        Ok((Self(boxes), readers))
    }

    /// A replacement for a dead worker listens on a fresh pair; its connections are gone.
    pub(crate) fn renew(&self, worker: usize) -> io::Result<UnixStream> {
        let (writer, reader) = UnixStream::pair()?;
        writer.set_nonblocking(true)?;
        let mailbox = &self.0[worker];
        *mailbox.wakeups.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = writer;
        // What was on its way to the dead worker is lost with it: dropping a connection closes it.
        while mailbox.queue.pop().is_some() {}
        mailbox.connections.store(0, Ordering::Relaxed);
        mailbox.woken.store(false, Ordering::Release);
        // A byte in advance: messages that come meanwhile are looked at.
        self.wake(worker);
        Ok(reader)
    }

    /// Puts a message into a worker's box and wakes it.
    pub(crate) fn send(&self, worker: usize, message: Message) {
        self.0[worker].queue.push(message);
        self.wake(worker);
    }

    fn wake(&self, worker: usize) {
        let mailbox = &self.0[worker];
        // AcqRel: pairs with the swap in `drain`, so that a message pushed before is either seen by the pass that
        // cleared the flag or announced by a byte of its own.
        if !mailbox.woken.swap(true, Ordering::AcqRel) {
            let mut writer = mailbox.wakeups.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            // A full or broken pair means that a wake-up is pending, or that the worker is gone.
            let _ = writer.write(&[1]);
        }
    }

    /// Sends to all workers.
    pub(crate) fn send_all(&self, message: impl Fn() -> Message) {
        (0..self.0.len()).for_each(|worker| self.send(worker, message()));
    }

    /// Takes what is there, after a wake-up.
    pub(crate) fn drain(&self, worker: usize) -> impl Iterator<Item = Message> + '_ {
        let mailbox = &self.0[worker];
        mailbox.woken.swap(false, Ordering::AcqRel);
        std::iter::from_fn(|| mailbox.queue.pop())
    }

    /// Counts a connection that a worker is about to get, or has lost.
    pub(crate) fn add_connection(&self, worker: usize) {
        self.0[worker].connections.fetch_add(1, Ordering::Relaxed);
    }

    /// See [`add_connection`](Self::add_connection).
    pub(crate) fn remove_connection(&self, worker: usize) {
        // Not below 0: a dead worker's last tasks may still end after `renew` has counted anew.
        let _ = self.0[worker].connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
    }

    /// Connections of a worker.
    pub(crate) fn connections(&self, worker: usize) -> u32 {
        self.0[worker].connections.load(Ordering::Relaxed)
    }

    /// The worker with the fewest connections, and how many it has.
    pub(crate) fn least_loaded(&self) -> (usize, u32) {
        let counts = self.0.iter().map(|mailbox| mailbox.connections.load(Ordering::Relaxed)).enumerate();
        counts.min_by_key(|&(_, count)| count).unwrap_or((0, 0))
    }
}
