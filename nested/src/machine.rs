//! A virtual machine: memory, one CPU as after a PVH boot loader, a serial port and a port that ends it.

use crate::console::Lines;
use crate::pvh::Start;
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, Msrs, kvm_msr_entry, kvm_pit_config, kvm_regs,
    kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use std::fmt::Debug;
use std::io::{self, Write};
use std::time::{Duration, Instant};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vm_superio::{Serial, Trigger};

const COM1: u16 = 0x3f8;
const COM1_PORTS: u16 = 8;
/// The device `isa-debug-exit` of QEMU: a write ends the machine with twice the value and one.
const DEBUG_EXIT: u16 = 0xf4;

/// How a virtual machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The image wrote to the port that ends it: this is the exit status.
    Status(u32),
    /// The time was up.
    TooLong,
    /// Something else, and where the CPU was.
    Other(String),
}

/// The serial port is asked, never heard.
struct NoInterrupt;

impl Trigger for NoInterrupt {
    type E = io::Error;
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A virtual machine. What has no use is not there: a port that nobody has reads as ones.
pub struct Machine<'m> {
    vcpu: VcpuFd,
    // Both must live as long as the CPU runs.
    _vm: VmFd,
    _memory: &'m GuestMemoryMmap,
}

fn doing<E: Debug>(what: &str) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {error:?}")
}

impl<'m> Machine<'m> {
    /// Makes one whose CPU is at `start`.
    ///
    /// # Errors
    /// What KVM refuses, in words.
    pub fn new(kvm: &Kvm, memory: &'m GuestMemoryMmap, start: Start) -> Result<Self, String> {
        let vm = kvm.create_vm().map_err(doing("create a VM"))?;
        // Three pages and one that KVM needs for itself on some CPUs, where nothing else is.
        vm.set_tss_address(0xfffb_d000)
            .map_err(doing("set the address of the TSS"))?;
        vm.set_identity_map_address(0xfffb_c000)
            .map_err(doing("set the address of the identity map"))?;
        let host = memory
            .get_host_address(GuestAddress(0))
            .map_err(doing("find the memory"))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: memory.last_addr().0 + 1,
            userspace_addr: host as u64,
        };
        // SAFETY: the memory is mapped for as long as `memory` lives, which this machine does not outlive, and nothing of it
        // is behind a reference.
        unsafe { vm.set_user_memory_region(region) }.map_err(doing("give it memory"))?;
        vm.create_irq_chip()
            .map_err(doing("create interrupt controllers"))?;
        let timer = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(timer).map_err(doing("create a timer"))?;
        let vcpu = vm.create_vcpu(0).map_err(doing("create a CPU"))?;
        let bits = set_cpuid(kvm, &vcpu)?;
        set_registers(&vcpu, start)?;
        set_msrs(&vcpu, bits)?;
        Ok(Self {
            vcpu,
            _vm: vm,
            _memory: memory,
        })
    }

    /// Runs it to its end, which comes after `limit` at the latest if something interrupts this thread now and then.
    pub fn run(&mut self, console: &mut Lines<impl Write>, limit: Duration) -> End {
        let mut serial = Serial::new(NoInterrupt, console);
        let began = Instant::now();
        loop {
            let exit = match self.vcpu.run() {
                Ok(exit) => exit,
                Err(error) if error.errno() == libc::EINTR => {
                    if began.elapsed() > limit {
                        return End::TooLong;
                    }
                    continue;
                }
                Err(error) => return End::Other(format!("KVM_RUN: {error}")),
            };
            match exit {
                VcpuExit::IoOut(DEBUG_EXIT, data) => {
                    let value = data.first().copied().unwrap_or_default();
                    return End::Status(u32::from(value) << 1 | 1);
                }
                VcpuExit::IoOut(port, &[byte]) => {
                    if let Some(register) = com1(port) {
                        // What cannot be printed is lost, and the image goes on.
                        let _ = serial.write(register, byte);
                    }
                }
                VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..) => {}
                VcpuExit::IoIn(port, data) => match (com1(port), data) {
                    (Some(register), [byte]) => *byte = serial.read(register),
                    (_, data) => data.fill(0xff),
                },
                VcpuExit::MmioRead(_, data) => data.fill(0xff),
                other => {
                    let other = format!("{other:?}");
                    return End::Other(format!("{other}, {}", self.place()));
                }
            }
        }
    }

    /// Where the CPU is.
    fn place(&self) -> String {
        match (self.vcpu.get_regs(), self.vcpu.get_sregs()) {
            (Ok(regs), Ok(sregs)) => format!(
                "RIP {:#x}, RSP {:#x}, CR0 {:#x}, CR2 {:#x}, CR3 {:#x}, CR4 {:#x}, EFER {:#x}",
                regs.rip, regs.rsp, sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer
            ),
            (Err(error), _) | (_, Err(error)) => format!("and its registers: {error}"),
        }
    }
}

/// The register of the serial port that is at `port`.
fn com1(port: u16) -> Option<u8> {
    let register = port.checked_sub(COM1)?;
    (register < COM1_PORTS).then_some(register as u8)
}

/// All that KVM can give. Returns how many bits a physical address has.
fn set_cpuid(kvm: &Kvm, vcpu: &VcpuFd) -> Result<u32, String> {
    const VMX: u32 = 1 << 5;
    const HYPERVISOR: u32 = 1 << 31;
    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(doing("ask for CPUID"))?;
    let mut bits = 36;
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                if entry.ecx & VMX == 0 {
                    return Err("KVM offers no VMX: is its module loaded with nested=1?".into());
                }
                entry.ecx |= HYPERVISOR;
                // The APIC of this CPU is number 0.
                entry.ebx &= 0x00ff_ffff;
            }
            0x8000_0008 => bits = entry.eax & 0xff,
            _ => {}
        }
    }
    vcpu.set_cpuid2(&cpuid).map_err(doing("set CPUID"))?;
    Ok(bits)
}

/// As PVH says: flat 32-bit segments, paging off.
fn set_registers(vcpu: &VcpuFd, start: Start) -> Result<(), String> {
    let mut sregs = vcpu.get_sregs().map_err(doing("get the registers"))?;
    let code = kvm_segment {
        limit: u32::MAX,
        selector: 8,
        type_: 11,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        selector: 16,
        type_: 3,
        ..code
    };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    (sregs.fs, sregs.gs) = (data, data);
    sregs.tr = kvm_segment {
        limit: 0x67,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    (sregs.cr0, sregs.cr4, sregs.efer) = (0x11, 0, 0);
    vcpu.set_sregs(&sregs).map_err(doing("set the segments"))?;
    let regs = kvm_regs {
        rip: start.entry,
        rbx: start.info,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(doing("set the registers"))
}

/// As firmware leaves them: VMX allowed and locked, memory write-back below 3 GiB and above 4.
fn set_msrs(vcpu: &VcpuFd, bits: u32) -> Result<(), String> {
    const FEATURE_CONTROL: u32 = 0x3a;
    const FIXED: [u32; 11] = [
        0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
    ];
    /// Where the screen is.
    const VIDEO: u32 = 0x259;
    let mask = ((1_u64 << bits) - 1) & !0x3fff_ffff | 1 << 11;
    let fixed = FIXED.map(|index| match index {
        VIDEO => (index, 0),
        _ => (index, 0x0606_0606_0606_0606),
    });
    let rest = [
        (FEATURE_CONTROL, 5),
        (0x200, 0xc000_0000),
        (0x201, mask),
        (0x2ff, 0xc06),
    ];
    let entries: Vec<_> = fixed
        .into_iter()
        .chain(rest)
        .map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    let msrs = Msrs::from_entries(&entries).map_err(doing("list MSRs"))?;
    let set = vcpu.set_msrs(&msrs).map_err(doing("set MSRs"))?;
    match entries.get(set) {
        None => Ok(()),
        Some(refused) => Err(format!(
            "KVM refuses {:#x} in MSR {:#x}",
            refused.data, refused.index
        )),
    }
}
