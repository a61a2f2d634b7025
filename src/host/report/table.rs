//! The report as a table of at most 100 columns.

use core::fmt::{self, Display, Write};

use arrayvec::ArrayString;

use super::forks::write_forks;
use super::text::{Brief, Grouped, Size, WIDTH, Wrapped};
use super::{GuestSummary, Report};
use crate::addr::PAGE_SIZE;
use crate::host::quota::Lost;
use crate::vm::figure::Unit;
use crate::vm::name::Name;

impl Report<'_> {
    /// Writes the table.
    ///
    /// # Errors
    /// What `out` refuses.
    pub fn write_table(&self, out: &mut impl Write) -> fmt::Result {
        writeln!(
            out,
            "{:<18} {:<20} {:>10} {:>10} {:>7} {:>7} {:>7} {:>7} {:>6}",
            "guest",
            "outcome",
            "host ticks",
            "its own",
            "exits",
            "each",
            "filled",
            "copied",
            "tables"
        )?;
        rule(out)?;
        for guest in self.guests {
            write_guest(guest, out)?;
        }
        rule(out)?;
        let frames = &self.frames;
        write!(out, "host frames: ")?;
        let used = [
            ("", frames.total),
            ("in use ", frames.used),
            ("at most ", frames.peak),
        ];
        for (what, count) in used {
            write!(
                out,
                "{what}{} ({}), ",
                Grouped(count),
                Size(count.saturating_mul(PAGE_SIZE))
            )?;
        }
        writeln!(out, "leaked {}", Grouped(self.leaked))?;
        self.write_figures(out)
    }

    fn write_figures(&self, out: &mut impl Write) -> fmt::Result {
        let figures = self.figures.as_slice();
        if figures.is_empty() {
            return Ok(());
        }
        rule(out)?;
        for figure in figures {
            let unit = match figure.unit {
                // On a processor they are not instructions.
                Unit::Ticks => " ticks",
                // Its name says what it counts.
                Unit::Count => "",
                Unit::Bytes => " bytes",
                Unit::Forks => " forks",
                Unit::Frames => " frames",
            };
            writeln!(
                out,
                "{:<32} {:<32} {:>20}{unit}",
                figure.name,
                figure.guest,
                Grouped(figure.value),
            )?;
        }
        Ok(())
    }
}

fn rule(out: &mut impl Write) -> fmt::Result {
    writeln!(out, "{:-<WIDTH$}", "")
}

fn write_guest(guest: &GuestSummary<'_>, out: &mut impl Write) -> fmt::Result {
    let stats = &guest.stats;
    let exits = stats.total();
    let mut outcome = ArrayString::<20>::new();
    let _ = match guest.ending.status() {
        Some(0) | None => outcome.write_str(guest.ending.name()),
        Some(status) => write!(outcome, "{}: {}", guest.ending.name(), status.cast_signed()),
    }
    .or_else(|_| {
        // A status that is too long for the column stands in the detail below.
        outcome.clear();
        outcome.write_str("exited")
    });
    writeln!(
        out,
        "{:<18} {:<20} {:>10} {:>10} {:>7} {:>7} {:>7} {:>7} {:>6}",
        Short(&guest.name),
        outcome,
        Brief(stats.host_ticks),
        Brief(stats.guest_ticks),
        Brief(exits),
        Brief(stats.host_ticks.checked_div(exits).unwrap_or(0)),
        Brief(guest.faults.filled),
        Brief(guest.faults.copied),
        Brief(guest.memory.tables),
    )?;
    if !guest.ending.is_success() {
        let mut words = Wrapped::new(out);
        write!(words, "{}", guest.ending)?;
        words.end()?;
    }
    let memory = &guest.memory;
    if memory.mapped() != 0 {
        let mut words = Wrapped::new(out);
        write!(words, "{} of its own", Size(memory.private_bytes()))?;
        for (pages, what) in [
            (memory.filled, "filled"),
            (memory.copied, "copied"),
            (memory.zero, "of zeroes"),
            (memory.host, "of the host"),
            (memory.shared, "shared"),
            (memory.large, "in large pages"),
        ] {
            if pages != 0 {
                write!(words, ", {} {what}", Grouped(pages))?;
            }
        }
        words.end()?;
    }
    if exits != 0 {
        let mut words = Wrapped::new(out);
        for (i, (reason, count)) in stats.exits().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(words, "{comma}{} {}", reason.name(), Grouped(count))?;
        }
        words.end()?;
    }
    if guest.lost != Lost::NOTHING {
        let mut words = Wrapped::new(out);
        write!(words, "lost for lack of room:")?;
        let mut comma = "";
        for (count, what) in [
            (guest.lost.lines, "lines that it printed"),
            (guest.lost.figures, "figures"),
            (guest.lost.explanations, "explanations of ends"),
        ] {
            if count != 0 {
                write!(words, "{comma} {} {what}", Grouped(count))?;
                comma = ",";
            }
        }
        words.end()?;
    }
    match &guest.forks {
        Some(forks) => write_forks(forks, out),
        None => Ok(()),
    }
}

/// A name in 18 columns.
struct Short<'a>(&'a Name);

impl Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_str().split_at_checked(16) {
            Some((start, rest)) if rest.len() > 2 => write!(f, "{start}.."),
            _ => f.pad(self.0.as_str()),
        }
    }
}
