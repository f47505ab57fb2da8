use skep_config::Size;
use skep_hypervisor::fake::Fake;
use skep_hypervisor::{Aarch64, X86_64};

use super::*;

const GIB: u64 = 1 << 30;

/// Where the layout of a machine with `gib` of memory ends on a host of `bits`.
fn end<A: Platform>(gib: u64, bits: u8) -> Result<u64, String>
where
    Fake<A>: Hypervisor<A> + Default,
{
    let mut fake = Fake::<A>::default();
    fake.capabilities.address_bits = bits;
    let mut config = Config::new(A::KIND);
    config.memory.size = Size(gib * GIB);
    let rows = Machine::<A>::layout(&config, &fake).map_err(|error| error.to_string())?;
    Ok(rows.iter().map(|row| row.region.end()).max().unwrap())
}

#[test]
fn a_machine_has_the_address_bits_that_its_host_has() {
    for (bits, fits) in [(36, 8), (39, 64), (46, 20 << 10)] {
        for last in [end::<X86_64>(fits, bits), end::<Aarch64>(fits, bits)] {
            let last = last.unwrap_or_else(|error| panic!("{fits} GiB on {bits} bits: {error}"));
            assert!(last > fits * GIB && last <= 1 << bits, "{last:#x} of {bits} bits");
        }
    }
}

#[test]
fn memory_beyond_the_hosts_bits_is_refused_with_both_figures() {
    for refusal in [end::<X86_64>(64, 36), end::<Aarch64>(64, 36)] {
        let refusal = refusal.unwrap_err();
        assert!(refusal.contains("65536M") && refusal.contains("36 guest address bits"), "{refusal}");
    }
}
