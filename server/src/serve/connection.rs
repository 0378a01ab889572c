//! From an accepted socket to a served request: limits, TLS handshake, identity, HTTP/1.1 and
//! HTTP/2.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use strongroom_core::causes::causes;
use strongroom_core::seldom::seldom;
use strongroom_core::tls::Peer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::linger::Linger;
use super::plain::Plain;
use crate::api::{self, App, Client, Endpoint};

/// A client that has not finished its TLS handshake by then is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/1.1: from one answer to the end of the next request's headers, so also how long a
/// connection may idle. At least, and at most a look more. Longer than the 90 s of Go's and hyper's
/// pools, so that it is the client that closes and no request meets a closing connection.
const MIN_IDLE_TIMEOUT: Duration = Duration::from_mins(2);
/// How often that is looked at: a timer for each request would cost more than the looks.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// HTTP/2: a ping this often, and the connection is dropped if it is not answered.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2: requests in flight on one connection.
const MAX_STREAMS: u32 = 128;
/// Request line and headers together, bytes: more than any client of the Transit API sends.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Accepts connections and serves each in a task of its own.
pub(super) struct Acceptor {
    app: Arc<App>,
    endpoint: Arc<Endpoint>,
    listener: TcpListener,
    slots: Arc<Semaphore>,
    /// Each connection holds a receiver: a value tells it to finish, and when all are gone
    /// everything is finished.
    stop: watch::Sender<()>,
}

impl Acceptor {
    pub(super) fn new(app: Arc<App>, listener: TcpListener, endpoint: Arc<Endpoint>) -> Self {
        let slots = Arc::new(Semaphore::new(endpoint.limits.connections));
        Self {
            app,
            endpoint,
            listener,
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
                    // Out of file descriptors or memory: accepting again at once would only burn
                    // the processor.
                    seldom!(1, error, %error, "can't accept connections");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Accepts nothing more, tells every connection to finish, and waits for them, no longer than
    /// `limit`.
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
        // One connection too many is closed at once: a client that waits unheard can't go
        // elsewhere.
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            seldom!(10, warn, %remote, "refused: max_connections are open");
            return;
        };
        let (app, endpoint) = (self.app.clone(), self.endpoint.clone());
        let stop = self.stop.subscribe();
        tokio::spawn(async move {
            connection(app, endpoint, stream, remote, stop).await;
            drop(slot);
        });
    }
}

async fn connection(
    app: Arc<App>,
    endpoint: Arc<Endpoint>,
    stream: TcpStream,
    remote: SocketAddr,
    mut stop: watch::Receiver<()>,
) {
    // Answers are one small write; Nagle's algorithm would hold some of them back by 40 ms.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%remote, %error, "TCP_NODELAY");
    }
    let handshake = TlsAcceptor::from(app.tls.server_config()).accept(Plain(stream));
    let tls = tokio::select! {
        done = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake) => match done {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                seldom!(10, info, %remote, error = causes(&error), "TLS handshake refused");
                return;
            }
            Err(_) => {
                seldom!(10, info, %remote, "TLS handshake not finished within {HANDSHAKE_TIMEOUT:?}");
                return;
            }
        },
        _ = stop.changed() => return,
    };
    let peer = match peer(&tls, remote) {
        Ok(peer) => peer,
        Err(problem) => {
            seldom!(10, warn, %remote, problem, "client certificate without an identity");
            return;
        }
    };
    let session = Arc::new(Session {
        client: Arc::new(Client {
            app,
            endpoint,
            peer,
        }),
        course: Arc::default(),
    });
    let course = Arc::clone(&session.course);
    let unread = Arc::new(AtomicBool::new(false));
    let two = tls.get_ref().1.alpn_protocol() == Some(b"h2");
    let tls = TokioIo::new(Linger::new(tls, unread.clone()));
    let service = service_fn(|request| answer(session.clone(), unread.clone(), request));
    let ended = if two {
        let serving = http2().serve_connection(tls, service);
        serve(serving, course.end(stop.clone(), None)).await
    } else {
        let serving = http1().serve_connection(tls, service);
        serve(serving, course.end(stop.clone(), Some(MIN_IDLE_TIMEOUT))).await
    };
    // Held until all is served: the server's stop waits for it.
    drop(stop);
    if let Err(error) = ended {
        tracing::debug!(%remote, error = causes(&error), "connection ended");
    }
}

/// What the requests of one connection share.
struct Session {
    client: Arc<Client>,
    course: Arc<ConnectionState>,
}

/// What is known of a connection beside its requests.
#[derive(Default)]
struct ConnectionState {
    /// Odd while an HTTP/1.1 request is answered.
    heads_and_answers: AtomicU64,
    /// Its certificate is no longer good.
    out: Notify,
}

async fn answer(
    session: Arc<Session>,
    unread: Arc<AtomicBool>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    session.course.step();
    let client = &session.client;
    let response = if names_its_host(&request) {
        api::handle(client.clone(), request).await
    } else {
        api::without_a_host(client, &request)
    };
    // `Connection: close` does this for HTTP/1.1; HTTP/2 has no such header.
    if response.status() == StatusCode::FORBIDDEN
        && client.app.tls.still_valid(&client.peer).is_err()
    {
        session.course.out.notify_one();
    }
    // A refusal need not have read the body; then HTTP/1.1 ends the connection after it.
    unread.store(!response.status().is_success(), Ordering::Relaxed);
    session.course.step();
    Ok(response)
}

/// HTTP/1.1 has exactly one `Host`, which can be one (RFC 9112, section 3.2). hyper does not ask
/// for it.
fn names_its_host<B>(request: &Request<B>) -> bool {
    if request.version() != Version::HTTP_11 {
        return true;
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let first = hosts.next();
    hosts.next().is_none() && first.is_some_and(|host| is_host(host.as_bytes()))
}

/// Of the characters of `uri-host [ ":" port ]` (RFC 3986, section 3.2.2) and not empty, as the URI
/// of no HTTPS request is without one. Which server it names is not asked.
fn is_host(host: &[u8]) -> bool {
    let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]%".contains(byte);
    !host.is_empty() && host.iter().all(good)
}

/// Why a connection is ended from here.
enum End {
    /// It has all the time that requests in flight get.
    Gracefully,
    /// No request is in flight on it.
    Idle,
}

/// Serves until the client ends the connection, or `end` comes.
async fn serve<C: GracefulConnection>(
    serving: C,
    end: impl Future<Output = End> + Send + 'static,
) -> Result<(), C::Error> {
    let mut serving = pin!(serving);
    // In a task of its own: here, what it waits for would be asked with each request.
    let (mut tell, told) = oneshot::channel();
    tokio::spawn(async move {
        let end = tokio::select! {
            end = end => end,
            () = tell.closed() => return,
        };
        let _ = tell.send(end);
    });
    let end = tokio::select! {
        biased;
        served = serving.as_mut() => return served,
        // That task is lost only with the runtime.
        end = told => end.unwrap_or(End::Gracefully),
    };
    serving.as_mut().graceful_shutdown();
    match end {
        End::Gracefully => serving.await,
        End::Idle => tokio::time::timeout(IDLE_CHECK_INTERVAL, serving)
            .await
            .unwrap_or(Ok(())),
    }
}

impl ConnectionState {
    /// Returns once the connection is to be ended. `idle`: how long it may be without a request.
    async fn end(self: Arc<Self>, mut stop: watch::Receiver<()>, idle: Option<Duration>) -> End {
        let idle = async {
            match idle {
                Some(limit) => self.idle(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = stop.changed() => End::Gracefully,
            () = self.out.notified() => End::Gracefully,
            () = idle => End::Idle,
        }
    }

    /// A request's head came, or its answer is made.
    fn step(&self) {
        self.heads_and_answers.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns once there was no request for that long.
    async fn idle(&self, limit: Duration) {
        let mut seen = 0;
        let mut since = Instant::now();
        loop {
            tokio::time::sleep(IDLE_CHECK_INTERVAL.min(limit)).await;
            let now = self.heads_and_answers.load(Ordering::Relaxed);
            if now != seen || now % 2 == 1 {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() >= limit {
                return;
            }
        }
    }
}

fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .header_read_timeout(None)
        .max_buf_size(MAX_HEADER_BYTES);
    builder
}

fn http2() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX));
    builder
}

fn peer(tls: &TlsStream<Plain>, remote: SocketAddr) -> Result<Peer, String> {
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

#[cfg(test)]
mod tests;
