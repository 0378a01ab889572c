//! The end of a connection on which more was sent than was read.
//!
//! Closing a socket that has unread bytes in it resets the connection, and a client that is still
//! writing loses the answer which was to tell it why. So what still comes is read and dropped for a
//! while (RFC 9112, section 9.6).

use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tokio_rustls::server::TlsStream;

use super::plain::Plain;

/// Time for a client to read the answer and to stop.
const MAX_LINGER: Duration = Duration::from_secs(2);

/// A TLS stream that lingers at its end if it is told to.
pub(super) struct Linger {
    tls: TlsStream<Plain>,
    told: Arc<AtomicBool>,
    /// Set once our side is closed.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Linger {
    /// It lingers if `told` is true when it is shut down.
    pub(super) fn new(tls: TlsStream<Plain>, told: Arc<AtomicBool>) -> Self {
        Self {
            tls,
            told,
            deadline: None,
        }
    }
}

impl AsyncRead for Linger {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Linger {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.deadline.is_none() {
            ready!(Pin::new(&mut this.tls).poll_shutdown(cx))?;
            if !this.told.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
        }
        let deadline = this
            .deadline
            .get_or_insert_with(|| Box::pin(sleep(MAX_LINGER)));
        // Below TLS: nobody looks at these bytes.
        let (tcp, _) = this.tls.get_mut();
        let mut dropped = [0; 16 * 1024];
        while deadline.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::new(&mut dropped);
            match ready!(Pin::new(&mut *tcp).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }
}
