//! The report as one line of JSON.

use core::fmt::{self, Display, Write};

use ser_write_json::SerWrite;
use serde::{Serialize, Serializer};

use super::forks::ForksJson;
use super::parts::{Each, Text};
use super::{GuestSummary, Report};
use crate::host::many::GuestRun;
use crate::vm::figure::Figure;

/// The line that carries the report begins with this.
pub const PREFIX: &str = "OFFSHOOT-REPORT ";

impl Report<'_> {
    /// Writes the line, its end included. What cannot be written is what `out` refuses.
    ///
    /// # Errors
    /// What `out` refuses.
    pub fn write_json(&self, out: &mut impl Write) -> fmt::Result {
        out.write_str(PREFIX)?;
        let report = ReportJson {
            ok: self.is_success(),
            guests: Guests(self),
            frames: FramesJson {
                total: self.frames.total,
                used: self.frames.used,
                peak: self.frames.peak,
                leaked: self.leaked,
            },
            figures: Each(self.figures.as_slice(), FigureJson::new),
        };
        ser_write_json::to_writer(Utf8(out), &report).map_err(|_| fmt::Error)?;
        out.write_char('\n')
    }
}

#[derive(Serialize)]
struct ReportJson<'a> {
    ok: bool,
    guests: Guests<'a>,
    frames: FramesJson,
    figures: Each<'a, Figure, FigureJson<'a>>,
}

#[derive(Serialize)]
struct GuestJson<'a> {
    name: &'a str,
    outcome: &'a str,
    /// The outcome in a sentence.
    detail: Text<&'a dyn Display>,
    /// As the signed number that a guest's exit status usually is.
    status: Option<i64>,
    exits: Exits<'a>,
    pages: PagesJson,
    faults: FaultsJson,
    memory: MemoryJson,
    tables: u64,
    /// INVEPTs executed for its space.
    invepts: u64,
    /// INVVPIDs executed where an INVEPT would have dropped more than was stale.
    invvpids: u64,
    dirty: DirtyJson,
    host_instructions: u64,
    guest_instructions: u64,
    lost: LostJson,
    forks: Option<ForksJson<'a>>,
}

impl<'a> GuestJson<'a> {
    fn new(number: usize, guest: &'a GuestSummary<'a>, runs: &'a [GuestRun]) -> Self {
        Self {
            name: guest.name.as_str(),
            outcome: guest.ending.name(),
            detail: Text(&guest.ending),
            status: guest.ending.status().map(u64::cast_signed),
            exits: Exits(guest),
            pages: PagesJson {
                filled: guest.faults.filled,
                copied: guest.faults.copied,
                taken_over: guest.faults.taken_over,
                zero_shared: guest.faults.zero_shared,
                around: guest.faults.around,
                host_mapped: guest.faults.host_mapped,
            },
            faults: FaultsJson {
                mmio: guest.faults.mmio,
                spurious: guest.faults.spurious,
                refused: guest.faults.refused,
            },
            memory: MemoryJson {
                zero: guest.memory.zero,
                filled: guest.memory.filled,
                copied: guest.memory.copied,
                host: guest.memory.host,
                shared: guest.memory.shared,
                large: guest.memory.large,
                own_bytes: guest.memory.private_bytes(),
            },
            tables: guest.memory.tables,
            invepts: guest.invalidations,
            invvpids: guest.linear_invalidations,
            dirty: DirtyJson {
                harvests: guest.stats.harvests.count,
                pages: guest.stats.harvests.pages,
                digest: guest.stats.harvests.digest,
            },
            host_instructions: guest.stats.host_ticks,
            guest_instructions: guest.stats.guest_ticks,
            lost: LostJson {
                lines: guest.lost.lines,
                figures: guest.lost.figures,
                explanations: guest.lost.explanations,
            },
            forks: guest
                .forks
                .as_ref()
                .map(|forks| ForksJson::new(forks, number, runs)),
        }
    }
}

/// What there was no room for.
#[derive(Serialize)]
struct LostJson {
    lines: u64,
    figures: u64,
    explanations: u64,
}

/// Violations by what they mapped.
#[derive(Serialize)]
struct PagesJson {
    filled: u64,
    copied: u64,
    taken_over: u64,
    zero_shared: u64,
    around: u64,
    host_mapped: u64,
}

/// What was told of its dirty pages.
#[derive(Serialize)]
struct DirtyJson {
    harvests: u64,
    pages: u64,
    digest: u64,
}

/// Violations that mapped nothing.
#[derive(Serialize)]
struct FaultsJson {
    mmio: u64,
    spurious: u64,
    refused: u64,
}

/// What was mapped in the end, in pages of 4 KiB, and the host memory that nobody else had a part in.
#[derive(Serialize)]
struct MemoryJson {
    zero: u64,
    filled: u64,
    copied: u64,
    host: u64,
    shared: u64,
    large: u64,
    own_bytes: u64,
}

#[derive(Serialize)]
struct FramesJson {
    total: u64,
    used: u64,
    peak: u64,
    leaked: u64,
}

#[derive(Serialize)]
struct FigureJson<'a> {
    guest: &'a str,
    name: &'a str,
    value: u64,
    unit: &'a str,
}

impl<'a> FigureJson<'a> {
    fn new(figure: &'a Figure) -> Self {
        Self {
            guest: figure.guest.as_str(),
            name: figure.name.as_str(),
            value: figure.value,
            unit: figure.unit.name(),
        }
    }
}

/// The guests of a report.
struct Guests<'a>(&'a Report<'a>);

impl Serialize for Guests<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Report {
            guests, fork_runs, ..
        } = self.0;
        let each = guests.iter().enumerate();
        serializer.collect_seq(each.map(|(number, guest)| GuestJson::new(number, guest, fork_runs)))
    }
}

/// Exits by the name of their reason.
struct Exits<'a>(&'a GuestSummary<'a>);

impl Serialize for Exits<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let exits = self.0.stats.exits();
        serializer.collect_map(exits.map(|(reason, count)| (reason.name(), count)))
    }
}

/// The serializer writes bytes, in pieces that are whole characters.
struct Utf8<'a, W>(&'a mut W);

impl<W: Write> SerWrite for Utf8<'_, W> {
    type Error = fmt::Error;

    fn write(&mut self, bytes: &[u8]) -> fmt::Result {
        self.0
            .write_str(core::str::from_utf8(bytes).map_err(|_| fmt::Error)?)
    }
}
