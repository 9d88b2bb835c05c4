//! What the builder promises: deterministic bytes, refused mistakes, clusters whose ranges are right.

use std::net::SocketAddr;

use super::{
    super::build::{BuildError, ClusterEndpoints},
    *,
};
use crate::{
    id::EndpointId,
    limits::CONNECT_MS_MAX,
    table::model::{ForwardClientCertificate, PathNormalization, Reach, Settings},
};

#[test]
fn the_same_calls_give_the_same_bytes() {
    let first = encode(&everything()).expect("an archive");
    for _ in 0..20 {
        // Other allocations in between: padding that is not zeroed would show.
        let noise: Vec<Vec<u8>> = (1..200).map(|size| vec![0xa5; size]).collect();
        drop(noise);
        let again = encode(&everything()).expect("an archive");
        assert_eq!(again.checksum(), first.checksum());
        assert_eq!(again.to_bytes(Generation(7)), first.to_bytes(Generation(7)));
    }
}

#[test]
fn the_order_in_which_virtual_hosts_are_added_does_not_change_the_layout_of_domains() {
    let names = ["b.x", "a.x", "*.x", "*", "c.x"];
    let table = |order: &[&str]| {
        let mut builder = TableBuilder::new("cluster.local");
        for name in names {
            builder.origin(name);
        }
        order.iter().for_each(|name| host(&mut builder, name, None, 80));
        builder.finish().expect("a sound table")
    };
    let mut reversed = names;
    reversed.reverse();
    assert_eq!(table(&names), table(&reversed));
}

#[test]
fn interned_values_are_stored_once() {
    let mut builder = TableBuilder::new("cluster.local");
    assert_eq!(builder.namespace("a"), builder.namespace("a"));
    assert_ne!(builder.namespace("a"), builder.namespace("b"));
    assert_eq!(builder.origin("x"), builder.origin("x"));
    assert_eq!(builder.regex("^a$"), builder.regex("^a$"));
    let v6: SocketAddr = "[fd00::1]:80".parse().expect("an address");
    builder.endpoints([(v6, 1), ("[fd00::1]:81".parse().expect("an address"), 1), (v6, 2)]);
    let table = builder.finish().expect("a sound table");
    assert_eq!((table.namespaces.len(), table.origins.len(), table.regexes.len()), (2, 1, 1));
    assert_eq!((table.endpoints.len(), table.addresses_v6.len()), (3, 1));
}

#[test]
fn two_virtual_hosts_for_the_same_requests_are_refused() {
    let twice = |domains: [&str; 2], ports: [u16; 2], scopes: [Option<u32>; 2]| {
        let mut builder = TableBuilder::new("cluster.local");
        builder.namespace("a");
        builder.namespace("b");
        for i in 0..2 {
            host(&mut builder, domains[i], scopes[i].map(NamespaceId), ports[i]);
        }
        builder.finish().map(drop)
    };
    let duplicate = Err(BuildError::DuplicateVirtualHost { domain: "x".into(), port: 80 });
    assert_eq!(twice(["x", "x"], [80, 80], [None, None]), duplicate);
    assert_eq!(twice(["x", "X."], [80, 80], [Some(1), Some(1)]), duplicate);
    assert_eq!(twice(["x", "x"], [80, 81], [None, None]), Ok(()));
    assert_eq!(twice(["x", "x"], [80, 80], [None, Some(0)]), Ok(()));
    assert_eq!(twice(["x", "x"], [80, 80], [Some(1), Some(0)]), Ok(()));
}

#[test]
fn a_domain_that_no_request_can_carry_is_refused() {
    for domain in ["", ".", "..", &"x".repeat(254)] {
        let mut builder = TableBuilder::new("cluster.local");
        host(&mut builder, domain, None, 80);
        assert_eq!(builder.finish(), Err(BuildError::BadDomain(domain.to_owned())));
    }
}

#[test]
fn weights_that_sum_to_nothing_or_beyond_32_bits_are_refused() {
    let mut builder = TableBuilder::new("cluster.local");
    let cluster = builder.cluster("c", BalancePolicy::Random, ClusterKind::NoSuchService, ClusterEndpoints::None);
    assert_eq!(builder.forward([]), Err(BuildError::WeightSum(0)));
    assert_eq!(builder.forward([(cluster, 0, None), (cluster, 0, None)]), Err(BuildError::WeightSum(0)));
    let beyond = Err(BuildError::WeightSum(u64::from(u32::MAX) + 1));
    assert_eq!(builder.forward([(cluster, u32::MAX, None), (cluster, 1, None)]), beyond);
    assert!(builder.forward([(cluster, u32::MAX, None), (cluster, 0, None)]).is_ok());
}

#[test]
fn clusters_give_their_endpoints_and_know_whether_weights_differ() {
    let address = |last: u8| SocketAddr::from(([10, 0, 0, last], 80));
    let v6: SocketAddr = "[fd00::1]:8080".parse().expect("an address");
    let mut builder = TableBuilder::new("cluster.local");
    builder.endpoints([(address(9), 7)]);
    let (first, count) = builder.endpoints([(address(1), 1), (address(2), 1), (v6, 3), (address(4), 0)]);
    assert_eq!((first, count), (EndpointId(1), 4));
    let mut cluster = |endpoints| builder.cluster("c", BalancePolicy::Random, ClusterKind::Static, endpoints);
    let whole = cluster(ClusterEndpoints::Range { first, count });
    let even = cluster(ClusterEndpoints::Range { first, count: 2 });
    let subset = cluster(ClusterEndpoints::Selection(&[EndpointId(4), EndpointId(3)]));
    let even_subset = cluster(ClusterEndpoints::Selection(&[EndpointId(4), EndpointId(1)]));
    let none = cluster(ClusterEndpoints::None);
    let snapshot = finished(builder);
    let table = snapshot.table();
    let addresses = |id| {
        let cluster = table.cluster(id);
        (0..cluster.count.to_native()).map(|i| table.address(table.endpoint_of(cluster, i))).collect::<Vec<_>>()
    };
    assert_eq!(addresses(whole), [address(1), address(2), v6, address(4)]);
    assert_eq!(addresses(even), [address(1), address(2)]);
    assert_eq!(addresses(subset), [address(4), v6]);
    assert!(addresses(none).is_empty());
    let weighted = [whole, even, subset, even_subset, none].map(|id| table.cluster(id).weighted);
    assert_eq!(weighted, [true, false, true, false, false]);
    assert_eq!(table.weight(EndpointId(4)), 1, "weight 0 is taken as 1");
}

#[test]
fn an_endpoint_takes_8_bytes_and_its_weight_is_exact_up_to_32_bits() {
    assert_eq!(size_of::<crate::table::model::ArchivedEndpoint>(), 8);
    let v4 = |last: u8| SocketAddr::from(([10, 0, 0, last], 80));
    let v6: SocketAddr = "[fd00::1]:8080".parse().expect("an address");
    let expected = [(v4(1), 1), (v6, 8_191), (v4(2), 8_192), (v4(3), 8_191), (v6, 65_536), (v4(4), u32::MAX / 2)];
    let mut builder = TableBuilder::new("cluster.local");
    // In the same 16 bits: how each is reached.
    let reaches = [Reach::Mtls, Reach::Hbone, Reach::Plain, Reach::Hbone, Reach::Mtls, Reach::Hbone];
    let mesh = expected.iter().zip(reaches).map(|(&(address, weight), reach)| (address, weight, reach));
    let (first, count) = builder.mesh_endpoints(mesh);
    let last_two = ClusterEndpoints::Selection(&[EndpointId(4), EndpointId(5)]);
    let heavy = builder.cluster("c", BalancePolicy::Random, ClusterKind::Static, last_two);
    let whole = ClusterEndpoints::Range { first, count };
    builder.cluster("d", BalancePolicy::Random, ClusterKind::Static, whole);
    let snapshot = finished(builder);
    let table = snapshot.table();
    let stored = [0, 1, 2, 3, 4, 5].map(|index| (table.address(EndpointId(index)), table.weight(EndpointId(index))));
    assert_eq!(stored, expected);
    assert_eq!([0, 1, 2, 3, 4, 5].map(|index| table.reach(EndpointId(index))), reaches);
    assert!(table.cluster(heavy).weighted);
    assert_eq!(table.heavy_weights.len(), 3);
}

#[test]
fn endpoint_weights_that_sum_beyond_32_bits_are_refused() {
    let built = |weights: [u32; 2]| {
        let mut builder = TableBuilder::new("cluster.local");
        let (first, count) = builder.endpoints(weights.map(|weight| (SocketAddr::from(([10, 0, 0, 1], 80)), weight)));
        let range = ClusterEndpoints::Range { first, count };
        builder.cluster("c", BalancePolicy::Random, ClusterKind::Static, range);
        builder.finish().map(drop)
    };
    assert_eq!(built([u32::MAX - 1, 1]), Ok(()));
    assert_eq!(built([u32::MAX, 1]), Err(BuildError::EndpointWeightSum(u64::from(u32::MAX) + 1)));
    assert_eq!(built([u32::MAX, u32::MAX]), Ok(()), "equal weights are never summed");
}

#[test]
fn the_settings_of_a_table_survive_the_archive() {
    let levels = PathNormalization::ALL.into_iter().cycle();
    for (path_normalization, gateway_client_certificate) in levels.zip(ForwardClientCertificate::ALL) {
        let settings = Settings {
            path_normalization,
            trusted_hops: 3,
            request_id: false,
            mesh_tls12: false,
            gateway_client_certificate,
        };
        let mut builder = TableBuilder::new("cluster.local");
        builder.settings(settings);
        assert_eq!(finished(builder).table().settings(), settings);
    }
    let unset = finished(TableBuilder::new("cluster.local"));
    let level = PathNormalization::DecodeAndMergeSlashes;
    let expected = Settings {
        path_normalization: level,
        trusted_hops: 0,
        request_id: true,
        mesh_tls12: true,
        gateway_client_certificate: ForwardClientCertificate::SanitizeSet,
    };
    assert_eq!(unset.table().settings(), expected);
}

#[test]
fn every_domain_of_a_large_table_is_found() {
    let mut builder = TableBuilder::new("cluster.local");
    for index in 0..20_000 {
        host(&mut builder, &format!("s{index}.default.svc.cluster.local"), None, 80);
    }
    let snapshot = finished(builder);
    let viewpoint = default_viewpoint(&snapshot);
    for index in 0..20_000 {
        let name = format!("s{index}.default.svc.cluster.local");
        let id = snapshot.table().virtual_host(&viewpoint, name.as_bytes(), Some(80), &mut Silent).expect(&name);
        let route = &snapshot.table().routes[id.index()];
        assert_eq!(route.name.as_str(), name);
    }
    assert_eq!(found(&snapshot, "default", "s20000", Some(80)), Err(NoRoute::UnknownHost));
}

#[test]
fn what_a_rule_says_survives_the_archive() {
    let mut builder = TableBuilder::new("cluster.local");
    let origin = builder.origin("VirtualService default/a (a.yaml:1)");
    let mut one = rule("first", origin, Vec::new(), answer(418));
    one.timeout_ms = u32::try_from(CONNECT_MS_MAX).expect("small");
    one.line = 17;
    builder.virtual_host(VirtualHostInput { domain: "a".into(), scope: None, port: 80, origin, routes: vec![one] });
    let snapshot = finished(builder);
    let table = snapshot.table();
    let route = &table.routes[0];
    assert_eq!((route.name.as_str(), route.line.to_native(), route.timeout_ms.to_native()), ("first", 17, 10_000));
    assert_eq!(table.origin(OriginId::from(&route.origin)), "VirtualService default/a (a.yaml:1)");
    assert!(route.options.is_none());
}
