//! Command lines: of a boot module (one guest) and of the hypervisor itself.
//!
//! Words are separated by blanks; a word is `key=value`, or a bare flag. There is no quoting.

use core::fmt;

use log::LevelFilter;

use crate::addr::PAGE_SIZE;

/// The longest name of a guest.
pub const NAME_MAX: usize = 32;
/// Guest memory where the command line does not say.
pub const DEFAULT_MEM: u64 = 64 << 20;
/// A guest's budget where the command line does not say.
pub const DEFAULT_BUDGET: Duration = Duration::Nanoseconds(10_000_000_000);

/// The name of a guest: 1 to 32 of `[A-Za-z0-9._-]`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name {
    bytes: [u8; NAME_MAX],
    len: u8,
}

impl Name {
    /// `text` as a name, if it is one.
    pub fn new(text: &str) -> Option<Self> {
        let legal = (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(is_name_byte);
        legal.then(|| Self::from_bytes(text.bytes()))
    }

    /// The name that follows from a path: the file's name without `.elf`, with `-` for what a name cannot hold.
    fn from_path(path: &str) -> Option<Self> {
        let file = path.rsplit('/').next().unwrap_or(path);
        let stem = file.strip_suffix(".elf").unwrap_or(file);
        let tame = |b: u8| if is_name_byte(b) { b } else { b'-' };
        (!stem.is_empty()).then(|| Self::from_bytes(stem.bytes().map(tame)))
    }

    /// `guest0`, `guest1`, ...: the name of a module that has neither path nor name.
    pub fn numbered(index: usize) -> Self {
        let mut digits = [0; 20];
        let mut rest = index;
        let mut len = 0;
        for digit in &mut digits {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
            len += 1;
            if rest == 0 {
                break;
            }
        }
        Self::from_bytes(
            b"guest"
                .iter()
                .chain(digits.iter().take(len).rev())
                .copied(),
        )
    }

    /// At most the first 32 of `bytes`, all of which are name bytes.
    fn from_bytes(source: impl Iterator<Item = u8>) -> Self {
        let mut name = Self {
            bytes: [0; NAME_MAX],
            len: 0,
        };
        for (slot, byte) in name.bytes.iter_mut().zip(source) {
            *slot = byte;
            name.len += 1;
        }
        name
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// A length of time as a user gives it: by the clock, or in ticks of the time-stamp counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duration {
    /// So many nanoseconds.
    Nanoseconds(u64),
    /// So many ticks of the time-stamp counter.
    Ticks(u64),
}

impl Duration {
    /// This time in ticks of a counter of `ticks_per_second`; as many as fit if that is more.
    pub fn ticks(self, ticks_per_second: u64) -> u64 {
        match self {
            Self::Ticks(ticks) => ticks,
            Self::Nanoseconds(ns) => {
                let ticks = u128::from(ns) * u128::from(ticks_per_second) / 1_000_000_000;
                u64::try_from(ticks).unwrap_or(u64::MAX)
            }
        }
    }
}

/// What a boot module's command line says about its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestOptions {
    /// `name=`, else after the file.
    pub name: Name,
    /// `mem=`: bytes of guest memory, a multiple of 4 KiB.
    pub mem: u64,
    /// `budget=`: how long the guest may run.
    pub budget: Duration,
}

impl GuestOptions {
    /// Reads the command line of boot module number `index`. A guest's memory must be addressable with
    /// `address_width` bits.
    pub fn parse(line: &str, index: usize, address_width: u32) -> Result<Self, CmdlineError<'_>> {
        let (path, words) = split_path(line, |word| word.value.is_none());
        let mut options = Self {
            name: path
                .and_then(Name::from_path)
                .unwrap_or_else(|| Name::numbered(index)),
            mem: DEFAULT_MEM,
            budget: DEFAULT_BUDGET,
        };
        // The name comes first, so that what follows can be blamed on the right guest.
        let mut seen = Seen::default();
        for word in Words(words).filter(|word| word.key == "name") {
            let blame = |problem| word.blame(Some(options.name), problem);
            seen.first_time(Key::Name).map_err(blame)?;
            options.name = Name::new(word.needs_value().map_err(blame)?)
                .ok_or(Problem::NotAName)
                .map_err(blame)?;
        }
        let name = options.name;
        for word in Words(words).filter(|word| word.key != "name") {
            let blame = |problem| word.blame(Some(name), problem);
            options
                .take(word, &mut seen, address_width)
                .map_err(blame)?;
        }
        Ok(options)
    }

    fn take(&mut self, word: Word<'_>, seen: &mut Seen, width: u32) -> Result<(), Problem> {
        match word.key {
            "mem" => {
                seen.first_time(Key::Mem)?;
                self.mem = memory(word.needs_value()?, width)?;
            }
            "budget" => {
                seen.first_time(Key::Budget)?;
                self.budget = duration(word.needs_value()?)?;
            }
            _ => return Err(Problem::UnknownKey),
        }
        Ok(())
    }
}

/// The hypervisor's own options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelOptions<'a> {
    /// `log=off|error|warn|info|debug|trace`: what goes to the console.
    pub log: LevelFilter,
    /// `selftest=`: raise this exception in the hypervisor, to see that it is reported.
    pub selftest: Option<&'a str>,
    /// `tick=`: interrupt guests so often, as a machine with a running timer would.
    pub tick: Option<Duration>,
    /// `pool=`: at most so many bytes of host memory for guests. A number without suffix is in MiB.
    pub pool: Option<u64>,
    /// `audit`: check all frame counts and tables after every guest.
    pub audit: bool,
}

impl<'a> KernelOptions<'a> {
    /// The options of an empty command line.
    pub const DEFAULT: Self = Self {
        log: LevelFilter::Info,
        selftest: None,
        tick: None,
        pool: None,
        audit: false,
    };

    /// Reads the command line of the image.
    pub fn parse(line: &'a str) -> Result<Self, CmdlineError<'a>> {
        let mut options = Self::DEFAULT;
        let mut seen = Seen::default();
        for word in Words(split_path(line, |_| false).1) {
            options
                .take(word, &mut seen)
                .map_err(|problem| word.blame(None, problem))?;
        }
        Ok(options)
    }

    fn take(&mut self, word: Word<'a>, seen: &mut Seen) -> Result<(), Problem> {
        match word.key {
            "log" => {
                seen.first_time(Key::Log)?;
                self.log = word
                    .needs_value()?
                    .parse()
                    .map_err(|_| Problem::NotALevel)?;
            }
            "selftest" => {
                seen.first_time(Key::Selftest)?;
                self.selftest = Some(word.needs_value()?);
            }
            "tick" => {
                seen.first_time(Key::Tick)?;
                self.tick = Some(duration(word.needs_value()?)?);
            }
            "pool" => {
                seen.first_time(Key::Pool)?;
                self.pool = Some(pool(word.needs_value()?)?);
            }
            "audit" => {
                seen.first_time(Key::Audit)?;
                if word.value.is_some() {
                    return Err(Problem::TakesNoValue);
                }
                self.audit = true;
            }
            _ => return Err(Problem::UnknownKey),
        }
        Ok(())
    }
}

/// The first of `names` that stands there twice: its places.
pub fn duplicate(names: &[Name]) -> Option<(usize, usize)> {
    names.iter().enumerate().find_map(|(second, name)| {
        let first = names
            .iter()
            .take(second)
            .position(|earlier| earlier == name)?;
        Some((first, second))
    })
}

/// What is wrong with a command line, where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CmdlineError<'a> {
    /// The guest, or `None` of the hypervisor's own command line.
    pub guest: Option<Name>,
    /// The key.
    pub key: &'a str,
    /// What stood after `=`, if that was there.
    pub value: Option<&'a str>,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What can be wrong with one word of a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// No such option.
    UnknownKey,
    /// The option stands there twice.
    Repeated,
    /// `=` and a value are missing.
    NeedsValue,
    /// A flag was given a value.
    TakesNoValue,
    /// Not 1 to 32 of `[A-Za-z0-9._-]`.
    NotAName,
    /// Not a number with K, M or G.
    NotASize,
    /// Not `500ms`, `2s` or a number of ticks.
    NotADuration,
    /// Not a log level.
    NotALevel,
    /// Zero.
    Zero,
    /// Not a multiple of 4 KiB.
    NotPages,
    /// More than 2^64.
    Overflow,
    /// More than this many address bits can reach.
    BeyondWidth(u32),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownKey => "there is no such option",
            Self::Repeated => "given twice",
            Self::NeedsValue => "needs a value, as in key=value",
            Self::TakesNoValue => "takes no value",
            Self::NotAName => "a name is 1 to 32 characters out of A-Z a-z 0-9 . _ -",
            Self::NotASize => "not a size, as in 64M, 1G or 0x100000",
            Self::NotADuration => "not a time, as in 500ms, 2s, or ticks as in 100M",
            Self::NotALevel => "not one of off, error, warn, info, debug, trace",
            Self::Zero => "must not be zero",
            Self::NotPages => "not a multiple of 4 KiB",
            Self::Overflow => "too large",
            Self::BeyondWidth(bits) => {
                return write!(
                    f,
                    "larger than the {bits} bits of a guest-physical address reach"
                );
            }
        })
    }
}

impl fmt::Display for CmdlineError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.guest {
            Some(guest) => write!(f, "guest {guest}: ")?,
            None => f.write_str("command line: ")?,
        }
        write!(f, "{}", Clipped(self.key))?;
        if let Some(value) = self.value {
            write!(f, "={}", Clipped(value))?;
        }
        write!(f, ": {}", self.problem)
    }
}
impl core::error::Error for CmdlineError<'_> {}

/// What a user wrote, made harmless and short.
struct Clipped<'a>(&'a str);

impl fmt::Display for Clipped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 48;
        for c in self.0.chars().take(MOST) {
            write!(f, "{}", c.escape_debug())?;
        }
        if self.0.chars().nth(MOST).is_some() {
            f.write_str("...")
        } else {
            Ok(())
        }
    }
}

/// The keys, to notice repetition.
#[derive(Clone, Copy)]
enum Key {
    Name,
    Mem,
    Budget,
    Log,
    Selftest,
    Tick,
    Pool,
    Audit,
}

#[derive(Default)]
struct Seen(u32);

impl Seen {
    fn first_time(&mut self, key: Key) -> Result<(), Problem> {
        let bit = 1 << key as u32;
        let repeated = self.0 & bit != 0;
        self.0 |= bit;
        if repeated {
            Err(Problem::Repeated)
        } else {
            Ok(())
        }
    }
}

/// One word of a command line.
#[derive(Clone, Copy)]
struct Word<'a> {
    key: &'a str,
    value: Option<&'a str>,
}

impl<'a> Word<'a> {
    fn new(text: &'a str) -> Self {
        match text.split_once('=') {
            Some((key, value)) => Self {
                key,
                value: Some(value),
            },
            None => Self {
                key: text,
                value: None,
            },
        }
    }
    fn needs_value(self) -> Result<&'a str, Problem> {
        self.value
            .filter(|value| !value.is_empty())
            .ok_or(Problem::NeedsValue)
    }
    fn blame(self, guest: Option<Name>, problem: Problem) -> CmdlineError<'a> {
        CmdlineError {
            guest,
            key: self.key,
            value: self.value,
            problem,
        }
    }
}

/// The words of a line.
#[derive(Clone, Copy)]
struct Words<'a>(&'a str);

impl<'a> Iterator for Words<'a> {
    type Item = Word<'a>;
    fn next(&mut self) -> Option<Word<'a>> {
        let (word, rest) = split_word(self.0)?;
        self.0 = rest;
        Some(Word::new(word))
    }
}

/// The first word and what follows it. Command lines from firmware may end in NULs.
fn split_word(line: &str) -> Option<(&str, &str)> {
    let blank = |c: char| c.is_ascii_whitespace() || c == '\0';
    let line = line.trim_start_matches(blank);
    if line.is_empty() {
        return None;
    }
    Some(line.split_at(line.find(blank).unwrap_or(line.len())))
}

/// Splits off a first word that is the file's path: GRUB leaves it out, others do not. It has a slash or a dot
/// before any `=`, or is one for a reason of the caller's.
fn split_path<'a>(line: &'a str, or: impl Fn(Word<'a>) -> bool) -> (Option<&'a str>, &'a str) {
    if let Some((text, rest)) = split_word(line) {
        let word = Word::new(text);
        if word.key.contains(['/', '.']) || or(word) {
            return (Some(text), rest);
        }
    }
    (None, line)
}

/// A number, decimal or `0x`, and what follows its digits.
fn number(text: &str) -> Option<(Result<u64, Problem>, &str)> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None => (text, 10),
    };
    let end = digits
        .find(|c: char| !c.is_digit(radix))
        .unwrap_or(digits.len());
    let (digits, suffix) = digits.split_at(end);
    if digits.is_empty() {
        return None;
    }
    Some((
        u64::from_str_radix(digits, radix).map_err(|_| Problem::Overflow),
        suffix,
    ))
}

/// A size in bytes: K, M, G, T are powers of 1024; a bare number counts in `unit`.
fn size(text: &str, unit: u64) -> Result<u64, Problem> {
    let (value, suffix) = number(text).ok_or(Problem::NotASize)?;
    let unit = match suffix {
        "" => unit,
        "K" | "k" | "KiB" => 1 << 10,
        "M" | "m" | "MiB" => 1 << 20,
        "G" | "g" | "GiB" => 1 << 30,
        "T" | "t" | "TiB" => 1 << 40,
        _ => return Err(Problem::NotASize),
    };
    match value?.checked_mul(unit).ok_or(Problem::Overflow)? {
        0 => Err(Problem::Zero),
        bytes => Ok(bytes),
    }
}

fn memory(text: &str, address_width: u32) -> Result<u64, Problem> {
    let bytes = size(text, 1)?;
    let last = bytes - 1;
    if last.checked_shr(address_width).unwrap_or(0) != 0 {
        return Err(Problem::BeyondWidth(address_width));
    }
    if bytes % PAGE_SIZE != 0 {
        Err(Problem::NotPages)
    } else {
        Ok(bytes)
    }
}

fn pool(text: &str) -> Result<u64, Problem> {
    size(text, 1 << 20)
}

/// A time, or ticks with K, M, G as powers of 1000.
fn duration(text: &str) -> Result<Duration, Problem> {
    let (value, suffix) = number(text).ok_or(Problem::NotADuration)?;
    let (unit, kind): (u64, fn(u64) -> Duration) = match suffix {
        "ns" => (1, Duration::Nanoseconds),
        "us" => (1_000, Duration::Nanoseconds),
        "ms" => (1_000_000, Duration::Nanoseconds),
        "s" => (1_000_000_000, Duration::Nanoseconds),
        "" => (1, Duration::Ticks),
        "K" | "k" => (1_000, Duration::Ticks),
        "M" => (1_000_000, Duration::Ticks),
        "G" | "g" => (1_000_000_000, Duration::Ticks),
        _ => return Err(Problem::NotADuration),
    };
    match value?.checked_mul(unit).ok_or(Problem::Overflow)? {
        0 => Err(Problem::Zero),
        length => Ok(kind(length)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let problem = |line| KernelOptions::parse(line).unwrap_err().problem;
        assert_eq!(problem("log=loud"), Problem::NotALevel);
        assert_eq!(problem("audit=1"), Problem::TakesNoValue);
        assert_eq!(problem("pool=0"), Problem::Zero);
        assert_eq!(problem("mem=1G"), Problem::UnknownKey);
    }

    #[test]
    fn duplicate_names_are_found() {
        let names = ["a", "b", "c", "b", "a"].map(|n| Name::new(n).unwrap());
        assert_eq!(duplicate(&names), Some((1, 3)));
        assert_eq!(duplicate(&names[..3]), None);
        assert_eq!(duplicate(&[]), None);
    }
}
