//! Shows the devices of the machine that it was given, and works with those that it knows: the high-precision event timer
//! and the I/O APIC.
#![no_std]
#![no_main]

use core::ptr::{read_volatile, write_volatile};
use offshoot_guest::abi::Device;
use offshoot_guest::{StartInfo, call, println, trap};
use offshoot_guests::check::Checks;
use offshoot_guests::space;

offshoot_guest::entry!(main);

/// Where every PC has them.
const IO_APIC: u64 = 0xfec0_0000;
const HPET: u64 = 0xfed0_0000;

/// Registers of the timer: whether it counts, in bit 0, and its count.
const CONFIGURATION: u64 = 0x10;
const COUNT: u64 = 0xf0;
/// Registers of the I/O APIC: the number of the one that is at hand, and that one.
const SELECT: u64 = 0;
const WINDOW: u64 = 0x10;
const VERSION: u32 = 1;

struct Registers(u64);

impl Registers {
    fn read(&self, offset: u64) -> u32 {
        // SAFETY: tables of our own map the device, all of which is ours.
        unsafe { read_volatile((self.0 + offset) as *const u32) }
    }
    fn write(&self, offset: u64, value: u32) {
        // SAFETY: as above; what is written is not to be memory's.
        unsafe { write_volatile((self.0 + offset) as *mut u32, value) }
    }
}

fn main(info: &StartInfo) -> u64 {
    trap::install();
    space::enter(info);
    let mut checks = Checks::default();
    let given = info.passthrough.iter().filter(|device| device.len != 0);
    for Device { start, len } in given.clone() {
        let registers = Registers(*start);
        println!(
            "{len} bytes at {start:#x} begin with {:#010x}",
            registers.read(0)
        );
        match *start {
            HPET => timer(&registers, &mut checks),
            IO_APIC => io_apic(&registers, &mut checks),
            _ => {}
        }
    }
    checks.that(given.count() != 0, format_args!("any device"));
    checks.finish()
}

/// It counts when it is told to, not else: what is read comes from the device, what is written goes there.
fn timer(registers: &Registers, checks: &mut Checks) {
    let was = registers.read(CONFIGURATION);
    let counted = |count: bool| {
        registers.write(CONFIGURATION, was & !1 | u32::from(count));
        let before = registers.read(COUNT);
        (0..1000).for_each(|_| call::nop());
        registers.read(COUNT).wrapping_sub(before)
    };
    let ticks = counted(true);
    println!("the timer counted {ticks}");
    checks.that(ticks != 0, format_args!("the timer counts"));
    checks.equal(
        format_args!("a timer that is stopped"),
        counted(false).into(),
        0,
    );
    registers.write(CONFIGURATION, was);
}

/// Its window shows the register that was chosen.
fn io_apic(registers: &Registers, checks: &mut Checks) {
    registers.write(SELECT, VERSION);
    let version = registers.read(WINDOW);
    println!("the I/O APIC has version {version:#x}");
    checks.that(
        registers.read(SELECT) == VERSION,
        format_args!("the choice"),
    );
    let last_entry = version >> 16 & 0xff;
    checks.that(last_entry >= 15, format_args!("an entry for each IRQ"));
}
