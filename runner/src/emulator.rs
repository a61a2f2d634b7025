//! The emulators an image can be booted in, and the command that does so.

mod bochs;
mod files;
mod offer;
mod qemu;

use crate::{Error, Guest};
use files::exists;
use offer::check_cpu;
use std::fmt;
use std::path::Path;
use std::process::Command;

pub use files::{ISO, LOG, SERIAL};
pub use offer::nested_vmx;
pub use qemu::Accel;

const OVMF: &str = "/usr/share/ovmf/OVMF.fd";

/// The CPU that Bochs emulates when none is asked for: the newest it knows.
pub const DEFAULT_MODEL: &str = "tigerlake";

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
            Self::Bochs { model } => bochs::command(dir, bochs::rc(model, memory)),
            Self::BochsKvm { model } => bochs::command(dir, bochs::rc_for_linux(model, memory)),
            Self::Qemu { accel, cpu, boot } => {
                let mut command = qemu::command(*accel, cpu.as_deref(), memory);
                match boot {
                    Boot::Cd => command.args(["-cdrom", ISO]),
                    Boot::Disk => command.arg("-drive").arg(format!("format=raw,file={ISO}")),
                    Boot::Uefi => {
                        exists(OVMF)?;
                        command.args(["-bios", OVMF, "-cdrom", ISO])
                    }
                    Boot::Kernel => {
                        command.arg("-kernel").arg(kernel);
                        if let Some(module) = qemu::only_module(guests)? {
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
                    Accel::Tcg => "software emulation, SVM where the CPU model has it",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_emulator_is_named() {
        let error = Emulator::choose(Some("vmware"), None, None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "vmware: not an emulator; those are: bochs, qemu, kvm, bochs-kvm"
        );
    }
}
