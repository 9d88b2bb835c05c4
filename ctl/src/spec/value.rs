//! Valid values: each type can only be built from text that is valid, so nothing after the reader checks it again.

use std::{fmt, net::IpAddr, num::NonZeroU16, sync::Arc};

use meshring_core::{limits, table::regexes};
use serde::{Serialize, Serializer};

/// The domain of Kubernetes services. Istio's `meshConfig.trustDomain`-independent `clusterDomain` default.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// The namespace of resources that name none, as `kubectl` without a context does.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Istio's root namespace: DestinationRules in it apply to the whole mesh.
pub const ROOT_NAMESPACE: &str = "istio-system";

/// Why a text is not a valid value: what is wrong, and what to write instead if that can be said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidValue {
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl InvalidValue {
    /// Only what is wrong.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    /// What is wrong and what to write instead.
    pub fn with_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: Some(hint.into()) }
    }
}

/// A user id of this machine: digits only, and not the number that `setuid` takes for "leave as it is".
///
/// # Errors
/// It is something else, a user's name for instance.
pub fn unix_uid(text: &str) -> Result<u32, InvalidValue> {
    let number = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    number.filter(|uid| *uid != u32::MAX).ok_or_else(|| {
        InvalidValue::with_hint(format!("`{text}` is not a user id"), "write the number that `id -u` prints, quoted")
    })
}

macro_rules! text {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub struct $name(Arc<str>);

        // Texts are shared, so that most comparisons of equal ones need not look at them.
        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                if Arc::ptr_eq(&self.0, &other.0) { std::cmp::Ordering::Equal } else { self.0.cmp(&other.0) }
            }
        }

        impl $name {
            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The shared text.
            pub fn shared(&self) -> Arc<str> {
                Arc::clone(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}

text!(
    /// A namespace: a DNS-1123 label.
    Namespace
);
text!(
    /// A resource name: a DNS-1123 subdomain.
    Name
);
text!(
    /// A port name: a DNS-1123 label; it may be empty where a service has one port.
    PortName
);
text!(
    /// An HTTP header name in lower case (RFC 9110 section 5.1: a token), or `:authority` where Istio allows it.
    HeaderName
);
text!(
    /// An HTTP header value without CR, LF and NUL (RFC 9110 section 5.5). `%...%` is text, not an Envoy formatter.
    HeaderValue
);
text!(
    /// A regular expression in RE2 syntax that compiles within [`REGEX_BYTES_MAX`](limits::REGEX_BYTES_MAX). It must
    /// match the whole text.
    Pattern
);
text!(
    /// A fully qualified host name in lower case, without a trailing dot.
    Hostname
);

impl Default for PortName {
    fn default() -> Self {
        Self("".into())
    }
}

impl Namespace {
    /// A DNS-1123 label of at most 63 characters.
    pub fn parse(text: impl Into<Arc<str>>) -> Result<Self, InvalidValue> {
        let text = text.into();
        dns_label(&text)?;
        Ok(Self(text))
    }
}

impl Namespace {
    /// [`ROOT_NAMESPACE`].
    pub fn root() -> Self {
        Self(ROOT_NAMESPACE.into())
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self(DEFAULT_NAMESPACE.into())
    }
}

impl Name {
    /// A DNS-1123 subdomain of at most 253 characters.
    pub fn parse(text: impl Into<Arc<str>>) -> Result<Self, InvalidValue> {
        let text = text.into();
        dns_subdomain(&text)?;
        Ok(Self(text))
    }
}

impl PortName {
    /// A DNS-1123 label, or nothing.
    pub fn parse(text: impl Into<Arc<str>>) -> Result<Self, InvalidValue> {
        let text = text.into();
        if !text.is_empty() {
            dns_label(&text)?;
        }
        Ok(Self(text))
    }
}

impl HeaderName {
    /// A token in any case; the case is dropped since header names have none.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        if text.is_empty() {
            return Err(InvalidValue::new("header name is empty"));
        }
        if let Some(bad) = text.chars().find(|c| !is_token(*c)) {
            return Err(InvalidValue::with_hint(
                format!("`{text}` is not a header name: it contains {bad:?}"),
                "use letters, digits and -._~!#$%&'*+^`|",
            ));
        }
        Ok(Self(lower(text)))
    }

    /// As [`Self::parse`], and `:authority` too: Istio allows it where request headers are set, as another word for
    /// `host`.
    pub fn parse_or_authority(text: &str) -> Result<Self, InvalidValue> {
        match text {
            _ if text.eq_ignore_ascii_case(":authority") => Ok(Self("host".into())),
            _ if text.starts_with(':') => Err(InvalidValue::with_hint(
                format!("`{text}` is a pseudo-header, which cannot be set"),
                "write `:authority`, or `rewrite.uri` for the path",
            )),
            _ => Self::parse(text),
        }
    }

    /// As [`Self::parse`], without `host` and pseudo-headers: what Istio allows on responses and in `remove`.
    pub fn parse_changeable(text: &str) -> Result<Self, InvalidValue> {
        if text.starts_with(':') || text.eq_ignore_ascii_case("host") {
            return Err(InvalidValue::new(format!(
                "`{text}` cannot be changed here: `host` and pseudo-headers are fixed"
            )));
        }
        Self::parse(text)
    }
}

impl HeaderValue {
    /// Text without CR, LF, NUL and other control characters but tab.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        match text.bytes().find(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f) {
            Some(bad) => Err(InvalidValue::with_hint(
                format!("header value contains the control character {:?}", bad as char),
                "remove it: a header value is one line",
            )),
            None => Ok(Self(text.into())),
        }
    }
}

impl Pattern {
    /// A regular expression that compiles; anchoring is the matcher's.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        if text.is_empty() {
            return Err(InvalidValue::with_hint("regular expression is empty", "write `.*` to match everything"));
        }
        // The very check that proxies apply; the pattern alone must compile too, or `a)(b` would pass by the
        // parentheses around it.
        let checked = regexes::compile(text).and_then(|_| regexes::compile(&regexes::anchored(text)));
        match checked {
            Ok(_) => Ok(Self(text.into())),
            Err(error) if error.reason.contains("size limit") => Err(InvalidValue::with_hint(
                format!("regular expression is larger than {} KiB when compiled", limits::REGEX_BYTES_MAX >> 10),
                "use smaller or fewer repetition counts",
            )),
            Err(error) => Err(InvalidValue::with_hint(
                format!("regular expression `{text}` does not compile: {}", error.reason.trim_start_matches("error: ")),
                "write RE2 syntax; look-around and back-references do not exist in it",
            )),
        }
    }
}

impl Hostname {
    /// A fully qualified name. A trailing dot is dropped, case too.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        let text = text.strip_suffix('.').unwrap_or(text);
        host_length(text)?;
        for label in text.split('.') {
            host_label(label)
                .map_err(|why| InvalidValue::with_hint(format!("`{text}` is not a host name: {why}"), HOST_HINT))?;
        }
        Ok(Self(lower(text)))
    }

    /// The name of a Kubernetes service: `NAME.NAMESPACE.svc.cluster.local`.
    pub fn of_service(name: &Name, namespace: &Namespace) -> Self {
        Self(format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}").into())
    }

    /// As Istio resolves `destination.host` and `DestinationRule.host`: a name without a dot is a service of the
    /// resource's namespace.
    pub fn resolve(text: &str, namespace: &Namespace) -> Result<Self, InvalidValue> {
        let host = Self::parse(text)?;
        if host.0.contains('.') || host.0.parse::<IpAddr>().is_ok() {
            return Ok(host);
        }
        let full = format!("{host}.{namespace}.svc.{CLUSTER_DOMAIN}");
        host_length(&full)?;
        Ok(Self(full.into()))
    }
}

const HOST_HINT: &str = "write labels of at most 63 letters, digits and `-`, with `.` between them, such as `reviews` or \
                         `reviews.default.svc.cluster.local`";

fn host_length(text: &str) -> Result<(), InvalidValue> {
    match text.len() {
        1..=limits::HOST_BYTES_MAX => Ok(()),
        0 => Err(InvalidValue::with_hint("host name is empty", HOST_HINT)),
        length => {
            let message = format!("host name has {length} characters; at most {} are allowed", limits::HOST_BYTES_MAX);
            Err(InvalidValue::with_hint(message, "write a shorter name"))
        }
    }
}

/// A host, or a wildcard such as `*.example.com` or `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// One host.
    Exact(Hostname),
    /// All hosts that end with `.` and this: `*.example.com` keeps `example.com`.
    Suffix(Hostname),
    /// `*`.
    Any,
}

impl HostPattern {
    /// `*`, `*.example.com`, a full host name, or a short name that belongs to `namespace`.
    pub fn resolve(text: &str, namespace: &Namespace) -> Result<Self, InvalidValue> {
        if text == "*" {
            return Ok(Self::Any);
        }
        match text.strip_prefix("*.") {
            Some(suffix) => Self::suffix(suffix),
            None if text.starts_with('*') => Err(InvalidValue::with_hint(
                format!("`{text}` is not a host: `*` must be a label of its own"),
                format!("write `*.{}`", text.trim_start_matches('*').trim_start_matches('.')),
            )),
            None => Hostname::resolve(text, namespace).map(Self::Exact),
        }
    }

    /// As [`resolve`](Self::resolve), but a name without a dot stays one: names in the messages of other protocols.
    pub fn full(text: &str) -> Result<Self, InvalidValue> {
        match text.strip_prefix("*.") {
            Some(suffix) => Self::suffix(suffix),
            None if text == "*" => Ok(Self::Any),
            None => Hostname::parse(text).map(Self::Exact),
        }
    }

    /// `*.` and this. The table keeps it with its leading dot, which must fit too.
    pub fn suffix(text: &str) -> Result<Self, InvalidValue> {
        let suffix = Hostname::parse(text)?;
        host_length(&format!(".{suffix}"))?;
        Ok(Self::Suffix(suffix))
    }

    /// Whether `host` is one of these.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(exact) => exact.as_str() == host,
            Self::Suffix(suffix) => {
                host.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            Self::Any => true,
        }
    }

    /// Whether every host of `other` is one of these.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (_, Self::Any) => false,
            (_, Self::Exact(host)) => self.matches(host.as_str()),
            (Self::Suffix(mine), Self::Suffix(theirs)) => mine == theirs || self.matches(theirs.as_str()),
            (Self::Exact(_), Self::Suffix(_)) => false,
        }
    }

    /// The host, if it is one.
    pub fn exact(&self) -> Option<&Hostname> {
        match self {
            Self::Exact(host) => Some(host),
            _ => None,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host.as_str()),
            Self::Suffix(suffix) => write!(f, "*.{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

impl Serialize for HostPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A TCP port, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Port(NonZeroU16);

impl Port {
    /// 1 to 65535.
    pub fn parse(number: i64) -> Result<Self, InvalidValue> {
        u16::try_from(number)
            .ok()
            .and_then(NonZeroU16::new)
            .map(Self)
            .ok_or_else(|| InvalidValue::new(format!("{number} is not a port: it must be 1 to 65535")))
    }

    /// The number.
    pub fn number(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Addresses with a common prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Cidr {
    /// Any of them.
    pub address: IpAddr,
    /// Leading bits that they share: at most 32, or 128 for IPv6.
    pub bits: u8,
}

/// Labels of a resource or endpoint, sorted by key; clones are shared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Labels(Option<Arc<[Label]>>);

/// Key and value.
type Label = (Arc<str>, Arc<str>);

impl Labels {
    /// Sorted and shared; later duplicates of a key win.
    pub fn new(mut pairs: Vec<(Arc<str>, Arc<str>)>) -> Self {
        if pairs.is_empty() {
            return Self(None);
        }
        pairs.reverse();
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        pairs.dedup_by(|a, b| a.0 == b.0);
        Self(Some(pairs.into()))
    }

    /// The pairs in order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(|pairs| pairs.iter()).map(|(key, value)| (&**key, &**value))
    }

    /// The value of `key`.
    pub fn value(&self, key: &str) -> Option<&str> {
        let pairs = self.0.as_deref()?;
        pairs.binary_search_by(|(k, _)| (**k).cmp(key)).ok().map(|index| &*pairs[index].1)
    }

    /// Whether these labels, taken as a selector, select something that carries `labels`. No labels select everything.
    pub fn select(&self, labels: &Self) -> bool {
        self.iter().all(|(key, value)| labels.value(key) == Some(value))
    }

    /// These labels and those of `over`, which win.
    #[must_use]
    pub fn with(&self, over: &Self) -> Self {
        match (&self.0, &over.0) {
            (_, None) => self.clone(),
            (None, _) => over.clone(),
            (Some(mine), Some(theirs)) => Self::new(mine.iter().chain(theirs.iter()).cloned().collect()),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.as_deref().map_or(0, <[_]>::len)
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{key}={value}")?;
        }
        Ok(())
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// To which namespaces a resource is visible (`exportTo`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub enum ExportTo {
    /// `*`, or nothing said.
    #[default]
    All,
    /// `~`: to nobody.
    Nobody,
    /// To these; `.` has become the resource's own.
    Namespaces(Vec<Namespace>),
}

impl ExportTo {
    /// Whether clients in `namespace` see it; `None` is a namespace that no resource names.
    pub fn reaches(&self, namespace: Option<&Namespace>) -> bool {
        match (self, namespace) {
            (Self::All, _) => true,
            (Self::Nobody, _) | (Self::Namespaces(_), None) => false,
            (Self::Namespaces(list), Some(namespace)) => list.contains(namespace),
        }
    }
}

/// What a port speaks, as Istio finds it out: `appProtocol`, then the port's `protocol` (ServiceEntry), then the prefix
/// of its name (`http-web`), then a well-known number, else unknown (Istio sniffs).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1 (`HTTP`, `HTTP_PROXY`).
    Http,
    /// HTTP/2 in clear (`HTTP2`).
    Http2,
    /// gRPC (`GRPC`, `GRPC_WEB`).
    Grpc,
    /// TLS, with or without HTTP in it (`HTTPS`, `TLS`).
    Tls,
    /// Bytes (`TCP`, `MONGO`, `MYSQL`, `REDIS`).
    Tcp,
    /// Datagrams.
    Udp,
    /// Not said; HTTP is assumed where HTTP is asked for.
    Unknown,
}

impl Protocol {
    /// From Istio's protocol names in any case, or `kubernetes.io/h2c` and the like; `None` where it is none of them.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "http" | "http_proxy" | "http-proxy" | "kubernetes.io/ws" => Self::Http,
            "http2" | "kubernetes.io/h2c" | "h2c" => Self::Http2,
            "grpc" | "grpc-web" | "grpc_web" => Self::Grpc,
            "https" | "tls" | "kubernetes.io/wss" => Self::Tls,
            "tcp" | "mongo" | "mysql" | "redis" | "hbone" => Self::Tcp,
            "udp" => Self::Udp,
            _ => return None,
        })
    }

    /// From a port name: its part before the first `-`, except that `grpc-web` is a whole.
    pub fn from_port_name(name: &str) -> Self {
        if name.eq_ignore_ascii_case("grpc-web") || name.to_ascii_lowercase().starts_with("grpc-web-") {
            return Self::Grpc;
        }
        Self::parse(name.split('-').next().unwrap_or_default()).unwrap_or(Self::Unknown)
    }

    /// Whether HTTP routing applies: HTTP, HTTP/2, gRPC and what is not said.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc | Self::Unknown)
    }
}

/// How endpoints are chosen (`trafficPolicy.loadBalancer.simple`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Default)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LoadBalancer {
    /// `LEAST_REQUEST`, `LEAST_CONN`, `UNSPECIFIED` or nothing said: the less busy of two at random.
    #[default]
    LeastRequest,
    /// `ROUND_ROBIN`.
    RoundRobin,
    /// `RANDOM`.
    Random,
    /// `PASSTHROUGH`: to the address that the client asked for.
    Passthrough,
}

/// Lower case, without an allocation of its own where it already is.
fn lower(text: &str) -> Arc<str> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) { text.to_ascii_lowercase().into() } else { text.into() }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

fn dns_label(text: &str) -> Result<(), InvalidValue> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let valid =
        matches!(bytes, [first, .., last] if fits(*first) && fits(*last)) || matches!(bytes, [one] if fits(*one));
    if valid && text.len() <= 63 && bytes.iter().all(|byte| fits(*byte) || *byte == b'-') {
        return Ok(());
    }
    Err(InvalidValue::with_hint(
        format!("`{text}` is not a DNS-1123 label"),
        "write at most 63 lower-case letters, digits and `-`, with a letter or digit at both ends",
    ))
}

fn dns_subdomain(text: &str) -> Result<(), InvalidValue> {
    if text.len() <= 253 && !text.is_empty() && text.split('.').all(dns_label_any_length) {
        return Ok(());
    }
    Err(InvalidValue::with_hint(
        format!("`{text}` is not a valid name"),
        "write at most 253 lower-case letters, digits, `-` and `.`, with a letter or digit at both ends",
    ))
}

fn dns_label_any_length(text: &str) -> bool {
    let fits = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(fits)
        && bytes.last().is_some_and(fits)
        && bytes.iter().all(|byte| fits(byte) || *byte == b'-')
}

/// As Istio's: a DNS label in any case, `_` allowed since real hosts have it.
fn host_label(label: &str) -> Result<(), String> {
    let bytes = label.as_bytes();
    if bytes.is_empty() {
        return Err("it has an empty label".into());
    }
    if bytes.len() > 63 {
        return Err(format!("the label `{label}` is longer than 63 characters"));
    }
    if let Some(bad) = label.chars().find(|c| !(c.is_ascii_alphanumeric() || *c == '-' || *c == '_')) {
        return Err(format!("it contains {bad:?}"));
    }
    if bytes[0] == b'-' || bytes[bytes.len() - 1] == b'-' {
        return Err(format!("the label `{label}` begins or ends with `-`"));
    }
    Ok(())
}
