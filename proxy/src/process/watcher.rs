//! Waits on the control page's futex and wakes the workers, so that even an idle worker acknowledges at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use meshring_core::snapshot::page::PageReader;

use super::{Event, Events};
use crate::worker::mailbox::{Mailboxes, Message};

/// After this time without a change the thread looks whether it is still wanted.
const WAIT: Duration = Duration::from_secs(1);

/// A thread that follows one page; ends soon after it is dropped.
#[derive(Debug)]
pub(crate) struct Watcher {
    wanted: Arc<AtomicBool>,
    mailboxes: Arc<Mailboxes>,
}

impl Watcher {
    /// Starts to follow a page.
    pub(crate) fn start(page: Arc<PageReader>, mailboxes: Arc<Mailboxes>, events: Events) -> Self {
        let wanted = Arc::new(AtomicBool::new(true));
        let (thread_wanted, thread_mailboxes) = (Arc::clone(&wanted), Arc::clone(&mailboxes));
        let follow = move || {
            while thread_wanted.load(Ordering::Relaxed) {
                // The number first, then the look at what is active: a change in between ends the wait at once.
                let seen = page.changes();
                thread_mailboxes.send_all(|| Message::Refresh);
                events.send(Event::Committed);
                while page.changes() == seen && thread_wanted.load(Ordering::Relaxed) {
                    page.wait(seen, WAIT);
                }
            }
        };
        // Without this thread workers still see a change at their next request; only idle ones acknowledge late.
        if let Err(error) = std::thread::Builder::new().name("page".into()).stack_size(64 * 1024).spawn(follow) {
            tracing::warn!(%error, "cannot start the thread that watches the control page");
        }
        Self { wanted, mailboxes }
    }

    /// Makes every worker look again at what is active.
    pub(crate) fn refresh_workers(&self) {
        self.mailboxes.send_all(|| Message::Refresh);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.wanted.store(false, Ordering::Relaxed);
    }
}
