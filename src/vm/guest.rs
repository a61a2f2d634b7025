//! A guest, from turn to turn until its end.

use super::backend::{Backend, OnVmx, TablesOf};
use super::clock::now;
use super::console::Printer;
use super::devices::Devices;
use super::exits::ZEROED_GOAL;
use super::host::{Host, HostConsole, Words};
use super::machine::{Machine, Tenant};
use super::name::ForkId;
use super::outcome::{Outcome, Turn};
use super::post_mortem::{explain, tell_fork};
use super::run::Running;
use super::stats::RunStats;
use super::vcpu::{Vcpu, VcpuError};
use crate::addr::{AddrRange, Gpa, Gva};
use crate::counting::Counts;
use crate::ept::{AccessError, Space};
use crate::frames::{FrameAllocator, PhysMem};
use crate::virt::cpu::{EntryArea, Resident, restore_vector, save_vector};

/// Entries of a guest's tables that one step of its end looks at.
pub(super) const END_STEP: u64 = 4096;

/// The longest message that waits in the frame of the entry area until the guest runs; longer ones are written at once.
const WAITING_MAX: usize = 1024;

/// A guest. It ends by [`Guest::end`].
#[must_use = "a guest that is dropped without `end` leaks its frames"]
pub struct Guest<'s, M: PhysMem, B: Backend = OnVmx> {
    pub(super) space: Space<'s, M, TablesOf<B>>,
    pub(super) vcpu: Vcpu<B>,
    pub(super) devices: Devices,
    pub(super) budget: u64,
    /// How much of the budget is used up.
    pub(super) used: u64,
    pub(super) fork: ForkId,
    /// Whose it is.
    pub(super) tenant: Tenant,
    /// Whether each of its forks is somebody else's.
    pub(super) forks_are_tenants: bool,
    /// How it has ended, once it has.
    pub(super) ended: Option<Outcome>,
    /// Where it wants a message, once it has asked to be frozen.
    pub(super) asked: Option<AddrRange<Gpa>>,
    /// Where a message goes before it runs, and how long it is. It waits behind the entry area.
    pub(super) message: Option<(Gpa, usize)>,
    pub(super) setup: (u64, Counts),
    /// What its run has cost so far.
    pub stats: RunStats,
}

impl<'s, M: PhysMem, B: Backend> Guest<'s, M, B> {
    /// How many frames a guest holds beside those of its space: its VMCS and what goes with that.
    pub const FRAMES_HELD: u64 = 2;

    /// Runs the guest until it ends, asks to be frozen, or has had its time slice, which is in ticks of the TSC. With a
    /// slice it gives the CPU away where it halts; without one that is over at once.
    pub fn run(
        &mut self,
        machine: &mut Machine<'_, M, B>,
        host: &mut impl Host,
        slice: Option<u64>,
    ) -> Turn {
        if let Some(outcome) = self.ended {
            return Turn::Ended(outcome);
        }
        let (begin, before) = (now(), self.stats.ticks());
        let turn = match self.deliver_message(machine.frames) {
            Ok(()) => self.run_on(machine, host, slice),
            Err(error) => Turn::Ended(Outcome::Access(error)),
        };
        // What came before the first entry and after the last exit, as frames that were zeroed and what was said of its
        // end, is its own doing, too.
        let counted = self.stats.ticks() - before;
        let owed = self.devices.console.pay();
        let all = now().wrapping_sub(begin).max(counted).saturating_add(owed);
        self.stats.host_ticks += all - counted;
        self.used += all;
        if let Turn::Ended(outcome) = turn {
            self.ended = Some(outcome);
        }
        turn
    }

    /// Has the guest find a message in its memory when it runs next.
    pub(super) fn put_message(
        &mut self,
        frames: &FrameAllocator<M>,
        at: Gpa,
        message: &[u8],
    ) -> Result<(), AccessError> {
        self.message = None;
        match self.waiting(frames, message.len()) {
            _ if message.is_empty() => Ok(()),
            // Writing it now would give an idle fork a page of its own, and tables.
            Some(waiting) => {
                waiting.copy_from_slice(message);
                self.message = Some((at, message.len()));
                Ok(())
            }
            None => self.space.write(at, message),
        }
    }

    /// Writes the message that waits into the guest's memory.
    pub(super) fn deliver_message(
        &mut self,
        frames: &FrameAllocator<M>,
    ) -> Result<(), AccessError> {
        let Some((at, len)) = self.message else {
            return Ok(());
        };
        let mut bytes = [0; WAITING_MAX];
        let bytes = bytes.get_mut(..len).unwrap_or_default();
        if let Some(waiting) = self.waiting(frames, len) {
            bytes.copy_from_slice(waiting);
        }
        self.space.write(at, bytes)?;
        self.message = None;
        Ok(())
    }

    /// The place for a message of `len` bytes behind the entry area, if that is long enough.
    fn waiting(&mut self, frames: &FrameAllocator<M>, len: usize) -> Option<&mut [u8]> {
        const { assert!(size_of::<EntryArea>() + WAITING_MAX <= 4096) };
        if len > WAITING_MAX {
            return None;
        }
        let area = self.vcpu.area_ptr(frames);
        // SAFETY: the rest of the frame behind the area is this guest's own too, and long enough; every byte of memory is
        // one value or another.
        Some(unsafe { core::slice::from_raw_parts_mut(area.add(1).cast::<u8>(), len) })
    }

    /// The host takes the guest for ended.
    pub(super) fn end_with(&mut self, error: VcpuError) {
        self.ended = Some(error.into());
    }

    /// How many more ticks it may run.
    pub fn budget_left(&self) -> u64 {
        self.budget.saturating_sub(self.used)
    }

    /// Which fork of its template it is.
    pub fn fork_id(&self) -> ForkId {
        self.fork
    }

    /// How many templates are above it: 0 where it is no fork.
    pub fn generation(&self) -> u32 {
        self.space.generation()
    }

    /// What setting up its processor took, if it is a fork: ticks of the TSC, and what is counted.
    pub fn setup(&self) -> (u64, Counts) {
        self.setup
    }

    /// Where it wants a message, if it has asked to be frozen.
    pub const fn message_buffer(&self) -> Option<AddrRange<Gpa>> {
        self.asked
    }

    /// How long it may run in all, in ticks of the TSC.
    pub const fn set_budget(&mut self, ticks: u64) {
        self.budget = ticks;
    }

    /// Has it be number `number` of its template's forks, for all that it prints and is told.
    pub const fn set_fork(&mut self, number: u64) {
        self.fork = ForkId { number };
        self.devices.console.from.fork = number;
    }

    fn run_on(
        &mut self,
        machine: &mut Machine<'_, M, B>,
        host: &mut impl Host,
        slice: Option<u64>,
    ) -> Turn {
        match self.loaded(machine, host, slice) {
            Ok(turn) => turn,
            Err(error) => Turn::Ended(error.into()),
        }
    }

    fn loaded(
        &mut self,
        machine: &mut Machine<'_, M, B>,
        host: &mut impl Host,
        slice: Option<u64>,
    ) -> Result<Turn, VcpuError> {
        self.asked = None;
        machine.let_in(self.tenant);
        let features = machine.resident;
        let host_resident = machine.host_resident;
        // SAFETY: the frame is this processor's own and was filled when it was made; nobody else looks at it as long as
        // the reference lives.
        let area = unsafe { &mut *self.vcpu.area_ptr(machine.frames) };
        let processor = B::load(&mut self.vcpu.control, &mut machine.cpu)?;
        area.guard(&machine.guard);
        // SAFETY: the machine found the features on this CPU and switched XSAVE on. The state is a guest's as it was
        // read, or as after reset.
        unsafe {
            restore_vector(features, &area.extended);
            self.vcpu.resident.write(features);
        }
        let mut running = Running {
            frames: machine.frames,
            cpuid: &machine.cpuid,
            limits: &machine.limits,
            decoded: &mut machine.decoded,
            host,
            space: &mut self.space,
            processor,
            xcr0: &mut self.vcpu.resident.xcr0,
            cr8: &mut self.vcpu.cr8,
            area,
            devices: &mut self.devices,
            stats: &mut self.stats,
            fork: self.fork,
            budget: self.budget.saturating_sub(self.used),
            slice,
            deadline: 0,
            charged: 0,
            turn: Turn::SliceOver,
            message: None,
            x87_selectors: features.x87_selectors,
        };
        let turn = running.run();
        // Whoever has used frames that were zeroed ahead pays for the next ones.
        machine.frames.refill_to(ZEROED_GOAL, ZEROED_GOAL);
        self.asked = running.message;
        let processor = running.processor;
        // SAFETY: as above; the host's own state was read before the first guest ran.
        unsafe {
            self.vcpu.resident = Resident::read(features);
            save_vector(features, &mut area.extended);
            host_resident.write(features);
        }
        let print = &mut |from: &Printer, line: &[u8]| host.print(from, line);
        let outcome = match turn {
            Turn::Halts | Turn::SliceOver => return Ok(turn),
            Turn::AsksFreeze => {
                self.devices.console.flush(print);
                return Ok(turn);
            }
            Turn::Ended(outcome) => outcome,
        };
        self.devices.console.flush(print);
        if matches!(outcome, Outcome::Exited(_)) {
            return Ok(turn);
        }
        let words = host.explains();
        if words == Words::None {
            return Ok(turn);
        }
        // The host's console takes everything.
        let out = &mut HostConsole(host);
        let name = self.devices.console.from.name;
        let _ = tell_fork(&outcome, name, self.space.generation(), self.fork, out);
        let regs = (&area.regs, self.vcpu.resident.cr2);
        let _ = explain(&outcome, words, &self.space, regs, &processor, out);
        Ok(turn)
    }

    /// Has INT3 exit to [`Host::breakpoint`], for as long as the guest lives; and where it has no interrupt-descriptor
    /// table now, has it end at its first exception.
    ///
    /// # Errors
    /// The guest's VMCS cannot be loaded or written.
    pub fn exit_on_breakpoints(
        &mut self,
        machine: &mut Machine<'_, M, B>,
    ) -> Result<(), VcpuError> {
        let control = &mut self.vcpu.control;
        Ok(B::exit_on_breakpoints(control, &mut machine.cpu)?)
    }

    /// Where it is.
    ///
    /// # Errors
    /// The guest's VMCS cannot be loaded or read.
    pub fn rip(&mut self, machine: &mut Machine<'_, M, B>) -> Result<Gva, VcpuError> {
        self.vcpu.rip(machine)
    }

    /// Its memory for a harvest of dirty pages, and where that is counted.
    pub(super) fn dirty_parts(&mut self) -> (&mut Space<'s, M, TablesOf<B>>, &mut RunStats) {
        (&mut self.space, &mut self.stats)
    }

    /// Has frames that it gave up come back at once, which else wait until it runs again.
    pub fn settle(&mut self, machine: &mut Machine<'_, M, B>) {
        self.space.settle(&mut machine.cpu);
    }

    /// Its memory.
    pub fn space(&self) -> &Space<'s, M, TablesOf<B>> {
        &self.space
    }

    /// Its memory, to be changed.
    pub const fn space_mut(&mut self) -> &mut Space<'s, M, TablesOf<B>> {
        &mut self.space
    }

    /// Gives back all that it holds.
    pub fn end(self, machine: &mut Machine<'_, M, B>) {
        self.vcpu.end(machine);
        end_space(self.space, machine);
    }
}

pub(super) fn end_space<M: PhysMem, B: Backend>(
    space: Space<'_, M, TablesOf<B>>,
    machine: &mut Machine<'_, M, B>,
) {
    let mut ending = space.end();
    while !ending.step(&mut machine.cpu, END_STEP) {}
}
