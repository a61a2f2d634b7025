use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

/// A CPU that keeps what it has cached as long as it may. The cached translations of a page are what the tables said, by ASID.
struct Cpu {
    cached: HashMap<(u32, u8), u64>,
    flushes: usize,
    skip: Option<usize>,
}

impl Cpu {
    /// VMRUN, up to the guest's first instruction. Returns whether it is one that takes the VMCB.
    fn vmrun(&mut self, tag: Tag, refuses: bool) -> bool {
        if !refuses && tag.control != TlbControl::Keep {
            if self.skip != Some(self.flushes) {
                let all = tag.control == TlbControl::FlushAll;
                self.cached.retain(|(asid, _), _| !all && *asid != tag.asid);
            }
            self.flushes += 1;
        }
        !refuses
    }
}

struct Guest {
    asid: Asid,
    /// What its tables say, its own and the nested ones; no two states say the same.
    tables: u64,
}

#[derive(Clone, Debug)]
enum Step {
    Make,
    End(usize),
    /// Runs and uses these pages.
    Run(usize, [u8; 2]),
    /// VMRUN refuses it. The next does not.
    Refuse(usize),
    /// It is brought back to an earlier state, its nested tables change, or it loads CR3 by our help.
    Change(usize),
}

/// How a life ended: the first step at which a translation was used that is not what the tables say, and how many flushes there
/// were.
fn live(steps: &[Step], by_asid: bool, skip: Option<usize>) -> (Option<usize>, usize) {
    // What somebody before us has left.
    let cached = (1..4).map(|asid| ((asid, 0), u64::MAX)).collect();
    let mut cpu = Cpu {
        cached,
        flushes: 0,
        skip,
    };
    let mut asids = Asids::new(4, by_asid);
    let mut guests: Vec<Guest> = vec![];
    let mut states = 0..;
    let mut next = || states.next().unwrap();
    for (at, step) in steps.iter().enumerate() {
        let alive = guests.len();
        match *step {
            Step::Make => guests.push(Guest {
                asid: Asid::new(),
                tables: next(),
            }),
            _ if alive == 0 => {}
            Step::End(guest) => drop(guests.remove(guest % alive)),
            Step::Run(guest, pages) => {
                let guest = &mut guests[guest % alive];
                let tag = asids.make_ready(&mut guest.asid);
                assert!(cpu.vmrun(tag, false) && (1..4).contains(&tag.asid));
                asids.entered(&mut guest.asid, tag);
                for page in pages {
                    let cached = cpu.cached.entry((tag.asid, page));
                    if *cached.or_insert(guest.tables) != guest.tables {
                        return (Some(at), cpu.flushes);
                    }
                }
            }
            Step::Refuse(guest) => {
                let guest = &mut guests[guest % alive];
                let tag = asids.make_ready(&mut guest.asid);
                assert!(!cpu.vmrun(tag, true));
            }
            Step::Change(guest) => {
                let guest = &mut guests[guest % alive];
                guest.tables = next();
                guest.asid.outdate();
            }
        }
    }
    (None, cpu.flushes)
}

#[test]
fn each_kind_of_flush_is_needed() {
    use Step::{Change, End, Make, Run};
    // The first of all; after a change; when the numbers begin again, with guests that have ended and with one that lives.
    let changed = [Make, Run(0, [0, 1]), Change(0), Run(0, [1, 2])].to_vec();
    let turn = [Make, Run(0, [0, 1]), End(0)];
    let ended = [turn.clone(), turn.clone(), turn.clone(), turn].concat();
    let others = [Make, Make, Make, Make];
    let runs = (0..4).map(|guest| Run(guest, [0, 1]));
    let alive: Vec<_> = others
        .into_iter()
        .chain(runs)
        .chain([Run(0, [1, 2])])
        .collect();
    for (steps, by_asid, flushes) in [
        (changed.clone(), true, 2),
        // A new number is as good.
        (changed, false, 1),
        (ended.clone(), true, 2),
        (ended, false, 2),
        (alive.clone(), true, 2),
        (alive, false, 2),
    ] {
        assert_eq!(live(&steps, by_asid, None), (None, flushes), "{steps:?}");
        for skip in 0..flushes {
            let (stale, _) = live(&steps, by_asid, Some(skip));
            assert!(stale.is_some(), "flush {skip} of {steps:?}");
        }
    }
}

#[test]
fn a_new_number_pays_until_there_are_none_left() {
    use Step::{Change, Make, Run};
    let mut steps = vec![Make];
    for _ in 0..6 {
        steps.extend([Run(0, [0, 1]), Change(0)]);
    }
    // Three numbers: the first run and the fourth drop everything, and none is dropped alone.
    assert_eq!(live(&steps, false, None), (None, 2));
    for skip in 0..2 {
        assert!(live(&steps, false, Some(skip)).0.is_some());
    }
    assert_eq!(live(&steps, true, None), (None, 6));
}

#[test]
fn what_a_refused_entry_should_have_dropped_is_owed_still() {
    use Step::{Change, Make, Refuse, Run};
    let steps = [
        Make,
        Refuse(0),
        Run(0, [0, 1]),
        Change(0),
        Refuse(0),
        Run(0, [0, 1]),
    ];
    for by_asid in [true, false] {
        let (stale, flushes) = live(&steps, by_asid, None);
        assert_eq!((stale, flushes), (None, if by_asid { 2 } else { 1 }));
        assert!(live(&steps, by_asid, Some(0)).0.is_some());
    }
}

#[test]
fn nothing_is_dropped_that_is_not_stale() {
    let mut asids = Asids::new(16, true);
    let (mut one, mut other) = (Asid::new(), Asid::new());
    let mut run = |asid: &mut Asid| {
        let tag = asids.make_ready(asid);
        asids.entered(asid, tag);
        (tag.asid, tag.control)
    };
    assert_eq!(run(&mut one), (1, TlbControl::FlushAll));
    assert_eq!(run(&mut other), (2, TlbControl::Keep));
    assert_eq!(run(&mut one), (1, TlbControl::Keep));
    one.outdate();
    assert_eq!(run(&mut one), (1, TlbControl::FlushAsid));
    assert_eq!(run(&mut one), (1, TlbControl::Keep));
    assert_eq!(run(&mut other), (2, TlbControl::Keep));
}

#[test]
fn a_guest_of_an_earlier_generation_gets_another_number() {
    let mut asids = Asids::new(3, true);
    let mut guests: [Asid; 4] = Default::default();
    let mut tags = vec![];
    for turn in [0, 1, 2, 0, 1, 3] {
        let asid = &mut guests[turn];
        let tag = asids.make_ready(asid);
        asids.entered(asid, tag);
        tags.push((tag.asid, tag.control));
    }
    use TlbControl::{FlushAll, Keep};
    let expected = [
        (1, FlushAll),
        (2, Keep),
        (1, FlushAll),
        (2, Keep),
        (1, FlushAll),
        (2, Keep),
    ];
    assert_eq!(tags, expected);
}

#[test]
fn even_a_cpu_with_a_single_number_works() {
    for count in [0, 1, 2] {
        let mut asids = Asids::new(count, false);
        let mut guests: [Asid; 2] = Default::default();
        for asid in guests.iter_mut() {
            let tag = asids.make_ready(asid);
            asids.entered(asid, tag);
            assert_eq!((tag.asid, tag.control), (1, TlbControl::FlushAll));
        }
    }
}

#[test]
fn when_all_is_outdated_everything_is_dropped_once() {
    let mut asids = Asids::new(16, true);
    let mut guests: [Asid; 2] = Default::default();
    let mut run = |asids: &mut Asids, guest: usize| {
        let tag = asids.make_ready(&mut guests[guest]);
        asids.entered(&mut guests[guest], tag);
        tag.control
    };
    run(&mut asids, 0);
    run(&mut asids, 1);
    assert_eq!(run(&mut asids, 0), TlbControl::Keep);
    asids.outdate_all();
    let after = [1, 0, 1, 0].map(|guest| run(&mut asids, guest));
    let keep = TlbControl::Keep;
    assert_eq!(after, [TlbControl::FlushAll, keep, keep, keep]);
}

fn step() -> impl Strategy<Value = Step> {
    let guest = 0..4_usize;
    prop_oneof![
        2 => Just(Step::Make),
        1 => guest.clone().prop_map(Step::End),
        8 => (guest.clone(), [0..4_u8, 0..4_u8]).prop_map(|(guest, pages)| Step::Run(guest, pages)),
        1 => guest.clone().prop_map(Step::Refuse),
        3 => guest.prop_map(Step::Change),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn no_guest_uses_a_stale_translation(steps in prop::collection::vec(step(), 1..60), by_asid: bool) {
        prop_assert_eq!(live(&steps, by_asid, None).0, None);
    }
}
