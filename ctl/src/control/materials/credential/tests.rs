use std::{fs, path::Path, time::Duration};

use rcgen::{CertificateParams, KeyPair};

use super::*;

struct Made {
    certificate: String,
    key: String,
}

fn make(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Made {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    Made { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

fn put(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Until what is on disk has been read: it must rest for a tick first.
fn settle(credential: &mut Credential) {
    let secrets = Secrets::new();
    for _ in 0..4 {
        credential.look(&secrets, SystemTime::now());
    }
}

fn material(credential: &Credential) -> Material {
    let good = credential.good.as_ref().unwrap();
    let mut bytes = vec![0; rustix::fs::fstat(&good.fd).unwrap().st_size as usize];
    rustix::io::pread(&good.fd, &mut bytes, 0).unwrap();
    Material::decode(&bytes).unwrap()
}

#[test]
fn files_are_read_checked_and_read_again_when_they_change() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second, ca) = (make("a.example", |_| {}), make("b.example", |_| {}), make("ca.example", |_| {}));
    let certificate = put(dir.path(), "tls.crt", &first.certificate);
    let key = put(dir.path(), "tls.key", &first.key);
    let roots = put(dir.path(), "ca.crt", &ca.certificate);
    let name = format!("file:{certificate}:{key}:{roots}");
    let mut credential = Credential::new(&name);
    credential.look(&Secrets::new(), SystemTime::now());
    let read = material(&credential);
    assert_eq!((read.name.as_str(), read.chain.len(), read.bundles[0].roots.len()), (name.as_str(), 1, 1));
    assert_eq!(read.bundles[0].trust_domain, "");
    assert_eq!(read.not_after_s, unix_s(credential.good.as_ref().unwrap().leaf.as_ref().unwrap().not_after));
    let checksum = credential.good.as_ref().unwrap().checksum;
    settle(&mut credential);
    assert_eq!(credential.good.as_ref().unwrap().checksum, checksum);
    // A pair that does not match is refused, and the old one kept.
    put(dir.path(), "tls.crt", &second.certificate);
    settle(&mut credential);
    let problem = credential.problem.clone().unwrap();
    assert!(problem.contains("tls.key: the key does not belong to the certificate"), "{problem}");
    assert_eq!((credential.good.as_ref().unwrap().checksum, credential.failures), (checksum, 1));
    settle(&mut credential);
    assert_eq!(credential.failures, 1, "the same content is refused once");
    // With its key it is taken.
    put(dir.path(), "tls.key", &second.key);
    settle(&mut credential);
    assert_eq!(credential.problem, None);
    assert_ne!(credential.good.as_ref().unwrap().checksum, checksum);
    fs::remove_file(dir.path().join("ca.crt")).unwrap();
    settle(&mut credential);
    assert!(credential.problem.as_ref().unwrap().contains("ca.crt: No such file"), "{:?}", credential.problem);
    assert!(credential.good.is_some());
}

#[test]
fn bad_ones_are_refused_with_file_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    let good = make("a.example", |_| {});
    let expired = make("x.example", |params| params.not_after = (SystemTime::now() - Duration::from_secs(60)).into());
    let future = make("y.example", |params| params.not_before = (SystemTime::now() + Duration::from_secs(600)).into());
    let path = |name: &str, text: &str| put(dir.path(), name, text);
    let (crt, key) = (path("a.crt", &good.certificate), path("a.key", &good.key));
    let (x_crt, x_key) = (path("x.crt", &expired.certificate), path("x.key", &expired.key));
    let (y_crt, y_key) = (path("y.crt", &future.certificate), path("y.key", &future.key));
    let garbage = path("garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let (empty, directory) = (path("empty", ""), dir.path().to_str().unwrap().to_owned());
    let huge = path("huge", &"x".repeat(MATERIAL_BYTES_MAX + 1));
    for (name, file, reason) in [
        (format!("file:{x_crt}:{x_key}:"), "x.crt", "has expired"),
        (format!("file:{y_crt}:{y_key}:"), "y.crt", "is valid from"),
        (format!("file:{crt}:{x_key}:"), "x.key", "does not belong"),
        (format!("file:{crt}:{crt}:"), "a.crt", "holds no private key"),
        (format!("file:{crt}::"), "", "certificate without a key"),
        (format!("file::{key}:"), "", "key without a certificate"),
        (format!("file:{garbage}:{key}:"), "garbage", "does not parse"),
        (format!("file:::{garbage}"), "garbage", "does not parse"),
        (format!("file:::{empty}"), "empty", "holds no certificate"),
        (format!("file:::{directory}"), "", "is no file"),
        (format!("file:::{huge}"), "huge", "is no file of at most"),
        ("file:::".into(), "", "neither a certificate nor roots"),
        ("file:relative.crt:relative.key:".into(), "relative.crt", "must be absolute"),
        ("file:a:b:c:d".into(), "", "is neither file:"),
        ("nonsense".into(), "", "is neither file:"),
        ("secret:default/none".into(), "", "Secret default/none does not exist"),
    ] {
        let mut credential = Credential::new(&name);
        settle(&mut credential);
        let problem = credential.problem.unwrap_or_default();
        assert!(problem.contains(file) && problem.contains(reason), "{name}: {problem}");
        assert!(credential.good.is_none(), "{name}");
        assert!(!problem.contains("-----BEGIN"), "{problem}");
    }
    let mut only_roots = Credential::new(&format!("file:::{crt}"));
    settle(&mut only_roots);
    let read = material(&only_roots);
    assert_eq!((read.chain.len(), read.key.len(), read.not_after_s, read.bundles[0].roots.len()), (0, 0, 0, 1));
}

#[test]
fn secrets_come_from_the_configuration() {
    use crate::source::{Cache, SourceFile, read_files};
    let secret = |made: &Made| {
        let indent = |text: &str| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
        let text = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: web}}\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}",
            indent(&made.certificate),
            indent(&made.key)
        );
        let file = SourceFile { path: "x.yaml".into(), text: text.as_str().into() };
        let resources = read_files(&[file], &mut Cache::default()).resources;
        crate::spec::World::assemble(resources).0
    };
    let (first, second) = (make("a.example", |_| {}), make("b.example", |_| {}));
    let mut credential = Credential::new("secret:default/web");
    credential.look(secret(&first).secrets(), SystemTime::now());
    assert_eq!(credential.problem, None);
    let before = credential.good.as_ref().unwrap().checksum;
    credential.look(secret(&second).secrets(), SystemTime::now());
    assert_ne!(credential.good.as_ref().unwrap().checksum, before);
    credential.look(&Secrets::new(), SystemTime::now());
    assert!(credential.problem.as_ref().unwrap().contains("does not exist"));
    assert!(credential.good.is_some());
    let mismatch = Made { certificate: first.certificate, key: second.key };
    credential.look(secret(&mismatch).secrets(), SystemTime::now());
    assert!(credential.problem.as_ref().unwrap().contains("key: the key does not belong"), "{:?}", credential.problem);
}
