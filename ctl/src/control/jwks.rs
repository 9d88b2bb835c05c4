//! Key sets of token issuers: fetched from `jwksUri` or from what the issuer's discovery document names, again and again.
//! Only control fetches, and only what the configuration names: no token can make anybody fetch anything. What was
//! fetched last is kept while a fetch fails, and over a restart.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, Uri, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use meshring_core::limits::{JWKS_BYTES_MAX, JWKS_REFRESH_S_MIN};

use super::run_dir::RunDir;
use crate::{compile::JwksTable, spec::request_authentication::KeySource};

/// A pause is shorter by up to this part of it, so that not all processes ask an issuer at once.
const JITTER_DIVISOR: u64 = 10;
/// First pause after a failure, in milliseconds; each further one doubles it, up to that between two fetches that succeed.
const RETRY_MS_MIN: u64 = 1_000;
/// How long a compilation waits for sets that are new, in milliseconds. What comes later makes a generation of its own.
const FIRST_MS_MAX: u64 = 2_000;
/// How often it is looked which sets are due, in milliseconds.
pub(super) const PERIOD_MS: u64 = 500;
/// Redirections that are followed.
const REDIRECTS_MAX: usize = 5;
/// Sets that are fetched at a time.
const PARALLEL_MAX: usize = 8;
/// The last good sets, in the run directory.
const FILE_NAME: &str = "jwks.json";

/// A set could not be fetched. What is shown repeats nothing of a body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// No answer in time.
    #[error("no answer within {0} ms")]
    Timeout(u64),
    /// The connection, its TLS or its HTTP.
    #[error("{0}")]
    Transport(String),
    /// Not 200.
    #[error("status {0}")]
    Status(u16),
    /// Too many of them, to no URL, or from https to http.
    #[error("a redirection that is not followed")]
    Redirect,
    /// See [`JWKS_BYTES_MAX`].
    #[error("longer than {JWKS_BYTES_MAX} bytes")]
    TooLarge,
    /// No set, or no discovery document.
    #[error("{0}")]
    Content(&'static str),
}

/// Reads what a predecessor has fetched. What is not understood is fetched anew.
#[must_use]
pub fn load(run_dir: &RunDir) -> JwksTable {
    let stored = run_dir.load(FILE_NAME).ok().flatten().unwrap_or_default();
    let list: Vec<(KeySource, Arc<str>)> = serde_json::from_slice(&stored).unwrap_or_default();
    JwksTable(list.into_iter().filter(|(_, text)| key_set(text.as_bytes()).is_ok()).collect())
}

/// Writes them. A failure only costs the next start a fetch: it is logged.
pub fn store(table: &JwksTable, run_dir: &RunDir) {
    let list: Vec<_> = table.0.iter().collect();
    let stored = serde_json::to_vec(&list).map_err(io::Error::other).and_then(|json| run_dir.store(FILE_NAME, &json));
    if let Err(error) = stored {
        tracing::error!(
            "{}: {error}; after a restart key sets have to be fetched first",
            run_dir.join(FILE_NAME).display()
        );
    }
}

/// Forgets sets that nobody needs and fetches those that are not known yet, for a bounded time.
pub fn learn(known: &mut JwksTable, sources: &[KeySource], run_dir: &RunDir) {
    let before = known.0.len();
    known.0.retain(|source, _| sources.binary_search(source).is_ok());
    let mut is_changed = known.0.len() != before;
    let new: Vec<KeySource> = sources.iter().filter(|source| !known.0.contains_key(source)).cloned().collect();
    if !new.is_empty() {
        let (sender, receiver) = mpsc::channel();
        let asked = new.clone();
        let spawned = std::thread::Builder::new().name("jwks".into()).spawn(move || {
            fetch_all(&asked, &mut |source, outcome| {
                // Nobody listens any more after the deadline: the refresher asks again.
                let _ = sender.send((source, outcome));
            });
        });
        if let Err(error) = spawned {
            tracing::error!("no thread to fetch key sets: {error}");
        }
        let deadline = Instant::now() + Duration::from_millis(FIRST_MS_MAX);
        while let Ok((source, outcome)) = receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if let Ok(text) = outcome {
                known.0.insert(source, text);
                is_changed = true;
            }
        }
        for source in new.iter().filter(|source| !known.0.contains_key(source)) {
            tracing::warn!(
                "no key set from {} yet: tokens of its issuer get 401; it is fetched again soon",
                source.url
            );
        }
    }
    if is_changed {
        store(known, run_dir);
    }
}

/// When each set is due, and what came of the last fetch.
#[derive(Debug)]
pub struct Refresher {
    /// From one fetch of a set to the next.
    interval: Duration,
    due: BTreeMap<KeySource, Due>,
}

#[derive(Debug)]
struct Due {
    at: Instant,
    failures: u32,
    /// What was logged last: the same failure is logged once.
    failure: Option<FetchError>,
}

impl Refresher {
    /// One that fetches each set again after so long, at least [`JWKS_REFRESH_S_MIN`].
    #[must_use]
    pub fn new(interval: Duration) -> Self {
        Self { interval: interval.max(Duration::from_secs(JWKS_REFRESH_S_MIN)), due: BTreeMap::new() }
    }

    /// Fetches the sets of `sources` that are due; `known` says which are there already. Returns those that came.
    pub fn refresh(&mut self, sources: &[KeySource], known: &JwksTable) -> Vec<(KeySource, Arc<str>)> {
        self.due.retain(|source, _| sources.binary_search(source).is_ok());
        let now = Instant::now();
        for source in sources {
            let is_known = known.0.contains_key(source);
            self.due.entry(source.clone()).or_insert_with(|| {
                // A set from disk may be old: it is fetched again soon, as is one that did not come at first.
                let at = now + Duration::from_millis(if is_known { RETRY_MS_MIN } else { 0 });
                Due { at, failures: 0, failure: None }
            });
        }
        let due: Vec<KeySource> =
            self.due.iter().filter(|(_, due)| due.at <= now).map(|(source, _)| source.clone()).collect();
        let mut came = Vec::new();
        if !due.is_empty() {
            fetch_all(&due, &mut |source, outcome| {
                self.note(&source, outcome.as_ref().err());
                came.extend(outcome.ok().map(|text| (source, text)));
            });
        }
        came
    }

    fn note(&mut self, source: &KeySource, error: Option<&FetchError>) {
        let Some(due) = self.due.get_mut(source) else { return };
        match error {
            None => {
                if due.failure.take().is_some() {
                    tracing::info!("the key set from {} can be fetched again", source.url);
                }
                due.failures = 0;
            }
            Some(error) => {
                due.failures = due.failures.saturating_add(1);
                if due.failure.as_ref() != Some(error) {
                    tracing::warn!("key set from {}: {error}; the last good one goes on", source.url);
                    due.failure = Some(error.clone());
                }
            }
        }
        due.at = Instant::now() + pause(due.failures, spread(source), self.interval);
    }
}

/// The pause after so many failures in a row, at most `interval`; `spread` is any number.
fn pause(failures: u32, spread: u64, interval: Duration) -> Duration {
    let interval_ms = interval.as_millis() as u64;
    let ms = match failures {
        0 => interval_ms,
        _ => RETRY_MS_MIN.saturating_mul(1 << (failures - 1).min(20)).min(interval_ms),
    };
    Duration::from_millis(ms - spread % (ms / JITTER_DIVISOR))
}

/// Differs from process to process, from set to set and from time to time.
fn spread(source: &KeySource) -> u64 {
    let now_ns = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    xxhash_rust::xxh3::xxh3_64_with_seed(source.url.as_bytes(), now_ns ^ u64::from(std::process::id()))
}

type Web = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// Fetches sets, some at a time, on a runtime of its own; `each` gets them as they come.
fn fetch_all(sources: &[KeySource], each: &mut dyn FnMut(KeySource, Result<Arc<str>, FetchError>)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let failed = |error: io::Error| FetchError::Transport(error.to_string());
    let (runtime, web) = match (runtime, web()) {
        (Ok(runtime), Ok(web)) => (runtime, web),
        (Err(error), _) | (_, Err(error)) => {
            let error = failed(error);
            return sources.iter().for_each(|source| each(source.clone(), Err(error.clone())));
        }
    };
    runtime.block_on(async {
        let mut rest = sources.iter().cloned();
        let mut running = tokio::task::JoinSet::new();
        loop {
            while running.len() < PARALLEL_MAX
                && let Some(source) = rest.next()
            {
                let web = web.clone();
                running.spawn(async move {
                    let outcome = fetch(&web, &source).await;
                    (source, outcome)
                });
            }
            match running.join_next().await {
                Some(Ok((source, outcome))) => each(source, outcome),
                Some(Err(error)) => tracing::error!("fetching a key set: {error}"),
                None => return,
            }
        }
    });
}

fn web() -> io::Result<Web> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let builder = HttpsConnectorBuilder::new();
    let connector = match builder.with_provider_and_native_roots(provider.clone()) {
        Ok(builder) => builder,
        // A host without any root certificate can still fetch over http.
        Err(_) => {
            let config = rustls::ClientConfig::builder_with_provider(provider.into())
                .with_safe_default_protocol_versions()
                .map_err(io::Error::other)?
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            HttpsConnectorBuilder::new().with_tls_config(config)
        }
    };
    Ok(Client::builder(TokioExecutor::new()).build(connector.https_or_http().enable_http1().build()))
}

async fn fetch(web: &Web, source: &KeySource) -> Result<Arc<str>, FetchError> {
    let all = async {
        let mut url: Uri = source.url.parse().map_err(|_| FetchError::Redirect)?;
        if source.is_discovery {
            let document = get(web, url.clone()).await?;
            url = jwks_uri(&document, &url)?;
        }
        key_set(&get(web, url).await?)
    };
    let timeout = Duration::from_millis(source.timeout_ms);
    tokio::time::timeout(timeout, all).await.unwrap_or(Err(FetchError::Timeout(source.timeout_ms)))
}

/// Gets a bounded body, following redirections.
async fn get(web: &Web, mut url: Uri) -> Result<Bytes, FetchError> {
    let transport = |error: &dyn std::error::Error| {
        // The outer error says no more than "client error": the cause is what helps.
        let mut cause = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        FetchError::Transport(cause.to_string())
    };
    for _ in 0..=REDIRECTS_MAX {
        let request = Request::get(url.clone())
            .header(header::ACCEPT, "application/json, application/jwk-set+json")
            .header(header::USER_AGENT, "meshring")
            .body(Empty::new())
            .map_err(|error| transport(&error))?;
        let response = web.request(request).await.map_err(|error| transport(&error))?;
        match response.status() {
            StatusCode::OK => {
                let body = Limited::new(response.into_body(), JWKS_BYTES_MAX).collect().await;
                return body.map(|body| body.to_bytes()).map_err(|error| {
                    let too_large = error.is::<http_body_util::LengthLimitError>();
                    if too_large { FetchError::TooLarge } else { transport(&*error) }
                });
            }
            StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT => {
                let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
                url = location.and_then(|location| redirected(&url, location)).ok_or(FetchError::Redirect)?;
            }
            status => return Err(FetchError::Status(status.as_u16())),
        }
    }
    Err(FetchError::Redirect)
}

/// Where a redirection leads: an absolute URL or an absolute path, and never from https to http.
fn redirected(from: &Uri, location: &str) -> Option<Uri> {
    let to: Uri = location.parse().ok()?;
    let to = match to.scheme_str() {
        None if location.starts_with('/') && to.authority().is_none() => {
            let mut parts = from.clone().into_parts();
            parts.path_and_query = to.path_and_query().cloned();
            Uri::from_parts(parts).ok()?
        }
        _ => to,
    };
    is_allowed(from, &to).then_some(to)
}

fn is_allowed(from: &Uri, to: &Uri) -> bool {
    match to.scheme_str() {
        Some("https") => true,
        Some("http") => from.scheme_str() == Some("http"),
        _ => false,
    }
}

/// `jwks_uri` of an OpenID Provider's configuration (OpenID Connect Discovery 1.0 section 3).
fn jwks_uri(document: &[u8], from: &Uri) -> Result<Uri, FetchError> {
    let wrong = FetchError::Content("no OpenID configuration with a jwks_uri of http or https");
    let json: serde_json::Value = serde_json::from_slice(document).map_err(|_| wrong.clone())?;
    let uri = json.get("jwks_uri").and_then(serde_json::Value::as_str).and_then(|text| text.parse().ok());
    uri.filter(|uri| is_allowed(from, uri)).ok_or(wrong)
}

/// A text that is a JWK set; which keys of it can be used is for proxies to say.
fn key_set(body: &[u8]) -> Result<Arc<str>, FetchError> {
    let wrong = FetchError::Content("no JWK set");
    let text = std::str::from_utf8(body).map_err(|_| wrong.clone())?;
    let json: serde_json::Value = serde_json::from_str(text).map_err(|_| wrong.clone())?;
    let keys = json.get("keys").and_then(serde_json::Value::as_array).ok_or(wrong)?;
    if keys.is_empty() {
        // An issuer that is being repaired: nothing to exchange good keys for.
        return Err(FetchError::Content("a JWK set without keys"));
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
    };

    use meshring_core::limits::JWKS_REFRESH_S;

    use super::*;

    const SET: &str = r#"{"keys":[{"kty":"RSA"}]}"#;

    fn source(url: &str, is_discovery: bool) -> KeySource {
        KeySource { url: url.into(), is_discovery, timeout_ms: 2_000 }
    }

    /// Answers as many requests as there are answers, by path; ends with the test.
    fn serve(answers: Vec<(&'static str, String)>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let own = base.clone();
        std::thread::spawn(move || {
            for (path, answer) in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") {
                    stream.read_exact(&mut byte).unwrap();
                    head.push(byte[0]);
                }
                let line = String::from_utf8(head).unwrap().lines().next().unwrap().to_owned();
                assert_eq!(line, format!("GET {path} HTTP/1.1"));
                // A client that has read too much hangs up early.
                let _ = stream.write_all(answer.replace("BASE", &own).as_bytes());
            }
        });
        base
    }

    fn ok(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{body}")
    }

    fn to(location: &str) -> String {
        format!("HTTP/1.1 302 Found\r\nconnection: close\r\ncontent-length: 0\r\nlocation: {location}\r\n\r\n")
    }

    fn fetched(source: KeySource) -> Result<Arc<str>, FetchError> {
        let mut outcome = None;
        fetch_all(&[source], &mut |_, result| outcome = Some(result));
        outcome.unwrap()
    }

    #[test]
    fn a_set_is_fetched_over_redirections_and_discovery() {
        let base = serve(vec![("/a", to("/b?x=1")), ("/b?x=1", to("BASE/c")), ("/c", ok(SET))]);
        assert_eq!(fetched(source(&format!("{base}/a"), false)), Ok(SET.into()));
        let path = "/.well-known/openid-configuration";
        let base = serve(vec![(path, ok(r#"{"jwks_uri":"BASE/keys"}"#)), ("/keys", ok(SET))]);
        assert_eq!(fetched(source(&format!("{base}{path}"), true)), Ok(SET.into()));
    }

    #[test]
    fn what_is_no_set_is_refused() {
        let one = |answer: String| {
            let base = serve(vec![("/", answer)]);
            fetched(source(&base, false)).unwrap_err()
        };
        assert_eq!(one("HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n".into()), FetchError::Status(500));
        assert_eq!(one(ok("{}")), FetchError::Content("no JWK set"));
        assert_eq!(one(ok(r#"{"keys":[]}"#)), FetchError::Content("a JWK set without keys"));
        assert_eq!(one(ok(&" ".repeat(JWKS_BYTES_MAX + 1))), FetchError::TooLarge);
        assert_eq!(one(to("ftp://a/")), FetchError::Redirect);
        assert!(matches!(one("nonsense\r\n\r\n".into()), FetchError::Transport(_)));
        let around = serve((0..=REDIRECTS_MAX).map(|_| ("/", to("/"))).collect());
        assert_eq!(fetched(source(&around, false)), Err(FetchError::Redirect));
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", silent.local_addr().unwrap());
        assert_eq!(fetched(KeySource { timeout_ms: 50, ..source(&url, false) }), Err(FetchError::Timeout(50)));
        drop(silent);
        assert!(matches!(fetched(source(&url, false)), Err(FetchError::Transport(_))));
    }

    #[test]
    fn nobody_is_led_from_https_to_http() {
        let uri = |text: &str| text.parse::<Uri>().unwrap();
        assert_eq!(redirected(&uri("https://a/x"), "http://a/x"), None);
        assert_eq!(redirected(&uri("https://a/x?q"), "/y"), Some(uri("https://a/y")));
        assert_eq!(redirected(&uri("http://a/x"), "https://b/"), Some(uri("https://b/")));
        assert!(jwks_uri(br#"{"jwks_uri":"http://a/"}"#, &uri("https://a/")).is_err());
    }

    #[test]
    fn pauses_grow_with_failures_and_stay_below_the_period() {
        for spread in [0, 1, 12_345, u64::MAX] {
            let of = |failures, s| u64::try_from(pause(failures, spread, Duration::from_secs(s)).as_millis()).unwrap();
            let ms = |failures| of(failures, JWKS_REFRESH_S);
            let whole = 1_000 * JWKS_REFRESH_S;
            assert!((whole - whole / 10..=whole).contains(&ms(0)));
            assert!((900..=1_000).contains(&ms(1)) && (3_600..=4_000).contains(&ms(3)));
            assert!((whole - whole / 10..=whole).contains(&ms(u32::MAX)));
            assert!((900..=1_000).contains(&of(0, 1)) && (900..=1_000).contains(&of(5, 1)));
        }
    }

    #[test]
    fn the_last_good_set_outlives_failures_and_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::open(dir.path()).unwrap();
        let base = serve(vec![("/", ok(SET))]);
        let sources = [source(&base, false)];
        let mut known = load(&run_dir);
        assert_eq!(known, JwksTable::default());
        learn(&mut known, &sources, &run_dir);
        assert_eq!(known.0[&sources[0]], SET.into());
        let mut restarted = load(&run_dir);
        assert_eq!(restarted, known);
        // The issuer is gone: what is known is not asked for again, and a failing refresh takes nothing away.
        learn(&mut restarted, &sources, &run_dir);
        assert_eq!(restarted, known);
        let mut refresher = Refresher::new(Duration::from_secs(JWKS_REFRESH_S));
        assert_eq!(refresher.refresh(&sources, &known), []);
        refresher.due.get_mut(&sources[0]).unwrap().at = Instant::now();
        assert_eq!(refresher.refresh(&sources, &known), []);
        let due = &refresher.due[&sources[0]];
        assert!(due.failures == 1 && due.failure.is_some() && due.at > Instant::now());
        learn(&mut restarted, &[], &run_dir);
        assert_eq!(load(&run_dir), JwksTable::default());
        std::fs::write(run_dir.join(FILE_NAME), "{").unwrap();
        assert_eq!(load(&run_dir), JwksTable::default());
    }
}
