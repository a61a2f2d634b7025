//! The emulator of device accesses against the CPU that the test runs on: random instructions on random registers,
//! flags and memory, executed by both. Everything they leave must be equal.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use offshoot::addr::Gva;
use offshoot::virt::{AccessRights, Segment, SegmentRegister};
use offshoot::virt::{Gpr, GuestRegs};
use offshoot::vm::mmio::{Bus, CodeMode, Progress, State, Width, decode, execute};
use proptest::prelude::*;

/// Bytes of data, in which every access stays.
const DATA: usize = 8192;
const CF: u64 = 1;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const DF: u64 = 1 << 10;
const OF: u64 = 1 << 11;
const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// Memory below 2 GiB, so that absolute addresses of 32 bits reach it: code, then registers, then data.
struct Native {
    base: u64,
}

const CONTEXT: u64 = 4096;
const DATA_AT: u64 = 8192;
/// Places in the context, after 16 registers of 8 bytes.
const FLAGS: u64 = CONTEXT + 128;
const OWN_RSP: u64 = CONTEXT + 136;

impl Native {
    fn new() -> Self {
        // SAFETY: fresh memory of our own.
        let base = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                DATA_AT as usize + DATA,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        Self { base: base as u64 }
    }
    fn put(&self, offset: u64, bytes: &[u8]) {
        let to = (self.base + offset) as *mut u8;
        // SAFETY: within the mapping, which nobody else uses.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }
    fn get(&self, offset: u64, bytes: &mut [u8]) {
        let from = (self.base + offset) as *const u8;
        // SAFETY: as above.
        unsafe { core::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
    }
    fn word(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.get(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }
    fn data(&self) -> u64 {
        self.base + DATA_AT
    }

    /// Where the instruction will be: after the code that loads the registers.
    fn rip(&self) -> u64 {
        self.base + self.before().len() as u64
    }

    /// Code that loads flags and registers.
    fn before(&self) -> Vec<u8> {
        // push rbx, rbp, r12 to r15; mov [OWN_RSP], rsp
        let mut code = vec![0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57];
        code.extend(self.absolute(&[0x48, 0x89], 4, OWN_RSP));
        // push [FLAGS]; popfq
        code.extend(self.absolute(&[0xff], 6, FLAGS));
        code.push(0x9d);
        for register in (0..16).filter(|&register| register != 4) {
            code.extend(self.move_register(0x8b, register));
        }
        code
    }

    /// Code that stores registers and flags, and returns.
    fn after(&self) -> Vec<u8> {
        let mut code = Vec::new();
        for register in (0..16).filter(|&register| register != 4) {
            code.extend(self.move_register(0x89, register));
        }
        // mov rsp, [OWN_RSP]; pushfq; pop [FLAGS]; cld
        code.extend(self.absolute(&[0x48, 0x8b], 4, OWN_RSP));
        code.push(0x9c);
        code.extend(self.absolute(&[0x8f], 0, FLAGS));
        code.extend([
            0xfc, 0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3,
        ]);
        code
    }

    fn move_register(&self, opcode: u8, register: u8) -> Vec<u8> {
        let rex = 0x48 | register >> 3 << 2;
        let place = CONTEXT + u64::from(register) * 8;
        self.absolute(&[rex, opcode], register & 7, place)
    }

    /// `opcode` with `field` in ModRM, on the address of `offset`.
    fn absolute(&self, opcode: &[u8], field: u8, offset: u64) -> Vec<u8> {
        let address = (self.base + offset) as u32;
        let mut code = opcode.to_vec();
        code.extend([0x04 | field << 3, 0x25]);
        code.extend(address.to_le_bytes());
        code
    }

    /// Executes `instruction` on these registers and data.
    fn run(&self, instruction: &[u8], state: &State, data: &mut [u8]) -> State {
        let code = [self.before(), instruction.to_vec(), self.after()].concat();
        self.put(0, &code);
        for number in 0..16 {
            let value = state.regs.get(Gpr::from_low_bits(number));
            self.put(CONTEXT + number * 8, &value.to_le_bytes());
        }
        self.put(FLAGS, &state.rflags.to_le_bytes());
        self.put(DATA_AT, data);
        // SAFETY: the code keeps what a function must keep, and the instruction touches only the data.
        unsafe { core::mem::transmute::<u64, extern "C" fn()>(self.base)() };
        self.get(DATA_AT, data);
        let mut regs = GuestRegs::ZERO;
        for number in (0..16).filter(|&number| number != 4) {
            regs.set(Gpr::from_low_bits(number), self.word(CONTEXT + number * 8));
        }
        State {
            regs,
            rip: state.rip,
            rflags: self.word(FLAGS),
        }
    }
}

/// The same data for the emulator.
struct Data<'d> {
    base: u64,
    bytes: &'d mut [u8],
}

impl Data<'_> {
    fn at(&mut self, at: Gva, width: Width) -> Result<&mut [u8], u64> {
        let start = at.as_u64().wrapping_sub(self.base) as usize;
        let end = start.wrapping_add(width.bytes() as usize);
        self.bytes.get_mut(start..end).ok_or(at.as_u64())
    }
}

impl Bus for Data<'_> {
    type Fault = u64;
    fn segment(&mut self, _: SegmentRegister) -> Result<Segment, u64> {
        Ok(Segment::flat(0, AccessRights::DATA))
    }
    fn read(&mut self, at: Gva, width: Width) -> Result<u64, u64> {
        let mut bytes = [0; 8];
        bytes[..width.bytes() as usize].copy_from_slice(self.at(at, width)?);
        Ok(u64::from_le_bytes(bytes))
    }
    fn write(&mut self, at: Gva, width: Width, value: u64) -> Result<(), u64> {
        let len = width.bytes() as usize;
        self.at(at, width)?
            .copy_from_slice(&value.to_le_bytes()[..len]);
        Ok(())
    }
    fn may_read(&mut self, at: Gva, width: Width) -> Result<(), u64> {
        self.at(at, width).map(drop)
    }
    fn may_write(&mut self, at: Gva, width: Width) -> Result<(), u64> {
        self.at(at, width).map(drop)
    }
    // No instruction here has to do with ports.
    fn input(&mut self, _: u16, width: Width) -> u64 {
        width.mask()
    }
    fn output(&mut self, _: u16, _: Width, _: u64) {}
    fn has_met_breakpoint(&self) -> bool {
        false
    }
}

/// The family of an instruction: its opcode bytes, with what varies.
#[derive(Clone, Copy, Debug)]
struct Form {
    /// Bytes of the opcode.
    opcode: &'static [u8],
    /// The field `reg` of ModRM: a register, or this.
    group: Option<u8>,
    /// Bytes of an immediate: 0, 1, or 4 for as many as the operand has, at most 4.
    immediate: u8,
    /// LOCK may stand before it.
    lock: bool,
    /// The operand size is fixed to a byte.
    byte: bool,
    /// Flags that are defined or the same on all processors.
    flags: u64,
}

const fn form(opcode: &'static [u8], byte: bool) -> Form {
    Form {
        opcode,
        group: None,
        immediate: 0,
        lock: false,
        byte,
        flags: STATUS,
    }
}
impl Form {
    const fn group(self, group: u8) -> Self {
        Self {
            group: Some(group),
            ..self
        }
    }
    const fn immediate(self, immediate: u8) -> Self {
        Self { immediate, ..self }
    }
    const fn lock(self) -> Self {
        Self { lock: true, ..self }
    }
    const fn flags(self, flags: u64) -> Self {
        Self { flags, ..self }
    }
}

/// AF is undefined after AND, OR, XOR, TEST; all but CF and ZF after BT.
const LOGIC: u64 = STATUS & !AF;

fn forms() -> Vec<Form> {
    let mut forms = vec![
        form(&[0x88], true),
        form(&[0x89], false),
        form(&[0x8a], true),
        form(&[0x8b], false),
        form(&[0xc6], true).group(0).immediate(1),
        form(&[0xc7], false).group(0).immediate(4),
        form(&[0x86], true).lock(),
        form(&[0x87], false).lock(),
        form(&[0x63], false),
        form(&[0x0f, 0xb6], true),
        form(&[0x0f, 0xb7], false),
        form(&[0x0f, 0xbe], true),
        form(&[0x0f, 0xbf], false),
        form(&[0x0f, 0xc0], true).lock(),
        form(&[0x0f, 0xc1], false).lock(),
        form(&[0x0f, 0xb0], true).lock(),
        form(&[0x0f, 0xb1], false).lock(),
        form(&[0x84], true).flags(LOGIC),
        form(&[0x85], false).flags(LOGIC),
        form(&[0xf6], true).group(0).immediate(1).flags(LOGIC),
        form(&[0xf7], false).group(0).immediate(4).flags(LOGIC),
    ];
    for group in [2, 3] {
        forms.push(form(&[0xf6], true).group(group).lock());
        forms.push(form(&[0xf7], false).group(group).lock());
    }
    for group in [0, 1] {
        forms.push(form(&[0xfe], true).group(group).lock());
        forms.push(form(&[0xff], false).group(group).lock());
    }
    const ALU: [[&[u8]; 4]; 8] = [
        [&[0x00], &[0x01], &[0x02], &[0x03]],
        [&[0x08], &[0x09], &[0x0a], &[0x0b]],
        [&[0x10], &[0x11], &[0x12], &[0x13]],
        [&[0x18], &[0x19], &[0x1a], &[0x1b]],
        [&[0x20], &[0x21], &[0x22], &[0x23]],
        [&[0x28], &[0x29], &[0x2a], &[0x2b]],
        [&[0x30], &[0x31], &[0x32], &[0x33]],
        [&[0x38], &[0x39], &[0x3a], &[0x3b]],
    ];
    for (number, [to_byte, to, from_byte, from]) in (0..).zip(ALU) {
        let flags = if matches!(number, 1 | 4 | 6) {
            LOGIC
        } else {
            STATUS
        };
        let all = [
            form(to_byte, true),
            form(to, false),
            form(from_byte, true),
            form(from, false),
            form(&[0x80], true).group(number).immediate(1),
            form(&[0x81], false).group(number).immediate(4),
            form(&[0x83], false).group(number).immediate(1),
        ];
        forms.extend(all.map(|form| form.flags(flags)));
    }
    const BITS: [&[u8]; 4] = [&[0x0f, 0xa3], &[0x0f, 0xab], &[0x0f, 0xb3], &[0x0f, 0xbb]];
    for (group, opcode) in (4..).zip(BITS) {
        forms.push(form(opcode, false).flags(CF | ZF));
        forms.push(
            form(&[0x0f, 0xba], false)
                .group(group)
                .immediate(1)
                .flags(CF | ZF),
        );
    }
    const CONDITIONS: [[&[u8]; 2]; 16] = [
        [&[0x0f, 0x40], &[0x0f, 0x90]],
        [&[0x0f, 0x41], &[0x0f, 0x91]],
        [&[0x0f, 0x42], &[0x0f, 0x92]],
        [&[0x0f, 0x43], &[0x0f, 0x93]],
        [&[0x0f, 0x44], &[0x0f, 0x94]],
        [&[0x0f, 0x45], &[0x0f, 0x95]],
        [&[0x0f, 0x46], &[0x0f, 0x96]],
        [&[0x0f, 0x47], &[0x0f, 0x97]],
        [&[0x0f, 0x48], &[0x0f, 0x98]],
        [&[0x0f, 0x49], &[0x0f, 0x99]],
        [&[0x0f, 0x4a], &[0x0f, 0x9a]],
        [&[0x0f, 0x4b], &[0x0f, 0x9b]],
        [&[0x0f, 0x4c], &[0x0f, 0x9c]],
        [&[0x0f, 0x4d], &[0x0f, 0x9d]],
        [&[0x0f, 0x4e], &[0x0f, 0x9e]],
        [&[0x0f, 0x4f], &[0x0f, 0x9f]],
    ];
    for [cmov, set] in CONDITIONS {
        forms.push(form(cmov, false));
        forms.push(form(set, true).group(0));
    }
    forms
}

/// A random instruction with an operand in memory.
#[derive(Clone, Debug)]
struct Case {
    form: Form,
    /// Bit 0: 66, 1: 67, 2: F0, 3: a REX prefix.
    prefixes: u8,
    rex: u8,
    register: u8,
    /// 0: no displacement, 1: 8 bits, 2: 32 bits, 3: relative to RIP.
    mode: u8,
    base: u8,
    index: Option<(u8, u8)>,
    displacement: i32,
    immediate: u32,
    target: u64,
    registers: [u64; 16],
    flags: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let value = prop_oneof![
        any::<u64>(),
        proptest::sample::select(vec![
            0,
            1,
            u64::MAX,
            1 << 63,
            i64::MAX as u64,
            0x8080_8080,
            0x7fff_ffff
        ]),
    ];
    let encoding = (0u8..16, any::<u8>(), 0u8..8, 0u8..4, 0u8..16);
    let address = (
        proptest::option::of((0u8..16, 0u8..4)),
        any::<i32>(),
        any::<u32>(),
        1024u64..7000,
    );
    let registers = proptest::collection::vec(value, 16);
    (
        proptest::sample::select(forms()),
        encoding,
        address,
        registers,
        any::<u64>(),
    )
        .prop_map(
            |(
                form,
                (prefixes, rex, register, mode, base),
                (index, displacement, immediate, target),
                values,
                flags,
            )| Case {
                form,
                prefixes,
                rex,
                register,
                mode,
                base,
                index,
                displacement: if mode == 1 {
                    (displacement as i8).into()
                } else {
                    displacement
                },
                immediate,
                target,
                registers: values.try_into().unwrap(),
                flags: flags & STATUS | 2,
            },
        )
}

impl Case {
    /// The bytes, the state that makes them access the target, or nothing if that cannot be.
    fn assemble(&self, native: &Native) -> Option<(Vec<u8>, State)> {
        let mut bytes = Vec::new();
        let narrow = self.prefixes & 2 != 0;
        for (bit, prefix) in [(1, 0x66), (2, 0x67), (4, 0xf0)] {
            if self.prefixes & bit != 0 && (prefix != 0xf0 || self.form.lock) {
                bytes.push(prefix);
            }
        }
        // RSP is the stack's here.
        let index = self
            .index
            .filter(|&(index, _)| index != 4 && self.mode != 3);
        let base = self.base;
        if base == 4 || index.is_some_and(|(index, _)| index == base) {
            return None;
        }
        let mut rex = 0;
        if self.prefixes & 8 != 0 {
            rex = 0x40 | self.rex & 0xc;
        }
        if self.mode != 3 {
            if base > 7 {
                rex |= 0x41;
            }
            if index.is_some_and(|(index, _)| index > 7) {
                rex |= 0x42;
            }
        }
        if rex != 0 {
            bytes.push(rex);
        }
        let register = self.form.group.unwrap_or(self.register);
        let encoded = if self.form.group.is_some() {
            0
        } else {
            register | (rex & 4) << 1
        };
        // The stack pointer, and what the address needs, are no operands that could be written with anything.
        let extends = matches!(self.form.opcode, [0x0f, 0xb6 | 0xbe]);
        let has_high = self.form.byte && rex == 0 && !extends;
        if self.form.group.is_none() && encoded == 4 && !has_high {
            return None;
        }
        // Discouraged, and not the same on all processors.
        if self.form.opcode == [0x63] && rex & 8 == 0 && self.prefixes & 1 != 0 {
            return None;
        }
        bytes.extend(self.form.opcode);
        // [rbp] and [r13] have no form without displacement.
        let mode = if self.mode == 0 && base & 7 == 5 {
            1
        } else {
            self.mode
        };
        let mut displacement = match mode {
            0 => 0,
            _ if self.mode == 0 => 0,
            _ => self.displacement,
        };
        let at_displacement;
        if mode == 3 {
            bytes.push(register << 3 | 5);
            at_displacement = bytes.len();
            bytes.extend([0; 4]);
        } else {
            match index {
                Some((index, scale)) => {
                    bytes.push(mode << 6 | register << 3 | 4);
                    bytes.push(scale << 6 | (index & 7) << 3 | base & 7);
                }
                None if base & 7 == 4 => {
                    bytes.push(mode << 6 | register << 3 | 4);
                    bytes.push(0x24);
                }
                None => bytes.push(mode << 6 | register << 3 | base & 7),
            }
            at_displacement = bytes.len();
            match mode {
                1 => bytes.push(displacement as u8),
                2 => bytes.extend(displacement.to_le_bytes()),
                _ => {}
            }
        }
        let wide = rex & 8 != 0;
        let word = self.prefixes & 1 != 0 && !wide;
        let immediate = match (self.form.immediate, word) {
            (0, _) => 0,
            (1, _) => 1,
            (_, true) => 2,
            (_, false) => 4,
        };
        bytes.extend(&self.immediate.to_le_bytes()[..immediate]);
        // An access that locks the bus must not lie in two lines of the cache: some systems have the CPU refuse it.
        let xchg = matches!(self.form.opcode, [0x86 | 0x87]);
        let locked = xchg || self.form.lock && self.prefixes & 4 != 0;
        let target = if locked {
            self.target & !7
        } else {
            self.target
        };
        let target = native.data() + target;
        let rip = native.rip();
        let mut values = self.registers;
        if mode == 3 {
            displacement = (target - (rip + bytes.len() as u64)) as i32;
            bytes[at_displacement..at_displacement + 4]
                .copy_from_slice(&displacement.to_le_bytes());
        } else {
            let bits = |value: u64| if narrow { value & 0xffff_ffff } else { value };
            let indexed = index.map_or(0, |(index, scale)| values[index as usize] << scale);
            let needed = target
                .wrapping_sub(indexed)
                .wrapping_sub(displacement as u64);
            let old = values[base as usize];
            // With 32-bit addresses, the upper half does not count.
            values[base as usize] = if narrow {
                old & !0xffff_ffff | bits(needed)
            } else {
                needed
            };
        }
        let is_bit = matches!(self.form.opcode, [0x0f, 0xa3 | 0xab | 0xb3 | 0xbb]);
        if is_bit {
            // The number of a bit that stays near. A register that the address needs has another value.
            let used = |register| {
                mode != 3 && (register == base || index.is_some_and(|(index, _)| index == register))
            };
            if used(encoded) {
                return None;
            }
            values[encoded as usize] = i64::from(self.immediate as i16 / 8) as u64;
        }
        let mut regs = GuestRegs::ZERO;
        for (number, value) in (0..).zip(values) {
            if number != 4 {
                regs.set(Gpr::from_low_bits(number), value);
            }
        }
        let state = State {
            regs,
            rip,
            rflags: self.flags,
        };
        Some((bytes, state))
    }
}

fn random_data(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..DATA)
        .map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
        .collect()
}

/// Runs the bytes on both sides and compares. `reported` is where the CPU would have reported an access.
fn agree(
    native: &Native,
    bytes: &[u8],
    state: &State,
    flags: u64,
    seed: u64,
    reported: &[u64],
) -> Result<(), TestCaseError> {
    let mut expected_data = random_data(seed);
    let mut data = expected_data.clone();
    let expected = native.run(bytes, state, &mut expected_data);
    let instruction = decode(CodeMode::Bits64, bytes)
        .map_err(|error| TestCaseError::fail(format!("{bytes:02x?}: {error:?}")))?;
    prop_assert_eq!(usize::from(instruction.length), bytes.len());
    let mut found = *state;
    let mut bus = Data {
        base: native.data(),
        bytes: &mut data,
    };
    // As often as it takes, wherever it is.
    let mut progress = Progress::Again;
    while progress == Progress::Again {
        let tried = reported.iter().map(|&at| {
            execute(
                &instruction,
                CodeMode::Bits64,
                &mut found,
                Gva::new(at),
                &mut bus,
            )
        });
        progress = match tried.into_iter().find(|tried| tried.is_ok()) {
            Some(Ok(progress)) => progress,
            _ => {
                return Err(TestCaseError::fail(format!(
                    "{bytes:02x?}: {instruction:x?} of {state:x?}"
                )));
            }
        };
    }
    let mask = |state: &State| State {
        rflags: state.rflags & (flags | DF),
        ..*state
    };
    prop_assert_eq!(
        mask(&found),
        mask(&expected),
        "{:02x?}: {:x?} of {:x?}",
        bytes,
        instruction,
        state
    );
    prop_assert!(
        data == expected_data,
        "{:02x?}: {:x?} of {:x?}",
        bytes,
        instruction,
        state
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { max_global_rejects: 1 << 20, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn instructions_do_what_the_cpu_does(cases in proptest::collection::vec(case(), 64), seed: u64) {
        let native = Native::new();
        let pages: Vec<u64> = (0..DATA as u64 / 4096).map(|page| native.data() + page * 4096).collect();
        for case in &cases {
            if let Some((bytes, state)) = case.assemble(&native) {
                agree(&native, &bytes, &state, case.form.flags, seed, &pages)?;
            }
        }
        native.end();
    }

    #[test]
    fn string_instructions_do_what_the_cpu_does(
        opcode in proptest::sample::select(vec![0xa4u8, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf]),
        prefixes in 0u8..32, repeat in 0u8..3, count in 0u64..200, from in 2000u64..6000, to in 2000u64..6000,
        rax: u64, down: bool, upper: u32, seed: u64,
    ) {
        let native = Native::new();
        let mut bytes = Vec::new();
        for (bit, prefix) in [(1, 0x66), (2, 0x67)] {
            if prefixes & bit != 0 {
                bytes.push(prefix);
            }
        }
        // REPNE is defined where flags end a repetition.
        let compares = matches!(opcode, 0xa6 | 0xa7 | 0xae | 0xaf);
        match repeat {
            0 => {}
            2 if compares => bytes.push(0xf2),
            _ => bytes.push(0xf3),
        }
        if prefixes & 4 != 0 {
            bytes.push(0x48);
        }
        bytes.push(opcode);
        let mut regs = GuestRegs::ZERO;
        // What 32-bit addresses and counts leave out. A repetition of no elements leaves the upper halves of RCX, RSI and
        // RDI as they were on some CPUs and clears them on others: there they are 0 before.
        let narrow = prefixes & 2 != 0;
        let nothing = repeat != 0 && count == 0;
        let high = if narrow && !nothing { u64::from(upper) << 32 } else { 0 };
        regs.set(Gpr::Rsi, high | (native.data() + from));
        regs.set(Gpr::Rdi, high | (native.data() + to));
        regs.set(Gpr::Rcx, high | count);
        regs.set(Gpr::Rax, rax);
        let rflags = 2 | if down { DF } else { 0 };
        let state = State { regs, rip: native.rip(), rflags };
        let pages: Vec<u64> = (0..DATA as u64 / 4096).map(|page| native.data() + page * 4096).collect();
        agree(&native, &bytes, &state, STATUS, seed, &pages)?;
        native.end();
    }
}

impl Native {
    fn end(self) {
        // SAFETY: the mapping is this one's own, and nothing refers to it.
        unsafe { libc::munmap(self.base as *mut _, DATA_AT as usize + DATA) };
    }
}
