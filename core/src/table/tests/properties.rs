//! The lookup against a reference that is too simple to be wrong: no index, no order of storage, owned strings.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
struct Host {
    domain: String,
    scope: Option<usize>,
    port: u16,
    rules: Vec<Vec<Vec<Spec>>>,
}

/// A condition that the reference can judge without the table.
#[derive(Clone, Debug)]
enum Spec {
    UriExact(String),
    UriPrefix(String),
    UriIgnoreCase(String),
    UriAnyOf(Vec<String>),
    Method(&'static str),
    Header(String, Option<String>),
    WithoutHeader(String, Option<String>),
    Query(String, Option<String>),
    Port(u16),
    Namespace(usize),
    Label(String),
}

const NAMESPACES: [&str; 3] = ["default", "a", "b"];

fn label() -> impl Strategy<Value = String> {
    "[ab]{1,2}"
}

fn domain() -> impl Strategy<Value = String> {
    let name = || prop::collection::vec(label(), 1..4).prop_map(|labels| labels.join("."));
    prop_oneof![
        3 => name(),
        2 => name().prop_map(|name| format!("*.{name}")),
        3 => (label(), 0..NAMESPACES.len()).prop_map(|(s, n)| format!("{s}.{}.svc.cluster.local", NAMESPACES[n])),
        1 => Just("*".to_owned()),
        1 => name().prop_map(|name| name.to_ascii_uppercase()),
    ]
}

fn spec() -> impl Strategy<Value = Spec> {
    let path = "/[ab/]{0,3}";
    let value = prop::option::of("[12]{0,2}");
    prop_oneof![
        path.prop_map(Spec::UriExact),
        path.prop_map(Spec::UriPrefix),
        "/[aB/]{0,2}".prop_map(Spec::UriIgnoreCase),
        prop::collection::vec("/[ab]{0,2}", 1..3).prop_map(Spec::UriAnyOf),
        prop_oneof![Just("GET"), Just("POST")].prop_map(Spec::Method),
        ("[xy]", value.clone()).prop_map(|(name, value)| Spec::Header(name, value)),
        ("[xy]", value.clone()).prop_map(|(name, value)| Spec::WithoutHeader(name, value)),
        ("[vw]", value).prop_map(|(name, value)| Spec::Query(name, value)),
        prop_oneof![Just(80), Just(9080)].prop_map(Spec::Port),
        (0..NAMESPACES.len()).prop_map(Spec::Namespace),
        "[12]".prop_map(Spec::Label),
    ]
}

fn hosts() -> impl Strategy<Value = Vec<Host>> {
    let rules = prop::collection::vec(prop::collection::vec(prop::collection::vec(spec(), 0..3), 0..3), 0..4);
    let port = prop_oneof![2 => Just(80_u16), 1 => Just(9080), 1 => Just(0)];
    let scope = prop::option::of(0..NAMESPACES.len());
    let host =
        (domain(), scope, port, rules).prop_map(|(domain, scope, port, rules)| Host { domain, scope, port, rules });
    prop::collection::vec(host, 0..24).prop_map(|mut hosts| {
        let mut seen = std::collections::HashSet::new();
        hosts.retain(|h| seen.insert((h.domain.to_ascii_lowercase(), h.scope, h.port)));
        hosts
    })
}

fn requests() -> impl Strategy<Value = Request> {
    let headers = prop::collection::vec(("[xy]", "[12]{0,2}"), 0..3);
    let query = prop::option::of("([vw](=[12]{0,2})?&?){0,3}");
    (prop_oneof![Just("GET"), Just("POST")], "/[abB/]{0,3}", query, headers).prop_map(
        |(method, path, query, headers)| {
            let headers = headers.into_iter().map(|(name, value)| (name, value.into_bytes())).collect();
            Request { method, scheme: "http", authority: "a".into(), path, query, headers }
        },
    )
}

fn condition(builder: &mut TableBuilder, spec: &Spec) -> Condition {
    let value = |value: &Option<String>| value.as_deref().map_or(StringMatch::Present, exact);
    match spec {
        Spec::UriExact(path) => Condition::Uri(exact(path)),
        Spec::UriPrefix(path) => Condition::Uri(prefix(path)),
        Spec::UriIgnoreCase(path) => Condition::Uri(StringMatch::PrefixIgnoreCase(path.clone())),
        Spec::UriAnyOf(paths) => Condition::Uri(StringMatch::Regex(builder.regex(&anchored(&paths.join("|"))))),
        Spec::Method(method) => Condition::Method(exact(method)),
        Spec::Header(name, wanted) => Condition::Header { name: name.clone(), value: value(wanted) },
        Spec::WithoutHeader(name, wanted) => Condition::WithoutHeader { name: name.clone(), value: value(wanted) },
        Spec::Query(name, wanted) => Condition::Query { name: name.clone(), value: value(wanted) },
        Spec::Port(port) => Condition::Port(*port),
        Spec::Namespace(index) => Condition::SourceNamespace(builder.namespace(NAMESPACES[*index])),
        Spec::Label(value) => Condition::SourceLabel { key: "version".into(), value: value.clone() },
    }
}

fn built(hosts: &[Host]) -> Table {
    let mut builder = TableBuilder::new("cluster.local");
    let ids = NAMESPACES.map(|name| builder.namespace(name));
    builder.workload(ids[0], "client", vec![("version".into(), "1".into())]);
    for (h, host) in hosts.iter().enumerate() {
        let origin = builder.origin(&host.domain);
        let mut routes = Vec::new();
        for (r, alternatives) in host.rules.iter().enumerate() {
            let alternatives =
                alternatives.iter().map(|all| all.iter().map(|s| condition(&mut builder, s)).collect()).collect();
            routes.push(rule(&format!("{h}/{r}"), origin, alternatives, answer(200)));
        }
        let scope = host.scope.map(|index| ids[index]);
        builder.virtual_host(VirtualHostInput { domain: host.domain.clone(), scope, port: host.port, origin, routes });
    }
    builder.finish().expect("distinct virtual hosts")
}

/// Names under which a Host value is looked for, in order.
fn candidates(name: &str, namespace: &str) -> Vec<String> {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let labels: Vec<&str> = name.split('.').collect();
    let mut list = vec![name.clone()];
    match labels[..] {
        [a] => list.push(format!("{a}.{namespace}.svc.cluster.local")),
        [a, b] => list.push(format!("{a}.{b}.svc.cluster.local")),
        [a, b, "svc"] => list.push(format!("{a}.{b}.svc.cluster.local")),
        _ => {}
    }
    list.extend((1..labels.len()).map(|skip| format!("*.{}", labels[skip..].join("."))));
    list.push("*".to_owned());
    list
}

fn reference_host(hosts: &[Host], name: &str, namespace: &str, port: Option<u16>) -> Option<usize> {
    candidates(name, namespace).iter().find_map(|candidate| {
        let mut visible: Vec<usize> = (0..hosts.len())
            .filter(|&i| hosts[i].domain.eq_ignore_ascii_case(candidate))
            .filter(|&i| hosts[i].scope.is_none_or(|scope| NAMESPACES[scope] == namespace))
            .collect();
        // The most specific one first: 0 stands for any port.
        visible.sort_by_key(|&i| (hosts[i].scope.is_none(), hosts[i].port == 0, hosts[i].port));
        let serves = |wanted| visible.iter().copied().find(|&i| hosts[i].port == wanted || hosts[i].port == 0);
        match port {
            Some(port) => serves(port),
            None => serves(80).or(visible.first().copied()),
        }
    })
}

fn holds(spec: &Spec, request: &Request, namespace: &str, port: u16) -> bool {
    let header = |name: &str, wanted: &Option<String>| {
        request.headers.iter().any(|(n, v)| n == name && wanted.as_ref().is_none_or(|w| w.as_bytes() == &v[..]))
    };
    match spec {
        Spec::UriExact(path) => request.path == *path,
        Spec::UriPrefix(path) => request.path.starts_with(path.as_str()),
        Spec::UriIgnoreCase(path) => request.path.to_lowercase().starts_with(&path.to_lowercase()),
        Spec::UriAnyOf(paths) => paths.contains(&request.path),
        Spec::Method(method) => request.method == *method,
        Spec::Header(name, wanted) => header(name, wanted),
        Spec::WithoutHeader(name, wanted) => !header(name, wanted),
        Spec::Query(name, wanted) => {
            let query = request.query.clone().unwrap_or_default();
            let pairs: Vec<(String, String)> = query
                .split('&')
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect();
            let first = pairs.iter().find(|(key, _)| key == name);
            first.is_some_and(|(_, value)| wanted.as_ref().is_none_or(|w| w == value))
        }
        Spec::Port(wanted) => *wanted == port,
        Spec::Namespace(index) => NAMESPACES[*index] == namespace,
        Spec::Label(value) => namespace == "default" && value == "1",
    }
}

fn reference_rule(host: &Host, request: &Request, namespace: &str, port: u16) -> Option<usize> {
    host.rules.iter().position(|alternatives| {
        let all = |specs: &Vec<Spec>| specs.iter().all(|spec| holds(spec, request, namespace, port));
        alternatives.is_empty() || alternatives.iter().any(all)
    })
}

fn asked_name() -> impl Strategy<Value = String> {
    let name = || prop::collection::vec("[abAB]{1,2}", 1..5).prop_map(|labels| labels.join("."));
    prop_oneof![
        4 => name(),
        1 => name().prop_map(|name| format!("{name}.")),
        2 => (label(), 0..NAMESPACES.len()).prop_map(|(s, n)| format!("{s}.{}", NAMESPACES[n])),
        2 => (label(), 0..NAMESPACES.len()).prop_map(|(s, n)| format!("{s}.{}.svc.cluster.local", NAMESPACES[n])),
        1 => (label(), 0..NAMESPACES.len()).prop_map(|(s, n)| format!("{s}.{}.svc", NAMESPACES[n])),
    ]
}

fn asked_port() -> impl Strategy<Value = Option<u16>> {
    prop::option::of(prop_oneof![Just(80), Just(9080), Just(1)])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_lookup_finds_what_the_reference_finds(
        hosts in hosts(),
        asked in prop::collection::vec((asked_name(), 0..4_usize, asked_port(), requests()), 1..20),
    ) {
        let snapshot = published(&built(&hosts));
        let table = snapshot.table();
        for (name, namespace, port, request) in asked {
            let namespace = NAMESPACES.get(namespace).copied().unwrap_or("stranger");
            let viewpoint = Viewpoint::resolve(table, namespace, "client");
            let expected = reference_host(&hosts, &name, namespace, port);
            let actual = table.virtual_host(&viewpoint, name.as_bytes(), port, &mut Silent);
            let origin = |id: VirtualHostId| {
                let host = &table.virtual_hosts[id.index()];
                (table.origin(OriginId::from(&host.origin)), host.port.to_native())
            };
            prop_assert_eq!(
                actual.ok().map(origin),
                expected.map(|i| (hosts[i].domain.clone(), hosts[i].port)),
                "{} from {} on {:?}", name, namespace, port
            );
            let (Ok(id), Some(index)) = (actual, expected) else { continue };
            let asked_port = port.unwrap_or(hosts[index].port);
            let expected = reference_rule(&hosts[index], &request, namespace, asked_port);
            let selected = table.route(snapshot.regexes(), &viewpoint, id, &request, port, &mut Silent);
            prop_assert_eq!(
                selected.ok().map(|s| s.rule.name.to_string()),
                expected.map(|rule| format!("{index}/{rule}")),
                "{:?} at {}", request, name
            );
        }
    }

    #[test]
    fn a_table_survives_its_archive(hosts in hosts()) {
        let table = built(&hosts);
        let snapshot = published(&table);
        let back = rkyv::deserialize::<Table, rkyv::rancor::Error>(snapshot.table()).expect("memory");
        prop_assert_eq!(&back, &table);
        let (first, second) = (encode(&table).expect("an archive"), encode(&built(&hosts)).expect("an archive"));
        prop_assert_eq!(first.to_bytes(Generation(3)), second.to_bytes(Generation(3)));
        prop_assert_eq!(snapshot.checksum(), first.checksum());
    }

    #[test]
    fn no_host_value_makes_a_lookup_panic(
        hosts in hosts(), name in prop::collection::vec(any::<u8>(), 0..300), port in any::<Option<u16>>(),
    ) {
        let snapshot = published(&built(&hosts));
        let viewpoint = default_viewpoint(&snapshot);
        // Whatever is found is in bounds.
        if let Ok(id) = snapshot.table().virtual_host(&viewpoint, &name, port, &mut Silent) {
            prop_assert!(id.index() < hosts.len());
        }
    }
}
