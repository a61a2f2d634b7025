//! One run of the image: packed, booted, followed and judged.

use crate::backtrace;
use crate::emulator::{ISO, LOG, SERIAL};
use crate::nested::{Linux, Part};
use crate::verdict::{Outcome, Verdict, judge_said, keep_report};
use crate::watch::{Console, END, Ending, watch};
use crate::{Emulator, Error, Guest, Image, Report, iso};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

/// The memory of the machine where none is asked for, in MiB.
pub const DEFAULT_MEMORY: u32 = 512;
/// The time limit where none is asked for.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(300);

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its files go to `target/run/<name>`.
    pub name: String,
    /// The guests, in the order in which they run.
    pub guests: Vec<Guest>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Memory of the machine in MiB.
    pub memory: u32,
    /// What boots it.
    pub emulator: Emulator,
    /// How long it may take.
    pub limit: Duration,
}

impl Run {
    /// A run with the usual memory, limit and CPU.
    pub fn new(name: &str, guests: Vec<Guest>) -> Self {
        Self {
            name: name.into(),
            guests,
            cmdline: String::new(),
            memory: DEFAULT_MEMORY,
            emulator: Emulator::bochs(crate::emulator::DEFAULT_MODEL),
            limit: DEFAULT_LIMIT,
        }
    }

    /// Boots `image` and follows it to its end, handing every line of the console to `echo`.
    ///
    /// # Errors
    /// An emulator that is not there or cannot be watched; how the run ended is no error.
    pub fn boot(&self, image: &Image, echo: &mut dyn FnMut(&str)) -> Result<Outcome, Error> {
        let dir = image.root.join("target/run").join(&self.name);
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(Error::io("remove", &dir))?;
        }
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        if let Emulator::BochsKvm { .. } = self.emulator {
            // Its name is empty, so its console is as if there was no Linux.
            let part = Part {
                name: String::new(),
                kernel: image.kernel.clone(),
                cmdline: self.cmdline.clone(),
                guests: self.guests.clone(),
                memory: self.memory,
                limit: self.limit,
            };
            Linux::prepare()?.pack(&dir, &[part])?;
        } else if self.emulator.needs_iso() {
            let tree = dir.join("iso");
            iso::make(
                &dir.join(ISO),
                &tree,
                &image.kernel,
                &unseen(&self.cmdline),
                &self.guests,
            )?;
        }
        let command = self.emulator.command(
            &dir,
            self.memory,
            &image.kernel,
            &self.cmdline,
            &self.guests,
        )?;
        let mut addresses = Vec::new();
        let (ending, console) = watch(
            command,
            &dir,
            self.emulator.output_file(),
            LOG,
            SERIAL,
            self.limit,
            &mut |line| {
                addresses.extend(backtrace::address(line));
                echo(line);
            },
        )?;
        let log = dir.join(LOG);
        let report = keep_report(&dir, &console)?;
        Ok(Outcome {
            verdict: self.judge(&ending, &console, &report, &log),
            report: report.and_then(Result::ok),
            complaints: complaints(&log),
            backtrace: backtrace::places(&image.kernel, &addresses),
            dir,
        })
    }

    fn judge(
        &self,
        ending: &Ending,
        console: &Console,
        report: &Option<Result<Report, String>>,
        log: &Path,
    ) -> Verdict {
        let missing = match ending {
            Ending::Said(said) => return judge_said(said, report),
            Ending::TimedOut => format!(
                "waited {} s for the image's last line, which begins with {END}",
                self.limit.as_secs()
            ),
            Ending::Exited(status) => format!(
                "the emulator ended ({status}) before the image's last line, which begins with {END}{}",
                last_words(log)
            ),
            Ending::Flooded => format!("{} grew without end", log.display()),
        };
        Verdict::Unclear(match console.lines {
            0 => format!("{missing}; the console stayed empty"),
            n => format!(
                "{missing}; of {n} lines on the console the last was: {}",
                console.last
            ),
        })
    }
}

/// The command line for a machine whose screen nobody sees: unless it asks for it, nothing is drawn there.
fn unseen(cmdline: &str) -> String {
    let asks = |word: &str| word.starts_with("screen=");
    match cmdline.split_whitespace().any(asks) {
        true => cmdline.into(),
        false => format!("{cmdline} screen=off").trim_start().into(),
    }
}

/// The lines of an emulator's log that match, as far as the log can be read.
fn matching(log: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    const MOST: usize = 20;
    let Ok(file) = fs::File::open(log) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        let Ok(line) = line else { break };
        let line = String::from_utf8_lossy(&line);
        if wanted(&line) {
            found.push(line.trim().to_owned());
            if found.len() == MOST {
                break;
            }
        }
    }
    found
}

/// What Bochs logs when the image did something that a real CPU would not forgive.
fn complaints(log: &Path) -> Vec<String> {
    matching(log, |line| {
        panicked(line) || line.contains("Unknown register")
    })
}

/// Whether a line of Bochs' log is a panic, other than the one by which an image powers the machine off.
fn panicked(line: &str) -> bool {
    line.contains(">>PANIC<<") && !line.contains("Shutdown port")
}

/// Why an emulator says it ended: what Bochs panicked on, or the few lines QEMU printed.
fn last_words(log: &Path) -> String {
    let bochs = |line: &str| line.contains("[") && line.starts_with("0");
    let words = matching(log, |line| !bochs(line) || panicked(line));
    match words.last() {
        Some(last) => format!(", saying: {last}"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_drawn_that_nobody_sees() {
        for (given, used) in [
            ("", "screen=off"),
            ("audit", "audit screen=off"),
            ("screen=on audit", "screen=on audit"),
        ] {
            assert_eq!(unseen(given), used);
        }
    }

    #[test]
    fn a_time_out_says_what_was_waited_for() {
        let run = Run::new("x", Vec::new());
        let mut console = Console::default();
        console.last = "guest hello: hi".into();
        console.lines = 7;
        let verdict = run.judge(&Ending::TimedOut, &console, &None, Path::new("/none"));
        let text = verdict.to_string();
        assert!(text.contains("waited 300 s"), "{text}");
        assert!(text.contains("OFFSHOOT-END"), "{text}");
        assert!(text.contains("guest hello: hi"), "{text}");
    }
}
