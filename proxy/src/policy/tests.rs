use meshring_core::{
    http::serialize::RequestOut,
    id::RegexId,
    table::model::{
        Action, DestinationHeaders, HeaderOp, Redirect, RedirectPort, RegexRewrite, Rewrite, RouteOptions, StringMatch,
    },
};

use super::*;
use crate::{
    balance::Random,
    route::{Decision, decide},
    testing::{World, get},
    worker::generation::Pinned,
};

/// The head that goes upstream for `GET TARGET`.
fn upstream_head(world: World, target: &str, lines: &str) -> String {
    let pinned = Pinned::new(world.prepare());
    let parsed = get(target, "echo", lines);
    let request = parsed.request();
    let Ok(Decision::Forward(forward)) = decide(&pinned, &request, request.head.port, &Random::new(1)) else {
        panic!("no forward")
    };
    let edits = Edits::of_request(&forward);
    let mut room = RewrittenPath::default();
    let rewritten = rewrite(&pinned, &request, &forward, &edits, &mut room).unwrap();
    let path = rewritten.path.map(|path| [path, b""]);
    let how = RequestOut { path, authority: rewritten.authority, ..RequestOut::new(&parsed.head, &edits) };
    let mut out = Vec::new();
    serialize::request_head(&mut out, &parsed.bytes, &parsed.head, &parsed.fields, &how);
    String::from_utf8(out).unwrap()
}

fn rewriting(uri: Option<StringMatch>, rewrite: Rewrite) -> World {
    let options = Some(RouteOptions { rewrite: Some(rewrite), ..RouteOptions::default() });
    World { uri, options, ..World::default() }
}

#[test]
fn a_uri_rewrite_replaces_what_matched() {
    let prefix = |p: &str| Some(StringMatch::Prefix(p.into()));
    let exact = |p: &str| Some(StringMatch::Exact(p.into()));
    for (uri, rewrite, target, expected) in [
        (prefix("/old"), "/new", "/old/a?x=1", "/new/a?x=1"),
        (prefix("/old/"), "/", "/old/a", "/a"),
        (prefix("/old"), "/", "/old", "/"),
        (exact("/old"), "/new", "/old?x=1", "/new?x=1"),
        (None, "/all", "/a", "/alla"),
        (None, "/all/", "/a", "/all/a"),
        (prefix("/old"), "", "/old/a", "/a"),
        (prefix("/old"), "", "/old", "/"),
        (prefix("/old"), "new", "/old/a", "/new/a"),
    ] {
        let rewrite = Rewrite { uri: Some(rewrite.into()), ..Rewrite::default() };
        let head = upstream_head(rewriting(uri.clone(), rewrite.clone()), target, "");
        assert!(head.starts_with(&format!("GET {expected} HTTP/1.1\r\n")), "{uri:?} {rewrite:?} {target}: {head}");
    }
}

#[test]
fn a_regex_rewrite_replaces_every_occurrence_in_the_path_alone() {
    let regex = RegexRewrite { pattern: RegexId(0), replacement: "/${2}/${1}".into() };
    let rewrite = Rewrite { regex: Some(regex), ..Rewrite::default() };
    let world = World { regexes: vec!["/([a-z]+)/([0-9]+)"], ..rewriting(None, rewrite) };
    let head = upstream_head(world, "/item/42/part/7?keep=/a/1", "");
    assert!(head.starts_with("GET /42/item/7/part?keep=/a/1 HTTP/1.1\r\n"), "{head}");
}

#[test]
fn an_authority_rewrite_replaces_host() {
    let rewrite = Rewrite { authority: Some("other.example".into()), ..Rewrite::default() };
    let head = upstream_head(rewriting(None, rewrite), "/", "");
    assert!(head.to_lowercase().contains("host: other.example\r\n") && !head.contains("echo"), "{head}");
}

fn set(name: &str, value: &str) -> HeaderOp {
    HeaderOp::Set { name: name.into(), value: value.into() }
}

fn add(name: &str, value: &str) -> HeaderOp {
    HeaderOp::Add { name: name.into(), value: value.into() }
}

fn remove(name: &str) -> HeaderOp {
    HeaderOp::Remove { name: name.into() }
}

#[test]
fn header_edits_remove_then_set_then_add_and_the_rule_has_the_last_word() {
    let destination = DestinationHeaders {
        request: vec![set("x-both", "destination"), set("x-destination", "d"), add("x-gone", "1")],
        response: vec![],
    };
    let options = RouteOptions {
        request_headers: vec![
            remove("x-gone"),
            set("x-both", "rule"),
            add("x-list", "2"),
            set("host", "chosen.example"),
        ],
        ..RouteOptions::default()
    };
    let world = World { options: Some(options), destination: Some(destination), ..World::default() };
    let lines = "X-Gone: 0\r\nX-Both: client\r\nX-List: 1\r\nX-Kept: yes\r\n";
    let head = upstream_head(world, "/", lines).to_lowercase();
    let values = |name: &str| -> Vec<String> {
        head.lines().filter_map(|line| line.strip_prefix(&format!("{name}: "))).map(str::to_owned).collect()
    };
    assert_eq!(values("x-gone"), [""; 0]);
    assert_eq!(values("x-both"), ["rule"]);
    assert_eq!(values("x-destination"), ["d"]);
    assert_eq!(values("x-list"), ["1", "2"]);
    assert_eq!(values("x-kept"), ["yes"]);
    assert_eq!(values("host"), ["chosen.example"]);
}

#[test]
fn a_redirect_keeps_what_it_does_not_replace() {
    let plain = || Redirect { uri: None, authority: None, scheme: None, port: RedirectPort::Keep, status: 301 };
    let uri = |uri: &str| Redirect { uri: Some(uri.into()), ..plain() };
    for (redirect, host, target, expected) in [
        (uri("/new"), "echo", "/old?x=1", "http://echo/new?x=1"),
        (uri("/new?y=2"), "echo", "/old?x=1", "http://echo/new?y=2"),
        (Redirect { authority: Some("other:81".into()), ..plain() }, "echo:80", "/a", "http://other:81/a"),
        (Redirect { scheme: Some("https".into()), ..plain() }, "echo:80", "/a", "https://echo/a"),
        (Redirect { port: RedirectPort::Fixed(8443), ..plain() }, "echo:80", "/a", "http://echo:8443/a"),
        (Redirect { port: RedirectPort::ProtocolDefault, ..plain() }, "echo:80", "/a", "http://echo/a"),
    ] {
        let world = World { action: Some(Action::Redirect(Box::new(redirect.clone()))), ..World::default() };
        let pinned = Pinned::new(world.prepare());
        let parsed = get(target, host, "");
        let decided = decide(&pinned, &parsed.request(), parsed.head.port, &Random::new(1));
        let Ok(Decision::Redirect { redirect: archived, .. }) = decided else { panic!("no redirect") };
        let location = String::from_utf8(location(&parsed.request(), archived, parsed.head.port)).unwrap();
        assert_eq!(location, expected, "{redirect:?}");
    }
}
