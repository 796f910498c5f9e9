//! Traces of the custody machine, and the property that it ends up with what is wanted.

use super::*;
use proptest::prelude::*;

fn name(text: &str) -> HeldName {
    text.parse().unwrap()
}

fn at(millis: u64) -> MonoTime {
    MonoTime::from_boot(Duration::from_millis(millis))
}

/// A machine with a log of its effects, for short traces.
struct Trace {
    machine: Custody,
    now: u64,
    out: Vec<Effect>,
}

impl Trace {
    fn new() -> Self {
        let mut trace = Self {
            machine: Custody::new(at(0)),
            now: 0,
            out: Vec::new(),
        };
        trace.say(Input::Deadline);
        trace
    }

    fn say(&mut self, input: Input) -> &mut Self {
        self.machine.handle(at(self.now), input, &mut self.out);
        self
    }

    /// The effects since the last look, in words.
    fn told(&mut self) -> String {
        let words = self.out.drain(..).map(|effect| match effect {
            Effect::Reach {
                attempt,
                replace: false,
            } => format!("reach#{}", attempt.0),
            Effect::Reach {
                attempt,
                replace: true,
            } => format!("replace#{}", attempt.0),
            Effect::Put { attempt, name } => format!("put#{} {name}", attempt.0),
            Effect::Remove { attempt, name } => format!("remove#{} {name}", attempt.0),
        });
        words.collect::<Vec<_>>().join(", ")
    }

    fn reached(&mut self, attempt: u64, names: &[&str]) -> &mut Self {
        let names = names.iter().map(|text| name(text)).collect();
        self.say(Input::Reached {
            attempt: Attempt(attempt),
            names,
        })
    }

    fn done(&mut self, attempt: u64) -> &mut Self {
        self.say(Input::Done {
            attempt: Attempt(attempt),
        })
    }

    fn failed(&mut self, attempt: u64, trouble: Trouble) -> &mut Self {
        self.say(Input::Failed {
            attempt: Attempt(attempt),
            trouble,
        })
    }
}

#[test]
fn wishes_are_put_one_at_a_time_and_removals_wait_for_all_owners() {
    let mut t = Trace::new();
    assert_eq!(t.told(), "reach#1");
    t.say(Input::Want(name("a"))).say(Input::Want(name("b")));
    assert_eq!(t.told(), "", "nothing is put before a keeper is reached");
    t.reached(1, &["old"]);
    assert_eq!(t.told(), "put#2 a");
    t.done(2);
    assert_eq!(t.told(), "put#3 b");
    t.done(3);
    assert_eq!(t.told(), "", "an owner of what is old may still speak");
    t.say(Input::Settled);
    assert_eq!(t.told(), "remove#4 old");
    t.done(4);
    assert_eq!((t.told().as_str(), t.machine.status().pending), ("", 0));
    t.say(Input::Forget(name("a")));
    assert_eq!(t.told(), "remove#5 a");
}

#[test]
fn a_wish_that_changes_while_it_is_put_is_put_again() {
    let mut t = Trace::new();
    t.reached(1, &[]).say(Input::Settled).say(Input::Want(name("a")));
    assert_eq!(t.told(), "reach#1, put#2 a");
    t.say(Input::Want(name("a"))).done(2);
    assert_eq!(t.told(), "put#3 a");
    t.say(Input::Forget(name("a"))).done(3);
    assert_eq!(t.told(), "remove#4 a");
}

#[test]
fn a_keeper_that_ends_is_told_everything_by_its_successor() {
    let mut t = Trace::new();
    t.reached(1, &[]).say(Input::Want(name("a"))).done(2);
    assert_eq!(t.told(), "reach#1, put#2 a");
    t.now = 60_000;
    t.say(Input::Ended { attempt: Attempt(1) });
    assert_eq!(t.told(), "reach#3", "at once: it had lived long");
    t.reached(3, &[]);
    assert_eq!(t.told(), "put#4 a");
    t.say(Input::Ended { attempt: Attempt(1) });
    assert_eq!((t.told().as_str(), t.machine.status().late), ("", 1), "old news");
}

#[test]
fn pauses_double_up_to_a_cap() {
    let mut t = Trace::new();
    let mut pauses = Vec::new();
    for _ in 0..14 {
        let Some(Effect::Reach { attempt, .. }) = t.out.pop() else {
            panic!("no try")
        };
        t.say(Input::NotReached { attempt });
        if t.out.is_empty() {
            let due = t.machine.next_deadline().unwrap();
            pauses.push(due.since(at(t.now)).as_millis());
            t.now += u64::try_from(due.since(at(t.now)).as_millis()).unwrap();
            t.say(Input::Deadline);
        }
    }
    assert_eq!(pauses.first(), Some(&50));
    assert_eq!(pauses.last(), Some(&LONGEST_PAUSE.as_millis()));
    assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]), "{pauses:?}");
}

#[test]
fn a_keeper_that_is_silent_three_times_is_replaced() {
    let mut t = Trace::new();
    t.reached(1, &[]).say(Input::Want(name("a")));
    assert_eq!(t.told(), "reach#1, put#2 a");
    t.failed(2, Trouble::Silent);
    assert_eq!(t.told(), "put#3 a");
    assert!(!t.machine.answers());
    t.say(Input::Silent).failed(3, Trouble::Silent);
    assert_eq!(t.told(), "replace#4");
    t.reached(4, &[]);
    assert_eq!(t.told(), "put#5 a");
    t.done(5);
    assert!(t.machine.answers());
}

#[test]
fn what_is_refused_is_left_alone_for_a_while() {
    let mut t = Trace::new();
    t.reached(1, &[])
        .say(Input::Want(name("a")))
        .say(Input::Want(name("b")));
    t.told();
    t.failed(2, Trouble::Refused);
    assert_eq!(t.told(), "put#3 b");
    t.done(3);
    assert_eq!(t.told(), "");
    t.now = 30_000;
    t.say(Input::Deadline);
    assert_eq!(t.told(), "put#4 a");
}

proptest! {
    /// Whatever happens in between: once the keeper answers and nothing is refused, it has what is wanted
    /// and nothing else; one effect is outstanding at a time.
    #[test]
    fn the_keeper_ends_up_with_what_is_wanted(
        acts in proptest::collection::vec((0_u8..9, 0_u8..4, 0_u64..40_000), 0..200)
    ) {
        let mut machine = Custody::new(at(0));
        let (mut now, mut out) = (0, Vec::new());
        // The keeper's shelf: which wish of a name it has.
        let mut shelf: BTreeMap<HeldName, u64> = BTreeMap::new();
        let mut wishes: BTreeMap<HeldName, u64> = BTreeMap::new();
        let mut wish = 0;
        machine.handle(at(0), Input::Deadline, &mut out);
        let carry = |machine: &mut Custody, out: &mut Vec<Effect>, shelf: &mut BTreeMap<HeldName, u64>,
                     wishes: &BTreeMap<HeldName, u64>, now: u64, fate: u8| {
            prop_assert!(out.len() <= 1, "{out:?}");
            let Some(effect) = out.pop() else { return Ok(()) };
            let input = match (effect, fate) {
                (Effect::Reach { attempt, .. }, 0..=5) => Input::Reached {
                    attempt,
                    names: shelf.keys().cloned().collect(),
                },
                (Effect::Reach { attempt, .. }, _) => Input::NotReached { attempt },
                (Effect::Put { attempt, name }, 0..=4) => {
                    if let Some(wish) = wishes.get(&name) {
                        shelf.insert(name, *wish);
                    }
                    Input::Done { attempt }
                }
                (Effect::Remove { attempt, name }, 0..=4) => {
                    shelf.remove(&name);
                    Input::Done { attempt }
                }
                (Effect::Put { attempt, .. } | Effect::Remove { attempt, .. }, 5) => {
                    shelf.clear();
                    Input::Failed { attempt, trouble: Trouble::Lost }
                }
                (Effect::Put { attempt, .. } | Effect::Remove { attempt, .. }, 6) => {
                    Input::Failed { attempt, trouble: Trouble::Silent }
                }
                (Effect::Put { attempt, .. } | Effect::Remove { attempt, .. }, _) => {
                    Input::Failed { attempt, trouble: Trouble::Refused }
                }
            };
            machine.handle(at(now), input, out);
            Ok(())
        };
        for (act, which, later) in acts {
            now += later;
            let name = name(&format!("n{which}"));
            match act {
                0 | 1 => {
                    wish += 1;
                    wishes.insert(name.clone(), wish);
                    let mut more = Vec::new();
                    machine.handle(at(now), Input::Want(name), &mut more);
                    out.append(&mut more);
                }
                2 => {
                    wishes.remove(&name);
                    machine.handle(at(now), Input::Forget(name), &mut out);
                }
                3 => machine.handle(at(now), Input::Deadline, &mut out),
                4 => machine.handle(at(now), Input::Silent, &mut out),
                fate => carry(&mut machine, &mut out, &mut shelf, &wishes, now, fate)?,
            }
            // An effect of a keeper that was given up is never carried out.
            if out.len() > 1 {
                out.drain(..out.len() - 1);
            }
        }
        machine.handle(at(now), Input::Settled, &mut out);
        for _ in 0..200 {
            now += 40_000;
            if out.is_empty() {
                machine.handle(at(now), Input::Deadline, &mut out);
            }
            carry(&mut machine, &mut out, &mut shelf, &wishes, now, 0)?;
        }
        prop_assert_eq!(shelf, wishes);
    }
}
