//! Item 36 of the HTTP checklist: however a path is spelt, the router, access rules and the upstream see one string. And
//! the attacks that got around rules by spelling a path in another way.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use meshring_core::table::model::{
    Action, Condition, PathNormalization, Redirect, RegexRewrite, Rewrite, Route, Settings, StringMatch,
};
use meshring_tests::{
    checklist::{Chain, Sidecar, expect_refusal, saying},
    client::Client,
    on_both_drivers,
    proxy::Driver,
    table::{World, redirect, rewriting, rule, rule_if},
    upstream::{Upstream, ok},
};

use self::{
    PathNormalization as Level,
    Verdict::{Denied, Refused, Seen},
};

on_both_drivers! {
    item_36_every_spelling_of_a_path_gets_one_verdict_at_each_level
    item_36_the_safe_level_is_the_default
    item_36_parameters_are_forwarded_but_rules_do_not_see_them
    item_36_inbound_listeners_and_a_second_sidecar_see_the_same_path
    item_36_rewrites_redirects_and_regular_expressions_work_on_the_normal_form
    cve_2019_9901_dot_segments_do_not_get_around_a_rule
    cve_2021_29492_escaped_slashes_do_not_get_around_a_rule
    cve_2026_73511_and_2026_73551_and_2026_73553_other_path_forms_do_not_get_around_a_rule
    cve_2019_9900_and_2026_47778_and_2025_66220_a_nul_does_not_get_around_a_rule
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The rule on `/admin` has it.
    Denied,
    /// Forwarded, with this target.
    Seen(&'static str),
    /// 400 with this code.
    Refused(&'static str),
}

const CLIMBS: Verdict = Refused("http1.path_escapes_root");
const HIDES: Verdict = Refused("http1.path_parameters");

/// A target, and what becomes of it without normalisation, at BASE, at MERGE_SLASHES, at DECODE_AND_MERGE_SLASHES.
type Row = (&'static str, [Verdict; 4]);

const LEVELS: [Level; 4] = [Level::None, Level::Base, Level::MergeSlashes, Level::DecodeAndMergeSlashes];

/// Dot segments, with their dots written in each way.
const DOTS: &[Row] = &[
    ("/admin", [Denied; 4]),
    ("/admin/", [Denied; 4]),
    ("/admin/x", [Denied; 4]),
    ("/a/../admin", [Seen("/a/../admin"), Denied, Denied, Denied]),
    ("/a/%2e%2e/admin", [Seen("/a/%2e%2e/admin"), Denied, Denied, Denied]),
    ("/a/%2E%2E/admin", [Seen("/a/%2E%2E/admin"), Denied, Denied, Denied]),
    ("/a/.%2e/admin", [Seen("/a/.%2e/admin"), Denied, Denied, Denied]),
    ("/a/%2e./admin", [Seen("/a/%2e./admin"), Denied, Denied, Denied]),
    ("/./admin", [Seen("/./admin"), Denied, Denied, Denied]),
    ("/%2e/admin", [Seen("/%2e/admin"), Denied, Denied, Denied]),
    ("/a/./.././admin", [Seen("/a/./.././admin"), Denied, Denied, Denied]),
    ("/a/b/c/../../../admin", [Seen("/a/b/c/../../../admin"), Denied, Denied, Denied]),
    ("/a;x/../admin", [Seen("/a;x/../admin"), Denied, Denied, Denied]),
    ("/%61dmin", [Seen("/%61dmin"), Denied, Denied, Denied]),
    ("/adm%69n", [Seen("/adm%69n"), Denied, Denied, Denied]),
    ("/%61%64%6D%69%6e/x", [Seen("/%61%64%6D%69%6e/x"), Denied, Denied, Denied]),
    ("/a/../%61dmin?q", [Seen("/a/../%61dmin?q"), Denied, Denied, Denied]),
    ("http://echo/a/../admin", [Seen("/a/../admin"), Denied, Denied, Denied]),
    ("/admin/..", [Denied, Seen("/"), Seen("/"), Seen("/")]),
    ("/admin/../x", [Denied, Seen("/x"), Seen("/x"), Seen("/x")]),
    ("/admin/../x/.", [Denied, Seen("/x/"), Seen("/x/"), Seen("/x/")]),
    ("/x/..", [Seen("/x/.."), Seen("/"), Seen("/"), Seen("/")]),
    (
        "/a/b/../c?/../admin",
        [Seen("/a/b/../c?/../admin"), Seen("/a/c?/../admin"), Seen("/a/c?/../admin"), Seen("/a/c?/../admin")],
    ),
    ("/../admin", [Seen("/../admin"), CLIMBS, CLIMBS, CLIMBS]),
    ("/%2e%2e/admin", [Seen("/%2e%2e/admin"), CLIMBS, CLIMBS, CLIMBS]),
    ("/a/../../admin", [Seen("/a/../../admin"), CLIMBS, CLIMBS, CLIMBS]),
    ("/..", [Seen("/.."), CLIMBS, CLIMBS, CLIMBS]),
    ("/admin/../..", [Denied, CLIMBS, CLIMBS, CLIMBS]),
    ("http://echo/../admin", [Seen("/../admin"), CLIMBS, CLIMBS, CLIMBS]),
    // No dot segments.
    ("/...", [Seen("/..."); 4]),
    ("/.admin", [Seen("/.admin"); 4]),
    ("/..admin", [Seen("/..admin"); 4]),
    ("/a../b", [Seen("/a../b"); 4]),
    // Decoded once only.
    (
        "/%252e%252e/admin",
        [Seen("/%252e%252e/admin"), Seen("/%252e%252e/admin"), Seen("/%252e%252e/admin"), Seen("/%252e%252e/admin")],
    ),
    ("/%2561dmin", [Seen("/%2561dmin"); 4]),
    ("/x%c3%a9?%c3", [Seen("/x%c3%a9?%c3"), Seen("/x%C3%A9?%c3"), Seen("/x%C3%A9?%c3"), Seen("/x%C3%A9?%c3")]),
    ("/%41dmin", [Seen("/%41dmin"), Seen("/Admin"), Seen("/Admin"), Seen("/Admin")]),
];

/// Slashes, one too many or written in another way.
const SLASHES: &[Row] = &[
    ("//admin", [Seen("//admin"), Seen("//admin"), Denied, Denied]),
    ("///admin", [Seen("///admin"), Seen("///admin"), Denied, Denied]),
    ("http://echo//admin", [Seen("//admin"), Seen("//admin"), Denied, Denied]),
    ("/.//admin", [Seen("/.//admin"), Seen("//admin"), Denied, Denied]),
    ("//echo/admin", [Seen("//echo/admin"), Seen("//echo/admin"), Seen("/echo/admin"), Seen("/echo/admin")]),
    ("/a//b", [Seen("/a//b"), Seen("/a//b"), Seen("/a/b"), Seen("/a/b")]),
    ("/a?b//c", [Seen("/a?b//c"); 4]),
    ("/admin%2f", [Denied; 4]),
    ("/admin%2fx", [Denied; 4]),
    ("/%2fadmin", [Seen("/%2fadmin"), Seen("/%2Fadmin"), Seen("/%2Fadmin"), Denied]),
    ("/%2Fadmin", [Seen("/%2Fadmin"), Seen("/%2Fadmin"), Seen("/%2Fadmin"), Denied]),
    ("/%5cadmin", [Seen("/%5cadmin"), Seen("/%5Cadmin"), Seen("/%5Cadmin"), Denied]),
    ("/a%2f..%2fadmin", [Seen("/a%2f..%2fadmin"), Seen("/a%2F..%2Fadmin"), Seen("/a%2F..%2Fadmin"), Denied]),
    ("/a%5c..%5cadmin", [Seen("/a%5c..%5cadmin"), Seen("/a%5C..%5Cadmin"), Seen("/a%5C..%5Cadmin"), Denied]),
    ("/a%2f%2e%2e%2fadmin", [Seen("/a%2f%2e%2e%2fadmin"), Seen("/a%2F..%2Fadmin"), Seen("/a%2F..%2Fadmin"), Denied]),
    ("/x/..%2fadmin", [Seen("/x/..%2fadmin"), Seen("/x/..%2Fadmin"), Seen("/x/..%2Fadmin"), Denied]),
    ("/..%2fadmin", [Seen("/..%2fadmin"), Seen("/..%2Fadmin"), Seen("/..%2Fadmin"), CLIMBS]),
    ("/%2e%2e%5cadmin", [Seen("/%2e%2e%5cadmin"), Seen("/..%5Cadmin"), Seen("/..%5Cadmin"), CLIMBS]),
    ("/%252fadmin", [Seen("/%252fadmin"); 4]),
    ("/a%2fb", [Seen("/a%2fb"), Seen("/a%2Fb"), Seen("/a%2Fb"), Seen("/a/b")]),
];

/// Path parameters. The rule on `/only` is for that path alone.
const PARAMETERS: &[Row] = &[
    ("/admin;x", [Denied; 4]),
    ("/admin;x=1/y", [Denied; 4]),
    ("/only", [Denied; 4]),
    ("/only;x", [Seen("/only;x"), Denied, Denied, Denied]),
    ("/only;", [Seen("/only;"), Denied, Denied, Denied]),
    ("/only;a=b;c?q", [Seen("/only;a=b;c?q"), Denied, Denied, Denied]),
    ("/x/../only;x", [Seen("/x/../only;x"), Denied, Denied, Denied]),
    ("/onl%79;x", [Seen("/onl%79;x"), Denied, Denied, Denied]),
    ("//only;x", [Seen("//only;x"), Seen("//only;x"), Denied, Denied]),
    ("/only/", [Seen("/only/"); 4]),
    ("/deep;v=1/only", [Seen("/deep;v=1/only"), Denied, Denied, Denied]),
    ("/deep;v=1/only;w", [Seen("/deep;v=1/only;w"), Denied, Denied, Denied]),
    ("/adm;x/in", [Seen("/adm;x/in"); 4]),
    ("/x;y/z;w=1", [Seen("/x;y/z;w=1"); 4]),
    ("/x?a;b=/only;x", [Seen("/x?a;b=/only;x"); 4]),
    ("/a/..;x/admin", [Seen("/a/..;x/admin"), HIDES, HIDES, HIDES]),
    ("/a/..;/admin", [Seen("/a/..;/admin"), HIDES, HIDES, HIDES]),
    ("/..;/admin", [Seen("/..;/admin"), HIDES, HIDES, HIDES]),
    ("/.;x/admin", [Seen("/.;x/admin"), HIDES, HIDES, HIDES]),
    ("/a/%2e%2e;x/admin", [Seen("/a/%2e%2e;x/admin"), HIDES, HIDES, HIDES]),
    ("/a/..%3bx/admin", [Seen("/a/..%3bx/admin"), HIDES, HIDES, HIDES]),
    ("/;x/admin", [Seen("/;x/admin"), HIDES, HIDES, HIDES]),
    ("/a/..;x", [Seen("/a/..;x"), HIDES, HIDES, HIDES]),
];

fn deny(world: &mut World, cluster: meshring_core::id::ClusterId) -> Vec<Route> {
    let deny = |matches| rule_if(vec![Condition::Uri(matches)], saying("denied"));
    let forward = world.forward(&[(cluster, 1)]);
    vec![
        deny(StringMatch::Prefix("/admin".into())),
        deny(StringMatch::Exact("/only".into())),
        deny(StringMatch::Exact("/deep/only".into())),
        rule(forward),
    ]
}

/// A sidecar whose table normalises at this level, and denies `/admin` and all below it, `/only` and `/deep/only`.
fn sidecar(driver: Driver, level: Level) -> Sidecar {
    let upstream = Upstream::answering(|request| ok(request.target()));
    Sidecar::configured(
        driver,
        upstream,
        |builder| builder,
        |world, cluster| {
            world.settings(Settings { path_normalization: level, ..Settings::default() });
            let routes = deny(world, cluster);
            world.host("guarded", routes);
        },
    )
}

fn request(target: &str) -> String {
    format!("GET {} HTTP/1.1\r\nhost: guarded\r\n\r\n", target.replace("http://echo", "http://guarded"))
}

#[track_caller]
fn expect_verdict(sidecar: &Sidecar, target: &str, verdict: Verdict, level: Level) {
    let request = request(target);
    if let Refused(code) = verdict {
        sidecar.refuses(&request, 400, code);
        assert_eq!(sidecar.received(), b"", "{target} at {level:?}");
        return;
    }
    let mut client = sidecar.proxy.connect();
    let text = client.send(&request).response().expect(200).text();
    let received = String::from_utf8(sidecar.received()).unwrap();
    match verdict {
        Seen(seen) => {
            assert_eq!(text, seen, "{target} at {level:?}");
            assert!(received.starts_with(&format!("GET {seen} HTTP/1.1\r\nhost: guarded\r\n")), "{received}");
        }
        _ => assert_eq!((text.as_str(), received.as_str()), ("denied", ""), "{target} at {level:?}"),
    }
}

#[track_caller]
fn expect_rows(driver: Driver, rows: &[Row]) {
    for (at, level) in LEVELS.into_iter().enumerate() {
        let sidecar = sidecar(driver, level);
        for (target, verdicts) in rows {
            expect_verdict(&sidecar, target, verdicts[at], level);
        }
    }
}

fn item_36_every_spelling_of_a_path_gets_one_verdict_at_each_level(driver: Driver) {
    expect_rows(driver, DOTS);
    expect_rows(driver, SLASHES);
}

fn item_36_the_safe_level_is_the_default(driver: Driver) {
    let upstream = Upstream::answering(|request| ok(request.target()));
    let sidecar = Sidecar::configured(
        driver,
        upstream,
        |builder| builder,
        |world, cluster| {
            let routes = deny(world, cluster);
            world.host("guarded", routes);
        },
    );
    for (target, verdicts) in [DOTS, SLASHES, PARAMETERS].concat() {
        expect_verdict(&sidecar, target, verdicts[3], Level::DecodeAndMergeSlashes);
    }
}

fn item_36_parameters_are_forwarded_but_rules_do_not_see_them(driver: Driver) {
    expect_rows(driver, PARAMETERS);
}

fn item_36_inbound_listeners_and_a_second_sidecar_see_the_same_path(driver: Driver) {
    let chain = Chain::new(driver);
    for (target, verdicts) in [DOTS, SLASHES, PARAMETERS].concat() {
        let request = request(target).replace("guarded", "echo");
        match verdicts[3] {
            Seen(seen) => {
                // One after the other, and the second one alone.
                for address in [chain.first.outbound(), chain.second.inbound()] {
                    let response = Client::connect(address).send(&request).response();
                    assert_eq!(response.expect(200).text(), seen, "{target}");
                    let received = String::from_utf8(chain.second.received()).unwrap();
                    assert!(received.starts_with(&format!("GET {seen} HTTP/1.1\r\n")), "{received}");
                }
            }
            Refused(code) => {
                for address in [chain.first.outbound(), chain.second.inbound()] {
                    let mut client = Client::connect(address);
                    client.send(&request);
                    expect_refusal(&mut client, request.as_bytes(), 400, code);
                }
            }
            // Nothing is denied here.
            Denied => {}
        }
    }
}

fn item_36_rewrites_redirects_and_regular_expressions_work_on_the_normal_form(driver: Driver) {
    let upstream = Upstream::answering(|request| ok(request.target()));
    let sidecar = Sidecar::configured(
        driver,
        upstream,
        |builder| builder,
        |world, cluster| {
            let pattern = world.regex("/item/[0-9]+");
            let replaced = world.regex_anywhere("^/v([0-9]+)/");
            let prefix = |text: &str| vec![Condition::Uri(StringMatch::Prefix(text.into()))];
            let mut forward = |rewrite: Rewrite| (world.forward(&[(cluster, 1)]), Some(Box::new(rewriting(rewrite))));
            let (api, to_new) = forward(Rewrite { uri: Some("/new".into()), ..Rewrite::default() });
            let regex = Some(RegexRewrite { pattern: replaced, replacement: "/${1}/".into() });
            let (versioned, to_number) = forward(Rewrite { regex, ..Rewrite::default() });
            let (rest, _) = forward(Rewrite::default());
            let moved = Action::Redirect(Box::new(Redirect { authority: Some("other".into()), ..redirect(301) }));
            world.host(
                "guarded",
                vec![
                    rule_if(vec![Condition::Uri(StringMatch::Regex(pattern))], saying("item")),
                    Route { options: to_new, ..rule_if(prefix("/api"), api) },
                    Route { options: to_number, ..rule_if(prefix("/v"), versioned) },
                    rule_if(prefix("/moved"), moved),
                    rule(rest),
                ],
            );
        },
    );
    let mut client = sidecar.proxy.connect();
    for (target, text) in [
        ("/x/../item/1", "item"),
        ("/item/%31", "item"),
        ("/item;p/1;q", "item"),
        ("/item/1/..", "/item/"),
        ("/x/..//api/%79?q=/../", "/new/y?q=/../"),
        ("/%61pi", "/new"),
        ("/api/..", "/"),
        ("/v1/%2e/a", "/1/a"),
        ("/x/../v2//a%2fb", "/2/a/b"),
    ] {
        assert_eq!(client.send(request(target)).response().expect(200).text(), text, "{target}");
    }
    for (target, location) in [
        ("/x/../moved/%61?q", "http://other/moved/a?q"),
        ("//moved//x", "http://other/moved/x"),
        ("/moved/..%2fmoved", "http://other/moved"),
    ] {
        let response = client.send(request(target)).response();
        assert_eq!(response.expect(301).fields.value("location"), Some(location), "{target}");
    }
}

/// Asserts that at the default level none of these gets to the upstream as anything that a server takes for `/admin`.
#[track_caller]
fn expect_no_way_around(driver: Driver, targets: &[&str]) {
    let sidecar = sidecar(driver, Settings::default().path_normalization);
    for target in targets {
        let mut client = sidecar.proxy.connect();
        let response = client.send(request(target)).response();
        assert!(
            response.status == 400 || response.text() == "denied",
            "{target}: {} {}",
            response.status,
            response.text()
        );
        assert_eq!(sidecar.received(), b"", "{target}");
    }
    assert_eq!(sidecar.upstream.connections(), 0);
}

fn cve_2019_9901_dot_segments_do_not_get_around_a_rule(driver: Driver) {
    expect_no_way_around(
        driver,
        &[
            "/public/../admin",
            "/public/%2e%2e/admin",
            "/./admin",
            "/public/x/../../admin/x",
            "/%61dmin",
            "/public/..//admin",
        ],
    );
}

fn cve_2021_29492_escaped_slashes_do_not_get_around_a_rule(driver: Driver) {
    expect_no_way_around(
        driver,
        &[
            "/%2Fadmin",
            "/%2fadmin",
            "/%5Cadmin",
            "/%5cadmin",
            "/public/..%2Fadmin",
            "/public%2F..%2Fadmin",
            "/public%5c..%5Cadmin",
        ],
    );
}

fn cve_2026_73511_and_2026_73551_and_2026_73553_other_path_forms_do_not_get_around_a_rule(driver: Driver) {
    expect_no_way_around(
        driver,
        &[
            "//admin",
            "///admin//x",
            "/;x/admin",
            "/..;/admin",
            "/public/..;x=y/admin",
            "/public/.;/admin",
            "/admin;x",
            "/only;x",
            "/only;jsessionid=1",
            "/%2e%2e;/admin",
            "/public/%2e%2e%3b/admin",
            "/public;x/%2e%2e/admin",
            "http://guarded//admin",
            "http://guarded/public/../admin",
            "/public\\..\\admin",
            "/%c0%ae%c0%ae/admin",
            "/%c0%afadmin",
            "/%e0%80%afadmin",
            "/admin#x",
            "/#/../admin",
            "/public/..%00/admin",
            "/%u002e%u002e/admin",
            "/%%32%65%%32%65/admin",
        ],
    );
}

fn cve_2019_9900_and_2026_47778_and_2025_66220_a_nul_does_not_get_around_a_rule(driver: Driver) {
    let sidecar = sidecar(driver, Settings::default().path_normalization);
    for (request, code) in [
        ("GET /admin%00 HTTP/1.1\r\nhost: guarded\r\n\r\n", "http1.target_nul"),
        ("GET /%00/../admin HTTP/1.1\r\nhost: guarded\r\n\r\n", "http1.target_nul"),
        ("GET /public%00/admin HTTP/1.1\r\nhost: guarded\r\n\r\n", "http1.target_nul"),
        ("GET /admin\0 HTTP/1.1\r\nhost: guarded\r\n\r\n", "http1.nul"),
        ("GET /\0admin HTTP/1.1\r\nhost: guarded\r\n\r\n", "http1.nul"),
        ("GET / HTTP/1.1\r\nhost: guarded\0.example.com\r\n\r\n", "http1.nul"),
        ("GET / HTTP/1.1\r\nhost: guarded\r\nx-role: user\0admin\r\n\r\n", "http1.nul"),
        ("GET / HTTP/1.1\r\nhost: guarded\r\nx-role: \0\r\n\r\n", "http1.nul"),
        ("GET / HTTP/1.1\r\nhost: guarded\r\nx-role\0: user\r\n\r\n", "http1.nul"),
        ("GET http://guarded\0/ HTTP/1.1\r\nhost: guarded\r\n\r\n", "http1.nul"),
    ] {
        sidecar.refuses(request, 400, code);
    }
    sidecar.refuses_in_pieces("GET / HTTP/1.1\r\nhost: guarded\r\nx-role: user\0admin\r\n\r\n", 400, "http1.nul");
    sidecar.expect_untouched();
}
