//! Small worlds for unit tests.

pub(crate) mod peer;
pub(crate) mod slow;

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use meshring_core::{
    http::{fields::Fields, head::Bounds, request},
    id::{ClusterId, Generation},
    identity::{Material, OWN, TrustBundle},
    snapshot::{
        Snapshot, encode,
        page::{PageReader, PageWriter},
    },
    stats::StatsPage,
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

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

use crate::{
    config::Tuning,
    worker::{
        self, Start, Worker,
        conn::Conn,
        driver::{Choice, probe},
        generation::{Generations, Prepared},
        ktls::{Probe, probe as probe_ktls},
        limits::Limits,
        mailbox::Mailboxes,
    },
};

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
        Arc::new(Prepared::new(snapshot, viewpoint))
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
            is_https: self.head.https,
        }
    }
}

/// Runs a test on each driver, with a worker that has no clock of its own.
pub(crate) fn on_each_driver(test: impl AsyncFn(Rc<Worker>)) {
    on_each_driver_within(Limits::default(), test);
}

/// Likewise, with other limits.
pub(crate) fn on_each_driver_within(limits: Limits, test: impl AsyncFn(Rc<Worker>)) {
    for choice in [Choice::Auto, Choice::Epoll] {
        let page = PageWriter::create(Generation(1)).unwrap();
        let (_, stats) = StatsPage::create(1).unwrap();
        let (mailboxes, mut wakeups) = Mailboxes::new(1).unwrap();
        let generations = Arc::<Generations>::default();
        let driver = probe(choice).unwrap();
        let start = Start {
            index: 0,
            cpu: None,
            driver: driver.clone(),
            stats: stats.worker(0),
            mailboxes: Arc::new(mailboxes),
            wakeups: wakeups.remove(0),
            page: Arc::new(PageReader::open(page.fd()).unwrap()),
            generations,
            first: World::default().prepare(),
            listeners: Vec::new(),
            tuning: Tuning::default(),
            limits,
            materials: Arc::default(),
            ktls: kernel_tls(),
            memory_pressure: Arc::default(),
        };
        driver.run(|| test(worker::for_test(start))).unwrap();
    }
}

/// A connection as a stage has it, and the peer's end of it.
pub(crate) fn pair(worker: &Worker) -> (Conn, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    peer.set_nonblocking(true).unwrap();
    ours.set_nonblocking(true).unwrap();
    (Conn::from_std(ours, &worker.deadlines).unwrap(), peer)
}

/// An authority for workloads' certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) root: Vec<u8>,
}

/// What is unusual about a certificate.
#[derive(Default, Clone)]
pub(crate) struct Leaf {
    pub(crate) uris: Vec<&'static str>,
    pub(crate) dns: Vec<&'static str>,
    pub(crate) is_expired: bool,
    pub(crate) is_early: bool,
    pub(crate) is_authority: bool,
    pub(crate) subject: Vec<(DnType, DnValue)>,
}

impl Leaf {
    /// A workload's, as it should be.
    pub(crate) fn of(uri: &'static str) -> Self {
        Self { uris: vec![uri], ..Self::default() }
    }
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        // Of two authorities with one name, each would seem to have signed for the other.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("authority {}", COUNT.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().to_vec();
        Self { issuer: Issuer::new(params, key), root }
    }

    /// A certificate and its key (PKCS #8), in DER.
    pub(crate) fn sign(&self, leaf: &Leaf) -> (Vec<u8>, Vec<u8>) {
        let mut params = CertificateParams::default();
        let uris = leaf.uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
        let dns = leaf.dns.iter().map(|dns| SanType::DnsName((*dns).try_into().unwrap()));
        params.subject_alt_names = uris.chain(dns).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in &leaf.subject {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
        if leaf.is_expired {
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        if leaf.is_early {
            params.not_before = date_time_ymd(2100, 1, 1);
            params.not_after = date_time_ymd(2101, 1, 1);
        }
        if leaf.is_authority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().to_vec(), key.serialize_der())
    }

    /// A workload's material that trusts this authority for a trust domain.
    pub(crate) fn material(&self, leaf: &Leaf, trust_domain: &str) -> Material {
        let (certificate, key) = self.sign(leaf);
        let bundle = TrustBundle { trust_domain: trust_domain.into(), roots: vec![self.root.clone()] };
        Material { name: OWN.into(), chain: vec![certificate], key: key.into(), bundles: vec![bundle], not_after_s: 1 }
    }
}

/// In a virtual machine whose kernel has TLS the same tests run over it: MESHRING_EXPECT_KTLS=1.
pub(crate) fn kernel_tls() -> Option<Arc<Probe>> {
    std::env::var_os("MESHRING_EXPECT_KTLS")?;
    let probe = probe_ktls();
    assert!(probe.is_present(), "{probe}");
    Some(Arc::new(probe))
}

/// Whether a peer may change its keys: not where the kernel has them and cannot (before Linux 6.14).
pub(crate) fn can_update_keys() -> bool {
    kernel_tls().is_none_or(|probe| probe.can_rekey())
}
