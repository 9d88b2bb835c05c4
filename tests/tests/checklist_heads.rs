//! Items 1 to 17 and 26 to 31 of the HTTP checklist: request heads that two parsers could read in two ways are refused,
//! and nothing of them reaches anybody.
#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they share")]

use meshring_tests::{
    checklist::{Chain, Sidecar, with},
    client::Client,
    on_both_drivers,
    proxy::Driver,
};

on_both_drivers! {
    item_1_a_line_that_ends_in_a_bare_lf_is_refused
    item_2_a_bare_cr_is_refused
    item_3_nul_and_other_control_characters_are_refused
    item_3_bytes_that_are_no_control_characters_are_forwarded_as_they_are
    item_4_obs_fold_is_refused
    item_5_white_space_before_a_colon_is_refused
    item_6_white_space_before_the_first_field_is_refused
    item_7_a_line_without_colon_is_refused
    item_8_an_empty_field_name_is_refused
    item_9_a_byte_that_is_no_token_character_in_a_name_is_refused
    item_10_content_length_and_transfer_encoding_together_are_refused
    item_11_two_content_lengths_are_refused
    item_12_a_list_of_content_lengths_is_refused
    item_13_a_content_length_that_is_no_plain_number_is_refused
    item_13_a_plain_content_length_is_forwarded_as_a_number
    item_14_codings_that_are_not_understood_are_501
    item_15_chunked_that_is_not_last_is_refused
    item_16_other_spellings_of_chunked_are_refused
    item_16_chunked_in_any_case_is_forwarded_in_ours
    item_17_transfer_encoding_on_http_1_0_is_refused
    item_26_one_empty_line_before_a_request_is_ignored
    item_27_blanks_in_the_request_line_are_refused
    item_28_other_versions_are_505
    item_29_a_request_without_host_is_refused
    item_30_two_hosts_are_refused
    item_31_a_host_that_is_no_host_is_refused
}

/// Asserts that each request is refused with a status and code of its own, the first one also in pieces.
#[track_caller]
fn refused<R: AsRef<[u8]>>(driver: Driver, requests: &[(R, u16, &str)]) {
    let sidecar = Sidecar::new(driver);
    for (request, status, code) in requests {
        sidecar.refuses(request, *status, code);
    }
    let (request, status, code) = &requests[0];
    sidecar.refuses_in_pieces(request, *status, code);
    sidecar.expect_untouched();
}

/// As [`refused`], all with one status and code.
#[track_caller]
fn refused_as<R: AsRef<[u8]>>(driver: Driver, status: u16, code: &str, requests: &[R]) {
    let requests: Vec<_> = requests.iter().map(|request| (request.as_ref(), status, code)).collect();
    refused(driver, &requests);
}

fn item_1_a_line_that_ends_in_a_bare_lf_is_refused(driver: Driver) {
    refused_as(
        driver,
        400,
        "http1.bare_lf",
        &[
            "GET / HTTP/1.1\r\nhost: echo\r\nx: b\ny: c\r\n\r\n",
            "GET / HTTP/1.1\nhost: echo\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: echo\n\r\n",
            "GET / HTTP/1.1\nhost: echo\n\n",
            "GET / HTTP/1.1\r\nhost: echo\r\n\n",
            "GET / HTTP/1.1\r\nhost: echo\r\nx: y\n\n",
            "GET / HTTP/1.1\r\nhost: echo\r\nx:\ny: c\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: echo\r\nx\n: c\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: echo\r\nx: y\n content-length: 5\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: echo\r\nx: y\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: echo\r\ncontent-length: 5\n\r\nhello",
            "GET / HTTP/1.1\r\n\nhost: echo\r\n\r\n",
            "GET / HTTP/1.0\nhost: echo\n\n",
            "GET http://echo/ HTTP/1.1\nhost: echo\r\n\r\n",
            "\nGET / HTTP/1.1\r\nhost: echo\r\n\r\n",
            "\n\r\nGET / HTTP/1.1\r\nhost: echo\r\n\r\n",
            "GET /\nhost: echo\r\n\r\n",
        ],
    );
}

fn item_2_a_bare_cr_is_refused(driver: Driver) {
    refused(
        driver,
        &[
            ("GET / HTTP/1.1\r\nhost: echo\r\nx: a\rb\r\n\r\n", 400, "http1.bare_cr"),
            ("GET / HTTP/1.1\r\nhost: echo\r\nx: \rb\r\n\r\n", 400, "http1.bare_cr"),
            ("GET / HTTP/1.1\r\nhost: echo\r\nx: a\r\r\n\r\n", 400, "http1.bare_cr"),
            ("GET / HTTP/1.1\r\nhost: echo\r\nx: a\ry: b\r\n\r\n", 400, "http1.bare_cr"),
            ("GET / HTTP/1.1\r\nhost: echo\r\nx: a\r\rtransfer-encoding: chunked\r\n\r\n", 400, "http1.bare_cr"),
            ("GET / HTTP/1.1\rhost: echo\r\n\r\n", 400, "http1.bare_cr"),
            ("GET / HTTP/1.1\r\r\nhost: echo\r\n\r\n", 400, "http1.bare_cr"),
            ("GET /\r HTTP/1.1\r\nhost: echo\r\n\r\n", 400, "http1.bare_cr"),
            ("\rGET / HTTP/1.1\r\nhost: echo\r\n\r\n", 400, "http1.bare_cr"),
            ("\r\rGET / HTTP/1.1\r\nhost: echo\r\n\r\n", 400, "http1.bare_cr"),
            ("GET / HTTP/1.1\r\nhost: ec\rho\r\n\r\n", 400, "http1.bare_cr"),
            ("GET / HTTP/1.1\r\nhost: echo\r\n\rx: a\r\n\r\n", 400, "http1.bare_cr"),
            ("GET / HTTP/1.1\r\nhost: echo\r\nx\r: a\r\n\r\n", 400, "http1.bare_cr"),
            ("GET\r/ HTTP/1.1\r\nhost: echo\r\n\r\n", 400, "http1.bare_cr"),
        ],
    );
}

fn item_3_nul_and_other_control_characters_are_refused(driver: Driver) {
    let mut requests: Vec<_> = [
        "GET / HTTP/1.1\r\nhost: echo\r\nx: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: echo\r\nx: \0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: echo\r\nx: a\0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: echo\0.evil\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: echo\r\nx\0: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: echo\r\n\0x: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: echo\r\ncontent-length\0: 5\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: echo\r\ncontent-length: 5\0\r\n\r\n",
        "GET /\0 HTTP/1.1\r\nhost: echo\r\n\r\n",
        "GET /?\0 HTTP/1.1\r\nhost: echo\r\n\r\n",
        "GE\0T / HTTP/1.1\r\nhost: echo\r\n\r\n",
        "\0GET / HTTP/1.1\r\nhost: echo\r\n\r\n",
        "GET / HTTP/1.1\0\r\nhost: echo\r\n\r\n",
    ]
    .map(|request| (request.to_owned(), 400, "http1.nul"))
    .into();
    let controls = (0x01..=0x1f_u8).chain([0x7f]).filter(|byte| !b"\t\r\n".contains(byte));
    for control in controls.map(char::from) {
        requests.push((
            format!("GET / HTTP/1.1\r\nhost: echo\r\nx: a{control}b\r\n\r\n"),
            400,
            "http1.bad_field_value",
        ));
    }
    refused(driver, &requests);
}

fn item_3_bytes_that_are_no_control_characters_are_forwarded_as_they_are(driver: Driver) {
    let bytes = (0x20..=0xff_u8).filter(|&byte| byte != 0x7f).chain([b'\t']);
    let lines: Vec<u8> = [b"x: ".to_vec(), bytes.collect(), b"!\r\n".to_vec()].concat();
    // White space around a value is no part of it.
    let sent = with([b"X:\t", &lines[3..lines.len() - 2], b" \t\r\n"].concat());
    let kept: Vec<u8> = lines[3..].iter().copied().skip_while(|&byte| byte == b' ').collect();
    Sidecar::new(driver).forwards(&sent, with([b"X: ", &kept[..]].concat()));
    Chain::new(driver).forwards(&sent, with([b"X: ", &kept[..]].concat()));
}

fn item_4_obs_fold_is_refused(driver: Driver) {
    refused_as(
        driver,
        400,
        "http1.obs_fold",
        &[
            "GET / HTTP/1.1\r\nhost: echo\r\nx: a\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: echo\r\nx: a\r\n\tb\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: echo\r\nx:\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: echo\r\nx: a\r\n \r\n\r\n",
            "GET / HTTP/1.1\r\nhost: echo\r\n .evil.example.com\r\n\r\n",
            "GET / HTTP/1.1\r\nhost:\r\n echo\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: echo\r\ntransfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: echo\r\ntransfer-encoding: chunked\r\n , identity\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: echo\r\ncontent-length:\r\n 5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nhost: echo\r\ncontent-length: 1\r\n 0\r\n\r\n0123456789",
            "GET / HTTP/1.1\r\nhost: echo\r\nx: a\r\n y: b\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: echo\r\nconnection: close\r\n , x\r\n\r\n",
        ],
    );
}

fn item_5_white_space_before_a_colon_is_refused(driver: Driver) {
    refused_as(
        driver,
        400,
        "http1.space_before_colon",
        &[
            "GET / HTTP/1.1\r\nhost : echo\r\n\r\n",
            "GET / HTTP/1.1\r\nhost\t: echo\r\n\r\n",
            "GET / HTTP/1.1\r\nhost  : echo\r\n\r\n",
            "GET / HTTP/1.1\r\nhost \t : echo\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: echo\r\nx :\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: echo\r\ncontent-length : 5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nhost: echo\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: echo\r\ntransfer-encoding\t: chunked\r\ncontent-length: 5\r\n\r\nhello",
        ],
    );
}

fn item_6_white_space_before_the_first_field_is_refused(driver: Driver) {
    refused_as(
        driver,
        400,
        "http1.space_before_first_field",
        &[
            "GET / HTTP/1.1\r\n host: echo\r\n\r\n",
            "GET / HTTP/1.1\r\n\thost: echo\r\n\r\n",
            "GET / HTTP/1.1\r\n \r\nhost: echo\r\n\r\n",
            "GET / HTTP/1.1\r\n x: y\r\nhost: echo\r\n\r\n",
            "GET / HTTP/1.1\r\n transfer-encoding: chunked\r\nhost: echo\r\n\r\n",
            "GET / HTTP/1.1\r\n /evil HTTP/1.1\r\nhost: echo\r\n\r\n",
            "GET / HTTP/1.1\r\n : y\r\nhost: echo\r\n\r\n",
        ],
    );
}

fn item_7_a_line_without_colon_is_refused(driver: Driver) {
    refused_as(
        driver,
        400,
        "http1.no_colon",
        &[
            "GET / HTTP/1.1\r\nhost: echo\r\nnocolon\r\n\r\n",
            "GET / HTTP/1.1\r\nnocolon\r\nhost: echo\r\n\r\n",
            "GET / HTTP/1.1\r\nhost echo\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: echo\r\ntransfer-encoding chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: echo\r\ncontent-length=5\r\n\r\nhello",
            "GET / HTTP/1.1\r\nhost: echo\r\nGET /smuggled HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: echo\r\nx: y\r\n0\r\n\r\n",
        ],
    );
}

fn item_8_an_empty_field_name_is_refused(driver: Driver) {
    refused_as(
        driver,
        400,
        "http1.empty_field_name",
        &[
            "GET / HTTP/1.1\r\nhost: echo\r\n: a\r\n\r\n",
            "GET / HTTP/1.1\r\n: a\r\nhost: echo\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: echo\r\n:\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: echo\r\n::\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: echo\r\n:transfer-encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: echo\r\n:\r\ncontent-length: 5\r\n\r\nhello",
        ],
    );
}

fn item_9_a_byte_that_is_no_token_character_in_a_name_is_refused(driver: Driver) {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    // What ends a name or a line, and NUL, have items of their own.
    let bytes = (1..=255_u8).filter(|&byte| !is_token(byte) && !b"\r\n:".contains(&byte));
    let inside = bytes.map(|byte| [b"x", &[byte][..], b"y: 1\r\n"].concat());
    let first = with(b"x\x85: 1\r\n");
    let at_ends = [
        &b"\x85x: 1\r\n"[..],
        b"x\xa0: 1\r\n",
        b"\xa0transfer-encoding: chunked\r\n",
        b"transfer-encoding\x0b: chunked\r\n",
        b"transfer-encoding\x85: chunked\r\n",
        b"content-length\x0c: 5\r\n",
        b"\xef\xbb\xbfhost: echo\r\n",
        b"transfer\xe2\x80\x90encoding: chunked\r\n",
    ];
    let rest = inside.chain(at_ends.map(<[u8]>::to_vec)).map(with);
    refused_as(driver, 400, "http1.bad_field_name", &std::iter::once(first).chain(rest).collect::<Vec<_>>());
}

fn item_10_content_length_and_transfer_encoding_together_are_refused(driver: Driver) {
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: echo\r\n\r\n";
    let both = |length: usize, lines: &str| {
        format!("POST / HTTP/1.1\r\nhost: echo\r\n{}\r\n{smuggled}", lines.replace('#', &length.to_string()))
    };
    refused_as(
        driver,
        400,
        "http1.length_with_encoding",
        &[
            both(smuggled.len(), "content-length: #\r\ntransfer-encoding: chunked\r\n"),
            both(smuggled.len(), "transfer-encoding: chunked\r\ncontent-length: #\r\n"),
            both(5, "content-length: #\r\ntransfer-encoding: chunked\r\n"),
            both(0, "content-length: #\r\ntransfer-encoding: chunked\r\n"),
            both(5, "Transfer-Encoding: CHUNKED\r\nx: y\r\nCONTENT-LENGTH: #\r\n"),
            both(5, "transfer-encoding:chunked\r\ncontent-length:#\r\n"),
            both(5, "connection: close\r\ntransfer-encoding: \tchunked \r\ncontent-length: \t# \r\n"),
            both(5, "x: y\r\nx: y\r\ncontent-length: #\r\nx: y\r\ntransfer-encoding: chunked\r\nx: y\r\n"),
        ],
    );
}

fn item_11_two_content_lengths_are_refused(driver: Driver) {
    let requests = [
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: 5\r\ncontent-length: 5\r\n",
        "content-length: 0\r\ncontent-length: 5\r\n",
        "Content-Length: 5\r\nCONTENT-LENGTH: 0\r\n",
        "content-length: 5\r\nx: y\r\ncontent-length: 6\r\n",
        "content-length: 5\r\ncontent-length:\r\n",
        "content-length: 5\r\ncontent-length: 05\r\n",
        "content-length: 5\r\ncontent-length: 5\r\ncontent-length: 5\r\n",
    ];
    let requests = requests.map(|lines| [&with(lines), &b"hello"[..]].concat());
    refused_as(driver, 400, "http1.repeated_length", &requests);
}

fn item_12_a_list_of_content_lengths_is_refused(driver: Driver) {
    let values = ["5, 5", "5,5", "5 , 5", "5,", ",5", "5, 6", "5, ", "5;5", "5 5", "5,5,5", "0, 5"];
    let requests = values.map(|value| [&with(format!("content-length: {value}\r\n")), &b"hello"[..]].concat());
    refused_as(driver, 400, "http1.bad_length", &requests);
}

fn item_13_a_content_length_that_is_no_plain_number_is_refused(driver: Driver) {
    let values: [&[u8]; 27] = [
        b"+5",
        b"-0",
        b"-5",
        b"0x5",
        b"1_0",
        b"",
        b" ",
        b"\t",
        b"5.",
        b"5.0",
        b"5e0",
        b"0b1",
        b"0o5",
        b"'5'",
        b"\"5\"",
        b"5L",
        b"five",
        b"NaN",
        b"infinity",
        b"5\xa0",
        b"\x855",
        b"\xd9\xa5",
        b"\xef\xbc\x95",
        b"18446744073709551616",
        b"18446744073709551621",
        b"99999999999999999999999999999999999999999999",
        b"5\0",
    ];
    let requests: Vec<_> = values
        .map(|value| {
            let code = if value.ends_with(b"\0") { "http1.nul" } else { "http1.bad_length" };
            ([&with([b"content-length: ", value, b"\r\n"].concat()), &b"hello"[..]].concat(), 400, code)
        })
        .into_iter()
        .chain(
            [&b"\x0b5"[..], b"5\x0c", b"\x0c5"]
                .map(|value| (with([b"content-length: ", value, b"\r\n"].concat()), 400, "http1.bad_field_value")),
        )
        .collect();
    refused(driver, &requests);
}

fn item_13_a_plain_content_length_is_forwarded_as_a_number(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    for value in ["5", " \t5\t ", "05", "000000000000000000000000000000000005"] {
        sidecar.forwards(
            [&with(format!("content-length:{value}\r\n")), &b"hello"[..]].concat(),
            "POST / HTTP/1.1\r\nhost: echo\r\ncontent-length: 5\r\n\r\nhello",
        );
    }
    sidecar.forwards(with("content-length: 0\r\n"), with("content-length: 0\r\n"));
}

fn item_14_codings_that_are_not_understood_are_501(driver: Driver) {
    let values =
        ["gzip", "GZIP", "deflate", "br", "identity", "x", "gzip, chunked", "gzip,chunked", "chunkedx", "xchunked"];
    let requests = values.map(|value| [&with(format!("transfer-encoding: {value}\r\n")), &b"0\r\n\r\n"[..]].concat());
    refused_as(driver, 501, "http1.encoding_unsupported", &requests);
}

fn item_15_chunked_that_is_not_last_is_refused(driver: Driver) {
    let values = [
        "chunked, gzip",
        "chunked,gzip",
        "chunked, identity",
        "chunked, chunked",
        "gzip, chunked, gzip",
        "chunked, x, chunked",
        "Chunked , gzip",
    ];
    let requests = values.map(|value| [&with(format!("transfer-encoding: {value}\r\n")), &b"0\r\n\r\n"[..]].concat());
    refused_as(driver, 400, "http1.bad_encoding", &requests);
}

fn item_16_other_spellings_of_chunked_are_refused(driver: Driver) {
    let lines: [&[u8]; 20] = [
        b"transfer-encoding: ,chunked\r\n",
        b"transfer-encoding: chunked,\r\n",
        b"transfer-encoding: , chunked\r\n",
        b"transfer-encoding: chunked;a\r\n",
        b"transfer-encoding: chunked;a=b\r\n",
        b"transfer-encoding: chunked ; q=1\r\n",
        b"transfer-encoding: \"chunked\"\r\n",
        b"transfer-encoding: 'chunked' x\r\n",
        b"transfer-encoding: chun ked\r\n",
        b"transfer-encoding: chunked chunked\r\n",
        b"transfer-encoding: chunked\xa0\r\n",
        b"transfer-encoding: \x85chunked\r\n",
        b"transfer-encoding: chun\xc4\xb8ed\r\n",
        b"transfer-encoding:\r\n",
        b"transfer-encoding: \t \r\n",
        b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ntransfer-encoding:\r\n",
        b"transfer-encoding: gzip\r\nx: y\r\ntransfer-encoding: chunked\r\n",
    ];
    let mut requests: Vec<_> =
        lines.map(|lines| ([&with(lines), &b"0\r\n\r\n"[..]].concat(), 400, "http1.bad_encoding")).into();
    for value in [&b"\x0bchunked"[..], b"chunked\x0b", b"\x0cchunked", b"chunked\x1f"] {
        requests.push((with([b"transfer-encoding: ", value, b"\r\n"].concat()), 400, "http1.bad_field_value"));
    }
    requests.push((with("transfer-encoding: chunked\0\r\n"), 400, "http1.nul"));
    requests.push((with("transfer-encoding: chunked\r x\r\n"), 400, "http1.bare_cr"));
    refused(driver, &requests);
}

fn item_16_chunked_in_any_case_is_forwarded_in_ours(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    for line in ["transfer-encoding: chunked", "Transfer-Encoding:ChUnKeD", "TRANSFER-ENCODING: \tCHUNKED\t "] {
        sidecar.forwards(
            [&with(format!("{line}\r\n")), &b"5\r\nhello\r\n0\r\n\r\n"[..]].concat(),
            "POST / HTTP/1.1\r\nhost: echo\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        );
    }
}

fn item_17_transfer_encoding_on_http_1_0_is_refused(driver: Driver) {
    let old = |lines: &str| format!("POST / HTTP/1.0\r\nhost: echo\r\n{lines}\r\n0\r\n\r\n");
    refused(
        driver,
        &[
            (old("transfer-encoding: chunked\r\n"), 400, "http1.encoding_on_http10"),
            (old("connection: keep-alive\r\ntransfer-encoding: chunked\r\n"), 400, "http1.encoding_on_http10"),
            (old("Transfer-Encoding: Chunked\r\n"), 400, "http1.encoding_on_http10"),
            (old("transfer-encoding: chunked\r\ncontent-length: 5\r\n"), 400, "http1.length_with_encoding"),
            (old("transfer-encoding: gzip\r\n"), 501, "http1.encoding_unsupported"),
        ],
    );
}

fn item_26_one_empty_line_before_a_request_is_ignored(driver: Driver) {
    let sidecar = Sidecar::new(driver);
    sidecar.forwards("\r\nGET / HTTP/1.1\r\nhost: echo\r\n\r\n", "GET / HTTP/1.1\r\nhost: echo\r\n\r\n");
    // What old clients send behind a body (RFC 9112 section 2.2).
    let mut client = sidecar.proxy.connect();
    for _ in 0..3 {
        client.send("POST /a HTTP/1.1\r\nhost: echo\r\ncontent-length: 2\r\n\r\nab\r\n");
        assert_eq!(client.response().expect(200).text(), "/a");
    }
    drop(client);

    let head = "GET / HTTP/1.1\r\nhost: echo\r\n\r\n";
    refused(
        driver,
        &[
            (format!("\r\n\r\n{head}"), 400, "http1.leading_empty_lines"),
            (format!("\r\n\r\n\r\n{head}"), 400, "http1.leading_empty_lines"),
            (format!("\r\n\n{head}"), 400, "http1.leading_empty_lines"),
            (format!("\r\n {head}"), 400, "http1.bad_request_line"),
            (format!(" \r\n{head}"), 400, "http1.bad_request_line"),
        ],
    );
}

fn item_27_blanks_in_the_request_line_are_refused(driver: Driver) {
    let lines = [
        "GET  / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET \t/ HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET /\tHTTP/1.1",
        "GET / \tHTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET / HTTP/1.1\t",
        " GET / HTTP/1.1",
        "\tGET / HTTP/1.1",
        "GET / x HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET / HTTP/1.1 HTTP/1.1",
        "GET  HTTP/1.1",
    ];
    let mut requests: Vec<_> =
        lines.map(|line| (format!("{line}\r\nhost: echo\r\n\r\n").into_bytes(), 400, "http1.bad_request_line")).into();
    for (line, code) in [
        (&b"GET\x0b/ HTTP/1.1"[..], "http1.bad_method"),
        (b"GET\xa0/ HTTP/1.1", "http1.bad_method"),
        (b"GET /\x0bHTTP/1.1", "http1.target_not_ascii"),
        (b"GET /\xa0HTTP/1.1", "http1.target_not_ascii"),
        (b"GE(T / HTTP/1.1", "http1.bad_method"),
        (b"\"GET\" / HTTP/1.1", "http1.bad_method"),
        (b"GET /", "http1.no_version"),
    ] {
        requests.push(([line, b"\r\nhost: echo\r\n\r\n"].concat(), 400, code));
    }
    refused(driver, &requests);
}

fn item_28_other_versions_are_505(driver: Driver) {
    let request = |version: &str| format!("GET / {version}\r\nhost: echo\r\n\r\n");
    let unsupported = ["HTTP/9.9", "HTTP/2.0", "HTTP/1.2", "HTTP/0.9", "HTTP/3.0", "HTTP/1.9"];
    let mut requests: Vec<_> = unsupported.map(|version| (request(version), 505, "http1.version_unsupported")).into();
    for version in [
        "http/1.1",
        "HTTP/1.10",
        "HTTP/11.1",
        "HTTP/1",
        "HTTP/1.",
        "HTTP/.1",
        "HTTP/1,1",
        "HTTP-1.1",
        "HTTPS/1.1",
        "HTTP/+1.1",
    ] {
        requests.push((request(version), 400, "http1.bad_version"));
    }
    // It begins like the preface of HTTP/2, and is none.
    requests.push(("PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n".into(), 505, "http1.version_unsupported"));
    refused(driver, &requests);
    // A TLS client at the application's side, where none is expected, hears of it in its own words: handshake_failure.
    let sidecar = Sidecar::new(driver);
    let mut client = Client::connect(sidecar.outbound());
    client.send(b"\x16\x03\x01\x02");
    assert_eq!(client.bytes(7), [21, 3, 3, 0, 2, 2, 40]);
    client.expect_end();
}

fn item_29_a_request_without_host_is_refused(driver: Driver) {
    refused_as(
        driver,
        400,
        "http1.no_host",
        &[
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nx: y\r\n\r\n",
            "GET / HTTP/1.1\r\nhost:\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: \t \r\n\r\n",
            "GET http://echo/ HTTP/1.1\r\n\r\n",
            "GET http://echo/ HTTP/1.1\r\nhost:\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\r\nx-host: echo\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\n\r\n",
        ],
    );
}

fn item_30_two_hosts_are_refused(driver: Driver) {
    refused_as(
        driver,
        400,
        "http1.repeated_host",
        &[
            "GET / HTTP/1.1\r\nhost: echo\r\nhost: ping\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: echo\r\nhost: echo\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: echo\r\nx: y\r\nHOST: ping\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: echo\r\nhost:\r\n\r\n",
            "GET / HTTP/1.1\r\nhost:\r\nhost: echo\r\n\r\n",
            "GET http://echo/ HTTP/1.1\r\nhost: echo\r\nhost: ping\r\n\r\n",
            "GET / HTTP/1.0\r\nhost: echo\r\nhost: echo\r\n\r\n",
        ],
    );
}

fn item_31_a_host_that_is_no_host_is_refused(driver: Driver) {
    let hosts: [&[u8]; 33] = [
        b"echo,ping",
        b"echo, ping",
        b"u@echo",
        b"u:p@echo",
        b"echo/b",
        b"echo/",
        b"/echo",
        b"echo?b",
        b"echo#b",
        b"echo\\b",
        b"echo b",
        b"echo\tb",
        b"echo:",
        b"echo:0",
        b"echo:65536",
        b"echo:+80",
        b"echo:-1",
        b"echo:80:80",
        b"echo:8 0",
        b"echo:http",
        b":80",
        b"::1",
        b"[::1",
        b"[::1]x",
        b"[::1]]",
        b"[echo]",
        b"[fe80::1%25eth0]",
        b"%65cho",
        b"\"echo\"",
        b"ech\xf6",
        b"echo\x85",
        b"http://echo",
        b"echo:00000000000080",
    ];
    let requests = hosts.map(|host| [b"GET / HTTP/1.1\r\nhost: ", host, b"\r\n\r\n"].concat());
    let absolute = hosts.map(|host| [b"GET http://echo/ HTTP/1.1\r\nhost: ", host, b"\r\n\r\n"].concat());
    refused_as(driver, 400, "http1.bad_authority", &[requests, absolute].concat());
}
