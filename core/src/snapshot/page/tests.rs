//! The control page between threads that stand for processes: each has a mapping of its own.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::*;
use crate::snapshot::region;

/// Far beyond what a wake-up takes; reached only when one is lost.
const LONG: Duration = Duration::from_secs(30);

#[test]
fn a_proxy_sees_what_control_commits() {
    let control = PageWriter::create(Generation(3)).expect("a page");
    let proxy = PageReader::open(control.fd()).expect("sealed");
    assert_eq!((control.active(), proxy.active().load()), (Generation(3), Generation(3)));
    let before = proxy.changes();
    control.commit(Generation(4));
    assert_eq!((control.active(), proxy.active().load()), (Generation(4), Generation(4)));
    assert_ne!(proxy.changes(), before);
    // A rollback is a commit of an older generation.
    control.commit(Generation(3));
    assert_eq!(proxy.active().load(), Generation(3));
}

#[test]
fn a_commit_wakes_every_waiting_proxy() {
    let control = PageWriter::create(Generation(0)).expect("a page");
    let (ready, started) = mpsc::channel();
    let proxies: Vec<_> = (0..4)
        .map(|_| {
            let (page, ready) = (PageReader::open(control.fd()).expect("sealed"), ready.clone());
            thread::spawn(move || {
                let mut seen = Vec::new();
                while seen.last() != Some(&5) {
                    let changes = page.changes();
                    let active = page.active().load().0;
                    if seen.last() == Some(&active) {
                        page.wait(changes, LONG);
                    } else {
                        seen.push(active);
                        ready.send(()).expect("the test listens");
                    }
                }
                seen
            })
        })
        .collect();
    let begun = Instant::now();
    for generation in 1..=5 {
        for _ in 0..proxies.len() {
            started.recv().expect("a proxy that reports each generation");
        }
        control.commit(Generation(generation));
    }
    for proxy in proxies {
        assert_eq!(proxy.join().expect("no panic"), [0, 1, 2, 3, 4, 5]);
    }
    assert!(begun.elapsed() < LONG, "a wake-up was lost: {:?}", begun.elapsed());
}

#[test]
fn a_change_before_the_wait_is_not_slept_through() {
    let control = PageWriter::create(Generation(1)).expect("a page");
    let proxy = PageReader::open(control.fd()).expect("sealed");
    let seen = proxy.changes();
    control.commit(Generation(2));
    let begun = Instant::now();
    proxy.wait(seen, LONG);
    assert!(begun.elapsed() < LONG);
}

#[test]
fn a_wait_without_a_change_ends_with_its_timeout() {
    let control = PageWriter::create(Generation(1)).expect("a page");
    let proxy = PageReader::open(control.fd()).expect("sealed");
    let timeout = Duration::from_millis(20);
    let begun = Instant::now();
    proxy.wait(proxy.changes(), timeout);
    // It may return early (EINTR); what it must not do is wait for a change that never comes.
    assert!(begun.elapsed() < LONG);
    assert_eq!(proxy.active().load(), Generation(1));
    drop(control);
    assert_eq!(proxy.active().load(), Generation(1), "control may be gone");
}

#[test]
fn memory_that_is_no_control_page_is_refused() {
    let (fd, region) = Region::create("test", PAGE_BYTES).expect("a page");
    let refused = PageReader::open(&fd).expect_err("without magic");
    assert_eq!(refused.to_string(), "control page: this is no control page of this version");
    drop(region);
    let (fd, _region) = Region::create("test", 2 * PAGE_BYTES).expect("a page");
    assert!(matches!(PageReader::open(&fd), Err(BadRegion::Size { .. })));
    let snapshot = region::sealed("test", &[&[0; PAGE_BYTES]]).expect("a memfd");
    assert!(matches!(PageReader::open(&snapshot), Err(BadRegion::NotSealed)));
}
