//! A connection over loopback: our side after a handshake with rustls' unbuffered state machine, its keys in our hands;
//! the other side is rustls as everybody uses it.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, RawFd},
    sync::Arc,
    thread,
    time::Duration,
};

use rustls::{
    ClientConfig, ClientConnection, Connection, ExtractedSecrets, ProtocolVersion, RootCertStore, ServerConfig,
    ServerConnection, SupportedCipherSuite,
    client::UnbufferedClientConnection,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, UnbufferedStatus},
};

use crate::worker::{
    ktls::{EnableError, Probe, Secrets, enable},
    secure::KeySchedule,
};

/// Emulation is slow; a test that waits longer has lost something.
const WAIT_S_MAX: u64 = 60;

/// Which side of the handshake is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ours {
    Client,
    Server,
}

/// All that the probe is about. The certificate is of an ECDSA key: the suites for RSA cannot be had with it.
pub(super) fn suites() -> Vec<SupportedCipherSuite> {
    let is_rsa = |suite: &SupportedCipherSuite| format!("{:?}", suite.suite()).contains("_RSA_");
    aws_lc_rs::ALL_CIPHER_SUITES.iter().copied().filter(|suite| !is_rsa(suite)).collect()
}

/// The default one: TLS 1.3 with AES-128-GCM.
pub(super) fn default_suite() -> SupportedCipherSuite {
    aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256
}

/// Our side.
pub(super) struct Kernel {
    pub(super) socket: TcpStream,
    pub(super) schedule: KeySchedule,
    pub(super) secrets: ExtractedSecrets,
    pub(super) version: ProtocolVersion,
}

impl Kernel {
    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    pub(super) fn enable(&self) -> Result<(), EnableError> {
        let ((tx_sequence, tx), (rx_sequence, rx)) = (&self.secrets.tx, &self.secrets.rx);
        let secrets = |secrets, sequence| Secrets { version: self.version, secrets, sequence };
        enable(self.fd(), Some(secrets(tx, *tx_sequence)), Some(secrets(rx, *rx_sequence)))
    }

    pub(super) fn is_supported(&self, probe: &Probe) -> bool {
        probe.supports(self.version, &self.secrets.tx.1)
    }
}

/// The other side.
pub(super) struct Peer {
    pub(super) connection: Connection,
    pub(super) socket: TcpStream,
}

impl Peer {
    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.connection.writer().write_all(bytes).unwrap();
        self.flush();
    }

    pub(super) fn flush(&mut self) {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.socket).unwrap();
        }
    }

    pub(super) fn close_notify(&mut self) {
        self.connection.send_close_notify();
        self.flush();
    }

    pub(super) fn update_keys(&mut self) {
        self.connection.refresh_traffic_keys().unwrap();
        self.flush();
    }

    /// Exactly so many bytes; fewer where the stream ends with close_notify.
    pub(super) fn receive(&mut self, count: usize) -> Result<Vec<u8>, rustls::Error> {
        let mut bytes = vec![0; count];
        let mut at = 0;
        while at < count {
            match self.connection.reader().read(&mut bytes[at..]) {
                Ok(0) => break,
                Ok(more) => at += more,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    assert_ne!(self.connection.read_tls(&mut self.socket).unwrap(), 0, "the stream is cut");
                    self.connection.process_new_packets()?;
                }
                Err(error) => panic!("{error}"),
            }
        }
        bytes.truncate(at);
        Ok(bytes)
    }

    /// No more, and not a word about it.
    pub(super) fn cut(&self) {
        self.socket.shutdown(Shutdown::Write).unwrap();
    }
}

/// Two ends of a TCP connection; a read that waits for long fails.
pub(super) fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (two, _) = listener.accept().unwrap();
    for socket in [&one, &two] {
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(WAIT_S_MAX))).unwrap();
        socket.set_write_timeout(Some(Duration::from_secs(WAIT_S_MAX))).unwrap();
    }
    (one, two)
}

/// After a handshake, before anything has moved.
pub(super) fn pair(suite: SupportedCipherSuite, ours: Ours) -> (Kernel, Peer) {
    let provider = Arc::new(CryptoProvider { cipher_suites: vec![suite], ..aws_lc_rs::default_provider() });
    let made = rcgen::generate_simple_self_signed(["peer.test".to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let versions = [suite.version()];
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    server.enable_secret_extraction = true;
    client.enable_secret_extraction = true;
    let (server, client, name) = (Arc::new(server), Arc::new(client), ServerName::try_from("peer.test").unwrap());
    let (mut socket, mut other) = sockets();
    let mut connection = match ours {
        Ours::Client => Connection::from(ServerConnection::new(server.clone()).unwrap()),
        Ours::Server => Connection::from(ClientConnection::new(client.clone(), name.clone()).unwrap()),
    };
    connection.set_buffer_limit(None);
    let peer = thread::spawn(move || {
        while connection.is_handshaking() || connection.wants_write() {
            connection.complete_io(&mut other).unwrap();
        }
        Peer { connection, socket: other }
    });
    let (secrets, schedule, version) = match ours {
        Ours::Client => {
            let mut connection = UnbufferedClientConnection::new(client, name).unwrap();
            handshake(&mut socket, |bytes, out| {
                let (discard, next) = step(connection.process_tls_records(bytes), out);
                (discard, next.or_read(connection.is_handshaking()))
            });
            let (secrets, kernel) = connection.dangerous_into_kernel_connection().unwrap();
            let version = kernel.protocol_version();
            (secrets, KeySchedule::Client(kernel), version)
        }
        Ours::Server => {
            let mut connection = UnbufferedServerConnection::new(server).unwrap();
            handshake(&mut socket, |bytes, out| {
                let (discard, next) = step(connection.process_tls_records(bytes), out);
                (discard, next.or_read(connection.is_handshaking()))
            });
            let (secrets, kernel) = connection.dangerous_into_kernel_connection().unwrap();
            let version = kernel.protocol_version();
            (secrets, KeySchedule::Server(kernel), version)
        }
    };
    (Kernel { socket, schedule, secrets, version }, peer.join().unwrap())
}

enum Step {
    Again,
    Flush,
    Read,
    Ready,
}

impl Step {
    /// A server may send before the client has finished.
    fn or_read(self, is_handshaking: bool) -> Self {
        match self {
            Self::Ready if is_handshaking => Self::Read,
            step => step,
        }
    }
}

fn step<Data>(status: UnbufferedStatus<'_, '_, Data>, out: &mut Vec<u8>) -> (usize, Step) {
    let UnbufferedStatus { discard, state, .. } = status;
    let step = match state.unwrap() {
        ConnectionState::EncodeTlsData(mut data) => {
            let mut bytes = vec![0; 32 * 1024];
            let count = data.encode(&mut bytes).unwrap();
            out.extend_from_slice(&bytes[..count]);
            Step::Again
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Step::Flush
        }
        ConnectionState::BlockedHandshake => Step::Read,
        ConnectionState::WriteTraffic(_) => Step::Ready,
        other => panic!("{other:?}"),
    };
    (discard, step)
}

/// Record by record, so that nothing is read that the kernel is to open.
fn handshake(socket: &mut TcpStream, mut step: impl FnMut(&mut [u8], &mut Vec<u8>) -> (usize, Step)) {
    let (mut incoming, mut out) = (Vec::new(), Vec::new());
    loop {
        let (discard, next) = step(&mut incoming, &mut out);
        incoming.drain(..discard);
        match next {
            Step::Again => {}
            Step::Flush => socket.write_all(&std::mem::take(&mut out)).unwrap(),
            Step::Read => read_record(socket, &mut incoming),
            Step::Ready => return,
        }
    }
}

fn read_record(socket: &mut TcpStream, incoming: &mut Vec<u8>) {
    let mut header = [0; 5];
    socket.read_exact(&mut header).unwrap();
    let start = incoming.len() + header.len();
    incoming.extend_from_slice(&header);
    incoming.resize(start + usize::from(u16::from_be_bytes([header[3], header[4]])), 0);
    socket.read_exact(&mut incoming[start..]).unwrap();
}
