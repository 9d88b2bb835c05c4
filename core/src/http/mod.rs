//! The HTTP/1.1 codec: bytes in, events out. No I/O, no async, no allocation of its own.
//!
//! It is strict on purpose: where RFC 9112 lets a recipient be lenient, two parsers in a row may disagree about where
//! a message ends, and that is request smuggling. So what is ambiguous is refused, and what is relayed is written anew
//! from what was parsed.
//!
//! - [`request::parse`] and [`response::parse`] read a head into [`Fields`] (spans into the caller's buffer),
//! - [`BodyDecoder`] walks over a body without copying it,
//! - [`path`] makes one spelling of each path, [`forwarding`] the fields that a hop adds,
//! - [`http2`] makes such heads of what came over HTTP/2, and takes ours apart for it; [`grpc`] is what gRPC asks of that,
//! - [`detect`] tells HTTP from other protocols by a connection's first bytes,
//! - [`serialize`] writes the head for the next hop, [`status`] the responses that we make ourselves.

pub mod authority;
pub mod body;
pub mod chunked;
pub mod detect;
pub mod error;
pub mod fields;
pub mod forwarding;
pub mod grpc;
pub mod head;
pub mod http2;
pub mod kind;
pub mod path;
pub mod request;
pub mod response;
pub mod serialize;
pub mod status;

mod lines;
mod rules;
mod target;
mod words;

#[cfg(test)]
mod tests;

pub use body::{BodyDecoder, CHUNK_END, ChunkHeader, Event, LAST_CHUNK, Step, chunk_header, encode_chunk};
pub use error::{BadResponse, ChunkError, Refusal};
pub use fields::{Field, Fields};
pub use head::{BodyFraming, Bounds, HeadScanner, Method, Span, Version};
pub use kind::{FieldKind, KindSet};
pub use path::PathNormalization;
pub use request::{RequestHead, TargetForm};
pub use response::ResponseHead;
pub use serialize::{
    ConnectionOption, HeaderEdits, NoEdits, RequestOut, ResponseOut, Via, request_head, response_head,
};
pub use status::{CONTINUE, write_error_response};
pub use target::check as check_target;
