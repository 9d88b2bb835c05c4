//! Readers of HTTP/1.1 that are not ours, for what we write: httparse for a head, its fields in their order, and hyper with the
//! types of the http crate for whole connections: framing, bodies, trailers, and where the next message begins.
//! h11 and llhttp judge the proxy itself in `tests/tests/judges.rs`.

mod connection;

pub use connection::{Answered, Next, answered, requests};

use hyper::{HeaderMap, header::HeaderValue};

/// A name and a value without the blanks around it.
pub type Field = (Vec<u8>, Vec<u8>);

/// More than core takes.
const FIELDS_MAX: usize = 256;

/// A head as httparse reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Three parts: method, target, version; or version, status, reason.
    pub start: [Vec<u8>; 3],
    /// In order of receipt.
    pub fields: Vec<Field>,
    /// Bytes.
    pub len: usize,
}

fn version(minor: Option<u8>) -> Vec<u8> {
    format!("HTTP/1.{}", minor.expect("whole")).into_bytes()
}

fn fields(fields: &[httparse::Header<'_>]) -> Vec<Field> {
    fields.iter().map(|field| (field.name.as_bytes().to_vec(), field.value.to_vec())).collect()
}

impl Head {
    /// Parses a request head.
    pub fn request(bytes: &[u8]) -> Result<Self, httparse::Error> {
        let mut storage = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut request = httparse::Request::new(&mut storage);
        let httparse::Status::Complete(len) = request.parse(bytes)? else { return Err(httparse::Error::NewLine) };
        let text = |part: Option<&str>| part.expect("whole").as_bytes().to_vec();
        let start = [text(request.method), text(request.path), version(request.version)];
        Ok(Self { start, fields: fields(request.headers), len })
    }

    /// Parses a response head.
    pub fn response(bytes: &[u8]) -> Result<Self, httparse::Error> {
        let mut storage = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut response = httparse::Response::new(&mut storage);
        let httparse::Status::Complete(len) = response.parse(bytes)? else { return Err(httparse::Error::NewLine) };
        let status = response.code.expect("whole").to_string().into_bytes();
        let start = [version(response.version), status, response.reason.expect("whole").as_bytes().to_vec()];
        Ok(Self { start, fields: fields(response.headers), len })
    }

    /// Values of a field, in order.
    pub fn values(&self, name: &str) -> Vec<&[u8]> {
        let named = |field: &&Field| field.0.eq_ignore_ascii_case(name.as_bytes());
        self.fields.iter().filter(named).map(|field| &field.1[..]).collect()
    }

    /// Fields that go on to the next hop, in order, and neither Host nor Expect, which the forwarder may rewrite.
    pub fn end_to_end(&self) -> Vec<Field> {
        let hop: [&[u8]; 10] = [
            b"connection",
            b"keep-alive",
            b"proxy-connection",
            b"te",
            b"upgrade",
            b"http2-settings",
            b"content-length",
            b"transfer-encoding",
            b"host",
            b"expect",
        ];
        let nominated: Vec<Vec<u8>> = self
            .values("connection")
            .iter()
            .flat_map(|value| value.split(|&b| b == b','))
            .map(|option| option.trim_ascii().to_ascii_lowercase())
            .filter(|option| option != b"close")
            .collect();
        let stays = |field: &&Field| {
            let name = field.0.to_ascii_lowercase();
            !hop.contains(&&name[..]) && !nominated.contains(&name)
        };
        self.fields.iter().filter(stays).cloned().collect()
    }

    /// Whether a map has the same fields; it keeps the order among those of one name only.
    pub fn is_same(&self, map: &HeaderMap) -> bool {
        let is_there = |(name, _): &Field| {
            let name = str::from_utf8(name).expect("a token");
            map.get_all(name).iter().map(HeaderValue::as_bytes).eq(self.values(name))
        };
        map.len() == self.fields.len() && self.fields.iter().all(is_there)
    }
}

/// A message as hyper reads it.
#[derive(Debug)]
pub struct Message {
    /// Method, target and version; or version, status, and nothing.
    pub start: [String; 3],
    /// All of them.
    pub fields: HeaderMap,
    /// Bytes of the body that were announced, 0 where there is none; `None` of a body that ends with a last chunk or with the
    /// connection.
    pub length: Option<u64>,
    /// The body; `None` if it is broken or cut.
    pub content: Option<Content>,
}

/// A body.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Its data, joined.
    pub data: Vec<u8>,
    /// The names in lower case.
    pub trailers: Vec<Field>,
}
