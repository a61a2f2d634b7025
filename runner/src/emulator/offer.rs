//! What the emulators here, and the machine under them, have to offer.

use crate::Error;
use std::fs;
use std::process::{Command, Stdio};

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
pub(super) fn check_cpu(cpu: &str, program: &str, list: &[&str]) -> Result<(), Error> {
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
}
