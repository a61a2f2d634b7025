//! What is to be run: a list of cases, one a line, its parts separated by tabs.
//!
//! The runner writes it with [`Case::line`], and the program in the small Linux reads it with [`Case::parse`].

/// The list, and where the files are that it names, in the file system of the small Linux.
pub const LIST: &str = "/job/cases";
/// Between the name of a case and what its console says.
pub const MARK: &str = "| ";
/// The line that ends a case: this, and how the virtual machine ended.
pub const DONE: &str = "NESTED-DONE ";
/// The line that ends all: the runner waits for no other afterwards.
pub const ALL_DONE: &str = "OFFSHOOT-END ok";

/// One boot of the image in KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Put before each line of its console, with [`MARK`]; nothing is where it is empty.
    pub name: String,
    /// Memory of the virtual machine in MiB.
    pub memory: u64,
    /// How many seconds it may take, by the clock of the small Linux.
    pub seconds: u64,
    /// The file of the kernel.
    pub kernel: String,
    /// Its command line.
    pub cmdline: String,
    /// The files of the modules, each with its command line.
    pub modules: Vec<(String, String)>,
}

impl Case {
    /// The line in the list.
    pub fn line(&self) -> String {
        let mut parts = vec![
            self.name.clone(),
            self.memory.to_string(),
            self.seconds.to_string(),
            self.kernel.clone(),
            self.cmdline.clone(),
        ];
        for (file, cmdline) in &self.modules {
            parts.extend([file.clone(), cmdline.clone()]);
        }
        parts.join("\t")
    }

    /// Reads a line of the list.
    pub fn parse(line: &str) -> Option<Self> {
        let parts: Vec<_> = line.split('\t').map(str::to_owned).collect();
        let [name, memory, seconds, kernel, cmdline, modules @ ..] = &parts[..] else {
            return None;
        };
        let modules = modules.chunks(2).map(|pair| match pair {
            [file, cmdline] => Some((file.clone(), cmdline.clone())),
            _ => None,
        });
        Some(Self {
            name: name.clone(),
            memory: memory.parse().ok()?,
            seconds: seconds.parse().ok()?,
            kernel: kernel.clone(),
            cmdline: cmdline.clone(),
            modules: modules.collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let mut case = Case {
            name: String::new(),
            memory: 512,
            seconds: 9,
            kernel: "/job/kernel".into(),
            cmdline: String::new(),
            modules: vec![],
        };
        assert_eq!(Case::parse(&case.line()), Some(case.clone()));
        case.name = "a".into();
        case.cmdline = "audit pool=64M".into();
        case.modules = vec![
            ("/job/0".into(), "hello mem=1M".into()),
            ("/job/1".into(), "x data".into()),
        ];
        assert_eq!(Case::parse(&case.line()), Some(case));
        for bad in ["", "a\t1\t2\tk", "a\tx\t2\tk\t", "a\t1\t2\tk\tc\tfile"] {
            assert_eq!(Case::parse(bad), None, "{bad:?}");
        }
    }
}
