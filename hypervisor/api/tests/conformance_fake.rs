//! The conformance suite of both architectures on the fake backend: what shows that the suite and the fake agree, on any host.

mod x86_64 {
    use skep_hypervisor::conformance::{Lacks, Subject};
    use skep_hypervisor::fake::Fake;
    use skep_hypervisor::{Powers, X86_64};

    pub(crate) fn subject(powers: Powers) -> Subject<X86_64> {
        Subject { hypervisor: Box::new(Fake::<X86_64>::new()), probe: &[], powers, lacks: Lacks::empty() }
    }

    skep_hypervisor::conformance_suite!(x86_64: crate::x86_64::subject);
}

mod aarch64 {
    use skep_hypervisor::conformance::{Lacks, Subject};
    use skep_hypervisor::fake::Fake;
    use skep_hypervisor::{Aarch64, Powers};

    pub(crate) fn subject(powers: Powers) -> Subject<Aarch64> {
        Subject { hypervisor: Box::new(Fake::<Aarch64>::new()), probe: &[], powers, lacks: Lacks::empty() }
    }

    skep_hypervisor::conformance_suite!(aarch64: crate::aarch64::subject);
}
