//! Which number is active: rollback, and numbers that come from elsewhere.

use std::{sync::Arc, time::Duration};

use meshring_core::{
    id::Generation,
    limits::PREPARE_MS_MAX,
    snapshot::layout::{HEADER_BYTES, Header},
};

use super::{
    publish::{Published, Publisher, ROLLED_BACK_NAME},
    refusal::Refusal,
};
use crate::control::{fleet::Retained, state::RolledBack};

impl Publisher {
    /// Makes an older retained generation active; without a number, the one before the active one.
    pub fn rollback(&mut self, to: Option<Generation>) -> Result<Published, Refusal> {
        let active = self.fleet.active();
        let retained = self.fleet.retained();
        let list = retained.iter().map(Generation::to_string).collect::<Vec<_>>().join(", ");
        let target = match to {
            Some(to) => to,
            None => retained.iter().copied().filter(|generation| *generation < active).max().ok_or_else(|| {
                Refusal::NoGeneration(format!(
                    "no generation before {active} is retained: there is nothing to roll back to"
                ))
            })?,
        };
        let content = self.fleet.retained_as(target).ok_or_else(|| {
            Refusal::NoGeneration(format!("generation {target} is not retained; retained are {list}"))
        })?;
        if target == active {
            return Err(Refusal::NoGeneration(format!("generation {target} is active already; retained are {list}")));
        }
        // Which generation holds what the sources say; it may have left the retained ones.
        let says = |generation: &&Generation| {
            self.fleet.retained_as(**generation).is_some_and(|content| content.checksum == self.state.desired.0)
        };
        let from = retained.iter().rev().find(says).or(retained.last()).copied().unwrap_or(active);
        let desired = content.checksum == self.state.desired.0;
        self.state.rolled_back = (!desired).then_some(RolledBack { from });
        self.remember(&content, &format!("rollback from {active}"), &[]);
        self.activate();
        if self.state.rolled_back.is_some() {
            let stored = content.to_bytes().and_then(|bytes| self.run_dir.store(ROLLED_BACK_NAME, &bytes));
            if let Err(error) = stored {
                tracing::warn!("{ROLLED_BACK_NAME}: {error}; the rollback holds until control restarts");
            }
            tracing::warn!(
                "rolled back from generation {active} to {target}: the next change of the configuration ends this"
            );
        } else {
            tracing::info!("generation {target} is active: it is what the configuration says");
        }
        Ok(Published { diagnostics: Vec::new(), ..self.nothing_new() })
    }

    /// A proxy has connected that runs `running`. Where its number is beyond ours, or means something else here, our
    /// numbers go on above it, so that no number ever has two contents on this node.
    pub fn recognise(&mut self, running: Generation, checksum: u64) {
        let highest = self.given.max(self.state.active);
        let ours = self.fleet.retained_as(running).map(|content| content.checksum).or(self.state.checksum_of(running));
        let strange = running > highest || ours.is_some_and(|ours| ours != checksum);
        if running.0 == 0 || !strange {
            return;
        }
        self.given = highest.max(running);
        match self.fleet.active_content() {
            None => {
                // Nothing of ours to publish yet: the page says what proxies run.
                if self.fleet.active().0 == 0 {
                    self.fleet.commit(running);
                }
            }
            Some(active) if active.checksum == checksum && running > highest => self.renumber(&active, running),
            Some(active) => {
                let next = self.next_number();
                self.renumber(&active, next);
            }
        }
        self.store_state();
        self.show();
    }

    fn renumber(&mut self, active: &Retained, to: Generation) {
        let from = active.generation;
        let content = match renumbered(active, to) {
            Ok(content) => content,
            Err(error) => return tracing::error!("generation {from} cannot be renumbered to {to}: {error}"),
        };
        let prepared = self.fleet.prepare(&content, Duration::from_millis(PREPARE_MS_MAX));
        if let Some((who, why)) = prepared.refused.first() {
            self.fleet.withdraw(to);
            return tracing::error!("generation {from} cannot be renumbered to {to}: {who}: {why}");
        }
        self.remember(
            &content,
            &format!("renumbered from {from}: a proxy runs a number of an earlier control process"),
            &[],
        );
        self.activate();
        self.fleet.keep_only(to);
        tracing::info!("generation {from} goes on as {to}: a proxy came with a number of an earlier control process");
    }
}

/// The same content under another number.
fn renumbered(content: &Retained, to: Generation) -> Result<Arc<Retained>, String> {
    let mut bytes = content.to_bytes().map_err(|error| error.to_string())?;
    let (header, archive) = bytes.split_first_chunk_mut::<HEADER_BYTES>().ok_or("it has no header")?;
    *header = Header::of(to, archive).encode();
    Retained::from_bytes(&bytes).map_err(|error| error.to_string())
}
