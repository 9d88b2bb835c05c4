//! Writes what control must remember, off the path of a change: a disk that is busy for a second holds up nobody but the answer, which
//! promises that the change survives this process.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::Instant,
};

use meshring_core::id::Generation;

use super::{
    run_dir::{Pending, RunDir},
    state::State,
};

/// Writes that may wait; whoever has one more waits for a place.
const WAITING_MAX: usize = 64;

enum Job {
    State(Box<State>),
    Replace(Pending),
    Tell(SyncSender<()>),
}

/// The thread that writes, and what is known of its work. Writes are made in the order in which they were asked for.
#[derive(Debug)]
pub struct Scribe {
    jobs: SyncSender<Job>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Jobs that are not done.
    waiting: AtomicUsize,
    /// The highest number that the stored state has reserved.
    reserved: AtomicU64,
    /// Why the last file that was to be replaced is not.
    failed: Mutex<Option<String>>,
}

/// Whether all that was asked for up to a moment is written.
#[derive(Debug)]
pub struct Settled {
    /// Hears when it is; `None`: it is.
    over: Option<Receiver<()>>,
    shared: Arc<Shared>,
}

/// Why what was applied may not survive this process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsettled {
    /// The disk takes its time: it is not known yet.
    #[error(
        "it may be lost when control ends: it is not stored yet, the disk of the run directory is very slow or does not answer"
    )]
    Late,
    /// It is not stored, and why.
    #[error("it is lost when control ends, since it cannot be stored: {0}")]
    Failed(String),
}

impl Settled {
    /// Waits for it, at most until then: who asks has a deadline, and a disk may have none.
    ///
    /// # Errors
    /// What was applied is not stored, or not yet. A state that cannot be stored is logged only.
    pub fn wait_until(self, deadline: Instant) -> Result<(), Unsettled> {
        if let Some(over) = &self.over {
            match over.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => return Err(Unsettled::Late),
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended()),
            }
        }
        self.stored()
    }

    /// Waits for it, however long that takes.
    ///
    /// # Errors
    /// As for [`wait_until`](Self::wait_until).
    pub fn wait(self) -> Result<(), Unsettled> {
        match &self.over {
            Some(over) if over.recv().is_err() => Err(self.ended()),
            _ => self.stored(),
        }
    }

    fn ended(&self) -> Unsettled {
        Unsettled::Failed("the thread that writes has ended".to_owned())
    }

    fn stored(&self) -> Result<(), Unsettled> {
        let failed = self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.clone().map_or(Ok(()), |why| Err(Unsettled::Failed(why)))
    }
}

impl Scribe {
    /// Starts the thread; it ends when this value is gone and all is written.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(run_dir: Arc<RunDir>, reserved: Generation) -> io::Result<Self> {
        let (jobs, work) = sync_channel(WAITING_MAX);
        let shared = Arc::new(Shared { reserved: AtomicU64::new(reserved.0), ..Shared::default() });
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new().name("scribe".into()).spawn(move || serve(&run_dir, &work, &theirs))?;
        Ok(Self { jobs, shared })
    }

    /// Stores the state.
    pub fn state(&self, state: State) {
        self.send(Job::State(Box::new(state)));
    }

    /// Puts a file in the place of the one before.
    pub fn replace(&self, file: Pending) {
        self.send(Job::Replace(file));
    }

    /// The highest number that the stored state has reserved.
    #[must_use]
    pub fn reserved(&self) -> Generation {
        // Pairs with the Release behind the write: whoever sees the number may use it.
        Generation(self.shared.reserved.load(Ordering::Acquire))
    }

    /// To be waited for, without holding the publisher.
    #[must_use]
    pub fn settled(&self) -> Settled {
        let shared = Arc::clone(&self.shared);
        // Pairs with the decrement behind each write.
        if self.shared.waiting.load(Ordering::Acquire) == 0 {
            return Settled { over: None, shared };
        }
        let (teller, told) = sync_channel(1);
        self.send(Job::Tell(teller));
        Settled { over: Some(told), shared }
    }

    fn send(&self, job: Job) {
        self.shared.waiting.fetch_add(1, Ordering::AcqRel);
        if self.jobs.send(job).is_err() {
            tracing::error!("the thread that writes has ended: nothing is stored any more");
        }
    }
}

fn serve(run_dir: &RunDir, work: &Receiver<Job>, shared: &Shared) {
    for job in work {
        match job {
            Job::State(state) => {
                if state.store(run_dir) {
                    shared.reserved.store(state.reserved.0, Ordering::Release);
                }
            }
            Job::Replace(file) => {
                let name = file.path().display().to_string();
                let failed = file.replace().err().map(|error| format!("{name}: {error}"));
                if let Some(error) = &failed {
                    tracing::error!("{error}: what was applied is lost when control ends");
                }
                *shared.failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
            }
            // Nobody may be waiting any more.
            Job::Tell(teller) => drop(teller.send(())),
        }
        shared.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn writes_are_made_in_their_order_and_numbers_count_as_reserved_once_they_are_stored() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = Arc::new(RunDir::open(dir.path()).unwrap());
        let scribe = Scribe::start(Arc::clone(&run_dir), Generation(3)).unwrap();
        assert_eq!(scribe.reserved(), Generation(3));
        for number in 4..40 {
            scribe.replace(run_dir.write("x", number.to_string().as_bytes()).unwrap());
            scribe.state(State { reserved: Generation(number), ..State::default() });
            scribe.settled().wait().unwrap();
            assert_eq!(scribe.reserved(), Generation(number));
            assert_eq!(run_dir.load("x").unwrap().unwrap(), number.to_string().as_bytes());
        }
        assert_eq!(State::load(&run_dir).unwrap().reserved, Generation(39));
    }

    #[test]
    fn who_waits_for_a_disk_that_does_not_answer_has_a_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let scribe = Scribe::start(Arc::new(RunDir::open(dir.path()).unwrap()), Generation(0)).unwrap();
        // As a write that does not come back: it tells somebody who does not listen.
        let (teller, held) = sync_channel(0);
        scribe.send(Job::Tell(teller));
        let soon = || Instant::now() + Duration::from_millis(20);
        assert_eq!(scribe.settled().wait_until(soon()), Err(Unsettled::Late));
        // Others, too, and without hindering each other.
        assert_eq!(scribe.settled().wait_until(soon()), Err(Unsettled::Late));
        held.recv().unwrap();
        assert_eq!(scribe.settled().wait_until(Instant::now() + Duration::from_secs(20)), Ok(()));
    }

    #[test]
    fn what_cannot_be_stored_is_told_to_who_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = Arc::new(RunDir::open(dir.path()).unwrap());
        let scribe = Scribe::start(Arc::clone(&run_dir), Generation(0)).unwrap();
        let pending = run_dir.write("x", b"1").unwrap();
        // A directory in its place: no file can be renamed to it.
        std::fs::create_dir_all(dir.path().join("x/y")).unwrap();
        scribe.replace(pending);
        assert!(matches!(scribe.settled().wait(), Err(Unsettled::Failed(why)) if why.contains("/x: ")));
        std::fs::remove_dir_all(dir.path().join("x")).unwrap();
        assert!(scribe.settled().wait().is_err(), "it is still not there");
        scribe.replace(run_dir.write("x", b"2").unwrap());
        assert_eq!(scribe.settled().wait(), Ok(()));
    }
}
