//! KVM inside Bochs: a Linux whose first program runs the image in KVM. So nested VMX can be tried on any machine, and KVM,
//! which checks every VMCS and shadows every EPT table, is a judge of the image besides Bochs.

use crate::emulator::{ISO, LOG, SERIAL};
use crate::verdict::{Outcome, Verdict, judge_said, keep_report};
use crate::watch::{Console, Ending, watch};
use crate::{Emulator, Error, Guest, image, iso};
use cpio::newc::Builder;
use offshoot_nested::cases::{Case, DONE, LIST, MARK};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Where the files of the cases are in the initial file system.
const JOB: &str = "job";
const PROGRAM: u32 = 0o100_755;
const FOLDER: u32 = 0o040_755;
/// No driver waits for what Bochs does not have, time comes from the TSC, and what Bochs says that its CPU has and gets wrong is
/// not used. Linux keeps silent but for a panic, as its lines would stand in the midst of others.
const LINUX_CMDLINE: &str = "console=ttyS0,115200 loglevel=1 nokaslr tsc=reliable clocksource=tsc \
    8250.nr_uarts=1 audit=0 nowatchdog mitigations=off clearcpuid=fsrm,pku,xsavec,xsaves rdinit=/init";

/// The parts of the small Linux.
#[derive(Clone, Debug)]
pub struct Linux {
    /// The folder with the kernel and its modules.
    dir: PathBuf,
    /// The first program.
    init: PathBuf,
}

/// One boot of an image in KVM.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its name, which no other has. It begins each line of its console, unless it is empty.
    pub name: String,
    /// The kernel of the image.
    pub kernel: PathBuf,
    /// Its command line.
    pub cmdline: String,
    /// Its guests.
    pub guests: Vec<Guest>,
    /// Memory of its virtual machine in MiB.
    pub memory: u32,
    /// How long it may take by the clock of the emulated machine, which is not the time that you wait.
    pub limit: Duration,
}

/// How one of several parts ended, and the lines of its console.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub outcome: Outcome,
    /// Its console, without the report.
    pub lines: Vec<String>,
}

impl Linux {
    /// Fetches and builds what is missing.
    ///
    /// # Errors
    /// What cannot be fetched or built.
    pub fn prepare() -> Result<Self, Error> {
        let root = image::workspace();
        let dir = root.join("target/linux");
        let script = root.join("runner/linux.sh");
        let status = Command::new("sh")
            .arg(&script)
            .arg(&dir)
            .stdin(Stdio::null())
            .status()
            .map_err(Error::start("sh"))?;
        if !status.success() {
            return Err(Error::Program {
                what: "fetching the Linux that runs KVM".into(),
                status,
                output: String::new(),
            });
        }
        let init = image::build_nested()?;
        Ok(Self { dir, init })
    }

    /// Writes the ISO that boots Linux and runs the parts into the folder `dir`.
    ///
    /// # Errors
    /// A file that cannot be copied, or the tool that fails.
    pub fn pack(&self, dir: &Path, parts: &[Part]) -> Result<(), Error> {
        let initrd = dir.join("initrd");
        self.write_initrd(&initrd, dir, parts)?;
        let mut script = iso::Script::default();
        let words: Vec<_> = LINUX_CMDLINE
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        script.command("linux /boot/linux", &words, "Linux")?;
        script.command("initrd /boot/initrd", &[], "the initial file system")?;
        let files = [
            ("linux".to_owned(), self.dir.join("vmlinuz")),
            ("initrd".to_owned(), initrd.clone()),
        ];
        iso::pack(&dir.join(ISO), &dir.join("iso"), &script.end(), &files)?;
        fs::remove_file(&initrd).map_err(Error::io("remove", &initrd))
    }

    fn write_initrd(&self, path: &Path, dir: &Path, parts: &[Part]) -> Result<(), Error> {
        let mut files = Files {
            out: File::create(path).map_err(Error::io("create", path))?,
            path,
        };
        for folder in ["dev", "mod", JOB] {
            files.put(folder, FOLDER, &[])?;
        }
        // What the first program has open when it starts.
        let console = Builder::new("dev/console").mode(0o020_600);
        files.write(console.rdev_major(5).rdev_minor(1), &[])?;
        files.copy("init", &self.init)?;
        for name in modules(&self.dir)? {
            files.copy(&format!("mod/{name}"), &self.dir.join(&name))?;
        }
        // A file that several parts use is there once.
        let mut known = BTreeMap::new();
        let mut list = String::new();
        for part in parts {
            let kernel = files.once(&mut known, &stripped(&part.kernel, dir)?)?;
            let mut modules = Vec::new();
            for guest in &part.guests {
                let file = files.once(&mut known, &guest.path)?;
                modules.push((file, guest.command_line().join(" ")));
            }
            let case = Case {
                name: part.name.clone(),
                memory: part.memory.into(),
                seconds: part.limit.as_secs(),
                kernel,
                cmdline: part.cmdline.clone(),
                modules,
            };
            list += &case.line();
            list.push('\n');
        }
        files.put(LIST.trim_start_matches('/'), PROGRAM, list.as_bytes())?;
        cpio::newc::trailer(files.out)
            .map(drop)
            .map_err(Error::io("write", path))
    }

    /// Boots all parts, one after the other, in one Linux on Bochs with the CPU `model`. Files go to `target/run/<name>`,
    /// the console of each part apart.
    ///
    /// # Errors
    /// An emulator that is not there or cannot be watched.
    pub fn boot(
        &self,
        name: &str,
        model: &str,
        parts: &[Part],
        limit: Duration,
    ) -> Result<Vec<Ended>, Error> {
        let dir = image::workspace().join("target/run").join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(Error::io("remove", &dir))?;
        }
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        self.pack(&dir, parts)?;
        let most = parts.iter().map(|part| part.memory).max().unwrap_or(0);
        let emulator = Emulator::bochs_kvm(model);
        let command = emulator.command(&dir, most, Path::new(""), "", &[])?;
        let mut consoles: Vec<_> = parts.iter().map(|_| Shared::default()).collect();
        let mut last = String::from("nothing");
        let (ending, _) = watch(
            command,
            &dir,
            emulator.output_file(),
            LOG,
            SERIAL,
            limit,
            &mut |line| {
                last = line.to_owned();
                let Some((name, text)) = line.split_once(MARK) else {
                    return;
                };
                let part = parts.iter().position(|part| part.name == name);
                if let Some(console) = part.and_then(|at| consoles.get_mut(at)) {
                    console.take(text);
                }
            },
        )?;
        let missing = match ending {
            Ending::Said(said) => format!("Linux ended with `{said}`"),
            Ending::TimedOut => format!("waited {} s for all parts", limit.as_secs()),
            Ending::Exited(status) => format!("the emulator ended ({status})"),
            Ending::Flooded => "the emulator's log grew without end".into(),
        };
        let missing = format!("{missing}; the last line of all was: {last}");
        let mut ended = Vec::new();
        for (part, console) in parts.iter().zip(consoles) {
            ended.push(console.judge(&dir, &part.name, &missing)?);
        }
        Ok(ended)
    }
}

/// A part's share of the console.
#[derive(Default)]
struct Shared {
    console: Console,
    lines: Vec<String>,
    /// What the user space of KVM says of the end.
    done: Option<String>,
}

impl Shared {
    fn take(&mut self, text: &str) {
        match text.strip_prefix(DONE) {
            Some(how) => self.done = Some(how.to_owned()),
            None => {
                let lines = &mut self.lines;
                let mut keep = |line: &str| lines.push(line.to_owned());
                self.console.take(format!("{text}\n").as_bytes(), &mut keep);
            }
        }
    }

    fn judge(self, dir: &Path, name: &str, missing: &str) -> Result<Ended, Error> {
        let dir = dir.join(name);
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        let log = dir.join(SERIAL);
        fs::write(&log, self.lines.join("\n") + "\n").map_err(Error::io("write", &log))?;
        let report = keep_report(&dir, &self.console)?;
        let verdict = match (&self.console.end, &self.done) {
            (Some(said), Some(_)) => judge_said(said, &report),
            (_, Some(done)) => Verdict::Unclear(format!(
                "the image did not say how it ended; its virtual machine ended so: {done}"
            )),
            (_, None) => Verdict::Unclear(format!("it did not come to its end: {missing}")),
        };
        Ok(Ended {
            outcome: Outcome {
                dir,
                verdict,
                report: report.and_then(Result::ok),
                complaints: Vec::new(),
                backtrace: Vec::new(),
            },
            lines: self.lines,
        })
    }
}

/// The modules of Linux in the order in which they are to be loaded.
fn modules(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(dir).map_err(Error::io("read", dir))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("read", dir))?;
        names.extend(entry.file_name().into_string());
    }
    names.retain(|name| name.ends_with(".ko"));
    names.sort();
    Ok(names)
}

/// A copy without what only debuggers read, which is most of it and would have to be loaded by an emulated BIOS.
fn stripped(kernel: &Path, dir: &Path) -> Result<PathBuf, Error> {
    let words = kernel.to_string_lossy();
    let name: String = words
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let to = dir.join(format!("stripped{name}"));
    let status = Command::new("strip")
        .args(["--strip-debug", "-o"])
        .args([&to, kernel])
        .stdin(Stdio::null())
        .status()
        .map_err(Error::start("strip"))?;
    if status.success() {
        return Ok(to);
    }
    Err(Error::Program {
        what: "strip".into(),
        status,
        output: String::new(),
    })
}

/// The initial file system, as it is written.
struct Files<'p> {
    out: File,
    path: &'p Path,
}

impl Files<'_> {
    fn put(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<(), Error> {
        self.write(Builder::new(name).mode(mode), bytes)
    }

    fn write(&mut self, file: Builder, bytes: &[u8]) -> Result<(), Error> {
        let failed = Error::io("write", self.path);
        let put = || {
            let len = u32::try_from(bytes.len()).map_err(std::io::Error::other)?;
            let mut file = file.write(&mut self.out, len);
            file.write_all(bytes)?;
            file.finish().map(drop)
        };
        put().map_err(failed)
    }

    fn copy(&mut self, name: &str, from: &Path) -> Result<(), Error> {
        let bytes = fs::read(from).map_err(Error::io("read", from))?;
        self.put(name, PROGRAM, &bytes)
    }

    /// Copies a file if it is not there yet. Returns its full name.
    fn once(
        &mut self,
        known: &mut BTreeMap<PathBuf, String>,
        from: &Path,
    ) -> Result<String, Error> {
        if let Some(name) = known.get(from) {
            return Ok(name.clone());
        }
        let name = format!("{JOB}/{}", known.len());
        self.copy(&name, from)?;
        let name = format!("/{name}");
        known.insert(from.to_owned(), name.clone());
        Ok(name)
    }
}
