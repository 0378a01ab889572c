#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;

use super::super::shares::{Pins, split};
use super::super::testing::Room;
use super::*;

fn dealt(mode: Mode) -> (Room, Vec<Share>) {
    let room = Room::new(2, 3);
    let (shares, _) = split(&room.deal(mode), &Pins::generate().unwrap()).unwrap();
    (room, shares)
}

#[test]
fn a_page_holds_one_share_for_paper() {
    let (room, shares) = dealt(Mode::Ceremony);
    let page = html(&shares[0], &room.plan.custodians[0], "vault-keys-1").unwrap();
    let words = shares[0].to_words().unwrap();
    assert!(
        page.contains(
            &words
                .split_whitespace()
                .fold(String::new(), |text, word| text + "<li>" + word + "</li>\n")
        )
    );
    assert!(
        page.contains("Custodian 1, and nobody else")
            && page.contains(&shares[0].ceremony_id.to_string())
    );
    assert!(page.contains("<svg") && !page.contains("<?xml"));
    // Self-contained: nothing is loaded, nothing runs.
    assert!(!page.contains("<script") && !page.contains("src=") && !page.contains("href="));
    assert!(!page.contains("REHEARSAL"));
}

#[test]
fn a_rehearsals_page_says_so() {
    let (room, shares) = dealt(Mode::Rehearsal);
    let page = html(&shares[0], &room.plan.custodians[0], "vault-keys-1").unwrap();
    // In the title, at the top, across each sheet, at the end.
    assert_eq!(page.matches("REHEARSAL").count(), 4);
}

#[test]
fn pages_are_their_owners() {
    let (room, shares) = dealt(Mode::Ceremony);
    let folder = tempfile::tempdir().unwrap();
    let custodian = &room.plan.custodians[0];
    let path = write(folder.path(), &shares[0], custodian, "vault-keys-1").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    // Written again after an interruption: still one page.
    fs::write(path.with_extension("html.new"), "torn").unwrap();
    assert_eq!(
        write(folder.path(), &shares[0], custodian, "vault-keys-1").unwrap(),
        path
    );
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn what_comes_from_outside_stays_text() {
    assert_eq!(
        escape("<a href=\"x\">'&'"),
        "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;"
    );
    assert_eq!(
        escape("a\u{1b}b\u{202e}c\u{0}d\re"),
        "a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}e"
    );
    assert_eq!(printable("a\nb\u{200b}"), "a\u{fffd}b\u{fffd}");
    assert_eq!(printable(&"x".repeat(100)).len(), 80);
}
