//! Path normalisation: no panic, what an independent implementation says, its own normal form, and nothing in it that a
//! server could read in another way. The input is a path.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshring_core::http::{
    Bounds, Fields, PathNormalization, Refusal,
    path::{normalize, position_with_parameters, without_parameters},
    request,
};
use meshring_fuzz::uri;

const LEVELS: [PathNormalization; 4] = [
    PathNormalization::None,
    PathNormalization::Base,
    PathNormalization::MergeSlashes,
    PathNormalization::DecodeAndMergeSlashes,
];

fuzz_target!(|data: &[u8]| {
    // No bytes make it panic; all further promises are about paths that the codec lets through.
    for level in LEVELS {
        let _ = normalize(data, level, &mut Vec::new());
    }
    let head = [b"GET ", data, b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
    let mut fields = Fields::new();
    let Ok(Some(parsed)) = request::parse(&head, &mut fields, Bounds::FIRST_HOP) else { return };
    let Ok(path) = std::str::from_utf8(parsed.path.of(&head)) else { panic!("a path outside of ASCII") };
    if !path.starts_with('/') {
        return;
    }
    for level in LEVELS {
        let mut scratch = Vec::new();
        match (normalize(path.as_bytes(), level, &mut scratch), uri::normalized(path, level)) {
            (Ok(normal), Some(expected)) => {
                assert_eq!(String::from_utf8_lossy(normal), expected, "{level:?}");
                check(&expected, path, level);
            }
            (Err(Refusal::PathEscapesRoot | Refusal::PathParameters), None) => {}
            (result, expected) => panic!("{level:?}: {result:?}, and not {expected:?}"),
        }
    }
});

fn check(normal: &str, path: &str, level: PathNormalization) {
    // A normal form of one level is one of each level below.
    for below in LEVELS.into_iter().filter(|&below| below <= level) {
        assert_eq!(normalize(normal.as_bytes(), below, &mut Vec::new()), Ok(normal.as_bytes()), "{level:?} {below:?}");
    }
    assert!(normal.starts_with('/') && normal.len() <= path.len());
    assert!(normal.bytes().all(|b| b.is_ascii_graphic() && !b"?#\\".contains(&b)));
    if level == PathNormalization::None {
        return;
    }
    let mut scratch = Vec::new();
    let matched = without_parameters(normal.as_bytes(), &mut scratch);
    assert_eq!(matched, uri::without_parameters(normal).as_bytes());
    assert_eq!(normalize(matched, level, &mut Vec::new()), Ok(matched), "what rules see is normal, too");
    let names = uri::without_parameters(normal);
    assert!(names.split('/').all(|name| name != "." && name != ".."));
    assert!(level == PathNormalization::Base || !names.contains("//"));
    if level == PathNormalization::DecodeAndMergeSlashes {
        assert!(!normal.contains("%2F") && !normal.contains("%5C"));
    }
    for position in 0..=matched.len() {
        let at = position_with_parameters(normal.as_bytes(), position);
        assert_eq!(uri::without_parameters(&normal[..at]).as_bytes(), &matched[..position]);
        assert!(!normal[at..].starts_with(';'));
    }
}
