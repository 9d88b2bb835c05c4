//! What is spoken with whom.

use super::*;
use crate::table::{model::UpstreamProtocol as P, protocol::PROTOCOLS_NONE};

#[test]
fn a_workload_speaks_on_each_port_what_is_said_and_on_others_what_the_client_does() {
    let mut builder = TableBuilder::new("cluster.local");
    let a = builder.namespace("a");
    let ports = builder.application_ports(vec![(9000, P::Http2), (8080, P::Http1), (8080, P::Http2)]);
    assert_eq!(builder.application_ports(vec![(8080, P::Http1), (9000, P::Http2)]), ports, "stored once");
    assert_eq!(builder.application_ports(Vec::new()), PROTOCOLS_NONE);
    builder.guarded_workload(a, "web", vec![], POLICY_NONE, ports);
    builder.workload(a, "silent", vec![]);
    let snapshot = published(&builder.finish().unwrap());
    let spoken = |name: &str, port| {
        let table = snapshot.table();
        table.application_protocol(&Viewpoint::resolve(table, "a", name), port)
    };
    assert_eq!([8080, 9000, 80].map(|port| spoken("web", port)), [P::Http1, P::Http2, P::Downstream]);
    assert_eq!(["silent", "unlisted"].map(|name| spoken(name, 8080)), [P::Downstream; 2]);
}

#[test]
fn a_cluster_is_spoken_to_as_the_client_does_unless_something_else_is_said() {
    let mut builder = TableBuilder::new("cluster.local");
    let mut cluster = || builder.cluster("c", BalancePolicy::LeastRequest, ClusterKind::Static, ClusterEndpoints::None);
    let (silent, upgraded) = (cluster(), cluster());
    builder.cluster_protocol(upgraded, P::Http2, 7);
    let snapshot = published(&builder.finish().unwrap());
    let of = |id| {
        let cluster = snapshot.table().cluster(id);
        (P::from(cluster.protocol), cluster.max_streams.to_native())
    };
    assert_eq!((of(silent), of(upgraded)), ((P::Downstream, 0), (P::Http2, 7)));
}
