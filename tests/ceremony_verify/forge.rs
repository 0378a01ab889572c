//! Transcripts line by line, without the ceremony's writer: with any fault, yet chained, signed and
//! sealed.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use p256::ecdsa::SigningKey;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use strongroom_ceremony::{CeremonyId, Kind, Mode, Step};

use super::people::{BINARY, ID, Room, key, sign};
use super::scene::Scene;

const TIME: &str = "2026-01-31T12:34:56.789Z";

/// A transcript under construction, and how it is to be finished.
pub struct Forgery {
    pub id: CeremonyId,
    pub mode: Mode,
    /// The number of a line that says the other mode.
    pub but: Option<u64>,
    /// Written for something else in every line, before it is hashed.
    pub instead: (&'static str, &'static str),
    /// Type and members of each line up to the summary.
    pub lines: Vec<(String, Value)>,
    /// Name, role, fingerprint of each who signs, and their key's number.
    pub signers: Vec<(Value, SigningKey)>,
    pub sealer: SigningKey,
    /// The seal stands before the first line of that step, not at the end.
    pub sealed_before: Option<Step>,
}

impl Forgery {
    /// With no fault.
    pub fn new(room: &Room, mode: Mode) -> Self {
        let mut lines = vec![(
            "open".to_owned(),
            json!({
                "format": 1,
                "ceremony_id": ID.to_string(),
                "kind": "birth",
                "plan_sha256": room.plan.hash_hex(),
                "plan": room.plan.text(),
                "signatures": room.signatures,
                "software": {"version": "0.1.0", "binary_sha256": BINARY},
            }),
        )];
        for step in Kind::Birth.steps() {
            let name = step.name();
            lines.push((
                "begin".into(),
                json!({"step": name, "actor": ["Ed"], "inputs": {}}),
            ));
            lines.push((
                "note".into(),
                json!({"step": name, "text": "all is well", "data": [1, -2, null]}),
            ));
            lines.push((
                "done".into(),
                json!({"step": name, "actor": ["Ed"], "outputs": room.outputs(*step)}),
            ));
        }
        let scene = Scene::birth(room);
        lines.push((
            "close".into(),
            json!({"summary": scene.summary(), "audit_key": scene.audit_key()}),
        ));
        let signers = room
            .plan
            .participants()
            .zip(1_u8..)
            .map(|((role, person), number)| {
                (
                    json!({"name": person.name(), "role": role.name(), "key": person.fingerprint()}),
                    key(number),
                )
            })
            .collect();
        Self {
            id: ID,
            mode,
            but: None,
            instead: ("\n", ""),
            lines,
            signers,
            sealer: room.hsm.clone(),
            sealed_before: None,
        }
    }

    /// The ceremony after an initial ceremony with no fault, which goes on from that transcript;
    /// everyone is there.
    pub fn later(room: &Room, kind: Kind, before: &[u8]) -> Self {
        Self::of(room, &Scene::birth(room).next(kind), before)
    }

    /// A later ceremony in that scene.
    pub fn of(room: &Room, scene: &Scene, before: &[u8]) -> Self {
        let mut scene = scene.clone();
        // What the token knows: the line of the summary.
        let closing = before
            .split(|byte| *byte == b'\n')
            .find(|line| line.starts_with(b"{\"type\":\"close\""));
        if scene.kind != Kind::Restore {
            scene.register = closing.map(|line| hex(&Sha256::digest(line)));
        }
        let scene = &scene;
        let mut forgery = Self::new(room, Mode::Ceremony);
        forgery.id = scene.id;
        forgery.sealed_before = scene.kind.sealed_before();
        forgery.sealer = scene.sealer();
        let open = forgery.open();
        open["kind"] = scene.kind.name().into();
        open["ceremony_id"] = scene.id.to_string().into();
        open["previous_sha256"] = hex(&Sha256::digest(before)).into();
        forgery.lines.truncate(1);
        for step in scene.kind.steps() {
            let name = step.name();
            forgery.lines.push((
                "begin".into(),
                json!({"step": name, "actor": ["Ed"], "inputs": {}}),
            ));
            forgery.lines.push((
                "done".into(),
                json!({"step": name, "actor": ["Ed"], "outputs": scene.outputs(*step)}),
            ));
        }
        forgery.lines.push((
            "close".into(),
            json!({"summary": scene.summary(), "audit_key": scene.audit_key()}),
        ));
        forgery
    }

    /// The members of a step's `done` line.
    pub fn outputs(&mut self, step: Step) -> &mut Value {
        let line = self
            .lines
            .iter_mut()
            .find(|(kind, members)| kind == "done" && members["step"] == step.name());
        &mut line.unwrap().1["outputs"]
    }

    pub fn close(&mut self) -> &mut Value {
        let line = self.lines.iter_mut().find(|(kind, _)| kind == "close");
        &mut line.unwrap().1
    }

    pub fn summary(&mut self) -> &mut Value {
        &mut self.close()["summary"]
    }

    pub fn open(&mut self) -> &mut Value {
        &mut self.lines[0].1
    }

    /// The finished transcript.
    pub fn bytes(self) -> Vec<u8> {
        self.finish(|seal| seal)
    }

    /// The same, with the seal's line changed at the end.
    pub fn finish(self, change: impl FnOnce(String) -> String) -> Vec<u8> {
        let id = self.id;
        let mut chain = Chain::new(self.mode);
        chain.but = self.but;
        chain.instead = self.instead;
        let mut digest = [0; 32];
        for (kind, members) in &self.lines {
            if self
                .sealed_before
                .is_some_and(|step| members["step"] == step.name() && kind == "begin")
            {
                let seal = self.seal(&chain);
                chain.push(&seal);
            }
            chain.add(kind, members);
            if kind == "close" {
                digest = Self::digest(id, "transcript", &chain);
            }
        }
        for (members, key) in &self.signers {
            let signature = p256::ecdsa::Signature::from_slice(&sign(key, &digest)).unwrap();
            let signature = BASE64_STANDARD.encode(signature.normalize_s().to_bytes());
            // In the order that a last line must have.
            let members = format!(
                "\"name\":{},\"role\":{},\"key\":{},\"signature\":\"{signature}\"}}",
                members["name"], members["role"], members["key"]
            );
            let line = chain.with_head("signature", &members);
            chain.push(&line);
        }
        let mut bytes = chain.text.clone().into_bytes();
        if self.sealed_before.is_none() {
            bytes.extend_from_slice(change(self.seal(&chain)).as_bytes());
            bytes.push(b'\n');
        }
        bytes
    }

    fn seal(&self, chain: &Chain) -> String {
        let digest = Self::digest(self.id, "seal", chain);
        let seal = p256::ecdsa::Signature::from_slice(&sign(&self.sealer, &digest))
            .unwrap()
            .normalize_s();
        chain.line(
            "seal",
            &json!({"signature": BASE64_STANDARD.encode(seal.to_bytes())}),
        )
    }

    fn digest(id: CeremonyId, what: &str, chain: &Chain) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(format!("strongroom ceremony {what} v1\0"));
        hasher.update(id.0);
        hasher.update(chain.seq.to_be_bytes());
        hasher.update(chain.hash);
        hasher.finalize().into()
    }
}

/// Lines that hang together.
struct Chain {
    mode: Mode,
    but: Option<u64>,
    instead: (&'static str, &'static str),
    seq: u64,
    hash: [u8; 32],
    text: String,
}

impl Chain {
    fn new(mode: Mode) -> Self {
        Self {
            mode,
            but: None,
            instead: ("\n", ""),
            seq: 0,
            hash: [0; 32],
            text: String::new(),
        }
    }

    fn line(&self, kind: &str, members: &Value) -> String {
        self.with_head(kind, &members.to_string()[1..])
    }

    fn with_head(&self, kind: &str, members: &str) -> String {
        let prev = hex(&self.hash);
        let mode = match self.mode {
            mode if self.but != Some(self.seq + 1) => mode,
            Mode::Ceremony => Mode::Rehearsal,
            Mode::Rehearsal => Mode::Ceremony,
        };
        let head = format!(
            "{{\"type\":\"{kind}\",\"seq\":{},\"time\":\"{TIME}\",\"mode\":\"{}\",\"prev\":\"{prev}\"",
            self.seq + 1,
            mode
        );
        format!("{head},{members}").replace(self.instead.0, self.instead.1)
    }

    fn add(&mut self, kind: &str, members: &Value) {
        let line = self.line(kind, members);
        self.push(&line);
    }

    fn push(&mut self, line: &str) {
        self.seq += 1;
        self.hash = Sha256::digest(line).into();
        self.text += line;
        self.text.push('\n');
    }
}

/// The same lines, numbered and chained as they stand now; signatures stay what they were.
pub fn chained_anew(transcript: &[u8]) -> Vec<u8> {
    let text = String::from_utf8(transcript.to_vec()).unwrap();
    let mut prev = "0".repeat(64);
    let mut out = String::new();
    for (line, number) in text.lines().zip(1..) {
        let line = replaced(line, "\"seq\":", ",", &number.to_string());
        let line = replaced(&line, "\"prev\":\"", "\"", &prev);
        prev = hex(&Sha256::digest(&line));
        out += &line;
        out.push('\n');
    }
    out.into_bytes()
}

fn replaced(line: &str, before: &str, after: &str, new: &str) -> String {
    let start = line.find(before).unwrap() + before.len();
    let end = start + line[start..].find(after).unwrap();
    format!("{}{new}{}", &line[..start], &line[end..])
}

pub fn hex(bytes: &[u8]) -> String {
    base16ct::lower::encode_string(bytes)
}
