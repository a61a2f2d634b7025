//! The devices that guests are given: addresses of the machine at which the hypervisor has nothing.

use crate::boot::apic;
use crate::boot::info::BootInfo;
use crate::boot::layout;
use arrayvec::ArrayVec;
use offshoot::addr::{AddrRange, Hpa, PAGE_SIZE};
use offshoot::ept::DeviceRange;
use offshoot::host::cmdline::PassthroughDevices;
use offshoot::vm::passthrough::{Owner, PassThroughError, check};
use offshoot_abi::PASSTHROUGH_MAX;

/// Where the registers of the local APIC are, unless somebody moved them, and writes become interrupts.
const LOCAL_APIC: (Hpa, u64) = (Hpa::new(0xfee0_0000), 1 << 20);

/// The devices at these addresses, if they are such.
pub fn devices(
    boot: &BootInfo,
    asked: &PassthroughDevices,
) -> Result<ArrayVec<DeviceRange, PASSTHROUGH_MAX>, PassThroughError> {
    let device = |range: &AddrRange<Hpa>| {
        check(*range, owned(boot))?;
        // SAFETY: no memory and none of the hypervisor's own devices is there. What the device does with memory when it
        // is told to, the one vouches for who gave a guest the device.
        Ok(unsafe { DeviceRange::new(*range) })
    };
    asked.iter().map(device).collect()
}

/// What is no device for guests, the most telling first.
fn owned(boot: &BootInfo) -> impl Iterator<Item = (AddrRange<Hpa>, Owner)> {
    let image = layout::image_end() - layout::image_start();
    let image = AddrRange::new(Hpa::new(layout::image_start()), image);
    let moved = apic::page().map(|page| (page, PAGE_SIZE));
    let apic = [Some(LOCAL_APIC), moved].into_iter().flatten();
    let apic = apic.filter_map(|(start, len)| AddrRange::new(start, len));
    let modules = boot.modules().map(|module| module.range);
    let kept = boot.keep.iter().flatten().copied();
    let of = |owner| move |range| (range, owner);
    image
        .into_iter()
        .map(of(Owner::Hypervisor))
        .chain(modules.map(of(Owner::Module)))
        .chain(kept.map(of(Owner::BootLoader)))
        .chain(apic.map(of(Owner::LocalApic)))
        .chain(boot.ram.ranges().map(of(Owner::Memory)))
}
