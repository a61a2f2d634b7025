//! The whole VMCS as text, for the report on an entry failure or an exit that nobody handles.

use core::fmt;

use super::capabilities::Capabilities;
use super::controls::ControlSet;
use super::entry_check::{CheckGroup, failed_checks};
use super::exit::Exit;
use super::fields::{Field, Field16, Field32, Field64, FieldType};
use super::instruction_error::{InstructionError, VmFail};
use super::interruption::Interruption;
use super::vmcs::{Vmcs, VmcsError};

/// Writes every field that this CPU has, by area, with the exit, the controls and the events in words.
///
/// # Errors
/// What `out` refuses.
pub fn dump_vmcs(vmcs: &impl Vmcs, out: &mut impl fmt::Write) -> fmt::Result {
    out.write_str("VMCS\n")?;
    match Exit::read(vmcs) {
        Ok(exit) => writeln!(out, "  last exit: {exit}")?,
        Err(error) => return writeln!(out, "  {error}"),
    }
    for (text, field) in [
        ("to inject", Field32::EntryInterruptionInformation),
        ("exit event", Field32::ExitInterruptionInformation),
        ("interrupted", Field32::IdtVectoringInformation),
    ] {
        if let Ok(Some(event)) = vmcs.read32(field).map(Interruption::decode) {
            writeln!(out, "  {text}: {:?}, vector {}", event.kind, event.vector)?;
        }
    }
    dump_controls(vmcs, out)?;
    let mut absent = 0;
    for (area, title) in [
        (FieldType::ExitInformation, "exit information"),
        (FieldType::Guest, "guest state"),
        (FieldType::Host, "host state"),
        (FieldType::Control, "controls"),
    ] {
        writeln!(out, " {title}")?;
        for field in Field::all().filter(|field| field.field_type() == area) {
            match vmcs.read_any(field) {
                Ok(value) => dump_field(field, value, out)?,
                Err(error) if is_unsupported(&error) => absent += 1,
                Err(error) => writeln!(out, "  {error}")?,
            }
        }
    }
    writeln!(out, " ({absent} fields that this CPU does not have)")
}

fn is_unsupported(error: &VmcsError) -> bool {
    error.fail == VmFail::Valid(InstructionError::UnsupportedField)
}

/// A field with as many digits as it is wide.
fn dump_field(field: Field, value: u64, out: &mut impl fmt::Write) -> fmt::Result {
    let (encoding, name) = (field.encoding(), field.name());
    match field {
        Field::Bits16(_) => writeln!(out, "  {encoding:04x} {value:#06x} {name}"),
        Field::Bits32(_) => writeln!(out, "  {encoding:04x} {value:#010x} {name}"),
        Field::Bits64(_) | Field::Natural(_) => {
            writeln!(out, "  {encoding:04x} {value:#018x} {name}")
        }
    }
}

fn dump_controls(vmcs: &impl Vmcs, out: &mut impl fmt::Write) -> fmt::Result {
    let controls = match ControlSet::read(vmcs) {
        Ok(controls) => controls,
        Err(error) => return writeln!(out, "  {error}"),
    };
    out.write_str("  controls that are 1:")?;
    let mut separator = " ";
    for control in controls.iter() {
        if let Some(name) = control.name() {
            write!(out, "{separator}{name}")?;
            separator = ", ";
        }
    }
    out.write_char('\n')
}

/// What can be said about an entry that failed: the checks of `group` that the VMCS does not pass, and all of it.
///
/// # Errors
/// What `out` refuses.
pub fn report_failed_entry(
    group: Option<CheckGroup>,
    vmcs: &impl Vmcs,
    capabilities: &Capabilities,
    out: &mut impl fmt::Write,
) -> fmt::Result {
    if let Some(group) = group {
        match failed_checks(group, vmcs, capabilities) {
            Ok(failed) => write!(out, "{failed}")?,
            Err(error) => writeln!(out, "{error}")?,
        }
    }
    dump_vmcs(vmcs, out)
}

/// The few fields that tell most, on one line: where the guest was and why it left.
///
/// # Errors
/// What `out` refuses.
pub fn summarize_vmcs(vmcs: &impl Vmcs, out: &mut impl fmt::Write) -> fmt::Result {
    use super::fields::FieldNatural::{ExitQualification, GuestCr3, GuestRip, GuestRsp};
    match Exit::read(vmcs) {
        Ok(exit) => write!(out, "{exit}")?,
        Err(error) => return write!(out, "{error}"),
    }
    for (name, field) in [
        ("CS", Field::from(Field16::GuestCsSelector)),
        ("RIP", GuestRip.into()),
        ("RSP", GuestRsp.into()),
        ("CR3", GuestCr3.into()),
        ("qualification", ExitQualification.into()),
        ("GPA", Field64::GuestPhysicalAddress.into()),
    ] {
        match vmcs.read_any(field) {
            Ok(value) => write!(out, ", {name} {value:#x}")?,
            Err(error) => write!(out, ", {name}: {error}")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::control_choice::choose_controls;
    use super::super::fake::{FakeVmcs, haswell};
    use super::super::fields::FieldNatural;
    use super::super::start_state::tests::{START, host};
    use super::*;

    fn set_up() -> FakeVmcs {
        let capabilities = Capabilities::discover(&haswell()).unwrap();
        let mut vmcs = FakeVmcs::new();
        choose_controls(&capabilities)
            .unwrap()
            .write(&mut vmcs)
            .unwrap();
        START.write(&capabilities, &mut vmcs).unwrap();
        host().write(&mut vmcs).unwrap();
        vmcs.set(Field32::ExitReason, 48)
            .set(FieldNatural::ExitQualification, 0x181)
            .set(Field64::GuestPhysicalAddress, 0xdead_b000)
            .set(Field32::IdtVectoringInformation, 0x8000_0b0e);
        vmcs
    }

    #[test]
    fn every_field_is_in_the_dump_once() {
        let mut text = String::new();
        dump_vmcs(&set_up(), &mut text).unwrap();
        for field in Field::all() {
            let start = format!("  {:04x} 0x", field.encoding());
            assert_eq!(text.matches(&start).count(), 1, "{field}");
        }
        for line in [
            "  last exit: EPT violation (exit reason 48)\n",
            "  interrupted: HardwareException, vector 14\n",
            "  681e 0x0000000000401000 guest RIP\n",
            "  4814 0x0000c093 guest ES access rights\n",
            "  080e 0x0000 guest TR selector\n",
            "  2400 0x00000000deadb000 guest-physical address\n",
            " (0 fields that this CPU does not have)\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(text.contains("enable EPT") && !text.contains("to inject"));
    }

    #[test]
    fn fields_that_the_cpu_lacks_are_counted_not_shown_as_0() {
        let mut vmcs = set_up();
        vmcs.remove(Field64::GuestPkrs).remove(Field64::HostPkrs);
        let mut text = String::new();
        dump_vmcs(&vmcs, &mut text).unwrap();
        assert!(!text.contains("PKRS"));
        assert!(text.contains("(2 fields that this CPU does not have)"));
    }

    #[test]
    fn without_a_vmcs_the_dump_says_so() {
        let mut vmcs = set_up();
        vmcs.clear_current();
        let mut text = String::new();
        dump_vmcs(&vmcs, &mut text).unwrap();
        assert_eq!(
            text,
            "VMCS\n  VMREAD of the exit reason (0x4402) failed: there is no current VMCS (VMfailInvalid)\n"
        );
    }

    #[test]
    fn the_summary_is_one_line() {
        let mut text = String::new();
        summarize_vmcs(&set_up(), &mut text).unwrap();
        assert_eq!(
            text,
            "EPT violation (exit reason 48), CS 0x8, RIP 0x401000, RSP 0x7000, CR3 0x2000, qualification 0x181, \
             GPA 0xdeadb000"
        );
    }

    #[test]
    fn a_failed_entry_is_reported_with_its_checks_and_the_dump() {
        let capabilities = Capabilities::discover(&haswell()).unwrap();
        let report = |group, vmcs: &FakeVmcs| {
            let mut text = String::new();
            report_failed_entry(group, vmcs, &capabilities, &mut text).unwrap();
            text
        };
        let mut vmcs = set_up();
        vmcs.set(Field64::VmcsLinkPointer, 0x1000);
        let text = report(Some(CheckGroup::GuestState), &vmcs);
        assert!(text.contains("VMCS link pointer (0x2800) is 0x1000: must be all ones"));
        assert!(text.contains("\nVMCS\n") && text.contains("681e 0x0000000000401000 guest RIP"));
        assert!(report(None, &vmcs).starts_with("VMCS\n"));
        vmcs.clear_current();
        let text = report(Some(CheckGroup::HostState), &vmcs);
        assert!(text.starts_with("VMREAD of the pin-based VM-execution controls"));
    }
}
