//! A frozen guest as the target of a campaign.

use core::fmt;

use super::blocks::{Blocks, INT3};
use super::campaign::{Execution, Target};
use super::corpus::INPUT_MAX;
use super::page::Page;
use super::watch::Watch;
use crate::addr::{Gpa, Gva, PAGE_SIZE};
use crate::ept::{AccessError, Faults, Reset, Space};
use crate::frames::{FrameError, PhysMem};
use crate::vm::Host;
use crate::vm::clock::now;
use crate::vm::guest::Guest;
use crate::vm::loader::LoadError;
use crate::vm::machine::Machine;
use crate::vm::outcome::{Outcome, Turn};
use crate::vm::stats::RunStats;
use crate::vm::template::{ForkError, FreezeError, PatchError, ResetError, Template};
use crate::vm::vcpu::VcpuError;
use crate::vm::{Backend, OnVmx, TablesOf};

/// Why a guest cannot be fuzzed, or not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotError {
    /// Its image cannot be read.
    Image(LoadError),
    /// It has ended before it asked to be frozen.
    Ended(Outcome),
    /// It has not asked for a message when it asked to be frozen.
    NoBuffer,
    /// The breakpoints could not be put into its code.
    Memory(AccessError),
    /// It could not be frozen.
    Freeze(FreezeError),
    /// The frozen guest could not be forked.
    Fork(ForkError),
    /// A fork could not be reset.
    Reset(ResetError),
    /// The breakpoints that were met could not be taken out of the template.
    Patch(PatchError),
    /// The processor of a fork could not be changed or read.
    Vcpu(VcpuError),
    /// There is too little memory, even for a fresh fork. So many bytes are there for guests.
    Exhausted(u64),
    /// No frame for what is to be kept.
    Frames(FrameError),
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(error) => error.fmt(f),
            Self::Ended(outcome) => write!(f, "it never asked to be frozen: {outcome}"),
            Self::NoBuffer => f.write_str("it asked to be frozen without a buffer for inputs"),
            Self::Memory(error) => write!(f, "breakpoints in its code: {error}"),
            Self::Freeze(error) => write!(f, "freezing it: {error}"),
            Self::Fork(error) => write!(f, "forking it: {error}"),
            Self::Reset(error) => write!(f, "resetting it: {error}"),
            Self::Patch(error) => write!(f, "its next template: {error}"),
            Self::Vcpu(error) => error.fmt(f),
            Self::Exhausted(bytes) => write!(
                f,
                "out of memory, with {} KiB for guests in all: raise pool= or the memory of the machine (MEM=)",
                bytes >> 10
            ),
            Self::Frames(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for SnapshotError {}

impl From<FrameError> for SnapshotError {
    fn from(error: FrameError) -> Self {
        Self::Frames(error)
    }
}

/// A guest that is frozen with breakpoints in it, and the fork of it that runs inputs.
///
/// It ends by [`Snapshot::end`].
#[must_use = "a snapshot that is dropped without `end` leaks its frames"]
pub struct Snapshot<'a, 'f, 's, 'i, M: PhysMem, H, B: Backend = OnVmx> {
    machine: &'a mut Machine<'f, M, B>,
    watch: Watch<'a, 'i, 'f, M, H>,
    /// `None` once it could not be replaced.
    template: Option<Template<'s, M, B>>,
    /// `None` before the first run, and where the template is a new one.
    fork: Option<Guest<'s, M, B>>,
    /// Of forks that are no more.
    stats: RunStats,
    faults: Faults,
}

/// A first input: what the guest has left in its buffer, without zeroes at the end.
pub struct Example<'f, M: PhysMem> {
    page: Page<'f, M>,
    len: usize,
}

impl<M: PhysMem> Example<'_, M> {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.page.get(..self.len).unwrap_or_default()
    }
}

/// Runs `guest` until it asks to be frozen. Returns the room for inputs and what is in it.
///
/// # Errors
/// The guest ended before it asked, or asked without room for inputs; or no frame.
pub fn run_to_freeze<'f, M: PhysMem, B: Backend>(
    guest: &mut Guest<'_, M, B>,
    machine: &mut Machine<'f, M, B>,
    host: &mut impl Host,
) -> Result<(usize, Example<'f, M>), SnapshotError> {
    loop {
        match guest.run(machine, host, None) {
            Turn::AsksFreeze => break,
            Turn::Ended(outcome) => return Err(SnapshotError::Ended(outcome)),
            Turn::Halts | Turn::SliceOver => host.between_turns(),
        }
    }
    let buffer = guest.message_buffer().filter(|buffer| !buffer.is_empty());
    let buffer = buffer.ok_or(SnapshotError::NoBuffer)?;
    let room = buffer.len().min(INPUT_MAX as u64) as usize;
    let mut page = Page::new(machine.frames())?;
    let bytes = page.get_mut(..room).unwrap_or_default();
    let read = guest.space().read(buffer.start(), bytes);
    read.map_err(SnapshotError::Memory)?;
    let last = bytes.iter().rposition(|byte| *byte != 0);
    let len = last.map_or(0, |at| at + 1);
    Ok((room, Example { page, len }))
}

impl<'a, 'f, 's, 'i, M: PhysMem, H: Host, B: Backend> Snapshot<'a, 'f, 's, 'i, M, H, B> {
    /// Puts breakpoints where `blocks` begin and freezes `guest`, which has asked for it. No run may take longer than
    /// `longest` ticks.
    ///
    /// # Errors
    /// Breakpoints that cannot be put, or a guest that cannot be frozen.
    pub fn new(
        machine: &'a mut Machine<'f, M, B>,
        host: &'a mut H,
        mut guest: Guest<'s, M, B>,
        mut blocks: Blocks<'i, 'f, M>,
        longest: u64,
    ) -> Result<Self, SnapshotError> {
        guest.set_budget(longest);
        if let Err(error) = plant(guest.space_mut(), &mut blocks) {
            guest.end(machine);
            return Err(SnapshotError::Memory(error));
        }
        let watch = match Watch::new(host, blocks, machine.frames()) {
            Ok(watch) => watch,
            Err(error) => {
                guest.end(machine);
                return Err(SnapshotError::Frames(error));
            }
        };
        let (stats, faults) = (guest.stats.clone(), guest.space().faults());
        match guest.freeze(machine) {
            Ok(template) => Ok(Self {
                machine,
                watch,
                template: Some(template),
                fork: None,
                stats,
                faults,
            }),
            Err((error, guest)) => {
                guest.end(machine);
                Err(SnapshotError::Freeze(error))
            }
        }
    }

    /// What the last run has printed, the dump of its end included.
    pub fn text(&self) -> &str {
        self.watch.text()
    }

    /// The host behind it.
    pub fn host(&mut self) -> &mut H {
        self.watch.host
    }

    /// The spaces that there are now, for an audit.
    pub fn spaces(&self) -> impl Iterator<Item = &Space<'s, M, TablesOf<B>>> + Clone {
        let template = self
            .template
            .as_ref()
            .map(|template| template.space().as_space());
        template
            .into_iter()
            .chain(self.fork.as_ref().map(Guest::space))
    }

    /// Exits and violations of all runs.
    pub fn totals(&self) -> (RunStats, Faults) {
        let (mut stats, mut faults) = (self.stats.clone(), self.faults);
        if let Some(fork) = &self.fork {
            stats.add(&fork.stats);
            faults.add(&fork.space().faults());
        }
        (stats, faults)
    }

    /// Gives back all that it holds.
    pub fn end(mut self) {
        self.end_fork();
        if let Some(template) = self.template.take() {
            template.end(self.machine);
        }
    }

    fn end_fork(&mut self) {
        (self.stats, self.faults) = self.totals();
        if let Some(fork) = self.fork.take() {
            fork.end(self.machine);
        }
    }

    /// Makes the fork ready to run `input`. Returns how many pages were brought back.
    fn ready(&mut self, input: &[u8]) -> Result<u64, SnapshotError> {
        let template = self.template.as_ref().ok_or(SnapshotError::NoBuffer)?;
        if let Some(fork) = &mut self.fork {
            match template.reset(fork, self.machine, Reset::Auto, input) {
                Ok(restored) => return Ok(restored.copied + restored.dropped),
                Err(error) if error.is_out_of_frames() => self.end_fork(),
                Err(error) => return Err(SnapshotError::Reset(error)),
            }
        }
        let template = self.template.as_ref().ok_or(SnapshotError::NoBuffer)?;
        let fork = match template.fork(self.machine, input) {
            Ok(fork) => fork,
            Err(error) if error.is_out_of_frames() => return Err(self.exhausted()),
            Err(error) => return Err(SnapshotError::Fork(error)),
        };
        let fork = self.fork.insert(fork);
        fork.exit_on_breakpoints(self.machine)
            .map_err(SnapshotError::Vcpu)?;
        Ok(0)
    }

    /// Replaces the template by one without the breakpoints that were met.
    fn learn(&mut self) -> Result<(), SnapshotError> {
        self.end_fork();
        let template = self.template.take().ok_or(SnapshotError::NoBuffer)?;
        let blocks = &mut self.watch.blocks;
        let put_back = |space: &mut Space<'s, M, TablesOf<B>>| {
            blocks.settle(|at, byte| space.load(Gpa::new(at.as_u64()), &[byte]))
        };
        match template.patch(self.machine, put_back) {
            Ok(next) => {
                self.template = Some(next);
                Ok(())
            }
            Err((error, template)) => {
                self.template = Some(template);
                Err(match error.is_out_of_frames() {
                    true => self.exhausted(),
                    false => SnapshotError::Patch(error),
                })
            }
        }
    }
}

/// Puts a breakpoint where each block begins. Where the guest's memory is not what its image says, there is none.
fn plant<M: PhysMem, F: crate::paging::Nested>(
    space: &mut Space<'_, M, F>,
    blocks: &mut Blocks<'_, '_, M>,
) -> Result<(), AccessError> {
    // One byte at a time through the guest's tables is slow, and this happens once.
    blocks.retain(|at, byte| {
        let at = Gpa::new(at.as_u64());
        let mut there = [0];
        space.read(at, &mut there)?;
        if there != [byte] {
            return Ok(false);
        }
        space.load(at, &[INT3])?;
        Ok(true)
    })
}

impl<M: PhysMem, H: Host, B: Backend> Target for Snapshot<'_, '_, '_, '_, M, H, B> {
    type Error = SnapshotError;

    fn execute(&mut self, input: &[u8]) -> Result<Execution, SnapshotError> {
        let begin = now();
        let new_fork = self.fork.is_none();
        self.watch.clear_text();
        let pages = self.ready(input)?;
        let ready = now();
        let fork = self.fork.as_mut().ok_or(SnapshotError::NoBuffer)?;
        let before = fork.stats.guest_ticks;
        let reached = self.watch.blocks.reached();
        let outcome = loop {
            // It may ask to be frozen again, and is told that it is not.
            if let Turn::Ended(outcome) = fork.run(self.machine, &mut self.watch, None) {
                break outcome;
            }
        };
        let ran = now();
        let guest = fork.stats.guest_ticks - before;
        let rip = match outcome.is_success() {
            true => Gva::new(0),
            false => fork.rip(self.machine).map_err(SnapshotError::Vcpu)?,
        };
        let new_blocks = self.watch.blocks.reached() - reached;
        if new_blocks != 0 {
            self.learn()?;
        }
        let learnt = now().wrapping_sub(ran);
        let readied = ready.wrapping_sub(begin);
        Ok(Execution {
            outcome,
            rip,
            new_blocks,
            guest,
            host: ran.wrapping_sub(ready).saturating_sub(guest),
            reset: if new_fork { 0 } else { readied },
            learn: if new_fork { learnt + readied } else { learnt },
            pages,
        })
    }

    fn renew(&mut self) {
        self.end_fork();
    }

    fn exhausted(&self) -> SnapshotError {
        SnapshotError::Exhausted(self.machine.frames().statistics().total * PAGE_SIZE)
    }

    fn coverage(&self) -> (u32, u32) {
        (self.watch.blocks.known(), self.watch.blocks.reached())
    }

    fn now(&self) -> u64 {
        now()
    }
}
