//! One side of an HTTP/2 connection whose every frame a test decides. What the peer sends is read strictly and kept by
//! stream; SETTINGS and PING are acknowledged on the way.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Instant,
};

use loona_hpack::Decoder;

use crate::{
    frames::{
        self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, FRAME_BYTES_DEFAULT, Frame, GOAWAY, HEADERS,
        INITIAL_WINDOW_SIZE, PADDED, PING, PREFACE, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE, WITH_PRIORITY,
    },
    wait::PATIENCE,
    wire::FieldLines,
};

/// Windows before any SETTINGS or WINDOW_UPDATE.
const WINDOW_DEFAULT: i64 = 65_535;
/// Windows that no test fills.
const WINDOW_WIDE: u32 = 1 << 30;

/// What has come on one stream.
#[derive(Debug, Clone, Default)]
pub struct Message {
    /// Interim responses.
    pub interim: Vec<FieldLines>,
    /// With pseudo fields; empty until they are there.
    pub fields: FieldLines,
    /// So far.
    pub body: Vec<u8>,
    /// Behind the body.
    pub trailers: FieldLines,
    /// END_STREAM has come.
    pub ended: bool,
    /// The code of RST_STREAM.
    pub reset: Option<u32>,
    /// Fields that were never to be indexed.
    pub never_indexed: usize,
    /// DATA frames.
    pub frames: usize,
}

impl Message {
    /// `:status`.
    ///
    /// # Panics
    /// When there is no head yet.
    #[must_use]
    #[track_caller]
    pub fn status(&self) -> u16 {
        let status = self.fields.value(":status").unwrap_or_else(|| panic!("no status: {self:?}"));
        status.parse().expect("a number")
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Asserts a whole response of this status.
    ///
    /// # Panics
    /// When it is another one, or broke off.
    #[track_caller]
    pub fn expect(&self, status: u16) -> &Self {
        assert!(self.ended && self.reset.is_none(), "no whole response: {self:?}");
        assert_eq!(self.status(), status, "{:?} {}", self.fields, self.text());
        self
    }

    /// Asserts that the stream was reset with this code, and nothing of a response came.
    ///
    /// # Panics
    /// When it was not.
    #[track_caller]
    pub fn expect_reset(&self, code: u32) -> &Self {
        assert_eq!((self.reset, self.fields.0.len()), (Some(code), 0), "{self:?}");
        self
    }

    fn is_over(&self) -> bool {
        self.ended || self.reset.is_some()
    }
}

/// How a connection begins.
#[derive(Debug, Clone)]
pub struct Opening {
    /// Of our SETTINGS.
    pub settings: Vec<(u16, u32)>,
    /// Added to the connection's window at once; 0: not.
    pub credit: u32,
}

impl Default for Opening {
    fn default() -> Self {
        Self { settings: vec![(INITIAL_WINDOW_SIZE, WINDOW_WIDE)], credit: WINDOW_WIDE }
    }
}

impl Opening {
    /// With the windows of RFC 9113, none of which grows by itself.
    #[must_use]
    pub fn narrow() -> Self {
        Self { settings: Vec::new(), credit: 0 }
    }

    /// With further settings.
    #[must_use]
    pub fn with(mut self, id: u16, value: u32) -> Self {
        self.settings.push((id, value));
        self
    }
}

/// One side of a connection.
pub struct Connection<S> {
    stream: S,
    buffer: Vec<u8>,
    decoder: Decoder<'static>,
    block: Option<(u32, bool, Vec<u8>)>,
    messages: BTreeMap<u32, Message>,
    next_stream: u32,
    windows: BTreeMap<u32, i64>,
    window_initial: i64,
    window: i64,
    /// The peer's SETTINGS, all that have come.
    pub settings: Vec<(u16, u32)>,
    /// Our SETTINGS that were acknowledged.
    pub settings_acks: usize,
    /// GOAWAY frames: last stream and code.
    pub goaways: Vec<(u32, u32)>,
    /// What came back for our PINGs.
    pub pongs: Vec<[u8; 8]>,
    /// PINGs of the peer, acknowledged or not.
    pub pings: Vec<[u8; 8]>,
    /// Credit that the peer has given, by stream; 0: the connection.
    pub credit: BTreeMap<u32, u64>,
    /// The peer has closed, or reset the connection.
    pub is_over: bool,
    /// Whether SETTINGS and PING are acknowledged.
    pub acknowledges: bool,
}

impl<S> std::fmt::Debug for Connection<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { messages, goaways, is_over, .. } = self;
        write!(f, "over: {is_over}, GOAWAY: {goaways:?}, {messages:?}")
    }
}

fn prepare(stream: &TcpStream) {
    stream.set_nodelay(true).expect("a socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
}

impl Connection<TcpStream> {
    /// A client with prior knowledge and wide windows.
    ///
    /// # Panics
    /// When nobody listens.
    #[must_use]
    pub fn connect(address: SocketAddr) -> Self {
        Self::connect_with(address, &Opening::default())
    }

    /// A client with prior knowledge.
    ///
    /// # Panics
    /// When nobody listens.
    #[must_use]
    pub fn connect_with(address: SocketAddr, opening: &Opening) -> Self {
        let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("no connection to {address}: {error}"));
        prepare(&stream);
        Self::client(stream, opening)
    }

    /// A client whose preface was sent already.
    #[must_use]
    pub fn resumed(stream: TcpStream, opening: &Opening) -> Self {
        prepare(&stream);
        Self::begin(stream, opening, true)
    }

    /// The server's side of an accepted connection; `None` where the client speaks something else.
    #[must_use]
    pub fn accept(stream: &TcpStream, opening: &Opening) -> Option<Self> {
        let stream = stream.try_clone().expect("a second descriptor");
        prepare(&stream);
        Self::server(stream, opening)
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.stream
    }
}

impl<S: Read + Write> Connection<S> {
    /// A client over a connected stream.
    pub fn client(mut stream: S, opening: &Opening) -> Self {
        stream.write_all(PREFACE).expect("the connection takes the preface");
        Self::begin(stream, opening, true)
    }

    /// The server's side of a stream; `None` where the client speaks something else.
    pub fn server(mut stream: S, opening: &Opening) -> Option<Self> {
        let mut preface = [0; PREFACE.len()];
        stream.read_exact(&mut preface).ok()?;
        (preface == *PREFACE).then(|| Self::begin(stream, opening, false))
    }

    fn begin(stream: S, opening: &Opening, is_client: bool) -> Self {
        let mut connection = Self {
            stream,
            buffer: Vec::new(),
            decoder: Decoder::new(),
            block: None,
            messages: BTreeMap::new(),
            next_stream: if is_client { 1 } else { 2 },
            windows: BTreeMap::new(),
            window_initial: WINDOW_DEFAULT,
            window: WINDOW_DEFAULT,
            settings: Vec::new(),
            settings_acks: 0,
            goaways: Vec::new(),
            pongs: Vec::new(),
            pings: Vec::new(),
            credit: BTreeMap::new(),
            is_over: false,
            acknowledges: true,
        };
        let mut first = frames::settings(&opening.settings);
        if opening.credit > 0 {
            first.extend(frames::window_update(0, opening.credit));
        }
        // A peer that is gone already shows when it is read from.
        let _ = connection.try_send(first);
        connection
    }

    /// Sends bytes as they are.
    ///
    /// # Panics
    /// When the connection does not take them.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        if let Err(error) = self.try_send(bytes) {
            panic!("the connection takes nothing: {error}; {self:?}");
        }
        self
    }

    /// Sends bytes as they are, or says why not.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref()).and_then(|()| self.stream.flush())
    }

    /// The number of a stream of ours that was not used yet.
    pub fn new_stream(&mut self) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        stream
    }

    /// Sends a request head and returns its stream.
    pub fn request(&mut self, fields: &[(&str, &str)], ended: bool) -> u32 {
        let stream = self.new_stream();
        self.send(frames::headers(stream, frames::block(fields), ended));
        stream
    }

    /// Sends a GET over plain HTTP and reads its response.
    #[track_caller]
    pub fn get(&mut self, authority: &str, path: &str) -> Message {
        let stream = self.request(&get(authority, path), true);
        self.response(stream)
    }

    /// Sends a body within the windows that the peer gives, its end included.
    ///
    /// # Panics
    /// When the connection ends or the stream is reset before.
    #[track_caller]
    pub fn body(&mut self, stream: u32, body: &[u8], ended: bool) {
        assert!(self.offer(stream, body, ended), "broken off in mid-body: {self:?}");
    }

    /// As [`body`](Self::body), for who does not mind: false where the connection ends or the stream is reset before.
    pub fn offer(&mut self, stream: u32, body: &[u8], ended: bool) -> bool {
        let mut rest = body;
        loop {
            let window = self.windows.get(&stream).copied().unwrap_or(self.window_initial);
            let room = usize::try_from(window.min(self.window)).unwrap_or(0).min(FRAME_BYTES_DEFAULT);
            if room == 0 && !rest.is_empty() {
                if !self.pump() || self.messages.get(&stream).is_some_and(|message| message.reset.is_some()) {
                    return false;
                }
                continue;
            }
            let (piece, others) = rest.split_at(room.min(rest.len()));
            rest = others;
            if self.try_send(frames::data(stream, piece, ended && rest.is_empty())).is_err() {
                return false;
            }
            self.window -= piece.len() as i64;
            self.windows.insert(stream, window - piece.len() as i64);
            if rest.is_empty() {
                return true;
            }
        }
    }

    /// Sends a whole body if the peer takes all of it now; false: nothing was sent.
    pub fn offer_at_once(&mut self, stream: u32, body: &[u8]) -> bool {
        let window = self.windows.get(&stream).copied().unwrap_or(self.window_initial);
        let fits = i64::try_from(body.len()).is_ok_and(|len| len <= window.min(self.window));
        fits && self.offer(stream, body, true)
    }

    /// DATA frames of as much as the peer takes now, which count as sent.
    pub fn within_windows(&mut self, stream: u32) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            let window = self.windows.get(&stream).copied().unwrap_or(self.window_initial);
            let room = usize::try_from(window.min(self.window)).unwrap_or(0).min(FRAME_BYTES_DEFAULT);
            if room == 0 {
                return out;
            }
            out.extend(frames::data(stream, vec![7; room], false));
            self.window -= room as i64;
            self.windows.insert(stream, window - room as i64);
        }
    }

    /// Sends on a stream until the peer gives no more credit, for it or for all; returns how much that was.
    #[track_caller]
    pub fn fill(&mut self, stream: u32) -> u64 {
        let mut sent = 0;
        loop {
            let window = self.windows.get(&stream).copied().unwrap_or(self.window_initial);
            let room = usize::try_from(window.min(self.window)).unwrap_or(0).min(FRAME_BYTES_DEFAULT);
            if room == 0 {
                // Credit comes before the answer to a PING, if it comes at all.
                self.settle();
                let window = self.windows.get(&stream).copied().unwrap_or(self.window_initial);
                if window.min(self.window) <= 0 {
                    return sent;
                }
                continue;
            }
            self.body(stream, &vec![0; room], false);
            sent += room as u64;
        }
    }

    /// What has come on a stream so far.
    #[must_use]
    pub fn message(&self, stream: u32) -> Message {
        self.messages.get(&stream).cloned().unwrap_or_default()
    }

    /// Waits until a condition on what has come holds.
    ///
    /// # Panics
    /// When the connection ends before.
    #[track_caller]
    pub fn wait<T>(&mut self, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
        // A peer that asks from time to time whether we are there would keep us for ever.
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "waited in vain for {what}: {self:?}");
            assert!(self.pump(), "the connection ended before {what}: {self:?}");
        }
    }

    /// A message to its end or its reset.
    ///
    /// # Panics
    /// When the connection ends before.
    #[track_caller]
    pub fn response(&mut self, stream: u32) -> Message {
        self.wait("a response", |connection| {
            connection.messages.get(&stream).filter(|message| message.is_over()).cloned()
        })
    }

    /// Waits for the head of a message.
    ///
    /// # Panics
    /// When the connection ends before.
    #[track_caller]
    pub fn head(&mut self, stream: u32) -> Message {
        self.wait("a head", |connection| {
            connection.messages.get(&stream).filter(|m| !m.fields.0.is_empty() || m.is_over()).cloned()
        })
    }

    /// The first stream of the peer that fits and is not in `seen`, which it enters; `None` at the end of the connection.
    pub fn accept_stream(&mut self, seen: &mut Vec<u32>, fits: impl Fn(&Message) -> bool) -> Option<(u32, Message)> {
        loop {
            let found = self
                .messages
                .iter()
                .find(|(stream, message)| !seen.contains(stream) && fits(message))
                .map(|(s, m)| (*s, m.clone()));
            if let Some((stream, message)) = found {
                seen.push(stream);
                return Some((stream, message));
            }
            if !self.pump() {
                return None;
            }
        }
    }

    /// The next request that is whole, or was reset before its end; `None` at the end of the connection.
    pub fn next_request(&mut self) -> Option<(u32, Message)> {
        loop {
            let found = self.messages.iter().find(|(_, message)| message.is_over()).map(|(stream, _)| *stream);
            if let Some(stream) = found {
                return self.messages.remove(&stream).map(|message| (stream, message));
            }
            if !self.pump() {
                return None;
            }
        }
    }

    /// Counts the rest of a message's body without keeping it: its bytes, once it has ended; `None` where it breaks off. The windows are
    /// taken to be wide at first, and are widened as it comes.
    pub fn count_body(&mut self, stream: u32) -> Option<u64> {
        let mut count = 0;
        let mut owed = 0;
        loop {
            let message = self.messages.get_mut(&stream)?;
            let len = message.body.len() as u64;
            message.body.clear();
            let (ended, reset) = (message.ended, message.reset);
            (count, owed) = (count + len, owed + len as u32);
            if ended || reset.is_some() {
                return ended.then_some(count);
            }
            if owed >= WINDOW_WIDE / 4 {
                let credit = [frames::window_update(0, owed), frames::window_update(stream, owed)].concat();
                self.try_send(credit).ok()?;
                owed = 0;
            }
            if !self.pump() {
                return None;
            }
        }
    }

    /// Sends DATA with padding, which counts against the windows.
    ///
    /// # Panics
    /// When the windows stay too small for it.
    #[track_caller]
    pub fn padded(&mut self, stream: u32, bytes: &[u8], padding: u8) {
        let payload = [&[padding][..], bytes, &vec![0; usize::from(padding)]].concat();
        let cost = payload.len() as i64;
        while self.windows.get(&stream).copied().unwrap_or(self.window_initial).min(self.window) < cost {
            assert!(self.pump(), "the connection ended instead of giving credit: {self:?}");
        }
        self.send(frames::frame(DATA, PADDED, stream, payload));
        self.window -= cost;
        *self.windows.entry(stream).or_insert(self.window_initial) -= cost;
    }

    /// Returns once all that was sent before was taken in: a PING has come back.
    ///
    /// # Panics
    /// When the connection ends before.
    #[track_caller]
    pub fn settle(&mut self) {
        let before = self.pongs.len();
        self.send(frames::ping(*b"settled?"));
        self.wait("the answer to a PING", |connection| (connection.pongs.len() > before).then_some(()));
    }

    /// Waits until what was sent before was taken in, or the peer is gone, without a word about either.
    pub fn settle_politely(&mut self) {
        let before = self.pongs.len();
        let _ = self.try_send(frames::ping(*b"settled?"));
        while self.pongs.len() == before && self.pump() {}
    }

    /// Reads to the end of the connection and returns the code of the last GOAWAY.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    pub fn end(&mut self) -> Option<u32> {
        let deadline = Instant::now() + PATIENCE;
        while self.pump() {
            assert!(Instant::now() < deadline, "the connection does not end: {self:?}");
        }
        self.goaways.last().map(|(_, code)| *code)
    }

    /// Asserts that the peer ends the connection with this code.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn expect_end(&mut self, code: u32) {
        let ended = self.end();
        assert_eq!(ended, Some(code), "{self:?}");
    }

    /// Reads one frame and files it; false at the end of the connection.
    ///
    /// # Panics
    /// When nothing comes in time, or something that no peer may send.
    #[track_caller]
    pub fn pump(&mut self) -> bool {
        match self.next_frame() {
            Some(frame) => {
                self.file(frame);
                true
            }
            None => {
                self.is_over = true;
                false
            }
        }
    }

    #[track_caller]
    fn next_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(head) = self.buffer.first_chunk::<9>() {
                let len = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
                assert!(len <= FRAME_BYTES_DEFAULT, "a frame of {len} bytes");
                let (kind, flags) = (head[3], head[4]);
                let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
                if self.buffer.len() >= 9 + len {
                    let payload = self.buffer.drain(..9 + len).skip(9).collect();
                    return Some(Frame { kind, flags, stream, payload });
                }
            }
            let mut space = [0; 64 * 1024];
            match self.stream.read(&mut space) {
                Ok(0) => return None,
                Ok(count) => self.buffer.extend_from_slice(&space[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("nothing comes: {self:?}"),
                // A reset behind a GOAWAY: our frames were on their way.
                Err(_) => return None,
            }
        }
    }

    #[track_caller]
    fn file(&mut self, frame: Frame) {
        let Frame { kind, flags, stream, payload } = frame;
        assert!(self.block.is_none() || kind == CONTINUATION, "a frame of type {kind} within a header block");
        match kind {
            DATA => {
                let message = self.messages.entry(stream).or_default();
                assert!(!message.fields.0.is_empty() && !message.ended, "DATA out of place: {message:?}");
                message.body.extend_from_slice(unpadded(flags, &payload));
                message.ended = flags & END_STREAM != 0;
                message.frames += 1;
            }
            HEADERS => {
                let fragment = unpadded(flags, &payload);
                let fragment = if flags & WITH_PRIORITY == 0 { fragment } else { &fragment[5..] };
                self.block = Some((stream, flags & END_STREAM != 0, fragment.to_vec()));
                self.end_block(flags);
            }
            CONTINUATION => {
                let (of, _, block) = self.block.as_mut().expect("CONTINUATION behind HEADERS");
                assert_eq!(*of, stream, "CONTINUATION of another stream");
                block.extend_from_slice(&payload);
                self.end_block(flags);
            }
            RST_STREAM => self.messages.entry(stream).or_default().reset = Some(number(&payload)),
            SETTINGS if flags & ACK != 0 => self.settings_acks += 1,
            SETTINGS => self.take_settings(&payload),
            PING if flags & ACK != 0 => self.pongs.push(payload.try_into().expect("eight bytes")),
            PING => {
                self.acknowledge(&frames::frame(PING, ACK, 0, &payload));
                self.pings.push(payload.try_into().expect("eight bytes"));
            }
            GOAWAY => self.goaways.push((number(&payload) & 0x7fff_ffff, number(&payload[4..]))),
            WINDOW_UPDATE => {
                let increment = number(&payload);
                *self.credit.entry(stream).or_default() += u64::from(increment);
                let initial = self.window_initial;
                let window = if stream == 0 { &mut self.window } else { self.windows.entry(stream).or_insert(initial) };
                *window += i64::from(increment);
            }
            PUSH_PROMISE => panic!("a push"),
            // Unknown ones are ignored (RFC 9113 section 5.5).
            _ => {}
        }
    }

    fn take_settings(&mut self, payload: &[u8]) {
        for entry in payload.chunks(6) {
            let (id, value) = (u16::from_be_bytes([entry[0], entry[1]]), number(&entry[2..]));
            if id == INITIAL_WINDOW_SIZE {
                let change = i64::from(value) - self.window_initial;
                self.windows.values_mut().for_each(|window| *window += change);
                self.window_initial += change;
            }
            self.settings.push((id, value));
        }
        self.acknowledge(&frames::frame(SETTINGS, ACK, 0, []));
    }

    fn acknowledge(&mut self, frame: &[u8]) {
        if self.acknowledges {
            // A peer that is gone already shows when it is read from.
            let _ = self.try_send(frame);
        }
    }

    #[track_caller]
    fn end_block(&mut self, flags: u8) {
        if flags & END_HEADERS == 0 {
            return;
        }
        let (stream, ended, block) = self.block.take().expect("a header block");
        let fields = self.decoder.decode(&block).unwrap_or_else(|error| panic!("{error:?}: {block:?}"));
        let latin1 = |bytes: Vec<u8>| bytes.into_iter().map(char::from).collect::<String>();
        let fields = FieldLines(fields.into_iter().map(|(name, value)| (latin1(name), latin1(value))).collect());
        let message = self.messages.entry(stream).or_default();
        assert!(!message.ended, "HEADERS behind END_STREAM: {fields:?}");
        if !message.fields.0.is_empty() {
            assert!(ended && !fields.0.iter().any(|(name, _)| name.starts_with(':')), "bad trailers: {fields:?}");
            message.trailers = fields;
        } else if fields.value(":status").is_some_and(|status| status.starts_with('1')) {
            assert!(!ended, "an interim response ends the stream: {fields:?}");
            message.interim.push(fields);
        } else {
            message.never_indexed = frames::count_never_indexed(&block);
            message.fields = fields;
        }
        message.ended |= ended;
    }
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(*bytes.first_chunk().expect("four bytes"))
}

fn unpadded(flags: u8, payload: &[u8]) -> &[u8] {
    if flags & PADDED == 0 {
        return payload;
    }
    &payload[1..payload.len() - usize::from(payload[0])]
}

/// The pseudo fields of a GET.
#[must_use]
pub fn get<'a>(authority: &'a str, path: &'a str) -> [(&'a str, &'a str); 4] {
    request("GET", authority, path)
}

/// The pseudo fields of a request over plain HTTP.
#[must_use]
pub fn request<'a>(method: &'a str, authority: &'a str, path: &'a str) -> [(&'a str, &'a str); 4] {
    [(":method", method), (":scheme", "http"), (":authority", authority), (":path", path)]
}
