//! The boot modules that are data: those that nobody can map, and the bytes of the others.

use crate::boot::info::{BootInfo, Module};
use crate::guests::{bytes, not_run};
use offshoot::ept::HostBytes;
use offshoot::vm::GuestError;
use offshoot::vm::cmdline::{CmdlineError, DataOptions, MapOption, Name};
use offshoot::vm::data::{DataError, SharedData, check, find};
use offshoot::vm::report::{Ending, GuestSummary};

/// What the report says of data that nobody can map, if it is such.
pub fn refused(
    index: usize,
    module: &Module,
    options: Result<DataOptions, CmdlineError<'static>>,
    boot: &BootInfo,
) -> Option<GuestSummary<'static>> {
    let name = match options {
        Ok(options) => options.name,
        Err(error) => {
            let name = error.whose.name().unwrap_or(Name::numbered(index));
            return Some(not_run(name, Ending::BadOptions(error)));
        }
    };
    let same = |other: &Module| matches!(DataOptions::parse(other.cmdline), Some(Ok(other)) if other.name == name);
    let ending = if boot.modules().take(index).any(|earlier| same(&earlier)) {
        Ending::DuplicateName
    } else if let Err(error) = check(name, module.range) {
        Ending::NotMade(GuestError::Data(error))
    } else {
        log::info!(
            "data {name}: {} bytes for guests to map",
            module.range.len()
        );
        return None;
    };
    Some(not_run(name, ending))
}

/// What a guest gets that asks for data.
pub fn shared(boot: &BootInfo, map: &MapOption) -> Result<SharedData, DataError> {
    let places = boot.modules().map(|module| (module.cmdline, module.range));
    find(map, places).map(|range| SharedData {
        // SAFETY: a module's memory is never given to the allocator and nobody writes to it; the direct map shows it like all
        // memory.
        bytes: unsafe { HostBytes::new(range) },
        write: map.write,
    })
}

/// The bytes of the data with this name.
pub fn input(boot: &BootInfo, name: Name) -> Result<&'static [u8], DataError> {
    let named = |module: &Module| {
        let data = DataOptions::parse(module.cmdline).and_then(Result::ok);
        data.is_some_and(|data| data.name == name)
    };
    let module = boot.modules().find(named);
    Ok(bytes(&module.ok_or(DataError::NoSuchInput(name))?))
}
