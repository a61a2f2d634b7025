//! One run of the image: packed, booted, followed and judged.

use crate::backtrace;
use crate::emulator::{ISO, LOG, SERIAL};
use crate::nested::{Linux, Part};
use crate::watch::{Console, END, Ending, watch};
use crate::{Emulator, Error, Guest, Image, Report, iso};
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
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

/// How a run ended, as the image has said it or because it did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All guests ended well.
    Ok,
    /// The image said that the run failed, and why.
    Failed(String),
    /// The image did not say how it ended, or contradicted itself.
    Unclear(String),
}

/// What a run left behind.
#[derive(Debug)]
pub struct Outcome {
    /// The folder with its files.
    pub dir: PathBuf,
    /// How it ended.
    pub verdict: Verdict,
    /// The report, if the image printed one.
    pub report: Option<Report>,
    /// Lines of the emulator's log that tell of a defect of the image.
    pub complaints: Vec<String>,
    /// The places in the kernel named by the backtraces it printed.
    pub backtrace: Vec<String>,
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
                &self.cmdline,
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

/// Judges an image that has printed its last line.
pub(crate) fn judge_said(said: &str, report: &Option<Result<Report, String>>) -> Verdict {
    if let Some(reason) = said.strip_prefix("failed") {
        return Verdict::Failed(reason.trim_start_matches([':', ' ']).to_owned());
    }
    if said != "ok" {
        return Verdict::Unclear(format!("the image's last line is `{END} {said}`"));
    }
    match report {
        Some(Ok(report)) if report.ok => Verdict::Ok,
        Some(Ok(_)) => Verdict::Unclear("the image said ok, its report did not".into()),
        Some(Err(error)) => Verdict::Unclear(format!("the image's report is malformed: {error}")),
        None => Verdict::Unclear("the image printed no report".into()),
    }
}

/// Keeps the report's text in the run's folder and reads it.
pub(crate) fn keep_report(
    dir: &Path,
    console: &Console,
) -> Result<Option<Result<Report, String>>, Error> {
    let Some(text) = &console.report else {
        return Ok(None);
    };
    let path = dir.join("report.json");
    fs::write(&path, format!("{text}\n")).map_err(Error::io("write", &path))?;
    Ok(Some(
        serde_json::from_str(text).map_err(|error| error.to_string()),
    ))
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

impl Outcome {
    /// Whether the run ended well.
    pub fn ok(&self) -> bool {
        self.verdict == Verdict::Ok
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Failed(reason) | Self::Unclear(reason) => write!(f, "failed: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ok: bool) -> Option<Result<Report, String>> {
        let text = format!(
            r#"{{"ok":{ok},"guests":[],"frames":{{"total":1,"used":0,"peak":0,"leaked":0}}}}"#
        );
        Some(serde_json::from_str(&text).map_err(|error| error.to_string()))
    }

    #[test]
    fn ok_needs_both_the_line_and_the_report() {
        assert_eq!(judge_said("ok", &report(true)), Verdict::Ok);
        for (said, report) in [
            ("ok", report(false)),
            ("ok", None),
            ("ok", Some(Err("eof".into()))),
            ("okay", report(true)),
            ("", report(true)),
        ] {
            let verdict = judge_said(said, &report);
            assert!(matches!(verdict, Verdict::Unclear(_)), "{said}");
        }
    }

    #[test]
    fn the_image_s_reason_is_passed_on() {
        assert_eq!(
            judge_said("failed: no VMX", &report(false)),
            Verdict::Failed("no VMX".into())
        );
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
