//! The files in which `SoftHSM` keeps a token, for tests that meet it in the middle of a write or
//! with some of them away.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "tests"
)]

use std::fs;
use std::path::{Path, PathBuf};

pub const CKO_DATA: u64 = 0;
pub const CKO_PRIVATE_KEY: u64 = 3;
pub const CKO_SECRET_KEY: u64 = 4;
pub const CKA_EXTRACTABLE: u64 = 0x162;

/// An object's file: how often it was written, then each attribute's type, sort and value, ordered
/// by type. Numbers have 8 bytes, big-endian.
pub struct ObjectFile {
    path: PathBuf,
    whole: Vec<u8>,
    writes: u64,
}

impl ObjectFile {
    /// All of that class, of all tokens in the folder.
    pub fn of_class(tokens: &Path, class: u64) -> Vec<Self> {
        let tokens = fs::read_dir(tokens).unwrap();
        tokens
            .flat_map(|token| Self::of_token(&token.unwrap().path()))
            .filter(|object| object.class() == class)
            .collect()
    }

    /// All of a token.
    pub fn of_token(token: &Path) -> Vec<Self> {
        let files = fs::read_dir(token).unwrap();
        files
            .map(|file| file.unwrap().path())
            .filter(|path| path.extension().is_some_and(|name| name == "object"))
            .filter(|path| path.file_stem().is_some_and(|name| name != "token"))
            .map(Self::read)
            .collect()
    }

    fn read(path: PathBuf) -> Self {
        let whole = fs::read(&path).unwrap();
        let writes = number(&whole, 0);
        Self {
            path,
            whole,
            writes,
        }
    }

    fn class(&self) -> u64 {
        const CKA_CLASS: u64 = 0;
        const NUMBER: u64 = 2;
        let first = (number(&self.whole, 8), number(&self.whole, 16));
        assert_eq!(first, (CKA_CLASS, NUMBER), "{}", self.path.display());
        number(&self.whole, 24)
    }

    /// Where the first attribute of that type or a later one stands.
    pub fn offset_of(&self, attribute: u64) -> usize {
        let mut at = 8;
        while number(&self.whole, at) < attribute {
            at += 16
                + match number(&self.whole, at + 8) {
                    1 => 1,
                    2 => 8,
                    3 => 8 + usize::try_from(number(&self.whole, at + 16)).unwrap(),
                    sort => panic!("values of sort {sort} stand before {attribute:#x}"),
                };
        }
        at
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn len(&self) -> usize {
        self.whole.len()
    }

    /// The file as another process has written so much of it.
    pub fn write_up_to(&mut self, end: usize) {
        self.writes += 1;
        let mut bytes = self.whole[..end].to_vec();
        bytes[..8].copy_from_slice(&self.writes.to_be_bytes());
        fs::write(&self.path, bytes).unwrap();
        // Each has one beside it, which goes with it.
        fs::write(self.path.with_extension("lock"), []).unwrap();
    }

    pub fn write_whole(&mut self) {
        self.write_up_to(self.len());
    }

    pub fn move_away(&self) {
        fs::rename(&self.path, self.path.with_extension("aside")).unwrap();
    }

    pub fn move_back(&self) {
        fs::rename(self.path.with_extension("aside"), &self.path).unwrap();
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(*bytes[at..].first_chunk().unwrap())
}

/// The folder of tokens that a configuration of `SoftHSM`'s names.
pub fn tokens_of(configuration: &Path) -> PathBuf {
    let text = fs::read_to_string(configuration).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("directories.tokendir = "));
    line.unwrap().into()
}

/// The folder of the token with that label.
pub fn token_with(tokens: &Path, label: &str) -> PathBuf {
    let mut tokens = fs::read_dir(tokens)
        .unwrap()
        .map(|token| token.unwrap().path());
    let holds = |token: &PathBuf| {
        let about = fs::read(token.join("token.object")).unwrap_or_default();
        about
            .windows(label.len())
            .any(|part| part == label.as_bytes())
    };
    tokens.find(holds).unwrap()
}

/// A folder of tokens as it is now.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(path, to).unwrap();
        }
    }
}
