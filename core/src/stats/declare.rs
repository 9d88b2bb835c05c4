//! Every metric of a worker, declared once: name, unit (last in the name), help.

macro_rules! counters {
    ($($(#[$attr:meta])* $variant:ident = $name:literal, $help:literal;)+) => {
        /// A counter or gauge of a worker, by its position in the worker's block.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub enum Counter {
            $(#[doc = $help] $variant,)+
        }

        impl Counter {
            /// All of them, in the order of the page.
            pub const ALL: &[Counter] = &[$(Counter::$variant,)+];

            /// Prometheus name without prefix.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Counter::$variant => $name,)+ }
            }

            /// One sentence for people.
            #[must_use]
            pub fn help(self) -> &'static str {
                match self { $(Counter::$variant => $help,)+ }
            }
        }
    };
}

counters! {
    ConnectionsAccepted = "downstream_connections_total", "Downstream connections that this worker has accepted or taken over.";
    ConnectionsActive = "downstream_connections_active", "Downstream connections that are open (gauge).";
    ConnectionsHandedOver = "downstream_connections_handed_over_total", "Accepted connections passed to a less loaded worker.";
    ConnectionsRefused = "downstream_connections_refused_total", "Connections answered with 503, or closed at once, because the worker was at its limit.";
    Requests = "downstream_requests_total", "Requests whose head was understood.";
    Responses1xx = "downstream_responses_1xx_total", "Responses with status 101: the connection changed its protocol.";
    Responses2xx = "downstream_responses_2xx_total", "Responses with status 200 to 299.";
    Responses3xx = "downstream_responses_3xx_total", "Responses with status 300 to 399.";
    Responses4xx = "downstream_responses_4xx_total", "Responses with status 400 to 499.";
    Responses5xx = "downstream_responses_5xx_total", "Responses with status 500 to 599.";
    RequestsRefused = "downstream_requests_refused_total", "Malformed requests that were answered with an error and not forwarded.";
    RequestsAborted = "downstream_requests_aborted_total", "Requests whose client went away before the response was complete.";
    HeadTimeouts = "downstream_head_timeouts_total", "Requests whose head did not arrive in time (408).";
    BodyTimeouts = "downstream_body_timeouts_total", "Requests whose body came below the minimum rate (408).";
    Http2Connections = "downstream_http2_connections_total", "Downstream connections that speak HTTP/2.";
    Http2ConnectionErrors = "downstream_http2_connection_errors_total", "HTTP/2 connections of clients that ended with an error.";
    Http2StreamsCancelled = "downstream_http2_streams_cancelled_total", "HTTP/2 requests that their client has reset.";
    RequestsOverload = "downstream_requests_overload_total", "Requests answered with 503 because memory or descriptors were used up.";
    BufferBytes = "buffer_bytes", "Bytes in I/O buffers outside of the pool (gauge).";
    NoRoute = "no_route_total", "Requests for a host, port or path that no configuration knows (404).";
    NoEndpoint = "no_endpoint_total", "Requests whose cluster has no endpoint (503).";
    UpstreamConnects = "upstream_connects_total", "Upstream connections that were opened.";
    UpstreamConnectFailures = "upstream_connect_failures_total", "Upstream connections that were refused or timed out.";
    UpstreamHttp2Connections = "upstream_http2_connections_total", "Upstream connections that speak HTTP/2.";
    UpstreamReused = "upstream_reused_total", "Requests sent on a pooled upstream connection.";
    UpstreamRetries = "upstream_retries_total", "Further attempts after one that cannot have been processed.";
    UpstreamResets = "upstream_resets_total", "Upstream connections that broke in mid-request (502).";
    UpstreamTimeouts = "upstream_timeouts_total", "Requests that met their deadline before the response head (504).";
    UpstreamBadResponses = "upstream_bad_responses_total", "Responses that violate HTTP and were answered with 502.";
    Tunnels = "tunnels_total", "Tunnels that were opened: upgrades and CONNECT.";
    TunnelsActive = "tunnels_active", "Tunnels that are open (gauge).";
    TunnelUpstreamBytes = "tunnel_upstream_bytes_total", "Bytes of tunnels that were passed on to upstreams.";
    TunnelDownstreamBytes = "tunnel_downstream_bytes_total", "Bytes of tunnels that were passed on to clients.";
    TcpConnections = "downstream_tcp_connections_total", "Downstream connections that were connected to an upstream as bytes.";
    TcpActive = "downstream_tcp_connections_active", "Downstream connections that are passed on as bytes (gauge).";
    TcpRefused = "downstream_tcp_connections_refused_total", "Connections of bytes that were reset: no route, no endpoint, no access.";
    TlsHandshakes = "downstream_tls_handshakes_total", "TLS handshakes that clients have begun.";
    TlsResumed = "downstream_tls_resumed_total", "TLS handshakes of clients that resumed an earlier session.";
    TlsRefused = "downstream_tls_refused_total", "TLS handshakes of clients that failed or were refused.";
    TlsRequired = "downstream_tls_required_total", "Plain requests refused because mutual TLS, or TLS, is required.";
    TlsUpstream = "upstream_tls_handshakes_total", "TLS handshakes with upstreams.";
    TlsUpstreamFailures = "upstream_tls_failures_total", "TLS handshakes with upstreams that failed.";
    TlsKernel = "tls_kernel_total", "TLS connections whose records the kernel handles.";
    SplicedBytes = "spliced_bytes_total", "Bytes of bodies and tunnels that went from socket to socket without a copy to userspace.";
    AccessDenied = "access_denied_total", "Requests denied by an AuthorizationPolicy (403).";
    AccessObserved = "access_observed_total", "Matches of AuthorizationPolicies that are not enforced: AUDIT, or a dry run.";
    JwtRefused = "jwt_refused_total", "Requests with a token that is not valid (401).";
    GenerationSwaps = "generation_swaps_total", "Adoptions of another configuration generation.";
    Panics = "panics_total", "Connections that ended with a panic of ours: each is a bug.";
}
