//! Publication: two phases, refusals, stale proxies, rollback, restarts.

mod common;

use common::{FakeProxy, Manner, Node, SHOP, split, until};
use meshring_core::id::Generation;

#[test]
fn a_change_is_live_on_every_worker_of_every_proxy_when_apply_returns() {
    let node = Node::started(&[("shop.yaml", SHOP)]);
    let proxies: Vec<_> = (0..3).map(|n| FakeProxy::connect(&node, &format!("p{n}"))).collect();
    until("all run generation 1", || proxies.iter().all(|proxy| proxy.runs() == [1, 1]));
    node.file("split.yaml", &split(80));
    let said = node.ok(&["apply", "-f", "split.yaml"]);
    assert!(proxies.iter().all(|proxy| proxy.runs() == [2, 2]), "{said}");
    assert!(
        said.starts_with("VirtualService default/reviews created\ngeneration 2: applied to 6 workers of 3 proxies in "),
        "{said}"
    );
    let said = node.ok(&["apply", "-f", "split.yaml"]);
    assert!(said.starts_with("VirtualService default/reviews unchanged\ngeneration 2 stays active"), "{said}");
    node.file("split.yaml", &split(50));
    let said = node.ok(&["apply", "-f", "split.yaml"]);
    assert!(
        said.starts_with("VirtualService default/reviews configured\ngeneration 3: applied to 6 workers"),
        "{said}"
    );
    assert_eq!(proxies[0].swaps(), [1, 2, 3]);
    let proxies = node.json(&["proxies", "-o", "json"]);
    assert!(proxies.as_array().unwrap().iter().all(|proxy| proxy["state"] == "current"), "{proxies}");
}

#[test]
fn a_dry_run_changes_nothing_and_shows_the_difference() {
    let node = Node::started(&[("shop.yaml", SHOP), ("split.yaml", &split(80))]);
    let proxy = FakeProxy::connect(&node, "p");
    until("it runs generation 1", || proxy.runs() == [1, 1]);
    node.file("split.yaml", &split(50));
    let said = node.ok(&["apply", "--dry-run", "-f", "split.yaml"]);
    assert!(said.contains("-      weight: 80\n+      weight: 50\n"), "{said}");
    assert!(said.contains("VirtualService default/reviews configured\ndry run: valid"), "{said}");
    assert_eq!(
        node.ok(&["diff", "-f", "split.yaml"]),
        said.split("VirtualService default/reviews configured\n").next().unwrap()
    );
    assert_eq!((node.generation(), proxy.prepared().len()), (1, 1));
}

#[test]
fn a_live_proxy_that_refuses_blocks_the_commit_for_all() {
    let node = Node::started(&[("shop.yaml", SHOP)]);
    let good = FakeProxy::connect(&node, "good");
    let bad = FakeProxy::connect(&node, "bad");
    until("both run generation 1", || good.runs() == [1, 1] && bad.runs() == [1, 1]);
    bad.behave(Manner::Refuse("checksum does not fit"));
    node.file("split.yaml", &split(80));
    let said = node.refused(&["apply", "-f", "split.yaml"]);
    assert!(said.contains("default/bad (pid ") && said.contains("checksum does not fit"), "{said}");
    assert_eq!((good.runs(), bad.runs(), node.generation()), (vec![1, 1], vec![1, 1], 1));
    assert!(node.ok(&["get", "vs"]).is_empty(), "what was refused must not be in effect");
    bad.behave(Manner::Accept);
    node.ok(&["apply", "-f", "split.yaml"]);
    // Number 2 was seen by `good`: it must not get a second content.
    assert_eq!((good.runs(), bad.runs()), (vec![3, 3], vec![3, 3]));
}

#[test]
fn a_silent_proxy_is_stale_holds_up_nobody_and_catches_up() {
    let node = Node::started(&[("shop.yaml", SHOP)]);
    let quick = FakeProxy::connect(&node, "quick");
    let silent = FakeProxy::connect(&node, "silent");
    until("both run generation 1", || quick.runs() == [1, 1] && silent.runs() == [1, 1]);
    silent.behave(Manner::Silent);
    node.file("split.yaml", &split(80));
    let said = node.ok(&["apply", "-f", "split.yaml"]);
    assert!(said.contains("applied to 2 workers of 1 proxy"), "{said}");
    assert!(said.contains("stale: default/silent (pid "), "{said}");
    assert_eq!(quick.runs(), [2, 2]);
    let state = |name: &str| {
        let proxies = node.json(&["proxies", "-o", "json"]);
        let proxy = proxies.as_array().unwrap().iter().find(|proxy| proxy["workload"] == name).unwrap().clone();
        proxy["state"].as_str().unwrap().to_owned()
    };
    assert_eq!((state("quick").as_str(), state("silent").as_str()), ("current", "stale"));
    let said = node.refused(&["wait", "--applied", "--timeout", "50ms"]);
    assert!(said.contains("default/silent (pid ") && said.contains("worker 1 runs generation 1"), "{said}");
    // A stale proxy is not waited for again, however many changes come.
    for v2 in 1..=12 {
        node.file("split.yaml", &split(v2));
        node.ok(&["apply", "-f", "split.yaml"]);
    }
    assert_eq!(quick.runs(), [14, 14]);
    silent.behave(Manner::Accept);
    until("it has caught up", || silent.runs() == [14, 14]);
    until("it is current", || state("silent") == "current");
    node.ok(&["wait", "--applied"]);
}

#[test]
fn a_rollback_holds_until_the_configuration_really_changes() {
    let mut node = Node::started(&[("shop.yaml", SHOP), ("split.yaml", &split(80))]);
    let proxy = FakeProxy::connect(&node, "p");
    until("it runs generation 1", || proxy.runs() == [1, 1]);
    node.write("split.yaml", &split(50));
    let said = node.ok(&["wait", "--applied"]);
    assert!(said.starts_with("generation 2: applied to 2 workers of 1 proxy"), "{said}");

    let said = node.ok(&["rollback"]);
    assert!(said.starts_with("generation 1 is active: applied to 2 workers of 1 proxy"), "{said}");
    assert!(said.contains("meshring rollback --to 2"), "{said}");
    assert_eq!(proxy.runs(), [1, 1]);
    node.ok(&["wait", "--applied"]);
    node.write("split.yaml", &split(50));
    node.ok(&["wait", "--applied"]);
    assert_eq!((node.generation(), node.status()["rolled_back"]["from"].as_u64()), (1, Some(2)));

    // It holds over a restart, too, for proxies that are there and for new ones.
    node.kill();
    drop(proxy);
    node.start();
    let proxy = FakeProxy::connect(&node, "p");
    until("it runs generation 1 again", || proxy.runs() == [1, 1]);
    assert_eq!(node.status()["rolled_back"]["from"].as_u64(), Some(2));

    let said = node.ok(&["rollback", "--to", "2"]);
    assert!(!said.contains("rolled back"), "{said}");
    assert_eq!((proxy.runs(), node.status()["rolled_back"].is_null()), (vec![2, 2], true));
    node.ok(&["rollback", "--to", "1"]);
    node.write("split.yaml", &split(30));
    node.ok(&["wait", "--applied"]);
    // 3 was reserved when control was killed: a proxy might have heard of it.
    assert_eq!((proxy.runs(), node.status()["rolled_back"].is_null()), (vec![4, 4], true));
    assert!(node.refused(&["rollback", "--to", "9"]).contains("generation 9 is not retained; retained are"));
    let history = node.ok(&["history"]);
    assert!(history.contains("rollback from 2") && history.contains("4 (active)"), "{history}");
}

#[test]
fn only_the_last_generations_are_retained() {
    let node = Node::started(&[("shop.yaml", SHOP)]);
    let proxy = FakeProxy::connect(&node, "p");
    for v2 in 1..=10 {
        node.file("split.yaml", &split(v2));
        node.ok(&["apply", "-f", "split.yaml"]);
    }
    let retained: Vec<u64> = node.json(&["history", "-o", "json"])["retained"]
        .as_array()
        .unwrap()
        .iter()
        .map(|g| g.as_u64().unwrap())
        .collect();
    assert_eq!(retained, (4..=11).collect::<Vec<_>>());
    until("the proxy has forgotten the others", || {
        proxy.prepared().iter().map(|(generation, _)| *generation).eq(4..=11)
    });
    assert!(node.refused(&["rollback", "--to", "3"]).contains("retained are 4, 5"));
    node.ok(&["rollback", "--to", "4"]);
    assert_eq!(proxy.runs(), [4, 4]);
}

#[test]
fn a_restart_with_the_same_configuration_is_the_same_generation() {
    let mut node = Node::started(&[("shop.yaml", SHOP)]);
    node.file("split.yaml", &split(80));
    node.ok(&["apply", "-f", "split.yaml"]);
    let proxy = FakeProxy::connect(&node, "p");
    until("it runs generation 2", || proxy.runs() == [2, 2]);
    let (_, checksum) = proxy.prepared()[0];
    node.kill();
    node.start();
    let again = FakeProxy::with(&node, "p", Manner::Accept, |hello| {
        hello.generation = Generation(2);
        hello.checksum = checksum;
    });
    until("it has the generation", || again.prepared().len() >= 2);
    node.ok(&["wait", "--applied"]);
    assert_eq!((node.generation(), again.swaps()), (2, vec![]));
    assert!(node.ok(&["get", "vs", "reviews"]).contains("applied from split.yaml:1"));
}

#[test]
fn a_change_while_control_was_down_gets_the_next_number_that_no_proxy_can_have_heard_of() {
    let mut node = Node::started(&[("shop.yaml", SHOP), ("split.yaml", &split(80))]);
    assert_eq!(node.generation(), 1);
    node.kill();
    node.write("split.yaml", &split(50));
    node.start();
    // 2 was reserved when control was killed.
    assert_eq!(node.generation(), 3);
}

#[test]
fn numbers_go_on_above_what_proxies_run_when_the_state_is_lost() {
    let node = Node::started(&[("shop.yaml", SHOP), ("split.yaml", &split(80))]);
    let first = FakeProxy::connect(&node, "first");
    until("it runs generation 1", || first.runs() == [1, 1]);
    let (_, checksum) = first.prepared()[0];

    // The same content under a higher number: the number is adopted, and its proxy swaps nothing.
    let same = FakeProxy::with(&node, "same", Manner::Accept, |hello| {
        hello.generation = Generation(7);
        hello.checksum = checksum;
    });
    until("both are at 7", || first.runs() == [7, 7] && same.runs() == [7, 7]);
    node.ok(&["wait", "--applied"]);
    assert_eq!((node.generation(), same.swaps()), (7, vec![]));

    // Another content under a higher number: ours goes on above it.
    let other = FakeProxy::with(&node, "other", Manner::Accept, |hello| {
        hello.generation = Generation(20);
        hello.checksum = 1;
    });
    until("all are at 21", || [&first, &same, &other].iter().all(|proxy| proxy.runs() == [21, 21]));
    assert_eq!(node.generation(), 21);
    node.file("split.yaml", &split(50));
    node.ok(&["apply", "-f", "split.yaml"]);
    assert_eq!(other.runs(), [22, 22]);
}

#[test]
fn a_proxy_of_another_version_is_rejected_with_both_versions_named() {
    let node = Node::started(&[("shop.yaml", SHOP)]);
    let protocol = FakeProxy::with(&node, "p", Manner::Accept, |hello| hello.protocol = 99);
    until("it is rejected", || protocol.rejected().is_some_and(|reason| reason.contains("version 99")));
    let layout = FakeProxy::with(&node, "p", Manner::Accept, |hello| hello.layout = 0xabc);
    until("it is rejected", || layout.rejected().is_some_and(|reason| reason.contains("0000000000000abc")));
    assert_eq!(node.status()["proxies"], 0);
}

#[test]
fn a_proxy_that_hangs_up_is_not_waited_for() {
    let node = Node::started(&[("shop.yaml", SHOP)]);
    let stays = FakeProxy::connect(&node, "stays");
    let goes = FakeProxy::connect(&node, "goes");
    until("both are there", || node.status()["proxies"] == 2);
    drop(goes);
    until("one is gone", || node.status()["proxies"] == 1);
    node.file("split.yaml", &split(80));
    let said = node.ok(&["apply", "-f", "split.yaml"]);
    assert!(said.contains("applied to 2 workers of 1 proxy"), "{said}");
    assert_eq!(stays.runs(), [2, 2]);
}

#[test]
fn control_killed_at_any_moment_leaves_no_number_with_two_contents() {
    let mut node = Node::new(&[("shop.yaml", SHOP)]);
    let mut contents = std::collections::BTreeMap::<u64, u64>::new();
    let mut running = (0, 0);
    for round in 0..12_u32 {
        node.start();
        let proxy = FakeProxy::with(&node, "p", Manner::Accept, |hello| {
            hello.generation = Generation(running.0);
            hello.checksum = running.1;
        });
        node.file("split.yaml", &split(round + 1));
        let mut apply = node.command(&["apply", "-f", "split.yaml"]);
        let mut apply = apply.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        // The moments between the call and its answer, one after the other.
        std::thread::sleep(std::time::Duration::from_micros(u64::from(round) * 700));
        node.kill();
        apply.wait().unwrap();
        for (generation, checksum) in proxy.prepared() {
            let known = *contents.entry(generation).or_insert(checksum);
            assert_eq!(known, checksum, "generation {generation} has two contents");
        }
        let runs = proxy.runs()[0];
        running = (runs, contents.get(&runs).copied().unwrap_or(0));
    }
    node.start();
    let proxy = FakeProxy::with(&node, "p", Manner::Accept, |hello| {
        hello.generation = Generation(running.0);
        hello.checksum = running.1;
    });
    node.ok(&["apply", "-f", "split.yaml"]);
    assert_eq!(proxy.runs()[0], node.generation());
}
