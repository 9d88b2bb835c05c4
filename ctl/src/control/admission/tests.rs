use std::time::Duration;

use meshring_core::{id::Generation, link::JoinToken};

use super::*;
use crate::source::{Cache, SourceFile, read_files};

const WORKLOADS: &str = "\
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v1, annotations: {meshring.io/unix-uid: \"1001\"}}
spec: {address: 10.0.0.1, serviceAccount: reviews}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: plain}
spec: {address: 10.0.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: twice}
spec: {serviceAccountName: one}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: twice}
spec: {address: 10.0.0.3, serviceAccount: other}
";

fn world() -> World {
    let file = SourceFile { path: "x.yaml".into(), text: WORKLOADS.into() };
    let reading = read_files(&[file], &mut Cache::default());
    assert!(
        reading.diagnostics.iter().all(|d| d.severity < crate::diagnostic::Severity::Error),
        "{:?}",
        reading.diagnostics
    );
    World::assemble(reading.resources).0
}

fn hello(workload: &str, account: Option<&str>, token: Option<&str>) -> Hello {
    Hello {
        protocol: 0,
        layout: 0,
        pid: 1,
        namespace: "default".into(),
        workload: workload.into(),
        workers: 1,
        driver: String::new(),
        listeners: Vec::new(),
        generation: Generation(0),
        checksum: 0,
        service_account: account.map(str::to_owned),
        bypass: false,
        join_token: token.map(|token| JoinToken(token.to_owned())),
    }
}

fn foreign() -> Option<String> {
    Some("user id 1001 may not talk to this control process".into())
}

#[test]
fn controls_own_user_may_claim_any_workload_with_the_right_service_account() {
    let world = world();
    let of = |workload: &str, account: Option<&str>| {
        identity("cluster.local", &Grant::Any, &hello(workload, account, None), &world).map(|id| id.to_string())
    };
    let id = |account: &str| Ok(format!("spiffe://cluster.local/ns/default/sa/{account}"));
    assert_eq!(of("reviews-v1", None), id("reviews"));
    assert_eq!(of("reviews-v1", Some("reviews")), id("reviews"));
    assert_eq!(of("plain", None), id("default"));
    assert_eq!(of("plain", Some("x")), id("x"));
    assert_eq!(of("unlisted", Some("x")), id("x"));
    let conflict = of("reviews-v1", Some("admin")).unwrap_err();
    assert!(conflict.contains("--service-account") && conflict.contains("reviews"), "{conflict}");
    assert!(of("twice", None).unwrap_err().contains("different service accounts"));
    assert!(of("unlisted", Some("a/b")).unwrap_err().contains("cannot be an identity"));
}

#[test]
fn a_foreign_user_needs_an_annotation_or_a_token_for_its_very_workload() {
    let (world, dir) = (world(), tempfile::tempdir().unwrap());
    let tokens = Tokens::open(dir.path()).unwrap();
    let judge = |uid, hello: &Hello| judge(foreign(), uid, hello, &tokens, &world);
    // By annotation.
    assert_eq!(judge(1001, &hello("reviews-v1", None, None)), Ok(Grant::User(1001)));
    for (uid, workload) in [(1002, "reviews-v1"), (1001, "plain"), (1001, "unlisted")] {
        let refused = judge(uid, &hello(workload, None, None)).unwrap_err();
        let expected = format!(
            "{}, annotate default/{workload} with meshring.io/unix-uid, or give the proxy a join token (--join-token)",
            foreign().unwrap()
        );
        assert_eq!(refused, expected, "{uid}");
    }
    // By token.
    let claim = |account: &str| Claim { namespace: "default".into(), service_account: account.into() };
    let make = |account: &str, ttl_s| {
        tokens.make(claim(account), Duration::from_secs(ttl_s), SystemTime::now()).unwrap().to_string()
    };
    let token = make("default", 60);
    assert_eq!(judge(1003, &hello("plain", None, Some(&token))), Ok(Grant::Token(claim("default"))));
    let other_user = judge(1004, &hello("plain", None, Some(&token))).unwrap_err();
    assert!(other_user.contains("was used by user id 1003"), "{other_user}");
    let other_workload = judge(1003, &hello("reviews-v1", None, Some(&token))).unwrap_err();
    assert!(other_workload.contains("is for service account default/default"), "{other_workload}");
    let mut elsewhere = hello("plain", None, Some(&token));
    elsewhere.namespace = "prod".into();
    assert!(judge(1003, &elsewhere).is_err());
    let expired = make("default", 0);
    assert!(judge(1003, &hello("plain", None, Some(&expired))).unwrap_err().contains("expired"));
    assert!(judge(1003, &hello("plain", None, Some("guess"))).unwrap_err().contains("unknown"));
}

#[test]
fn controls_own_user_with_a_bad_token_gets_tables_but_no_identity() {
    let (world, dir) = (world(), tempfile::tempdir().unwrap());
    let tokens = Tokens::open(dir.path()).unwrap();
    let greeting = hello("plain", None, Some("guess"));
    let grant = judge(None, 0, &greeting, &tokens, &world).unwrap();
    assert!(matches!(&grant, Grant::Nothing(reason) if reason.contains("unknown")), "{grant:?}");
    assert!(identity("a", &grant, &greeting, &world).unwrap_err().contains("unknown"));
    // A good one for something else: it is known only when the identity is asked for.
    let claim = Claim { namespace: "default".into(), service_account: "reviews".into() };
    let token = tokens.make(claim, Duration::from_secs(60), SystemTime::now()).unwrap();
    let greeting = hello("plain", None, Some(&token));
    let grant = judge(None, 0, &greeting, &tokens, &world).unwrap();
    assert!(identity("a", &grant, &greeting, &world).unwrap_err().contains("default/reviews"));
}
