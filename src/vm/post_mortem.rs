//! What is said about a guest that did not end by itself: its registers, and where our own work failed, the VMCS.

use core::fmt::{self, Write};

use super::Words;
use super::backend::Cpu;
use super::name::ForkId;
use super::name::Name;
use super::outcome::Outcome;
use crate::ept::{Reason, Region, RegionKind, Space, Unresolved};
use crate::frames::PhysMem;
use crate::paging::Nested;
use crate::paging::Step;
use crate::virt::{Gpr, GuestRegs, Processor};

/// Says which fork the explanation that follows is of, and how it ended. Of a guest that is no fork that is said later.
pub(super) fn tell_fork(
    outcome: &Outcome,
    name: Name,
    generation: u32,
    fork: ForkId,
    out: &mut impl Write,
) -> fmt::Result {
    if generation == 0 || matches!(outcome, Outcome::Exited(_)) {
        return Ok(());
    }
    let number = fork.number;
    writeln!(
        out,
        "guest {name}, fork {number} in generation {generation}: {outcome}"
    )
}

/// Explains `outcome` from what the processor holds.
pub(super) fn explain<M: PhysMem, P: Cpu, F: Nested>(
    outcome: &Outcome,
    words: Words,
    space: &Space<'_, M, F>,
    (regs, cr2): (&GuestRegs, u64),
    processor: &P,
    out: &mut impl Write,
) -> fmt::Result {
    match outcome {
        _ if words == Words::None => return Ok(()),
        Outcome::Exited(_) => return Ok(()),
        _ if words == Words::Few => {
            processor.summarize(out)?;
            writeln!(out)?;
        }
        Outcome::Entry(error) => match P::own(*error) {
            Some(error) => processor.report_failed_entry(error, out)?,
            None => processor.dump(out)?,
        },
        Outcome::EptMisconfiguration(gpa) => {
            for step in space.path(*gpa) {
                let Step {
                    level,
                    table,
                    index,
                    bits,
                } = step;
                writeln!(
                    out,
                    "EPT level {level}, table {table}, entry {index}: {bits:#018x}"
                )?;
            }
            processor.dump(out)?;
        }
        Outcome::UnexpectedExit(_)
        | Outcome::UnknownExit(_)
        | Outcome::State(_)
        | Outcome::Reinject => processor.dump(out)?,
        _ => {
            processor.summarize(out)?;
            writeln!(out)?;
        }
    }
    if let Outcome::Memory(fault) = outcome
        && let Some(region) = space.region_at(fault.unresolved.violation.gpa())
    {
        place(
            &fault.unresolved,
            region,
            space.eptp().accessed_dirty(),
            out,
        )?;
    }
    registers(regs, cr2, processor, out)
}

/// Says what is where the guest may not go, and where that is not plain to see, why it may not. With `accessed_dirty` the CPU
/// notes its use of the guest's tables.
fn place(
    unresolved: &Unresolved,
    region: &Region,
    accessed_dirty: bool,
    out: &mut impl Write,
) -> fmt::Result {
    let Unresolved { violation, reason } = unresolved;
    let what = what(&region.kind);
    write!(out, "GPA {:#x} is {what} {}", violation.gpa(), region.range)?;
    if let Reason::Protected { .. } = reason {
        let or = |on: bool, letter| if on { letter } else { '-' };
        let (w, x) = (or(region.is_writable(), 'w'), or(region.execute, 'x'));
        write!(out, ", which the guest has protected: r{w}{x}")?;
    }
    writeln!(out)?;
    let refused = matches!(reason, Reason::Denied { .. } | Reason::Protected { .. });
    if refused && accessed_dirty && violation.is_page_walk() && violation.is_write() {
        writeln!(
            out,
            "it holds page tables of the guest, whose use this CPU takes for a write: they must be in memory that may be \
             written"
        )?;
    }
    Ok(())
}

/// What a guest has in a region of this kind.
fn what(kind: &RegionKind) -> &'static str {
    match kind {
        RegionKind::Ram => "in memory",
        RegionKind::Rom => "in ROM",
        RegionKind::CopyOnWrite(_) => "in data that is copied when written",
        RegionKind::ReadOnly(_) => "in data that is only to be read",
        RegionKind::Mmio => "in registers of a device",
        RegionKind::PassThrough(_) => "of a device passed through",
    }
}

fn registers(
    regs: &GuestRegs,
    cr2: u64,
    processor: &impl Processor,
    out: &mut impl Write,
) -> fmt::Result {
    const ROWS: [[(&str, Gpr); 4]; 4] = [
        [
            ("rax", Gpr::Rax),
            ("rbx", Gpr::Rbx),
            ("rcx", Gpr::Rcx),
            ("rdx", Gpr::Rdx),
        ],
        [
            ("rsi", Gpr::Rsi),
            ("rdi", Gpr::Rdi),
            ("rbp", Gpr::Rbp),
            ("rsp", Gpr::Rsp),
        ],
        [
            ("r8 ", Gpr::R8),
            ("r9 ", Gpr::R9),
            ("r10", Gpr::R10),
            ("r11", Gpr::R11),
        ],
        [
            ("r12", Gpr::R12),
            ("r13", Gpr::R13),
            ("r14", Gpr::R14),
            ("r15", Gpr::R15),
        ],
    ];
    for row in ROWS {
        let mut separator = "";
        for (name, register) in row {
            let value = match register {
                Gpr::Rsp => processor.rsp().unwrap_or_default(),
                other => regs.get(other),
            };
            write!(out, "{separator}{name} {value:016x}")?;
            separator = "  ";
        }
        writeln!(out)?;
    }
    writeln!(out, "cr2 {cr2:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{AddrRange, Gpa};
    use crate::ept::Violation;

    #[test]
    fn protection_and_tables_in_what_may_not_be_written_are_explained() {
        let told = |region: &Region, qualification, accessed_dirty| {
            let violation = Violation::decode(qualification, Gpa::new(0x5018));
            let reason = region.refusal(violation.access()).unwrap();
            let unresolved = Unresolved { violation, reason };
            let mut out = String::new();
            place(&unresolved, region, accessed_dirty, &mut out).unwrap();
            out
        };
        let range = AddrRange::new(Gpa::new(0x5000), 0x1000).unwrap();
        let rom = Region::new(range, RegionKind::Rom);
        let memory = Region::new(range, RegionKind::Ram);
        let (still, data) = (
            Region {
                write: false,
                ..memory
            },
            memory.with_execute(false),
        );
        // A write, a fetch, and a walk of tables that notes their use; bit 7: the linear address is valid.
        let (write, fetch, walk) = (0x18a, 0x18c, 0x8b);
        let at = "GPA 0x5018 is in";
        assert_eq!(
            told(&rom, write, true),
            format!("{at} ROM [0x5000, 0x5fff]\n")
        );
        let protected = format!("{at} memory [0x5000, 0x5fff], which the guest has protected: ");
        assert_eq!(told(&still, write, true), format!("{protected}r-x\n"));
        assert_eq!(told(&data, fetch, true), format!("{protected}rw-\n"));
        for region in [&rom, &still] {
            assert!(told(region, walk, true).contains("page tables"));
            assert!(!told(region, walk, false).contains("page tables"));
            assert!(!told(region, write, true).contains("page tables"));
        }
    }

    #[test]
    fn of_many_forks_it_is_said_which_one_ended() {
        let told = |outcome, generation| {
            let mut out = String::new();
            let name = Name::numbered(1);
            tell_fork(&outcome, name, generation, ForkId { number: 7 }, &mut out).unwrap();
            out
        };
        let line = told(Outcome::OutOfBudget, 2);
        let ended = Outcome::OutOfBudget.to_string();
        let name = Name::numbered(1);
        assert_eq!(
            line,
            format!("guest {name}, fork 7 in generation 2: {ended}\n")
        );
        assert_eq!(told(Outcome::OutOfBudget, 0), "");
        assert_eq!(told(Outcome::Exited(3), 1), "");
    }
}
