//! Request heads: no panic, the same verdict however the bytes arrive, and what is written is acceptable and stable.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshring_core::http::{
    Bounds, Fields, HeadScanner, NoEdits, Refusal, RequestHead, RequestOut, request, request_head,
};

fuzz_target!(|data: &[u8]| {
    let mut fields = Fields::new();
    let whole = request::parse(data, &mut fields, Bounds::FIRST_HOP);
    if let Err(refusal) = &whole {
        assert!(matches!(refusal.status(), 400 | 413 | 414 | 417 | 431 | 501 | 505), "{refusal:?}");
        assert!(!refusal.code().is_empty() && !refusal.to_string().is_empty());
    }
    trickled(data, &whole);
    let Ok(Some(head)) = request::parse(data, &mut fields, Bounds::FIRST_HOP) else { return };
    assert!(head.len <= data.len());
    for field in fields.iter() {
        assert!(!field.name.of(data).is_empty());
        assert!(!field.value.of(data).iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
    }
    let written = forward(data, &mut fields, Bounds::FIRST_HOP);
    // What is written has a few bytes of ours, for which the next hop has room.
    let again = forward(&written, &mut fields, Bounds::NEXT_HOP);
    assert_eq!(String::from_utf8_lossy(&written), String::from_utf8_lossy(&again), "not stable");
});

fn forward(bytes: &[u8], fields: &mut Fields, bounds: Bounds) -> Vec<u8> {
    let head = request::parse(bytes, fields, bounds).expect("what we write is acceptable").expect("and whole");
    let mut out = Vec::new();
    request_head(&mut out, bytes, &head, fields, &RequestOut::new(&head, &NoEdits));
    out
}

/// In steps that the length gives; a head that is complete at once must be found complete, and one that is refused must be
/// refused for the same reason, if it is before its end.
fn trickled(data: &[u8], whole: &Result<Option<RequestHead>, Refusal>) {
    let (mut scanner, mut fields, mut end) = (HeadScanner::default(), Fields::new(), 0);
    let step = data.len() % 7 + 1;
    let mut said = Ok(None);
    while end < data.len() && matches!(said, Ok(None)) {
        end = (end + step).min(data.len());
        if scanner.ready(&data[..end], Bounds::FIRST_HOP) {
            said = request::parse(&data[..end], &mut fields, Bounds::FIRST_HOP);
        }
    }
    match said {
        Ok(None) => assert!(!matches!(whole, Ok(Some(_)))),
        _ => assert_eq!(said, *whole),
    }
}
