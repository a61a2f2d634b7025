//! The run loop and the exits on the host: a CPU plays what a test has written down, and the VMCS is a fake.

use super::super::Words;
use super::super::backend::{EntryError, StateError};
use super::super::console::Printer;
use super::super::cpuid::Enabled;
use super::super::figure::Figure;
use super::super::name::Name;
use super::*;
use crate::addr::{Gva, PAGE_SIZE};
use crate::ept::{EptCapability, Region, RegionKind, Spaces};
use crate::frames::arena::Arena;
use crate::virt::control_registers::FixedBits;
use crate::vmx::exit::GuestStateFault;
use crate::vmx::fake::{FakeVmcs, ScriptedVmcs, Step, haswell, host, left};
use crate::vmx::loaded::{self, Loaded};
use crate::vmx::pml::Pml;
use crate::vmx::{
    Capabilities, EntryFailure, Field32, Field64, FieldNatural, InstructionError, Start64, VmFail,
    choose_controls,
};
use std::sync::Mutex;

const RAM: u64 = 64 * PAGE_SIZE;
/// A page outside of all regions.
const NOWHERE: u64 = RAM;
const RIP: u64 = 0x1000;
const GENERAL_PROTECTION: u64 = 0x8000_0b0d;
const INVALID_OPCODE: u64 = 0x8000_0306;

#[derive(Default)]
pub(super) struct TestHost {
    pub printed: String,
    pub interrupts: Vec<u8>,
    pub nmis: usize,
    pub machine_checks: usize,
    /// The byte that a breakpoint of the host's stands for.
    pub breakpoint: Option<u8>,
}

impl Host for TestHost {
    fn external_interrupt(&mut self, vector: u8) {
        self.interrupts.push(vector);
    }
    fn non_maskable_interrupt(&mut self) {
        self.nmis += 1;
    }
    fn machine_check(&mut self) {
        self.machine_checks += 1;
    }
    fn print(&mut self, _: &Printer, line: &[u8]) -> u64 {
        self.printed += std::str::from_utf8(line).unwrap();
        1
    }
    fn tell(&mut self, _: &str) {}
    fn explains(&mut self) -> Words {
        Words::None
    }
    fn figure(&mut self, _: Figure) -> bool {
        true
    }
    fn breakpoint(&mut self, _: Gva) -> Option<u8> {
        self.breakpoint
    }
}

type TestRunning<'r, 's> = Running<'r, 's, Arena, TestHost, Loaded<'r, ScriptedVmcs>>;

/// Runs a guest through the script: 32-bit code without paging, unless `prepare` has it otherwise. What it was left with is for
/// `check`.
#[track_caller]
fn run(
    script: Vec<Step>,
    prepare: impl FnOnce(&mut TestRunning<'_, '_>),
    check: impl FnOnce(Turn, &mut TestRunning<'_, '_>),
) {
    let frames = Arena::allocator(0x10_0000, 256);
    let spaces = Spaces::new(&frames, EptCapability::typical()).unwrap();
    let mut space = spaces.create(40).unwrap();
    let ram = AddrRange::new(Gpa::new(0), RAM).unwrap();
    space.map(Region::new(ram, RegionKind::Ram)).unwrap();
    let capabilities = Capabilities::discover(&haswell()).unwrap();
    let mut vmcs = FakeVmcs::new();
    let controls = choose_controls(&capabilities).unwrap();
    controls.write(&mut vmcs).unwrap();
    host().write(&mut vmcs).unwrap();
    let start = Start64 {
        rip: RIP,
        rsp: 0x8000,
        cr3: 0,
    };
    start.write(&capabilities, &mut vmcs).unwrap();
    vmcs.set(FieldNatural::GuestCr0, 0x31)
        .set(FieldNatural::Cr0ReadShadow, 0x31)
        .set(Field64::GuestEfer, 0)
        .set(Field32::GuestCsAccessRights, 0xc09b)
        .set(Field32::ExitInstructionLength, 2);
    let enabled = Enabled {
        rdtscp: true,
        invpcid: true,
        unrestricted: true,
    };
    let everything = |leaf, _| CpuidResult {
        eax: if leaf == 0xd { 7 } else { 0x20 },
        ebx: !0,
        ecx: !0,
        edx: !0,
    };
    let cpuid = CpuidTable::new(&everything, enabled);
    let any = FixedBits {
        fixed0: 0,
        fixed1: !0,
    };
    let limits = Limits {
        cr0: any,
        cr4: any,
        unrestricted: true,
        features: cpuid.features(),
    };
    let pml = Pml(frames.alloc_zeroed().unwrap());
    let (mut decoded, mut stats) = (Decoded::NONE, RunStats::ZERO);
    let mut running = Running {
        frames: &frames,
        cpuid: &cpuid,
        limits: &limits,
        decoded: &mut decoded,
        host: &mut TestHost::default(),
        space: &mut space,
        processor: Loaded {
            vmcs: ScriptedVmcs {
                vmcs,
                script: script.into(),
                dr6: 0xffff_0ff0,
                ..ScriptedVmcs::default()
            },
            vpid: Some(7),
            capabilities: &capabilities,
            pml: Some(&pml),
            timer_is_saved: true,
        },
        xcr0: &mut 1,
        cr8: &mut 0,
        area: &mut EntryArea::new(),
        devices: &mut Devices::new(Name::numbered(1)),
        stats: &mut stats,
        fork: ForkId::default(),
        budget: u64::MAX,
        slice: None,
        deadline: 0,
        charged: 0,
        turn: Turn::SliceOver,
        message: None,
        x87_selectors: false,
    };
    prepare(&mut running);
    let turn = running.run();
    check(turn, &mut running);
    assert!(running.processor.vmcs.script.is_empty(), "{turn:?}");
    // The page of the log is in no space.
    assert_eq!(spaces.audit([&space]), Ok(1));
    space.end_unseen();
    frames.release(pml.0);
}

/// As [`run`], to the end by HLT that every guest here comes to.
#[track_caller]
fn run_to_halt(
    mut script: Vec<Step>,
    prepare: impl FnOnce(&mut TestRunning<'_, '_>),
    check: impl FnOnce(&mut TestRunning<'_, '_>),
) {
    script.push(left(ExitReason::Hlt, |_, _| {}));
    run(script, prepare, |turn, running| {
        assert_eq!(turn, Turn::Ended(Outcome::Halted));
        check(running);
    });
}

fn get(running: &TestRunning<'_, '_>, field: impl Into<crate::vmx::Field>) -> u64 {
    running.processor.vmcs.vmcs.get(field)
}
fn injected(running: &TestRunning<'_, '_>) -> u64 {
    get(running, Field32::EntryInterruptionInformation)
}
fn nothing(_: &mut TestRunning<'_, '_>) {}

#[test]
fn instructions_are_answered_and_gone_past() {
    let script = vec![
        left(ExitReason::Cpuid, |_, regs| {
            regs.set(Gpr::Rax, offshoot_abi::CPUID_VERSION.into())
        }),
        left(ExitReason::Wrmsr, |_, regs| {
            assert_eq!(regs.get(Gpr::Rax), u64::from(offshoot_abi::VERSION));
            regs.set(Gpr::Rcx, 0x277);
            regs.set(Gpr::Rax, 0x0606_0606);
            regs.set(Gpr::Rdx, 0x0606_0606);
        }),
        left(ExitReason::Rdmsr, |_, regs| regs.set(Gpr::Rax, 0)),
        left(ExitReason::Vmcall, |vmcs, regs| {
            assert_eq!(regs.get(Gpr::Rax), 0x0606_0606);
            assert_eq!(vmcs.get(FieldNatural::GuestRip), RIP + 6);
            regs.set(Gpr::Rax, 1);
            regs.set(Gpr::Rdi, 5);
        }),
    ];
    run(script, nothing, |turn, running| {
        assert_eq!(turn, Turn::Ended(Outcome::Exited(5)));
        assert_eq!(get(running, Field64::GuestPat), 0x0606_0606_0606_0606);
        let exits: Vec<_> = running.stats.exits().collect();
        assert_eq!(exits.len(), 4);
        assert!(exits.iter().all(|(_, count)| *count == 1));
    });
}

#[test]
fn bytes_are_printed_at_the_port() {
    const OUT: u64 = 0x3f8 << 16;
    let out = |byte: u8| {
        left(ExitReason::IoInstruction, move |vmcs, regs| {
            vmcs.set(FieldNatural::ExitQualification, OUT);
            regs.set(Gpr::Rax, byte.into());
        })
    };
    let script = vec![out(b'h'), out(b'i'), out(b'\n')];
    run_to_halt(script, nothing, |running| {
        assert_eq!(running.host.printed, "hi");
        assert_eq!(get(running, FieldNatural::GuestRip), RIP + 6);
        assert_eq!(running.charged, 1);
    });
}

#[test]
fn a_string_goes_to_the_port_and_stops_at_a_breakpoint() {
    // REP OUTSB of three bytes from ES, with 32-bit addresses.
    fn outs(vmcs: &mut FakeVmcs) {
        vmcs.set(FieldNatural::ExitQualification, 0x3f8 << 16 | 0b11_0000)
            .set(Field32::ExitInstructionInformation, 1 << 7);
    }
    let script = vec![
        left(ExitReason::IoInstruction, |vmcs, regs| {
            outs(vmcs);
            regs.set(Gpr::Rsi, 0x5000);
            regs.set(Gpr::Rcx, 3);
            regs.set(Gpr::Rdx, 0x3f8);
        }),
        left(ExitReason::IoInstruction, |vmcs, regs| {
            assert_eq!((regs.get(Gpr::Rsi), regs.get(Gpr::Rcx)), (0x5002, 1));
            assert_eq!(vmcs.get(FieldNatural::GuestRip), RIP);
            let pending = FieldNatural::GuestPendingDebugExceptions;
            assert_eq!(vmcs.get(pending), 0x1002);
            vmcs.set(pending, 0);
            outs(vmcs);
        }),
    ];
    let prepare = |running: &mut TestRunning<'_, '_>| {
        running.space.write(Gpa::new(0x5000), b"ab\n").unwrap();
        // A breakpoint on the second byte, for reads and writes.
        running.processor.vmcs.dr[1] = 0x5001;
        let vmcs = &mut running.processor.vmcs.vmcs;
        vmcs.set(FieldNatural::GuestDr7, 0x0030_0408);
    };
    run_to_halt(script, prepare, |running| {
        assert_eq!(running.host.printed, "ab");
        assert_eq!(running.area.regs.get(Gpr::Rsi), 0x5003);
        assert_eq!(running.area.regs.get(Gpr::Rcx), 0);
        assert_eq!(get(running, FieldNatural::GuestRip), RIP + 2);
        assert_eq!(running.charged, 1);
    });
}

#[test]
fn a_port_with_a_breakpoint_is_accessed_once() {
    let script = vec![left(ExitReason::IoInstruction, |vmcs, regs| {
        // IN of a word.
        vmcs.set(FieldNatural::ExitQualification, 0x80 << 16 | 0b1001);
        regs.set(Gpr::Rax, 0x1234_5678);
    })];
    let prepare = |running: &mut TestRunning<'_, '_>| {
        running.processor.vmcs.dr[0] = 0x80;
        running
            .processor
            .vmcs
            .vmcs
            .set(FieldNatural::GuestDr7, 0x2_0401)
            .set(FieldNatural::GuestCr4, 8);
    };
    run_to_halt(script, prepare, |running| {
        assert_eq!(running.area.regs.get(Gpr::Rax), 0x1234_ffff);
        let pending = get(running, FieldNatural::GuestPendingDebugExceptions);
        assert_eq!(pending, 0x1001);
        assert_eq!(get(running, FieldNatural::GuestRip), RIP + 2);
    });
}

fn violation(qualification: u64, gpa: u64) -> Step {
    left(ExitReason::EptViolation, move |vmcs, _| {
        vmcs.set(FieldNatural::ExitQualification, qualification)
            .set(Field64::GuestPhysicalAddress, gpa)
            .set(FieldNatural::GuestLinearAddress, gpa);
    })
}

#[test]
fn memory_is_there_when_it_is_touched() {
    let script = vec![violation(0x182, 0x3008), violation(0x181, 0x4000)];
    run_to_halt(script, nothing, |running| {
        assert_eq!(get(running, FieldNatural::GuestRip), RIP);
        assert_eq!(injected(running), 0);
        let leaf = running.space.path(Gpa::new(0x3000)).last().unwrap();
        assert_eq!(leaf.bits & 2, 2);
    });
}

#[test]
fn an_event_whose_delivery_touched_memory_is_delivered_again() {
    let script = vec![left(ExitReason::EptViolation, |vmcs, _| {
        vmcs.set(FieldNatural::ExitQualification, 0x182)
            .set(Field64::GuestPhysicalAddress, 0x3008)
            .set(Field32::IdtVectoringInformation, 0x8000_0b0e)
            .set(Field32::IdtVectoringErrorCode, 6);
    })];
    run_to_halt(script, nothing, |running| {
        assert_eq!(injected(running), 0x8000_0b0e);
        assert_eq!(get(running, Field32::EntryExceptionErrorCode), 6);
    });
}

#[test]
fn what_an_iret_had_unblocked_is_blocked_again() {
    // The violation by an IRET, with a step pending.
    let script = vec![left(ExitReason::EptViolation, |vmcs, _| {
        vmcs.set(FieldNatural::ExitQualification, 1 << 12 | 0x182)
            .set(Field64::GuestPhysicalAddress, 0x3008)
            .set(FieldNatural::GuestPendingDebugExceptions, 0x4000);
    })];
    run_to_halt(script, nothing, |running| {
        assert_eq!(get(running, Field32::GuestInterruptibilityState), 8);
        let pending = get(running, FieldNatural::GuestPendingDebugExceptions);
        assert_eq!(pending, 0);
    });
}

#[test]
fn memory_that_is_not_the_guests_ends_it() {
    run(vec![violation(0x182, NOWHERE)], nothing, |turn, _| {
        let Turn::Ended(Outcome::Memory(fault)) = turn else {
            panic!("{turn:?}");
        };
        assert_eq!(fault.rip, Gva::new(RIP));
        assert_eq!(fault.gva, Some(Gva::new(NOWHERE)));
        assert!(!fault.during_delivery);
    });
}

#[test]
fn the_log_is_emptied_into_the_space() {
    let script = vec![left(ExitReason::PmlFull, |vmcs, _| {
        vmcs.set(FieldNatural::ExitQualification, 1 << 12)
            .set(crate::vmx::Field16::PmlIndex, 0xffff);
    })];
    let prepare = |running: &mut TestRunning<'_, '_>| {
        assert!(running.space.log_dirty());
    };
    run_to_halt(script, prepare, |running| {
        assert_eq!(get(running, crate::vmx::Field16::PmlIndex), 511);
        assert_eq!(get(running, Field32::GuestInterruptibilityState), 8);
    });
}

#[test]
fn an_entry_that_fails_is_told_as_what_it_is() {
    let failed = |entered: u64, reason: u64, error: u64| -> Vec<Step> {
        vec![Box::new(move |vmcs, _| {
            vmcs.set(Field32::VmInstructionError, error)
                .set(Field32::ExitReason, reason)
                .set(FieldNatural::ExitQualification, 4);
            entered
        })]
    };
    let entry_error = |script| {
        let found = Mutex::new(None);
        run(script, nothing, |turn, running| {
            let Turn::Ended(Outcome::Entry(EntryError::Vmx(error))) = turn else {
                panic!("{turn:?}");
            };
            *found.lock().unwrap() = Some((error, running.host.machine_checks));
        });
        found.into_inner().unwrap().unwrap()
    };
    let instruction = |fail| (loaded::EntryError::Instruction(fail), 0);
    let invalid = VmFail::Valid(InstructionError::EntryInvalidControls);
    assert_eq!(entry_error(failed(1 << 32 | 1, 0, 7)), instruction(invalid));
    assert_eq!(
        entry_error(failed(1 << 32, 0, 7)),
        instruction(VmFail::Invalid)
    );
    let state = 1 << 31 | 33;
    let fault = EntryFailure::InvalidGuestState(GuestStateFault::LinkPointer);
    assert_eq!(
        entry_error(failed(state, state, 0)),
        (loaded::EntryError::State(fault), 0)
    );
    // That one is the host's.
    let machine_check = 1 << 31 | 41;
    assert_eq!(
        entry_error(failed(machine_check, machine_check, 0)),
        (loaded::EntryError::State(EntryFailure::MachineCheck), 1)
    );
}

#[test]
fn what_nothing_asks_for_ends_the_guest() {
    let unexpected = |reason| Outcome::UnexpectedExit(reason);
    for (entered, outcome) in [
        (44, unexpected(ExitReason::ApicAccess)),
        (1 << 27 | 12, unexpected(ExitReason::Hlt)),
        (35, Outcome::UnknownExit(35)),
        (2, Outcome::TripleFault),
    ] {
        let step: Step = Box::new(move |vmcs, _| {
            vmcs.set(Field32::ExitReason, entered);
            entered
        });
        run(vec![step], nothing, |turn, _| {
            assert_eq!(turn, Turn::Ended(outcome));
        });
    }
}

#[test]
fn a_bus_lock_is_counted_beside_its_exit() {
    let step: Step = Box::new(|vmcs, regs| {
        regs.set(Gpr::Rax, 0);
        vmcs.set(Field32::ExitReason, 1 << 26 | 18);
        1 << 26 | 18
    });
    run_to_halt(vec![step], nothing, |running| {
        assert_eq!(get(running, FieldNatural::GuestRip), RIP + 2);
        let count = |reason| {
            let found = running.stats.exits().find(|(known, _)| *known == reason);
            found.map(|(_, count)| count)
        };
        assert_eq!(count(ExitReason::BusLock), Some(1));
        assert_eq!(count(ExitReason::Vmcall), Some(1));
    });
}

#[test]
fn a_state_that_cannot_be_read_ends_the_guest() {
    let script = vec![left(ExitReason::Cpuid, |vmcs, _| {
        vmcs.remove(FieldNatural::GuestRflags);
    })];
    run(script, nothing, |turn, _| {
        let Turn::Ended(Outcome::State(StateError::Vmcs(error))) = turn else {
            panic!("{turn:?}");
        };
        assert_eq!(error.field, FieldNatural::GuestRflags.into());
    });
}

/// An exit by an exception.
fn exception(information: u64, qualification: u64, vectoring: u64) -> Vec<Step> {
    vec![left(ExitReason::ExceptionOrNmi, move |vmcs, _| {
        vmcs.set(Field32::ExitInterruptionInformation, information)
            .set(FieldNatural::ExitQualification, qualification)
            .set(Field32::IdtVectoringInformation, vectoring)
            .set(Field32::ExitInterruptionErrorCode, 2)
            .set(Field32::ExitInstructionLength, 1);
    })]
}

#[test]
fn exceptions_that_exit_are_raised_all_the_same() {
    // A single step, with access to debug registers beside it.
    let step = exception(0x8000_0301, 1 << 14 | 1 << 13, 0);
    let general_detect = |running: &mut TestRunning<'_, '_>| {
        let vmcs = &mut running.processor.vmcs.vmcs;
        vmcs.set(FieldNatural::GuestDr7, 0x2400);
    };
    run_to_halt(step, general_detect, |running| {
        assert_eq!(injected(running), 0x8000_0301);
        assert_eq!(running.processor.vmcs.dr6, 0xffff_6ff0);
        assert_eq!(get(running, FieldNatural::GuestDr7), 0x400);
    });
    for (information, vectoring, expected) in [
        // #AC, alone and in the delivery of #GP and #PF.
        (0x8000_0b11, 0, 0x8000_0b11),
        (0x8000_0b11, GENERAL_PROTECTION, 0x8000_0b11),
        // INT1 and INT3.
        (0x8000_0501, 0, 0x8000_0501),
        (0x8000_0603, 0, 0x8000_0603),
    ] {
        run_to_halt(exception(information, 0, vectoring), nothing, |running| {
            assert_eq!(injected(running), expected, "{information:#x}");
        });
    }
    // #PF, of a guest that has no handlers.
    run(exception(0x8000_0b0e, 0x6000, 0), nothing, |turn, _| {
        let Turn::Ended(Outcome::Exception(unhandled)) = turn else {
            panic!("{turn:?}");
        };
        assert_eq!((unhandled.vector, unhandled.code), (14, Some(2)));
        assert_eq!(unhandled.address, Some(Gva::new(0x6000)));
    });
}

#[test]
fn nmis_interrupts_and_machine_checks_are_the_hosts() {
    run_to_halt(exception(0x8000_0202, 0, 0x8000_0020), nothing, |running| {
        assert_eq!(running.host.nmis, 1);
        assert_eq!(injected(running), 0x8000_0020, "what it interrupted");
    });
    run_to_halt(exception(0x8000_0312, 0, 0), nothing, |running| {
        assert_eq!((running.host.machine_checks, injected(running)), (1, 0));
    });
    let script = vec![left(ExitReason::ExternalInterrupt, |vmcs, _| {
        vmcs.set(Field32::ExitInterruptionInformation, 0x8000_0031);
    })];
    run_to_halt(script, nothing, |running| {
        assert_eq!(running.host.interrupts, [0x31]);
        assert_eq!(injected(running), 0);
    });
}

#[test]
fn the_hosts_breakpoint_gives_way_to_the_byte_that_belongs_there() {
    let script = exception(0x8000_0603, 0, 0);
    let prepare = |running: &mut TestRunning<'_, '_>| running.host.breakpoint = Some(0x90);
    run_to_halt(script, prepare, |running| {
        let mut byte = [0];
        running.space.read(Gpa::new(RIP), &mut byte).unwrap();
        assert_eq!((byte, injected(running)), ([0x90], 0));
        assert_eq!(get(running, FieldNatural::GuestRip), RIP);
        assert_eq!(get(running, FieldNatural::GuestRflags), 0x1_0002);
    });
}

#[test]
fn what_is_interrupted_must_be_an_event() {
    for information in [0x8000_0100, 0x8000_0700] {
        run(
            exception(0x8000_0b11, 0, information),
            nothing,
            |turn, _| {
                assert_eq!(turn, Turn::Ended(Outcome::Reinject));
            },
        );
    }
}

#[test]
fn time_that_is_over_ends_the_turn_or_the_guest() {
    let timer = || vec![left(ExitReason::PreemptionTimer, |_, _| {})];
    run(
        timer(),
        |running| running.slice = Some(0),
        |turn, _| assert_eq!(turn, Turn::SliceOver),
    );
    run(
        timer(),
        |running| running.budget = 0,
        |turn, _| assert_eq!(turn, Turn::Ended(Outcome::OutOfBudget)),
    );
    // It is not over yet: the timer is wound up again.
    let script = vec![left(ExitReason::PreemptionTimer, |vmcs, _| {
        vmcs.set(Field32::PreemptionTimerValue, 0);
    })];
    run_to_halt(script, nothing, |running| {
        let ticks = get(running, Field32::PreemptionTimerValue);
        assert_eq!(ticks, u64::from(u32::MAX));
    });
}

#[test]
fn a_guest_that_waits_gives_its_slice_away() {
    let waits = vec![left(ExitReason::Hlt, |vmcs, _| {
        vmcs.set(FieldNatural::GuestRflags, 0x202);
    })];
    run(
        waits,
        |running| running.slice = Some(u64::MAX),
        |turn, running| {
            assert_eq!(turn, Turn::Halts);
            assert_eq!(get(running, FieldNatural::GuestRip), RIP + 2);
        },
    );
}

fn cr_access(qualification: u64, rax: u64) -> Vec<Step> {
    vec![left(ExitReason::CrAccess, move |vmcs, regs| {
        vmcs.set(FieldNatural::ExitQualification, qualification);
        regs.set(Gpr::Rax, rax);
    })]
}

#[test]
fn control_registers_are_written_and_translations_dropped() {
    // MOV to CR4: PGE and PSE.
    run_to_halt(cr_access(4, 0x90), nothing, |running| {
        assert_eq!(get(running, FieldNatural::Cr4ReadShadow), 0x90);
        // MCE is on, whatever the guest says.
        assert_eq!(get(running, FieldNatural::GuestCr4), 0xd0);
        assert_eq!(running.processor.vmcs.invvpids, [7]);
        assert_eq!(get(running, FieldNatural::GuestRip), RIP + 2);
    });
    // A bit that there is not.
    run_to_halt(cr_access(4, 1 << 30), nothing, |running| {
        assert_eq!(injected(running), GENERAL_PROTECTION);
        assert_eq!(get(running, FieldNatural::GuestRip), RIP);
    });
    // MOV to CR8, and back.
    run_to_halt(cr_access(8, 9), nothing, |running| {
        assert_eq!(*running.cr8, 9);
    });
    run_to_halt(
        cr_access(0x18, 9),
        |running| *running.cr8 = 3,
        |running| assert_eq!(running.area.regs.get(Gpr::Rax), 3),
    );
    // INVVPID fails.
    let prepare = |running: &mut TestRunning<'_, '_>| running.processor.vmcs.cannot_drop = true;
    run(cr_access(4, 0x90), prepare, |turn, _| {
        assert!(matches!(turn, Turn::Ended(Outcome::Entry(_))), "{turn:?}");
    });
}

#[test]
fn pae_paging_loads_its_top_entries_or_faults() {
    let pae = |vmcs: &mut FakeVmcs| {
        vmcs.set(FieldNatural::GuestCr4, 0x20)
            .set(FieldNatural::Cr4ReadShadow, 0x20)
            .set(FieldNatural::GuestCr3, 0x2000);
    };
    for (entry, loads) in [(0x3001_u64, true), (0x3003, false)] {
        let prepare = |running: &mut TestRunning<'_, '_>| {
            pae(&mut running.processor.vmcs.vmcs);
            let bytes = entry.to_le_bytes();
            running.space.write(Gpa::new(0x2000), &bytes).unwrap();
        };
        // MOV to CR0 that turns paging on.
        run_to_halt(cr_access(0, 0x8000_0031), prepare, |running| {
            let loaded = if loads { entry } else { 0 };
            assert_eq!(get(running, Field64::GuestPdpte0), loaded);
            let event = if loads { 0 } else { GENERAL_PROTECTION };
            assert_eq!(injected(running), event);
        });
    }
}

#[test]
fn xcr0_is_written_where_it_may_be() {
    let xsetbv = |rax: u64| {
        vec![left(ExitReason::Xsetbv, move |_, regs| {
            regs.set(Gpr::Rcx, 0);
            regs.set(Gpr::Rax, rax);
            regs.set(Gpr::Rdx, 0);
        })]
    };
    run_to_halt(xsetbv(3), nothing, |running| {
        assert_eq!((*running.xcr0, running.processor.vmcs.xcr0), (3, 3));
    });
    // SSE without x87.
    run_to_halt(xsetbv(2), nothing, |running| {
        assert_eq!((*running.xcr0, running.processor.vmcs.xcr0), (1, 0));
        assert_eq!(injected(running), GENERAL_PROTECTION);
    });
}

#[test]
fn registers_that_no_exit_switches_are_written_in_the_cpu() {
    let script = vec![left(ExitReason::Wrmsr, |_, regs| {
        // IA32_LSTAR.
        regs.set(Gpr::Rcx, 0xc000_0082);
        regs.set(Gpr::Rax, 0x1000);
    })];
    run_to_halt(script, nothing, |running| {
        assert_eq!(running.processor.vmcs.msrs, [(0xc000_0082, 0x1000)]);
    });
}

#[test]
fn what_cpuid_does_not_offer_is_no_instruction() {
    for reason in [ExitReason::Vmxon, ExitReason::Monitor, ExitReason::Encls] {
        run_to_halt(vec![left(reason, |_, _| {})], nothing, |running| {
            assert_eq!(injected(running), INVALID_OPCODE);
            assert_eq!(get(running, FieldNatural::GuestRip), RIP);
        });
    }
    run_to_halt(
        vec![left(ExitReason::Wbinvd, |_, _| {})],
        nothing,
        |running| {
            assert_eq!(
                (injected(running), get(running, FieldNatural::GuestRip)),
                (0, RIP + 2)
            );
        },
    );
}

#[test]
fn an_instruction_that_takes_too_long_goes_on_unless_its_state_is_lost() {
    let timeout = |qualification: u64| {
        vec![left(ExitReason::InstructionTimeout, move |vmcs, _| {
            vmcs.set(FieldNatural::ExitQualification, qualification);
        })]
    };
    run_to_halt(timeout(1 << 12), nothing, |running| {
        assert_eq!(get(running, Field32::GuestInterruptibilityState), 8);
    });
    run(timeout(1), nothing, |turn, _| {
        assert!(
            matches!(turn, Turn::Ended(Outcome::Unsupported(_))),
            "{turn:?}"
        );
    });
}
