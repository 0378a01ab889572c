//! The machine by itself, with a verifier that refreshes by cache headers alone.

use proptest::prelude::*;

use super::*;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const LIMITS: Limits = Limits {
    publish_before: s(600),
    overlap: s(900),
    cache: s(300),
    key_max_age: s(604_800),
};

fn fresh() -> Lifecycle {
    let versions = Versions {
        published: 1,
        signing: 1,
        latest: 1,
    };
    Lifecycle::new(LIMITS, versions, s(0))
}

#[test]
fn a_rotation_goes_through_the_states_that_are_promised() {
    let key = fresh();
    assert_eq!(key.state(), State::Loading);
    let key = key.after(Event::Confirmed, s(1));
    assert_eq!((key.state(), key.due()), (State::Active, None));
    let key = key.after(Event::Published(2), s(10));
    assert_eq!((key.state(), key.due()), (State::Active, None));
    let key = key.after(Event::Tick, s(609));
    assert_eq!(key.due(), None);
    let key = key.after(Event::Tick, s(610));
    assert_eq!(key.due(), Some(Due::Activate(2)));
    let key = key.after(Event::Activated(2), s(611));
    assert_eq!((key.state(), key.due()), (State::DualActive, None));
    let key = key.after(Event::Tick, s(611 + 900 + 299));
    assert_eq!((key.state(), key.due()), (State::DualActive, None));
    let key = key.after(Event::Tick, s(611 + 900 + 300));
    assert_eq!(key.due(), Some(Due::Retire(2)));
    let key = key.after(Event::Retired(2), s(1812));
    assert_eq!((key.state(), key.due()), (State::Active, None));
}

#[test]
fn degraded_becomes_critical_by_the_last_confirmation_and_not_by_the_keys_age() {
    let key = fresh().after(Event::Confirmed, s(100));
    // Ten years old, and confirmed a moment ago.
    let key = key.after(Event::Confirmed, s(315_360_000));
    assert_eq!(key.state(), State::Active);
    let start = 315_360_000;
    let key = key.after(Event::Lost, s(start + 5));
    assert_eq!(key.state(), State::Degraded);
    assert!(!key.may_rotate());
    let key = key.after(Event::Tick, s(start + 604_799));
    assert_eq!(key.state(), State::Degraded);
    let key = key.after(Event::Tick, s(start + 604_800));
    assert_eq!(key.state(), State::Critical);
    let key = key.after(Event::Confirmed, s(start + 604_801));
    assert_eq!(key.state(), State::Active);
    // Nobody said that anything was lost; nobody confirmed anything either.
    let key = key.after(Event::Tick, s(start + 2 * 604_801));
    assert_eq!(key.state(), State::Critical);
}

#[test]
fn nothing_happens_while_degraded_and_an_overlap_is_gone_on_with() {
    let key = fresh()
        .after(Event::Confirmed, s(0))
        .after(Event::Published(2), s(0))
        .after(Event::Lost, s(1))
        .after(Event::Tick, s(5000));
    assert_eq!((key.state(), key.due()), (State::Degraded, None));
    let key = key.after(Event::Confirmed, s(5001));
    assert_eq!(key.due(), Some(Due::Activate(2)));
    let key = key
        .after(Event::Activated(2), s(5001))
        .after(Event::Lost, s(5002))
        .after(Event::Confirmed, s(5003));
    assert_eq!(key.state(), State::DualActive);
}

/// What a run does next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Wait(u16),
    Rotate,
    Lose,
    Confirm,
    Restart,
    ClockBack(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1_u16..700).prop_map(Step::Wait),
        3 => Just(Step::Rotate),
        1 => Just(Step::Lose),
        2 => Just(Step::Confirm),
        1 => Just(Step::Restart),
        1 => (1_u16..2000).prop_map(Step::ClockBack),
    ];
    proptest::collection::vec(step, 1..120)
}

/// An appliance in front of the machine, and verifiers that each fetched the set at another moment.
struct Simulation {
    key: Lifecycle,
    /// What the store says.
    stored: Versions,
    /// True time, and what the machine is told.
    now: u64,
    told: u64,
    /// When each verifier fetched, and what it got.
    verifiers: Vec<(u64, Versions)>,
    /// Which version signed, by time: a token of then is valid for `overlap`.
    signed: Vec<(u64, u32)>,
    last_state: State,
}

impl Simulation {
    fn new() -> Self {
        let key = fresh().after(Event::Confirmed, s(0));
        let stored = key.versions();
        Self {
            last_state: key.state(),
            verifiers: (0..5).map(|n| (n * 61, stored)).collect(),
            key,
            stored,
            now: 0,
            told: 0,
            signed: Vec::new(),
        }
    }

    fn tell(&mut self, event: Event) {
        let (before, lost) = (self.key.clone(), self.key.lost);
        self.key = self.key.clone().after(event, s(self.told));
        let state = self.key.state();
        let good = match (self.last_state, state) {
            (a, b) if a == b => true,
            (State::Loading, _) => event == Event::Confirmed,
            (State::Active, State::DualActive) => matches!(event, Event::Activated(_)),
            (State::DualActive, State::Active) => matches!(event, Event::Retired(_)),
            (State::Active | State::DualActive, State::Degraded) => event == Event::Lost,
            (State::Active | State::DualActive | State::Degraded, State::Critical) => true,
            (State::Degraded | State::Critical, State::Active | State::DualActive) => {
                event == Event::Confirmed
            }
            _ => false,
        };
        assert!(
            good,
            "{:?} to {state:?} by {event:?} (lost: {lost}), {before:?}",
            self.last_state
        );
        self.last_state = state;
    }

    /// Does what is due, as the server does.
    fn act(&mut self) {
        while let Some(due) = self.key.due() {
            assert!(self.key.may_rotate());
            match due {
                Due::Activate(version) => {
                    self.stored.signing = version;
                    self.tell(Event::Activated(version));
                }
                Due::Retire(version) => {
                    self.stored.published = version;
                    self.tell(Event::Retired(version));
                }
            }
            assert_eq!(self.key.versions(), self.stored);
        }
    }

    fn second(&mut self) {
        self.now += 1;
        self.told += 1;
        self.tell(Event::Tick);
        self.act();
        self.signed.push((self.now, self.stored.signing));
        for (fetched, set) in &mut self.verifiers {
            if self.now >= *fetched + LIMITS.cache.as_secs() {
                (*fetched, *set) = (self.now, self.stored);
            }
            // The youngest token and the oldest that is valid; those between were signed by
            // versions between.
            let oldest = self.now.saturating_sub(LIMITS.overlap.as_secs()).max(1);
            for at in [self.now, oldest] {
                let Some((_, version)) = self.signed.get(usize::try_from(at - 1).unwrap()) else {
                    continue;
                };
                assert!(
                    (set.published..=set.latest).contains(version),
                    "at {} a verifier with the set of {fetched} ({set:?}) rejects a token of {at}, signed by {version}",
                    self.now
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn no_verifier_rejects_a_valid_token_whatever_happens(steps in steps()) {
        let mut world = Simulation::new();
        for step in steps {
            match step {
                Step::Wait(seconds) => (0..seconds).for_each(|_| world.second()),
                Step::Rotate if world.key.may_rotate() => {
                    world.stored.latest += 1;
                    world.tell(Event::Published(world.stored.latest));
                }
                Step::Rotate => {}
                Step::Lose => world.tell(Event::Lost),
                Step::Confirm => world.tell(Event::Confirmed),
                Step::Restart => {
                    world.key = Lifecycle::new(LIMITS, world.stored, s(world.told));
                    world.last_state = State::Loading;
                    world.tell(Event::Confirmed);
                }
                Step::ClockBack(seconds) => world.told = world.told.saturating_sub(seconds.into()),
            }
            world.act();
        }
    }

    #[test]
    fn any_events_in_any_order_keep_the_versions_in_order(
        events in proptest::collection::vec((0_u8..6, 0_u32..9, any::<u32>()), 0..60)
    ) {
        let mut key = fresh();
        for (event, version, at) in events {
            let event = match event {
                0 => Event::Confirmed,
                1 => Event::Lost,
                2 => Event::Published(version),
                3 => Event::Activated(version),
                4 => Event::Retired(version),
                _ => Event::Tick,
            };
            key = key.after(event, s(at.into()));
            let Versions { published, signing, latest } = key.versions();
            prop_assert!(1 <= published && published <= signing && signing <= latest);
            let state = key.state();
            prop_assert_eq!(state == State::Critical, key.unconfirmed_for().is_some_and(|age| age >= LIMITS.key_max_age));
            prop_assert!(key.due().is_none() || key.may_rotate());
        }
    }
}
