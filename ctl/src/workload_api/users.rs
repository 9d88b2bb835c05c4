//! What a user may take of us: connections, open calls, signatures. Each bound is per user, since the socket is open to
//! all of them and none may take it from the others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use meshring_core::limits::{
    WORKLOAD_API_CALLS_PER_USER_MAX, WORKLOAD_API_CONNECTIONS_MAX, WORKLOAD_API_CONNECTIONS_PER_USER_MAX,
    WORKLOAD_API_ISSUED_BURST_MAX, WORKLOAD_API_ISSUED_PER_S_MAX,
};

/// Users that are remembered without a connection; their allowance would be full again after four seconds anyway.
const IDLE_USERS_MAX: usize = 1024;

#[derive(Debug)]
struct User {
    connections: usize,
    calls: usize,
    /// Signatures that it may still have, and since when that is so.
    allowance: f64,
    since: Instant,
    denied: bool,
}

impl User {
    fn new(now: Instant) -> Self {
        Self {
            connections: 0,
            calls: 0,
            allowance: f64::from(WORKLOAD_API_ISSUED_BURST_MAX),
            since: now,
            denied: false,
        }
    }

    fn refill(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.since).as_secs_f64();
        let more = seconds * f64::from(WORKLOAD_API_ISSUED_PER_S_MAX);
        self.allowance = (self.allowance + more).min(f64::from(WORKLOAD_API_ISSUED_BURST_MAX));
        self.since = now;
    }
}

#[derive(Debug, Default)]
struct Inner {
    users: HashMap<u32, User>,
    connections: usize,
}

impl Inner {
    fn user(&mut self, uid: u32) -> &mut User {
        let now = Instant::now();
        if self.users.len() > IDLE_USERS_MAX && !self.users.contains_key(&uid) {
            self.users.retain(|_, user| {
                user.refill(now);
                user.connections > 0 || user.calls > 0 || user.allowance < f64::from(WORKLOAD_API_ISSUED_BURST_MAX)
            });
        }
        self.users.entry(uid).or_insert_with(|| User::new(now))
    }
}

/// All users of the Workload API.
#[derive(Debug, Clone, Default)]
pub(super) struct Users(Arc<Mutex<Inner>>);

/// One of a user's connections or calls, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    users: Users,
    uid: u32,
    release: fn(&mut Inner, u32),
}

impl Drop for Slot {
    fn drop(&mut self) {
        (self.release)(&mut self.users.lock(), self.uid);
    }
}

impl Users {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// `None` when there are too many.
    pub(super) fn connection(&self, uid: u32) -> Option<Slot> {
        let mut inner = self.lock();
        if inner.connections >= WORKLOAD_API_CONNECTIONS_MAX {
            return None;
        }
        let user = inner.user(uid);
        if user.connections >= WORKLOAD_API_CONNECTIONS_PER_USER_MAX {
            return None;
        }
        user.connections += 1;
        inner.connections += 1;
        let release = |inner: &mut Inner, uid| {
            inner.connections -= 1;
            inner.user(uid).connections -= 1;
        };
        Some(Slot { users: self.clone(), uid, release })
    }

    /// `None` when there are too many.
    pub(super) fn call(&self, uid: u32) -> Option<Slot> {
        let mut inner = self.lock();
        let user = inner.user(uid);
        if user.calls >= WORKLOAD_API_CALLS_PER_USER_MAX {
            return None;
        }
        user.calls += 1;
        let release = |inner: &mut Inner, uid| inner.user(uid).calls -= 1;
        Some(Slot { users: self.clone(), uid, release })
    }

    /// Whether a user may have so many signatures now; then they are taken from its allowance.
    pub(super) fn spend(&self, uid: u32, signatures: usize) -> bool {
        self.spend_at(uid, signatures, Instant::now())
    }

    /// Whether this user is denied for the first time: the log need not say it each time.
    pub(super) fn first_denial(&self, uid: u32) -> bool {
        !std::mem::replace(&mut self.lock().user(uid).denied, true)
    }

    fn spend_at(&self, uid: u32, signatures: usize, now: Instant) -> bool {
        let mut inner = self.lock();
        let user = inner.user(uid);
        user.refill(now);
        let price = signatures as f64;
        let enough = user.allowance >= price;
        if enough {
            user.allowance -= price;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_user_cannot_take_all_connections_and_gets_them_back() {
        let users = Users::default();
        let mut held: Vec<_> = std::iter::from_fn(|| users.connection(7)).collect();
        assert_eq!(held.len(), WORKLOAD_API_CONNECTIONS_PER_USER_MAX);
        assert!(users.connection(8).is_some(), "another user is refused, too");
        held.pop();
        assert!(users.connection(7).is_some());
        assert_eq!(users.lock().connections, held.len());
    }

    #[test]
    fn all_users_together_have_a_bound() {
        let users = Users::default();
        let held: Vec<_> =
            (0..100).flat_map(|uid| (0..64).map_while(|_| users.connection(uid)).collect::<Vec<_>>()).collect();
        assert_eq!(held.len(), WORKLOAD_API_CONNECTIONS_MAX);
        drop(held);
        assert_eq!(users.lock().connections, 0);
    }

    #[test]
    fn calls_are_bounded_and_given_back() {
        let users = Users::default();
        let held: Vec<_> = std::iter::from_fn(|| users.call(7)).collect();
        assert_eq!(held.len(), WORKLOAD_API_CALLS_PER_USER_MAX);
        drop(held);
        assert!(users.call(7).is_some());
    }

    #[test]
    fn signatures_come_in_a_burst_and_then_at_a_rate() {
        let users = Users::default();
        let begin = Instant::now() + Duration::from_secs(1);
        let taken = (0..10_000).filter(|_| users.spend_at(7, 1, begin)).count();
        assert_eq!(taken, WORKLOAD_API_ISSUED_BURST_MAX as usize);
        assert!(users.spend_at(8, 1, begin), "another user pays for it");
        let later = begin + Duration::from_secs(1);
        let taken = (0..10_000).filter(|_| users.spend_at(7, 1, later)).count();
        assert_eq!(taken, WORKLOAD_API_ISSUED_PER_S_MAX as usize);
    }

    #[test]
    fn idle_users_are_forgotten() {
        let users = Users::default();
        let held = users.connection(0);
        (1..5000).for_each(|uid| drop(users.connection(uid)));
        assert!(users.lock().users.len() <= IDLE_USERS_MAX + 1);
        assert_eq!(users.lock().users[&0].connections, 1);
        drop(held);
    }
}
