//! Every bound of the bench, with its unit and its reason.

use std::time::Duration;

/// Longest header block of HTTP/2 that is decoded. Twice the largest default of the proxies under test
/// (Envoy: 60 KiB of headers), so a longer one is a fault worth counting.
pub(crate) const HEAD_BYTES_MAX: usize = 128 * 1024;

/// Most header fields in one head of HTTP/2; Envoy's default is 100.
pub(crate) const HEADERS_MAX: usize = 128;

/// One read takes at most this much. Larger than a loopback socket buffer usually holds, so one read drains it.
pub(crate) const READ_BUFFER_BYTES: usize = 64 * 1024;

/// Events taken from the kernel by one wait: four times the default number of connections.
pub(crate) const EVENTS_PER_WAIT_MAX: usize = 256;

/// Most connections of one generator: its file descriptors, with room for the rest, under a usual hard limit of 20,000.
pub(crate) const CONNECTIONS_MAX: usize = 16_000;

/// How often deadlines are checked. A timeout may be late by this much.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_millis(20);

/// In the closed loop a connection that failed rests for this long, so that a dead server costs no busy loop.
pub(crate) const RECONNECT_PAUSE: Duration = Duration::from_millis(10);

/// Largest latency that the histogram tells apart; longer ones count as this.
pub(crate) const LATENCY_MAX: Duration = Duration::from_secs(3600);

/// Seconds of a load whose p99 is told by itself.
pub(crate) const LATENCY_WINDOW: Duration = Duration::from_secs(1);

/// Significant decimal digits that the histogram keeps: values are right to 0.1%.
pub(crate) const LATENCY_DIGITS: u8 = 3;

/// Largest response of HTTP/1.1 that the backend copies into a connection's output, to be written with its neighbours.
pub(crate) const BACKEND_COPIED_BYTES_MAX: usize = 64 * 1024;

/// Unsent response bytes at which the backend stops reading from a connection that pipelines but does not read.
pub(crate) const BACKEND_OUTPUT_BYTES_MAX: usize = 1024 * 1024;

/// Time that a contender has from its start to its first proxied answer. Envoy takes about a second on an idle machine.
pub(crate) const READY_MAX: Duration = Duration::from_secs(30);

/// Time that a process has to end after SIGTERM, before SIGKILL.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(3);

/// Time for one step of the installation of the peers (Envoy's package is 35 MB).
pub(crate) const INSTALL_STEP_MAX: Duration = Duration::from_secs(600);

/// How often the state of a child process is looked at.
pub(crate) const CHILD_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// What a generator process may take beyond its load and its timeout, before it is ended.
pub(crate) const GENERATOR_OVERRUN_MAX: Duration = Duration::from_secs(15);

/// Lines of a process' log that an error message quotes.
pub(crate) const LOG_LINES_QUOTED_MAX: usize = 20;

/// How long a process' first lines or sockets are waited for between two looks, where milliseconds are measured.
pub(crate) const READY_POLL_INTERVAL: Duration = Duration::from_micros(100);

/// Most proxies of `reconfigure`: each is a process with a worker of its own.
pub(crate) const PROXIES_MAX: usize = 100;

/// Most changes or runs of one measurement.
pub(crate) const REPEATS_MAX: usize = 100_000;

/// Longest answer of control's API that is read. The longest known are lists of warnings, of some hundred bytes each.
pub(crate) const API_ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Longest wait for one answer of control's API, beyond what the call itself asks it to wait.
pub(crate) const API_TIMEOUT: Duration = Duration::from_secs(30);

/// Most routes of `scale`: ten times the goal.
pub(crate) const ROUTES_MAX: usize = 1_000_000;

/// Most endpoints of `scale`; they have addresses of their own in 10.0.0.0/8.
pub(crate) const ENDPOINTS_MAX: usize = 10_000_000;

/// Endpoints in one EndpointSlice: the default of Kubernetes' controller (`--max-endpoints-per-slice`).
pub(crate) const SLICE_ENDPOINTS_MAX: usize = 100;

/// Size at which `scale` begins another file: control reads files of up to 64 MiB, and some of them at once.
pub(crate) const SCALE_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Most requests of `hostile`: what the drill of a million asks for, ten times; one byte of memory each.
pub(crate) const HOSTILE_REQUESTS_MAX: u64 = 10_000_000;

/// Most phases of `hostile`: an evening at ten seconds each.
pub(crate) const HOSTILE_ROUNDS_MAX: usize = 100;

/// Time in which all hostile connections must be open, and what each of them adds. A debug build on a busy machine takes a
/// third of it.
pub(crate) const HOSTILE_OPEN_MAX: Duration = Duration::from_secs(3);

/// What one hostile connection adds to [`HOSTILE_OPEN_MAX`].
pub(crate) const HOSTILE_OPEN_EACH_MAX: Duration = Duration::from_millis(3);

/// Longest wait for one hostile connection: the kernel's queue may be full, and its SYN is sent again after a second.
pub(crate) const HOSTILE_CONNECT_MAX: Duration = Duration::from_secs(10);

/// Hostile connections whose handshake is under way: fewer than the queue of a listener has room for.
pub(crate) const HOSTILE_CONNECTING_MAX: usize = 256;

/// Connections to one peer from one loopback address: below the 28,232 ports of Linux' default range.
pub(crate) const HOSTILE_PORTS_PER_ADDRESS: usize = 20_000;

/// Most connections per second of an attacker that floods: what one thread opens beside its floods.
pub(crate) const FLOOD_RATE_MAX: f64 = 1000.0;

/// What an attacker writes at once, as the proxy reads it: a buffer of the proxy's.
pub(crate) const FLOOD_WRITE_BYTES: usize = 16 * 1024;

/// Time in which the proxy has to be done with what stalled attackers have asked for.
pub(crate) const FLOOD_SETTLED_MAX: Duration = Duration::from_secs(20);

/// A proxy that uses no CPU time for so long has done with them: some clock ticks.
pub(crate) const FLOOD_QUIET: Duration = Duration::from_millis(100);

/// Size of HPACK's table that the bench keeps for its peer, and uses of the peer's: the default (RFC 9113, section 6.5.2).
pub(crate) const HEADER_TABLE_BYTES: usize = 4096;

/// What a peer may send on one HTTP/2 stream unasked: more than any body of a comparison, so that no window slows one down.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// What a peer may send on one HTTP/2 connection unasked: all of 16 streams.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Most streams at a time on one HTTP/2 connection of the generator. Proxies allow 100 to 1,000 unless they are told otherwise.
pub(crate) const STREAMS_MAX: usize = 100_000;

/// Streams at a time that the backend allows: more than any proxy opens.
pub(crate) const BACKEND_STREAMS_MAX: u32 = 1_000_000;

/// Longest gRPC message that the backend echoes: gRPC's own default.
pub(crate) const GRPC_MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Unsent bytes of a connection at which the generator writes no more request bodies to its buffer.
pub(crate) const GENERATOR_OUTPUT_BYTES_MAX: usize = 256 * 1024;
