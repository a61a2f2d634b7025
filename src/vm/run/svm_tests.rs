//! The same run loop and exits over SVM: a CPU plays what a test has written down with the VMCB.

use super::super::cpuid::Enabled;
use super::super::name::Name;
use super::tests::TestHost;
use super::*;
use crate::addr::{Gva, Hpa, PAGE_SIZE};
use crate::ept::{EptCapability, Region, RegionKind, Spaces};
use crate::frames::arena::Arena;
use crate::svm::fake::{ScriptedCpu, Step, epyc, left, qemu, refuse};
use crate::svm::field::{Field, Word};
use crate::svm::fields as f;
use crate::svm::loaded::{Loaded, Refused, Taken};
use crate::svm::start_state::{Addresses, write_controls, write_start};
use crate::svm::{Asid, Capabilities, Feature, TlbControl, Vmcb, choose};
use crate::virt::control_registers::FixedBits;
use crate::vmx::Start64;

const RAM: u64 = 64 * PAGE_SIZE;
/// A page outside of all regions.
const NOWHERE: u64 = RAM;
const RIP: u64 = 0x1000;
const GENERAL_PROTECTION: u64 = 0x8000_0b0d;
const INVALID_OPCODE: u64 = 0x8000_0306;

const CPUID: u64 = 0x72;
const HLT: u64 = 0x78;
const IOIO: u64 = 0x7b;
const MSR: u64 = 0x7c;
const VMMCALL: u64 = 0x81;
const XSETBV: u64 = 0x8d;
const NESTED_FAULT: u64 = 0x400;
const WRITE_CR0: u64 = 0x10;
const READ_CR4: u64 = 0x04;
const WRITE_CR4: u64 = 0x14;

type TestRunning<'r, 's> = Running<'r, 's, Arena, TestHost, Loaded<'r, ScriptedCpu>>;

/// Runs a guest through the script: 32-bit code without paging, and this code, unless `prepare` has it otherwise. What it was left
/// with is for `check`.
#[track_caller]
fn run(
    code: &[u8],
    script: Vec<Step>,
    prepare: impl FnOnce(&mut TestRunning<'_, '_>),
    check: impl FnOnce(Turn, &mut TestRunning<'_, '_>),
) {
    run_on(
        Capabilities::discover(&qemu()).unwrap(),
        code,
        script,
        prepare,
        check,
    );
}

#[track_caller]
fn run_on(
    capabilities: Capabilities,
    code: &[u8],
    script: Vec<Step>,
    prepare: impl FnOnce(&mut TestRunning<'_, '_>),
    check: impl FnOnce(Turn, &mut TestRunning<'_, '_>),
) {
    let frames = Arena::allocator(0x10_0000, 256);
    let spaces = Spaces::new(&frames, EptCapability::typical()).unwrap();
    let mut space = spaces.create(40).unwrap();
    let ram = AddrRange::new(Gpa::new(0), RAM).unwrap();
    space.map(Region::new(ram, RegionKind::Ram)).unwrap();
    space.write(Gpa::new(RIP), code).unwrap();
    let chosen = choose(&capabilities).unwrap();
    let mut vmcb = Vmcb::ZERO;
    let addresses = Addresses {
        nested_cr3: Hpa::new(0),
        msr_map: Hpa::new(0x21_0000),
        io_map: Hpa::new(0x22_0000),
    };
    write_controls(&mut vmcb, &chosen, &addresses);
    let start = Start64 {
        rip: RIP,
        rsp: 0x8000,
        cr3: 0,
    };
    write_start(&mut vmcb, &start);
    for (field, value) in [(f::CR0, 0x31), (f::VISIBLE_CR0, 0x31), (f::EFER, 1 << 12)] {
        vmcb.set(field, value);
    }
    vmcb.set(f::ATTRIBUTES_OF_CS, 0xc9b);
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
    let mut asid = Asid::new();
    let (mut decoded, mut stats) = (Decoded::NONE, RunStats::ZERO);
    let mut running = Running {
        frames: &frames,
        cpuid: &cpuid,
        limits: &limits,
        decoded: &mut decoded,
        host: &mut TestHost::default(),
        space: &mut space,
        processor: Loaded::new(
            ScriptedCpu::new(script),
            &mut vmcb,
            &mut asid,
            &capabilities,
            chosen.features,
        ),
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
    assert!(running.processor.cpu().script.is_empty(), "{turn:?}");
    assert_eq!(spaces.audit([&space]), Ok(0));
    space.end_unseen();
}

/// As [`run`], to the end by HLT that every guest here comes to.
#[track_caller]
fn run_to_halt(
    code: &[u8],
    mut script: Vec<Step>,
    prepare: impl FnOnce(&mut TestRunning<'_, '_>),
    check: impl FnOnce(&mut TestRunning<'_, '_>),
) {
    script.push(left(HLT, |_, _| {}));
    let code: Vec<u8> = code.iter().copied().chain([0xf4]).collect();
    run(&code, script, prepare, |turn, running| {
        assert_eq!(turn, Turn::Ended(Outcome::Halted));
        check(running);
    });
}

fn get<T: Word>(running: &TestRunning<'_, '_>, field: Field<T>) -> T {
    running.processor.vmcb().get(field)
}
fn injected(running: &TestRunning<'_, '_>) -> u64 {
    get(running, f::EVENT_INJECTION)
}
fn nothing(_: &mut TestRunning<'_, '_>) {}

#[test]
fn instructions_are_answered_and_gone_past() {
    // With a prefix that means nothing, and without.
    let code = [
        0xf2, 0x0f, 0xa2, 0x0f, 0x30, 0x0f, 0x32, 0x66, 0x0f, 0x01, 0xd9,
    ];
    let script = || {
        vec![
            left(CPUID, |_, regs| {
                regs.set(Gpr::Rax, offshoot_abi::CPUID_VERSION.into());
            }),
            left(MSR, |vmcb, regs| {
                assert_eq!(regs.get(Gpr::Rax), u64::from(offshoot_abi::VERSION));
                assert_eq!(vmcb.get(f::RIP), RIP + 3);
                regs.set(Gpr::Rcx, 0x277);
                regs.set(Gpr::Rax, 0x0606_0606);
                regs.set(Gpr::Rdx, 0x0606_0606);
                vmcb.set(f::EXIT_INFO_1, 1);
            }),
            left(MSR, |_, regs| regs.set(Gpr::Rax, 0)),
            left(VMMCALL, |vmcb, regs| {
                assert_eq!(regs.get(Gpr::Rax), 0x0606_0606);
                assert_eq!(vmcb.get(f::RIP), RIP + 7);
                regs.set(Gpr::Rax, 1);
                regs.set(Gpr::Rdi, 5);
            }),
        ]
    };
    let check = |turn, running: &mut TestRunning<'_, '_>| {
        assert_eq!(turn, Turn::Ended(Outcome::Exited(5)));
        assert_eq!(get(running, f::PAT), 0x0606_0606_0606_0606);
        let exits: Vec<_> = running.stats.exits().collect();
        assert_eq!(exits.len(), 4);
        assert!(exits.iter().all(|(_, count)| *count == 1));
    };
    run(&code, script(), nothing, check);
    // A CPU that tells where they end needs no code.
    let tells = Capabilities::discover(&epyc()).unwrap();
    assert!(tells.features.has(Feature::NextRipSave));
    let told = script().into_iter().zip([3, 5, 7, 11]).map(|(step, next)| {
        Box::new(move |vmcb: &mut Vmcb, regs: &mut GuestRegs| {
            let done = step(vmcb, regs);
            vmcb.set(f::NEXT_RIP, RIP + next);
            done
        }) as Step
    });
    run_on(tells, &[], told.collect(), nothing, check);
}

#[test]
fn code_that_is_no_longer_there_ends_the_guest() {
    run(&[0x90], vec![left(CPUID, |_, _| {})], nothing, |turn, _| {
        assert!(matches!(turn, Turn::Ended(Outcome::Unsupported(_))));
    });
    // Where its tables do not lead to it, that is a page fault.
    let script = vec![
        left(CPUID, |vmcb, _| {
            vmcb.set(f::CR0, 0x8000_0031);
            vmcb.set(f::CR3, 0x3000);
        }),
        left(0x7f, |vmcb, _| {
            assert_eq!(vmcb.get(f::EVENT_INJECTION), 0x8000_0b0e);
            assert_eq!(vmcb.get(f::CR2), RIP);
        }),
    ];
    run(&[0x0f, 0xa2], script, nothing, |turn, _| {
        assert_eq!(turn, Turn::Ended(Outcome::TripleFault));
    });
}

#[test]
fn bytes_and_strings_are_printed_at_the_port() {
    let out = |byte: u8| {
        left(IOIO, move |vmcb, regs| {
            vmcb.set(f::EXIT_INFO_1, 0x3f8 << 16 | 1 << 4);
            let next = vmcb.get(f::RIP) + 2;
            vmcb.set(f::EXIT_INFO_2, next);
            regs.set(Gpr::Rax, byte.into());
        })
    };
    let outs = |ended: bool| {
        left(IOIO, move |vmcb, regs| {
            vmcb.set(f::EXIT_INFO_1, 0x3f8 << 16 | 0b1_1100);
            vmcb.set(f::EXIT_INFO_2, RIP + 7);
            if !ended {
                regs.set(Gpr::Rsi, 0x5000);
                regs.set(Gpr::Rcx, 3);
                regs.set(Gpr::Rdx, 0x3f8);
            } else {
                // It was stopped by a breakpoint on its second byte.
                assert_eq!((regs.get(Gpr::Rsi), regs.get(Gpr::Rcx)), (0x5002, 1));
                assert_eq!(vmcb.get(f::EVENT_INJECTION), 0x8000_0301);
                assert_eq!((vmcb.get(f::DR6) & 0xf, vmcb.get(f::RIP)), (2, RIP + 4));
            }
        })
    };
    let script = vec![out(b'h'), out(b'i'), outs(false), outs(true)];
    // The widths of addresses and the segment are in the code alone.
    let code = [0xe6, 0xf8, 0xe6, 0xf8, 0x26, 0xf3, 0x6e];
    let prepare = |running: &mut TestRunning<'_, '_>| {
        running.space.write(Gpa::new(0x5000), b"ab\n").unwrap();
        running.processor.cpu_mut().dr[1] = 0x5001;
        // For reads and writes.
        running
            .processor
            .vmcb_mut()
            .set(f::DR7, 0x400 | 0b1000 | 3 << 20);
    };
    run_to_halt(&code, script, prepare, |running| {
        assert_eq!(running.host.printed, "hiab");
        assert_eq!(get(running, f::RIP), RIP + 7);
    });
}

#[test]
fn memory_comes_when_it_is_touched_and_not_where_there_is_none() {
    let fault = |gpa: u64, code: u64| {
        left(NESTED_FAULT, move |vmcb, _| {
            vmcb.set(f::EXIT_INFO_1, 1 << 32 | code);
            vmcb.set(f::EXIT_INFO_2, gpa);
        })
    };
    run_to_halt(&[], vec![fault(0x9000, 6)], nothing, |running| {
        assert_eq!(running.space.faults().filled, 1);
        assert_eq!(injected(running) & 1 << 31, 0);
    });
    run(&[], vec![fault(NOWHERE, 6)], nothing, |turn, _| {
        let Turn::Ended(Outcome::Memory(fault)) = turn else {
            panic!("{turn:?}");
        };
        assert_eq!((fault.gva, fault.rip), (None, Gva::new(RIP)));
        let text = fault.to_string();
        assert!(
            text.starts_with("write at GPA 0x40000, RIP 0x1000"),
            "{text}"
        );
    });
    // Reserved bits in our tables are our bug.
    run(&[], vec![fault(0x9000, 0xe)], nothing, |turn, _| {
        let gpa = Gpa::new(0x9000);
        assert_eq!(turn, Turn::Ended(Outcome::EptMisconfiguration(gpa)));
    });
}

#[test]
fn an_event_that_a_fault_has_interrupted_is_delivered_again() {
    // A page fault with its error code; INT 80h, which comes again by itself; INT3 that the host has injected.
    for (injected_before, interrupted, again) in [
        (0, 0x2_8000_0b0e, 0x2_8000_0b0e),
        (0, 0x8000_0480, 0),
        (0x8000_0303, 0x8000_0303, 0x8000_0303),
        (0, 0x8000_0303, 0),
    ] {
        let script = vec![
            left(NESTED_FAULT, move |vmcb, _| {
                vmcb.set(f::EXIT_INFO_1, 1 << 32 | 6);
                vmcb.set(f::EXIT_INFO_2, 0x7ff8);
                vmcb.set(f::EXIT_INTERRUPTION, interrupted);
            }),
            left(HLT, move |vmcb, _| {
                let bits = vmcb.get(f::EVENT_INJECTION);
                let valid = bits & 1 << 31 != 0;
                assert_eq!(if valid { bits } else { 0 }, again, "{interrupted:#x}");
                assert_eq!(vmcb.get(f::RIP), RIP);
            }),
        ];
        let prepare = |running: &mut TestRunning<'_, '_>| {
            let vmcb = running.processor.vmcb_mut();
            vmcb.set(f::EVENT_INJECTION, injected_before);
        };
        run(&[0xf4], script, prepare, |turn, _| {
            assert_eq!(turn, Turn::Ended(Outcome::Halted));
        });
    }
    // What can be no event ends the guest.
    let script = vec![left(0x60, |vmcb, _| {
        vmcb.set(f::EXIT_INTERRUPTION, 0x8000_0730)
    })];
    let prepare = |running: &mut TestRunning<'_, '_>| {
        let interrupts = &mut running.processor.cpu_mut().interrupts;
        interrupts.push_back(Taken::Timer);
    };
    run(&[], script, prepare, |turn, _| {
        assert_eq!(turn, Turn::Ended(Outcome::Reinject));
    });
}

#[test]
fn interrupts_are_the_hosts() {
    let quiet = |code| left(code, |_, _| {});
    // The timer's, another, an NMI, an SMI.
    let script = vec![quiet(0x60), quiet(0x60), quiet(0x61), quiet(0x62)];
    let prepare = |running: &mut TestRunning<'_, '_>| {
        let interrupts = &mut running.processor.cpu_mut().interrupts;
        interrupts.extend([Taken::Timer, Taken::Other(0x21)]);
    };
    run_to_halt(&[], script, prepare, |running| {
        assert_eq!(running.host.interrupts, [0x21]);
        assert_eq!(running.host.nmis, 1);
        // Before the run, and when it had run out.
        assert_eq!(running.processor.cpu().timer.len(), 2);
        let exits: Vec<_> = running.stats.exits().map(|(reason, _)| reason).collect();
        for reason in [
            ExitReason::PreemptionTimer,
            ExitReason::ExternalInterrupt,
            ExitReason::ExceptionOrNmi,
            ExitReason::OtherSmi,
        ] {
            assert!(exits.contains(&reason), "{reason}");
        }
    });
}

#[test]
fn exceptions_go_back_to_the_guest() {
    for (code, interrupted, expected) in [
        (0x41, 0, 0x8000_0301),
        (0x51, 0, 0x8000_0b11),
        // #AC while a page fault was delivered.
        (0x51, 0x8000_0b0e, 0x8000_0b11),
        // #AC in the delivery of #GP.
        (0x51, 0x8000_0b0d, 0x8000_0b11),
    ] {
        let script = vec![
            left(code, move |vmcb, _| {
                vmcb.set(f::EXIT_INTERRUPTION, interrupted);
            }),
            left(HLT, move |vmcb, _| {
                assert_eq!(vmcb.get(f::EVENT_INJECTION), expected, "{code:#x}");
            }),
        ];
        run(&[0xf4], script, nothing, |turn, _| {
            assert_eq!(turn, Turn::Ended(Outcome::Halted));
        });
    }
    // INT3 with a prefix pushes what comes behind it, where the host has put none there.
    let script = vec![
        left(0x43, |_, _| {}),
        left(0x7f, |vmcb, _| {
            assert_eq!(vmcb.get(f::EVENT_INJECTION), 0x8000_0303);
            assert_eq!(vmcb.get(f::RIP), RIP + 2);
        }),
    ];
    run(&[0x66, 0xcc], script, nothing, |turn, _| {
        assert_eq!(turn, Turn::Ended(Outcome::TripleFault));
    });
}

#[test]
fn control_registers_are_what_the_guest_has_written() {
    // mov cr0, ebx; clts; lmsw cx; mov cr4, edx; mov eax, cr4
    let code = [
        0x0f, 0x22, 0xc3, 0x0f, 0x06, 0x0f, 0x01, 0xf1, 0x0f, 0x22, 0xe2, 0x0f, 0x20, 0xe0,
    ];
    const CD_AND_TS: u64 = 1 << 30 | 1 << 3;
    const PGE: u64 = 1 << 7;
    let script = vec![
        left(WRITE_CR0, |_, regs| regs.set(Gpr::Rbx, 0x31 | CD_AND_TS)),
        left(WRITE_CR0, |vmcb, _| {
            assert_eq!(vmcb.get(f::CR0), 0x39);
            assert_eq!(vmcb.get(f::VISIBLE_CR0), 0x31 | CD_AND_TS);
            assert_eq!(vmcb.intercepts().vectors()[0] & 1, 1);
        }),
        left(WRITE_CR0, |vmcb, regs| {
            assert_eq!(vmcb.get(f::CR0), 0x31);
            regs.set(Gpr::Rcx, 0xfff2);
        }),
        left(WRITE_CR4, |vmcb, regs| {
            // Nothing but the lowest four bits, and PE stays.
            assert_eq!(vmcb.get(f::CR0), 0x33);
            regs.set(Gpr::Rdx, PGE);
        }),
        left(READ_CR4, |vmcb, _| {
            // With MCE, of which the guest does not know.
            assert_eq!(vmcb.get(f::CR4), PGE | 1 << 6);
            assert_eq!(vmcb.intercepts().vectors()[0] >> 4 & 1, 1);
        }),
    ];
    run_to_halt(&code, script, nothing, |running| {
        assert_eq!(running.area.regs.get(Gpr::Rax), PGE);
        // What a MOV to a control register flushes is dropped before the guest goes on.
        let dropped = &running.processor.cpu().dropped;
        assert_eq!(dropped.first(), Some(&TlbControl::FlushAll));
        assert!(dropped[1..].contains(&TlbControl::FlushAsid));
    });
    // Reserved bits are #GP, and nothing is written.
    let script = vec![
        left(WRITE_CR4, |_, regs| regs.set(Gpr::Rdx, 1 << 31)),
        left(0x7f, |vmcb, _| {
            assert_eq!(vmcb.get(f::EVENT_INJECTION), GENERAL_PROTECTION);
            assert_eq!(vmcb.get(f::RIP), RIP);
        }),
    ];
    run(&[0x0f, 0x22, 0xe2], script, nothing, |turn, _| {
        assert_eq!(turn, Turn::Ended(Outcome::TripleFault));
    });
}

#[test]
fn instructions_of_svm_are_undefined() {
    // VMRUN to INVLPGA, without RDTSCP among them; MONITOR, MWAIT, RDPRU; INVLPGB, TLBSYNC, MCOMMIT.
    let codes = [0x80].into_iter().chain(0x82..=0x86).chain([0x7a]);
    for code in codes.chain([0x8a, 0x8b, 0x8c, 0x8e, 0xa0, 0xa1, 0xa3, 0xa4]) {
        let script = vec![
            left(code, |_, _| {}),
            left(0x7f, |vmcb, _| {
                assert_eq!(vmcb.get(f::EVENT_INJECTION), INVALID_OPCODE);
            }),
        ];
        run(&[], script, nothing, |turn, running| {
            assert_eq!(turn, Turn::Ended(Outcome::TripleFault), "{code:#x}");
            assert_eq!(get(running, f::RIP), RIP);
        });
    }
}

#[test]
fn efer_has_svme_which_the_guest_does_not_see() {
    let wrmsr = |efer: u64| {
        left(MSR, move |vmcb, regs| {
            vmcb.set(f::EXIT_INFO_1, 1);
            regs.set(Gpr::Rcx, 0xc000_0080);
            regs.set(Gpr::Rax, efer);
            regs.set(Gpr::Rdx, 0);
        })
    };
    let script = vec![
        wrmsr(1),
        left(MSR, |vmcb, regs| {
            assert_eq!(vmcb.get(f::EFER), 1 << 12 | 1);
            regs.set(Gpr::Rax, 0x55);
        }),
        wrmsr(1 << 12),
        left(0x7f, |vmcb, _| {
            assert_eq!(vmcb.get(f::EVENT_INJECTION), GENERAL_PROTECTION);
            assert_eq!(vmcb.get(f::EFER), 1 << 12 | 1);
        }),
    ];
    let code = [0x0f, 0x30, 0x0f, 0x32, 0x0f, 0x30];
    run(&code, script, nothing, |turn, _| {
        assert_eq!(turn, Turn::Ended(Outcome::TripleFault));
    });
}

#[test]
fn msrs_that_an_entry_loads_are_in_the_vmcb() {
    let wrmsr = |index: u64, value: u64| {
        left(MSR, move |vmcb, regs| {
            vmcb.set(f::EXIT_INFO_1, 1);
            regs.set(Gpr::Rcx, index);
            regs.set(Gpr::Rax, value);
            regs.set(Gpr::Rdx, 0);
        })
    };
    let script = vec![
        wrmsr(0xc000_0082, 0x1111),
        wrmsr(0xc000_0084, 0x2222),
        wrmsr(0x175, 0x3333),
        wrmsr(0x176, 0x4444),
        wrmsr(0xc000_0103, 0x5555),
    ];
    run_to_halt(&[0x0f, 0x30].repeat(5), script, nothing, |running| {
        let msrs = [f::LSTAR, f::SFMASK, f::SYSENTER_ESP, f::SYSENTER_EIP];
        let values = msrs.map(|field| get(running, field));
        assert_eq!(values, [0x1111, 0x2222, 0x3333, 0x4444]);
        assert_eq!(running.processor.cpu().tsc_aux, 0x5555);
    });
}

#[test]
fn xcr0_is_the_guests_with_and_without_an_exit() {
    let set = left(XSETBV, |_, regs| {
        regs.set(Gpr::Rcx, 0);
        regs.set(Gpr::Rax, 3);
        regs.set(Gpr::Rdx, 0);
    });
    let ask = left(CPUID, |_, regs| {
        regs.set(Gpr::Rax, 0xd);
        regs.set(Gpr::Rcx, 0);
    });
    let code = [0x0f, 0x01, 0xd1, 0x0f, 0xa2];
    run_to_halt(&code, vec![set, ask], nothing, |running| {
        assert_eq!((running.processor.cpu().xcr0, *running.xcr0), (3, 3));
    });
    // Where it does not exit, CPUID knows all the same.
    let ask = left(CPUID, |_, regs| {
        regs.set(Gpr::Rax, 0xd);
        regs.set(Gpr::Rcx, 0);
    });
    let prepare = |running: &mut TestRunning<'_, '_>| running.processor.cpu_mut().xcr0 = 7;
    run_to_halt(&[0x0f, 0xa2], vec![ask], prepare, |running| {
        assert_eq!(*running.xcr0, 7);
    });
}

#[test]
fn a_stepped_guest_is_stepped_over_what_the_host_does() {
    let script = vec![
        left(CPUID, |vmcb, _| vmcb.set(f::RFLAGS, 0x102)),
        left(0x7f, |vmcb, _| {
            assert_eq!(vmcb.get(f::EVENT_INJECTION), 0x8000_0301);
            assert_eq!(vmcb.get(f::DR6), 0xffff_4ff0);
            assert_eq!(vmcb.get(f::RIP), RIP + 2);
        }),
    ];
    run(&[0x0f, 0xa2], script, nothing, |turn, _| {
        assert_eq!(turn, Turn::Ended(Outcome::TripleFault));
    });
}

#[test]
fn what_nobody_asked_for_ends_the_guest() {
    run(&[], vec![refuse()], nothing, |turn, running| {
        assert_eq!(turn, Turn::Ended(Outcome::Entry(Refused.into())));
        // The report is of what was refused, not of what the CPU has left in its place.
        let mut text = String::new();
        crate::virt::Processor::report_failed_entry(&running.processor, Refused, &mut text)
            .unwrap();
        assert!(text.contains("578 0x0000000000001000 RIP"), "{text}");
    });
    for code in [0x8f, 0x90, 0x74, 0xa2, 0x404] {
        run(&[], vec![left(code, |_, _| {})], nothing, |turn, _| {
            assert_eq!(turn, Turn::Ended(Outcome::UnknownExit(code as u16)));
        });
    }
    for (code, reason) in [
        (0x20, ExitReason::MovDr),
        (0x64, ExitReason::InterruptWindow),
    ] {
        run(&[], vec![left(code, |_, _| {})], nothing, |turn, _| {
            assert_eq!(turn, Turn::Ended(Outcome::UnexpectedExit(reason)));
        });
    }
    let switch = vec![left(0x7d, |_, _| {})];
    run(&[], switch, nothing, |turn, _| {
        let Turn::Ended(Outcome::Unsupported(what)) = turn else {
            panic!("{turn:?}");
        };
        assert_eq!(what, "hardware task switch");
    });
}
