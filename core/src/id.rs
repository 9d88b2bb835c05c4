//! Newtype indices into the table's arrays. A mix-up of two of them does not compile.

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
        #[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
        #[rkyv(derive(Clone, Copy, PartialEq, Eq, Debug))]
        pub struct $name(pub u32);

        impl $name {
            /// Position in the table's array of this kind.
            #[must_use]
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }

        rkyv_id!($name);
    )+};
}

macro_rules! rkyv_id {
    ($name:ident) => {
        impl From<&rkyv::Archived<$name>> for $name {
            fn from(archived: &rkyv::Archived<$name>) -> Self {
                $name(archived.0.to_native())
            }
        }
        impl From<rkyv::Archived<$name>> for $name {
            fn from(archived: rkyv::Archived<$name>) -> Self {
                $name(archived.0.to_native())
            }
        }
    };
}

ids! {
    /// A namespace that occurs in the table.
    NamespaceId,
    /// A configuration resource that something in the table comes from: kind, name, file and line.
    OriginId,
    /// A regular expression; each distinct pattern is compiled once per generation.
    RegexId,
    /// A virtual host: one domain on one port as one set of namespaces sees it.
    VirtualHostId,
    /// A route of a virtual host (one rule of a VirtualService).
    RouteId,
    /// A cluster: one service, port and subset.
    ClusterId,
    /// An endpoint: one address and port. Health and load live in per-worker arrays under the same index.
    EndpointId,
}

/// The number of a configuration generation. Control counts up from 1; 0 means "none yet".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl std::fmt::Display for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
