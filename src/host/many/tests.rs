//! The schedule with forks that only pretend to run.

use super::*;
use crate::host::cmdline::{ForkOptions, GENERATIONS_MAX, GuestOptions};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// How a pretended run goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// It takes so many turns, then ends with this status.
    Exit(u32, u8),
    /// It never ends.
    Loop,
    /// It never ends, and each of its turns takes so many times as long as it should.
    Drag(u64),
    /// It takes so many more frames, of which it may not get all.
    Grow(u64),
    /// It freezes; its forks then do the same.
    Freeze,
    /// It cannot be reset after it.
    Sticky,
    /// It asks to be frozen and cannot be.
    Rigid,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Status(u8),
    OutOfBudget,
    OutOfFrames,
    TooDeep,
    Stuck,
    NotFrozen,
    NoVmcs,
}

impl Verdict for End {
    fn is_success(&self) -> bool {
        *self == Self::Status(0)
    }
    fn is_out_of_frames(&self) -> bool {
        *self == Self::OutOfFrames
    }
    fn out_of_budget() -> Self {
        Self::OutOfBudget
    }
    fn too_deep() -> Self {
        Self::TooDeep
    }
}

struct Living {
    slot: ForkSlot,
    depth: usize,
    turns: u32,
    frames: u64,
    below: Option<Box<Living>>,
}
impl Linked for Box<Living> {
    fn below(&mut self) -> &mut Option<Self> {
        &mut self.below
    }
    fn look_below(&self) -> Option<&Self> {
        self.below.as_ref()
    }
}

/// A template is its depth.
struct World {
    act: fn(ForkSlot, usize) -> Act,
    frames: u64,
    time: u64,
    alive: u64,
    templates: u64,
    /// Making a fork of this number fails for good.
    broken: Option<u64>,
    /// The reset of this fork before this run is found wrong.
    broken_reset: Option<(u64, u64)>,
    /// Which (depth, fork, run) had a turn, in order.
    turns: Vec<(usize, u64, u64)>,
    resets: u64,
    checks: u64,
    /// Templates stay until their last fork has ended.
    keeps: bool,
    /// Templates that have ended, and how many turns their forks had had by then.
    ended: Vec<(usize, usize)>,
}

fn world(act: fn(ForkSlot, usize) -> Act) -> World {
    World {
        act,
        frames: 1000,
        time: 0,
        alive: 0,
        templates: 1,
        broken: None,
        broken_reset: None,
        turns: Vec::new(),
        resets: 0,
        checks: 0,
        keeps: false,
        ended: Vec::new(),
    }
}

const TURN: u64 = 10;

impl Forks for World {
    type Template = usize;
    type Fork = Box<Living>;
    type End = End;

    fn fork(&mut self, template: &mut usize, slot: ForkSlot) -> Result<Box<Living>, End> {
        self.time += 3;
        if self.broken.is_some_and(|broken| slot.fork >= broken) {
            return Err(End::NoVmcs);
        }
        let frames = 1;
        self.frames = self.frames.checked_sub(frames).ok_or(End::OutOfFrames)?;
        self.alive += 1;
        Ok(Box::new(Living {
            slot,
            depth: *template,
            turns: 0,
            frames,
            below: None,
        }))
    }
    fn slot<'f>(&self, fork: &'f mut Box<Living>) -> &'f mut ForkSlot {
        &mut fork.slot
    }
    fn turn(&mut self, fork: &mut Box<Living>, ticks: u64) -> ForkTurn<End> {
        self.turns.push((fork.depth, fork.slot.fork, fork.slot.run));
        fork.turns += 1;
        let ticks = match (self.act)(fork.slot, fork.depth) {
            Act::Drag(times) => ticks * times,
            _ => ticks.min(TURN),
        };
        self.time += ticks;
        let after = match (self.act)(fork.slot, fork.depth) {
            Act::Exit(turns, status) if fork.turns >= turns => After::Ended(End::Status(status)),
            Act::Sticky => After::Ended(End::Status(0)),
            Act::Exit(..) | Act::Loop | Act::Drag(_) => After::Going,
            Act::Freeze | Act::Rigid => After::Frozen,
            Act::Grow(frames) => After::Ended(match self.frames.checked_sub(frames) {
                Some(left) => {
                    self.frames = left;
                    fork.frames += frames;
                    End::Status(0)
                }
                None => End::OutOfFrames,
            }),
        };
        ForkTurn { ticks, after }
    }
    fn cost(&self, fork: &Box<Living>) -> Cost {
        Cost {
            exits: fork.turns.into(),
            pages: fork.frames - 1,
        }
    }
    fn reset(&mut self, _: &mut usize, fork: &mut Box<Living>, _: bool) -> Result<u64, End> {
        self.resets += 1;
        self.time += 5;
        let mut before = fork.slot;
        // A run that is begun again has none before it.
        before.run = before.run.saturating_sub(1);
        if (self.act)(before, fork.depth) == Act::Sticky {
            return Err(End::Stuck);
        }
        let pages = fork.frames - 1;
        self.frames += pages;
        (fork.frames, fork.turns) = (1, 0);
        Ok(pages)
    }
    fn check_reset(&mut self, template: &usize, fork: &Box<Living>) -> Result<(), End> {
        assert_eq!((*template, fork.turns), (fork.depth, 0));
        match self.broken_reset {
            Some(fault) if fault == (fork.slot.fork, fork.slot.run) => Err(End::Stuck),
            _ => Ok(()),
        }
    }
    fn freeze(&mut self, fork: Box<Living>) -> Result<usize, End> {
        self.alive -= 1;
        self.templates += 1;
        self.frames += fork.frames;
        if (self.act)(fork.slot, fork.depth) == Act::Rigid {
            self.templates -= 1;
            return Err(End::NotFrozen);
        }
        Ok(fork.depth + 1)
    }
    fn end(&mut self, template: Option<&mut usize>, fork: Box<Living>) {
        assert!(template.is_none_or(|template| *template == fork.depth));
        self.time += 2;
        self.alive -= 1;
        self.frames += fork.frames;
    }
    fn end_template(&mut self, template: usize) {
        assert_eq!(self.templates, self.templates.max(1));
        self.templates -= 1;
        let turns = self.turns.iter().filter(|turn| turn.0 == template).count();
        self.ended.push((template, turns));
    }
    fn keeps_templates(&self) -> bool {
        self.keeps
    }
    fn check(&mut self, alive: &Alive<'_, Self>) {
        self.checks += 1;
        let mut depth = alive.generations().count();
        let mut forks = 0;
        for generation in alive.generations() {
            depth -= 1;
            assert!(
                generation
                    .template
                    .is_none_or(|template| *template == depth)
            );
            forks += generation.forks().count() as u64;
            assert!(generation.forks().all(|fork| fork.depth == depth));
        }
        assert_eq!(forks, self.alive);
    }
    fn now(&self) -> u64 {
        self.time
    }
}

fn options(line: &str) -> ForkOptions {
    GuestOptions::parse(&format!("a.elf {line}"), 0, 36)
        .unwrap()
        .forks
}

/// Runs all, and looks whether everything was given back.
fn play(world: &mut World, line: &str, budget: u64) -> Box<ForkStatistics<End>> {
    let options = options(line);
    let plan = ForkPlan {
        options: &options,
        budget,
        slice: TURN,
    };
    let mut statistics = Box::new(ForkStatistics::new());
    let before = world.frames;
    schedule(world, 0, plan, &mut statistics);
    assert_eq!(
        (world.alive, world.templates, world.frames),
        (0, 0, before),
        "not all was given back"
    );
    statistics
}

#[test]
fn the_last_run_of_the_last_fork_has_no_template_beside_it() {
    for (keeps, line, ended) in [
        (false, "forks=1", 0),
        (false, "forks=1 runs=3", 4),
        (false, "forks=3 parallel=1", 4),
        // They take turns, and end one after the other.
        (false, "forks=2 parallel=2", 3),
        (true, "forks=1", 2),
        (true, "forks=2 parallel=2", 4),
    ] {
        let mut world = world(|_, _| Act::Exit(2, 0));
        world.keeps = keeps;
        assert!(play(&mut world, line, 1000).is_success());
        assert_eq!(world.ended, [(0, ended)], "{line}");
    }
}

#[test]
fn every_fork_has_all_its_runs() {
    let mut world = world(|_, _| Act::Exit(2, 0));
    let statistics = play(&mut world, "forks=10 parallel=3 runs=4", 1000);
    assert!(statistics.is_success() && statistics.failures().is_empty());
    let all = statistics.generations();
    assert_eq!(all.len(), 1);
    let all = all[0];
    assert_eq!((all.templates, all.ok, all.failed), (1, 40, 0));
    assert_eq!(all.alive_most, 3);
    assert_eq!((all.runs.count, all.runs.median), (40, 20));
    assert_eq!((all.forks.count, all.forks.max), (10, 3));
    assert_eq!((all.resets.count, all.resets.max), (30, 5));
    assert_eq!((all.ends.count, all.ends.max), (10, 2));
    assert_eq!(all.cost.exits, 80);
    assert_eq!(statistics.ticks, world.time);
    let mut runs = BTreeMap::new();
    for turn in &world.turns {
        *runs.entry(*turn).or_insert(0) += 1;
    }
    assert_eq!(runs.len(), 40);
    assert!(runs.values().all(|turns| *turns == 2));
    assert_eq!(statistics.records().len(), 40);
    assert_eq!(world.resets, 30);
    // After 0, 1, 2, 4, ... runs, and in the end.
    assert!((6..9).contains(&world.checks), "{}", world.checks);
}

#[test]
fn turns_go_round() {
    let mut world = world(|_, _| Act::Exit(5, 0));
    play(&mut world, "forks=4 parallel=4", 1000);
    let order: Vec<_> = world.turns.iter().map(|turn| turn.1).collect();
    assert_eq!(order, [0, 1, 2, 3].repeat(5));
}

#[test]
fn short_forks_do_not_keep_a_long_one_waiting() {
    let mut world = world(|slot, _| Act::Exit(if slot.fork == 0 { 50 } else { 1 }, 0));
    play(&mut world, "forks=101 parallel=3", 10_000);
    let turns_of_first: Vec<_> = (0..world.turns.len())
        .filter(|turn| world.turns[*turn].1 == 0)
        .collect();
    assert_eq!(turns_of_first.len(), 50);
    assert!(turns_of_first.windows(2).all(|pair| pair[1] - pair[0] <= 3));
}

#[test]
fn a_hostile_fork_is_stopped_and_the_others_go_on() {
    let mut world = world(|slot, _| match slot.fork {
        2 => Act::Loop,
        5 => Act::Exit(1, 7),
        7 => Act::Grow(5000),
        _ => Act::Exit(1, 0),
    });
    let statistics = play(&mut world, "forks=10 parallel=4 runs=2", 55);
    assert!(!statistics.is_success());
    let all = statistics.generations()[0];
    assert_eq!((all.ok, all.failed, all.lost), (14, 6, 0));
    // The last turn is cut to what the budget leaves.
    assert_eq!(all.runs.max, 55);
    let ends: Vec<_> = statistics
        .failures()
        .iter()
        .map(|failure| (failure.fork, failure.run, failure.end.clone()))
        .collect();
    for (fork, end) in [
        (2, End::OutOfBudget),
        (5, End::Status(7)),
        (7, End::OutOfFrames),
    ] {
        for run in 0..2 {
            assert!(ends.contains(&(fork, run, end.clone())), "{ends:?}");
        }
    }
}

#[test]
fn pages_are_counted() {
    let mut world = world(|slot, _| Act::Grow(slot.fork));
    let all = play(&mut world, "forks=5 runs=3", 1000).generations()[0];
    assert_eq!((all.cost.pages, all.pages_reset), (30, 20));
}

#[test]
fn a_budget_holds_for_each_run_anew() {
    let mut world = world(|_, _| Act::Exit(5, 0));
    assert!(play(&mut world, "forks=2 runs=3", 51).is_success());
    let statistics = play(&mut self::world(|_, _| Act::Exit(5, 0)), "forks=2", 39);
    assert_eq!(statistics.generations()[0].failed, 2);
}

#[test]
fn where_frames_are_few_forks_wait() {
    let mut world = world(|_, _| Act::Exit(3, 0));
    world.frames = 5;
    let statistics = play(&mut world, "forks=20 parallel=16", 1000);
    assert!(statistics.is_success());
    let all = statistics.generations()[0];
    assert_eq!((all.ok, all.alive_most), (20, 5));
}

#[test]
fn one_that_hoards_memory_does_not_harm_others() {
    // Each run but those of fork 1 needs ten frames, which are there for two of them.
    let mut world = world(|slot, _| Act::Grow(if slot.fork == 1 { 50 } else { 10 }));
    world.frames = 25;
    let statistics = play(&mut world, "forks=8 parallel=5 runs=3", 1000);
    let all = statistics.generations()[0];
    assert_eq!((all.ok, all.failed, all.lost, all.starved), (21, 3, 0, 3));
    assert!(all.waited > 0);
    for failure in statistics.failures() {
        assert_eq!((failure.fork, &failure.end), (1, &End::OutOfFrames));
    }
}

#[test]
fn forks_that_cannot_be_made_are_told_once() {
    let mut none = world(|_, _| Act::Exit(1, 0));
    none.frames = 0;
    let statistics = play(&mut none, "forks=20 runs=3", 1000);
    let all = statistics.generations()[0];
    assert_eq!((all.ok, all.lost, statistics.failures().len()), (0, 60, 1));
    assert_eq!(all.starved, 60);
    assert!(!statistics.is_success());

    let mut broken = world(|_, _| Act::Exit(1, 0));
    broken.broken = Some(15);
    let statistics = play(&mut broken, "forks=20 runs=3", 1000);
    let all = statistics.generations()[0];
    assert_eq!((all.ok, all.lost), (45, 15));
    let failure = &statistics.failures()[0];
    assert_eq!((failure.fork, &failure.end), (15, &End::NoVmcs));
}

#[test]
fn a_fork_that_cannot_be_reset_ends() {
    let mut world = world(|slot, _| match slot.fork {
        1 => Act::Sticky,
        _ => Act::Exit(1, 0),
    });
    let statistics = play(&mut world, "forks=3 runs=4", 1000);
    let all = statistics.generations()[0];
    assert_eq!((all.ok, all.lost), (9, 3));
    let failure = &statistics.failures()[0];
    assert_eq!(
        (failure.fork, failure.run, &failure.end),
        (1, 1, &End::Stuck)
    );
}

#[test]
fn a_reset_that_is_found_wrong_is_told() {
    let mut world = world(|_, _| Act::Exit(1, 0));
    world.broken_reset = Some((1, 2));
    let statistics = play(&mut world, "forks=3 runs=4", 1000);
    let all = statistics.generations()[0];
    assert_eq!((all.ok, all.lost), (10, 2));
    assert_eq!(statistics.failures()[0].end, End::Stuck);
}

#[test]
fn a_fork_that_freezes_is_a_template_before_the_others_go_on() {
    let mut world = world(|_, depth| match depth {
        0 => Act::Freeze,
        _ => Act::Exit(2, 0),
    });
    let statistics = play(&mut world, "forks=3:4 parallel=2 runs=2", 1000);
    assert!(statistics.is_success());
    let all = statistics.generations();
    // A fork that froze has handed its second run on.
    assert_eq!((all[0].templates, all[0].frozen, all[0].ok), (1, 3, 0));
    assert_eq!((all[1].templates, all[1].ok), (3, 3 * 4 * 2));
    // Depth first: between two turns of depth 0 all of depth 1 is done.
    let depths: Vec<_> = world.turns.iter().map(|turn| turn.0).collect();
    let one: Vec<_> = [0].into_iter().chain([1; 16]).collect();
    assert_eq!(depths, one.repeat(3));
}

#[test]
fn freezing_multiplies_neither_runs_nor_time() {
    let line = "forks=1 runs=20";
    let statistics = play(&mut world(|_, _| Act::Freeze), line, 1000);
    let all = statistics.generations();
    let runs = |all: &Generation| all.ok + all.failed + all.frozen + all.lost;
    // One in each generation; those of the last have nothing that they could freeze to.
    assert!(all[..7].iter().all(|all| runs(all) == 1));
    assert_eq!((all.len(), all[7].failed, all[7].frozen), (8, 20, 0));
    // However deep it is, one that loops ends when the time of all its runs is over.
    for act in [
        |_: ForkSlot, depth| [Act::Freeze, Act::Loop][usize::from(depth == 7)],
        |_: ForkSlot, depth| [Act::Freeze, Act::Loop][usize::from(depth == 1)],
        |_: ForkSlot, _| Act::Loop,
        |slot: ForkSlot, depth| [Act::Freeze, Act::Loop][usize::from(slot.run < 3 || depth == 2)],
    ] {
        for line in [
            line,
            "forks=2:5:3 runs=10 parallel=1",
            "forks=2:5:3 runs=10",
        ] {
            let mut world = world(act);
            play(&mut world, line, 1000);
            let ran: u64 = TURN * world.turns.len() as u64;
            // A turn is at least one tick long, which a run may take beyond what it has.
            assert!(ran <= 20 * 1000 + TURN * 500, "{line}: {ran}");
        }
    }
}

#[test]
fn the_forks_of_a_run_have_the_same_share_of_what_it_left() {
    // The run took 10 of 1000. One of the four that it freezes to loops.
    let act = |slot: ForkSlot, depth| match (depth, slot.fork) {
        (0, _) => Act::Freeze,
        (_, 1) => Act::Loop,
        _ => Act::Exit(24, 0),
    };
    for parallel in [1, 4] {
        let line = format!("forks=1:4 parallel={parallel}");
        let mut world = world(act);
        let statistics = play(&mut world, &line, 1000);
        let all = statistics.generations()[1];
        assert_eq!((all.ok, all.failed), (3, 1), "the others have their time");
        let looped = statistics
            .records()
            .iter()
            .find(|run| run.end == Some(End::OutOfBudget));
        let looped = looped.unwrap().ticks;
        // What those before it have not used is for all that follow.
        assert!((247..=250).contains(&looped), "{looped}");
    }
}

#[test]
fn what_a_reset_took_is_taken_from_the_run_that_it_makes_possible() {
    // A reset takes 5: the first run has its fourth turn, those that follow do not.
    let statistics = play(&mut world(|_, _| Act::Exit(4, 0)), "forks=1 runs=3", 31);
    assert_eq!(statistics.generations()[0].ok, 1);
    let statistics = play(&mut world(|_, _| Act::Exit(4, 0)), "forks=1 runs=3", 36);
    let all = statistics.generations()[0];
    assert_eq!((all.ok, all.runs.max), (3, 36));
}

#[test]
fn a_turn_that_was_too_long_is_made_up_for() {
    let mut world = world(|slot, _| match slot.fork {
        0 => Act::Drag(5),
        _ => Act::Exit(20, 0),
    });
    play(&mut world, "forks=2 parallel=2", 10_000);
    // Until the other has ended one has a fifth of the turns.
    let last = world.turns.iter().rposition(|turn| turn.1 == 1).unwrap();
    let of_first = world.turns[..last].iter().filter(|turn| turn.1 == 0);
    assert_eq!(of_first.count(), 4);
}

#[test]
fn attempts_that_are_given_up_are_bounded_too() {
    // What all of them together need is never there, and one takes its time until it finds out.
    let mut world = world(|slot, _| match slot.fork {
        0 => Act::Grow(50),
        _ => Act::Grow(3),
    });
    world.frames = 20;
    let statistics = play(&mut world, "forks=200 parallel=5", 25);
    let all = statistics.generations()[0];
    assert_eq!((all.ok, all.failed), (199, 1));
    let attempts = world.turns.iter().filter(|turn| turn.1 == 0).count();
    assert!((2..=4).contains(&attempts), "{attempts}");
}

#[test]
fn a_fork_that_cannot_be_frozen_has_failed_once() {
    let mut world = world(|slot, _| match (slot.fork, slot.run) {
        (1, 0) => Act::Rigid,
        _ => Act::Exit(1, 0),
    });
    let statistics = play(&mut world, "forks=3 runs=2", 1000);
    let all = statistics.generations()[0];
    // It is gone, and its second run with it.
    assert_eq!((all.ok, all.frozen, all.failed, all.lost), (4, 0, 1, 1));
    let failure = &statistics.failures()[0];
    assert_eq!(
        (failure.fork, failure.run, &failure.end),
        (1, 0, &End::NotFrozen)
    );
}

#[test]
fn generations_are_bounded() {
    let mut world = world(|_, _| Act::Freeze);
    let statistics = play(&mut world, "forks=2", 1000);
    let all = statistics.generations();
    assert_eq!(all.len(), GENERATIONS_MAX);
    assert_eq!((all[0].frozen, all[7].frozen, all[7].failed), (2, 0, 2));
    assert!(
        statistics
            .failures()
            .iter()
            .all(|failure| failure.end == End::TooDeep)
    );
}

#[test]
fn idle_forks_never_run() {
    let mut world = world(|_, _| Act::Loop);
    let statistics = play(&mut world, "idle", 1000);
    let all = statistics.generations()[0];
    assert_eq!((all.alive_most, all.ends.count), (1000, 1000));
    assert!(world.turns.is_empty() && statistics.is_success());
    let mut some = self::world(|_, _| Act::Loop);
    let statistics = play(&mut some, "idle forks=7 parallel=2", 1000);
    assert_eq!(statistics.generations()[0].alive_most, 7);
    let mut none = self::world(|_, _| Act::Loop);
    none.frames = 0;
    assert!(!play(&mut none, "idle", 1000).is_success());
}

#[test]
fn what_is_told_is_bounded() {
    let mut world = world(|_, _| Act::Exit(1, 1));
    let mut statistics = play(&mut world, "forks=1000 parallel=10", 1000);
    assert_eq!(statistics.generations()[0].failed, 1000);
    assert_eq!(statistics.failures().len(), FIRST_FAILURES);
    assert_eq!(statistics.records().len(), RECORDS_MAX);
    statistics.clear();
    assert!(
        statistics.is_success()
            && statistics.generations().is_empty()
            && statistics.records().is_empty()
    );
}

/// What a run does follows from its number.
fn any_act(slot: ForkSlot, depth: usize) -> Act {
    match (slot.fork * 31 + slot.run * 7 + depth as u64 * 13) % 11 {
        0 if depth < 2 => Act::Freeze,
        1 => Act::Loop,
        2 => Act::Grow(slot.fork),
        3 => Act::Exit(3, 1),
        4 => Act::Sticky,
        5 if depth == 0 => Act::Rigid,
        turns => Act::Exit(turns as u32, 0),
    }
}

proptest! {
    /// Whatever forks do and however few frames there are, each run is counted once and all is given back.
    #[test]
    fn every_run_is_counted_once(forks in 1u64..20, parallel in 1u64..9, runs in 1u64..5, frames in 0u64..24) {
        let mut world = world(any_act);
        world.frames = frames;
        let line = format!("forks={forks}:3 parallel={parallel} runs={runs}");
        let statistics = play(&mut world, &line, 45);
        let all = statistics.generations();
        let runs_of = |depth: usize| all.get(depth).map_or(0, |all| all.ok + all.failed + all.frozen + all.lost);
        // Those that a fork hands on are not its own any more.
        let own = forks * runs;
        prop_assert!((own - (runs - 1) * all[0].frozen..=own).contains(&runs_of(0)));
        if let Some(second) = all.get(1) {
            prop_assert_eq!(second.templates, all[0].frozen);
            let handed_on = own - runs_of(0) + all[0].frozen;
            let most = 3 * handed_on;
            let frozen_again = (runs - 1) * second.frozen;
            prop_assert!((most - frozen_again..=most).contains(&runs_of(1)));
            if all.len() == 2 {
                prop_assert_eq!(runs_of(1), most);
            }
        }
        prop_assert!(all.iter().all(|all| all.alive_most <= parallel && all.runs.max <= 45));
        prop_assert_eq!(statistics.is_success(), statistics.failures().is_empty());
    }
}
