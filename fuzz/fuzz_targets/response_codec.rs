//! Response heads for each kind of request: no panic, one reason however the bytes arrive, and what is written is acceptable
//! and stable.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshring_core::http::{BodyFraming, Bounds, Fields, Method, NoEdits, ResponseOut, response, response_head};

fuzz_target!(|data: &[u8]| {
    for method in [Method::Get, Method::Head, Method::Connect] {
        let mut fields = Fields::new();
        for end in (1..data.len()).step_by(data.len() / 8 + 1) {
            let said = response::parse(&data[..end], &mut fields, method, Bounds::FIRST_HOP);
            assert!(
                said == Ok(None) || said == response::parse(data, &mut fields, method, Bounds::FIRST_HOP),
                "{said:?}"
            );
        }
        match response::parse(data, &mut fields, method, Bounds::FIRST_HOP) {
            Err(bad) => assert!(!bad.code().is_empty() && !bad.to_string().is_empty()),
            Ok(None) => {}
            Ok(Some(head)) => {
                assert!(head.len <= data.len() && (100..600).contains(&head.status));
                assert!(head.framing != BodyFraming::UntilClose || !head.keep_alive);
                assert!(!(head.is_interim() && head.framing.has_body()));
                let written = relay(data, &mut fields, method, Bounds::FIRST_HOP);
                // What is written has a few bytes of ours, for which the next hop has room.
                let again = relay(&written, &mut fields, method, Bounds::NEXT_HOP);
                assert_eq!(String::from_utf8_lossy(&written), String::from_utf8_lossy(&again), "not stable");
            }
        }
    }
});

fn relay(bytes: &[u8], fields: &mut Fields, method: Method, bounds: Bounds) -> Vec<u8> {
    let head = response::parse(bytes, fields, method, bounds).expect("what we write is acceptable").expect("and whole");
    let mut out = Vec::new();
    response_head(&mut out, bytes, &head, fields, &ResponseOut::new(&head, &NoEdits));
    out
}
