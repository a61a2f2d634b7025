//! Command lines: of a boot module (a guest, or data that guests share) and of the hypervisor itself.
//!
//! Words are separated by blanks; a word is `key=value`, or a bare flag. There is no quoting.

mod data;
mod error;
mod forks;
mod fuzz;
mod kernel;
mod passthrough;
mod seen;
mod value;
mod words;

use crate::ept::{AROUND, DeviceRange, MAX_AROUND, PagePolicy};
use crate::vm::GuestSetup;
use crate::vm::data::SharedData;
use crate::vm::name::Name;

pub use data::{DATA, DataOptions, MapOption};
pub use error::{CmdlineError, Problem, Whose};
pub use forks::{
    DEFAULT_PARALLEL, DEFAULT_SLICE, FORKS_MAX, ForkOptions, GENERATIONS_MAX, Measure,
    PARALLEL_MAX, ResetMode, SLICE_LEAST,
};
pub use fuzz::{DEFAULT_HANG, EXECUTIONS_MAX, FuzzOptions};
pub use kernel::{DEFAULT_END_AFTER, End, KernelOptions};
pub use passthrough::PassthroughDevices;
use seen::{Key, SeenKeys};
pub use value::Duration;
use value::{count, duration, memory, page_policy};
use words::{Word, WordIter};

/// Guest memory where the command line does not say.
pub const DEFAULT_MEM: u64 = 64 << 20;
/// A guest's budget where the command line does not say.
pub const DEFAULT_BUDGET: Duration = Duration::Nanoseconds(10_000_000_000);

/// What a boot module's command line says about its guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestOptions {
    /// `name=`, else after the file.
    pub name: Name,
    /// `mem=`: bytes of guest memory, a multiple of 4 KiB.
    pub mem: u64,
    /// `budget=`: how long the guest may run; each run of a fork anew.
    pub budget: Duration,
    /// `pages=4k|2m|1g|auto`: of what size the pages are that a first write is given.
    pub pages: PagePolicy,
    /// `testdev`: a device with registers in memory, behind the guest's memory.
    pub testdev: bool,
    /// `passthrough=`, which may be given several times: devices of the machine that the guest has at the same addresses.
    pub passthrough: PassthroughDevices,
    /// `around=`: how many pages one violation maps at most.
    pub around: u64,
    /// `tenant=fork`: each of its forks is a tenant of its own, which none of the others may learn anything from.
    pub forks_are_tenants: bool,
    /// `map=`: the data that the guest sees behind its memory.
    pub map: Option<MapOption>,
    /// What is to be done once it freezes.
    pub forks: ForkOptions,
    /// Whether and how it is fuzzed.
    pub fuzz: FuzzOptions,
}

impl GuestOptions {
    /// Reads the command line of boot module number `index`. A guest's memory must be addressable with
    /// `address_width` bits.
    ///
    /// # Errors
    /// The first word that is no option of a module, or whose value is none; or options that exclude each other.
    pub fn parse(line: &str, index: usize, address_width: u32) -> Result<Self, CmdlineError<'_>> {
        let (path, words) = data::split(line);
        let mut options = Self {
            name: path
                .and_then(Name::from_path)
                .unwrap_or_else(|| Name::numbered(index)),
            mem: DEFAULT_MEM,
            budget: DEFAULT_BUDGET,
            pages: PagePolicy::default(),
            testdev: false,
            passthrough: PassthroughDevices::new_const(),
            around: AROUND,
            forks_are_tenants: false,
            map: None,
            forks: ForkOptions::new(),
            fuzz: FuzzOptions::NONE,
        };
        // The name comes first, so that what follows can be blamed on the right guest.
        let mut seen = SeenKeys::default();
        for word in WordIter(words).filter(|word| word.key == "name") {
            let blame = |problem| word.blame(Whose::Guest(options.name), problem);
            seen.first_time(Key::Name).map_err(blame)?;
            options.name = Name::new(word.needs_value().map_err(blame)?)
                .ok_or(Problem::NotAName)
                .map_err(blame)?;
        }
        let name = options.name;
        for word in WordIter(words).filter(|word| word.key != "name") {
            let blame = |problem| word.blame(Whose::Guest(name), problem);
            options
                .take(word, &mut seen, address_width)
                .map_err(blame)?;
        }
        Ok(options)
    }

    /// What the guest is made with, where the TSC has `tsc_hz` ticks a second.
    pub fn setup<'d>(
        &self,
        data: Option<SharedData>,
        devices: &'d [DeviceRange],
        tsc_hz: u64,
    ) -> GuestSetup<'d> {
        GuestSetup {
            name: self.name,
            memory_bytes: self.mem,
            budget_ticks: self.budget.ticks(tsc_hz),
            pages: self.pages,
            around: self.around,
            test_device: self.testdev,
            forks_are_tenants: self.forks_are_tenants,
            data,
            devices,
        }
    }

    fn take(&mut self, word: Word<'_>, seen: &mut SeenKeys, width: u32) -> Result<(), Problem> {
        match word.key {
            "mem" => {
                seen.first_time(Key::Mem)?;
                self.mem = memory(word.needs_value()?, width)?;
            }
            "budget" => {
                seen.first_time(Key::Budget)?;
                self.budget = duration(word.needs_value()?)?;
            }
            "pages" => {
                seen.first_time(Key::Pages)?;
                self.pages = page_policy(word.needs_value()?)?;
            }
            "testdev" => {
                seen.first_time(Key::Testdev)?;
                word.takes_no_value()?;
                self.testdev = true;
            }
            "passthrough" => passthrough::add(&mut self.passthrough, word.needs_value()?, width)?,
            "around" => {
                seen.first_time(Key::Around)?;
                self.around = count(word.needs_value()?, MAX_AROUND)?;
            }
            "tenant" => {
                seen.first_time(Key::Tenant)?;
                self.forks_are_tenants = match word.needs_value()? {
                    "fork" => true,
                    "line" => false,
                    _ => return Err(Problem::NotATenant),
                };
            }
            "map" => {
                seen.first_time(Key::Map)?;
                self.map = Some(MapOption::parse(word.needs_value()?)?);
            }
            _ => {
                let (key, done) = match self.forks.take(word) {
                    Some((key, done)) => (Key::Forks(key), done),
                    None => {
                        let (key, done) = self.fuzz.take(word).ok_or(Problem::UnknownKey)?;
                        (Key::Fuzz(key), done)
                    }
                };
                seen.first_time(key)?;
                done?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::LevelFilter;

    fn guest(line: &str) -> Result<GuestOptions, Problem> {
        GuestOptions::parse(line, 3, 36).map_err(|error| error.problem)
    }
    fn name(line: &str) -> String {
        guest(line).unwrap().name.to_string()
    }

    #[test]
    fn the_name_comes_from_the_option_the_file_or_the_number() {
        assert_eq!(name("/boot/guests/hello.elf name=me mem=1M"), "me");
        assert_eq!(name("/boot/guests/hello.elf mem=1M"), "hello");
        assert_eq!(name("hello.elf"), "hello");
        assert_eq!(name("hello mem=1M"), "hello");
        assert_eq!(name("/x/a=b.elf mem=1M"), "a-b");
        assert_eq!(name("mem=1M"), "guest3");
        assert_eq!(name(""), "guest3");
        assert_eq!(name("/"), "guest3");
        assert_eq!(name(&format!("/{}", "ä".repeat(40))), "-".repeat(32));
        assert_eq!(
            Name::numbered(usize::MAX).as_str(),
            "guest18446744073709551615"
        );
    }

    #[test]
    fn sizes_and_times() {
        let all = guest("name=x mem=0x10000 budget=500ms\0").unwrap();
        assert_eq!(
            (all.mem, all.budget),
            (0x10000, Duration::Nanoseconds(500_000_000))
        );
        assert_eq!(guest("mem=64G").unwrap().mem, 64 << 30);
        assert_eq!(guest("mem=0x10K").unwrap().mem, 16 << 10);
        assert_eq!(
            guest("budget=100M").unwrap().budget,
            Duration::Ticks(100_000_000)
        );
        assert_eq!(
            guest("budget=2s").unwrap().budget.ticks(3_000_000_000),
            6_000_000_000
        );
        assert_eq!(Duration::Nanoseconds(u64::MAX).ticks(u64::MAX), u64::MAX);
        assert_eq!(guest("").unwrap().mem, DEFAULT_MEM);
    }

    #[test]
    fn pages_around() {
        let around = |value: &str| guest(&format!("around={value}")).map(|options| options.around);
        assert_eq!(guest("").unwrap().around, AROUND);
        assert_eq!((around("1"), around("0x40")), (Ok(1), Ok(64)));
        assert_eq!(around("0"), Err(Problem::Zero));
        assert_eq!(around("65"), Err(Problem::TooMany(64)));
        assert_eq!(around("4K"), Err(Problem::NotACount));
        assert_eq!(around("many"), Err(Problem::NotACount));
        assert_eq!(guest("around=2 around=2"), Err(Problem::Repeated));
    }

    #[test]
    fn tenants() {
        let own = |value: &str| guest(value).map(|options| options.forks_are_tenants);
        assert_eq!((own(""), own("tenant=line")), (Ok(false), Ok(false)));
        assert_eq!(own("tenant=fork"), Ok(true));
        assert_eq!(own("tenant=forks"), Err(Problem::NotATenant));
        assert_eq!(own("a.elf tenant"), Err(Problem::NeedsValue));
        assert_eq!(own("tenant=fork tenant=line"), Err(Problem::Repeated));
    }

    #[test]
    fn bad_memory_sizes() {
        for (value, problem) in [
            ("0", Problem::Zero),
            ("0x0G", Problem::Zero),
            ("lots", Problem::NotASize),
            ("-1", Problem::NotASize),
            ("1X", Problem::NotASize),
            ("0x", Problem::NotASize),
            ("1.5G", Problem::NotASize),
            ("", Problem::NeedsValue),
            ("4097", Problem::NotPages),
            ("65G", Problem::BeyondWidth(36)),
            ("99999999999999999999", Problem::Overflow),
            ("0x3fffffffffffffffG", Problem::Overflow),
        ] {
            assert_eq!(guest(&format!("mem={value}")), Err(problem), "{value}");
        }
        // The widest width does not make the shift overflow.
        assert!(GuestOptions::parse("mem=1G", 0, 64).is_ok());
    }

    #[test]
    fn page_sizes() {
        for (value, policy) in [
            ("4k", PagePolicy::Small),
            ("4K", PagePolicy::Small),
            ("2m", PagePolicy::Large2M),
            ("2M", PagePolicy::Large2M),
            ("1g", PagePolicy::Large1G),
            ("1G", PagePolicy::Large1G),
            ("auto", PagePolicy::Auto),
        ] {
            assert_eq!(guest(&format!("pages={value}")).unwrap().pages, policy);
        }
        assert_eq!(guest("").unwrap().pages, PagePolicy::Small);
        for bad in ["3m", "2", "2mb", "AUTO", "4096", "1g,2m"] {
            assert_eq!(guest(&format!("pages={bad}")), Err(Problem::NotAPageSize));
        }
        assert_eq!(guest("hello pages"), Err(Problem::NeedsValue));
        assert_eq!(guest("pages="), Err(Problem::NeedsValue));
        assert_eq!(guest("pages=2m pages=2m"), Err(Problem::Repeated));
        let error = GuestOptions::parse("pages=huge name=web", 0, 40).unwrap_err();
        assert_eq!(
            error.to_string(),
            "guest web: pages=huge: not one of 4k, 2m, 1g, auto"
        );
    }

    #[test]
    fn bad_words() {
        assert_eq!(guest("hello mem"), Err(Problem::NeedsValue));
        assert_eq!(guest("memory=1G"), Err(Problem::UnknownKey));
        assert_eq!(guest("hello.elf verbose"), Err(Problem::UnknownKey));
        assert_eq!(guest("mem=1M mem=1M"), Err(Problem::Repeated));
        assert_eq!(guest("name=a name=a"), Err(Problem::Repeated));
        assert_eq!(guest("name=a b"), Err(Problem::UnknownKey));
        assert_eq!(guest("name=ab/c"), Err(Problem::NotAName));
        assert_eq!(
            guest(&format!("name={}", "x".repeat(33))),
            Err(Problem::NotAName)
        );
        assert_eq!(guest("budget=0"), Err(Problem::Zero));
        assert_eq!(guest("budget=5min"), Err(Problem::NotADuration));
        assert_eq!(guest("budget=99999999999s"), Err(Problem::Overflow));
    }

    #[test]
    fn the_test_device_is_a_flag() {
        assert!(!guest("hello.elf").unwrap().testdev);
        let both = guest("hello.elf testdev mem=1M").unwrap();
        assert_eq!((both.testdev, both.mem), (true, 1 << 20));
        assert_eq!(guest("a.elf testdev=1"), Err(Problem::TakesNoValue));
        assert_eq!(guest("a.elf testdev="), Err(Problem::TakesNoValue));
        assert_eq!(guest("a.elf testdev testdev"), Err(Problem::Repeated));
        assert_eq!(guest("a.elf Testdev"), Err(Problem::UnknownKey));
    }

    #[test]
    fn an_error_names_guest_key_and_value() {
        let error = GuestOptions::parse("mem=\x1b[2Jlots name=web", 0, 40).unwrap_err();
        assert_eq!(
            error.to_string(),
            "guest web: mem=\\u{1b}[2Jlots: not a size, as in 64M, 1G or 0x100000"
        );
        let long = format!("log={}", "y".repeat(1000));
        assert!(KernelOptions::parse(&long).unwrap_err().to_string().len() < 150);
    }

    #[test]
    fn the_hypervisors_own_options() {
        let line = "/boot/offshoot log=debug selftest=frames tick=10ms pool=64 audit";
        let options = KernelOptions::parse(line).unwrap();
        assert_eq!(options.log, LevelFilter::Debug);
        assert_eq!(options.selftest, Some("frames"));
        assert_eq!(options.tick, Some(Duration::Nanoseconds(10_000_000)));
        assert_eq!(options.pool, Some(64 << 20));
        assert!(options.audit);
        assert_eq!(
            KernelOptions::parse("pool=512K").unwrap().pool,
            Some(512 << 10)
        );
        assert_eq!(KernelOptions::parse(" \0"), Ok(KernelOptions::DEFAULT));
        let mitigations = |value: &str| {
            let line = format!("mitigations={value}");
            let parsed = KernelOptions::parse(&line).map(|options| options.mitigations.to_string());
            parsed.map_err(|error| error.to_string())
        };
        for value in [
            "auto",
            "off",
            "l1tf",
            "mds,rsb",
            "l1tf,mds,ibpb,rsb,ibrs,bhi,multihit",
        ] {
            assert_eq!(mitigations(value).as_deref(), Ok(value));
        }
        assert_eq!(mitigations("rsb,mds,mds").as_deref(), Ok("mds,rsb"));
        for bad in ["on", "auto,mds", "mds,", "MDS", "spectre"] {
            let told = mitigations(bad).unwrap_err();
            assert!(told.starts_with(&format!(
                "command line: mitigations={bad}: not auto, off, or"
            )));
            assert!(told.contains("l1tf,mds,ibpb,rsb,ibrs,bhi,multihit"));
        }
        let line = "screen=off end=reset end-after=250ms";
        let options = KernelOptions::parse(line).unwrap();
        assert!(!options.screen && KernelOptions::DEFAULT.screen);
        assert_eq!(options.end, End::Reset);
        assert_eq!(options.end_after, Duration::Nanoseconds(250_000_000));
        for (value, end) in [("poweroff", End::PowerOff), ("halt", End::Halt)] {
            let line = format!("end={value}");
            assert_eq!(KernelOptions::parse(&line).unwrap().end, end);
        }
        let problem = |line| KernelOptions::parse(line).unwrap_err().problem;
        assert_eq!(problem("screen=yes"), Problem::NotOnOrOff);
        assert_eq!(problem("end=now"), Problem::NotAnEnd);
        assert_eq!(problem("end=halt end=halt"), Problem::Repeated);
        assert_eq!(problem("end-after=soon"), Problem::NotADuration);
        assert_eq!(problem("log=loud"), Problem::NotALevel);
        assert_eq!(problem("audit=1"), Problem::TakesNoValue);
        assert_eq!(problem("pool=0"), Problem::Zero);
        assert_eq!(problem("mem=1G"), Problem::UnknownKey);
    }
}
