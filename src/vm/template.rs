//! Templates: guests that were frozen, and the forks made of them.

mod error;

use core::sync::atomic::{AtomicU64, Ordering};

use offshoot_abi::MESSAGE_MAX;

use super::backend::{Backend, OnVmx, TablesOf};
use super::clock::now;
use super::devices::Devices;
use super::guest::{Guest, end_space};
use super::machine::{Machine, Tenant};
use super::name::ForkId;
use super::stats::RunStats;
use super::vcpu::{Vcpu, VcpuError};
use super::vcpu_state::{Difference, VcpuState};
use crate::addr::{AddrRange, Gpa};
use crate::counting::Counts;
use crate::ept::{self, AccessError, FrozenSpace, Reset, Restored, Space};
use crate::frames::{Frame, PhysMem};
use crate::virt::Gpr;

pub use error::{ForkError, FreezeError, PatchError, ResetError};

/// A frozen guest: its memory, its processor and its devices, which never change.
///
/// It ends by [`Template::end`]. Its forks may outlive it, but cannot be reset any more.
#[must_use = "a template that is dropped without `end` leaks its frames"]
pub struct Template<'s, M: PhysMem, B: Backend = OnVmx> {
    space: FrozenSpace<'s, M, TablesOf<B>>,
    state: VcpuState<B>,
    /// Holds the entry area that the state refers to.
    area: Frame,
    devices: Devices,
    budget: u64,
    /// Whose forks it has, unless each is somebody's own.
    tenant: Tenant,
    forks_are_tenants: bool,
    /// Where the guest has asked for a message.
    message: Option<AddrRange<Gpa>>,
    forks: AtomicU64,
}

impl<'s, M: PhysMem, B: Backend> Guest<'s, M, B> {
    /// Makes this guest a template. Nothing is copied. It must not run: after a turn that has not ended it.
    ///
    /// # Errors
    /// Why it cannot be, and the guest, which is as it was.
    #[allow(clippy::result_large_err)]
    pub fn freeze(
        mut self,
        machine: &mut Machine<'_, M, B>,
    ) -> Result<Template<'s, M, B>, (FreezeError, Self)> {
        let state = match self.frozen_state(machine) {
            Ok(state) => state,
            Err(error) => return Err((error, self)),
        };
        let mut space = match self.space.freeze() {
            Ok(space) => space,
            Err((error, space)) => {
                return Err((FreezeError::Space(error), Self { space, ..self }));
            }
        };
        // Nobody runs it again: frames that waited for that come back.
        space.settle(&mut machine.cpu);
        let message = self.asked.take();
        if message.is_some() {
            self.vcpu.area(machine.frames).regs.set(Gpr::Rax, 0);
        }
        Ok(Template {
            space,
            state,
            area: self.vcpu.into_area(machine),
            devices: self.devices,
            budget: self.budget,
            tenant: self.tenant,
            forks_are_tenants: self.forks_are_tenants,
            message,
            forks: AtomicU64::new(0),
        })
    }

    fn frozen_state(
        &mut self,
        machine: &mut Machine<'_, M, B>,
    ) -> Result<VcpuState<B>, FreezeError> {
        if self.ended.is_some() {
            return Err(FreezeError::Ended);
        }
        self.deliver_message(machine.frames)
            .map_err(FreezeError::Message)?;
        let state = self.vcpu.capture(machine).map_err(FreezeError::Vcpu)?;
        match B::has_event(&state.fields) {
            false => Ok(state),
            true => Err(FreezeError::EventPending),
        }
    }
}

impl<'s, M: PhysMem, B: Backend> Template<'s, M, B> {
    /// How many frames a template holds beside those of its space.
    pub const FRAMES_HELD: u64 = 1;

    /// A guest that goes on where this one was frozen, in the same time and with the same few frames however large it is.
    /// `message` is put where the guest has asked for one, as much of it as there is room for.
    ///
    /// # Errors
    /// No frame for it, or its message cannot be written. Nothing has changed.
    pub fn fork(
        &self,
        machine: &mut Machine<'_, M, B>,
        message: &[u8],
    ) -> Result<Guest<'s, M, B>, ForkError> {
        let space = self.space.fork().map_err(ForkError::Space)?;
        self.fork_in(space, machine, message)
    }

    /// As [`Template::fork`], with the pages of the working set as its own from the start. Returns how many it was given.
    ///
    /// # Errors
    /// As of [`Template::fork`].
    pub fn fork_prefetched(
        &self,
        machine: &mut Machine<'_, M, B>,
        message: &[u8],
    ) -> Result<(Guest<'s, M, B>, u64), ForkError> {
        let (space, pages) = self.space.fork_prefetched().map_err(ForkError::Space)?;
        Ok((self.fork_in(space, machine, message)?, pages))
    }

    #[inline]
    fn fork_in(
        &self,
        space: Space<'s, M, TablesOf<B>>,
        machine: &mut Machine<'_, M, B>,
        message: &[u8],
    ) -> Result<Guest<'s, M, B>, ForkError> {
        let (begin, counts) = (now(), Counts::now());
        let vcpu = match Vcpu::fork(machine, space.eptp(), &self.state) {
            Ok(vcpu) => vcpu,
            Err(error) => {
                end_space(space, machine);
                return Err(ForkError::Vcpu(error));
            }
        };
        let setup = (now().wrapping_sub(begin), counts.so_far());
        let number = self.forks.fetch_add(1, Ordering::Relaxed);
        let mut devices = self.devices.clone();
        let from = &mut devices.console.from;
        (from.generation, from.fork) = (space.generation(), number);
        let mut guest = Guest {
            space,
            vcpu,
            devices,
            budget: self.budget,
            used: 0,
            fork: ForkId { number },
            tenant: match self.forks_are_tenants {
                true => machine.new_tenant(),
                false => self.tenant,
            },
            forks_are_tenants: self.forks_are_tenants,
            ended: None,
            asked: None,
            message: None,
            setup,
            stats: RunStats::ZERO,
        };
        match self.give_message(&mut guest, machine, message) {
            Ok(()) => Ok(guest),
            Err(error) => {
                guest.end(machine);
                Err(ForkError::Message(error))
            }
        }
    }

    /// Brings a fork of this template back to what it was when it was made.
    ///
    /// # Errors
    /// A memory that is as it was, or a guest that has ended, by the error.
    pub fn reset(
        &self,
        guest: &mut Guest<'s, M, B>,
        machine: &mut Machine<'_, M, B>,
        how: Reset,
        message: &[u8],
    ) -> Result<Restored, ResetError> {
        let restored = guest
            .space
            .reset(&self.space, how)
            .map_err(ResetError::Space)?;
        if let Err(error) = guest.vcpu.restore(machine, &self.state) {
            guest.end_with(error);
            return Err(ResetError::Vcpu(error));
        }
        guest.devices.restore(&self.devices);
        (guest.used, guest.ended, guest.asked) = (0, None, None);
        match self.give_message(guest, machine, message) {
            Ok(()) => Ok(restored),
            Err(error) => {
                guest.ended = Some(super::Outcome::Access(error));
                Err(ResetError::Message(error))
            }
        }
    }

    /// Has the guest find the message when it runs.
    fn give_message(
        &self,
        guest: &mut Guest<'s, M, B>,
        machine: &Machine<'_, M, B>,
        message: &[u8],
    ) -> Result<(), AccessError> {
        let Some((buffer, message)) = self.part_told(message) else {
            return Ok(());
        };
        let area = guest.vcpu.area(machine.frames);
        area.regs.set(Gpr::Rax, message.len() as u64);
        guest.put_message(machine.frames, buffer, message)
    }

    /// Where a message goes, and as much of it as there is room for, if the guest has asked for one.
    fn part_told<'m>(&self, message: &'m [u8]) -> Option<(Gpa, &'m [u8])> {
        let buffer = self.message?;
        let room = buffer.len().min(MESSAGE_MAX as u64) as usize;
        Some((buffer.start(), message.get(..room).unwrap_or(message)))
    }

    /// Remembers which pages `fork` has made its own, for [`Template::fork_prefetched`]. Returns how many.
    ///
    /// # Errors
    /// The fork is none of this template, or there is no frame for the list.
    pub fn remember_working_set(&mut self, fork: &Guest<'s, M, B>) -> Result<u64, ept::ResetError> {
        self.space.remember_working_set(&fork.space)
    }

    /// Tells `each` of everything in which the processor of `fork`, which has got `message` and has not run since, differs from
    /// what it was when the guest was frozen: RAX holds the length of the message, if the guest has asked for one.
    ///
    /// # Errors
    /// The state of the processor cannot be read.
    pub fn differences(
        &self,
        fork: &Guest<'s, M, B>,
        machine: &mut Machine<'_, M, B>,
        message: &[u8],
        each: impl FnMut(Difference),
    ) -> Result<(), VcpuError> {
        let now = fork.vcpu.capture(machine)?;
        let rax = self.part_told(message).map(|(_, told)| told.len() as u64);
        self.state.differences(&now, machine.frames, rax, each);
        Ok(())
    }

    /// Replaces this template by one whose memory `change` has changed. Forks of the old one see nothing of it, and cannot be
    /// reset any more.
    ///
    /// # Errors
    /// Why it cannot be, and the template, which is as it was.
    #[allow(clippy::result_large_err)]
    pub fn patch(
        self,
        machine: &mut Machine<'_, M, B>,
        change: impl FnOnce(&mut Space<'s, M, TablesOf<B>>) -> Result<(), AccessError>,
    ) -> Result<Self, (PatchError, Self)> {
        match self.patched(machine, change) {
            Ok((space, area)) => {
                let next = Self {
                    space,
                    state: VcpuState {
                        area: area.address(),
                        ..self.state.clone()
                    },
                    area,
                    devices: self.devices.clone(),
                    budget: self.budget,
                    tenant: self.tenant,
                    forks_are_tenants: self.forks_are_tenants,
                    message: self.message,
                    forks: AtomicU64::new(self.forks()),
                };
                self.end(machine);
                Ok(next)
            }
            Err(error) => Err((error, self)),
        }
    }

    fn patched(
        &self,
        machine: &mut Machine<'_, M, B>,
        change: impl FnOnce(&mut Space<'s, M, TablesOf<B>>) -> Result<(), AccessError>,
    ) -> Result<(FrozenSpace<'s, M, TablesOf<B>>, Frame), PatchError> {
        let mut space = self.space.fork().map_err(PatchError::Space)?;
        if let Err(error) = change(&mut space) {
            end_space(space, machine);
            return Err(PatchError::Memory(error));
        }
        let area = match machine.frames.alloc_copy(&self.area) {
            Ok(area) => area,
            Err(error) => {
                end_space(space, machine);
                return Err(PatchError::Frames(error));
            }
        };
        match space.freeze() {
            Ok(mut space) => {
                space.settle(&mut machine.cpu);
                Ok((space.in_place_of(&self.space), area))
            }
            Err((error, space)) => {
                end_space(space, machine);
                machine.frames.release(area);
                Err(PatchError::Freeze(error))
            }
        }
    }

    /// Its memory.
    pub fn space(&self) -> &FrozenSpace<'s, M, TablesOf<B>> {
        &self.space
    }

    /// How many forks were made so far.
    pub fn forks(&self) -> u64 {
        self.forks.load(Ordering::Relaxed)
    }

    /// Gives back all that it alone holds.
    pub fn end(self, machine: &mut Machine<'_, M, B>) {
        machine.frames.release(self.area);
        let mut ending = self.space.end();
        while !ending.step(&mut machine.cpu, super::guest::END_STEP) {}
    }
}
