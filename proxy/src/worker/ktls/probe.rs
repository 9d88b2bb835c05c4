//! What the running kernel can do: asked once, when the process starts, with keys that protect nothing.

use std::{
    fmt, io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    time::Duration,
};

use rustls::{ConnectionTrafficSecrets, ProtocolVersion};

use super::{
    Direction, EnableError,
    crypto_info::{Cipher, CryptoInfo},
    enable_with, set,
};
use meshring_core::limits::KTLS_PROBE_CONNECT_MS_MAX;

const VERSIONS: [(ProtocolVersion, &str); 2] =
    [(ProtocolVersion::TLSv1_3, "TLS 1.3"), (ProtocolVersion::TLSv1_2, "TLS 1.2")];

/// What the kernel does of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Probe {
    /// By version and cipher, as in [`VERSIONS`] and [`Cipher::ALL`]: both directions.
    supported: [[bool; Cipher::ALL.len()]; VERSIONS.len()],
    /// Whether a connection can get new keys, in both directions.
    can_rekey: bool,
    /// Why there is none.
    absence: Option<Absence>,
}

/// Why the kernel does no TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Absence {
    /// ENOENT: the usual case.
    NoModule,
    /// The option is refused: by seccomp, or by a sandbox that has a TCP of its own.
    Refused(io::ErrorKind, String),
    /// No connection to ask with.
    NoConnection(String),
    /// There is a module, but no cipher of ours.
    NoCipher,
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoModule => {
                f.write_str("tls module not loaded (ENOENT); `modprobe tls` loads it where the kernel has it")
            }
            Self::Refused(_, reason) => write!(f, "refused, by a seccomp profile or a sandbox ({reason})"),
            Self::NoConnection(reason) => write!(f, "not tried, there is no connection over loopback ({reason})"),
            Self::NoCipher => {
                f.write_str("the kernel takes none of the ciphers; its modules gcm and chacha20poly1305?")
            }
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("kernel TLS: ")?;
        if let Some(absence) = &self.absence {
            return write!(f, "{absence}");
        }
        for ((_, version), row) in VERSIONS.iter().zip(&self.supported) {
            let ciphers =
                Cipher::ALL.iter().zip(row).filter(|(_, supported)| **supported).map(|(cipher, _)| cipher.name());
            let ciphers: Vec<_> = ciphers.collect();
            let ciphers = if ciphers.is_empty() { "none".to_owned() } else { ciphers.join(", ") };
            write!(f, "{version} {ciphers}; ")?;
        }
        f.write_str(if self.can_rekey { "keys can be updated" } else { "keys cannot be updated (before Linux 6.14)" })
    }
}

impl Probe {
    /// Whether a connection with these secrets can move to the kernel, both ways.
    pub(crate) fn supports(&self, version: ProtocolVersion, secrets: &ConnectionTrafficSecrets) -> bool {
        let row = VERSIONS.iter().position(|(known, _)| *known == version);
        let column = Cipher::of(secrets).and_then(|cipher| Cipher::ALL.iter().position(|known| *known == cipher));
        row.zip(column).is_some_and(|(row, column)| self.supported[row][column])
    }

    /// Whether there is any.
    pub(crate) fn is_present(&self) -> bool {
        self.absence.is_none()
    }

    /// Why there is none.
    #[cfg(test)]
    pub(crate) fn absence(&self) -> Option<&Absence> {
        self.absence.as_ref()
    }

    /// Whether a connection in the kernel can get new keys (TLS 1.3, Linux 6.14).
    pub(crate) fn can_rekey(&self) -> bool {
        self.can_rekey
    }

    fn absent(absence: Absence) -> Self {
        Self { supported: Default::default(), can_rekey: false, absence: Some(absence) }
    }
}

/// Asks the kernel, with at most six connections to ourselves.
pub(crate) fn probe() -> Probe {
    let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, 0)) {
        Ok(listener) => listener,
        Err(error) => return Probe::absent(Absence::NoConnection(error.to_string())),
    };
    let mut probe = Probe { supported: Default::default(), can_rekey: false, absence: None };
    for (row, (version, _)) in VERSIONS.iter().enumerate() {
        for (column, cipher) in Cipher::ALL.into_iter().enumerate() {
            // Never accepted: the listener's queue holds it, and the kernel asks for a connection, no more.
            let socket = match connect(&listener) {
                Ok(socket) => socket,
                Err(error) => return Probe::absent(Absence::NoConnection(error.to_string())),
            };
            let fd = socket.as_raw_fd();
            let info = |direction| CryptoInfo::for_probe(*version, cipher, direction);
            match enable_with(fd, info(Direction::Tx).ok(), info(Direction::Rx).ok()) {
                Ok(()) => probe.supported[row][column] = true,
                Err(EnableError::Ulp(error)) => return Probe::absent(refusal(&error)),
                // This cipher in this version: others may do.
                Err(EnableError::Tx(_) | EnableError::Rx(_)) => continue,
            }
            if *version == ProtocolVersion::TLSv1_3 && !probe.can_rekey {
                let again = |direction| info(direction).and_then(|info| set(fd, direction, &info));
                probe.can_rekey = again(Direction::Tx).is_ok() && again(Direction::Rx).is_ok();
            }
        }
    }
    if probe.supported.as_flattened().iter().all(|supported| !supported) {
        probe.absence = Some(Absence::NoCipher);
    }
    probe
}

fn connect(listener: &TcpListener) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&listener.local_addr()?, Duration::from_millis(KTLS_PROBE_CONNECT_MS_MAX))
}

fn refusal(error: &io::Error) -> Absence {
    match error.raw_os_error() {
        Some(libc::ENOENT) => Absence::NoModule,
        _ => Absence::Refused(error.kind(), error.to_string()),
    }
}
