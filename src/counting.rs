//! How often the instructions were executed that cost a processor more than others, and how many bytes were moved.
//!
//! Counting takes instructions itself, so a kernel that measures those does not count: the feature `count` builds one that
//! does, and whose figures of instructions mean nothing. Who moves bytes or executes such an instruction says so here.

#[cfg(feature = "count")]
use core::sync::atomic::{AtomicU64, Ordering};

/// Whether anything is counted.
pub const ON: bool = cfg!(feature = "count");

/// What is counted. The numbers are known to the routine that enters guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// VMREADs.
    Vmreads = 0,
    /// VMWRITEs.
    Vmwrites = 1,
    /// INVEPTs.
    Invepts = 2,
    /// INVVPIDs.
    Invvpids = 3,
    /// Bytes copied from memory to memory, or set to zero: of pages, tables, and the state of processors.
    Bytes = 4,
}

impl Counted {
    /// All of them, by their number.
    pub const ALL: [Self; 5] = [
        Self::Vmreads,
        Self::Vmwrites,
        Self::Invepts,
        Self::Invvpids,
        Self::Bytes,
    ];
}

#[cfg(feature = "count")]
#[unsafe(export_name = "offshoot_counts")]
static COUNTS: [AtomicU64; Counted::ALL.len()] = [const { AtomicU64::new(0) }; Counted::ALL.len()];

/// What was counted, of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts(#[cfg(feature = "count")] [u64; Counted::ALL.len()]);

impl Counts {
    /// Up to now.
    #[inline(always)]
    pub fn now() -> Self {
        Self(
            #[cfg(feature = "count")]
            core::array::from_fn(|kind| {
                COUNTS
                    .get(kind)
                    .map_or(0, |count| count.load(Ordering::Relaxed))
            }),
        )
    }

    /// Since this moment, up to now.
    #[inline(always)]
    pub fn so_far(self) -> Self {
        #[cfg(feature = "count")]
        let Self(now) = Self::now();
        Self(
            #[cfg(feature = "count")]
            core::array::from_fn(|kind| {
                let of = |counts: &[u64]| counts.get(kind).copied().unwrap_or(0);
                of(&now).wrapping_sub(of(&self.0))
            }),
        )
    }

    /// How many of one kind: none, where nothing is counted.
    pub fn of(&self, kind: Counted) -> u64 {
        #[cfg(feature = "count")]
        return self.0.get(kind as usize).copied().unwrap_or(0);
        #[cfg(not(feature = "count"))]
        {
            let _ = kind;
            0
        }
    }
}

/// Counts `times` more.
#[inline(always)]
pub fn add(what: Counted, times: u64) {
    #[cfg(feature = "count")]
    if let Some(count) = COUNTS.get(what as usize) {
        count.fetch_add(times, Ordering::Relaxed);
    }
    #[cfg(not(feature = "count"))]
    let _ = (what, times);
}

/// An assembler line that executes a VMREAD or VMWRITE, with one that counts it where that is on. It changes flags.
#[cfg(feature = "vmx")]
macro_rules! counted_line {
    ($number:literal, $line:literal) => {
        if_counting!(
            concat!(
                "inc qword ptr [rip + offshoot_counts + 8 * ",
                $number,
                "]\n",
                $line
            ),
            $line
        )
    };
}
#[cfg(all(feature = "vmx", feature = "count"))]
macro_rules! if_counting {
    ($on:expr, $off:expr) => {
        $on
    };
}
#[cfg(all(feature = "vmx", not(feature = "count")))]
macro_rules! if_counting {
    ($on:expr, $off:expr) => {
        $off
    };
}
#[cfg(feature = "vmx")]
pub(crate) use {counted_line, if_counting};
