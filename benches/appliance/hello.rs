//! What HTTPS itself costs: a bare hyper + rustls server with mutual TLS that reads a request and
//! answers with as many bytes as Strongroom would.
//!
//! It can also decrypt once for each request, right where it answers, with nothing around. That is
//! no bound: its threads wait for each other at SoftHSM's locks.

use std::cell::RefCell;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use rustls::server::WebPkiClientVerifier;
use strongroom_core::config::Config;
use strongroom_hsm::bench::RawDecryption;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

thread_local! {
    /// Each of the runtime's threads has a session of its own.
    static DECRYPTION: RefCell<Option<RawDecryption>> = const { RefCell::new(None) };
}

/// Serves until killed; prints its address on one line first. `decrypting`: the configuration of
/// the token that decrypts once for each request.
pub async fn serve(
    ca: &Path,
    certificate: &Path,
    key: &Path,
    answer_bytes: usize,
    decrypting: Option<&Path>,
) {
    let decrypting = decrypting.map(|config| Arc::new(Config::load(config).unwrap()));
    let verifier = WebPkiClientVerifier::builder(Arc::new(super::tls::roots(ca)))
        .build()
        .expect("a client verifier");
    let config = rustls::ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            super::tls::certificates(certificate),
            super::tls::private_key(key),
        )
        .expect("a server configuration");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("{}", listener.local_addr().expect("an address"));
    let answer = Bytes::from(vec![b' '; answer_bytes]);
    loop {
        let (tcp, _) = listener.accept().await.expect("a connection");
        let (acceptor, answer) = (acceptor.clone(), answer.clone());
        let decrypting = decrypting.clone();
        tokio::spawn(async move {
            let _ = tcp.set_nodelay(true);
            let Ok(tls) = acceptor.accept(tcp).await else {
                return;
            };
            let service = service_fn(move |request: Request<Incoming>| {
                let (answer, decrypting) = (answer.clone(), decrypting.clone());
                async move {
                    let _ = request.into_body().collect().await;
                    if let Some(config) = decrypting {
                        decrypt(&config);
                    }
                    Ok::<_, Infallible>(
                        Response::builder()
                            .header(header::CONTENT_TYPE, "application/json")
                            .body(Full::new(answer))
                            .expect("a valid answer"),
                    )
                }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(tls), service)
                .await;
        });
    }
}

fn decrypt(config: &Config) {
    DECRYPTION.with_borrow_mut(|own| {
        own.get_or_insert_with(|| RawDecryption::start(&config.hsm, super::PLAINTEXT).unwrap())
            .decrypt()
            .unwrap();
    });
}
