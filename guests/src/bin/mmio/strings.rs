//! String instructions with the device on one side, the other, or both.

use crate::device::{Device, read, write};
use core::arch::asm;
use offshoot_guest::StartInfo;
use offshoot_guests::check::Checks;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Regs {
    rax: u64,
    rcx: u64,
    rsi: u64,
    rdi: u64,
    flags: u64,
}

struct Form {
    text: &'static str,
    run: fn(&mut Regs),
}

macro_rules! forms {
    ($($text:literal)+) => {
        &[$(Form {
            text: $text,
            run: |regs| {
                // SAFETY: the instruction goes through areas that are the caller's.
                unsafe {
                    asm!(
                        "push r9",
                        "popfq",
                        $text,
                        "pushfq",
                        "pop r9",
                        "cld",
                        inout("rax") regs.rax,
                        inout("rcx") regs.rcx,
                        inout("rsi") regs.rsi,
                        inout("rdi") regs.rdi,
                        inout("r9") regs.flags,
                    );
                }
            },
        },)+]
    };
}

static FORMS: &[Form] = forms! {
    "movsb" "movsw" "movsd" "movsq" "rep movsb" "rep movsw" "rep movsd" "rep movsq"
    "stosb" "stosw" "stosd" "stosq" "rep stosb" "rep stosw" "rep stosd" "rep stosq"
    "lodsb" "lodsw" "lodsd" "lodsq" "rep lodsb" "rep lodsw" "rep lodsd" "rep lodsq"
    "cmpsb" "cmpsq" "repe cmpsb" "repne cmpsb" "repe cmpsw" "repne cmpsd" "repe cmpsq"
    "scasb" "scasq" "repe scasb" "repne scasb" "repne scasw" "repe scasd" "repne scasq"
    "rep movsb [edi], [esi]" "rep stosd [edi], eax" "lodsb al, [esi]"
};

/// RFLAGS.DF.
const DOWN: u64 = 1 << 10;
/// Where source and destination are, in memory and in the device. The second crosses a page. The device remembers 128
/// bytes, of which 48 around each are used.
const SOURCE: u64 = 0x38;
const DESTINATION: u64 = 0xff4;
/// How far the areas reach to both sides, in words.
const REACH: u64 = 3;

pub fn check(checks: &mut Checks, info: &StartInfo, device: &Device) {
    let memory = info.heap.next_multiple_of(4096);
    let places = |(from, to): (bool, bool)| {
        let place = |in_device: bool, offset| {
            if in_device {
                device.at(offset)
            } else {
                memory + offset
            }
        };
        (place(from, SOURCE), place(to, DESTINATION))
    };
    for form in FORMS {
        for down in [0, DOWN] {
            for count in [0_u64, 1, 2] {
                let run = |sides| run(form, places(sides), count, 2 | down);
                let expected = run((false, false));
                for sides in [(true, false), (false, true), (true, true)] {
                    let found = run(sides);
                    checks.that(
                        found == expected,
                        format_args!(
                            "{}, device {sides:?}, down {down:#x}, count {count}",
                            form.text
                        ),
                    );
                }
            }
        }
    }
    long_copies(checks, memory, device);
}

/// What registers, relative to where they began, and bytes became.
type Left = ([u64; 5], [u64; 4 * REACH as usize]);

fn run(form: &Form, (from, to): (u64, u64), count: u64, flags: u64) -> Left {
    let area = |at: u64, word: u64| at - REACH * 8 + word * 8;
    for word in 0..2 * REACH {
        // The same for the first words, then another.
        write(area(from, word), 0x0101_0101_0101_0101 * (word / 4 + 1));
        write(area(to, word), 0x0101_0101_0101_0101 * (word / 3 + 1));
    }
    let mut regs = Regs {
        rax: 0x8101_0101_0101_0101,
        rcx: count,
        rsi: from,
        rdi: to,
        flags,
    };
    (form.run)(&mut regs);
    let bytes = core::array::from_fn(|word| {
        let word = word as u64;
        if word < 2 * REACH {
            read(area(from, word))
        } else {
            read(area(to, word - 2 * REACH))
        }
    });
    let Regs {
        rax,
        rcx,
        rsi,
        rdi,
        flags,
    } = regs;
    let moved = [rsi.wrapping_sub(from), rdi.wrapping_sub(to)];
    ([rax, rcx, moved[0], moved[1], flags], bytes)
}

/// More elements than one exit moves.
fn long_copies(checks: &mut Checks, memory: u64, device: &Device) {
    const LEN: u64 = 4096 + 123;
    for word in 0..LEN / 8 + 1 {
        write(memory + word * 8, !word);
    }
    for word in 0..16 {
        write(device.at(word * 8), 0x1111_1111_1111_1111 * word);
    }
    // SAFETY: heap that nothing else uses, and the device.
    let (left, rsi, rdi) = unsafe {
        let (left, rsi, rdi): (u64, u64, u64);
        asm!("rep movsb", inout("rcx") LEN => left, inout("rsi") device.at(0x900) => rsi,
            inout("rdi") memory + 8 => rdi);
        (left, rsi, rdi)
    };
    checks.equal(format_args!("count after a long copy"), left, 0);
    checks.equal(
        format_args!("RSI after a long copy"),
        rsi,
        device.at(0x900 + LEN),
    );
    checks.equal(format_args!("RDI after a long copy"), rdi, memory + 8 + LEN);
    for word in 0..LEN / 8 {
        let expected = 0x1111_1111_1111_1111 * (word % 16);
        checks.equal(
            format_args!("word {word} of a long copy"),
            read(memory + 8 + word * 8),
            expected,
        );
    }
    checks.equal(format_args!("before a long copy"), read(memory), !0);
}
