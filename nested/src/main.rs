//! The first program of the small Linux: runs the cases that it finds, says how each ended, and switches the machine off.

use kvm_ioctls::Kvm;
use offshoot_nested::cases::{ALL_DONE, Case, DONE, LIST};
use offshoot_nested::console::Lines;
use offshoot_nested::linux;
use offshoot_nested::machine::{End, Machine};
use offshoot_nested::pvh::{self, Module};
use std::time::Duration;
use std::{fs, io};
use vm_memory::{GuestAddress, GuestMemoryMmap};

fn main() {
    if std::process::id() != 1 {
        eprintln!(
            "offshoot-nested is the first program of a Linux that `make run EMULATOR=bochs-kvm` boots"
        );
        std::process::exit(2);
    }
    match work() {
        Ok(()) => println!("{ALL_DONE}"),
        Err(error) => println!("OFFSHOOT-END failed: {error}"),
    }
    linux::power_off()
}

fn work() -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    linux::set_up().map_err(text)?;
    linux::load_modules().map_err(text)?;
    linux::tick().map_err(text)?;
    let list = fs::read_to_string(LIST).map_err(|error| format!("{LIST}: {error}"))?;
    let kvm = Kvm::new().map_err(|error| format!("/dev/kvm: {error}"))?;
    for line in list.lines() {
        let case = Case::parse(line).ok_or_else(|| format!("no case: {line}"))?;
        let mut console = Lines::new(io::stdout(), &case.name);
        let end = run(&kvm, &case, &mut console).unwrap_or_else(End::Other);
        let how = match end {
            End::Status(status) => format!("status {status}"),
            End::TooLong => format!("not done after {} s", case.seconds),
            End::Other(what) => what,
        };
        console.say(&format!("{DONE}{how}")).map_err(text)?;
    }
    Ok(())
}

fn run(kvm: &Kvm, case: &Case, console: &mut Lines<io::Stdout>) -> Result<End, String> {
    let read = |file: &String| fs::read(file).map_err(|error| format!("{file}: {error}"));
    let kernel = read(&case.kernel)?;
    let files: Vec<_> = case
        .modules
        .iter()
        .map(|(file, _)| read(file))
        .collect::<Result<_, _>>()?;
    let modules: Vec<_> = files
        .iter()
        .zip(&case.modules)
        .map(|(bytes, (_, cmdline))| Module { bytes, cmdline })
        .collect();
    let size = usize::try_from(case.memory << 20).map_err(|error| error.to_string())?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), size)])
        .map_err(|error| format!("{} MiB of memory: {error}", case.memory))?;
    let start = pvh::load(&memory, &kernel, &case.cmdline, &modules)?;
    let mut machine = Machine::new(kvm, &memory, start)?;
    Ok(machine.run(console, Duration::from_secs(case.seconds)))
}
