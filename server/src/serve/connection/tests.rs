#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Instant;

use hyper::client::conn::http1 as client;
use tokio::task::JoinHandle;

use super::*;

const LIMIT: Duration = Duration::from_secs(1);

/// A connection with that idle limit, whose requests take as long as their path says in
/// milliseconds. What was agreed on by TLS is not in it.
struct Connection {
    requests: client::SendRequest<Full<Bytes>>,
    server: JoinHandle<Result<(), hyper::Error>>,
    stop: watch::Sender<()>,
}

impl Connection {
    async fn open() -> Self {
        Self::with_limit(LIMIT).await
    }

    async fn with_limit(limit: Duration) -> Self {
        let (here, there) = tokio::io::duplex(1 << 16);
        let (stop, stopped) = watch::channel(());
        let server = tokio::spawn(async move {
            let course = Arc::<ConnectionState>::default();
            let service = service_fn(|request: Request<Incoming>| {
                let course = &course;
                async move {
                    course.step();
                    let time = request.uri().path().trim_start_matches('/').parse();
                    tokio::time::sleep(Duration::from_millis(time.unwrap())).await;
                    course.step();
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
                }
            });
            let serving = http1().serve_connection(TokioIo::new(there), service);
            serve(serving, course.clone().end(stopped, Some(limit))).await
        });
        let (requests, connection) = client::handshake(TokioIo::new(here)).await.unwrap();
        tokio::spawn(connection);
        Self {
            requests,
            server,
            stop,
        }
    }

    async fn request(&mut self, time: Duration) {
        let request = Request::get(format!("/{}", time.as_millis()));
        let request = request.body(Full::default()).unwrap();
        self.requests.ready().await.unwrap();
        let answer = self.requests.send_request(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }

    /// How long until the server ends it.
    async fn end(self) -> Duration {
        let start = Instant::now();
        let ended = tokio::time::timeout(10 * LIMIT, self.server).await;
        ended.expect("it was not ended").unwrap().unwrap();
        start.elapsed()
    }
}

#[tokio::test]
async fn a_connection_without_requests_is_ended() {
    // At least the limit, at most one look more; and the machine may be busy.
    assert!(Connection::open().await.end().await < 8 * LIMIT);
    let mut used = Connection::open().await;
    used.request(Duration::ZERO).await;
    assert!(used.end().await >= LIMIT / 2);
}

#[tokio::test]
async fn nothing_waits_for_the_end_of_a_connection_that_the_client_has_ended() {
    let Connection {
        mut requests,
        server,
        stop,
    } = Connection::with_limit(Duration::from_hours(1)).await;
    requests.ready().await.unwrap();
    drop(requests);
    let gone = async {
        server.await.unwrap().unwrap();
        stop.closed().await;
    };
    tokio::time::timeout(10 * LIMIT, gone).await.unwrap();
}

#[tokio::test]
async fn neither_a_long_request_nor_a_pause_below_the_limit_ends_a_connection() {
    let mut connection = Connection::open().await;
    connection.request(3 * LIMIT).await;
    for _ in 0..5 {
        tokio::time::sleep(LIMIT / 2).await;
        connection.request(Duration::ZERO).await;
    }
    connection.end().await;
}
