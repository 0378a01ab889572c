//! A transcript as one printable page, for an auditor's file.

use std::fmt::Write as _;

use serde_json::Value;

use super::encoding::{hex, sha256};
use super::page::{escape, foot, head};
use super::transcript::{Body, Line};
use super::{Mode, Plan, Verified};

/// One self-contained HTML page: A4, no scripts. The result of the verification stands at its top.
pub fn html(transcript: &[u8], verified: &Verified) -> String {
    let mode = verified.mode.unwrap_or(Mode::Ceremony);
    let appliance = verified
        .plan
        .as_ref()
        .map_or("unknown", |plan| plan.name.as_str());
    let title = match verified.kind {
        None | Some(super::Kind::Birth) => format!("Key ceremony of {appliance}"),
        Some(kind) => format!("Key ceremony of {appliance}: {kind}"),
    };
    let mut page = Page {
        out: head(&title, mode),
        mode,
    };
    page.add(&format!("<h1>{}</h1>\n", escape(&title)));
    page.result(verified);
    page.facts(verified);
    if let Some(plan) = &verified.plan {
        page.people(plan, verified);
    }
    page.keys(verified);
    page.steps(transcript);
    page.objects(transcript);
    if let Some(plan) = &verified.plan {
        page.heading("The plan");
        page.add(&format!("<pre>{}</pre>\n", escape(plan.text())));
    }
    page.out + &foot(mode)
}

/// The column that must not be broken within a line.
const TIME_COLUMN: &str = "time (UTC)";

struct Page {
    out: String,
    mode: Mode,
}

impl Page {
    fn result(&mut self, verified: &Verified) {
        if verified.problems.is_empty() {
            let weight = if verified.is_rehearsal() {
                "It verifies, but it is a REHEARSAL: it is evidence of nothing."
            } else {
                "It verifies: the chain is whole, everyone whose signature it needs has signed it, and the HSM's audit key has sealed it."
            };
            self.add(&format!("<p class=\"good\">{weight}</p>\n"));
            return;
        }
        self.add("<div class=\"bad\"><strong>This transcript does NOT verify:</strong>\n<ul>\n");
        for problem in &verified.problems {
            self.add(&format!("<li>{}</li>\n", escape(&problem.to_string())));
        }
        self.add("</ul></div>\n");
    }

    fn facts(&mut self, verified: &Verified) {
        let mut rows = vec![
            (
                "kind",
                verified.kind.map_or("", super::Kind::name).to_owned(),
            ),
            ("ceremony", verified.ceremony_id.clone().unwrap_or_default()),
            ("lines", verified.lines.to_string()),
            ("SHA-256 of the transcript", verified.sha256.clone()),
        ];
        for before in &verified.predecessors {
            rows.push((
                "goes on from (SHA-256)",
                format!("{} ({})", before.sha256, before.kind.unwrap_or("unknown")),
            ));
        }
        if let Some(plan) = &verified.plan {
            rows.push(("SHA-256 of the plan", plan.hash_hex()));
            rows.push(("program (SHA-256)", plan.software.binary_sha256.clone()));
            rows.extend(
                plan.software
                    .image_sha256
                    .clone()
                    .map(|hash| ("image (SHA-256)", hash)),
            );
        }
        if let Some(summary) = &verified.summary {
            let token = &summary.token;
            rows.push((
                "token",
                format!(
                    "{}, serial {}, {} {}",
                    token.label, token.serial, token.manufacturer, token.model
                ),
            ));
            rows.push(("store", summary.store_id.clone()));
        }
        rows.extend(
            verified
                .audit_key
                .clone()
                .map(|hash| ("audit key (SHA-256)", hash)),
        );
        let rows: Vec<Vec<String>> = rows
            .into_iter()
            .map(|(name, value)| vec![name.to_owned(), value])
            .collect();
        self.table(&[], &rows);
    }

    fn people(&mut self, plan: &Plan, verified: &Verified) {
        self.heading("People");
        let rows: Vec<Vec<String>> = plan
            .participants()
            .map(|(role, participant)| {
                let fingerprint = participant.fingerprint();
                let signed = verified.signed.contains(&fingerprint);
                vec![
                    participant.name().to_owned(),
                    role.to_string(),
                    match (signed, verified.signers.contains(&fingerprint)) {
                        (true, _) => "signed",
                        (false, true) => "NOT SIGNED",
                        (false, false) => "not present",
                    }
                    .to_owned(),
                    fingerprint,
                ]
            })
            .collect();
        self.table(
            &[
                "name",
                "role",
                "transcript",
                "fingerprint of the signing key (SHA-256)",
            ],
            &rows,
        );
        self.add(&format!(
            "<p>{} of {} shares give the PINs back.</p>\n",
            plan.threshold,
            plan.custodians.len()
        ));
    }

    fn keys(&mut self, verified: &Verified) {
        let Some(summary) = &verified.summary else {
            return;
        };
        self.heading("Keys");
        let rows: Vec<Vec<String>> = summary
            .keys
            .iter()
            .map(|key| {
                vec![
                    key.name.clone(),
                    key.label.clone(),
                    key.sha256.clone().unwrap_or_else(|| {
                        "secret key: nothing of it is outside the token".to_owned()
                    }),
                ]
            })
            .collect();
        self.table(
            &["key", "label on the token", "SHA-256 of the public half"],
            &rows,
        );
    }

    fn steps(&mut self, transcript: &[u8]) {
        self.heading("What happened");
        let mut rows = Vec::new();
        for (number, bytes) in lines(transcript) {
            let Ok(line) = Line::parse(bytes) else {
                rows.push(vec![
                    number.to_string(),
                    String::new(),
                    "can't be read".to_owned(),
                    hex(&sha256(bytes)),
                ]);
                continue;
            };
            let (what, more) = describe(&line.body);
            rows.push(vec![number.to_string(), line.time, what, more]);
        }
        self.table(&["line", TIME_COLUMN, "what", "record"], &rows);
    }

    /// What the token said of each object.
    fn objects(&mut self, transcript: &[u8]) {
        let objects = lines(transcript)
            .filter_map(|(_, bytes)| Line::parse(bytes).ok())
            .find_map(|line| match line.body {
                Body::Done(done) if lists_objects(done.step) => {
                    serde_json::from_value::<super::record::EvidenceOutputs>(done.outputs).ok()
                }
                _ => None,
            });
        let Some(evidence) = objects else { return };
        self.heading("What the token says of its objects");
        let rows: Vec<Vec<String>> = evidence
            .objects
            .iter()
            .map(|object| {
                let attributes = object
                    .attributes
                    .iter()
                    .map(|(name, value)| format!("{name} = {value}"))
                    .collect::<Vec<_>>()
                    .join("\n");
                vec![
                    object.name.clone(),
                    object.label.clone(),
                    object.class.clone(),
                    attributes,
                ]
            })
            .collect();
        self.table(&["object", "label", "class", "attributes"], &rows);
    }

    fn heading(&mut self, text: &str) {
        self.add(&format!("<h2>{}</h2>\n", escape(text)));
    }

    /// The last column is for hashes and records. Every row of a rehearsal says that it is one.
    fn table(&mut self, names: &[&str], rows: &[Vec<String>]) {
        let rehearsal = self.mode == Mode::Rehearsal;
        self.add("<table>\n");
        if !names.is_empty() {
            self.add("<thead><tr>");
            for name in names {
                self.add(&format!("<th>{}</th>", escape(name)));
            }
            self.add(if rehearsal {
                "<th></th></tr></thead>\n"
            } else {
                "</tr></thead>\n"
            });
        }
        for row in rows {
            self.add("<tr>");
            for (index, cell) in row.iter().enumerate() {
                let class = match names.get(index) {
                    _ if index + 1 == row.len() => " class=\"mono\"",
                    Some(&TIME_COLUMN) => " class=\"time\"",
                    _ => "",
                };
                self.add(&format!("<td{class}>{}</td>", escape(cell)));
            }
            self.add(if rehearsal {
                "<td class=\"tag\">REHEARSAL</td></tr>\n"
            } else {
                "</tr>\n"
            });
        }
        self.add("</table>\n");
    }

    fn add(&mut self, text: &str) {
        self.out.push_str(text);
    }
}

/// Lines and their numbers.
fn lines(transcript: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    transcript
        .split(|byte| *byte == b'\n')
        .zip(1..)
        .filter(|(line, _)| !line.is_empty())
        .map(|(line, number)| (number, line))
}

fn describe(body: &Body) -> (String, String) {
    match body {
        Body::Open(open) => (
            format!(
                "the ceremony is opened (strongroom {})",
                open.software.version
            ),
            format!("plan {}", open.plan_sha256),
        ),
        Body::Begin(begin) => (
            format!("{} begins: {}", begin.step, begin.actor.join(", ")),
            fields(&begin.inputs),
        ),
        Body::Note(note) => (format!("{}: {}", note.step, note.text), fields(&note.data)),
        // The objects have a table of their own.
        Body::Done(done) if lists_objects(done.step) => (
            format!("{} is done: {}", done.step, done.actor.join(", ")),
            "see the table of objects".to_owned(),
        ),
        Body::Done(done) => (
            format!("{} is done: {}", done.step, done.actor.join(", ")),
            fields(&done.outputs),
        ),
        Body::Close(close) => (
            "summary, for all to sign".to_owned(),
            format!("store {}", close.summary.store_id),
        ),
        Body::Signature(signature) => (
            format!("{} signs ({})", signature.name, signature.role),
            signature.signature.clone(),
        ),
        Body::Seal(seal) => (
            "the HSM's audit key seals it".to_owned(),
            seal.signature.clone(),
        ),
    }
}

/// Whether the step records the token's objects, which have a table of their own.
fn lists_objects(step: super::Step) -> bool {
    matches!(
        step,
        super::Step::Evidence | super::Step::Inventory | super::Step::Copy
    )
}

/// An object as lines of name and value.
fn fields(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Object(fields) => fields
            .iter()
            .fold(String::new(), |mut text, (name, value)| {
                let value = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                // Writing into a text has no way to fail.
                let _ = writeln!(text, "{name}: {value}");
                text
            }),
        other => other.to_string(),
    }
}
