//! Handshakes over a connection, with rustls' unbuffered state machine: it reads and writes no socket, so a deadline, a
//! bound and the worker's buffers are ours. When it is done the keys go to [`worker::secure`](crate::worker::secure).

use std::{fmt, io, sync::Arc};

use aws_lc_rs::digest;
use meshring_core::{
    certificate::Description,
    client_hello::{self, BadHello, ClientHello},
    limits::{TLS_FIRST_RECORD_MS_MAX, TLS_HANDSHAKE_BYTES_MAX, TLS_HANDSHAKE_MS_MAX},
    spiffe::SpiffeId,
    stats::{Counter, PeerCounter},
};
use rustls::{
    AlertDescription, CertificateError, Error as TlsError, HandshakeKind, InvalidMessage, OtherError,
    client::UnbufferedClientConnection,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus},
};

use super::{
    materials::{Client, Server},
    overflow,
    verify::Verifier,
};
use crate::worker::{
    Worker,
    buffers::Counted,
    conn::Conn,
    deadlines::{Expiry, now_ms},
    join::within,
    secure::{
        KeySchedule, Tls,
        peer::Peer,
        record::{BadRecord, Content, HEADER_BYTES, PLAINTEXT_BYTES_MAX, UnknownSecrets, missing_len, record_len},
    },
};

/// A connection that is not secured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// The peer takes too long.
    #[error("the TLS handshake did not end in time")]
    TimedOut,
    /// The peer went away in the middle of it.
    #[error("the peer closed the connection in the middle of the TLS handshake")]
    Closed,
    /// Likewise, with a reason.
    #[error("in the TLS handshake: {0}")]
    Io(#[from] io::Error),
    /// A record beyond what the protocol allows.
    #[error("a record of the TLS handshake is larger than the protocol allows")]
    RecordTooLong,
    /// A flight beyond [`TLS_HANDSHAKE_BYTES_MAX`].
    #[error("a flight of the TLS handshake is longer than {TLS_HANDSHAKE_BYTES_MAX} bytes")]
    TooLong,
    /// There is no room for the handshake.
    #[error("the worker's memory for messages is used up")]
    Overload,
    /// What was said is no TLS, or not acceptable. The alert that goes with it was sent.
    #[error("TLS: {}", Reason(.0))]
    Tls(#[from] TlsError),
    /// The first bytes are not those of a client.
    #[error("TLS: {0}")]
    Hello(#[from] BadHello),
    /// The certificate of a resumed session is not acceptable any more.
    #[error("TLS session resumed with a certificate that is not acceptable now: {}", Reason(.0))]
    Resumed(TlsError),
    /// A cipher suite that we do not know.
    #[error(transparent)]
    Suite(#[from] UnknownSecrets),
}

/// Our own reasons without the library's words around them.
struct Reason<'a>(&'a TlsError);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            TlsError::InvalidCertificate(CertificateError::Other(OtherError(why))) => fmt::Display::fmt(why, f),
            error => fmt::Display::fmt(error, f),
        }
    }
}

impl HandshakeError {
    /// A stable short name.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::TimedOut => "tls.timeout",
            Self::Closed | Self::Io(_) => "tls.closed",
            Self::TooLong | Self::RecordTooLong | Self::Hello(BadHello::TooLong | BadHello::RecordTooLong) => {
                "tls.too_long"
            }
            Self::Overload => "overload",
            Self::Hello(_) => "tls.bad_hello",
            Self::Suite(_) => "tls.no_common_suite",
            Self::Resumed(error) | Self::Tls(error) => match error {
                TlsError::InvalidCertificate(error) => certificate_code(error),
                TlsError::NoCertificatesPresented => "tls.no_certificate",
                TlsError::AlertReceived(alert) => alert_code(*alert),
                TlsError::PeerIncompatible(_) => "tls.no_common_suite",
                TlsError::NoApplicationProtocol => "tls.no_common_protocol",
                TlsError::PeerSentOversizedRecord => "tls.too_long",
                TlsError::InvalidMessage(
                    InvalidMessage::HandshakePayloadTooLarge | InvalidMessage::CertificatePayloadTooLarge,
                ) => "tls.too_long",
                _ => "tls.malformed",
            },
        }
    }
}

fn certificate_code(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "tls.certificate_expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "tls.certificate_not_yet_valid",
        CertificateError::UnknownIssuer => "tls.certificate_unknown_issuer",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "tls.certificate_wrong_name"
        }
        CertificateError::Other(_) => "tls.certificate_wrong_identity",
        _ => "tls.bad_certificate",
    }
}

/// The peer does not like us.
fn alert_code(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CertificateExpired => "tls.alert_certificate_expired",
        AlertDescription::UnknownCA => "tls.alert_unknown_ca",
        AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => "tls.alert_bad_certificate",
        AlertDescription::CertificateRequired => "tls.alert_certificate_required",
        AlertDescription::HandshakeFailure => "tls.alert_handshake_failure",
        _ => "tls.alert",
    }
}

/// Room for a flight with a chain of two certificates, which most need.
const FLIGHT_BYTES: usize = 4 * 1024;
/// `certificate_unknown` (RFC 8446 section 6.2).
const CERTIFICATE_UNKNOWN: u8 = 46;
/// `certificate_expired`.
const CERTIFICATE_EXPIRED: u8 = 45;

enum Machine {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What the state machine wants.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Again.
    Go,
    /// Send what it has written.
    Flush,
    /// More from the peer.
    Read,
    /// The peer has closed.
    Closed,
    /// Data may be sent; the handshake may not be over yet.
    Ready,
}

impl Machine {
    fn step(&mut self, incoming: &mut [u8], out: &mut Vec<u8>) -> (usize, Result<Step, TlsError>) {
        match self {
            Self::Client(client) => act(client.process_tls_records(incoming), out),
            Self::Server(server) => act(server.process_tls_records(incoming), out),
        }
    }

    fn protocol(&self) -> Option<&[u8]> {
        match self {
            Self::Client(client) => client.alpn_protocol(),
            Self::Server(server) => server.alpn_protocol(),
        }
    }

    fn is_handshaking(&self) -> bool {
        match self {
            Self::Client(client) => client.is_handshaking(),
            Self::Server(server) => server.is_handshaking(),
        }
    }

    fn is_resumed(&self) -> bool {
        let kind = match self {
            Self::Client(client) => client.handshake_kind(),
            Self::Server(server) => server.handshake_kind(),
        };
        kind == Some(HandshakeKind::Resumed)
    }

    fn certificates(&self) -> &[CertificateDer<'static>] {
        let certificates = match self {
            Self::Client(client) => client.peer_certificates(),
            Self::Server(server) => server.peer_certificates(),
        };
        certificates.unwrap_or_default()
    }
}

fn act<D>(status: UnbufferedStatus<'_, '_, D>, out: &mut Vec<u8>) -> (usize, Result<Step, TlsError>) {
    let UnbufferedStatus { discard, state } = status;
    let step = state.and_then(|state| match state {
        ConnectionState::EncodeTlsData(encode) => encoded(encode, out).map(|()| Step::Go),
        ConnectionState::TransmitTlsData(transmit) => {
            transmit.done();
            Ok(Step::Flush)
        }
        ConnectionState::BlockedHandshake => Ok(Step::Read),
        ConnectionState::WriteTraffic(_) => Ok(Step::Ready),
        ConnectionState::PeerClosed | ConnectionState::Closed => Ok(Step::Closed),
        // Early data is not offered, and no record behind the handshake is fed.
        _ => Err(TlsError::General("data before the end of the handshake".into())),
    });
    (discard, step)
}

fn encoded<D>(mut encode: EncodeTlsData<'_, D>, out: &mut Vec<u8>) -> Result<(), TlsError> {
    let start = out.len();
    out.resize(start + FLIGHT_BYTES, 0);
    let mut result = encode.encode(&mut out[start..]);
    if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) = result {
        out.resize(start + required_size, 0);
        result = encode.encode(&mut out[start..]);
    }
    match result {
        Ok(written) => {
            out.truncate(start + written);
            Ok(())
        }
        Err(error) => Err(TlsError::General(error.to_string())),
    }
}

/// The first message of a client, as far as it is needed to choose how to go on: nothing of it is consumed.
#[derive(Debug)]
pub(crate) struct Opening {
    bytes: Counted,
    /// When the handshake must be over.
    until_ms: u64,
    pub(crate) hello: ClientHello,
}

/// What a client has sent first, and what it is.
#[derive(Debug)]
pub(crate) struct Sniffed {
    bytes: Counted,
    until_ms: u64,
    hello: Result<ClientHello, BadHello>,
}

impl Sniffed {
    /// All that was received.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether it is a ClientHello of a sidecar's.
    pub(crate) fn is_mesh(&self) -> bool {
        self.hello.as_ref().is_ok_and(|hello| hello.is_mesh)
    }

    /// The ClientHello; `None` for another protocol.
    pub(crate) fn hello(self) -> Result<Option<ClientHello>, HandshakeError> {
        match self.hello {
            Ok(hello) => Ok(Some(hello)),
            Err(BadHello::NotTls) => Ok(None),
            Err(bad) => Err(bad.into()),
        }
    }

    /// For a handshake.
    pub(crate) fn opening(self) -> Result<Opening, HandshakeError> {
        let Self { bytes, until_ms, hello } = self;
        Ok(Opening { bytes, until_ms, hello: hello? })
    }
}

/// Reads a client's first message. What is wrong with it is for [`accept`] to say to the client.
pub(crate) async fn opening(worker: &Worker, conn: &mut Conn) -> Result<Opening, HandshakeError> {
    sniff(worker, conn, b"").await?.opening()
}

/// Reads as much of a client's first message as tells what it is, behind what was received of it already.
pub(crate) async fn sniff(worker: &Worker, conn: &mut Conn, received: &[u8]) -> Result<Sniffed, HandshakeError> {
    if worker.overloaded() {
        return Err(HandshakeError::Overload);
    }
    let until_ms = now_ms() + TLS_HANDSHAKE_MS_MAX;
    conn.timer.set(until_ms, Expiry::ShutdownBoth);
    let mut bytes = worker.buffers.counted();
    bytes.extend(received);
    let result = loop {
        // Only where a record more is whole, or something is wrong: a trickle must not be read from its beginning each time.
        if client_hello::is_worth_reading(&bytes) {
            match client_hello::parse(&bytes) {
                Ok(Some(hello)) => break Ok(Sniffed { bytes, until_ms, hello: Ok(hello) }),
                Ok(None) => {}
                Err(bad) => break Ok(Sniffed { bytes, until_ms, hello: Err(bad) }),
            }
        }
        match receive(worker, conn, &mut bytes).await {
            Ok(()) => {}
            // What has not ended is a ClientHello still.
            Err(HandshakeError::TooLong) => break Err(BadHello::TooLong.into()),
            Err(error) => break Err(error),
        }
    };
    conn.timer.clear();
    result
}

/// More of what the peer says. Waits without a buffer: a peer that is silent costs no more than an idle one.
async fn receive(worker: &Worker, conn: &mut Conn, bytes: &mut Counted) -> Result<(), HandshakeError> {
    if bytes.len() > TLS_HANDSHAKE_BYTES_MAX {
        return Err(HandshakeError::TooLong);
    }
    loop {
        let mut buffer = worker.buffers.take();
        match conn.receive_now(&mut buffer) {
            Ok(0) if conn.timer.take_expired() => return Err(HandshakeError::TimedOut),
            Ok(0) => return Err(HandshakeError::Closed),
            Ok(_) => {
                bytes.extend(&buffer);
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        drop(buffer);
        conn.readable().await?;
    }
}

/// Serves a client's handshake. On an error the client was told what can be told, and the connection is to be closed.
pub(crate) async fn accept(
    worker: &Worker,
    conn: &mut Conn,
    server: &Server,
    opening: Opening,
    terms: Option<u64>,
) -> Result<(), HandshakeError> {
    let machine = Machine::Server(UnbufferedServerConnection::new(Arc::clone(&server.config))?);
    let sni = opening.hello.server_name.map(String::into_boxed_str);
    let how = How { verifier: server.verifier.as_deref(), own: server.identity.clone(), sni, host: None, terms };
    run(worker, conn, machine, how, opening.bytes, opening.until_ms).await
}

/// Begins a handshake with a server, within so many milliseconds.
pub(crate) async fn connect(
    worker: &Worker,
    conn: &mut Conn,
    client: &Client,
    name: &ServerName<'static>,
    ms_max: u64,
) -> Result<(), HandshakeError> {
    let machine = UnbufferedClientConnection::new(Arc::clone(&client.config), name.clone())?;
    let how = How {
        verifier: Some(&client.verifier),
        own: client.identity.clone(),
        sni: None,
        host: Some(name),
        terms: None,
    };
    let until_ms = now_ms() + ms_max.min(TLS_HANDSHAKE_MS_MAX);
    run(worker, conn, Machine::Client(machine), how, worker.buffers.counted(), until_ms).await
}

/// What is known beside the state machine.
struct How<'a> {
    verifier: Option<&'a Verifier>,
    own: Option<Arc<SpiffeId>>,
    sni: Option<Box<str>>,
    host: Option<&'a ServerName<'static>>,
    terms: Option<u64>,
}

async fn run(
    worker: &Worker,
    conn: &mut Conn,
    mut machine: Machine,
    how: How<'_>,
    mut received: Counted,
    until_ms: u64,
) -> Result<(), HandshakeError> {
    conn.timer.set(until_ms, Expiry::ShutdownBoth);
    let mut fed = 0;
    let result = shake(worker, conn, &mut machine, &mut received, &mut fed).await;
    if result.is_ok() && worker.ktls.is_some() && matches!(machine, Machine::Server(_)) {
        complete_record(conn, &mut received).await;
    }
    conn.timer.clear();
    if let Err(error) = result {
        if matches!(error, HandshakeError::Tls(_) | HandshakeError::TooLong | HandshakeError::RecordTooLong) {
            last_words(conn, &mut machine, &received[..fed], &error);
        }
        return Err(error);
    }
    finish(worker, conn, machine, how, &received)
}

/// Drives the state machine to the end of the handshake. Records are fed one by one, so that none behind the handshake is
/// taken: what is left in `received` belongs to the connection.
async fn shake(
    worker: &Worker,
    conn: &mut Conn,
    machine: &mut Machine,
    received: &mut Counted,
    fed: &mut usize,
) -> Result<(), HandshakeError> {
    let mut out = Vec::new();
    loop {
        let (discard, step) = machine.step(&mut received.bytes_mut()[..*fed], &mut out);
        received.consume(discard);
        *fed -= discard;
        let step = match step {
            Ok(step) => step,
            Err(error) => return Err(error.into()),
        };
        match step {
            Step::Go => {}
            Step::Closed => return Err(HandshakeError::Closed),
            Step::Ready if !machine.is_handshaking() => return flush(conn, &mut out).await,
            Step::Flush => flush(conn, &mut out).await?,
            Step::Read | Step::Ready => {
                flush(conn, &mut out).await?;
                loop {
                    let next = &received[*fed..];
                    match handshake_record_len(next).map_err(|_: BadRecord| HandshakeError::RecordTooLong)? {
                        Some(len) if next.len() >= len => {
                            *fed += len;
                            break;
                        }
                        _ => receive(worker, conn, received).await?,
                    }
                }
            }
        }
    }
}

/// As [`record_len`] while nothing but application data can be sealed and large: of the others, TLS 1.2 seals Finished only.
fn handshake_record_len(bytes: &[u8]) -> Result<Option<usize>, BadRecord> {
    let len = record_len(bytes)?;
    let is_plain = bytes.first() != Some(&Content::Data.to_u8());
    if is_plain && len.is_some_and(|len| len > HEADER_BYTES + PLAINTEXT_BYTES_MAX) {
        return Err(BadRecord::TooLarge);
    }
    Ok(len)
}

/// Kernel TLS begins between two records: a client that has sent much behind its last message is waited for, for a moment, where
/// one is cut. Whatever is in the way of that is for others to meet.
async fn complete_record(conn: &Conn, received: &mut Counted) {
    let until_ms = now_ms() + TLS_FIRST_RECORD_MS_MAX;
    while let Ok(missing @ 1..) = missing_len(received) {
        let mut bytes = vec![0; missing];
        match conn.receive_into_now(&mut bytes) {
            Ok(count @ 1..) => received.extend(&bytes[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && now_ms() < until_ms => {
                within(until_ms.saturating_sub(now_ms()), conn.readable()).await;
            }
            _ => return,
        }
    }
}

async fn flush(conn: &mut Conn, out: &mut Vec<u8>) -> Result<(), HandshakeError> {
    if out.is_empty() {
        return Ok(());
    }
    let (result, bytes) = conn.send_plain(std::mem::take(out)).await;
    *out = bytes;
    out.clear();
    match result {
        Ok(()) => Ok(()),
        Err(_) if conn.timer.take_expired() => Err(HandshakeError::TimedOut),
        Err(error) => Err(error.into()),
    }
}

/// The header of a record that is longer than any.
const ENDLESS_RECORD: [u8; 5] = [22, 3, 3, 0xff, 0xff];

/// The alert that the peer is to hear, if any.
///
/// It comes before anything else that the state machine does. `fed`: what it has been given and not consumed; without it a
/// message that was not whole would have it look for bytes that are not there.
///
/// What is too long for us may not be for rustls, and a message that is too long for rustls has no alert there (0.23: it leaves
/// in the middle of reading). Only rustls has the keys of the handshake, so it is led to say `decode_error`, by a record that
/// cannot be: RFC 8446 section 6.2 has that alert for a length that is out of range, rustls for every message that it cannot
/// read. (OpenSSL and BoringSSL say `illegal_parameter` of long messages.) For a record that is too long it becomes
/// `record_overflow` on its way (section 5.1).
fn last_words(conn: &Conn, machine: &mut Machine, fed: &[u8], error: &HandshakeError) {
    let mut alert = Vec::new();
    match error {
        HandshakeError::RecordTooLong => overflow::instead(&mut alert, |alert| say(machine, fed, error, alert)),
        _ => say(machine, fed, error, &mut alert),
    }
    if !alert.is_empty() {
        conn.send_now(&alert);
    }
}

/// Has the state machine say it.
fn say(machine: &mut Machine, fed: &[u8], error: &HandshakeError, alert: &mut Vec<u8>) {
    let mut fed = fed.to_vec();
    let mut step = |fed: &mut Vec<u8>| {
        let (discard, _) = machine.step(fed, alert);
        fed.drain(..discard);
        !alert.is_empty()
    };
    let is_said = step(&mut fed);
    let needs_help = matches!(
        error,
        HandshakeError::TooLong | HandshakeError::RecordTooLong | HandshakeError::Tls(TlsError::InvalidMessage(_))
    );
    if !is_said && needs_help {
        fed.extend_from_slice(&ENDLESS_RECORD);
        // One makes the alert, the other one gives it.
        let _ = step(&mut fed) || step(&mut fed);
    }
}

fn finish(
    worker: &Worker,
    conn: &mut Conn,
    machine: Machine,
    how: How<'_>,
    leftover: &[u8],
) -> Result<(), HandshakeError> {
    let Some(fd) = conn.fd() else { return Err(HandshakeError::Closed) };
    let mut peer = Peer {
        own: how.own,
        sni: how.sni,
        terms: how.terms,
        protocol: machine.protocol().map(Box::from),
        is_resumed: machine.is_resumed(),
        ..Peer::default()
    };
    let mut refused = None;
    if let Some((leaf, intermediates)) = machine.certificates().split_first() {
        peer.certificate_sha256 = digest::digest(&digest::SHA256, leaf).as_ref().try_into().ok();
        let description = Description::of(leaf).ok();
        let names = description.as_ref().and_then(|description| description.names.as_ref().ok());
        peer.identity = names.and_then(|names| names.identity().ok()).map(Arc::new);
        if matches!(machine, Machine::Server(_)) {
            peer.describe(leaf, description.as_ref());
        }
        peer.slot = peer.identity.as_ref().map(|identity| worker.stats.page().peer_slot(identity.as_str()));
        // A resumed session shows no certificate: what was accepted then must be acceptable now.
        if peer.is_resumed
            && let Some(verifier) = how.verifier
        {
            refused = verifier.check(leaf, intermediates, how.host, UnixTime::now()).err();
        }
    }
    let slot = peer.slot;
    let (secrets, schedule, counter) = match machine {
        Machine::Client(client) => {
            let (secrets, kernel) = client.dangerous_into_kernel_connection()?;
            (secrets, KeySchedule::Client(kernel), PeerCounter::UpstreamConnections)
        }
        Machine::Server(server) => {
            let (secrets, kernel) = server.dangerous_into_kernel_connection()?;
            (secrets, KeySchedule::Server(kernel), PeerCounter::Connections)
        }
    };
    let records_max = worker.limits.tls_records_per_key_max;
    let tls = Tls::new(fd, &worker.buffers, &secrets, schedule, peer, leftover, records_max)?;
    if let Some(error) = refused {
        tls.fail(match &error {
            TlsError::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
                CERTIFICATE_EXPIRED
            }
            _ => CERTIFICATE_UNKNOWN,
        });
        return Err(HandshakeError::Resumed(error));
    }
    if let Some(probe) = worker.ktls.as_deref()
        && !conn.may_be_bypassed()
        && tls.move_to_kernel(probe, &secrets)?
    {
        worker.stats.add(Counter::TlsKernel, 1);
    }
    if let Some(slot) = slot {
        worker.stats.peer(slot, counter);
    }
    conn.secure(tls);
    Ok(())
}
