//! Campaigns against a parser that only pretends to be a guest.

use super::super::dictionary::Token;
use super::*;
use crate::addr::Gpa;
use crate::ept::{AccessError, Reason};
use crate::frames::arena::Arena;
use std::cell::Cell;
use std::collections::BTreeSet;

/// A parser that dies of a record of 9 bytes behind a header, if it is told to.
#[derive(Default)]
struct Toy {
    reached: BTreeSet<u32>,
    clock: Cell<u64>,
    bug: bool,
    lengths: Vec<usize>,
    frames_left: Option<u64>,
    /// Pages that the fork keeps from run to run, how many there are, and how often it was replaced.
    hoarded: u64,
    room: Option<u64>,
    renewed: u64,
}

impl Toy {
    fn parse(&self, input: &[u8], mut reach: impl FnMut(u32)) -> Outcome {
        reach(0);
        let Some((header, rest)) = input.split_at_checked(4) else {
            return Outcome::Exited(0);
        };
        if header != b"HEAD" {
            return Outcome::Exited(0);
        }
        reach(1);
        match rest {
            [b'R', length, ..] if *length > 8 => {
                reach(2);
                if rest.len() >= 2 + usize::from(*length) && self.bug {
                    return Outcome::TripleFault;
                }
            }
            [b'R', ..] => reach(3),
            [b'L', b'o', b'o', b'p'] => return Outcome::OutOfBudget,
            _ => {}
        }
        Outcome::Exited(0)
    }
}

/// A run that ended well.
fn ran() -> Execution {
    Execution {
        outcome: Outcome::Exited(0),
        rip: Gva::new(0x1000),
        new_blocks: 0,
        guest: 100,
        host: 10,
        reset: 20,
        learn: 0,
        pages: 2,
    }
}

impl Target for Toy {
    type Error = FrameError;

    fn execute(&mut self, input: &[u8]) -> Result<Execution, FrameError> {
        if let Some(left) = &mut self.frames_left {
            *left = left.checked_sub(1).ok_or(FrameError::OutOfFrames)?;
        }
        self.hoarded += 1;
        if self.room.is_some_and(|room| self.hoarded > room) {
            let outcome = Outcome::Access(AccessError {
                gpa: Gpa::new(0x5000),
                reason: Reason::OutOfFrames,
            });
            return Ok(Execution { outcome, ..ran() });
        }
        self.lengths.push(input.len());
        let mut new = BTreeSet::new();
        let outcome = self.parse(input, |block| {
            let _ = new.insert(block);
        });
        let before = self.reached.len();
        self.reached.extend(new);
        Ok(Execution {
            outcome,
            new_blocks: (self.reached.len() - before) as u32,
            ..ran()
        })
    }
    fn renew(&mut self) {
        self.renewed += 1;
        self.hoarded = 0;
    }
    fn exhausted(&self) -> FrameError {
        FrameError::OutOfFrames
    }
    fn coverage(&self) -> (u32, u32) {
        (4, self.reached.len() as u32)
    }
    fn now(&self) -> u64 {
        self.clock.set(self.clock.get() + 5);
        self.clock.get()
    }
}

fn dictionary() -> Dictionary {
    let mut dictionary = Dictionary::default();
    dictionary.add(Token::of(u32::from_le_bytes(*b"HEAD").into(), 4).unwrap());
    dictionary
}

const LIMITS: CampaignLimits = CampaignLimits {
    executions: 600_000,
    crashes: 1,
    input: 64,
};

#[test]
fn what_is_hidden_behind_conditions_is_found() {
    let frames = Arena::allocator(0x10_0000, 512);
    for seed in 0..5 {
        let mut toy = Toy {
            bug: true,
            ..Toy::default()
        };
        let first = [&b"x"[..], b""];
        let mut campaign = Campaign::new(&frames, LIMITS, seed, dictionary(), first).unwrap();
        let mut steps = Vec::new();
        loop {
            match campaign.step(&mut toy).unwrap() {
                CampaignStep::Nothing => {}
                CampaignStep::Over => break,
                step => steps.push(step),
            }
        }
        assert_eq!(
            steps.last(),
            Some(&CampaignStep::NewCrash),
            "seed {seed}: {steps:?}"
        );
        let [found] = campaign.crashes() else {
            panic!("seed {seed}: {} crashes", campaign.crashes().len());
        };
        assert_eq!(found.crash.outcome, Outcome::TripleFault);
        assert_eq!(toy.parse(found.input(), |_| ()), Outcome::TripleFault);
        let stats = campaign.stats();
        assert_eq!(found.executions, stats.first_crash);
        assert_eq!((stats.known, stats.reached), (4, toy.reached.len() as u32));
        assert!(stats.corpus >= 3 && stats.failures == 1, "{stats:?}");
        // Two readings of the clock are in each of two intervals.
        let executions = stats.executions;
        assert_eq!(stats.ticks(), executions * (100 + 10 + 20 + 5 + 5));
        assert_eq!(stats.pages, 2 * executions);
        assert_eq!(toy.lengths[..2], [1, 0], "the first inputs come first");
        assert!(toy.lengths.iter().all(|len| *len <= 64));
    }
    assert_eq!(frames.statistics().used, 0);
}

/// A parser with conditions on two bytes far apart, one of which shows only where the other holds, and one on a value
/// that shows nowhere.
struct Gates {
    reached: BTreeSet<u32>,
}

impl Target for Gates {
    type Error = FrameError;

    fn execute(&mut self, input: &[u8]) -> Result<Execution, FrameError> {
        let (version, run) = (input.get(4).copied(), input.get(44).copied());
        let good = input.starts_with(b"HEAD") && matches!(version, Some(1..=3));
        let long = good && run >= Some(0xc0);
        let newer = long && version >= Some(2);
        let before = self.reached.len();
        let blocks = [(0, true), (1, good), (2, long), (3, newer)];
        let reached = blocks.into_iter().filter(|(_, reached)| *reached);
        self.reached.extend(reached.map(|(block, _)| block));
        Ok(Execution {
            outcome: match newer && run <= Some(0xd0) {
                true => Outcome::TripleFault,
                false => Outcome::Exited(0),
            },
            new_blocks: (self.reached.len() - before) as u32,
            ..ran()
        })
    }
    fn renew(&mut self) {}
    fn exhausted(&self) -> FrameError {
        FrameError::OutOfFrames
    }
    fn coverage(&self) -> (u32, u32) {
        (4, self.reached.len() as u32)
    }
    fn now(&self) -> u64 {
        0
    }
}

#[test]
fn the_seed_does_not_matter_much() {
    let frames = Arena::allocator(0x10_0000, 64);
    let mut example = [b'.'; 60];
    example[..5].copy_from_slice(b"HEAD\x01");
    for seed in 0..40 {
        let mut gates = Gates {
            reached: BTreeSet::new(),
        };
        let inputs = [&example[..]];
        let mut campaign = Campaign::new(&frames, LIMITS, seed, dictionary(), inputs).unwrap();
        while campaign.step(&mut gates).unwrap() != CampaignStep::Over {}
        let after = campaign.stats().first_crash;
        assert!((1..10_000).contains(&after), "seed {seed}: {after}");
    }
}

#[test]
fn the_seed_decides_and_a_sound_program_survives() {
    let frames = Arena::allocator(0x10_0000, 512);
    let run = |seed| {
        let mut toy = Toy::default();
        let limits = CampaignLimits {
            executions: 200_000,
            crashes: 2,
            ..LIMITS
        };
        let mut campaign = Campaign::new(&frames, limits, seed, dictionary(), []).unwrap();
        while campaign.step(&mut toy).unwrap() != CampaignStep::Over {}
        let stats = *campaign.stats();
        assert_eq!(stats.executions, limits.executions);
        let all = campaign.crashes();
        assert!(
            all.iter()
                .all(|found| found.crash.outcome == Outcome::OutOfBudget)
        );
        assert!(all.len() <= 1, "one kind, however often");
        assert!(stats.reached == 4 && stats.known == 4);
        (stats, toy.lengths)
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7).1, run(8).1);
}

#[test]
fn inputs_are_cut_to_the_buffer() {
    let frames = Arena::allocator(0x10_0000, 64);
    for input in [0, 1, 16] {
        let limits = CampaignLimits {
            executions: 500,
            input,
            ..LIMITS
        };
        let long = [b'x'; INPUT_MAX];
        let mut toy = Toy::default();
        let mut campaign = Campaign::new(&frames, limits, 1, dictionary(), [&long[..]]).unwrap();
        while campaign.step(&mut toy).unwrap() != CampaignStep::Over {}
        assert_eq!(toy.lengths.len(), 500);
        assert!(toy.lengths.iter().all(|len| *len <= input));
    }
}

#[test]
fn a_target_that_cannot_go_on_ends_it() {
    let frames = Arena::allocator(0x10_0000, 64);
    let mut toy = Toy {
        frames_left: Some(3),
        ..Toy::default()
    };
    let mut campaign = Campaign::new(&frames, LIMITS, 1, dictionary(), []).unwrap();
    let last = (0..10)
        .map(|_| campaign.step(&mut toy))
        .find(Result::is_err);
    assert_eq!(last, Some(Err(FrameError::OutOfFrames)));
    assert_eq!(campaign.stats().executions, 3);
    drop(campaign);
    assert_eq!(frames.statistics().used, 0);
}

#[test]
fn running_out_of_frames_is_no_crash_of_the_guest() {
    let frames = Arena::allocator(0x10_0000, 64);
    let limits = CampaignLimits {
        executions: 100,
        ..LIMITS
    };
    // Each tenth run finds the fork full, and is run again in a fresh one.
    let mut toy = Toy {
        room: Some(9),
        ..Toy::default()
    };
    let mut campaign = Campaign::new(&frames, limits, 1, dictionary(), []).unwrap();
    while campaign.step(&mut toy).unwrap() != CampaignStep::Over {}
    assert_eq!((toy.renewed, toy.lengths.len()), (11, 100));
    assert_eq!(
        (campaign.stats().crashes, campaign.stats().failures),
        (0, 0)
    );
    assert_eq!(campaign.stats().guest, 111 * 100, "both runs count");
    // Even a fresh fork is too much.
    let mut toy = Toy {
        room: Some(0),
        ..Toy::default()
    };
    let mut campaign = Campaign::new(&frames, limits, 1, dictionary(), []).unwrap();
    assert_eq!(campaign.step(&mut toy), Err(FrameError::OutOfFrames));
    assert_eq!((toy.renewed, campaign.stats().crashes), (1, 0));
}

#[test]
fn without_frames_there_is_no_campaign() {
    let frames = Arena::allocator(0x10_0000, 64);
    for left in 0..3 {
        frames
            .allowance
            .store(left, std::sync::atomic::Ordering::SeqCst);
        let inputs = [&b"a"[..], b"b"];
        let made = Campaign::new(&frames, LIMITS, 1, Dictionary::default(), inputs);
        assert_eq!(made.err(), Some(FrameError::OutOfFrames), "{left}");
        assert_eq!(frames.statistics().used, 0);
    }
}
