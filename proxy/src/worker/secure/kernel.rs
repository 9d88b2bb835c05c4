//! A secured connection whose records the kernel seals and opens.

use std::io;

use meshring_core::limits::{TLS_CONTROL_RECORD_BYTES_MAX, TLS_RECORDS_WITHOUT_DATA_MAX};
use rustix::io::Errno;
use rustls::{ContentType, ExtractedSecrets};

use super::{
    ALERT_WARNING, CLOSE_NOTIFY, KeySchedule, Tls,
    record::{Content, PLAINTEXT_BYTES_MAX},
};
use crate::worker::{
    ktls::{self, EnableError, Probe, Received, Secrets},
    readiness,
};

impl Tls {
    /// Moves both directions to the kernel, right after the handshake, if it takes them. False: nothing has changed. An
    /// error: one direction is in the kernel and the other is not, so that the connection is lost.
    pub(crate) fn move_to_kernel(&self, probe: &Probe, secrets: &ExtractedSecrets) -> io::Result<bool> {
        let version = self.schedule.borrow().version();
        if !probe.supports(version, &secrets.tx.1) {
            return Ok(false);
        }
        // The kernel begins with the next byte of the stream: what has come before must be whole records.
        let Some(records) = self.reader.borrow().whole_records() else { return Ok(false) };
        if records > 0 && matches!(*self.schedule.borrow(), KeySchedule::Client(_)) {
            return Ok(false);
        }
        let tx = Secrets { version, secrets: &secrets.tx.1, sequence: secrets.tx.0 };
        let rx = Secrets { version, secrets: &secrets.rx.1, sequence: secrets.rx.0 + records };
        match ktls::enable(self.fd, Some(tx), Some(rx)) {
            Ok(()) => {
                self.is_kernel.set(true);
                self.can_rekey.set(probe.can_rekey());
                Ok(true)
            }
            Err(EnableError::Rx(error)) => Err(error),
            Err(EnableError::Ulp(_) | EnableError::Tx(_)) => Ok(false),
        }
    }

    /// What a read of a socket in the kernel's hands has come to: `None` where a record that is no data was in the way and
    /// is taken now; then read again.
    pub(crate) fn kernel_read(&self, result: io::Result<usize>) -> io::Result<Option<usize>> {
        match result {
            Ok(0) => {
                self.socket_ended();
                Ok(Some(0))
            }
            Ok(count) => {
                let mut reader = self.reader.borrow_mut();
                reader.without_data = 0;
                // The kernel does not say how many they were: at least so many.
                reader.key.count(count.div_ceil(PLAINTEXT_BYTES_MAX) as u64);
                self.ask_for_keys(&mut reader);
                Ok(Some(count))
            }
            Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) => {
                self.kernel_control()?;
                Ok(self.reader.borrow().closed.then_some(0))
            }
            Err(error) => Err(error),
        }
    }

    /// Takes a record that is no data out of the kernel.
    pub(crate) fn kernel_control(&self) -> io::Result<()> {
        let records = {
            let mut reader = self.reader.borrow_mut();
            reader.without_data += 1;
            reader.without_data
        };
        if records > TLS_RECORDS_WITHOUT_DATA_MAX {
            return Err(self.unexpected());
        }
        let mut bytes = [0; TLS_CONTROL_RECORD_BYTES_MAX];
        match ktls::receive_record(self.fd, &mut bytes)? {
            Received::Record(ContentType::Alert, count) => self.control(Content::Alert, &bytes[..count]),
            Received::Record(ContentType::Handshake, count) => self.control(Content::Handshake, &bytes[..count]),
            // Data has come meanwhile in the place of what was there: it cannot, and must not be lost.
            Received::Record(..) => Err(self.unexpected()),
            Received::End => {
                self.socket_ended();
                Ok(())
            }
        }
    }

    /// What must go out before so many plain bytes may be written to a socket in the kernel's hands. `WouldBlock`: wait until it
    /// takes more, and ask again.
    pub(crate) fn before_write(&self, bytes: usize) -> io::Result<()> {
        let mut writer = self.writer.borrow_mut();
        if writer.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        writer.key.count(bytes.div_ceil(PLAINTEXT_BYTES_MAX) as u64 + 1);
        let has_next = writer.key.is_tls13() && self.can_rekey.get();
        if writer.key.is_exhausted() && !has_next {
            drop(writer);
            return Err(self.exhausted());
        }
        writer.owes_key_update |= writer.key.is_worn() && has_next;
        if !writer.owes_key_update {
            return Ok(());
        }
        ktls::send_record(self.fd, ContentType::Handshake, &writer.key_update_message())?;
        writer.key_update_sent();
        // From here on there is no way back to the old key: what fails now ends the connection without a word.
        writer.closed = true;
        let mut schedule = self.schedule.borrow_mut();
        let (sequence, secrets) = schedule.next_tx().map_err(io::Error::other)?;
        let version = schedule.version();
        ktls::rekey_tx(self.fd, Secrets { version, secrets: &secrets, sequence })?;
        // Its count begins anew.
        writer.key = writer.key.next(&secrets, sequence).map_err(io::Error::other)?;
        writer.closed = false;
        Ok(())
    }

    /// Says on a socket in the kernel's hands that nothing more comes. `WouldBlock`: wait until it takes more, and ask again.
    pub(crate) fn kernel_end(&self) -> io::Result<()> {
        let mut writer = self.writer.borrow_mut();
        if !writer.closed {
            ktls::send_record(self.fd, ContentType::Alert, &[ALERT_WARNING, CLOSE_NOTIFY])?;
            writer.closed = true;
        }
        Ok(())
    }

    /// The peer's new keys. Before Linux 6.14 the kernel knows none: then nothing more can be read, and the peer hears that this
    /// is an end.
    pub(super) fn kernel_rekey(&self, secrets: Secrets<'_>) -> io::Result<()> {
        ktls::rekey_rx(self.fd, secrets).map_err(|error| {
            self.close();
            io::Error::new(io::ErrorKind::ConnectionReset, format!("the kernel takes no new TLS keys: {error}"))
        })
    }

    /// As [`fill_now`](Self::fill_now), of a socket in the kernel's hands.
    pub(crate) fn kernel_fill_now(&self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        readiness::receive_now(self.fd, bytes)
    }

    pub(super) fn is_kernel_quiet(&self) -> bool {
        loop {
            let mut byte = [0];
            match readiness::peek_now(self.fd, &mut byte) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) => {
                    if self.kernel_control().is_err() || self.reader.borrow().closed {
                        return false;
                    }
                }
                _ => return false,
            }
        }
    }
}
