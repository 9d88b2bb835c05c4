//! The Workload API from both ends: our client and our SPIRE source against our server, which stands in for a SPIRE agent.
//! `tests/tests/workload_api.rs` asks the same server with a client that others wrote.

#![allow(clippy::unwrap_used, reason = "a failure here is the failure of a test")]

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use meshring_core::limits::{WORKLOAD_API_CALLS_PER_USER_MAX, WORKLOAD_API_ISSUED_BURST_MAX};
use meshring_ctl::{
    ca::{
        Authority, IdentitySource, IssueError, Settings, SpiffeId,
        jwt_key::{JwtKeys, Lives},
        spire::SpireSource,
    },
    spec::World,
    workload_api::{
        Bindings, Tokens, WorkloadApi, bind,
        client::Client,
        proto::{X509SvidRequest, X509SvidResponse, method},
        serve,
    },
};
use tokio::{runtime::Runtime, sync::watch, time::timeout};
use tonic::{Code, Status, Streaming};

const DOMAIN: &str = "cluster.local";
const PATIENCE: Duration = Duration::from_secs(20);

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::workload(DOMAIN, "default", account).unwrap()
}

/// Bindings of our own user to accounts of the namespace `default`.
fn bound_to(accounts: &[&str]) -> Arc<Bindings> {
    let flags: Vec<_> =
        accounts.iter().map(|account| format!("{}=default/{account}", own_uid()).parse().unwrap()).collect();
    Arc::new(Bindings::new(&flags, &World::default()))
}

struct Server {
    dir: tempfile::TempDir,
    authority: Arc<Authority>,
    bindings: watch::Sender<Arc<Bindings>>,
    /// Of its own: with it all connections end, as with a process.
    runtime: Option<Runtime>,
}

impl Server {
    fn start(svid_lifetime_s: u64, accounts: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            trust_domain: DOMAIN.into(),
            svid_lifetime: Duration::from_secs(svid_lifetime_s),
            folder: dir.path().join("ca"),
            operator: None,
        };
        let authority = Arc::new(Authority::open(settings).unwrap());
        let mut server = Self { dir, authority, bindings: watch::Sender::new(bound_to(accounts)), runtime: None };
        server.serve();
        server
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    fn serve(&mut self) {
        let keys = JwtKeys::new(Lives::default(), SystemTime::now()).unwrap();
        self.serve_with(
            Arc::clone(&self.authority) as Arc<dyn IdentitySource>,
            Tokens::Own { keys, trust_domain: DOMAIN.into() },
        );
    }

    fn serve_with(&mut self, source: Arc<dyn IdentitySource>, tokens: Tokens) {
        let listener = bind(&self.path()).unwrap();
        let api = Arc::new(WorkloadApi::new(source, tokens, DOMAIN.into(), self.bindings.subscribe()));
        let runtime = Runtime::new().unwrap();
        runtime.spawn(async move { serve(api, listener).await.unwrap() });
        self.runtime = Some(runtime);
    }

    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    async fn client(&self) -> Client {
        Client::connect(&self.path()).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn next<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    let message = timeout(PATIENCE, stream.message()).await.expect("no message comes");
    message.map(|message| message.expect("the stream has ended"))
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn ids(message: &X509SvidResponse) -> Vec<&str> {
    message.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect()
}

fn hints(message: &X509SvidResponse) -> Vec<&str> {
    message.svids.iter().map(|svid| svid.hint.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_stream_follows_rotations_roots_and_bindings() {
    let server = Server::start(3600, &["reviews"]);
    let mut client = server.client().await;
    let mut stream = client.x509_svids().await.unwrap();
    let first = next(&mut stream).await.unwrap();
    assert_eq!(ids(&first), ["spiffe://cluster.local/ns/default/sa/reviews"]);
    assert_eq!(hints(&first), [""], "one identity needs no hint");
    assert!(first.federated_bundles.is_empty());

    let mut bundles = client.x509_bundles().await.unwrap();
    let bundle = next(&mut bundles).await.unwrap().bundles;
    assert_eq!(bundle["spiffe://cluster.local"], first.svids[0].bundle);

    server.authority.prepare_root().unwrap();
    let second = next(&mut stream).await.unwrap();
    assert!(second.svids[0].bundle.len() > first.svids[0].bundle.len(), "the new root is not in the bundle");
    assert_ne!(second.svids[0].x509_svid_key, first.svids[0].x509_svid_key);
    assert_eq!(next(&mut bundles).await.unwrap().bundles["spiffe://cluster.local"], second.svids[0].bundle);

    server.bindings.send_replace(bound_to(&["reviews", "ratings"]));
    let third = next(&mut stream).await.unwrap();
    assert_eq!(hints(&third), ["default/reviews", "default/ratings"]);

    server.bindings.send_replace(bound_to(&[]));
    assert_eq!(next(&mut stream).await.unwrap_err().code(), Code::PermissionDenied);
    let mut refused = client.x509_svids().await;
    let status = match &mut refused {
        Ok(stream) => next(stream).await.unwrap_err(),
        Err(status) => status.clone(),
    };
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("--workload-uid"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_at_half_of_their_life() {
    let server = Server::start(10, &["reviews"]);
    let mut stream = server.client().await.x509_svids().await.unwrap();
    let mut last = next(&mut stream).await.unwrap();
    let mut at = Instant::now();
    for _ in 0..2 {
        let message = next(&mut stream).await.unwrap();
        assert_ne!(message.svids[0].x509_svid, last.svids[0].x509_svid);
        // 4.5 to 5.5 s, less what the first one was old when we got it, and what this machine takes.
        let after = at.elapsed().as_secs_f64();
        assert!((3.0..9.0).contains(&after), "after {after} s");
        (last, at) = (message, Instant::now());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_signed_for_an_audience_and_judged() {
    let server = Server::start(3600, &["reviews", "ratings"]);
    let mut client = server.client().await;
    let audience = || vec!["shop".to_owned(), "till".to_owned()];
    let tokens = client.jwt_svids(audience(), String::new()).await.unwrap().svids;
    let subjects: Vec<_> = tokens.iter().map(|token| token.hint.as_str()).collect();
    assert_eq!(subjects, ["default/reviews", "default/ratings"]);

    let bundles = next(&mut client.jwt_bundles().await.unwrap()).await.unwrap().bundles;
    let set: JwkSet = serde_json::from_slice(&bundles["spiffe://cluster.local"]).unwrap();
    let kid = jsonwebtoken::decode_header(&tokens[0].svid).unwrap().kid.unwrap();
    let key = DecodingKey::from_jwk(set.find(&kid).unwrap()).unwrap();
    let mut rules = Validation::new(Algorithm::ES256);
    rules.set_audience(&["till"]);
    let claims = jsonwebtoken::decode::<serde_json::Value>(&tokens[0].svid, &key, &rules).unwrap().claims;
    assert_eq!(claims["sub"], "spiffe://cluster.local/ns/default/sa/reviews");
    let life_s = claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap();
    assert_eq!(life_s, 300);

    let valid = client.validate_jwt_svid("shop".into(), tokens[1].svid.clone()).await.unwrap();
    assert_eq!(valid.spiffe_id, id("ratings").to_string());
    let refused = client.validate_jwt_svid("bank".into(), tokens[1].svid.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(!refused.message().contains(&tokens[1].svid), "a token in an error");

    let one = client.jwt_svids(audience(), id("ratings").to_string()).await.unwrap().svids;
    assert_eq!(one.iter().map(|token| token.spiffe_id.clone()).collect::<Vec<_>>(), [id("ratings").to_string()]);
    let foreign = client.jwt_svids(audience(), id("admin").to_string()).await.unwrap_err();
    assert_eq!(foreign.code(), Code::PermissionDenied);
    for (audience, spiffe_id) in [(vec![], ""), (vec![String::new()], ""), (audience(), "reviews")] {
        let status = client.jwt_svids(audience, spiffe_id.into()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{spiffe_id}");
    }
}

/// A call as a client makes it that knows nothing of the header.
async fn unmarked(path: &Path, method: &'static str) -> Status {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("unix://{}", path.display())).unwrap();
    let mut grpc = tonic::client::Grpc::new(endpoint.connect().await.unwrap());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<X509SvidRequest, X509SvidResponse>::default();
    let path = axum::http::uri::PathAndQuery::from_static(method);
    match grpc.server_streaming(tonic::Request::new(X509SvidRequest {}), path, codec).await {
        Ok(response) => next(&mut response.into_inner()).await.unwrap_err(),
        Err(status) => status,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_security_header_nothing_is_told() {
    let server = Server::start(3600, &["reviews"]);
    for method in [
        method::FETCH_X509_SVID,
        method::FETCH_X509_BUNDLES,
        method::FETCH_JWT_SVID,
        method::FETCH_JWT_BUNDLES,
        method::VALIDATE_JWT_SVID,
        "/SpiffeWorkloadAPI/Other",
    ] {
        let status = unmarked(&server.path(), method).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{method}");
        assert!(status.message().contains("workload.spiffe.io"), "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_holds_a_bounded_number_of_streams_and_gets_a_bounded_number_of_certificates() {
    let server = Server::start(3600, &["reviews"]);
    let mut held = Vec::new();
    let mut client = server.client().await;
    let mut status = None;
    for index in 0..=WORKLOAD_API_CALLS_PER_USER_MAX {
        // One connection takes just as many streams at once; the last one must come on another.
        if index == WORKLOAD_API_CALLS_PER_USER_MAX / 2 {
            client = server.client().await;
        }
        let mut stream = match client.x509_bundles().await {
            Ok(stream) => stream,
            Err(error) => {
                status = Some(error);
                break;
            }
        };
        match next(&mut stream).await {
            Ok(_) => held.push(stream),
            Err(error) => {
                status = Some(error);
                break;
            }
        }
    }
    assert_eq!(held.len(), WORKLOAD_API_CALLS_PER_USER_MAX);
    assert_eq!(status.unwrap().code(), Code::ResourceExhausted);
    drop(held);
    let deadline = Instant::now() + PATIENCE;
    while client.jwt_svids(vec!["a".into()], String::new()).await.is_err() {
        assert!(Instant::now() < deadline, "calls that have ended still count");
    }

    let mut codes = Vec::new();
    for _ in 0..4 * WORKLOAD_API_ISSUED_BURST_MAX {
        if let Err(error) = client.jwt_svids(vec!["a".into()], String::new()).await {
            codes.push(error.code());
            break;
        }
    }
    assert_eq!(codes, [Code::ResourceExhausted]);
}

#[tokio::test(flavor = "multi_thread")]
async fn spire_source_hands_on_what_the_agent_has_and_outlives_its_absence() {
    let mut agent = Server::start(3600, &["reviews", "ratings"]);
    let source = SpireSource::start(&agent.path(), DOMAIN, &tokio::runtime::Handle::current());
    let mut changes = source.changes();
    until("identities come", || source.issue(&id("reviews")).is_ok()).await;
    let svid = source.issue(&id("reviews")).unwrap();
    assert_eq!(svid.id, id("reviews"));
    assert!(svid.not_after > SystemTime::now());
    assert_eq!(source.bundles(), agent.authority.bundles());
    source.issue(&id("ratings")).unwrap();

    let reason = source.issue(&id("admin")).unwrap_err().to_string();
    assert!(reason.contains("registration entry") && reason.contains("/sa/admin"), "{reason}");
    let foreign = SpiffeId::workload("other.domain", "default", "reviews").unwrap();
    assert!(matches!(source.issue(&foreign), Err(IssueError::ForeignTrustDomain { .. })));

    // The agent dies: what we have stays.
    agent.kill();
    until("the loss is noticed", || source.issue(&id("admin")).unwrap_err().to_string().contains("SPIRE at")).await;
    assert_eq!(source.issue(&id("reviews")).unwrap().serial, svid.serial);
    assert_eq!(source.bundles(), agent.authority.bundles());

    // It comes back with a new root, and new certificates are streamed on.
    agent.authority.prepare_root().unwrap();
    changes.mark_unchanged();
    until("the socket is free", || std::os::unix::net::UnixStream::connect(agent.path()).is_err()).await;
    agent.serve();
    until("the new root comes", || source.bundles() == agent.authority.bundles()).await;
    assert!(changes.has_changed().unwrap());
    assert_ne!(source.issue(&id("reviews")).unwrap().serial, svid.serial);

    // It takes a registration away.
    agent.bindings.send_replace(bound_to(&["ratings"]));
    until("the registration is gone", || source.issue(&id("reviews")).is_err()).await;
    source.issue(&id("ratings")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_spire_end_when_they_expire_and_say_why() {
    let mut agent = Server::start(10, &["reviews"]);
    let source = SpireSource::start(&agent.path(), DOMAIN, &tokio::runtime::Handle::current());
    until("identities come", || source.issue(&id("reviews")).is_ok()).await;
    agent.kill();
    until("it expires", || source.issue(&id("reviews")).is_err()).await;
    let reason = source.issue(&id("reviews")).unwrap_err().to_string();
    assert!(reason.contains("has expired") && reason.contains("SPIRE at"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spire_that_is_not_there_is_named_with_the_systems_error() {
    let dir = tempfile::tempdir().unwrap();
    let source = SpireSource::start(&dir.path().join("none.sock"), DOMAIN, &tokio::runtime::Handle::current());
    until("the error is known", || source.issue(&id("a")).unwrap_err().to_string().contains("No such file")).await;
}

/// Application -> our server -> our SPIRE source -> another server as the agent: also tokens come from the agent.
#[tokio::test(flavor = "multi_thread")]
async fn applications_get_spires_identities_and_tokens_through_us() {
    let agent = Server::start(3600, &["reviews", "ratings"]);
    let source = Arc::new(SpireSource::start(&agent.path(), DOMAIN, &tokio::runtime::Handle::current()));
    until("identities come", || source.issue(&id("reviews")).is_ok()).await;

    let mut ours = Server::start(3600, &["reviews"]);
    ours.kill();
    until("the socket is free", || std::os::unix::net::UnixStream::connect(ours.path()).is_err()).await;
    ours.serve_with(Arc::clone(&source) as Arc<dyn IdentitySource>, Tokens::Spire(Arc::clone(&source)));
    let mut client = ours.client().await;
    let mut stream = client.x509_svids().await.unwrap();
    let svid = next(&mut stream).await.unwrap();
    assert_eq!(ids(&svid), [id("reviews").as_str()]);
    assert_eq!(svid.svids[0].bundle, agent.authority.bundles()[0].roots.concat());

    let token = client.jwt_svids(vec!["shop".into()], String::new()).await.unwrap().svids.remove(0);
    assert_eq!(token.spiffe_id, id("reviews").to_string(), "not bound to ratings here");
    let mut agents = agent.client().await;
    agents.validate_jwt_svid("shop".into(), token.svid.clone()).await.expect("the agent has signed it");
    client.validate_jwt_svid("shop".into(), token.svid).await.unwrap();
    let theirs = next(&mut agents.jwt_bundles().await.unwrap()).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let passed_on = match client.jwt_bundles().await {
            Ok(mut stream) => next(&mut stream).await,
            Err(status) => Err(status),
        };
        match passed_on {
            Ok(bundles) => break assert_eq!(bundles, theirs),
            Err(status) => assert!(Instant::now() < deadline, "{status:?}"),
        }
    }

    // A rotation at the agent goes through to the application's open stream.
    agent.authority.prepare_root().unwrap();
    let rotated = next(&mut stream).await.unwrap();
    assert_eq!(rotated.svids[0].bundle, agent.authority.bundles()[0].roots.concat());
}

#[test]
fn a_socket_in_use_is_not_taken_and_a_stale_one_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let first = bind(&path).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o666);
    assert_eq!(bind(&path).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    drop(first);
    bind(&path).unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert_eq!(bind(&file).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}
