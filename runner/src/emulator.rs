//! The emulators an image can be booted in, and the command that does so.

use crate::{Error, Guest};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What Linux itself takes of the machine's memory, in MiB.
const LINUX_MEMORY: u32 = 512;

/// The CPU that Bochs emulates when none is asked for: the newest it knows.
pub const DEFAULT_MODEL: &str = "tigerlake";

/// The console of the image, in the folder of a run.
pub const SERIAL: &str = "serial.log";
/// What the emulator has to say, in the folder of a run.
pub const LOG: &str = "emulator.log";
/// The ISO, in the folder of a run.
pub const ISO: &str = "offshoot.iso";

const BOCHS_BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
const BOCHS_VGA_BIOS: &str = "/usr/share/seabios/vgabios-stdvga.bin";
const OVMF: &str = "/usr/share/ovmf/OVMF.fd";

/// What boots the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Emulator {
    /// Bochs, which emulates VMX with EPT on any machine. It boots the ISO as a CD.
    Bochs {
        /// The CPU it emulates.
        model: String,
    },
    /// KVM in a Linux on Bochs: nested VMX on any machine. It boots the kernel through its PVH entry.
    BochsKvm {
        /// The CPU that Bochs emulates.
        model: String,
    },
    /// QEMU.
    Qemu {
        /// What runs the instructions.
        accel: Accel,
        /// The CPU model, or QEMU's richest.
        cpu: Option<String>,
        /// How the image gets into memory.
        boot: Boot,
    },
}

/// What runs the instructions under QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// QEMU itself, which has no VMX.
    Tcg,
    /// The host's CPU, which must offer VMX to its guests.
    Kvm,
}

/// How the image gets into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// The ISO as a CD, by the BIOS.
    Cd,
    /// The ISO as a disk, as from a USB stick, by the BIOS.
    Disk,
    /// The ISO as a CD, by UEFI firmware.
    Uefi,
    /// The kernel alone through its PVH entry, with at most one guest.
    Kernel,
}

impl Boot {
    /// Reads the name a user gives.
    ///
    /// # Errors
    /// The name, where no emulator has it, with those that there are.
    pub fn parse(name: &str) -> Result<Self, Error> {
        match name {
            "cd" => Ok(Self::Cd),
            "disk" => Ok(Self::Disk),
            "uefi" => Ok(Self::Uefi),
            "kernel" => Ok(Self::Kernel),
            _ => Err(Error::asked(
                name,
                "not a way to boot; those are: cd, disk, uefi, kernel",
            )),
        }
    }
}

impl Emulator {
    /// Bochs with that CPU model, which is not checked.
    pub fn bochs(model: &str) -> Self {
        Self::Bochs {
            model: model.into(),
        }
    }

    /// KVM in a Linux on Bochs with that CPU model, which is not checked.
    pub fn bochs_kvm(model: &str) -> Self {
        Self::BochsKvm {
            model: model.into(),
        }
    }

    /// What the user asked for by name; else QEMU where KVM runs hypervisors, else Bochs.
    ///
    /// # Errors
    /// What was asked for and is not there: the emulator, its CPU model or way to boot, or nested VMX.
    pub fn choose(
        name: Option<&str>,
        cpu: Option<&str>,
        boot: Option<Boot>,
    ) -> Result<Self, Error> {
        let nested = nested_vmx();
        let qemu = match name {
            Some("bochs" | "bochs-kvm") => false,
            Some("qemu") => true,
            Some("kvm") => {
                if let Err(lack) = &nested {
                    return Err(Error::asked(
                        "kvm",
                        format!("no nested VMX here: {lack}; EMULATOR=bochs-kvm runs KVM in Bochs"),
                    ));
                }
                true
            }
            Some(other) => {
                return Err(Error::asked(
                    other,
                    "not an emulator; those are: bochs, qemu, kvm, bochs-kvm",
                ));
            }
            // A model that Bochs knows by name is asked of Bochs.
            None => boot.is_some_and(|boot| boot != Boot::Cd) || (nested.is_ok() && cpu.is_none()),
        };
        if qemu {
            if let Some(cpu) = cpu {
                check_cpu(cpu, "qemu-system-x86_64", &["-cpu", "help"])?;
            }
            return Ok(Self::Qemu {
                accel: if nested.is_ok() {
                    Accel::Kvm
                } else {
                    Accel::Tcg
                },
                cpu: cpu.map(str::to_owned),
                boot: boot.unwrap_or(Boot::Cd),
            });
        }
        if let Some(boot) = boot.filter(|&boot| boot != Boot::Cd) {
            return Err(Error::asked(
                format!("{boot:?}").to_lowercase(),
                "Bochs boots only from cd; use EMULATOR=qemu",
            ));
        }
        let model = cpu.unwrap_or(DEFAULT_MODEL);
        check_cpu(model, "bochs", &["--help", "cpu"])?;
        Ok(match name {
            Some("bochs-kvm") => Self::bochs_kvm(model),
            _ => Self::bochs(model),
        })
    }

    /// Whether it boots the ISO, rather than the kernel alone.
    pub fn needs_iso(&self) -> bool {
        !matches!(
            self,
            Self::Qemu {
                boot: Boot::Kernel,
                ..
            }
        )
    }

    /// The file in the folder of a run that takes what the emulator prints: Bochs draws its screen there and has a
    /// log beside it.
    pub fn output_file(&self) -> &'static str {
        match self {
            Self::Bochs { .. } | Self::BochsKvm { .. } => "screen.log",
            Self::Qemu { .. } => LOG,
        }
    }

    /// The command that boots the image. It is to run in the folder `dir`, which holds the [`ISO`] where
    /// [`Self::needs_iso`]; the console goes to [`SERIAL`] there.
    ///
    /// # Errors
    /// A file that the emulator needs and that is not there or cannot be written.
    pub fn command(
        &self,
        dir: &Path,
        memory: u32,
        kernel: &Path,
        cmdline: &str,
        guests: &[Guest],
    ) -> Result<Command, Error> {
        match self {
            Self::Bochs { model } => bochs(dir, bochsrc(model, memory)),
            Self::BochsKvm { model } => bochs(dir, bochsrc_for_linux(model, memory)),
            Self::Qemu { accel, cpu, boot } => {
                let mut command = qemu(*accel, cpu.as_deref(), memory);
                match boot {
                    Boot::Cd => command.args(["-cdrom", ISO]),
                    Boot::Disk => command.arg("-drive").arg(format!("format=raw,file={ISO}")),
                    Boot::Uefi => {
                        exists(OVMF)?;
                        command.args(["-bios", OVMF, "-cdrom", ISO])
                    }
                    Boot::Kernel => {
                        command.arg("-kernel").arg(kernel);
                        if let Some(module) = only_module(guests)? {
                            command.arg("-initrd").arg(module);
                        }
                        command.args(["-append", cmdline])
                    }
                };
                Ok(command)
            }
        }
    }
}

impl fmt::Display for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bochs { model } => write!(f, "Bochs, CPU {model}"),
            Self::BochsKvm { model } => write!(f, "KVM in a Linux on Bochs, CPU {model}"),
            Self::Qemu { accel, boot, .. } => {
                let accel = match accel {
                    Accel::Tcg => "software emulation, no VMX",
                    Accel::Kvm => "KVM with nested VMX",
                };
                let boot = match boot {
                    Boot::Cd => "",
                    Boot::Disk => ", from disk",
                    Boot::Uefi => ", by UEFI",
                    Boot::Kernel => ", by -kernel",
                };
                write!(f, "QEMU, {accel}{boot}")
            }
        }
    }
}

/// QEMU hands a PVH kernel one module and no command line for it.
fn only_module(guests: &[Guest]) -> Result<Option<PathBuf>, Error> {
    match guests {
        [] => Ok(None),
        [guest] if guest.options.is_empty() => Ok(Some(guest.path.clone())),
        _ => Err(Error::asked(
            "-kernel",
            "QEMU passes at most one guest this way, and no options for it: neither name= and the like nor data to map",
        )),
    }
}

fn exists(file: &str) -> Result<(), Error> {
    let path = Path::new(file);
    if path.exists() {
        Ok(())
    } else {
        Err(Error::MissingFile(path.into()))
    }
}

/// Whether KVM here runs guests that use VMX themselves, or what it lacks. That `/dev/kvm` exists proves nothing.
///
/// # Errors
/// What KVM lacks here, in words.
pub fn nested_vmx() -> Result<(), String> {
    let nested = fs::read_to_string("/sys/module/kvm_intel/parameters/nested").unwrap_or_default();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    says_nested(&nested, &cpuinfo)?;
    let device = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    device
        .map(drop)
        .map_err(|error| format!("/dev/kvm cannot be opened: {error}"))
}

fn says_nested(nested: &str, cpuinfo: &str) -> Result<(), String> {
    let vmx = cpuinfo
        .lines()
        .any(|line| line.starts_with("flags") && line.split_whitespace().any(|flag| flag == "vmx"));
    match nested.trim() {
        _ if !vmx => Err("the CPU has no VMX, or it is not offered to this machine".into()),
        "Y" | "1" => Ok(()),
        "" => Err("the module kvm_intel is not loaded".into()),
        _ => Err("the module kvm_intel was loaded without nested=1".into()),
    }
}

/// Asks the emulator whether it knows the CPU model, and lists those it knows if not.
fn check_cpu(cpu: &str, program: &str, list: &[&str]) -> Result<(), Error> {
    let output = Command::new(program)
        .args(list)
        .stdin(Stdio::null())
        .output()
        .map_err(Error::start(program))?;
    // Bochs lists on the standard error, QEMU on the standard output.
    let text = [output.stdout, output.stderr].concat();
    let models = models(&String::from_utf8_lossy(&text));
    // Features may follow a model's name in QEMU.
    let name = cpu.split(',').next().unwrap_or(cpu);
    if models.iter().any(|model| model == name) {
        return Ok(());
    }
    Err(Error::asked(
        cpu,
        format!(
            "{program} knows no such CPU model; it knows: {}",
            models.join(", ")
        ),
    ))
}

/// The names in a list of CPU models: `NAME` a line after a heading in Bochs, `x86 NAME  explanation` in QEMU.
fn models(text: &str) -> Vec<String> {
    let (start, end) = match text.contains("Supported CPU models:") {
        true => ("Supported CPU models:", "0000"),
        false => ("Available CPUs:", "Recognized"),
    };
    text.lines()
        .skip_while(|line| !line.starts_with(start))
        .skip(1)
        .take_while(|line| !line.starts_with(end))
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            match words.next()? {
                "x86" => words.next(),
                name => Some(name),
            }
        })
        .map(str::to_owned)
        .collect()
}

/// The command that runs Bochs with that configuration.
fn bochs(dir: &Path, bochsrc: String) -> Result<Command, Error> {
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

fn bochsrc(model: &str, memory: u32) -> String {
    let cpu = format!("model={model}, count=1, ips=50000000, ignore_bad_msrs=0");
    machine(&cpu, memory)
        + "error: action=report\n\
           info: action=report\n"
}

/// Linux tries MSRs that are not there, and does other things that Bochs logs at length. The more instructions a second
/// takes, the fewer interrupts of the clock; and the screen, whose terminal nobody reads, is drawn as seldom as can be.
fn bochsrc_for_linux(model: &str, memory: u32) -> String {
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

fn qemu(accel: Accel, cpu: Option<&str>, memory: u32) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    match accel {
        Accel::Tcg => command.args(["-accel", "tcg", "-cpu", cpu.unwrap_or("max")]),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_found_in_either_list() {
        let bochs =
            "0000i[ ] x\nSupported CPU models:\n\nbx_generic\ntigerlake\n\n0000i[SIM ] quit\n";
        assert_eq!(models(bochs), ["bx_generic", "tigerlake"]);
        let qemu = "Available CPUs:\nx86 486   (alias)\nx86 max    Enables all\n\nRecognized CPUID flags:\n  3dnow\n";
        assert_eq!(models(qemu), ["486", "max"]);
    }

    #[test]
    fn nested_needs_the_parameter_and_the_flag() {
        let vmx = "model name : x\nflags\t\t: fpu vmx sse\n";
        assert_eq!(says_nested("Y\n", vmx), Ok(()));
        assert_eq!(says_nested("1\n", vmx), Ok(()));
        let lacks = |nested: &str, cpuinfo: &str, what: &str| {
            let error = says_nested(nested, cpuinfo).unwrap_err();
            assert!(error.contains(what), "{error}");
        };
        lacks("N\n", vmx, "without nested=1");
        lacks("", vmx, "not loaded");
        lacks("Y\n", "flags : fpu svm\nvmx flags : vnmi\n", "no VMX");
    }

    #[test]
    fn bochs_is_told_the_model_and_the_memory() {
        let rc = bochsrc("ryzen", 2560);
        assert!(rc.contains("cpu: model=ryzen,"));
        assert!(rc.contains("memory: guest=2560, host=2048\n"));
        assert!(rc.contains("ignore_bad_msrs=0"));
        assert!(bochsrc("x", 64).contains("guest=64, host=64\n"));
        // Linux needs some for itself.
        let rc = bochsrc_for_linux("tigerlake", 512);
        assert!(rc.contains("cpu: model=tigerlake,") && rc.contains("guest=1024, host=1024\n"));
    }

    #[test]
    fn an_unknown_emulator_is_named() {
        let error = Emulator::choose(Some("vmware"), None, None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "vmware: not an emulator; those are: bochs, qemu, kvm, bochs-kvm"
        );
    }

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
