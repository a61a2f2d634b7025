//! Options of the hypervisor itself.

use log::LevelFilter;

use super::seen::{Key, Seen};
use super::value::{duration, pool};
use super::words::{Word, Words, split_path};
use super::{CmdlineError, Duration, Problem, Whose};
use crate::vm::mitigations::Choice;

/// The hypervisor's own options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelOptions<'a> {
    /// `log=off|error|warn|info|debug|trace`: what goes to the console.
    pub log: LevelFilter,
    /// `selftest=`: raise this exception in the hypervisor, to see that it is reported, or have the local APIC's timer run.
    pub selftest: Option<&'a str>,
    /// `tick=`: interrupt guests so often, as a machine with a running timer would.
    pub tick: Option<Duration>,
    /// `pool=`: at most so many bytes of host memory for guests. A number without suffix is in MiB.
    pub pool: Option<u64>,
    /// `audit`: check all frame counts and tables after every guest.
    pub audit: bool,
    /// `mitigations=`: what is done against the side channels of the CPU.
    pub mitigations: Choice,
}

impl<'a> KernelOptions<'a> {
    /// The options of an empty command line.
    pub const DEFAULT: Self = Self {
        log: LevelFilter::Info,
        selftest: None,
        tick: None,
        pool: None,
        audit: false,
        mitigations: Choice::Auto,
    };

    /// Reads the command line of the image.
    ///
    /// # Errors
    /// The first word that is no option of the image, or whose value is none.
    pub fn parse(line: &'a str) -> Result<Self, CmdlineError<'a>> {
        let mut options = Self::DEFAULT;
        let mut seen = Seen::default();
        for word in Words(split_path(line, |_| false).1) {
            options
                .take(word, &mut seen)
                .map_err(|problem| word.blame(Whose::Hypervisor, problem))?;
        }
        Ok(options)
    }

    fn take(&mut self, word: Word<'a>, seen: &mut Seen) -> Result<(), Problem> {
        match word.key {
            "log" => {
                seen.first_time(Key::Log)?;
                self.log = word
                    .needs_value()?
                    .parse()
                    .map_err(|_| Problem::NotALevel)?;
            }
            "selftest" => {
                seen.first_time(Key::Selftest)?;
                self.selftest = Some(word.needs_value()?);
            }
            "tick" => {
                seen.first_time(Key::Tick)?;
                self.tick = Some(duration(word.needs_value()?)?);
            }
            "pool" => {
                seen.first_time(Key::Pool)?;
                self.pool = Some(pool(word.needs_value()?)?);
            }
            "audit" => {
                seen.first_time(Key::Audit)?;
                word.takes_no_value()?;
                self.audit = true;
            }
            "mitigations" => {
                seen.first_time(Key::Mitigations)?;
                self.mitigations =
                    Choice::parse(word.needs_value()?).ok_or(Problem::NotMitigations)?;
            }
            _ => return Err(Problem::UnknownKey),
        }
        Ok(())
    }
}
