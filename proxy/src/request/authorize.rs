//! Whether a request may pass to a workload: its tokens (RequestAuthentication), then the AuthorizationPolicies, those with
//! action CUSTOM by asking an external authorizer.

use std::{
    net::{IpAddr, SocketAddr},
    pin::Pin,
    rc::Rc,
    time::{SystemTime, UNIX_EPOCH},
};

use meshring_core::{
    http::{
        forwarding,
        grpc::write_grpc_timeout,
        serialize::{self, HeaderEdits},
    },
    stats::Counter,
    table::{
        access::{AccessObserver, AccessView, Decision, Stage},
        lookup::RequestView as _,
    },
};

use super::{
    denial::Denial,
    ext_authz::{self, Lines, Verdict},
    grpc,
};
use crate::{
    accept::{Direction, Listener},
    policy::{
        Edits,
        jwt::{Claims, Outcome},
    },
    route::Request,
    worker::{Worker, generation::Pinned, secure::peer::Peer},
};

/// What a request that may pass takes along.
#[derive(Debug, Default)]
pub(super) struct Passed<'t> {
    tokens: Option<Outcome<'t>>,
    /// Fields that replace those of the request, from an external authorizer.
    to_upstream: Lines,
    /// Ready lines for the response, likewise.
    pub(super) to_client: Vec<u8>,
    /// The query without a token that must not go on.
    pub(super) query: Option<Vec<u8>>,
}

/// The other end of the connection that a request came over.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) address: IpAddr,
    pub(super) peer: Option<&'a Peer>,
}

impl<'a> Source<'a> {
    fn principal(self) -> Option<&'a [u8]> {
        self.peer.and_then(|peer| peer.identity.as_ref()).map(|identity| identity.principal().as_bytes())
    }

    fn sni(self) -> Option<&'a [u8]> {
        self.peer.and_then(|peer| peer.sni.as_deref()).map(str::as_bytes)
    }
}

/// Judges a request. A gateway's requests are judged like those to an application.
pub(super) async fn authorize<'t>(
    worker: &Rc<Worker>,
    pinned: &'t Pinned,
    listener: &Listener,
    request: &Request<'_>,
    source: Source<'_>,
) -> Result<Passed<'t>, Denial> {
    let mut passed = Passed::default();
    let table = pinned.table();
    let Some(policy) = table.inbound_policy(pinned.viewpoint()) else { return Ok(passed) };
    if let Some(jwt) = pinned.jwt() {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let outcome = jwt.check(table, policy, request, now_s);
        match &outcome {
            Outcome::Refused(_) => {
                let Outcome::Refused(refused) = outcome else { return Ok(passed) };
                return Err(Denial::BadToken(refused));
            }
            Outcome::Valid(valid) => {
                passed.query = request.query().and_then(|query| valid.query_without_token(query));
            }
            Outcome::NoToken => {}
        }
        passed.tokens = Some(outcome);
    }
    if policy.authorization.is_empty() {
        return Ok(passed);
    }
    // What this proxy was told when it was started comes before what is true of the mesh.
    let trusted_hops = worker.tuning.trusted_hops.unwrap_or(table.settings().trusted_hops);
    let view = View { request, source, listener, trusted_hops, claims: passed.claims() };
    let position = pinned.viewpoint().policy;
    let mut observer = Observer { worker, pinned, source };
    let decision = match table.access(position, Stage::First, &view, &mut observer) {
        Decision::Ask { ext_authz, .. } => {
            let authorizer = &table.ext_authz[ext_authz as usize];
            match ask(worker, pinned, request, authorizer).await {
                Verdict::Allow { to_upstream, to_client } => {
                    let decision = table.access(position, Stage::AfterCustom, &view, &mut observer);
                    (passed.to_upstream, passed.to_client) = (to_upstream, to_client);
                    decision
                }
                Verdict::Deny { status, lines, body } => return Err(Denial::External { status, lines, body }),
                Verdict::Failed { status, why } => return Err(Denial::ExternalFailed { status, why }),
            }
        }
        decision => decision,
    };
    let by = match decision {
        // The second time there is nothing left to ask.
        Decision::Allowed | Decision::Ask { .. } => return Ok(passed),
        Decision::Denied { policy, rule } => Some((policy, rule)),
        Decision::DeniedByDefault => None,
    };
    Err(Denial::Forbidden { why: described(pinned, by, source) })
}

/// Judges a tunnel to the application behind a listener. What goes through it is not looked at: only the connection's ends are known.
pub(super) fn authorize_connection(
    worker: &Worker,
    pinned: &Pinned,
    listener: &Listener,
    source: Source<'_>,
) -> Result<(), Denial> {
    let view = ConnectionView { source, listener };
    let mut observer = Observer { worker, pinned, source };
    let by = match pinned.table().connection_access(pinned.viewpoint().policy, &view, &mut observer) {
        Decision::Allowed => return Ok(()),
        // An authorizer over HTTP has nothing to look at.
        Decision::Denied { policy, rule } | Decision::Ask { policy, rule, .. } => Some((policy, rule)),
        Decision::DeniedByDefault => None,
    };
    Err(Denial::Forbidden { why: described(pinned, by, source) })
}

/// Not an `async fn`: its frame is for requests that ask alone.
fn ask<'a>(
    worker: &'a Rc<Worker>,
    pinned: &'a Pinned,
    request: &'a Request<'_>,
    authorizer: &'a meshring_core::table::access::ArchivedExtAuthz,
) -> Pin<Box<dyn Future<Output = Verdict> + 'a>> {
    Box::pin(ext_authz::ask(worker, pinned, request, authorizer))
}

/// Which rule it was, for the log: file and line are for operators.
fn described(pinned: &Pinned, by: Option<(u32, u32)>, source: Source<'_>) -> String {
    let who = source.peer.and_then(|peer| peer.identity.as_ref()).map_or("a client without identity", |id| id.as_str());
    match by {
        None => format!("{who}: no rule of the ALLOW policies matches"),
        Some((policy, rule)) => {
            let policy = &pinned.table().authorization[policy as usize];
            let line = policy.rules.get(rule as usize).map_or(0, |rule| rule.line.to_native());
            format!("{who}: {}, rule {rule} (line {line})", pinned.table().origin((&policy.origin).into()))
        }
    }
}

impl Passed<'_> {
    fn claims(&self) -> Option<Rc<Claims>> {
        match &self.tokens {
            Some(Outcome::Valid(valid)) => Some(Rc::clone(&valid.claims)),
            _ => None,
        }
    }

    /// What changes on the request's head: ours first, then what the rule of its route says (Envoy's order of filters).
    /// `grpc_timeout_ms`: what replaces `grpc-timeout`.
    pub(super) fn edits<'a>(
        &'a self,
        pinned: &'a Pinned,
        route: Edits<'a>,
        grpc_timeout_ms: Option<u64>,
    ) -> Changes<'a> {
        let policy = pinned.table().inbound_policy(pinned.viewpoint());
        let tokens = self.tokens.as_ref().zip(policy).map(|(outcome, policy)| outcome.edits(pinned.table(), policy));
        Changes { tokens, external: &self.to_upstream, route, grpc_timeout_ms }
    }
}

/// All edits of a request's head.
#[derive(Debug)]
pub(super) struct Changes<'a> {
    tokens: Option<crate::policy::jwt::TokenEdits<'a, 'a>>,
    external: &'a Lines,
    route: Edits<'a>,
    grpc_timeout_ms: Option<u64>,
}

impl HeaderEdits for Changes<'_> {
    fn is_empty(&self) -> bool {
        self.tokens.as_ref().is_none_or(HeaderEdits::is_empty)
            && self.external.is_empty()
            && self.route.is_empty()
            && self.grpc_timeout_ms.is_none()
    }

    fn removes(&self, name: &[u8]) -> bool {
        self.route.removes(name)
            || self.tokens.as_ref().is_some_and(|tokens| tokens.removes(name))
            || self.external.iter().any(|(known, _)| name.eq_ignore_ascii_case(known))
            || (self.grpc_timeout_ms.is_some() && name.eq_ignore_ascii_case(grpc::TIMEOUT))
    }

    fn append(&self, out: &mut Vec<u8>) {
        if let Some(tokens) = &self.tokens {
            tokens.append(out);
        }
        for (name, value) in self.external {
            serialize::field(out, name, value);
        }
        if let Some(ms) = self.grpc_timeout_ms.filter(|_| !self.route.removes(grpc::TIMEOUT)) {
            out.extend_from_slice(b"grpc-timeout: ");
            write_grpc_timeout(out, ms);
            out.extend_from_slice(b"\r\n");
        }
        self.route.append(out);
    }
}

/// What policies see of a request.
struct View<'a> {
    request: &'a Request<'a>,
    source: Source<'a>,
    listener: &'a Listener,
    trusted_hops: u8,
    claims: Option<Rc<Claims>>,
}

impl AccessView for View<'_> {
    fn principal(&self) -> Option<&[u8]> {
        self.source.principal()
    }

    fn sni(&self) -> Option<&[u8]> {
        self.source.sni()
    }

    fn peer_ip(&self) -> IpAddr {
        self.source.address
    }

    fn remote_ip(&self) -> IpAddr {
        let Request { bytes, fields, .. } = *self.request;
        forwarding::client_address(bytes, fields, self.source.address, self.trusted_hops)
    }

    fn destination_ip(&self) -> IpAddr {
        destination(self.listener).ip()
    }

    fn port(&self) -> u16 {
        destination(self.listener).port()
    }

    fn host(&self) -> &[u8] {
        self.request.authority()
    }

    fn method(&self) -> &[u8] {
        self.request.method()
    }

    #[expect(clippy::misnamed_getters, reason = "what rules call the path is not all of what the application gets")]
    fn path(&self) -> &[u8] {
        self.request.rule_path
    }

    fn header(&self, name: &str, predicate: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.request.any_header(name, predicate)
    }

    fn request_principal(&self) -> Option<&[u8]> {
        self.claims.as_ref().and_then(|claims| claims.principal()).map(str::as_bytes)
    }

    fn claim<'p>(&self, path: impl Iterator<Item = &'p str> + Clone, predicate: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let mut found = false;
        if let Some(claims) = &self.claims {
            claims.claim(path, &mut |value| found = found || predicate(value.as_bytes()));
        }
        found
    }
}

/// What policies call the destination.
fn destination(listener: &Listener) -> SocketAddr {
    match (listener.address, listener.direction) {
        // A listener on all addresses does not say which one was meant: the application's is.
        (address, Direction::Inbound { application }) if address.ip().is_unspecified() => application,
        (address, Direction::Inbound { application }) => SocketAddr::new(address.ip(), application.port()),
        (address, Direction::Outbound | Direction::Hbone) => address,
    }
}

/// What policies see of a connection.
struct ConnectionView<'a> {
    source: Source<'a>,
    listener: &'a Listener,
}

/// What belongs to HTTP is not asked for.
impl AccessView for ConnectionView<'_> {
    fn principal(&self) -> Option<&[u8]> {
        self.source.principal()
    }

    fn sni(&self) -> Option<&[u8]> {
        self.source.sni()
    }

    fn peer_ip(&self) -> IpAddr {
        self.source.address
    }

    fn remote_ip(&self) -> IpAddr {
        self.source.address
    }

    fn destination_ip(&self) -> IpAddr {
        destination(self.listener).ip()
    }

    fn port(&self) -> u16 {
        destination(self.listener).port()
    }

    fn host(&self) -> &[u8] {
        b""
    }

    fn method(&self) -> &[u8] {
        b""
    }

    fn path(&self) -> &[u8] {
        b""
    }

    fn header(&self, _name: &str, _predicate: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        false
    }

    fn request_principal(&self) -> Option<&[u8]> {
        None
    }

    fn claim<'p>(
        &self,
        _path: impl Iterator<Item = &'p str> + Clone,
        _predicate: &mut dyn FnMut(&[u8]) -> bool,
    ) -> bool {
        false
    }
}

/// Writes down what policies that are not enforced would have done.
struct Observer<'a> {
    worker: &'a Worker,
    pinned: &'a Pinned,
    source: Source<'a>,
}

impl AccessObserver for Observer<'_> {
    fn observed(&mut self, policy: u32, rule: u32) {
        self.worker.stats.add(Counter::AccessObserved, 1);
        let what = described(self.pinned, Some((policy, rule)), self.source);
        self.worker.log_refusal("access_observed", None, &format_args!("not enforced (AUDIT or dry run): {what}"));
    }
}
