//! From an accepted socket to a served request: limits, TLS handshake, identity, HTTP/1.1 and HTTP/2.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::StatusCode;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::linger::Linger;
use super::patience::Patience;
use crate::api::{self, App};
use crate::client::causes;
use crate::tls::Peer;

/// A client that has not finished its TLS handshake by then is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// HTTP/1.1: from one answer to the end of the next request's headers, so also how long a connection may idle.
/// Longer than the 90 s of Go's and hyper's pools, so that it is the client that closes and no request meets a closing connection.
const IDLE: Duration = Duration::from_mins(2);
/// HTTP/2: a ping this often, and the connection is dropped if it is not answered.
const PING: Duration = Duration::from_secs(30);
const PING_ANSWER: Duration = Duration::from_secs(10);
/// HTTP/2: requests in flight on one connection.
const STREAMS: u32 = 128;
/// Request line and headers together, bytes: more than any client of the Transit API sends.
const HEADERS: usize = 16 * 1024;

/// Accepts connections and serves each in a task of its own.
pub(super) struct Acceptor {
    app: Arc<App>,
    listener: TcpListener,
    http: Arc<Builder<TokioExecutor>>,
    slots: Arc<Semaphore>,
    /// Each connection holds a receiver: a value tells it to finish, and when all are gone everything is finished.
    stop: watch::Sender<()>,
}

impl Acceptor {
    pub(super) fn new(app: Arc<App>, listener: TcpListener) -> Self {
        let slots = Arc::new(Semaphore::new(app.config.max_connections));
        Self {
            app,
            listener,
            http: Arc::new(http()),
            slots,
            stop: watch::Sender::new(()),
        }
    }

    /// Accepts until dropped.
    pub(super) async fn run(&self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, remote)) => self.admit(stream, remote),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    // Out of file descriptors or memory: accepting again at once would only burn the processor.
                    tracing::error!(%error, "can't accept connections");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Accepts nothing more, tells every connection to finish, and waits for them, no longer than `limit`.
    pub(super) async fn drain(self, limit: Duration) {
        drop(self.listener);
        self.stop.send_replace(());
        if tokio::time::timeout(limit, self.stop.closed())
            .await
            .is_err()
        {
            tracing::warn!(
                connections = self.stop.receiver_count(),
                "connections were still busy after {limit:?} and are cut off"
            );
        }
    }

    fn admit(&self, stream: TcpStream, remote: SocketAddr) {
        // One connection too many is closed at once: a client that waits unheard can't go elsewhere.
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            tracing::warn!(%remote, "refused: max_connections are open");
            return;
        };
        let (app, http, stop) = (self.app.clone(), self.http.clone(), self.stop.subscribe());
        tokio::spawn(async move {
            connection(app, &http, stream, remote, stop).await;
            drop(slot);
        });
    }
}

async fn connection(
    app: Arc<App>,
    http: &Builder<TokioExecutor>,
    stream: TcpStream,
    remote: SocketAddr,
    mut stop: watch::Receiver<()>,
) {
    // Answers are one small write; Nagle's algorithm would hold some of them back by 40 ms.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%remote, %error, "TCP_NODELAY");
    }
    let handshake = TlsAcceptor::from(app.tls.server_config()).accept(stream);
    let tls = tokio::select! {
        done = tokio::time::timeout(HANDSHAKE, handshake) => match done {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                tracing::info!(%remote, error = causes(&error), "TLS handshake refused");
                return;
            }
            Err(_) => {
                tracing::info!(%remote, "TLS handshake not finished within {HANDSHAKE:?}");
                return;
            }
        },
        _ = stop.changed() => return,
    };
    let peer = match peer(&tls, remote) {
        Ok(peer) => Arc::new(peer),
        Err(problem) => {
            tracing::warn!(%remote, problem, "client certificate without an identity");
            return;
        }
    };
    let (out, unread) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let tls = Linger::new(tls, unread.clone());
    let service = service_fn(|request| {
        let (app, peer) = (app.clone(), peer.clone());
        let (out, unread) = (out.clone(), unread.clone());
        async move {
            let response = api::handle(app.clone(), peer.clone(), request).await;
            // `Connection: close` does this for HTTP/1.1; HTTP/2 has no such header.
            if response.status() == StatusCode::FORBIDDEN && app.tls.still_valid(&peer).is_err() {
                out.notify_one();
            }
            // A refusal need not have read the body; then HTTP/1.1 ends the connection after it.
            unread.store(!response.status().is_success(), Ordering::Relaxed);
            Ok::<_, Infallible>(response)
        }
    });
    let mut http = http.clone();
    http.http1().timer(Patience::new(IDLE));
    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(tls), service));
    let served = tokio::select! {
        biased;
        served = serving.as_mut() => served,
        _ = stop.changed() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
        () = out.notified() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%remote, error = causes(&*error), "connection ended");
    }
}

fn http() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        // Each connection puts its own in its place.
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING_ANSWER)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(HEADERS).unwrap_or(u32::MAX));
    builder
}

fn peer(tls: &TlsStream<TcpStream>, remote: SocketAddr) -> Result<Peer, String> {
    let (_, session) = tls.get_ref();
    // rustls has refused the handshake of a client without a certificate; so this can't be empty.
    let chain: Vec<Vec<u8>> = session
        .peer_certificates()
        .unwrap_or_default()
        .iter()
        .map(|certificate| certificate.to_vec())
        .collect();
    Peer::new(chain, remote).map_err(|error| error.to_string())
}

/// Errors that `accept` reports for a connection which was gone before it was accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}
