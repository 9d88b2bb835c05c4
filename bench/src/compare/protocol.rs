//! What is compared: the protocols on both sides of the proxies.

use std::net::SocketAddr;

use clap::ValueEnum;
use serde::Serialize;

use super::contender::Peer;
use crate::http2::client::Request;
use crate::load::target::{Url, http2_request};
use crate::tls::TlsArgs;
use crate::tls::certificates::Certificates;

/// What the proxies speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Protocol {
    /// HTTP/1.1 without TLS
    H1,
    /// HTTP/1.1, with TLS 1.3 for the clients that the proxy ends
    Tls,
    /// HTTP/2 over TLS 1.3 that the proxy ends, HTTP/1.1 to the backend
    H2,
    /// HTTP/2 without TLS, by prior knowledge, HTTP/1.1 to the backend
    H2c,
    /// Unary gRPC calls over HTTP/2 without TLS on both sides
    Grpc,
    /// HTTP/1.1 through two sidecars with mutual TLS between them; the CPU time of both counts
    Mtls,
    /// Bytes, of which the proxies understand nothing: questions and answers on kept connections
    Tcp,
    /// Full TLS 1.3 handshakes, each with one request that the proxy answers itself
    Handshakes,
}

impl Protocol {
    /// The Host of all requests, and the name in the server's certificate.
    pub(super) const fn host(self) -> &'static str {
        match self {
            Self::H1 | Self::H2c | Self::Grpc | Self::Tcp => "echo",
            Self::Tls | Self::H2 | Self::Mtls | Self::Handshakes => "echo.bench",
        }
    }

    /// Whom we compare with, unless told otherwise.
    pub(super) const fn default_peers(self) -> &'static [Peer] {
        match self {
            Self::H1 | Self::Tls | Self::H2 | Self::H2c | Self::Grpc | Self::Tcp | Self::Handshakes => {
                &[Peer::Haproxy, Peer::Nginx, Peer::Envoy]
            }
            Self::Mtls => &[Peer::Envoy],
        }
    }

    /// Whether there is a configuration of this peer for it.
    pub(super) fn is_known_to(self, peer: Peer) -> bool {
        self.default_peers().contains(&peer)
    }

    /// Requests per second at which latencies are compared, unless told otherwise. Every contender should hold them with
    /// room to spare: two Envoys need about 300 µs for a request, one of them 500 µs for a handshake.
    pub(super) const fn default_rate(self) -> f64 {
        match self {
            Self::H1 | Self::Tls | Self::H2 | Self::H2c | Self::Grpc | Self::Tcp => 3000.0,
            Self::Mtls => 1000.0,
            Self::Handshakes => 500.0,
        }
    }

    /// How a client speaks TLS; none where it does not.
    pub(super) fn client_tls(self, certificates: &Certificates) -> Option<TlsArgs> {
        match self {
            Self::H1 | Self::H2c | Self::Grpc | Self::Mtls | Self::Tcp => None,
            Self::Tls | Self::H2 | Self::Handshakes => Some(TlsArgs::narrow(certificates.ca(), self.host())),
        }
    }

    /// As [`Self::client_tls`], for the generator: where handshakes are counted, it must not be the one that is busy.
    pub(super) fn generator_tls(self, certificates: &Certificates) -> Option<TlsArgs> {
        let args = self.client_tls(certificates)?;
        Some(if self.new_connections() { args.without_checks() } else { args })
    }

    /// Whether each request has a connection of its own.
    pub(super) const fn new_connections(self) -> bool {
        matches!(self, Self::Handshakes)
    }

    /// Whether the clients speak HTTP/2.
    pub(super) const fn is_http2(self) -> bool {
        matches!(self, Self::H2 | Self::H2c | Self::Grpc)
    }

    /// What is requested.
    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::Grpc => "/echo.Echo/Unary",
            _ => "/",
        }
    }

    /// The request over HTTP/2, as the generator sends it but for its body; `address` is the proxy's.
    pub(super) fn http2_request(self, address: SocketAddr) -> anyhow::Result<Request> {
        let scheme = if self == Self::H2 { "https" } else { "http" };
        let url = format!("{scheme}://{address}{}", self.path()).parse::<Url>().map_err(anyhow::Error::msg)?;
        let host = format!("host: {}", self.host()).parse().map_err(anyhow::Error::msg)?;
        http2_request(&url, None, &[host], 0, self == Self::Grpc)
    }

    /// Connections of the generator, unless told otherwise.
    pub(super) const fn default_connections(self) -> u32 {
        if self.is_http2() { 8 } else { 64 }
    }

    /// Streams at a time on each of them, unless told otherwise.
    pub(super) const fn default_streams(self) -> u32 {
        if self.is_http2() { 8 } else { 1 }
    }

    /// What is counted, in the singular.
    pub(super) const fn unit(self) -> &'static str {
        match self {
            Self::H1 | Self::Tls | Self::H2 | Self::H2c | Self::Mtls => "request",
            Self::Grpc => "call",
            Self::Tcp => "exchange",
            Self::Handshakes => "handshake",
        }
    }

    /// What is sent, for the caption.
    pub(super) fn load(self, connections: u32, streams: u32, body_bytes: usize) -> String {
        let http = format!("{connections} keep-alive connections, {body_bytes}-byte responses");
        let http2 = format!("{connections} connections of {streams} streams, {body_bytes}-byte");
        match self {
            Self::H1 => format!("HTTP/1.1, {http}"),
            Self::Tls => format!("HTTP/1.1 over TLS 1.3 (ECDSA P-256, X25519, AES-128-GCM), {http}"),
            Self::H2 => format!(
                "HTTP/2 over TLS 1.3 (ECDSA P-256, X25519, AES-128-GCM) to an HTTP/1.1 backend, {http2} responses"
            ),
            Self::H2c => format!("HTTP/2 without TLS to an HTTP/1.1 backend, {http2} responses"),
            Self::Grpc => format!("unary gRPC calls, HTTP/2 without TLS on both sides, {http2} messages"),
            Self::Mtls => format!("HTTP/1.1 from sidecar to sidecar over mutual TLS 1.3 (ECDSA P-256), {http}"),
            Self::Tcp => format!(
                "TCP, {connections} kept connections, a question and an answer of {body_bytes} bytes (with HTTP/1.1's head) at a time"
            ),
            Self::Handshakes => format!(
                "full TLS 1.3 handshakes (ECDSA P-256, X25519, AES-128-GCM), each with one request that the proxy answers \
                 itself, {connections} connections at a time"
            ),
        }
    }

    /// Whose CPU time counts, for the caption.
    pub(super) const fn workers(self) -> &'static str {
        match self {
            Self::Mtls => "two sidecars with one worker each, counted together, both",
            _ => "one worker",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caption_says_what_was_measured() {
        assert!(Protocol::Tcp.load(64, 1, 100).starts_with("TCP, 64 kept connections"));
        assert_eq!(Protocol::H1.load(64, 1, 100), "HTTP/1.1, 64 keep-alive connections, 100-byte responses");
        assert!(Protocol::Tls.load(64, 1, 100).contains("TLS 1.3 (ECDSA P-256, X25519, AES-128-GCM), 64 keep-alive"));
        assert!(Protocol::Handshakes.load(8, 1, 100).contains("8 connections at a time"));
        assert!(Protocol::Grpc.load(8, 4, 100).ends_with("8 connections of 4 streams, 100-byte messages"));
    }

    #[test]
    fn names_in_json_are_those_of_the_command_line() {
        for protocol in Protocol::value_variants() {
            let name = serde_json::to_value(protocol).unwrap();
            assert_eq!(protocol.to_possible_value().unwrap().get_name(), name.as_str().unwrap());
        }
    }
}
