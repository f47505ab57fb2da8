//! CPUID as data.

/// One leaf of CPUID (SDM volume 2A, CPUID).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuidEntry {
    /// EAX on the way in.
    pub leaf: u32,
    /// ECX on the way in, where `indexed`.
    pub subleaf: u32,
    /// Whether the leaf has subleaves: ECX counts.
    pub indexed: bool,
    /// EAX on the way out.
    pub eax: u32,
    /// EBX on the way out.
    pub ebx: u32,
    /// ECX on the way out.
    pub ecx: u32,
    /// EDX on the way out.
    pub edx: u32,
}

/// Everything that CPUID shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cpuid(pub Vec<CpuidEntry>);

impl Cpuid {
    /// The entry of a leaf: of subleaf `subleaf` where the leaf is indexed.
    #[must_use]
    pub fn get(&self, leaf: u32, subleaf: u32) -> Option<&CpuidEntry> {
        self.0.iter().find(|e| e.leaf == leaf && (!e.indexed || e.subleaf == subleaf))
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, leaf: u32, subleaf: u32) -> Option<&mut CpuidEntry> {
        self.0.iter_mut().find(|e| e.leaf == leaf && (!e.indexed || e.subleaf == subleaf))
    }

    /// Puts an entry in, in place of the one of its leaf and subleaf.
    pub fn set(&mut self, entry: CpuidEntry) {
        match self.0.iter_mut().find(|e| e.leaf == entry.leaf && (!entry.indexed || e.subleaf == entry.subleaf)) {
            Some(old) => *old = entry,
            None => self.0.push(entry),
        }
    }

    /// Whether it shows that there is IA32_ARCH_CAPABILITIES (leaf 7, EDX bit 29).
    #[must_use]
    pub fn shows_arch_capabilities(&self) -> bool {
        self.get(7, 0).is_some_and(|leaf| leaf.edx & 1 << 29 != 0)
    }

    /// Takes every subleaf of a leaf out.
    pub fn remove(&mut self, leaf: u32) {
        self.0.retain(|e| e.leaf != leaf);
    }
}
