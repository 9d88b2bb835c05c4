//! Each mistake that a user makes has a place, a field and what to write instead.

use std::os::unix::fs::symlink;

use super::*;

/// What is said of a text beside a world with `reviews` in two subsets: as a user sees it, without file and resource.
fn said(path: &str, text: &str) -> Vec<String> {
    const WORLD: &str = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: reviews}
spec:
  hosts: [reviews.default.svc.cluster.local]
  location: MESH_INTERNAL
  ports: [{number: 9080, name: http}]
  resolution: STATIC
  endpoints: [{address: 10.0.0.1, labels: {version: v1}}, {address: 10.0.0.2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
";
    let reading = read_files(&[file("world.yaml", WORLD), file(path, text)], &mut Cache::default());
    let mut diagnostics = reading.diagnostics;
    let (world, assembled) = World::assemble(reading.resources);
    diagnostics.extend(assembled);
    diagnostics.extend(world.analyze());
    diagnostics.retain(|diagnostic| diagnostic.severity != Severity::Info);
    let mut lines = Vec::new();
    for diagnostic in diagnostics {
        assert_eq!(&*diagnostic.place.file, path, "{diagnostic}");
        assert!(diagnostic.place.at.line > 0 && diagnostic.place.at.column > 0, "{diagnostic}");
        let Diagnostic { place, severity, field, message, hint, .. } = &diagnostic;
        let hint = hint.as_deref().unwrap_or_default();
        lines.push(format!("{} {severity} {}: {message}; {hint}", place.at, field.as_deref().unwrap_or_default()));
    }
    lines
}

fn service(spec: &str) -> String {
    format!("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a}}\nspec:\n{spec}")
}

fn rule(rule: &str) -> String {
    service(&format!("  hosts: [reviews]\n  http:\n  - {rule}\n"))
}

/// Of a text, the beginning of what is said first, and a part of the hint.
#[track_caller]
fn is_said(text: &str, begin: &str, hint: &str) {
    let path = if text.starts_with('{') { "a.json" } else { "a.yaml" };
    let said = said(path, text);
    let first = said.first().unwrap_or_else(|| panic!("nothing is said of\n{text}"));
    assert!(first.starts_with(begin), "{begin}\n{first}\nof\n{text}");
    assert!(first[begin.len()..].contains(hint), "{hint}\n{first}\nof\n{text}");
}

#[test]
fn yaml_that_is_none() {
    is_said(&service("\thosts: [a]\n"), "5:2 error spec: not well-formed YAML: tab", "spaces");
    is_said(&service("  hosts: [a\n  http:\n"), "6:7 error spec.hosts[0]", "close each `[`");
    is_said(&service("  hosts: \"a\n  http: []\n"), "", "close the quotes");
    is_said(&service("  hosts:\n  - a\n http: []\n"), "7:2 error spec", "indent the fields of one object equally");
    is_said(
        &service("  hosts: *nobody\n"),
        "5:10 error spec.hosts: not well-formed YAML",
        "before the value that `*NAME`",
    );
    is_said(
        &service("  hosts: [a]\n  hosts: [b]\n"),
        "6:3 error spec.hosts: the key `hosts` is here for the",
        "remove one",
    );
    is_said(&service("  hosts: [\0]\n"), "5:11 error spec.hosts[0]: not well-formed YAML", "UTF-8");
    is_said(&format!("a: {}", "[".repeat(80)), "1:67 error a[0]", "fewer lists and objects");
}

#[test]
fn json_that_is_none() {
    let of = |spec: &str| format!("{{\"apiVersion\": \"v1\",\n \"kind\": \"Service\",\n \"spec\": {spec}}}");
    is_said(
        &of("{\"ports\": [{\"port\": 80,}]}"),
        "3:33 error spec.ports[0]: not well-formed JSON: key must be a string",
        "no `,` before `}`",
    );
    is_said(&of("{\"ports\": [{port: 80}]}"), "3:22 error spec.ports[0]: not well-formed JSON", "double quotes");
    is_said("{\"kind\": [", "1:10 error kind[0]", "close each");
}

#[test]
fn kinds_and_fields_that_nobody_knows() {
    let other = |from: &str, to: &str| rule("route: [{destination: {host: reviews}}]").replace(from, to);
    is_said(&other("VirtualService", "VirtualServices"), "2:7 error kind", "did you mean `VirtualService`?");
    is_said(&other("istio.io/v1", "istio.io/v2"), "1:13 error apiVersion", "write `networking.istio.io/v1`");
    is_said(&other("istio.io/v1", "istio.oi/v1"), "1:13 error apiVersion", "did you mean `networking.istio.io/v1`?");
    is_said(&other("networking.istio.io/v1", "v1"), "2:7 error kind", "VirtualService is of `networking.istio.io/v1`");
    is_said(&other("kind: VirtualService\n", ""), "1:1 error kind", "kind: VirtualService");
    is_said(
        &other("destination", "destinaton"),
        "7:13 error spec.http[0].route[0].destination: is missing",
        "write `destination:`",
    );
    is_said(&other("hosts:", "host:"), "5:3 error spec.host", "");
    is_said(
        &rule("timeOut: 1s\n    route: [{destination: {host: reviews}}]"),
        "7:5 error spec.http[0].timeOut",
        "did you mean `timeout`?",
    );
    // What another group calls by the same name is none of ours.
    let foreign = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\nspec: {template: {}}\n";
    assert_eq!(said("a.yaml", foreign), [""; 0]);
}

#[test]
fn weights_that_do_not_sum() {
    let weights = |v1: &str, v2: &str| {
        rule(&format!(
            "route:\n    - {{destination: {{host: reviews, subset: v1}}, weight: {v1}}}\n    \
             - {{destination: {{host: reviews, subset: v2}}, weight: {v2}}}"
        ))
    };
    is_said(&weights("80", "30"), "8:7 warning spec.http[0].route: the weights add up to 110", "add up to 100");
    is_said(
        &weights("0", "0"),
        "8:7 error spec.http[0].route: the weights of the 2 destinations add up to 0",
        "above 0",
    );
    is_said(&weights("-1", "101"), "8:58 error spec.http[0].route[0].weight: weight -1 is not", "a share of 100");
    is_said(&weights("some", "1"), "8:58 error spec.http[0].route[0].weight: is the string", "must be an integer");
}

#[test]
fn what_a_rule_refers_to_and_is_not_there() {
    let to = |destination: &str| rule(&format!("route: [{{destination: {{{destination}}}}}]"));
    is_said(
        &to("host: revews"),
        "7:34 warning spec.http[0].route[0].destination.host",
        "did you mean `reviews.default",
    );
    is_said(&to("host: unlike-any"), "7:34 warning spec.http[0].route[0].destination.host", "add the Service");
    is_said(
        &to("host: reviews, subset: v3"),
        "7:51 warning spec.http[0].route[0].destination.subset",
        "did you mean `v1`?",
    );
    is_said(&to("host: reviews, port: {number: 1}"), "", "its ports are 9080");
}

#[test]
fn names_that_stand_twice() {
    let one = rule("route: [{destination: {host: reviews}}]");
    is_said(
        &format!("{one}---\n{one}"),
        "9:1 error : is here for the second time; the first is at a.yaml:1:1",
        "rename one",
    );
    let subsets = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: b}\nspec:\n  host: other\n  \
                   subsets: [{name: v1}, {name: v1}]\n";
    is_said(subsets, "6:32 error spec.subsets[1].name", "rename one");
    let ports = |ports: &str| {
        said("a.yaml", &format!("apiVersion: v1\nkind: Service\nmetadata: {{name: c}}\nspec: {{ports: [{ports}]}}\n"))
    };
    let twice = ports("{name: http, port: 80}, {name: http, port: 81}");
    assert!(twice.len() == 1 && twice[0].contains("the port name `http` is used twice"), "{twice:?}");
    // No name is none that stands twice.
    let nameless = ports("{port: 80}, {port: 81}");
    assert!(nameless.len() == 2 && nameless.iter().all(|line| line.contains("must name each")), "{nameless:?}");
}

#[test]
fn regular_expressions_that_do_not_compile_or_explode() {
    let regex = |regex: &str| {
        rule(&format!("match: [{{uri: {{regex: '{regex}'}}}}]\n    route: [{{destination: {{host: reviews}}}}]"))
    };
    let field = "7:27 error spec.http[0].match[0].uri.regex: regular expression";
    is_said(&regex("/a(b"), field, "RE2");
    is_said(&regex("(?=a)b"), field, "look-around");
    is_said(&regex("((a{1000}){1000}){1000}"), &format!("{field} is larger than 1024 KiB"), "smaller or fewer");
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let of = |path: std::path::PathBuf| discover(&[path]).1.iter().map(Diagnostic::to_string).collect::<Vec<_>>();
    let missing = of(dir.path().join("none.yaml"));
    assert!(missing[0].ends_with("; name a file or directory that exists"), "{missing:?}");
    fs::write(dir.path().join("latin.yaml"), b"kind: a\n# \xc3\xa4: caf\xe9\n").unwrap();
    let latin = of(dir.path().to_owned());
    assert!(latin[0].contains("latin.yaml:2:9: error") && latin[0].ends_with("save the file in UTF-8"), "{latin:?}");
}

#[test]
fn a_forest_of_links_is_left_before_it_has_been_walked_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<_> = (0..12).map(|index| format!("d{index}")).collect();
    for name in &names {
        fs::create_dir(dir.path().join(name)).unwrap();
        for other in &names {
            if other != name {
                symlink(dir.path().join(other), dir.path().join(name).join(other)).unwrap();
            }
        }
    }
    fs::write(dir.path().join("a.yaml"), "").unwrap();
    let (files, diagnostics) = discover::discover_in(&[dir.path().to_owned()], 1000);
    assert!(!files.is_empty());
    let told = diagnostics.iter().filter(|diagnostic| diagnostic.message.contains("more than 1000 directories"));
    assert_eq!(told.count(), 1);
}
