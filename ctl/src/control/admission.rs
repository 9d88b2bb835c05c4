//! Which identity a proxy may have. The kernel says which unix user it is; a join token, or the annotation
//! `meshring.io/unix-uid` of its workload, says what a foreign user is good for.

use std::time::SystemTime;

use meshring_core::link::Hello;

use super::permission;
use crate::{
    ca::{
        SpiffeId,
        tokens::{Claim, Tokens},
    },
    spec::{Body, Kind, World},
};

/// The service account of a workload about which nothing is known, as in Kubernetes.
const DEFAULT_ACCOUNT: &str = "default";

/// What a connection may claim; decided once, when it greets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// Control's own user or root: any workload.
    Any,
    /// A join token's holder.
    Token(Claim),
    /// Workloads that are annotated with this user id.
    User(u32),
    /// Nothing, and why; the proxy gets its tables all the same.
    Nothing(String),
}

/// Decides about a proxy that greets.
///
/// # Errors
/// A foreign user who may not even see the tables: the message for the proxy.
pub fn admit(uid: u32, hello: &Hello, tokens: &Tokens, world: &World) -> Result<Grant, String> {
    judge(permission::check(uid).err().map(|denied| denied.to_string()), uid, hello, tokens, world)
}

/// `foreign` is what a foreign user without any right is told.
fn judge(foreign: Option<String>, uid: u32, hello: &Hello, tokens: &Tokens, world: &World) -> Result<Grant, String> {
    let grant = match &hello.join_token {
        Some(token) => match (tokens.redeem(token, uid, SystemTime::now()), &foreign) {
            (Ok(claim), _) => Grant::Token(claim),
            (Err(error), Some(_)) => return Err(error.to_string()),
            (Err(error), None) => return Ok(Grant::Nothing(error.to_string())),
        },
        None if foreign.is_none() => return Ok(Grant::Any),
        None => Grant::User(uid),
    };
    let Some(foreign) = foreign else { return Ok(grant) };
    // A foreign user gets nothing at all as another workload than its own: not its tables, not a word in a publication.
    match (identity("any", &grant, hello, world), &grant) {
        (Ok(_), _) => Ok(grant),
        // Not why: that would tell a stranger about a workload of others.
        (Err(_), Grant::User(_)) => Err(format!(
            "{foreign}, annotate {}/{} with meshring.io/unix-uid, or give the proxy a join token (--join-token)",
            hello.namespace, hello.workload
        )),
        (Err(reason), _) => Err(reason),
    }
}

/// The identity of a proxy's workload, as the configuration is now.
///
/// # Errors
/// It gets none, and why.
pub fn identity(trust_domain: &str, grant: &Grant, hello: &Hello, world: &World) -> Result<SpiffeId, String> {
    let Hello { namespace, workload, .. } = hello;
    let known = Known::of(world, namespace, workload)?;
    let account = match (known.account.as_deref(), hello.service_account.as_deref()) {
        (Some(known), Some(claimed)) if known != claimed => {
            return Err(format!(
                "the proxy says that {namespace}/{workload} runs as service account {claimed} (--service-account), the \
                 configuration says {known}"
            ));
        }
        (known, claimed) => known.or(claimed).unwrap_or(DEFAULT_ACCOUNT),
    };
    match grant {
        Grant::Any => {}
        Grant::Token(claim) if claim.namespace == *namespace && claim.service_account == account => {}
        Grant::Token(Claim { namespace: of, service_account }) => {
            return Err(format!(
                "the join token is for service account {of}/{service_account}, and {namespace}/{workload} runs as \
                 {namespace}/{account}"
            ));
        }
        Grant::User(uid) if known.uid == Some(*uid) => {}
        Grant::User(uid) => {
            return Err(format!(
                "user id {uid} may not speak for {namespace}/{workload}: annotate the workload with meshring.io/unix-uid, \
                 or give the proxy a join token"
            ));
        }
        Grant::Nothing(reason) => return Err(reason.clone()),
    }
    SpiffeId::workload(trust_domain, namespace, account)
        .map_err(|error| format!("{namespace}/{account} cannot be an identity: {error}"))
}

/// What the configuration says about a workload.
#[derive(Debug, Default)]
struct Known {
    account: Option<String>,
    uid: Option<u32>,
}

impl Known {
    fn of(world: &World, namespace: &str, workload: &str) -> Result<Self, String> {
        let mut known = Self::default();
        for kind in [Kind::Pod, Kind::WorkloadEntry] {
            let Some(resource) = world.resource(kind, namespace, workload) else { continue };
            let (account, uid) = match &resource.body {
                Body::Pod(pod) => (pod.service_account.as_deref(), pod.unix_uid),
                Body::WorkloadEntry(entry) => (entry.service_account.as_deref(), entry.unix_uid),
                _ => continue,
            };
            if let (Some(one), Some(other)) = (known.account.as_deref(), account)
                && one != other
            {
                return Err(format!(
                    "Pod and WorkloadEntry {namespace}/{workload} name different service accounts: {one} and {other}"
                ));
            }
            known.account = known.account.or_else(|| account.map(str::to_owned));
            known.uid = known.uid.or(uid);
        }
        Ok(known)
    }
}

#[cfg(test)]
mod tests;
