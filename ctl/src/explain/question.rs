//! The request to explain, as a proxy would see it.

use std::{fmt, net::SocketAddr};

use meshring_core::table::lookup::RequestView;

use crate::api::types::ExplainRequest;

/// A request from a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The caller's namespace.
    pub namespace: String,
    /// The caller's name.
    pub workload: String,
    /// As sent.
    pub method: String,
    /// `http` or `https`.
    pub scheme: String,
    /// The Host value, port included.
    pub authority: String,
    /// The host without port.
    pub host: String,
    /// The port, if the authority names one.
    pub port: Option<u16>,
    /// The path without query.
    pub path: String,
    /// The query without its question mark.
    pub query: Option<String>,
    /// Names are lower case.
    pub headers: Vec<(String, String)>,
    /// It is a connection, and nothing of HTTP.
    pub stream: Option<Stream>,
}

/// A connection of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// What it is for, where that is an address.
    pub address: Option<SocketAddr>,
    /// The server name in its ClientHello, in lower case.
    pub server_name: Option<String>,
}

/// A description that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadQuestion {
    /// Not `NAMESPACE/NAME`.
    #[error("--from {0:?}: write it as NAMESPACE/NAME, such as default/productpage-v1")]
    From(String),
    /// Not `http://HOST[:PORT][/PATH]`.
    #[error("--url {0:?}: write it as http://HOST[:PORT]/PATH, such as http://reviews/")]
    Url(String),
    /// Not `HOST:PORT`.
    #[error("--tcp {0:?}: write it as HOST:PORT, such as redis:6379, 10.96.0.1:6379 or *:443")]
    Tcp(String),
    /// Not `name: value`.
    #[error("-H {0:?}: write it as 'name: value'")]
    Header(String),
}

impl Question {
    /// Reads a description.
    pub fn parse(request: &ExplainRequest) -> Result<Self, BadQuestion> {
        let (namespace, workload) = request
            .from
            .split_once('/')
            .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains('/'))
            .ok_or_else(|| BadQuestion::From(request.from.clone()))?;
        if let Some(tcp) = &request.tcp {
            return Self::stream(namespace, workload, tcp, request.sni.as_deref());
        }
        let mut headers = Vec::with_capacity(request.headers.len());
        for line in &request.headers {
            let (name, value) = line.split_once(':').ok_or_else(|| BadQuestion::Header(line.clone()))?;
            headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
        let bad = || BadQuestion::Url(request.url.clone());
        // `reviews/x` is what people type: http is meant.
        let (scheme, rest) = request.url.split_once("://").unwrap_or(("http", &request.url));
        if !matches!(scheme, "http" | "https") {
            return Err(bad());
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        // A Host header is what a proxy sees, whatever the URL says.
        let host_header = headers.iter().position(|(name, _)| name == "host").map(|at| headers.remove(at).1);
        let authority = host_header.unwrap_or_else(|| authority.to_owned());
        let (host, port) = split_port(&authority).filter(|(host, _)| !host.is_empty()).ok_or_else(bad)?;
        Ok(Self {
            namespace: namespace.to_owned(),
            workload: workload.to_owned(),
            method: request.method.clone().unwrap_or_else(|| "GET".to_owned()),
            scheme: scheme.to_owned(),
            host: host.to_owned(),
            port,
            path: if path.is_empty() { "/".to_owned() } else { path.to_owned() },
            query,
            headers,
            authority,
            stream: None,
        })
    }

    fn stream(namespace: &str, workload: &str, tcp: &str, server_name: Option<&str>) -> Result<Self, BadQuestion> {
        let bad = || BadQuestion::Tcp(tcp.to_owned());
        let (host, port) = split_port(tcp).filter(|(host, _)| !host.is_empty()).ok_or_else(bad)?;
        let port = port.ok_or_else(bad)?;
        Ok(Self {
            namespace: namespace.to_owned(),
            workload: workload.to_owned(),
            method: String::new(),
            scheme: "tcp".to_owned(),
            authority: tcp.to_owned(),
            host: host.to_owned(),
            port: Some(port),
            path: String::new(),
            query: None,
            headers: Vec::new(),
            stream: Some(Stream {
                address: tcp.parse().ok(),
                server_name: server_name.map(|name| name.trim_end_matches('.').to_ascii_lowercase()),
            }),
        })
    }

    /// Values of a header, by lower-case name.
    pub fn header_values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => Some((host, Some(port.parse().ok().filter(|&port| port > 0)?))),
        _ => Some((authority, None)),
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(stream) = &self.stream {
            write!(f, "connection to {}", self.authority)?;
            if let Some(name) = &stream.server_name {
                write!(f, " (server name {name})")?;
            }
            return write!(f, " from {}/{}", self.namespace, self.workload);
        }
        write!(f, "{} {}://{}{}", self.method, self.scheme, self.authority, self.path)?;
        if let Some(query) = &self.query {
            write!(f, "?{query}")?;
        }
        for (name, value) in &self.headers {
            write!(f, " ({name}: {value})")?;
        }
        write!(f, " from {}/{}", self.namespace, self.workload)
    }
}

impl RequestView for Question {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }

    fn scheme(&self) -> &[u8] {
        self.scheme.as_bytes()
    }

    fn authority(&self) -> &[u8] {
        self.authority.as_bytes()
    }

    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }

    fn query(&self) -> Option<&[u8]> {
        self.query.as_deref().map(str::as_bytes)
    }

    fn any_header(&self, name: &str, predicate: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        // Several lines are one list, as a proxy has it.
        let values: Vec<&str> = self.header_values(name).collect();
        !values.is_empty() && predicate(values.join(",").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(from: &str, url: &str, headers: &[&str]) -> Result<Question, BadQuestion> {
        let headers = headers.iter().map(ToString::to_string).collect();
        Question::parse(&ExplainRequest {
            from: from.into(),
            url: url.into(),
            tcp: None,
            sni: None,
            method: None,
            headers,
        })
    }

    #[test]
    fn a_url_is_read_as_a_proxy_would_see_it() {
        let question = parse("default/a", "http://Reviews:9080/x/y?z=1#f", &["End-User:  jason "]).unwrap();
        assert_eq!((question.host.as_str(), question.port), ("Reviews", Some(9080)));
        assert_eq!((question.path.as_str(), question.query.as_deref()), ("/x/y", Some("z=1")));
        assert_eq!(question.headers, [("end-user".to_owned(), "jason".to_owned())]);
        let short = parse("default/a", "reviews", &[]).unwrap();
        assert_eq!((short.scheme.as_str(), short.path.as_str(), short.port), ("http", "/", None));
        let host = parse("default/a", "http://127.0.0.1:15001/", &["Host: reviews"]).unwrap();
        assert_eq!((host.host.as_str(), host.port, host.headers.len()), ("reviews", None, 0));
        let v6 = parse("default/a", "http://[::1]:80/", &[]).unwrap();
        assert_eq!((v6.host.as_str(), v6.port), ("[::1]", Some(80)));
    }

    #[test]
    fn a_connection_is_for_a_name_an_address_or_a_port() {
        let parse = |tcp: &str, sni: Option<&str>| {
            let (tcp, sni) = (Some(tcp.into()), sni.map(str::to_owned));
            Question::parse(&ExplainRequest {
                from: "a/b".into(),
                url: String::new(),
                tcp,
                sni,
                method: None,
                headers: vec![],
            })
        };
        let named = parse("redis:6379", Some("A.example.com.")).unwrap();
        assert_eq!((named.host.as_str(), named.port), ("redis", Some(6379)));
        assert_eq!(named.stream.as_ref().unwrap().server_name.as_deref(), Some("a.example.com"));
        assert_eq!(named.to_string(), "connection to redis:6379 (server name a.example.com) from a/b");
        let address = parse("[fd00::1]:80", None).unwrap().stream.unwrap().address;
        assert_eq!(address, Some("[fd00::1]:80".parse().unwrap()));
        for wrong in ["redis", ":1", "redis:0", "redis:x"] {
            assert!(parse(wrong, None).unwrap_err().to_string().contains("HOST:PORT"), "{wrong}");
        }
    }

    #[test]
    fn several_lines_of_a_header_are_one_list() {
        let question = parse("default/a", "http://b/", &["x: 1", "y: 2", "X: 3"]).unwrap();
        let seen = |name, wanted: &[u8]| question.any_header(name, &mut |value| value == wanted);
        assert!(seen("x", b"1,3") && seen("y", b"2"));
        assert!(!seen("x", b"1") && !seen("x", b"3") && !seen("z", b""));
    }

    #[test]
    fn what_is_not_understood_says_what_to_write() {
        for (from, url, headers, wanted) in [
            ("a", "http://b/", &[][..], "NAMESPACE/NAME"),
            ("a/b/c", "http://b/", &[], "NAMESPACE/NAME"),
            ("a/b", "ftp://b/", &[], "http://HOST"),
            ("a/b", "http://b:x/", &[], "http://HOST"),
            ("a/b", "http:///x", &[], "http://HOST"),
            ("a/b", "http://b/", &["nocolon"], "'name: value'"),
        ] {
            let error = parse(from, url, headers).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
