//! The short form of the fuzz targets, for `cargo test`: each entry function over its seeds and
//! some thousand altered ones, the same ones each time. Part of the tests of each crate that has
//! entry functions.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// `short_forms! { "crate", "path of fuzz/"; target mutations, … }` makes a test for each target,
/// and one that says if any is missing.
macro_rules! short_forms {
    ($krate:literal, $fuzz:literal; $($target:ident $mutations:literal),* $(,)?) => {
        $(
            #[test]
            fn $target() {
                super::short::run(&fuzz(), stringify!($target), super::$target, $mutations);
            }
        )*

        #[test]
        fn every_target_has_seeds_and_a_short_form() {
            super::short::compare(&fuzz(), $krate, &[$(stringify!($target)),*]);
        }

        fn fuzz() -> std::path::PathBuf {
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join($fuzz)
        }
    };
}

/// Runs one target over its seeds, then over `mutations` altered ones.
pub(crate) fn run(fuzz: &Path, target: &str, entry: fn(&[u8]), mutations: u64) {
    let seeds = seeds(fuzz, target);
    assert!(!seeds.is_empty(), "fuzz/seeds/{target} has no seeds");
    entry(&[]);
    for (name, seed) in &seeds {
        call(target, entry, seed, name);
    }
    // Of the target's name, so that no two targets walk alike; the same in each run.
    let start = target
        .bytes()
        .fold(0, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(byte));
    let mut random = Random(start);
    for number in 0..mutations {
        let (name, seed) = &seeds[random.below(seeds.len())];
        let (_, other) = &seeds[random.below(seeds.len())];
        let mut input = seed.clone();
        for _ in 0..=random.below(4) {
            random.alter(&mut input, other);
        }
        call(target, entry, &input, &format!("{name}, mutation {number}"));
    }
}

/// Says which targets of `fuzz/Cargo.toml` lack what.
pub(crate) fn compare(fuzz: &Path, krate: &str, short_forms: &[&str]) {
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    let mut ours = BTreeSet::new();
    for name in manifest
        .split("[[bin]]")
        .skip(1)
        .map(|bin| value(bin, "name"))
    {
        let source = fs::read_to_string(fuzz.join(format!("targets/{name}.rs"))).unwrap();
        let calls = |krate: &str| source.contains(&format!("{krate}::fuzzing::{name}(data)"));
        assert!(
            ["core", "ceremony", "server", "hsm"]
                .iter()
                .any(|one| calls(&format!("strongroom_{one}"))),
            "fuzz/targets/{name}.rs does not call the entry function of that name"
        );
        assert!(
            !seeds(fuzz, name).is_empty(),
            "fuzz/seeds/{name} has no seeds"
        );
        if calls(krate) {
            ours.insert(name);
        }
    }
    let short_forms: BTreeSet<&str> = short_forms.iter().copied().collect();
    assert_eq!(
        ours, short_forms,
        "targets in fuzz/Cargo.toml, short forms in {krate}"
    );
}

fn value<'a>(table: &'a str, key: &str) -> &'a str {
    let mut lines = table.lines().filter_map(|line| line.split_once(" = "));
    let (_, value) = lines.find(|(name, _)| *name == key).unwrap();
    value.trim_matches('"')
}

/// In the order of their names.
fn seeds(fuzz: &Path, target: &str) -> Vec<(String, Vec<u8>)> {
    let Ok(folder) = fs::read_dir(fuzz.join("seeds").join(target)) else {
        return Vec::new();
    };
    let mut seeds: Vec<_> = folder
        .map(|entry| entry.unwrap())
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                fs::read(entry.path()).unwrap(),
            )
        })
        .collect();
    seeds.sort();
    seeds
}

/// Shows the input that breaks a property, ready to become a seed.
fn call(target: &str, entry: fn(&[u8]), input: &[u8], origin: &str) {
    if catch_unwind(AssertUnwindSafe(|| entry(input))).is_err() {
        let shown = input.escape_ascii();
        panic!(
            "{target} fails for this input ({origin}):\n{shown}\nadd it: printf '%b' INPUT > fuzz/seeds/{target}/NAME"
        );
    }
}

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `bound`; 0 for 0.
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 1).unwrap() % bound.max(1)
    }

    /// Where a part of `bytes` begins, and its end: often short, sometimes long.
    fn part(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let start = self.below(bytes.len() + 1);
        let most = if self.below(4) == 0 { bytes.len() } else { 8 };
        start..(start + self.below(most + 1)).min(bytes.len())
    }

    fn alter(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        const BYTES: &[u8] = b"\0\xff\x80 \n\r\"'{}[]:,;=.-+/%&?*0123456789aAzZ";
        let at = self.below(bytes.len());
        match self.below(8) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
            1 if !bytes.is_empty() => bytes[at] = BYTES[self.below(BYTES.len())],
            2 => bytes.insert(at, BYTES[self.below(BYTES.len())]),
            3 => drop(bytes.drain(self.part(&bytes.clone()))),
            4 => {
                let part = bytes[self.part(bytes)].to_vec();
                bytes.splice(at..at, part);
            }
            5 => {
                let part = other[self.part(other)].to_vec();
                let gone = at..(at + self.below(part.len() + 1)).min(bytes.len());
                bytes.splice(gone, part);
            }
            6 => bytes.truncate(at),
            _ if !bytes.is_empty() => bytes[at] = self.next().to_le_bytes()[0],
            _ => {}
        }
    }
}
