//! Every bound of the mesh in one place, each with its unit and its reason.

// ---- snapshots ----------------------------------------------------------------------------------------------------

/// Largest snapshot that a proxy maps, in bytes. 100,000 routes with 1,000,000 endpoints are below 40 MB; sixteen times
/// that is more than one node can route, and a corrupt length must not make us map the address space.
pub const SNAPSHOT_BYTES_MAX: u64 = 640 * 1024 * 1024;
/// Generations that control and proxies keep mapped for rollback, the active one included.
pub const GENERATIONS_RETAINED: usize = 8;
/// Shared memory of the retained generations together, in bytes; beyond it the oldest go first. The active one and the
/// one before it always stay: a million endpoints are 40 MB, and eight of those would be a lot for a node to give.
pub const RETAINED_BYTES_MAX: usize = 128 * 1024 * 1024;
/// How long control waits for a proxy to answer `prepared` or `refused`, in milliseconds. A proxy that is slower is
/// reported as stale and catches up: it must not hold up the node.
pub const PREPARE_MS_MAX: u64 = 1_000;

// ---- table --------------------------------------------------------------------------------------------------------

/// Compiled size of one regular expression, in bytes. `(a{1000}){1000}` and friends end here, not in the OOM killer.
pub const REGEX_BYTES_MAX: usize = 1024 * 1024;
/// Largest sum of the weights of one route or cluster: weights are summed in 32 bits.
pub const WEIGHT_SUM_MAX: u64 = u32::MAX as u64;
/// Longest host name that is looked up, in bytes (RFC 1035 section 2.3.4: 255 octets on the wire, 253 in text).
pub const HOST_BYTES_MAX: usize = 253;
/// Largest body of a direct response, in bytes (Envoy's default for direct responses is 4 KiB; Istio's limit is 1 MiB).
pub const DIRECT_RESPONSE_BODY_BYTES_MAX: usize = 1024 * 1024;

// ---- link ---------------------------------------------------------------------------------------------------------

/// Largest message on the link between control and a proxy, in bytes. Everything large travels as a memfd.
pub const LINK_MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Descriptors in one message: a snapshot or a page. More is a protocol error.
pub const LINK_FDS_MAX: usize = 2;
/// Pause between two attempts of a proxy to reach control, in milliseconds: short, since a unix socket costs nothing.
pub const LINK_RECONNECT_MS: u64 = 100;

// ---- statistics ---------------------------------------------------------------------------------------------------

/// Workers of one proxy. A thread per core; 256 cores are the largest machines in the field.
pub const WORKERS_MAX: usize = 256;
/// Clusters with statistics of their own. Beyond it, traffic is counted under the last slot (`other`): the page is of
/// a fixed size, and names come from configuration, never from requests (a million Host values cost nothing).
pub const CLUSTER_SLOTS: usize = 1024;
/// Longest cluster name in the statistics page, in bytes; longer ones are cut.
pub const CLUSTER_NAME_BYTES_MAX: usize = 184;

// ---- data path ----------------------------------------------------------------------------------------------------

/// Size of one pooled I/O buffer, in bytes. A typical request or small response fits; bodies are relayed through it.
pub const BUFFER_BYTES: usize = 16 * 1024;
/// Free buffers that a worker keeps for reuse; more are returned to the allocator (64 x 16 KiB = 1 MiB).
pub const BUFFERS_POOLED_MAX: usize = 64;
/// Connections per worker that may wait for their next request with a buffer in hand. Beyond it a connection goes
/// idle at once and holds none: 10,000 idle connections must cost 1 KB each, not 16.
pub const HOT_IDLE_CONNECTIONS_MAX: usize = 256;
/// After this time without a request a connection gives its buffer back, in milliseconds.
pub const HOT_IDLE_MS_MAX: u64 = 1_000;
/// Connections that one worker accepts; beyond it new ones are closed at once, so that the descriptor limit is never met
/// in mid-request.
pub const CONNECTIONS_PER_WORKER_MAX: usize = 50_000;
/// A worker hands an accepted connection over when another worker has at least this many fewer connections.
pub const HANDOVER_DIFFERENCE_MIN: u32 = 2;
/// From the first byte of a request to the end of its header section, in milliseconds (Envoy's and nginx's order: 60 s;
/// ours is stricter since a sidecar's client is next door).
pub const REQUEST_HEAD_MS_MAX: u64 = 30_000;
/// An idle downstream connection is closed after this time, in milliseconds (Envoy: 1 h).
pub const DOWNSTREAM_IDLE_MS_MAX: u64 = 3_600_000;
/// Silence while a body is awaited from or accepted by a peer, in milliseconds (Envoy's stream idle timeout: 5 min).
pub const BODY_IDLE_MS_MAX: u64 = 300_000;
/// To establish an upstream connection, in milliseconds (Istio's connectTimeout default: 10 s).
pub const CONNECT_MS_MAX: u64 = 10_000;
/// Silence of an upstream before its response head when a route sets no timeout, in milliseconds (Envoy: 5 min).
pub const RESPONSE_HEAD_MS_MAX: u64 = 300_000;
/// An idle upstream connection is closed after this time, in milliseconds: below the 60 s or 75 s keep-alive of common
/// servers, so that we close first and no request meets a closing connection.
pub const UPSTREAM_IDLE_MS_MAX: u64 = 50_000;
/// Idle upstream connections that a worker keeps per endpoint.
pub const UPSTREAM_IDLE_PER_ENDPOINT_MAX: usize = 256;
/// Attempts for one request in all: the first, and more only where no byte of the request can have been processed.
pub const ATTEMPTS_MAX: u32 = 3;
/// The resolution of deadlines, in milliseconds: connections are checked on this tick, requests set no timer.
pub const DEADLINE_TICK_MS: u64 = 100;
/// From SIGTERM to exit, in milliseconds: requests in flight end, then what is left is closed.
pub const DRAIN_MS_MAX: u64 = 30_000;
/// Redirects and rewrites may grow a target to this size, in bytes: it must still fit a head buffer.
pub const TARGET_BYTES_MAX: usize = 8 * 1024;

// ---- HTTP ---------------------------------------------------------------------------------------------------------

/// Largest header section of a request or a response with its first line, in bytes (Envoy's default: 60 KiB). Below
/// 64 KiB, so that a position in it fits 16 bits.
pub const HEAD_BYTES_MAX: usize = 60 * 1024;
/// Fields in one header section (Envoy's default: 100). At most 128: one bit per field in the masks of a parsed head.
pub const HEAD_FIELDS_MAX: usize = 100;
/// Longest request line, in bytes: the longest target plus room for a method, two spaces and the version.
pub const REQUEST_LINE_BYTES_MAX: usize = TARGET_BYTES_MAX + 64;
/// Options in all Connection fields of one message. Each is looked up among all the fields: 32 x 100 comparisons are
/// the most that one head can cost, where 60 KiB of `a,a,a,...` would cost three million.
pub const CONNECTION_OPTIONS_MAX: usize = 32;
/// Bytes of chunk extensions in one message: they carry nothing for us, so only an attacker sends many (CVE-2023-39326).
pub const CHUNK_EXTENSION_BYTES_MAX: usize = 4 * 1024;
/// Bytes of the trailer section of one message. Half of an I/O buffer, so that a trailer line always fits one.
pub const TRAILER_BYTES_MAX: usize = 8 * 1024;
/// Fields in the trailer section of one message: real ones have one to three (gRPC status, checksums).
pub const TRAILER_FIELDS_MAX: usize = 32;
/// Input that is still read, and thrown away, after a last response, in bytes: closing with unread input resets the
/// connection and takes the response from the client.
pub const LINGER_BYTES_MAX: usize = 64 * 1024;
