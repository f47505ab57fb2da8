//! Registers between KVM's form and skep's.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use skep_hypervisor::x86_64::{DescriptorTable, GeneralRegisters, Segment, SystemRegisters};

#[cfg(test)]
#[path = "convert_test.rs"]
mod test;

macro_rules! same_names {
    ($($name:ident)*) => {
        pub(super) fn general(regs: &kvm_regs) -> GeneralRegisters {
            GeneralRegisters { $($name: regs.$name),* }
        }

        pub(super) fn to_regs(general: &GeneralRegisters) -> kvm_regs {
            kvm_regs { $($name: general.$name),* }
        }
    };
}

same_names!(rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags);

fn segment(from: &kvm_segment) -> Segment {
    let bit = |value: u8, at: u32| u16::from(value & 1) << at;
    let attributes = u16::from(from.type_ & 0xf)
        | bit(from.s, 4)
        | u16::from(from.dpl & 3) << 5
        | bit(from.present, 7)
        | bit(from.avl, 12)
        | bit(from.l, 13)
        | bit(from.db, 14)
        | bit(from.g, 15);
    Segment { selector: from.selector, base: from.base, limit: from.limit, attributes, unusable: from.unusable != 0 }
}

fn to_segment(from: &Segment) -> kvm_segment {
    let bits = |at: u32, mask: u16| (from.attributes >> at & mask) as u8;
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: bits(0, 0xf),
        present: bits(7, 1),
        dpl: bits(5, 3),
        db: bits(14, 1),
        s: bits(4, 1),
        l: bits(13, 1),
        g: bits(15, 1),
        avl: bits(12, 1),
        unusable: u8::from(from.unusable),
        ..Default::default()
    }
}

fn table(from: &kvm_dtable) -> DescriptorTable {
    DescriptorTable { base: from.base, limit: from.limit }
}

fn to_table(from: &DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: from.base, limit: from.limit, ..Default::default() }
}

/// All but the APIC base, and interrupts, which [`kvm_bindings::kvm_vcpu_events`] has.
pub(super) fn system(from: &kvm_sregs) -> SystemRegisters {
    SystemRegisters {
        cs: segment(&from.cs),
        ds: segment(&from.ds),
        es: segment(&from.es),
        fs: segment(&from.fs),
        gs: segment(&from.gs),
        ss: segment(&from.ss),
        tr: segment(&from.tr),
        ldt: segment(&from.ldt),
        gdt: table(&from.gdt),
        idt: table(&from.idt),
        cr0: from.cr0,
        cr2: from.cr2,
        cr3: from.cr3,
        cr4: from.cr4,
        cr8: from.cr8,
        efer: from.efer,
    }
}

/// With the APIC base, which KVM sets by the same call.
pub(super) fn to_sregs(from: &SystemRegisters, apic_base: u64) -> kvm_sregs {
    kvm_sregs {
        cs: to_segment(&from.cs),
        ds: to_segment(&from.ds),
        es: to_segment(&from.es),
        fs: to_segment(&from.fs),
        gs: to_segment(&from.gs),
        ss: to_segment(&from.ss),
        tr: to_segment(&from.tr),
        ldt: to_segment(&from.ldt),
        gdt: to_table(&from.gdt),
        idt: to_table(&from.idt),
        cr0: from.cr0,
        cr2: from.cr2,
        cr3: from.cr3,
        cr4: from.cr4,
        cr8: from.cr8,
        efer: from.efer,
        apic_base,
        interrupt_bitmap: [0; 4],
    }
}

/// Registers as text, for a log.
pub(super) fn dump(general: &GeneralRegisters, system: &SystemRegisters) -> String {
    let (g, s) = (general, system);
    let mut text = format!(
        "rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}\nrsi {:016x} rdi {:016x} rsp {:016x} rbp {:016x}\n\
         r8  {:016x} r9  {:016x} r10 {:016x} r11 {:016x}\nr12 {:016x} r13 {:016x} r14 {:016x} r15 {:016x}\n\
         rip {:016x} rflags {:08x}\ncr0 {:08x} cr2 {:016x} cr3 {:016x} cr4 {:08x} cr8 {:x} efer {:x}\n",
        g.rax,
        g.rbx,
        g.rcx,
        g.rdx,
        g.rsi,
        g.rdi,
        g.rsp,
        g.rbp,
        g.r8,
        g.r9,
        g.r10,
        g.r11,
        g.r12,
        g.r13,
        g.r14,
        g.r15,
        g.rip,
        g.rflags,
        s.cr0,
        s.cr2,
        s.cr3,
        s.cr4,
        s.cr8,
        s.efer
    );
    let segments = [
        ("cs", s.cs),
        ("ds", s.ds),
        ("es", s.es),
        ("fs", s.fs),
        ("gs", s.gs),
        ("ss", s.ss),
        ("tr", s.tr),
        ("ldt", s.ldt),
    ];
    for (name, segment) in segments {
        let unusable = if segment.unusable { " unusable" } else { "" };
        text += &format!(
            "{name:3} {:04x} base {:016x} limit {:08x} attributes {:04x}{unusable}\n",
            segment.selector, segment.base, segment.limit, segment.attributes
        );
    }
    for (name, table) in [("gdt", s.gdt), ("idt", s.idt)] {
        text += &format!("{name} base {:016x} limit {:04x}\n", table.base, table.limit);
    }
    text
}
