use proptest::prelude::*;
use skep_hypervisor::x86_64::CpuidEntry;

use super::*;

/// AVX, a supervisor component, PKRU where Intel has it, and AMX's tiles.
fn layout(pkru_at: u32) -> Layout {
    let leaf = |subleaf, eax, ebx, ecx| CpuidEntry { leaf: 0xd, subleaf, indexed: true, eax, ebx, ecx, edx: 0 };
    let leaves = [(2, 256, 576, 0), (8, 128, 0, 1), (9, 8, pkru_at, 0), (18, 8192, 2816, 0)];
    Layout::new(&Cpuid(leaves.map(|(n, eax, ebx, ecx)| leaf(n, eax, ebx, ecx)).to_vec()), 11008)
}

fn numbers(components: &[XsaveComponent]) -> Vec<u8> {
    components.iter().map(|component| component.number).collect()
}

#[test]
fn the_initial_state_has_no_components() {
    let layout = layout(2688);
    let area = layout.join(&[]).unwrap();
    assert_eq!(area.len(), 11008);
    assert_eq!((area[0], area[1], area[24], area[25]), (0x7f, 0x03, 0x80, 0x1f));
    assert_eq!(layout.split(&area), []);
}

#[test]
fn what_differs_is_found_by_content_and_not_by_the_header() {
    let layout = layout(2688);
    let mut area = layout.join(&[]).unwrap();
    area[XSTATE_BV] = 0xff;
    assert_eq!(layout.split(&area), [], "marked as in use, and in the initial state all the same");
    area[26] = 1;
    area[600] = 2;
    area[2688] = 3;
    area[11007] = 4;
    // MXCSR_MASK is the host's, not the guest's.
    area[28] = 0xff;
    assert_eq!(numbers(&layout.split(&area)), [1, 2, 9, 18]);
}

#[test]
fn components_move_between_layouts() {
    let (intel, amd) = (layout(2688), layout(2440));
    let components = vec![XsaveComponent { number: 9, data: vec![1, 2, 3, 4, 0, 0, 0, 0] }];
    let area = amd.join(&components).unwrap();
    assert_eq!((area[2440], area[XSTATE_BV], area[XSTATE_BV + 1]), (1, 0, 2));
    assert_eq!(intel.split(&intel.join(&amd.split(&area)).unwrap()), components);
}

#[test]
fn what_does_not_fit_is_named() {
    let misfit = |number, length| layout(2688).join(&[XsaveComponent { number, data: vec![1; length] }]).unwrap_err();
    assert!(misfit(5, 64).reason.contains("does not have it"));
    assert!(misfit(8, 128).reason.contains("does not have it"), "a supervisor component is not in the area");
    let short = misfit(2, 255);
    assert_eq!((short.component, short.reason.as_str()), (2, "it has 255 bytes, and 256 on this host"));
}

proptest! {
    #[test]
    fn split_and_join_are_inverse(x87: [u8; 24], mxcsr: [u8; 4], xmm: [u8; 32], avx: [u8; 32]) {
        let layout = layout(2688);
        let mut area = layout.join(&[]).unwrap();
        area[..24].copy_from_slice(&x87);
        area[24..28].copy_from_slice(&mxcsr);
        area[160..192].copy_from_slice(&xmm);
        area[576..608].copy_from_slice(&avx);
        let components = layout.split(&area);
        let mut joined = layout.join(&components).unwrap();
        prop_assert_eq!(layout.split(&joined), components);
        joined[XSTATE_BV..XSTATE_BV + 8].fill(0);
        prop_assert_eq!(joined, area);
    }
}
