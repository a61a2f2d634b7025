//! Guests as the forks of a schedule.

use super::end::ForkEnd;
use super::forks::{After, Alive, Cost, ForkSlot, ForkTurn, Forks};
use super::queue::Linked;
use crate::ept::{Flaw, Reason, Reset, Spaces};
use crate::frames::{FrameBox, PhysMem};
use crate::host::cmdline::{ForkOptions, ResetMode};
use crate::vm::clock::now;
use crate::vm::{self, Backend, Guest, Host, Machine, OnVmx, TablesOf};

/// Of the resets, the memory is checked after the first so many, and after each so many later.
const MEMORY_CHECKS: u64 = 16;

/// A living fork, in a frame of its own.
pub struct LivingFork<'f, 's, M: PhysMem, B: Backend = OnVmx> {
    guest: Guest<'s, M, B>,
    slot: ForkSlot,
    /// What all its runs took before this one.
    before: Cost,
    below: Option<FrameBox<'f, Self, M>>,
}

impl<'s, M: PhysMem, B: Backend> LivingFork<'_, 's, M, B> {
    pub(super) fn new(guest: Guest<'s, M, B>, slot: ForkSlot) -> Self {
        Self {
            guest,
            slot,
            before: Cost::ZERO,
            below: None,
        }
    }
    pub(super) fn into_guest(self) -> Guest<'s, M, B> {
        self.guest
    }
}

impl<'f, 's, M: PhysMem, B: Backend> Linked for FrameBox<'f, LivingFork<'f, 's, M, B>, M> {
    fn below(&mut self) -> &mut Option<Self> {
        &mut self.below
    }
    fn look_below(&self) -> Option<&Self> {
        self.below.as_ref()
    }
}

/// A template, and what is checked of it.
pub struct ForkTemplate<'s, M: PhysMem, B: Backend = OnVmx> {
    frozen: vm::Template<'s, M, B>,
    checksum: u64,
}

/// What a check found: a bug of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Counts or tables are not as they must be.
    Flaw(Flaw),
    /// The memory of a template has changed.
    TemplateChanged,
    /// The memory of a template could not be read.
    Unreadable(Reason),
    /// So many frames were found to be in use that no space refers to, and so many should be: a guest has one of the
    /// host's, or one is lost.
    Host(u64, u64),
}

impl core::fmt::Display for Wrong {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Flaw(flaw) => flaw.fmt(f),
            Self::TemplateChanged => f.write_str("the memory of a template has changed"),
            Self::Unreadable(reason) => write!(f, "the memory of a template: {reason}"),
            Self::Host(found, held) => write!(
                f,
                "{found} frames in use are in no space, but the host holds {held}"
            ),
        }
    }
}

impl core::error::Error for Wrong {}

/// What checking found so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// How often all counts and tables were walked, and all templates summed up.
    pub walks: u64,
    /// Resets after which the whole processor was compared.
    pub processors: u64,
    /// Resets after which all memory was compared.
    pub memories: u64,
    /// What is wrong, if anything is.
    pub wrong: Option<Wrong>,
}

/// Makes, runs and resets forks of guests.
pub struct GuestForks<'r, 'f, 's, M: PhysMem, H, B: Backend = OnVmx> {
    machine: &'r mut Machine<'f, M, B>,
    host: &'r mut H,
    spaces: &'r Spaces<'s, M, TablesOf<B>>,
    reset: Reset,
    prefetch: bool,
    checks: bool,
    /// What checks have found, where they are asked for.
    pub checked: Checked,
    /// Frames that a fork had before it ran.
    pub idle_frames: u64,
    /// Pages that forks were given ahead of need.
    pub prefetched: u64,
}

impl<'r, 'f, 's, M: PhysMem, H: Host, B: Backend> GuestForks<'r, 'f, 's, M, H, B> {
    /// `checks`: look at everything now and then, which takes long.
    pub fn new(
        machine: &'r mut Machine<'f, M, B>,
        host: &'r mut H,
        spaces: &'r Spaces<'s, M, TablesOf<B>>,
        options: &ForkOptions,
        checks: bool,
    ) -> Self {
        Self {
            machine,
            host,
            spaces,
            reset: match options.reset {
                ResetMode::Warm => Reset::Warm,
                ResetMode::Cold => Reset::Cold,
                ResetMode::Auto => Reset::Auto,
            },
            prefetch: options.prefetch,
            checks,
            checked: Checked::default(),
            idle_frames: 0,
            prefetched: 0,
        }
    }

    /// A template for a schedule, in a frame of its own, as several of them may wait for one another.
    ///
    /// # Errors
    /// No frame for it.
    pub fn template(
        &mut self,
        frozen: vm::Template<'s, M, B>,
    ) -> Result<FrameBox<'f, ForkTemplate<'s, M, B>, M>, ForkEnd> {
        let checksum = match self.checks.then(|| frozen.space().checksum()) {
            Some(Ok(checksum)) => checksum,
            Some(Err(reason)) => {
                self.wrong(Wrong::Unreadable(reason));
                0
            }
            None => 0,
        };
        let frames = self.machine.frames();
        FrameBox::new(frames, ForkTemplate { frozen, checksum }).map_err(|(error, template)| {
            template.frozen.end(self.machine);
            ForkEnd::NoFrame(error)
        })
    }

    fn wrong(&mut self, wrong: Wrong) {
        self.checked.wrong.get_or_insert(wrong);
    }
}

impl<'f, 's, M: PhysMem, H: Host, B: Backend> Forks for GuestForks<'_, 'f, 's, M, H, B> {
    type Template = FrameBox<'f, ForkTemplate<'s, M, B>, M>;
    type Fork = FrameBox<'f, LivingFork<'f, 's, M, B>, M>;
    type End = ForkEnd;

    fn fork(
        &mut self,
        template: &mut Self::Template,
        slot: ForkSlot,
    ) -> Result<Self::Fork, ForkEnd> {
        let frames = self.machine.frames();
        // The first one may find what later ones share.
        let before = (slot.fork < 2).then(|| frames.statistics().used);
        let message = message(slot);
        let guest = if self.prefetch {
            let made = template.frozen.fork_prefetched(self.machine, &message);
            made.map(|(guest, pages)| {
                self.prefetched += pages;
                guest
            })
        } else {
            template.frozen.fork(self.machine, &message)
        };
        let mut guest = guest.map_err(ForkEnd::NotMade)?;
        // One that could not be kept was counted by its template too, and one that froze is made again for its next run.
        guest.set_fork(slot.fork);
        let living = LivingFork::new(guest, slot);
        let fork = FrameBox::new(frames, living).map_err(|(error, living)| {
            living.guest.end(self.machine);
            ForkEnd::NoFrame(error)
        })?;
        if let Some(before) = before {
            self.idle_frames = frames.statistics().used.saturating_sub(before);
        }
        Ok(fork)
    }

    fn slot<'a>(&self, fork: &'a mut Self::Fork) -> &'a mut ForkSlot {
        &mut fork.slot
    }

    fn turn(&mut self, fork: &mut Self::Fork, ticks: u64) -> ForkTurn<ForkEnd> {
        let guest = &mut fork.guest;
        let before = guest.stats.ticks();
        let turn = guest.run(self.machine, self.host, Some(ticks));
        self.host.between_turns();
        ForkTurn {
            ticks: guest.stats.ticks().wrapping_sub(before),
            after: match turn {
                vm::Turn::Ended(outcome) => After::Ended(ForkEnd::Ran(outcome)),
                vm::Turn::AsksFreeze => After::Frozen,
                vm::Turn::Halts | vm::Turn::SliceOver => After::Going,
            },
        }
    }

    fn cost(&self, fork: &Self::Fork) -> Cost {
        cost(&fork.guest).since(fork.before)
    }

    fn reset(
        &mut self,
        template: &mut Self::Template,
        fork: &mut Self::Fork,
        scarce: bool,
    ) -> Result<u64, ForkEnd> {
        if !scarce {
            self.remember(template, fork);
        }
        let how = if scarce { Reset::Cold } else { self.reset };
        let message = message(fork.slot);
        let restored = template
            .frozen
            .reset(&mut fork.guest, self.machine, how, &message)
            .map_err(ForkEnd::NotReset)?;
        fork.before = cost(&fork.guest);
        if scarce {
            // Others need them.
            fork.guest.settle(self.machine);
        }
        Ok(restored.copied + restored.dropped)
    }

    fn check_reset(&mut self, template: &Self::Template, fork: &Self::Fork) -> Result<(), ForkEnd> {
        if !self.checks {
            return Ok(());
        }
        let mut first = None;
        let told = message(fork.slot);
        let frozen = &template.frozen;
        let compared = frozen.differences(&fork.guest, self.machine, &told, |difference| {
            log::error!("after a reset {difference}");
            first.get_or_insert(difference);
        });
        if let Err(error) = compared {
            return Err(ForkEnd::NotReset(vm::ResetError::Vcpu(error)));
        }
        if let Some(first) = first {
            return Err(ForkEnd::Differs(first));
        }
        let number = self.checked.processors;
        self.checked.processors += 1;
        if number < MEMORY_CHECKS || number.is_multiple_of(MEMORY_CHECKS) {
            self.checked.memories += 1;
            if fork.guest.space().checksum() != Ok(template.checksum) {
                return Err(ForkEnd::MemoryDiffers);
            }
        }
        Ok(())
    }

    fn freeze(&mut self, fork: Self::Fork) -> Result<Self::Template, ForkEnd> {
        match fork.into_inner().guest.freeze(self.machine) {
            Ok(frozen) => self.template(frozen),
            Err((error, guest)) => {
                guest.end(self.machine);
                Err(ForkEnd::NotFrozen(error))
            }
        }
    }

    fn end(&mut self, template: Option<&mut Self::Template>, fork: Self::Fork) {
        if let Some(template) = template {
            self.remember(template, &fork);
        }
        fork.into_inner().guest.end(self.machine);
    }

    fn end_template(&mut self, template: Self::Template) {
        template.into_inner().frozen.end(self.machine);
    }

    fn keeps_templates(&self) -> bool {
        // They are compared with what they were.
        self.checks
    }

    fn check(&mut self, alive: &Alive<'_, Self>) {
        if !self.checks || self.checked.wrong.is_some() {
            return;
        }
        self.checked.walks += 1;
        let mut held = self.machine.frames_held();
        for generation in alive.generations() {
            // And the frame that each is in.
            held += generation.forks().count() as u64 * (Guest::<M, B>::FRAMES_HELD + 1);
            let Some(template) = generation.template else {
                continue;
            };
            held += vm::Template::<M, B>::FRAMES_HELD + 1;
            let ForkTemplate { frozen, checksum } = &**template;
            match frozen.space().checksum() {
                Ok(now) if now == *checksum => {}
                Ok(_) => self.wrong(Wrong::TemplateChanged),
                Err(reason) => self.wrong(Wrong::Unreadable(reason)),
            }
        }
        let spaces = alive.generations().flat_map(|generation| {
            let forks = generation.forks().map(|fork| fork.guest.space());
            let template = generation.template.into_iter();
            forks.chain(template.map(|template| template.frozen.space().as_space()))
        });
        match self.spaces.audit(spaces) {
            Ok(found) if found == held => {}
            Ok(found) => self.wrong(Wrong::Host(found, held)),
            Err(flaw) => self.wrong(Wrong::Flaw(flaw)),
        }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        now()
    }
}

impl<'f, 's, M: PhysMem, H: Host, B: Backend> GuestForks<'_, 'f, 's, M, H, B> {
    /// Has the template remember what its first fork wrote.
    fn remember(&self, template: &mut ForkTemplate<'s, M, B>, fork: &LivingFork<'f, 's, M, B>) {
        if self.prefetch && template.frozen.space().working_set() == 0 {
            // Without it later forks do as the first did.
            let _ = template.frozen.remember_working_set(&fork.guest);
        }
    }
}

fn cost<M: PhysMem, B: Backend>(guest: &Guest<'_, M, B>) -> Cost {
    let faults = guest.space().faults();
    Cost {
        exits: guest.stats.total(),
        pages: faults.filled + faults.copied + faults.taken_over,
    }
}

/// What a fork is told: its number and that of its run.
fn message(slot: ForkSlot) -> [u8; 16] {
    let mut message = [0; 16];
    let (fork, run) = message.split_at_mut(8);
    fork.copy_from_slice(&slot.fork.to_le_bytes());
    run.copy_from_slice(&slot.run.to_le_bytes());
    message
}
