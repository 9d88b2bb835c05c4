//! Requests that must go no further: TRACE and OPTIONS with Max-Forwards 0 (RFC 9110 section 7.6.2).

use meshring_core::http::{
    KindSet,
    head::Method,
    kind::FieldKind,
    serialize::{self, HeaderEdits, RequestOut},
};

use super::local::Response;
use crate::route::Request;

/// What a TRACE does not send back (RFC 9110 section 9.3.8): a script that cannot read these fields must not learn them here.
#[derive(Debug)]
struct Secrets;

impl HeaderEdits for Secrets {
    fn is_empty(&self) -> bool {
        false
    }

    fn removes(&self, name: &[u8]) -> bool {
        name.eq_ignore_ascii_case(b"proxy-authorization")
    }

    fn append(&self, _out: &mut Vec<u8>) {}
}

const SECRET: KindSet = KindSet::of(&[FieldKind::Authorization, FieldKind::Cookie, FieldKind::XForwardedClientCert]);

/// Writes the body of the answer into `body` and returns the answer: for TRACE the request as we understood it, for OPTIONS
/// nothing but that somebody is there.
pub(crate) fn answer<'a>(request: &Request<'_>, body: &'a mut Vec<u8>) -> Response<'a> {
    body.clear();
    if request.head.method != Method::Trace {
        return Response { status: 200, content_type: "", body, extra: b"" };
    }
    let how = RequestOut { drop: SECRET, ..RequestOut::new(request.head, &Secrets) };
    serialize::request_head(body, request.bytes, request.head, request.fields, &how);
    Response { status: 200, content_type: "message/http", body, extra: b"" }
}
