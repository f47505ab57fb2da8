//! The XSAVE area, split into its components (SDM 1 chapter 13).
//!
//! KVM gives and takes the standard form, laid out as the host's CPU does it; layouts differ between vendors, so the state names components.
//! Two of them share the legacy region: component 0, x87, is its bytes 0 to 23 (control and status) and 32 to 159 (registers), component 1, SSE,
//! is bytes 24 to 27 (MXCSR) and 160 to 415 (XMM0 to XMM15). A component in its initial state is left out.

use skep_hypervisor::x86_64::{Cpuid, XsaveComponent};

#[cfg(test)]
#[path = "xsave_test.rs"]
mod test;

/// XSTATE_BV, in the header behind the legacy region (SDM 1 section 13.4.2).
const XSTATE_BV: usize = 512;
/// The legacy region and the header.
const MINIMUM: usize = 576;
/// x87's and SSE's parts of the legacy region, each as ranges (SDM 1 table 10-2).
const LEGACY: [[(usize, usize); 2]; 2] = [[(0, 24), (32, 160)], [(24, 28), (160, 416)]];
/// The initial values that are not 0: x87's control word and MXCSR (SDM 1 section 13.6), by place.
const INITIAL: [(usize, &[u8]); 2] = [(0, &[0x7f, 0x03]), (24, &[0x80, 0x1f])];

/// Where a component lies: one range, or two.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Component {
    number: u8,
    ranges: Vec<(usize, usize)>,
}

impl Component {
    fn size(&self) -> usize {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }
}

/// How this host's CPU lays the area out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    components: Vec<Component>,
    size: usize,
}

/// Why components can't be put into an area.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Misfit {
    pub(super) component: u8,
    pub(super) reason: String,
}

impl Layout {
    /// By CPUID leaf 0xd as KVM supports it; `size` is that of KVM's area.
    pub(super) fn new(cpuid: &Cpuid, size: usize) -> Self {
        let legacy = (0..).zip(LEGACY).map(|(number, ranges)| Component { number, ranges: ranges.to_vec() });
        let supervisor = 1;
        let extended = (2..63).filter_map(|number| {
            let leaf = cpuid.get(0xd, u32::from(number)).filter(|leaf| leaf.indexed && leaf.ecx & supervisor == 0)?;
            let (start, length) = (leaf.ebx as usize, leaf.eax as usize);
            let end = start.checked_add(length).filter(|end| *end <= size)?;
            (length > 0 && start >= MINIMUM).then(|| Component { number, ranges: vec![(start, end)] })
        });
        Self { components: legacy.chain(extended).collect(), size: size.max(MINIMUM) }
    }

    /// The size of KVM's area in bytes.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// An area with everything in its initial state.
    fn initial(&self) -> Vec<u8> {
        let mut area = vec![0; self.size];
        for (place, bytes) in INITIAL {
            area[place..place + bytes.len()].copy_from_slice(bytes);
        }
        area
    }

    /// The components of `area` that are not in their initial state. KVM fills those that XSTATE_BV leaves out with it.
    pub(super) fn split(&self, area: &[u8]) -> Vec<XsaveComponent> {
        let initial = self.initial();
        let gather = |from: &[u8], component: &Component| -> Vec<u8> {
            component
                .ranges
                .iter()
                .flat_map(|(start, end)| from.get(*start..*end).unwrap_or_default())
                .copied()
                .collect()
        };
        let saved = self.components.iter().filter_map(|component| {
            let data = gather(area, component);
            (data != gather(&initial, component)).then_some(XsaveComponent { number: component.number, data })
        });
        saved.collect()
    }

    /// The area that holds these components, and the rest in its initial state.
    pub(super) fn join(&self, components: &[XsaveComponent]) -> Result<Vec<u8>, Misfit> {
        let mut area = self.initial();
        let mut present = 0_u64;
        for XsaveComponent { number, data } in components {
            let misfit = |reason: String| Misfit { component: *number, reason };
            let here = self.components.iter().find(|component| component.number == *number);
            let here = here.ok_or_else(|| misfit("this host's CPU does not have it".to_owned()))?;
            if here.size() != data.len() {
                return Err(misfit(format!("it has {} bytes, and {} on this host", data.len(), here.size())));
            }
            let mut rest = &data[..];
            for (start, end) in &here.ranges {
                let (part, after) = rest.split_at(end - start);
                area[*start..*end].copy_from_slice(part);
                rest = after;
            }
            present |= 1 << number;
        }
        area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&present.to_le_bytes());
        Ok(area)
    }
}
