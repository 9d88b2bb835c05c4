//! Why a connection of bytes goes where it goes: by the proxies' own lookup, as for a request.

use meshring_core::{
    id::{ClusterId, NamespaceId, OriginId},
    table::{
        ArchivedTable,
        lookup::{NoRoute, Silent, Viewpoint},
        model::SCOPE_ALL,
        tcp::{
            ArchivedTcpCondition, ArchivedTcpList, ArchivedTcpProtocol, ArchivedTcpRoute, TcpFound, TcpObserver,
            TcpView, shown,
        },
    },
};

use super::{
    ChosenRule, Explanation, FailedMatch, FoundHost, Question, SkippedRule, access, access::Sent,
    condition::source_label, destination, question::Stream, rule_place, shown_domain,
};

/// Remembers why rules do not match.
struct Recorder<'a> {
    table: &'a ArchivedTable,
    viewpoint: &'a Viewpoint,
    question: &'a Question,
    stream: &'a Stream,
    skipped: Vec<SkippedRule>,
}

impl TcpObserver for Recorder<'_> {
    fn failed(&mut self, rule: &ArchivedTcpRoute, alternative: usize, condition: &ArchivedTcpCondition) {
        let origin = self.table.origin(OriginId::from(&rule.origin));
        let title = title(rule);
        let place = rule_place(&origin, rule.line.to_native());
        if self.skipped.last().is_none_or(|last| (&last.rule, &last.place) != (&title, &place)) {
            self.skipped.push(SkippedRule { rule: title, name: String::new(), place, alternatives: Vec::new() });
        }
        let failed = FailedMatch {
            alternative: format!("match[{alternative}]"),
            place: rule_place(&origin, rule.matches[alternative].line.to_native()),
            expected: expected(self.table, condition),
            actual: self.actual(condition),
        };
        if let Some(rule) = self.skipped.last_mut() {
            rule.alternatives.push(failed);
        }
    }
}

impl Recorder<'_> {
    fn actual(&self, condition: &ArchivedTcpCondition) -> String {
        let Question { namespace, workload, .. } = self.question;
        match condition {
            ArchivedTcpCondition::Sni(_) => match &self.stream.server_name {
                Some(name) => format!("the server name is {name:?}"),
                None => "there is no server name (--sni)".to_owned(),
            },
            ArchivedTcpCondition::DestinationSubnets(_) => match self.stream.address {
                Some(address) => format!("the address is {}", address.ip()),
                None => "the connection was not for an address".to_owned(),
            },
            ArchivedTcpCondition::Port(_) => format!("the port is {}", self.question.port.unwrap_or_default()),
            ArchivedTcpCondition::SourceNamespace(_) => format!("the caller's namespace is {namespace}"),
            ArchivedTcpCondition::SourceLabel { key, .. } => source_label(self.viewpoint, key, namespace, workload),
        }
    }
}

fn expected(table: &ArchivedTable, condition: &ArchivedTcpCondition) -> String {
    match condition {
        ArchivedTcpCondition::Sni(names) => {
            let names: Vec<_> = names.iter().map(|name| shown_domain(name)).collect();
            format!("sniHosts {}", names.join(", "))
        }
        ArchivedTcpCondition::DestinationSubnets(subnets) => {
            let shown = subnets.iter().map(|subnet| {
                let address = shown(subnet.address);
                let bits = if address.is_ipv4() { subnet.bits.saturating_sub(96) } else { subnet.bits };
                format!("{address}/{bits}")
            });
            format!("destinationSubnets {}", shown.collect::<Vec<_>>().join(", "))
        }
        ArchivedTcpCondition::Port(port) => format!("port {port}"),
        ArchivedTcpCondition::SourceNamespace(id) => {
            format!("sourceNamespace {}", table.namespaces[NamespaceId::from(id).index()])
        }
        ArchivedTcpCondition::SourceLabel { key, value } => format!("sourceLabels[{key}] {:?}", value.as_str()),
    }
}

fn title(rule: &ArchivedTcpRoute) -> String {
    match rule.list {
        ArchivedTcpList::Tcp => format!("tcp[{}]", rule.rule),
        ArchivedTcpList::Tls => format!("tls[{}]", rule.rule),
        ArchivedTcpList::Service => "the way to the service".to_owned(),
    }
}

/// Fills an explanation.
pub(super) fn look_up(sent: &Sent<'_>, viewpoint: &Viewpoint, stream: &Stream, explanation: &mut Explanation) {
    let table = sent.snapshot.table();
    let question = &sent.question;
    let port = question.port.unwrap_or_default();
    let found = match (stream.address, question.host.as_str()) {
        (Some(address), _) => table.tcp_at(viewpoint, address),
        (None, "*") => table.tcp_on_port(viewpoint, port),
        (None, host) => {
            table.tcp_named(viewpoint, host, port).map(|service| TcpFound::Service { service, endpoint: None })
        }
    };
    let (service, endpoint) = match found {
        Some(TcpFound::Service { service, endpoint }) => (Some(service), endpoint),
        Some(TcpFound::ByServerName { port, otherwise }) => {
            (table.tcp_by_server_name(viewpoint, stream.server_name.as_deref(), port, otherwise), None)
        }
        None => (None, None),
    };
    let Some(service) = service else { return nothing(table, viewpoint, question, found.is_some(), explanation) };
    explanation.virtual_host = Some(host(table, service));
    let view =
        TcpView { server_name: stream.server_name.as_deref(), destination: stream.address.map(|address| address.ip()) };
    let mut recorder = Recorder { table, viewpoint, question, stream, skipped: Vec::new() };
    let selected = table.tcp_route(viewpoint, service, view, &mut recorder);
    explanation.skipped = recorder.skipped;
    match selected {
        Some((rule, alternative)) => chosen(sent, rule, alternative, endpoint.is_some(), explanation),
        None => {
            explanation.outcome = "no_rule".to_owned();
            explanation.summary = "reset: no rule of the service matches".to_owned();
        }
    }
}

fn nothing(
    table: &ArchivedTable,
    viewpoint: &Viewpoint,
    question: &Question,
    is_by_name: bool,
    explanation: &mut Explanation,
) {
    let Question { namespace, authority, .. } = question;
    let is_http = table.virtual_host(viewpoint, question.host.as_bytes(), question.port, &mut Silent);
    (explanation.outcome, explanation.summary) = match is_http {
        Ok(_) => (
            "http".to_owned(),
            format!("{authority} speaks HTTP: it is routed by its requests (--url http://{authority}/)"),
        ),
        Err(_) if is_by_name => (
            "no_service".to_owned(),
            format!(
                "reset: no service that namespace {namespace} can see has the server name on port {}",
                question.port.unwrap_or_default()
            ),
        ),
        Err(NoRoute::UnknownPort(port)) => {
            ("unknown_port".to_owned(), format!("reset: the host {} is known, but not on port {port}", question.host))
        }
        Err(_) => (
            "no_service".to_owned(),
            format!("reset: no service that namespace {namespace} can see carries bytes at {authority}"),
        ),
    };
}

fn host(table: &ArchivedTable, service: usize) -> FoundHost {
    let service = &table.tcp_services[service];
    let scope = service.scope.to_native();
    FoundHost {
        domain: shown_domain(&service.host),
        port: service.port.to_native(),
        scope: (scope != SCOPE_ALL).then(|| table.namespaces[scope as usize].to_string()),
        origin: format!(
            "{}, which says {}",
            table.origin(OriginId::from(&service.origin)),
            match service.protocol {
                ArchivedTcpProtocol::Tcp => "TCP",
                ArchivedTcpProtocol::Tls => "TLS",
                ArchivedTcpProtocol::Unknown => "nothing about the protocol: what begins like HTTP is HTTP",
            }
        ),
        rules: service.count.to_native(),
    }
}

fn chosen(
    sent: &Sent<'_>,
    rule: &ArchivedTcpRoute,
    alternative: usize,
    is_endpoint: bool,
    explanation: &mut Explanation,
) {
    let table = sent.snapshot.table();
    let origin = table.origin(OriginId::from(&rule.origin));
    let place = rule_place(&origin, rule.line.to_native());
    let because = match rule.matches.get(alternative).map(|found| found.line.to_native()) {
        Some(line) => format!("match[{alternative}] at {} holds", rule_place(&origin, line)),
        None if rule.list != ArchivedTcpList::Service => "it has no match: it takes every connection".to_owned(),
        None if is_endpoint => "the client has chosen an endpoint of the headless service by itself".to_owned(),
        None => "no rule of a VirtualService takes it: it goes to the service itself".to_owned(),
    };
    let (first, count) = (rule.first.to_native() as usize, rule.count.to_native() as usize);
    let destinations = &table.destinations[first..first + count];
    let weight_sum = rule.weight_sum.to_native();
    explanation.destinations = destinations.iter().map(|d| destination(sent, d, weight_sum)).collect();
    for destination in destinations.iter().filter(|destination| destination.weight.to_native() > 0) {
        let cluster = table.cluster(ClusterId::from(&destination.cluster));
        access::of_cluster(sent, cluster, &mut explanation.access);
    }
    let shares = explanation.destinations.iter().map(|d| {
        let problem = d.problem.as_ref().map(|problem| format!(", which means a reset: {problem}")).unwrap_or_default();
        format!("{:.4} % to {}{problem}", d.percent, d.cluster).replace(".0000 %", " %")
    });
    let shares = shares.collect::<Vec<_>>().join(", ");
    let by = if rule.line.to_native() == 0 { origin.clone() } else { format!("rule {} at {place}", title(rule)) };
    explanation.outcome = "forward".to_owned();
    explanation.summary = format!("{shares} ({by})");
    explanation.rule = Some(ChosenRule {
        rule: title(rule),
        name: String::new(),
        place,
        because,
        timeout_ms: 0,
        answer: None,
        rewrite: Vec::new(),
        request_headers: Vec::new(),
        response_headers: Vec::new(),
    });
}
