//! `selftest=svm`: a small guest on AMD's SVM, which makes one exit of each kind, and VMCBs that VMRUN must refuse. The run ends
//! with it. And what the guests that the boot loader brought need of the kernel there.

mod failed;
mod guest;
mod memory;
mod script;
mod timer;

use crate::boot::console::{Out, say};
use crate::boot::layout::DirectMap;
use crate::boot::power;
use failed::Failed;
use guest::{Guest, vmcb};
use memory::page;
use offshoot::frames::FrameAllocator;
use offshoot::svm::cpu::{HostFrames, Svm};
use offshoot::svm::dump::report_refused_entry;
use offshoot::svm::{Capabilities, Vmcb, choose};
use offshoot::virt::cpu::ThisCpu;

/// What guests on SVM need of the kernel.
pub static PLATFORM: timer::Kernel = timer::Kernel;

/// What `selftest=` calls it.
pub const NAME: &str = "svm";

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
