//! Two futures at once, both to their end: neither is ever dropped in mid-flight. And a place for others in between.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
    time::Duration,
};

/// Lets the worker's other tasks run. On epoll an operation that can proceed completes at once: without this, a peer that
/// always has something more would have the worker for itself, deadlines included.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A future that may be dropped at any time, within so many milliseconds.
pub(crate) async fn within<F: Future>(ms_max: u64, future: F) -> Option<F::Output> {
    monoio::time::timeout(Duration::from_millis(ms_max), future).await.ok()
}

/// The first of two futures that may be dropped at any time to be done, within so many milliseconds: whether it is the first one.
/// `None`: neither is.
pub(crate) async fn either<A: Future, B: Future>(ms_max: u64, a: A, b: B) -> Option<bool> {
    let (mut a, mut b) = (std::pin::pin!(a), std::pin::pin!(b));
    let first = poll_fn(|cx| match a.as_mut().poll(cx) {
        Poll::Ready(_) => Poll::Ready(true),
        Poll::Pending => b.as_mut().poll(cx).map(|_| false),
    });
    within(ms_max, first).await
}

/// Drives both until both are done.
pub(crate) async fn both<A: Future, B: Future>(mut a: Pin<&mut A>, mut b: Pin<&mut B>) -> (A::Output, B::Output) {
    let (mut first, mut second) = (None, None);
    poll_fn(|cx| {
        if first.is_none()
            && let Poll::Ready(value) = a.as_mut().poll(cx)
        {
            first = Some(value);
        }
        if second.is_none()
            && let Poll::Ready(value) = b.as_mut().poll(cx)
        {
            second = Some(value);
        }
        match (first.take(), second.take()) {
            (Some(first), Some(second)) => Poll::Ready((first, second)),
            (one, other) => {
                (first, second) = (one, other);
                Poll::Pending
            }
        }
    })
    .await
}
