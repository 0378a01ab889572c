//! The timer of one HTTP/1.1 connection.
//!
//! hyper makes a new sleep for each request's head and drops it when the head is there. In tokio's wheel that is an entry made and removed under
//! a lock for each request, of which none ever fires. Here the connection has one entry, which is only put off when it fires too early.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

/// For [`hyper`]'s builder of one connection.
pub(super) struct Patience(Arc<Mutex<Pin<Box<tokio::time::Sleep>>>>);

impl Patience {
    /// To be called in the runtime. `expected`: how long the sleeps will be, about.
    pub(super) fn new(expected: Duration) -> Self {
        let sleep = Box::pin(tokio::time::sleep(expected));
        Self(Arc::new(Mutex::new(sleep)))
    }
}

impl Timer for Patience {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Until {
            entry: Arc::clone(&self.0),
            deadline: deadline.into(),
        })
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into()
    }
}

struct Until {
    entry: Arc<Mutex<Pin<Box<tokio::time::Sleep>>>>,
    deadline: tokio::time::Instant,
}

impl Sleep for Until {}

impl Future for Until {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut entry = self.entry.lock().unwrap_or_else(PoisonError::into_inner);
        if entry.deadline() > self.deadline {
            entry.as_mut().reset(self.deadline);
        }
        while entry.as_mut().poll(cx).is_ready() {
            // It may be that of an earlier sleep.
            if entry.deadline() >= self.deadline {
                return Poll::Ready(());
            }
            entry.as_mut().reset(self.deadline);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That it ends, not before its time.
    async fn ends_after(sleep: Pin<Box<dyn Sleep>>, least: Duration) {
        let begun = Instant::now();
        let ended = tokio::time::timeout(Duration::from_secs(20), sleep).await;
        assert!(ended.is_ok() && begun.elapsed() >= least);
    }

    #[tokio::test]
    async fn each_sleep_ends_at_its_own_time() {
        let (short, long) = (Duration::from_millis(20), Duration::from_millis(100));
        let timer = Patience::new(long);
        ends_after(timer.sleep(long), long).await;
        // The entry lies behind now...
        ends_after(timer.sleep(long), long).await;
        // ... ends too early for the next ...
        let given_up = tokio::time::timeout(short, timer.sleep(long)).await;
        assert!(given_up.is_err());
        ends_after(timer.sleep(long), long).await;
        // ... and too late.
        let hour = tokio::time::timeout(short, timer.sleep(Duration::from_hours(1))).await;
        assert!(hour.is_err());
        ends_after(timer.sleep(short), short).await;
        let mut moved = timer.sleep(short);
        timer.reset(&mut moved, timer.now() + long);
        ends_after(moved, long).await;
    }
}
