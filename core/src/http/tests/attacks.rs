//! What took other proxies down over HTTP/1: one test for each weakness, named after the number that it got.

use super::super::serialize::Via;
use super::super::{
    BodyDecoder, BodyFraming, ChunkError, FieldKind, NoEdits, PathNormalization, Refusal, RequestHead, RequestOut,
    forwarding, path, request_head,
};
use super::bodies::decode;
use super::{parsed, refused, with};

fn chunked(body: &[u8]) -> Result<Vec<u8>, ChunkError> {
    decode(BodyFraming::Chunked, body, &[body.len()]).map(|decoded| decoded.data)
}

fn forwarded(bytes: &[u8]) -> String {
    let (head, fields) = parsed(bytes);
    let mut out = Vec::new();
    request_head(&mut out, bytes, &head, &fields, &RequestOut::new(&head, &NoEdits));
    String::from_utf8(out).expect("ASCII")
}

/// What rules see of a path at the default level, or why it is refused.
fn matched(target: &str) -> Result<String, Refusal> {
    let mut scratches = [Vec::new(), Vec::new()];
    let [normal, cut] = &mut scratches;
    let path = path::normalize(target.as_bytes(), PathNormalization::DecodeAndMergeSlashes, normal)?;
    Ok(String::from_utf8_lossy(path::without_parameters(path, cut)).into_owned())
}

#[test]
fn cve_2023_40225_an_empty_content_length_is_refused() {
    for line in ["Content-Length:\r\n", "Content-Length: \r\n", "Content-Length:\t\r\n"] {
        assert_eq!(refused(&with(line)), Refusal::BadLength, "{line:?}");
    }
    assert_eq!(refused(&with("Content-Length:\r\nContent-Length: 5\r\n")), Refusal::RepeatedLength);
}

#[test]
fn cve_2025_32094_options_with_a_folded_expect_is_refused() {
    let smuggled = b"OPTIONS / HTTP/1.1\r\nHost: a\r\nExpect:\r\n 100-continue\r\nContent-Length: 39\r\n\r\n";
    assert_eq!(refused(smuggled), Refusal::ObsFold);
    assert_eq!(refused(&with("Expect: 100-continue,\r\n\tx\r\n")), Refusal::ObsFold);
}

#[test]
fn cve_2026_2833_bytes_behind_an_upgrade_are_no_part_of_it() {
    // They stay where they are until the upstream has accepted: they are another request if it does not.
    let bytes =
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n";
    let (head, _) = parsed(bytes);
    assert!(head.upgrade.is_some() && BodyDecoder::new(head.framing).is_done());
    let (next, _) = parsed(&bytes[head.len..]);
    assert_eq!(next.path.of(&bytes[head.len..]), b"/admin");
    assert!(!forwarded(bytes).contains("admin"));
}

#[test]
fn cve_2026_2835_and_2026_73548_transfer_encoding_in_an_http10_request_is_refused() {
    for lines in [
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nConnection: keep-alive",
        "Transfer-Encoding: identity",
    ] {
        let bytes = format!("POST / HTTP/1.0\r\nHost: a\r\n{lines}\r\n\r\n");
        assert!(
            matches!(refused(bytes.as_bytes()), Refusal::EncodingOnHttp10 | Refusal::EncodingUnsupported),
            "{lines}"
        );
    }
    let both = b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(refused(both), Refusal::LengthWithEncoding);
}

#[test]
fn cve_2025_55315_a_line_break_in_a_chunk_extension_is_refused() {
    for line in ["2;\n", "2;x\n", "2;\rx\r\n", "2;a=\"\r\n\"\r\n", "2;a\0\r\n"] {
        let body = format!("{line}xx\r\n0\r\n\r\n");
        assert!(chunked(body.as_bytes()).is_err(), "{line:?}");
    }
}

#[test]
fn cve_2025_22871_a_bare_lf_after_a_chunk_size_is_refused() {
    assert_eq!(chunked(b"5\nhello\r\n0\r\n\r\n"), Err(ChunkError::Size));
    assert_eq!(chunked(b"5;a\nhello\r\n0\r\n\r\n"), Err(ChunkError::Extension));
    assert_eq!(chunked(b"5\r\nhello\n0\r\n\r\n"), Err(ChunkError::DataEnd));
}

#[test]
fn cve_2023_39326_chunk_extensions_cost_their_sender_at_most_4_kib() {
    let mut body = format!("1;{}\r\nx\r\n", "e".repeat(63)).repeat(64);
    assert_eq!(chunked(format!("{body}0\r\n\r\n").as_bytes()).map(|data| data.len()), Ok(64));
    body.push_str("1;e\r\nx\r\n");
    assert_eq!(chunked(format!("{body}0\r\n\r\n").as_bytes()), Err(ChunkError::ExtensionTooLarge));
}

#[test]
fn cve_2021_40346_a_name_of_more_than_255_bytes_keeps_its_length() {
    // There a length of 270 was stored in eight bits, and the name became `Content-Length` for one of two parsers.
    let name = format!("Content-Length0{}", "a".repeat(255));
    let bytes = with(&format!("{name}:\r\nContent-Length: 60\r\n"));
    let (head, fields) = parsed(&bytes);
    assert_eq!(head.framing, BodyFraming::Length(60));
    assert!(!fields.is_repeated(FieldKind::ContentLength));
    assert_eq!(fields.as_slice()[1].name.of(&bytes), name.as_bytes());
    assert!(forwarded(&bytes).contains(&format!("\r\n{name}: \r\ncontent-length: 60\r\n\r\n")));
    let long = "n".repeat(50_000);
    let bytes = with(&format!("{long}: v\r\n"));
    assert_eq!(parsed(&bytes).1.as_slice()[1].name.of(&bytes), long.as_bytes());
}

#[test]
fn cve_2023_25725_an_empty_field_name_is_refused() {
    // There it ended the list of fields for one of two parsers, and what followed was not checked.
    for lines in [": x\r\nTransfer-Encoding: chunked\r\n", ":\r\n", " : x\r\n"] {
        assert!(matches!(refused(&with(lines)), Refusal::EmptyFieldName | Refusal::ObsFold), "{lines:?}");
    }
}

#[test]
fn cve_2025_4366_a_body_that_nobody_wanted_is_still_known_to_be_there() {
    let bytes = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 27\r\n\r\nGET /admin HTTP/1.1\r\n\r\n";
    let (head, _) = parsed(bytes);
    let body = BodyDecoder::new(head.framing);
    assert_eq!((body.is_done(), body.remaining()), (false, Some(27)));
}

#[test]
fn cve_2019_9901_dot_segments_and_slashes_are_normalised_before_rules_see_them() {
    for target in ["/something/../admin", "/a/%2e%2e/admin", "//admin", "/./admin"] {
        assert_eq!(matched(target).as_deref(), Ok("/admin"), "{target}");
    }
}

#[test]
fn cve_2021_29492_escaped_slashes_are_decoded_before_rules_see_them() {
    for target in ["/a%2f..%2fadmin", "/a%5c..%5cadmin", "/%2Fadmin", "/a/..%2Fadmin", "/a%2F%2e%2e/admin"] {
        assert_eq!(matched(target).as_deref(), Ok("/admin"), "{target}");
    }
}

#[test]
fn cve_2026_73511_2026_73551_and_2026_73553_other_forms_of_a_path_are_one_path_or_refused() {
    for target in ["/admin;x", "/%61dmin", "/admin;a=b;c", "/x/..//admin;"] {
        assert_eq!(matched(target).as_deref(), Ok("/admin"), "{target}");
    }
    for target in ["/..;/admin", "/x/..;/admin", "/x/.;/../admin", "/;/admin", "/../admin"] {
        assert!(matched(target).is_err(), "{target}");
    }
    for target in ["/admin\\", "/admin%00", "/%c0%afadmin", "/admin%", "/admin#x"] {
        let bytes = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(refused(bytes.as_bytes()).status(), 400, "{target}");
    }
}

#[test]
fn cve_2021_32777_and_2026_26308_a_rule_sees_all_lines_of_a_field() {
    let bytes = with("X-Role: user\r\nA: b\r\nx-role: admin\r\n");
    let (_, fields) = parsed(&bytes);
    assert_eq!(fields.joined(&bytes, b"X-ROLE", &mut Vec::new()), Some(&b"user,admin"[..]));
}

#[test]
fn cve_2022_31813_2024_45410_2021_32813_and_2026_26365_connection_removes_no_forwarding_field() {
    for name in [
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "x-forwarded-prefix",
        "X-Real-Ip",
        "Forwarded",
        "Via",
    ] {
        let bytes = with(&format!("Connection: close, {name}\r\n{name}: 1\r\n"));
        if name == "X-Real-Ip" {
            // Not a field of ours: the client takes away what it has sent itself, and no other line.
            assert_eq!(parsed(&bytes).1.len(), 3);
        } else {
            assert_eq!(refused(&bytes), Refusal::NominatedField, "{name}");
        }
    }
}

#[test]
fn cve_2024_45806_internal_fields_of_a_stranger_go_no_further() {
    let bytes =
        with("X-Envoy-Original-Path: /x\r\nX-ENVOY-Upstream-Rq-Timeout-Ms: 1\r\nX-Envoy-Internal: true\r\nA: b\r\n");
    let (head, fields) = parsed(&bytes);
    let hop = forwarding::Hop {
        peer: [192, 0, 2, 1].into(),
        is_https: false,
        port: 80,
        is_trusted: false,
        new_request_id: None,
        is_host_rewritten: false,
        via: Via::Http1,
    };
    let mut lines = Vec::new();
    let drop = forwarding::request_lines(&mut lines, &bytes, &head, &fields, &hop, &NoEdits);
    let mut out = Vec::new();
    let how = RequestOut { drop, extra: &lines, ..RequestOut::new(&head, &NoEdits) };
    request_head(&mut out, &bytes, &head, &fields, &how);
    let out = String::from_utf8_lossy(&out).to_ascii_lowercase();
    assert!(!out.contains("x-envoy") && out.contains("a: b\r\n"), "{out}");
}

#[test]
fn cve_2019_9900_2026_47778_and_2025_66220_nul_is_refused_wherever_it_stands() {
    assert_eq!(refused(&with("X-Role: admin\0user\r\n")), Refusal::Nul);
    assert_eq!(refused(&with("X\0: a\r\n")), Refusal::Nul);
    assert_eq!(refused(b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n"), Refusal::Nul);
    assert_eq!(refused(b"GET /a\0 HTTP/1.1\r\nHost: a\r\n\r\n"), Refusal::Nul);
    assert_eq!(refused(b"GET /a%00 HTTP/1.1\r\nHost: a\r\n\r\n"), Refusal::TargetNul);
    assert_eq!(chunked(b"0\r\nx: a\0\r\n\r\n"), Err(ChunkError::Trailer));
}

#[test]
fn cve_2024_45808_what_a_log_line_quotes_has_no_line_break() {
    // Spans of an accepted head are what is logged.
    let spans = |head: &RequestHead| [head.method_name, head.target, head.path, head.authority_full];
    for bytes in ["GET /%0d%0a HTTP/1.1\r\nHost: a\r\n\r\n", "X!#$%&'*+-.^_`|~1 /?a HTTP/1.1\r\nHost: a:1\r\n\r\n"] {
        let (head, _) = parsed(bytes.as_bytes());
        let texts = spans(&head).map(|span| span.of(bytes.as_bytes()));
        assert!(texts.iter().all(|text| text.iter().all(u8::is_ascii_graphic)), "{bytes:?}");
    }
    for bytes in [
        "GET /a\rb HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n",
        "G\x1b[m / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        assert_eq!(refused(bytes.as_bytes()).status(), 400, "{bytes:?}");
    }
}
