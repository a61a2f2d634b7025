//! The command behind `make run`, `make iso` and `make bench`.

use offshoot_runner::emulator::{Boot, Emulator};
use offshoot_runner::image::Samples;
use offshoot_runner::run::{DEFAULT_LIMIT, DEFAULT_MEMORY};
use offshoot_runner::{Error, Guest, Image, Report, Run, Verdict, bench, guest, iso, quantity};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "\
usage: offshoot-runner run|iso|bench [OPTION VALUE]...
  --guests \"FILE[,OPTION]... ...\"  guests, each with name=, mem=, budget=, pages=, around=, map=NAME[:ro], forks= ..., or data with name=  (hello, sparse, selfcheck and forks of forks_isolation)
  --cmdline WORDS                  the kernel's command line
  --mem SIZE                       memory of the machine  (512M)
  --cpu MODEL                      CPU model of the emulator  (tigerlake)
  --emulator bochs|qemu|kvm|bochs-kvm  kvm: QEMU with KVM; bochs-kvm: KVM in a Linux on Bochs  (kvm where it has nested VMX, else bochs)
  --boot cd|disk|uefi|kernel       how QEMU boots the image  (cd)
  --limit TIME                     (300s)
  --name NAME                      keep the run's files in target/run/NAME  (run)
  --kernel FILE                    boot this kernel instead of building one
An empty value is the default.";

/// What the command line asks for.
struct Options {
    guests: Option<String>,
    cmdline: String,
    memory: u32,
    emulator: Option<String>,
    cpu: Option<String>,
    boot: Option<Boot>,
    limit: Duration,
    name: Option<String>,
    kernel: Option<PathBuf>,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, Error> {
        let mut options = Self {
            guests: None,
            cmdline: String::new(),
            memory: DEFAULT_MEMORY,
            emulator: None,
            cpu: None,
            boot: None,
            limit: DEFAULT_LIMIT,
            name: None,
            kernel: None,
        };
        while let Some(word) = words.next() {
            let value = words
                .next()
                .ok_or_else(|| Error::asked(&word, format!("a value is missing\n{USAGE}")))?;
            let given = Some(value.clone()).filter(|value| !value.trim().is_empty());
            match (word.as_str(), given) {
                ("--cmdline", _) => options.cmdline = value,
                ("--guests", given) => options.guests = given,
                ("--emulator", given) => options.emulator = given,
                ("--cpu", given) => options.cpu = given,
                ("--name", given) => options.name = given,
                ("--kernel", given) => options.kernel = given.map(PathBuf::from),
                ("--mem", Some(size)) => options.memory = quantity::mebibytes(&size)?,
                ("--boot", Some(boot)) => options.boot = Some(Boot::parse(&boot)?),
                ("--limit", Some(limit)) => options.limit = quantity::limit(&limit)?,
                ("--mem" | "--boot" | "--limit", None) => {}
                _ => {
                    return Err(Error::asked(word, format!("no such option\n{USAGE}")));
                }
            }
        }
        check_name(options.name.as_deref().unwrap_or_default())?;
        Ok(options)
    }

    /// The image and its guests, by default those of the list `default`. The kernel, which takes longest, is built
    /// after all else has been looked at.
    fn build(&self, default: &str) -> Result<(Image, Vec<Guest>), Error> {
        let samples = Samples::build()?;
        let list = self.guests.as_deref().unwrap_or(default);
        let guests = Guest::parse_list(list, &samples)?;
        let image = match &self.kernel {
            Some(kernel) => Image::with_kernel(kernel, samples)?,
            None => Image::build(samples)?,
        };
        Ok((image, guests))
    }
}

/// A run's name is the name of a folder that is removed before the run.
fn check_name(name: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.chars().all(plain) {
        return Ok(());
    }
    Err(Error::asked(
        name,
        "a run's name is made of letters, digits, - and _",
    ))
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let done = match command.as_str() {
        "run" => Options::parse(words).and_then(|options| run(options, "run", guest::DEFAULT)),
        "bench" => Options::parse(words).and_then(|options| run(options, "bench", bench::DEFAULT)),
        "iso" => Options::parse(words).and_then(make_iso),
        _ => Err(Error::asked(command, format!("no such command\n{USAGE}"))),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("offshoot: {error}");
            ExitCode::from(2)
        }
    }
}

/// Boots the image and says how it ended; for a benchmark, also files its figures.
fn run(options: Options, name: &str, guests: &str) -> Result<bool, Error> {
    let emulator = Emulator::choose(
        options.emulator.as_deref(),
        options.cpu.as_deref(),
        options.boot,
    )?;
    let guests = match &emulator {
        Emulator::Qemu {
            boot: Boot::Kernel, ..
        } => "hello",
        _ => guests,
    };
    let (image, mut guests) = options.build(guests)?;
    if name == "bench" && options.guests.is_none() {
        guests.push(bench::data(&image.root.join("target/bench"))?);
    }
    let run = Run {
        name: options.name.clone().unwrap_or_else(|| name.into()),
        guests,
        cmdline: match name {
            "bench" => bench::cmdline(&options.cmdline),
            _ => options.cmdline.clone(),
        },
        memory: options.memory,
        emulator,
        limit: options.limit,
    };
    eprintln!("offshoot: booting in {}, {} MiB", run.emulator, run.memory);
    let mut out = std::io::stdout();
    let outcome = run.boot(&image, &mut |line| {
        // A reader that has gone away does not change how the run ends.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    })?;
    if !outcome.backtrace.is_empty() {
        eprintln!("offshoot: the hypervisor's backtrace:");
    }
    for place in &outcome.backtrace {
        eprintln!("  {place}");
    }
    for complaint in &outcome.complaints {
        eprintln!("offshoot: the emulator complains: {complaint}");
    }
    eprintln!("offshoot: {}", outcome.verdict);
    eprintln!(
        "offshoot: console, report and logs are in {}",
        outcome.dir.display()
    );
    if name == "bench" && outcome.verdict == Verdict::Ok {
        let figures = |report: Option<Report>| report.map_or(Vec::new(), |report| report.figures);
        let mut entries = bench::entries(&figures(outcome.report));
        if let (None, Some(run)) = (&options.kernel, bench::counted(&run)) {
            let image = Image::build_counting(image.samples.clone())?;
            eprintln!("offshoot: counting, in {}", run.emulator);
            let counted = run.boot(&image, &mut |_| ())?;
            if counted.verdict != Verdict::Ok {
                eprintln!("offshoot: {}", counted.verdict);
                return Ok(false);
            }
            entries = bench::with_counts(entries, &figures(counted.report));
        }
        let path = image.root.join("target/bench/report.json");
        bench::file(&path, &entries)?;
        print!("{}", bench::table(&entries));
        eprintln!("offshoot: filed in {}", path.display());
    }
    Ok(outcome.verdict == Verdict::Ok)
}

/// Makes `target/offshoot.iso`.
fn make_iso(options: Options) -> Result<bool, Error> {
    let (image, guests) = options.build(guest::DEFAULT)?;
    let path = image.root.join("target/offshoot.iso");
    let tree = image.root.join("target/iso");
    iso::make(&path, &tree, &image.kernel, &options.cmdline, &guests)?;
    println!("{}", path.display());
    eprintln!(
        "offshoot: boots from CD and USB stick, by BIOS and UEFI; the README says how to write it to a stick"
    );
    Ok(true)
}
