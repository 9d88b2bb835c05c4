//! Judged by OpenSSL, which shares no code with us.

use std::{cell::Cell, fs, path::Path, process::Command};

use meshring_core::limits::{CERTIFICATE_BACKDATE_S, SVID_LIFETIME_S_MAX};

use super::{super::pem::of_certificate, *};

fn settings(folder: &Path) -> Settings {
    Settings {
        trust_domain: "cluster.local".into(),
        svid_lifetime: Duration::from_secs(3600),
        folder: folder.to_owned(),
        operator: None,
    }
}

fn id() -> SpiffeId {
    SpiffeId::workload("cluster.local", "default", "reviews").unwrap()
}

fn openssl(dir: &Path, arguments: &[&str]) -> (bool, String) {
    let output = Command::new("openssl").args(arguments).current_dir(dir).output().expect("openssl is installed");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

/// Whether a peer that trusts `roots` takes the chain.
fn verifies(dir: &Path, svid: &Svid, roots: &[Vec<u8>]) -> (bool, String) {
    let pem = |ders: &[Vec<u8>]| ders.iter().map(|der| of_certificate(der)).collect::<String>();
    fs::write(dir.join("roots.pem"), pem(roots)).unwrap();
    fs::write(dir.join("leaf.pem"), pem(&svid.chain[..1])).unwrap();
    fs::write(dir.join("above.pem"), pem(&svid.chain[1..])).unwrap();
    openssl(
        dir,
        &[
            "verify",
            "-x509_strict",
            "-purpose",
            "sslserver",
            "-CAfile",
            "roots.pem",
            "-untrusted",
            "above.pem",
            "leaf.pem",
        ],
    )
}

#[test]
fn an_svid_is_what_the_standard_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(settings(&dir.path().join("ca"))).unwrap();
    let (first, second) = (authority.issue(&id()).unwrap(), authority.issue(&id()).unwrap());
    let bundle = authority.bundles();
    assert_eq!((bundle.len(), bundle[0].trust_domain.as_str(), bundle[0].roots.len()), (1, "cluster.local", 1));
    for svid in [&first, &second] {
        let (good, said) = verifies(dir.path(), svid, &bundle[0].roots);
        assert!(good, "{said}");
    }
    assert_ne!((&first.serial, &first.key), (&second.serial, &second.key));
    let (_, text) = openssl(dir.path(), &["x509", "-in", "leaf.pem", "-noout", "-text"]);
    for expected in [
        "Version: 3",
        "Subject Alternative Name: critical\n                URI:spiffe://cluster.local/ns/default/sa/reviews\n",
        "CA:FALSE",
        "Digital Signature\n",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "NIST CURVE: P-256",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    assert_eq!(text.matches("URI:").count(), 1, "{text}");
    assert!(!text.contains("DNS:") && !text.contains("Certificate Sign"), "{text}");
    // Certificate and key belong together, says OpenSSL.
    fs::write(dir.path().join("key.der"), &*second.key).unwrap();
    let (_, of_key) = openssl(dir.path(), &["pkey", "-inform", "DER", "-in", "key.der", "-pubout"]);
    let (_, of_leaf) = openssl(dir.path(), &["x509", "-in", "leaf.pem", "-noout", "-pubkey"]);
    assert_eq!(of_key, of_leaf);
    let life = second.not_after.duration_since(second.not_before).unwrap().as_secs();
    assert_eq!(life, 3600 + CERTIFICATE_BACKDATE_S);
    assert_eq!(super::super::root_of(&second.chain, &bundle), Some(fingerprint(&bundle[0].roots[0])));
    let text = format!("{second:?} {authority:?}");
    let stored: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.path().join("ca").join(AUTHORITY_FILE)).unwrap()).unwrap();
    for key in [&stored["roots"][0]["key"], &stored["intermediate"]["key"]] {
        assert!(!text.contains(key.as_str().unwrap()), "a key is shown");
    }
}

#[test]
fn only_the_own_trust_domain_is_issued() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(settings(dir.path())).unwrap();
    let foreign = SpiffeId::workload("evil.example", "default", "reviews").unwrap();
    let error = authority.issue(&foreign).unwrap_err();
    assert!(matches!(error, IssueError::ForeignTrustDomain { .. }), "{error}");
    assert_eq!(authority.issued(), 0);
    let bad = Settings { trust_domain: "Not Valid".into(), ..settings(dir.path()) };
    assert!(Authority::open(bad).unwrap_err().to_string().contains("--trust-domain"));
}

#[test]
fn the_ca_survives_a_restart_and_is_refused_when_damaged_or_of_another_mesh() {
    let dir = tempfile::tempdir().unwrap();
    let first = Authority::open(settings(dir.path())).unwrap();
    let again = Authority::open(settings(dir.path())).unwrap();
    assert_eq!(first.certificates(), again.certificates());
    let other = Settings { trust_domain: "other.example".into(), ..settings(dir.path()) };
    let error = Authority::open(other).unwrap_err().to_string();
    assert!(error.contains("authority.json") && error.contains("--trust-domain cluster.local"), "{error}");
    let file = dir.path().join(AUTHORITY_FILE);
    let text = fs::read_to_string(&file).unwrap();
    for (what, damaged) in [
        ("cut", text[..text.len() / 2].to_owned()),
        ("position", text.replace("\"active\": 0", "\"active\": 7")),
        ("keys", text.replacen("\"key\": \"30", "\"key\": \"31", 1)),
    ] {
        assert_ne!(text, damaged, "{what}");
        fs::write(&file, damaged).unwrap();
        let error = Authority::open(settings(dir.path())).unwrap_err().to_string();
        assert!(error.contains("authority.json") && error.contains("a new CA is made"), "{what}: {error}");
    }
}

#[test]
fn a_root_is_replaced_while_both_sides_go_on_to_trust_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    let roots = |authority: &Authority| authority.bundles().remove(0).roots;
    let trusts = |roots: &[Vec<u8>], svid: &Svid| verifies(dir.path(), svid, roots).0;
    let authority = Authority::with_clock(settings(&ca), clock).unwrap();
    let changes = authority.changes();
    let (old, old_roots) = (authority.issue(&id()).unwrap(), roots(&authority));
    assert_eq!(authority.activate_root(), Err(RotationError::NotPrepared));
    authority.prepare_root().unwrap();
    assert_eq!(*changes.borrow(), 1);
    assert_eq!(authority.prepare_root(), Err(RotationError::UnderWay));
    // A restart in the middle of it.
    let authority = Authority::with_clock(settings(&ca), clock).unwrap();
    assert!(matches!(authority.phase(), Phase::Prepared { .. }));
    let both = roots(&authority);
    assert_eq!(both.len(), 2);
    // Prepared: the old root issues still, so nobody who has not heard of the new one is lost.
    assert!(trusts(&old_roots, &authority.issue(&id()).unwrap()));
    authority.activate_root().unwrap();
    assert_eq!(authority.abort_root(), Err(RotationError::NotPrepared));
    let new = authority.issue(&id()).unwrap();
    assert!(trusts(&both, &new) && trusts(&both, &old));
    assert!(!trusts(&old_roots, &new), "the new root does not issue");
    // Not before the last certificate of the old root has expired.
    advance(3590);
    authority.tend().unwrap();
    assert_eq!(roots(&authority).len(), 2);
    advance(3600);
    let authority = Authority::with_clock(settings(&ca), clock).unwrap();
    authority.tend().unwrap();
    assert_eq!((authority.phase(), roots(&authority).len()), (Phase::Steady, 1));
    let new = authority.issue(&id()).unwrap();
    let alone = roots(&authority);
    assert!(!old_roots.contains(&alone[0]));
    assert_eq!(super::super::root_of(&new.chain, &authority.bundles()), Some(fingerprint(&alone[0])));
}

#[test]
fn a_prepared_root_can_be_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(settings(dir.path())).unwrap();
    let before = authority.bundles();
    assert_eq!(authority.abort_root(), Err(RotationError::NotPrepared));
    authority.prepare_root().unwrap();
    authority.abort_root().unwrap();
    assert_eq!(authority.bundles(), before);
    assert_eq!(Authority::open(settings(dir.path())).unwrap().bundles(), before);
}

#[test]
fn certificates_of_an_earlier_longer_life_keep_their_root_in_the_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let long = Settings { svid_lifetime: Duration::from_secs(SVID_LIFETIME_S_MAX), ..settings(dir.path()) };
    drop(Authority::with_clock(long, clock).unwrap());
    let authority = Authority::with_clock(settings(dir.path()), clock).unwrap();
    authority.prepare_root().unwrap();
    authority.activate_root().unwrap();
    let Phase::Draining { until_s } = authority.phase() else { panic!("{:?}", authority.phase()) };
    assert!(until_s >= unix_s(clock()) + SVID_LIFETIME_S_MAX - 5, "{until_s}");
}

thread_local! {
    static OFFSET_S: Cell<i64> = const { Cell::new(0) };
}

fn clock() -> SystemTime {
    let offset = OFFSET_S.get();
    let distance = Duration::from_secs(offset.unsigned_abs());
    if offset < 0 { SystemTime::now() - distance } else { SystemTime::now() + distance }
}

fn advance(seconds: i64) {
    OFFSET_S.set(OFFSET_S.get() + seconds);
}

#[test]
fn whatever_the_clock_does_there_is_a_valid_certificate_for_it() {
    const YEAR_S: i64 = 365 * 24 * 3600;
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::with_clock(settings(dir.path()), clock).unwrap();
    let root = fingerprint(&authority.bundles()[0].roots[0]);
    let valid = || {
        let svid = authority.issue(&id()).unwrap();
        for der in &svid.chain {
            super::super::Facts::of(der).unwrap().valid_at(clock()).unwrap();
        }
        super::super::root_of(&svid.chain, &authority.bundles()).unwrap()
    };
    assert_eq!(valid(), root);
    // The intermediate is renewed long before it ends.
    let intermediate = |authority: &Authority| authority.certificates()[0].fingerprint.clone();
    let first = intermediate(&authority);
    advance(YEAR_S * 2 / 3);
    assert_eq!(valid(), root);
    assert_ne!(intermediate(&authority), first);
    // Beyond the root's end and back again.
    advance(12 * YEAR_S);
    assert_ne!(valid(), root);
    advance(-12 * YEAR_S);
    assert_eq!(valid(), root);
}

#[test]
fn after_a_jump_of_the_clock_the_bundle_is_there_before_the_first_certificate() {
    const YEAR_S: i64 = 365 * 24 * 3600;
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::with_clock(settings(dir.path()), clock).unwrap();
    let changes = authority.changes();
    for (years, new_roots) in [(1, 0), (11, 1), (0, 0), (-12, 0), (-10, 1)] {
        let before = (authority.bundles()[0].roots.len(), *changes.borrow());
        advance(years * YEAR_S);
        authority.tend().unwrap();
        let bundles = authority.bundles();
        assert_eq!(bundles[0].roots.len(), before.0 + new_roots, "{years} years");
        let after = *changes.borrow();
        let svid = authority.issue(&id()).unwrap();
        assert!(super::super::root_of(&svid.chain, &bundles).is_some(), "{years} years");
        assert_eq!(
            (authority.bundles(), *changes.borrow()),
            (bundles, after),
            "{years} years: the first one changed it"
        );
        // The other roots leave soon by the clock's own time.
        if let Phase::Draining { until_s } = authority.phase() {
            assert!(until_s <= unix_s(clock()) + SVID_LIFETIME_S_MAX, "{years} years: until {until_s}");
        }
    }
}

#[test]
fn a_root_that_nears_its_end_is_replaced_without_being_asked() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::with_clock(settings(dir.path()), clock).unwrap();
    authority.tend().unwrap();
    assert_eq!(authority.phase(), Phase::Steady);
    advance((ROOT_LIFETIME_S - ROOT_RENEWAL_S + 60) as i64);
    authority.tend().unwrap();
    assert!(matches!(authority.phase(), Phase::Prepared { .. }));
}
