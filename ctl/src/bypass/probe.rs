//! Asks the kernel by trying, with two sockets of our own, whether what the bypass rests on is there. A version number
//! would not tell: distributions carry fixes back.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use super::{
    assembler::{Assembler, Helper, R2, R3, R4, R10, Word},
    sys::{Map, MapSpec, MapType, Program, ProgramType, socket_option},
};

/// What is redirected in the trial.
const TRIAL: &[u8] = b"redirected, not sent";

/// The bypass cannot be had, and what is missing.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("{0}")]
    Refused(String),
    #[error("a trial with two sockets failed: {0}")]
    Trial(#[from] io::Error),
    #[error("a trial with two sockets lost data: the kernel's redirection is broken")]
    Lost,
    #[error(
        "FIONREAD does not count redirected data: an application that asks it would wait for ever (newer kernels count)"
    )]
    Uncounted,
    #[error(
        "the kernel does not charge redirected data to its reader, so a slow reader could pin any amount of memory (Linux 6.13 does)"
    )]
    Uncharged,
}

/// Redirects one message between two sockets of this process.
pub(super) fn probe() -> Result<(), ProbeError> {
    let spec =
        MapSpec { name: "mesh_trial", kind: MapType::Sockhash, key_bytes: 4, value_bytes: 8, entries_max: 2, flags: 0 };
    let sockets = Map::create(spec).map_err(|error| ProbeError::Refused(super::refusal("a map of sockets", &error)))?;
    let mut a = Assembler::default();
    // To the socket under 1; whatever comes out of that is the verdict.
    a.store_value(Word, R10, -4, 1).map(R2, &sockets).copy(R3, R10).add(R3, -4).set(R4, 1);
    a.call(Helper::MsgRedirectHash).exit();
    let program = Program::load("mesh_trial", ProgramType::SkMsg, &a.finish()).map_err(|error| {
        ProbeError::Refused(super::refusal(&format!("a sk_msg program: {}", error.log), &error.source))
    })?;
    program.attach_to_sockets(&sockets).map_err(ProbeError::Trial)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    let (mut reader, _) = listener.accept()?;
    reader.set_read_timeout(Some(Duration::from_secs(1)))?;
    sockets.update(&0_u32.to_ne_bytes(), &u64::try_from(sender.as_raw_fd()).unwrap_or(0).to_ne_bytes())?;
    sockets.update(&1_u32.to_ne_bytes(), &u64::try_from(reader.as_raw_fd()).unwrap_or(0).to_ne_bytes())?;
    sender.write_all(TRIAL)?;
    // The first word of SO_MEMINFO is what the socket has received and not read.
    let memory = socket_option(reader.as_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, 64)?;
    let charged = memory.first_chunk().map_or(0, |word| u32::from_ne_bytes(*word));
    let counted = rustix::io::ioctl_fionread(&reader).map_err(io::Error::from)?;
    let mut bytes = [0; TRIAL.len()];
    let mut peeked = [0; TRIAL.len()];
    let is_whole = reader.peek(&mut peeked)? == TRIAL.len() && peeked == TRIAL;
    reader.read_exact(&mut bytes)?;
    if !is_whole || bytes != TRIAL {
        return Err(ProbeError::Lost);
    }
    if (charged as usize) < TRIAL.len() {
        return Err(ProbeError::Uncharged);
    }
    if counted != TRIAL.len() as u64 {
        return Err(ProbeError::Uncounted);
    }
    Ok(())
}
