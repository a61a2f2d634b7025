//! The devices of one guest.

use super::cmdline::Name;
use super::console::Console;
use super::io::Ports;

/// What a guest reaches beside its memory.
#[derive(Clone, Debug)]
pub struct Devices {
    /// Whose they are.
    pub name: Name,
    /// Its I/O ports.
    pub ports: Ports,
    /// The line it is printing.
    pub console: Console,
}

impl Devices {
    /// Those of a guest that has not run.
    pub fn new(name: Name) -> Self {
        Self {
            name,
            ports: Ports::default(),
            console: Console::new(name),
        }
    }
}
