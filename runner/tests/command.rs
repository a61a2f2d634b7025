//! The command itself: what it says to wrong input, and that it leaves no emulator behind. A script stands in for
//! Bochs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Says which CPUs it knows; else prints `$CONSOLE` as the image, or writes down its process id and hangs.
const BOCHS: &str = "#!/bin/sh
case \"$*\" in
    '--help cpu') printf 'Supported CPU models:\\n\\ntigerlake\\nryzen\\n\\n' ;;
    --help) ;;
    *) [ -z \"$CONSOLE\" ] || { printf '%s' \"$CONSOLE\" >> serial.log; exit 1; }
       echo up >> serial.log; echo $$ > pid; exec sleep 60 ;;
esac
";

/// A folder for one test, with a stand-in for Bochs.
fn folder(test: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    let bochs = dir.join("bochs");
    fs::write(&bochs, BOCHS).unwrap();
    fs::set_permissions(&bochs, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.join("kernel"), "not looked at").unwrap();
    dir
}

fn runner(dir: &Path, arguments: &[&str]) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot-runner"));
    command
        .args(arguments)
        .env("PATH", format!("{}:{path}", dir.display()))
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn refused(test: &str, arguments: &[&str], says: &[&str]) {
    let Output { status, stderr, .. } = runner(&folder(test), arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(2), "{stderr}");
    for words in says {
        assert!(stderr.contains(words), "no `{words}` in:\n{stderr}");
    }
    assert!(!stderr.contains("booting"), "{stderr}");
}

#[test]
fn a_wrong_emulator_is_named() {
    refused(
        "emulator",
        &["run", "--emulator", "vmware"],
        &["vmware: ", "bochs, qemu"],
    );
}

#[test]
fn a_wrong_cpu_gets_a_list_of_the_right_ones() {
    let arguments = ["run", "--emulator", "bochs", "--cpu", "i9"];
    refused("cpu", &arguments, &["i9: ", "tigerlake, ryzen"]);
}

#[test]
fn wrong_quantities_are_named() {
    refused("memory", &["run", "--mem", "much"], &["much: ", "512M"]);
    refused("limit", &["run", "--limit", "never"], &["never: ", "90s"]);
    refused("boot", &["run", "--boot", "tape"], &["tape: ", "uefi"]);
    refused("name", &["run", "--name", "../x"], &["../x: "]);
    refused(
        "option",
        &["run", "--colour", "red"],
        &["--colour: ", "usage"],
    );
    refused("command", &["fly"], &["fly: ", "usage"]);
}

#[test]
fn a_missing_guest_is_named_before_the_kernel_is_built() {
    let arguments = ["run", "--emulator", "bochs", "--guests", "hello none.elf"];
    refused("guest", &arguments, &["none.elf: No such file"]);
}

#[test]
fn an_emulator_that_is_not_installed_is_named() {
    let dir = folder("missing");
    let output = runner(&dir, &["run", "--emulator", "bochs"])
        .env("PATH", "/none")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("bochs is not installed: run `make setup`"),
        "{stderr}"
    );
}

/// Runs an image that prints `console`, and returns exit status, standard output and standard error.
fn booted(test: &str, console: &str) -> (Option<i32>, String, String) {
    let name = format!("command-{test}");
    let arguments = [
        "run",
        "--emulator",
        "bochs",
        "--guests",
        "hello",
        "--kernel",
        "kernel",
        "--name",
        &name,
    ];
    let output = runner(&folder(test), &arguments)
        .env("CONSOLE", console)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

const GOOD: &str =
    r#"{"ok":true,"guests":[],"frames":{"total":9,"used":1,"peak":2,"leaked":0},"figures":[]}"#;

#[test]
fn a_good_run_ends_with_status_0_and_a_report() {
    let console = format!("hi\nOFFSHOOT-REPORT {GOOD}\nOFFSHOOT-END ok\n");
    let (status, stdout, stderr) = booted("good", &console);
    assert_eq!(status, Some(0), "{stderr}");
    assert_eq!(stdout, "hi\nOFFSHOOT-END ok\n", "the report is not shown");
    let kept = offshoot_runner::image::workspace().join("target/run/command-good/report.json");
    assert_eq!(fs::read_to_string(kept).unwrap(), format!("{GOOD}\n"));
}

#[test]
fn any_other_run_ends_with_status_1_and_the_reason() {
    let (status, _, stderr) = booted("failed", "OFFSHOOT-END failed: no VMX\n");
    assert_eq!(status, Some(1));
    assert!(stderr.contains("offshoot: failed: no VMX\n"), "{stderr}");

    let bad = GOOD.replace("true", "false");
    let console = format!("OFFSHOOT-REPORT {bad}\nOFFSHOOT-END ok\n");
    let (status, _, stderr) = booted("contradicted", &console);
    assert_eq!(status, Some(1));
    assert!(stderr.contains("its report did not"), "{stderr}");

    let (status, _, stderr) = booted("died", "half a li");
    assert_eq!(status, Some(1));
    assert!(stderr.contains("the emulator ended"), "{stderr}");
    assert!(stderr.contains("the last was: half a li"), "{stderr}");
    assert!(stderr.contains("target/run/command-died"), "{stderr}");
}

/// Whether a process runs: it is there and not only waiting for its parent to notice its end.
fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited a minute for {what}");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn no_emulator_outlives_the_runner() {
    let dir = folder("killed");
    let run = offshoot_runner::image::workspace().join("target/run/command-killed");
    let _ = fs::remove_dir_all(&run);
    let mut child = runner(
        &dir,
        &[
            "run",
            "--emulator",
            "bochs",
            "--guests",
            "hello",
            "--kernel",
            "kernel",
            "--name",
            "command-killed",
        ],
    )
    .stdout(Stdio::null())
    .stderr(Stdio::null())
    .spawn()
    .unwrap();
    let pid = wait_for("the emulator", || {
        assert!(child.try_wait().unwrap().is_none(), "the runner has ended");
        let pid = fs::read_to_string(run.join("pid")).ok()?;
        pid.ends_with('\n').then(|| pid.trim().to_owned())
    });
    assert!(runs(&pid));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("its end", || (!runs(&pid)).then_some(()));
}
