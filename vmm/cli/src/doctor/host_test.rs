use std::fs;

use super::*;

/// A host's files, under a folder.
fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn about(topic: &str, files: &[(&str, &str)]) -> Option<Finding> {
    findings(host(files).path()).into_iter().find(|finding| finding.topic == topic)
}

#[test]
fn a_kernel_too_old_is_limited() {
    let kernel = |release| about("kernel", &[("proc/sys/kernel/osrelease", release)]).unwrap();
    assert_eq!(kernel("6.1.0-18-cloud-amd64\n"), Finding::new("kernel", "Linux 6.1.0-18-cloud-amd64", Verdict::Ok));
    assert_eq!(kernel("5.4.0\n"), Finding::new("kernel", "Linux 5.4.0", Verdict::Limited).mend("Linux 5.10 or later"));
    assert_eq!(kernel("nonsense").verdict, Verdict::Ok);
    assert_eq!(about("kernel", &[]), None);
}

#[test]
fn memory_is_told_in_sizes() {
    let meminfo = "MemTotal:       16384000 kB\nMemFree:  1 kB\nMemAvailable:    8192000 kB\n";
    let memory = about("memory", &[("proc/meminfo", meminfo)]).unwrap();
    assert_eq!(memory.text, "16000M, of which 8000M are available");
    assert_eq!(about("memory", &[("proc/meminfo", "MemTotal: x kB")]), None);
}

#[test]
fn huge_pages_are_listed_or_set_aside() {
    let none = about("huge pages", &[]).unwrap();
    assert_eq!((none.text.as_str(), none.verdict), ("the kernel has none", Verdict::Missing));
    let nr = |count| [("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", count)];
    let free = ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "3\n");
    let empty = about("huge pages", &[nr("0\n")[0], free]).unwrap();
    assert_eq!((empty.text.as_str(), empty.verdict), ("none are set aside (sizes: 2M)", Verdict::Missing));
    assert!(empty.mend.unwrap().contains("hugepages-2048kB/nr_hugepages"));
    let some = about("huge pages", &[nr("4\n")[0], free]).unwrap();
    assert_eq!(some, Finding::new("huge pages", "3 of 4 of 2M are free", Verdict::Ok));
}

#[test]
fn transparent_huge_pages_are_missed_when_they_are_off() {
    let choice =
        |text| about("transparent huge pages", &[("sys/kernel/mm/transparent_hugepage/enabled", text)]).unwrap();
    assert_eq!(choice("always [madvise] never\n").verdict, Verdict::Ok);
    assert_eq!(choice("always madvise [never]\n").verdict, Verdict::Limited);
    assert_eq!(choice("").text, "unknown");
}

#[test]
fn limits_are_judged() {
    assert_eq!(locked_memory(None).text, "no limit");
    assert_eq!(locked_memory(Some(8 << 20)).verdict, Verdict::Limited);
    assert_eq!(locked_memory(Some(64 << 20)).verdict, Verdict::Ok);
    assert_eq!(open_files(Some(256)).verdict, Verdict::Limited);
    assert_eq!(open_files(Some(1024)).text, "at most 1024");
}
