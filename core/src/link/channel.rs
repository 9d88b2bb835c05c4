//! One packet of the link: a JSON message and up to [`LINK_FDS_MAX`] descriptors.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::limits::{LINK_FDS_MAX, LINK_MESSAGE_BYTES_MAX};

/// A link that must be closed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer has closed.
    #[error("closed by the peer")]
    Closed,
    /// The socket failed. `WouldBlock` on a non-blocking socket means: later.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Cut off by the kernel: larger than the protocol allows.
    #[error("message longer than {LINK_MESSAGE_BYTES_MAX} bytes or with more than {LINK_FDS_MAX} descriptors")]
    TooLong,
    /// Not a message of this protocol.
    #[error("message not understood: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl LinkError {
    /// Whether the call would have blocked on a non-blocking socket.
    #[must_use]
    pub fn would_block(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Sends one message.
pub fn send<M: Serialize>(socket: impl AsFd, message: &M, fds: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > LINK_MESSAGE_BYTES_MAX || fds.len() > LINK_FDS_MAX {
        return Err(LinkError::TooLong);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LINK_FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(LinkError::TooLong);
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => return Err(LinkError::Closed),
            result => return result.map(drop).map_err(|errno| LinkError::Io(errno.into())),
        }
    }
}

/// Receives one message with its descriptors.
pub fn receive<M: DeserializeOwned>(socket: impl AsFd) -> Result<(M, Vec<OwnedFd>), LinkError> {
    let mut bytes = vec![0; LINK_MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LINK_FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Err(LinkError::Closed),
            result => break result.map_err(|errno| LinkError::Io(errno.into()))?,
        }
    };
    // Descriptors are taken before any error return, so that none leaks.
    let fds: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(LinkError::TooLong);
    }
    if received.bytes == 0 {
        return Err(LinkError::Closed);
    }
    Ok((serde_json::from_slice(&bytes[..received.bytes])?, fds))
}
