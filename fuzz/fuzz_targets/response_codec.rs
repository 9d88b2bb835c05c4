//! Response heads for each kind of request: no panic, and what is written is acceptable and stable.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshring_core::{
    http::{BodyFraming, Fields, Method, NoEdits, ResponseOut, response, response_head},
    limits::{HEAD_BYTES_MAX, HEAD_FIELDS_MAX},
};

fuzz_target!(|data: &[u8]| {
    for method in [Method::Get, Method::Head, Method::Connect] {
        let mut fields = Fields::new();
        match response::parse(data, &mut fields, method) {
            Err(bad) => assert!(!bad.code().is_empty() && !bad.to_string().is_empty()),
            Ok(None) => {}
            Ok(Some(head)) => {
                assert!(head.len <= data.len() && (100..600).contains(&head.status));
                assert!(head.framing != BodyFraming::UntilClose || !head.keep_alive);
                assert!(!(head.is_interim() && head.framing.has_body()));
                if grows_beyond_bounds(head.len, fields.len()) {
                    continue;
                }
                let written = relay(data, &mut fields, method);
                let again = relay(&written, &mut fields, method);
                assert_eq!(String::from_utf8_lossy(&written), String::from_utf8_lossy(&again), "not stable");
            }
        }
    }
});

fn relay(bytes: &[u8], fields: &mut Fields, method: Method) -> Vec<u8> {
    let head = response::parse(bytes, fields, method).expect("what we write is acceptable").expect("and whole");
    let mut out = Vec::new();
    response_head(&mut out, bytes, &head, fields, &ResponseOut::new(&head, &NoEdits));
    out
}

/// What is written has a few fields of ours: a head at the very bounds is beyond them for the next recipient.
fn grows_beyond_bounds(bytes: usize, fields: usize) -> bool {
    bytes + 256 > HEAD_BYTES_MAX || fields + 4 > HEAD_FIELDS_MAX
}
