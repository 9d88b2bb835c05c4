//! What a workload demands: which policy holds for whom, which mode for which port, which gateway for which name.

use super::*;
use crate::table::{
    ArchivedTable,
    protocol::PROTOCOLS_NONE,
    security::{
        ArchivedInboundPolicy, ClusterTls, ClusterTlsMode, InboundPolicy, MtlsMode, ServerTls, ServerTlsMode, TLS_NONE,
    },
    validate::validate,
};

fn policy(mtls: MtlsMode) -> InboundPolicy {
    InboundPolicy { mtls, ..InboundPolicy::default() }
}

#[test]
fn a_listed_workload_has_its_own_policy_and_others_that_of_namespace_or_mesh() {
    let mut builder = TableBuilder::new("cluster.local");
    let (a, b) = (builder.namespace("a"), builder.namespace("b"));
    let strict = builder.inbound_policy(policy(MtlsMode::Strict));
    let disable = builder.inbound_policy(policy(MtlsMode::Disable));
    let permissive = builder.inbound_policy(policy(MtlsMode::Permissive));
    assert_eq!(builder.inbound_policy(policy(MtlsMode::Strict)), strict, "the same policy is stored once");
    builder.guarded_workload(a, "web", vec![], disable, PROTOCOLS_NONE);
    builder.workload(a, "free", vec![]);
    builder.namespace_policy(a, strict);
    builder.mesh_policy(permissive);
    let bytes = rkyv::to_bytes::<rkyv::rancor::Error>(&builder.finish().unwrap()).unwrap();
    let table = rkyv::access::<ArchivedTable, rkyv::rancor::Error>(&bytes).unwrap();
    validate(table).unwrap();
    let mode = |namespace: &str, name: &str| {
        let viewpoint = Viewpoint::resolve(table, namespace, name);
        table.inbound_policy(&viewpoint).map(|policy| policy.mtls_on(80))
    };
    assert_eq!(mode("a", "web"), Some(MtlsMode::Disable));
    assert_eq!(mode("a", "unlisted"), Some(MtlsMode::Strict));
    // Listed, and nothing selects it: what is in force for the namespace is resolved by the compiler.
    assert_eq!(mode("a", "free"), None);
    assert_eq!(mode("b", "web"), Some(MtlsMode::Permissive));
    assert_eq!(mode("nowhere", "web"), Some(MtlsMode::Permissive));
    let _ = b;
}

#[test]
fn a_port_may_have_a_mode_of_its_own() {
    let port_mtls = vec![(80, MtlsMode::Disable), (8080, MtlsMode::Permissive)];
    let policy = InboundPolicy { port_mtls, ..policy(MtlsMode::Strict) };
    let bytes = rkyv::to_bytes::<rkyv::rancor::Error>(&policy).unwrap();
    let policy = rkyv::access::<ArchivedInboundPolicy, rkyv::rancor::Error>(&bytes).unwrap();
    let modes = [80, 8080, 8081, 79].map(|port| policy.mtls_on(port));
    assert_eq!(modes, [MtlsMode::Disable, MtlsMode::Permissive, MtlsMode::Strict, MtlsMode::Strict]);
}

#[test]
fn the_most_specific_gateway_serves_a_name() {
    let gateway = |port, hosts: &[&str], material: &str| ServerTls {
        port,
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        mode: ServerTlsMode::Simple,
        material: material.into(),
        subject_alt_names: vec![],
        tls12: true,
        origin: OriginId(0),
    };
    let gateways = vec![
        gateway(443, &["*"], "any"),
        gateway(443, &[".example.com", "a.test"], "wild"),
        gateway(443, &[".b.example.com"], "narrow"),
        gateway(443, &["www.example.com"], "exact"),
        gateway(8443, &["only.example.com"], "only"),
    ];
    let policy = InboundPolicy { gateways, plain_gateway_ports: vec![80, 8080], ..InboundPolicy::default() };
    let bytes = rkyv::to_bytes::<rkyv::rancor::Error>(&policy).unwrap();
    let policy = rkyv::access::<ArchivedInboundPolicy, rkyv::rancor::Error>(&bytes).unwrap();
    let found = |port, name| policy.gateway(port, name).map(|gateway| gateway.material.as_str());
    for (name, expected) in [
        ("www.example.com", "exact"),
        ("other.example.com", "wild"),
        ("x.b.example.com", "narrow"),
        ("b.example.com", "wild"),
        ("example.com", "any"),
        ("a.test", "wild"),
    ] {
        assert_eq!(found(443, Some(name)), Some(expected), "{name}");
    }
    assert_eq!(found(443, None), Some("any"));
    assert_eq!(found(8443, None), Some("only"), "without a name the only one serves");
    assert_eq!(found(8443, Some("www.example.com")), None);
    assert_eq!(found(80, None), None);
    assert!(policy.has_gateway(8443) && !policy.has_gateway(80));
    assert!([80, 443, 8080, 8443].iter().all(|port| policy.guards(*port)) && !policy.guards(81));
}

#[test]
fn tls_settings_are_stored_once_and_lie_in_bounds() {
    let mut builder = TableBuilder::new("cluster.local");
    let cluster = |builder: &mut TableBuilder, name: &str| {
        builder.cluster(name, BalancePolicy::LeastRequest, ClusterKind::Static, ClusterEndpoints::None)
    };
    let tls = |name: &str| ClusterTls {
        mode: ClusterTlsMode::IstioMutual,
        sni: String::new(),
        subject_alt_names: vec![name.into()],
        material: String::new(),
        insecure_skip_verify: false,
    };
    let ids = ["a", "b", "c", "d"].map(|name| cluster(&mut builder, name));
    builder.cluster_tls(ids[0], tls("x"));
    builder.cluster_tls(ids[1], tls("x"));
    builder.cluster_tls(ids[2], tls("y"));
    let mut table = builder.finish().unwrap();
    let positions: Vec<_> = table.clusters.iter().map(|cluster| cluster.tls).collect();
    assert_eq!((positions, table.cluster_tls.len()), (vec![0, 0, 1, TLS_NONE], 2));
    let bytes = rkyv::to_bytes::<rkyv::rancor::Error>(&table).unwrap();
    let archived = rkyv::access::<ArchivedTable, rkyv::rancor::Error>(&bytes).unwrap();
    assert_eq!(archived.tls_of(archived.cluster(ids[2])), Some(tls("y")));
    assert_eq!(archived.tls_of(archived.cluster(ids[3])), None);
    table.clusters[3].tls = 2;
    let bytes = rkyv::to_bytes::<rkyv::rancor::Error>(&table).unwrap();
    let error = validate(rkyv::access::<ArchivedTable, rkyv::rancor::Error>(&bytes).unwrap()).unwrap_err();
    assert!(error.to_string().contains("TLS settings 2 of 2"), "{error}");
}
