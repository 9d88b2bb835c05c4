use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn rotation_is_at_half_life_with_a_tenth_of_jitter(life_s in 10_u64..10_000_000, jitter in 0.0..=1.0) {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let life = Duration::from_secs(life_s);
        let part = rotate_at(now, now + life, jitter).duration_since(now).unwrap().as_secs_f64() / life_s as f64;
        prop_assert!((0.4..=0.6).contains(&part), "{}", part);
    }
}

#[test]
fn jitter_is_spread_evenly() {
    let tenths = (0..1000).map(|serial| (jitter(&format!("{serial:032x}")) * 10.0) as usize);
    let counts = tenths.fold([0; 10], |mut counts, tenth| {
        counts[tenth] += 1;
        counts
    });
    assert!(counts.iter().all(|count| (60..140).contains(count)), "{counts:?}");
}

#[test]
fn what_is_about_to_expire_is_not_sent_in_a_hot_loop() {
    let now = SystemTime::now();
    assert!(rotate_at(now, now, 0.5) >= now + Duration::from_secs(1));
    assert!(rotate_at(now, now - Duration::from_secs(60), 0.5) >= now + Duration::from_secs(1));
}

#[test]
fn attempts_are_repeated_at_growing_bounded_intervals() {
    let (mut backoff, now) = (Backoff::default(), Instant::now());
    assert!(backoff.over(now));
    let mut last = Duration::ZERO;
    for _ in 0..100 {
        backoff.failed(now);
        let pause = backoff.until.unwrap() - now;
        assert!(pause >= last && pause <= Duration::from_millis(CERTIFICATE_RETRY_MS_MAX));
        assert!(!backoff.over(now) && backoff.over(now + pause));
        last = pause;
    }
    assert_eq!(last, Duration::from_millis(CERTIFICATE_RETRY_MS_MAX));
}

#[test]
fn a_bundle_is_the_same_in_any_order_of_its_roots() {
    let bundle = |roots: &[&[u8]]| {
        vec![TrustBundle { trust_domain: "a".into(), roots: roots.iter().map(|root| root.to_vec()).collect() }]
    };
    assert_eq!(hash(&bundle(&[b"1", b"2"])), hash(&bundle(&[b"2", b"1"])));
    assert_ne!(hash(&bundle(&[b"1", b"2"])), hash(&bundle(&[b"1"])));
}

/// Two identities within a second end at the same second: the answer to the first is none to the second.
#[test]
fn only_the_last_answer_is_one_to_what_was_sent_last() {
    let mut awaited = Awaited::default();
    awaited.sent();
    assert!(awaited.is_to_last());
    awaited.sent();
    awaited.sent();
    assert!(!awaited.is_to_last());
    awaited.sent();
    assert!(!awaited.is_to_last());
    assert!(awaited.is_to_last());
}
