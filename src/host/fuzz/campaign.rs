//! The loop of fuzzing: make an input, run it, keep it if it reached something new, note how it ended.

use super::corpus::{Corpus, INPUT_MAX};
use super::crash::{Crash, Crashes, FoundCrash};
use super::dictionary::Dictionary;
use super::mutate::{Draft, Mutator};
use super::page::Page;
use super::stats::Stats;
use crate::addr::Gva;
use crate::frames::{FrameAllocator, FrameError, PhysMem};
use crate::vm::outcome::Outcome;

/// What runs inputs, each from the same state.
pub trait Target {
    /// Why it cannot go on at all.
    type Error: From<FrameError>;
    /// Runs `input` to its end.
    ///
    /// # Errors
    /// The input could not be run, which ends the campaign. How it ended is no error.
    fn execute(&mut self, input: &[u8]) -> Result<Execution, Self::Error>;
    /// Has the next input run in a fresh fork, without what earlier runs have left to this one.
    fn renew(&mut self);
    /// Why it cannot go on where there is too little memory, even for a fresh fork.
    fn exhausted(&self) -> Self::Error;
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

impl Execution {
    /// The same input run once more: both together, and how the second ended.
    const fn then(self, again: Self) -> Self {
        Self {
            new_blocks: self.new_blocks + again.new_blocks,
            guest: self.guest + again.guest,
            host: self.host + again.host,
            reset: self.reset + again.reset,
            learn: self.learn + again.learn,
            pages: self.pages + again.pages,
            ..again
        }
    }
}

/// How long a campaign is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CampaignLimits {
    /// At most so many inputs are run.
    pub executions: u64,
    /// It ends when so many different crashes are found.
    pub crashes: u32,
    /// The longest input.
    pub input: usize,
}

/// What a step of a campaign came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CampaignStep {
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
    limits: CampaignLimits,
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
    ///
    /// # Errors
    /// No frame for what the campaign keeps.
    pub fn new<'b>(
        frames: &'f FrameAllocator<M>,
        limits: CampaignLimits,
        seed: u64,
        dictionary: Dictionary,
        inputs: impl IntoIterator<Item = &'b [u8]>,
    ) -> Result<Self, FrameError> {
        let mut corpus = Corpus::new(frames);
        let longest = limits.input.min(INPUT_MAX);
        for input in inputs {
            corpus.keep(input.get(..longest).unwrap_or(input))?;
        }
        if corpus.is_empty() {
            corpus.keep(&[])?;
        }
        Ok(Self {
            limits: CampaignLimits {
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
    pub fn crashes(&self) -> &[FoundCrash<'f, M>] {
        self.crashes.all()
    }

    /// Runs one more input.
    ///
    /// # Errors
    /// Of [`Target::execute`].
    pub fn step<T: Target>(&mut self, target: &mut T) -> Result<CampaignStep, T::Error> {
        let CampaignLimits {
            executions,
            crashes,
            ..
        } = self.limits;
        if self.stats.executions >= executions || self.stats.crashes >= crashes {
            return Ok(CampaignStep::Over);
        }
        let start = target.now();
        let len = self.make_input();
        let made = target.now();
        let input = self.input.get(..len).unwrap_or_default();
        let mut execution = target.execute(input)?;
        if execution.outcome.is_out_of_frames() {
            // That says nothing of the input: the fork keeps pages of earlier runs.
            target.renew();
            execution = execution.then(target.execute(input)?);
            if execution.outcome.is_out_of_frames() {
                return Err(target.exhausted());
            }
        }
        let ran = target.now();
        let stats = &mut self.stats;
        stats.executions += 1;
        stats.guest += execution.guest;
        stats.host += execution.host;
        stats.reset += execution.reset;
        stats.learn += execution.learn;
        stats.pages += execution.pages;
        let step = self.judge(&execution, len).map_err(|error| match error {
            FrameError::OutOfFrames => target.exhausted(),
            other => other.into(),
        })?;
        let stats = &mut self.stats;
        (stats.known, stats.reached) = target.coverage();
        stats.corpus = self.corpus.len() as u32;
        stats.mutate += made.wrapping_sub(start) + target.now().wrapping_sub(ran);
        if step == CampaignStep::NewCrash && stats.crashes == 1 {
            stats.first_crash = stats.executions;
            stats.first_crash_ticks = stats.ticks();
        }
        Ok(step)
    }

    /// Puts the next input into its page; returns its length.
    fn make_input(&mut self) -> usize {
        let buffer = self.input.get_mut(..self.limits.input).unwrap_or_default();
        if self.begun < self.first {
            let input = self.corpus.get(self.begun).unwrap_or_default();
            self.begun += 1;
            return fill(buffer, input);
        }
        // Half of the inputs are changed in one place, in order: with luck alone an input that has all but one byte right may
        // be tried a hundred thousand times in vain. The others are left to luck, as some need more than one change.
        if self.stats.executions.is_multiple_of(2)
            && let Some((input, at, mask)) = self.corpus.walk()
        {
            let len = fill(buffer, input);
            if let Some(byte) = buffer.get_mut(at) {
                *byte ^= mask;
            }
            return len;
        }
        let count = self.corpus.len();
        let index = self.mutator.below(count);
        let len = fill(buffer, self.corpus.choose(index));
        let other = self.mutator.below(count);
        let mut draft = Draft::new(buffer, len);
        self.mutator
            .mutate(&mut draft, self.corpus.get(other).unwrap_or_default());
        draft.len()
    }

    /// Keeps the input that was run, of `len` bytes, for what it is worth.
    fn judge(&mut self, execution: &Execution, len: usize) -> Result<CampaignStep, FrameError> {
        let input = self.input.get(..len).unwrap_or_default();
        if !execution.outcome.is_success() {
            self.stats.failures += 1;
            let crash = Crash {
                outcome: execution.outcome,
                rip: execution.rip,
            };
            if self.crashes.add(crash, input, self.stats.executions)? {
                self.stats.crashes += 1;
                return Ok(CampaignStep::NewCrash);
            }
            return Ok(CampaignStep::Nothing);
        }
        if execution.new_blocks == 0 {
            return Ok(CampaignStep::Nothing);
        }
        // The first inputs are kept already.
        if self.stats.executions > self.first as u64 {
            self.corpus.keep(input)?;
        }
        Ok(CampaignStep::NewBlocks(execution.new_blocks))
    }
}

/// Copies `bytes` to the start of `buffer`, as far as there is room; returns how many.
fn fill(buffer: &mut [u8], bytes: &[u8]) -> usize {
    let len = bytes.len().min(buffer.len());
    for (to, from) in buffer.iter_mut().zip(bytes) {
        *to = *from;
    }
    len
}

#[cfg(test)]
mod tests;
