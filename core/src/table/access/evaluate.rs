//! The decision about one request. No allocation; the cost is that of the rules that the [index](super::index) cannot rule
//! out.

use std::net::IpAddr;

use super::{
    ArchivedAccessCondition, ArchivedAccessRule, ArchivedAccessTerm, ArchivedAccessValue, ArchivedAttribute,
    ArchivedPolicyAction, ArchivedTemplatePart,
    index::{ArchivedAccessIndex, ArchivedRuleRef, joined_service_account},
};
use crate::{limits::ACCESS_OBSERVED_MAX, table::ArchivedTable};

/// What rules can look at. All texts as the proxy has them after its checks: the path normalised, without query and
/// parameters.
pub trait AccessView {
    /// The peer's SPIFFE id without `spiffe://`, from a verified certificate.
    fn principal(&self) -> Option<&[u8]>;
    /// The server name that the client asked for in its handshake.
    fn sni(&self) -> Option<&[u8]>;
    /// The connection's peer.
    fn peer_ip(&self) -> IpAddr;
    /// The original client, by X-Forwarded-For and trusted hops.
    fn remote_ip(&self) -> IpAddr;
    /// The address that the client connected to.
    fn destination_ip(&self) -> IpAddr;
    /// The application's port.
    fn port(&self) -> u16;
    /// The authority as sent, port included.
    fn host(&self) -> &[u8];
    /// As sent.
    fn method(&self) -> &[u8];
    /// The normalised path without query.
    fn path(&self) -> &[u8];
    /// Whether the header of that (lower-case) name satisfies the predicate; several lines are one list.
    fn header(&self, name: &str, predicate: &mut dyn FnMut(&[u8]) -> bool) -> bool;
    /// `ISSUER/SUBJECT` of the verified token.
    fn request_principal(&self) -> Option<&[u8]>;
    /// Whether a value of a claim of the verified token satisfies the predicate: the string, or each string of a list.
    /// `path` are the names from the outermost.
    fn claim<'p>(&self, path: impl Iterator<Item = &'p str> + Clone, predicate: &mut dyn FnMut(&[u8]) -> bool) -> bool;
}

/// Listens to a decision; [`Unheard`] costs nothing. Policies are positions in `Table::authorization`, rules positions in
/// them.
pub trait AccessObserver {
    /// A policy that is not enforced matches: AUDIT, or any action as a dry run. Once for each policy.
    fn observed(&mut self, _policy: u32, _rule: u32) {}
    /// The rule by which the request is allowed. Not heard where no ALLOW policy selects the workload.
    fn allowed_by(&mut self, _policy: u32, _rule: u32) {}
}

/// Hears nothing.
#[derive(Debug, Clone, Copy)]
pub struct Unheard;
impl AccessObserver for Unheard {}

/// Which policies are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// All of them.
    First,
    /// All but CUSTOM: the external authorizer has let the request pass.
    AfterCustom,
}

/// What becomes of a request. Policies are positions in `Table::authorization`, rules positions in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It may pass.
    Allowed,
    /// A DENY policy matches.
    Denied {
        /// The first one in order of evaluation.
        policy: u32,
        /// Its first rule that matches.
        rule: u32,
    },
    /// There are ALLOW policies, and none matches.
    DeniedByDefault,
    /// A CUSTOM policy matches: an external authorizer decides first. Where it allows, ask again with
    /// [`Stage::AfterCustom`].
    Ask {
        /// Position in `Table::ext_authz`.
        ext_authz: u32,
        /// The first one in order of evaluation.
        policy: u32,
        /// Its first rule that matches.
        rule: u32,
    },
}

/// Why a rule does not match: positions in the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// None of `from` holds.
    From,
    /// None of `to` holds.
    To,
    /// This one of `when` does not hold.
    When(usize),
}

const NONE: u64 = u64::MAX;

/// The first match of each action, as order and rule in one number.
struct Matches {
    custom: u64,
    deny: u64,
    allow: u64,
    observed: [u64; ACCESS_OBSERVED_MAX / 64],
}

impl ArchivedTable {
    /// Decides about a request to a workload. `inbound_policy` is [`Viewpoint::policy`](crate::table::lookup::Viewpoint):
    /// without one everybody may come.
    pub fn access(
        &self,
        inbound_policy: Option<usize>,
        stage: Stage,
        view: &impl AccessView,
        observer: &mut impl AccessObserver,
    ) -> Decision {
        let Some(index) = inbound_policy.and_then(|position| self.access_index(position)) else {
            return Decision::Allowed;
        };
        let mut found = Matches { custom: NONE, deny: NONE, allow: NONE, observed: [0; ACCESS_OBSERVED_MAX / 64] };
        index.candidates(view, &mut |candidate| self.consider(index, candidate, stage, view, observer, &mut found));
        let place = |packed: u64| (index.policies[(packed >> 32) as usize].to_native(), packed as u32);
        if found.custom != NONE {
            let (policy, rule) = place(found.custom);
            if let ArchivedPolicyAction::Custom(ext_authz) = self.authorization[policy as usize].action {
                return Decision::Ask { ext_authz: ext_authz.to_native(), policy, rule };
            }
        }
        if found.deny != NONE {
            let (policy, rule) = place(found.deny);
            return Decision::Denied { policy, rule };
        }
        if found.allow != NONE {
            let (policy, rule) = place(found.allow);
            observer.allowed_by(policy, rule);
        } else if index.allows {
            return Decision::DeniedByDefault;
        }
        Decision::Allowed
    }

    /// Decides about a connection of which nothing but its ends is known: a rule about HTTP never allows one, and in the policies of
    /// the other actions what is about HTTP is left out, so that they match more rather than less (Istio's reading of rules for
    /// TCP). One decision for each connection: a scan of all rules will do, and the index, which files rules by what they say about
    /// HTTP, would not.
    pub fn connection_access(
        &self,
        inbound_policy: Option<usize>,
        view: &impl AccessView,
        observer: &mut impl AccessObserver,
    ) -> Decision {
        let Some(index) = inbound_policy.and_then(|position| self.access_index(position)) else {
            return Decision::Allowed;
        };
        let (mut denied, mut allowed) = (None, None);
        for position in index.policies.iter().map(|position| position.to_native()) {
            let policy = &self.authorization[position as usize];
            let is_allow = policy.action == ArchivedPolicyAction::Allow;
            let Some(rule) = policy.rules.iter().position(|rule| rule.matches_connection(view, is_allow)) else {
                continue;
            };
            let rule = rule as u32;
            match policy.action {
                _ if policy.dry_run => observer.observed(position, rule),
                ArchivedPolicyAction::Audit => observer.observed(position, rule),
                ArchivedPolicyAction::Custom(ext_authz) => {
                    return Decision::Ask { ext_authz: ext_authz.to_native(), policy: position, rule };
                }
                ArchivedPolicyAction::Deny => denied = denied.or(Some((position, rule))),
                ArchivedPolicyAction::Allow => allowed = allowed.or(Some((position, rule))),
            }
        }
        match (denied, allowed) {
            (Some((policy, rule)), _) => Decision::Denied { policy, rule },
            (None, Some((policy, rule))) => {
                observer.allowed_by(policy, rule);
                Decision::Allowed
            }
            (None, None) if index.allows => Decision::DeniedByDefault,
            (None, None) => Decision::Allowed,
        }
    }

    /// The index of an inbound policy; `None` where it has no AuthorizationPolicies.
    fn access_index(&self, inbound_policy: usize) -> Option<&ArchivedAccessIndex> {
        self.access_indexes.get(self.access_index_of.get(inbound_policy)?.to_native() as usize)
    }

    /// Whether the rest of the rule's [group](super::index::group) need not be considered.
    fn consider(
        &self,
        index: &ArchivedAccessIndex,
        candidate: &ArchivedRuleRef,
        stage: Stage,
        view: &impl AccessView,
        observer: &mut impl AccessObserver,
        found: &mut Matches,
    ) -> bool {
        let (order, rule) = (candidate.order.to_native(), candidate.rule.to_native());
        let position = index.policies[order as usize].to_native();
        let policy = &self.authorization[position as usize];
        let matches = || policy.rules[rule as usize].failure(view).is_none();
        let best = match policy.action {
            _ if policy.dry_run => None,
            ArchivedPolicyAction::Audit => None,
            ArchivedPolicyAction::Custom(_) if stage == Stage::AfterCustom => return true,
            ArchivedPolicyAction::Custom(_) => Some(&mut found.custom),
            ArchivedPolicyAction::Deny => Some(&mut found.deny),
            ArchivedPolicyAction::Allow => Some(&mut found.allow),
        };
        if let Some(best) = best {
            let packed = u64::from(order) << 32 | u64::from(rule);
            // What comes behind it in its group is later in the order, too.
            if packed >= *best {
                return true;
            }
            let is_match = matches();
            if is_match {
                *best = packed;
            }
            return is_match;
        }
        if stage == Stage::AfterCustom {
            return true;
        }
        let (word, bit) = (order as usize / 64, 1_u64 << (order % 64));
        let told = found.observed.get(word).is_some_and(|word| word & bit != 0);
        let is_match = !told && matches();
        if is_match {
            if let Some(word) = found.observed.get_mut(word) {
                *word |= bit;
            }
            observer.observed(position, rule);
        }
        told || is_match
    }
}

impl ArchivedAccessRule {
    /// Why a request does not match; `None` if it does.
    pub fn failure(&self, view: &impl AccessView) -> Option<Failure> {
        let any = |terms: &[ArchivedAccessTerm]| terms.is_empty() || terms.iter().any(|term| term.holds(view));
        if !any(&self.from) {
            return Some(Failure::From);
        }
        if !any(&self.to) {
            return Some(Failure::To);
        }
        self.when.iter().position(|condition| !condition.holds(view)).map(Failure::When)
    }
}

impl ArchivedAccessRule {
    /// Whether a connection matches, see [`ArchivedTable::connection_access`].
    fn matches_connection(&self, view: &impl AccessView, is_allow: bool) -> bool {
        let terms = || self.from.iter().chain(self.to.iter()).flat_map(|term| term.conditions.iter());
        if is_allow && terms().chain(self.when.iter()).any(|condition| condition.attribute.is_http()) {
            return false;
        }
        let holds = |condition: &ArchivedAccessCondition| condition.attribute.is_http() || condition.holds(view);
        let any = |terms: &[ArchivedAccessTerm]| {
            terms.is_empty() || terms.iter().any(|term| term.conditions.iter().all(holds))
        };
        any(&self.from) && any(&self.to) && self.when.iter().all(holds)
    }
}

impl ArchivedAttribute {
    /// Whether only a request has it, and no connection.
    fn is_http(&self) -> bool {
        match self {
            Self::Principal
            | Self::Namespace
            | Self::ServiceAccount
            | Self::TrustDomain
            | Self::SourceIp
            | Self::RemoteIp
            | Self::Port
            | Self::DestinationIp
            | Self::Sni => false,
            Self::RequestPrincipal
            | Self::Host
            | Self::Method
            | Self::Path
            | Self::Header(_)
            | Self::Audiences
            | Self::Presenter
            | Self::Claim(_) => true,
        }
    }
}

impl ArchivedAccessTerm {
    /// Whether all of its conditions hold.
    pub fn holds(&self, view: &impl AccessView) -> bool {
        self.conditions.iter().all(|condition| condition.holds(view))
    }
}

impl ArchivedAccessCondition {
    /// Whether it holds.
    pub fn holds(&self, view: &impl AccessView) -> bool {
        let fold = matches!(self.attribute, ArchivedAttribute::Host);
        let any = |list: &[ArchivedAccessValue]| {
            visit(view, &self.attribute, &mut |seen| list.iter().any(|value| value.matches(seen, fold)))
        };
        (self.values.is_empty() || any(&self.values)) && (self.not_values.is_empty() || !any(&self.not_values))
    }
}

/// One value that a request has.
#[derive(Debug, Clone, Copy)]
pub(super) enum Seen<'v> {
    Text(&'v [u8]),
    /// Of a header: there, even if it is empty.
    Header(&'v [u8]),
    Ip([u8; 16]),
    Port(u16),
}

/// IPv4 as IPv4-mapped IPv6, and so is what came as that.
fn octets(ip: IpAddr) -> Seen<'static> {
    Seen::Ip(match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    })
}

/// Of `TRUST-DOMAIN/ns/NAMESPACE/sa/NAME` and of every other form.
fn trust_domain(principal: &[u8]) -> &[u8] {
    principal.split(|byte| *byte == b'/').next().unwrap_or_default()
}

/// Namespace and name of `TRUST-DOMAIN/ns/NAMESPACE/sa/NAME`; another form has none.
fn parts_of_workload(principal: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut segments = principal.split(|byte| *byte == b'/').skip(1);
    match [segments.next(), segments.next(), segments.next(), segments.next(), segments.next()] {
        [Some(b"ns"), Some(namespace), Some(b"sa"), Some(name), None] => Some((namespace, name)),
        _ => None,
    }
}

/// Shows each value of an attribute until one is accepted.
pub(super) fn visit(
    view: &impl AccessView,
    attribute: &ArchivedAttribute,
    accept: &mut dyn FnMut(Seen<'_>) -> bool,
) -> bool {
    let mut text = |value: Option<&[u8]>| value.is_some_and(|value| accept(Seen::Text(value)));
    match attribute {
        ArchivedAttribute::Principal => text(view.principal()),
        ArchivedAttribute::RequestPrincipal => text(view.request_principal()),
        ArchivedAttribute::TrustDomain => text(view.principal().map(trust_domain)),
        ArchivedAttribute::Namespace => text(view.principal().and_then(parts_of_workload).map(|parts| parts.0)),
        ArchivedAttribute::ServiceAccount => view
            .principal()
            .and_then(parts_of_workload)
            .is_some_and(|parts| joined_service_account(parts.0, parts.1, |joined| accept(Seen::Text(joined)))),
        ArchivedAttribute::Host => text(Some(view.host())),
        ArchivedAttribute::Method => text(Some(view.method())),
        ArchivedAttribute::Path => text(Some(view.path())),
        ArchivedAttribute::Sni => text(view.sni()),
        ArchivedAttribute::SourceIp => accept(octets(view.peer_ip())),
        ArchivedAttribute::RemoteIp => accept(octets(view.remote_ip())),
        ArchivedAttribute::DestinationIp => accept(octets(view.destination_ip())),
        ArchivedAttribute::Port => accept(Seen::Port(view.port())),
        ArchivedAttribute::Header(name) => view.header(name, &mut |value| accept(Seen::Header(value))),
        ArchivedAttribute::Audiences => view.claim(["aud"].into_iter(), &mut |value| accept(Seen::Text(value))),
        ArchivedAttribute::Presenter => view.claim(["azp"].into_iter(), &mut |value| accept(Seen::Text(value))),
        ArchivedAttribute::Claim(path) => {
            view.claim(path.iter().map(|name| name.as_str()), &mut |value| accept(Seen::Text(value)))
        }
    }
}

impl ArchivedAccessValue {
    /// Whether a value that the request has is meant; `fold`: in any case.
    pub(super) fn matches(&self, seen: Seen<'_>, fold: bool) -> bool {
        let text = match seen {
            Seen::Text(text) | Seen::Header(text) => text,
            Seen::Ip(ip) => {
                return matches!(self, Self::Block { address, length } if masked(ip, *length) == masked(*address, *length));
            }
            Seen::Port(port) => return matches!(self, Self::Port(wanted) if wanted.to_native() == port),
        };
        let equal = |a: &[u8], b: &str| if fold { a.eq_ignore_ascii_case(b.as_bytes()) } else { a == b.as_bytes() };
        match self {
            Self::Exact(wanted) => equal(text, wanted),
            Self::Prefix(wanted) => text.get(..wanted.len()).is_some_and(|start| equal(start, wanted)),
            Self::Suffix(wanted) => {
                let start = text.len().checked_sub(wanted.len());
                start.is_some_and(|start| equal(&text[start..], wanted))
            }
            Self::Present => !text.is_empty() || matches!(seen, Seen::Header(_)),
            Self::Template(parts) => template(parts, text),
            Self::Block { .. } | Self::Port(_) => false,
        }
    }
}

/// Validation has seen to it that behind `{**}` there is at most one text, so one pass is enough.
fn template(parts: &[ArchivedTemplatePart], mut path: &[u8]) -> bool {
    for (at, part) in parts.iter().enumerate() {
        match part {
            ArchivedTemplatePart::Text(text) => match path.strip_prefix(text.as_bytes()) {
                Some(rest) => path = rest,
                None => return false,
            },
            ArchivedTemplatePart::Segment => {
                let end = memchr::memchr(b'/', path).unwrap_or(path.len());
                if end == 0 {
                    return false;
                }
                path = &path[end..];
            }
            ArchivedTemplatePart::Rest => {
                return match parts.get(at + 1) {
                    Some(ArchivedTemplatePart::Text(text)) => path.ends_with(text.as_bytes()),
                    _ => true,
                };
            }
        }
    }
    path.is_empty()
}

/// The first `length` bits of an address.
pub(super) fn masked(address: [u8; 16], length: u8) -> u128 {
    let address = u128::from_be_bytes(address);
    address & u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0)
}
