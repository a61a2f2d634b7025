//! What the first program of a Linux has to do: file systems, a console, modules, the end.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;

/// Where the modules of the kernel are, in the order in which they are to be loaded.
const MODULES: &str = "/mod";
/// What Bochs takes, byte by byte at the port, for the wish to end.
const SHUTDOWN: &[u8] = b"Shutdown";
const SHUTDOWN_PORT: u16 = 0x8900;

fn checked(result: libc::c_int) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Mounts what else is needed, and has what this program prints go to the console.
///
/// # Errors
/// What the kernel refuses: a mount, or the console.
pub fn set_up() -> io::Result<()> {
    for (kind, at) in [
        (c"proc", c"/proc"),
        (c"sysfs", c"/sys"),
        (c"devtmpfs", c"/dev"),
    ] {
        fs::create_dir_all(at.to_string_lossy().as_ref())?;
        mount(kind, at)?;
    }
    let console = File::options()
        .read(true)
        .write(true)
        .open("/dev/console")?;
    for standard in 0..3 {
        // SAFETY: both are numbers of files, and the call touches no memory.
        checked(unsafe { libc::dup2(console.as_raw_fd(), standard) })?;
    }
    Ok(())
}

fn mount(kind: &CStr, at: &CStr) -> io::Result<()> {
    // SAFETY: all are strings that end with a zero, or null where there may be none.
    checked(unsafe {
        libc::mount(
            kind.as_ptr(),
            at.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    })
}

/// Loads KVM, which then offers VMX.
///
/// # Errors
/// A module that is not there, or that the kernel refuses.
pub fn load_modules() -> io::Result<()> {
    let mut files: Vec<_> = fs::read_dir(MODULES)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()?;
    files.sort();
    for path in files {
        let file = File::open(&path)?;
        let options = match path.to_string_lossy().contains("kvm-intel") {
            true => c"nested=1",
            false => c"",
        };
        // SAFETY: the file is open, and the options are a string that ends with a zero.
        let done = unsafe {
            libc::syscall(
                libc::SYS_finit_module,
                file.as_raw_fd(),
                options.as_ptr(),
                0,
            )
        };
        checked(done as libc::c_int)
            .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
    }
    Ok(())
}

extern "C" fn nothing(_: libc::c_int) {}

/// Has this thread interrupted once a second.
///
/// # Errors
/// The timer that the kernel does not give.
pub fn tick() -> io::Result<()> {
    let second = libc::timeval {
        tv_sec: 1,
        tv_usec: 0,
    };
    let timer = libc::itimerval {
        it_interval: second,
        it_value: second,
    };
    // SAFETY: the handler does nothing, and a zeroed set of signals is the empty one; what is pointed at is there.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        checked(libc::sigaction(
            libc::SIGALRM,
            &action,
            std::ptr::null_mut(),
        ))?;
        checked(libc::setitimer(
            libc::ITIMER_REAL,
            &timer,
            std::ptr::null_mut(),
        ))
    }
}

/// Ends Bochs, once the console is out.
pub fn power_off() -> ! {
    // SAFETY: the console is open; the port is Bochs's, and nothing else is at it.
    unsafe {
        libc::tcdrain(1);
        if libc::iopl(3) == 0 {
            for &byte in SHUTDOWN {
                std::arch::asm!("out dx, al", in("dx") SHUTDOWN_PORT, in("al") byte, options(nomem, nostack));
            }
        }
        loop {
            libc::pause();
        }
    }
}
