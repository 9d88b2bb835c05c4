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
/// Largest number of trusted hops (Istio `numTrustedProxies`): real chains of proxies have one to four. A larger number is
/// a typing mistake, and one that would make every client a trusted one.
pub const TRUSTED_HOPS_MAX: u8 = 32;

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
/// Listeners with statistics of their own, in the order of the command line; those beyond it share the last slot. A sidecar has a
/// handful, one that has a listener for each service without interception a few dozen.
pub const LISTENER_SLOTS: usize = 64;
/// Peers (SPIFFE ids) with statistics of their own, of those that come and those that are gone to. Beyond it, they are counted under the last
/// slot (`other`): who has a certificate of the mesh cannot make the page grow.
pub const PEER_SLOTS: usize = 128;
/// Longest name of a cluster or peer in the statistics page, in bytes; longer ones are cut.
pub const CLUSTER_NAME_BYTES_MAX: usize = 184;

// ---- data path ----------------------------------------------------------------------------------------------------

/// Size of one pooled I/O buffer, in bytes: a whole TLS record fits (16 KiB of data and up to 261 bytes around it). A
/// typical request or small response fits; bodies are relayed through it.
pub const BUFFER_BYTES: usize = 17 * 1024;
/// Free buffers that a worker keeps for reuse, for a second at most; more are returned to the allocator at once (256 x 17 KiB =
/// 4.3 MiB). A stream of HTTP/2 that waits for its response takes two, and 128 of them may wait with all in hand.
pub const BUFFERS_POOLED_MAX: usize = 256;
/// Of what a worker has freed, in bytes, this may stay with the allocator when a burst is over.
pub const FREED_BYTES_KEPT_MAX: usize = 1024 * 1024;
/// Connections per worker that may wait for their next request with a buffer in hand. Beyond it a connection goes
/// idle at once and holds none: 10,000 idle connections must cost 1 KB each, not 16.
pub const HOT_IDLE_CONNECTIONS_MAX: usize = 256;
/// After this time without a request a connection gives its buffer back, in milliseconds.
pub const HOT_IDLE_MS_MAX: u64 = 1_000;
/// Streams per worker that may wait for a response with all in hand that their request has needed, for a moment: most responses come
/// by then; and as many more for as long as it takes, whose upstream connection has been prompt. Beyond it a stream is reduced at once to
/// what is needed to go on: 10,000 silent streams must cost 2 KB each, not 16.
pub const HOT_STREAMS_MAX: usize = 64;
/// Connections of one worker unless `--connections-max` says otherwise; descriptors and memory may set it lower. Beyond
/// it new ones are answered with 503, so that neither limit is ever met in mid-request.
pub const CONNECTIONS_PER_WORKER_MAX: usize = 50_000;
/// Connections beyond the limit that a worker answers with 503 at the same time; further ones are closed without a word.
pub const CONNECTIONS_TURNED_AWAY_MAX: usize = 64;
/// Descriptors that are not for downstream connections, in percent: upstream connections need the rest. A request in
/// flight has one of each, but most downstream connections are idle.
pub const DESCRIPTORS_RESERVED_PERCENT: u64 = 25;
/// Below this number of downstream connections per worker the start warns about the limit of open files.
pub const CONNECTIONS_PER_WORKER_LOW: usize = 1_000;
/// What one idle connection costs, in bytes: 1 KB in the proxy and a socket of about 4 KB in the kernel, rounded up.
/// Where a memory limit is set, idle connections may take [`MEMORY_SHARE_DIVISOR`]'s part of it.
pub const CONNECTION_COST_BYTES: u64 = 8 * 1024;
/// Buffers, and likewise connections, get this part of the memory limit at most: a quarter each leaves half for the
/// snapshots, the kernel's socket buffers and the allocator.
pub const MEMORY_SHARE_DIVISOR: u64 = 4;
/// Least default of a worker's byte budget, in bytes: 256 buffers.
pub const BUDGET_BYTES_MIN: usize = 4 * 1024 * 1024;
/// Largest default of a worker's byte budget, in bytes: 65,536 buffers are more requests than one core serves at a time.
pub const BUDGET_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// New requests are answered with 503 while the memory control group is filled to this part, in percent: what the
/// kernel charges for sockets is not in the byte budget, and at 100 the OOM killer comes.
pub const MEMORY_PRESSURE_PERCENT: u64 = 85;
/// Bytes that a client's socket takes from us before they are on their way (TCP_NOTSENT_LOWAT). Without a bound the kernel
/// takes 2.5 MB on loopback and up to tcp_wmem (4 MB) elsewhere for a client that does not read at all. What is on its
/// way is not bounded by it, so that throughput does not depend on the path's length; 128 KiB last 100 us at 10 Gbit/s,
/// and the worker is woken when half of them are gone.
pub const UNSENT_BYTES_MAX: u32 = 128 * 1024;
/// How often the memory control group is looked at, in milliseconds, where it is large: 1 GB/s fills 15 % of 700 MB meanwhile.
pub const MEMORY_PRESSURE_INTERVAL_MS: u64 = 100;
/// Likewise where it is small: a look costs some 30 us.
pub const MEMORY_PRESSURE_INTERVAL_MS_MIN: u64 = 10;
/// A worker hands an accepted connection over when another worker has at least this many fewer connections.
pub const HANDOVER_DIFFERENCE_MIN: u32 = 2;
/// From the first byte of a request to the end of its header section unless `--head-timeout` says otherwise, in
/// milliseconds (Envoy's `request_headers_timeout` and nginx's order: 60 s; ours is stricter since a sidecar's client is
/// next door).
pub const REQUEST_HEAD_MS_MAX: u64 = 30_000;
/// A peer that is silent for so long in the middle of a message is waited for without a buffer, in milliseconds: a tick.
pub const HOLD_BUFFER_MS_MAX: u64 = DEADLINE_TICK_MS;
/// After so many answers in a row within that time an upstream connection is prompt: its next answer is waited for with a buffer, however
/// long it takes.
pub const PROMPT_ANSWERS_MIN: u8 = 8;
/// Least rate of a request body unless `--min-body-rate` says otherwise, in bytes per second: slower than any modem. Each
/// client that sends below it holds a connection of an upstream (Apache's mod_reqtimeout: 500).
pub const BODY_RATE_MIN: u64 = 100;
/// Time that a client may let us wait for its body before its rate counts unless `--body-grace` says otherwise, in
/// milliseconds (mod_reqtimeout: 20 s).
pub const BODY_GRACE_MS: u64 = 20_000;
/// Of what is said in `grpc-message`, in bytes before it is encoded: an external authorizer's answer may be a whole page, and
/// a client takes 8 KiB of fields.
pub const GRPC_MESSAGE_BYTES_MAX: usize = 1024;
/// An idle downstream connection, of HTTP/1.1 or HTTP/2, is closed after this time unless `--idle-timeout` says otherwise, in
/// milliseconds (Envoy: 1 h).
pub const DOWNSTREAM_IDLE_MS_MAX: u64 = 3_600_000;
/// Silence while a body is awaited from or accepted by a peer, in milliseconds (Envoy's stream idle timeout: 5 min).
pub const BODY_IDLE_MS_MAX: u64 = 300_000;
/// A tunnel, such as a WebSocket, through which nothing has gone in either direction for so long is closed unless
/// `--tunnel-idle-timeout` says otherwise, in milliseconds (Envoy's TCP proxy: 1 h). Applications that keep one open for longer send
/// pings every minute or less.
pub const TUNNEL_IDLE_MS_MAX: u64 = 3_600_000;
/// One half of a tunnel goes on while the other one has broken, as long as nobody is waited for longer than this, in milliseconds:
/// it brings what was on its way.
pub const TUNNEL_BROKEN_MS_MAX: u64 = 1_000;
/// How long a client may be silent on a port of which nobody says what it speaks, before the server is asked whether it speaks
/// first, in milliseconds. A client of HTTP sends its request along with the end of its handshake; one that does not costs a
/// connection to the server. It is all that a server that speaks first is delayed by, and the first time only: see [`GREETERS_MAX`].
pub const DETECTION_MS: u64 = 10;
/// Services (addresses that clients mean) of which a worker remembers that the server has spoken first: it is connected to at once
/// then.
pub const GREETERS_MAX: usize = 1_024;
/// How long both are watched then, in milliseconds: greetings come at once, or after a deliberate pause of some seconds (Postfix'
/// `postscreen_greet_wait`: 6 s). After that only the client is waited for, and the connection to the server is given up.
pub const SERVER_FIRST_MS_MAX: u64 = 10_000;
/// How long a client of a port for bytes may be silent before it is taken for one without TLS, where both are allowed
/// (PERMISSIVE), in milliseconds. A sidecar sends its ClientHello at once; one that was lost on the way is sent again after 200 ms.
pub const PERMISSIVE_MS: u64 = 250;
/// To establish an upstream connection unless `--connect-timeout` says otherwise, in milliseconds (Istio's connectTimeout
/// default: 10 s).
pub const CONNECT_MS_MAX: u64 = 10_000;
/// Silence of an upstream before and within its response when a route sets no timeout, unless `--response-timeout` says
/// otherwise, in milliseconds (Envoy's stream idle timeout: 5 min).
pub const RESPONSE_HEAD_MS_MAX: u64 = 300_000;
/// Silence of a gRPC client or server in the middle of a call without a deadline, in milliseconds: watches and subscriptions say
/// nothing for long, and Istio sets no limit at all (Envoy's `stream_idle_timeout: 0`). Peers that are gone are found out by
/// HTTP/2 PING and by TCP; this is for those that are there and have forgotten.
pub const GRPC_SILENCE_MS_MAX: u64 = 3_600_000;
/// An idle upstream connection is closed after this time unless `--upstream-idle-timeout` says otherwise, in milliseconds: below
/// the 60 s or 75 s keep-alive of common servers, so that we close first and no request meets a closing connection. (Envoy and
/// Istio: 1 h, and a retry where that meets one.)
pub const UPSTREAM_IDLE_MS_MAX: u64 = 50_000;
/// A connection whose server announces `Keep-Alive: timeout` is not used within so many milliseconds of it: the request
/// would cross the server's close.
pub const KEEP_ALIVE_MARGIN_MS: u64 = 1_000;
/// A request that must not be sent twice goes on a pooled connection only if that was idle for less than this, in
/// milliseconds: below the shortest keep-alive timeout of common servers (gunicorn: 2 s; Node.js, Apache: 5 s).
pub const UPSTREAM_IDLE_ONCE_MS_MAX: u64 = 1_000;
/// For so many milliseconds all connections to an endpoint are asked, after it was found to have closed one soon after its use, or to
/// have said more on one than it should.
pub const UPSTREAM_DISTRUST_MS: u64 = 10_000;
/// Idle upstream connections that a worker keeps per endpoint unless `--upstream-idle-max` says otherwise. (Envoy keeps whatever a
/// burst has opened for an hour.)
pub const UPSTREAM_IDLE_PER_ENDPOINT_MAX: usize = 256;
/// Attempts for one request in all: the first, and more only where no byte of the request can have been processed.
pub const ATTEMPTS_MAX: u32 = 3;
/// Requests that a connection is served in a row before others get their turn; a pipeline is never idle.
pub const REQUESTS_IN_A_ROW_MAX: u32 = 32;
/// Buffers of one body that are relayed in a row before others get their turn.
pub const BUFFERS_IN_A_ROW_MAX: u32 = 16;
/// The resolution of deadlines, in milliseconds: connections are checked on this tick, requests set no timer.
pub const DEADLINE_TICK_MS: u64 = 100;
/// From SIGTERM to exit, in milliseconds: requests in flight end, then what is left is closed.
pub const DRAIN_MS_MAX: u64 = 30_000;
/// Redirects and rewrites may grow a target to this size, in bytes: it must still fit a head buffer.
pub const TARGET_BYTES_MAX: usize = 8 * 1024;

// ---- HTTP/2 -------------------------------------------------------------------------------------------------------

/// Requests that a client may have in flight on one connection: what gRPC's clients count on, and 100 requests of one
/// client at a time are more than one worker serves at once.
pub const HTTP2_STREAMS_MAX: u32 = 100;
/// Requests in flight on one upstream connection, where neither the server nor `maxConcurrentStreams` wants fewer (Envoy: 1024).
pub const HTTP2_UPSTREAM_STREAMS_MAX: usize = 1024;
/// What a peer may send on one stream before we have given it on, in bytes: four buffers, and the protocol's own default.
pub const HTTP2_STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// Likewise on all streams of a downstream connection, in bytes: as much as they may send together. With less, streams whose
/// receivers stall would hold up the others, which on a connection between two sidecars are other clients'.
pub const HTTP2_CONNECTION_WINDOW_BYTES: u32 = HTTP2_STREAMS_MAX * HTTP2_STREAM_WINDOW_BYTES;
/// Likewise of an upstream connection, in bytes: one client that reads nothing must not stop what others have asked for.
pub const HTTP2_UPSTREAM_WINDOW_BYTES: u32 = HTTP2_UPSTREAM_STREAMS_MAX as u32 * HTTP2_STREAM_WINDOW_BYTES;
/// Largest header list, in bytes as RFC 9113 section 6.5.2 counts them: what the bounds of a head leave room for.
pub const HTTP2_HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;
/// A header list of more octets ends the connection, where one that is above the limit is answered: nobody sends four times as much as he
/// was told by mistake, and each octet of a header section may stand for a field of 32 and more. As many as [`HTTP2_HEADER_BLOCK_BYTES_MAX`]
/// of text in few fields are below it.
pub const HTTP2_HEADER_LIST_BYTES_ENDURED: usize = 4 * HTTP2_HEADER_LIST_BYTES_MAX as usize;
/// Likewise fields of a client's header section, of those within the limit: an octet may be one.
pub const HTTP2_HEADER_FIELDS_ENDURED: usize = 10 * HEAD_FIELDS_MAX;
/// A header section as it is sent, in bytes: one whose list is too long is answered, one that is longer still does not end.
pub const HTTP2_HEADER_BLOCK_BYTES_MAX: usize = 2 * HTTP2_HEADER_LIST_BYTES_MAX as usize;
/// Frames that it may come in.
pub const HTTP2_HEADER_FRAMES_MAX: usize = 64;
/// Interim responses that wait to be read, in bytes of text.
pub const HTTP2_INTERIM_BYTES_MAX: usize = 64 * 1024;
/// What may wait to be written before no more is read, in bytes: a buffer of data, the largest head on top of it, and a buffer of
/// answers. Less, and two of us that send much to each other would both wait for the other to read.
pub const HTTP2_UNWRITTEN_BYTES_MAX: usize = 2 * BUFFER_BYTES + HTTP2_HEADER_LIST_BYTES_MAX as usize;
/// Frames in a row that are of no use (empty DATA, PING, PRIORITY, SETTINGS, ...) before a peer is told to calm down, as many as Envoy
/// answers. Each one that is of use makes up for two, and half a minute for all.
pub const HTTP2_USELESS_FRAMES_MAX: u32 = 1_000;
/// So many WINDOW_UPDATEs beyond those that our data accounts for weigh as much as one of these frames: some peers widen both windows with
/// every read, however little that brings.
pub const HTTP2_UPDATES_FOR_A_USELESS_FRAME: u32 = 10;
/// Data of a response that is less than so many bytes because its client's window takes no more, again and again, is no use of a connection:
/// a few thousand WINDOW_UPDATEs of a byte end it.
pub const HTTP2_DRIBBLE_BYTES: usize = 16;
/// Frames of one connection that are taken in a row before others get their turn: the dearest, a small request or SETTINGS that move the
/// windows of a hundred streams, take a microsecond each.
pub const HTTP2_FRAMES_IN_A_ROW_MAX: usize = 64;
/// Requests among them; and of a connection, those that are begun before all of them that must connect to their upstream have had their
/// turn to: one that waits for its connection has all in hand.
pub const HTTP2_REQUESTS_IN_A_ROW_MAX: usize = 16;
/// Requests of one connection that are begun in one turn of the worker, where it has others (a new connection begins fewer in its first
/// turns); those behind them wait, and may be cancelled before anything was done for them. With 8 connections of 8 streams a request takes
/// 10 % less CPU time with 8 than with 16 or without a bound, others' p99 under a flood is half as long, and one connection of 100 streams
/// beside idle ones pays 7 %.
pub const HTTP2_BEGUN_IN_A_ROW_MAX: usize = 8;
/// Streams of a connection that has ended which are told so in one turn of the worker: each takes its task and its connection upstream
/// along, which is some tens of microseconds of closing, and a connection may have a thousand.
pub const HTTP2_TOLD_IN_A_ROW_MAX: usize = 1;
/// Connections to upstreams that a worker begins in one of its turns: on one host the kernel does all of a handshake in the call that
/// begins it, which takes some tens of microseconds.
pub const CONNECTS_IN_A_ROW_MAX: usize = 1;
/// So many more that wait in the line let one more begin in each turn: a line that only grows helps nobody.
pub const CONNECTS_IN_LINE_FOR_EACH: usize = 16;
/// What all streams of a client's connection together may have read of responses that it has not taken, in bytes, beyond a quarter of what
/// it has taken so far and 256 bytes each: who asks for much and reads nothing is to hold little, a hundred times the 22 bytes of a
/// request at most, and whoever reads soon has whole buffers for each of its streams.
pub const HTTP2_READ_AHEAD_BYTES: usize = BUFFER_BYTES;
/// And so many more, in bytes, however narrow the windows are: a small response is read in one piece.
pub const HTTP2_READ_BEYOND_BYTES: usize = 256;
/// Streams of a client that we have reset and whose late frames are still put up with: all that it may have, four times over. A frame of
/// a forgotten one counts as an error.
pub const HTTP2_RESETS_REMEMBERED_MAX: usize = 4 * HTTP2_STREAMS_MAX as usize;
/// Requests that a client has taken back before they were answered; one that takes back more of them, and more than half of all, is
/// up to CVE-2023-44487 (Envoy's premature resets).
pub const HTTP2_PREMATURE_RESETS_MAX: u64 = 500;
/// Resets that a client has provoked by errors of its own (CVE-2025-8671): an honest one makes hardly any, and each may cost the upstream a
/// request. One faulty request on each of its streams, twice, is put up with. Half of them is forgiven every half a minute.
pub const HTTP2_LOCAL_RESETS_MAX: usize = 2 * HTTP2_STREAMS_MAX as usize;
/// How often a client with requests in flight is asked whether it is still there, in milliseconds. Half-open peers are to be gone
/// within a minute, together with [`HTTP2_PONG_MS_MAX`].
pub const HTTP2_PING_INTERVAL_MS: u64 = 30_000;
/// How long it may take to answer, in milliseconds (gRPC's keepalive timeout: 20 s).
pub const HTTP2_PONG_MS_MAX: u64 = 20_000;
/// How often it is tried whether a client is still there that has ended its direction and waits for responses, in milliseconds: a reset is
/// noticed when something is written.
pub const HTTP2_ENDED_PING_INTERVAL_MS: u64 = 1_000;
/// A shared upstream connection without traffic is probed after this time, in seconds, and then again after each
/// [`TCP_KEEPALIVE_INTERVAL_S`]: gRPC servers take HTTP/2's own PING for abuse.
pub const TCP_KEEPALIVE_IDLE_S: u64 = 30;
/// See [`TCP_KEEPALIVE_IDLE_S`], in seconds.
pub const TCP_KEEPALIVE_INTERVAL_S: u64 = 5;
/// It ends when data or probes are not acknowledged for so long, in milliseconds: with the idle time a host that is gone is noticed
/// within a minute.
pub const TCP_UNACKNOWLEDGED_MS_MAX: u32 = 20_000;
/// How long a server of which nobody knows whether it speaks HTTP/2 may take to say so, in milliseconds: it sends SETTINGS at once.
pub const HTTP2_SETTINGS_MS_MAX: u64 = 3_000;
/// How long a peer may take to accept the last frames of a connection, in milliseconds: one that is gone never does.
pub const HTTP2_LAST_WORDS_MS_MAX: u64 = 5_000;

// ---- security -----------------------------------------------------------------------------------------------------

/// Largest material (chain, key and trust bundles) that a proxy takes, in bytes: a bundle of public roots is 250 KiB.
pub const MATERIAL_BYTES_MAX: usize = 1024 * 1024;
/// Certificates in one material: the public roots are 150.
pub const MATERIAL_CERTIFICATES_MAX: usize = 1024;
/// Endpoints of one cluster whose access decision `meshring explain` looks at: endpoints of one service differ rarely.
pub const ACCESS_ENDPOINTS_EXPLAINED_MAX: u32 = 256;
/// Rules of one AuthorizationPolicy that `meshring explain` lists: more than anybody reads.
pub const ACCESS_RULES_EXPLAINED_MAX: usize = 32;
/// Beginning of a handshake message that goes on in the next TLS record, after the handshake, in bytes: a session ticket with a
/// certificate chain in it.
pub const TLS_HANDSHAKE_REST_BYTES_MAX: usize = 16 * 1024;
/// TLS records in a row that carry no data: key updates and empty records cost us more than the sender.
pub const TLS_RECORDS_WITHOUT_DATA_MAX: u32 = 64;
/// Records that are sealed under one AES-GCM key before it is replaced, or its connection is brought to an end where the protocol
/// knows no other key; at twice as many nothing more is sealed. RFC 8446 section 5.5 allows 2^24.5 of them, rustls 2^24.
pub const TLS_RECORDS_PER_KEY_MAX: u64 = 1 << 23;
/// From the first byte of a TLS connection to the end of its handshake, in milliseconds (Envoy's
/// `transport_socket_connect_timeout` in Istio: 15 s).
pub const TLS_HANDSHAKE_MS_MAX: u64 = 10_000;
/// What a peer may send in one handshake flight before it is refused, in bytes: a chain of ten large certificates.
pub const TLS_HANDSHAKE_BYTES_MAX: usize = 64 * 1024;
/// Body of an external authorizer's answer that goes on to the client, in bytes.
pub const EXT_AUTHZ_BODY_BYTES_MAX: usize = 64 * 1024;
/// Longest wait for an external authorizer, in milliseconds; Istio's default for `timeout` is 600 s.
pub const EXT_AUTHZ_MS_MAX: u64 = 600_000;
/// Pipe between two sockets that a stream is spliced through, in bytes: eight TLS records, and what a socket may hold unsent. An
/// unprivileged user may have 64 MiB in pipes.
pub const SPLICE_PIPE_BYTES: usize = 128 * 1024;
/// The rest of a body of known length goes from socket to socket without a copy from this size on, in bytes: below it the system calls that set
/// it up cost more than the copy.
pub const SPLICE_BYTES_MIN: u64 = 64 * 1024;
/// What a stream out of kernel TLS is read into at once, in bytes: four records. Reading more at a time saves few calls more, and stays
/// in fewer caches.
pub const SPLICE_RECORDS_BYTES: usize = 4 * 16 * 1024;
/// What must have gone through one direction of a tunnel before it is tried to pass it on from socket to socket, in bytes. For an
/// exchange of messages that is seldom.
pub const SPLICE_TUNNEL_BYTES_MIN: u64 = 256 * 1024;
/// And what must come at a time for it to go on so, in bytes: half a buffer is copied as cheaply as it is spliced.
pub const SPLICE_TUNNEL_PART_BYTES_MIN: usize = BUFFER_BYTES / 2;
/// Bytes that are spliced in a row before others get their turn: as with [`BUFFERS_IN_A_ROW_MAX`], but they cost less.
pub const SPLICED_IN_A_ROW_BYTES_MAX: usize = 512 * 1024;
/// Readiness in a row that has brought no byte before a body goes on through buffers: tickets and new keys are of that kind, and what
/// splice does not see at all (urgent data).
pub const SPLICE_IN_VAIN_MAX: u32 = 8;
/// Empty pipes that a worker keeps: two descriptors each, and no memory to speak of.
pub const SPLICE_PIPES_POOLED_MAX: usize = 8;
/// Empty buffers of [`SPLICE_RECORDS_BYTES`] that a worker keeps for a second.
pub const SPLICE_RECORDS_POOLED_MAX: usize = 4;
/// Materials that a proxy holds at once: its own and one for each distinct credential of its routes and gateways.
pub const MATERIALS_MAX: usize = 1024;
/// Service accounts of one service's endpoints that clients ask for by name; beyond it any identity of the trust domain
/// will do. A service has one account, two while it is being replaced; 64 would make each handshake compare 64 texts.
pub const SERVICE_IDENTITIES_MAX: usize = 64;
/// Life of a workload's certificate unless `--svid-lifetime` says otherwise, in seconds: Istio's default of a day.
pub const SVID_LIFETIME_S: u64 = 24 * 3600;
/// Shortest life that can be set, in seconds: rotation at half of it must leave time for a retry.
pub const SVID_LIFETIME_S_MIN: u64 = 10;
/// Longest life that can be set, in seconds: 30 days. There is no revocation but a short life.
pub const SVID_LIFETIME_S_MAX: u64 = 30 * 24 * 3600;
/// Certificates are valid from so many seconds before they are made: clocks of peers differ.
pub const CERTIFICATE_BACKDATE_S: u64 = 60;
/// Life of control's own intermediate certificate, in seconds: a year, renewed at half.
pub const INTERMEDIATE_LIFETIME_S: u64 = 365 * 24 * 3600;
/// Life of control's own root certificate, in seconds: ten years. A new one is brought in when a year is left.
pub const ROOT_LIFETIME_S: u64 = 10 * 365 * 24 * 3600;
/// A failed issue or an unanswered material is tried again after this time at first, in milliseconds, then after twice that,
/// up to [`CERTIFICATE_RETRY_MS_MAX`].
pub const CERTIFICATE_RETRY_MS_MIN: u64 = 500;
/// Longest pause between two attempts, in milliseconds: below half the shortest life would be wasted on longer ones.
pub const CERTIFICATE_RETRY_MS_MAX: u64 = 30_000;
/// How often control looks for certificates that are due and credential files that have changed, in milliseconds.
pub const CERTIFICATE_TICK_MS: u64 = 200;
/// Join tokens that are not expired: one for each workload of a node that runs as another user.
pub const JOIN_TOKENS_MAX: usize = 4096;
/// Longest time that a join token waits for its first use, in seconds: 30 days.
pub const JOIN_TOKEN_TTL_S_MAX: u64 = 30 * 24 * 3600;
/// Greetings of foreign users that are being read at a time: each costs a thread for up to five seconds.
pub const FOREIGN_GREETINGS_MAX: usize = 64;
/// Of them, those of one user: one that says nothing must not keep the others out.
pub const FOREIGN_GREETINGS_PER_USER_MAX: usize = 8;
/// Connections to the Workload API of one user, and of all together. A process needs one; who opens more waits for his
/// own, and nobody can take another user's.
pub const WORKLOAD_API_CONNECTIONS_PER_USER_MAX: usize = 64;
/// See [`WORKLOAD_API_CONNECTIONS_PER_USER_MAX`].
pub const WORKLOAD_API_CONNECTIONS_MAX: usize = 1024;
/// Calls to the Workload API that one user has open at once. A process has two or three streams; each holds at most one
/// message (a few KiB).
pub const WORKLOAD_API_CALLS_PER_USER_MAX: usize = 256;
/// Certificates and tokens that one user gets at once, and each second from then on: each costs a signature and a key
/// (0.1 ms), so that a user in a loop takes 1 % of a core.
pub const WORKLOAD_API_ISSUED_BURST_MAX: u32 = 256;
/// See [`WORKLOAD_API_ISSUED_BURST_MAX`].
pub const WORKLOAD_API_ISSUED_PER_S_MAX: u32 = 64;
/// Largest request to the Workload API, in bytes: a JWT-SVID with its audience.
pub const WORKLOAD_API_REQUEST_BYTES_MAX: usize = 32 * 1024;
/// Largest message of an external Workload API, in bytes: 4,000 identities of 4 KiB.
pub const WORKLOAD_API_RESPONSE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Identities that one user can be bound to.
pub const WORKLOAD_API_IDENTITIES_PER_USER_MAX: usize = 64;
/// Audiences of one JWT-SVID: each makes the token longer, and a token for many is a token that many can misuse.
pub const JWT_SVID_AUDIENCES_MAX: usize = 16;
/// Longest audience of a JWT-SVID, in bytes: a URL.
pub const JWT_SVID_AUDIENCE_BYTES_MAX: usize = 512;
/// Life of a JWT-SVID, in seconds. It is a bearer token: what is stolen must not be of use for long (SPIRE: 5 minutes).
pub const JWT_SVID_LIFE_S: u64 = 300;

/// Largest JSON Web Token, in bytes: one with some hundred groups in it. What is longer is refused undecoded.
pub const JWT_BYTES_MAX: usize = 16 * 1024;
/// Deepest nesting of a token's header and claims, and of a JWK set: Keycloak nests three levels.
pub const JWT_JSON_DEPTH_MAX: usize = 16;
/// Tokens in one request that are looked at: each costs a verification (15 us with RSA, 80 us with ECDSA).
pub const JWT_TOKENS_MAX: usize = 8;
/// Keys of one set: identity providers publish two to ten.
pub const JWKS_KEYS_MAX: usize = 64;
/// Largest JWK set, in bytes: [`JWKS_KEYS_MAX`] RSA keys with their certificate chains come to 500 KiB.
pub const JWKS_BYTES_MAX: usize = 1024 * 1024;
/// Pause between two fetches of a key set, in seconds, where `--jwks-refresh` says nothing (Istio's
/// `PILOT_JWT_PUB_KEY_REFRESH_INTERVAL`: 20 minutes).
pub const JWKS_REFRESH_S: u64 = 20 * 60;
/// Shortest such pause, in seconds: an issuer must not be flooded.
pub const JWKS_REFRESH_S_MIN: u64 = 1;
/// Longest, in seconds: keys that an issuer has taken back must be gone within a day.
pub const JWKS_REFRESH_S_MAX: u64 = 24 * 3600;
/// Keys that are tried for one token whose header names none: each costs a verification.
pub const JWT_KEYS_TRIED_MAX: usize = 8;
/// Difference between our clock and an issuer's, in seconds (Envoy's `clock_skew_seconds`: 60).
pub const JWT_CLOCK_SKEW_S: u64 = 60;
/// Verified tokens that a worker remembers.
pub const JWT_CACHE_TOKENS_MAX: usize = 4096;
/// What they take, in bytes, claims included: 4,096 tokens of 1 KiB.
pub const JWT_CACHE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Headers and claims by which the rules of one workload's AuthorizationPolicies are indexed: each costs a search among a
/// request's fields (20 ns). Rules that only more of them tell apart are tried one by one.
pub const ACCESS_INDEX_NAMES_MAX: usize = 16;
/// Longest beginning or end of a text that is a key of that index, in bytes: 64 lengths are 64 probes of 5 ns at the worst.
/// Below 256.
pub const ACCESS_INDEX_KEY_BYTES_MAX: usize = 64;
/// Places of that index that a request can be kept from by what a rule must not see: a bit each, 2 KiB on the stack. Rules beyond it are
/// tried one by one. A multiple of 64.
pub const ACCESS_RULED_OUT_MAX: usize = 16 * 1024;
/// Policies of one workload that are not enforced and of which one match per request is told: a bit each, 128 bytes on the
/// stack. Of those beyond it each match is told. A multiple of 64.
pub const ACCESS_OBSERVED_MAX: usize = 1024;

// ---- HTTP ---------------------------------------------------------------------------------------------------------

/// Largest header section of a request or a response with its first line, in bytes (Envoy's default: 60 KiB).
pub const HEAD_BYTES_MAX: usize = 60 * 1024;
/// Fields in one header section (Envoy's default: 100).
pub const HEAD_FIELDS_MAX: usize = 100;
/// What one hop adds to a head, in bytes: Via, X-Forwarded-*, Forwarded, X-Request-Id, Date, Connection and framing come
/// to 1.1 KiB with the longest names and addresses, and a field that was spelled without a space gets one.
pub const HOP_HEAD_BYTES_MAX: usize = 2 * 1024;
/// What a proxy says about one client's certificate in X-Forwarded-Client-Cert, in bytes: a gateway writes the whole of it, which
/// for an RSA key of 4,096 bits and some names is 3 KiB. It comes on top of [`HOP_HEAD_BYTES_MAX`]: a head that nearly fills its
/// bound may be too large for the next hop with it.
pub const CLIENT_CERTIFICATE_BYTES_MAX: usize = 8 * 1024;
/// Fields that one hop adds: at most twelve, see [`HOP_HEAD_BYTES_MAX`].
pub const HOP_HEAD_FIELDS_MAX: usize = 16;
/// Largest header section that comes from another sidecar, in bytes: what the first hop accepts the next one must not
/// refuse. Below 64 KiB, so that a position in it fits 16 bits.
pub const NEXT_HOP_HEAD_BYTES_MAX: usize = HEAD_BYTES_MAX + HOP_HEAD_BYTES_MAX;
/// Fields in one header section that comes from another sidecar. At most 128: one bit per field in the masks of a head.
pub const NEXT_HOP_HEAD_FIELDS_MAX: usize = HEAD_FIELDS_MAX + HOP_HEAD_FIELDS_MAX;
/// Longest request id that is kept, in bytes. Ours have 36 (RFC 9562); trace systems use up to 64, and it goes into each
/// log line.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
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
/// How often it is looked whether a peer that goes on sending has what was said to it last, in milliseconds: no event tells.
pub const LINGER_LOOK_MS: u64 = 1;
/// How long a client may take to read a last response before the connection goes, in milliseconds: a round trip or two over the worst
/// of networks.
pub const LINGER_MS_MAX: u64 = 1_000;
/// Bytes that a socket of the bypass may have unread before the other end goes over to TCP, if half of its receive
/// buffer (`SO_RCVBUF`, 128 KiB at first) is not less. The kernel sets no bound to what is redirected.
pub const BYPASS_UNREAD_BYTES_MAX: u32 = 256 * 1024;
/// Messages likewise, since its reader was last seen with nothing unread: each costs the kernel 1 KiB beside its bytes.
pub const BYPASS_MESSAGES_MAX: u32 = 64;
/// Sockets in the bypass at a time, two per connection; what finds no room stays on TCP. An entry is 128 bytes.
pub const BYPASS_SOCKETS_MAX: u32 = 128 * 1024;
/// Proxies that one control process registers for the bypass, and distinct addresses that they listen on.
pub const BYPASS_PROXIES_MAX: u32 = 1024;
/// Likewise; a proxy has a few.
pub const BYPASS_LISTENERS_MAX: u32 = 8192;

/// How long an endpoint that refused a connection is passed over where there are others, in milliseconds.
pub const UPSTREAM_AVOID_MS: u64 = 1_000;
/// How long a server that has chosen HTTP/1.1 is not asked again, in milliseconds.
pub const UPSTREAM_HTTP1_ONLY_MS: u64 = 60_000;
/// What a tunnel reads at once, in bytes: it fits one TLS record.
pub const TUNNEL_READ_BYTES_MAX: usize = 16 * 1024;
/// Between two times that freed memory is given back to the kernel, of all workers together, in milliseconds: it stops them all.
pub const TRIM_INTERVAL_MS_MIN: u64 = 30_000;
/// Longest wait for a connection to ourselves that asks the kernel for TLS, in milliseconds: it takes microseconds, unless a packet filter
/// swallows it.
pub const KTLS_PROBE_CONNECT_MS_MAX: u64 = 1_000;
/// How long a client of HTTP/2 may take to read why its connection ends, in milliseconds.
pub const HTTP2_LINGER_MS: u64 = 1_000;
/// Streams that wait for room and are woken when a buffer is on its way: the first of them fill the next one.
pub const HTTP2_WOKEN_AT_ONCE: usize = 4;
/// Blocks for futures of requests that a worker keeps for a second, 8 KiB each: as many as may wait with a buffer in hand.
pub const FUTURES_POOLED_MAX: usize = 256;
/// Tasks that wait for a stream: as many requests as a worker serves at a time without being busy with anything else.
pub const STREAM_TASKS_POOLED_MAX: usize = 64;
/// Sweeps of pools and endpoints, in milliseconds.
pub const SWEEP_MS: u64 = 1_000;
/// Field tables that a worker keeps for reuse: one per connection that is in the middle of something.
pub const SCRATCHES_POOLED_MAX: usize = 64;
/// What is still read behind a handshake that was refused: a client with too long a chain sends all of it before it reads why.
pub const TLS_LINGER_BYTES_MAX: usize = 2 * TLS_HANDSHAKE_BYTES_MAX;
/// How long a client may take to read why its handshake was refused, in milliseconds.
pub const TLS_LINGER_MS: u64 = 1_000;
/// How long a network namespace that keeps no track of connections is believed to do without, in milliseconds.
pub const UNTRACKED_MS: u64 = 1_000;
/// How often it is asked whether a body can be spliced.
pub const SPLICE_ATTEMPTS_MAX: u32 = 4;
/// Of a head that comes in a trickle, in bytes; a larger one keeps a buffer for a while each time.
pub const TRICKLED_HEAD_BYTES_MAX: usize = 2 * 1024;
/// Of a piece that is taken while its connection goes on waiting, in bytes.
pub const TRICKLED_PIECE_BYTES_MAX: usize = 256;
/// How long the rest of a record is waited for that has come cut behind the handshake, in milliseconds: it is on its way.
pub const TLS_FIRST_RECORD_MS_MAX: u64 = 250;
/// Sessions that can be resumed, for each way to reach a cluster.
pub const TLS_SESSIONS_MAX: usize = 256;
/// Connections that the kernel keeps for us while we are busy; it takes the lesser of this and net.core.somaxconn.
pub const LISTEN_BACKLOG: i32 = 4096;
/// Between an accept that has failed, for want of descriptors or memory, and the next one, in milliseconds.
pub const ACCEPT_PAUSE_MS: u64 = 50;
/// Between two lines of the log about refusals of one code, in milliseconds.
pub const REFUSAL_LOG_INTERVAL_MS: u64 = 1_000;
/// Of one TLS record that is no data, in bytes: what is longer comes in parts.
pub const TLS_CONTROL_RECORD_BYTES_MAX: usize = 4096;
/// How long the start of a proxy waits for its addresses to become free, in milliseconds.
pub const ADDRESS_WAIT_MS_MAX: u64 = 2_000;
/// How long the start of a proxy waits for a control that is there before the last good snapshot is used, in milliseconds.
pub const FIRST_GENERATION_WAIT_MS_MAX: u64 = 500;
/// Between two writes of the last good snapshot, in milliseconds: a hundred changes a second must not become a hundred files.
pub const LAST_GOOD_STORE_INTERVAL_MS: u64 = 1_000;
