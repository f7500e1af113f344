//! Mounts that come and go while the device runs.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::points::{Points, Ways};
use super::slot::{Slot, Spec};
use super::{MountId, Mounts, Store};

/// Paths of all mounts, and the numbers of what leads to them.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub mounts: Vec<(String, MountId)>,
    ways: Ways,
}

impl Places {
    /// The directories that they make.
    pub fn points(&mut self) -> Arc<Points> {
        let mounts = self.mounts.iter().map(|(path, number)| (path.as_str(), *number));
        Arc::new(Points::new(mounts, &mut self.ways))
    }
}

impl<S: Store> Mounts<S> {
    fn change_places<T>(&self, change: impl FnOnce(&mut Places) -> T) -> T {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut places);
        *self.points.write().unwrap_or_else(PoisonError::into_inner) = places.points();
        result
    }

    /// Puts another store into the share, with a number that none had before. It takes the place of one that is at its path.
    ///
    /// # Errors
    /// When there is no room for such a number, or no thread can be made.
    pub fn add(&self, number: MountId, spec: Spec<S>) -> std::io::Result<()> {
        let slot = self.slots.get(usize::from(number)).filter(|slot| slot.get().is_none());
        let slot = slot.ok_or_else(|| std::io::Error::other(format!("there is no room for mount {number}")))?;
        let path = spec.path.clone();
        // Looked at above; there is one thread that changes anything.
        let _ = slot.set(Slot::new(spec)?);
        self.change_places(|places| {
            places.mounts.retain(|(other, _)| *other != path);
            places.mounts.push((path, number));
        });
        Ok(())
    }

    /// Takes a mount out of the share: nothing is found in it any more. [`Mounts::drain`] does the rest. Returns whether there is one.
    pub fn remove(&self, number: MountId) -> bool {
        self.change_places(|places| places.mounts.retain(|(_, other)| *other != number));
        let slot = self.slot(number);
        slot.into_iter().for_each(Slot::leave);
        slot.is_some()
    }

    /// Stores what a mount that was removed has left, however long that takes, then ends it for whoever has anything open in it.
    pub fn drain(&self, number: MountId) {
        self.slot(number).into_iter().for_each(Slot::drain);
    }

    /// How long names and attributes of a mount may be trusted from now on, under the policy that has such a time.
    pub fn set_expiration(&self, number: MountId, time: Duration) {
        self.slot(number).into_iter().for_each(|slot| slot.set_expiration(time));
    }
}
