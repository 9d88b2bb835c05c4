//! Small worlds for unit tests.

use std::{net::SocketAddr, sync::Arc};

use meshring_core::{
    http::{fields::Fields, head::Bounds, request},
    id::{ClusterId, Generation},
    snapshot::{Snapshot, encode},
    table::{
        TableBuilder,
        build::{ClusterEndpoints, VirtualHostInput},
        lookup::Viewpoint,
        model::{
            Action, BalancePolicy, ClusterKind, Condition, DestinationHeaders, Match, PathNormalization, Route,
            RouteOptions, StringMatch,
        },
    },
};

use crate::worker::generation::Prepared;

/// A world with one service `echo` on port 80.
pub(crate) struct World {
    pub(crate) endpoints: Vec<(SocketAddr, u16)>,
    pub(crate) policy: BalancePolicy,
    pub(crate) uri: Option<StringMatch>,
    pub(crate) action: Option<Action>,
    pub(crate) options: Option<RouteOptions>,
    pub(crate) destination: Option<DestinationHeaders>,
    pub(crate) regexes: Vec<&'static str>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            endpoints: vec![(endpoint(1), 1)],
            policy: BalancePolicy::LeastRequest,
            uri: None,
            action: None,
            options: None,
            destination: None,
            regexes: Vec::new(),
        }
    }
}

/// `127.0.0.1:PORT`.
pub(crate) fn endpoint(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The only cluster of a [`World`].
pub(crate) const CLUSTER: ClusterId = ClusterId(0);

impl World {
    /// Through the same proof as a snapshot from control.
    pub(crate) fn prepare(self) -> Arc<Prepared> {
        let mut builder = TableBuilder::new("cluster.local");
        builder.namespace("default");
        for pattern in &self.regexes {
            builder.regex(pattern);
        }
        let origin = builder.origin("VirtualService default/echo (test.yaml:1)");
        let (first, count) =
            builder.endpoints(self.endpoints.into_iter().map(|(address, weight)| (address, weight.into())));
        let cluster = builder.cluster(
            "outbound|80||echo.default.svc.cluster.local",
            self.policy,
            ClusterKind::Static,
            ClusterEndpoints::Range { first, count },
        );
        let forward = builder.forward([(cluster, 1, self.destination)]).unwrap();
        let matches = self
            .uri
            .map(|uri| Match { name: String::new(), line: 3, conditions: vec![Condition::Uri(uri)] })
            .into_iter()
            .collect();
        let route = Route {
            name: String::new(),
            origin,
            rule: 0,
            line: 2,
            matches,
            action: self.action.unwrap_or(forward),
            timeout_ms: 0,
            options: self.options.map(Box::new),
        };
        builder.virtual_host(VirtualHostInput {
            domain: "echo.default.svc.cluster.local".into(),
            scope: None,
            port: 80,
            origin,
            routes: vec![route],
        });
        let bytes = encode(&builder.finish().unwrap()).unwrap().to_bytes(Generation(1));
        let snapshot = Snapshot::from_bytes(&bytes).unwrap();
        let viewpoint = Viewpoint::resolve(snapshot.table(), "default", "test");
        Arc::new(Prepared { snapshot, viewpoint })
    }
}

/// A parsed request head.
pub(crate) struct Parsed {
    pub(crate) bytes: Vec<u8>,
    pub(crate) head: request::RequestHead,
    pub(crate) fields: Box<Fields>,
}

/// Parses `GET TARGET` with a Host and further lines.
pub(crate) fn get(target: &str, host: &str, lines: &str) -> Parsed {
    let bytes = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n").into_bytes();
    let mut fields = Fields::new();
    let head = request::parse(&bytes, &mut fields, Bounds::FIRST_HOP).unwrap().unwrap();
    Parsed { bytes, head, fields }
}

impl Parsed {
    pub(crate) fn request(&self) -> crate::route::Request<'_> {
        let path = self.head.path_of(&self.bytes);
        crate::route::Request {
            bytes: &self.bytes,
            head: &self.head,
            fields: &self.fields,
            path,
            rule_path: path,
            level: PathNormalization::DecodeAndMergeSlashes,
        }
    }
}
