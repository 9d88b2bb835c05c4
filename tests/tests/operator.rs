//! What people do with a running mesh: commands, broken files, rollbacks, questions.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use std::{fs, os::unix::fs::symlink, path::Path};

use meshring_tests::{
    client::request,
    control::{Control, meshring, reviews, shop, split},
    proxy::Proxy,
    upstream::Upstream,
    wait,
};
use serde_json::Value;

struct Mesh {
    control: Control,
    proxy: Proxy,
    _upstreams: [Upstream; 2],
}

impl Mesh {
    /// Control with the shop and one proxy that runs it.
    fn start() -> Self {
        let upstreams = [Upstream::saying("v1"), Upstream::saying("v2")];
        let control = Control::start(&[("shop.yaml", &shop(upstreams[0].address(), upstreams[1].address()))]);
        let proxy = control.proxy("default/client").start();
        control.wait_for_proxies(1);
        Self { control, proxy, _upstreams: upstreams }
    }

    /// Applies a file and returns the generation that is active then.
    #[track_caller]
    fn apply(&self, name: &str, text: &str) -> u64 {
        let applied = self.control.meshring(&["apply", "-f", &self.control.file(name, text), "-o", "json"]);
        let outcome = applied.expect(0).json();
        assert_eq!(outcome["applied"]["complete"], true, "{outcome}");
        outcome["generation"].as_u64().unwrap()
    }

    fn ask(&self) -> (u64, String) {
        let response = self.proxy.connect().get_with("reviews", "/", &[("x-meshring-debug", "1")]);
        let generation = response.expect(200).fields.value("x-meshring-generation").unwrap().parse().unwrap();
        (generation, response.text())
    }
}

#[test]
fn rollback_goes_back_and_forth_between_retained_generations() {
    let mesh = Mesh::start();
    let first = mesh.apply("v1.yaml", &split(100, 0));
    let second = mesh.apply("v2.yaml", &split(0, 100));
    assert_eq!(mesh.ask(), (second, "v2".into()));

    let back = mesh.control.meshring(&["rollback"]);
    assert!(
        back.expect(0).stdout.contains(&format!("rolled back: the configuration says generation {second}")),
        "{back:?}"
    );
    assert_eq!(mesh.ask(), (first, "v1".into()));
    assert_eq!(mesh.control.api("/v1/status")["rolled_back"]["from"], second);

    mesh.control.meshring(&["rollback", "--to", &second.to_string()]).expect(0);
    assert_eq!(mesh.ask(), (second, "v2".into()));
    assert_eq!(mesh.control.api("/v1/status")["rolled_back"], Value::Null);

    let history = mesh.control.meshring(&["history", "-o", "json"]).expect(0).json();
    let active: Vec<_> =
        history["entries"].as_array().unwrap().iter().map(|entry| entry["generation"].as_u64().unwrap()).collect();
    assert!(active.contains(&first) && active.contains(&second), "{history}");
    assert_eq!(history["active"], second);

    let unknown = mesh.control.meshring(&["rollback", "--to", "99"]);
    assert!(unknown.expect(1).stderr.contains("generation 99 is not retained"), "{unknown:?}");
    // A change ends a rollback.
    mesh.control.meshring(&["rollback", "--to", &first.to_string()]).expect(0);
    let third = mesh.apply("v2.yaml", &split(1, 99));
    assert!(third > second && mesh.ask().0 == third);
    assert_eq!(mesh.control.api("/v1/status")["rolled_back"], Value::Null);
}

#[test]
fn a_broken_file_in_the_watched_directory_is_refused_with_its_place_and_the_generation_stays() {
    let mut mesh = Mesh::start();
    let generation = mesh.apply("v1.yaml", &split(100, 0));
    mesh.control.write("broken.yaml", "apiVersion: v1\nkind: Service\nmetadata:\n  name: [x\n");
    let status = wait::until("control to notice", || {
        let status = mesh.control.api("/v1/status");
        (status["valid"] == false).then_some(status)
    });
    assert_eq!(status["generation"], generation);
    let text = mesh.control.meshring(&["get", "status"]).expect(0).stdout.clone();
    assert!(text.contains("NOT IN EFFECT") && text.contains("broken.yaml:5:1: error["), "{text}");
    mesh.control.process.wait_for_line("broken.yaml:5:1: error[");
    let waited = mesh.control.meshring(&["wait", "--applied"]);
    assert!(waited.expect(1).stderr.contains("broken.yaml:5:1"), "{waited:?}");
    assert_eq!(mesh.ask(), (generation, "v1".into()));

    // Control comes back to the broken file, and so does the traffic to the same generation.
    mesh.control.restart();
    mesh.control.wait_for_proxies(1);
    assert_eq!(mesh.control.api("/v1/status")["valid"], false);
    assert_eq!(mesh.ask(), (generation, "v1".into()));

    mesh.control
        .write("broken.yaml", "apiVersion: v1\nkind: Service\nmetadata:\n  name: x\nspec:\n  ports:\n  - port: 80\n");
    wait::until("control to accept", || (mesh.control.api("/v1/status")["valid"] == true).then_some(()));
    mesh.control.meshring(&["wait", "--applied"]).expect(0);
    assert_eq!(mesh.ask().1, "v1");
    assert!(mesh.control.generation() > generation);
}

#[test]
fn a_broken_file_stays_reported_when_something_else_is_applied() {
    let mesh = Mesh::start();
    mesh.control.write("broken.yaml", "kind: [\n");
    mesh.control.meshring(&["wait", "--applied"]).expect(1);
    mesh.apply("v1.yaml", &split(100, 0));
    assert_eq!(mesh.ask().1, "v1");
    let status = mesh.control.api("/v1/status");
    assert_eq!(status["valid"], false, "broken.yaml is still broken: {status}");
}

#[test]
fn mistakes_are_refused_with_file_line_column_field_and_advice() {
    let mesh = Mesh::start();
    let generation = mesh.apply("good.yaml", &split(80, 20));
    let good = split(80, 20);
    let route = |rest: &str| reviews(&format!("{rest}\n  route:\n  - destination:\n      host: reviews\n"));
    let cases = [
        (
            good.replace("weight: 80", "weight: eighty"),
            ":13:15: ",
            "spec.http[0].route[0].weight: is the string \"eighty\"",
        ),
        (good.replace("weight: 80", "wieght: 80"), ":13:7: ", "did you mean `weight`"),
        (good.replace("weight: 80", "weight: -1"), ":13:15: ", "weight"),
        (good.replace("weight: 80", "weight: 0").replace("weight: 20", "weight: 0"), ":10:7: ", "add up to 0"),
        (good.replace("kind: VirtualService", "kind: VirtualServices"), ":2:7: ", "did you mean `VirtualService`"),
        (good.replace("networking.istio.io/v1", "networking.istio.io/v9"), ":1:13: ", "v9"),
        (good.replace("  hosts:\n  - reviews\n", ""), ":", "hosts"),
        (good.replace("  hosts:", "  hosts: {"), ":", "not well-formed YAML"),
        (format!("{good}---\n{good}"), ":19:1: ", "for the second time"),
        (route("- match:\n  - uri:\n      regex: \"(a\""), ":11:16: ", "does not compile"),
        (route("- match:\n  - uri:\n      regex: \"(a{1000}){1000}\""), ":11:16: ", "larger than"),
        (route("- match:\n  - uri:\n      exact: /a\n      prefix: /b"), ":", "uri"),
        (route("- timeout: soon"), ":9:14: ", "timeout"),
        (route("- redirect:\n    uri: /x"), ":", "redirect"),
    ];
    for (text, place, advice) in cases {
        let file = mesh.control.file("bad.yaml", &text);
        let refused = mesh.control.meshring(&["apply", "-f", &file]);
        let stderr = &refused.expect(1).stderr;
        let error = stderr.lines().find(|line| line.contains("error[") && line.contains(advice));
        let Some(error) = error else { panic!("no error with {advice:?} for\n{text}\n{stderr}") };
        assert!(error.contains(&format!("bad.yaml{place}")), "{place}: {error}");
        assert!(stderr.contains("nothing was changed"), "{stderr}");
        // The same words without a running control.
        let analyzed = meshring(&["analyze", "-f", &file]);
        let said = analyzed.expect(1).stdout.clone() + &analyzed.stderr;
        assert!(said.contains(advice), "analyze: {analyzed:?}");
    }
    assert_eq!(mesh.control.generation(), generation);
    mesh.proxy.connect().get("reviews", "/").expect(200);
}

#[test]
fn what_is_not_honoured_yet_is_reported_and_not_dropped_in_silence() {
    let mesh = Mesh::start();
    let text = split(80, 20).replace("  - route:", "  - retries:\n      attempts: 3\n    fault:\n      abort:\n        httpStatus: 500\n        percentage:\n          value: 1\n    route:");
    let file = mesh.control.file("more.yaml", &text);
    let applied = mesh.control.meshring(&["apply", "-f", &file]);
    for field in ["spec.http[0].retries", "spec.http[0].fault"] {
        let said = applied.expect(0).stderr.lines().any(|line| line.contains("more.yaml:") && line.contains(field));
        assert!(said, "{field}: {applied:?}");
    }
}

#[test]
fn what_is_not_honoured_in_a_file_stands_in_the_log_and_in_analyze() {
    let mut mesh = Mesh::start();
    let place = "reviews.yaml:9:5: warning[MR0601]: VirtualService default/reviews: spec.http[0].retries: ";
    let text = split(80, 20).replace("  - route:", "  - retries:\n      attempts: 3\n    route:");
    mesh.control.write("reviews.yaml", &text);
    let line = mesh.control.process.wait_for_line(place);
    assert!(line.contains("not yet honoured"), "{line}");
    let config = mesh.control.dir().join("config");
    let analyzed = meshring(&["analyze", "-f", config.to_str().unwrap()]);
    let said = analyzed.stdout.clone() + &analyzed.stderr;
    assert!(said.lines().any(|line| line.contains(place) && line.contains("not yet honoured")), "{analyzed:?}");
}

#[test]
fn a_subset_that_nobody_defines_is_503_that_names_service_and_rule() {
    let mesh = Mesh::start();
    let text = split(80, 20).replace("subset: v1", "subset: v9").replace("subset: v2", "subset: v9");
    let file = mesh.control.file("dangling.yaml", &text);
    let applied = mesh.control.meshring(&["apply", "-f", &file]);
    let stderr = &applied.expect(0).stderr;
    let place = "dangling.yaml:12:17: warning[";
    let warned =
        stderr.lines().any(|line| line.contains(place) && line.contains("no DestinationRule defines the subset `v9`"));
    assert!(warned, "{stderr}");
    let text = mesh.proxy.connect().get("reviews", "/").expect(503).text();
    assert!(text.contains("outbound|9080|v9|reviews.default.svc.cluster.local"), "{text}");
    assert!(text.contains("VirtualService default/reviews (") && text.contains("dangling.yaml:1)"), "{text}");
    assert!(text.contains("http[0] at line 9"), "{text}");
}

#[test]
fn a_directory_that_is_swapped_by_symlink_as_git_does_it_is_picked_up() {
    let upstreams = [Upstream::saying("v1"), Upstream::saying("v2")];
    let shop = shop(upstreams[0].address(), upstreams[1].address());
    let dir = tempfile::TempDir::new().unwrap();
    let checkout = |name: &str, text: &str| {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("shop.yaml"), &shop).unwrap();
        fs::write(dir.path().join(name).join("reviews.yaml"), text).unwrap();
    };
    checkout("revision-1", &split(100, 0));
    checkout("revision-2", &split(0, 100));
    symlink("revision-1", dir.path().join("current")).unwrap();
    let control = Control::start_in(dir, "current");
    let proxy = control.proxy("default/client").start();
    control.wait_for_proxies(1);
    let version = || proxy.connect().get("reviews", "/").expect(200).text();
    assert_eq!(version(), "v1");
    let swap = |revision: &str| {
        symlink(revision, control.dir().join("next")).unwrap();
        fs::rename(control.dir().join("next"), control.dir().join("current")).unwrap();
    };
    swap("revision-2");
    wait::until("the new revision to be live", || (version() == "v2").then_some(()));
    // The way back has the old files with their old times.
    swap("revision-1");
    wait::until("the old revision to be live", || (version() == "v1").then_some(()));
    // A file that is renamed away takes its rules with it: both versions get traffic.
    fs::remove_file(control.dir().join("revision-1/reviews.yaml")).unwrap();
    wait::until("the rules to be gone", || (version() == "v2").then_some(()));
}

#[test]
fn two_proxies_of_one_control_both_run_what_was_applied() {
    let mesh = Mesh::start();
    let second = mesh.control.proxy("default/other").workers(2).start();
    mesh.control.wait_for_proxies(2);
    let file = mesh.control.file("v1.yaml", &split(100, 0));
    let outcome = mesh.control.meshring(&["apply", "-f", &file, "-o", "json"]).expect(0).json();
    let applied = &outcome["applied"];
    assert_eq!(
        (&applied["proxies"], &applied["workers"], &applied["workers_current"]),
        (&2.into(), &3.into(), &3.into())
    );
    mesh.control.meshring(&["wait", "--applied"]).expect(0);
    let proxies = mesh.control.meshring(&["proxies", "-o", "json"]).expect(0).json();
    for proxy in proxies.as_array().unwrap() {
        assert_eq!(proxy["state"], "current", "{proxy}");
        assert!(proxy["generations"].as_array().unwrap().iter().all(|g| *g == outcome["generation"]), "{proxy}");
    }
    assert_eq!(second.connect().get("reviews", "/").expect(200).text(), "v1");
    // One that goes is not waited for.
    drop(second);
    mesh.apply("v2.yaml", &split(0, 100));
    mesh.control.wait_for_proxies(1);
}

#[test]
fn a_proxy_that_is_stopped_holds_nobody_up_and_catches_up_when_it_continues() {
    let mesh = Mesh::start();
    let stopped = mesh.control.proxy("default/stopped").start();
    mesh.control.wait_for_proxies(2);
    stopped.process.signal(rustix::process::Signal::STOP);
    let file = mesh.control.file("v2.yaml", &split(0, 100));
    // Live on the others, and honest about the one that is not.
    let applied = mesh.control.meshring(&["apply", "-f", &file]);
    assert!(applied.stdout.contains("default/stopped") || applied.stderr.contains("default/stopped"), "{applied:?}");
    assert_eq!(mesh.ask().1, "v2");
    stopped.process.signal(rustix::process::Signal::CONT);
    mesh.control.wait_for_proxies(2);
    assert_eq!(stopped.connect().get("reviews", "/").expect(200).text(), "v2");
}

#[test]
fn explain_names_the_rule_with_file_and_line_and_why_earlier_ones_did_not_match() {
    let mesh = Mesh::start();
    let destination = |subset: &str| format!("  - destination:\n      host: reviews\n      subset: {subset}\n");
    let rules = format!(
        "- match:\n  - headers:\n      end-user:\n        exact: jason\n  route:\n{}- match:\n  - uri:\n      prefix: /old\n  route:\n{}- route:\n{}",
        destination("v2"),
        destination("v2"),
        destination("v1")
    );
    mesh.apply("rules.yaml", &reviews(&rules));
    let ask = |more: &[&str]| {
        let all = [&["explain", "--from", "default/client", "--url", "http://reviews/new"][..], more].concat();
        mesh.control.meshring(&all).expect(0).stdout.clone()
    };
    let text = ask(&[]);
    for part in [
        &format!("generation    {}", mesh.control.generation()),
        "from VirtualService default/reviews (",
        "not           http[0] at ",
        "rules.yaml:9",
        "wants headers[end-user] exact \"jason\", but the request has no such header",
        "not           http[1] at ",
        "wants uri prefix \"/old\", but the path is \"/new\"",
        "rule          http[2] at ",
        "outbound|9080|v1|reviews.default.svc.cluster.local",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    let text = ask(&["-H", "end-user: jason"]);
    assert!(text.contains("rule          http[0] at ") && text.contains("|v2|"), "{text}");
    // What it says is what happens.
    let mut client = mesh.proxy.connect();
    assert_eq!(client.get("reviews", "/new").expect(200).text(), "v1");
    assert_eq!(client.get_with("reviews", "/new", &[("end-user", "jason")]).expect(200).text(), "v2");
    let debug = client.get_with("reviews", "/old", &[("x-meshring-debug", "1")]);
    let rule = debug.fields.value("x-meshring-rule").unwrap();
    assert!(rule.contains("VirtualService default/reviews (") && rule.contains("http[1] at line 17"), "{rule}");

    let nobody = mesh.control.meshring(&["explain", "--from", "default/client", "--url", "http://review/"]);
    assert!(nobody.expect(0).stdout.contains("=> 404"), "{nobody:?}");
}

#[test]
fn commands_exit_with_0_when_done_1_when_refused_2_when_not_understood() {
    let mesh = Mesh::start();
    let good = mesh.control.file("good.yaml", &split(80, 20));
    let bad = mesh.control.file("bad.yaml", "kind: [\n");
    let control = |arguments: &[&str]| mesh.control.meshring(arguments);
    for done in [
        &["get"][..],
        &["get", "status"],
        &["get", "vs", "-o", "yaml"],
        &["get", "destinationrules", "-o", "json"],
        &["apply", "-f", &good, "--dry-run"],
        &["apply", "-f", &good],
        &["diff", "-f", &good],
        &["wait", "--applied", "--timeout", "5s"],
        &["history"],
        &["proxies"],
        &["analyze", "-f", &good],
        &["delete", "-f", &good],
    ] {
        control(done).expect(0);
    }
    for refused in [
        &["apply", "-f", &bad][..],
        &["apply", "-f", "/nonexistent.yaml"],
        &["apply", "--dry-run", "-f", &bad],
        &["analyze", "-f", &bad],
        &["delete", "-f", &good],
        &["get", "vs", "nobody"],
        &["get", "nonsense"],
        &["rollback", "--to", "12345"],
    ] {
        let ran = control(refused);
        let said = ran.expect(1).stdout.clone() + &ran.stderr;
        assert!(!said.is_empty(), "{refused:?} says nothing");
    }
    let gone = meshring(&["get", "--run-dir", "/nonexistent"]);
    assert!(gone.expect(1).stderr.contains("control is not running"), "{gone:?}");
    for misunderstood in
        [&["nonsense"][..], &["apply"], &["get", "-o", "xml"], &["wait"], &["rollback", "--to", "x"], &[]]
    {
        assert!(!meshring(misunderstood).expect(2).stderr.is_empty());
    }
    for asked in [&["--help"][..], &["--version"], &["completions", "bash"], &["apply", "--help"]] {
        assert!(!meshring(asked).expect(0).stdout.is_empty());
    }
}

#[test]
fn a_dry_run_changes_nothing_and_a_deletion_restores_what_the_files_say() {
    let mesh = Mesh::start();
    mesh.control.write("reviews.yaml", &split(100, 0));
    mesh.control.meshring(&["wait", "--applied"]).expect(0);
    let generation = mesh.control.generation();
    let over = mesh.control.file("over.yaml", &split(0, 100));
    mesh.control.meshring(&["apply", "--dry-run", "-f", &over]).expect(0);
    assert_eq!((mesh.control.generation(), mesh.ask()), (generation, (generation, "v1".into())));
    let diff = mesh.control.meshring(&["diff", "-f", &over]);
    assert!(diff.stdout.contains("-      weight: 100") || diff.stdout.contains("-    weight: 100"), "{diff:?}");
    mesh.apply("over.yaml", &split(0, 100));
    assert_eq!(mesh.ask().1, "v2");
    let deleted = mesh.control.meshring(&["delete", "-f", &over]);
    assert!(deleted.expect(0).stdout.contains("is in effect again"), "{deleted:?}");
    assert_eq!(mesh.ask().1, "v1");
    // The same content again is no new generation.
    let generation = mesh.control.generation();
    mesh.control.write("reviews.yaml", &split(100, 0));
    mesh.control.meshring(&["wait", "--applied"]).expect(0);
    assert_eq!(mesh.control.generation(), generation);
}

#[test]
fn sixty_four_connections_spread_evenly_over_two_workers() {
    let mesh = Mesh::start();
    let proxy = mesh.control.proxy("default/spread").workers(2).start();
    let active = |worker: usize| {
        let labels = format!("proxy=\"default/spread\",pid=\"{}\",worker=\"{worker}\"", proxy.process.pid());
        mesh.control.metric("meshring_downstream_connections_active", &labels)
    };
    let spread = |total: i64| {
        wait::until(&format!("{total} active connections"), || {
            let counts = [active(0), active(1)];
            (counts.iter().sum::<i64>() == total).then_some(counts)
        })
    };
    wait::until("the proxy to be connected", || (mesh.control.api("/v1/status")["proxies"] == 2).then_some(()));
    let mut clients: Vec<_> = (0..64).map(|_| proxy.connect()).collect();
    let counts = spread(64);
    assert!(counts.iter().all(|count| (24..=40).contains(count)), "{counts:?}");
    for client in &mut clients {
        client.send(request("GET", "reviews", "/", &[]));
    }
    clients.iter_mut().for_each(|client| drop(client.response().expect(200).clone()));
    // Half of them go, and as many come.
    clients.drain(..32);
    spread(32);
    clients.extend((0..32).map(|_| proxy.connect()));
    let counts = spread(64);
    assert!(counts.iter().all(|count| (24..=40).contains(count)), "{counts:?}");
}

#[test]
fn metrics_and_top_count_what_was_sent() {
    let mesh = Mesh::start();
    mesh.apply("v1.yaml", &split(100, 0));
    let mut client = mesh.proxy.connect();
    for _ in 0..100 {
        client.get("reviews", "/").expect(200);
    }
    client.get("nobody", "/").expect(404);
    let metric = |name: &str, labels: &str| mesh.control.metric(name, labels);
    wait::until("all requests to be counted", || {
        (metric("meshring_downstream_requests_total", "default/client") == 101).then_some(())
    });
    assert_eq!(metric("meshring_cluster_requests_total", "outbound|9080|v1|reviews"), 100);
    assert_eq!(metric("meshring_downstream_responses_2xx_total", "default/client"), 100);
    assert_eq!(metric("meshring_no_route_total", "default/client"), 1);
    assert_eq!(metric("meshring_upstream_connects_total", "default/client"), 1);
    assert_eq!(metric("meshring_upstream_reused_total", "default/client"), 99);
    assert_eq!(metric("meshring_panics_total", ""), 0);
}

#[test]
fn names_resolve_as_in_istio() {
    let upstream = Upstream::saying("elsewhere");
    let service = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: api\nspec:\n  hosts:\n  - api.example.com\n  - \"*.wild.example.com\"\n  \
         location: MESH_EXTERNAL\n  resolution: STATIC\n  ports:\n  - name: http\n    number: 80\n    protocol: HTTP\n  endpoints:\n  - address: {}\n    ports:\n      http: {}\n",
        upstream.address().ip(),
        upstream.address().port()
    );
    let mesh = Mesh::start();
    mesh.control.write("external.yaml", &service);
    mesh.control.meshring(&["wait", "--applied"]).expect(0);
    let mut client = mesh.proxy.connect();
    for host in
        ["reviews", "reviews.default", "reviews.default.svc", "reviews.default.svc.cluster.local:9080", "Reviews"]
    {
        client.get(host, "/").expect(200);
    }
    for host in ["api.example.com", "a.wild.example.com", "b.a.wild.example.com"] {
        assert_eq!(client.get(host, "/").expect(200).text(), "elsewhere", "{host}");
    }
    for host in ["reviews.other", "reviews:81", "wild.example.com", "example.com"] {
        client.get(host, "/").expect(404);
    }
}

/// Nothing of the configuration directory is written by control.
#[test]
fn the_configuration_directory_is_only_read() {
    let mesh = Mesh::start();
    mesh.apply("v1.yaml", &split(100, 0));
    let names = |dir: &Path| -> Vec<_> { fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect() };
    assert_eq!(names(&mesh.control.dir().join("config")), ["shop.yaml"]);
}

#[test]
fn a_change_that_cannot_be_stored_is_refused_or_said_to_be_lost_with_control() {
    let mesh = Mesh::start();
    let first = mesh.apply("v1.yaml", &split(100, 0));
    let file = mesh.control.file("v2.yaml", &split(0, 100));
    // No file can be written, and none replaced, where a directory is.
    let in_the_way = |name: &str| {
        let path = mesh.control.run_dir().join(name);
        fs::create_dir_all(path.join("x")).unwrap();
        path
    };
    let written: Vec<_> = (0..100).map(|number| in_the_way(&format!(".meshring-{number}-applied.json.tmp"))).collect();
    let refused = mesh.control.meshring(&["apply", "-f", &file]);
    assert!(refused.expect(1).stderr.contains("cannot store what was applied"), "{refused:?}");
    assert_eq!(mesh.ask(), (first, "v1".into()));
    written.into_iter().for_each(|path| fs::remove_dir_all(path).unwrap());

    fs::remove_file(mesh.control.run_dir().join("applied.json")).unwrap();
    let replaced = in_the_way("applied.json");
    let live = mesh.control.meshring(&["apply", "-f", &file]);
    assert!(live.expect(1).stderr.contains("is active, but it is lost when control ends"), "{live:?}");
    assert_eq!(mesh.ask().1, "v2");
    fs::remove_dir_all(replaced).unwrap();
    let again = mesh.control.meshring(&["apply", "-f", &file]);
    again.expect(0);
}
