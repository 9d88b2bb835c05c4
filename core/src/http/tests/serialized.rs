use super::super::status::{Local, framing_for, reason, write_error_response, write_response};
use super::super::{
    BodyFraming, ConnectionOption, FieldKind, HeaderEdits, KindSet, Method, NoEdits, RequestOut, ResponseOut, Version,
    request_head, response_head, serialize,
};
use super::{parsed, responded, responded_to, with};

fn forwarded(bytes: &[u8]) -> String {
    forwarded_with(bytes, |_| {})
}

fn forwarded_with(bytes: &[u8], change: impl FnOnce(&mut RequestOut<'_, NoEdits>)) -> String {
    let (head, fields) = parsed(bytes);
    let mut how = RequestOut::new(&head, &NoEdits);
    change(&mut how);
    let mut out = Vec::new();
    request_head(&mut out, bytes, &head, &fields, &how);
    String::from_utf8(out).expect("ASCII")
}

fn relayed(method: Method, bytes: &[u8], change: impl FnOnce(&mut ResponseOut<'_, NoEdits>)) -> String {
    let (head, fields) = responded_to(method, bytes);
    let mut how = ResponseOut::new(&head, &NoEdits);
    change(&mut how);
    let mut out = Vec::new();
    response_head(&mut out, bytes, &head, &fields, &how);
    String::from_utf8(out).expect("ASCII")
}

#[test]
fn a_plain_request_is_forwarded_as_it_came() {
    let bytes = "GET /a?b HTTP/1.1\r\nHost: A\r\nX-Odd_Name: 1\r\naccept: */*\r\n\r\n";
    assert_eq!(forwarded(bytes.as_bytes()), bytes);
}

#[test]
fn odd_spacing_is_not_passed_on() {
    let bytes = b"\r\nGET / HTTP/1.1\r\nhost:a\r\nx:   1 \t\r\ny:\t2\r\nz:\r\nlast: 3 \r\n\r\n";
    assert_eq!(forwarded(bytes), "GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\ny: 2\r\nz: \r\nlast: 3\r\n\r\n");
}

#[test]
fn each_odd_spelling_alone_is_written_anew() {
    for line in ["x:1", "x:\t1", "x:  1", "x: \t1", "x: 1 ", "x: 1\t", "x:1 ", "x: 1  "] {
        for lines in [format!("{line}\r\n"), format!("{line}\r\ny: 2\r\n"), format!("y: 2\r\n{line}\r\n")] {
            let expected = String::from_utf8(with(&lines)).expect("ASCII").replace(line, "x: 1");
            assert_eq!(forwarded(&with(&lines)), expected, "{line:?}");
            let bytes = format!("HTTP/1.1 204 No Content\r\n{lines}\r\n");
            assert_eq!(relayed(Method::Get, bytes.as_bytes(), |_| {}), bytes.replace(line, "x: 1"), "{line:?}");
        }
    }
}

#[test]
fn item_42_hop_by_hop_fields_are_left_out() {
    let bytes = with(
        "Connection: X-One, keep-alive\r\nX-One: 1\r\nKeep-Alive: timeout=5\r\nX-Two: 2\r\nconnection: x-three\r\n\
         Proxy-Connection: close\r\nx-one: again\r\nX-Three: 3\r\nUpgrade: websocket\r\n",
    );
    assert_eq!(forwarded(&bytes), "POST / HTTP/1.1\r\nHost: a\r\nX-Two: 2\r\n\r\n");
}

#[test]
fn item_44_only_te_trailers_survives() {
    let bytes = with("TE: gzip;q=1, trailers\r\nConnection: TE\r\n");
    assert_eq!(forwarded(&bytes), "POST / HTTP/1.1\r\nHost: a\r\nte: trailers\r\nconnection: te\r\n\r\n");
    assert_eq!(forwarded(&with("TE: gzip\r\n")), "POST / HTTP/1.1\r\nHost: a\r\n\r\n");
}

#[test]
fn item_46_forwarded_for_is_joined() {
    let bytes = with("X-Forwarded-For: 1.1.1.1\r\nA: b\r\nx-forwarded-for: 2.2.2.2\r\n");
    let (head, fields) = parsed(&bytes);
    let mut extra = Vec::new();
    serialize::joined_field(&mut extra, &bytes, &fields, FieldKind::XForwardedFor, b"x-forwarded-for", b"3.3.3.3");
    let mut how = RequestOut::new(&head, &NoEdits);
    how.drop = KindSet::of(&[FieldKind::XForwardedFor]);
    how.extra = &extra;
    let mut out = Vec::new();
    request_head(&mut out, &bytes, &head, &fields, &how);
    let expected = "POST / HTTP/1.1\r\nHost: a\r\nA: b\r\nx-forwarded-for: 1.1.1.1, 2.2.2.2, 3.3.3.3\r\n\r\n";
    assert_eq!(String::from_utf8_lossy(&out), expected);
}

#[test]
fn item_49_our_version_is_sent_and_item_32_absolute_becomes_origin_form() {
    assert_eq!(forwarded(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n"), "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(
        forwarded(b"GET http://b:8/x?y HTTP/1.1\r\nA: 1\r\nHost: a\r\n\r\n"),
        "GET /x?y HTTP/1.1\r\nhost: b:8\r\nA: 1\r\n\r\n"
    );
    assert_eq!(forwarded(b"GET http://b?y HTTP/1.0\r\n\r\n"), "GET /?y HTTP/1.1\r\nhost: b\r\n\r\n");
    assert_eq!(forwarded(b"OPTIONS http://b HTTP/1.1\r\nHost: b\r\n\r\n"), "OPTIONS * HTTP/1.1\r\nhost: b\r\n\r\n");
    assert_eq!(forwarded(b"OPTIONS * HTTP/1.1\r\nHost: b\r\n\r\n"), "OPTIONS * HTTP/1.1\r\nHost: b\r\n\r\n");
    assert_eq!(
        forwarded(b"CONNECT b:443 HTTP/1.1\r\nHost: x\r\n\r\n"),
        "CONNECT b:443 HTTP/1.1\r\nhost: b:443\r\n\r\n"
    );
}

#[test]
fn framing_is_announced_anew() {
    let length = with("Content-Length: 0042\r\n");
    assert_eq!(forwarded(&length), "POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 42\r\n\r\n");
    let chunked = with("Transfer-Encoding: Chunked\r\n");
    assert_eq!(forwarded(&chunked), "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    let changed = forwarded_with(&length, |how| how.framing = BodyFraming::Chunked);
    assert_eq!(changed, "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n");
}

#[test]
fn path_and_authority_are_rewritten_and_the_query_stays() {
    let bytes = b"GET /old/x?q=/old HTTP/1.1\r\nA: 1\r\nHost: a\r\nB: 2\r\n\r\n";
    let out = forwarded_with(bytes, |how| {
        how.path = Some([b"/new", b"/x"]);
        how.authority = Some(b"b:80");
        how.connection = ConnectionOption::Close;
        how.extra = b"via: 1.1 x\r\n";
    });
    let expected =
        "GET /new/x?q=/old HTTP/1.1\r\nhost: b:80\r\nA: 1\r\nB: 2\r\nconnection: close\r\nvia: 1.1 x\r\n\r\n";
    assert_eq!(out, expected);
    let out = forwarded_with(bytes, |how| how.path = Some([b"", b""]));
    assert!(out.starts_with("GET /?q=/old HTTP/1.1\r\n"), "{out}");
    let out = forwarded_with(bytes, |how| how.authority = Some(b"c"));
    assert_eq!(out, "GET /old/x?q=/old HTTP/1.1\r\nhost: c\r\nA: 1\r\nB: 2\r\n\r\n");
}

#[test]
fn expect_goes_on_only_where_it_means_something() {
    let bytes = with("Expect: 100-continue\r\nContent-Length: 1\r\n");
    assert!(forwarded(&bytes).contains("Expect: 100-continue\r\n"));
    let dropped = forwarded_with(&bytes, |how| how.drop = KindSet::of(&[FieldKind::Expect]));
    assert!(!dropped.contains("Expect"));
    assert!(!forwarded(&with("Expect: 100-continue\r\n")).contains("Expect"));
}

#[test]
fn item_56_an_upgrade_is_relayed_only_when_accepted() {
    let bytes =
        with("Connection: upgrade\r\nUpgrade: websocket\r\nHTTP2-Settings: x\r\nConnection: http2-settings\r\n");
    assert_eq!(forwarded(&bytes), "POST / HTTP/1.1\r\nHost: a\r\n\r\n");
    let out = forwarded_with(&bytes, |how| how.connection = ConnectionOption::Upgrade);
    assert_eq!(out, "POST / HTTP/1.1\r\nHost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
}

/// Removes `x-gone`, sets `x-set`, adds `x-add`.
struct Edits;

impl HeaderEdits for Edits {
    fn is_empty(&self) -> bool {
        false
    }

    fn removes(&self, name: &[u8]) -> bool {
        name.eq_ignore_ascii_case(b"x-gone") || name.eq_ignore_ascii_case(b"x-set")
    }

    fn append(&self, out: &mut Vec<u8>) {
        serialize::field(out, b"x-set", b"new");
        serialize::field(out, b"x-add", b"more");
    }
}

#[test]
fn edits_remove_then_set_then_add() {
    let bytes = with("X-Gone: 1\r\nX-Set: old\r\nx-add: first\r\nx-gone: 2\r\nx-set: older\r\n");
    let (head, fields) = parsed(&bytes);
    let mut out = Vec::new();
    request_head(&mut out, &bytes, &head, &fields, &RequestOut::new(&head, &Edits));
    let expected = "POST / HTTP/1.1\r\nHost: a\r\nx-add: first\r\nx-set: new\r\nx-add: more\r\n\r\n";
    assert_eq!(String::from_utf8_lossy(&out), expected);

    let bytes = b"HTTP/1.1 200 OK\r\nx-set: old\r\nContent-Length: 1\r\nx-gone: 1\r\n\r\n";
    let (head, fields) = responded(bytes);
    out.clear();
    response_head(&mut out, bytes, &head, &fields, &ResponseOut::new(&head, &Some(Edits)));
    let expected = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\nx-set: new\r\nx-add: more\r\n\r\n";
    assert_eq!(String::from_utf8_lossy(&out), expected);
}

#[test]
fn a_plain_response_keeps_its_reason_and_the_case_of_its_names() {
    let bytes = b"HTTP/1.1 299 Fine\r\nServer: x\r\nConnection: close\r\nSet-Cookie: a\r\nset-cookie: b\r\nContent-Length: 1\r\n\r\n";
    let out = relayed(Method::Get, bytes, |how| how.date = Some(b"Thu, 01 Jan 1970 00:00:00 GMT"));
    let expected = "HTTP/1.1 299 Fine\r\nServer: x\r\nSet-Cookie: a\r\nset-cookie: b\r\n\
                    date: Thu, 01 Jan 1970 00:00:00 GMT\r\ncontent-length: 1\r\n\r\n";
    assert_eq!(out, expected);
}

#[test]
fn item_48_a_date_that_is_there_stays() {
    let bytes = b"HTTP/1.0 200\r\nDate: then\r\nContent-Length: 1\r\n\r\n";
    let out = relayed(Method::Get, bytes, |how| how.date = Some(b"now"));
    assert_eq!(out, "HTTP/1.1 200 OK\r\nDate: then\r\ncontent-length: 1\r\n\r\n");
}

#[test]
fn item_48_a_date_is_added_where_there_is_none_or_none_is_relayed() {
    let with_date = |lines: &str| {
        let bytes = format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 1\r\n\r\n");
        relayed(Method::Get, bytes.as_bytes(), |how| how.date = Some(b"now"))
    };
    assert_eq!(with_date(""), "HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 1\r\n\r\n");
    assert_eq!(with_date("Connection: date\r\nDate: then\r\n"), with_date(""));
}

#[test]
fn items_64_and_66_our_own_errors_are_whole_and_say_that_the_connection_closes() {
    for status in [408, 413, 502, 503, 504] {
        let mut out = Vec::new();
        write_error_response(&mut out, status, b"why\n", true, None);
        let (head, _) = responded(&out);
        assert_eq!((head.status, head.framing, head.keep_alive), (status, BodyFraming::Length(4), false));
        assert_ne!(head.reason.of(&out), b"Unknown");
        assert_eq!(&out[head.len..], b"why\n");
    }
}

#[test]
fn item_57_the_length_of_a_response_to_head_is_relayed() {
    let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n";
    assert_eq!(relayed(Method::Head, bytes, |_| {}), "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n");
    let bytes = b"HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n";
    assert_eq!(relayed(Method::Get, bytes, |_| {}), "HTTP/1.1 204 No Content\r\n\r\n");
}

#[test]
fn item_63_an_http10_client_never_gets_chunked() {
    assert_eq!(framing_for(Version::Http10, BodyFraming::Chunked), BodyFraming::UntilClose);
    assert_eq!(framing_for(Version::Http10, BodyFraming::Length(1)), BodyFraming::Length(1));
    assert_eq!(framing_for(Version::Http11, BodyFraming::UntilClose), BodyFraming::Chunked);
    let bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let out = relayed(Method::Get, bytes, |how| {
        how.framing = framing_for(Version::Http10, how.framing);
        how.connection = ConnectionOption::KeepAlive;
    });
    assert_eq!(out, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
}

#[test]
fn a_switch_of_protocols_is_relayed_with_its_protocol() {
    let bytes = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX: 1\r\n\r\n";
    let out = relayed(Method::Get, bytes, |how| how.connection = ConnectionOption::Upgrade);
    let expected = "HTTP/1.1 101 Switching Protocols\r\nX: 1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    assert_eq!(out, expected);
}

#[test]
fn responses_of_our_own_are_whole() {
    let mut out = Vec::new();
    write_error_response(&mut out, 503, b"no endpoint\n", true, Some(b"now"));
    let expected = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 12\r\ncontent-type: text/plain\r\ndate: now\r\n\
                    connection: close\r\n\r\nno endpoint\n";
    assert_eq!(String::from_utf8_lossy(&out), expected);
    assert_eq!(responded(&out).0.framing, BodyFraming::Length(12));

    out.clear();
    let how = Local { head: true, extra: b"location: /x\r\n", ..Local::default() };
    write_response(&mut out, 301, "", b"moved", &how);
    let expected = "HTTP/1.1 301 Moved Permanently\r\ncontent-length: 5\r\nlocation: /x\r\n\r\n";
    assert_eq!(String::from_utf8_lossy(&out), expected);

    out.clear();
    write_response(&mut out, 204, "text/plain", b"ignored", &Local::default());
    assert_eq!(out, b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!((reason(418), reason(431)), ("Unknown", "Request Header Fields Too Large"));
}
