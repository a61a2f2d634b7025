//! The report that an image prints as one line of JSON.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The line that carries the report begins with this.
pub const PREFIX: &str = "OFFSHOOT-REPORT ";

/// What a run of the image did.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Report {
    /// Whether all guests ended well.
    pub ok: bool,
    /// The guests in the order of their modules, also those that were not run.
    pub guests: Vec<Guest>,
    /// The host's frames.
    pub frames: Frames,
    /// What the guests filed.
    #[serde(default)]
    pub figures: Vec<Figure>,
}

/// One guest.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// How it ended, in a few words.
    pub outcome: String,
    /// Its exit status, if it came to one.
    pub status: Option<u64>,
    /// Exits by reason.
    pub exits: BTreeMap<String, u64>,
    /// EPT violations by what they mapped.
    pub pages: BTreeMap<String, u64>,
    /// EPT violations that mapped nothing, by kind.
    #[serde(default)]
    pub faults: BTreeMap<String, u64>,
    /// What was mapped in the end, in pages of 4 KiB, and `own_bytes` of host memory.
    #[serde(default)]
    pub memory: BTreeMap<String, u64>,
    /// Tables of its address space.
    pub tables: u64,
    /// INVEPTs executed for its address space.
    #[serde(default)]
    pub invepts: u64,
    /// INVVPIDs executed for it where they do.
    #[serde(default)]
    pub invvpids: u64,
    /// What was told of its dirty pages.
    #[serde(default)]
    pub dirty: Dirty,
    /// Instructions spent in the host for it, where the TSC counts them.
    pub host_instructions: u64,
    /// Instructions of its own.
    pub guest_instructions: u64,
    /// What there was no room for.
    #[serde(default)]
    pub lost: Lost,
    /// What its forks came to, if it froze.
    #[serde(default)]
    pub forks: Option<Forks>,
}

/// What of a guest is neither on the console nor in the report, as there was no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Lost {
    /// Lines that it printed.
    pub lines: u64,
    /// Figures that it filed.
    pub figures: u64,
    /// Explanations of its end, and of those of its forks.
    pub explanations: u64,
}

/// What was told of a guest's dirty pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Dirty {
    /// How often somebody asked.
    pub harvests: u64,
    /// Pages that were told.
    pub pages: u64,
    /// A checksum of which, and in which order.
    pub digest: u64,
}

/// The host's frames.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Frames {
    /// Frames that are managed.
    pub total: u64,
    /// Frames in use at the end.
    pub used: u64,
    /// The most that were in use at once.
    pub peak: u64,
    /// Frames that nobody gave back.
    pub leaked: u64,
}

/// A figure that a guest filed.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Figure {
    /// The guest.
    pub guest: String,
    /// The name of the figure.
    pub name: String,
    /// Its value.
    pub value: u64,
    /// What it counts.
    #[serde(default = "instructions")]
    pub unit: String,
}

fn instructions() -> String {
    "instructions".into()
}

/// What the forks of a guest came to.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Forks {
    /// By generation.
    pub generations: Vec<Generation>,
    /// Instructions for all of them, where the TSC counts them.
    pub instructions: u64,
    /// Runs per billion instructions.
    pub runs_per_billion: u64,
    /// Frames of a fork that has not run.
    pub idle_frames: u64,
    /// What went wrong first.
    pub failures: Vec<Failure>,
    /// The first runs.
    pub runs: Vec<ForkRun>,
}

/// All forks of the templates of one generation.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Generation {
    /// How many templates there were.
    pub templates: u64,
    /// The most forks that were alive at once.
    pub alive_most: u64,
    /// Runs that ended well.
    pub ok: u64,
    /// Runs that did not end well.
    pub failed: u64,
    /// Runs that could not be.
    pub lost: u64,
    /// Runs that were begun again for lack of memory.
    pub waited: u64,
    /// Runs that failed or could not be for lack of memory.
    pub starved: u64,
    /// Runs that became templates.
    pub frozen: u64,
    /// Pages that became private to forks.
    pub pages_private: u64,
    /// Pages that resets took back.
    pub pages_reset: u64,
    /// Instructions per fork made.
    pub fork: Spread,
    /// Instructions per run.
    pub run: Spread,
    /// Instructions per reset.
    pub reset: Spread,
    /// Instructions per fork ended.
    pub end: Spread,
}

/// How values are spread.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Spread {
    /// How many.
    pub count: u64,
    /// Their sum.
    pub total: u64,
    /// The least.
    pub min: u64,
    /// The one in the middle, nearly.
    pub median: u64,
    /// The most.
    pub max: u64,
}

/// A run of a fork that failed or could not be.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Failure {
    /// The generation, from 1.
    pub generation: u64,
    /// The number of the fork.
    pub fork: u64,
    /// The number of the run.
    pub run: u64,
    /// What happened, in a few words.
    pub outcome: String,
    /// And in a sentence.
    pub detail: String,
}

/// One run of a fork.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ForkRun {
    /// The generation, from 1.
    pub generation: u64,
    /// The number of the fork.
    pub fork: u64,
    /// The number of the run.
    pub run: u64,
    /// Instructions it took.
    pub instructions: u64,
    /// VM exits.
    pub exits: u64,
    /// Pages that became private.
    pub pages: u64,
    /// How it ended.
    pub outcome: String,
}

impl Report {
    /// The guest of that name.
    pub fn guest(&self, name: &str) -> Option<&Guest> {
        self.guests.iter().find(|guest| guest.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agreed_form_is_read() {
        let text = r#"{"ok": false, "guests": [{"name": "a", "outcome": "triple fault", "status": null,
            "exits": {"cpuid": 2}, "pages": {"filled": 3}, "tables": 4, "host_instructions": 5,
            "guest_instructions": 6}], "frames": {"total": 9, "used": 1, "peak": 8, "leaked": 0}}"#;
        let report: Report = serde_json::from_str(text).unwrap();
        let guest = report.guest("a").unwrap();
        assert_eq!(guest.status, None);
        assert_eq!(guest.exits["cpuid"], 2);
        assert!(report.figures.is_empty());
        assert!(report.guest("b").is_none());
    }
}
