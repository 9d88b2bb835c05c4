//! Calls of control's API (HTTP and JSON on RUN_DIR/control.sock), one after the other on one connection.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use meshring_core::http::fields::Fields;
use meshring_core::http::head::{BodyFraming, Bounds, Method};
use meshring_core::http::response;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::limits::{API_ANSWER_BYTES_MAX, API_TIMEOUT, READ_BUFFER_BYTES};

/// Name of the socket in the run directory.
const SOCKET_NAME: &str = "control.sock";

/// The call of `meshring apply`, its wait for the workers included.
const APPLY: &str = "/v1/apply?wait=true&dry_run=false&timeout_ms=5000";

/// Body of an apply.
#[derive(Debug, Serialize)]
pub(crate) struct Files<'a> {
    pub(crate) files: [File<'a>; 1],
}

/// A file on its way to control.
#[derive(Debug, Serialize)]
pub(crate) struct File<'a> {
    pub(crate) path: &'a str,
    pub(crate) text: &'a str,
}

impl<'a> Files<'a> {
    /// One file.
    pub(crate) fn one(path: &'a str, text: &'a str) -> Self {
        Self { files: [File { path, text }] }
    }
}

/// What control says of an apply; only what is needed here.
#[derive(Debug, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) new_generation: bool,
    pub(crate) bytes: usize,
    pub(crate) compile_ms: f64,
    pub(crate) prepare_ms: f64,
    pub(crate) stale: Vec<String>,
    pub(crate) applied: Applied,
}

/// How far the generation of an apply has come.
#[derive(Debug, Deserialize)]
pub(crate) struct Applied {
    pub(crate) complete: bool,
    pub(crate) proxies: usize,
    pub(crate) workers_current: usize,
    /// From the call, as control has received it, to the last acknowledgement, in milliseconds.
    pub(crate) ms: f64,
}

/// An answered apply.
#[derive(Debug)]
pub(crate) struct Answered {
    /// From the start of the call to the whole answer.
    pub(crate) time: Duration,
    /// Err: what control refused it with.
    pub(crate) outcome: Result<Outcome, String>,
}

/// A kept-alive connection.
#[derive(Debug)]
pub(crate) struct Api {
    stream: UnixStream,
    input: Vec<u8>,
}

impl Api {
    /// Fails while nobody listens. `time_max` bounds the first answer: control answers once it has compiled.
    pub(crate) fn open(run_dir: &Path, time_max: Duration) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(run_dir.join(SOCKET_NAME))?;
        stream.set_read_timeout(Some(time_max.max(API_TIMEOUT)))?;
        stream.set_write_timeout(Some(API_TIMEOUT))?;
        Ok(Self { stream, input: Vec::with_capacity(READ_BUFFER_BYTES) })
    }

    /// `GET` of something that must be there.
    pub(crate) fn get<T: DeserializeOwned>(&mut self, path: &str) -> anyhow::Result<T> {
        let (status, body) = self.call("GET", path, &[])?;
        if status != 200 {
            bail!("control answers GET {path} with {status}: {}", String::from_utf8_lossy(body));
        }
        serde_json::from_slice(body).with_context(|| format!("control's answer to GET {path}"))
    }

    /// The sum of a counter's values, of all proxies and workers.
    pub(crate) fn counter(&mut self, name: &str) -> anyhow::Result<f64> {
        let (status, body) = self.call("GET", "/metrics", &[])?;
        if status != 200 {
            bail!("control answers GET /metrics with {status}: {}", String::from_utf8_lossy(body));
        }
        sum_of(std::str::from_utf8(body)?, name).with_context(|| format!("control tells no {name}"))
    }

    /// Applies files and waits for all workers.
    pub(crate) fn apply(&mut self, files: &Files<'_>) -> anyhow::Result<Answered> {
        let body = serde_json::to_vec(files)?;
        let begin = Instant::now();
        let (status, answer) = self.call("POST", APPLY, &body)?;
        let time = begin.elapsed();
        let outcome = if status == 200 {
            Ok(serde_json::from_slice(answer).context("control's answer to an apply")?)
        } else {
            Err(format!("status {status}: {}", String::from_utf8_lossy(answer)))
        };
        Ok(Answered { time, outcome })
    }

    /// Status and body of the answer.
    fn call(&mut self, method: &str, path: &str, body: &[u8]) -> anyhow::Result<(u16, &[u8])> {
        let length = body.len();
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: control\r\ncontent-type: application/json\r\ncontent-length: \
             {length}\r\n\r\n"
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.stream.write_all(&request).context("control's API")?;
        self.input.clear();
        loop {
            if let Some(head) = parse_head(&self.input)? {
                let whole = head.bytes + head.body_bytes;
                if self.input.len() > whole {
                    bail!("control's API sends more than was asked for");
                }
                if self.input.len() == whole {
                    return Ok((head.status, &self.input[head.bytes..]));
                }
            }
            self.read_some()?;
        }
    }

    fn read_some(&mut self) -> anyhow::Result<()> {
        let mut buffer = [0; READ_BUFFER_BYTES];
        let count = loop {
            match self.stream.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result.context("control's API")?,
            }
        };
        if count == 0 {
            bail!("control has closed its connection without an answer");
        }
        self.input.extend_from_slice(&buffer[..count]);
        Ok(())
    }
}

/// Of the values of one name in Prometheus' text format; none if it is not there.
fn sum_of(text: &str, name: &str) -> Option<f64> {
    let of_name = |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let values = text.lines().filter(|line| of_name(line)).map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
    values.reduce(|sum, value| Some(sum? + value?))?
}

/// The head of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    bytes: usize,
    body_bytes: usize,
}

/// None as long as it is not whole. Control always tells the length of its answers.
fn parse_head(bytes: &[u8]) -> anyhow::Result<Option<Head>> {
    let parsed = response::parse(bytes, &mut Fields::new(), Method::Get, Bounds::FIRST_HOP);
    let Some(head) = parsed.context("control's answer")? else { return Ok(None) };
    let BodyFraming::Length(length) = head.framing else { bail!("control's answer does not tell its length") };
    match usize::try_from(length) {
        Ok(body_bytes) if body_bytes <= API_ANSWER_BYTES_MAX => {
            Ok(Some(Head { status: head.status, bytes: head.len, body_bytes }))
        }
        _ => bail!("control's answer has {length} bytes; at most {API_ANSWER_BYTES_MAX} are read"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    #[test]
    fn a_head_is_whole_or_asks_for_more_and_must_tell_its_length() {
        let head = b"HTTP/1.1 409 Conflict\r\nContent-Length: 12\r\n\r\n";
        for length in 0..head.len() {
            assert_eq!(parse_head(&head[..length]).unwrap(), None);
        }
        assert_eq!(parse_head(head).unwrap(), Some(Head { status: 409, bytes: head.len(), body_bytes: 12 }));
        assert!(parse_head(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        assert!(parse_head(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n").is_err());
    }

    #[test]
    fn the_values_of_a_counter_are_added_up() {
        let text =
            "# TYPE a_total counter\na_total{worker=\"0\"} 3\na_total{worker=\"1\"} 4\na_total_more 9\nb_total 5\n";
        assert_eq!(sum_of(text, "a_total"), Some(7.0));
        assert_eq!(sum_of(text, "b_total"), Some(5.0));
        assert_eq!(sum_of(text, "total"), None);
    }

    #[test]
    fn calls_share_a_connection_and_a_refusal_is_told_from_a_success() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap();
        let accepted = r#"{"generation":2,"new_generation":true,"bytes":7,"compile_ms":0.5,"prepare_ms":0.25,"stale":[],
            "applied":{"complete":true,"proxies":10,"workers_current":10,"workers":10,"ms":1.0,"missing":[]}}"#;
        let answers = [(200, accepted), (422, "{}")];
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut requests = Vec::new();
            for (status, body) in answers {
                let mut input = Vec::new();
                while !input.ends_with(b"}]}") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    input.push(byte[0]);
                }
                requests.push(String::from_utf8(input).unwrap());
                write!(stream, "HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
            }
            requests
        });
        let mut api = Api::open(dir.path(), API_TIMEOUT).unwrap();
        let outcome = api.apply(&Files::one("a.yaml", "x: 1")).unwrap().outcome.unwrap();
        assert!(outcome.new_generation && outcome.applied.complete);
        assert_eq!((outcome.bytes, outcome.applied.proxies), (7, 10));
        let refusal = api.apply(&Files::one("a.yaml", "x: 1")).unwrap().outcome.unwrap_err();
        assert_eq!(refusal, "status 422: {}");
        let requests = server.join().unwrap();
        assert!(requests[0].starts_with("POST /v1/apply?wait=true&"), "{}", requests[0]);
        assert!(requests[0].ends_with(r#"{"files":[{"path":"a.yaml","text":"x: 1"}]}"#), "{}", requests[0]);
    }
}
