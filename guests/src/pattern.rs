//! Values that a guest can tell from all others, and the data that tests give guests to map. Tests make that data with
//! this very file.

/// Another value for each place in memory, at the cost of two instructions. With another `salt` all are others.
pub const fn word(place: u64, salt: u64) -> u64 {
    (place ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A value for each value, without likeness: the last steps of SplitMix64.
pub const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// Bytes of [`rewriting`].
pub const REWRITING: usize = 16;
/// Where in them the number stands that it writes.
pub const REWRITTEN: usize = 6;

/// A function in machine code that returns `number`, which it has first written into its own last instruction but one:
/// `mov dword ptr [rip + 1], number; mov eax, 0; ret`.
pub const fn rewriting(number: u32) -> [u8; REWRITING] {
    let [a, b, c, d] = number.to_le_bytes();
    [0xc7, 0x05, 1, 0, 0, 0, a, b, c, d, 0xb8, 0, 0, 0, 0, 0xc3]
}

/// What the function returns with which page number `page` of the data begins.
pub const fn returned(page: u64) -> u32 {
    mix(page) as u32 | 1
}

/// The eight bytes of the data at `offset`, a multiple of 8: each page begins with [`rewriting`], the rest has no
/// meaning.
pub const fn data(offset: u64) -> u64 {
    if offset % 4096 >= REWRITING as u64 {
        return word(offset, !0);
    }
    let code = u128::from_le_bytes(rewriting(returned(offset / 4096)));
    (code >> (offset % 4096 * 8)) as u64
}
