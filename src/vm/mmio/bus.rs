//! What an emulated instruction reaches: through the guest's page tables, memory or devices. An access may cross into
//! another page, and into something else.

use arrayvec::ArrayVec;

use super::super::loader::GuestMemory;
use super::super::virtual_memory::{GuestVirtual, Privilege, Translation, Use, VirtualFault};
use super::devices::MmioDevices;
use super::{Bus, MmioDevice, Width};
use crate::addr::{Address, Gpa, Gva, PAGE_SIZE};
use crate::virt::BreakpointHits;
use crate::virt::Breakpoints;
use crate::virt::{Segment, SegmentRegister};

/// Who answers at a guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Memory.
    Memory,
    /// A device.
    Device {
        /// The tag of its region.
        tag: u32,
        /// Bytes from the start of the region.
        offset: u64,
    },
}

/// Guest memory that knows what is not memory.
pub trait Places: GuestMemory {
    /// Who answers to a read or write at `gpa`, as the guest may make it.
    ///
    /// # Errors
    /// The guest may not access it, or the host has no frame for it.
    fn place(&self, gpa: Gpa, write: bool) -> Result<Place, Self::Error>;
}

/// A translation that the CPU itself made for the access, which may be older than what the guest's tables say now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated {
    /// The linear address.
    pub gva: Gva,
    /// Where it led.
    pub gpa: Gpa,
    /// It was to be written.
    pub write: bool,
    /// The device there, by the tag of its region, if all accesses to the page are its to answer; and how far from
    /// the start of the region it is.
    pub device: Option<(u32, u64)>,
}

/// What is done with an address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Intent {
    /// It is read.
    Read,
    /// It is written.
    Write,
    /// Nothing yet: could it be written?
    AskWrite,
}

/// Why an access failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusFault<E, S> {
    /// The guest's tables or its memory.
    Virtual(VirtualFault<E>),
    /// A segment register could not be read.
    Segment(S),
    /// No device has the region.
    NoDevice(Gpa),
    /// It is not aligned, and the guest wants to be told: #AC is due.
    Alignment,
}

/// Whoever answers at a guest's ports.
pub trait PortAccess {
    /// IN: a value of `width`.
    fn input(&mut self, port: u16, width: Width) -> u64;
    /// OUT of the low bits of `value`.
    fn output(&mut self, port: u16, width: Width, value: u64);
}

/// The bus of one exit.
pub struct GuestBus<'b, M: GuestMemory, S, P> {
    /// Guest memory.
    pub memory: &'b mut M,
    /// The devices.
    pub devices: &'b mut MmioDevices,
    /// The segment registers.
    pub segments: S,
    /// The ports.
    pub ports: P,
    /// How the guest translates addresses.
    pub translation: &'b Translation,
    /// As whom it accesses memory.
    pub privilege: Privilege,
    /// What the CPU has translated, if it came so far.
    pub translated: Option<&'b Translated>,
    /// Accesses have to be aligned.
    pub aligned: bool,
    /// The breakpoints of the guest, if any is enabled.
    pub breakpoints: Option<&'b Breakpoints>,
    /// Those that were met.
    pub met: BreakpointHits,
    /// The bits of a linear address: [`CodeMode::linear_mask`](super::CodeMode::linear_mask).
    pub linear_mask: u64,
}

/// The part of an access that lies in one page, or in two of one device.
#[derive(Clone, Copy)]
struct Piece {
    gpa: Gpa,
    len: u64,
    place: Place,
}

type Pieces = ArrayVec<Piece, 2>;

impl<M: Places, S, P, E> GuestBus<'_, M, S, P>
where
    S: FnMut(SegmentRegister) -> Result<Segment, E>,
{
    /// Where an access is in the device that the CPU has reported, if it stays in that page.
    #[inline(always)]
    fn in_reported(&self, at: Gva, width: Width, write: bool) -> Option<(u32, u64, Gpa)> {
        let (tag, offset) = self.translated?.device?;
        let stays = at.page_offset() + width.bytes() <= PAGE_SIZE;
        let gpa = self.translated_to(at, write)?;
        // Regions are made of pages.
        stays.then(|| (tag, offset & !(PAGE_SIZE - 1) | at.page_offset(), gpa))
    }

    /// Where the CPU has found the byte at `at`, if it is in the page that it has translated for such an access.
    #[inline(always)]
    fn translated_to(&self, at: Gva, write: bool) -> Option<Gpa> {
        let &Translated {
            gva,
            gpa,
            write: to_write,
            ..
        } = self.translated?;
        let hit = at.align_down(PAGE_SIZE) == gva.align_down(PAGE_SIZE) && (to_write || !write);
        hit.then(|| Gpa::new(gpa.align_down(PAGE_SIZE).as_u64() + at.page_offset()))
    }

    /// Marks in the guest's tables that the page at `at` is written, which the CPU has translated to the one at `gpa`.
    #[inline(always)]
    fn mark_written(&mut self, at: Gva, gpa: Gpa) -> Result<(), BusFault<M::Error, E>> {
        GuestVirtual::new(self.memory, self.translation, self.privilege)
            .mark_written(at, gpa)
            .map_err(BusFault::Virtual)
    }

    fn translate(&mut self, at: Gva, intent: Intent) -> Result<Gpa, BusFault<M::Error, E>> {
        if let Some(gpa) = self.translated_to(at, intent != Intent::Read) {
            if intent == Intent::Write {
                self.mark_written(at, gpa)?;
            }
            return Ok(gpa);
        }
        let mut memory = GuestVirtual::new(self.memory, self.translation, self.privilege);
        match intent {
            Intent::Read => memory.translate(at, false),
            Intent::Write => memory.translate(at, true),
            Intent::AskWrite => memory.look_up(at, Use::Write).map(|walked| walked.gpa),
        }
        .map_err(BusFault::Virtual)
    }

    /// What an access that its pages allow still needs: a page fault comes first (SDM "Priority Among Concurrent Events",
    /// table 7-2).
    #[inline(always)]
    fn check_alignment(&self, at: Gva, width: Width) -> Result<(), BusFault<M::Error, E>> {
        if self.aligned && at.as_u64() & (width.bytes() - 1) != 0 {
            return Err(BusFault::Alignment);
        }
        Ok(())
    }

    /// Compares an access that was made with the guest's breakpoints.
    #[inline(always)]
    fn compare(&mut self, at: Gva, width: Width, write: bool) {
        if self.breakpoints.is_some() {
            self.compare_data(at, width, write);
        }
    }

    #[cold]
    #[inline(never)]
    fn compare_data(&mut self, at: Gva, width: Width, write: bool) {
        if let Some(breakpoints) = self.breakpoints {
            self.met |= breakpoints.on_data(at, width.bytes(), write, self.linear_mask);
        }
    }

    /// In 64-bit code, whether every byte has an address (SDM "Canonical Addressing", vol. 1, 3.3.7.1): what is not canonical
    /// faults before any table is looked at.
    fn check_canonical(&self, at: Gva, width: Width) -> Result<(), BusFault<M::Error, E>> {
        /// 4-level paging, and no guest is offered more.
        const BITS: u32 = 48;
        let canonical = |address: u64| {
            let unused = 64 - BITS;
            (address << unused) as i64 >> unused == address as i64
        };
        let last = at.as_u64().wrapping_add(width.bytes() - 1);
        if self.linear_mask != u64::MAX || canonical(at.as_u64()) && canonical(last) {
            return Ok(());
        }
        Err(BusFault::Virtual(VirtualFault::NonCanonical(at)))
    }

    /// The pieces of an access, all of which can be accessed.
    fn pieces(
        &mut self,
        at: Gva,
        width: Width,
        intent: Intent,
    ) -> Result<Pieces, BusFault<M::Error, E>> {
        self.check_canonical(at, width)?;
        let in_page = width.bytes().min(PAGE_SIZE - at.page_offset());
        let rest = width.bytes() - in_page;
        let unaligned = self.check_alignment(at, width);
        if (rest != 0 || unaligned.is_err()) && intent == Intent::Write {
            // No page counts as written unless all can be.
            self.pieces(at, width, Intent::AskWrite)?;
        }
        let first = self.piece(at, in_page, intent)?;
        let mut pieces = Pieces::new();
        if rest == 0 {
            unaligned?;
            pieces.push(first);
            return Ok(pieces);
        }
        let next = Gva::new(at.as_u64().wrapping_add(in_page) & self.linear_mask);
        let second = self.piece(next, rest, intent)?;
        unaligned?;
        match (first.place, second.place) {
            (
                Place::Device { tag, offset },
                Place::Device {
                    tag: other,
                    offset: next,
                },
            ) if tag == other && offset.checked_add(in_page) == Some(next) => {
                let len = width.bytes();
                pieces.push(Piece { len, ..first });
            }
            _ => pieces.extend([first, second]),
        }
        Ok(pieces)
    }

    fn piece(&mut self, at: Gva, len: u64, intent: Intent) -> Result<Piece, BusFault<M::Error, E>> {
        let gpa = self.translate(at, intent)?;
        let place = self
            .memory
            .place(gpa, intent != Intent::Read)
            .map_err(|error| memory_fault(gpa, error))?;
        if let Place::Device { tag, .. } = place
            && self.devices.get(tag).is_none()
        {
            return Err(BusFault::NoDevice(gpa));
        }
        Ok(Piece { gpa, len, place })
    }

    /// The device behind a region, and where in it an offset of the region is.
    #[inline(always)]
    fn device(
        &mut self,
        tag: u32,
        offset: u64,
        gpa: Gpa,
    ) -> Result<(&mut dyn MmioDevice, u64), BusFault<M::Error, E>> {
        match self.devices.get(tag) {
            Some((device, base)) => Ok((device, base.wrapping_add(offset))),
            None => Err(BusFault::NoDevice(gpa)),
        }
    }

    fn read_piece(&mut self, piece: Piece) -> Result<u64, BusFault<M::Error, E>> {
        let Piece { gpa, len, place } = piece;
        let mut bytes = [0; 8];
        match place {
            Place::Memory => {
                let into = bytes.get_mut(..len as usize).unwrap_or_default();
                let read = self.memory.read(gpa, into);
                read.map_err(|error| memory_fault(gpa, error))?;
                Ok(u64::from_le_bytes(bytes))
            }
            Place::Device { tag, offset } => {
                let (device, offset) = self.device(tag, offset, gpa)?;
                let parts = parts(len).map(|(at, width)| {
                    let value = device.read(offset.wrapping_add(at), width);
                    (value & width.mask()) << (8 * at)
                });
                Ok(parts.fold(0, |all, part| all | part))
            }
        }
    }

    #[inline(never)]
    fn read_anywhere(&mut self, at: Gva, width: Width) -> Result<u64, BusFault<M::Error, E>> {
        let mut value = 0;
        let mut shift = 0;
        for piece in self.pieces(at, width, Intent::Read)? {
            value |= self.read_piece(piece)? << shift;
            shift += 8 * piece.len;
        }
        Ok(value)
    }

    #[inline(never)]
    fn write_anywhere(
        &mut self,
        at: Gva,
        width: Width,
        value: u64,
    ) -> Result<(), BusFault<M::Error, E>> {
        let pieces = self.pieces(at, width, Intent::Write)?;
        // Memory first: it can still fail, for want of a frame, and then no device has seen anything.
        for devices in [false, true] {
            let mut shift = 0;
            for &piece in &pieces {
                if matches!(piece.place, Place::Device { .. }) == devices {
                    self.write_piece(piece, value >> shift)?;
                }
                shift += 8 * piece.len;
            }
        }
        Ok(())
    }

    fn write_piece(&mut self, piece: Piece, value: u64) -> Result<(), BusFault<M::Error, E>> {
        let Piece { gpa, len, place } = piece;
        match place {
            Place::Memory => {
                let bytes = value.to_le_bytes();
                let from = bytes.get(..len as usize).unwrap_or_default();
                let written = self.memory.write(gpa, from);
                written.map_err(|error| memory_fault(gpa, error))
            }
            Place::Device { tag, offset } => {
                let (device, offset) = self.device(tag, offset, gpa)?;
                for (at, width) in parts(len) {
                    let part = value >> (8 * at) & width.mask();
                    device.write(offset.wrapping_add(at), width, part);
                }
                Ok(())
            }
        }
    }
}

/// The accesses that make up one of `len` bytes: where each begins and how wide it is.
fn parts(len: u64) -> impl Iterator<Item = (u64, Width)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let left = len - done;
        let width = Width::at_most(left);
        let part = (done, width);
        done += width.bytes().min(left);
        (left != 0).then_some(part)
    })
}

fn memory_fault<E, S>(address: Gpa, error: E) -> BusFault<E, S> {
    BusFault::Virtual(VirtualFault::memory(address, error))
}

impl<M, S, P, E> Bus for GuestBus<'_, M, S, P>
where
    M: Places,
    P: PortAccess,
    S: FnMut(SegmentRegister) -> Result<Segment, E>,
{
    type Fault = BusFault<M::Error, E>;

    fn segment(&mut self, register: SegmentRegister) -> Result<Segment, Self::Fault> {
        (self.segments)(register).map_err(BusFault::Segment)
    }

    #[inline(always)]
    fn read(&mut self, at: Gva, width: Width) -> Result<u64, Self::Fault> {
        let value = match self.in_reported(at, width, false) {
            None => self.read_anywhere(at, width)?,
            Some((tag, offset, gpa)) => {
                self.check_alignment(at, width)?;
                let (device, offset) = self.device(tag, offset, gpa)?;
                device.read(offset, width) & width.mask()
            }
        };
        self.compare(at, width, false);
        Ok(value)
    }

    #[inline(always)]
    fn write(&mut self, at: Gva, width: Width, value: u64) -> Result<(), Self::Fault> {
        match self.in_reported(at, width, true) {
            None => self.write_anywhere(at, width, value)?,
            Some((tag, offset, gpa)) => {
                self.check_alignment(at, width)?;
                self.device(tag, offset, gpa)?;
                self.mark_written(at, gpa)?;
                let (device, offset) = self.device(tag, offset, gpa)?;
                device.write(offset, width, value & width.mask());
            }
        }
        self.compare(at, width, true);
        Ok(())
    }

    #[cold]
    fn may_read(&mut self, at: Gva, width: Width) -> Result<(), Self::Fault> {
        self.pieces(at, width, Intent::Read).map(drop)
    }

    fn may_write(&mut self, at: Gva, width: Width) -> Result<(), Self::Fault> {
        match self.in_reported(at, width, true) {
            Some((tag, offset, gpa)) => {
                self.check_alignment(at, width)?;
                self.device(tag, offset, gpa).map(drop)
            }
            None => self.pieces(at, width, Intent::AskWrite).map(drop),
        }
    }

    fn input(&mut self, port: u16, width: Width) -> u64 {
        let value = self.ports.input(port, width);
        if let Some(breakpoints) = self.breakpoints {
            self.met |= breakpoints.on_port(port, width.bytes());
        }
        value
    }

    fn output(&mut self, port: u16, width: Width, value: u64) {
        self.ports.output(port, width, value);
        if let Some(breakpoints) = self.breakpoints {
            self.met |= breakpoints.on_port(port, width.bytes());
        }
    }

    fn has_met_breakpoint(&self) -> bool {
        self.met.any()
    }
}
