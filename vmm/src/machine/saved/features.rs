//! Which CPU features a guest is shown, by name (SDM volume 2A, CPUID; APM volume 3, appendix E; KVM's own leaves): compared with a host's, limited to a
//! list, and what several hosts have in common.
//!
//! A list is names between spaces, with figures (`phys-bits=46`) and the value of IA32_ARCH_CAPABILITIES ([`capabilities`]), without which
//! `arch-capabilities` is not shown. A bit without a name is told by its place: `0x7.0.edx.5`. Nothing of CPUID is left out:
//! what [`leaves`] calls features is compared and limited by bits and figures, sizes and places must be the same, and the rest is not about features.

pub(super) mod capabilities;
mod words;

use skep_arch::x86_64::leaves::{self, Register};
use skep_hypervisor::x86_64::{Cpuid, CpuidEntry, VcpuConfig};
use words::{Bits, FIGURES, Figure, WORDS, Word};

#[cfg(test)]
#[path = "features_test.rs"]
mod test;

const REGISTERS: [&str; 4] = ["eax", "ebx", "ecx", "edx"];

/// Whether there are several processors: the topology's.
const HT: (usize, u32) = (1, 1 << 28);
/// Whether there is IA32_ARCH_CAPABILITIES.
const ARCH_CAPABILITIES: (usize, u32) = (4, 1 << 29);

/// Places among [`FIGURES`].
const PHYS_BITS: usize = 0;
const LINEAR_BITS: usize = 1;
const GUEST_PHYS_BITS: usize = 2;

/// Bits of physical addresses that a guest is shown, where it is told.
pub(in crate::machine) fn address_bits(cpuid: &Cpuid) -> Option<u8> {
    Some(figure(cpuid, FIGURES[PHYS_BITS])).filter(|bits| *bits != 0)
}

/// What the levels of the x86-64 psABI (section 3.1.1) promise, the first with what a 64-bit kernel stands on; and, behind `?`, what KVM provides itself on most
/// hosts.
const LEVELS: [(&str, &str); 4] = [
    (
        "x86-64-v1",
        "fpu tsc msr pae cmpxchg8b apic mtrr pge cmov pat clflush mmx fxsr sse sse2 syscall nx long-mode \
         ?sep ?x2apic ?hypervisor ?tsc-deadline ?tsc-adjust ?kvmclock-old ?kvmclock ?kvm-steal-time ?kvm-pv-eoi ?kvm-pv-unhalt \
         ?kvm-tlb-flush ?kvm-pv-ipi ?kvm-poll-control ?kvm-sched-yield ?kvm-msi-ext-dest-id ?kvmclock-stable",
    ),
    ("x86-64-v2", "cmpxchg16b lahf64 popcnt sse3 sse4.1 sse4.2 ssse3"),
    ("x86-64-v3", "avx avx2 bmi1 bmi2 f16c fma lzcnt movbe xsave xsave-x87 xsave-sse xsave-avx"),
    ("x86-64-v4", "avx512f avx512bw avx512cd avx512dq avx512vl xsave-avx512 xsave-zmm xsave-zmm16"),
];

fn registers(entry: Option<&CpuidEntry>) -> [u32; 4] {
    entry.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
}

fn register(entry: &mut CpuidEntry, register: usize) -> &mut u32 {
    let [a, b, c, d] = [&mut entry.eax, &mut entry.ebx, &mut entry.ecx, &mut entry.edx];
    [a, b, c, d][register]
}

fn bits(cpuid: &Cpuid) -> Bits {
    WORDS.map(|word| {
        let (leaf, subleaf, register, _) = word;
        registers(cpuid.get(leaf, subleaf))[register] & words::features(word)
    })
}

/// The field's value, which has a meaning where it is not 0.
fn figure(cpuid: &Cpuid, (_, _, leaf, register, shift): Figure) -> u8 {
    (registers(cpuid.get(leaf, 0))[register] >> shift) as u8
}

fn set_figure(cpuid: &mut Cpuid, (_, _, leaf, at, shift): Figure, value: u8) {
    if let Some(entry) = cpuid.get_mut(leaf, 0) {
        let register = register(entry, at);
        *register = *register & !(0xff << shift) | u32::from(value) << shift;
    }
}

/// What a guest may rely on: 0 in the field of those that can be mapped stands for those of addresses.
fn figures(cpuid: &Cpuid) -> [u8; FIGURES.len()] {
    let mut figures = FIGURES.map(|of| figure(cpuid, of));
    if figures[GUEST_PHYS_BITS] == 0 {
        figures[GUEST_PHYS_BITS] = figures[PHYS_BITS];
    }
    figures
}

fn vendor(cpuid: &Cpuid) -> String {
    let [_, b, c, d] = registers(cpuid.get(0, 0));
    String::from_utf8_lossy(&[b, d, c].map(u32::to_le_bytes).concat()).into_owned()
}

fn place(leaf: u32, subleaf: u32, register: usize) -> String {
    format!("{leaf:#x}.{subleaf}.{}", REGISTERS[register])
}

/// A bit by its place, and by its name.
fn names_of((leaf, subleaf, register, names): &Word, bit: u32) -> (String, Option<&'static str>) {
    let known = names.split(' ').nth(bit as usize).filter(|name| *name != "-");
    (format!("{}.{bit}", place(*leaf, *subleaf, *register)), known)
}

fn name(word: &Word, bit: u32) -> String {
    let (place, name) = names_of(word, bit);
    name.map_or(place, str::to_owned)
}

/// The names of the bits that are set.
fn names(bits: &Bits) -> Vec<String> {
    let of = |(word, value): (&Word, &u32)| {
        let value = *value;
        let word = *word;
        (0..32).filter(move |bit| value >> bit & 1 == 1).map(move |bit| name(&word, bit)).collect::<Vec<_>>()
    };
    WORDS.iter().zip(bits).flat_map(of).collect()
}

/// Those of `left` that are not in `right`.
fn without(left: &Bits, right: &Bits) -> Bits {
    std::array::from_fn(|at| left[at] & !right[at])
}

/// Refuses a host that does not have what the guest was shown: its vendor, and each feature, by name.
pub(super) fn compare(saved: &Cpuid, here: &Cpuid) -> Result<(), String> {
    let vendors = (vendor(saved), vendor(here));
    if vendors.0 != vendors.1 {
        return Err(format!("the guest was shown one of `{}`, and this is one of `{}`", vendors.0, vendors.1));
    }
    let mut lacking = names(&without(&bits(saved), &bits(here)));
    lacking.extend(saved.0.iter().flat_map(unknown));
    if !lacking.is_empty() {
        return Err(format!("the guest was shown what it does not have: {}", lacking.join(", ")));
    }
    let both = figures(saved).into_iter().zip(figures(here));
    if let Some(((_, what, ..), (was, is))) = FIGURES.iter().zip(both).find(|(_, (was, is))| is < was) {
        return Err(format!("the guest was shown {was} {what}, and it has {is}"));
    }
    saved.0.iter().try_for_each(|entry| same(entry, here))
}

/// What is not 0 where this version shows a guest nothing: a later one did.
fn unknown(entry: &CpuidEntry) -> Vec<String> {
    let known = leaves::registers(entry).unwrap_or([Register::Hidden; 4]);
    let values = registers(Some(entry)).into_iter().zip(known).enumerate();
    let shown = values.filter(|(_, (value, known))| *value != 0 && *known == Register::Hidden);
    shown.map(|(register, _)| place(entry.leaf, entry.subleaf, register)).collect()
}

/// Refuses a host with other sizes and places than the guest was told.
fn same(entry: &CpuidEntry, here: &Cpuid) -> Result<(), String> {
    let Some(known) = leaves::registers(entry) else { return Ok(()) };
    let both = registers(Some(entry)).into_iter().zip(registers(here.get(entry.leaf, entry.subleaf)));
    let differs = |(known, (was, is)): &(Register, (u32, u32))| *known == Register::Same && *was != 0 && was != is;
    match known.into_iter().zip(both).enumerate().find(|(_, register)| differs(register)) {
        None => Ok(()),
        Some((register, (_, (was, is)))) => {
            let place = place(entry.leaf, entry.subleaf, register);
            Err(format!("the guest was shown {was:#x} in CPUID {place}, and it has {is:#x}"))
        }
    }
}

/// A list of features.
#[derive(Default)]
pub(in crate::machine) struct List {
    vendor: Option<String>,
    needed: Bits,
    /// Shown where they are there.
    welcome: Bits,
    /// How far what a guest is shown goes at the most, and at the least: of each of [`FIGURES`], 0 for as far as the host's.
    figures: [u8; FIGURES.len()],
    /// What a guest reads in IA32_ARCH_CAPABILITIES, where the list names the feature.
    capabilities: Option<u64>,
}

impl List {
    /// A level's.
    pub(in crate::machine) fn level(level: &str) -> Option<Self> {
        let at = LEVELS.iter().position(|(name, _)| *name == level)?;
        let text: Vec<_> = LEVELS.iter().take(at + 1).map(|(_, names)| *names).collect();
        Self::parse(&text.join(" ")).ok()
    }

    /// What `text` names.
    ///
    /// # Errors
    /// The word that is no feature.
    pub(in crate::machine) fn parse(text: &str) -> Result<Self, String> {
        let mut list = Self::default();
        for word in text.split_whitespace() {
            if let Some(vendor) = word.strip_prefix("vendor=") {
                list.vendor = Some(vendor.to_owned());
                continue;
            }
            if let Some(value) = word.strip_prefix(capabilities::KEY) {
                list.capabilities = Some(capabilities::parse(value).ok_or_else(|| capabilities::no_value(word))?);
                continue;
            }
            if let Some((name, value)) = word.split_once('=') {
                let known = FIGURES.iter().zip(&mut list.figures).find(|((known, ..), _)| *known == name);
                let (_, figure) =
                    known.ok_or_else(|| format!("`{name}` is no figure of a CPU that is known by name"))?;
                *figure = value.parse().map_err(|_| format!("`{word}`: a figure is a number from 0 to 255"))?;
                continue;
            }
            let plain = word.strip_prefix('?').unwrap_or(word);
            let bits = if plain == word { &mut list.needed } else { &mut list.welcome };
            let found = WORDS.iter().zip(bits).find_map(|(of, bits)| {
                let is = |bit: &u32| {
                    let (place, name) = names_of(of, *bit);
                    words::features(*of) >> bit & 1 == 1 && (name == Some(plain) || place == plain)
                };
                *bits |= 1 << (0..32).find(is)?;
                Some(())
            });
            found.ok_or_else(|| format!("`{plain}` is no CPU feature that is known by name"))?;
        }
        Ok(list.settled())
    }

    /// Without IA32_ARCH_CAPABILITIES where the feature alone is named, or what is in it alone.
    fn settled(mut self) -> Self {
        let (word, bit) = ARCH_CAPABILITIES;
        let is_named = (self.needed[word] | self.welcome[word]) & bit != 0;
        self.capabilities = self.capabilities.filter(|_| is_named);
        if self.capabilities.is_none() {
            self.needed[word] &= !bit;
            self.welcome[word] &= !bit;
        }
        self
    }

    /// Lets a guest be shown these alone.
    ///
    /// # Errors
    /// What this CPU does not have.
    pub(in crate::machine) fn limit(&self, vcpu: &mut VcpuConfig) -> Result<(), String> {
        self.limit_cpuid(&mut vcpu.cpuid)?;
        let here = vcpu.arch_capabilities.unwrap_or_default();
        vcpu.arch_capabilities = self.capabilities.filter(|_| vcpu.cpuid.shows_arch_capabilities());
        vcpu.arch_capabilities.map_or(Ok(()), |shown| capabilities::could_show(shown, here))
    }

    fn limit_cpuid(&self, cpuid: &mut Cpuid) -> Result<(), String> {
        if self.vendor.as_ref().is_some_and(|wanted| *wanted != vendor(cpuid)) {
            return Err(format!("a CPU of {}", self.vendor.as_deref().unwrap_or_default()));
        }
        let mut needed = self.needed;
        needed[HT.0] &= !HT.1;
        let mut lacking = names(&without(&needed, &bits(cpuid)));
        let here = figures(cpuid);
        let figures = FIGURES.iter().zip(self.figures.into_iter().zip(here));
        lacking.extend(
            figures
                .filter(|(_, (wanted, is))| is < wanted)
                .map(|((_, what, ..), (wanted, is))| format!("{wanted} {what} (it has {is})")),
        );
        if !lacking.is_empty() {
            return Err(lacking.join(", "));
        }
        cpuid.0.retain(|entry| leaves::registers(entry).is_some());
        for entry in &mut cpuid.0 {
            let known = leaves::registers(entry).unwrap_or([Register::Hidden; 4]);
            for at in (0..4).filter(|at| matches!(known[*at], Register::Features | Register::Hidden)) {
                *register(entry, at) &= self.kept(&needed, entry.leaf, entry.subleaf, at);
            }
        }
        self.limit_figures(cpuid);
        limit_xsave(cpuid);
        // What goes with a feature goes where it does.
        let has =
            |leaf, subleaf, register: usize, bit: u32| registers(cpuid.get(leaf, subleaf))[register] >> bit & 1 == 1;
        let (tiles, avx10, eraps) = (has(7, 0, 3, 24), has(7, 1, 3, 19), has(0x8000_0021, 0, 0, 24));
        cpuid.0.retain(|entry| match entry.leaf {
            0x1d | 0x1e => tiles,
            0x24 => avx10,
            _ => true,
        });
        if let Some(entry) = cpuid.get_mut(0x8000_0021, 0).filter(|_| !eraps) {
            entry.ebx = 0;
        }
        Ok(())
    }

    /// What is left of a register: what is in no list is not shown.
    fn kept(&self, needed: &Bits, leaf: u32, subleaf: u32, register: usize) -> u32 {
        let at = WORDS.iter().position(|word| (word.0, word.1, word.2) == (leaf, subleaf, register));
        let bits = at.map_or(0, |at| needed[at] | self.welcome[at] | if at == HT.0 { HT.1 } else { 0 });
        let of_figures = FIGURES.iter().filter(|(_, _, of, at, _)| (*of, 0, *at) == (leaf, subleaf, register));
        of_figures.fold(bits, |bits, (.., shift)| bits | 0xff << shift)
    }

    fn limit_figures(&self, cpuid: &mut Cpuid) {
        /// Of linear addresses, without a fifth level of page tables (SDM 3A section 4.5).
        const FOUR_LEVELS: u8 = 48;
        let mut most = self.figures;
        if registers(cpuid.get(7, 0))[2] >> 16 & 1 == 0 {
            most[LINEAR_BITS] = FOUR_LEVELS.min(figure(cpuid, FIGURES[LINEAR_BITS]));
        }
        let here = figures(cpuid);
        for (at, of) in FIGURES.into_iter().enumerate() {
            if most[at] != 0 && most[at] < here[at] {
                set_figure(cpuid, of, most[at]);
            }
        }
    }

    /// What is in both.
    pub(in crate::machine) fn common(mut self, other: &Self) -> Result<Self, String> {
        if self.vendor != other.vendor {
            return Err("the hosts' CPUs are of different vendors".to_owned());
        }
        self.needed = without(&self.needed, &without(&self.needed, &other.needed));
        // 0 is what nobody has told of.
        self.figures = std::array::from_fn(|at| self.figures[at].min(other.figures[at]));
        let both = self.capabilities.zip(other.capabilities);
        self.capabilities = both.map(|(one, other)| capabilities::common(one, other));
        Ok(self.settled())
    }

    /// All that a guest can be shown.
    pub(in crate::machine) fn of(vcpu: &VcpuConfig) -> Self {
        let VcpuConfig { cpuid, arch_capabilities: capabilities, .. } = vcpu;
        let (vendor, figures, welcome) = (Some(vendor(cpuid)), figures(cpuid), Bits::default());
        Self { vendor, needed: bits(cpuid), welcome, figures, capabilities: *capabilities }.settled()
    }

    /// As it is read.
    pub(in crate::machine) fn text(&self) -> String {
        let figures = FIGURES.iter().zip(self.figures).filter(|(_, value)| *value != 0);
        let figures: String = figures.map(|((name, ..), value)| format!(" {name}={value}")).collect();
        let vendor = self.vendor.as_deref().unwrap_or_default();
        let capabilities =
            self.capabilities.map(|value| format!(" {}{value:#x}", capabilities::KEY)).unwrap_or_default();
        format!("vendor={vendor}{figures}{capabilities}\n{}\n", names(&self.needed).join(" "))
    }
}

/// Lets leaf 0xd tell of the components alone that are left (SDM 1 section 13.2).
fn limit_xsave(cpuid: &mut Cpuid) {
    const LEAF: u32 = 0xd;
    let has_xsave = registers(cpuid.get(1, 0))[2] >> 26 & 1 == 1;
    let xcr0 = registers(cpuid.get(LEAF, 0))[0];
    let [features, _, supervisor, _] = registers(cpuid.get(LEAF, 1));
    let supervisor = if features >> 3 & 1 == 1 { supervisor } else { 0 };
    let left = |entry: &CpuidEntry| match entry.subleaf {
        0 | 1 => true,
        component => (xcr0 | supervisor).checked_shr(component).unwrap_or(0) & 1 == 1,
    };
    cpuid.0.retain(|entry| entry.leaf != LEAF || has_xsave && left(entry));
    if let Some(entry) = cpuid.get_mut(LEAF, 1) {
        entry.ecx = supervisor;
    }
    // The legacy region and the header, and where the last component ends.
    let ends = (2..32).filter(|component| xcr0 >> component & 1 == 1).map(|component| {
        let [size, offset, ..] = registers(cpuid.get(LEAF, component));
        size.saturating_add(offset)
    });
    let size = ends.fold(576, u32::max);
    if let Some(entry) = cpuid.get_mut(LEAF, 0) {
        (entry.ebx, entry.ecx) = (entry.ebx.min(size), size);
    }
}
