//! Why a message is refused: one variant per reason, each with a stable short code for the access log (in the manner
//! of Envoy's response code details) and, for requests, the status of the answer.

use thiserror::Error;

use crate::limits::{
    CHUNK_EXTENSION_BYTES_MAX, CONNECTION_OPTIONS_MAX, HEAD_BYTES_MAX, HEAD_FIELDS_MAX, NEXT_HOP_HEAD_BYTES_MAX,
    NEXT_HOP_HEAD_FIELDS_MAX, TARGET_BYTES_MAX, TRAILER_BYTES_MAX, TRAILER_FIELDS_MAX,
};

/// A request head that is answered with an error and forwarded to nobody. The connection closes after the answer,
/// since nobody can say where the next request would begin.
#[derive(Error, Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Refusal {
    /// RFC 9112 section 2.2 lets a recipient accept a bare LF; it is a smuggling vector, so we do not.
    #[error("a line ends in a bare LF; lines end in CR LF")]
    BareLf,
    /// RFC 9112 section 2.2.
    #[error("a CR without LF inside the header section")]
    BareCr,
    /// RFC 9110 section 5.5.
    #[error("a NUL byte inside the header section")]
    Nul,
    /// RFC 9112 section 5.2.
    #[error("obsolete line folding: a field line begins with a space or tab")]
    ObsFold,
    /// RFC 9112 section 5.1.
    #[error("white space between a field name and its colon")]
    SpaceBeforeColon,
    /// RFC 9112 section 2.2.
    #[error("white space between the request line and the first field")]
    SpaceBeforeFirstField,
    /// RFC 9112 section 5.
    #[error("a field line without a colon")]
    NoColon,
    /// RFC 9110 section 5.1.
    #[error("an empty field name")]
    EmptyFieldName,
    /// RFC 9110 section 5.1.
    #[error("a field name with a byte that is not a token character")]
    BadFieldName,
    /// RFC 9110 section 5.5.
    #[error("a field value with a control character")]
    BadFieldValue,
    /// RFC 9112 section 2.2 allows to ignore at least one.
    #[error("more than one empty line before the request line")]
    LeadingEmptyLines,
    /// RFC 9112 section 3: exactly one space between the parts.
    #[error("the request line is not METHOD SP TARGET SP VERSION")]
    BadRequestLine,
    /// RFC 9110 section 9.1.
    #[error("the method is not a token")]
    BadMethod,
    /// RFC 9113 section 8.3.1 lets any scheme come; only the two that are HTTP are served.
    #[error(":scheme is neither `http` nor `https`")]
    SchemeUnsupported,
    /// RFC 9112 section 3.2: none of the four forms.
    #[error("the request target has none of the forms of RFC 9112 section 3.2")]
    BadTarget,
    /// RFC 3986 section 2.
    #[error("the request target has a byte outside ASCII or a control character; percent-encode it")]
    TargetNotAscii,
    /// RFC 9112 section 3.2.
    #[error("the request target has a fragment (`#`)")]
    TargetFragment,
    /// Some servers read it as a slash.
    #[error("the path has a backslash")]
    TargetBackslash,
    /// Some servers end the path there (CVE-2019-9900 and its kin).
    #[error("the path has an encoded NUL (`%00`)")]
    TargetNul,
    /// RFC 3629 section 3: `%c0%ae` is a dot for a sloppy decoder only.
    #[error("the path has an overlong UTF-8 sequence")]
    TargetOverlong,
    /// RFC 3986 section 2.1.
    #[error("the path has a `%` without two hexadecimal digits")]
    TargetBadEscape,
    /// RFC 3986 section 5.2.4 would ignore the excess; a server behind us may not.
    #[error("the path climbs above its root with `..`")]
    PathEscapesRoot,
    /// `/a/..;x/b` is `/b` for a server that cuts parameters off before it resolves dot segments, and `/;x/b` is `//b`.
    #[error("the path has parameters (`;`) on a dot segment or on an empty one")]
    PathParameters,
    /// See [`TARGET_BYTES_MAX`].
    #[error("the request target is longer than {TARGET_BYTES_MAX} bytes")]
    TargetTooLong,
    /// RFC 9112 section 3.2.4.
    #[error("the target `*` is for OPTIONS only")]
    AsteriskNotOptions,
    /// HTTP/0.9, or a request line that was cut.
    #[error("the request line has no HTTP version")]
    NoVersion,
    /// RFC 9112 section 2.3.
    #[error("the HTTP version is not of the form HTTP/digit.digit")]
    BadVersion,
    /// RFC 9110 section 15.6.6.
    #[error("an HTTP version other than 1.0 and 1.1")]
    VersionUnsupported,
    /// See [`crate::http::Bounds`].
    #[error(
        "the header section is larger than {HEAD_BYTES_MAX} bytes, or {NEXT_HOP_HEAD_BYTES_MAX} from another sidecar"
    )]
    HeadTooLarge,
    /// See [`crate::http::Bounds`].
    #[error("more than {HEAD_FIELDS_MAX} header fields, or {NEXT_HOP_HEAD_FIELDS_MAX} from another sidecar")]
    TooManyFields,
    /// RFC 9112 section 6.1 allows to refuse it.
    #[error("Content-Length and Transfer-Encoding in one request")]
    LengthWithEncoding,
    /// RFC 9112 section 6.3.
    #[error("more than one Content-Length")]
    RepeatedLength,
    /// RFC 9110 section 8.6.
    #[error("Content-Length is not a number of decimal digits below 2^64")]
    BadLength,
    /// RFC 9112 section 6.1.
    #[error("Transfer-Encoding is not exactly one `chunked`")]
    BadEncoding,
    /// RFC 9112 section 6.1.
    #[error("Transfer-Encoding with a coding that is not understood; only `chunked` is")]
    EncodingUnsupported,
    /// RFC 9112 section 6.1.
    #[error("Transfer-Encoding in an HTTP/1.0 request")]
    EncodingOnHttp10,
    /// RFC 9112 section 3.2.
    #[error("no Host field, or an empty one")]
    NoHost,
    /// RFC 9112 section 3.2.
    #[error("more than one Host field")]
    RepeatedHost,
    /// RFC 9110 section 7.2, RFC 3986 section 3.2.2.
    #[error("Host or the target's authority is not `host` or `host:port`, or the name is too long")]
    BadAuthority,
    /// Two spellings of one name for a server that maps `-` to `_` (CGI, WSGI).
    #[error("a field name that differs only in `_` for `-` from one that decides about framing, routing or identity")]
    UnderscoreTwin,
    /// RFC 9110 section 7.6.1: must not nominate end-to-end fields (CVE-2022-31813, CVE-2024-45410).
    #[error("Connection nominates a field that must not be removed")]
    NominatedField,
    /// RFC 9110 section 7.6.1.
    #[error("Connection has an option that is not a token")]
    BadConnection,
    /// See [`CONNECTION_OPTIONS_MAX`].
    #[error("more than {CONNECTION_OPTIONS_MAX} connection options")]
    TooManyConnectionOptions,
    /// RFC 9110 section 7.6.2.
    #[error("Max-Forwards is not one number of decimal digits")]
    BadMaxForwards,
    /// RFC 9110 section 10.1.1.
    #[error("an expectation other than `100-continue`")]
    ExpectationUnsupported,
    /// RFC 9110 section 9.3.6.
    #[error("a CONNECT request with a body")]
    ConnectWithBody,
    /// The configured limit of a body, see [`crate::http::RequestHead::limit_body`].
    #[error("the body is larger than the configured limit")]
    BodyTooLarge,
    /// Anything else that does not parse.
    #[error("not an HTTP/1 request")]
    Malformed,
}

impl Refusal {
    /// The status of the answer: 400, 413, 414, 417, 431, 501 or 505.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::BodyTooLarge => 413,
            Self::TargetTooLong => 414,
            Self::ExpectationUnsupported => 417,
            Self::HeadTooLarge | Self::TooManyFields => 431,
            Self::EncodingUnsupported => 501,
            Self::VersionUnsupported => 505,
            _ => 400,
        }
    }

    /// A stable short name for the access log.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::BareLf => "http1.bare_lf",
            Self::BareCr => "http1.bare_cr",
            Self::Nul => "http1.nul",
            Self::ObsFold => "http1.obs_fold",
            Self::SpaceBeforeColon => "http1.space_before_colon",
            Self::SpaceBeforeFirstField => "http1.space_before_first_field",
            Self::NoColon => "http1.no_colon",
            Self::EmptyFieldName => "http1.empty_field_name",
            Self::BadFieldName => "http1.bad_field_name",
            Self::BadFieldValue => "http1.bad_field_value",
            Self::LeadingEmptyLines => "http1.leading_empty_lines",
            Self::BadRequestLine => "http1.bad_request_line",
            Self::BadMethod => "http1.bad_method",
            Self::SchemeUnsupported => "http2.scheme_unsupported",
            Self::BadTarget => "http1.bad_target",
            Self::TargetNotAscii => "http1.target_not_ascii",
            Self::TargetFragment => "http1.target_fragment",
            Self::TargetBackslash => "http1.target_backslash",
            Self::TargetNul => "http1.target_nul",
            Self::TargetOverlong => "http1.target_overlong_utf8",
            Self::TargetBadEscape => "http1.target_bad_escape",
            Self::PathEscapesRoot => "http1.path_escapes_root",
            Self::PathParameters => "http1.path_parameters",
            Self::TargetTooLong => "http1.target_too_long",
            Self::AsteriskNotOptions => "http1.asterisk_not_options",
            Self::NoVersion => "http1.no_version",
            Self::BadVersion => "http1.bad_version",
            Self::VersionUnsupported => "http1.version_unsupported",
            Self::HeadTooLarge => "http1.head_too_large",
            Self::TooManyFields => "http1.too_many_fields",
            Self::LengthWithEncoding => "http1.length_with_encoding",
            Self::RepeatedLength => "http1.repeated_length",
            Self::BadLength => "http1.bad_length",
            Self::BadEncoding => "http1.bad_encoding",
            Self::EncodingUnsupported => "http1.encoding_unsupported",
            Self::EncodingOnHttp10 => "http1.encoding_on_http10",
            Self::NoHost => "http1.no_host",
            Self::RepeatedHost => "http1.repeated_host",
            Self::BadAuthority => "http1.bad_authority",
            Self::UnderscoreTwin => "http1.underscore_twin",
            Self::NominatedField => "http1.nominated_field",
            Self::BadConnection => "http1.bad_connection",
            Self::TooManyConnectionOptions => "http1.too_many_connection_options",
            Self::BadMaxForwards => "http1.bad_max_forwards",
            Self::ExpectationUnsupported => "http1.expectation_unsupported",
            Self::ConnectWithBody => "http1.connect_with_body",
            Self::BodyTooLarge => "http1.body_too_large",
            Self::Malformed => "http1.malformed",
        }
    }
}

/// An upstream's response head that cannot be relayed. The client gets 502 and the upstream connection closes.
#[derive(Error, Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum BadResponse {
    /// The status line does not parse.
    #[error("the status line is not VERSION SP 3DIGIT SP REASON")]
    StatusLine,
    /// Outside 100 to 599 (RFC 9110 section 15).
    #[error("the status is outside 100 to 599")]
    Status,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    #[error("an HTTP version other than 1.0 and 1.1")]
    Version,
    /// See [`Refusal::BareLf`].
    #[error("a line ends in a bare LF; lines end in CR LF")]
    BareLf,
    /// See [`Refusal::BareCr`].
    #[error("a CR without LF inside the header section")]
    BareCr,
    /// See [`Refusal::Nul`].
    #[error("a NUL byte inside the header section")]
    Nul,
    /// See [`Refusal::ObsFold`].
    #[error("obsolete line folding: a field line begins with a space or tab")]
    ObsFold,
    /// A field line that does not parse.
    #[error("a field line is not NAME: VALUE")]
    FieldLine,
    /// See [`crate::http::Bounds`].
    #[error(
        "the header section is larger than {HEAD_BYTES_MAX} bytes, or {NEXT_HOP_HEAD_BYTES_MAX} from another sidecar"
    )]
    HeadTooLarge,
    /// See [`crate::http::Bounds`].
    #[error("more than {HEAD_FIELDS_MAX} header fields, or {NEXT_HOP_HEAD_FIELDS_MAX} from another sidecar")]
    TooManyFields,
    /// RFC 9112 section 6.3.
    #[error("Content-Length and Transfer-Encoding in one response")]
    LengthWithEncoding,
    /// RFC 9112 section 6.3.
    #[error("more than one Content-Length")]
    RepeatedLength,
    /// RFC 9110 section 8.6.
    #[error("Content-Length is not a number of decimal digits below 2^64")]
    BadLength,
    /// RFC 9112 section 6.1.
    #[error("Transfer-Encoding is not exactly one `chunked`, or it comes from an HTTP/1.0 server")]
    BadEncoding,
    /// RFC 9110 section 7.6.1.
    #[error("Connection has an option that is not a token, nominates a field that must stay, or has too many options")]
    BadConnection,
}

impl BadResponse {
    /// A stable short name for the access log.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::StatusLine => "upstream_http1.status_line",
            Self::Status => "upstream_http1.status",
            Self::Version => "upstream_http1.version",
            Self::BareLf => "upstream_http1.bare_lf",
            Self::BareCr => "upstream_http1.bare_cr",
            Self::Nul => "upstream_http1.nul",
            Self::ObsFold => "upstream_http1.obs_fold",
            Self::FieldLine => "upstream_http1.field_line",
            Self::HeadTooLarge => "upstream_http1.head_too_large",
            Self::TooManyFields => "upstream_http1.too_many_fields",
            Self::LengthWithEncoding => "upstream_http1.length_with_encoding",
            Self::RepeatedLength => "upstream_http1.repeated_length",
            Self::BadLength => "upstream_http1.bad_length",
            Self::BadEncoding => "upstream_http1.bad_encoding",
            Self::BadConnection => "upstream_http1.bad_connection",
        }
    }
}

impl From<Refusal> for BadResponse {
    /// The rules about field lines are the same on both sides; only their names in the log differ.
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::BareLf => Self::BareLf,
            Refusal::BareCr => Self::BareCr,
            Refusal::Nul => Self::Nul,
            Refusal::ObsFold | Refusal::SpaceBeforeFirstField => Self::ObsFold,
            Refusal::HeadTooLarge => Self::HeadTooLarge,
            Refusal::TooManyFields => Self::TooManyFields,
            Refusal::LengthWithEncoding => Self::LengthWithEncoding,
            Refusal::RepeatedLength => Self::RepeatedLength,
            Refusal::BadLength => Self::BadLength,
            Refusal::BadEncoding | Refusal::EncodingUnsupported | Refusal::EncodingOnHttp10 => Self::BadEncoding,
            Refusal::BadConnection | Refusal::NominatedField | Refusal::TooManyConnectionOptions => Self::BadConnection,
            Refusal::VersionUnsupported | Refusal::BadVersion | Refusal::NoVersion => Self::Version,
            _ => Self::FieldLine,
        }
    }
}

/// A body whose framing is broken. From a client: 400 if nothing was answered yet; from either side: the message on
/// the other side is aborted, never ended as if it were whole.
#[derive(Error, Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ChunkError {
    /// RFC 9112 section 7.1, stricter: 1 to 16 hexadecimal digits and nothing around them.
    #[error("a chunk size is not 1 to 16 hexadecimal digits followed by CR LF or an extension")]
    Size,
    /// A control character, CR without LF or LF without CR.
    #[error("a chunk extension with a control character")]
    Extension,
    /// See [`CHUNK_EXTENSION_BYTES_MAX`].
    #[error("more than {CHUNK_EXTENSION_BYTES_MAX} bytes of chunk extensions")]
    ExtensionTooLarge,
    /// The data is longer than its chunk size said.
    #[error("chunk data is not followed by CR LF")]
    DataEnd,
    /// A trailer line that is not NAME: VALUE CR LF.
    #[error("a trailer line is not NAME: VALUE")]
    Trailer,
    /// See [`TRAILER_BYTES_MAX`] and [`TRAILER_FIELDS_MAX`].
    #[error("a trailer section of more than {TRAILER_BYTES_MAX} bytes or {TRAILER_FIELDS_MAX} fields")]
    TrailerTooLarge,
    /// The peer closed before the end of the body.
    #[error("the body ends early")]
    Truncated,
}

impl ChunkError {
    /// The status of the answer when a client sent this body: always 400.
    #[must_use]
    pub fn status(self) -> u16 {
        400
    }

    /// A stable short name for the access log.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Size => "http1.chunk_size",
            Self::Extension => "http1.chunk_extension",
            Self::ExtensionTooLarge => "http1.chunk_extension_too_large",
            Self::DataEnd => "http1.chunk_data_end",
            Self::Trailer => "http1.trailer",
            Self::TrailerTooLarge => "http1.trailer_too_large",
            Self::Truncated => "http1.truncated_body",
        }
    }

    /// Likewise, when an upstream sent it.
    #[must_use]
    pub fn upstream_code(self) -> &'static str {
        match self {
            Self::Size => "upstream_http1.chunk_size",
            Self::Extension => "upstream_http1.chunk_extension",
            Self::ExtensionTooLarge => "upstream_http1.chunk_extension_too_large",
            Self::DataEnd => "upstream_http1.chunk_data_end",
            Self::Trailer => "upstream_http1.trailer",
            Self::TrailerTooLarge => "upstream_http1.trailer_too_large",
            Self::Truncated => "upstream_http1.truncated_body",
        }
    }
}
