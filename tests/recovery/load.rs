//! Clients that know what each answer must be: the right plaintext, or Vault's 503 with
//! `Retry-After`. Anything else is noted as wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use strongroom_client::{Answer, Client};
use tokio::task::JoinHandle;

use crate::support::{Appliance, Who, base64, encrypt};

/// Ciphertexts that each client keeps and decrypts again and again, across every fault.
const KEPT: usize = 16;

/// Clients at work, each on a connection of its own.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<Seen>>>,
}

/// One answer.
pub struct Seen {
    pub begun: Instant,
    pub ended: Instant,
    pub what: What,
}

#[derive(Debug, PartialEq, Eq)]
pub enum What {
    /// 200 with what was asked for.
    Right,
    /// 503, with a reason and `Retry-After`.
    Away,
    /// Anything else, described.
    Wrong(String),
}

/// Everything the clients saw.
pub struct Report(pub Vec<Seen>);

impl Load {
    /// `clients` clients that encrypt and decrypt with `key`, which each has used once when this
    /// returns.
    pub async fn start(appliance: &Appliance, key: &str, clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for number in 0..clients {
            let client = appliance.client(Who::Operator);
            let first = text(number, 0);
            let kept = vec![(first.clone(), encrypt(&client, key, first.as_bytes()).await)];
            tasks.push(tokio::spawn(work(
                client,
                key.to_owned(),
                number,
                kept,
                stop.clone(),
            )));
        }
        Self {
            stop,
            clients: tasks,
        }
    }

    /// Stops the clients; what they saw.
    pub async fn finish(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let mut seen = Vec::new();
        for client in self.clients {
            seen.extend(client.await.unwrap());
        }
        Report(seen)
    }
}

impl Report {
    /// No answer was wrong.
    pub fn assert_nothing_wrong(&self) {
        let wrong: Vec<&What> = self
            .0
            .iter()
            .map(|seen| &seen.what)
            .filter(|what| matches!(what, What::Wrong(_)))
            .collect();
        assert!(
            wrong.is_empty(),
            "{} of {} answers are wrong: {:#?}",
            wrong.len(),
            self.0.len(),
            &wrong[..wrong.len().min(5)]
        );
    }

    /// How many right answers and how many 503 came to requests wholly between the two moments.
    pub fn between(&self, from: Instant, to: Instant) -> (usize, usize) {
        let count = |what: &What| {
            self.0
                .iter()
                .filter(|seen| seen.begun >= from && seen.ended <= to && seen.what == *what)
                .count()
        };
        (count(&What::Right), count(&What::Away))
    }

    /// From `moment` to the end of the last request that got a 503; zero if there was none.
    pub fn last_refusal_after(&self, moment: Instant) -> Duration {
        self.0
            .iter()
            .filter(|seen| seen.what == What::Away)
            .map(|seen| seen.ended.saturating_duration_since(moment))
            .max()
            .unwrap_or_default()
    }

    /// The longest that any request took.
    pub fn slowest(&self) -> Duration {
        self.0
            .iter()
            .map(|seen| seen.ended - seen.begun)
            .max()
            .unwrap_or_default()
    }

    /// Answers with that outcome.
    pub fn count(&self, what: &What) -> usize {
        self.0.iter().filter(|seen| seen.what == *what).count()
    }
}

/// What is wrong with a refusal for the time being, if anything.
pub fn flaw_of_503(answer: &Answer) -> Option<String> {
    if answer.status.as_u16() != 503 {
        return Some(format!(
            "status {}: {}",
            answer.status,
            String::from_utf8_lossy(answer.bytes())
        ));
    }
    if !answer.errors().iter().any(|reason| !reason.is_empty()) {
        return Some(format!(
            "a 503 without a reason: {}",
            String::from_utf8_lossy(answer.bytes())
        ));
    }
    let seconds = answer
        .headers
        .get("retry-after")
        .and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
    seconds
        .is_none()
        .then(|| format!("a 503 without Retry-After: {:?}", answer.headers))
}

async fn work(
    client: Client,
    key: String,
    number: usize,
    mut kept: Vec<(String, String)>,
    stop: Arc<AtomicBool>,
) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let begun = Instant::now();
        let what = if turn % 3 == 0 {
            let plaintext = text(number, turn);
            let (what, ciphertext) = encrypt_once(&client, &key, &plaintext).await;
            if let Some(ciphertext) = ciphertext {
                if kept.len() == KEPT {
                    // The first, from before any fault, stays.
                    kept.remove(1);
                }
                kept.push((plaintext, ciphertext));
            }
            what
        } else {
            let (plaintext, ciphertext) = &kept[turn % kept.len()];
            decrypt_once(&client, &key, plaintext, ciphertext).await
        };
        let away = what == What::Away;
        seen.push(Seen {
            begun,
            ended: Instant::now(),
            what,
        });
        if away {
            // Refusals are quick: without a pause they would take the processor from whoever must
            // recover.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    seen
}

async fn encrypt_once(client: &Client, key: &str, plaintext: &str) -> (What, Option<String>) {
    let body = json!({ "plaintext": base64(plaintext.as_bytes()) });
    match ask(client, &format!("transit/encrypt/{key}"), &body).await {
        Err(what) => (what, None),
        Ok(answer) => match answer["data"]["ciphertext"].as_str() {
            Some(ciphertext) => (What::Right, Some(ciphertext.to_owned())),
            None => (What::Wrong(format!("no ciphertext: {answer}")), None),
        },
    }
}

/// Decrypts once and compares.
pub async fn decrypt_once(client: &Client, key: &str, plaintext: &str, ciphertext: &str) -> What {
    match ask(
        client,
        &format!("transit/decrypt/{key}"),
        &json!({ "ciphertext": ciphertext }),
    )
    .await
    {
        Err(what) => what,
        Ok(answer) if answer["data"]["plaintext"] == base64(plaintext.as_bytes()) => What::Right,
        Ok(answer) => What::Wrong(format!("{plaintext:?} came back as {answer}")),
    }
}

async fn ask(client: &Client, path: &str, body: &Value) -> Result<Value, What> {
    let answer = match client.request("POST", path, Some(body)).await {
        Ok(answer) => answer,
        Err(error) => return Err(What::Wrong(error.to_string())),
    };
    if answer.status.as_u16() == 200 {
        return answer
            .json()
            .map_err(|error| What::Wrong(format!("200 without JSON: {error}")));
    }
    Err(flaw_of_503(&answer).map_or(What::Away, What::Wrong))
}

fn text(client: usize, turn: usize) -> String {
    format!("plaintext {turn} of client {client}")
}
