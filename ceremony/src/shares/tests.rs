#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashSet;

use proptest::prelude::*;

use super::super::testing::Room;
use super::super::words;
use super::*;

struct Dealt {
    room: Room,
    deal: Deal,
    pins: Pins,
    shares: Vec<Share>,
    commitments: Vec<Commitment>,
}

impl Dealt {
    fn new(threshold: u8, custodians: usize, mode: Mode) -> Self {
        let room = Room::new(threshold, custodians);
        let deal = room.deal(mode);
        let pins = Pins::generate().unwrap();
        let (shares, commitments) = split(&deal, &pins).unwrap();
        Self {
            room,
            deal,
            pins,
            shares,
            commitments,
        }
    }

    fn recovery(&self) -> Recovery {
        Recovery::new(self.deal.clone(), self.commitments.clone()).unwrap()
    }

    fn share(&self, index: usize) -> Share {
        self.shares[index].clone()
    }

    /// What becomes of these shares, one after the other.
    fn add(&self, indices: &[usize]) -> Added {
        let mut recovery = self.recovery();
        let mut last = None;
        for index in indices {
            last = Some(recovery.add(self.share(*index)));
        }
        last.unwrap()
    }
}

/// Every way to choose `size` of `count`, in order.
fn combinations(count: usize, size: usize) -> Vec<Vec<usize>> {
    (0..1_usize << count)
        .filter(|set| set.count_ones() as usize == size)
        .map(|set| (0..count).filter(|index| set & (1 << index) != 0).collect())
        .collect()
}

fn refused(added: Added) -> Refusal {
    match added {
        Added::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn any_three_of_five_recover_both_pins_in_any_order() {
    let dealt = Dealt::new(3, 5, Mode::Ceremony);
    let threes = combinations(5, 3);
    assert_eq!(threes.len(), 10);
    for three in threes {
        for order in [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ] {
            let chosen: Vec<usize> = order.iter().map(|place| three[*place]).collect();
            let Added::Complete(pins) = dealt.add(&chosen) else {
                panic!("{chosen:?}");
            };
            assert_eq!(
                (pins.so, pins.user),
                (dealt.pins.so.clone(), dealt.pins.user.clone())
            );
        }
    }
}

/// Not by this program, and not by whoever interpolates them themselves: any PIN fits any two
/// shares as well as the right one does.
#[test]
fn no_two_of_five_tell_anything() {
    let dealt = Dealt::new(3, 5, Mode::Ceremony);
    let twos = combinations(5, 2);
    assert_eq!(twos.len(), 10);
    for two in twos {
        assert!(
            matches!(dealt.add(&two), Added::More { missing: 1 }),
            "{two:?}"
        );
        for piece in [
            |share: &Share| share.so.share.clone(),
            |share: &Share| share.user.share.clone(),
        ] {
            let pieces: Vec<_> = two
                .iter()
                .map(|index| piece(&dealt.shares[*index]))
                .collect();
            let pieces: Vec<&[u8]> = pieces.iter().map(|piece| piece.as_slice()).collect();
            let guess = combine(&pieces).unwrap();
            assert_ne!(guess, dealt.pins.so, "{two:?}");
            assert_ne!(guess, dealt.pins.user, "{two:?}");

            // For each value of a byte there is just one value of a third share: all are equally
            // likely.
            let mut seen = HashSet::new();
            let third = 9_u8;
            for value in 0..=255 {
                let made = [third, value];
                let set = [&pieces[0][..2], &pieces[1][..2], &made];
                assert!(seen.insert(combine(&set).unwrap().to_vec()));
            }
            assert_eq!(seen.len(), 256);
        }
    }
}

#[test]
fn thresholds_from_one_to_all() {
    for (threshold, count) in [(1, 1), (1, 3), (2, 2), (2, 3), (5, 5), (7, 20)] {
        let dealt = Dealt::new(threshold, count, Mode::Ceremony);
        let needed: Vec<usize> = (0..usize::from(threshold))
            .map(|index| count - 1 - index)
            .collect();
        let Added::Complete(pins) = dealt.add(&needed) else {
            panic!("{threshold} of {count}");
        };
        assert_eq!(pins.user, dealt.pins.user, "{threshold} of {count}");
        if threshold > 1 {
            assert!(matches!(
                dealt.add(&needed[1..]),
                Added::More { missing: 1 }
            ));
        }
    }
}

#[test]
fn a_corrupted_share_is_named_and_changes_nothing() {
    let dealt = Dealt::new(3, 5, Mode::Ceremony);
    let mut recovery = dealt.recovery();
    assert!(matches!(
        recovery.add(dealt.share(0)),
        Added::More { missing: 2 }
    ));
    for at in 1..dealt.share(1).so.share.len() {
        for user in [false, true] {
            let mut share = dealt.share(1);
            let piece = if user { &mut share.user } else { &mut share.so };
            piece.share[at] ^= 1;
            let refusal = refused(recovery.add(share));
            assert!(
                matches!(&refusal, Refusal::Corrupted { name, .. } if name == "Custodian 2"),
                "{refusal}"
            );
            assert!(refusal.to_string().contains("Custodian 2"));
        }
    }
    let mut share = dealt.share(1);
    share.threshold = 2;
    assert!(matches!(
        refused(recovery.add(share)),
        Refusal::Corrupted { .. }
    ));
    // One custodian's values under another's name.
    let mut share = dealt.share(2);
    share.so = dealt.share(1).so;
    assert!(
        matches!(refused(recovery.add(share)), Refusal::Corrupted { name, .. } if name == "Custodian 3")
    );

    assert_eq!(recovery.present(), ["Custodian 1"]);
    assert!(matches!(
        recovery.add(dealt.share(1)),
        Added::More { missing: 1 }
    ));
    let Added::Complete(pins) = recovery.add(dealt.share(4)) else {
        panic!()
    };
    assert_eq!(pins.so, dealt.pins.so);
}

#[test]
fn a_repeated_custodian_is_refused() {
    let dealt = Dealt::new(3, 5, Mode::Ceremony);
    let refusal = refused(dealt.add(&[3, 3]));
    assert_eq!(
        refusal,
        Refusal::Repeated {
            name: "Custodian 4".into()
        }
    );
    let mut recovery = dealt.recovery();
    for _ in 0..5 {
        recovery.add(dealt.share(3));
    }
    assert_eq!(recovery.missing(), 2);
}

#[test]
fn shares_of_another_ceremony_or_of_a_rehearsal_are_refused() {
    let dealt = Dealt::new(2, 3, Mode::Ceremony);
    // The same people, another day.
    let other = dealt.room.deal(Mode::Ceremony);
    let (shares, _) = split(&other, &dealt.pins).unwrap();
    let refusal = refused(dealt.recovery().add(shares[0].clone()));
    assert!(
        matches!(refusal, Refusal::OtherCeremony { .. }),
        "{refusal}"
    );

    let rehearsal = dealt.room.deal(Mode::Rehearsal);
    let (shares, commitments) = split(&rehearsal, &dealt.pins).unwrap();
    assert_eq!(
        refused(dealt.recovery().add(shares[0].clone())),
        Refusal::Rehearsal
    );
    let mut recovery = Recovery::new(rehearsal, commitments).unwrap();
    assert_eq!(refused(recovery.add(dealt.share(0))), Refusal::NotRehearsal);

    // Somebody who removes the word from the share does not get far: its commitment is of the
    // rehearsal.
    let mut share = shares[0].clone();
    share.mode = Mode::Ceremony;
    share.ceremony_id = dealt.deal.ceremony_id;
    assert!(matches!(
        refused(dealt.recovery().add(share)),
        Refusal::Corrupted { .. }
    ));
}

#[test]
fn a_share_of_nobody_is_refused() {
    let dealt = Dealt::new(2, 3, Mode::Ceremony);
    for index in [0, 4, 255] {
        let mut share = dealt.share(0);
        share.index = index;
        assert_eq!(
            refused(dealt.recovery().add(share)),
            Refusal::Unknown { index }
        );
    }
    let mut share = dealt.share(0);
    share.custodian = dealt.room.plan.auditor.fingerprint();
    assert_eq!(
        refused(dealt.recovery().add(share)),
        Refusal::Unknown { index: 1 }
    );
}

#[test]
fn commitments_of_others_are_refused() {
    let dealt = Dealt::new(2, 3, Mode::Ceremony);
    let with = |commitments| Recovery::new(dealt.deal.clone(), commitments).is_ok();
    assert!(with(dealt.commitments.clone()));
    assert!(!with(Vec::new()));
    assert!(!with(dealt.commitments[..2].to_vec()));
    let mut swapped = dealt.commitments.clone();
    swapped.swap(0, 1);
    assert!(!with(swapped));
}

#[test]
fn a_share_goes_to_its_custodian_only() {
    let dealt = Dealt::new(2, 3, Mode::Ceremony);
    let keys = &dealt.room.keys;
    let sealed: Vec<String> = dealt
        .shares
        .iter()
        .zip(&dealt.deal.custodians)
        .map(|(share, custodian)| seal(share, custodian).unwrap())
        .collect();
    let opened = open(&sealed[1], &keys[1]).unwrap();
    assert_eq!(opened.commitment(), dealt.commitments[1]);
    assert!(open(&sealed[1], &keys[0]).is_err());
    let mut recovery = dealt.recovery();
    recovery.add(opened);
    let Added::Complete(pins) = recovery.add(open(&sealed[2], &keys[2]).unwrap()) else {
        panic!()
    };
    assert_eq!(pins.so, dealt.pins.so);
}

#[test]
fn words_hold_the_whole_share() {
    let dealt = Dealt::new(3, 5, Mode::Ceremony);
    let words = dealt.share(2).to_words().unwrap();
    let read = Share::from_words(&words, &dealt.deal).unwrap();
    assert_eq!(read.commitment(), dealt.commitments[2]);
    assert_eq!((read.mode, read.threshold), (Mode::Ceremony, 3));

    // A rehearsal's words are those of a rehearsal.
    let rehearsal = Dealt::new(2, 2, Mode::Rehearsal);
    let words = rehearsal.share(0).to_words().unwrap();
    let read = Share::from_words(&words, &dealt.deal).unwrap();
    assert_eq!(refused(dealt.recovery().add(read)), Refusal::Rehearsal);

    // Words that are right, but something else.
    for bytes in [&b""[..], b"x", &[1; 20], &[1; 200]] {
        let error = Share::from_words(&words::encode(bytes), &dealt.deal).unwrap_err();
        assert!(matches!(error, CeremonyError::Share(_)), "{error}");
    }
}

#[test]
fn what_is_no_share_is_refused() {
    let dealt = Dealt::new(2, 3, Mode::Ceremony);
    let json = dealt.share(0).to_json().unwrap();
    let text = std::str::from_utf8(&json).unwrap();
    assert!(Share::from_json(&json).is_ok());
    for (from, to) in [
        ("\"format\":1", "\"format\":2"),
        ("\"index\":1", "\"index\":2"),
        ("\"index\":1", "\"index\":1,\"more\":1"),
        ("\"CEREMONY\"", "\"PARTY\""),
        ("\"salt\":\"", "\"salt\":\"AAAA"),
        ("\"ceremony_id\":\"", "\"ceremony_id\":\"00"),
    ] {
        assert!(text.contains(from));
        assert!(
            Share::from_json(text.replacen(from, to, 1).as_bytes()).is_err(),
            "{to}"
        );
    }
}

#[test]
fn pins_are_of_the_alphabet_and_differ() {
    let mut seen = HashSet::new();
    let mut used = HashSet::new();
    for _ in 0..200 {
        let pin = generate_pin().unwrap();
        assert_eq!(pin.len(), 24);
        assert!(pin.iter().all(|byte| ALPHABET.contains(byte)));
        used.extend(pin.iter().copied());
        assert!(seen.insert(pin.to_vec()));
    }
    assert_eq!(used.len(), 32);
}

#[test]
fn debug_tells_no_secret() {
    let dealt = Dealt::new(2, 3, Mode::Ceremony);
    let Added::Complete(pins) = dealt.add(&[0, 1]) else {
        panic!()
    };
    let text = format!(
        "{:?} {:?} {:?}",
        dealt.shares,
        pins,
        Added::Complete(pins.clone())
    );
    let pin = std::str::from_utf8(&pins.user).unwrap();
    assert!(
        !text.contains(pin) && !text.contains("salt") && text.contains("Pins(..)"),
        "{text}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_secret_any_threshold(so in proptest::collection::vec(any::<u8>(), 1..80), threshold in 1..6_u8, more in 0..4_usize) {
        let room = Room::new(threshold, usize::from(threshold) + more);
        let deal = room.deal(Mode::Ceremony);
        let pins = Pins { so: Zeroizing::new(so.clone()), user: Zeroizing::new(b"1".to_vec()) };
        let (shares, commitments) = split(&deal, &pins).unwrap();
        let mut recovery = Recovery::new(deal.clone(), commitments).unwrap();
        let mut last = None;
        for share in shares.iter().rev().take(usize::from(threshold)) {
            // By way of the words and of the encrypted form.
            let share = Share::from_words(&share.to_words().unwrap(), &deal).unwrap();
            last = Some(recovery.add(Share::from_json(&share.to_json().unwrap()).unwrap()));
        }
        let Some(Added::Complete(found)) = last else { panic!("{last:?}") };
        prop_assert_eq!(found.so.to_vec(), so);
    }
}
