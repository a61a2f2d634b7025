//! The kernel, as a run of guests sees it, and what it keeps for the report.

use crate::boot::{clock, console, traps};
use offshoot::host::figures::Figures;
use offshoot::host::quota::{CountsByGuest, Explanations};
use offshoot::vm::console::Printer;
use offshoot::vm::figure::{Figure, FigureName, Unit};
use offshoot::vm::name::Name;
use offshoot::vm::{Host, Words};
use spin::Mutex;

// Too large for the stack.
pub static FIGURES: Mutex<Figures> = Mutex::new(Figures::new());
pub static LINES_LOST: Mutex<CountsByGuest> = Mutex::new(CountsByGuest::new());
/// Of the guest that runs.
pub static EXPLANATIONS: Mutex<Explanations> = Mutex::new(Explanations::NONE);

/// Files a figure of the hypervisor's about a guest.
pub fn file_figure(guest: Name, name: &[u8], value: u64, unit: Unit) {
    let filed = FigureName::new(name).is_some_and(|name| {
        FIGURES.lock().file(Figure {
            guest,
            host: true,
            name,
            value,
            unit,
        })
    });
    if !filed {
        log::warn!("no room for figure {}", name.escape_ascii());
    }
}

/// The kernel, as the run loop sees it.
pub struct Kernel;

impl Host for Kernel {
    fn external_interrupt(&mut self, vector: u8) {
        clock::end_of_interrupt(vector);
    }
    fn non_maskable_interrupt(&mut self) {
        traps::raise_nmi();
    }
    fn machine_check(&mut self) {
        traps::raise_machine_check();
    }
    fn print(&mut self, from: &Printer, line: &[u8]) -> u64 {
        let (price, loser) = console::print(from, line);
        if let Some(loser) = loser {
            LINES_LOST.lock().count(loser);
        }
        price
    }
    fn tell(&mut self, text: &str) {
        console::write_fmt(format_args!("{text}"));
    }
    fn explains(&mut self) -> Words {
        EXPLANATIONS.lock().another(console::room())
    }
    fn wants_back(&self) -> Option<u64> {
        console::wants_turn()
    }
    fn between_turns(&mut self) {
        console::offer();
    }
    fn figure(&mut self, figure: Figure) -> bool {
        FIGURES.lock().file(figure)
    }
}
