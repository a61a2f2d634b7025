//! The boot modules that are data: those that nobody can map, and the bytes of the others.

use crate::boot::layout;
use offshoot::addr::{AddrRange, Hpa};
use offshoot::ept::HostBytes;
use offshoot::host::cmdline::MapOption;
use offshoot::host::modules::{BootModule, find_data, find_input};
use offshoot::host::report::{GuestEnding, GuestSummary};
use offshoot::vm::GuestError;
use offshoot::vm::data::{DataError, SharedData, check};
use offshoot::vm::name::Name;

/// What the report says of data that nobody can map, if it is such. `earlier` are the modules before it.
pub fn refused(
    module: &BootModule<'_>,
    earlier: &[BootModule<'_>],
) -> Option<GuestSummary<'static>> {
    let name = module.name;
    let ending = if earlier.iter().any(|earlier| earlier.is_data(name)) {
        GuestEnding::DuplicateName
    } else if let Err(error) = check(name, module.range) {
        GuestEnding::NotMade(GuestError::Data(error))
    } else {
        log::info!(
            "data {name}: {} bytes for guests to map",
            module.range.len()
        );
        return None;
    };
    Some(GuestSummary::not_run(name, ending))
}

/// What a guest gets that asks for data.
pub fn shared(modules: &[BootModule<'_>], map: &MapOption) -> Result<SharedData, DataError> {
    find_data(modules, map).map(|range| SharedData {
        // SAFETY: a module's memory is never given to the allocator and nobody writes to it; the direct map shows it like all
        // memory.
        bytes: unsafe { HostBytes::new(range) },
        write: map.write,
    })
}

/// The bytes of the data with this name.
pub fn input(modules: &[BootModule<'_>], name: Name) -> Result<&'static [u8], DataError> {
    find_input(modules, name).map(bytes)
}

/// The bytes of a module. They stay as they are: its memory is never given to the allocator.
pub fn bytes(range: AddrRange<Hpa>) -> &'static [u8] {
    // SAFETY: the boot loader put the module there, the direct map shows it, and nobody writes to it.
    unsafe { core::slice::from_raw_parts(layout::direct(range.start()), range.len() as usize) }
}
