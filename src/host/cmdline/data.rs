//! Data that guests share: the command line of its module, and how a guest asks for it.

use super::words::{Word, WordIter, split_path};
use super::{CmdlineError, Problem, Whose};
use crate::vm::name::Name;

/// The word that makes a boot module data rather than a guest. As the first word of a line it is never the file's path:
/// a file of that name is written with a folder, as in `./data`.
pub const DATA: &str = "data";

/// What the command line of a data module says: `[path] data [name=NAME]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataOptions {
    /// `name=`, else after the file: what guests ask for.
    pub name: Name,
}

impl DataOptions {
    /// Reads the command line of a boot module, if that is data.
    pub fn parse(line: &str) -> Option<Result<Self, CmdlineError<'_>>> {
        let (path, words) = split(line);
        let flag = WordIter(words).find(|word| word.key == DATA)?;
        Some(Self::read(path, words, flag))
    }

    fn read<'a>(
        path: Option<&'a str>,
        words: &'a str,
        flag: Word<'a>,
    ) -> Result<Self, CmdlineError<'a>> {
        let mut name = path.and_then(Name::from_path);
        let mut named = false;
        for word in WordIter(words).filter(|word| word.key == "name") {
            let blame = |problem| word.blame(Whose::Data(name), problem);
            if named {
                return Err(blame(Problem::Repeated));
            }
            named = true;
            let given = Name::new(word.needs_value().map_err(blame)?);
            name = Some(given.ok_or(Problem::NotAName).map_err(blame)?);
        }
        if flag.value.is_some() {
            return Err(flag.blame(Whose::Data(name), Problem::TakesNoValue));
        }
        let mut flags = 0;
        for word in WordIter(words) {
            let problem = match word.key {
                "name" => continue,
                DATA if flags == 0 => {
                    flags = 1;
                    continue;
                }
                DATA => Problem::Repeated,
                _ => Problem::NotForData,
            };
            return Err(word.blame(Whose::Data(name), problem));
        }
        match name {
            Some(name) => Ok(Self { name }),
            None => Err(flag.blame(Whose::Data(None), Problem::NeedsName)),
        }
    }
}

/// The path of the module's file, where it is there, and the rest of the line.
pub(super) fn split(line: &str) -> (Option<&str>, &str) {
    split_path(line, |word| word.value.is_none() && word.key != DATA)
}

/// The value of a guest's `map=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapOption {
    /// Whose bytes.
    pub name: Name,
    /// Whether the guest may write; what it writes is its own. Not with `:ro`.
    pub write: bool,
}

impl MapOption {
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        let (name, write) = match text.strip_suffix(":ro") {
            Some(name) => (name, false),
            None => (text, true),
        };
        let name = Name::new(name).ok_or(Problem::NotAMap)?;
        Ok(Self { name, write })
    }
}

#[cfg(test)]
mod tests {
    use super::super::GuestOptions;
    use super::*;

    fn data(line: &str) -> Option<Result<String, Problem>> {
        let parsed = DataOptions::parse(line)?;
        Some(match parsed {
            Ok(options) => Ok(options.name.to_string()),
            Err(error) => Err(error.problem),
        })
    }
    fn named(name: &str) -> Option<Result<String, Problem>> {
        Some(Ok(name.into()))
    }

    #[test]
    fn data_is_told_from_guests() {
        assert_eq!(data("corpus.bin data name=corpus"), named("corpus"));
        assert_eq!(data("corpus.bin name=corpus data\0"), named("corpus"));
        assert_eq!(data("data name=corpus"), named("corpus"));
        assert_eq!(data("/boot/corpus.bin data"), named("corpus.bin"));
        assert_eq!(data("corpus data"), named("corpus"));
        assert_eq!(data("./data data"), named("data"));
        assert_eq!(data("./data mem=1M"), None);
        assert_eq!(data("hello name=data"), None);
        assert_eq!(data("hello.elf"), None);
        assert_eq!(data(""), None);
    }

    #[test]
    fn what_is_wrong_with_data() {
        for (line, problem) in [
            ("data", Problem::NeedsName),
            ("/ data", Problem::NeedsName),
            ("a.bin data mem=1M", Problem::NotForData),
            ("a.bin data map=b", Problem::NotForData),
            ("a.bin data colour=red", Problem::NotForData),
            ("a.bin data data", Problem::Repeated),
            ("data data", Problem::Repeated),
            ("a.bin data=1", Problem::TakesNoValue),
            ("a.bin data name=a name=b", Problem::Repeated),
            ("a.bin data name=a/b", Problem::NotAName),
            ("a.bin data name=", Problem::NeedsValue),
        ] {
            assert_eq!(data(line), Some(Err(problem)), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_of_the_data_not_of_a_guest() {
        for (line, told) in [
            (
                "a.bin data name=corpus mem=1M",
                "data corpus: mem=1M: data takes no option but name=",
            ),
            ("a.bin data data", "data a.bin: data: given twice"),
            (
                "data",
                "data module without a name: data: it needs a name, as in data name=corpus",
            ),
        ] {
            let error = DataOptions::parse(line).unwrap().unwrap_err();
            assert_eq!(error.to_string(), told);
        }
    }

    #[test]
    fn guests_ask_for_data_by_its_name() {
        let map = |line| {
            GuestOptions::parse(line, 0, 36)
                .map(|options| options.map.map(|map| (map.name.to_string(), map.write)))
                .map_err(|error| error.problem)
        };
        assert_eq!(map("hello"), Ok(None));
        assert_eq!(map("hello map=corpus"), Ok(Some(("corpus".into(), true))));
        assert_eq!(map("map=a.b:ro"), Ok(Some(("a.b".into(), false))));
        assert_eq!(map("map=a map=b"), Err(Problem::Repeated));
        assert_eq!(map("map="), Err(Problem::NeedsValue));
        for bad in ["map=:ro", "map=a:rw", "map=a:ro:ro", "map=a,b", "map=a/b"] {
            assert_eq!(map(bad), Err(Problem::NotAMap), "{bad}");
        }
    }
}
