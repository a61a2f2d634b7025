//! Bochs: how it is told what machine to be.

use super::files::{ISO, LOG, SERIAL, exists};
use crate::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// What Linux itself takes of the machine's memory, in MiB.
const LINUX_MEMORY: u32 = 512;

const BOCHS_BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
const BOCHS_VGA_BIOS: &str = "/usr/share/seabios/vgabios-stdvga.bin";

/// The command that runs Bochs with that configuration.
pub fn command(dir: &Path, bochsrc: String) -> Result<Command, Error> {
    exists(BOCHS_BIOS)?;
    exists(BOCHS_VGA_BIOS)?;
    let path = dir.join("bochsrc");
    fs::write(&path, bochsrc).map_err(Error::io("write", &path))?;
    let mut command = Command::new("bochs");
    command.env("TERM", "xterm").args(["-q", "-f", "bochsrc"]);
    // A Bochs with its debugger compiled in, as Debian's is, waits for a command before the first instruction.
    let help = Command::new("bochs")
        .arg("--help")
        .stdin(Stdio::null())
        .output()
        .map_err(Error::start("bochs"))?;
    let help = [help.stdout, help.stderr].concat();
    if String::from_utf8_lossy(&help).contains("-rc filename") {
        let path = dir.join("debugger.rc");
        fs::write(&path, "c\n").map_err(Error::io("write", &path))?;
        command.args(["-rc", "debugger.rc"]);
    }
    Ok(command)
}

pub fn rc(model: &str, memory: u32) -> String {
    let cpu = format!("model={model}, count=1, ips=50000000, ignore_bad_msrs=0");
    machine(&cpu, memory)
        + "error: action=report\n\
           info: action=report\n"
}

/// Linux tries MSRs that are not there, and does other things that Bochs logs at length. The more instructions a second
/// takes, the fewer interrupts of the clock; and the screen, whose terminal nobody reads, is drawn as seldom as can be.
pub fn rc_for_linux(model: &str, memory: u32) -> String {
    let cpu = format!("model={model}, count=1, ips=200000000");
    machine(&cpu, memory + LINUX_MEMORY)
        + "vga: extension=vbe, update_freq=1\n\
           error: action=ignore\n\
           info: action=ignore\n"
}

/// What is the same for all.
fn machine(cpu: &str, memory: u32) -> String {
    // Bochs takes at most 2 GiB from its host at once; the rest it swaps.
    let host = memory.min(2048);
    format!(
        "cpu: {cpu}, reset_on_triple_fault=0\n\
         memory: guest={memory}, host={host}\n\
         romimage: file={BOCHS_BIOS}\n\
         vgaromimage: file={BOCHS_VGA_BIOS}\n\
         ata0-master: type=cdrom, path={ISO}, status=inserted\n\
         boot: cdrom\n\
         com1: enabled=1, mode=file, dev={SERIAL}\n\
         port_e9_hack: enabled=1\n\
         clock: sync=none\n\
         display_library: term\n\
         plugin_ctrl: speaker=0\n\
         log: {LOG}\n\
         panic: action=fatal\n\
         debug: action=ignore\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bochs_is_told_the_model_and_the_memory() {
        let told = rc("ryzen", 2560);
        assert!(told.contains("cpu: model=ryzen,"));
        assert!(told.contains("memory: guest=2560, host=2048\n"));
        assert!(told.contains("ignore_bad_msrs=0"));
        assert!(rc("x", 64).contains("guest=64, host=64\n"));
        // Linux needs some for itself.
        let told = rc_for_linux("tigerlake", 512);
        assert!(told.contains("cpu: model=tigerlake,") && told.contains("guest=1024, host=1024\n"));
    }
}
