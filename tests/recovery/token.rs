//! The token is pulled out, forgets its sessions, fails, hangs, is slow, or refuses the PIN.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use strongroom_client::ClientOptions;

use crate::load::{Load, What, decrypt_once, flaw_of_503};
use crate::rig::Rig;
use crate::support::{Appliance, Who, ask, decrypt, encrypt, expect};
use crate::token_files::{
    CKA_EXTRACTABLE, CKO_DATA, CKO_PRIVATE_KEY, CKO_SECRET_KEY, ObjectFile, copy, tokens_of,
};

/// Within this it must serve again, by itself, once the token is back.
const RECOVERY: Duration = Duration::from_secs(2);
/// The documented exit code of a refused PIN.
const HSM_REFUSED: i32 = 9;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_away_for_ten_seconds_is_answered_503_and_served_again_when_it_is_back() {
    let rig = Rig::start(Appliance::builder()).await;
    rig.create_key("seal", json!({})).await;
    let load = Load::start(&rig, "seal", 6).await;
    tokio::time::sleep(Duration::from_secs(1)).await;

    let gone = Instant::now();
    rig.control("token-absent");
    rig.wait_health(503, Duration::from_secs(2)).await;
    let noticed = Instant::now();
    while gone.elapsed() < Duration::from_secs(10) {
        let (status, body) = rig.health().await;
        assert_eq!(status, 503, "{body}");
        assert!(
            body["reason"]
                .as_str()
                .is_some_and(|reason| !reason.is_empty()),
            "{body}"
        );
        tokio::time::sleep(Duration::from_millis(250)).await;
    }

    let unwraps_before = rig.logged(" counts ");
    rig.control("count");
    let back = Instant::now();
    rig.wait_health(200, RECOVERY).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    rig.control("");
    rig.wait_logged(" counts ", unwraps_before + 1, Duration::from_secs(5))
        .await;
    let settled = rig.count(Duration::from_secs(1)).await;
    let end = Instant::now();
    let report = load.finish().await;

    report.assert_nothing_wrong();
    let (right, away) = report.between(noticed, back);
    assert_eq!(right, 0, "answers came from a token that was away");
    assert!(
        away > 100,
        "only {away} requests in the time without a token: the load is no load"
    );
    let (right, _) = report.between(back, back + RECOVERY);
    assert!(
        right > 0,
        "nothing was served within {RECOVERY:?} of the token's return"
    );
    let late = report.last_refusal_after(back);
    assert!(
        late <= RECOVERY,
        "the last 503 came {late:?} after the token's return"
    );
    let (right, away) = report.between(back + RECOVERY, end);
    assert!(
        right > 100 && away == 0,
        "{right} right answers and {away} refusals after the recovery"
    );

    let counts = rig.faults();
    let recovery = counts
        .lines()
        .filter(|line| line.contains(" counts "))
        .nth(unwraps_before)
        .unwrap()
        .to_owned();
    assert!(
        recovery.contains(" C_UnwrapKey="),
        "no key was unwrapped again: {recovery}"
    );
    assert!(
        !settled.contains(" C_UnwrapKey="),
        "keys are unwrapped on the hot path: {settled}"
    );
}

/// SoftHSM's directory of tokens, away and back: a file system that was not mounted for a while,
/// say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_tokens_that_is_moved_away_and_back_is_found_again() {
    let rig = Rig::start(Appliance::builder()).await;
    rig.create_key("seal", json!({})).await;
    let client = rig.client(Who::Operator);
    let ciphertext = encrypt(&client, "seal", b"before").await;
    let tokens = tokens_of(&rig.softhsm_conf());
    let aside = tokens.with_extension("aside");
    std::fs::rename(&tokens, &aside).unwrap();
    // Its sessions are lost at the same moment, so that it is looked for again.
    rig.control("forget-sessions");
    rig.wait_logged("forget-sessions sessions of", 1, Duration::from_secs(5))
        .await;
    let request = json!({ "ciphertext": ciphertext });
    let gone = Instant::now();
    while gone.elapsed() < Duration::from_secs(4) {
        let answer = ask(&client, "POST", "transit/decrypt/seal", request.clone()).await;
        assert_eq!(flaw_of_503(&answer), None);
        let (_, body) = rig.health().await;
        assert!(
            !body.to_string().contains("make the keys"),
            "dangerous advice: {body}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    std::fs::rename(&aside, &tokens).unwrap();
    rig.control("");
    rig.wait_health(200, Duration::from_secs(10)).await;
    assert_eq!(decrypt(&client, "seal", &ciphertext).await, b"before");
}

/// What the token keeps of store and audit log is away, under load: nothing is changed meanwhile,
/// and then changed again without a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registers_that_are_moved_away_and_back_are_found_again() {
    let rig = Rig::start(Appliance::builder()).await;
    rig.create_key("seal", json!({})).await;
    let load = Load::start(&rig, "seal", 4).await;
    let registers = ObjectFile::of_class(&tokens_of(&rig.softhsm_conf()), CKO_DATA);
    assert!(!registers.is_empty());
    for register in &registers {
        register.move_away();
    }
    let client = rig.client(Who::Operator);
    let refused = ask(&client, "POST", "transit/keys/other", json!({})).await;
    assert_eq!(flaw_of_503(&refused), None);
    rig.wait_reason(&["epoch object", "trying again"]).await;
    for register in &registers {
        register.move_back();
    }
    rig.wait_health(200, Duration::from_secs(10)).await;
    rig.create_key("other", json!({})).await;
    let report = load.finish().await;
    report.assert_nothing_wrong();
    assert!(report.count(&What::Right) > 0);
}

/// As when a token's files are restored under a running server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_of_the_token_is_refused_and_the_true_one_is_served_with_again() {
    let rig = Rig::start(Appliance::builder()).await;
    let tokens = tokens_of(&rig.softhsm_conf());
    let older = tokens.with_extension("older");
    copy(&tokens, &older);
    rig.create_key("seal", json!({})).await;
    let client = rig.client(Who::Operator);
    let ciphertext = encrypt(&client, "seal", b"before").await;

    let aside = tokens.with_extension("aside");
    std::fs::rename(&tokens, &aside).unwrap();
    std::fs::rename(&older, &tokens).unwrap();
    let refused = ask(&client, "POST", "transit/keys/other", json!({})).await;
    assert_eq!(flaw_of_503(&refused), None);
    rig.wait_reason(&["older"]).await;
    // It stays so, and nothing is written to the older copy.
    let deadline = Instant::now() + Duration::from_secs(3);
    while Instant::now() < deadline {
        let refused = ask(&client, "POST", "transit/keys/other", json!({})).await;
        assert_eq!(flaw_of_503(&refused), None);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    std::fs::rename(&tokens, &older).unwrap();
    std::fs::rename(&aside, &tokens).unwrap();
    rig.wait_health(200, Duration::from_secs(10)).await;
    rig.create_key("other", json!({})).await;
    assert_eq!(decrypt(&client, "seal", &ciphertext).await, b"before");
}

/// As another process is just writing it: cut between two attributes, and within one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_half_written_for_a_moment_is_served_with_again() {
    let rig = Rig::start(Appliance::builder()).await;
    rig.create_key("seal", json!({})).await;
    let tokens = tokens_of(&rig.softhsm_conf());
    let mut store_key = ObjectFile::of_class(&tokens, CKO_SECRET_KEY).pop().unwrap();
    let load = Load::start(&rig, "seal", 4).await;
    for (time, end) in [store_key.offset_of(CKA_EXTRACTABLE), store_key.len() / 2]
        .into_iter()
        .enumerate()
    {
        store_key.write_up_to(end);
        rig.control("forget-sessions");
        rig.wait_logged(
            "forget-sessions sessions of",
            time + 1,
            Duration::from_secs(5),
        )
        .await;
        rig.wait_reason(&["store key", "again"]).await;
        store_key.write_whole();
        rig.control("");
        rig.wait_health(200, Duration::from_secs(10)).await;
        rig.create_key(&format!("other-{time}"), json!({})).await;
    }
    let report = load.finish().await;
    report.assert_nothing_wrong();
    assert!(report.count(&What::Right) > 0);
}

/// What another version signs before verifiers know it, they refuse.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signing_key_that_is_not_seen_for_a_look_goes_on_signing_after_a_rotation() {
    let rig = Rig::start(Appliance::builder().section("jwt", "keys = [\"users\"]\n")).await;
    let tokens = tokens_of(&rig.softhsm_conf());
    let before = ObjectFile::of_class(&tokens, CKO_PRIVATE_KEY);
    rig.create_key("users", json!({ "type": "ecdsa-p256" }))
        .await;
    let mut made = ObjectFile::of_class(&tokens, CKO_PRIVATE_KEY);
    made.retain(|object| !before.iter().any(|other| other.path() == object.path()));
    let [made] = made.as_slice() else {
        panic!("{} private keys were made", made.len());
    };
    let client = rig.client(Who::Operator);
    let input = json!({ "input": "c2lnbg==" });
    made.move_away();
    let missed = ask(&client, "POST", "transit/sign/users", input.clone()).await;
    assert!(!missed.status.is_success());
    made.move_back();

    expect(&client, "POST", "transit/keys/users/rotate", json!({}), 200).await;
    let key = expect(&client, "GET", "transit/keys/users", Value::Null, 200).await;
    assert_eq!(key["data"]["latest_version"], 2, "{key}");
    assert_eq!(key["data"]["signing_version"], 1, "{key}");
    expect(&client, "POST", "transit/sign/users", input, 200).await;
}

/// Connections of nobody in particular, up to the limit: the token must keep its files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_a_certificate_do_not_take_the_tokens_files_away() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // This process's own ends of the connections.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(8192), hard).unwrap();
    let rig = Rig::start(Appliance::builder().wrapper(["prlimit", "--nofile=1024:4096"])).await;
    rig.create_key("seal", json!({})).await;
    let client = rig.client(Who::Operator);
    let ciphertext = encrypt(&client, "seal", b"before").await;
    let mut open = Vec::new();
    for _ in 0..1015 {
        open.extend(tokio::net::TcpStream::connect(rig.address()).await);
    }
    rig.control("forget-sessions");
    rig.wait_logged("forget-sessions sessions of", 1, Duration::from_secs(5))
        .await;
    rig.control("");
    let mut served = 0;
    for _ in 0..10 {
        let request = json!({ "ciphertext": ciphertext });
        let answer = ask(&client, "POST", "transit/decrypt/seal", request).await;
        served += usize::from(answer.status.is_success());
    }
    assert!(served > 0, "{}", rig.log());
    drop(open);
    rig.wait_health(200, Duration::from_secs(20)).await;
    assert_eq!(decrypt(&client, "seal", &ciphertext).await, b"before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_connections_than_descriptors_are_refused_at_the_start() {
    const CONFIG: i32 = 3;
    let limit = ["prlimit", "--nofile=1024:1024"];
    let mut rig = Rig::prepare(Appliance::builder().wrapper(limit));
    rig.spawn();
    assert_eq!(rig.wait_exit(), Some(CONFIG), "{}", rig.log());
    for part in ["max_connections", "768", "LimitNOFILE"] {
        assert!(rig.log().contains(part), "{part}: {}", rig.log());
    }
    let fitting = Appliance::builder()
        .wrapper(limit)
        .section("server", "max_connections = 768");
    let rig = Rig::start(fitting).await;
    assert_eq!(rig.health().await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_forgets_its_sessions_is_logged_into_again() {
    let rig = Rig::start(Appliance::builder()).await;
    rig.create_key("seal", json!({})).await;
    let load = Load::start(&rig, "seal", 4).await;
    let mut last = Instant::now();
    for time in 1..=3 {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        last = Instant::now();
        rig.control("forget-sessions");
        rig.wait_logged("forget-sessions sessions of", time, Duration::from_secs(5))
            .await;
    }
    tokio::time::sleep(RECOVERY + Duration::from_secs(1)).await;
    let end = Instant::now();
    let report = load.finish().await;

    report.assert_nothing_wrong();
    let late = report.last_refusal_after(last);
    assert!(
        late <= RECOVERY,
        "the last 503 came {late:?} after the sessions were forgotten"
    );
    let (right, away) = report.between(last + RECOVERY, end);
    assert!(
        right > 50 && away == 0,
        "{right} right answers and {away} refusals after the recovery"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_error_or_two_is_recovered_from() {
    let rig = Rig::start(Appliance::builder()).await;
    rig.create_key("seal", json!({})).await;
    let load = Load::start(&rig, "seal", 4).await;
    for code in [
        "CKR_DEVICE_ERROR",
        "CKR_DEVICE_REMOVED",
        "CKR_TOKEN_NOT_PRESENT",
        "CKR_SESSION_HANDLE_INVALID",
        "CKR_OBJECT_HANDLE_INVALID",
    ] {
        for function in ["C_DecryptInit", "C_EncryptInit"] {
            rig.control(&format!("fail {function} {code} 3"));
            rig.wait_logged(
                &format!("fault fail {function} {code}"),
                3,
                Duration::from_secs(10),
            )
            .await;
            rig.wait_health(200, RECOVERY).await;
        }
    }
    let last = Instant::now();
    tokio::time::sleep(RECOVERY + Duration::from_secs(1)).await;
    let end = Instant::now();
    let report = load.finish().await;

    report.assert_nothing_wrong();
    let late = report.last_refusal_after(last);
    assert!(
        late <= RECOVERY,
        "the last 503 came {late:?} after the last fault"
    );
    let (right, away) = report.between(last + RECOVERY, end);
    assert!(
        right > 50 && away == 0,
        "{right} right answers and {away} refusals after the recovery"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_clients_batches_keep_nobody_and_not_the_watchdog_from_the_token() {
    const PATIENCE: Duration = Duration::from_mins(1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let systemd = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    systemd.set_read_timeout(Some(PATIENCE)).unwrap();
    let rig = Rig::start(
        Appliance::builder()
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "1000000"),
    )
    .await;
    rig.create_key("vault-seal", json!({})).await;
    rig.create_key("app-one", json!({})).await;
    let seal = rig.client(Who::Vault);
    let ciphertext = encrypt(&seal, "vault-seal", b"an unseal key").await;

    // Two batches of the most items, of a token that takes 1 ms for each.
    rig.control("slow C_EncryptInit 1");
    let attacks: Vec<_> = (0..2)
        .map(|_| {
            let client = rig.client(Who::App);
            let items = vec![json!({ "plaintext": "" }); 16_384];
            tokio::spawn(async move {
                let body = json!({ "batch_input": items });
                ask(&client, "POST", "transit/encrypt/app-one", body).await
            })
        })
        .collect();
    rig.wait_logged("fault slow C_EncryptInit", 1, PATIENCE)
        .await;
    // What systemd was told before is read off.
    systemd.set_nonblocking(true).unwrap();
    while systemd.recv(&mut [0; 512]).is_ok() {}
    systemd.set_nonblocking(false).unwrap();

    for _ in 0..20 {
        let plaintext = decrypt(&seal, "vault-seal", &ciphertext).await;
        assert_eq!(plaintext, b"an unseal key");
        assert_eq!(rig.health().await.0, 200);
    }
    for _ in 0..3 {
        let mut words = [0; 512];
        let length = systemd.recv(&mut words).unwrap();
        assert!(String::from_utf8_lossy(&words[..length]).contains("WATCHDOG=1"));
    }
    assert!(
        attacks.iter().all(|attack| !attack.is_finished()),
        "the others waited for a whole batch"
    );

    rig.control("");
    for attack in attacks {
        let answer = attack.await.unwrap();
        assert_eq!(answer.status.as_u16(), 200);
        let answer: Value = answer.json().unwrap();
        let results = answer["data"]["batch_results"].as_array().unwrap();
        assert_eq!(results.len(), 16_384);
        assert!(results.iter().all(|one| one["ciphertext"].is_string()));
    }
    assert!(!rig.log().contains("the watchdog is not fed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_hangs_is_given_up_at_its_deadline_and_the_server_goes_on() {
    let rig = Rig::start(Appliance::builder().section("hsm", "call_deadline = \"1s\"")).await;
    rig.create_key("seal", json!({})).await;
    let client = rig.client(Who::Operator);
    let ciphertext = encrypt(&client, "seal", b"before").await;
    let load = Load::start(&rig, "seal", 4).await;
    tokio::time::sleep(Duration::from_millis(500)).await;

    rig.control("hang C_Decrypt");
    rig.wait_logged("fault hang C_Decrypt", 1, Duration::from_secs(5))
        .await;
    let asked = Instant::now();
    let answer = ask(
        &client,
        "POST",
        "transit/decrypt/seal",
        json!({ "ciphertext": ciphertext }),
    )
    .await;
    assert_eq!(flaw_of_503(&answer), None);
    assert!(
        asked.elapsed() < Duration::from_millis(2500),
        "the 503 took {:?}",
        asked.elapsed()
    );
    tokio::time::sleep(Duration::from_secs(3)).await;

    rig.control("");
    let over = Instant::now();
    rig.wait_logged("fault hang C_Decrypt over", 1, Duration::from_secs(5))
        .await;
    rig.wait_health(200, RECOVERY).await;
    tokio::time::sleep(RECOVERY + Duration::from_secs(1)).await;
    let end = Instant::now();
    let report = load.finish().await;

    report.assert_nothing_wrong();
    assert!(
        report.slowest() < Duration::from_secs(3),
        "a caller waited {:?}",
        report.slowest()
    );
    let late = report.last_refusal_after(over);
    assert!(
        late <= RECOVERY,
        "the last 503 came {late:?} after the hang's end"
    );
    let (right, away) = report.between(over + RECOVERY, end);
    assert!(
        right > 50 && away == 0,
        "{right} right answers and {away} refusals after the recovery"
    );
    assert_eq!(decrypt(&client, "seal", &ciphertext).await, b"before");
}

/// What another process has made on a token some modules show only when they are started again; a
/// ceremony that tells the server of a master key that it does not see must not have to stop it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn for_a_master_key_that_is_not_seen_the_module_is_started_anew_and_no_request_is_lost() {
    let rig = Rig::start(Appliance::builder()).await;
    rig.create_key("seal", json!({})).await;
    let load = Load::start(&rig, "seal", 4).await;
    let client = rig.client(Who::Operator);
    for time in 1..=5 {
        let answer = ask(
            &client,
            "POST",
            "sys/rotate-master",
            json!({ "master_sha256": "0".repeat(64) }),
        )
        .await;
        assert_eq!(answer.status.as_u16(), 400, "{:?}", answer.errors());
        assert_eq!(rig.logged(" C_Finalize"), time, "{}", rig.faults());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let report = load.finish().await;
    report.assert_nothing_wrong();
    assert_eq!(report.count(&What::Away), 0);
    assert!(report.count(&What::Right) > 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_pin_at_start_is_tried_once_and_ends_the_server() {
    let mut rig = Rig::prepare(Appliance::builder());
    rig.replace_pin("not-the-pin");
    rig.spawn();
    assert_eq!(rig.wait_exit(), Some(HSM_REFUSED), "{}", rig.log());
    assert!(
        rig.log().contains("PIN"),
        "the message does not name the PIN: {}",
        rig.log()
    );
    assert!(
        !rig.log().contains("not-the-pin"),
        "the PIN is in the log: {}",
        rig.log()
    );
    assert_eq!(
        rig.logged(" C_Login CKU_USER CKR_PIN_INCORRECT"),
        1,
        "{}",
        rig.faults()
    );
    assert_eq!(rig.logged(" C_Login "), 1, "{}", rig.faults());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_pin_on_the_tokens_return_is_tried_once_and_the_server_says_so() {
    let mut rig = Rig::start(Appliance::builder()).await;
    rig.create_key("seal", json!({})).await;
    let ciphertext = encrypt(&rig.client(Who::Operator), "seal", b"kept").await;
    let load = Load::start(&rig, "seal", 4).await;

    rig.control("token-absent");
    rig.wait_health(503, Duration::from_secs(2)).await;
    let pin = rig.replace_pin("not-the-pin");
    rig.control("");
    rig.wait_logged("CKR_PIN_INCORRECT", 1, Duration::from_secs(10))
        .await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let report = load.finish().await;

    assert_eq!(rig.logged("CKR_PIN_INCORRECT"), 1, "{}", rig.faults());
    assert!(rig.is_running(), "the server ended:\n{}", rig.log());
    let (status, health) = rig.health().await;
    assert_eq!(status, 503, "{health}");
    assert!(
        health["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("PIN")),
        "{health}"
    );
    report.assert_nothing_wrong();

    // The right PIN alone changes nothing: a person restarts the server.
    rig.replace_pin(&pin);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(rig.health().await.0, 503);
    assert_eq!(rig.logged("CKR_PIN_INCORRECT"), 1, "{}", rig.faults());
    rig.stop();
    rig.launch().await;
    assert_eq!(
        decrypt(&rig.client(Who::Operator), "seal", &ciphertext).await,
        b"kept"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_is_refused_early_and_takes_no_memory() {
    let rig = Rig::start(Appliance::builder().section("hsm", "queue = 4\nsessions = 1")).await;
    rig.create_key("bulk", json!({})).await;
    let plaintext = "x".repeat(32 * 1024);
    let ciphertext = encrypt(&rig.client(Who::Operator), "bulk", plaintext.as_bytes()).await;
    rig.control("slow C_Decrypt 50");

    let stop = Instant::now() + Duration::from_secs(8);
    let mut clients = Vec::new();
    for _ in 0..100 {
        let (options, plaintext, ciphertext) = (
            rig.client_options(Who::Operator),
            plaintext.clone(),
            ciphertext.clone(),
        );
        clients.push(tokio::spawn(async move {
            press(options, &plaintext, &ciphertext, stop).await
        }));
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let early = resident(rig.pid());
    tokio::time::sleep(Duration::from_secs(4)).await;
    let late = resident(rig.pid());
    let mut served = 0;
    let mut refusals = Vec::new();
    for client in clients {
        let (right, away) = client.await.unwrap();
        served += right;
        refusals.extend(away);
    }
    assert!(
        served > 20,
        "only {served} requests were served under overload"
    );
    assert!(
        refusals.len() > 200,
        "only {} refusals: no overload",
        refusals.len()
    );
    refusals.sort();
    let median = refusals[refusals.len() / 2];
    assert!(
        median < Duration::from_millis(500),
        "a refusal takes {median:?}: it is not early"
    );
    assert!(
        late < early + 16 * 1024,
        "overload grew memory from {early} KiB to {late} KiB"
    );

    rig.control("");
    rig.wait_health(200, RECOVERY).await;
    let client = rig.client(Who::Operator);
    assert_eq!(
        decrypt(&client, "bulk", &ciphertext).await,
        plaintext.as_bytes()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_losses_under_load() {
    soak(Duration::from_secs(5)).await;
}

/// `SOAK_SECONDS=3600 cargo test --test recovery soak -- --ignored`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "as long as SOAK_SECONDS says (600)"]
async fn soak_with_repeated_losses() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(600, |text| text.parse().unwrap());
    soak(Duration::from_secs(seconds)).await;
}

/// Load, and a loss of the token, of its sessions or of a call every second or two; memory must not
/// grow with them.
async fn soak(duration: Duration) {
    let rig = Rig::start(Appliance::builder()).await;
    rig.create_key("seal", json!({})).await;
    let end = Instant::now() + duration;
    let mut before = None;
    let mut rounds = 0;
    while Instant::now() < end {
        let load = Load::start(&rig, "seal", 4).await;
        let fault = [
            "token-absent",
            "forget-sessions",
            "fail C_DecryptInit CKR_DEVICE_ERROR 2",
        ][rounds % 3];
        tokio::time::sleep(Duration::from_millis(300)).await;
        rig.control(fault);
        tokio::time::sleep(Duration::from_millis(500)).await;
        rig.control("");
        let back = Instant::now();
        rig.wait_health(200, RECOVERY).await;
        tokio::time::sleep(
            RECOVERY
                .saturating_sub(back.elapsed())
                .min(Duration::from_millis(700)),
        )
        .await;
        let report = load.finish().await;
        report.assert_nothing_wrong();
        assert!(
            report.count(&What::Right) > 0,
            "round {rounds}: nothing was served"
        );
        if rounds == 3 {
            before = Some(resident(rig.pid()));
        }
        rounds += 1;
        // The next round's first answers are asked for without tolerance.
        tokio::time::sleep(RECOVERY.saturating_sub(back.elapsed())).await;
    }
    if let Some(before) = before {
        let after = resident(rig.pid());
        assert!(
            after < before + 64 * 1024,
            "from {before} KiB to {after} KiB over {rounds} losses"
        );
    }
}

/// Decrypts until `stop`; how often it was served, and how long each refusal took.
async fn press(
    options: ClientOptions,
    plaintext: &str,
    ciphertext: &str,
    stop: Instant,
) -> (usize, Vec<Duration>) {
    let client = strongroom_client::Client::new(&options).unwrap();
    let (mut served, mut refusals) = (0, Vec::new());
    while Instant::now() < stop {
        let begun = Instant::now();
        match decrypt_once(&client, "bulk", plaintext, ciphertext).await {
            What::Right => served += 1,
            What::Away => refusals.push(begun.elapsed()),
            What::Wrong(what) => panic!("{what}"),
        }
        if begun.elapsed() < Duration::from_millis(100) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    (served, refusals)
}

/// A process's memory, KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
