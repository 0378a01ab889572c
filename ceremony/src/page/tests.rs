#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
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

/// What a reader of QR codes sees in the page's picture: black squares on white, by the picture's
/// own path.
fn scanned(page: &str) -> String {
    let between = |text: &str, from: &str, to: &str| {
        let (_, rest) = text.split_once(from).unwrap();
        rest.split_once(to).unwrap().0.to_owned()
    };
    let svg = between(page, "<svg", "</svg>");
    let side: usize = between(&svg, "width=\"", "\"").parse().unwrap();
    let mut black = vec![false; side * side];
    for square in between(&svg, " d=\"", "\"").split('M').skip(1) {
        // M left top h width v height H left V top
        let numbers: Vec<usize> = square
            .split(|letter: char| !letter.is_ascii_digit())
            .filter(|number| !number.is_empty())
            .map(|number| number.parse().unwrap())
            .collect();
        let [left, top, width, height, ..] = numbers[..] else {
            panic!("{square}");
        };
        for y in top..top + height {
            black[y * side + left..][..width].fill(true);
        }
    }
    let pixel = |x: usize, y: usize| if black[y * side + x] { 0 } else { 255 };
    let mut image = rqrr::PreparedImage::prepare_from_greyscale(side, side, pixel);
    let codes = image.detect_grids();
    assert_eq!(codes.len(), 1);
    codes[0].decode().unwrap().1
}

/// Read back, the picture gives the same share as the words.
#[test]
fn the_picture_is_the_words_to_another_reader() {
    let (room, shares) = dealt(Mode::Ceremony);
    for (share, custodian) in shares.iter().zip(&room.plan.custodians) {
        let page = html(share, custodian, "vault-keys-1").unwrap();
        let read = scanned(&page);
        let words = share.to_words().unwrap();
        let words: Vec<_> = words.split_whitespace().collect();
        assert_eq!(read, words.join(" ").to_uppercase());
        let again = Share::from_words(&read, &room.deal(Mode::Ceremony)).unwrap();
        assert_eq!(again.to_words().unwrap(), share.to_words().unwrap());
    }
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
