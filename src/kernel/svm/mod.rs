//! `selftest=svm`: a small guest on AMD's SVM, which makes one exit of each kind, and VMCBs that VMRUN must refuse. The run ends
//! with it: guests that the boot loader brought are not run on SVM yet.

mod memory;
mod script;
mod timer;

use crate::boot::console::{Out, say};
use crate::boot::layout::DirectMap;
use crate::boot::power;
use core::fmt;
use memory::{GUEST_CR3, GUEST_STACK, GuestMemory, MemoryError, page, permission_maps};
use offshoot::addr::Hpa;
use offshoot::frames::{FrameAllocator, PhysMem};
use offshoot::svm::cpu::{HostFrames, StillOff, Svm};
use offshoot::svm::dump::report_refused_entry;
use offshoot::svm::loaded::Refused;
use offshoot::svm::start_state::{Addresses, write_controls, write_start};
use offshoot::svm::{
    Asid, Capabilities, Chosen, Exit, MsrMap, SvmUnavailable, UnmetFeatures, Vmcb, choose,
};
use offshoot::virt::cpu::{EntryArea, ThisCpu};
use offshoot::vmx::Start64;

/// What `selftest=` calls it.
pub const NAME: &str = "svm";

/// Why the test failed.
pub enum Failed {
    Unavailable(SvmUnavailable),
    Unmet(UnmetFeatures),
    StillOff(StillOff),
    Memory(MemoryError),
    /// VMRUN refused what it should take.
    Refused,
    /// VMRUN took what it should refuse.
    NotRefused(&'static str),
    /// Another exit than the one expected.
    Exit {
        expected: &'static str,
        exit: Exit,
    },
    /// The guest or the host found something else than expected.
    Wrong(&'static str),
}

impl From<MemoryError> for Failed {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}
impl From<Refused> for Failed {
    fn from(Refused: Refused) -> Self {
        Self::Refused
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(error) => error.fmt(f),
            Self::Unmet(error) => error.fmt(f),
            Self::StillOff(error) => error.fmt(f),
            Self::Memory(error) => error.fmt(f),
            Self::Refused => f.write_str("VMRUN refused the guest of the self-test"),
            Self::NotRefused(what) => write!(f, "VMRUN took a VMCB with {what}"),
            Self::Exit { expected, exit } => write!(f, "instead of {expected}: {exit}"),
            Self::Wrong(what) => f.write_str(what),
        }
    }
}

/// Runs the test and ends the run.
pub fn run(frames: &'static FrameAllocator<DirectMap>) -> ! {
    match test(frames) {
        Ok(()) => power::end(Ok(())),
        Err(error) => power::end(Err(format_args!("selftest={NAME}: {error}"))),
    }
}

fn test(frames: &'static FrameAllocator<DirectMap>) -> Result<(), Failed> {
    let capabilities = Capabilities::discover(&ThisCpu).map_err(Failed::Unavailable)?;
    say!(
        "svm: revision {}, {} ASIDs",
        capabilities.revision,
        capabilities.asids
    );
    for feature in capabilities.features.iter() {
        say!("svm: offers {feature}");
    }
    let chosen = choose(&capabilities).map_err(Failed::Unmet)?;
    let host = HostFrames {
        save_area: page(frames)?,
        vmcb: page(frames)?,
    };
    let copy = vmcb(page(frames)?);
    // SAFETY: in the kernel, which sets its segments once; the frames are fresh.
    let svm = unsafe { Svm::on(&capabilities, chosen.features, host, copy) };
    let mut svm = svm.map_err(Failed::StillOff)?;
    let guest = |rip| Guest::new(frames, &chosen, rip);
    script::every_exit(&mut svm, guest(memory::first_instruction())?)?;
    script::count(&mut svm, guest(memory::counting_instruction())?)?;
    timer::stop_a_guest(&mut svm, guest(memory::spinning_instruction())?)?;
    refusals(&mut svm, &capabilities, guest(memory::first_instruction())?)
}

/// The VMCB in a frame of its own.
fn vmcb(frame: Hpa) -> &'static mut Vmcb {
    // SAFETY: the frame is fresh and stays for ever; nobody else refers to it.
    unsafe { &mut *DirectMap.ptr(frame).cast() }
}

/// A guest with all that it runs on.
struct Guest {
    memory: GuestMemory,
    vmcb: &'static mut Vmcb,
    at: Hpa,
    asid: Asid,
    area: EntryArea,
    chosen: Chosen,
}

impl Guest {
    fn new(
        frames: &'static FrameAllocator<DirectMap>,
        chosen: &Chosen,
        rip: u64,
    ) -> Result<Self, MemoryError> {
        let at = page(frames)?;
        let (msr_map, io_map) = permission_maps(MsrMap::ALL);
        let memory = GuestMemory::new(frames)?;
        let addresses = Addresses {
            nested_cr3: memory.root(),
            msr_map,
            io_map,
        };
        let vmcb = vmcb(at);
        write_controls(vmcb, chosen, &addresses);
        write_start(
            vmcb,
            &Start64 {
                rip,
                rsp: GUEST_STACK,
                cr3: GUEST_CR3,
            },
        );
        Ok(Self {
            memory,
            vmcb,
            at,
            asid: Asid::new(),
            area: EntryArea::new(),
            chosen: *chosen,
        })
    }

    /// Runs it to its next exit.
    fn enter(&mut self, svm: &mut Svm<'_>) -> Result<Exit, Refused> {
        // SAFETY: the VMCB is the guest's, complete, and in that frame; its nested tables lead to its memory alone, and all else
        // exits. The guest uses nothing beyond SSE.
        unsafe { svm.enter(self.vmcb, self.at, &mut self.asid, &mut self.area)? };
        Ok(Exit::read(self.vmcb, self.chosen.features))
    }
}

/// VMCBs that must be refused, each with one thing that is wrong.
fn refusals(
    svm: &mut Svm<'_>,
    capabilities: &Capabilities,
    mut guest: Guest,
) -> Result<(), Failed> {
    use offshoot::svm::fields::{CR0, CR4, DR7, EFER, INTERCEPT_4, MSR_MAP};
    let right = guest.vmcb.clone();
    type Change = fn(&mut Vmcb);
    let wrong: [(&str, Change); 6] = [
        ("no intercept of VMRUN", |vmcb| vmcb.set(INTERCEPT_4, 0)),
        ("CR0.NW without CD", |vmcb| {
            let cr0 = vmcb.get(CR0);
            vmcb.set(CR0, cr0 | 1 << 29);
        }),
        ("reserved bits of CR4", |vmcb| {
            let cr4 = vmcb.get(CR4);
            vmcb.set(CR4, cr4 | 1 << 15);
        }),
        ("EFER.SVME 0", |vmcb| {
            let efer = vmcb.get(EFER);
            vmcb.set(EFER, efer & !(1 << 12));
        }),
        ("the upper half of DR7", |vmcb| vmcb.set(DR7, 1 << 40)),
        ("an MSR map beyond memory", |vmcb| {
            vmcb.set(MSR_MAP, 0x000f_ffff_ffff_f000);
        }),
    ];
    for (what, change) in wrong {
        guest.vmcb.clone_from(&right);
        change(guest.vmcb);
        guest.vmcb.is_new_to_the_cpu();
        if guest.enter(svm).is_ok() {
            return Err(Failed::NotRefused(what));
        }
        say!("svm: refused with {what}:");
        // The console takes everything.
        let _ = report_refused_entry(svm.refused(), capabilities, &mut Out);
    }
    // The same VMCB, with nothing wrong, is taken.
    guest.vmcb.clone_from(&right);
    guest.vmcb.is_new_to_the_cpu();
    let exit = guest.enter(svm)?;
    say!("svm: taken again: {exit}");
    Ok(())
}
