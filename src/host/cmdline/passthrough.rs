//! Devices of the machine that a guest is given: `passthrough=ADDR:SIZE`.

use arrayvec::ArrayVec;
use offshoot_abi::PASSTHROUGH_MAX;

use super::Problem;
use super::value::device;
use crate::addr::{AddrRange, Hpa};

/// Where a guest's devices are, in the host and in the guest.
pub type PassthroughDevices = ArrayVec<AddrRange<Hpa>, PASSTHROUGH_MAX>;

/// Adds the device that `text` describes to a guest's. Addresses have `width` bits.
pub(super) fn add(devices: &mut PassthroughDevices, text: &str, width: u32) -> Result<(), Problem> {
    let range = device(text, width)?;
    let most = PASSTHROUGH_MAX as u64;
    devices.try_push(range).map_err(|_| Problem::TooMany(most))
}

#[cfg(test)]
mod tests {
    use super::super::{GuestOptions, Problem};
    use super::*;

    fn parse(words: &str) -> Result<Vec<(u64, u64)>, Problem> {
        let options = GuestOptions::parse(words, 0, 39).map_err(|error| error.problem)?;
        let range = |range: &AddrRange<Hpa>| (range.start().as_u64(), range.len());
        Ok(options.passthrough.iter().map(range).collect())
    }

    #[test]
    fn devices_are_whole_pages_that_the_cpu_can_address() {
        assert_eq!(parse(""), Ok(vec![]));
        let words = "passthrough=0xfed00000:4K mem=1M passthrough=0x7ffffff000:0x1000";
        let two = vec![(0xfed0_0000, 0x1000), (0x7f_ffff_f000, 0x1000)];
        assert_eq!(parse(words), Ok(two));
        assert_eq!(parse("passthrough=4273995776:1"), Err(Problem::NotPages));
        for (value, problem) in [
            ("", Problem::NeedsValue),
            ("0xfed00000", Problem::NotADevice),
            ("hpet:4K", Problem::NotADevice),
            ("0xfed00000:", Problem::NotADevice),
            (":4K", Problem::NotADevice),
            ("0xfed00000:4K:ro", Problem::NotADevice),
            ("0xfed00000:-4K", Problem::NotADevice),
            ("4G:4K", Problem::NotADevice),
            ("0xfed00000:0", Problem::Zero),
            ("0xfed00010:4K", Problem::NotPages),
            ("0xfed00000:4097", Problem::NotPages),
            ("0xfffffffffffff000:8K", Problem::Overflow),
            ("0x10000000000000000:4K", Problem::Overflow),
            ("0xfed00000:99999999999999999999", Problem::Overflow),
            ("0xfffffffffffff000:4K", Problem::BeyondWidth(39)),
            ("0x8000000000:4K", Problem::BeyondWidth(39)),
            ("0x7ffffff000:8K", Problem::BeyondWidth(39)),
        ] {
            let words = format!("passthrough={value}");
            assert_eq!(parse(&words), Err(problem), "{value}");
        }
    }

    #[test]
    fn there_is_room_for_so_many() {
        let one = |n: usize| format!("passthrough={:#x}:4K ", 0xfe00_0000 + n * 0x1000);
        let words = |count: usize| (0..count).map(one).collect::<String>();
        assert_eq!(
            parse(&words(PASSTHROUGH_MAX)).unwrap().len(),
            PASSTHROUGH_MAX
        );
        let most = PASSTHROUGH_MAX as u64;
        assert_eq!(
            parse(&words(PASSTHROUGH_MAX + 1)),
            Err(Problem::TooMany(most))
        );
    }
}
