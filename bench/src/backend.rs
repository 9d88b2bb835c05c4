//! `meshring-bench backend`: a server that answers every request with the same response, as cheaply as it can.

mod connection;

use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use self::connection::{Connection, Responses};
use crate::limits::{EVENTS_PER_WAIT_MAX, READ_BUFFER_BYTES};
use crate::poller::{Event, Interest, Poller, Token};
use crate::process::{Process, Spawn};
use crate::tls::{self, Socket};

/// Serves a fixed response on one thread over HTTP/1.1 (keep-alive, pipelining) and HTTP/2 (by prior knowledge, by ALPN
/// with TLS); request bodies are discarded. A gRPC call gets its message back, with grpc-status 0. Requests for /hold are
/// never answered.
///
/// Prints "listening on ADDRESS" when it is ready. Runs until it is interrupted.
#[derive(Debug, clap::Args)]
pub(crate) struct BackendArgs {
    /// Address to serve; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Bytes of the response body
    #[arg(long, default_value_t = 100)]
    pub(crate) body_bytes: usize,
    /// Speak TLS with this certificate (PEM, with its chain)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
}

const LISTENER: Token = Token { slot: u32::MAX, turn: 0 };

/// Runs the command.
pub(crate) fn run(args: &BackendArgs, interrupted: &AtomicBool) -> anyhow::Result<ExitCode> {
    let listener = TcpListener::bind(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    crate::process::raise_file_limit();
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(cert), Some(key)) => Some(tls::Server::new(cert, key)?),
        _ => None,
    };
    let mut backend = Backend::new(listener, args.body_bytes, tls)?;
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "listening on {address}")?;
    stdout.flush()?;
    drop(stdout);
    let mut events = Vec::with_capacity(EVENTS_PER_WAIT_MAX);
    while !interrupted.load(Ordering::Relaxed) {
        backend.poller.wait(&mut events, Some(Duration::from_secs(1))).context("cannot wait for events")?;
        for event in &events {
            backend.handle(*event)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts this command in a process of its own; gives its address.
pub(crate) fn start(core: Option<usize>, body_bytes: usize, log_dir: &Path) -> anyhow::Result<(Process, SocketAddr)> {
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let arguments = ["backend", "--listen", "127.0.0.1:0", "--body-bytes", &body_bytes.to_string()];
    let mut backend = Process::spawn(&Spawn {
        name: "backend",
        program: &own,
        arguments: arguments.map(OsString::from).into(),
        core,
        log_dir,
        take_stdout: true,
    })?;
    let line = backend.read_line()?;
    let address = line
        .strip_prefix("listening on ")
        .and_then(|address| address.parse().ok())
        .with_context(|| format!("the backend did not start; {}", backend.quote_log()))?;
    Ok((backend, address))
}

struct Backend {
    listener: TcpListener,
    tls: Option<tls::Server>,
    accepting: bool,
    poller: Poller,
    responses: Responses,
    slots: Vec<Option<Connection>>,
    free: Vec<u32>,
    turn: u32,
    buffer: Box<[u8]>,
}

impl Backend {
    fn new(listener: TcpListener, body_bytes: usize, tls: Option<tls::Server>) -> io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(&listener, LISTENER, Interest::Read)?;
        Ok(Self {
            listener,
            tls,
            accepting: true,
            poller,
            responses: Responses::new(body_bytes),
            slots: Vec::new(),
            free: Vec::new(),
            turn: 0,
            buffer: vec![0; READ_BUFFER_BYTES].into_boxed_slice(),
        })
    }

    fn handle(&mut self, event: Event) -> io::Result<()> {
        if event.token == LISTENER {
            return self.accept();
        }
        let Some(Some(connection)) = self.slots.get_mut(event.token.slot as usize) else { return Ok(()) };
        if connection.turn() != event.token.turn {
            return Ok(());
        }
        let open = (!event.writable || connection.flush(&self.responses))
            && (!event.readable || connection.receive(&self.responses, &mut self.buffer))
            && connection.update_interest(&self.responses, &self.poller, event.token);
        if !open {
            self.slots[event.token.slot as usize] = None;
            self.free.push(event.token.slot);
            if !self.accepting {
                self.accepting = true;
                self.poller.modify(&self.listener, LISTENER, Interest::Read)?;
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            match accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => self.insert(TcpStream::from(socket))?,
                Err(Errno::AGAIN) => return Ok(()),
                // Without file descriptors left, connections wait in the kernel until another one ends.
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    self.accepting = false;
                    return self.poller.modify(&self.listener, LISTENER, Interest::Nothing);
                }
                // The others concern the connection that was to be accepted (accept(2)).
                Err(Errno::BADF | Errno::INVAL | Errno::NOTSOCK) => return Err(ErrorKind::InvalidInput.into()),
                Err(_) => {}
            }
        }
    }

    fn insert(&mut self, stream: TcpStream) -> io::Result<()> {
        // Without it a second small response would wait for the first one's acknowledgement. The connection may be gone already.
        let _ = stream.set_nodelay(true);
        let socket = match &self.tls {
            None => Socket::plain(stream),
            Some(tls) => Socket::secure(stream, tls.connection()?),
        };
        self.turn = self.turn.wrapping_add(1);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.poller.add(socket.as_fd(), Token { slot, turn: self.turn }, Interest::Read)?;
        self.slots[slot as usize] = Some(Connection::new(socket, self.turn));
        Ok(())
    }
}
