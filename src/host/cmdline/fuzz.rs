//! Options of a guest that is fuzzed.

use super::value::{count, duration};
use super::words::Word;
use super::{Duration, Problem};
use crate::vm::name::Name;

/// The most inputs that are run.
pub const EXECUTIONS_MAX: u64 = u32::MAX as u64;
/// How long the run of one input may take where the command line does not say.
pub const DEFAULT_HANG: Duration = Duration::Nanoseconds(20_000_000);

/// What is to be done with a guest that is fuzzed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FuzzOptions {
    /// `fuzz=`: how many inputs are run once it freezes; 0 where it is not fuzzed.
    pub executions: u64,
    /// `seed=`: the same one makes the same inputs.
    pub seed: u64,
    /// `crashes=`: it ends when so many different crashes are found.
    pub crashes: u64,
    /// `hang=`: how long the run of one input may take; one that takes longer is a crash.
    pub hang: Duration,
    /// `inputs=`: data to begin with, one input.
    pub inputs: Option<Name>,
    /// `expect=crash`: it ends well if a crash is found, not if none is.
    pub expect_crash: bool,
}

impl FuzzOptions {
    /// Of a guest that is not fuzzed.
    pub const NONE: Self = Self {
        executions: 0,
        seed: 1,
        crashes: 1,
        hang: DEFAULT_HANG,
        inputs: None,
        expect_crash: false,
    };

    /// Takes a word, or returns `None` for a key that is none of these.
    pub(super) fn take(&mut self, word: Word<'_>) -> Option<(FuzzKey, Result<(), Problem>)> {
        let key = match word.key {
            "fuzz" => FuzzKey::Fuzz,
            "seed" => FuzzKey::Seed,
            "crashes" => FuzzKey::Crashes,
            "hang" => FuzzKey::Hang,
            "inputs" => FuzzKey::Inputs,
            "expect" => FuzzKey::Expect,
            _ => return None,
        };
        Some((key, self.set(key, word)))
    }

    fn set(&mut self, key: FuzzKey, word: Word<'_>) -> Result<(), Problem> {
        let value = word.needs_value()?;
        match key {
            FuzzKey::Fuzz => self.executions = count(value, EXECUTIONS_MAX)?,
            FuzzKey::Seed => self.seed = count(value, u64::MAX)?,
            FuzzKey::Crashes => {
                self.crashes = count(value, crate::host::fuzz::CRASHES_MAX as u64)?;
            }
            FuzzKey::Hang => self.hang = duration(value)?,
            FuzzKey::Inputs => self.inputs = Some(Name::new(value).ok_or(Problem::NotAName)?),
            FuzzKey::Expect if value == "crash" => self.expect_crash = true,
            FuzzKey::Expect => return Err(Problem::NotExpectable),
        }
        Ok(())
    }
}

/// The keys.
#[derive(Clone, Copy, Debug)]
pub(super) enum FuzzKey {
    Fuzz,
    Seed,
    Crashes,
    Hang,
    Inputs,
    Expect,
}

#[cfg(test)]
mod tests {
    use crate::host::cmdline::*;

    fn fuzz(line: &str) -> Result<FuzzOptions, Problem> {
        GuestOptions::parse(line, 0, 36)
            .map(|options| options.fuzz)
            .map_err(|error| error.problem)
    }

    #[test]
    fn a_campaign_is_described() {
        assert_eq!(fuzz("parser.elf mem=16M"), Ok(FuzzOptions::NONE));
        let all = "parser.elf fuzz=100000 seed=7 crashes=3 hang=5ms inputs=pic expect=crash";
        assert_eq!(
            fuzz(all),
            Ok(FuzzOptions {
                executions: 100_000,
                seed: 7,
                crashes: 3,
                hang: Duration::Nanoseconds(5_000_000),
                inputs: Name::new("pic"),
                expect_crash: true,
            })
        );
    }

    #[test]
    fn no_option_is_taken_for_another() {
        let line = "p.elf name=p mem=16M budget=1s pages=4k testdev around=1 map=x forks=1 parallel=1 runs=1 \
            reset=warm prefetch slice=1M freeze=1M idle measure=fork fuzz=1 seed=7 crashes=1 hang=1M inputs=x \
            expect=crash";
        assert!(GuestOptions::parse(line, 0, 36).is_ok());
        for word in line.split_whitespace().skip(1) {
            let twice = format!("{line} {word}");
            let error = GuestOptions::parse(&twice, 0, 36).unwrap_err();
            assert_eq!(error.problem, Problem::Repeated, "{word}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, problem) in [
            ("p.elf fuzz=0", Problem::Zero),
            ("p.elf fuzz=many", Problem::NotACount),
            ("p.elf fuzz=4294967296", Problem::TooMany(EXECUTIONS_MAX)),
            ("p.elf fuzz", Problem::NeedsValue),
            ("p.elf fuzz=1 fuzz=2", Problem::Repeated),
            ("p.elf crashes=17", Problem::TooMany(16)),
            ("p.elf hang=soon", Problem::NotADuration),
            ("p.elf inputs=a/b", Problem::NotAName),
            ("p.elf expect=luck", Problem::NotExpectable),
        ] {
            assert_eq!(fuzz(line), Err(problem), "{line}");
        }
    }
}
