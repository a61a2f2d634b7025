//! Of what size the pages are that a first write is given.

use crate::addr::PageSize;
use crate::ept::hw::capability::Features;
use core::fmt;

/// Of what size the pages are that the first write to untouched RAM is given: the largest allowed that the region covers
/// and of which a block of frames is free, and where no smaller page is mapped yet.
///
/// The write waits until all of the page is zeroed: some 262 thousand instructions for 2 MiB and 134 million for 1 GiB,
/// in one exit. And as long as one of those who shared a large page holds any part of it, all of it is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PagePolicy {
    /// 4 KiB: no memory is given that is not asked for, and a fork copies the least.
    #[default]
    Small,
    /// 2 MiB.
    Large2M,
    /// 1 GiB.
    Large1G,
    /// 2 MiB next to memory that is written nearly all over, as long as frames are plentiful; else 4 KiB.
    Auto,
}

impl PagePolicy {
    /// What is left of it on this CPU.
    pub const fn on(self, features: Features) -> Self {
        match self {
            // A part of a page of 1 GiB is changed as pages of 2 MiB.
            Self::Large1G if features.pages_1g && features.pages_2m => self,
            Self::Large2M | Self::Large1G if features.pages_2m => Self::Large2M,
            Self::Auto if features.pages_2m => self,
            _ => Self::Small,
        }
    }

    /// The largest page that it gives.
    pub const fn largest(self) -> PageSize {
        match self {
            Self::Small => PageSize::Size4K,
            Self::Large2M | Self::Auto => PageSize::Size2M,
            Self::Large1G => PageSize::Size1G,
        }
    }
}

impl fmt::Display for PagePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Small => "4k",
            Self::Large2M => "2m",
            Self::Large1G => "1g",
            Self::Auto => "auto",
        })
    }
}

/// How many pages a violation maps at most where nothing else is said.
pub const AROUND: u64 = 16;
/// The most that can be asked for.
pub const MAX_AROUND: u64 = 64;

/// What a violation is given.
#[derive(Clone, Copy, Debug)]
pub(in crate::ept) struct FillPolicy {
    /// Of what size the pages are that a first write is given.
    pub pages: PagePolicy,
    /// How many pages one violation may map.
    pub around: Around,
    /// Whether what the host writes is given small pages.
    pub host_writes_small: bool,
}

impl FillPolicy {
    pub const DEFAULT: Self = Self {
        pages: PagePolicy::Small,
        around: Around::new(AROUND),
        host_writes_small: false,
    };
}

/// How many pages one violation may map, and how the guest has gone through its memory so far.
#[derive(Clone, Copy, Debug)]
pub(in crate::ept) struct Around {
    pub most: u64,
    /// How many the last run of pages was meant to have.
    run: u64,
    /// The number of its last page.
    pub end: u64,
}

impl Around {
    pub const fn new(most: u64) -> Self {
        Self {
            most,
            run: 1,
            end: 0,
        }
    }

    /// How many pages the guest is given that has touched the page after number `last`.
    pub fn next_run(&mut self, last: u64) -> u64 {
        // Where a table begins, one page alone was put by the general way.
        let goes_on = last.wrapping_sub(self.end) <= 1;
        self.run = if goes_on { self.run * 2 } else { 2 }.min(self.most);
        self.run
    }
}
