//! Which user runs as which workload. The kernel says the user of a caller; the operator says, by flag or by annotation,
//! what that user is. Neither control's own user nor root is anybody without being told.

use std::{collections::BTreeMap, fmt, str::FromStr};

use meshring_core::limits::WORKLOAD_API_IDENTITIES_PER_USER_MAX;

use crate::{
    ca::SpiffeId,
    spec::{
        Body, World,
        value::{InvalidValue, unix_uid},
    },
};

/// The service account of workloads that name none, as in Kubernetes.
const DEFAULT_ACCOUNT: &str = "default";

/// What a workload's identity is made of beside the trust domain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Kubernetes service account.
    pub name: String,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `--workload-uid UID=NAMESPACE/SERVICE-ACCOUNT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadUid {
    /// The user.
    pub uid: u32,
    /// What it is.
    pub account: Account,
}

/// A text that is no [`WorkloadUid`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadWorkloadUid {
    /// It has another form.
    #[error("write UID=NAMESPACE/SERVICE-ACCOUNT, as in 1001=default/reviews")]
    Form,
    /// The user is a name, or out of range.
    #[error(transparent)]
    Uid(InvalidValue),
    /// No SPIFFE id can hold it.
    #[error("`{account}` cannot be an identity: {reason}")]
    Account {
        /// As given.
        account: String,
        /// Why.
        reason: crate::ca::BadSpiffeId,
    },
}

impl FromStr for WorkloadUid {
    type Err = BadWorkloadUid;

    fn from_str(text: &str) -> Result<Self, BadWorkloadUid> {
        let (uid, account) = text.split_once('=').ok_or(BadWorkloadUid::Form)?;
        let (namespace, name) = account.split_once('/').ok_or(BadWorkloadUid::Form)?;
        let uid = unix_uid(uid).map_err(BadWorkloadUid::Uid)?;
        SpiffeId::workload("any", namespace, name)
            .map_err(|reason| BadWorkloadUid::Account { account: account.to_owned(), reason })?;
        Ok(Self { uid, account: Account { namespace: namespace.to_owned(), name: name.to_owned() } })
    }
}

/// All bindings of a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bindings(BTreeMap<u32, Vec<Account>>);

impl Bindings {
    /// Flags first, in their order, then Pods and WorkloadEntries with the annotation `meshring.io/unix-uid`, by namespace
    /// and name. The first of a user is its default identity.
    #[must_use]
    pub fn new(flags: &[WorkloadUid], world: &World) -> Self {
        let mut bindings = Self::default();
        for WorkloadUid { uid, account } in flags {
            bindings.add(*uid, account.clone());
        }
        for resource in world.resources() {
            let (uid, account) = match &resource.body {
                Body::Pod(pod) => (pod.unix_uid, pod.service_account.as_deref()),
                Body::WorkloadEntry(workload) => (workload.unix_uid, workload.service_account.as_deref()),
                _ => continue,
            };
            if let Some(uid) = uid {
                let namespace = resource.key.namespace.as_str().to_owned();
                bindings.add(uid, Account { namespace, name: account.unwrap_or(DEFAULT_ACCOUNT).to_owned() });
            }
        }
        bindings
    }

    fn add(&mut self, uid: u32, account: Account) {
        let accounts = self.0.entry(uid).or_default();
        if accounts.contains(&account) {
            return;
        }
        if accounts.len() == WORKLOAD_API_IDENTITIES_PER_USER_MAX {
            tracing::warn!(
                "Workload API: user id {uid} is bound to more than {WORKLOAD_API_IDENTITIES_PER_USER_MAX} identities; \
                 {account} is left out"
            );
            return;
        }
        accounts.push(account);
    }

    /// What a user is; empty for nobody.
    #[must_use]
    pub fn of(&self, uid: u32) -> &[Account] {
        self.0.get(&uid).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Cache, SourceFile, read_files};

    #[test]
    fn flags_are_read_and_bad_ones_refused_with_the_reason() {
        let parsed: WorkloadUid = "1001=default/reviews".parse().unwrap();
        assert_eq!((parsed.uid, parsed.account.to_string().as_str()), (1001, "default/reviews"));
        assert_eq!("0=a/b".parse::<WorkloadUid>().unwrap().uid, 0);
        for (text, reason) in [
            ("", "UID=NAMESPACE"),
            ("1001", "UID=NAMESPACE"),
            ("1001=reviews", "UID=NAMESPACE"),
            ("=a/b", "`` is not a user id"),
            ("www-data=a/b", "`www-data` is not a user id"),
            ("-1=a/b", "`-1` is not a user id"),
            ("+1=a/b", "`+1` is not a user id"),
            ("4294967295=a/b", "is not a user id"),
            ("4294967296=a/b", "is not a user id"),
            ("1=a/", "empty segment"),
            ("1=/b", "empty segment"),
            ("1=a/b/sa/c", "letters, digits"),
            ("1=a/b c", "letters, digits"),
            ("1=../b", "'..'"),
        ] {
            let error = text.parse::<WorkloadUid>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    fn world(text: &str) -> World {
        let file = SourceFile { path: "shop.yaml".into(), text: text.into() };
        let reading = read_files(&[file], &mut Cache::default());
        assert!(reading.diagnostics.is_empty(), "{:?}", reading.diagnostics);
        World::assemble(reading.resources).0
    }

    #[test]
    fn annotations_and_flags_bind_users_and_nothing_else_does() {
        let world = world(
            "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: shop, annotations: {meshring.io/unix-uid: '1001'}}, \
             spec: {serviceAccountName: reviews}}\n---\n\
             {apiVersion: v1, kind: Pod, metadata: {name: q, namespace: shop}, spec: {serviceAccountName: admin}}\n---\n\
             {apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: w, namespace: vm, \
             annotations: {meshring.io/unix-uid: '1001'}}, spec: {address: 10.0.0.1}}\n",
        );
        let flags = ["1001=a/b", "1002=c/d", "1001=a/b", "1001=shop/reviews"].map(|flag| flag.parse().unwrap());
        let bindings = Bindings::new(&flags, &world);
        let of = |uid| bindings.of(uid).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(of(1001), ["a/b", "shop/reviews", "vm/default"]);
        assert_eq!(of(1002), ["c/d"]);
        assert!(of(0).is_empty() && of(1003).is_empty());
    }

    #[test]
    fn a_bad_annotation_is_an_error_with_its_place() {
        for bad in ["www-data", "", "-1", "4294967295"] {
            let text = format!(
                "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  annotations:\n    meshring.io/unix-uid: '{bad}'\n"
            );
            let file = SourceFile { path: "pod.yaml".into(), text: text.as_str().into() };
            let reading = read_files(&[file], &mut Cache::default());
            let said = reading.diagnostics.iter().map(ToString::to_string).collect::<String>();
            assert!(said.contains("pod.yaml:6") && said.contains("is not a user id"), "{bad}: {said}");
        }
    }

    #[test]
    fn a_user_has_a_bounded_number_of_identities() {
        let flags: Vec<WorkloadUid> = (0..100).map(|index| format!("7=a/b{index}").parse().unwrap()).collect();
        assert_eq!(Bindings::new(&flags, &World::default()).of(7).len(), WORKLOAD_API_IDENTITIES_PER_USER_MAX);
    }
}
