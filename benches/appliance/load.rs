//! The load: keep-alive connections that each send the same request again and again for a while.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio_rustls::TlsConnector;

/// What is sent, and where.
pub struct Load {
    /// The server.
    pub address: SocketAddr,
    /// TLS with the client's certificate.
    pub tls: Arc<rustls::ClientConfig>,
    /// e.g. `/v1/transit/decrypt/bench`
    pub path: String,
    /// The JSON body.
    pub body: Bytes,
    /// Connections at once.
    pub connections: usize,
}

/// What came of it.
pub struct Rate {
    /// Answers with status 200 per second.
    pub per_second: f64,
    /// Requests answered, the warm-up's too.
    pub answered: usize,
    /// Median latency of one request.
    pub median: Duration,
    /// 99th percentile.
    pub p99: Duration,
}

impl Rate {
    /// What one request cost of this processor time, microseconds.
    pub fn cpu_us(&self, used: Duration) -> f64 {
        used.as_secs_f64() * 1e6 / self.answered as f64
    }
}

impl Load {
    /// Runs for `time`, after a tenth of it as a warm-up that is not counted. Any answer but 200
    /// stops the benchmark.
    pub async fn run(&self, time: Duration) -> Rate {
        let ready = Arc::new(Barrier::new(self.connections));
        let workers: Vec<_> = (0..self.connections)
            .map(|_| {
                tokio::spawn(connection(
                    self.address,
                    self.tls.clone(),
                    self.request(),
                    ready.clone(),
                    time,
                ))
            })
            .collect();
        let mut latencies = Vec::new();
        let mut answered = 0;
        for worker in workers {
            let (own, all) = worker.await.expect("a connection's task ended early");
            latencies.extend(own);
            answered += all;
        }
        latencies.sort_unstable();
        let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
        Rate {
            per_second: latencies.len() as f64 / time.as_secs_f64(),
            answered,
            median: at(0.5),
            p99: at(0.99),
        }
    }

    fn request(&self) -> Request<Full<Bytes>> {
        Request::post(&self.path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(self.body.clone()))
            .expect("a valid request")
    }
}

async fn connection(
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    request: Request<Full<Bytes>>,
    ready: Arc<Barrier>,
    time: Duration,
) -> (Vec<Duration>, usize) {
    let tcp = TcpStream::connect(address).await.expect("connect");
    tcp.set_nodelay(true).expect("TCP_NODELAY");
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = TlsConnector::from(tls)
        .connect(name, tcp)
        .await
        .expect("TLS handshake");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .expect("HTTP handshake");
    tokio::spawn(connection);

    let mut latencies = Vec::with_capacity(1 << 16);
    // Handshakes are not what is measured, nor is the first moment.
    ready.wait().await;
    let start = Instant::now() + time / 10;
    let end = start + time;
    let mut answered = 0;
    loop {
        let sent = Instant::now();
        // One at least, so that a machine too slow for the time still gives a figure.
        if sent >= end && !latencies.is_empty() {
            return (latencies, answered);
        }
        let answer = sender
            .send_request(request.clone())
            .await
            .expect("an answer");
        let status = answer.status();
        let body = answer
            .into_body()
            .collect()
            .await
            .expect("a whole answer")
            .to_bytes();
        answered += 1;
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        if sent >= start {
            latencies.push(sent.elapsed());
        }
    }
}
