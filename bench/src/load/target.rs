//! What is requested: the URL, the address behind it, and the bytes of the request.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::error::ErrorKind;

use crate::http2;
use crate::tls::{self, TlsArgs};

/// An absolute `http` or `https` URL (RFC 9110, sections 4.2.1 and 4.2.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    /// Whether the scheme is `https`.
    secure: bool,
    /// Host and optional port, as written.
    authority: String,
    /// Path and query; at least "/".
    path: String,
}

impl Url {
    /// The first address that the authority resolves to.
    pub(crate) fn resolve(&self) -> anyhow::Result<SocketAddr> {
        let default = if self.secure { 443 } else { 80 };
        let with_port = if self.has_port() { self.authority.clone() } else { format!("{}:{default}", self.authority) };
        with_port
            .to_socket_addrs()
            .with_context(|| format!("cannot resolve {:?}", self.authority))?
            .next()
            .with_context(|| format!("{:?} resolves to no address", self.authority))
    }

    /// Ends the process, as clap does for wrong usage, if it is `https` and nothing says whom to trust.
    pub(crate) fn require_trust(&self, args: &TlsArgs) {
        if self.secure && args.ca.is_none() && !args.insecure {
            let message = "an https:// URL needs --ca FILE, or --insecure to accept any certificate\n";
            clap::Error::raw(ErrorKind::MissingRequiredArgument, message).exit();
        }
    }

    /// How to speak TLS with it; none for `http`.
    pub(crate) fn tls(&self, args: &TlsArgs, alpn: tls::Alpn) -> anyhow::Result<Option<tls::Client>> {
        self.secure.then(|| tls::Client::new(args, self.host(), alpn)).transpose()
    }

    /// The authority without its port, and without the brackets of an IPv6 address.
    fn host(&self) -> &str {
        let port = if self.has_port() { self.authority.rfind(':') } else { None };
        self.authority[..port.unwrap_or(self.authority.len())].trim_matches(['[', ']'])
    }

    fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    fn has_port(&self) -> bool {
        let after_address = self.authority.rsplit(']').next().unwrap_or_default();
        after_address.contains(':')
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme(), self.authority, self.path)
    }
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err("a URL starts with http://, such as http://127.0.0.1:8080/".to_owned());
        };
        let secure = scheme.eq_ignore_ascii_case("https");
        if !secure && !scheme.eq_ignore_ascii_case("http") {
            return Err(format!("scheme {scheme:?} is not supported; write http:// or https://"));
        }
        if let Some(bad) = rest.chars().find(|c| !c.is_ascii_graphic()) {
            return Err(format!("character {bad:?} has to be percent-encoded in a URL"));
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.is_empty() {
            return Err("no host; write http://HOST:PORT/PATH".to_owned());
        }
        if authority.contains('@') {
            return Err("user names in URLs are not supported; use --header 'authorization: …'".to_owned());
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Self { secure, authority: authority.to_owned(), path: format!("{slash}{path}") })
    }
}

/// One header field, written as `name: value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeaderField {
    name: String,
    value: String,
}

impl FromStr for HeaderField {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((name, value)) = text.split_once(':') else {
            return Err("write a header field as 'name: value'".to_owned());
        };
        let (name, value) = (name.trim(), value.trim());
        if !is_token(name) {
            return Err(format!("{name:?} is not a field name"));
        }
        if let Some(bad) = value.chars().find(|c| c.is_control() && *c != '\t') {
            return Err(format!("a field value cannot contain {bad:?}"));
        }
        if ["content-length", "transfer-encoding"].iter().any(|framing| name.eq_ignore_ascii_case(framing)) {
            return Err(format!("{name} follows from --body-bytes and cannot be set"));
        }
        Ok(Self { name: name.to_owned(), value: value.to_owned() })
    }
}

/// A request method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Method(String);

impl Method {
    pub(crate) fn is_head(&self) -> bool {
        self.0 == "HEAD"
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "CONNECT" => Err("CONNECT is not supported".to_owned()),
            _ if is_token(text) => Ok(Self(text.to_owned())),
            _ => Err(format!("{text:?} is not a method")),
        }
    }
}

/// A token of RFC 9110, section 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// The bytes of one request. Without a method it is GET, or POST with a body. With `close` the connection ends with it.
pub(crate) fn encode_request(
    url: &Url,
    method: Option<&Method>,
    headers: &[HeaderField],
    body_bytes: usize,
    close: bool,
) -> Vec<u8> {
    let default = if body_bytes > 0 { "POST" } else { "GET" };
    let method = method.map_or(default, |method| method.0.as_str());
    let mut request = format!("{method} {} HTTP/1.1\r\n", url.path);
    if !headers.iter().any(|field| field.name.eq_ignore_ascii_case("host")) {
        request += &format!("host: {}\r\n", url.authority);
    }
    for HeaderField { name, value } in headers {
        request += &format!("{name}: {value}\r\n");
    }
    if close {
        request += "connection: close\r\n";
    }
    if body_bytes > 0 {
        request += &format!("content-length: {body_bytes}\r\n");
    }
    request += "\r\n";
    let mut bytes = request.into_bytes();
    bytes.resize(bytes.len() + body_bytes, b'x');
    bytes
}

/// Fields that belong to a connection of HTTP/1.1 (RFC 9113, section 8.2.2).
const CONNECTION_FIELDS: [&str; 4] = ["connection", "keep-alive", "proxy-connection", "upgrade"];

/// The same as [`encode_request`] for HTTP/2. With `grpc` it is a call with one message of `body_bytes`.
pub(crate) fn http2_request(
    url: &Url,
    method: Option<&Method>,
    headers: &[HeaderField],
    body_bytes: usize,
    grpc: bool,
) -> anyhow::Result<http2::client::Request> {
    let default = if body_bytes > 0 || grpc { "POST" } else { "GET" };
    let method = method.map_or(default, |method| method.0.as_str());
    let (hosts, others): (Vec<_>, Vec<_>) = headers
        .iter()
        .map(|field| (field.name.to_ascii_lowercase(), field.value.as_str()))
        .partition(|(name, _)| name == "host");
    let authority = hosts.first().map_or(url.authority.as_str(), |(_, value)| *value);
    let mut fields =
        vec![(":method", method), (":scheme", url.scheme()), (":path", url.path.as_str()), (":authority", authority)];
    for (name, value) in &others {
        if CONNECTION_FIELDS.contains(&name.as_str()) {
            bail!("{name} is a field of HTTP/1.1 that HTTP/2 does not have");
        }
        fields.push((name, value));
    }
    let length = body_bytes.to_string();
    let mut body = Vec::new();
    if grpc {
        fields.extend([("content-type", "application/grpc"), ("te", "trailers")]);
        body.push(0);
        body.extend(u32::try_from(body_bytes).context("--body-bytes is too long for one gRPC message")?.to_be_bytes());
    } else if body_bytes > 0 {
        fields.push(("content-length", &length));
    }
    body.resize(body.len() + body_bytes, b'x');
    Ok(http2::client::Request::new(&fields, body, grpc))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_and_resolved() {
        for (text, path, address) in [
            ("http://127.0.0.1:8080", "/", "127.0.0.1:8080"),
            ("HTTP://127.0.0.1/a/b?c=d#e", "/a/b?c=d", "127.0.0.1:80"),
            ("http://[::1]:81?q", "/?q", "[::1]:81"),
            ("http://[::1]/", "/", "[::1]:80"),
            ("https://127.0.0.1/", "/", "127.0.0.1:443"),
            ("HTTPS://127.0.0.1:8443", "/", "127.0.0.1:8443"),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!((url.path.as_str(), url.resolve().unwrap()), (path, address.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn the_host_has_neither_port_nor_brackets() {
        for (text, host) in [
            ("https://a.test/x", "a.test"),
            ("https://a.test:1/", "a.test"),
            ("https://[::1]/", "::1"),
            ("https://[::1]:1/", "::1"),
        ] {
            assert_eq!(text.parse::<Url>().unwrap().host(), host, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_plain_http_url_is_refused_with_a_reason() {
        for (text, reason) in [
            ("127.0.0.1:80", "starts with http://"),
            ("ftp://a/", "not supported"),
            ("http://", "no host"),
            ("http://a/b c", "percent-encoded"),
            ("http://u@a/", "user names"),
        ] {
            let error = text.parse::<Url>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_request_has_the_given_host_fields_and_body() {
        let url: Url = "http://127.0.0.1:1/x".parse().unwrap();
        assert_eq!(encode_request(&url, None, &[], 0, false), b"GET /x HTTP/1.1\r\nhost: 127.0.0.1:1\r\n\r\n");
        let headers: Vec<HeaderField> = ["Host: echo", "a:b"].iter().map(|field| field.parse().unwrap()).collect();
        assert_eq!(
            encode_request(&url, None, &headers, 3, true),
            b"POST /x HTTP/1.1\r\nHost: echo\r\na: b\r\nconnection: close\r\ncontent-length: 3\r\n\r\nxxx"
        );
    }

    #[test]
    fn fields_that_would_break_the_request_are_refused() {
        for text in ["no colon", ": value", "a b: c", "a: b\r\nc: d", "Content-Length: 5", "transfer-encoding: chunked"]
        {
            assert!(text.parse::<HeaderField>().is_err(), "{text:?}");
        }
    }
}
