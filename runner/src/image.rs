//! Builds the kernel and the sample guests with cargo.

use crate::Error;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The target both are built for, stated so that build scripts and proc-macros do not get their flags.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The sample guests, ELF files.
#[derive(Clone, Debug, Default)]
pub struct Samples(pub Vec<PathBuf>);

/// A kernel and the sample guests beside it.
#[derive(Clone, Debug)]
pub struct Image {
    /// The folder of the workspace. Runs are kept in `target/run` under it.
    pub root: PathBuf,
    /// The kernel, an ELF file.
    pub kernel: PathBuf,
    /// The sample guests.
    pub samples: Samples,
}

/// The folder of the workspace this runner was built from.
pub fn workspace() -> PathBuf {
    let runner = Path::new(env!("CARGO_MANIFEST_DIR"));
    runner.parent().unwrap_or(runner).to_owned()
}

impl Samples {
    /// Builds them in the workspace this runner was built from. Cargo shows its progress.
    ///
    /// # Errors
    /// Cargo, where it fails or is not there.
    pub fn build() -> Result<Self, Error> {
        let arguments = [
            "--package=offshoot-guests",
            "--bins",
            "--config=.cargo/guest.toml",
            "--target-dir=target/guest",
        ];
        cargo(&workspace(), "the sample guests", &arguments).map(Self)
    }

    /// The one of that name.
    pub fn get(&self, name: &str) -> Option<&Path> {
        self.0
            .iter()
            .map(PathBuf::as_path)
            .find(|path| path.file_name().is_some_and(|file| file == name))
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|path| path.file_name()?.to_str())
    }
}

impl Image {
    /// Builds the kernel in the workspace this runner was built from. Cargo shows its progress.
    ///
    /// # Errors
    /// Cargo, where it fails or is not there.
    pub fn build(samples: Samples) -> Result<Self, Error> {
        Self::built(
            "the kernel",
            ["--features=kernel", "--target-dir=target"],
            samples,
        )
    }

    /// The same, of a kernel that counts what its figures of instructions do not show.
    ///
    /// # Errors
    /// As of [`Image::build`].
    pub fn build_counting(samples: Samples) -> Result<Self, Error> {
        let apart = ["--features=kernel,count", "--target-dir=target/count"];
        Self::built("the kernel that counts", apart, samples)
    }

    /// The same, of a kernel whose INVEPTs do nothing: what runs it must notice.
    ///
    /// # Errors
    /// As of [`Image::build`].
    pub fn build_forgetful(samples: Samples) -> Result<Self, Error> {
        let apart = [
            "--features=kernel,forget-invept",
            "--target-dir=target/forgetful",
        ];
        Self::built("the kernel that forgets INVEPT", apart, samples)
    }

    fn built(what: &str, [features, dir]: [&str; 2], samples: Samples) -> Result<Self, Error> {
        let root = workspace();
        let arguments = [
            "--package=offshoot",
            "--bin=offshoot",
            "--config=.cargo/kernel.toml",
            features,
            dir,
        ];
        let kernel = cargo(&root, what, &arguments)?
            .into_iter()
            .find(|path| path.ends_with("offshoot"))
            .ok_or_else(|| Error::asked("offshoot", "cargo built no such program"))?;
        Ok(Self {
            root,
            kernel,
            samples,
        })
    }

    /// Takes a kernel that is there already.
    ///
    /// # Errors
    /// The file, where it is not there.
    pub fn with_kernel(kernel: &Path, samples: Samples) -> Result<Self, Error> {
        std::fs::File::open(kernel).map_err(Error::io("read", kernel))?;
        Ok(Self {
            root: workspace(),
            kernel: std::path::absolute(kernel).map_err(Error::io("read", kernel))?,
            samples,
        })
    }
}

/// Builds the program that runs the image in KVM.
///
/// # Errors
/// Cargo, where it fails or is not there.
pub fn build_nested() -> Result<PathBuf, Error> {
    let arguments = [
        "--package=offshoot-nested",
        "--bin=offshoot-nested",
        "--config=.cargo/nested.toml",
        "--target-dir=target/nested",
    ];
    cargo(&workspace(), "the user space of KVM", &arguments)?
        .into_iter()
        .find(|path| path.ends_with("offshoot-nested"))
        .ok_or_else(|| Error::asked("offshoot-nested", "cargo built no such program"))
}

/// Runs `cargo build --release` and returns the programs it names as built.
fn cargo(root: &Path, what: &str, arguments: &[&str]) -> Result<Vec<PathBuf>, Error> {
    eprintln!("offshoot: building {what}");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut child = Command::new(cargo)
        .current_dir(root)
        .args([
            "build",
            "--release",
            "--target",
            TARGET,
            "--message-format=json-render-diagnostics",
        ])
        .args(arguments)
        // Flags in the environment would replace those of the configuration file, and with them the layout that the
        // image depends on.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_RUSTFLAGS")
        .env_remove("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(Error::start("cargo"))?;
    let mut programs = Vec::new();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            let line = line.map_err(Error::io("read from", Path::new("cargo")))?;
            programs.extend(executable(&line));
        }
    }
    let status = child.wait().map_err(Error::start("cargo"))?;
    if !status.success() {
        return Err(Error::Program {
            what: format!("building {what}"),
            status,
            output: String::new(),
        });
    }
    programs.sort();
    Ok(programs)
}

/// The program that one of cargo's messages says it built.
fn executable(message: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    Some(message.get("executable")?.as_str()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_are_taken_from_cargo_s_messages() {
        let built = r#"{"reason":"compiler-artifact","executable":"/t/hello"}"#;
        assert_eq!(executable(built), Some("/t/hello".into()));
        assert_eq!(
            executable(r#"{"reason":"compiler-artifact","executable":null}"#),
            None
        );
        assert_eq!(executable(r#"{"reason":"build-finished"}"#), None);
        assert_eq!(executable("text of a build script"), None);
    }
}
