//! Packs the kernel and its guests into one ISO that boots from BIOS and UEFI, from CD and from a USB stick.

use crate::guest::check_word;
use crate::{Error, Guest};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Writes the ISO to `iso`, using the folder `tree` for its contents.
///
/// # Errors
/// A file that cannot be copied, a word that GRUB would not pass on, or the tool that fails.
pub fn make(
    iso: &Path,
    tree: &Path,
    kernel: &Path,
    cmdline: &str,
    guests: &[Guest],
) -> Result<(), Error> {
    let script = grub_cfg(cmdline, guests)?;
    let mut files = vec![("offshoot".to_owned(), kernel.to_owned())];
    for (at, guest) in guests.iter().enumerate() {
        files.push((module_file(at), guest.path.clone()));
    }
    pack(iso, tree, &script, &files)
}

/// Writes an ISO with a script for GRUB, and with files in the folder `boot`, each with the name that it has there.
///
/// # Errors
/// A file that cannot be copied, or the tool that fails.
pub fn pack(
    iso: &Path,
    tree: &Path,
    script: &str,
    files: &[(String, PathBuf)],
) -> Result<(), Error> {
    let boot = tree.join("boot");
    let grub = boot.join("grub");
    if tree.exists() {
        fs::remove_dir_all(tree).map_err(Error::io("remove", tree))?;
    }
    fs::create_dir_all(&grub).map_err(Error::io("create", &grub))?;
    let path = grub.join("grub.cfg");
    fs::write(&path, script).map_err(Error::io("write", &path))?;
    for (name, from) in files {
        copy(from, &boot.join(name))?;
    }
    mkrescue(iso, tree)?;
    fs::remove_dir_all(tree).map_err(Error::io("remove", tree))
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    fs::copy(from, to).map_err(Error::io("copy", from))?;
    Ok(())
}

/// The name of a module's file in the ISO. The name of the user's file is in its command line instead: what a file
/// system and a shell like GRUB's allow in a name does not matter then.
fn module_file(at: usize) -> String {
    format!("guest{at}")
}

fn mkrescue(iso: &Path, tree: &Path) -> Result<(), Error> {
    // grub-mkrescue leaves out a platform whose modules are missing without a word.
    for platform in ["i386-pc", "x86_64-efi"] {
        let module = Path::new("/usr/lib/grub")
            .join(platform)
            .join("multiboot2.mod");
        if !module.exists() {
            return Err(Error::MissingFile(module));
        }
    }
    // Without fonts, themes and translations the image is a third of the size.
    let output = Command::new("grub-mkrescue")
        .args(["--locales=", "--themes=", "--fonts=", "-o"])
        .args([iso, tree])
        .stdin(Stdio::null())
        .output()
        .map_err(Error::start("grub-mkrescue"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let skip = text.lines().count().saturating_sub(20);
    Err(Error::Program {
        what: "grub-mkrescue".into(),
        status: output.status,
        output: text.lines().skip(skip).collect::<Vec<_>>().join("\n"),
    })
}

/// A script that GRUB runs. When GRUB cannot load something it says so on the serial line in the words of the
/// image itself, so that nobody waits for a kernel that never starts.
#[derive(Debug)]
pub struct Script(String);

impl Default for Script {
    fn default() -> Self {
        // UEFI has no text mode: a frame buffer takes a driver that sets one up.
        Self("set timeout=0\nif [ \"$grub_platform\" = efi ]; then insmod all_video; fi\n".into())
    }
}

impl Script {
    /// Loads something, which people know as `what`, with these words for it.
    ///
    /// # Errors
    /// A word that GRUB would not pass on unharmed.
    pub fn command(&mut self, load: &str, words: &[String], what: &str) -> Result<(), Error> {
        let Self(script) = self;
        script.push_str("if ");
        script.push_str(load);
        for word in words {
            check_word(word).map_err(|reason| Error::asked(what, reason))?;
            // In single quotes nothing means anything to GRUB, and a word has none of its own.
            script.push_str(&format!(" '{word}'"));
        }
        script.push_str(&format!(
            "; then true; else\n  serial --unit=0 --speed=115200\n  terminal_output --append serial\n  \
             echo\n  echo 'OFFSHOOT-END failed: GRUB could not load {what}'\n  failed=yes\nfi\n"
        ));
        Ok(())
    }

    /// Boots what was loaded. Under a BIOS the screen stays in text mode, whatever an image could make use of: that takes no
    /// time.
    pub fn end(self) -> String {
        self.0
            + "if [ \"$grub_platform\" = pc ]; then set gfxpayload=text; fi\n\
               if [ -z \"$failed\" ]; then boot; fi\n"
    }
}

/// The script that boots the image.
///
/// # Errors
/// A word that GRUB would not pass on unharmed.
pub fn grub_cfg(cmdline: &str, guests: &[Guest]) -> Result<String, Error> {
    let words: Vec<_> = cmdline.split_whitespace().map(str::to_owned).collect();
    let mut script = Script::default();
    script.command("multiboot2 /boot/offshoot", &words, "the kernel")?;
    for (at, guest) in guests.iter().enumerate() {
        let load = format!("module2 /boot/{}", module_file(at));
        script.command(&load, &guest.command_line(), &guest.file_name())?;
    }
    Ok(script.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_kernel_as_they_are() {
        let guests = [Guest::new("/g/a.elf").with("mem=64M")];
        let script = grub_cfg("log=debug  x=$y;z", &guests).unwrap();
        assert!(script.contains("multiboot2 /boot/offshoot 'log=debug' 'x=$y;z'; then"));
        assert!(script.contains("module2 /boot/guest0 'a.elf' 'mem=64M'; then"));
        assert!(script.ends_with("then boot; fi\n"));
    }

    #[test]
    fn a_word_that_grub_would_change_is_refused() {
        assert!(grub_cfg("a='b'", &[]).is_err());
        assert!(grub_cfg("back\\slash", &[]).is_err());
        assert!(grub_cfg("grün", &[]).is_err());
    }
}
