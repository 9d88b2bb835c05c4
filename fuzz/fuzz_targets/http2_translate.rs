//! Heads of HTTP/2 to text, through the strict parser and our writer, and back: the same message, and never a line or a
//! message more than came.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshring_core::http::{
    BodyFraming, Bounds, ConnectionOption, Fields, Method, NoEdits, RequestOut, ResponseOut,
    http2::{
        Pseudo, Upgraded, request_from_text, request_to_text, response_from_text, response_to_text, trailers_to_text,
    },
    request, request_head, response, response_head,
};
use meshring_fuzz::{bodies::decode, judge::Head};

type Line<'a> = (&'a [u8], &'a [u8]);

fuzz_target!(|data: &[u8]| {
    // Which pseudo fields are there, then everything else; no text has the separator in it.
    let [flags, rest @ ..] = data else { return };
    let parts: Vec<&[u8]> = rest.split(|&b| b == 0xff).collect();
    if flags & 0x80 == 0 {
        requested(*flags, &parts);
    } else {
        responded(*flags, &parts);
    }
});

fn lines<'a>(parts: &[&'a [u8]]) -> Vec<Line<'a>> {
    parts.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
}

/// One head, of no more than so many lines, by counting alone.
fn expect_one_head(text: &[u8], lines_max: usize) {
    let ends = text.windows(2).filter(|end| end == b"\r\n").count();
    assert!(ends <= lines_max, "{ends} lines");
    assert_eq!(text.iter().filter(|&&b| matches!(b, b'\r' | b'\n')).count(), 2 * ends, "half an end of a line");
    assert!(!text.contains(&0) && text.ends_with(b"\r\n\r\n"));
    assert_eq!(text.windows(4).filter(|end| end == b"\r\n\r\n").count(), 1);
}

/// What is to be left of the fields: without those that are derived anew, all crumbs in one cookie.
fn kept<'a>(lines: impl Iterator<Item = Line<'a>>, left_out: &[&str]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut out: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut cookie = None;
    for (name, value) in lines {
        if left_out.iter().any(|out| out.as_bytes().eq_ignore_ascii_case(name)) {
            continue;
        }
        if name == b"cookie" {
            let at = *cookie.get_or_insert(out.len());
            if at < out.len() {
                let joined = &mut out[at].1;
                if !joined.is_empty() && !value.is_empty() {
                    joined.extend_from_slice(b"; ");
                }
                joined.extend_from_slice(value);
                continue;
            }
        }
        out.push((name.to_vec(), value.to_vec()));
    }
    out
}

fn requested(flags: u8, parts: &[&[u8]]) {
    let [method, scheme, authority, path, protocol, rest @ ..] = parts else { return };
    let present = |bit: u8, part: &&'_ [u8]| flags & bit != 0 && !part.is_empty();
    let pseudo = Pseudo {
        method,
        scheme: Some(*scheme).filter(|part| present(1, part)),
        authority: Some(*authority).filter(|part| present(2, part)),
        path: Some(*path).filter(|part| present(4, part)),
        protocol: Some(*protocol).filter(|part| present(8, part)),
    };
    let (lines, ended) = (lines(rest), flags & 16 != 0);
    let mut text = b"before".to_vec();
    let result = request_to_text(&mut text, &pseudo, lines.iter().copied(), ended, [flags; 16]);
    let text = text.strip_prefix(b"before").expect("what was there");
    if let Err(refused) = result {
        assert!(text.is_empty() && !refused.code().is_empty() && !refused.to_string().is_empty());
        return;
    }
    expect_one_head(text, lines.len() + 6);
    let mut fields = Fields::new();
    let Ok(head) = request::parse(text, &mut fields, Bounds::NEXT_HOP) else { return };
    let head = head.expect("a whole head");
    assert_eq!(head.len, text.len());
    let judged = Head::request(text).expect("a request that core accepts");
    assert_eq!(judged.len, text.len());
    let host = lines.iter().find(|(name, _)| *name == b"host").map(|(_, value)| *value);
    let authority = pseudo.authority.or(host).expect("an authority");
    assert_eq!(judged.values("host"), [authority]);
    assert_eq!(head.authority_full.of(text), authority);
    assert!(!ended || !head.framing.has_body());
    assert_eq!(head.https, pseudo.scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"https")));
    assert_eq!(head.upgrade.map(|upgrade| upgrade.of(text)), pseudo.protocol);

    let mut out = Vec::new();
    let connection = if head.upgrade.is_some() { ConnectionOption::Upgrade } else { ConnectionOption::Implied };
    let how = RequestOut { connection, ..RequestOut::new(&head, &NoEdits) };
    request_head(&mut out, text, &head, &fields, &how);
    expect_one_head(&out, lines.len() + 6);
    let again = request_from_text(&out).expect("one of ours");
    assert_eq!((again.len, again.method, again.path), (out.len(), pseudo.method, pseudo.path));
    assert_eq!((again.authority, again.protocol, again.framing), (authority, pseudo.protocol, head.framing));
    let mut derived = vec!["host", "content-length", "te", "http2-settings", "sec-websocket-key"];
    if !head.expect_continue {
        derived.push("expect");
    }
    assert_eq!(kept(again.fields(), &derived), kept(lines.iter().copied(), &derived));
    assert_eq!(again.fields().any(|(name, _)| name == b"te"), lines.iter().any(|(name, _)| *name == b"te"));
    // And once more: what came back is what went.
    let again_pseudo = Pseudo {
        method: again.method,
        scheme: pseudo.scheme,
        authority: Some(again.authority),
        path: again.path,
        protocol: again.protocol,
    };
    let fields: Vec<_> = again.fields().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
    let fields = fields.iter().map(|(name, value)| (&name[..], *value));
    request_to_text(&mut Vec::new(), &again_pseudo, fields, ended, [flags; 16]).expect("acceptable at the next hop");
}

fn responded(flags: u8, parts: &[&[u8]]) {
    let [status, rest @ ..] = parts else { return };
    let status = status.iter().take(4).fold(0_u16, |status, b| status.wrapping_mul(10).wrapping_add(u16::from(b & 15)));
    let method = [Method::Get, Method::Head, Method::Connect, Method::Post][usize::from(flags & 3)];
    let accept = Some(&b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="[..]);
    let tunnel = (method == Method::Get && flags & 4 != 0).then_some(Upgraded { protocol: b"websocket", accept });
    let (lines, ended) = (lines(rest), flags & 16 != 0);
    let mut text = Vec::new();
    let framing = match response_to_text(&mut text, status, lines.iter().copied(), ended, method, tunnel) {
        Err(malformed) => {
            assert!(text.is_empty() && !malformed.code().is_empty());
            return;
        }
        Ok(framing) => framing,
    };
    expect_one_head(&text, lines.len() + 5);
    trailers(&lines);
    let mut fields = Fields::new();
    let Ok(head) = response::parse(&text, &mut fields, method, Bounds::NEXT_HOP) else { return };
    let head = head.expect("a whole head");
    let is_upgraded = tunnel.is_some() && (200..300).contains(&status);
    assert_eq!((head.len, head.framing), (text.len(), framing));
    assert_eq!((head.status, head.is_switching()), (if is_upgraded { 101 } else { status }, is_upgraded));
    assert_eq!(Head::response(&text).expect("a response that core accepts").len, text.len());
    assert!(framing != BodyFraming::UntilClose);

    let mut out = Vec::new();
    let connection = if is_upgraded { ConnectionOption::Upgrade } else { ConnectionOption::Implied };
    let how = ResponseOut { connection, ..ResponseOut::new(&head, &NoEdits) };
    response_head(&mut out, &text, &head, &fields, &how);
    expect_one_head(&out, lines.len() + 5);
    let again = response_from_text(&out, method).expect("one of ours");
    assert_eq!((again.len, again.framing), (out.len(), framing));
    assert_eq!(again.status, if is_upgraded { 200 } else { status });
    assert_eq!(again.is_tunnel, is_upgraded || head.is_tunnel(method));
    let mut derived = vec!["content-length", "http2-settings"];
    if is_upgraded {
        derived.push("sec-websocket-accept");
    }
    let written = again.fields().filter(|(name, _)| !derived.iter().any(|out| out.as_bytes() == *name));
    assert!(written.eq(lines.iter().copied().filter(|(name, _)| !derived.iter().any(|out| out.as_bytes() == *name))));
}

/// The same fields as trailers: what is written is what a decoder of chunks finds, unless that is too much for it.
fn trailers(lines: &[Line<'_>]) {
    let mut text = b"0\r\n".to_vec();
    trailers_to_text(&mut text, lines.iter().copied()).expect("fields that were acceptable in a head");
    text.extend_from_slice(b"\r\n");
    let written = text.windows(2).filter(|end| end == b"\r\n").count() - 2;
    if let Ok(decoded) = decode(BodyFraming::Chunked, &text, &[text.len()]) {
        assert!(decoded.whole && decoded.len == text.len());
        assert_eq!(decoded.trailers.len(), written);
    }
}
