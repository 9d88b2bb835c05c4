//! A TLS connection after its handshake: what is between the stages, which see plain bytes, and the socket.
//!
//! The read and write halves of a [`Conn`](super::conn::Conn) go through here where it is secured. Each direction is a
//! state of its own, so that both can be in use at once.

mod kernel;
pub(crate) mod peer;
mod reader;
pub(crate) mod record;

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    os::fd::RawFd,
    rc::Rc,
};

use meshring_core::limits::TLS_HANDSHAKE_REST_BYTES_MAX;
use monoio::buf::SliceMut;
use rustls::{
    ConnectionTrafficSecrets, ContentType, ExtractedSecrets, ProtocolVersion, client::ClientConnectionData,
    kernel::KernelConnection, server::ServerConnectionData,
};

use self::{
    peer::Peer,
    reader::Reader,
    record::{BadRecord, Content, OVERHEAD_BYTES_MAX, PLAINTEXT_BYTES_MAX, RecordKey, UnknownSecrets},
};
use super::{
    buffers::{Buffer, Buffers, Input},
    ktls::{self, Secrets},
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
const ALERT_WARNING: u8 = 1;
const ALERT_FATAL: u8 = 2;
const CLOSE_NOTIFY: u8 = 0;
const UNEXPECTED_MESSAGE: u8 = 10;
const INTERNAL_ERROR: u8 = 80;
const USER_CANCELED: u8 = 90;

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

/// What goes out.
struct Writer {
    key: RecordKey,
    /// An operation has records on their way: nothing may come between.
    busy: bool,
    /// The peer was told that nothing more comes, or that the connection is broken.
    closed: bool,
    /// The peer wants new keys, or the present one is worn: before the next record.
    owes_key_update: bool,
    /// And the peer is asked for new ones of its own.
    asks_for_keys: bool,
}

impl Writer {
    /// The message that is owed (RFC 8446 section 4.6.3): `request_update` says whether the peer is to answer in kind.
    fn key_update_message(&self) -> [u8; 5] {
        [KEY_UPDATE, 0, 0, 1, u8::from(self.asks_for_keys)]
    }

    /// It is on its way.
    fn key_update_sent(&mut self) {
        self.owes_key_update = false;
        self.asks_for_keys = false;
    }
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
    /// After a handshake. `leftover`: what has come behind it. `records_max`: see [`RecordKey::new`].
    pub(crate) fn new(
        fd: RawFd,
        pool: &Rc<Buffers>,
        secrets: &ExtractedSecrets,
        schedule: KeySchedule,
        peer: Peer,
        leftover: &[u8],
        records_max: u64,
    ) -> Result<Self, UnknownSecrets> {
        let version = schedule.version();
        let mut bytes = pool.lazy();
        if !leftover.is_empty() {
            bytes.ensure();
            bytes.extend_from_slice(leftover);
        }
        let reader = Reader {
            key: RecordKey::new(&secrets.rx.1, secrets.rx.0, version, records_max)?,
            has_asked: false,
            bytes,
            held: None,
            plain: 0..0,
            next: 0,
            closed: false,
            handshake: Vec::new(),
            without_data: 0,
        };
        let key = RecordKey::new(&secrets.tx.1, secrets.tx.0, version, records_max)?;
        let writer = Writer { key, busy: false, closed: false, owes_key_update: false, asks_for_keys: false };
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

    /// Whether plain bytes go through the socket.
    pub(crate) fn is_kernel(&self) -> bool {
        self.is_kernel.get()
    }

    /// Whether the key is near its end and cannot be replaced: the connection is to end with the message that it carries.
    pub(crate) fn is_worn(&self) -> bool {
        let writer = self.writer.borrow();
        writer.key.is_worn() && !(writer.key.is_tls13() && self.can_rekey.get())
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

    /// Whether the peer has said that nothing more comes.
    pub(crate) fn has_ended(&self) -> bool {
        self.reader.borrow().closed
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
                Ok(Some(Content::Data)) => self.ask_for_keys(&mut reader),
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

    /// Asks the peer for new keys with our next record, once, where it has used one for longer than we would: its limit is its own
    /// affair and no reason to end anything, and it may know none. At twice our own bound: who has one has changed the key by then.
    fn ask_for_keys(&self, reader: &mut Reader) {
        if reader.key.is_exhausted() && reader.key.is_tls13() && self.can_rekey.get() && !reader.has_asked {
            reader.has_asked = true;
            let mut writer = self.writer.borrow_mut();
            writer.owes_key_update = true;
            writer.asks_for_keys = true;
        }
    }

    /// No key may be used any longer, and there is no other one. The message that is on its way is cut, and must not look whole:
    /// an error, not close_notify. What could end in time has done so, see [`is_worn`](Self::is_worn).
    fn exhausted(&self) -> io::Error {
        self.fail(INTERNAL_ERROR);
        io::Error::new(io::ErrorKind::InvalidData, BadRecord::Exhausted)
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
                    }
                    let mut reader = self.reader.borrow_mut();
                    reader.key = reader.key.next(&secrets, sequence).map_err(io::Error::other)?;
                    reader.has_asked = false;
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

    /// Seals as much of `plaintext` as `out`, an empty buffer, has room for; says how much. Call
    /// [`written`](Self::written) when it is on its way.
    pub(crate) fn seal(&self, plaintext: &[u8], out: &mut Buffer) -> io::Result<usize> {
        let mut writer = self.writer.borrow_mut();
        if writer.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if writer.key.is_exhausted() && !writer.key.is_tls13() {
            drop(writer);
            return Err(self.exhausted());
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
        if writer.owes_key_update {
            let message = writer.key_update_message();
            writer.key.seal(Content::Handshake, &message, out).map_err(failed)?;
            writer.key_update_sent();
            let (sequence, secrets) = self.schedule.borrow_mut().next_tx().map_err(io::Error::other)?;
            writer.key = writer.key.next(&secrets, sequence).map_err(io::Error::other)?;
        }
        let mut sealed = 0;
        while sealed < plaintext.len() {
            let rest = &plaintext[sealed..];
            let room = out.capacity().saturating_sub(out.len() + OVERHEAD_BYTES_MAX);
            let part = rest.len().min(PLAINTEXT_BYTES_MAX);
            // What is sealed already goes out first: the alert of a key at its end has the number behind it.
            if sealed > 0 && (room < part || writer.key.is_exhausted()) {
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

    /// As [`close`](Self::close), into an empty buffer, which stays empty where it was said before. Between two writes of the one
    /// who writes.
    pub(crate) fn seal_end(&self, out: &mut Buffer) -> io::Result<()> {
        let mut writer = self.writer.borrow_mut();
        if std::mem::replace(&mut writer.closed, true) {
            return Ok(());
        }
        let end = [ALERT_WARNING, CLOSE_NOTIFY];
        writer.key.seal(Content::Alert, &end, out).map_err(|bad| io::Error::new(io::ErrorKind::InvalidData, bad))
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
