//! The first thing that anybody sees.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::process::Command;

use meshring_tests::{alone, binaries, generate::assert_share, process::Process, wait};
use rustix::process::Signal;

/// The counts of a version in the order of the splits: `reviews v2  ####....  1580 = 79.0 %`.
fn counts(output: &str, version: &str) -> Vec<u64> {
    let lines = output.lines().filter(|line| line.trim_start().starts_with(&format!("reviews {version}  ")));
    let shares = lines.filter(|line| line.contains('%'));
    shares.map(|line| line.split_whitespace().rev().nth(3).unwrap().parse().unwrap()).collect()
}

#[test]
fn the_demo_shows_the_split_changes_it_and_ends_by_itself() {
    let _alone = alone();
    let mut demo = Process::start("meshring demo", Command::new(binaries::path("meshring")).arg("demo"));
    assert_eq!(demo.wait_for_exit().code(), Some(0));
    let output = wait::until("all of its output", || {
        let output = demo.output();
        output.contains("meshring --help").then_some(output)
    });
    let ([first_v1, second_v1], [first_v2, second_v2]) = (&counts(&output, "v1")[..], &counts(&output, "v2")[..])
    else {
        panic!("not two splits: {output}")
    };
    assert_eq!(first_v1 + first_v2, 2_000);
    assert_share(*first_v2, 2_000, 0.8);
    assert_share(*second_v2, second_v1 + second_v2, 0.5);
    assert!(output.contains("0 of 2000 failed") && output.contains("failed while the split changed"), "{output}");
    assert!(output.contains("subset: v2\n           weight: 80"), "{output}");
    // Over mutual TLS, with the identities of its own files.
    for identity in ["/ns/default/sa/productpage (installed)", "/ns/default/sa/reviews (installed)"] {
        assert!(output.contains(identity), "{identity}: {output}");
    }
    assert!(output.contains("TLS handshakes counted at both ends together, 0 of them refused"), "{output}");
    // Nothing that it started is left.
    for pid in pids(&output) {
        assert!(!std::fs::exists(format!("/proc/{pid}")).unwrap(), "process {pid} of the demo is still there");
    }
}

fn pids(output: &str) -> Vec<u32> {
    let words: Vec<_> = output.split_whitespace().collect();
    let pids: Vec<_> = words.windows(2).filter(|pair| pair[0] == "pid").map(|pair| pair[1].parse().unwrap()).collect();
    assert!(pids.len() >= 6, "{output}");
    pids
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing_behind() {
    let _alone = alone();
    for signal in [Signal::INT, Signal::TERM] {
        let mut demo =
            Process::start("meshring demo", Command::new(binaries::path("meshring")).args(["demo", "--hold"]));
        demo.wait_for_line("sidecar B    pid ");
        demo.wait_for_line("meshring apply: live on all");
        let pids = pids(&demo.output());
        demo.signal(signal);
        assert_eq!(demo.wait_for_exit().code(), Some(0));
        for pid in pids {
            assert!(!std::fs::exists(format!("/proc/{pid}")).unwrap(), "process {pid} of the demo is still there");
        }
    }
}
