//! `SPECIFICATION.md` names tests that exist and run, and no documentation names a file that isn't there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
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
        "hsm/",
        "softhsm/",
        "tests/",
        "benches/",
        "docs/",
        "examples/",
    ];
    let plain = |c: char| c.is_ascii_alphanumeric() || "/_-.".contains(c);
    folders.iter().any(|folder| span.starts_with(folder)) && span.chars().all(plain)
}
