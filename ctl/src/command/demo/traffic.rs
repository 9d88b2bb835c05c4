//! Page views, and who answered them.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode, client::conn::http1, header, header::HeaderValue};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{net::TcpStream, task::JoinHandle};

use super::{Failure, refused};

/// Page views at a time.
const CONCURRENCY: usize = 8;
/// Reasons of failures that are kept to be shown.
const REASONS_MAX: usize = 3;

/// A request without an answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadFetch {
    #[error("connect: {0}")]
    Connect(#[from] std::io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("no answer within 5 s")]
    Late,
}

/// A keep-alive connection.
pub(super) struct Connection {
    sender: http1::SendRequest<Empty<Bytes>>,
    task: JoinHandle<Result<(), hyper::Error>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    pub(super) async fn open(address: SocketAddr) -> Result<Self, BadFetch> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        Ok(Self { sender, task: tokio::spawn(connection) })
    }
}

/// One `GET /`.
pub(super) async fn fetch(connection: &mut Connection, host: &HeaderValue) -> Result<(StatusCode, Bytes), BadFetch> {
    let mut request = Request::new(Empty::new());
    request.headers_mut().insert(header::HOST, host.clone());
    let exchange = async {
        connection.sender.ready().await?;
        let response = connection.sender.send_request(request).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    };
    tokio::time::timeout(Duration::from_secs(5), exchange).await.unwrap_or(Err(BadFetch::Late))
}

/// Answers by version.
#[derive(Debug, Default, Clone)]
pub(super) struct Tally {
    versions: BTreeMap<String, usize>,
    failures: usize,
}

impl Tally {
    pub(super) fn versions(&self) -> &BTreeMap<String, usize> {
        &self.versions
    }

    pub(super) fn total(&self) -> usize {
        self.versions.values().sum::<usize>() + self.failures
    }

    fn add(&mut self, answer: Option<&String>) {
        match answer {
            Some(version) => *self.versions.entry(version.clone()).or_default() += 1,
            None => self.failures += 1,
        }
    }
}

#[derive(Debug, Clone)]
struct View {
    begin: Instant,
    took: Duration,
    /// The version, or `None` for a failure.
    version: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    views: Vec<View>,
    reasons: Vec<String>,
    started: usize,
    stop: bool,
}

/// Page views that are under way.
pub(super) struct Load {
    shared: Rc<RefCell<Shared>>,
    limit: Option<usize>,
    begin: Instant,
    tasks: Vec<JoinHandle<()>>,
    local: tokio::task::LocalSet,
}

/// Page views that are over.
pub(super) struct Measured {
    views: Vec<View>,
    reasons: Vec<String>,
    took: Duration,
}

impl Load {
    /// As fast as the answers come, until `limit` or until it is finished.
    pub(super) fn start(page: SocketAddr, limit: Option<usize>) -> Self {
        let shared = Rc::new(RefCell::new(Shared::default()));
        let local = tokio::task::LocalSet::new();
        let tasks = (0..CONCURRENCY).map(|_| local.spawn_local(client(page, limit, Rc::clone(&shared)))).collect();
        Self { shared, limit, begin: Instant::now(), tasks, local }
    }

    /// At a steady rate, for as long as the value lives and the caller runs it.
    pub(super) fn steady(page: SocketAddr, per_second: u32) -> JoinHandle<()> {
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
            let host = HeaderValue::from_static("productpage");
            let mut connection: Option<Connection> = None;
            loop {
                ticks.tick().await;
                if connection.is_none() {
                    connection = Connection::open(page).await.ok();
                }
                if let Some(open) = &mut connection
                    && fetch(open, &host).await.is_err()
                {
                    connection = None;
                }
            }
        })
    }

    /// Page views that are complete.
    pub(super) fn count(&self) -> usize {
        self.shared.borrow().views.len()
    }

    /// Runs until so many page views are complete.
    pub(super) async fn reach(&self, count: usize) {
        self.local
            .run_until(async {
                while self.shared.borrow().views.len() < count {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
            .await;
    }

    /// Now, to tell page views before from those after.
    pub(super) fn mark(&self) -> Instant {
        Instant::now()
    }

    /// Waits for the limit, or ends it where there is none; what is under way is completed.
    pub(super) async fn finish(mut self) -> Measured {
        let tasks = std::mem::take(&mut self.tasks);
        self.shared.borrow_mut().stop = self.limit.is_none();
        self.local
            .run_until(async {
                for task in tasks {
                    // A task that panicked has left its mark in the numbers.
                    let _ = task.await;
                }
            })
            .await;
        let mut shared = self.shared.borrow_mut();
        let (views, reasons) = (std::mem::take(&mut shared.views), std::mem::take(&mut shared.reasons));
        Measured { views, reasons, took: self.begin.elapsed() }
    }
}

#[derive(Deserialize)]
struct Page {
    reviews: String,
}

async fn client(page: SocketAddr, limit: Option<usize>, shared: Rc<RefCell<Shared>>) {
    let host = HeaderValue::from_static("productpage");
    let mut connection: Option<Connection> = None;
    loop {
        {
            let mut shared = shared.borrow_mut();
            if shared.stop || limit.is_some_and(|limit| shared.started >= limit) {
                return;
            }
            shared.started += 1;
        }
        let begin = Instant::now();
        let answer = async {
            if connection.is_none() {
                connection = Some(Connection::open(page).await?);
            }
            match &mut connection {
                Some(open) => fetch(open, &host).await,
                None => Err(BadFetch::Late),
            }
        };
        let answer = answer.await;
        let version = match &answer {
            Ok((StatusCode::OK, body)) => {
                serde_json::from_slice(body).map(|page: Page| page.reviews).map_err(|e| e.to_string())
            }
            Ok((status, body)) => Err(format!("status {status}: {}", String::from_utf8_lossy(body).trim_end())),
            Err(error) => Err(error.to_string()),
        };
        if answer.is_err() {
            connection = None;
        }
        let mut shared = shared.borrow_mut();
        if let Err(reason) = &version
            && shared.reasons.len() < REASONS_MAX
        {
            shared.reasons.push(reason.clone());
        }
        shared.views.push(View { begin, took: begin.elapsed(), version: version.ok() });
    }
}

impl Measured {
    pub(super) fn all(&self) -> Tally {
        self.tally(|_| true)
    }

    /// Those that began after `mark`.
    pub(super) fn since(&self, mark: Instant) -> Tally {
        self.tally(|view| view.begin >= mark)
    }

    fn tally(&self, counts: impl Fn(&View) -> bool) -> Tally {
        let mut tally = Tally::default();
        self.views.iter().filter(|view| counts(view)).for_each(|view| tally.add(view.version.as_ref()));
        tally
    }

    pub(super) fn failures(&self) -> usize {
        self.all().failures
    }

    pub(super) fn per_second(&self) -> f64 {
        self.views.len() as f64 / self.took.as_secs_f64().max(1e-9)
    }

    pub(super) fn p50_ms(&self) -> f64 {
        let mut took: Vec<Duration> = self.views.iter().map(|view| view.took).collect();
        took.sort();
        took.get(took.len() / 2).map_or(0.0, |took| took.as_secs_f64() * 1e3)
    }

    /// A failure is a bug of ours: the demo says so.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match self.failures() {
            0 => Ok(()),
            failures => Err(refused(format!(
                "{failures} of {} page views failed, such as: {}",
                self.views.len(),
                self.reasons.join("; ")
            ))),
        }
    }
}
