//! Why a request goes where it goes. Runs the proxies' own lookup over the active snapshot and listens to it, so that
//! the answer cannot differ from what a proxy does.

mod access;
mod question;
mod rewrite;
mod spoken;
mod stream;
mod target;
mod text;

use meshring_core::{
    http::Refusal,
    id::{ClusterId, Generation, NamespaceId, OriginId, RegexId, RouteId, VirtualHostId},
    snapshot::Snapshot,
    table::{
        ArchivedTable,
        lookup::{NoRoute, Observer, RequestView, Selected, Viewpoint},
        model::{
            ArchivedAction, ArchivedBalancePolicy, ArchivedClusterKind, ArchivedCondition, ArchivedDestination,
            ArchivedHeaderOp, ArchivedRedirectPort, ArchivedRoute, ArchivedStringMatch, PORT_ANY, SCOPE_ALL, Settings,
        },
    },
};
use serde::{Deserialize, Serialize};

use self::access::Sent;
use crate::spec::World;

pub use {
    access::{Authorizer, Connection, DecidedBy, FoundAccess, FoundPolicy, FoundRule},
    question::{BadQuestion, Question, Stream},
    spoken::Spoken,
    target::SeenPath,
};

/// Endpoints that are listed per destination; the count says how many there are.
const ENDPOINTS_LISTED_MAX: u32 = 8;
/// Similar names that are suggested for an unknown host.
const SUGGESTIONS_MAX: usize = 3;

/// The whole story of one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The generation that decides.
    pub generation: Generation,
    /// The request in one line: `GET http://reviews/ from default/productpage-v1`.
    pub request: String,
    /// Labels of the calling workload, where the configuration knows it.
    pub labels: Vec<String>,
    /// What holds for every request of this generation.
    #[serde(default)]
    pub mesh: MeshSettings,
    /// The path as rules and the upstream see it.
    #[serde(default)]
    pub path: SeenPath,
    /// Why the request is answered with an error: before anything is looked up, or for what a rewrite makes of its path.
    #[serde(default)]
    pub refusal: Option<Refused>,
    /// Names that were looked for, in this order.
    pub resolution: Vec<Step>,
    /// What decides: `forward`, `http` (of a connection: its requests do), `no_service`, `redirect`, `direct_response`, `unknown_host`, `unknown_port`, `no_rule`, `refused`.
    pub outcome: String,
    /// The same for people.
    pub summary: String,
    /// The virtual host that was found.
    pub virtual_host: Option<FoundHost>,
    /// Rules before the chosen one, and why they do not match.
    pub skipped: Vec<SkippedRule>,
    /// The chosen rule.
    pub rule: Option<ChosenRule>,
    /// Where to, by weight.
    pub destinations: Vec<FoundDestination>,
    /// What the workloads there say to it: each answer once.
    #[serde(default)]
    pub access: Vec<FoundAccess>,
    /// Which way the connections take, hop by hop: around TCP, or by it.
    #[serde(default)]
    pub connections: Vec<Hop>,
    /// Known names that resemble an unknown host.
    pub suggestions: Vec<String>,
}

/// A connection that the request would use, on the caller's side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// `application to proxy`, `proxy to 127.0.0.1:9080`.
    pub between: String,
    /// `bypass` or `tcp`, and why.
    pub path: String,
}

/// What holds for every request (Istio `MeshConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MeshSettings {
    /// `pathNormalization.normalization`.
    pub path_normalization: String,
    /// `defaultConfig.gatewayTopology.numTrustedProxies`.
    pub trusted_hops: u8,
    /// Whether a request without `X-Request-Id` gets one.
    pub request_id: bool,
}

impl From<Settings> for MeshSettings {
    fn from(settings: Settings) -> Self {
        let Settings { path_normalization, trusted_hops, request_id, .. } = settings;
        Self { path_normalization: path_normalization.as_str().to_owned(), trusted_hops, request_id }
    }
}

impl std::fmt::Display for MeshSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (hops, ids) = (self.trusted_hops, if self.request_id { "added" } else { "not added" });
        write!(f, "paths {}, trusted hops {hops}, request ids {ids}", self.path_normalization)
    }
}

/// A request that a proxy answers with an error and forwards to nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The status of the answer.
    pub status: u16,
    /// As the access log has it: `http1.path_escapes_root`.
    pub code: String,
    /// In words.
    pub reason: String,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { status: refusal.status(), code: refusal.code().to_owned(), reason: refusal.to_string() }
    }
}

/// A name that was looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The name, wildcards as `*.example.com`.
    pub name: String,
    /// Whether the table has it. It may still be invisible to the caller, or not on this port.
    pub found: bool,
}

/// The virtual host that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundHost {
    /// Its domain.
    pub domain: String,
    /// The service port, 0 for any.
    pub port: u16,
    /// The only namespace that sees it, where there is one.
    pub scope: Option<String>,
    /// `VirtualService default/reviews (reviews.yaml:4)`.
    pub origin: String,
    /// Number of rules.
    pub rules: u32,
}

/// A rule that does not match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedRule {
    /// `http[0]`.
    pub rule: String,
    /// Its name, or empty.
    pub name: String,
    /// `reviews.yaml:10`.
    pub place: String,
    /// The condition that fails, per alternative.
    pub alternatives: Vec<FailedMatch>,
}

/// The first condition of a match that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedMatch {
    /// `match[0]`.
    pub alternative: String,
    /// `reviews.yaml:12`.
    pub place: String,
    /// `headers[end-user] exact "jason"`.
    pub expected: String,
    /// `the request has no such header`.
    pub actual: String,
}

/// The rule that decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChosenRule {
    /// `http[0]`.
    pub rule: String,
    /// Its name, or empty.
    pub name: String,
    /// `reviews.yaml:10`, or the place of the service where no rule is written.
    pub place: String,
    /// Which alternative matches and where it stands, or that the rule matches everything.
    pub because: String,
    /// From the request's head to the end of the response, in milliseconds; 0 for none.
    pub timeout_ms: u32,
    /// Redirect or direct response, for people.
    pub answer: Option<String>,
    /// Rewrite of the request, for people.
    pub rewrite: Vec<String>,
    /// Edits of the request's headers.
    pub request_headers: Vec<String>,
    /// Edits of the response's headers.
    pub response_headers: Vec<String>,
}

/// A weighted destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FoundDestination {
    /// `outbound|9080|v1|reviews.default.svc.cluster.local`.
    pub cluster: String,
    /// As configured.
    pub weight: u32,
    /// Of all requests that come to this rule.
    pub percent: f64,
    /// How an endpoint is chosen.
    pub policy: String,
    /// What is spoken with them.
    #[serde(default)]
    pub spoken: Spoken,
    /// Number of endpoints.
    pub endpoint_count: u32,
    /// The first of them.
    pub endpoints: Vec<String>,
    /// Why there are none.
    pub problem: Option<String>,
    /// Edits of the request's headers for this destination alone.
    pub request_headers: Vec<String>,
    /// Edits of the response's headers for this destination alone.
    pub response_headers: Vec<String>,
}

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

fn string_match(table: &ArchivedTable, expected: &ArchivedStringMatch) -> String {
    match expected {
        ArchivedStringMatch::Exact(value) => format!("exact {:?}", value.as_str()),
        ArchivedStringMatch::ExactIgnoreCase(value) => format!("exact {:?} in any case", value.as_str()),
        ArchivedStringMatch::Prefix(value) => format!("prefix {:?}", value.as_str()),
        ArchivedStringMatch::PrefixIgnoreCase(value) => format!("prefix {:?} in any case", value.as_str()),
        ArchivedStringMatch::Regex(id) => format!("regex {:?}", table.regexes[RegexId::from(id).index()].as_str()),
        ArchivedStringMatch::Present => "present".to_owned(),
    }
}

fn expected(table: &ArchivedTable, condition: &ArchivedCondition) -> String {
    let text = |expected| string_match(table, expected);
    match condition {
        ArchivedCondition::Uri(value) => format!("uri {}", text(value)),
        ArchivedCondition::Scheme(value) => format!("scheme {}", text(value)),
        ArchivedCondition::Method(value) => format!("method {}", text(value)),
        ArchivedCondition::Authority(value) => format!("authority {}", text(value)),
        ArchivedCondition::Header { name, value } => format!("headers[{name}] {}", text(value)),
        ArchivedCondition::WithoutHeader { name, value } => format!("withoutHeaders[{name}] {}", text(value)),
        ArchivedCondition::Query { name, value } => format!("queryParams[{name}] {}", text(value)),
        ArchivedCondition::Port(port) => format!("port {port}"),
        ArchivedCondition::SourceNamespace(id) => {
            format!("sourceNamespace {}", table.namespaces[NamespaceId::from(id).index()])
        }
        ArchivedCondition::SourceLabel { key, value } => {
            format!("sourceLabels[{key}] {value:?}", value = value.as_str())
        }
    }
}

fn actual(condition: &ArchivedCondition, question: &Question, viewpoint: &Viewpoint) -> String {
    let quoted = |bytes: &[u8]| format!("{:?}", String::from_utf8_lossy(bytes));
    match condition {
        ArchivedCondition::Uri(_) => format!("the path is {}", quoted(question.path())),
        ArchivedCondition::Scheme(_) => format!("the scheme is {}", quoted(question.scheme())),
        ArchivedCondition::Method(_) => format!("the method is {}", quoted(question.method())),
        ArchivedCondition::Authority(_) => format!("the authority is {}", quoted(question.authority())),
        ArchivedCondition::Header { name, .. } | ArchivedCondition::WithoutHeader { name, .. } => {
            let values: Vec<String> = question.header_values(name).map(|value| format!("{value:?}")).collect();
            if values.is_empty() {
                "the request has no such header".to_owned()
            } else {
                format!("its value is {}", values.join(", "))
            }
        }
        ArchivedCondition::Query { .. } => match question.query() {
            None => "the request has no query".to_owned(),
            Some(query) => format!("the query is {}", quoted(query)),
        },
        ArchivedCondition::Port(_) => match question.port {
            Some(port) => format!("the port is {port}"),
            None => "the request names no port, and the service's is another".to_owned(),
        },
        ArchivedCondition::SourceNamespace(_) => format!("the caller's namespace is {}", question.namespace),
        ArchivedCondition::SourceLabel { key, .. } => {
            source_label(viewpoint, key, &question.namespace, &question.workload)
        }
    }
}

/// What a label of the caller is.
fn source_label(viewpoint: &Viewpoint, key: &str, namespace: &str, workload: &str) -> String {
    match viewpoint.labels.iter().find(|(name, _)| name == key) {
        Some((_, value)) => format!("the caller's label is {value:?}"),
        None if viewpoint.labels.is_empty() => {
            format!("no Pod or WorkloadEntry says which labels {namespace}/{workload} has")
        }
        None => "the caller has no such label".to_owned(),
    }
}

/// `any port`, or the number.
fn shown_port(port: u16) -> String {
    if port == PORT_ANY { "any port".to_owned() } else { format!("port {port}") }
}
