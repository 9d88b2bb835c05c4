//! Regular expressions: bounded, anchored, over bytes.

use super::super::regexes::{anchored, compile};

#[test]
fn a_pattern_that_would_explode_is_refused() {
    for pattern in ["(a{1000}){1000}", "((a{100}){100}){100}", "[a-z]{100000}", "(?:(?:(?:x{50}){50}){50}){50}"] {
        let error = compile(pattern).expect_err("beyond the bound");
        assert_eq!(error.pattern, pattern);
        assert!(error.reason.contains("size"), "{error}");
        assert!(!error.reason.contains('\n'));
    }
    assert!(compile(&"(".repeat(10_000)).is_err());
    let nested = format!("{}{}", "(".repeat(5_000), ")".repeat(5_000));
    assert!(compile(&nested).is_err(), "nesting is bounded too");
}

#[test]
fn a_pattern_that_does_not_compile_says_why_on_one_line() {
    for pattern in ["(", "[z-a]", "*", r"\k", "(?=look)", r"(a)\1"] {
        let error = compile(pattern).expect_err(pattern);
        assert!(!error.reason.is_empty() && !error.reason.contains('\n'), "{error}");
        assert!(error.to_string().contains(&format!("{pattern:?}")), "{error}");
    }
}

#[test]
fn no_input_makes_a_match_slow() {
    // Exponential for a backtracking engine; this one is linear, so the test ends.
    let pattern = compile(&anchored("(a*)*b|(a|aa)+c")).expect("compiles");
    assert!(!pattern.is_match("a".repeat(100_000).as_bytes()));
}

#[test]
fn an_anchored_pattern_matches_the_whole_value() {
    let pattern = compile(&anchored("a|b")).expect("compiles");
    assert!(pattern.is_match(b"a") && pattern.is_match(b"b"));
    for other in ["ab", "xa", "bx", "", "a\n", "\na"] {
        assert!(!pattern.is_match(other.as_bytes()), "{other:?}");
    }
}

#[test]
fn patterns_match_bytes_as_re2_does() {
    assert!(compile("^.$").expect("compiles").is_match(b"\xff"));
    assert!(!compile("^.$").expect("compiles").is_match("é".as_bytes()), "two bytes");
    assert!(compile("^é$").expect("compiles").is_match("é".as_bytes()));
    assert!(!compile(r"^\w+$").expect("compiles").is_match("é".as_bytes()), "ASCII classes");
    assert!(!compile(r"^\d$").expect("compiles").is_match("٣".as_bytes()));
    assert!(compile("(?i)^REVIEWS$").expect("compiles").is_match(b"reviews"));
}
