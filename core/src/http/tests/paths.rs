use proptest::prelude::*;

use super::super::PathNormalization::{self, Base, DecodeAndMergeSlashes, MergeSlashes};
use super::super::path::{normalize, normalize_rewritten, position_with_parameters, without_parameters};
use super::super::{NoEdits, Refusal, RequestOut, request_head};
use super::{FIRST_HOP, parsed};

const LEVELS: [PathNormalization; 4] = [PathNormalization::None, Base, MergeSlashes, DecodeAndMergeSlashes];

fn normal(path: &str, level: PathNormalization) -> Result<String, Refusal> {
    let mut scratch = b"left over".to_vec();
    normalize(path.as_bytes(), level, &mut scratch).map(|path| String::from_utf8(path.to_vec()).expect("ASCII"))
}

/// At `Base`, `MergeSlashes` and `DecodeAndMergeSlashes`.
fn at_each_level(path: &str) -> [Result<String, Refusal>; 3] {
    [Base, MergeSlashes, DecodeAndMergeSlashes].map(|level| normal(path, level))
}

/// The string that rules are matched against.
fn matched(path: &str, level: PathNormalization) -> Result<String, Refusal> {
    let path = normal(path, level)?;
    Ok(String::from_utf8(without_parameters(path.as_bytes(), &mut Vec::new()).to_vec()).expect("ASCII"))
}

#[test]
fn each_level_does_what_istio_says_it_does() {
    // Path as received, then at Base, MergeSlashes and DecodeAndMergeSlashes.
    for (path, expected) in [
        ("/", ["/", "/", "/"]),
        ("/a/../b", ["/b", "/b", "/b"]),
        ("/a/./b/.", ["/a/b/", "/a/b/", "/a/b/"]),
        ("/a/b/..", ["/a/", "/a/", "/a/"]),
        ("/a/..", ["/", "/", "/"]),
        ("/%61%2d%2E%5f%7e%41%30", ["/a-._~A0", "/a-._~A0", "/a-._~A0"]),
        ("/caf%c3%a9%3a", ["/caf%C3%A9%3A", "/caf%C3%A9%3A", "/caf%C3%A9%3A"]),
        ("/a//b///c//", ["/a//b///c//", "/a/b/c/", "/a/b/c/"]),
        ("//", ["//", "/", "/"]),
        ("/a%2fb", ["/a%2Fb", "/a%2Fb", "/a/b"]),
        ("/a%5Cb", ["/a%5Cb", "/a%5Cb", "/a/b"]),
        ("/a%2f%2F/b", ["/a%2F%2F/b", "/a%2F%2F/b", "/a/b"]),
        ("/a/%2e%2e%2fb", ["/a/..%2Fb", "/a/..%2Fb", "/b"]),
        ("/a/b%2f../c", ["/a/b%2F../c", "/a/b%2F../c", "/a/c"]),
        ("/a%2f%2e%2e", ["/a%2F..", "/a%2F..", "/"]),
        // Dot segments go first, as in Envoy: the empty segment is the one that `..` takes away.
        ("/a//../b", ["/a/b", "/a/b", "/a/b"]),
        ("/a/..//b", ["//b", "/b", "/b"]),
        // Names that only look like dot segments.
        ("/...", ["/...", "/...", "/..."]),
        ("/.well-known/a..b/.c/..d", ["/.well-known/a..b/.c/..d"; 3]),
        // Decoded once, and what was an escape stays one.
        ("/%252e%252e/%2525", ["/%252e%252e/%2525"; 3]),
        ("/%25%32%65", ["/%252e"; 3]),
        ("/a%3Fb%23c%20d%25", ["/a%3Fb%23c%20d%25"; 3]),
        ("/%0d%0a%7f", ["/%0D%0A%7F"; 3]),
        // Parameters are forwarded.
        ("/a;x=1/b;y", ["/a;x=1/b;y"; 3]),
        ("/a/;jsessionid=1", ["/a/;jsessionid=1"; 3]),
        ("/a;/../b", ["/b"; 3]),
        ("/a;p=%2f../b", ["/a;p=%2F../b", "/a;p=%2F../b", "/b"]),
    ] {
        assert_eq!(at_each_level(path), expected.map(|path| Ok(path.to_owned())), "{path}");
        assert_eq!(normal(path, PathNormalization::None).as_deref(), Ok(path));
    }
}

#[test]
fn a_path_that_climbs_above_its_root_is_refused() {
    for path in ["/..", "/../", "/a/../..", "/a/../../b", "/./..", "/%2e%2e/a", "/.%2e", "/a/b/../../../c"] {
        assert_eq!(at_each_level(path), [const { Err(Refusal::PathEscapesRoot) }; 3], "{path}");
    }
    assert_eq!(at_each_level("/a%2f..%2f..")[2], Err(Refusal::PathEscapesRoot));
    assert_eq!(at_each_level("/..%5ca")[2], Err(Refusal::PathEscapesRoot));
    assert_eq!(Refusal::PathEscapesRoot.status(), 400);
}

#[test]
fn parameters_on_dot_segments_and_on_empty_ones_are_refused() {
    for path in
        ["/a/..;x/b", "/a/..;/b", "/a/.;x", "/..;", "/a/%2e%2E;x", "/a/..%3bx/b", "/.%3B", "/;x/admin", "/a//;/b"]
    {
        assert_eq!(at_each_level(path), [const { Err(Refusal::PathParameters) }; 3], "{path}");
    }
    assert_eq!(at_each_level("/a%2f;x%2fadmin")[2], Err(Refusal::PathParameters));
}

#[test]
fn item_36_every_form_of_a_path_gets_the_verdict_of_the_plain_one() {
    for path in [
        "/admin",
        "/a/../admin",
        "/./admin",
        "/%2e/admin",
        "/a/%2e%2e/admin",
        "/a/.%2E/admin",
        "/a%2f..%2fadmin",
        "/a%2f%2e%2e%2fadmin",
        "//admin",
        "///admin",
        "/%2fadmin",
        "/%2F%2fadmin",
        "/%5cadmin",
        "/a%5c..%5cadmin",
        "/%61dmin",
        "/%61%64%6D%69%6e",
        "/admin;x",
        "/admin;x=1;y=%2e",
        "/a;b/../admin;x",
    ] {
        assert_eq!(matched(path, DecodeAndMergeSlashes).as_deref(), Ok("/admin"), "{path}");
    }
    for path in ["/admin/", "/admin%2f", "/admin//", "/admin/.", "/admin/x/..", "/admin;x/", "/admin%2F;x", "/admin%5C"]
    {
        assert_eq!(matched(path, DecodeAndMergeSlashes).as_deref(), Ok("/admin/"), "{path}");
    }
    for path in ["/..;/admin", "/a/..;x/admin", "/;x/admin", "/../admin", "/%2e%2e/admin", "/..%2fadmin"] {
        assert_eq!(matched(path, DecodeAndMergeSlashes).map_err(Refusal::status), Err(400), "{path}");
    }
    // The upstream sees what was matched, parameters apart; the query is nobody's business here.
    let bytes = b"GET http://h/a/%2e%2e//%61dmin;x?q=/../%61 HTTP/1.1\r\nHost: h\r\n\r\n";
    let (head, fields) = parsed(bytes);
    let mut scratch = Vec::new();
    let path = head.normalized_path(bytes, DecodeAndMergeSlashes, &mut scratch).expect("a path");
    assert_eq!(path, b"/admin;x");
    let mut out = Vec::new();
    let how = RequestOut { path: Some([path, b""]), ..RequestOut::new(&head, &NoEdits) };
    request_head(&mut out, bytes, &head, &fields, &how);
    assert_eq!(out, b"GET /admin;x?q=/../%61 HTTP/1.1\r\nhost: h\r\n\r\n");
}

#[test]
fn targets_without_a_path_are_left_as_they_are() {
    let mut scratch = Vec::new();
    for (bytes, path) in [
        (&b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"[..], &b"*"[..]),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", b""),
        (b"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", b"/"),
    ] {
        let (head, _) = parsed(bytes);
        assert_eq!(head.normalized_path(bytes, DecodeAndMergeSlashes, &mut scratch), Ok(path));
    }
    // What no codec lets through is refused rather than misread.
    for path in ["", "a/../b", "%2fa"] {
        assert_eq!(normal(path, Base), Err(Refusal::BadTarget), "{path}");
    }
    assert_eq!(normal("/%zz", Base), Err(Refusal::TargetBadEscape));
    assert_eq!(normal("/%2", Base), Err(Refusal::TargetBadEscape));
}

#[test]
fn a_plain_path_is_not_copied() {
    let mut scratch = b"untouched".to_vec();
    for path in ["/", "/productpage/reviews.html", "/a;x/b.c~d/", "/a!$&'()*+,=:@"] {
        let normal = normalize(path.as_bytes(), DecodeAndMergeSlashes, &mut scratch).expect("a path");
        assert!(std::ptr::eq(normal, path.as_bytes()), "{path}");
    }
    let path = b"/a/b";
    assert!(std::ptr::eq(without_parameters(path, &mut scratch), path));
    assert_eq!(scratch, b"untouched");
}

#[test]
fn parameters_are_cut_off_and_positions_lead_back() {
    for (path, cut) in
        [("/a;x/b", "/a/b"), ("/a;x", "/a"), ("/;x", "/"), ("/a;/b;;/c;x=1;y", "/a/b/c"), ("/a/;x", "/a/")]
    {
        assert_eq!(without_parameters(path.as_bytes(), &mut b"left over".to_vec()), cut.as_bytes(), "{path}");
    }
    // Path, matched bytes, and what is left behind them.
    for (path, matched, rest) in [
        ("/admin/x", 6, "/x"),
        ("/admin;x/y", 6, "/y"),
        ("/admin;x/y", 7, "y"),
        ("/admin;x/y", 1, "admin;x/y"),
        ("/admin;x/y", 3, "min;x/y"),
        ("/admin;x", 6, ""),
        ("/a;x/b;y/c;z", 4, "/c;z"),
        ("/;x", 1, ""),
        ("/a;x", 0, "/a;x"),
        ("/a", 2, ""),
        ("/a", 9, ""),
    ] {
        assert_eq!(&path[position_with_parameters(path.as_bytes(), matched)..], rest, "{path} {matched}");
    }
}

/// The same rules once more, slowly: split, a stack of segments, join.
fn reference(path: &str, level: PathNormalization) -> Option<String> {
    let mut decoded = String::new();
    let mut rest = path;
    while let Some(next) = rest.chars().next() {
        let escape = if next == '%' { &rest[..3] } else { "" };
        rest = &rest[escape.len().max(1)..];
        match u8::from_str_radix(escape.get(1..).unwrap_or_default(), 16) {
            Err(_) => decoded.push(next),
            Ok(b'/' | b'\\') if level == DecodeAndMergeSlashes => decoded.push('/'),
            Ok(b) if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => decoded.push(b as char),
            Ok(_) => decoded.push_str(&escape.to_uppercase()),
        }
    }
    let segments: Vec<&str> = decoded.split('/').skip(1).collect();
    let mut stack = Vec::new();
    for (i, segment) in segments.iter().enumerate() {
        let is_last = i + 1 == segments.len();
        let name = segment.split(';').next()?;
        let name_if_decoded = name.split("%3B").next()?;
        if matches!(name_if_decoded, "." | "..") && name_if_decoded != *segment {
            return None;
        }
        match name {
            "" if !is_last && !segment.is_empty() => return None,
            "." => {}
            ".." => drop(stack.pop()?),
            _ => stack.push(*segment),
        }
        if is_last && matches!(name, "." | "..") {
            stack.push("");
        }
    }
    let mut normal = format!("/{}", stack.join("/"));
    while level != Base && normal.contains("//") {
        normal = normal.replace("//", "/");
    }
    Some(normal)
}

/// Paths that are made of what a normaliser trips over.
fn paths() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "/", "/", "/", "//", ".", ".", "..", "/..", "/.", "/../", "a", "b", "ad", "admin", ";", ";x=1", "%2e", "%2E",
        "%2f", "%2F", "%5c", "%5C", "%25", "%252e", "%2525", "%252f", "%3b", "%3B", "%3f", "%23", "%20", "%0a", "%7e",
        "%61", "%c3%a9", "~", "-", ":", "@",
    ]);
    prop::collection::vec(piece, 0..14).prop_map(|pieces| format!("/{}", pieces.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn a_normal_path_is_what_the_reference_says_and_its_own_normal_form(path in paths()) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        prop_assert!(super::request::parse(request.as_bytes(), &mut super::Fields::new(), FIRST_HOP).is_ok());
        for level in [Base, MergeSlashes, DecodeAndMergeSlashes] {
            let normal_path = normal(&path, level).ok();
            prop_assert_eq!(&normal_path, &reference(&path, level), "{:?}", level);
            let Some(normal_path) = normal_path else { continue };
            // A normal form of a level is one of each level below, too.
            for below in LEVELS.into_iter().filter(|&below| below <= level) {
                prop_assert_eq!(normal(&normal_path, below), Ok(normal_path.clone()), "{:?} {:?}", level, below);
            }
            prop_assert!(normal_path.starts_with('/') && normal_path.len() <= path.len());
            let forbidden = |b: u8| !b.is_ascii_graphic() || b"?#\\".contains(&b);
            prop_assert!(!normal_path.bytes().any(forbidden));
            let names = normal_path.split('/').map(|segment| segment.split(';').next().unwrap_or_default());
            prop_assert!(!names.clone().any(|name| name == "." || name == ".."));
            prop_assert!(level == Base || !normal_path.contains("//"));
            if level == DecodeAndMergeSlashes {
                prop_assert!(!normal_path.contains("%2F") && !normal_path.contains("%5C"));
            }
        }
    }

    #[test]
    fn what_rules_match_is_normal_and_every_position_leads_back(path in paths()) {
        for level in [Base, MergeSlashes, DecodeAndMergeSlashes] {
            let Ok(path) = normal(&path, level) else { continue };
            let mut scratch = Vec::new();
            let cut = without_parameters(path.as_bytes(), &mut scratch);
            let text = std::str::from_utf8(cut).expect("ASCII");
            prop_assert_eq!(normal(text, level), Ok(text.to_owned()));
            for matched in 0..=cut.len() {
                let (before, after) = path.as_bytes().split_at(position_with_parameters(path.as_bytes(), matched));
                let mut scratches = [Vec::new(), Vec::new()];
                let [first, second] = &mut scratches;
                prop_assert_eq!(without_parameters(before, first), &cut[..matched]);
                prop_assert_eq!(without_parameters(after, second), &cut[matched..]);
                prop_assert!(!after.starts_with(b";"), "parameters without their segment");
            }
        }
    }
}

#[test]
fn the_query_of_a_rewritten_path_is_left_alone() {
    let mut scratch = Vec::new();
    for (target, expected) in [
        ("", "/"),
        ("/a", "/a"),
        ("/a?x=/../y", "/a?x=/../y"),
        ("/a//b/../c?x=//", "/a/c?x=//"),
        ("/%61?%61", "/a?%61"),
    ] {
        let level = PathNormalization::DecodeAndMergeSlashes;
        let normal = normalize_rewritten(target.as_bytes(), level, &mut scratch).unwrap();
        assert_eq!(String::from_utf8_lossy(normal), expected, "{target}");
    }
    let escaping = normalize_rewritten(b"/../x?y", PathNormalization::Base, &mut scratch);
    assert_eq!(escaping, Err(Refusal::PathEscapesRoot));
}
