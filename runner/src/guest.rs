//! The guests of a run and the data they share: a file each, with the options that the kernel reads from the module's
//! command line.

use crate::Error;
use crate::image::Samples;
use std::fs::File;
use std::path::{Path, PathBuf};

/// What `make run` runs when nothing else is asked for: sample guests, with the options each needs.
pub const DEFAULT: &str = "hello sparse,mem=1G selfcheck \
    forks_isolation,mem=16M,forks=100,parallel=20,runs=3";
/// Options that need no value.
const FLAGS: [&str; 4] = [DATA, "prefetch", "idle", "testdev"];

/// The option that makes a file data rather than a guest.
pub const DATA: &str = "data";

/// One guest, an ELF file, or data for guests to map, any file; and its options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// The file.
    pub path: PathBuf,
    /// Its options as the kernel reads them, as in `mem=64M`; `data` makes it data.
    pub options: Vec<String>,
}

impl Guest {
    /// A guest from a file, without options.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            options: Vec::new(),
        }
    }

    /// The same guest with one more option.
    pub fn with(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }

    /// Reads a list of guests separated by blanks, each `FILE[,OPTION]...`, where FILE is a path or the name of a
    /// sample guest. Every file is looked at, so that what is wrong is said before anything boots.
    ///
    /// # Errors
    /// The first guest whose file is not there or no guest, or whose option cannot be passed on.
    pub fn parse_list(list: &str, samples: &Samples) -> Result<Vec<Self>, Error> {
        let mut guests = list
            .split_whitespace()
            .map(|word| Self::parse(word, samples))
            .collect::<Result<Vec<_>, _>>()?;
        name_apart(&mut guests);
        Ok(guests)
    }

    fn parse(word: &str, samples: &Samples) -> Result<Self, Error> {
        let mut parts = word.split(',');
        let file = parts.next().unwrap_or_default();
        let path = match samples.get(file) {
            Some(sample) if !Path::new(file).exists() => sample.to_owned(),
            _ => PathBuf::from(file),
        };
        // Emulators run in folders of their own.
        let path = std::path::absolute(&path).map_err(Error::io("read", &path))?;
        let options: Vec<_> = parts
            .filter(|option| !option.is_empty())
            .map(str::to_owned)
            .collect();
        if let Some(option) = options.iter().find(|option| !is_option(option)) {
            return Err(Error::asked(
                word,
                format!("`{option}` is no option: write KEY=VALUE, as in mem=64M"),
            ));
        }
        let guest = Self { path, options };
        guest.check().map_err(|reason| {
            let mut reason = reason;
            if !file.contains('/') {
                let names: Vec<_> = samples.names().collect();
                reason += &format!(" (and not a sample guest; those are: {})", names.join(", "));
            }
            Error::asked(file, reason)
        })?;
        Ok(guest)
    }

    /// Whether the file can be read and the words can go through GRUB.
    fn check(&self) -> Result<(), String> {
        let data = std::fs::metadata(&self.path).map_err(|error| error.to_string())?;
        if !data.is_file() {
            return Err("not a file".into());
        }
        File::open(&self.path).map_err(|error| error.to_string())?;
        for word in self.options.iter().chain([&self.file_name()]) {
            check_word(word)?;
        }
        Ok(())
    }

    /// The name of the file without its folder.
    pub fn file_name(&self) -> String {
        self.path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// What the kernel gets as the module's command line: the name of the file, then the options.
    pub fn command_line(&self) -> Vec<String> {
        let file = match self.file_name() {
            // The kernel would take it for the option.
            name if name == DATA => format!("./{name}"),
            name => name,
        };
        let mut words = vec![file];
        words.extend(self.options.iter().cloned());
        words
    }
}

/// Whether a word of a command line can go through GRUB and Multiboot2 unharmed.
///
/// # Errors
/// What is wrong with the word.
pub fn check_word(word: &str) -> Result<(), String> {
    match word
        .chars()
        .find(|c| !c.is_ascii_graphic() || matches!(c, '"' | '\'' | '\\'))
    {
        Some(c) => Err(format!(
            "`{}` has {c:?}, which a boot loader does not pass on",
            word.escape_debug()
        )),
        None => Ok(()),
    }
}

fn is_option(word: &str) -> bool {
    word.contains('=') || FLAGS.contains(&word)
}

fn is_name(option: &str) -> bool {
    option.starts_with("name=")
}

/// Gives guests made from files of the same name a number, so that one file can be run several times. Names that
/// the user has given are left alone: if two are the same, the kernel refuses the second.
fn name_apart(guests: &mut [Guest]) {
    let files: Vec<_> = guests.iter().map(Guest::file_name).collect();
    for (at, guest) in guests.iter_mut().enumerate() {
        let file = &files[at];
        let earlier = files[..at].iter().filter(|other| *other == file).count();
        if earlier > 0 && !guest.options.iter().any(|option| is_name(option)) {
            let name = file.strip_suffix(".elf").unwrap_or(file);
            let name: String = name.chars().filter(|&c| in_name(c)).take(24).collect();
            guest
                .options
                .insert(0, format!("name={name}-{}", earlier + 1));
        }
    }
}

/// Whether the kernel takes this in a guest's name.
fn in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Samples {
        Samples(vec!["/x/hello".into(), "/x/bench".into()])
    }

    /// A file that surely exists, with a folder. Cargo runs tests in the package's own; its full path may hold a space.
    const THIS: &str = "./src/guest.rs";

    #[test]
    fn options_follow_the_file() {
        let list = format!("{THIS},mem=64M,budget=2s {THIS},name=x");
        let guests = Guest::parse_list(&list, &samples()).unwrap();
        assert_eq!(
            guests[0].command_line(),
            ["guest.rs", "mem=64M", "budget=2s"]
        );
        assert_eq!(guests[1].command_line(), ["guest.rs", "name=x"]);
    }

    #[test]
    fn the_same_file_twice_gets_two_names() {
        let list = format!("{THIS} {THIS} {THIS}");
        let guests = Guest::parse_list(&list, &samples()).unwrap();
        assert_eq!(guests[0].command_line(), ["guest.rs"]);
        assert_eq!(guests[1].command_line(), ["guest.rs", "name=guest.rs-2"]);
        assert_eq!(guests[2].command_line(), ["guest.rs", "name=guest.rs-3"]);
    }

    #[test]
    fn names_that_were_given_are_left_alone() {
        let list = format!("{THIS},name=a {THIS},name=a");
        let guests = Guest::parse_list(&list, &samples()).unwrap();
        assert_eq!(guests[0].command_line(), guests[1].command_line());
    }

    #[test]
    fn any_file_can_be_data() {
        let guests = Guest::parse_list(&format!("{THIS},data,name=corpus"), &samples()).unwrap();
        assert_eq!(
            guests[0].command_line(),
            ["guest.rs", "data", "name=corpus"]
        );
        let named_so = Guest::new("/x/data").with("mem=1M");
        assert_eq!(named_so.command_line(), ["./data", "mem=1M"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |word: &str| Guest::parse_list(word, &samples()).unwrap_err().to_string();
        let missing = error("nothere.elf");
        assert!(missing.starts_with("nothere.elf: "), "{missing}");
        assert!(missing.contains("No such file"), "{missing}");
        assert!(missing.contains("hello, bench"), "{missing}");
        assert!(error("/etc").contains("not a file"));
        let option = error(&format!("{THIS},64M"));
        assert!(option.contains("`64M` is no option"), "{option}");
        let quote = error(&format!("{THIS},name=a'b"));
        assert!(quote.contains("boot loader"), "{quote}");
    }
}
