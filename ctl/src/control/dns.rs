//! Addresses of the names that ServiceEntries and ExternalName Services point to. The system's resolver may take long,
//! so it runs in threads of its own, and a publication never waits for it beyond a bound.

use std::{
    net::{IpAddr, ToSocketAddrs},
    sync::mpsc,
    time::{Duration, Instant},
};

use crate::{compile::DnsTable, spec::Hostname};

/// How long a compilation waits for names that are new, in milliseconds. Later answers come with the next refresh.
const FIRST_MS_MAX: u64 = 2_000;
/// How long a refresh waits, in milliseconds: the system's resolver gives up after some such time.
const REFRESH_MS_MAX: u64 = 10_000;
/// Pause between two refreshes, in milliseconds (Envoy's `dns_refresh_rate` default: 5 s).
pub(super) const PERIOD_MS: u64 = 5_000;
/// Names that are asked for at a time.
const PARALLEL_MAX: usize = 32;

/// Asks for names that are not known yet.
pub fn learn(known: &mut DnsTable, names: Vec<Hostname>) {
    known.0.retain(|name, _| names.binary_search(name).is_ok());
    let new: Vec<Hostname> = names.into_iter().filter(|name| !known.0.contains_key(name)).collect();
    if new.is_empty() {
        return;
    }
    let answers = resolve(&new, Duration::from_millis(FIRST_MS_MAX));
    for name in new {
        let found = answers.iter().find(|(answer, _)| *answer == name).map(|(_, addresses)| addresses.clone());
        if found.as_ref().is_none_or(Vec::is_empty) {
            tracing::warn!("no address of {name} yet: requests to it get 503; it is asked for every {PERIOD_MS} ms");
        }
        known.0.insert(name, found.unwrap_or_default());
    }
}

/// Asks for names again. A name without an answer is left out: its last addresses are better than none.
#[must_use]
pub fn refresh(names: &[Hostname]) -> Vec<(Hostname, Vec<IpAddr>)> {
    let mut answers = resolve(names, Duration::from_millis(REFRESH_MS_MAX));
    answers.retain(|(_, addresses)| !addresses.is_empty());
    answers
}

fn resolve(names: &[Hostname], timeout: Duration) -> Vec<(Hostname, Vec<IpAddr>)> {
    let deadline = Instant::now() + timeout;
    let (sender, receiver) = mpsc::channel();
    for share in names.chunks(names.len().div_ceil(PARALLEL_MAX).max(1)) {
        let (share, sender) = (share.to_vec(), sender.clone());
        let spawned = std::thread::Builder::new().name("dns".into()).spawn(move || {
            for name in share {
                let addresses = (name.as_str(), 0).to_socket_addrs();
                let addresses = addresses.map(|found| found.map(|address| address.ip()).collect()).unwrap_or_default();
                // Nobody listens any more after the deadline.
                if sender.send((name, addresses)).is_err() {
                    return;
                }
            }
        });
        if let Err(error) = spawned {
            tracing::error!("no thread for the resolver: {error}");
        }
    }
    drop(sender);
    let mut answers = Vec::with_capacity(names.len());
    while let Ok(answer) = receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        answers.push(answer);
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_asked_for_once_and_forgotten_when_nobody_needs_them() {
        let name = |text: &str| Hostname::parse(text).unwrap();
        let mut known = DnsTable::default();
        // In no zone (RFC 6761): the resolver answers without asking anybody.
        learn(&mut known, vec![name("localhost"), name("nowhere.invalid")]);
        assert!(known.0[&name("localhost")].iter().all(IpAddr::is_loopback), "{known:?}");
        assert!(!known.0[&name("localhost")].is_empty(), "{known:?}");
        assert!(known.0[&name("nowhere.invalid")].is_empty(), "{known:?}");
        assert_eq!(refresh(&[name("nowhere.invalid")]), []);
        let kept = known.0[&name("localhost")].clone();
        learn(&mut known, vec![name("localhost")]);
        assert_eq!(known.0.into_iter().collect::<Vec<_>>(), [(name("localhost"), kept)]);
    }
}
