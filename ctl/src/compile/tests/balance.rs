//! How the endpoints of a cluster are found, and how one of them is chosen.

use meshring_core::table::model::ArchivedBalancePolicy;

use super::*;

/// Kind and policy of the cluster `outbound|9080||a.default...`, where the DestinationRule of `a` says this.
fn chosen(load_balancer: &str) -> (ArchivedClusterKind, ArchivedBalancePolicy) {
    let rule = format!("{{host: a, trafficPolicy: {{loadBalancer: {load_balancer}}}}}");
    let mesh =
        Mesh::new(&(service("a", "default", &["v1", "v2"], 1) + &istio("DestinationRule", "a", "default", &rule)));
    assert!(mesh.get("default/x", "a").starts_with("9080||a.default="), "the cluster is what is asked for");
    let clusters = &mesh.0.table().clusters;
    let cluster =
        clusters.iter().find(|cluster| cluster.name == *"outbound|9080||a.default.svc.cluster.local").unwrap();
    (cluster.kind, cluster.policy)
}

#[test]
fn each_simple_load_balancer_has_a_policy_of_its_own() {
    use {ArchivedBalancePolicy as Policy, ArchivedClusterKind as Kind};
    for (text, expected) in [
        ("{}", (Kind::Static, Policy::LeastRequest)),
        ("{simple: UNSPECIFIED}", (Kind::Static, Policy::LeastRequest)),
        ("{simple: LEAST_REQUEST}", (Kind::Static, Policy::LeastRequest)),
        ("{simple: LEAST_CONN}", (Kind::Static, Policy::LeastRequest)),
        ("{simple: ROUND_ROBIN}", (Kind::Static, Policy::RoundRobin)),
        ("{simple: RANDOM}", (Kind::Static, Policy::Random)),
        // Where there is no choice, the policy is the default and says nothing.
        ("{simple: PASSTHROUGH}", (Kind::OriginalDestination, Policy::LeastRequest)),
    ] {
        assert_eq!(chosen(text), expected, "{text}");
    }
}

#[test]
fn dns_round_robin_uses_one_address_until_an_answer_comes_without_it() {
    let name = Hostname::parse("big.example.com").unwrap();
    let text = istio(
        "ServiceEntry",
        "big",
        "default",
        "{hosts: [big.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS_ROUND_ROBIN}",
    );
    let mut dns = DnsTable::default();
    assert_eq!(Mesh::with_dns(&text, &dns).get("default/x", "big.example.com"), "80||big.example.com=1[]");
    // Answer by answer: the first address, though not the lowest; the same in another order; without it.
    for (answer, used) in [
        (["192.0.2.3", "192.0.2.1"], "192.0.2.3"),
        (["192.0.2.1", "192.0.2.3"], "192.0.2.3"),
        (["192.0.2.2", "192.0.2.1"], "192.0.2.2"),
    ] {
        let addresses = answer.iter().map(|address| address.parse().unwrap()).collect();
        dns.extend([(name.clone(), addresses)]);
        let found = Mesh::with_dns(&text, &dns).get("default/x", "big.example.com");
        assert_eq!(found, format!("80||big.example.com=1[{used}:80]"), "{answer:?}");
    }
}

#[test]
fn ports_for_datagrams_and_pods_of_other_namespaces_lend_an_endpoint_nothing() {
    let pod = |namespace: &str, version: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a-1, namespace: {namespace}, labels: {{version: {version}}}}}\n"
        )
    };
    let slice = |protocol: &str, namespace: &str| {
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{name: http, port: 80}]}\n".to_owned()
            + &pod("default", "v1")
            + &pod("elsewhere", "v1")
            + &istio("DestinationRule", "a", "default", "{host: a, subsets: [{name: v1, labels: {version: v1}}]}")
            + &istio(
                "VirtualService",
                "a",
                "default",
                "{hosts: [a], http: [{route: [{destination: {host: a, subset: v1}}]}]}",
            )
            + &format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: a, labels: {{kubernetes.io/service-name: \
                 a}}}}\naddressType: IPv4\nports: [{{name: http, port: 80, protocol: {protocol}}}]\nendpoints: [{{addresses: [10.0.0.1], \
                 targetRef: {{kind: Pod, name: a-1, namespace: {namespace}}}}}]\n"
            )
    };
    let ask = |protocol, namespace| Mesh::new(&slice(protocol, namespace)).get("default/x", "a");
    assert_eq!(ask("TCP", "default"), "80|v1|a.default=100[10.0.0.1:80]");
    assert_eq!(ask("UDP", "default"), "80|v1|a.default=100[]");
    assert_eq!(ask("TCP", "elsewhere"), "80|v1|a.default=100[]");
}
