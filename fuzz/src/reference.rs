//! A second HTTP/1.1 parser, too simple to share a mistake with core's: the peer that a smuggler hopes for.
//! It knows RFC 9112 and nothing else, and it panics on nothing. Ours, since we have found no maintained binding of an
//! independent parser; h11 and llhttp judge in `tests/tests/judges.rs`, through Python.

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// After so many bytes.
    Length(u64),
    /// With its last chunk.
    Chunked,
    /// With the connection.
    UntilClose,
}

/// A name and a value without the blanks around it.
pub type Field = (Vec<u8>, Vec<u8>);

/// A head taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Three parts: method, target, version; or version, status, reason.
    pub start: [Vec<u8>; 3],
    /// In order of receipt.
    pub fields: Vec<Field>,
    /// Bytes.
    pub len: usize,
}

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

fn line(bytes: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n").ok_or("no end of line")?;
    let line = &bytes[..end];
    if line.iter().any(|&b| b != b'\t' && (b < 0x20 || b == 0x7f)) {
        return Err("a control byte in a line");
    }
    Ok((line, &bytes[end + 2..]))
}

fn field(line: &[u8]) -> Result<Field, &'static str> {
    let colon = line.iter().position(|&b| b == b':').ok_or("a field line without a colon")?;
    let name = &line[..colon];
    if !is_token(name) {
        return Err("a field name that is no token");
    }
    Ok((name.to_vec(), line[colon + 1..].trim_ascii().to_vec()))
}

fn fields(bytes: &[u8]) -> Result<(Vec<Field>, &[u8]), &'static str> {
    let mut list = Vec::new();
    let mut rest = bytes;
    loop {
        let (line, after) = line(rest)?;
        rest = after;
        if line.is_empty() {
            return Ok((list, rest));
        }
        list.push(field(line)?);
    }
}

fn head(bytes: &[u8]) -> Result<Head, &'static str> {
    let (start, after) = line(bytes)?;
    let mut parts = start.splitn(3, |&b| b == b' ').map(<[u8]>::to_vec);
    let start = [(); 3].map(|()| parts.next().unwrap_or_default());
    let (fields, rest) = fields(after)?;
    Ok(Head { start, fields, len: bytes.len() - rest.len() })
}

impl Head {
    /// Parses a request head.
    pub fn request(bytes: &[u8]) -> Result<Self, &'static str> {
        let head = head(bytes)?;
        let [method, target, version] = &head.start;
        if !is_token(method) || target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
            return Err("no request line");
        }
        if version != b"HTTP/1.1" && version != b"HTTP/1.0" {
            return Err("no version");
        }
        Ok(head)
    }

    /// Parses a response head.
    pub fn response(bytes: &[u8]) -> Result<Self, &'static str> {
        let head = head(bytes)?;
        let [version, status, _] = &head.start;
        if version != b"HTTP/1.1" && version != b"HTTP/1.0" {
            return Err("no version");
        }
        if status.len() != 3 || !status.iter().all(u8::is_ascii_digit) {
            return Err("no status");
        }
        Ok(head)
    }

    /// Values of a field, in order.
    pub fn values(&self, name: &str) -> Vec<&[u8]> {
        let named = |field: &&Field| field.0.eq_ignore_ascii_case(name.as_bytes());
        self.fields.iter().filter(named).map(|field| &field.1[..]).collect()
    }

    fn announced(&self) -> Result<Framing, &'static str> {
        match (&self.values("transfer-encoding")[..], &self.values("content-length")[..]) {
            ([], []) => Ok(Framing::None),
            ([], [length]) if !length.is_empty() && length.iter().all(u8::is_ascii_digit) => {
                let text = std::str::from_utf8(length).map_err(|_| "no number")?;
                text.parse().map(Framing::Length).map_err(|_| "a length beyond 64 bits")
            }
            ([coding], []) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
            _ => Err("an ambiguous framing"),
        }
    }

    /// RFC 9112 section 6.3 for a request.
    pub fn request_framing(&self) -> Result<Framing, &'static str> {
        self.announced()
    }

    /// RFC 9112 section 6.3 for a response to a request with this method.
    pub fn response_framing(&self, method: &str) -> Result<Framing, &'static str> {
        let status: &[u8] = &self.start[1];
        if status[0] == b'1' || (method == "CONNECT" && status[0] == b'2') {
            return Ok(Framing::None);
        }
        match self.announced()? {
            _ if method == "HEAD" || status == b"204" || status == b"304" => Ok(Framing::None),
            Framing::None => Ok(Framing::UntilClose),
            framing => Ok(framing),
        }
    }

    /// Fields that go on to the next hop, in order, and neither Host nor Expect, which the forwarder may rewrite.
    pub fn end_to_end(&self) -> Vec<Field> {
        let hop: [&[u8]; 10] = [
            b"connection",
            b"keep-alive",
            b"proxy-connection",
            b"te",
            b"upgrade",
            b"http2-settings",
            b"content-length",
            b"transfer-encoding",
            b"host",
            b"expect",
        ];
        let nominated: Vec<Vec<u8>> = self
            .values("connection")
            .iter()
            .flat_map(|value| value.split(|&b| b == b','))
            .map(|option| option.trim_ascii().to_ascii_lowercase())
            .filter(|option| option != b"close")
            .collect();
        let stays = |field: &&Field| {
            let name = field.0.to_ascii_lowercase();
            !hop.contains(&&name[..]) && !nominated.contains(&name)
        };
        self.fields.iter().filter(stays).cloned().collect()
    }
}

/// A body: data, trailer fields, and what follows it. `Err` where it does not end within the bytes.
pub fn body(bytes: &[u8], framing: Framing) -> Result<(Vec<u8>, Vec<Field>, &[u8]), &'static str> {
    match framing {
        Framing::None => Ok((Vec::new(), Vec::new(), bytes)),
        Framing::UntilClose => Ok((bytes.to_vec(), Vec::new(), b"")),
        Framing::Length(length) => {
            let length = usize::try_from(length).map_err(|_| "cut")?;
            let (data, rest) = bytes.split_at_checked(length).ok_or("cut")?;
            Ok((data.to_vec(), Vec::new(), rest))
        }
        Framing::Chunked => chunks(bytes),
    }
}

fn chunks(bytes: &[u8]) -> Result<(Vec<u8>, Vec<Field>, &[u8]), &'static str> {
    let (mut data, mut rest) = (Vec::new(), bytes);
    loop {
        let (size_line, after) = line(rest)?;
        let digits = size_line.split(|&b| b == b';').next().unwrap_or_default();
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err("a chunk size that is no hexadecimal number");
        }
        let text = std::str::from_utf8(digits).map_err(|_| "no number")?;
        let size = usize::from_str_radix(text, 16).map_err(|_| "a chunk beyond 64 bits")?;
        if size == 0 {
            let (trailers, rest) = fields(after)?;
            return Ok((data, trailers, rest));
        }
        let (chunk, after) = after.split_at_checked(size).ok_or("cut")?;
        data.extend_from_slice(chunk);
        rest = after.strip_prefix(b"\r\n").ok_or("no end of line after a chunk")?;
    }
}
