//! A column of a real PostgreSQL's table.

use std::process::Output;

use serde_json::json;
use tokio_postgres::Client;

use super::server::{PASSWORD, Postgres};
use super::support::{self, Appliance};
use super::{KEY, check, done, encrypt, failed, min_decryption_version, rotate, rotated};

struct Site {
    appliance: Appliance,
    server: Postgres,
    client: Client,
    old: Vec<String>,
}

async fn site(test: &str, count: usize) -> Option<Site> {
    let (appliance, old) = rotated(count).await;
    let Some(server) = Postgres::start(&appliance.pki) else {
        support::skip(test, "PostgreSQL is not on this machine");
        return None;
    };
    let client = server.client().await;
    Some(Site {
        appliance,
        server,
        client,
        old,
    })
}

impl Site {
    fn rewrap(&self, table: &str, column: &str, more: &[&str]) -> Output {
        self.rewrap_of(KEY, table, column, more)
    }

    fn rewrap_of(&self, key: &str, table: &str, column: &str, more: &[&str]) -> Output {
        let (connection, password, ca) = (
            self.server.connection(),
            self.server.password_file(),
            self.appliance.pki.ca(),
        );
        let words = [
            "--output",
            "json",
            "key",
            "rewrap-postgres",
            key,
            "--database",
            &connection,
            "--password-file",
            password.to_str().unwrap(),
            "--database-cacert",
            ca.to_str().unwrap(),
            "--table",
            table,
            "--column",
            column,
        ];
        self.appliance.cli(words.iter().chain(more))
    }

    /// A table with a column `id`, from 0 on, and a column `c` with these texts.
    async fn fill(&self, table: &str, texts: &[String]) {
        self.client
            .batch_execute(&format!(
                "CREATE TABLE {table} (id int PRIMARY KEY, c text)"
            ))
            .await
            .unwrap();
        let insert = format!("INSERT INTO {table} VALUES ($1, $2)");
        for (id, text) in (0_i32..).zip(texts) {
            self.client.execute(&insert, &[&id, text]).await.unwrap();
        }
    }

    async fn texts(&self, query: &str) -> Vec<String> {
        let rows = self.client.query(query, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}

/// hashicorp/vault issues 29532 and 31791: there, such ciphertexts can never be moved.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_bound_to_its_row_is_rewrapped_and_bound_to_it_again() {
    let Some(site) = site("rewrap-postgres with associated data", 1).await else {
        return;
    };
    site.client
        .batch_execute("CREATE TABLE bound (id int PRIMARY KEY, c text, raw bytea)")
        .await
        .unwrap();
    let operator = site.appliance.client(support::Who::Operator);
    let ask = async |what: &str, body| {
        support::ask(&operator, "POST", &format!("transit/{what}/{KEY}"), body).await
    };
    // Long enough for the database to break its base64 into lines.
    let row = |id: i32| {
        if id == 2 {
            None
        } else {
            Some(format!("row {id} {}", "x".repeat(80)))
        }
    };
    for id in 0..4_i32 {
        let bound = row(id).map(|row| support::base64(row.as_bytes()));
        let body = json!({ "plaintext": support::base64(b"x"), "associated_data": bound });
        let made: serde_json::Value = ask("encrypt", body).await.json().unwrap();
        let ciphertext = made["data"]["ciphertext"].as_str().unwrap().to_owned();
        let raw = row(id).map(String::into_bytes);
        site.client
            .execute(
                "INSERT INTO bound VALUES ($1, $2, $3)",
                &[&id, &ciphertext, &raw],
            )
            .await
            .unwrap();
    }
    rotate(&site.appliance).await;
    let refused = failed(&site.rewrap("bound", "c", &[]), 1);
    assert!(
        refused.contains("message authentication failed"),
        "{refused}"
    );
    // One for all does not fit either.
    failed(
        &site.rewrap("bound", "c", &["--associated-data", "YQ=="]),
        1,
    );
    failed(
        &site.rewrap("bound", "c", &["--associated-data-column", "none"]),
        2,
    );
    let result = done(&site.rewrap(
        "bound",
        "c",
        &["--associated-data-column", "raw", "--retire"],
    ));
    assert_eq!(result["rewrapped"], 4, "{result}");
    for (id, text) in (0..).zip(site.texts("SELECT c FROM bound ORDER BY id").await) {
        assert!(text.starts_with("vault:v3:"), "{text}");
        let bound = row(id).map(|row| support::base64(row.as_bytes()));
        for (bound, status) in [(bound, 200), (Some("YQ==".to_owned()), 400)] {
            let body = json!({ "ciphertext": text, "associated_data": bound });
            assert_eq!(ask("decrypt", body).await.status, status, "row {id}");
        }
    }
}

/// A derived key's context is as a rule the row's: its tenant, its customer.
#[tokio::test(flavor = "multi_thread")]
async fn each_row_is_rewrapped_in_its_own_context() {
    let Some(site) = site("rewrap-postgres with contexts", 1).await else {
        return;
    };
    site.client
        .batch_execute("CREATE TABLE tenants (id int PRIMARY KEY, c text, tenant text)")
        .await
        .unwrap();
    let operator = site.appliance.client(support::Who::Operator);
    let ask = async |path: &str, body| {
        let answer = support::ask(&operator, "POST", &format!("transit/{path}"), body).await;
        assert_eq!(answer.status, 200, "{path}");
        answer.json().unwrap()
    };
    ask("keys/derived", json!({ "derived": true })).await;
    let tenant = |id: i32| format!("tenant {}", id % 2);
    for id in 0..4_i32 {
        let context = support::base64(tenant(id).as_bytes());
        let body = json!({ "plaintext": support::base64(b"x"), "context": context, "associated_data": context });
        let made = ask("encrypt/derived", body).await;
        let ciphertext = made["data"]["ciphertext"].as_str().unwrap().to_owned();
        site.client
            .execute(
                "INSERT INTO tenants VALUES ($1, $2, $3)",
                &[&id, &ciphertext, &tenant(id)],
            )
            .await
            .unwrap();
    }
    ask("keys/derived/rotate", json!({})).await;
    let rewrap = |more: &[&str]| site.rewrap_of("derived", "tenants", "c", more);
    let own = [
        "--context-column",
        "tenant",
        "--associated-data-column",
        "tenant",
    ];
    failed(&rewrap(&own[2..]), 1);
    failed(&rewrap(&["--context-column", "none"]), 2);
    failed(
        &rewrap(&["--context-column", "tenant", "--context", "YQ=="]),
        2,
    );
    let result = done(&rewrap(&own));
    assert_eq!(result["rewrapped"], 4, "{result}");
    for (id, text) in (0..).zip(site.texts("SELECT c FROM tenants ORDER BY id").await) {
        assert!(text.starts_with("vault:v2:"), "{text}");
        let context = support::base64(tenant(id).as_bytes());
        let body = json!({ "ciphertext": text, "context": context, "associated_data": context });
        let opened = ask("decrypt/derived", body).await;
        assert_eq!(opened["data"]["plaintext"], support::base64(b"x"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_row_is_rewrapped_and_nothing_else_changes() {
    let Some(site) = site("rewrap-postgres", 25).await else {
        return;
    };
    site.client
        .batch_execute("CREATE SCHEMA shop; CREATE TABLE shop.\"Customers\" (\"Key\" uuid PRIMARY KEY DEFAULT gen_random_uuid(), number int, iban varchar(400), other text)")
        .await
        .unwrap();
    for (number, ciphertext) in site.old.iter().enumerate() {
        site.client
            .execute(
                "INSERT INTO shop.\"Customers\" (number, iban, other) VALUES ($1, $2::text, $2::text)",
                &[&i32::try_from(number).unwrap(), ciphertext],
            )
            .await
            .unwrap();
    }
    site.client
        .batch_execute("INSERT INTO shop.\"Customers\" (number, iban) VALUES (100, NULL), (101, 'none'), (102, '')")
        .await
        .unwrap();

    let table = "shop.\"Customers\"";
    let counted = done(&site.rewrap(table, "iban", &["--count"]));
    assert_eq!(counted["versions"], json!({ "1": 25 }));
    let result = done(&site.rewrap(table, "iban", &["--page", "10", "--retire"]));
    assert_eq!(
        result,
        json!({ "rewrapped": 25, "unchanged": 0, "refused": 0, "versions": { "2": 25 }, "latest_version": 2, "retired": true })
    );
    assert_eq!(min_decryption_version(&site.appliance).await, 2);
    let new = site
        .texts("SELECT iban FROM shop.\"Customers\" WHERE number < 100 ORDER BY number")
        .await;
    check(
        &site.appliance,
        &new.iter().map(String::as_str).collect::<Vec<_>>(),
    )
    .await;
    let other = site
        .texts("SELECT other FROM shop.\"Customers\" WHERE number < 100 ORDER BY number")
        .await;
    assert_eq!(other, site.old);
    let rest = site
        .texts("SELECT coalesce(iban, 'NULL') FROM shop.\"Customers\" WHERE number >= 100 ORDER BY number")
        .await;
    assert_eq!(rest, ["NULL", "none", ""]);
    let again = done(&site.rewrap(table, "iban", &[]));
    assert_eq!(
        (&again["rewrapped"], &again["unchanged"]),
        (&json!(0), &json!(25))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn json_columns_are_rewrapped_and_unfit_tables_are_refused() {
    let Some(site) = site("rewrap-postgres", 2).await else {
        return;
    };
    site.client
        .batch_execute(
            "CREATE TABLE docs (id bigserial PRIMARY KEY, doc jsonb, raw bytea);
             CREATE TABLE keyless (doc text, u int UNIQUE NOT NULL, d int);",
        )
        .await
        .unwrap();
    let doc = json!({ "a": site.old[0], "list": [1, { "b": site.old[1] }] }).to_string();
    site.client
        .execute("INSERT INTO docs (doc) VALUES (($1::text)::jsonb)", &[&doc])
        .await
        .unwrap();
    assert_eq!(done(&site.rewrap("docs", "doc", &[]))["rewrapped"], 2);
    let new = site
        .texts("SELECT doc->>'a' FROM docs UNION ALL SELECT doc->'list'->1->>'b' FROM docs")
        .await;
    check(&site.appliance, &[&new[0], &new[1]]).await;

    for (table, column, more, says) in [
        ("nothing", "doc", &[][..], "no table"),
        ("docs; DROP TABLE docs", "doc", &[], "the database"),
        ("docs", "none", &[], "no column"),
        ("docs", "raw", &[], "text or JSON"),
        ("keyless", "doc", &[], "--id"),
        ("keyless", "doc", &["--id", "d"], "no unique index"),
    ] {
        let output = site.rewrap(table, column, more);
        let why = support_said(&output);
        assert!(
            !output.status.success() && why.contains(says),
            "{table}.{column}: {why}"
        );
    }
    done(&site.rewrap("keyless", "doc", &["--id", "u"]));
    assert_eq!(site.texts("SELECT count(*)::text FROM docs").await, ["1"]);
}

fn support_said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The application changes a row after the command has read it and before it writes it: the command
/// waits for the row's lock meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_the_application_changes_meanwhile_keeps_the_application_s_value() {
    let Some(mut site) = site("rewrap-postgres", 10).await else {
        return;
    };
    site.fill("busy", &site.old).await;
    let fresh = encrypt(&site.appliance, 1).await.remove(0);
    let observer = site.server.client().await;
    let application = site.server.client().await;
    application.execute("BEGIN", &[]).await.unwrap();
    application
        .execute("UPDATE busy SET c = $1 WHERE id = 4", &[&fresh])
        .await
        .unwrap();
    let writes = tokio::spawn(async move {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'strongroom%' AND wait_event_type = 'Lock'";
        while observer
            .query_one(waiting, &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
            == 0
        {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        application.execute("COMMIT", &[]).await.unwrap();
    });
    let result = tokio::task::block_in_place(|| done(&site.rewrap("busy", "c", &["--retire"])));
    writes.await.unwrap();
    assert_eq!(
        result["rewrapped"], 10,
        "one of them was not written: {result}"
    );
    assert_eq!(result["versions"], json!({ "2": 10 }));
    let mut now = site.texts("SELECT c FROM busy ORDER BY id").await;
    assert_eq!(now.remove(4), fresh);
    site.old.remove(4);
    assert!(now.iter().zip(&site.old).all(|(new, old)| new != old));
}

/// Something that writes with the old version still: what the second look finds is not retired.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_comes_back_is_not_retired() {
    let Some(site) = site("rewrap-postgres", 1).await else {
        return;
    };
    site.client
        .batch_execute(&format!(
            "CREATE TABLE haunted (id int PRIMARY KEY, c text); INSERT INTO haunted VALUES (1, '{}');
             CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO haunted VALUES (-OLD.id, OLD.c); RETURN NULL; END $$;
             CREATE TRIGGER again AFTER UPDATE ON haunted FOR EACH ROW EXECUTE FUNCTION again();",
            site.old[0]
        ))
        .await
        .unwrap();
    let why = failed(&site.rewrap("haunted", "c", &["--retire"]), 1);
    assert!(
        why.contains("nothing is retired: 1 ciphertexts of version 1"),
        "{why}"
    );
    assert_eq!(min_decryption_version(&site.appliance).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_command_says_where_to_go_on() {
    let Some(site) = site("rewrap-postgres", 12).await else {
        return;
    };
    // One that the key does not decrypt stops it in the third page.
    let mut texts = site.old.clone();
    texts[9] = "vault:v1:AAAA".to_owned();
    site.fill("list", &texts).await;
    let why = failed(&site.rewrap("list", "c", &["--page", "4"]), 1);
    assert!(
        why.contains("the row with \\\"id\\\" 9") && why.contains("--after '7'"),
        "{why}"
    );
    let done_so_far = site
        .texts("SELECT id::text FROM list WHERE c LIKE 'vault:v2:%' ORDER BY id")
        .await;
    assert_eq!(done_so_far.len(), 8, "whole pages: {done_so_far:?}");

    let why = failed(&site.rewrap("list", "c", &["--retire", "--after", "7"]), 2);
    assert!(why.contains("cannot be used with"), "{why}");
    let result = done(&site.rewrap("list", "c", &["--after", "7", "--skip-foreign"]));
    assert_eq!(
        (&result["rewrapped"], &result["refused"]),
        (&json!(3), &json!(1))
    );
    rotate(&site.appliance).await;
    let why = failed(&site.rewrap("list", "c", &["--retire"]), 1);
    assert!(why.contains("the row with"), "{why}");
    assert_eq!(min_decryption_version(&site.appliance).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_stay_off_the_command_line_and_other_machines_need_tls() {
    let Some(site) = site("rewrap-postgres", 1).await else {
        return;
    };
    let table = ["--table", "t", "--column", "c"];
    let try_with = |database: &str| {
        let words = ["key", "rewrap-postgres", KEY, "--database", database];
        site.appliance.cli(words.iter().chain(&table))
    };
    let why = failed(
        &try_with(&format!("host=localhost password='{PASSWORD}'")),
        2,
    );
    assert!(
        why.contains("--password-file") && !why.contains(PASSWORD),
        "{why}"
    );
    let why = failed(&try_with("host=db.example user=app"), 2);
    assert!(why.contains("--database-cacert"), "{why}");
    // A server whose certificate is of another CA is not believed.
    let stranger = Appliance::start().await;
    let (connection, password, ca) = (
        site.server.connection(),
        site.server.password_file(),
        stranger.pki.ca(),
    );
    let words = [
        "key",
        "rewrap-postgres",
        KEY,
        "--database",
        &connection,
        "--password-file",
        password.to_str().unwrap(),
        "--database-cacert",
        ca.to_str().unwrap(),
    ];
    let why = failed(&site.appliance.cli(words.iter().chain(&table)), 1);
    assert!(why.contains("the database"), "{why}");
}
