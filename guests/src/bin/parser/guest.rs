//! A guest for fuzzing: it freezes itself when it is ready for a file, reads the file that it is given, and exits.

use crate::image::{PIXELS_MAX, read};
use offshoot_guest::call::freeze;
use offshoot_guest::{StartInfo, println};

/// The longest file.
const FILE_MAX: usize = 1024;
/// A small file that is in order, for the fuzzer to begin with: 4 by 2 pixels of 8 bits, in runs.
const EXAMPLE: &[u8] =
    b"OFIM\x01HEAD\x06\0\0\0\x04\0\x02\0\x08\x02NOTE\x08\0\0\0name=dotDATA\x07\0\0\0\x03pix!\x83.ENDC\0\0\0\0";

/// A buffer that lies in one page.
#[repr(C, align(4096))]
struct File([u8; FILE_MAX]);

static mut FILE: File = File([0; FILE_MAX]);

/// Reads files. With `CHECKED`, without the planted bug.
pub fn run<const CHECKED: bool>(info: &StartInfo) -> u64 {
    if info.heap_len < PIXELS_MAX as u64 {
        println!("a heap of {} bytes is no use to me", info.heap_len);
        return 2;
    }
    // What is written behind it hits the guard page behind the heap.
    let pixels = (info.heap + info.heap_len - PIXELS_MAX as u64) as *mut u8;
    let file = &raw mut FILE;
    // SAFETY: called once, and nothing else refers to it.
    let file = unsafe { &mut (*file).0 };
    if let Some(start) = file.get_mut(..EXAMPLE.len()) {
        start.copy_from_slice(EXAMPLE);
    }
    match freeze(file) {
        Ok(file) => {
            // A file that is not in order is no failure of its reader.
            let _ = read::<CHECKED>(file, pixels);
            0
        }
        Err(error) => {
            println!("cannot be frozen: {error:?}");
            3
        }
    }
}
