//! `SPECIFICATION.md` names tests that exist and run, no documentation names a file that isn't
//! there, and prose fits a screen.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Columns of prose, as rustfmt has them for code. Stable rustfmt leaves comments alone.
const WIDTH: usize = 100;
/// Files from before the limit: only ever fewer.
const WIDE: &str = "tests/wide.list";
/// What `tests/run` or `make test-image` run although it is marked `ignore`.
const RUN_ALTHOUGH_IGNORED: [&str; 7] = [
    "tests/interop.rs",
    "tests/image/ceremony.rs",
    "tests/image/contents.rs",
    "tests/image/doors.rs",
    "tests/image/network.rs",
    "tests/image/tamper.rs",
    "tests/image/update.rs",
];

#[test]
fn every_promise_names_a_test_that_runs() {
    let text = fs::read_to_string(Path::new(ROOT).join("SPECIFICATION.md")).unwrap();
    let (enforced, open) = text.split_once("\n## Not enforced yet\n").unwrap();
    let mut problems = Vec::new();
    let mut promises = 0;
    for row in rows(enforced).chain(rows(open)) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let &[promise, tests, figure] = cells.as_slice() else {
            problems.push(format!("not three cells: {row}"));
            continue;
        };
        if promise.is_empty() || figure.is_empty() {
            problems.push(format!("an empty cell: {row}"));
        }
        let named: Vec<_> = spans(tests).filter_map(|s| s.split_once("::")).collect();
        if named.is_empty() && enforced.contains(row) {
            problems.push(format!("no test: {row}"));
        }
        promises += 1;
        problems.extend(named.iter().filter_map(|(file, name)| flaw(file, name)));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(promises > 50, "only {promises} promises were read");
}

#[test]
fn every_link_and_every_path_in_the_documentation_leads_somewhere() {
    let root = Path::new(ROOT);
    let top = [
        "README.md",
        "SPECIFICATION.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "tests/README.md",
    ];
    let mut pages: Vec<PathBuf> = top.iter().map(|name| root.join(name)).collect();
    let docs = fs::read_dir(root.join("docs")).unwrap();
    pages.extend(docs.map(|entry| entry.unwrap().path()));
    let mut broken = Vec::new();
    for page in pages
        .iter()
        .filter(|page| page.extension().is_some_and(|e| e == "md"))
    {
        let text = fs::read_to_string(page).unwrap();
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        let local = links.filter(|link| !link.contains("://") && !link.starts_with('#'));
        let linked = local.map(|link| page.parent().unwrap().join(link.split('#').next().unwrap()));
        let named = spans(&text)
            .filter(|span| is_path(span))
            .map(|span| root.join(span));
        let gone = linked.chain(named).filter(|path| !path.exists());
        broken.extend(gone.map(|path| format!("{} leads to {}", page.display(), path.display())));
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_makefile_names_as_phony_the_targets_that_there_are() {
    let text = fs::read_to_string(Path::new(ROOT).join("Makefile")).unwrap();
    let phony = text.lines().find_map(|line| line.strip_prefix(".PHONY:"));
    let phony: BTreeSet<&str> = phony.unwrap().split_whitespace().collect();
    let targets: BTreeSet<&str> = text
        .lines()
        .filter(|line| !line.starts_with(['\t', '.', '#']) && !line.contains(":="))
        .filter_map(|line| line.split_once(':').map(|(target, _)| target))
        .collect();
    assert_eq!(phony, targets);
}

#[test]
fn prose_and_comments_are_at_most_100_columns_wide() {
    let exempt = fs::read_to_string(Path::new(ROOT).join(WIDE)).unwrap();
    let exempt: BTreeSet<&str> = exempt.lines().collect();
    let files = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(ROOT)
        .output()
        .unwrap();
    assert!(files.status.success(), "git ls-files: {files:?}");
    let files = String::from_utf8(files.stdout).unwrap();
    let mut wide = BTreeSet::new();
    let mut problems = Vec::new();
    for file in files.lines().filter(|file| !is_others(file)) {
        // A file that git knows and that was removed, or one that is not text.
        let Ok(text) = fs::read_to_string(Path::new(ROOT).join(file)) else {
            continue;
        };
        let lines = too_wide(file, &text);
        if lines.is_empty() {
            continue;
        }
        wide.insert(file);
        if !exempt.contains(file) {
            problems.extend(
                lines
                    .iter()
                    .map(|line| format!("{file}:{line} is too wide")),
            );
        }
    }
    let narrow = exempt.difference(&wide);
    problems.extend(narrow.map(|file| format!("{file} is not too wide: take it off {WIDE}")));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn wide_is_prose_that_could_be_broken() {
    let long = "word ".repeat(30);
    let of = |file: &str, text: String| !too_wide(file, &text).is_empty();
    assert!(of("a.md", long.clone()));
    assert!(of("a.md", format!("- {long}")));
    assert!(!of("a.md", format!("| {long} |")), "a table's row");
    assert!(!of("a.md", format!("    {long}")), "code");
    assert!(!of("a.md", format!("```\n{long}\n```")), "code");
    assert!(of("a.md", format!("```\n```\n{long}")), "behind code");
    assert!(!of("a.md", format!("- {}", "x".repeat(120))), "one word");
    assert!(!of("a.md", format!("- `{long}`")), "code in a line");
    assert!(of("a.md", format!("- `code` {long}")));
    assert!(of("a.rs", format!("    /// {long}")));
    assert!(of("a.rs", format!("let a = 1; // {long}")));
    assert!(!of("a.rs", format!("let a = \"{long}\";")), "a string");
    assert!(of("a.toml", format!("# {long}")));
    assert!(of("a.sh", format!("# {long}")));
    assert!(
        !of("a.md", "ä".repeat(50) + &" b".repeat(25)),
        "by characters"
    );
}

/// The numbers of lines of prose or comments that are wider than they may be, though they could be
/// broken.
fn too_wide(file: &str, text: &str) -> Vec<usize> {
    let extension = Path::new(file).extension().and_then(|e| e.to_str());
    let mut in_code = false;
    let mut is_prose = |line: &str| match extension {
        Some("md") => {
            in_code ^= line.trim_start().starts_with("```");
            !in_code && !line.starts_with('|') && !line.starts_with("    ")
        }
        Some("rs") => line.trim_start().starts_with("//") || line.contains(" // "),
        Some("toml" | "sh" | "py" | "service" | "timer" | "conf") | None => {
            line.trim_start().starts_with('#')
        }
        _ => false,
    };
    (1..)
        .zip(text.lines())
        .filter(|(_, line)| {
            is_prose(line) && line.chars().count() > WIDTH && {
                // A link, a hash, code between backticks: none of them can be broken.
                let longest = words(line).map(|word| word.chars().count()).max();
                longest.is_some_and(|longest| longest + 8 < WIDTH)
            }
        })
        .map(|(number, _)| number)
        .collect()
}

/// What stands between blanks, code with its blanks being one word.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    line.split(move |c: char| {
        in_code ^= c == '`';
        c.is_whitespace() && !in_code
    })
}

/// Texts that others wrote, or programs did.
fn is_others(file: &str) -> bool {
    file.starts_with("LICENSE") || file.starts_with("fuzz/seeds/") || file.ends_with("Cargo.lock")
}

/// What a crate may name of ours, and what it must never name of others'.
struct Floor {
    folder: &'static str,
    ours: &'static [&'static str],
    never: &'static [&'static str],
}

/// docs/code-structure.md has the same table, and each crate's `lib.rs` its row.
const FLOORS: [Floor; 7] = [
    Floor {
        folder: ".",
        ours: &["server", "ceremony", "client", "core", "hsm", "softhsm"],
        never: &["cryptoki", "cryptoki-sys", "sled"],
    },
    Floor {
        folder: "server",
        ours: &["core", "hsm"],
        never: &["clap", "cryptoki", "cryptoki-sys", "sled"],
    },
    Floor {
        folder: "ceremony",
        ours: &["core", "hsm"],
        never: &[
            "clap",
            "cryptoki",
            "cryptoki-sys",
            "http-body-util",
            "hyper",
            "hyper-rustls",
            "hyper-util",
            "sled",
        ],
    },
    Floor {
        folder: "client",
        ours: &["core"],
        never: &["clap", "cryptoki", "cryptoki-sys", "sled"],
    },
    Floor {
        folder: "core",
        ours: &["hsm"],
        never: &[
            "clap",
            "cryptoki",
            "cryptoki-sys",
            "http-body-util",
            "hyper",
            "hyper-rustls",
            "hyper-util",
            "maud",
        ],
    },
    Floor {
        folder: "hsm",
        ours: &[],
        never: &["clap", "hyper", "hyper-util", "sled"],
    },
    Floor {
        folder: "softhsm",
        ours: &[],
        never: &["clap", "cryptoki", "cryptoki-sys", "hyper", "sled"],
    },
];

#[test]
fn no_crate_names_one_of_a_floor_above() {
    let mut problems = Vec::new();
    for floor in &FLOORS {
        let manifest = Path::new(ROOT).join(floor.folder).join("Cargo.toml");
        let text = fs::read_to_string(&manifest).unwrap();
        for name in dependencies(&text) {
            let allowed = match name.strip_prefix("strongroom-") {
                Some(ours) => floor.ours.contains(&ours),
                None => !floor.never.contains(&name),
            };
            if !allowed {
                problems.push(format!("{} must not name {name}", manifest.display()));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));

    // A crate that is new has a floor too; programs of their own and what only tests load have
    // none.
    let text = fs::read_to_string(Path::new(ROOT).join("Cargo.toml")).unwrap();
    let members = text.split_once("members = [").unwrap().1;
    let members = members.split_once(']').unwrap().0;
    for member in members.split('"').skip(1).step_by(2) {
        let alone = member.starts_with("tests/") || member == "image/init";
        let has = FLOORS.iter().any(|floor| floor.folder == member);
        assert!(alone || has, "{member} stands on no floor");
    }
}

#[test]
fn only_its_own_module_names_sled_and_nothing_names_how_a_ceremony_is_carried_out() {
    let naming = |folder: &str, words: &[&str]| {
        let mut found = Vec::new();
        for file in rust_files(&Path::new(ROOT).join(folder)) {
            let text = fs::read_to_string(&file).unwrap();
            if words.iter().any(|word| text.contains(word)) {
                let file = file.strip_prefix(ROOT).unwrap();
                found.push(file.to_str().unwrap().to_owned());
            }
        }
        found
    };
    assert_eq!(
        naming("core/src", &["sled::"]),
        ["core/src/store/engine/sled_db.rs"]
    );
    let mut upwards = naming("ceremony/src", &["crate::run::", "super::run::"]);
    upwards.retain(|file| !file.starts_with("ceremony/src/run/"));
    assert!(upwards.is_empty(), "{upwards:?}");
}

/// The names in `[dependencies]`: what an ordinary build of the crate may name.
fn dependencies(manifest: &str) -> impl Iterator<Item = &str> {
    manifest
        .lines()
        .skip_while(|line| *line != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty())
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}

/// Why `file::name` is not a test that runs (or, below `benches/`, a function).
fn flaw(file: &str, name: &str) -> Option<String> {
    let Ok(source) = fs::read_to_string(Path::new(ROOT).join(file)) else {
        return Some(format!("{file} is not there"));
    };
    let Some(at) = source.find(&format!("fn {name}(")) else {
        return Some(format!("{file} has no function {name}"));
    };
    // Its attributes: all that stands between the empty line before it and the function.
    let attributes = source[..at].rsplit("\n\n").next().unwrap_or_default();
    let is_test = attributes.contains("#[test]") || attributes.contains("#[tokio::test");
    let runs = !attributes.contains("#[ignore") || RUN_ALTHOUGH_IGNORED.contains(&file);
    (!(file.starts_with("benches/") || is_test && runs))
        .then(|| format!("{file}::{name} is not a test that runs"))
}

/// The rows of all tables, without their heads.
fn rows(text: &str) -> impl Iterator<Item = &str> {
    let is_row = |line: &&str| line.starts_with('|') && !line.starts_with("|--");
    text.lines()
        .filter(is_row)
        .filter(|line| !line.starts_with("| promise |"))
}

/// What stands between backticks.
fn spans(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

fn is_path(span: &str) -> bool {
    let folders = [
        "src/",
        "ceremony/",
        "client/",
        "core/",
        "hsm/",
        "server/",
        "softhsm/",
        "tests/",
        "benches/",
        "docs/",
        "examples/",
    ];
    let plain = |c: char| c.is_ascii_alphanumeric() || "/_-.".contains(c);
    folders.iter().any(|folder| span.starts_with(folder)) && span.chars().all(plain)
}
