use super::super::authority::split;
use super::super::{BodyFraming, Bounds, Fields, HeadScanner, Method, Refusal, TargetForm, Version, request};
use super::{FIRST_HOP, parsed, refused, with};

#[test]
fn item_1_bare_lf_is_refused_wherever_it_stands() {
    for bytes in [
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\nY: c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX:\nY: c\r\n\r\n",
        // As long as a line that ends in CR LF.
        "GET / HTTP/1.1\r\nHost: a\r\nX: b \nY: c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\t\nY: c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: \nY: c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a \nX: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        "GET / HTTP/1.1\r\nHost: a\n\n",
        "GET / HTTP/1.1\n\n",
        "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        assert_eq!(refused(bytes.as_bytes()), Refusal::BareLf, "{bytes:?}");
    }
    // Waiting for the rest of such a head would be of no use.
    assert_eq!(refused(b"GET / HTTP/1.1\r\nHost: a\nX"), Refusal::BareLf);
}

#[test]
fn item_2_bare_cr_is_refused() {
    assert_eq!(refused(&with("X: a\rb\r\n")), Refusal::BareCr);
    assert_eq!(refused(b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n"), Refusal::BareCr);
    assert_eq!(refused(b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n"), Refusal::BareCr);
}

#[test]
fn item_3_nul_is_refused() {
    assert_eq!(refused(&with("X: a\0b\r\n")), Refusal::Nul);
    assert_eq!(refused(&with("X\0: a\r\n")), Refusal::Nul);
    assert_eq!(refused(b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n"), Refusal::Nul);
    assert_eq!(refused(&with("X: a\x01b\r\n")), Refusal::BadFieldValue);
    assert_eq!(refused(&with("X: a\x7fb\r\n")), Refusal::BadFieldValue);
}

#[test]
fn item_4_obs_fold_is_refused() {
    assert_eq!(refused(&with("X: a\r\n b\r\n")), Refusal::ObsFold);
    assert_eq!(refused(&with("X: a\r\n\tb\r\n")), Refusal::ObsFold);
    assert_eq!(refused(&with("X:\r\n b\r\n")), Refusal::ObsFold);
    // CVE-2025-32094.
    let smuggled = b"OPTIONS / HTTP/1.1\r\nHost: a\r\nExpect:\r\n 100-continue\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(refused(smuggled), Refusal::ObsFold);
}

#[test]
fn item_5_white_space_before_a_colon_is_refused() {
    assert_eq!(refused(b"GET / HTTP/1.1\r\nHost : a\r\n\r\n"), Refusal::SpaceBeforeColon);
    assert_eq!(refused(b"GET / HTTP/1.1\r\nHost\t: a\r\n\r\n"), Refusal::SpaceBeforeColon);
    assert_eq!(refused(&with("X \t : a\r\n")), Refusal::SpaceBeforeColon);
}

#[test]
fn item_6_white_space_before_the_first_field_is_refused() {
    assert_eq!(refused(b"GET / HTTP/1.1\r\n Host: a\r\n\r\n"), Refusal::SpaceBeforeFirstField);
    assert_eq!(refused(b"GET / HTTP/1.1\r\n\tHost: a\r\n\r\n"), Refusal::SpaceBeforeFirstField);
}

#[test]
fn item_7_a_line_without_colon_is_refused() {
    for line in ["no colon here", "nocolon", "content-length=5", "GET / HTTP/1.1", "x "] {
        assert_eq!(refused(&with(&format!("{line}\r\n"))), Refusal::NoColon, "{line:?}");
    }
}

#[test]
fn item_8_an_empty_field_name_is_refused() {
    assert_eq!(refused(&with(": a\r\n")), Refusal::EmptyFieldName);
    assert_eq!(refused(b"GET / HTTP/1.1\r\n: a\r\n\r\n"), Refusal::EmptyFieldName);
}

#[test]
fn item_9_a_byte_that_is_no_token_character_in_a_name_is_refused() {
    assert_eq!(refused(b"GET / HTTP/1.1\r\nHost: a\r\nX\x85: b\r\n\r\n"), Refusal::BadFieldName);
    assert_eq!(refused(&with("X(y): b\r\n")), Refusal::BadFieldName);
}

#[test]
fn item_10_content_length_with_transfer_encoding_is_refused() {
    let both = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
    assert_eq!(refused(&with(both)), Refusal::LengthWithEncoding);
    assert_eq!(refused(&with("transfer-encoding: CHUNKED\r\ncontent-length: 0\r\n")), Refusal::LengthWithEncoding);
}

#[test]
fn item_11_two_content_lengths_are_refused() {
    assert_eq!(refused(&with("Content-Length: 5\r\nContent-Length: 6\r\n")), Refusal::RepeatedLength);
    assert_eq!(refused(&with("Content-Length: 5\r\nContent-Length: 5\r\n")), Refusal::RepeatedLength);
}

#[test]
fn item_12_a_list_of_content_lengths_is_refused() {
    for value in ["5, 5", "5,5", "5,", ",5"] {
        assert_eq!(refused(&with(&format!("Content-Length: {value}\r\n"))), Refusal::BadLength, "{value:?}");
    }
}

#[test]
fn item_13_content_length_is_decimal_digits_below_two_to_the_64() {
    for value in ["+5", "-0", "0x5", "1_0", "", " ", "5 5", "5.", "18446744073709551616", "99999999999999999999999"] {
        assert_eq!(refused(&with(&format!("Content-Length: {value}\r\n"))), Refusal::BadLength, "{value:?}");
    }
    let (head, _) = parsed(&with("Content-Length: 18446744073709551615\r\n"));
    assert_eq!(head.framing, BodyFraming::Length(u64::MAX));
    let (head, _) = parsed(&with("Content-Length: 0\r\n"));
    assert_eq!(head.framing, BodyFraming::Length(0));
    assert_eq!(parsed(&with("")).0.framing, BodyFraming::None);
}

#[test]
fn item_14_codings_that_are_not_understood_are_501() {
    for value in ["gzip", "gzip, chunked", "identity"] {
        assert_eq!(encoded(value).status(), 501, "{value:?}");
    }
}

/// Why a request with this Transfer-Encoding is refused.
fn encoded(value: &str) -> Refusal {
    refused(&with(&format!("Transfer-Encoding: {value}\r\n")))
}

#[test]
fn item_15_chunked_that_is_not_last_is_refused() {
    for value in ["chunked, gzip", "chunked, chunked", "chunked,"] {
        assert_eq!(encoded(value), Refusal::BadEncoding, "{value:?}");
    }
}

#[test]
fn item_16_other_spellings_of_chunked_are_refused() {
    for value in [",chunked", "chunked;a", "", "chun ked", "\"chunked\""] {
        assert_eq!(encoded(value), Refusal::BadEncoding, "{value:?}");
    }
    assert_eq!(encoded("\x0bchunked"), Refusal::BadFieldValue);
    let twice = "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n";
    assert_eq!(refused(&with(twice)), Refusal::BadEncoding);
    assert_eq!(parsed(&with("Transfer-Encoding: Chunked\r\n")).0.framing, BodyFraming::Chunked);
}

#[test]
fn item_17_transfer_encoding_on_http_1_0_is_refused() {
    let old = b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(refused(old), Refusal::EncodingOnHttp10);
}

#[test]
fn item_26_one_leading_empty_line_is_ignored() {
    let bytes = b"\r\nGET /a HTTP/1.1\r\nHost: b\r\n\r\n";
    let (head, _) = parsed(bytes);
    assert_eq!(head.len, bytes.len());
    assert_eq!(head.path.of(bytes), b"/a");
    assert_eq!(head.authority.of(bytes), b"b");
    assert_eq!(refused(b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), Refusal::LeadingEmptyLines);
    let mut fields = Fields::new();
    for partial in [&b""[..], b"\r", b"\r\n"] {
        assert_eq!(request::parse(partial, &mut fields, FIRST_HOP), Ok(None), "{partial:?}");
    }
}

#[test]
fn item_27_blanks_in_the_request_line_are_refused() {
    for line in [
        "GET  / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET /\tHTTP/1.1",
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "GET / x HTTP/1.1",
    ] {
        assert_eq!(refused(format!("{line}\r\nHost: a\r\n\r\n").as_bytes()), Refusal::BadRequestLine, "{line:?}");
    }
    assert_eq!(refused(b"GE(T / HTTP/1.1\r\nHost: a\r\n\r\n"), Refusal::BadMethod);
    assert_eq!(refused(b"GET /\r\n\r\n"), Refusal::NoVersion);
}

#[test]
fn item_28_other_versions_are_refused_with_505() {
    for version in ["HTTP/9.9", "HTTP/2.0", "HTTP/1.2", "HTTP/0.9"] {
        let refusal = refused(format!("GET / {version}\r\nHost: a\r\n\r\n").as_bytes());
        assert_eq!((refusal.status(), refusal.code()), (505, "http1.version_unsupported"), "{version}");
    }
    for version in ["http/1.1", "HTTP/1.10", "HTTP/1", "HTTPS/1.1", "FTP/1.1x"] {
        assert_eq!(refused(format!("GET / {version}\r\nHost: a\r\n\r\n").as_bytes()), Refusal::BadVersion, "{version}");
    }
}

#[test]
fn item_28_the_status_does_not_depend_on_where_the_bytes_are_cut() {
    for version in ["HTTP/9.9", "HTTP/2.0", "HTTP/1.2", "HTTP/0.9"] {
        let line = format!("GET / {version}\r\n");
        for end in 1..line.len() {
            let said = request::parse(&line.as_bytes()[..end], &mut Fields::new(), FIRST_HOP);
            assert!(matches!(said, Ok(None) | Err(Refusal::VersionUnsupported)), "{:?}: {said:?}", &line[..end]);
        }
        assert_eq!(refused(line.as_bytes()), Refusal::VersionUnsupported);
    }
}

#[test]
fn item_29_a_request_without_host_is_refused() {
    assert_eq!(refused(b"GET / HTTP/1.1\r\n\r\n"), Refusal::NoHost);
    assert_eq!(refused(b"GET / HTTP/1.0\r\n\r\n"), Refusal::NoHost);
    assert_eq!(refused(b"GET / HTTP/1.1\r\nHost:\r\n\r\n"), Refusal::NoHost);
}

#[test]
fn item_30_two_hosts_are_refused() {
    assert_eq!(refused(b"GET / HTTP/1.1\r\nHost: a\r\nhOST: a\r\n\r\n"), Refusal::RepeatedHost);
    assert_eq!(refused(b"GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), Refusal::RepeatedHost);
}

#[test]
fn item_31_a_host_that_is_no_host_is_refused() {
    for host in [
        "a,b",
        "u@h",
        "a/b",
        "a b",
        "a?b",
        "a#b",
        "a\\b",
        "a:",
        "a:0",
        "a:65536",
        "a:+1",
        "a:1:2",
        "::1",
        "[::1",
        "[::1]x",
        "[a.b]",
        "[fe80::1%25eth0]",
        "%61",
        "\u{e9}",
        ":80",
        "a:080000",
    ] {
        let bytes = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(refused(bytes.as_bytes()), Refusal::BadAuthority, "{host:?}");
    }
    for (host, name, port) in [
        ("a", "a", None),
        ("reviews.default.svc.cluster.local:9080", "reviews.default.svc.cluster.local", Some(9080)),
        ("A_b-1~.", "A_b-1~.", None),
        ("[::1]", "[::1]", None),
        ("[2001:db8::1]:443", "[2001:db8::1]", Some(443)),
        ("10.0.0.1:65535", "10.0.0.1", Some(65535)),
    ] {
        let bytes = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let (head, _) = parsed(bytes.as_bytes());
        assert_eq!(head.authority.of(bytes.as_bytes()), name.as_bytes());
        assert_eq!(head.authority_full.of(bytes.as_bytes()), host.as_bytes());
        assert_eq!(head.port, port);
    }
}

#[test]
fn item_32_the_authority_of_an_absolute_target_wins_over_host() {
    let bytes = b"GET http://b:81/x/y?q=1 HTTP/1.1\r\nHost: a\r\n\r\n";
    let (head, _) = parsed(bytes);
    assert_eq!(head.form, TargetForm::Absolute);
    assert_eq!(head.authority.of(bytes), b"b");
    assert_eq!(head.authority_full.of(bytes), b"b:81");
    assert_eq!(head.port, Some(81));
    assert_eq!(head.path.of(bytes), b"/x/y");
    assert_eq!(head.query.expect("a query").of(bytes), b"q=1");
    assert!(!head.https);

    let bytes = b"GET HTTPS://b HTTP/1.1\r\nHost: a\r\n\r\n";
    let (head, _) = parsed(bytes);
    assert!(head.https);
    assert_eq!(head.path_of(bytes), b"/");

    let bytes = b"GET http://b?q HTTP/1.0\r\n\r\n";
    let (head, _) = parsed(bytes);
    assert_eq!((head.path_of(bytes), head.authority.of(bytes)), (&b"/"[..], &b"b"[..]));

    // Host must be a host even where it is not used, and HTTP/1.1 needs it.
    assert_eq!(refused(b"GET http://b/ HTTP/1.1\r\n\r\n"), Refusal::NoHost);
    assert_eq!(refused(b"GET http://b/ HTTP/1.1\r\nHost: a,b\r\n\r\n"), Refusal::BadAuthority);
    for target in ["http://", "http:///x", "http://u@b/", "http://b:x/", "http://b\\c/"] {
        let bytes = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(
            request::parse(bytes.as_bytes(), &mut Fields::new(), FIRST_HOP).map_err(Refusal::status),
            Err(400),
            "{target}"
        );
    }
    for target in ["ftp://b/", "b", "a/b", "//b"] {
        let bytes = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let refused = request::parse(bytes.as_bytes(), &mut Fields::new(), FIRST_HOP) == Err(Refusal::BadTarget);
        assert_eq!(refused, target != "//b", "{target}");
    }
}

#[test]
fn item_33_the_asterisk_is_for_options() {
    assert_eq!(refused(b"GET * HTTP/1.1\r\nHost: a\r\n\r\n"), Refusal::AsteriskNotOptions);
    let (head, _) = parsed(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((head.form, head.method), (TargetForm::Asterisk, Method::Options));
}

#[test]
fn item_34_a_fragment_is_refused() {
    for target in ["/a#b", "/a?b#c", "/a?b\\#c", "/#", "http://a/b#c", "http://a#b"] {
        let bytes = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(refused(bytes.as_bytes()), Refusal::TargetFragment, "{target:?}");
    }
}

#[test]
fn item_35_ambiguous_bytes_in_the_target_are_refused() {
    for (target, refusal) in [
        ("/a%00b", Refusal::TargetNul),
        ("/a\\b", Refusal::TargetBackslash),
        ("/%c0%ae%c0%ae/", Refusal::TargetOverlong),
        ("/%E0%80%af", Refusal::TargetOverlong),
        ("/%f0%80%80%af", Refusal::TargetOverlong),
        ("/%ff", Refusal::TargetOverlong),
        ("/%zz", Refusal::TargetBadEscape),
        ("/%4", Refusal::TargetBadEscape),
        ("/\u{e9}", Refusal::TargetNotAscii),
        ("/a?\u{e9}", Refusal::TargetNotAscii),
        ("/a\x01", Refusal::TargetNotAscii),
    ] {
        assert_eq!(refused(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()), refusal, "{target:?}");
    }
    assert_eq!(refused(b"GET /\x80 HTTP/1.1\r\nHost: a\r\n\r\n"), Refusal::TargetNotAscii);
    for target in ["/caf%C3%A9", "/%e0%a4%a4", "/%f0%9f%98%80", "/a?x=\\&y=%00", "/a?x?y", "/%2e%2e/a|b^c"] {
        parsed(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    }
}

#[test]
fn items_34_and_35_hold_at_each_place_of_a_target_of_any_length() {
    for len in 1..50 {
        for at in 1..=len {
            for (byte, refusal) in
                [("#", Refusal::TargetFragment), ("\\", Refusal::TargetBackslash), ("\x7f", Refusal::TargetNotAscii)]
            {
                let mut path = format!("/{}", "a".repeat(len));
                path.replace_range(at..=at, byte);
                for query in ["", "?", "?q=a-query-of-some-length"] {
                    let bytes = format!("GET {path}{query} HTTP/1.1\r\nHost: a\r\n\r\n");
                    assert_eq!(refused(bytes.as_bytes()), refusal, "{path}{query}");
                }
            }
            let mut path = format!("/{}", "a".repeat(len));
            path.replace_range(at..=at, "%00");
            let bytes = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(refused(bytes.as_bytes()), Refusal::TargetNul, "{path}");
            let mut query = "a".repeat(len);
            query.replace_range(at - 1..at, "#");
            let bytes = format!("GET /?{query} HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(refused(bytes.as_bytes()), Refusal::TargetFragment, "?{query}");
            let mut host = "a".repeat(len);
            host.replace_range(at - 1..at, "@");
            let bytes = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(refused(bytes.as_bytes()), Refusal::BadAuthority, "{host}");
        }
    }
}

#[test]
fn a_host_is_no_longer_than_names_are() {
    let request = |len: usize, port: &str| format!("GET / HTTP/1.1\r\nHost: {}{port}\r\n\r\n", "a".repeat(len));
    parsed(request(254, "").as_bytes());
    parsed(request(254, ":65535").as_bytes());
    assert_eq!(refused(request(255, "").as_bytes()), Refusal::BadAuthority);
    assert_eq!(refused(request(255, ":80").as_bytes()), Refusal::BadAuthority);
}

#[test]
fn item_37_underscore_twins_are_refused() {
    for name in ["Content_Length", "X_Forwarded_For", "x-forwarded_for", "TRANSFER_ENCODING", "X_Forwarded-Proto"] {
        assert_eq!(refused(&with(&format!("{name}: 1\r\n"))), Refusal::UnderscoreTwin, "{name}");
    }
    // Families of names, and a trusted one in the spelling of CGI.
    for name in [
        "X_Forwarded_Prefix",
        "x-forwarded_x",
        "X_Forwarded_",
        "X_Forwarded_Client_Cert",
        "x-forwarded-client_cert",
        "X_Envoy_External_Address",
        "x-envoy_internal",
        "Keep_Alive",
        "Max_Forwards",
    ] {
        assert_eq!(refused(&with(&format!("{name}: 1\r\n"))), Refusal::UnderscoreTwin, "{name}");
    }
    for name in
        ["user_id", "x_request_id", "content_lengt", "contentxlength", "x_envo", "x_envoys", "x-forwarded-a_b", "_"]
    {
        parsed(&with(&format!("{name}: 1\r\n")));
    }
}

#[test]
fn item_38_a_target_over_8_kib_is_414() {
    let target = |len: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(len - 1));
    parsed(target(8 * 1024).as_bytes());
    assert_eq!(refused(target(8 * 1024 + 1).as_bytes()).status(), 414);
    assert_eq!(refused(&target(64 * 1024).as_bytes()[..9 * 1024]).status(), 414);
}

#[test]
fn item_39_a_head_over_60_kib_or_100_fields_is_431() {
    let lines = |count: usize| with(&"a: b\r\n".repeat(count));
    assert_eq!(parsed(&lines(99)).1.len(), 100);
    assert_eq!(refused(&lines(100)), Refusal::TooManyFields);

    let sized = |len: usize| {
        let empty = with("x: \r\n").len();
        with(&format!("x: {}\r\n", "a".repeat(len - empty)))
    };
    assert_eq!(parsed(&sized(60 * 1024)).0.len, 60 * 1024);
    assert_eq!(refused(&sized(60 * 1024 + 1)), Refusal::HeadTooLarge);
    assert_eq!(refused(&sized(70 * 1024)).status(), 431);
    assert_eq!(request::parse(&sized(61_000)[..60_999], &mut Fields::new(), FIRST_HOP), Ok(None));
}

#[test]
fn item_40_an_announced_body_over_the_limit_is_refused_with_413() {
    let (head, _) = parsed(&with("Content-Length: 101\r\n"));
    assert_eq!(head.limit_body(101), Ok(()));
    assert_eq!(head.limit_body(100).map_err(Refusal::status), Err(413));
}

#[test]
fn item_41_pipelined_heads_are_parsed_one_by_one() {
    let bytes = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\nGET\t/3";
    let (first, _) = parsed(bytes);
    assert_eq!(first.path.of(bytes), b"/1");
    let rest = &bytes[first.len..];
    let (second, _) = parsed(rest);
    assert_eq!(second.path.of(rest), b"/2");
    assert_eq!(refused(&rest[second.len..]), Refusal::BadRequestLine);
}

#[test]
fn item_43_connection_must_not_nominate_what_decides() {
    for name in [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "Authorization",
        "Cookie",
        "Expect",
        "Via",
        "Forwarded",
        "Max-Forwards",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "X-Forwarded-Client-Cert",
        "x-forwarded-prefix",
        "X-Request-Id",
        "X-Envoy-External-Address",
        "x_forwarded_for",
        "x_envoy_internal",
    ] {
        let bytes = with(&format!("Connection: close, {name}\r\n"));
        assert_eq!(refused(&bytes), Refusal::NominatedField, "{name}");
    }
    assert_eq!(refused(&with("Connection: a b\r\n")), Refusal::BadConnection);
    let many = |count: usize| with(&format!("Connection: {}close\r\n", "x, ".repeat(count)));
    assert!(!parsed(&many(31)).0.keep_alive);
    assert_eq!(refused(&many(32)), Refusal::TooManyConnectionOptions);
}

#[test]
fn item_50_expectations_other_than_100_continue_are_refused_with_417() {
    assert_eq!(refused(&with("Expect: y\r\n")).status(), 417);
    assert_eq!(refused(&with("Expect: 100-continue\r\nExpect: y\r\n")).status(), 417);
    assert!(parsed(&with("Expect: 100-Continue\r\nContent-Length: 1\r\n")).0.expect_continue);
    assert!(!parsed(&with("Expect: 100-continue\r\n")).0.expect_continue);
    let old = b"POST / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n";
    assert!(!parsed(old).0.expect_continue);
}

#[test]
fn item_55_connect_takes_an_authority_and_no_body() {
    let bytes = b"CONNECT b:443 HTTP/1.1\r\nHost: a\r\n\r\n";
    let (head, _) = parsed(bytes);
    assert_eq!((head.form, head.port), (TargetForm::Authority, Some(443)));
    assert_eq!(head.authority.of(bytes), b"b");
    for target in ["b", "/b", "http://b:443/", "*", "u@b:443"] {
        assert_eq!(
            refused(format!("CONNECT {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()),
            Refusal::BadTarget,
            "{target}"
        );
    }
    let body = b"CONNECT b:443 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(refused(body), Refusal::ConnectWithBody);
}

#[test]
fn item_56_only_a_nominated_upgrade_to_one_protocol_other_than_h2c_counts() {
    let upgrade = |lines: &str| {
        let bytes = with(lines);
        parsed(&bytes).0.upgrade.map(|span| String::from_utf8_lossy(span.of(&bytes)).into_owned())
    };
    assert_eq!(upgrade("Connection: Upgrade\r\nUpgrade: websocket\r\n").as_deref(), Some("websocket"));
    assert_eq!(upgrade("Connection: keep-alive, upgrade\r\nUpgrade: TLS/1.3\r\n").as_deref(), Some("TLS/1.3"));
    assert_eq!(upgrade("Upgrade: websocket\r\n"), None);
    assert_eq!(upgrade("Connection: upgrade\r\nUpgrade: h2c\r\n"), None);
    assert_eq!(upgrade("Connection: upgrade\r\nUpgrade: websocket, h2c\r\n"), None);
    assert_eq!(upgrade("Connection: upgrade\r\nUpgrade: a\r\nUpgrade: b\r\n"), None);
    assert_eq!(upgrade("Connection: upgrade\r\n"), None);
}

#[test]
fn only_a_get_that_announces_no_body_begins_a_websocket() {
    let is_websocket = |method: &str, lines: &str| {
        let bytes = format!("{method} / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n{lines}\r\n");
        parsed(bytes.as_bytes()).0.is_websocket(bytes.as_bytes())
    };
    assert!(is_websocket("GET", "Upgrade: websocket\r\n"));
    assert!(is_websocket("GET", "upgrade: WebSocket\r\n"));
    for lines in
        ["", "Upgrade: websocket/13\r\n", "Upgrade: h2c\r\n", "Upgrade: websocket, h2c\r\n", "Upgrade: web\r\n"]
    {
        assert!(!is_websocket("GET", lines), "{lines}");
    }
    for lines in ["Content-Length: 0\r\n", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"] {
        assert!(!is_websocket("GET", &format!("Upgrade: websocket\r\n{lines}")), "{lines}");
    }
    for method in ["POST", "HEAD", "get", "OPTIONS"] {
        assert!(!is_websocket(method, "Upgrade: websocket\r\n"), "{method}");
    }
}

#[test]
fn item_67_only_idempotent_methods_may_be_sent_twice() {
    let methods = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "POST", "PATCH", "CONNECT", "get", "LOCK"];
    let idempotent = methods.map(|name| Method::named(name.as_bytes()).is_idempotent());
    assert_eq!(idempotent, [true, true, true, true, true, true, false, false, false, false, false]);
}

#[test]
fn persistence_follows_version_and_connection() {
    let keeps =
        |version: &str, line: &str| parsed(format!("GET / {version}\r\nHost: a\r\n{line}\r\n").as_bytes()).0.keep_alive;
    assert!(keeps("HTTP/1.1", ""));
    assert!(keeps("HTTP/1.1", "Connection: keep-alive\r\n"));
    assert!(!keeps("HTTP/1.1", "Connection: Close\r\n"));
    assert!(!keeps("HTTP/1.1", "Connection: keep-alive, close\r\n"));
    assert!(!keeps("HTTP/1.1", "Connection: x\r\nConnection: close\r\n"));
    assert!(!keeps("HTTP/1.0", ""));
    assert!(keeps("HTTP/1.0", "Connection: Keep-Alive\r\n"));
    assert_eq!(parsed(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n").0.version, Version::Http10);
}

#[test]
fn a_head_that_comes_byte_by_byte_is_parsed_at_most_twice() {
    let bytes = b"\r\nGET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\nGET";
    let (mut scanner, mut fields, mut attempts) = (HeadScanner::default(), Fields::new(), 0);
    for end in 1..=bytes.len() {
        if scanner.ready(&bytes[..end], FIRST_HOP) {
            attempts += 1;
            if let Some(head) = request::parse(&bytes[..end], &mut fields, FIRST_HOP).expect("an acceptable request") {
                assert_eq!(head.len, bytes.len() - 3);
                assert_eq!(attempts, 2);
                return;
            }
        }
    }
    panic!("the head was never found");
}

#[test]
fn the_scanner_lets_hopeless_heads_be_refused_at_once() {
    let hopeless = [b"GET / HTTP/1.1\nHost: a".to_vec(), vec![b'a'; 9 * 1024], with(&"x: y\r\n".repeat(11_000))];
    for bytes in hopeless {
        let (mut scanner, mut fields, mut parses) = (HeadScanner::default(), Fields::new(), 0);
        let refused = bytes.chunks(7).scan(0, |len, piece| {
            *len += piece.len();
            Some(*len)
        });
        let refused = refused.into_iter().any(|len| {
            scanner.ready(&bytes[..len], FIRST_HOP) && {
                parses += 1;
                request::parse(&bytes[..len], &mut fields, FIRST_HOP).is_err()
            }
        });
        assert!(refused);
        assert_eq!(parses, 2);
    }
}

#[test]
fn the_scanner_waits_for_the_bounds_that_hold() {
    let bytes = with(&format!("x: {}\r\n", "y".repeat(61 * 1024)));
    let parses = |bounds: Bounds| {
        let mut scanner = HeadScanner::default();
        (1..=bytes.len()).step_by(64).filter(|&len| scanner.ready(&bytes[..len], bounds)).count()
    };
    // The first attempt; then nothing is to be said before the head is whole, or too large.
    assert_eq!(parses(Bounds::NEXT_HOP), 1);
    assert!(parses(FIRST_HOP) > 1);
}

#[test]
fn every_refusal_has_its_own_code() {
    let bytes: [&[u8]; 4] = [b"GET / HTTP/1.1\n\n", b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", b"G\r\n", b"\x16\x03\x01"];
    let codes: std::collections::HashSet<_> = bytes.iter().map(|bytes| refused(bytes).code()).collect();
    assert_eq!(codes.len(), bytes.len());
    assert!(codes.iter().all(|code| code.starts_with("http1.")));
}

#[test]
fn each_byte_of_a_host_is_judged_wherever_it_stands() {
    for len in 1..40 {
        for at in 0..len {
            for byte in 0..=255 {
                let mut host = vec![b'a'; len];
                host[at] = byte;
                let is_name = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
                // What a colon or a bracket makes of it is another matter.
                if !b":[".contains(&byte) {
                    assert_eq!(split(&host), is_name.then_some((len, None)), "{byte:#x} at {at} of {len}");
                }
            }
        }
    }
}
