//! Options of a guest that is forked.

use arrayvec::ArrayVec;

use super::value::{count, duration};
use super::words::Word;
use super::{Duration, Problem};

/// The most generations of forks, each forked from a fork of the one before.
pub const GENERATIONS_MAX: usize = 8;
/// The most forks of one template, and the most runs of one fork.
pub const FORKS_MAX: u64 = u32::MAX as u64;
/// The most forks that are alive at the same time.
pub const PARALLEL_MAX: u64 = 1 << 20;
/// How many forks are alive at the same time where the command line does not say.
pub const DEFAULT_PARALLEL: u64 = 16;
/// A turn where the command line does not say.
pub const DEFAULT_SLICE: Duration = Duration::Nanoseconds(1_000_000);
/// The shortest turn, in ticks of the TSC. In less than it takes to enter a guest and to leave it, none would get anywhere.
pub const SLICE_LEAST: u64 = 10_000;

/// How a fork is brought back to its template between two runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetMode {
    /// Private pages are kept, and those that were written are copied back.
    Warm,
    /// Private pages are given back, and the next run shares all of them again.
    Cold,
    /// Warm for few pages, cold for many.
    Auto,
}

/// What of forks is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Making them.
    Fork,
    /// That, running, resetting and ending them, by pages that they write. The guest writes as many pages as its message
    /// says.
    All,
}

/// What is to be done with a guest that freezes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkOptions {
    /// `forks=`: how many forks in all, per generation as in `10:5`; later generations have one.
    counts: ArrayVec<u64, GENERATIONS_MAX>,
    /// `parallel=`: how many are alive at the same time.
    pub parallel: u64,
    /// `runs=`: how often each fork runs. Between two runs it is reset.
    pub runs: u64,
    /// `reset=`: how.
    pub reset: ResetMode,
    /// `prefetch=`: give each fork the pages that earlier ones wrote, before it runs.
    pub prefetch: bool,
    /// `slice=`: how long a fork runs before it is the turn of the next.
    pub slice: Duration,
    /// `freeze=`: freeze the guest when it has run so long, if it has not asked for it by then.
    pub freeze: Option<Duration>,
    /// `idle`: make forks that never run, all alive, until their number or the memory is reached.
    pub idle: bool,
    /// `measure=`: instead of all this, measure what forks cost.
    pub measure: Option<Measure>,
    /// Whether any of these was given: the guest must then freeze.
    pub given: bool,
}

impl ForkOptions {
    /// Of a guest of which nothing was said.
    pub fn new() -> Self {
        Self {
            counts: ArrayVec::new(),
            parallel: DEFAULT_PARALLEL,
            runs: 1,
            reset: ResetMode::Auto,
            prefetch: false,
            slice: DEFAULT_SLICE,
            freeze: None,
            idle: false,
            measure: None,
            given: false,
        }
    }

    /// How many forks are made of a template of this generation, which counts from 0.
    pub fn forks(&self, generation: usize) -> u64 {
        match self.counts.get(generation) {
            Some(count) => *count,
            // As many as there is memory for.
            None if self.idle && generation == 0 => FORKS_MAX,
            None => 1,
        }
    }

    /// How many ticks a turn has of a TSC with this frequency: what was asked for, but enough to get somewhere.
    pub fn slice_ticks(&self, tsc_hz: u64) -> u64 {
        self.slice.ticks(tsc_hz).max(SLICE_LEAST)
    }

    /// Takes a word, or returns `None` for a key that is none of these.
    pub(super) fn take(&mut self, word: Word<'_>) -> Option<(ForkKey, Result<(), Problem>)> {
        let key = match word.key {
            "forks" => ForkKey::Forks,
            "parallel" => ForkKey::Parallel,
            "runs" => ForkKey::Runs,
            "reset" => ForkKey::Reset,
            "prefetch" => ForkKey::Prefetch,
            "slice" => ForkKey::Slice,
            "freeze" => ForkKey::Freeze,
            "idle" => ForkKey::Idle,
            "measure" => ForkKey::Measure,
            _ => return None,
        };
        self.given = true;
        Some((key, self.set(key, word)))
    }

    fn set(&mut self, key: ForkKey, word: Word<'_>) -> Result<(), Problem> {
        match key {
            ForkKey::Forks => {
                self.counts.clear();
                for text in word.needs_value()?.split(':') {
                    self.counts
                        .try_push(count(text, FORKS_MAX)?)
                        .map_err(|_| Problem::TooDeep(GENERATIONS_MAX))?;
                }
            }
            ForkKey::Parallel => self.parallel = count(word.needs_value()?, PARALLEL_MAX)?,
            ForkKey::Runs => self.runs = count(word.needs_value()?, FORKS_MAX)?,
            ForkKey::Reset => {
                self.reset = match word.needs_value()? {
                    "warm" => ResetMode::Warm,
                    "cold" => ResetMode::Cold,
                    "auto" => ResetMode::Auto,
                    _ => return Err(Problem::NotAReset),
                }
            }
            ForkKey::Prefetch => self.prefetch = switch(word)?,
            ForkKey::Slice => self.slice = duration(word.needs_value()?)?,
            ForkKey::Freeze => self.freeze = Some(duration(word.needs_value()?)?),
            ForkKey::Idle => self.idle = switch(word)?,
            ForkKey::Measure => {
                self.measure = match word.needs_value()? {
                    "fork" => Some(Measure::Fork),
                    "all" => Some(Measure::All),
                    _ => return Err(Problem::NotAMeasure),
                }
            }
        }
        Ok(())
    }
}

impl Default for ForkOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// The keys.
#[derive(Clone, Copy, Debug)]
pub(super) enum ForkKey {
    Forks,
    Parallel,
    Runs,
    Reset,
    Prefetch,
    Slice,
    Freeze,
    Idle,
    Measure,
}

/// A bare word, or `on` or `off`.
fn switch(word: Word<'_>) -> Result<bool, Problem> {
    match word.value {
        None | Some("on") => Ok(true),
        Some("off") => Ok(false),
        Some(_) => Err(Problem::NotOnOrOff),
    }
}

#[cfg(test)]
mod tests {
    use crate::host::cmdline::*;

    fn forks(line: &str) -> Result<ForkOptions, Problem> {
        GuestOptions::parse(&format!("a.elf {line}"), 0, 36)
            .map(|options| options.forks)
            .map_err(|error| error.problem)
    }

    #[test]
    fn all_options() {
        let none = forks("mem=1M").unwrap();
        assert!(!none.given);
        assert_eq!((none.forks(0), none.forks(7), none.runs), (1, 1, 1));
        let all = forks("forks=1000 parallel=100 reset=warm runs=10 prefetch slice=2M").unwrap();
        assert!(all.given && all.prefetch && !all.idle);
        assert_eq!((all.forks(0), all.parallel, all.runs), (1000, 100, 10));
        assert_eq!(all.reset, ResetMode::Warm);
        assert_eq!(all.slice, Duration::Ticks(2_000_000));
        assert_eq!(forks("reset=cold").unwrap().reset, ResetMode::Cold);
        assert_eq!(forks("reset=auto").unwrap().reset, ResetMode::Auto);
        assert!(!forks("prefetch=off").unwrap().prefetch);
        assert!(forks("prefetch=on").unwrap().prefetch);
        assert!(forks("runs=2").unwrap().given);
        assert_eq!(forks("measure=all").unwrap().measure, Some(Measure::All));
        assert_eq!(forks("measure=fork").unwrap().measure, Some(Measure::Fork));
        assert_eq!(forks("forks=0x10").unwrap().forks(0), 16);
        let frozen = forks("freeze=2ms").unwrap();
        assert_eq!(frozen.freeze, Some(Duration::Nanoseconds(2_000_000)));
        assert!(frozen.given && none.freeze.is_none());
    }

    #[test]
    fn each_generation_has_a_number_of_forks() {
        let nested = forks("forks=10:5").unwrap();
        assert_eq!([0, 1, 2, 3].map(|depth| nested.forks(depth)), [10, 5, 1, 1]);
        assert_eq!(forks("forks=1:2:3:4:5:6:7:8").unwrap().forks(7), 8);
        assert_eq!(forks("idle").unwrap().forks(0), FORKS_MAX);
        assert_eq!(forks("idle forks=7").unwrap().forks(0), 7);
    }

    #[test]
    fn bad_values() {
        for (word, problem) in [
            ("forks=0", Problem::Zero),
            ("forks=many", Problem::NotACount),
            ("forks=-1", Problem::NotACount),
            ("forks=1.5", Problem::NotACount),
            ("forks=1K", Problem::NotACount),
            ("forks=", Problem::NeedsValue),
            ("forks", Problem::NeedsValue),
            ("forks=4294967296", Problem::TooMany(FORKS_MAX)),
            ("forks=99999999999999999999", Problem::TooMany(FORKS_MAX)),
            ("forks=3:", Problem::NotACount),
            ("forks=3:0", Problem::Zero),
            ("forks=1:2:3:4:5:6:7:8:9", Problem::TooDeep(8)),
            ("forks=1 forks=1", Problem::Repeated),
            ("parallel=0", Problem::Zero),
            ("parallel=1048577", Problem::TooMany(PARALLEL_MAX)),
            ("parallel=all", Problem::NotACount),
            ("runs=0", Problem::Zero),
            ("runs=1:2", Problem::NotACount),
            ("reset=hot", Problem::NotAReset),
            ("reset", Problem::NeedsValue),
            ("prefetch=1", Problem::NotOnOrOff),
            ("prefetch prefetch", Problem::Repeated),
            ("slice=0", Problem::Zero),
            ("slice=5min", Problem::NotADuration),
            ("freeze", Problem::NeedsValue),
            ("freeze=0", Problem::Zero),
            ("freeze=soon", Problem::NotADuration),
            ("slice=1ms slice=1ms", Problem::Repeated),
            ("idle=yes", Problem::NotOnOrOff),
            ("measure=some", Problem::NotAMeasure),
            ("measure", Problem::NeedsValue),
        ] {
            assert_eq!(forks(word), Err(problem), "{word}");
        }
    }

    #[test]
    fn a_turn_is_long_enough_to_get_somewhere() {
        for (slice, ticks) in [
            ("1", SLICE_LEAST),
            ("1ns", SLICE_LEAST),
            ("9999", SLICE_LEAST),
            ("10001", 10_001),
            ("1ms", 3_000_000),
        ] {
            let line = format!("a.elf slice={slice}");
            let options = GuestOptions::parse(&line, 0, 36).unwrap();
            assert_eq!(options.forks.slice_ticks(3_000_000_000), ticks, "{slice}");
        }
    }

    #[test]
    fn an_error_says_what_is_right() {
        let error = GuestOptions::parse("a.elf reset=hot", 0, 36).unwrap_err();
        assert_eq!(
            error.to_string(),
            "guest a: reset=hot: not one of warm, cold, auto"
        );
        let error = GuestOptions::parse("a.elf parallel=2000000", 0, 36).unwrap_err();
        assert_eq!(
            error.to_string(),
            "guest a: parallel=2000000: more than 1048576"
        );
    }
}
