//! Options of the hypervisor itself.

use log::LevelFilter;

use super::seen::{Key, SeenKeys};
use super::value::{duration, pool};
use super::words::{Word, WordIter, split_path};
use super::{CmdlineError, Duration, Problem, Whose};
use crate::vm::mitigations::Choice;

/// What the machine does once all is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// It is switched off.
    #[default]
    PowerOff,
    /// It starts anew.
    Reset,
    /// It stands still, and shows what was said.
    Halt,
}

/// How long the screen shows the end of a run where the command line does not say.
pub const DEFAULT_END_AFTER: Duration = Duration::Nanoseconds(30_000_000_000);

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
    /// `screen=on|off`: whether the screen shows what goes to the console.
    pub screen: bool,
    /// `end=poweroff|reset|halt`: what the machine does after the run.
    pub end: End,
    /// `end-after=`: how long it waits before that, so that somebody can read the screen.
    pub end_after: Duration,
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
        screen: true,
        end: End::PowerOff,
        end_after: DEFAULT_END_AFTER,
    };

    /// Reads the command line of the image.
    ///
    /// # Errors
    /// The first word that is no option of the image, or whose value is none.
    pub fn parse(line: &'a str) -> Result<Self, CmdlineError<'a>> {
        let mut options = Self::DEFAULT;
        let mut seen = SeenKeys::default();
        for word in WordIter(split_path(line, |_| false).1) {
            options
                .take(word, &mut seen)
                .map_err(|problem| word.blame(Whose::Hypervisor, problem))?;
        }
        Ok(options)
    }

    fn take(&mut self, word: Word<'a>, seen: &mut SeenKeys) -> Result<(), Problem> {
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
            "screen" => {
                seen.first_time(Key::Screen)?;
                self.screen = match word.needs_value()? {
                    "on" => true,
                    "off" => false,
                    _ => return Err(Problem::NotOnOrOff),
                };
            }
            "end" => {
                seen.first_time(Key::End)?;
                self.end = match word.needs_value()? {
                    "poweroff" => End::PowerOff,
                    "reset" => End::Reset,
                    "halt" => End::Halt,
                    _ => return Err(Problem::NotAnEnd),
                };
            }
            "end-after" => {
                seen.first_time(Key::EndAfter)?;
                self.end_after = duration(word.needs_value()?)?;
            }
            _ => return Err(Problem::UnknownKey),
        }
        Ok(())
    }
}
