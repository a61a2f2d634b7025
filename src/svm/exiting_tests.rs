use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic};
use proptest::prelude::*;

use super::super::exit::RegisterAccess;
use super::super::fields::EXIT_INTERRUPTION;
use super::super::vmcb::Vmcb;
use super::*;

const MODES: [CodeMode; 3] = [CodeMode::Bits16, CodeMode::Bits32, CodeMode::Bits64];

fn cr(number: u8, write: bool) -> Exit {
    Exit::Cr(RegisterAccess {
        number,
        write,
        gpr: None,
    })
}
fn dr(number: u8, write: bool) -> Exit {
    Exit::Dr(RegisterAccess {
        number,
        write,
        gpr: None,
    })
}

/// Each exit that an instruction makes which is told here, with bytes of it.
fn known() -> Vec<(Exit, Vec<u8>)> {
    let mut all = vec![
        (Exit::Msr { write: false }, vec![0x0f, 0x32]),
        (Exit::Msr { write: true }, vec![0x0f, 0x30]),
        (cr(0, true), vec![0x0f, 0x22, 0xc3]),
        (cr(4, false), vec![0x0f, 0x20, 0xe1]),
        (cr(0, true), vec![0x0f, 0x06]),
        (cr(0, true), vec![0x0f, 0x01, 0xf2]),
        (cr(0, false), vec![0x0f, 0x01, 0xe6]),
        (dr(7, true), vec![0x0f, 0x23, 0xf8]),
        (dr(6, false), vec![0x0f, 0x21, 0xf0]),
    ];
    for reason in Reason::ALL {
        for form in forms(*reason) {
            all.push((Exit::Other(*reason), form.to_vec()));
        }
    }
    all
}

/// Another decoder's word on the length, of what it knows.
fn length_elsewhere(mode: CodeMode, bytes: &[u8]) -> Option<(usize, Mnemonic)> {
    let bits = match mode {
        CodeMode::Bits16 => 16,
        CodeMode::Bits32 => 32,
        CodeMode::Bits64 => 64,
    };
    let options = DecoderOptions::AMD | DecoderOptions::NO_INVALID_CHECK;
    let instruction = Decoder::new(bits, bytes, options).decode();
    (instruction.code() != Code::INVALID).then(|| (instruction.len(), instruction.mnemonic()))
}

#[test]
fn every_instruction_is_as_long_as_another_decoder_says() {
    for (exit, bytes) in known() {
        for mode in MODES {
            let mut code = bytes.clone();
            code.resize(15, 0x90);
            let found = exiting_instruction(&exit, mode, &code).unwrap();
            assert_eq!(usize::from(found.length), bytes.len(), "{exit}");
            let (length, mnemonic) = length_elsewhere(mode, &code).unwrap();
            assert_eq!(length, bytes.len(), "{exit}: {mnemonic:?}");
            // One byte less is not enough.
            assert_eq!(
                exiting_instruction(&exit, mode, &bytes[..bytes.len() - 1]),
                None
            );
        }
    }
}

#[test]
fn registers_are_named() {
    for (exit, bytes, mode, gpr) in [
        (
            cr(3, true),
            vec![0x0f, 0x22, 0xd8],
            CodeMode::Bits64,
            Gpr::Rax,
        ),
        (
            cr(0, false),
            vec![0x41, 0x0f, 0x20, 0xc7],
            CodeMode::Bits64,
            Gpr::R15,
        ),
        (
            cr(8, true),
            vec![0x44, 0x0f, 0x22, 0xc1],
            CodeMode::Bits64,
            Gpr::Rcx,
        ),
        (
            cr(8, true),
            vec![0xf0, 0x0f, 0x22, 0xc1],
            CodeMode::Bits32,
            Gpr::Rcx,
        ),
        (
            dr(7, false),
            vec![0x0f, 0x21, 0xfe],
            CodeMode::Bits32,
            Gpr::Rsi,
        ),
        // Mode bits do not count; a REX that is not last does not either.
        (
            cr(4, true),
            vec![0x41, 0x66, 0x0f, 0x22, 0x22],
            CodeMode::Bits64,
            Gpr::Rdx,
        ),
        (
            cr(0, true),
            vec![0x41, 0x0f, 0x01, 0xf2],
            CodeMode::Bits64,
            Gpr::R10,
        ),
    ] {
        let found = exiting_instruction(&exit, mode, &bytes).unwrap();
        assert_eq!(
            (found.gpr, usize::from(found.length)),
            (Some(gpr), bytes.len())
        );
    }
}

#[test]
fn bytes_of_another_instruction_are_none() {
    for (exit, bytes) in [
        (Exit::Other(Reason::Cpuid), vec![0x0f, 0xa3]),
        (Exit::Msr { write: true }, vec![0x0f, 0x32]),
        (cr(0, true), vec![0x0f, 0x20, 0xc0]),
        (cr(0, true), vec![0x0f, 0x22, 0xe0]),
        // LMSW of memory.
        (cr(0, true), vec![0x0f, 0x01, 0x30]),
        (dr(6, true), vec![0x0f, 0x23, 0xf8]),
        (Exit::Invalid, vec![0xf4]),
        (Exit::Other(Reason::Shutdown), vec![0xf4]),
        // A REX prefix is an instruction outside 64-bit mode.
        (Exit::Other(Reason::Hlt), vec![0xf5]),
    ] {
        assert_eq!(
            exiting_instruction(&exit, CodeMode::Bits64, &bytes),
            None,
            "{exit}"
        );
    }
    let rex_hlt = [0x48, 0xf4];
    let hlt = Exit::Other(Reason::Hlt);
    assert!(exiting_instruction(&hlt, CodeMode::Bits64, &rex_hlt).is_some());
    assert_eq!(exiting_instruction(&hlt, CodeMode::Bits32, &rex_hlt), None);
}

#[test]
fn an_instruction_has_at_most_15_bytes() {
    let mut bytes = vec![0x66; 14];
    bytes.extend([0xf4, 0x90]);
    let hlt = Exit::Other(Reason::Hlt);
    let found = exiting_instruction(&hlt, CodeMode::Bits64, &bytes).unwrap();
    assert_eq!(found.length, 15);
    bytes.insert(0, 0x66);
    assert_eq!(exiting_instruction(&hlt, CodeMode::Bits64, &bytes), None);
}

#[test]
fn what_has_asked_for_an_event_is_found() {
    // As an exit tells them: INT 30h, INT3 and INTO; and an interrupt and #GP, which no instruction asks for.
    let event = |bits| {
        let mut vmcb = Vmcb::ZERO;
        vmcb.set(EXIT_INTERRUPTION, bits);
        Injection::interrupted(&vmcb).unwrap().unwrap()
    };
    let (int, int3, into) = (event(0x8000_0430), event(0x8000_0303), event(0x8000_0304));
    for (event, bytes, length) in [
        (int, vec![0xcd, 0x30], Some(2)),
        (int, vec![0x48, 0xcd, 0x30], Some(3)),
        (int, vec![0xcd, 0x31], None),
        (int, vec![0xcd], None),
        (int3, vec![0xcc], Some(1)),
        // INT 3 in two bytes.
        (int3, vec![0xcd, 3], Some(2)),
        (into, vec![0xce], Some(1)),
        (int3, vec![0xce], None),
        (event(0x8000_0030), vec![0xcd, 0x30], None),
        (event(0x8000_0b0d), vec![0xcd, 13], None),
    ] {
        assert_eq!(
            asking_instruction(event, CodeMode::Bits64, &bytes),
            length,
            "{event:?}"
        );
    }
}

proptest! {
    #[test]
    fn with_any_prefixes_it_is_as_long(
        which in 0..known().len(),
        prefixes in prop::collection::vec(prop::sample::select(vec![0x66, 0x67, 0x2e, 0x36, 0x65, 0xf2, 0xf3, 0x48, 0x4f]), 0..8),
        mode in 0..3_usize,
    ) {
        let (exit, opcode) = known().swap_remove(which);
        let bytes: Vec<u8> = prefixes.iter().copied().chain(opcode.iter().copied()).collect();
        let mode = MODES[mode];
        let found = exiting_instruction(&exit, mode, &bytes);
        let elsewhere = length_elsewhere(mode, &bytes);
        if let Some(found) = found {
            prop_assert_eq!(usize::from(found.length), bytes.len());
            // Some prefixes make another instruction of a plain opcode in the other decoder's eyes; of those that are the same
            // to it, it must see the same end.
            if let Some((length, _)) = elsewhere {
                prop_assert_eq!(length, bytes.len());
            }
        }
    }

    #[test]
    fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..20), which in 0..known().len(), mode in 0..3_usize) {
        let (exit, _) = known().swap_remove(which);
        if let Some(found) = exiting_instruction(&exit, MODES[mode], &bytes) {
            prop_assert!(usize::from(found.length) <= bytes.len().min(LONGEST));
        }
    }
}
