//! QEMU: what it is told but for what it boots.

use super::files::SERIAL;
use crate::{Error, Guest};
use std::path::PathBuf;
use std::process::Command;

/// What runs the instructions under QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// QEMU itself, which has SVM and no VMX.
    Tcg,
    /// The host's CPU, which must offer VMX to its guests.
    Kvm,
}

/// The command that runs QEMU, all but what it boots.
pub fn command(accel: Accel, cpu: Option<&str>, memory: u32) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    match accel {
        Accel::Tcg => command.args(["-accel", "tcg", "-cpu", cpu.unwrap_or("max,la57=off")]),
        Accel::Kvm => {
            command.args(["-accel", "kvm", "-cpu"]);
            command.arg(format!("{},+vmx", cpu.unwrap_or("host")))
        }
    };
    command
        .arg("-m")
        .arg(memory.to_string())
        .args(["-display", "none", "-monitor", "none", "-nic", "none"])
        .args(["-no-reboot", "-serial"])
        .arg(format!("file:{SERIAL}"))
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    command
}

/// QEMU hands a PVH kernel one module and no command line for it.
pub fn only_module(guests: &[Guest]) -> Result<Option<PathBuf>, Error> {
    match guests {
        [] => Ok(None),
        [guest] if guest.options.is_empty() => Ok(Some(guest.path.clone())),
        _ => Err(Error::asked(
            "-kernel",
            "QEMU passes at most one guest this way, and no options for it: neither name= and the like nor data to map",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_takes_one_guest_by_kernel() {
        let guest = Guest::new("a.elf");
        assert_eq!(only_module(&[]).unwrap(), None);
        assert!(only_module(std::slice::from_ref(&guest)).unwrap().is_some());
        assert!(only_module(&[guest.clone(), guest.clone()]).is_err());
        assert!(only_module(&[guest.clone().with("mem=1M")]).is_err());
        let data = Guest::new("a.bin").with("data");
        assert!(only_module(&[guest, data]).is_err());
    }
}
