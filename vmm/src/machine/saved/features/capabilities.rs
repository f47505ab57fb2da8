//! IA32_ARCH_CAPABILITIES (SDM volume 4 table 2-2): what a CPU has got against side channels, and what it is exposed to, bit by bit and by name.

#[cfg(test)]
#[path = "capabilities_test.rs"]
mod test;

/// What stands before the value in a list.
pub(super) const KEY: &str = "arch-capabilities-msr=";

/// From bit 0 on, `-` for none.
const NAMES: &str = "rdcl-no ibrs-all rsba skip-l1dfl-vmentry ssb-no mds-no pschange-mc-no tsx-ctrl taa-no mcu-control misc-package-ctls \
                     energy-filtering-ctl doitm sbdr-ssdp-no fbsdp-no psdp-no - fb-clear fb-clear-ctrl rrsba bhi-no xapic-disable-status \
                     - overclocking-status pbrsb-no gds-ctrl gds-no rfds-no rfds-clear";
/// No CPU's: KVM says so of a host that indirect target selection does not affect.
const ITS_NO: u32 = 62;

/// RSBA and RRSBA: what the guest takes precautions against where it is told of it. Each other bit tells of what the CPU has.
const EXPOSED: u64 = 1 << 2 | 1 << 19;

fn name(bit: u32) -> String {
    let known = if bit == ITS_NO { Some("its-no") } else { NAMES.split(' ').nth(bit as usize) };
    let name = known.filter(|name| *name != "-").map_or_else(|| bit.to_string(), str::to_owned);
    format!("arch-capabilities.{name}")
}

/// The names of the bits that are set.
fn names(bits: u64) -> Option<String> {
    let names: Vec<_> = (0..u64::BITS).filter(|bit| bits >> bit & 1 == 1).map(name).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// What a CPU would have to have that is to show `shown`, and has not.
fn lacking(shown: u64, here: u64) -> Option<String> {
    names(shown & !here & !EXPOSED)
}

/// What a CPU is exposed to that `shown` does not tell of.
fn untold(shown: u64, here: u64) -> Option<String> {
    names(here & !shown & EXPOSED)
}

/// Refuses a host with `here` to a guest that was shown `shown`, by the names of bits.
pub(in crate::machine::saved) fn compare(shown: u64, here: u64) -> Result<(), String> {
    if let Some(names) = lacking(shown, here) {
        return Err(format!("the guest was shown what it does not have: {names}"));
    }
    untold(shown, here).map_or(Ok(()), |names| Err(format!("it has what the guest was not told of: {names}")))
}

/// Whether a guest of a host with `here` could be shown `shown`.
///
/// # Errors
/// What the host would have to be.
pub(super) fn could_show(shown: u64, here: u64) -> Result<(), String> {
    let without = untold(shown, here).map(|names| format!("a CPU without {names}"));
    lacking(shown, here).or(without).map_or(Ok(()), Err)
}

/// What guests of both hosts can be shown.
pub(super) fn common(one: u64, other: u64) -> u64 {
    one & other | (one | other) & EXPOSED
}

/// A value as lists have it: hexadecimal behind `0x`.
pub(super) fn parse(value: &str) -> Option<u64> {
    u64::from_str_radix(value.strip_prefix("0x")?, 16).ok()
}

/// Why a word of a list is refused.
pub(super) fn no_value(word: &str) -> String {
    format!("`{word}`: the value of an MSR is a hexadecimal number of 64 bits behind 0x")
}
