//! What one worker may use, and how long it waits for a client.

use meshring_core::limits::{
    BODY_GRACE_MS, BODY_RATE_MIN, BUDGET_BYTES_MAX, CONNECT_MS_MAX, CONNECTIONS_PER_WORKER_MAX, DOWNSTREAM_IDLE_MS_MAX,
    REQUEST_HEAD_MS_MAX, RESPONSE_HEAD_MS_MAX, TLS_RECORDS_PER_KEY_MAX, TUNNEL_IDLE_MS_MAX, UPSTREAM_IDLE_MS_MAX,
    UPSTREAM_IDLE_PER_ENDPOINT_MAX,
};

/// What a worker keeps of upstream connections that nobody uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolLimits {
    /// For how long, in milliseconds.
    pub(crate) idle_ms_max: u64,
    /// How many for each endpoint.
    pub(crate) idle_max: usize,
}

impl Default for PoolLimits {
    fn default() -> Self {
        Self { idle_ms_max: UPSTREAM_IDLE_MS_MAX, idle_max: UPSTREAM_IDLE_PER_ENDPOINT_MAX }
    }
}

/// Resolved once at start, from the command line and the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// From the first byte of a request head to its end, in milliseconds.
    pub(crate) head_ms_max: u64,
    /// Least average rate of a request body, in bytes per second; 0 for none.
    pub(crate) body_rate_min: u64,
    /// Waiting for a request body before its rate counts, in milliseconds.
    pub(crate) body_grace_ms: u64,
    /// Largest request body, in bytes; `u64::MAX` for any.
    pub(crate) request_body_bytes_max: u64,
    /// A downstream connection without a request, in milliseconds.
    pub(crate) idle_ms_max: u64,
    /// Making an upstream connection, in milliseconds.
    pub(crate) connect_ms_max: u64,
    /// Silence of an upstream before and within its response, where the rule has no timeout, in milliseconds.
    pub(crate) response_ms_max: u64,
    /// Upstream connections without a request.
    pub(crate) pool: PoolLimits,
    /// Silence in both directions of a tunnel, in milliseconds.
    pub(crate) tunnel_idle_ms_max: u64,
    /// Bytes in buffers outside of the pool, beyond which new requests are refused.
    pub(crate) buffer_bytes_max: usize,
    /// Downstream connections.
    pub(crate) connections_max: usize,
    /// Records that are sealed under one AES-GCM key; no setting, tests have less time.
    pub(crate) tls_records_per_key_max: u64,
}

impl Default for Limits {
    /// What holds where neither the command line nor the machine says otherwise.
    fn default() -> Self {
        Self {
            head_ms_max: REQUEST_HEAD_MS_MAX,
            body_rate_min: BODY_RATE_MIN,
            body_grace_ms: BODY_GRACE_MS,
            request_body_bytes_max: u64::MAX,
            idle_ms_max: DOWNSTREAM_IDLE_MS_MAX,
            connect_ms_max: CONNECT_MS_MAX,
            response_ms_max: RESPONSE_HEAD_MS_MAX,
            pool: PoolLimits::default(),
            tunnel_idle_ms_max: TUNNEL_IDLE_MS_MAX,
            buffer_bytes_max: BUDGET_BYTES_MAX,
            connections_max: CONNECTIONS_PER_WORKER_MAX,
            tls_records_per_key_max: TLS_RECORDS_PER_KEY_MAX,
        }
    }
}
