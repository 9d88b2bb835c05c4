use super::super::kind::{Class, classify};
use super::super::{FieldKind, KindSet};
use super::{FIRST_HOP, parsed, with};

#[test]
fn names_are_classified_in_any_case_and_only_whole() {
    for (name, kind) in [
        ("Host", FieldKind::Host),
        ("hOST", FieldKind::Host),
        ("TE", FieldKind::Te),
        ("Content-Length", FieldKind::ContentLength),
        ("TRANSFER-ENCODING", FieldKind::TransferEncoding),
        ("x-forwarded-for", FieldKind::XForwardedFor),
        ("X-Forwarded-Client-Cert", FieldKind::XForwardedClientCert),
        ("HTTP2-Settings", FieldKind::Http2Settings),
        ("keep-alive", FieldKind::KeepAlive),
        ("Set-Cookie", FieldKind::SetCookie),
        ("X-Forwarded-Prefix", FieldKind::XForwardedOther),
        ("x-forwarded-", FieldKind::XForwardedOther),
        ("X-Envoy-Attempt-Count", FieldKind::XEnvoy),
        ("x-envoy-", FieldKind::XEnvoy),
        ("x-forwarded", FieldKind::Other),
        ("x-envoy", FieldKind::Other),
        ("x-envoys-a", FieldKind::Other),
        ("y-envoy-a", FieldKind::Other),
        ("x", FieldKind::Other),
        ("hos", FieldKind::Other),
        ("hosts", FieldKind::Other),
        ("accept", FieldKind::Other),
        ("h~st", FieldKind::Other),
    ] {
        assert_eq!(classify(name.as_bytes()), Class::Kind(kind), "{name}");
    }
}

#[test]
fn no_token_character_passes_for_another_in_a_known_name() {
    for b in (0..=255_u8).filter(|&b| super::super::kind::TOKEN[b as usize]) {
        let name = [b'h', b'o', b's', b];
        assert_eq!(classify(&name) == Class::Kind(FieldKind::Host), b == b't' || b == b'T', "{b:#x}");
        let name = [b"content", &[b][..], b"type"].concat();
        assert_eq!(classify(&name) == Class::Kind(FieldKind::ContentType), b == b'-', "{b:#x}");
        let name = [b"http", &[b][..], b"-settings"].concat();
        assert_eq!(classify(&name) == Class::Kind(FieldKind::Http2Settings), b == b'2', "{b:#x}");
    }
}

#[test]
fn a_name_with_one_other_byte_is_another_name() {
    let names = [
        "te",
        "via",
        "host",
        "date",
        "cookie",
        "server",
        "expect",
        "upgrade",
        "trailer",
        "forwarded",
        "connection",
        "user-agent",
        "set-cookie",
        "keep-alive",
        "traceparent",
        "content-type",
        "x-request-id",
        "max-forwards",
        "authorization",
        "content-length",
        "http2-settings",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "proxy-connection",
        "transfer-encoding",
        "x-forwarded-proto",
        "x-forwarded-client-cert",
    ];
    let kinds: Vec<Class> = names.iter().map(|name| classify(name.as_bytes())).collect();
    for (i, (name, kind)) in names.iter().zip(&kinds).enumerate() {
        assert!(*kind != Class::Kind(FieldKind::Other) && !kinds[..i].contains(kind), "{name}");
        assert_eq!(classify(name.to_ascii_uppercase().as_bytes()), *kind, "{name}");
        for at in 0..name.len() {
            for other in [b'q', b'7', b'~', b'^'] {
                let mut changed = name.as_bytes().to_vec();
                changed[at] = other;
                assert!(changed == name.as_bytes() || classify(&changed) != *kind, "{name} with another byte at {at}");
                let mut longer = name.as_bytes().to_vec();
                longer.insert(at, other);
                assert_ne!(classify(&longer), *kind, "{name} with one more byte at {at}");
            }
            let shorter = [&name[..at], &name[at + 1..]].concat();
            assert_ne!(classify(shorter.as_bytes()), *kind, "{name} without its byte at {at}");
        }
    }
}

#[test]
fn a_kind_set_holds_kinds_and_never_other() {
    let set = KindSet::of(&[FieldKind::Host, FieldKind::Traceparent, FieldKind::Other]);
    assert!(set.union(KindSet::of(&[FieldKind::Te])).contains(FieldKind::Te));
    assert!(set.contains(FieldKind::Host) && set.contains(FieldKind::Traceparent));
    assert!(!set.contains(FieldKind::Other) && !set.contains(FieldKind::Te));
    assert!(KindSet::EMPTY.is_empty());
}

#[test]
fn fields_are_found_by_kind_and_by_name() {
    let bytes = with("X-A:  1 \r\nCookie: c\r\nx-a:2\r\nx-A:\r\n");
    let (_, fields) = parsed(&bytes);
    assert_eq!(fields.len(), 5);
    assert_eq!(fields.first_value(&bytes, FieldKind::Cookie), Some(&b"c"[..]));
    assert_eq!(fields.first_value(&bytes, FieldKind::Date), None);
    assert!(fields.values_named(&bytes, b"x-a").eq([&b"1"[..], b"2", b""]));
    let mut scratch = b"old".to_vec();
    assert_eq!(fields.joined(&bytes, b"x-a", &mut scratch), Some(&b"1,2,"[..]));
    assert_eq!(fields.joined(&bytes, b"cookie", &mut scratch), Some(&b"c"[..]));
    assert_eq!(fields.joined(&bytes, b"x-b", &mut scratch), None);
}

#[test]
fn the_table_is_clean_when_it_is_used_again() {
    let mut fields = super::Fields::new();
    let first = with("Connection: x\r\nX: 1\r\nCookie: c\r\n");
    super::request::parse(&first, &mut fields, FIRST_HOP).expect("acceptable").expect("whole");
    assert!(fields.is_hop_by_hop(1) && fields.is_hop_by_hop(2));
    let second = b"GET / HTTP/1.1\r\nA: b\r\nHost: a\r\nX: 1\r\n\r\n";
    super::request::parse(second, &mut fields, FIRST_HOP).expect("acceptable").expect("whole");
    assert_eq!(fields.len(), 3);
    assert!(!fields.has(FieldKind::Cookie) && !fields.has(FieldKind::Connection));
    assert!(!(0..3).any(|i| fields.is_hop_by_hop(i)));
}
