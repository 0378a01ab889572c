//! A database of a test: gone when the last that has it is.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Engine, EngineError, Expected, Pair, Write};

/// Copies have the same content.
#[derive(Clone, Default)]
pub(in crate::store) struct Memory(Arc<Mutex<BTreeMap<Vec<u8>, Vec<u8>>>>);

impl Memory {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for Memory {
    fn folder(&self) -> Option<&Path> {
        None
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        Ok(self.all().get(key).cloned())
    }

    fn scan(&self) -> Result<Vec<Pair>, EngineError> {
        Ok(self.all().clone().into_iter().collect())
    }

    fn keep_room(&self, _bytes: u64) -> Result<(), EngineError> {
        Ok(())
    }

    fn write(&self, only_if: Option<&Expected>, writes: Vec<Write>) -> Result<(), EngineError> {
        let mut all = self.all();
        if let Some((key, value)) = only_if
            && all.get(key) != value.as_ref()
        {
            return Err(EngineError::Conflict);
        }
        for (key, value) in writes {
            match value {
                Some(value) => all.insert(key, value),
                None => all.remove(&key),
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::suite;
    use super::*;

    #[test]
    fn it_keeps_what_an_engine_promises() {
        suite::run(&mut || {
            let kept = Memory::default();
            suite::Kept::new(move || Box::new(kept.clone()))
        });
    }
}
