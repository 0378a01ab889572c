//! Ceremonies of an appliance that has its keys: each on a real token, from start to end, with
//! power cuts, and its transcript checked by both programs together with those before it.
//!
//! - `backup`: the keys come to another token, which serves
//! - `destroy`: every object goes, with evidence
//! - `fork`: two that go on from one
//! - `replace`: the PINs shared again
//! - `rotate`: another master key, under a running seal client

pub mod backup;
mod destroy;
mod fork;
mod replace;
mod rotate;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use strongroom_ceremony::record::PinsRecord;
use strongroom_ceremony::shares::{self, Added, Deal};
use strongroom_ceremony::{CeremonyId, Mode, Recovery};

use crate::rig::{People, Room, done_once, kill_at, lines, stderr};
use crate::support;

/// A room whose ceremony is over: an appliance that could serve.
pub fn born() -> Room {
    to_the_end(Room::new())
}

pub fn to_the_end(room: Room) -> Room {
    room.run_to_the_certificate();
    room.sign_certificate();
    room.run_to_the_end();
    room
}

/// A later ceremony in a room.
pub struct Later<'a> {
    pub room: &'a Room,
    /// The command and what only it is told.
    pub words: Vec<String>,
    pub after: PathBuf,
    pub dir: PathBuf,
}

impl<'a> Later<'a> {
    /// `words`: `destroy`, …; after the room's initial ceremony.
    pub fn new(room: &'a Room, words: &[&str]) -> Self {
        Self {
            room,
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            after: room.dir(),
            dir: room.path().join(words[0]),
        }
    }

    pub fn command(&self) -> Command {
        let mut command = self.room.command(&["ceremony"]);
        command
            .args(&self.words)
            .arg("--after")
            .arg(&self.after)
            .arg("--dir")
            .arg(&self.dir)
            .arg("--answers")
            .arg(self.room.answers());
        command
    }

    pub fn run(&self) -> Output {
        self.command().output().unwrap()
    }

    pub fn run_to_the_end(&self) -> Output {
        let output = self.run();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        output
    }

    /// It must stop with that code and say so.
    pub fn fails(&self, code: i32, message: &str) {
        let output = self.run();
        let errors = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{message}: {errors}");
        assert!(errors.contains(message), "{message}: {errors}");
    }

    pub fn transcript_path(&self) -> PathBuf {
        self.dir.join("transcript.jsonl")
    }

    pub fn transcript(&self) -> Vec<Value> {
        lines(&self.transcript_path())
    }

    /// What a step came to.
    pub fn outputs(&self, step: &str) -> Value {
        self.transcript()
            .into_iter()
            .find(|line| line["type"] == "done" && line["step"] == step)
            .unwrap_or_else(|| panic!("{step} is not done"))["outputs"]
            .clone()
    }

    /// A backup's transport key and its companion, from three shares.
    pub fn transport_secrets(&self) -> Vec<Vec<u8>> {
        let transcript = self.transcript();
        let id = CeremonyId::parse(transcript[0]["ceremony_id"].as_str().unwrap()).unwrap();
        let outputs = self.outputs("transport");
        let record: PinsRecord = serde_json::from_value(serde_json::json!({
            "threshold": outputs["threshold"],
            "commitments": outputs["commitments"],
        }))
        .unwrap();
        let deal = Deal::new(&self.room.plan(), id, Mode::Ceremony);
        let mut recovery = Recovery::new(deal, record.commitments).unwrap();
        for name in ["Alice", "Dave", "Erin"] {
            let key = People::all().key(name);
            let file = format!("{}.jwe", key.participant().fingerprint());
            let share = fs::read_to_string(self.dir.join("transport-shares").join(file)).unwrap();
            let share = shares::open(share.trim(), &key).unwrap();
            if let Added::Complete(secrets) = recovery.add(share) {
                return vec![secrets.so.to_vec(), secrets.user.to_vec()];
            }
        }
        panic!("three shares do not give it back");
    }

    /// The power goes when each of these lines has been written; each run goes on, and repeats
    /// nothing that was done.
    pub fn killed_at(&self, to_come: &[String]) {
        for line in to_come {
            kill_at(self.command(), &self.dir, line);
        }
        self.run_to_the_end();
        done_once(&self.transcript(), to_come);
        // Once more changes nothing.
        let before = fs::read(self.transcript_path()).unwrap();
        self.run_to_the_end();
        assert_eq!(fs::read(self.transcript_path()).unwrap(), before);
    }

    /// What both programs say of a transcript, with the chain of this ceremony: they must agree.
    pub fn verifies(&self, transcript: &Path, chain: &Path) -> bool {
        let mut said = Vec::new();
        let mut programs = vec![self.room.command(&["ceremony", "verify"])];
        if let Some(python) = support::cryptography() {
            let mut second = Command::new(python);
            second.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stranger/transcript.py"));
            programs.push(second);
        }
        let mut told = String::new();
        for mut program in programs {
            let output = program
                .arg(transcript)
                .arg("--previous")
                .arg(chain)
                .output()
                .unwrap();
            told += &String::from_utf8_lossy(&output.stdout);
            told += &stderr(&output);
            said.push(output.status.success());
        }
        assert!(
            said.iter().all(|one| *one == said[0]),
            "they differ: {told}"
        );
        if !said[0] {
            eprintln!("{told}");
        }
        said[0]
    }

    /// Its transcript is valid, and none of the usual forgeries is.
    pub fn verify(&self) {
        let chain = self.dir.join("chain");
        assert!(self.verifies(&self.transcript_path(), &chain));
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty");
        fs::create_dir(&empty).unwrap();
        assert!(
            !self.verifies(&self.transcript_path(), &empty),
            "without what it goes on from"
        );
        let text = fs::read_to_string(self.transcript_path()).unwrap();
        let whole: Vec<&str> = text.split_inclusive('\n').collect();
        let mut cases: Vec<(String, String)> = Vec::new();
        for at in 0..whole.len() {
            let mut without = whole.clone();
            without.remove(at);
            cases.push((format!("without line {}", at + 1), without.concat()));
            let mut doubled = whole.clone();
            doubled.insert(at, whole[at]);
            cases.push((format!("line {} doubled", at + 1), doubled.concat()));
        }
        let last = whole[whole.len() - 1];
        let rest = whole[..whole.len() - 1].concat();
        let note = whole
            .iter()
            .find(|line| line.starts_with("{\"type\":\"note\""))
            .copied()
            .unwrap_or(last);
        cases.push(("a line after the end".to_owned(), text.clone() + note));
        cases.push((
            "the last line at another time".to_owned(),
            rest.clone() + &last.replacen("\"time\":\"2", "\"time\":\"1", 1),
        ));
        cases.push((
            "the last line with a blank".to_owned(),
            rest + &last.replacen(',', ", ", 1),
        ));
        for (name, case) in cases {
            let path = folder.path().join("case.jsonl");
            fs::write(&path, case).unwrap();
            assert!(!self.verifies(&path, &chain), "{name}");
        }
        // Another predecessor, though a valid one: the line says which it must be.
        let other = folder.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::copy(another().transcript_path(), other.join("0001.jsonl")).unwrap();
        assert!(
            !self.verifies(&self.transcript_path(), &other),
            "another predecessor"
        );
    }
}

/// An initial ceremony that has nothing to do with the others.
fn another() -> &'static Room {
    crate::birth::finished()
}
