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

    /// Makes them what `from`, another guest's of the same name, are.
    #[inline]
    pub fn restore(&mut self, from: &Self) {
        let Self {
            name: _,
            ports,
            console,
        } = self;
        ports.clone_from(&from.ports);
        console.restore(&from.console);
    }
}
