//! The file that collects the figures of the benchmarks, also those of other tools.

use crate::guest::DATA;
use crate::report::Figure;
use crate::{Error, Guest, Run};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// What `make bench` runs when nothing else is asked for, beside [`data`]: exits and fills; forks of guests of three sizes;
/// as many idle forks as there is memory for.
pub const DEFAULT: &str = "bench,testdev,map=bench-data,forks=2,parallel=1 \
    forks_bench,name=fork-16m,mem=16M,measure=all \
    forks_bench,name=fork-1g,mem=1G,measure=fork forks_bench,name=fork-16g,mem=16G,measure=fork \
    frozen,mem=16M,idle";
const DATA_NAME: &str = "bench-data";
/// A page for each time that the copying of one is measured, and some more.
const DATA_LEN: usize = 1024 * 4096;

const INSTRUCTIONS: &str = "instructions";

/// One entry of `target/bench/report.json`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Entry {
    /// What was measured.
    pub name: String,
    /// How much it was. Other tools file fractions.
    pub value: serde_json::Number,
    /// Of what.
    pub unit: String,
}

/// The command line of the hypervisor: what is done against side channels depends on the CPU, so unless `given` asks for
/// it, none of it is in the figures.
pub fn cmdline(given: &str) -> String {
    let asks = |word: &str| word.starts_with("mitigations=");
    match given.split_whitespace().any(asks) {
        true => given.into(),
        false => format!("{given} mitigations=off").trim_start().into(),
    }
}

/// The entries of an image's figures.
pub fn entries(figures: &[Figure]) -> Vec<Entry> {
    figures
        .iter()
        .map(|figure| Entry {
            name: figure.name.clone(),
            value: figure.value.into(),
            unit: figure.unit.clone(),
        })
        .collect()
}

/// What is run once more, with a kernel that counts: the guests of `run` that measure forks or how many there can be, if
/// there are any.
pub fn counted(run: &Run) -> Option<Run> {
    let is_counted = |option: &String| option.starts_with("measure=") || option == "idle";
    let measures = |guest: &&Guest| guest.options.iter().any(is_counted);
    let guests: Vec<_> = run.guests.iter().filter(measures).cloned().collect();
    (!guests.is_empty()).then(|| Run {
        name: format!("{}-counting", run.name),
        guests,
        ..run.clone()
    })
}

/// The entries, and beside them what was counted. What counting takes itself is in that run's instructions, so those are
/// left out.
pub fn with_counts(entries: Vec<Entry>, counted: &[Figure]) -> Vec<Entry> {
    let mut counted = self::entries(counted);
    counted.retain(|entry| entry.unit != INSTRUCTIONS);
    merged(entries, &counted)
}

/// Puts `new` into the file: entries of the same name are replaced, all others kept.
///
/// # Errors
/// A report that cannot be read or written.
pub fn file(path: &Path, new: &[Entry]) -> Result<(), Error> {
    let old: Vec<Entry> = match fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .map_err(|error| Error::asked(path.display().to_string(), error.to_string()))?,
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    let text = serde_json::to_string_pretty(&merged(old, new))
        .map_err(|error| Error::asked(path.display().to_string(), error.to_string()))?;
    fs::write(path, text + "\n").map_err(Error::io("write", path))
}

fn merged(mut old: Vec<Entry>, new: &[Entry]) -> Vec<Entry> {
    old.retain(|entry| new.iter().all(|other| other.name != entry.name));
    old.extend_from_slice(new);
    old.sort_by(|a, b| a.name.cmp(&b.name));
    old
}

/// What the sample guest that measures works on: a file in `dir`, whose pages it copies by writing to them.
///
/// # Errors
/// The file that cannot be written.
pub fn data(dir: &Path) -> Result<Guest, Error> {
    let path = dir.join("data.bin");
    fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    fs::write(&path, vec![0x5a; DATA_LEN]).map_err(Error::io("write", &path))?;
    Ok(Guest::new(path)
        .with(DATA)
        .with(format!("name={DATA_NAME}")))
}

/// What Linux 6.1 KVM takes for the same on the same emulated CPU, counted the same way: how many instructions, and
/// what differs.
fn kvm(name: &str) -> Option<(u64, &'static str)> {
    Some(match name {
        "exit.cpuid" => (972, ""),
        "exit.vmcall" => (1008, ""),
        "exit.hlt" => (2620, "goes to user space"),
        "exit.rdmsr" => (1085, ""),
        "exit.io" => (3079, "OUT, goes to user space"),
        "fill.write" | "fill.around.per_page" => (2890, "memory there already"),
        "fill.write.zeroing" | "fill.around.zeroing.per_page" => (6210, "fresh memory"),
        "fork.16m" => (
            275_000,
            "to 453,000: a process, cloned up to its first exit",
        ),
        "fork.first_run.16_pages" => (142_000, "of the clone, which writes 16 pages"),
        "drop.16_pages" => (316_000, "of the clone"),
        "cow.copy" => (14171, "8142 where it is not mapped"),
        _ => return None,
    })
}

/// What is counted beside some figures, and the head of its column.
const COUNTED: [(&str, &str); 6] = [
    ("vmreads", "VMREADs"),
    ("vmwrites", "VMWRITEs"),
    ("invepts", "INVEPTs"),
    ("invvpids", "INVVPIDs"),
    ("frames", "frames"),
    ("bytes", "bytes moved"),
];

/// Whether `entry` says more about `other`: it has its name and one word more, and does not count instructions too.
fn is_detail(entry: &Entry, other: &Entry) -> bool {
    let more = entry.name.strip_prefix(&other.name);
    let word = more.and_then(|more| more.strip_prefix('.'));
    entry.unit != INSTRUCTIONS && word.is_some_and(|word| !word.contains('.'))
}

/// What the entries that say more about `entry` say: those that have a column of the second table, and the others.
fn details(entry: &Entry, all: &[Entry]) -> ([Option<String>; COUNTED.len()], String) {
    let of = |word: &str| {
        let name = format!("{}.{word}", entry.name);
        let found = all.iter().find(|other| other.name == name)?;
        Some(found.value.to_string())
    };
    let words: Vec<_> = all
        .iter()
        .filter(|other| is_detail(other, entry))
        .filter_map(|other| {
            let word = other.name.rsplit('.').next().unwrap_or_default();
            let has_column = COUNTED.iter().any(|(counted, _)| *counted == word);
            (!has_column).then(|| format!("{word} {}", other.value))
        })
        .collect();
    let words = match words.as_slice() {
        [] => String::new(),
        words => format!("  ({})", words.join(", ")),
    };
    (COUNTED.map(|(word, _)| of(word)), words)
}

/// KVM's figure, to stand beside ours.
fn beside(name: &str) -> String {
    match kvm(name) {
        Some((kvm, "")) => format!("  KVM {kvm:>5}"),
        Some((kvm, what)) => format!("  KVM {kvm:>5} ({what})"),
        None => String::new(),
    }
}

/// The entries as two tables, with KVM's figures beside: those of instructions only, and those beside which something was
/// counted. Entries that say more about another have no row of their own.
pub fn table(entries: &[Entry]) -> String {
    let has_row = |entry: &&Entry| !entries.iter().any(|other| is_detail(entry, other));
    let rows: Vec<_> = entries.iter().filter(has_row).collect();
    let names = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let lengths = rows.iter().map(|row| row.value.to_string().len());
    let values = lengths.max().unwrap_or(0);
    let (mut plain, mut counted) = (String::new(), String::new());
    for entry in rows {
        let Entry { name, value, unit } = entry;
        let (columns, more) = details(entry, entries);
        let (value, beside) = (value.to_string(), beside(name));
        if columns.iter().all(Option::is_none) {
            plain += &format!("{name:names$}  {value:>values$}  {unit}{more}{beside}\n");
            continue;
        }
        let value = format!("{value} {unit}");
        counted += &format!("{name:names$}  {value:>18}");
        for (column, (_, head)) in columns.into_iter().zip(COUNTED) {
            counted += &format!("  {:>1$}", column.unwrap_or_default(), head.len());
        }
        counted += &format!("{more}{beside}\n");
    }
    if !counted.is_empty() {
        let heads = COUNTED.map(|(_, head)| head).join("  ");
        plain += &format!("\n{:names$}  {:>18}  {heads}\n{counted}", "", "");
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, value: u64) -> Entry {
        Entry {
            name: name.into(),
            value: value.into(),
            unit: "instructions".into(),
        }
    }

    #[test]
    fn mitigations_are_in_the_figures_only_when_asked_for() {
        for (given, used) in [
            ("", "mitigations=off"),
            ("log=debug", "log=debug mitigations=off"),
            ("mitigations=auto pool=4M", "mitigations=auto pool=4M"),
        ] {
            assert_eq!(cmdline(given), used);
        }
    }

    #[test]
    fn figures_of_other_tools_are_kept() {
        let path = std::env::temp_dir().join(format!("offshoot-bench-{}.json", std::process::id()));
        let other = r#"[{"name":"walker.map","value":1.5,"unit":"ns"},
            {"name":"exit.cpuid","value":9,"unit":"instructions"}]"#;
        fs::write(&path, other).unwrap();
        file(&path, &[entry("exit.cpuid", 120), entry("exit.hlt", 130)]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let now: Vec<Entry> = serde_json::from_str(&text).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(now.len(), 3);
        assert_eq!(now[0], entry("exit.cpuid", 120));
        assert_eq!(now[1], entry("exit.hlt", 130));
        assert_eq!(now[2].value.as_f64(), Some(1.5));
    }

    #[test]
    fn a_file_that_is_no_list_is_not_overwritten() {
        let path = std::env::temp_dir().join(format!("offshoot-bad-{}.json", std::process::id()));
        fs::write(&path, "{}").unwrap();
        assert!(file(&path, &[entry("a", 1)]).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "{}");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_says_more_about_a_figure_stands_beside_it() {
        let of = |name: &str, value: u64, unit: &str| Entry {
            unit: unit.into(),
            ..entry(name, value)
        };
        let text = table(&[
            entry("made.16m", 2800),
            of("made.16m.frames", 4, "frames"),
            of("made.16m.vmreads", 0, "count"),
            of("made.16m.rest", 1, "frames"),
            entry("made.16m.first", 9),
        ]);
        assert_eq!(
            text,
            "made.16m.first     9  instructions\n\n\
             \x20                                   VMREADs  VMWRITEs  INVEPTs  INVVPIDs  frames  bytes moved\n\
             made.16m         2800 instructions        0                                    4               (rest 1)\n"
        );
    }

    #[test]
    fn counts_are_put_beside_and_instructions_of_who_counts_are_not() {
        let figure = |name: &str, value, unit: &str| Figure {
            guest: "g".into(),
            name: name.into(),
            value,
            unit: unit.into(),
        };
        let counted = [
            figure("made", 9999, "instructions"),
            figure("made.frames", 4, "frames"),
        ];
        let all = with_counts(vec![entry("made", 2800)], &counted);
        let told: Vec<_> = all
            .iter()
            .map(|e| (e.name.as_str(), e.value.as_u64()))
            .collect();
        assert_eq!(told, [("made", Some(2800)), ("made.frames", Some(4))]);
    }

    #[test]
    fn only_guests_that_measure_are_run_again() {
        let bench = Guest::new("bench").with("map=x");
        let forks = Guest::new("forks_bench").with("measure=all");
        let again = counted(&Run::new("b", vec![bench.clone(), forks.clone()])).unwrap();
        assert_eq!(
            (again.name.as_str(), again.guests),
            ("b-counting", vec![forks])
        );
        assert!(counted(&Run::new("b", vec![bench])).is_none());
    }

    #[test]
    fn columns_line_up() {
        let entries = [("exit.cpuid", 120), ("fill.read", 5000), ("cow.copy", 800)];
        let text = table(&entries.map(|(name, value)| entry(name, value)));
        let expected = [
            "exit.cpuid   120  instructions  KVM   972",
            "fill.read   5000  instructions",
            "cow.copy     800  instructions  KVM 14171 (8142 where it is not mapped)",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }
}
