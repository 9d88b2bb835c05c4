//! The first bytes of a connection: no panic; a name that is found is a host name; more bytes never change what was said.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshring_core::{client_hello::parse, limits::HOST_BYTES_MAX};

fuzz_target!(|data: &[u8]| {
    let whole = parse(data);
    if let Ok(Some(hello)) = &whole
        && let Some(name) = &hello.server_name
    {
        assert!(!name.is_empty() && name.len() <= HOST_BYTES_MAX);
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b)), "{name}");
    }
    // However the bytes come, the answer is the same: none before it, and no other one after it.
    for cut in 0..data.len().min(64) {
        let so_far = parse(&data[..cut]);
        if so_far != Ok(None) {
            assert_eq!(so_far, whole, "after {cut} bytes");
        }
    }
});
