//! The loop of fuzzing: make an input, run it, keep it if it reached something new, note how it ended.

use super::super::outcome::Outcome;
use super::corpus::{Corpus, INPUT_MAX};
use super::crash::{Crash, Crashes, Found};
use super::dictionary::Dictionary;
use super::mutate::{Draft, Mutator};
use super::page::Page;
use super::stats::Stats;
use crate::addr::Gva;
use crate::frames::{FrameAllocator, FrameError, PhysMem};

/// Of so many inputs one is chosen.
const PICKS: usize = 4;

/// What runs inputs, each from the same state.
pub trait Target {
    /// Why it cannot go on at all.
    type Error: From<FrameError>;
    /// Runs `input` to its end.
    fn execute(&mut self, input: &[u8]) -> Result<Execution, Self::Error>;
    /// How many basic blocks there are, and how many of them were reached so far.
    fn coverage(&self) -> (u32, u32);
    /// The time-stamp counter.
    fn now(&self) -> u64;
}

/// What the run of one input came to. Ticks are as in [`Stats`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Execution {
    /// How it ended.
    pub outcome: Outcome,
    /// Where.
    pub rip: Gva,
    /// How many basic blocks it was the first to reach.
    pub new_blocks: u32,
    /// Ticks of the guest.
    pub guest: u64,
    /// Ticks of its exits.
    pub host: u64,
    /// Ticks of the reset and of putting the input in.
    pub reset: u64,
    /// Ticks of making the next template.
    pub learn: u64,
    /// Pages that the reset brought back.
    pub pages: u64,
}

/// How long a campaign is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// At most so many inputs are run.
    pub executions: u64,
    /// It ends when so many different crashes are found.
    pub crashes: u32,
    /// The longest input.
    pub input: usize,
}

/// What a step of a campaign came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing that was not known.
    Nothing,
    /// So many basic blocks were reached for the first time.
    NewBlocks(u32),
    /// A crash unlike all before; it is the last of [`Campaign::crashes`].
    NewCrash,
    /// The campaign is over.
    Over,
}

/// A campaign: all inputs, and what they came to.
pub struct Campaign<'f, M: PhysMem> {
    limits: Limits,
    mutator: Mutator,
    corpus: Corpus<'f, M>,
    crashes: Crashes<'f, M>,
    /// The input of the next run.
    input: Page<'f, M>,
    /// How many of the first inputs have been run as they are.
    begun: usize,
    /// How many first inputs there are.
    first: usize,
    stats: Stats,
}

impl<'f, M: PhysMem> Campaign<'f, M> {
    /// A campaign that starts from `inputs`. The same seed makes the same inputs for the same target.
    pub fn new<'b>(
        frames: &'f FrameAllocator<M>,
        limits: Limits,
        seed: u64,
        dictionary: Dictionary,
        inputs: impl IntoIterator<Item = &'b [u8]>,
    ) -> Result<Self, FrameError> {
        let mut corpus = Corpus::new(frames);
        let longest = limits.input.min(INPUT_MAX);
        for input in inputs {
            corpus.keep(input.get(..longest).unwrap_or(input), 0)?;
        }
        if corpus.is_empty() {
            corpus.keep(&[], 0)?;
        }
        Ok(Self {
            limits: Limits {
                input: longest,
                ..limits
            },
            mutator: Mutator::new(seed, dictionary),
            first: corpus.len(),
            corpus,
            crashes: Crashes::new(frames),
            input: Page::new(frames)?,
            begun: 0,
            stats: Stats::default(),
        })
    }

    /// What it came to so far.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The different crashes.
    pub fn crashes(&self) -> &[Found<'f, M>] {
        self.crashes.all()
    }

    /// Runs one more input.
    pub fn step<T: Target>(&mut self, target: &mut T) -> Result<Step, T::Error> {
        let Limits {
            executions,
            crashes,
            ..
        } = self.limits;
        if self.stats.executions >= executions || self.stats.crashes >= crashes {
            return Ok(Step::Over);
        }
        let start = target.now();
        let len = self.make_input();
        let made = target.now();
        let input = self.input.get(..len).unwrap_or_default();
        let execution = target.execute(input)?;
        let ran = target.now();
        let stats = &mut self.stats;
        stats.executions += 1;
        stats.guest += execution.guest;
        stats.host += execution.host;
        stats.reset += execution.reset;
        stats.learn += execution.learn;
        stats.pages += execution.pages;
        let step = self.judge(&execution, len)?;
        let stats = &mut self.stats;
        (stats.known, stats.reached) = target.coverage();
        stats.corpus = self.corpus.len() as u32;
        stats.mutate += made.wrapping_sub(start) + target.now().wrapping_sub(ran);
        if step == Step::NewCrash && stats.crashes == 1 {
            stats.first_crash = stats.executions;
            stats.first_crash_ticks = stats.ticks();
        }
        Ok(step)
    }

    /// Puts the next input into its page; yields its length.
    fn make_input(&mut self) -> usize {
        let buffer = self.input.get_mut(..self.limits.input).unwrap_or_default();
        if self.begun < self.first {
            let input = self.corpus.get(self.begun).unwrap_or_default();
            self.begun += 1;
            return fill(buffer, input);
        }
        let count = self.corpus.len();
        // Of a few that chance picks, the one whose run took longest: most inputs reach something new only by being refused
        // in a new way, and what is made of them hardly gets further.
        let picks = [(); PICKS].map(|()| self.mutator.below(count));
        let longest = picks.into_iter().max_by_key(|at| self.corpus.ticks(*at));
        let index = longest.unwrap_or(0);
        let len = fill(buffer, self.corpus.choose(index));
        let other = self.mutator.below(count);
        let mut draft = Draft::new(buffer, len);
        self.mutator
            .mutate(&mut draft, self.corpus.get(other).unwrap_or_default());
        draft.len()
    }

    /// Keeps the input that was run, of `len` bytes, for what it is worth.
    fn judge(&mut self, execution: &Execution, len: usize) -> Result<Step, FrameError> {
        let input = self.input.get(..len).unwrap_or_default();
        if !execution.outcome.is_success() {
            self.stats.failures += 1;
            let crash = Crash {
                outcome: execution.outcome,
                rip: execution.rip,
            };
            if self.crashes.add(crash, input, self.stats.executions)? {
                self.stats.crashes += 1;
                return Ok(Step::NewCrash);
            }
            return Ok(Step::Nothing);
        }
        let number = self.stats.executions;
        if number <= self.first as u64 {
            // It is kept already.
            self.corpus.ran(number as usize - 1, execution.guest);
        } else if execution.new_blocks != 0 {
            self.corpus.keep(input, execution.guest)?;
        }
        if execution.new_blocks == 0 {
            return Ok(Step::Nothing);
        }
        Ok(Step::NewBlocks(execution.new_blocks))
    }
}

/// Copies `bytes` to the start of `buffer`, as far as there is room; yields how many.
fn fill(buffer: &mut [u8], bytes: &[u8]) -> usize {
    let len = bytes.len().min(buffer.len());
    for (to, from) in buffer.iter_mut().zip(bytes) {
        *to = *from;
    }
    len
}

#[cfg(test)]
mod tests {
    use super::super::dictionary::Token;
    use super::*;
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

    impl Target for Toy {
        type Error = FrameError;

        fn execute(&mut self, input: &[u8]) -> Result<Execution, FrameError> {
            if let Some(left) = &mut self.frames_left {
                *left = left.checked_sub(1).ok_or(FrameError::OutOfFrames)?;
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
                rip: Gva::new(0x1000),
                new_blocks: (self.reached.len() - before) as u32,
                guest: 100,
                host: 10,
                reset: 20,
                learn: 0,
                pages: 2,
            })
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

    const LIMITS: Limits = Limits {
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
                    Step::Nothing => {}
                    Step::Over => break,
                    step => steps.push(step),
                }
            }
            assert_eq!(
                steps.last(),
                Some(&Step::NewCrash),
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
        assert_eq!(frames.figures().used, 0);
    }

    #[test]
    fn the_seed_decides_and_a_sound_program_survives() {
        let frames = Arena::allocator(0x10_0000, 512);
        let run = |seed| {
            let mut toy = Toy::default();
            let limits = Limits {
                executions: 200_000,
                crashes: 2,
                ..LIMITS
            };
            let mut campaign = Campaign::new(&frames, limits, seed, dictionary(), []).unwrap();
            while campaign.step(&mut toy).unwrap() != Step::Over {}
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
            let limits = Limits {
                executions: 500,
                input,
                ..LIMITS
            };
            let long = [b'x'; INPUT_MAX];
            let mut toy = Toy::default();
            let mut campaign =
                Campaign::new(&frames, limits, 1, dictionary(), [&long[..]]).unwrap();
            while campaign.step(&mut toy).unwrap() != Step::Over {}
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
        assert_eq!(frames.figures().used, 0);
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
            assert_eq!(frames.figures().used, 0);
        }
    }
}
