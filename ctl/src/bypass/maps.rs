//! The maps that programs and control share.

use std::io;

use meshring_core::limits::{BYPASS_LISTENERS_MAX, BYPASS_PROXIES_MAX};

use super::{
    layout::{counter, flow, key, listener, pair, process, settings},
    sys::{Map, MapSpec, MapType},
};

/// `BPF_F_NO_PREALLOC`: entries are allocated when they are needed.
const NO_PREALLOC: u32 = 1;
/// `BPF_F_CLONE`: an accepted socket has what its listener has.
const CLONE: u32 = 1 << 9;

/// All maps of one installation.
#[derive(Debug)]
pub(super) struct Maps {
    /// Captured sockets by their keys.
    pub(super) sockets: Map,
    /// What sockets know of themselves.
    pub(super) flows: Map,
    /// Offers of ends that have connected.
    pub(super) pairs: Map,
    /// Registered processes.
    pub(super) processes: Map,
    /// Addresses of registered listeners.
    pub(super) listeners: Map,
    /// What control wants.
    pub(super) settings: Map,
    /// Per slot.
    pub(super) counters: Map,
}

impl Maps {
    /// Creates them; `sockets_max` bounds what can be captured.
    pub(super) fn create(sockets_max: u32) -> Result<Self, (&'static str, io::Error)> {
        let map = |name, kind, key_bytes, value_bytes, entries_max, flags| {
            let spec = MapSpec { name, kind, key_bytes, value_bytes, entries_max, flags };
            Map::create(spec).map_err(|error| (name, error))
        };
        let key_bytes = key::BYTES as u32;
        Ok(Self {
            sockets: map("mesh_sockets", MapType::Sockhash, key_bytes, 8, sockets_max, 0)?,
            flows: map("mesh_flows", MapType::SkStorage, 4, flow::BYTES as u32, 0, NO_PREALLOC | CLONE)?,
            pairs: map("mesh_pairs", MapType::Hash, key_bytes, pair::BYTES as u32, sockets_max, NO_PREALLOC)?,
            processes: map("mesh_processes", MapType::Hash, 4, process::BYTES as u32, BYPASS_PROXIES_MAX, 0)?,
            listeners: map("mesh_listeners", MapType::Hash, listener::BYTES as u32, 4, BYPASS_LISTENERS_MAX, 0)?,
            settings: map("mesh_settings", MapType::Array, 4, settings::BYTES as u32, 1, 0)?,
            counters: map("mesh_counters", MapType::PercpuArray, 4, counter::BYTES as u32, BYPASS_PROXIES_MAX, 0)?,
        })
    }

    /// All of them, for people.
    pub(super) fn all(&self) -> [&Map; 7] {
        let Self { sockets, flows, pairs, processes, listeners, settings, counters } = self;
        [sockets, flows, pairs, processes, listeners, settings, counters]
    }
}
