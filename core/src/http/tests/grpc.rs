use super::super::grpc::{grpc_timeout_ms, is_grpc, percent_encode_message, status_of, write_grpc_timeout};

#[test]
fn content_types_of_grpc_are_told_from_others() {
    for content_type in
        ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8", "Application/gRPC ; a=b"]
    {
        assert!(is_grpc(content_type.as_bytes()), "{content_type}");
    }
    for content_type in
        ["application/grpc-web", "application/grpc-web+proto", "application/grpcx", "application/grp", ""]
    {
        assert!(!is_grpc(content_type.as_bytes()), "{content_type}");
    }
}

#[test]
fn timeouts_of_grpc_are_one_to_eight_digits_and_a_unit() {
    for (value, ms) in [
        ("0m", 0),
        ("1H", 3_600_000),
        ("2M", 120_000),
        ("3S", 3_000),
        ("00000004m", 4),
        ("1u", 1),
        ("1001u", 2),
        ("1n", 1),
        ("1000000n", 1),
        ("0n", 0),
        ("99999999H", 359_999_996_400_000),
    ] {
        assert_eq!(grpc_timeout_ms(value.as_bytes()), Some(ms), "{value}");
    }
    for value in ["", "m", "1", "123456789m", "-1m", "+1m", "1.5S", "1s", "1h", " 1m", "1m ", "1 m"] {
        assert_eq!(grpc_timeout_ms(value.as_bytes()), None, "{value:?}");
    }
}

#[test]
fn a_timeout_that_is_written_is_read_and_is_never_shorter() {
    for (ms, value) in [
        (0, "0m"),
        (99_999_999, "99999999m"),
        (100_000_000, "100000S"),
        (100_000_001, "100001S"),
        (99_999_999_001, "1666667M"),
        (u64::MAX, "99999999H"),
    ] {
        let mut out = Vec::new();
        write_grpc_timeout(&mut out, ms);
        assert_eq!(String::from_utf8_lossy(&out), value);
        let read = grpc_timeout_ms(&out).expect("well formed");
        assert!(read >= ms || ms == u64::MAX);
    }
}

#[test]
fn item_83_statuses_of_http_have_a_status_of_grpc() {
    for (http, grpc) in [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (502, 14), (503, 14), (504, 14)] {
        assert_eq!(status_of(http), grpc, "{http}");
    }
    assert!([200, 302, 405, 413, 431, 500, 505].into_iter().all(|http| status_of(http) == 2));
}

#[test]
fn a_message_is_percent_encoded_into_a_field_value() {
    for (text, encoded) in [
        ("", ""),
        ("no healthy upstream", "no healthy upstream"),
        ("100%", "100%25"),
        ("a\r\nb: c", "a%0D%0Ab: c"),
        (" a ", "%20a%20"),
        ("\u{e9}\x7f", "%C3%A9%7F"),
        ("~ ~", "~ ~"),
    ] {
        let mut out = Vec::new();
        percent_encode_message(&mut out, text);
        assert_eq!(String::from_utf8_lossy(&out), encoded);
    }
}
