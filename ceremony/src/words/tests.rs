#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

#[test]
fn the_list_is_bip_39s() {
    let list = Language::English.word_list();
    assert_eq!((list[0], list[2047]), ("abandon", "zoo"));
    // SHA-256 of the list as it is published: a word a line, the last line with its end.
    let text: String = list.iter().flat_map(|word| [*word, "\n"]).collect();
    assert_eq!(
        super::super::encoding::hex(&sha256(text.as_bytes())),
        "2f5eed53a4727b4bf8880d8f3f199efc90e58503646d9ff8eff3a2ed3b24dbda"
    );
}

#[test]
fn a_known_one() {
    // 00 || SHA-256(domain || 00)[..4]: 40 bits, so four words, the last with padding.
    assert_eq!(encode(b"").split_whitespace().count(), 4);
    assert_eq!(&**decode(&encode(b"")).unwrap(), b"");
}

#[test]
fn people_type_as_they_like() {
    let words = encode(b"a share");
    let numbered: String = words
        .split_whitespace()
        .zip(1..)
        .fold(String::new(), |text, (word, number)| {
            format!("{text}{number}. {}\n", word.to_uppercase())
        });
    assert_eq!(&**decode(&numbered).unwrap(), b"a share");
    let short: String = words.split_whitespace().fold(String::new(), |text, word| {
        text + word.get(..4).unwrap_or(word) + " "
    });
    assert_eq!(&**decode(&short).unwrap(), b"a share");
}

#[test]
fn a_word_that_is_none_is_named_by_its_place() {
    let words = encode(b"a share");
    let wrong = words.replacen(words.split_whitespace().nth(2).unwrap(), "qwerty", 1);
    let error = decode(&wrong).unwrap_err().to_string();
    assert!(error.contains("word 3 (qwerty)"), "{error}");
}

#[test]
fn a_wrong_missing_or_additional_word_is_found() {
    let words = encode(&[0x5a; 40]);
    let words: Vec<&str> = words.split_whitespace().collect();
    let list = Language::English.word_list();
    for at in 0..words.len() {
        let mut changed = words.clone();
        changed.remove(at);
        assert!(decode(&changed.join(" ")).is_err(), "without {at}");
        let mut changed = words.clone();
        changed.insert(at, "abandon");
        assert!(decode(&changed.join(" ")).is_err(), "more at {at}");
        let mut changed = words.clone();
        let number = list.iter().position(|word| *word == words[at]).unwrap();
        changed[at] = list[number ^ 1];
        assert!(decode(&changed.join(" ")).is_err(), "another at {at}");
        if at > 0 && words[at - 1] != words[at] {
            let mut changed = words.clone();
            changed.swap(at - 1, at);
            assert!(decode(&changed.join(" ")).is_err(), "swapped at {at}");
        }
    }
    assert!(decode("").is_err());
    assert!(decode(&[words.as_slice(), &["abandon"]].concat().join(" ")).is_err());
}

proptest! {
    #[test]
    fn round_trips(bytes in proptest::collection::vec(any::<u8>(), 0..=255)) {
        prop_assert_eq!(&**decode(&encode(&bytes)).unwrap(), &bytes);
    }

    #[test]
    fn rubbish_is_refused(text in "([a-z]{3,8} ){0,30}") {
        prop_assert!(decode(&text).is_err());
    }
}
