//! Instructions per entry of each row, counted by callgrind: the difference between a long and a short run, so that what is
//! done once does not count. Needs `valgrind`; without it this says so and reports nothing.

use std::process::Command;

mod contest;
mod report;

const SHORT: u64 = 1 << 14;
const LONG: u64 = 1 << 16;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, mode, row, who, pages] = args.as_slice()
        && mode == "count"
    {
        let random = contest::ROWS.iter().any(|r| r.name == row && r.random);
        let order = contest::order(pages.parse().expect("a number"), random);
        if who == "nobody" {
            std::hint::black_box(order);
            return;
        }
        let row = contest::ROWS.iter().find(|r| r.name == row).expect("a row");
        let mut contestants = row.contestants.iter();
        let (_, run) = contestants
            .find(|(name, _)| name == who)
            .expect("a contestant");
        run(&order);
        return;
    }
    if !args.iter().any(|arg| arg == "--bench") {
        return;
    }
    let only = args.iter().skip(1).find(|arg| !arg.starts_with('-'));
    let mut entries = Vec::new();
    println!("instructions per page");
    for row in contest::ROWS
        .iter()
        .filter(|row| only.is_none_or(|only| row.name.contains(only)))
    {
        print!("{:16}", row.name);
        for (name, _) in row.contestants {
            // Making the list of pages does not count, nor does mapping them before something else is done.
            let mut counted = per_page(row.name, name) - per_page(row.name, "nobody");
            if !row.name.starts_with("map_") {
                counted -= per_page("map_range", name) - per_page("map_range", "nobody");
            }
            print!("  {name} {counted:6.2}");
            if *name == "ours" {
                let name = format!("walker.{}.per_entry", row.name);
                entries.push(report::Entry::new(name, counted, "instructions"));
            }
        }
        println!();
    }
    if entries.iter().any(|entry| entry.is_nan()) {
        println!("valgrind could not be run: nothing is reported");
        return;
    }
    report::merge(&entries).expect("the report can be written");
}

/// What one more page costs.
fn per_page(row: &str, who: &str) -> f64 {
    match (count(row, who, SHORT), count(row, who, LONG)) {
        (Some(short), Some(long)) => (long as f64 - short as f64) / (LONG - SHORT) as f64,
        _ => f64::NAN,
    }
}

/// Instructions of one run.
fn count(row: &str, who: &str, pages: u64) -> Option<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().ok()?)
        .args(["count", row, who, &pages.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text
        .lines()
        .find_map(|line| line.split_once("Collected :"))?
        .1;
    collected.trim().parse().ok()
}
