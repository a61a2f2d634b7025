//! Follows the console of a running image until the image has said how it ended, or the time is up.

use crate::Error;
use crate::report;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The last line of an image begins with this.
pub const END: &str = "OFFSHOOT-END";

/// How often the console is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How long an image that has ended may take to power the machine off.
const GRACE: Duration = Duration::from_secs(5);
/// A log this long is a loop, and the disk is not ours.
const LOG_MAX: u64 = 512 << 20;

/// How following the console came to its end.
#[derive(Debug)]
pub enum Ending {
    /// The image printed its last line: what follows [`END`] in it.
    Said(String),
    /// The emulator ended before that.
    Exited(ExitStatus),
    /// The time was up.
    TimedOut,
    /// The emulator's log grew without end.
    Flooded,
}

/// What was seen on the console.
#[derive(Debug, Default)]
pub struct Console {
    /// The JSON text of the report.
    pub report: Option<String>,
    /// What follows [`END`] in the last line.
    pub end: Option<String>,
    /// The last line that was not empty.
    pub last: String,
    /// Number of lines.
    pub lines: usize,
    pending: Vec<u8>,
}

impl Console {
    /// Takes bytes as they come and hands each complete line meant for people to `echo`.
    pub(crate) fn take(&mut self, bytes: &[u8], echo: &mut dyn FnMut(&str)) {
        self.pending.extend_from_slice(bytes);
        while let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            self.line(&line, echo);
        }
    }

    /// Takes what is left as a line of its own.
    fn finish(&mut self, echo: &mut dyn FnMut(&str)) {
        if !self.pending.is_empty() {
            let line = std::mem::take(&mut self.pending);
            self.line(&line, echo);
        }
    }

    fn line(&mut self, bytes: &[u8], echo: &mut dyn FnMut(&str)) {
        let text = printable(&String::from_utf8_lossy(bytes));
        self.lines += 1;
        if let Some(json) = text.strip_prefix(report::PREFIX) {
            self.report = Some(json.to_owned());
            return;
        }
        // What comes after the first such line is a boot loader's prompt.
        if let (Some(verdict), None) = (text.strip_prefix(END), &self.end) {
            self.end = Some(verdict.trim().to_owned());
        }
        if !text.trim().is_empty() {
            self.last.clone_from(&text);
        }
        echo(&text);
    }
}

/// The text without control characters and without the sequences that steer a terminal: firmware clears the screen
/// with them, and what a guest prints must not.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' && chars.next_if_eq(&'[').is_some() {
            // Parameters, then one letter or the like.
            while chars
                .next_if(|c| ('\u{20}'..='\u{3f}').contains(c))
                .is_some()
            {}
            chars.next_if(|c| ('\u{40}'..='\u{7e}').contains(c));
        } else if !c.is_control() || c == '\t' {
            shown.push(c);
        }
    }
    shown
}

/// An emulator that ends with this value, and with this process.
struct Emulation(Child);

impl Emulation {
    fn start(mut command: Command, dir: &Path, output: &str) -> Result<Self, Error> {
        let program = command.get_program().to_string_lossy().into_owned();
        let output = dir.join(output);
        let file = File::create(&output).map_err(Error::io("create", &output))?;
        let again = file.try_clone().map_err(Error::io("create", &output))?;
        command
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(again)
            // Bochs would take the interrupt of a terminal for a wish to debug.
            .process_group(0);
        // SAFETY: the closure runs between fork and exec and makes one system call, which is async-signal-safe and
        // touches no memory of this process.
        unsafe {
            command.pre_exec(|| {
                match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
        command.spawn().map(Self).map_err(Error::start(&program))
    }

    /// Its exit status, once it has ended.
    fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().ok().flatten()
    }
}

impl Drop for Emulation {
    fn drop(&mut self) {
        // SIGKILL: Bochs ignores SIGTERM. Both fail only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `command` in the folder `dir` with its output in the file `output` there, and follows the file `serial` until
/// the image has said how it ended and the machine is off, or `limit` is over.
///
/// # Errors
/// A command that cannot be started, or a file that cannot be read.
pub fn watch(
    command: Command,
    dir: &Path,
    output: &str,
    log: &str,
    serial: &str,
    limit: Duration,
    echo: &mut dyn FnMut(&str),
) -> Result<(Ending, Console), Error> {
    let serial = dir.join(serial);
    File::create(&serial).map_err(Error::io("create", &serial))?;
    let mut file = File::open(&serial).map_err(Error::io("read", &serial))?;
    let log = dir.join(log);
    let mut console = Console::default();
    let mut emulation = Emulation::start(command, dir, output)?;
    let mut deadline = Instant::now() + limit;
    let mut bytes = Vec::new();
    let ending = loop {
        // Asked before the console is read, so that nothing printed before the end is missed.
        let ended = emulation.ended();
        bytes.clear();
        file.read_to_end(&mut bytes)
            .map_err(Error::io("read", &serial))?;
        let before = console.end.is_some();
        console.take(&bytes, echo);
        if console.end.is_some() && !before {
            deadline = Instant::now() + GRACE;
        }
        if let Some(status) = ended {
            break Ending::Exited(status);
        }
        if Instant::now() >= deadline {
            break Ending::TimedOut;
        }
        if log.metadata().is_ok_and(|data| data.len() > LOG_MAX) {
            break Ending::Flooded;
        }
        sleep(POLL);
    };
    drop(emulation);
    console.finish(echo);
    Ok(match console.end.take() {
        Some(said) => (Ending::Said(said), console),
        None => (ending, console),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn dir(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("offshoot-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn follow(name: &str, script: &str, limit: u64) -> (Ending, Console, Vec<String>) {
        let dir = dir(name);
        let mut lines = Vec::new();
        let (ending, console) = watch(
            shell(script),
            &dir,
            "out",
            "log",
            "serial",
            Duration::from_millis(limit),
            &mut |line| lines.push(line.to_owned()),
        )
        .unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        (ending, console, lines)
    }

    #[test]
    fn lines_are_shown_and_the_report_is_kept() {
        let script =
            r#"printf 'hello\r\nOFFSHOOT-REPORT {"ok":true}\r\nOFFSHOOT-END ok\r\n' >> serial"#;
        let (ending, console, lines) = follow("lines", script, 10_000);
        assert!(
            matches!(ending, Ending::Said(said) if said == "ok"),
            "{lines:?}"
        );
        assert_eq!(console.report.as_deref(), Some(r#"{"ok":true}"#));
        assert_eq!(lines, ["hello", "OFFSHOOT-END ok"]);
        assert_eq!(console.lines, 3);
    }

    #[test]
    fn a_guest_cannot_end_the_run_or_steer_the_terminal() {
        let script = r"printf 'guest: OFFSHOOT-END ok\n\033[2Jx\ty' >> serial";
        let (ending, console, lines) = follow("guest", script, 10_000);
        assert!(matches!(ending, Ending::Exited(_)));
        assert_eq!(lines, ["guest: OFFSHOOT-END ok", "x\ty"]);
        assert_eq!(console.last, lines[1]);
    }

    #[test]
    fn what_firmware_draws_is_left_out() {
        let drawn = "\u{1b}[2J\u{1b}[01;01H\u{1b}[=3h\rhello\u{1b}[0m \u{1b}x\u{1b}[";
        assert_eq!(printable(drawn), "hello x");
    }

    #[test]
    fn what_hangs_is_killed_even_if_it_ignores_signals() {
        let script = "trap '' TERM INT; echo up > serial; echo $$ > pid; while :; do sleep 1; done";
        let dir = dir("hang");
        let (ending, console) = watch(
            shell(script),
            &dir,
            "out",
            "log",
            "serial",
            Duration::from_millis(500),
            &mut |_| (),
        )
        .unwrap();
        assert!(matches!(ending, Ending::TimedOut));
        assert_eq!(console.last, "up");
        let pid = std::fs::read_to_string(dir.join("pid")).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_missing_emulator_is_named() {
        let dir = dir("missing");
        let error = watch(
            Command::new("no-such-emulator"),
            &dir,
            "out",
            "log",
            "serial",
            GRACE,
            &mut |_| (),
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "no-such-emulator is not installed: run `make setup`"
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
