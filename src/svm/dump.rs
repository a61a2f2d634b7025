//! The VMCB as text, for the report on an entry that was refused or an exit that nobody handles.

use core::fmt;

use super::capabilities::Capabilities;
use super::entry_check::failed_checks;
use super::event::Injection;
use super::exit::Exit;
use super::feature::Features;
use super::fields::{CR3, EXIT_INFO_1, EXIT_INFO_2, RIP, RSP, SELECTOR_OF_CS};
use super::vmcb::{SAVE_AREA, Vmcb};

/// Writes every field by area, with the exit, the intercepts and the events in words.
///
/// # Errors
/// What `out` refuses.
pub fn dump_vmcb(vmcb: &Vmcb, features: Features, out: &mut impl fmt::Write) -> fmt::Result {
    writeln!(out, "VMCB\n  last exit: {}", Exit::read(vmcb, features))?;
    match Injection::interrupted(vmcb) {
        Ok(Some(event)) => writeln!(out, "  interrupted: {event:?}")?,
        Ok(None) => {}
        Err(error) => writeln!(out, "  {error}")?,
    }
    out.write_str("  intercepts:")?;
    let mut separator = " ";
    for intercept in vmcb.intercepts().iter() {
        write!(out, "{separator}{intercept}")?;
        separator = ", ";
    }
    out.write_str("\n control area\n")?;
    let mut in_save_area = false;
    for (named, value) in vmcb.named() {
        if !in_save_area && named.offset as usize >= SAVE_AREA {
            out.write_str(" save area\n")?;
            in_save_area = true;
        }
        // As many digits as it is wide.
        let (offset, name) = (named.offset, named.name);
        let width = 2 + 2 * named.bytes as usize;
        writeln!(out, "  {offset:03x} {value:#0width$x} {name}")?;
    }
    Ok(())
}

/// What can be said about a VMCB that was refused: the checks that it does not pass, and all of it. As for [`failed_checks`], it
/// must be what VMRUN was given.
///
/// # Errors
/// What `out` refuses.
pub fn report_refused_entry(
    vmcb: &Vmcb,
    capabilities: &Capabilities,
    out: &mut impl fmt::Write,
) -> fmt::Result {
    write!(out, "{}", failed_checks(vmcb, capabilities))?;
    dump_vmcb(vmcb, capabilities.features, out)
}

/// The few fields that tell most, on one line: where the guest was and why it left.
///
/// # Errors
/// What `out` refuses.
pub fn summarize_vmcb(vmcb: &Vmcb, features: Features, out: &mut impl fmt::Write) -> fmt::Result {
    write!(out, "{}", Exit::read(vmcb, features))?;
    write!(out, ", CS {:#x}", vmcb.get(SELECTOR_OF_CS))?;
    for (name, field) in [
        ("RIP", RIP),
        ("RSP", RSP),
        ("CR3", CR3),
        ("information", EXIT_INFO_1),
        ("and", EXIT_INFO_2),
    ] {
        write!(out, ", {name} {:#x}", vmcb.get(field))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fields::{ASID, EXIT_CODE, EXIT_INTERRUPTION, FIELDS};
    use super::super::start_state::tests::set_up;
    use super::*;

    fn left() -> Vmcb {
        let (mut vmcb, _) = set_up();
        vmcb.set(EXIT_CODE, 0x400);
        vmcb.set(EXIT_INFO_1, 1 << 32 | 6);
        vmcb.set(EXIT_INFO_2, 0xdead_b000);
        vmcb.set(EXIT_INTERRUPTION, 0x8000_0b0e);
        vmcb
    }

    #[test]
    fn every_field_is_in_the_dump_once() {
        let mut text = String::new();
        dump_vmcb(&left(), Features::EMPTY, &mut text).unwrap();
        for named in FIELDS {
            let start = format!("  {:03x} 0x", named.offset);
            assert_eq!(text.matches(&start).count(), 1, "{}", named.name);
        }
        for words in [
            "last exit: nested page fault at 0xdeadb000: write, not present\n",
            "interrupted: Injection { vector: 14",
            "intercepts: reads of CR0, reads of CR4",
            "  578 0x0000000000400000 RIP\n",
            "  4cb 0x00 CPL\n",
            "  058 0x00000001 ASID\n",
            " save area\n  400 0x0010 ES selector\n",
        ] {
            assert!(text.contains(words), "{words} in {text}");
        }
    }

    #[test]
    fn a_refused_entry_is_reported_with_what_is_wrong() {
        let (mut vmcb, capabilities) = set_up();
        vmcb.set(ASID, 0);
        vmcb.set(EXIT_CODE, u64::MAX);
        let mut text = String::new();
        report_refused_entry(&vmcb, &capabilities, &mut text).unwrap();
        assert!(text.starts_with("ASID (0x058) is 0x0: must not be 0"));
        assert!(text.contains("last exit: VMRUN refused the VMCB"));
    }

    #[test]
    fn an_interruption_that_is_none_is_shown() {
        let mut vmcb = left();
        vmcb.set(EXIT_INTERRUPTION, 0x8000_0700);
        let mut text = String::new();
        dump_vmcb(&vmcb, Features::EMPTY, &mut text).unwrap();
        assert!(text.contains("exit interruption information 0x80000700 is no event"));
    }

    #[test]
    fn the_summary_is_one_line() {
        let mut text = String::new();
        summarize_vmcb(&left(), Features::EMPTY, &mut text).unwrap();
        assert_eq!(
            text,
            "nested page fault at 0xdeadb000: write, not present, CS 0x8, RIP 0x400000, RSP 0x7ff000, CR3 0x1000, \
             information 0x100000006, and 0xdeadb000"
        );
    }
}
