use std::{fs, process::Command, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, SanType, SignatureAlgorithm,
};

use super::*;
use crate::ca::{Authority, IdentitySource, IssueError, Settings, pem::of_certificate};

struct Made {
    pem: String,
    key_pem: String,
    params: CertificateParams,
    key: KeyPair,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Example Ltd");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.not_before = (SystemTime::now() - Duration::from_secs(3600)).into();
    params.not_after = (SystemTime::now() + Duration::from_secs(100_000)).into();
    params
}

fn make(params: CertificateParams, above: Option<&Made>, algorithm: &'static SignatureAlgorithm) -> Made {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let certificate = match above {
        Some(above) => params.signed_by(&key, &Issuer::from_params(&above.params, &above.key)).unwrap(),
        None => params.self_signed(&key).unwrap(),
    };
    Made { pem: certificate.pem(), key_pem: key.serialize_pem(), params, key }
}

fn ec(params: CertificateParams, above: Option<&Made>) -> Made {
    make(params, above, &rcgen::PKCS_ECDSA_P256_SHA256)
}

/// Opens an authority with these files' contents.
fn open(dir: &Path, certificate: &str, key: &str, chain: Option<&str>, life_s: u64) -> Result<Authority, String> {
    let write = |name: &str, text: &str| {
        fs::write(dir.join(name), text).unwrap();
        dir.join(name)
    };
    let files = OperatorFiles {
        certificate: write("ca.pem", certificate),
        key: write("ca.key", key),
        chain: chain.map(|chain| write("chain.pem", chain)),
    };
    Authority::open(Settings {
        trust_domain: "cluster.local".into(),
        svid_lifetime: Duration::from_secs(life_s),
        folder: dir.join("state"),
        operator: Some(files),
    })
    .map_err(|error| error.to_string())
}

#[test]
fn a_ca_of_any_kind_and_depth_issues_what_openssl_verifies() {
    let id = SpiffeId::workload("cluster.local", "default", "reviews").unwrap();
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_RSA_SHA256, &rcgen::PKCS_ED25519] {
        let dir = tempfile::tempdir().unwrap();
        let root = make(params("root"), None, algorithm);
        let middle = make(params("middle"), Some(&root), algorithm);
        let issuing = make(params("issuing"), Some(&middle), algorithm);
        let other_root = make(params("next root"), None, algorithm);
        let chain = [&middle, &root, &other_root].map(|made| made.pem.as_str()).concat();
        for (ca, chain, depth, roots) in
            [(&issuing, Some(chain.as_str()), 3, 2), (&root, None, 1, 1), (&middle, Some(root.pem.as_str()), 2, 1)]
        {
            let authority = open(dir.path(), &ca.pem, &ca.key_pem, chain, 3600).unwrap();
            let (svid, bundles) = (authority.issue(&id).unwrap(), authority.bundles());
            assert_eq!((svid.chain.len(), bundles[0].roots.len()), (depth, roots), "{algorithm:?}");
            let file = |name: &str, ders: &[Vec<u8>]| {
                fs::write(dir.path().join(name), ders.iter().map(|der| of_certificate(der)).collect::<String>())
                    .unwrap();
            };
            file("leaf.pem", &svid.chain[..1]);
            file("above.pem", &svid.chain);
            file("roots.pem", &bundles[0].roots);
            let verify = ["verify", "-x509_strict", "-CAfile", "roots.pem", "-untrusted", "above.pem", "leaf.pem"];
            let output = Command::new("openssl").args(verify).current_dir(dir.path()).output().unwrap();
            assert!(output.status.success(), "{algorithm:?}: {}", String::from_utf8_lossy(&output.stderr));
            assert!(!dir.path().join("state/authority.json").exists(), "nothing of the operator's is copied");
            assert!(authority.prepare_root().unwrap_err().to_string().contains("--ca-chain"));
        }
    }
}

#[test]
fn what_nobody_would_accept_is_refused_at_the_start_and_names_the_file() {
    let root = ec(params("root"), None);
    let other = ec(params("other"), None);
    let issuing = ec(params("issuing"), Some(&root));
    let changed = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = params("changed");
        change(&mut params);
        ec(params, Some(&root))
    };
    let leaf = changed(&|params| params.is_ca = IsCa::NoCa);
    let no_sign = changed(&|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    let expired = changed(&|params| params.not_after = (SystemTime::now() - Duration::from_secs(60)).into());
    let future = changed(&|params| params.not_before = (SystemTime::now() + Duration::from_secs(600)).into());
    let foreign =
        changed(&|params| params.subject_alt_names = vec![SanType::URI("spiffe://evil.example".try_into().unwrap())]);
    let mut tight = params("tight root");
    tight.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let tight = ec(tight, None);
    let below_tight = ec(params("below"), Some(&tight));
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (what, certificate, key, chain, file, reason) in [
        ("mismatch", &root.pem, &other.key_pem, None, "ca.key", "does not belong to the certificate"),
        ("no CA", &leaf.pem, &leaf.key_pem, Some(&root.pem), "ca.pem", "is no CA"),
        ("usage", &no_sign.pem, &no_sign.key_pem, Some(&root.pem), "ca.pem", "keyCertSign"),
        ("expired", &expired.pem, &expired.key_pem, Some(&root.pem), "ca.pem", "has expired"),
        ("future", &future.pem, &future.key_pem, Some(&root.pem), "ca.pem", "is valid from"),
        ("foreign", &foreign.pem, &foreign.key_pem, Some(&root.pem), "ca.pem", "evil.example"),
        ("no root", &issuing.pem, &issuing.key_pem, None, "ca.pem", "is missing"),
        ("wrong root", &issuing.pem, &issuing.key_pem, Some(&other.pem), "chain.pem", "is missing"),
        ("path length", &below_tight.pem, &below_tight.key_pem, Some(&tight.pem), "chain.pem", "pathlen"),
        ("swapped", &root.key_pem, &root.pem, None, "ca.pem", "holds no certificate"),
        ("garbage", &garbage.to_owned(), &root.key_pem, None, "ca.pem", "does not parse"),
        ("key garbage", &root.pem, &"hello".to_owned(), None, "ca.key", "holds no private key"),
        ("empty chain", &root.pem, &root.key_pem, Some(&String::new()), "chain.pem", "holds no certificate"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let error = open(dir.path(), certificate, key, chain.map(String::as_str), 3600).unwrap_err();
        assert!(error.contains(&format!("/{file}: ")) && error.contains(reason), "{what}: {error}");
        assert!(!error.contains("-----BEGIN"), "{what}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let missing =
        OperatorFiles { certificate: dir.path().join("none.pem"), key: dir.path().join("none.key"), chain: None };
    let error = missing.load("cluster.local", SystemTime::now()).unwrap_err().to_string();
    assert!(error.contains("none.pem: No such file"), "{error}");
}

#[test]
fn no_svid_outlives_its_issuer() {
    let id = SpiffeId::workload("cluster.local", "default", "reviews").unwrap();
    let ending = |left_s: u64| {
        let mut params = params("ending");
        params.not_after = (SystemTime::now() + Duration::from_secs(left_s)).into();
        ec(params, None)
    };
    let dir = tempfile::tempdir().unwrap();
    let ca = ending(600);
    let svid = open(dir.path(), &ca.pem, &ca.key_pem, None, 3600).unwrap().issue(&id).unwrap();
    let of_ca = Facts::of(&pem::certificates(ca.pem.as_bytes()).unwrap()[0]).unwrap();
    assert_eq!(svid.not_after, of_ca.not_after);
    let ca = ending(8);
    let error = open(dir.path(), &ca.pem, &ca.key_pem, None, 3600).unwrap().issue(&id).unwrap_err();
    assert!(matches!(&error, IssueError::IssuerExpired { remedy, .. } if remedy.contains("--ca-cert")), "{error}");
}
