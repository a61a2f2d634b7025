//! Device memory: every instruction that the hypervisor carries out for a guest does to the test device what the
//! processor does to memory. Each is run twice, once on memory and once on the device; registers, flags and bytes must
//! come out equal. Wants the option `testdev`.
#![no_std]
#![no_main]

mod alone;
mod device;
mod forms;
mod strings;

use offshoot_guest::{StartInfo, println, trap};
use offshoot_guests::check::Checks;
use offshoot_guests::space;

offshoot_guest::entry!(main);

fn main(info: &StartInfo) -> u64 {
    if info.test_device == 0 {
        println!("there is no test device: give the option testdev");
        return 2;
    }
    trap::install();
    space::enter(info);
    let device = device::Device::new(info);
    let mut checks = Checks::default();
    alone::check(&mut checks, info, &device);
    println!("the device's own account: {} wrong", checks.failed());
    forms::check(&mut checks, info, &device);
    println!("instructions: {} wrong", checks.failed());
    strings::check(&mut checks, info, &device);
    println!("strings: {} wrong", checks.failed());
    checks.finish()
}
