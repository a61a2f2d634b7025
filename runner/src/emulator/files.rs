//! The files of a run, and those that emulators need.

use crate::Error;
use std::path::Path;

/// The console of the image, in the folder of a run.
pub const SERIAL: &str = "serial.log";
/// What the emulator has to say, in the folder of a run.
pub const LOG: &str = "emulator.log";
/// The ISO, in the folder of a run.
pub const ISO: &str = "offshoot.iso";

/// Makes sure that a file is there.
pub(super) fn exists(file: &str) -> Result<(), Error> {
    let path = Path::new(file);
    if path.exists() {
        Ok(())
    } else {
        Err(Error::MissingFile(path.into()))
    }
}
