//! What an [`Engine`] promises, asked of it. Whoever writes another one runs it through this; what
//! a kill in the middle of a write leaves is asked by the store's own tests (`store/tests.rs`).
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Barrier;
use std::thread;

use super::{Engine, EngineError, Expected, Pair, Write};

/// A database, empty at first, that is opened again and again.
pub(super) struct Kept(Box<dyn FnMut() -> Box<dyn Engine>>);

impl Kept {
    /// `open`: it with what it has kept. The one before was dropped.
    pub(super) fn new(open: impl FnMut() -> Box<dyn Engine> + 'static) -> Self {
        Self(Box::new(open))
    }

    fn open(&mut self) -> Box<dyn Engine> {
        self.0()
    }
}

/// Every promise, each of a database of its own.
pub(super) fn run(fresh: &mut dyn FnMut() -> Kept) {
    for promise in [
        what_is_written_is_read_also_after_opening_again,
        keys_are_scanned_in_the_order_of_their_bytes,
        of_two_writes_of_a_key_the_later_counts,
        what_is_not_as_expected_is_left_as_it_is,
        of_writers_at_once_none_is_lost,
        of_writers_that_saw_the_same_one_wins,
        a_large_value_is_kept_whole,
        room_that_is_kept_changes_nothing,
    ] {
        promise(&mut fresh());
    }
}

fn put(key: &[u8], value: &[u8]) -> Write {
    (key.to_vec(), Some(value.to_vec()))
}

fn pair(key: &[u8], value: &[u8]) -> Pair {
    (key.to_vec(), value.to_vec())
}

fn what_is_written_is_read_also_after_opening_again(kept: &mut Kept) {
    let engine = kept.open();
    assert_eq!(engine.scan().unwrap(), []);
    assert_eq!(engine.get(b"a").unwrap(), None);
    engine
        .write(None, vec![put(b"a", b"1"), put(b"b", b"2"), put(b"c", b"")])
        .unwrap();
    // One that is not there is removed without an error.
    engine
        .write(None, vec![(b"b".to_vec(), None), (b"d".to_vec(), None)])
        .unwrap();
    let check = |engine: &dyn Engine| {
        let all = [pair(b"a", b"1"), pair(b"c", b"")];
        assert_eq!(engine.scan().unwrap(), all);
        assert_eq!(engine.get(b"a").unwrap(), Some(b"1".to_vec()));
        assert_eq!(engine.get(b"b").unwrap(), None);
    };
    check(&*engine);
    drop(engine);
    check(&*kept.open());
}

fn keys_are_scanned_in_the_order_of_their_bytes(kept: &mut Kept) {
    let engine = kept.open();
    let keys: [&[u8]; 7] = [b"\0", b"\0\0", b"\x01", b"A", b"a", b"a\0", b"\xff\xff"];
    let writes = keys.iter().rev().map(|key| put(key, key));
    engine.write(None, writes.collect()).unwrap();
    let found = engine.scan().unwrap();
    assert_eq!(found, keys.map(|key| pair(key, key)));
}

fn of_two_writes_of_a_key_the_later_counts(kept: &mut Kept) {
    let engine = kept.open();
    let gone = (b"b".to_vec(), None);
    let writes = vec![
        put(b"a", b"1"),
        put(b"a", b"2"),
        put(b"b", b"1"),
        gone.clone(),
        gone,
        put(b"c", b"1"),
    ];
    engine.write(None, writes).unwrap();
    let all = [pair(b"a", b"2"), pair(b"c", b"1")];
    assert_eq!(engine.scan().unwrap(), all);
}

fn what_is_not_as_expected_is_left_as_it_is(kept: &mut Kept) {
    let engine = kept.open();
    let expect =
        |value: Option<&[u8]>| -> Expected { (b"head".to_vec(), value.map(<[u8]>::to_vec)) };
    // The key that is expected need not be among those that are written.
    engine
        .write(
            Some(&expect(None)),
            vec![put(b"head", b"1"), put(b"a", b"1")],
        )
        .unwrap();
    for wrong in [None, Some(&b"2"[..]), Some(b""), Some(b"11")] {
        let writes = vec![put(b"head", b"2"), put(b"a", b"2"), put(b"b", b"2")];
        let outcome = engine.write(Some(&expect(wrong)), writes);
        assert!(matches!(outcome, Err(EngineError::Conflict)), "{wrong:?}");
        let all = [pair(b"a", b"1"), pair(b"head", b"1")];
        assert_eq!(engine.scan().unwrap(), all);
    }
    engine
        .write(Some(&expect(Some(b"1"))), vec![put(b"b", b"3")])
        .unwrap();
    assert_eq!(engine.get(b"b").unwrap(), Some(b"3".to_vec()));
}

fn of_writers_at_once_none_is_lost(kept: &mut Kept) {
    const WRITERS: u8 = 4;
    const COMMITS_EACH: u8 = 8;
    let engine = kept.open();
    let start = Barrier::new(WRITERS.into());
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (engine, start) = (&*engine, &start);
            scope.spawn(move || {
                start.wait();
                for turn in 0..COMMITS_EACH {
                    loop {
                        let count = engine.get(b"count").unwrap();
                        let next = count.as_ref().map_or(0, |bytes| bytes[0]) + 1;
                        let writes = vec![put(b"count", &[next]), put(&[writer, turn], b"")];
                        match engine.write(Some(&(b"count".to_vec(), count)), writes) {
                            Ok(()) => break,
                            Err(EngineError::Conflict) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            });
        }
    });
    assert_eq!(
        engine.get(b"count").unwrap(),
        Some(vec![WRITERS * COMMITS_EACH])
    );
    let all = engine.scan().unwrap().len();
    assert_eq!(all, usize::from(WRITERS * COMMITS_EACH) + 1);
}

/// Each batch is large, so that others come between a look and its writes where nothing keeps them
/// out.
fn of_writers_that_saw_the_same_one_wins(kept: &mut Kept) {
    const WRITERS: u8 = 4;
    let engine = kept.open();
    let start = Barrier::new(WRITERS.into());
    for turn in 0..16_u8 {
        let before = engine.get(b"turn").unwrap();
        let winners: usize = thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let (engine, start) = (&*engine, &start);
                    let only_if = (b"turn".to_vec(), before.clone());
                    let mut writes = vec![put(b"turn", &[turn, writer])];
                    writes.extend((0..2000_u32).map(|key| put(&key.to_be_bytes(), &[writer])));
                    scope.spawn(move || {
                        start.wait();
                        engine.write(Some(&only_if), writes).is_ok()
                    })
                })
                .collect();
            let outcomes = writers.into_iter().map(|writer| writer.join().unwrap());
            outcomes.map(usize::from).sum()
        });
        assert_eq!(winners, 1, "in turn {turn}");
    }
}

fn a_large_value_is_kept_whole(kept: &mut Kept) {
    let large: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_be_bytes).collect();
    kept.open().write(None, vec![put(b"a", &large)]).unwrap();
    assert_eq!(kept.open().get(b"a").unwrap(), Some(large));
}

fn room_that_is_kept_changes_nothing(kept: &mut Kept) {
    let engine = kept.open();
    engine.write(None, vec![put(b"a", b"1")]).unwrap();
    engine.keep_room(1 << 20).unwrap();
    engine.keep_room(1).unwrap();
    engine.write(None, vec![put(b"b", b"2")]).unwrap();
    drop(engine);
    let engine = kept.open();
    engine.keep_room(0).unwrap();
    let all = engine.scan().unwrap();
    assert_eq!(all, vec![pair(b"a", b"1"), pair(b"b", b"2")]);
}
