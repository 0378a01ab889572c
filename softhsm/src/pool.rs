//! Things that tests take turns with, as many as there are.

use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Things of which a test needs one for itself while it runs, and which suit the next in whatever
/// state it leaves them.
#[derive(Debug)]
pub struct Pool<T> {
    idle: Mutex<Vec<Arc<T>>>,
    returned: Condvar,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Taken<T: 'static> {
    thing: Arc<T>,
    pool: &'static Pool<T>,
}

impl<T> Pool<T> {
    /// Of these.
    pub fn new(things: impl IntoIterator<Item = T>) -> Self {
        Self {
            idle: Mutex::new(things.into_iter().map(Arc::new).collect()),
            returned: Condvar::new(),
        }
    }

    /// One that nobody else has; waits for it. The one that came back last goes first, so that what
    /// is made at a thing's first use is made for as few as will do.
    pub fn take(&'static self) -> Taken<T> {
        let mut idle = self.idle();
        loop {
            if let Some(thing) = idle.pop() {
                return Taken { thing, pool: self };
            }
            idle = self
                .returned
                .wait(idle)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Arc<T>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Deref for Taken<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.thing
    }
}

impl<T> Drop for Taken<T> {
    fn drop(&mut self) {
        self.pool.idle().push(Arc::clone(&self.thing));
        self.pool.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
    use std::thread;

    use super::*;

    #[test]
    fn nobody_has_what_another_one_has_and_all_get_one() {
        static POOL: LazyLock<Pool<AtomicU32>> =
            LazyLock::new(|| Pool::new([(); 3].map(|()| AtomicU32::new(0))));
        let users: Vec<_> = (0..8)
            .map(|_| {
                thread::spawn(|| {
                    for _ in 0..1000 {
                        let users = POOL.take();
                        assert_eq!(users.fetch_add(1, SeqCst), 0);
                        thread::yield_now();
                        users.fetch_sub(1, SeqCst);
                    }
                })
            })
            .collect();
        for user in users {
            user.join().unwrap();
        }
        let (last, _others) = (POOL.take(), (POOL.take(), POOL.take()));
        let that: *const AtomicU32 = &raw const *last;
        drop(last);
        assert_eq!(&raw const *POOL.take(), that, "the one that came back last");
    }
}
