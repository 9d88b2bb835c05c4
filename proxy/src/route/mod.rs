//! Which virtual host, rule and destination serve a request. The lookup itself is core's; here is what it looks at.

use meshring_core::{
    http::{fields::Fields, head::Span, request::RequestHead},
    id::{ClusterId, OriginId},
    table::{
        lookup::{NoRoute, RequestView, Selected, Silent, UriMatch},
        model::{
            ArchivedAction, ArchivedDestination, ArchivedDirectResponse, ArchivedRedirect, ArchivedRoute, PORT_ANY,
            PathNormalization,
        },
    },
};

use crate::{balance::Random, worker::generation::Pinned};

/// A parsed request head with the buffer that it lies in.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) head: &'a RequestHead,
    pub(crate) fields: &'a Fields,
    /// The path in its normal form, as it goes upstream.
    pub(crate) path: &'a [u8],
    /// The same without path parameters, as rules are matched against it.
    pub(crate) rule_path: &'a [u8],
    /// How far the path was normalised.
    pub(crate) level: PathNormalization,
    /// Whether its scheme is https.
    pub(crate) is_https: bool,
}

impl<'a> Request<'a> {
    /// The normalised path, where it is not the received one.
    pub(crate) fn replaced_path(&self) -> Option<&'a [u8]> {
        (self.path != self.head.path_of(self.bytes)).then_some(self.path)
    }

    /// The text of a span.
    pub(crate) fn text(&self, span: Span) -> &[u8] {
        span.of(self.bytes)
    }
}

impl RequestView for Request<'_> {
    fn method(&self) -> &[u8] {
        self.text(self.head.method_name)
    }

    fn scheme(&self) -> &[u8] {
        if self.is_https { b"https" } else { b"http" }
    }

    fn authority(&self) -> &[u8] {
        self.text(self.head.authority_full)
    }

    #[expect(clippy::misnamed_getters, reason = "what rules call the path is not all of what the upstream gets")]
    fn path(&self) -> &[u8] {
        self.rule_path
    }

    fn query(&self) -> Option<&[u8]> {
        self.head.query.map(|span| self.text(span))
    }

    fn any_header(&self, name: &str, predicate: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        // Several lines are one list: a rule that saw only the first could be passed by sending two.
        let mut scratch = Vec::new();
        self.fields.joined(self.bytes, name.as_bytes(), &mut scratch).is_some_and(predicate)
    }
}

/// What to do with a request, borrowed from the generation that it runs on.
pub(crate) enum Decision<'g> {
    /// Forward.
    Forward(Forward<'g>),
    /// Answer with a redirect.
    Redirect {
        rule: &'g ArchivedRoute,
        redirect: &'g ArchivedRedirect,
        /// Of the virtual host, where it is for one.
        service_port: Option<u16>,
    },
    /// Answer with a fixed response.
    Direct(&'g ArchivedRoute, &'g ArchivedDirectResponse),
}

/// A rule that forwards, with the destination that the dice chose.
#[derive(Clone, Copy)]
pub(crate) struct Forward<'g> {
    pub(crate) rule: &'g ArchivedRoute,
    pub(crate) destination: &'g ArchivedDestination,
    pub(crate) uri: UriMatch,
}

impl Forward<'_> {
    /// The chosen cluster.
    pub(crate) fn cluster(&self) -> ClusterId {
        ClusterId::from(&self.destination.cluster)
    }
}

/// Decides on the pinned generation. `asked_port`: Host's, else the one that an intercepted client meant.
pub(crate) fn decide<'g>(
    pinned: &'g Pinned,
    request: &Request<'_>,
    asked_port: Option<u16>,
    random: &Random,
) -> Result<Decision<'g>, NoRoute> {
    let table = pinned.table();
    let viewpoint = pinned.viewpoint();
    let host = request.text(request.head.authority);
    let (virtual_host, port) = match table.virtual_host(viewpoint, host, asked_port, &mut Silent) {
        // The port of a pod is none of its service, and Host says only which service is meant.
        Err(NoRoute::UnknownPort(_)) if request.head.port.is_none() => {
            (table.virtual_host(viewpoint, host, None, &mut Silent)?, None)
        }
        found => (found?, asked_port),
    };
    let Selected { rule, uri, .. } =
        table.route(pinned.regexes(), viewpoint, virtual_host, request, port, &mut Silent)?;
    Ok(match &rule.action {
        ArchivedAction::Forward { first, count, weight_sum } => {
            let (first, count) = (first.to_native() as usize, count.to_native() as usize);
            let destination = by_weight(&table.destinations[first..first + count], weight_sum.to_native(), random);
            Decision::Forward(Forward { rule, destination, uri })
        }
        ArchivedAction::Redirect(redirect) => {
            let port = table.virtual_hosts[virtual_host.index()].port.to_native();
            Decision::Redirect { rule, redirect, service_port: (port != PORT_ANY).then_some(port) }
        }
        ArchivedAction::DirectResponse(direct) => Decision::Direct(rule, direct),
    })
}

/// Decides on the pinned generation where a tunnel to a host and port leads. There is no path and no field that would belong to
/// what goes through it, so that only a rule without conditions is meant, and only one that forwards.
pub(crate) fn tunnel<'g>(pinned: &'g Pinned, request: &Request<'_>, random: &Random) -> Result<Forward<'g>, NoRoute> {
    let table = pinned.table();
    let RequestHead { authority, port, .. } = *request.head;
    let id = table.virtual_host(pinned.viewpoint(), request.text(authority), port, &mut Silent)?;
    let rule = table.rules(id).iter().find(|rule| rule.matches.is_empty()).ok_or(NoRoute::NoRule(id))?;
    match &rule.action {
        ArchivedAction::Forward { first, count, weight_sum } => {
            let (first, count) = (first.to_native() as usize, count.to_native() as usize);
            let destination = by_weight(&table.destinations[first..first + count], weight_sum.to_native(), random);
            Ok(Forward { rule, destination, uri: UriMatch::None })
        }
        ArchivedAction::Redirect(_) | ArchivedAction::DirectResponse(_) => Err(NoRoute::NoRule(id)),
    }
}

/// One of the destinations of a rule, by their weights.
pub(crate) fn by_weight<'g>(
    destinations: &'g [ArchivedDestination],
    sum: u32,
    random: &Random,
) -> &'g ArchivedDestination {
    if let [only] = destinations {
        return only;
    }
    let mut ticket = random.below(sum);
    for destination in destinations {
        match ticket.checked_sub(destination.weight.to_native()) {
            Some(rest) => ticket = rest,
            None => return destination,
        }
    }
    // Validation has proved that the weights add up to the sum, so a ticket below it has ended the loop.
    unreachable!("a ticket below the sum of the weights belongs to a destination")
}

/// For people: `VirtualService default/reviews (reviews.yaml:4), rule 1 at line 9`.
pub(crate) fn describe_rule(pinned: &Pinned, rule: &ArchivedRoute) -> String {
    let origin = pinned.table().origin(OriginId::from(&rule.origin));
    match rule.line.to_native() {
        0 => origin,
        line => format!("{origin}, http[{}] at line {line}", rule.rule.to_native()),
    }
}
