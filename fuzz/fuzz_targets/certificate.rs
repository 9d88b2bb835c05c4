//! Names in a certificate: no panic; an identity is one well-formed SPIFFE id, and no name has a byte that no name has.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshring_core::{certificate::Description, identity::Material, spiffe::SpiffeId};

fuzz_target!(|data: &[u8]| {
    // The same bytes as what control sends beside certificates.
    if let Ok(material) = Material::decode(data) {
        assert_eq!(Material::decode(&material.encode()), Ok(material));
    }
    let Ok(Description { names, subject }) = Description::of(data) else { return };
    // It becomes a part of a field's value.
    assert!(subject.bytes().all(|b| matches!(b, b' '..=b'~')), "{subject:?}");
    let Ok(names) = names else { return };
    for name in names.uris.iter().chain(&names.dns) {
        assert!(name.bytes().all(|b| b.is_ascii_graphic()), "{name:?}");
    }
    if let Ok(identity) = names.identity() {
        assert_eq!(names.uris, [identity.to_string()]);
        assert!(!names.is_authority);
        assert_eq!(identity.as_str().parse::<SpiffeId>(), Ok(identity));
    }
});
