//! Random instructions, executed by the processor and by the hypervisor: each twice from the same state, once with its
//! operand in memory and once in the test device, in every mode and at every privilege level. Registers, flags, memory
//! and what is raised must come out equal: vector, error code, pushed RIP, CS and RFLAGS, CR2, DR6. INS and OUTS, which
//! always leave the processor, are compared with STOS and LODS.
//!
//! Wants the option `testdev`. What to do can be said in a file that is mapped with `map=`: see [`options`]. A difference
//! is printed with the words that show it again.
#![no_std]
#![no_main]

mod address;
mod block;
mod case;
mod compare;
mod descriptors;
mod forms;
mod generate;
mod layout;
mod legacy;
mod long;
mod mode;
mod operands;
mod options;
mod prepare;
mod registers;
mod run;
mod segments;
mod strings;
mod surroundings;
mod tables;

use case::Case;
use compare::Difference;
use core::fmt;
use mode::MODES;
use offshoot_guest::abi::{CPUID_MAY_LEAVE_PAGING, CPUID_VERSION};
use offshoot_guest::trap::{BP, DB};
use offshoot_guest::{StartInfo, println};
use offshoot_guests::cpu;
use offshoot_guests::pattern::mix;
use offshoot_guests::random::Random;
use options::Options;
use run::{Runner, Side};
use surroundings::Processor;

offshoot_guest::entry!(main);

/// The most differences of a mode that are printed.
const PRINTED: u64 = 3;

fn main(info: &StartInfo) -> u64 {
    if info.test_device == 0 {
        println!("there is no test device: give the option testdev");
        return 2;
    }
    let options = match Options::read(info) {
        Ok(options) => options,
        Err(word) => {
            println!("what is `{word}`?");
            return 3;
        }
    };
    println!(
        "seed {}, {} cases in each mode",
        options.seed, options.count
    );
    let processor = Processor {
        access_prevention: cpu::has_ebx7(20),
        physical_bits: cpu::cpuid(0x8000_0008, 0).eax & 0xff,
    };
    let may_leave = cpu::cpuid(CPUID_VERSION, 0).ebx & CPUID_MAY_LEAVE_PAGING != 0;
    let mut runner = Runner::new(info.test_device);
    let (mut cases, mut different) = (0, 0);
    for (number, mode) in (0..).zip(&MODES) {
        let name = mode.name;
        if !options.wants(name) {
            continue;
        }
        if mode.is_legacy() && !may_leave {
            println!("{name}: skipped, as guests may not leave IA-32e mode on this CPU");
            continue;
        }
        let mut tally = Tally::default();
        for case_number in options.first..options.first + options.count {
            let seed = mix(options.seed) ^ mix(number << 48 | case_number);
            let case = generate::case(&mut Random::new(seed), mode, &processor);
            tally.attempt(&mut runner, &options, case_number, &case);
        }
        println!("{name}: {tally}");
        cases += tally.cases;
        different += tally.different;
    }
    println!("{cases} cases, {different} different");
    u64::from(different != 0 || cases == 0)
}

/// What came of the cases in one mode.
#[derive(Default)]
struct Tally {
    cases: u64,
    different: u64,
    /// By vector, of the processor.
    ends: [u64; 32],
}

impl Tally {
    fn attempt(&mut self, runner: &mut Runner, options: &Options, number: u64, case: &Case) {
        let name = case.mode.name;
        if options.trace {
            println!("{name} {number}: {}{case}", case.instruction);
        }
        let cpu = runner.run(case, Side::Memory);
        let us = runner.run(case, Side::Device);
        self.cases += 1;
        if let Some(end) = self.ends.get_mut(cpu.after.vector as usize) {
            *end += 1;
        }
        let mistake = run::is_mistake(case, &cpu);
        if !mistake && !compare::differs(case, &cpu, &us) {
            return;
        }
        self.different += 1;
        if self.different > options.print.unwrap_or(PRINTED) {
            return;
        }
        let what = if mistake {
            "not where the code is"
        } else {
            "different"
        };
        let difference = Difference {
            case,
            cpu: &cpu,
            us: &us,
        };
        println!(
            "WRONG, {what}: mode={name} seed={} first={number} count=1: {difference}",
            options.seed
        );
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let completed = self.ends[usize::from(BP)];
        let debug = self.ends[usize::from(DB)];
        let faults = self.cases - completed - debug;
        write!(
            f,
            "{} cases, of which {completed} completed, {debug} were debug exceptions, {faults} faults; {} different",
            self.cases, self.different
        )
    }
}
