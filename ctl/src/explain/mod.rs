//! Why a request goes where it goes. Runs the proxies' own lookup over the active snapshot and listens to it, so that
//! the answer cannot differ from what a proxy does.

mod access;
mod condition;
mod question;
mod report;
mod rewrite;
mod spoken;
mod stream;
mod target;
mod text;

use meshring_core::{
    http::Refusal,
    id::{ClusterId, OriginId, RouteId, VirtualHostId},
    snapshot::Snapshot,
    table::{
        ArchivedTable,
        lookup::{NoRoute, Observer, Selected, Viewpoint},
        model::{
            ArchivedAction, ArchivedBalancePolicy, ArchivedClusterKind, ArchivedCondition, ArchivedDestination,
            ArchivedHeaderOp, ArchivedRedirectPort, ArchivedRoute, PORT_ANY, SCOPE_ALL,
        },
    },
};

use self::{
    access::Sent,
    condition::{actual, expected},
};
use crate::spec::World;

pub use {
    access::{Authorizer, Connection, DecidedBy, FoundAccess, FoundPolicy, FoundRule},
    question::{BadQuestion, Question, Stream},
    report::{
        ChosenRule, Explanation, FailedMatch, FoundDestination, FoundHost, Hop, MeshSettings, Refused, SkippedRule,
        Step,
    },
    spoken::Spoken,
    target::SeenPath,
};

/// Endpoints that are listed per destination; the count says how many there are.
const ENDPOINTS_LISTED_MAX: u32 = 8;
/// Similar names that are suggested for an unknown host.
const SUGGESTIONS_MAX: usize = 3;

/// Remembers what the lookup says.
#[derive(Default)]
struct Recorder {
    resolution: Vec<Step>,
    /// Route, alternative, and where the condition stands in the alternative's list.
    failed: Vec<(RouteId, usize, String, String)>,
}

struct Listening<'a> {
    recorder: &'a mut Recorder,
    table: &'a ArchivedTable,
    question: &'a Question,
    viewpoint: &'a Viewpoint,
}

impl Observer for Listening<'_> {
    fn domain(&mut self, name: &[u8], found: bool) {
        self.recorder.resolution.push(Step { name: shown_domain(&String::from_utf8_lossy(name)), found });
    }

    fn failed(&mut self, route: RouteId, alternative: usize, condition: &ArchivedCondition) {
        let expected = expected(self.table, condition);
        let actual = actual(condition, self.question, self.viewpoint);
        self.recorder.failed.push((route, alternative, expected, actual));
    }
}

/// Explains a request against a snapshot. The world tells whose addresses the endpoints are.
#[must_use]
pub fn explain(snapshot: &Snapshot, world: &World, question: &Question) -> Explanation {
    let table = snapshot.table();
    let viewpoint = Viewpoint::resolve(table, &question.namespace, &question.workload);
    let mut explanation = Explanation {
        generation: snapshot.generation(),
        request: question.to_string(),
        labels: viewpoint.labels.iter().map(|(key, value)| format!("{key}={value}")).collect(),
        mesh: table.settings().into(),
        path: SeenPath::default(),
        refusal: None,
        resolution: Vec::new(),
        outcome: String::new(),
        summary: String::new(),
        virtual_host: None,
        skipped: Vec::new(),
        rule: None,
        destinations: Vec::new(),
        access: Vec::new(),
        connections: Vec::new(),
        suggestions: Vec::new(),
    };
    if let Some(connection) = &question.stream {
        let sent = Sent { snapshot, world, question: question.clone() };
        stream::look_up(&sent, &viewpoint, connection, &mut explanation);
        return explanation;
    }
    match SeenPath::of(question, table.settings().path_normalization) {
        Ok(path) => {
            // Rules are matched on the path without parameters.
            let seen = Question { path: path.matched.clone(), ..question.clone() };
            explanation.path = path;
            look_up(snapshot, world, &viewpoint, &seen, &mut explanation);
        }
        Err(refusal) => refused(refusal, &mut explanation),
    }
    explanation
}

fn refused(refusal: Refusal, explanation: &mut Explanation) {
    let refused = Refused::from(refusal);
    explanation.outcome = "refused".to_owned();
    explanation.summary =
        format!("{} {}: {}; nothing goes to an upstream", refused.status, refused.code, refused.reason);
    explanation.refusal = Some(refused);
}

fn look_up(
    snapshot: &Snapshot,
    world: &World,
    viewpoint: &Viewpoint,
    question: &Question,
    explanation: &mut Explanation,
) {
    let table = snapshot.table();
    let mut recorder = Recorder::default();
    let mut listening = Listening { recorder: &mut recorder, table, question, viewpoint };
    let host = table.virtual_host(viewpoint, question.host.as_bytes(), question.port, &mut listening);
    let route =
        host.and_then(|host| table.route(snapshot.regexes(), viewpoint, host, question, question.port, &mut listening));
    explanation.virtual_host = host.ok().map(|host| found_host(table, host));
    explanation.skipped = skipped(table, &recorder);
    explanation.resolution = recorder.resolution;
    match route {
        Ok(selected) => {
            let sent = Sent { snapshot, world, question: question.clone() };
            chosen(sent, &selected, explanation);
        }
        Err(why) => nothing(table, question, &why, explanation),
    }
}

fn nothing(table: &ArchivedTable, question: &Question, why: &NoRoute, explanation: &mut Explanation) {
    let (outcome, summary) = match why {
        NoRoute::UnknownHost => {
            explanation.suggestions = suggestions(table, &question.host);
            let namespace = &question.namespace;
            ("unknown_host", format!("404: nothing that namespace {namespace} can see has the host {}", question.host))
        }
        NoRoute::UnknownPort(port) => {
            ("unknown_port", format!("404: the host {} is known, but not on port {port}", question.host))
        }
        NoRoute::NoRule(_) => ("no_rule", "404: no rule of the virtual host matches".to_owned()),
    };
    explanation.outcome = outcome.to_owned();
    explanation.summary = summary;
}

fn chosen(mut sent: Sent<'_>, selected: &Selected<'_>, explanation: &mut Explanation) {
    let snapshot = sent.snapshot;
    let table = snapshot.table();
    let rule = selected.rule;
    let origin = table.origin(OriginId::from(&rule.origin));
    let mut chosen = ChosenRule {
        rule: rule_title(rule),
        name: rule.name.to_string(),
        place: rule_place(&origin, rule.line.to_native()),
        because: because(&origin, rule, selected.alternative),
        timeout_ms: rule.timeout_ms.to_native(),
        answer: None,
        rewrite: Vec::new(),
        request_headers: Vec::new(),
        response_headers: Vec::new(),
    };
    if let Some(options) = rule.options.as_ref() {
        chosen.request_headers = header_ops(&options.request_headers);
        chosen.response_headers = header_ops(&options.response_headers);
        access::edit(&mut sent.question, &options.request_headers);
        if let Some(rewrite) = options.rewrite.as_ref() {
            match rewrite::changes(snapshot, rewrite, selected.uri, &explanation.path) {
                Ok(changes) => {
                    if let Some(path) = changes.path {
                        sent.question.path = access::matched_path(&path);
                    }
                    if let Some(authority) = rewrite.authority.as_ref() {
                        sent.question.authority = authority.to_string();
                    }
                    chosen.rewrite = changes.shown;
                }
                Err(refusal) => {
                    explanation.rule = Some(chosen);
                    return refused(refusal, explanation);
                }
            }
        }
    }
    let place =
        if rule.line.to_native() == 0 { origin.clone() } else { format!("rule {} at {}", chosen.rule, chosen.place) };
    match &rule.action {
        ArchivedAction::Forward { first, count, weight_sum } => {
            let range = first.to_native() as usize..(first.to_native() + count.to_native()) as usize;
            let destinations = &table.destinations[range];
            explanation.destinations =
                destinations.iter().map(|d| destination(&sent, d, weight_sum.to_native())).collect();
            explanation.access = access(&sent, destinations);
            explanation.outcome = "forward".to_owned();
            explanation.summary = forward_summary(&explanation.destinations, &place);
        }
        ArchivedAction::Redirect(redirect) => {
            let answer = redirect_text(redirect);
            explanation.outcome = "redirect".to_owned();
            explanation.summary = format!("answered by the proxy with {answer} ({place})");
            chosen.answer = Some(answer);
        }
        ArchivedAction::DirectResponse(response) => {
            let answer = format!("status {} and a body of {} bytes", response.status, response.body.len());
            explanation.outcome = "direct_response".to_owned();
            explanation.summary = format!("answered by the proxy with {answer} ({place})");
            chosen.answer = Some(answer);
        }
    }
    explanation.rule = Some(chosen);
}

/// What workloads say to a request, for destinations that get any.
fn access(sent: &Sent<'_>, destinations: &[ArchivedDestination]) -> Vec<FoundAccess> {
    let mut found = Vec::new();
    for destination in destinations.iter().filter(|destination| destination.weight.to_native() > 0) {
        let mut question = sent.question.clone();
        if let Some(headers) = destination.headers.as_ref() {
            access::edit(&mut question, &headers.request);
        }
        let cluster = sent.snapshot.table().cluster(ClusterId::from(&destination.cluster));
        access::of_cluster(&Sent { question, ..*sent }, cluster, &mut found);
    }
    found
}

fn forward_summary(destinations: &[FoundDestination], place: &str) -> String {
    let share = |d: &FoundDestination| match (&d.problem, d.endpoint_count) {
        (None, _) => format!("{:.4} % to {}", d.percent, d.cluster).replace(".0000 %", " %"),
        (Some(problem), _) => {
            format!("{:.4} % to {}, which means 503: {problem}", d.percent, d.cluster).replace(".0000 %", " %")
        }
    };
    format!("{} ({place})", destinations.iter().map(share).collect::<Vec<_>>().join(", "))
}

fn destination(sent: &Sent<'_>, destination: &ArchivedDestination, weight_sum: u32) -> FoundDestination {
    let table = sent.snapshot.table();
    let cluster = table.cluster(ClusterId::from(&destination.cluster));
    let (weight, endpoint_count) = (destination.weight.to_native(), cluster.count.to_native());
    let listed = 0..endpoint_count.min(ENDPOINTS_LISTED_MAX);
    let problem = match cluster.kind {
        ArchivedClusterKind::NoSuchService => Some("no Service and no ServiceEntry defines its host"),
        ArchivedClusterKind::NoSuchSubset => Some("no DestinationRule defines its subset"),
        ArchivedClusterKind::NoSuchPort => Some("the service does not have its port"),
        ArchivedClusterKind::Static if endpoint_count == 0 => Some("it has no endpoint"),
        ArchivedClusterKind::Static | ArchivedClusterKind::OriginalDestination => None,
    };
    let policy = match (&cluster.kind, &cluster.policy) {
        (ArchivedClusterKind::OriginalDestination, _) => "the address that the client meant",
        (_, ArchivedBalancePolicy::LeastRequest) => "LEAST_REQUEST",
        (_, ArchivedBalancePolicy::RoundRobin) => "ROUND_ROBIN",
        (_, ArchivedBalancePolicy::Random) => "RANDOM",
    };
    let headers = destination.headers.as_ref();
    FoundDestination {
        cluster: cluster.name.to_string(),
        weight,
        percent: 100.0 * f64::from(weight) / f64::from(weight_sum.max(1)),
        policy: policy.to_owned(),
        spoken: match cluster.kind {
            ArchivedClusterKind::Static | ArchivedClusterKind::OriginalDestination => {
                Spoken::with(sent.world, cluster, &sent.question.namespace)
            }
            _ => Spoken::default(),
        },
        endpoint_count,
        endpoints: listed.map(|at| table.address(table.endpoint_of(cluster, at)).to_string()).collect(),
        problem: problem.map(str::to_owned),
        request_headers: headers.map(|headers| header_ops(&headers.request)).unwrap_or_default(),
        response_headers: headers.map(|headers| header_ops(&headers.response)).unwrap_or_default(),
    }
}

fn header_ops(ops: &[ArchivedHeaderOp]) -> Vec<String> {
    let shown = |op: &ArchivedHeaderOp| match op {
        ArchivedHeaderOp::Remove { name } => format!("remove {name}"),
        ArchivedHeaderOp::Set { name, value } => format!("set {name}: {value}"),
        ArchivedHeaderOp::Add { name, value } => format!("add {name}: {value}"),
    };
    ops.iter().map(shown).collect()
}

fn redirect_text(redirect: &meshring_core::table::model::ArchivedRedirect) -> String {
    let mut text = format!("a redirect {} to", redirect.status);
    for (what, value) in [("scheme", &redirect.scheme), ("host", &redirect.authority), ("path", &redirect.uri)] {
        if let Some(value) = value.as_ref() {
            text.push_str(&format!(" {what} {value}"));
        }
    }
    match redirect.port {
        ArchivedRedirectPort::Keep => {}
        ArchivedRedirectPort::Fixed(port) => text.push_str(&format!(" port {port}")),
        ArchivedRedirectPort::ProtocolDefault => text.push_str(" the scheme's default port"),
        ArchivedRedirectPort::RequestPort => text.push_str(" the port that the request came in on"),
    }
    text
}

fn found_host(table: &ArchivedTable, id: VirtualHostId) -> FoundHost {
    let host = &table.virtual_hosts[id.index()];
    let covers = |first: u32, count: u32| (first..first + count).contains(&id.0);
    let domain = table.domains.iter().find(|domain| covers(domain.first.to_native(), domain.count.to_native()));
    let scope = host.scope.to_native();
    FoundHost {
        domain: domain.map(|domain| shown_domain(&domain.name)).unwrap_or_default(),
        port: host.port.to_native(),
        scope: (scope != SCOPE_ALL).then(|| table.namespaces[scope as usize].to_string()),
        origin: table.origin(OriginId::from(&host.origin)),
        rules: host.count.to_native(),
    }
}

fn skipped(table: &ArchivedTable, recorder: &Recorder) -> Vec<SkippedRule> {
    let mut rules: Vec<(RouteId, SkippedRule)> = Vec::new();
    for (route, alternative, expected, actual) in &recorder.failed {
        let rule = &table.routes[route.index()];
        let origin = table.origin(OriginId::from(&rule.origin));
        if rules.last().is_none_or(|(last, _)| last != route) {
            let place = rule_place(&origin, rule.line.to_native());
            let skipped =
                SkippedRule { rule: rule_title(rule), name: rule.name.to_string(), place, alternatives: Vec::new() };
            rules.push((*route, skipped));
        }
        if let Some((_, skipped)) = rules.last_mut() {
            skipped.alternatives.push(FailedMatch {
                alternative: format!("match[{alternative}]"),
                place: rule_place(&origin, rule.matches[*alternative].line.to_native()),
                expected: expected.clone(),
                actual: actual.clone(),
            });
        }
    }
    rules.into_iter().map(|(_, rule)| rule).collect()
}

fn rule_title(rule: &ArchivedRoute) -> String {
    format!("http[{}]", rule.rule)
}

/// `VirtualService default/reviews (reviews.yaml:4)` and line 10: `reviews.yaml:10`. A route that no rule describes has
/// no line of its own: then the place of the resource.
fn rule_place(origin: &str, line: u32) -> String {
    let place = origin.rsplit_once(" (").and_then(|(_, place)| place.strip_suffix(')')).unwrap_or(origin);
    match place.rsplit_once(':') {
        Some((file, _)) if line > 0 => format!("{file}:{line}"),
        _ => place.to_owned(),
    }
}

fn because(origin: &str, rule: &ArchivedRoute, alternative: usize) -> String {
    match rule.matches.get(alternative) {
        Some(found) => {
            let name = if found.name.is_empty() { String::new() } else { format!(" ({})", found.name) };
            format!("match[{alternative}]{name} at {} holds", rule_place(origin, found.line.to_native()))
        }
        None if rule.line.to_native() == 0 => {
            "no VirtualService has this host: requests go to the service itself".to_owned()
        }
        None => "it has no match: it takes every request".to_owned(),
    }
}

fn shown_domain(name: &str) -> String {
    if name.starts_with('.') { format!("*{name}") } else { name.to_owned() }
}

fn suggestions(table: &ArchivedTable, host: &str) -> Vec<String> {
    let first_label = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let likeness = |name: &str| {
        let whole = strsim::jaro_winkler(name, host);
        whole.max(strsim::jaro_winkler(&first_label(name), &first_label(host)))
    };
    let mut known: Vec<(f64, String)> = table
        .domains
        .iter()
        .map(|domain| (likeness(domain.name.trim_start_matches('.')), shown_domain(&domain.name)))
        .filter(|(likeness, _)| *likeness > 0.8)
        .collect();
    known.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    known.into_iter().take(SUGGESTIONS_MAX).map(|(_, name)| name).collect()
}

/// `any port`, or the number.
fn shown_port(port: u16) -> String {
    if port == PORT_ANY { "any port".to_owned() } else { format!("port {port}") }
}
