//! A TLS connection after its handshake: what is between the stages, which see plain bytes, and the socket.
//!
//! The read and write halves of a [`Conn`](super::conn::Conn) go through here where it is secured. Each direction is a
//! state of its own, so that both can be in use at once.

pub(crate) mod peer;
pub(crate) mod record;

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    ops::Range,
    os::fd::RawFd,
    rc::Rc,
};

use meshring_core::limits::{TLS_HANDSHAKE_REST_BYTES_MAX, TLS_RECORDS_WITHOUT_DATA_MAX};
use monoio::buf::{IoBufMut as _, SliceMut};
use rustix::io::Errno;
use rustls::{
    ConnectionTrafficSecrets, ContentType, ExtractedSecrets, ProtocolVersion, client::ClientConnectionData,
    kernel::KernelConnection, server::ServerConnectionData,
};

use self::{
    peer::Peer,
    record::{
        BadRecord, Content, OVERHEAD_BYTES_MAX, PLAINTEXT_BYTES_MAX, RECORD_BYTES_MAX, RecordKey, UnknownSecrets,
    },
};
use super::{
    buffers::{Buffer, Buffers, Held, Input, Reserved},
    ktls::{self, EnableError, Probe, Received, Secrets},
    readiness,
};

/// What rustls keeps after the handshake: the secrets of the next keys, and for a client where tickets go.
pub(crate) enum KeySchedule {
    Server(KernelConnection<ServerConnectionData>),
    Client(KernelConnection<ClientConnectionData>),
}

impl KeySchedule {
    fn version(&self) -> ProtocolVersion {
        match self {
            Self::Server(connection) => connection.protocol_version(),
            Self::Client(connection) => connection.protocol_version(),
        }
    }

    fn next_rx(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        match self {
            Self::Server(connection) => connection.update_rx_secret(),
            Self::Client(connection) => connection.update_rx_secret(),
        }
    }

    fn next_tx(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        match self {
            Self::Server(connection) => connection.update_tx_secret(),
            Self::Client(connection) => connection.update_tx_secret(),
        }
    }
}

/// Handshake messages that may come after the handshake (RFC 8446 section 4.6).
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
const HANDSHAKE_HEADER_BYTES: usize = 4;
const KEY_UPDATE_REQUESTED: u8 = 1;
/// `KeyUpdate { update_not_requested }`.
const KEY_UPDATE_MESSAGE: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 0];
const ALERT_WARNING: u8 = 1;
const ALERT_FATAL: u8 = 2;
const CLOSE_NOTIFY: u8 = 0;
const UNEXPECTED_MESSAGE: u8 = 10;
const USER_CANCELED: u8 = 90;
/// Of one record that is no data, in the kernel's hands: what is longer comes in parts.
const CONTROL_BYTES_MAX: usize = 4096;

/// A secured connection.
pub(crate) struct Tls {
    fd: RawFd,
    pool: Rc<Buffers>,
    reader: RefCell<Reader>,
    writer: RefCell<Writer>,
    schedule: RefCell<KeySchedule>,
    peer: Rc<Peer>,
    is_truncated: Cell<bool>,
    /// The kernel seals and opens records; what had come before it did is still opened here.
    is_kernel: Cell<bool>,
    /// And it can change their keys.
    can_rekey: Cell<bool>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("fd", &self.fd).field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// What has come.
struct Reader {
    key: RecordKey,
    /// Opened plaintext that nobody has taken (`plain`), and records behind it (from `next`).
    bytes: Buffer,
    /// The beginning of a record, while its connection waits without a buffer.
    held: Option<Held>,
    plain: Range<usize>,
    next: usize,
    /// The peer has said that nothing more comes.
    closed: bool,
    /// The beginning of a handshake message that goes on in the next record.
    handshake: Vec<u8>,
    /// Records in a row that carried no data.
    without_data: u32,
}

/// What goes out.
struct Writer {
    key: RecordKey,
    /// An operation has records on their way: nothing may come between.
    busy: bool,
    /// The peer was told that nothing more comes, or that the connection is broken.
    closed: bool,
    /// The peer wants new keys, or the present one is worn: before the next record.
    owes_key_update: bool,
}

/// What a reader has found in its buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// So many bytes of plaintext.
    Bytes(usize),
    /// The peer has ended the connection as it should: no truncation.
    Closed,
    /// More must be read from the socket.
    Nothing,
}

impl Tls {
    /// After a handshake. `leftover`: what has come behind it.
    pub(crate) fn new(
        fd: RawFd,
        pool: &Rc<Buffers>,
        secrets: &ExtractedSecrets,
        schedule: KeySchedule,
        peer: Peer,
        leftover: &[u8],
    ) -> Result<Self, UnknownSecrets> {
        let version = schedule.version();
        let mut bytes = pool.lazy();
        if !leftover.is_empty() {
            bytes.ensure();
            bytes.extend_from_slice(leftover);
        }
        let reader = Reader {
            key: RecordKey::new(&secrets.rx.1, secrets.rx.0, version)?,
            bytes,
            held: None,
            plain: 0..0,
            next: 0,
            closed: false,
            handshake: Vec::new(),
            without_data: 0,
        };
        let key = RecordKey::new(&secrets.tx.1, secrets.tx.0, version)?;
        let writer = Writer { key, busy: false, closed: false, owes_key_update: false };
        Ok(Self {
            fd,
            pool: Rc::clone(pool),
            reader: RefCell::new(reader),
            writer: RefCell::new(writer),
            schedule: RefCell::new(schedule),
            peer: Rc::new(peer),
            is_truncated: Cell::new(false),
            is_kernel: Cell::new(false),
            can_rekey: Cell::new(true),
        })
    }

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

    /// Whether plain bytes go through the socket.
    pub(crate) fn is_kernel(&self) -> bool {
        self.is_kernel.get()
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
                self.reader.borrow_mut().without_data = 0;
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
        let mut bytes = [0; CONTROL_BYTES_MAX];
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
        if writer.key.is_exhausted() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, BadRecord::Exhausted));
        }
        writer.owes_key_update |= writer.key.is_worn() && writer.key.is_tls13() && self.can_rekey.get();
        if !writer.owes_key_update {
            return Ok(());
        }
        ktls::send_record(self.fd, ContentType::Handshake, &KEY_UPDATE_MESSAGE)?;
        writer.owes_key_update = false;
        // From here on there is no way back to the old key: what fails now ends the connection without a word.
        writer.closed = true;
        let mut schedule = self.schedule.borrow_mut();
        let (sequence, secrets) = schedule.next_tx().map_err(io::Error::other)?;
        let version = schedule.version();
        ktls::rekey_tx(self.fd, Secrets { version, secrets: &secrets, sequence })?;
        // Its count begins anew.
        writer.key = RecordKey::new(&secrets, sequence, version).map_err(io::Error::other)?;
        writer.closed = false;
        Ok(())
    }

    /// Whether the key is near its end and cannot be replaced: the connection is to end with the message that it carries.
    pub(crate) fn is_worn(&self) -> bool {
        let writer = self.writer.borrow();
        writer.key.is_worn() && !(writer.key.is_tls13() && self.can_rekey.get())
    }

    /// Counts memory of a stream that lies elsewhere as used.
    pub(crate) fn reserve(&self, bytes: usize) -> Reserved {
        self.pool.reserve(bytes)
    }

    /// An empty buffer for records.
    pub(crate) fn buffer(&self) -> Buffer {
        self.pool.take()
    }

    /// Who is on the other side.
    pub(crate) fn peer(&self) -> &Rc<Peer> {
        &self.peer
    }

    /// Whether the stream ended without the peer's word for it: what it has sent may be cut.
    pub(crate) fn is_truncated(&self) -> bool {
        self.is_truncated.get()
    }

    /// The socket has ended.
    pub(crate) fn socket_ended(&self) {
        if !self.reader.borrow().closed {
            self.is_truncated.set(true);
        }
    }

    /// Moves plaintext to `input`, at most `at_most` bytes, with an input of at most `bytes_max`; opens records as far as
    /// needed.
    pub(crate) fn take(&self, input: &mut Input, at_most: usize, bytes_max: usize) -> io::Result<Taken> {
        loop {
            let mut reader = self.reader.borrow_mut();
            if !reader.plain.is_empty() {
                return match reader.give(input, at_most, bytes_max) {
                    Some(count) => Ok(Taken::Bytes(count)),
                    None => Err(io::ErrorKind::OutOfMemory.into()),
                };
            }
            if reader.closed {
                return Ok(Taken::Closed);
            }
            match reader.open() {
                Ok(Some(Content::Data)) => {}
                Ok(Some(content)) => {
                    let message = reader.take_message();
                    drop(reader);
                    self.control(content, &message)?;
                }
                Ok(None) => return Ok(Taken::Nothing),
                Err(bad) => {
                    drop(reader);
                    self.fail(bad.alert());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, bad));
                }
            }
        }
    }

    /// An alert or a message of the handshake protocol.
    fn control(&self, content: Content, bytes: &[u8]) -> io::Result<()> {
        match (content, bytes) {
            (Content::Alert, &[_, CLOSE_NOTIFY]) => {
                self.reader.borrow_mut().closed = true;
                Ok(())
            }
            // RFC 8446 section 6.1: close_notify follows.
            (Content::Alert, &[_, USER_CANCELED]) => Ok(()),
            (Content::Alert, &[_, description]) => {
                // Nothing is answered to an alert (section 6.2).
                self.writer.borrow_mut().closed = true;
                let what = format!("the peer ended TLS with alert {description}");
                Err(io::Error::new(io::ErrorKind::ConnectionReset, what))
            }
            (Content::Handshake, bytes) if self.writer.borrow().key.is_tls13() => self.handshake_messages(bytes),
            // TLS 1.2: renegotiation is not offered.
            _ => Err(self.unexpected()),
        }
    }

    fn unexpected(&self) -> io::Error {
        self.fail(UNEXPECTED_MESSAGE);
        io::Error::new(io::ErrorKind::InvalidData, BadRecord::Unexpected)
    }

    fn handshake_messages(&self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = std::mem::take(&mut self.reader.borrow_mut().handshake);
        rest.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(header) = rest[at..].first_chunk::<HANDSHAKE_HEADER_BYTES>() {
            let len = usize::from(header[1]) << 16 | usize::from(header[2]) << 8 | usize::from(header[3]);
            if len > TLS_HANDSHAKE_REST_BYTES_MAX {
                return Err(self.unexpected());
            }
            let Some(body) = rest[at + HANDSHAKE_HEADER_BYTES..].get(..len) else { break };
            let kind = header[0];
            at += HANDSHAKE_HEADER_BYTES + len;
            match (kind, &mut *self.schedule.borrow_mut()) {
                (NEW_SESSION_TICKET, KeySchedule::Client(client)) => {
                    // A ticket that rustls does not like is a session that is not resumed, no more.
                    let _ = client.handle_new_session_ticket(body);
                }
                // A message must not span a change of keys (section 5.1).
                (KEY_UPDATE, schedule) if at == rest.len() && matches!(body, [0 | KEY_UPDATE_REQUESTED]) => {
                    let version = schedule.version();
                    let (sequence, secrets) = schedule.next_rx().map_err(io::Error::other)?;
                    if self.is_kernel.get() {
                        self.kernel_rekey(Secrets { version, secrets: &secrets, sequence })?;
                    } else {
                        let key = RecordKey::new(&secrets, sequence, version).map_err(io::Error::other)?;
                        self.reader.borrow_mut().key = key;
                    }
                    self.writer.borrow_mut().owes_key_update |= body == [KEY_UPDATE_REQUESTED];
                }
                _ => return Err(self.unexpected()),
            }
        }
        rest.drain(..at);
        // Most of the time nothing is left: no memory for it then.
        if !rest.is_empty() {
            self.reader.borrow_mut().handshake = rest;
        }
        Ok(())
    }

    /// The peer's new keys. Before Linux 6.14 the kernel knows none: then nothing more can be read, and the peer hears that this
    /// is an end.
    fn kernel_rekey(&self, secrets: Secrets<'_>) -> io::Result<()> {
        ktls::rekey_rx(self.fd, secrets).map_err(|error| {
            self.close();
            io::Error::new(io::ErrorKind::ConnectionReset, format!("the kernel takes no new TLS keys: {error}"))
        })
    }

    /// Whether [`take`](Self::take) would find something without reading from the socket.
    pub(crate) fn has_input(&self) -> bool {
        self.reader.borrow().has_input()
    }

    /// Whether nothing has come that was not taken, not even a part of a record.
    pub(crate) fn is_empty(&self) -> bool {
        let mut reader = self.reader.borrow_mut();
        if reader.plain.is_empty() && reader.next == reader.bytes.len() && reader.held.is_none() {
            reader.clear();
            return !reader.closed && reader.handshake.is_empty();
        }
        false
    }

    /// Gives back the buffer, or keeps what must be kept in as many bytes as it needs.
    pub(crate) fn rest(&self) {
        self.reader.borrow_mut().rest(&self.pool);
    }

    /// Space for records, to be handed to a read of the socket.
    pub(crate) fn lend_space(&self) -> SliceMut<Vec<u8>> {
        self.reader.borrow_mut().lend_space()
    }

    /// The space comes back.
    pub(crate) fn restore_space(&self, space: SliceMut<Vec<u8>>) {
        self.reader.borrow_mut().bytes.restore(space.into_inner());
    }

    /// Reads records that are there, without waiting.
    pub(crate) fn fill_now(&self) -> io::Result<usize> {
        let mut reader = self.reader.borrow_mut();
        let mut bytes = reader.lend_space().into_inner();
        let result = readiness::receive_now(self.fd, &mut bytes);
        reader.bytes.restore(bytes);
        result
    }

    /// As [`fill_now`](Self::fill_now), of a socket in the kernel's hands.
    pub(crate) fn kernel_fill_now(&self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        readiness::receive_now(self.fd, bytes)
    }

    /// Whether an idle connection is still good: what has come, if anything, are tickets and new keys, and no end.
    pub(crate) fn is_quiet(&self) -> bool {
        if self.is_kernel.get() {
            return self.is_kernel_quiet();
        }
        loop {
            {
                let reader = self.reader.borrow();
                if reader.closed || !reader.plain.is_empty() {
                    return false;
                }
            }
            let opened = self.reader.borrow_mut().open();
            match opened {
                Ok(Some(Content::Data)) => {}
                Ok(Some(content)) => {
                    let message = self.reader.borrow_mut().take_message();
                    if self.control(content, &message).is_err() {
                        return false;
                    }
                }
                Ok(None) => match self.fill_now() {
                    Ok(0) => return false,
                    Ok(_) => {}
                    // The beginning of a record that nobody has asked for may become anything.
                    Err(error) => return error.kind() == io::ErrorKind::WouldBlock && self.is_empty(),
                },
                Err(_) => return false,
            }
        }
    }

    fn is_kernel_quiet(&self) -> bool {
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

    /// Seals as much of `plaintext` as `out`, an empty buffer, has room for; says how much. Call
    /// [`written`](Self::written) when it is on its way.
    pub(crate) fn seal(&self, plaintext: &[u8], out: &mut Buffer) -> io::Result<usize> {
        let mut writer = self.writer.borrow_mut();
        if writer.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let sealed = self.seal_records(&mut writer, plaintext, out);
        if let Ok(count) = sealed {
            writer.busy = true;
            return Ok(count);
        }
        writer.closed = true;
        sealed
    }

    fn seal_records(&self, writer: &mut Writer, plaintext: &[u8], out: &mut Buffer) -> io::Result<usize> {
        let failed = |bad| io::Error::new(io::ErrorKind::InvalidData, bad);
        // TLS 1.2 has no new keys: such a connection ends with its message, see `is_worn`, and at the bound in any case.
        writer.owes_key_update |= writer.key.is_worn() && writer.key.is_tls13();
        if std::mem::take(&mut writer.owes_key_update) {
            writer.key.seal(Content::Handshake, &KEY_UPDATE_MESSAGE, out).map_err(failed)?;
            let mut schedule = self.schedule.borrow_mut();
            let (sequence, secrets) = schedule.next_tx().map_err(io::Error::other)?;
            writer.key = RecordKey::new(&secrets, sequence, schedule.version()).map_err(io::Error::other)?;
        }
        let mut sealed = 0;
        while sealed < plaintext.len() {
            let rest = &plaintext[sealed..];
            let room = out.capacity().saturating_sub(out.len() + OVERHEAD_BYTES_MAX);
            let part = rest.len().min(PLAINTEXT_BYTES_MAX);
            if sealed > 0 && room < part {
                break;
            }
            let part = part.min(room.max(1));
            writer.key.seal(Content::Data, &rest[..part], out).map_err(failed)?;
            sealed += part;
        }
        Ok(sealed)
    }

    /// The records of the last [`seal`](Self::seal) are with the kernel, or the connection is broken.
    pub(crate) fn written(&self, ok: bool) {
        let mut writer = self.writer.borrow_mut();
        writer.busy = false;
        writer.closed |= !ok;
    }

    /// Says that nothing more comes (RFC 8446 section 6.1), if that can be said without waiting.
    pub(crate) fn close(&self) {
        self.alert(ALERT_WARNING, CLOSE_NOTIFY);
    }

    /// Says why the connection ends.
    pub(crate) fn fail(&self, description: u8) {
        self.alert(ALERT_FATAL, description);
    }

    /// An abrupt end: the peer must not take what it has for all.
    pub(crate) fn forget(&self) {
        self.writer.borrow_mut().closed = true;
    }

    fn alert(&self, level: u8, description: u8) {
        let mut writer = self.writer.borrow_mut();
        if writer.closed {
            return;
        }
        if writer.busy {
            // Nothing may come between. After a failure no end may look clean either.
            writer.closed |= level == ALERT_FATAL;
            return;
        }
        writer.closed = true;
        if self.is_kernel.get() {
            let _ = ktls::send_record(self.fd, ContentType::Alert, &[level, description]);
            return;
        }
        let mut record = Vec::with_capacity(OVERHEAD_BYTES_MAX + 2);
        if writer.key.seal(Content::Alert, &[level, description], &mut record).is_ok() {
            // A peer that does not read gets no last word.
            let _ = readiness::send_now(self.fd, &record);
        }
    }
}

impl Reader {
    /// Moves plaintext on. `None`: the input is full at its largest size.
    fn give(&mut self, input: &mut Input, at_most: usize, bytes_max: usize) -> Option<usize> {
        let available = &self.bytes[self.plain.clone()];
        let count = input.append(&available[..available.len().min(at_most)], bytes_max)?;
        self.plain.start += count;
        if self.plain.is_empty() && self.next == self.bytes.len() {
            self.clear();
        }
        Some(count)
    }

    /// Nothing is left: the buffer is for others.
    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.release();
        self.plain = 0..0;
        self.next = 0;
    }

    /// Opens the next record if all of it is there: its content lies in `plain`.
    fn open(&mut self) -> Result<Option<Content>, BadRecord> {
        self.resume();
        let rest = &mut self.bytes[self.next..];
        let Some(len) = record::record_len(rest)? else { return Ok(None) };
        let Some(record) = rest.get_mut(..len) else { return Ok(None) };
        let opened = self.key.open(record)?;
        let start = self.next + opened.start;
        self.plain = start..start + opened.len;
        self.next += len;
        self.without_data = match opened.content {
            Content::Data if opened.len > 0 => 0,
            _ => self.without_data + 1,
        };
        if self.without_data > TLS_RECORDS_WITHOUT_DATA_MAX {
            return Err(BadRecord::Unexpected);
        }
        Ok(Some(opened.content))
    }

    /// The content of a record that is no data.
    fn take_message(&mut self) -> Vec<u8> {
        let message = self.bytes[self.plain.clone()].to_vec();
        self.plain = 0..0;
        if self.next == self.bytes.len() {
            self.clear();
        }
        message
    }

    /// How many whole records are there; `None` where the last one is not whole.
    fn whole_records(&self) -> Option<u64> {
        let mut rest = &self.bytes[self.next..];
        let mut count = 0;
        while !rest.is_empty() {
            let len = record::record_len(rest).ok()??;
            rest = rest.get(len..)?;
            count += 1;
        }
        Some(count)
    }

    fn has_input(&self) -> bool {
        if !self.plain.is_empty() || self.closed {
            return true;
        }
        let rest = match &self.held {
            Some(held) => &**held,
            None => &self.bytes[self.next..],
        };
        // What is malformed is for `open` to say.
        record::record_len(rest).map_or(true, |len| len.is_some_and(|len| rest.len() >= len))
    }

    fn resume(&mut self) {
        if let Some(held) = self.held.take() {
            self.bytes.ensure();
            self.bytes.extend_from_slice(&held);
        }
    }

    fn rest(&mut self, pool: &Rc<Buffers>) {
        if !self.plain.is_empty() || self.held.is_some() {
            return;
        }
        let rest = &self.bytes[self.next..];
        if !rest.is_empty() {
            self.held = Some(pool.hold(rest));
        }
        self.clear();
    }

    fn lend_space(&mut self) -> SliceMut<Vec<u8>> {
        self.resume();
        self.bytes.ensure();
        // Only asked for when no whole record is left.
        if self.next > 0 {
            self.bytes.drain(..self.next);
            self.next = 0;
            self.plain = 0..0;
        }
        if self.bytes.capacity() < RECORD_BYTES_MAX {
            let further = RECORD_BYTES_MAX - self.bytes.len();
            self.bytes.reserve_exact(further);
        }
        let bytes = self.bytes.lend();
        let (len, capacity) = (bytes.len(), bytes.capacity());
        bytes.slice_mut(len..capacity)
    }
}
