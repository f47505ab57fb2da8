//! Freezes records of this version's, as `cargo xtask golden` does when a version is given out: later ones must read them.

use std::path::Path;

use skep_hypervisor::fake::Fake;
use skep_hypervisor::{Aarch64, Hypervisor, X86_64};
use skep_state::testing::filled;
use skep_vmm::machine::Saved;
use skep_vmm::state::testing::{self, GOLDEN, again, file, machine, records};

fn freeze<A: Saved>(root: &Path)
where
    Fake<A>: Hypervisor<A> + Default,
{
    let mut machine = machine::<A>(Path::new("."));
    let mut records = records(&mut machine);
    for named in &mut records.records {
        // A restore is something that some devices tell their drivers of.
        named.record = again(&machine, &named.name, &named.record).expect("it is taken");
        // As many values as can be are not what they are at power-on.
        let stays = |record: &_| again(&machine, &named.name, record).is_ok_and(|again| again == *record);
        assert!(stays(&named.record), "{} is not what was saved", named.name);
        named.record = filled(&named.record, stays);
    }
    let path = root.join(file(A::KIND));
    std::fs::write(&path, records.bytes()).expect("the file can be written");
    println!("{}", path.display());
    let golden = root.join(GOLDEN);
    for name in ["snapshot", "difference"] {
        // The first time there is none.
        let _ = std::fs::remove_dir_all(golden.join(format!("{}-{name}", A::KIND)));
    }
    testing::freeze::<A>(&golden);
}

fn main() {
    let root = std::env::current_dir().expect("a folder");
    let folder = tempfile::tempdir().expect("a folder for disks");
    std::env::set_current_dir(folder.path()).expect("it can be entered");
    freeze::<X86_64>(&root);
    freeze::<Aarch64>(&root);
}
