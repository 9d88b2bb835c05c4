//! Replacing the root without an interruption, in three steps: the new root enters the bundle and reaches every proxy;
//! then it issues; when nothing that the old one has issued is valid any more, the old one leaves the bundle.

use serde::{Deserialize, Serialize};

/// How far a replacement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Phase {
    /// No replacement is under way.
    #[default]
    Steady,
    /// The new root is in the bundle and the old one issues.
    Prepared {
        /// Since when, in seconds since 1970.
        since_s: u64,
    },
    /// The new root issues, and the old one is in the bundle still.
    Draining {
        /// Until when, in seconds since 1970.
        until_s: u64,
    },
}

/// A step that cannot be taken now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RotationError {
    /// The root is the operator's.
    #[error(
        "the CA is your own (--ca-cert): put the new root into --ca-chain beside the old one, restart control, wait until \
         `meshring certs` shows both at every proxy, then replace --ca-cert and --ca-key and restart again"
    )]
    Operator,
    /// The identities are somebody else's.
    #[error("identities come from SPIRE (--spire-socket): its server rotates the root")]
    Foreign,
    /// A replacement is under way.
    #[error("a new root is being brought in already; `meshring certs` shows how far it is")]
    UnderWay,
    /// Nothing is there to activate or to abort.
    #[error("no new root is prepared; `meshring certs rotate-root` begins")]
    NotPrepared,
    /// The file or the key.
    #[error("{0}")]
    Failed(String),
}
