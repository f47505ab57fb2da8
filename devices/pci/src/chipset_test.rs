use proptest::prelude::*;
use skep_state::Component;

use super::*;
use crate::testing::lpc_bridge;

fn read(function: &dyn ConfigFunction, offset: u16) -> u32 {
    function.config_read(offset)
}

fn write(function: &dyn ConfigFunction, offset: u16, lanes: u32, value: u32) -> Action {
    function.config_write(offset, lanes, value)
}

#[test]
fn ecam_is_where_pciexbar_says() {
    let mch = Mch::default();
    assert_eq!((mch.ecam(), read(&mch, 0x60)), (None, 0xb000_0000));
    assert_eq!(write(&mch, 0x60, u32::MAX, 0xe000_0001), Action::Relocate);
    assert_eq!(mch.ecam(), Some((0xe000_0000, 256 << 20)));
    assert_eq!(write(&mch, 0x64, u32::MAX, 0xffff_ffff), Action::Relocate);
    assert_eq!(mch.ecam(), Some((0xf_e000_0000, 256 << 20)));
    let _ = write(&mch, 0x64, u32::MAX, 0);
    let _ = write(&mch, 0x60, u32::MAX, 0xe800_0003);
    assert_eq!(mch.ecam(), Some((0xe800_0000, 128 << 20)));
    let _ = write(&mch, 0x60, u32::MAX, 0xec00_0005);
    assert_eq!(mch.ecam(), Some((0xec00_0000, 64 << 20)));
    let _ = write(&mch, 0x60, u32::MAX, 0xec00_0007);
    assert_eq!(mch.ecam(), None);
    mch.set_ecam(0xb000_0000);
    assert_eq!(mch.ecam(), Some((0xb000_0000, 256 << 20)));
    assert_eq!(write(&mch, 0x3c, u32::MAX, 1), Action::None);
    let state = mch.save();
    mch.reset();
    assert_eq!(mch.ecam(), None);
    mch.restore(&state).unwrap();
    assert_eq!(mch.ecam(), Some((0xb000_0000, 256 << 20)));
}

#[test]
fn smram_stays_locked_until_reset() {
    let mch = Mch::default();
    let smram = |mch: &Mch| read(mch, 0x9c) >> 8 & 0xffff;
    assert_eq!(smram(&mch), 0x0002);
    let _ = write(&mch, 0x9c, 0x0000_ff00, 0x4a00);
    assert_eq!(smram(&mch), 0x004a, "open");
    let _ = write(&mch, 0x9c, 0x0000_ff00, 0x5a00);
    assert_eq!(smram(&mch), 0x001a, "locking closes it");
    let _ = write(&mch, 0x9c, 0x00ff_ff00, 0x0087_4200);
    assert_eq!(smram(&mch), 0x001a);
    mch.reset();
    assert_eq!(smram(&mch), 0x0002);
}

#[test]
fn the_power_management_block_is_where_the_lpc_bridge_says() {
    let lpc = lpc_bridge(Some(0x600));
    assert_eq!((read(&lpc, 0x40), lpc.pm_base()), (0x601, Some(0x600)));
    assert_eq!(write(&lpc, 0x40, 0xffff, 0xb07f), Action::Relocate);
    assert_eq!((read(&lpc, 0x40), lpc.pm_base()), (0xb001, Some(0xb000)));
    assert_eq!(write(&lpc, 0x44, 0xff, 0), Action::Relocate);
    assert_eq!(lpc.pm_base(), None);
    lpc.reset();
    assert_eq!(lpc.pm_base(), Some(0x600));
    assert_eq!(lpc_bridge(None).pm_base(), None);
    assert_eq!((read(&lpc, 0x60), read(&lpc, 0x68)), (0x8080_8080, 0x8080_8080));
}

#[test]
fn they_say_who_they_are() {
    let generic = GenericHostBridge::default();
    assert_eq!((read(&generic, 0), read(&generic, 8) >> 8), (0x0008_1b36, 0x06_0000));
    assert_eq!((read(&Mch::default(), 8), read(&lpc_bridge(None), 8)), (0x0600_0002, 0x0601_0002));
    let _ = write(&generic, 4, u32::MAX, 0);
    assert_eq!(read(&generic, 4), 7, "it answers always");
}

#[test]
fn pam_says_what_is_shadowed() {
    let mch = Mch::default();
    let all = mch.shadow();
    assert_eq!(all.len(), 13);
    assert!(all.windows(2).all(|pair| pair[0].base + pair[0].size == pair[1].base));
    assert_eq!((all[0].base, all[12].base + all[12].size), (0xc_0000, 0x10_0000));
    assert!(all.iter().all(|segment| !segment.read && !segment.write));
    // The BIOS segment readable; 0xc4000 writable; 0xec000 both.
    assert_eq!(write(&mch, 0x90, 0xffff, 0x2010), Action::Relocate);
    assert_eq!(write(&mch, 0x94, 0x00ff_0000, 0x0030_0000), Action::Relocate);
    let states: Vec<_> = mch.shadow().iter().map(|segment| (segment.read, segment.write)).collect();
    assert_eq!(
        (states[12], states[1], states[11], states[0]),
        ((true, false), (false, true), (true, true), (false, false))
    );
    assert!(!mch.smram_is_open());
    assert_eq!(write(&mch, 0x9c, 0xff00, 0x4a00), Action::Relocate);
    assert!(mch.smram_is_open());
}

#[test]
fn firmware_that_needs_smm_is_noticed() {
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let mch = Mch::default();
    let count = asked.clone();
    mch.on_smm_wanted(move || {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    });
    let _ = write(&mch, 0x50, 0xffff, 0);
    let _ = write(&mch, 0x54, 0xffff, 0xffff);
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 0);
    let _ = write(&mch, 0x50, 0xffff, 0xffff);
    assert_eq!((asked.load(std::sync::atomic::Ordering::Relaxed), read(&mch, 0x50)), (1, 0));
}

/// One of them, with what the machine asks it.
#[derive(Debug)]
enum Any {
    Mch(Mch),
    Lpc(LpcBridge),
    Generic(GenericHostBridge),
}

/// A write: which register, which of its bytes, and what.
type Write = (u16, u32, u32);

fn writes(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Write>> {
    const KNOWN: [u16; 15] = [0x04, 0x3c, 0x40, 0x44, 0x50, 0x60, 0x64, 0x68, 0x80, 0x84, 0x90, 0x94, 0x9c, 0xa0, 0xf0];
    let register = prop_oneof![3 => proptest::sample::select(&KNOWN[..]), 1 => (0u16..0x40).prop_map(|at| 4 * at)];
    let lanes = proptest::sample::select(&[u32::MAX, 0xffff, 0xffff_0000, 0xff, 0xff00, 0xff_0000, 0xff00_0000][..]);
    let value = prop_oneof![any::<u32>(), Just(0), Just(u32::MAX), Just(0xb000_0001), Just(0x4a00)];
    proptest::collection::vec((register, lanes, value), count)
}

impl Any {
    fn new(which: usize) -> Self {
        match which {
            0 => Self::Mch(Mch::default()),
            1 => Self::Lpc(lpc_bridge(None)),
            2 => Self::Lpc(lpc_bridge(Some(0x600))),
            _ => Self::Generic(GenericHostBridge::default()),
        }
    }

    fn function(&self) -> &dyn ConfigFunction {
        match self {
            Self::Mch(function) => function,
            Self::Lpc(function) => function,
            Self::Generic(function) => function,
        }
    }

    fn component(&self) -> &dyn Component {
        match self {
            Self::Mch(function) => function,
            Self::Lpc(function) => function,
            Self::Generic(function) => function,
        }
    }

    /// Whatever can be seen of it: by the guest, and by the machine that follows it.
    fn seen(&self) -> String {
        let registers: Vec<_> = (0..0x40).map(|at| read(self.function(), 4 * at)).collect();
        match self {
            Self::Mch(mch) => {
                format!("{registers:x?} {:x?} {:x?} {}", mch.ecam(), mch.shadow(), mch.smram_is_open())
            }
            Self::Lpc(lpc) => format!("{registers:x?} {:x?}", lpc.pm_base()),
            Self::Generic(_) => format!("{registers:x?}"),
        }
    }

    fn step(&self, &(register, lanes, value): &Write) -> String {
        let action = write(self.function(), register, lanes, value);
        format!("{action:?} {}", self.seen())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Any state that a guest can bring one of them to, restored in one that was in another, with what it routes, shadows and locks.
    #[test]
    fn saved_and_restored_behaves_the_same(
        which in 0usize..4,
        before in writes(0..60),
        other in writes(0..30),
        after in writes(1..60),
    ) {
        let (one, two) = (Any::new(which), Any::new(which));
        before.iter().for_each(|write| drop(one.step(write)));
        other.iter().for_each(|write| drop(two.step(write)));
        let record = one.component().save_record();
        two.component().restore_record(&record).unwrap();
        prop_assert_eq!(two.component().save_record(), record, "what is restored is what is saved");
        prop_assert_eq!(two.seen(), one.seen());
        for write in &after {
            prop_assert_eq!(one.step(write), two.step(write), "{:x?}", write);
        }
        prop_assert_eq!(one.component().save_record(), two.component().save_record());
        one.component().reset_component();
        prop_assert_eq!(one.seen(), Any::new(which).seen(), "a reset is the power-on state");
    }
}
