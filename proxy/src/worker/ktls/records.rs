//! Bytes out of the kernel's TLS on their way to another socket.

use std::{io, os::fd::RawFd};

use meshring_core::limits::SPLICE_RECORDS_BYTES;

use crate::worker::readiness;

/// Between two sockets, in one direction, the first of which has kernel TLS. Splice takes one record per call there, and a pipe
/// then needs one more; a read takes as many records as have come and fit, and the kernel opens them where they shall lie
/// (`tls_sw_recvmsg`), so that it costs no more instructions and less than half of the calls.
#[derive(Debug)]
pub(crate) struct Records {
    bytes: Box<[u8]>,
    /// What of them is on its way.
    begin: usize,
    end: usize,
}

impl Records {
    /// Of [`SPLICE_RECORDS_BYTES`].
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; SPLICE_RECORDS_BYTES].into(), begin: 0, end: 0 }
    }

    /// How many bytes are on their way.
    pub(crate) fn held(&self) -> usize {
        self.end - self.begin
    }

    /// Reads at most `bytes_max` bytes, without waiting; nothing may be on its way. 0: the stream has ended, without close_notify.
    /// EIO: the next record is no data, and is still there. `WouldBlock`: no whole record is there.
    pub(crate) fn take(&mut self, fd: RawFd, bytes_max: usize) -> io::Result<usize> {
        debug_assert_eq!(self.held(), 0, "what is on its way goes first");
        (self.begin, self.end) = (0, 0);
        let room = self.bytes.len().min(bytes_max);
        self.end = readiness::receive_into_now(fd, &mut self.bytes[..room])?;
        Ok(self.end)
    }

    /// Writes what is on its way, as far as the other socket takes it without waiting; where it has kernel TLS, too, that is a record
    /// for each 16 KiB. `WouldBlock`: it is full.
    pub(crate) fn give(&mut self, fd: RawFd) -> io::Result<usize> {
        let count = readiness::send_now(fd, &self.bytes[self.begin..self.end])?;
        self.begin += count;
        Ok(count)
    }
}
