//! Reads and writes by chance, in all widths and across pages, in memory that nobody has touched and in data that others
//! see, too; does the same to a copy elsewhere, and compares.
#![no_std]
#![no_main]

use core::arch::asm;
use core::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_set_epi64x, _mm_storeu_si128};
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use offshoot_guest::{StartInfo, count, println};
use offshoot_guests::pattern;
use offshoot_guests::random::Random;

offshoot_guest::entry!(main);

const PAGE: u64 = 4096;
const OPERATIONS: u64 = 60_000;
/// Pages of the window onto untouched memory. A border between two tables is in its middle.
const WINDOW: u64 = 256;
/// What one entry of the last level but one maps.
const TABLE: u64 = 2 << 20;
/// The longest run of bytes that is copied or compared at once.
const RUN: u64 = 2 * PAGE;

/// Memory under test, and what must be in it.
#[derive(Clone, Copy)]
struct Window {
    base: u64,
    shadow: u64,
    len: u64,
}

impl Window {
    /// A place for `len` bytes, often across a page border: in the memory, and in its shadow.
    fn place(&self, random: &mut Random, len: u64) -> (u64, u64) {
        let mut offset = random.below(self.len - len);
        if random.one_in(3) {
            let border = (offset / PAGE + 1) * PAGE;
            offset = border.saturating_sub(random.below(len + 1));
            offset = offset.min(self.len - len);
        }
        (self.base + offset, self.shadow + offset)
    }
}

/// What is wrong: where, and what is there instead of what.
struct Wrong {
    address: u64,
    found: u64,
    expected: u64,
}

/// Reads, writes or changes a value of type `$int` in the memory and in the shadow.
macro_rules! access {
    ($int:ty, $add:literal, $window:expr, $random:expr) => {{
        let (real, shadow) = $window.place($random, size_of::<$int>() as u64);
        let value = $random.number() as $int;
        let (real_at, shadow) = (real as *mut $int, shadow as *mut $int);
        // SAFETY: both lie in their windows, which nobody else uses.
        unsafe {
            match $random.below(3) {
                0 => {
                    real_at.write_unaligned(value);
                    shadow.write_unaligned(value);
                    None
                }
                1 => {
                    // One instruction that reads and writes.
                    let sum = ptr::read_unaligned(shadow).wrapping_add(value);
                    asm!($add, at = in(reg) real, value = in(reg) value);
                    shadow.write_unaligned(sum);
                    None
                }
                _ => compare(real, real_at.read_unaligned() as u64, shadow.read_unaligned() as u64),
            }
        }
    }};
}

fn compare(address: u64, found: u64, expected: u64) -> Option<Wrong> {
    (found != expected).then_some(Wrong {
        address,
        found,
        expected,
    })
}

fn byte(window: &Window, random: &mut Random) -> Option<Wrong> {
    let (real, shadow) = window.place(random, 1);
    let value = random.number() as u8;
    let (real_at, shadow) = (real as *mut u8, shadow as *mut u8);
    // SAFETY: as in `access`.
    unsafe {
        if random.one_in(2) {
            real_at.write_volatile(value);
            shadow.write_volatile(value);
            return None;
        }
        compare(
            real,
            real_at.read_volatile().into(),
            shadow.read_volatile().into(),
        )
    }
}

/// Sixteen bytes at once.
fn vector(window: &Window, random: &mut Random) -> Option<Wrong> {
    let (real, shadow) = window.place(random, 16);
    let value = [random.number(), random.number()];
    // SAFETY: as in `access`.
    unsafe {
        if random.one_in(2) {
            let value = _mm_set_epi64x(value[1] as i64, value[0] as i64);
            _mm_storeu_si128(real as *mut __m128i, value);
            _mm_storeu_si128(shadow as *mut __m128i, value);
            return None;
        }
        let words = |vector: __m128i| core::mem::transmute::<__m128i, [u64; 2]>(vector);
        let found = words(_mm_loadu_si128(real as *const __m128i));
        let expected = words(_mm_loadu_si128(shadow as *const __m128i));
        compare(real, found[0], expected[0]).or(compare(real + 8, found[1], expected[1]))
    }
}

/// A locked exchange of eight aligned bytes.
fn exchange(window: &Window, random: &mut Random) -> Option<Wrong> {
    let offset = random.below(window.len / 8) * 8;
    let value = random.number();
    let at = |base: u64| (base + offset) as *mut u64;
    // SAFETY: as in `access`, and both are aligned.
    let [found, expected] = unsafe {
        [window.base, window.shadow].map(|base| AtomicU64::from_ptr(at(base)).swap(value, Relaxed))
    };
    compare(window.base + offset, found, expected)
}

/// A run of bytes from one window to another, which may overlap.
fn copy(from: &Window, to: &Window, random: &mut Random) {
    let len = 1 + random.below(RUN);
    let (real_from, shadow_from) = from.place(random, len);
    let (real_to, shadow_to) = to.place(random, len);
    // SAFETY: as in `access`.
    unsafe {
        ptr::copy(real_from as *const u8, real_to as *mut u8, len as usize);
        ptr::copy(shadow_from as *const u8, shadow_to as *mut u8, len as usize);
    }
}

/// Compares all words of a window.
fn compare_all(window: &Window) -> Option<Wrong> {
    (0..window.len).step_by(8).find_map(|offset| {
        // SAFETY: as in `access`.
        unsafe {
            let found = ((window.base + offset) as *const u64).read_volatile();
            let expected = ((window.shadow + offset) as *const u64).read_volatile();
            compare(window.base + offset, found, expected)
        }
    })
}

fn operate(windows: &[Window], random: &mut Random) -> Option<Wrong> {
    let pick = |random: &mut Random| windows[random.below(windows.len() as u64) as usize];
    let window = &pick(random);
    match random.below(256) {
        0 => {
            copy(window, &pick(random), random);
            None
        }
        1..20 => vector(window, random),
        20..40 => exchange(window, random),
        40..90 => byte(window, random),
        90..150 => access!(u16, "add [{at}], {value:x}", window, random),
        150..200 => access!(u32, "add [{at}], {value:e}", window, random),
        _ => access!(u64, "add [{at}], {value}", window, random),
    }
}

fn main(info: &StartInfo) -> u64 {
    let heap_end = info.heap + info.heap_len;
    let data_len = info.data_len.next_multiple_of(PAGE);
    let ram_len = WINDOW * PAGE;
    let ram = (info.heap + ram_len / 2).next_multiple_of(TABLE) - ram_len / 2;
    // The shadows lie at the end of the heap.
    let shadow = heap_end.saturating_sub(ram_len + data_len);
    if shadow < ram + ram_len {
        println!("a heap of {} KiB is too small", info.heap_len / 1024);
        return 2;
    }
    let windows = [
        Window {
            base: ram,
            shadow,
            len: ram_len,
        },
        Window {
            base: info.data,
            shadow: shadow + ram_len,
            len: data_len,
        },
    ];
    let windows = match data_len {
        0 => &windows[..1],
        _ => &windows[..],
    };
    for offset in (0..ram_len + data_len).step_by(8) {
        let data = offset.saturating_sub(ram_len);
        let word = match info.data_len.saturating_sub(data) {
            _ if offset < ram_len => 0,
            8.. => pattern::data(data),
            left => pattern::data(data) & ((1 << (8 * left)) - 1),
        };
        // SAFETY: as in `access`.
        unsafe { ((shadow + offset) as *mut u64).write_volatile(word) };
    }

    let seed = Random::seed();
    let mut random = Random::new(seed);
    let mut wrong = (0..OPERATIONS).find_map(|_| operate(windows, &mut random));
    wrong = wrong.or_else(|| windows.iter().find_map(compare_all));
    // A report without the figure is no failure of the memory.
    let _ = count("shadow.operations", OPERATIONS);
    match wrong {
        Some(Wrong {
            address,
            found,
            expected,
        }) => {
            println!("WRONG at {address:#x}: {found:#x} instead of {expected:#x}; SEED={seed}");
            1
        }
        None => 0,
    }
}
