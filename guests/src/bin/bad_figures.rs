//! Files figures until there is no room for another, and counts how many there was room for.
#![no_std]
#![no_main]

use offshoot_guest::abi::Call;
use offshoot_guest::{StartInfo, call, println};

offshoot_guest::entry!(main);

fn main(_: &StartInfo) -> u64 {
    for number in 0u64.. {
        let mut name = [b'a'; 8];
        for (place, letter) in name.iter_mut().enumerate() {
            *letter += (number >> (4 * place) & 15) as u8;
        }
        let arguments = [name.as_ptr() as u64, name.len() as u64, number];
        let result = call::raw(Call::Count as u64, arguments);
        if result != 0 {
            println!("{number} figures, then {result}");
            return 0;
        }
    }
    1
}
