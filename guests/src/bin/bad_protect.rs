//! Does what it has said that it would not. What, its memory says: it has so many pages more than 16 MiB. To be stopped.
#![no_std]
#![no_main]

use core::arch::asm;
use core::ptr::{read_volatile, write_volatile};
use offshoot_guest::abi::{MAY_EXECUTE, MAY_READ, MAY_WRITE};
use offshoot_guest::{StartInfo, call, println, trap};
use offshoot_guests::{SURVIVED, space};

offshoot_guest::entry!(main);

const LARGE: u64 = 2 << 20;
/// RET.
const RET: u64 = 0xc3;

fn main(info: &StartInfo) -> u64 {
    trap::install();
    space::enter(info);
    let which = (info.memory - (16 << 20)) / 4096;
    let page = info.heap.next_multiple_of(LARGE) + 3 * 4096;
    let word = page as *mut u64;
    println!("case {which}");
    let protect = |first, may| {
        if let Err(error) = call::protect(first, 1, MAY_READ | may) {
            println!("not protected: {error:?}");
        }
    };
    // SAFETY: the heap is nobody else's, and the guest is stopped by every one of these.
    unsafe {
        write_volatile(word, RET);
        match which {
            // A write to what may only be read.
            0 => {
                protect(page, MAY_EXECUTE);
                println!("it still has {:#x}", read_volatile(word));
                write_volatile(word, 0);
            }
            // Execution of what is never to be executed.
            1 => {
                asm!("call {}", in(reg) page, clobber_abi("sysv64"));
                protect(page, MAY_WRITE);
                write_volatile(word, RET);
                asm!("call {}", in(reg) page, clobber_abi("sysv64"));
            }
            // A write by the hypervisor for it.
            2 => {
                protect(page, 0);
                let told = call::raw_unchecked(5, [page, 64, page]);
                println!("the dirty pages of what is still: {told}");
                write_volatile(word, 0);
            }
            // Page tables in what may only be read.
            4 => {
                let root: u64;
                asm!("mov {}, cr3", out(reg) root);
                protect(root & !0xfff, 0);
                asm!("mov cr3, {}", in(reg) root);
            }
            // Page tables that were given back.
            3 => {
                let root: u64;
                asm!("mov {}, cr3", out(reg) root);
                let _ = call::discard(root & !0xfff, 1);
                asm!("mov cr3, {}", in(reg) root);
            }
            _ => {}
        }
    }
    SURVIVED
}
