//! Streams that bring a message at once and then one whenever something changes. A message is made when the client's flow
//! control asks for one, so a client that does not read holds one message, and gets the newest one next.

use std::{future::pending, pin::Pin, sync::Arc, time::Duration};

use futures_util::stream::{Stream, unfold};
use tokio::{sync::watch, time::Instant};
use tonic::{Code, Status};

use super::{Bindings, WorkloadApi, users::Slot};

/// Two messages are at least so far apart: a burst of changes becomes one message.
const GAP: Duration = Duration::from_millis(100);
/// After a failure; what was sent before is still valid.
const AGAIN: Duration = Duration::from_secs(1);

/// A message, and when it is out of date.
#[derive(Debug)]
pub(super) struct Next<T> {
    pub(super) message: T,
    /// Equal ones say the same.
    pub(super) fingerprint: u64,
    /// From now; `None` where only changes of others make it so.
    pub(super) due: Option<Duration>,
}

/// What a stream's messages are made by.
pub(super) type Make<T> = fn(&WorkloadApi, u32) -> Result<Next<T>, Status>;

/// What a call returns.
pub(super) type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

struct Running<T> {
    api: Arc<WorkloadApi>,
    uid: u32,
    make: Make<T>,
    changes: watch::Receiver<u64>,
    bindings: watch::Receiver<Arc<Bindings>>,
    sent: u64,
    due: Option<Instant>,
    _slot: Slot,
}

/// Between 0 and 1.
pub(super) fn random() -> f64 {
    let number = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0_u8);
    number as f64 / u64::MAX as f64
}

/// Begins a stream. Its first message is made now, so that a refusal is the call's status and comes at once.
pub(super) fn begin<T: Send + 'static>(
    api: &Arc<WorkloadApi>,
    uid: u32,
    slot: Slot,
    make: Make<T>,
) -> Result<Boxed<T>, Status> {
    // Before the first message: what changes after this is not missed.
    let mut changes = api.source.changes();
    let mut bindings = api.bindings.clone();
    changes.mark_unchanged();
    bindings.mark_unchanged();
    let Next { message, fingerprint, due } = make(api, uid)?;
    let due = due.and_then(|due| Instant::now().checked_add(due));
    let running = Running { api: Arc::clone(api), uid, make, changes, bindings, sent: fingerprint, due, _slot: slot };
    let later = unfold(Some(running), |running| async move {
        let mut running = running?;
        match running.next().await {
            Ok(message) => Some((Ok(message), Some(running))),
            Err(status) => Some((Err(status), None)),
        }
    });
    Ok(Box::pin(futures_util::StreamExt::chain(futures_util::stream::iter([Ok(message)]), later)))
}

impl<T> Running<T> {
    /// The next message that says something new; an error ends the stream.
    async fn next(&mut self) -> Result<T, Status> {
        loop {
            self.out_of_date().await;
            tokio::time::sleep(GAP.mul_f64(1.0 + random())).await;
            match (self.make)(&self.api, self.uid) {
                Ok(Next { message, fingerprint, due }) => {
                    self.due = due.and_then(|due| Instant::now().checked_add(due));
                    if fingerprint != self.sent {
                        self.sent = fingerprint;
                        return Ok(message);
                    }
                }
                // The user is no workload any more.
                Err(status) if status.code() == Code::PermissionDenied => return Err(status),
                Err(_) => self.due = Some(Instant::now() + AGAIN),
            }
        }
    }

    async fn out_of_date(&mut self) {
        let before: Vec<_> = self.bindings.borrow_and_update().of(self.uid).to_vec();
        loop {
            let timer = async {
                match self.due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = timer => return,
                () = changed(&mut self.changes) => return,
                () = changed(&mut self.bindings) => {
                    if self.bindings.borrow_and_update().of(self.uid) != before {
                        return;
                    }
                }
            }
        }
    }
}

/// Waits for a change. A source that is gone changes no more.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        pending::<()>().await;
    }
}
