//! What a run of guests asks of whoever runs them.

use core::fmt;

use super::console::Printer;
use super::figure::Figure;
use crate::addr::Gva;

/// What the run loop asks of the kernel around it.
pub trait Host {
    /// An external interrupt made a guest exit, and was acknowledged.
    fn external_interrupt(&mut self, vector: u8);
    /// A non-maskable interrupt made a guest exit. It is the host's.
    fn non_maskable_interrupt(&mut self);
    /// A machine check made a guest exit. It is the host's.
    fn machine_check(&mut self);
    /// A line that a guest has printed. Returns what it costs the guest, in ticks of the TSC: at least 1.
    fn print(&mut self, from: &Printer, line: &[u8]) -> u64;
    /// Text about a guest, of whole lines when the guest has left the CPU.
    fn tell(&mut self, text: &str);
    /// How much may be said of the end of a guest that did not end well.
    fn explains(&mut self) -> Words {
        Words::All
    }
    /// After how many ticks the host wants the CPU back from a guest that nobody else waits for, because something was printed.
    fn wants_back(&self) -> Option<u64> {
        None
    }
    /// A turn is over: time for a little of what the host has to do for itself.
    fn between_turns(&mut self) {}
    /// A guest files a figure. `false` where there is no room for it.
    fn figure(&mut self, figure: Figure) -> bool;
    /// A guest that exits on breakpoints has come to one at this address. Returns the byte that belongs there if it is the
    /// host's, which is then put back for this guest; a breakpoint of the guest's own is its own business.
    fn breakpoint(&mut self, at: Gva) -> Option<u8> {
        let _ = at;
        None
    }
}

/// How much is said of the end of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    /// All that is known, the whole VMCS where that helps.
    All,
    /// Its registers, and where it was.
    Few,
    /// Nothing: it is counted.
    None,
}

/// The host's console as a writer.
pub(crate) struct HostConsole<'h, H>(pub &'h mut H);

impl<H: Host> fmt::Write for HostConsole<'_, H> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.tell(text);
        Ok(())
    }
}
