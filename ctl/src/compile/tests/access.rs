//! AuthorizationPolicies as the table decides by them: providers that are missing or disagree, trust domain aliases.

use std::net::{IpAddr, Ipv4Addr};

use meshring_core::table::access::{AccessView, Decision, Stage, Unheard};

use super::{
    security::{pod, security},
    *,
};

/// A GET of `/` on port 80 by the owner of a principal.
struct By<'p>(&'p str);

impl AccessView for By<'_> {
    fn principal(&self) -> Option<&[u8]> {
        Some(self.0.as_bytes())
    }
    fn sni(&self) -> Option<&[u8]> {
        None
    }
    fn peer_ip(&self) -> IpAddr {
        Ipv4Addr::LOCALHOST.into()
    }
    fn remote_ip(&self) -> IpAddr {
        Ipv4Addr::LOCALHOST.into()
    }
    fn destination_ip(&self) -> IpAddr {
        Ipv4Addr::LOCALHOST.into()
    }
    fn port(&self) -> u16 {
        80
    }
    fn host(&self) -> &[u8] {
        b"web"
    }
    fn method(&self) -> &[u8] {
        b"GET"
    }
    fn path(&self) -> &[u8] {
        b"/"
    }
    fn header(&self, _: &str, _: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        false
    }
    fn request_principal(&self) -> Option<&[u8]> {
        None
    }
    fn claim<'p>(&self, _: impl Iterator<Item = &'p str> + Clone, _: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        false
    }
}

/// What becomes of such a request to `shop/web`, and by which policy.
fn decided(text: &str, stage: Stage, principal: &str) -> String {
    let mesh = Mesh::new(&(pod("web", "shop", "app: web", "10.0.0.1") + text));
    let table = mesh.0.table();
    let by = |position: u32| {
        let origin = table.origin((&table.authorization[position as usize].origin).into());
        origin.split(" (").next().unwrap().trim_start_matches("AuthorizationPolicy ").to_owned()
    };
    match table.access(Viewpoint::resolve(table, "shop", "web").policy, stage, &By(principal), &mut Unheard) {
        Decision::Allowed => "allowed".into(),
        Decision::Denied { policy, .. } => format!("denied by {}", by(policy)),
        Decision::DeniedByDefault => "denied by default".into(),
        Decision::Ask { ext_authz, policy, .. } => {
            format!("{} is asked by {}", table.ext_authz[ext_authz as usize].name, by(policy))
        }
    }
}

fn authorization(name: &str, namespace: &str, spec: &str) -> String {
    security("AuthorizationPolicy", name, namespace, spec)
}

fn custom(name: &str, namespace: &str, provider: &str) -> String {
    authorization(
        name,
        namespace,
        &format!(
            "{{action: CUSTOM, provider: {{name: {provider}}}, rules: [{{to: [{{operation: {{methods: [GET]}}}}]}}]}}"
        ),
    )
}

fn dry_run(policy: &str) -> String {
    let marked = policy.replace("metadata: {", "metadata: {annotations: {istio.io/dry-run: 'true'}, ");
    assert_ne!(marked, policy);
    marked
}

const MATE: &str = "cluster.local/ns/shop/sa/mate";

#[test]
fn providers_that_are_missing_or_disagree_deny_before_anybody_is_asked() {
    let providers = "extensionProviders:\n- name: one\n  envoyExtAuthzHttp: {service: authz.auth.svc.cluster.local, port: 8000}\n- name: two\n  \
                     envoyExtAuthzHttp: {service: authz.auth.svc.cluster.local, port: 8000}";
    let mesh = service("authz", "auth", &["v1"], 1).replace("9080", "8000") + &config_map("istio", providers);
    let (one, again, two) = (custom("a", "shop", "one"), custom("b", "shop", "one"), custom("c", "shop", "two"));
    let (of_mesh, elsewhere) = (custom("d", "istio-system", "two"), custom("e", "else", "two"));
    let missing = custom("f", "shop", "nobody");
    for (policies, first, after) in [
        (vec![&one], "one is asked by shop/a", "allowed"),
        (vec![&one, &again], "one is asked by shop/a", "allowed"),
        (vec![&one, &elsewhere], "one is asked by shop/a", "allowed"),
        // Two that disagree: nobody is asked, and no answer would help.
        (vec![&one, &two], "denied by shop/c", "denied by shop/c"),
        (vec![&one, &again, &two], "denied by shop/c", "denied by shop/c"),
        (vec![&one, &of_mesh], "denied by shop/a", "denied by shop/a"),
        (vec![&missing], "denied by shop/f", "denied by shop/f"),
        // An authorizer that is there is asked before the other one's absence denies.
        (vec![&one, &missing], "one is asked by shop/a", "denied by shop/f"),
    ] {
        let text = mesh.clone() + &policies.iter().map(|policy| policy.as_str()).collect::<String>();
        assert_eq!(decided(&text, Stage::First, MATE), first, "{policies:?}");
        assert_eq!(decided(&text, Stage::AfterCustom, MATE), after, "{policies:?}");
    }
    let tried = mesh + &one + &dry_run(&two);
    assert_eq!(decided(&tried, Stage::First, MATE), "one is asked by shop/a", "a dry run disagrees with nobody");
}

#[test]
fn a_principal_of_one_trust_domain_is_meant_in_all_of_the_mesh() {
    let mesh = config_map("istio", "trustDomain: new.test\ntrustDomainAliases: [old.test]");
    let allows = |from: &str, principal: &str| {
        let spec = format!("{{rules: [{{from: [{{source: {{{from}}}}}]}}]}}");
        let said = decided(&(mesh.clone() + &authorization("a", "shop", &spec)), Stage::First, principal);
        assert!(["allowed", "denied by default"].contains(&said.as_str()), "{said}");
        said == "allowed"
    };
    let (new, old) = ("new.test/ns/shop/sa/mate", "old.test/ns/shop/sa/mate");
    let (stranger, other) = ("far.test/ns/shop/sa/mate", "new.test/ns/shop/sa/other");
    for (from, expected) in [
        // new, old, stranger, other
        ("principals: [new.test/ns/shop/sa/mate]", [true, true, false, false]),
        ("principals: [old.test/ns/shop/sa/mate]", [true, true, false, false]),
        // The mesh's own, whatever it is called; a certificate with that name would still be a stranger's.
        ("principals: [cluster.local/ns/shop/sa/mate]", [true, true, false, false]),
        ("principals: ['old.test/ns/shop/*']", [true, true, false, true]),
        ("principals: [far.test/ns/shop/sa/mate]", [false, false, true, false]),
        ("principals: ['*/sa/mate']", [true, true, true, false]),
        ("notPrincipals: [old.test/ns/shop/sa/mate]", [false, false, true, true]),
    ] {
        let seen = [new, old, stranger, other].map(|principal| allows(from, principal));
        assert_eq!(seen, expected, "{from}");
    }
    assert!(!allows("principals: [cluster.local/ns/shop/sa/mate]", MATE), "cluster.local is no domain of this mesh");
}
