//! RequestAuthentications: the rules for the tokens that a workload takes. All policies that select it are merged, as
//! Istio does.

use std::{collections::BTreeMap, sync::Arc};

use meshring_core::{
    id::OriginId,
    table::{build::TableBuilder, security::JwtRule},
};

use crate::spec::{
    Labels, Namespace, World,
    request_authentication::{self, KeySource, Keys, RequestAuthentication},
};

/// Knows key sets that were fetched.
pub trait JwksSource {
    /// The JWK set as JSON; `None` where it could not be fetched yet.
    fn key_set(&self, source: &KeySource) -> Option<Arc<str>>;
}

/// What was fetched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JwksTable(pub BTreeMap<KeySource, Arc<str>>);

impl JwksSource for JwksTable {
    fn key_set(&self, source: &KeySource) -> Option<Arc<str>> {
        self.0.get(source).cloned()
    }
}

/// Has fetched nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoJwks;

impl JwksSource for NoJwks {
    fn key_set(&self, _: &KeySource) -> Option<Arc<str>> {
        None
    }
}

/// Puts the rules of workloads together; each rule is built once.
pub(super) struct JwtRules<'w> {
    world: &'w World,
    jwks: &'w dyn JwksSource,
    /// With their positions among the world's resources, in order.
    policies: Vec<(usize, &'w RequestAuthentication)>,
    /// By position: the first of the policy's rules in the table.
    built: BTreeMap<usize, u32>,
}

impl<'w> JwtRules<'w> {
    pub(super) fn new(world: &'w World, jwks: &'w dyn JwksSource) -> Self {
        let policies = request_authentication::policies(world).collect();
        Self { world, jwks, policies, built: BTreeMap::new() }
    }

    /// Positions of the rules for a workload; with `labels` `None` for those of a namespace that are not listed, with
    /// `namespace` `None`, too, for those of namespaces about which nothing is said. Sorted by issuer, as Istio does.
    pub(super) fn of(
        &mut self,
        builder: &mut TableBuilder,
        origin: &mut dyn FnMut(&mut TableBuilder, usize) -> OriginId,
        namespace: Option<&Namespace>,
        labels: Option<&Labels>,
    ) -> Vec<u32> {
        let world = self.world;
        let is_for = |position: usize, policy: &RequestAuthentication| {
            let home = &world.resources()[position].key.namespace;
            policy.scope.holds(home, world.root_namespace(), namespace.map_or("", Namespace::as_str), labels)
        };
        let selected: Vec<_> =
            self.policies.iter().copied().filter(|&(position, policy)| is_for(position, policy)).collect();
        let mut rules: Vec<(&str, u32)> = Vec::new();
        for (position, policy) in selected {
            let first = self.build(builder, origin, position, policy);
            rules.extend(policy.rules.iter().zip(first..).map(|(rule, index)| (&*rule.issuer, index)));
        }
        rules.sort_by_key(|(issuer, _)| *issuer);
        rules.into_iter().map(|(_, index)| index).collect()
    }

    fn build(
        &mut self,
        builder: &mut TableBuilder,
        origin: &mut dyn FnMut(&mut TableBuilder, usize) -> OriginId,
        position: usize,
        policy: &RequestAuthentication,
    ) -> u32 {
        if let Some(&first) = self.built.get(&position) {
            return first;
        }
        let mut first = 0;
        for (index, rule) in policy.rules.iter().enumerate() {
            let origin = origin(builder, position);
            let built = builder.jwt_rule(self.rule(rule, origin));
            if index == 0 {
                first = built;
            }
        }
        self.built.insert(position, first);
        first
    }

    fn rule(&self, rule: &request_authentication::JwtRule, origin: OriginId) -> JwtRule {
        let texts = |list: &[Arc<str>]| list.iter().map(ToString::to_string).collect();
        let pairs = |list: &[(Arc<str>, Arc<str>)]| list.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
        let jwks = match &rule.keys {
            Keys::Inline(jwks) => jwks.to_string(),
            Keys::Fetched(source) => self.jwks.key_set(source).map(|jwks| jwks.to_string()).unwrap_or_default(),
            Keys::Nowhere => String::new(),
        };
        JwtRule {
            origin,
            line: rule.at.line,
            issuer: rule.issuer.to_string(),
            audiences: texts(&rule.audiences),
            jwks,
            from_headers: pairs(&rule.from_headers),
            from_params: texts(&rule.from_params),
            from_cookies: texts(&rule.from_cookies),
            forward: rule.forward,
            output_payload_to_header: rule
                .output_payload_to_header
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            output_claims: pairs(&rule.output_claims),
            space_delimited_claims: texts(&rule.space_delimited_claims),
        }
    }
}

#[cfg(test)]
mod tests {
    use meshring_core::table::Table;

    use super::*;
    use crate::{
        compile::{NoDns, compile_with},
        source,
    };

    const MESH: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web-1, labels: {app: web}}
spec: {containers: []}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: db-1, labels: {app: db}}
spec: {containers: []}
status: {podIP: 10.0.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: gw-1, labels: {gateway.networking.k8s.io/gateway-name: w}}
spec: {containers: []}
status: {podIP: 10.0.0.3}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: everywhere, namespace: istio-system}
spec:
  jwtRules: [{issuer: z, jwksUri: "https://z.example/keys"}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: chosen, namespace: istio-system}
spec:
  selector: {matchLabels: {app: db}}
  jwtRules: [{issuer: "https://m.example/"}]
---
apiVersion: security.istio.io/v1beta1
kind: RequestAuthentication
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  jwtRules:
  - issuer: a
    audiences: [x, y]
    jwks: '{"keys":[{"kty":"RSA"}]}'
    fromHeaders: [{name: X-Jwt, prefix: "T "}]
    fromParams: [p]
    fromCookies: [c]
    forwardOriginalToken: true
    outputPayloadToHeader: X-Payload
    outputClaimToHeaders: [{header: X-Sub, claim: sub}]
    spaceDelimitedClaims: [roles]
  - {issuer: b, jwksUri: "https://z.example/keys"}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: waypoint}
spec:
  targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: w}]
  jwtRules: [{issuer: w, jwksUri: "https://w.example/keys"}]
"#;

    fn world(text: &str) -> World {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yaml"), text).unwrap();
        let (files, _) = source::discover(&[dir.path().to_owned()]);
        let reading = source::read_files(&files, &mut source::Cache::default());
        let errors: Vec<_> = reading.diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).collect();
        assert!(errors.is_empty(), "{errors:?}");
        World::assemble(reading.resources).0
    }

    fn issuers(table: &Table, policy: u32) -> Vec<&str> {
        let rules = &table.inbound_policies[policy as usize].jwt_rules;
        rules.iter().map(|&rule| &*table.jwt_rules[rule as usize].issuer).collect()
    }

    #[test]
    fn all_policies_that_select_a_workload_are_merged() {
        let world = world(MESH);
        let sources = request_authentication::key_sources(&world);
        let urls: Vec<_> = sources.iter().map(|source| (&*source.url, source.is_discovery)).collect();
        assert_eq!(
            urls,
            [
                ("https://m.example/.well-known/openid-configuration", true),
                ("https://w.example/keys", false),
                ("https://z.example/keys", false)
            ]
        );
        let fetched = JwksTable([(sources[2].clone(), Arc::from("set"))].into());
        let table = compile_with(&world, &NoDns, &fetched).unwrap();
        let of = |name: &str| table.workloads.iter().find(|workload| workload.name == name).unwrap().policy;
        assert_eq!(issuers(&table, of("web-1")), ["a", "b", "z"]);
        assert_eq!(issuers(&table, of("db-1")), ["https://m.example/", "z"]);
        assert_eq!(issuers(&table, of("gw-1")), ["w", "z"]);
        assert_eq!(issuers(&table, table.mesh_policy), ["z"]);
        let rule = |issuer: &str| table.jwt_rules.iter().find(|rule| rule.issuer == issuer).unwrap();
        assert_eq!((&*rule("b").jwks, &*rule("z").jwks, &*rule("https://m.example/").jwks), ("set", "set", ""));
        let a = rule("a");
        assert_eq!(a.jwks, r#"{"keys":[{"kty":"RSA"}]}"#);
        assert_eq!(a.from_headers, [("x-jwt".to_owned(), "T ".to_owned())]);
        assert_eq!((&a.audiences[..], &a.from_params[..]), (&["x".to_owned(), "y".into()][..], &["p".to_owned()][..]));
        assert_eq!((&a.from_cookies[..], a.forward), (&["c".to_owned()][..], true));
        assert_eq!(a.output_payload_to_header, "x-payload");
        assert_eq!(a.output_claims, [("x-sub".to_owned(), "sub".to_owned())]);
        assert_eq!(a.space_delimited_claims, ["roles"]);
        assert_eq!(MESH.lines().nth(a.line as usize - 1), Some("  - issuer: a"));
        assert_eq!(table.jwt_rules.len(), 5, "each rule once");
    }

    #[test]
    fn mistakes_are_named() {
        let text = r#"
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: bad}
spec:
  jwtRules:
  - {audiences: [""]}
  - {issuer: a, jwksUri: "ftp://x", jwks: "{}"}
  - {issuer: a, jwks: "{", fromHeaders: [{prefix: x}, {name: "a b"}], fromParams: [""]}
  - {issuer: a, jwksUri: "https://a", outputPayloadToHeader: content-length, outputClaimToHeaders: [{header: x}], timeout: 5}
  - {issuer: a, jwksUri: "https://a", nonsense: 1}
"#;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yaml"), text).unwrap();
        let (files, _) = source::discover(&[dir.path().to_owned()]);
        let reading = source::read_files(&files, &mut source::Cache::default());
        assert!(reading.resources.is_empty());
        let all = reading.diagnostics.iter().map(|diagnostic| format!("{diagnostic}\n")).collect::<String>();
        for field in [
            "jwtRules[0].issuer",
            "jwtRules[0].audiences[0]",
            "jwtRules[1].jwksUri",
            "jwtRules[1].jwks",
            "jwtRules[2].jwks",
            "jwtRules[2].fromHeaders[0].name",
            "jwtRules[2].fromHeaders[1].name",
            "jwtRules[2].fromParams[0]",
            "jwtRules[3].outputPayloadToHeader",
            "jwtRules[3].outputClaimToHeaders[0].claim",
            "jwtRules[3].timeout",
            "jwtRules[4].nonsense",
        ] {
            assert!(all.contains(field), "{field} is not in {all}");
        }
    }
}
